/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/inner.c - the portable inner loops, and the choice among the tables. */
#define LL_INNER_TABLE ll_cpu_inner_portable
#define LL_INNER_NAME  "portable C"
#include "kernels/cpu/inner_body.h"

#include "base/bits.h"

#include <string.h>

static bool can_portable(void)
{
    return true;
}

#if defined(__x86_64__)
/* These ask CPUID and, through XGETBV, whether the system saves the wide registers. */
static bool can_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

static bool can_avx512(void)
{
    return can_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const struct ll_cpu_inner *ll_cpu_inner_find(const char *name)
{
    static const struct {
        const char *name;
        const struct ll_cpu_inner *inner;
        bool (*can)(void);
    } known[] = {
#if defined(__x86_64__)
        {"avx512", &ll_cpu_inner_avx512, can_avx512},
        {"avx2", &ll_cpu_inner_avx2, can_avx2},
#endif
        {"portable", &ll_cpu_inner_portable, can_portable},
    };

    for (size_t i = 0; i < LL_COUNT(known); i++)
        if ((name == NULL || strcmp(name, known[i].name) == 0) && known[i].can())
            return known[i].inner;
    return NULL;
}
