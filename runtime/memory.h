/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/memory.h - the large arrays that are made at start: whole cache lines, zeroed, touched,
 * in huge pages where the system gives them. A step then waits for no page fault (5 us each in a
 * virtual machine) and for few look-ups of addresses. */
#ifndef RUNTIME_MEMORY_H
#define RUNTIME_MEMORY_H

#include <stddef.h>
#include <stdint.h>

/* Zeroed memory of at least n_bytes, all of it touched; NULL: there is none. */
void *ll_memory_make(size_t n_bytes);
/* The same, but touched only where all of it is a small part of the machine's memory: for arrays
 * with room for the longest that can come, of which most is never used. */
void *ll_memory_make_sparse(size_t n_bytes);
/* The n_bytes it was made with; NULL is accepted. */
void ll_memory_free(void *memory, size_t n_bytes);

/* MemAvailable of the machine, in bytes; 0 where the kernel does not say. */
uint64_t ll_memory_available(void);

#endif
