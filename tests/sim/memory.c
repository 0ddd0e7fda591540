/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/memory.c - the linker sends our calls of the allocator here (--wrap), also under a
 * sanitizer: they are counted, and one of them is refused on demand (Z5). */
#include "tests/sim/sim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

uint64_t sim_n_allocations;
int64_t sim_n_live;
uint64_t sim_refuse_at;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void __real_free(void *memory);
void *__real_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *memory, size_t size);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void __wrap_free(void *memory);
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *memory, size_t size);

static bool is_refused(void)
{
    sim_n_allocations++;
    if (sim_refuse_at > 0 && --sim_refuse_at == 0) {
        errno = ENOMEM;
        return true;
    }
    return false;
}

static void *count(void *memory)
{
    sim_n_live += memory != NULL;
    return memory;
}

void *__wrap_malloc(size_t size)
{
    return is_refused() ? NULL : count(__real_malloc(size));
}

void *__wrap_calloc(size_t n, size_t size)
{
    return is_refused() ? NULL : count(__real_calloc(n, size));
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return is_refused() ? NULL : count(__real_aligned_alloc(alignment, size));
}

void __wrap_free(void *memory)
{
    sim_n_live -= memory != NULL;
    __real_free(memory);
}

void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (is_refused())
        return MAP_FAILED;
    void *memory = __real_mmap(at, size, protection, flags, fd, offset);
    sim_n_live += memory != MAP_FAILED;
    return memory;
}

int __wrap_munmap(void *memory, size_t size)
{
    sim_n_live--;
    return __real_munmap(memory, size);
}
