/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/sha256.h - SHA-256 (FIPS 180-4) of a block of memory.
 *
 * For naming a chat template by its text, once at start: plain C, no hurry. */
#ifndef RUNTIME_SHA256_H
#define RUNTIME_SHA256_H

#include <stddef.h>

#define LL_SHA256_HEX_BYTES 65 /* 64 digits and the final NUL */

/* Lower-case hex digits of the hash of bytes[0 .. n_bytes). */
void ll_sha256_hex(char hex[LL_SHA256_HEX_BYTES], const void *bytes, size_t n_bytes);

#endif
