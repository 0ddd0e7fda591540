/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/memory.h"

#include "base/bits.h"

#include <stdio.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SMALL_BYTES (1u << 20) /* from malloc: a mapping each would cost more than it saves */
#define SMALL_SHARE 16u        /* of the machine's memory, for ll_memory_make_sparse() */

static void touch(char *memory, size_t n_bytes)
{
    volatile char *byte = memory;

    for (size_t at = 0; at < n_bytes; at += 4096)
        byte[at] = 0;
}

static void *map(size_t n_bytes, bool is_touched)
{
    char *memory = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED)
        return NULL;
    if (is_touched) {
        madvise(memory, n_bytes, MADV_HUGEPAGE); /* a wish: small pages do as well */
        touch(memory, n_bytes);
    }
    return memory;
}

void *ll_memory_make(size_t n_bytes)
{
    if (n_bytes > SMALL_BYTES)
        return map(n_bytes, true);
    size_t rounded = ll_align_up(ll_max_u64(n_bytes, 1), LL_LINE_BYTES);
    void *memory = aligned_alloc(LL_LINE_BYTES, rounded);
    return memory != NULL ? memset(memory, 0, rounded) : NULL;
}

void *ll_memory_make_sparse(size_t n_bytes)
{
    uint64_t n_pages = (uint64_t)sysconf(_SC_PHYS_PAGES),
             page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);

    if (n_bytes > SMALL_BYTES)
        return map(n_bytes, n_bytes / page_bytes <= n_pages / SMALL_SHARE);
    return ll_memory_make(n_bytes);
}

void ll_memory_free(void *memory, size_t n_bytes)
{
    if (memory == NULL)
        return;
    if (n_bytes > SMALL_BYTES)
        munmap(memory, n_bytes);
    else
        free(memory);
}

uint64_t ll_memory_available(void)
{
    unsigned long long kib = 0;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "re");

    if (file == NULL)
        return 0;
    while (fgets(line, sizeof(line), file) != NULL)
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    fclose(file);
    return kib * 1024;
}
