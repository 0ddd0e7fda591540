/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/allocations.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

/* Relaxed everywhere: a figure, published by nothing and publishing nothing. */
static _Atomic(_Atomic uint64_t *) watched;

void ll_allocations_watch(_Atomic uint64_t *counter)
{
    atomic_store_explicit(&watched, counter, memory_order_relaxed);
}

static _Thread_local bool is_exempt;

void ll_allocations_exempt_thread(void)
{
    is_exempt = true;
}

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

bool ll_allocations_are_counted(void)
{
    return true;
}

void *__libc_malloc(size_t n_bytes);
void *__libc_calloc(size_t n, size_t n_bytes);
void *__libc_realloc(void *at, size_t n_bytes);
void *__libc_memalign(size_t alignment, size_t n_bytes);

static void count(void)
{
    _Atomic uint64_t *counter = atomic_load_explicit(&watched, memory_order_relaxed);

    if (__builtin_expect(counter != NULL, 0) && !is_exempt)
        atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* These take the place of glibc's for the whole process, libraries included; free stays glibc's. */
__attribute__((visibility("default"))) void *malloc(size_t n_bytes)
{
    count();
    return __libc_malloc(n_bytes);
}

__attribute__((visibility("default"))) void *calloc(size_t n, size_t n_bytes)
{
    count();
    return __libc_calloc(n, n_bytes);
}

__attribute__((visibility("default"))) void *realloc(void *at, size_t n_bytes)
{
    count();
    return __libc_realloc(at, n_bytes);
}

__attribute__((visibility("default"))) void *aligned_alloc(size_t alignment, size_t n_bytes)
{
    count();
    return __libc_memalign(alignment, n_bytes);
}

__attribute__((visibility("default"))) int posix_memalign(void **out, size_t alignment,
                                                          size_t n_bytes)
{
    if (alignment % sizeof(void *) != 0 || (alignment & (alignment - 1)) != 0 || alignment == 0)
        return EINVAL;
    count();
    void *at = __libc_memalign(alignment, n_bytes);
    if (at == NULL)
        return ENOMEM;
    *out = at;
    return 0;
}

#else

bool ll_allocations_are_counted(void)
{
    return false;
}

#endif
