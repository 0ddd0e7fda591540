/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/skinny_wgmma.cuh - what the streaming product needs beyond wgmma.cuh: copies that
 * say how long the L2 should keep them, products of 16 to 128 columns, stores of turned tiles. */
#ifndef KERNELS_CUDA_SKINNY_WGMMA_CUH
#define KERNELS_CUDA_SKINNY_WGMMA_CUH

#include "kernels/cuda/wgmma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* ---- copies -----------------------------------------------------------------------------------*/
__device__ static inline uint64_t policy_evict_first()
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
__device__ static inline uint64_t policy_evict_last()
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
__device__ static inline void tensor_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/* The map's box at (column, row); its bytes count on barrier. What lies outside comes as zeros. */
__device__ static inline void copy_box(void *shared, const CUtensorMap *map, int32_t column,
                                       int32_t row, uint64_t *barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(smem_address(shared)),
                 "l"(map), "r"(column), "r"(row), "r"(smem_address(barrier)), "l"(policy)
                 : "memory");
}
/* Four 8 x 8 blocks of 16-bit numbers, turned: lane 8 m + i names where column i of block m goes.
 */
__device__ static inline void stmatrix4_trans(uint32_t address, const uint32_t (&v)[4])
{
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address),
        "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
        : "memory");
}

/* ---- products ---------------------------------------------------------------------------------*/
/* Both operands: rows of 128 bytes, groups of eight rows one after the other. */
__device__ static inline uint64_t operand(const void *shared)
{
    return operand(smem_address(shared), 16, 1024);
}

#define LL_D4(i)  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define LL_D8(i)  LL_D4(i), LL_D4(i + 4)
#define LL_D16(i) LL_D8(i), LL_D8(i + 8)
#define LL_D32(i) LL_D16(i), LL_D16(i + 16)
#define LL_D64(i) LL_D32(i), LL_D32(i + 32)
#define LL_P8     "%0,%1,%2,%3,%4,%5,%6,%7"
#define LL_P16    LL_P8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define LL_P32    LL_P16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define LL_P64                                                                                     \
    LL_P32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,"     \
           "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

/* d (+)= a b^T over 32 bytes of k: 32 e4m3 or 16 bf16 values. add: 0 starts d anew. */
template <bool FP8, int N> struct wgmma;
#define LL_WGMMA_OF(fp8, n, count, shape, type, tail, places, a_at, b_at, add_at)                  \
    template <> struct wgmma<fp8, n> {                                                             \
        __device__ static inline void run(float (&d)[count], uint64_t a, uint64_t b, uint32_t add) \
        {                                                                                          \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_at ", 0;\n"                       \
                         "wgmma.mma_async.sync.aligned." shape ".f32." type " {" places "}, " a_at \
                         ", " b_at ", p, 1, 1" tail ";\n}"                                         \
                         : LL_D##count(0)                                                          \
                         : "l"(a), "l"(b), "r"(add));                                              \
        }                                                                                          \
    }
#define LL_WGMMA_BOTH(n, count, a_at, b_at, add_at)                                                \
    LL_WGMMA_OF(true, n, count, "m64n" #n "k32", "e4m3.e4m3", "", LL_P##count, a_at, b_at,         \
                add_at);                                                                           \
    LL_WGMMA_OF(false, n, count, "m64n" #n "k16", "bf16.bf16", ", 0, 0", LL_P##count, a_at, b_at,  \
                add_at)
LL_WGMMA_BOTH(16, 8, "%8", "%9", "%10");
LL_WGMMA_BOTH(32, 16, "%16", "%17", "%18");
LL_WGMMA_BOTH(64, 32, "%32", "%33", "%34");
LL_WGMMA_BOTH(128, 64, "%64", "%65", "%66");

#endif
#endif
