/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/salt.h - who may share cached prefixes with whom.
 *
 * The runtime shares a cached prefix among equal salts only; that a prefix is there shows in the
 * time to the first token. So each API key has a salt of its own, and so has each `cache_salt` of a
 * key. A keyed hash with a secret of this process: no client can aim at another one's salt. */
#ifndef TOOLS_HTTP_SALT_H
#define TOOLS_HTTP_SALT_H

#include <stddef.h>
#include <stdint.h>

/* SipHash-2-4. */
uint64_t siphash(const uint64_t key[2], const void *bytes, size_t n);

/* tenant 0 without text (n 0): zeros, shared by all. */
void make_salt(const uint64_t secret[2], uint32_t tenant, const char *text, size_t n,
               uint64_t out[2]);

#endif
