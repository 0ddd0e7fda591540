/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/common.cuh - the shared vocabulary of the kernels: wide types, reductions, copies.
 */
#ifndef KERNELS_CUDA_COMMON_CUH
#define KERNELS_CUDA_COMMON_CUH

#include "kernels/cuda/ops.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <errno.h>

typedef __nv_bfloat16 bf16;

struct __align__(16) bf16x8
{
    __nv_bfloat162 v[4];
};

__device__ static inline void unpack(const bf16x8 &a, float (&f)[8])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 p = __bfloat1622float2(a.v[i]);
        f[2 * i] = p.x;
        f[2 * i + 1] = p.y;
    }
}

__device__ static inline bf16x8 pack(const float (&f)[8])
{
    bf16x8 a;
#pragma unroll
    for (int i = 0; i < 4; i++)
        a.v[i] = __floats2bfloat162_rn(f[2 * i], f[2 * i + 1]);
    return a;
}

/* Eight values times inverse as e4m3, saturating. */
__device__ static inline uint2 e4m3x8(const float (&f)[8], float inverse = 1.0f)
{
    uint32_t word[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t lo = __nv_cvt_float2_to_fp8x2(
            make_float2(f[4 * h] * inverse, f[4 * h + 1] * inverse), __NV_SATFINITE, __NV_E4M3);
        uint32_t hi = __nv_cvt_float2_to_fp8x2(
            make_float2(f[4 * h + 2] * inverse, f[4 * h + 3] * inverse), __NV_SATFINITE, __NV_E4M3);
        word[h] = lo | hi << 16;
    }
    return make_uint2(word[0], word[1]);
}

/* What a row whose largest magnitude is amax is divided by; bound cuts outliers off (INFINITY: none
 * is). Never 0. */
__device__ static inline float e4m3_scale(float amax, float bound)
{
    return fmaxf(fminf(amax, bound) / 448.0f, 1e-12f);
}

__device__ static inline float warp_sum(float x)
{
#pragma unroll
    for (int d = 16; d > 0; d >>= 1)
        x += __shfl_xor_sync(~0u, x, d);
    return x;
}

__device__ static inline float warp_max(float x)
{
#pragma unroll
    for (int d = 16; d > 0; d >>= 1)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
    return x;
}

/* Over a block of THREADS threads; every thread gets the result. Fixed order: the same bits. */
template <int THREADS> __device__ static inline float block_sum(float x)
{
    __shared__ float part[THREADS / 32];
    x = warp_sum(x);
    __syncthreads(); /* the last use of part is over */
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++)
        total += part[i];
    return total;
}

template <int THREADS> __device__ static inline float block_max(float x)
{
    __shared__ float part[THREADS / 32];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    float top = part[0];
#pragma unroll
    for (int i = 1; i < THREADS / 32; i++)
        top = fmaxf(top, part[i]);
    return top;
}

/* 2^x, below the least normal number 0. */
__device__ static inline float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ static inline uint64_t now_ns()
{
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

__device__ static inline uint32_t smem_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes global -> shared, asynchronous; zero-filled where !valid. */
__device__ static inline void copy16_async(void *shared, const void *global, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_address(shared)),
                 "l"(global), "r"(valid ? 16 : 0));
}
__device__ static inline void copy_commit()
{
    asm volatile("cp.async.commit_group;");
}
template <int N> __device__ static inline void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N));
}

__device__ static inline void ldmatrix4(uint32_t (&r)[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_address(p)));
}
__device__ static inline void ldmatrix4_trans(uint32_t (&r)[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_address(p)));
}

/* c[16x8] += a[16x16] * b[16x8], bf16 in, fp32 out. */
__device__ static inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                       uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static inline uint32_t pack_bf16(float low, float high)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&v);
}

/* Philox4x32-10, as base/rng.h. */
__device__ static inline void philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2,
                                     uint32_t c3, uint32_t (&out)[4])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint32_t h0 = __umulhi(0xd2511f53u, c0), l0 = 0xd2511f53u * c0;
        uint32_t h1 = __umulhi(0xcd9e8d57u, c2), l1 = 0xcd9e8d57u * c2;
        uint32_t n0 = h1 ^ c1 ^ k0, n2 = h0 ^ c3 ^ k1;
        c1 = l1;
        c3 = l0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* Programmatic dependent launch: a kernel may start while the one before it drains. Before wait it
 * may only touch what no kernel of the step writes (weights); every kernel of a chain waits, so the
 * end of one means the end of all before it. */
__device__ static inline void pdl_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* Lets the next kernel start when all blocks have come here. */
__device__ static inline void pdl_release()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* kernel<<<grid, block, shared, stream>>>(args...) with that attribute where the GPU has it and the
 * kernels were compiled for it. */
template <class... Params, class... Args>
static inline int launch_chained(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared,
                                 cudaStream_t stream, Args... args)
{
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = ll_cuda_level() >= 90 ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, Params(args)...) == cudaSuccess ? 0 : -EIO;
}

static inline int launched()
{
    return cudaGetLastError() == cudaSuccess ? 0 : -EIO;
}

#endif
