/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/count_alloc.h - counts heap allocations of a whole program: include it in one
 * source of a test that has no helper threads. Not under a sanitizer, which has an allocator of its
 * own. */
#ifndef TESTS_RUNTIME_COUNT_ALLOC_H
#define TESTS_RUNTIME_COUNT_ALLOC_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HAS_ALLOC_COUNT 0
static uint64_t n_allocations;
#else
#define HAS_ALLOC_COUNT 1
static uint64_t n_allocations;

/* glibc's own, under the names it keeps for this purpose. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

void *malloc(size_t size)
{
    n_allocations++;
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    n_allocations++;
    return __libc_calloc(n, size);
}

void *realloc(void *memory, size_t size)
{
    n_allocations++;
    return __libc_realloc(memory, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    n_allocations++;
    return __libc_memalign(alignment, size);
}

int posix_memalign(void **out, size_t alignment, size_t size)
{
    n_allocations++;
    *out = __libc_memalign(alignment, size);
    return *out != NULL ? 0 : ENOMEM;
}
#endif

#endif
