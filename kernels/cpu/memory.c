/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HUGE_FROM_BYTES (8u << 20)
#define NODES_MAX       1024
#define POLICY_PREFERRED                                                                           \
    1 /* MPOL_PREFERRED of <numaif.h>, without linking libnuma for one call                        \
       */

static size_t mapped_bytes(size_t size_bytes)
{
    return size_bytes > 0 ? size_bytes : 1;
}

void *ll_cpu_map(size_t size_bytes, int numa_node)
{
    size_t bytes = mapped_bytes(size_bytes);
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (base == MAP_FAILED)
        return NULL;
    /* Both are wishes: without them the memory is slower, not wrong. */
    if (bytes >= HUGE_FROM_BYTES)
        (void)madvise(base, bytes, MADV_HUGEPAGE);
    if (numa_node >= 0 && numa_node < NODES_MAX) {
        unsigned long mask[NODES_MAX / (8 * sizeof(unsigned long))] = {0};
        const unsigned bits = 8 * sizeof(unsigned long);
        mask[(unsigned)numa_node / bits] = 1ul << ((unsigned)numa_node % bits);
        (void)syscall(SYS_mbind, base, bytes, POLICY_PREFERRED, mask, NODES_MAX + 1ul, 0u);
    }
    return base;
}

void ll_cpu_unmap(void *base, size_t size_bytes)
{
    if (base != NULL)
        munmap(base, mapped_bytes(size_bytes));
}

void ll_cpu_touch(void *base, size_t size_bytes)
{
    const size_t page = 4096;

    for (size_t at = 0; at < size_bytes; at += page)
        ((volatile char *)base)[at] = 0;
}

int ll_cpu_fail(struct ll_text *error, int code, const char *format, ...)
{
    if (error != NULL) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error->s, sizeof(error->s), format, arguments);
        va_end(arguments);
    }
    return code;
}
