/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/loader_hash.h - the checksum of what is loaded, made by a thread of its own.
 *
 *   H1  XXH3 (128 bits) of the bytes of all chunks in the plan's order: the same for every way of
 *       reading and every order in which chunks come
 *   H2  chunks come in any order, at most n_window ahead of the first that is not there; a chunk's
 *       bytes stay as they are until ll_load_hash_take() has given it back
 * It finds damage, it does not prove who made a file. */
#ifndef RUNTIME_LOADER_HASH_H
#define RUNTIME_LOADER_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LL_LOAD_HASH_BYTES 33 /* 32 hex digits */

struct ll_load_hash; /* opaque */

int ll_load_hash_open(struct ll_load_hash **out, uint32_t n_window);
/* Stops the thread, whatever it has done. NULL is accepted. */
void ll_load_hash_close(struct ll_load_hash *hash);

void ll_load_hash_add(struct ll_load_hash *hash, uint32_t chunk, const void *bytes, size_t n_bytes);
/* The thread has something to do, or something done is there to be taken. */
bool ll_load_hash_is_busy(struct ll_load_hash *hash);
/* The next chunk in order that is hashed; -1: none, and with is_waiting none that could be soon. */
int64_t ll_load_hash_take(struct ll_load_hash *hash, bool is_waiting);
/* Of everything taken so far. */
void ll_load_hash_text(const struct ll_load_hash *hash, char out[LL_LOAD_HASH_BYTES]);

#endif
