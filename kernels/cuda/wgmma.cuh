/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/wgmma.cuh - the instructions of 9.0a: warpgroup products of 16-bit numbers, barriers
 * in shared memory, bulk copies, and the host's way to a tensor map.
 *
 * Operands lie in shared memory as rows of 128 bytes whose 16-byte chunks are XORed by row & 7
 * ("128-byte swizzle"), 8 rows an atom of 1024 bytes, atoms aligned to it. An accumulator a of 64 x
 * N: warp w of the warpgroup holds rows 16 w + lane / 4 (+ 8), a[4 n + 2 r + c] is row r of the
 * two, column 8 n + (lane % 4) * 2 + c. Device code is there for sm_90a alone. */
#ifndef KERNELS_CUDA_WGMMA_CUH
#define KERNELS_CUDA_WGMMA_CUH

#include "kernels/cuda/common.cuh"

#include <cuda.h> /* CUtensorMap */
#include <cudaTypedefs.h>

/* The driver's function, asked of the runtime once, by whichever rank's thread comes first: no
 * libcuda at link time, so the module opens where there is no driver. NULL: there is none. */
static inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder()
{
    static const PFN_cuTensorMapEncodeTiled_v12000 encode = [] {
        void *f = nullptr;
        cudaDriverEntryPointQueryResult found;
        return cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000,
                                                cudaEnableDefault, &found) == cudaSuccess &&
                       found == cudaDriverEntryPointSuccess
                   ? (PFN_cuTensorMapEncodeTiled_v12000)f
                   : nullptr;
    }();
    return encode;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* ---- barriers in shared memory ----------------------------------------------------------------*/
__device__ static inline void barrier_init(uint64_t *bar, uint32_t n_arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(bar)),
                 "r"(n_arrivals));
}
/* Inits are seen by the copy engine and by other threads after the block's next barrier. */
__device__ static inline void barrier_init_done()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ static inline void barrier_arrive(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(bar)) : "memory");
}
/* One arrival, and n_bytes that copies will still bring. */
__device__ static inline void barrier_expect(uint64_t *bar, uint32_t n_bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(bar)),
                 "r"(n_bytes)
                 : "memory");
}
/* Waits until the phase of this parity is over; at once when the one after it runs. */
__device__ static inline void barrier_wait(uint64_t *bar, uint32_t parity)
{
    uint32_t done;
    do {
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.b32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(smem_address(bar)), "r"(parity)
                     : "memory");
    } while (!done);
}
/* What this thread stored to shared memory is seen by copies and products that follow a barrier. */
__device__ static inline void fence_async()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/* Barrier `id` (1 to 15) of n_threads. */
__device__ static inline void named_sync(uint32_t id, uint32_t n_threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}
__device__ static inline void named_arrive(uint32_t id, uint32_t n_threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

/* ---- copies -----------------------------------------------------------------------------------*/
__device__ static inline void copy_box(void *shared, const CUtensorMap *map, uint32_t x, uint32_t y,
                                       uint64_t *bar)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(smem_address(shared)),
                 "l"(map), "r"(x), "r"(y), "r"(smem_address(bar))
                 : "memory");
}
__device__ static inline void copy_bulk(void *shared, const void *global, uint32_t n_bytes,
                                        uint64_t *bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(smem_address(shared)),
                 "l"(global), "r"(n_bytes), "r"(smem_address(bar))
                 : "memory");
}

/* ---- products ---------------------------------------------------------------------------------*/
/* An operand at shared address `at`. K-major (a row is a row or column of the product): stride is
 * that between groups of 8 rows, lead unused. Transposed (a row is one step of K): lead is the
 * stride between blocks of 64 columns, stride that between groups of 8 rows. */
__device__ static inline uint64_t operand(uint32_t at, uint32_t lead, uint32_t stride)
{
    return (uint64_t)((at & 0x3ffff) >> 4) | (uint64_t)(lead >> 4) << 16 |
           (uint64_t)(stride >> 4) << 32 | 1ull << 62; /* 128-byte swizzle */
}
__device__ static inline void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ static inline void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> __device__ static inline void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/* Keeps the compiler from reading an accumulator before the wait. */
template <int N> __device__ static inline void wgmma_settle(float (&a)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(a[i])::"memory");
}

#define LL_F8(a, i)                                                                                \
    "+f"(a[i]), "+f"(a[i + 1]), "+f"(a[i + 2]), "+f"(a[i + 3]), "+f"(a[i + 4]), "+f"(a[i + 5]),    \
        "+f"(a[i + 6]), "+f"(a[i + 7])
#define LL_F32(a) LL_F8(a, 0), LL_F8(a, 8), LL_F8(a, 16), LL_F8(a, 24)
#define LL_F64(a) LL_F32(a), LL_F8(a, 32), LL_F8(a, 40), LL_F8(a, 48), LL_F8(a, 56)
#define LL_R32                                                                                     \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"   \
    "%25,%26,%27,%28,%29,%30,%31"
#define LL_R64                                                                                     \
    LL_R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,"     \
           "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

/* c[64 x 128] (+)= a[64 x 16] b[128 x 16]^T, both K-major in shared memory. */
template <bool F16>
__device__ static inline void wgmma_shared(float (&c)[64], uint64_t a, uint64_t b, bool is_more)
{
#define LL_WGMMA(type)                                                                             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                      \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" LL_R64          \
                 "}, %64, %65, p, 1, 1, 0, 0;\n}"                                                  \
                 : LL_F64(c)                                                                       \
                 : "l"(a), "l"(b), "r"((int)is_more))
    if constexpr (F16)
        LL_WGMMA("f16");
    else
        LL_WGMMA("bf16");
#undef LL_WGMMA
}

/* c[64 x 128] += a[64 x 16] b[16 x 128]: a in registers (as of mma m16n8k16), b transposed. */
template <bool F16>
__device__ static inline void wgmma_registers(float (&c)[64], const uint32_t (&a)[4], uint64_t b)
{
#define LL_WGMMA(type)                                                                             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                        \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" LL_R64          \
                 "}, {%64,%65,%66,%67}, %68, p, 1, 1, 1;\n}"                                       \
                 : LL_F64(c)                                                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
    if constexpr (F16)
        LL_WGMMA("f16");
    else
        LL_WGMMA("bf16");
#undef LL_WGMMA
}

/* The same for 64 columns. */
template <bool F16>
__device__ static inline void wgmma_registers(float (&c)[32], const uint32_t (&a)[4], uint64_t b)
{
#define LL_WGMMA(type)                                                                             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                        \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" LL_R32           \
                 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 1;\n}"                                       \
                 : LL_F32(c)                                                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
    if constexpr (F16)
        LL_WGMMA("f16");
    else
        LL_WGMMA("bf16");
#undef LL_WGMMA
}

template <int N> __device__ static inline void registers_give()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ static inline void registers_take()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

#endif
#endif
