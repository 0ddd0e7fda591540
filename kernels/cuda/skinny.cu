/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/skinny.cu - matrix product for few tokens: decode at the speed of the memory.
 *
 *   y[t, n] = s[n] * sum_k x[t, k] w[n, k],  T = 1 .. 8, w row-major bf16, or e4m3 with scale s
 *   GATED: x[t, k] = silu(g[t, k]) * u[t, k] of gate_up [T, 2K], computed while it is loaded
 *   BLOCK: w[n, k] (e4m3) has a factor b[n / 16, k / 128] besides: 128 bytes a row of one warp's 16
 *          rows, which is what it fetches at once, have one, and their sum is multiplied by it
 *
 * Weights are the A operand of mma.sync m16n8k16 (16 rows a warp), tokens the B operand (8
 * columns). Each warp streams its own rows through a ring of shared memory by cp.async, whole
 * 128-byte lines a row, STAGES ahead, and waits for nobody else. A lane then takes 16 contiguous
 * bytes of two rows: the order of k inside a block is free as long as both operands use the same,
 * so bytes 4 s .. 4 s + 3 of a lane are its share of step s. e4m3 becomes f16 in registers (exact),
 * activations are f16 then, gated ones scaled by 1/16 so that 2^20 still fits; bf16 weights meet
 * bf16 activations.
 *
 * K is cut into slices by the weight's shape alone and partial sums meet in slice order, so a
 * token's bits depend neither on the other tokens nor on T. Memory bound: N K bytes (2 N K for
 * bf16); a CTA keeps 4 warps x 8 KiB in flight. Past 8 tokens
 * every CTA would read more activations than weights: the tile is too narrow then. Reference:
 * kernels/cpu. */
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/skinny.h"

#include <cuda_fp16.h>

static constexpr int THREADS = 128;
static constexpr int COLUMNS = 8; /* tokens */
static constexpr int STAGES = 4;  /* of 128 bytes a row on the way at once: 8 KiB a warp */
static constexpr int STAGE_BYTES = 16 * 128;
static constexpr int ROWS = 64; /* of w a CTA: 16 a warp */
static constexpr float GATED_SCALE = 1.0f / 16.0f;

/* Place of 16-byte chunk j of row r: eight lanes that read two rows' halves meet no bank twice. */
__device__ static inline uint32_t stage_offset(uint32_t r, uint32_t j)
{
    return r * 128 + (j ^ ((r & 1) * 4 + (r >> 1 & 3))) * 16;
}

/* Two e4m3 codes (the low 16 bits) as f16, exact; one instruction from 8.9 on. */
__device__ static inline uint32_t e4m3_pair(uint32_t bits)
{
    const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)bits, __NV_E4M3);
    return (uint32_t)pair.x | (uint32_t)pair.y << 16;
}

__device__ static inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                      uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Eight activations as the operand type: f16 for e4m3 weights, bf16 for bf16 ones. */
template <bool FP8, bool GATED> __device__ static inline uint4 load_x(const bf16 *x, size_t k_total)
{
    float f[8];
    unpack(*(const bf16x8 *)x, f);
    if constexpr (GATED) {
        float u[8];
        unpack(*(const bf16x8 *)(x + k_total), u);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float silu = f[j] / (1.0f + __expf(-f[j]));
            /* Rounded where the unfused form rounds, so both give the same activations. */
            f[j] = __bfloat162float(
                __float2bfloat16_rn(__bfloat162float(__float2bfloat16_rn(silu)) * u[j]));
        }
    }
    if constexpr (!FP8) {
        const bf16x8 v = pack(f);
        return *reinterpret_cast<const uint4 *>(&v);
    } else {
        uint4 v;
        __half2 *h = reinterpret_cast<__half2 *>(&v);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float scale = GATED ? GATED_SCALE : 1.0f;
            h[j] = __floats2half2_rn(f[2 * j] * scale, f[2 * j + 1] * scale);
        }
        return v;
    }
}

/* One block of 64 bytes a row: 64 e4m3 or 32 bf16 values of k. */
template <bool FP8>
__device__ static inline void multiply(float (&acc)[4], const uint4 &w0, const uint4 &w1,
                                       const unsigned char *x)
{
    const uint32_t lo[4] = {w0.x, w0.y, w0.z, w0.w}, hi[4] = {w1.x, w1.y, w1.z, w1.w};
    if constexpr (FP8) {
        uint32_t a[4][4];
#pragma unroll
        for (int s = 0; s < 4; s++) {
            a[s][0] = e4m3_pair(lo[s]);
            a[s][1] = e4m3_pair(hi[s]);
            a[s][2] = e4m3_pair(lo[s] >> 16);
            a[s][3] = e4m3_pair(hi[s] >> 16);
        }
        const uint4 b0 = *(const uint4 *)x;
        const uint4 b1 = *(const uint4 *)(x + 16);
        mma_f16(acc, a[0], b0.x, b0.y);
        mma_f16(acc, a[1], b0.z, b0.w);
        mma_f16(acc, a[2], b1.x, b1.y);
        mma_f16(acc, a[3], b1.z, b1.w);
    } else {
        const uint32_t a0[4] = {lo[0], hi[0], lo[1], hi[1]}, a1[4] = {lo[2], hi[2], lo[3], hi[3]};
        const uint4 b = *(const uint4 *)x;
        mma_bf16(acc, a0, b.x, b.y);
        mma_bf16(acc, a1, b.z, b.w);
    }
}

template <bool FP8, bool GATED, bool BLOCK, class Out>
__global__ void __launch_bounds__(THREADS)
    skinny_kernel(Out *__restrict__ y, const bf16 *__restrict__ x,
                  const unsigned char *__restrict__ w, const float *__restrict__ w_scale,
                  const float *__restrict__ w_block, float *partial, uint32_t *arrived,
                  uint32_t n_tokens, uint32_t n, uint32_t k, uint32_t slice, uint32_t sub)
{
    constexpr int BYTES = FP8 ? 1 : 2, BLOCK_K = 64 / BYTES, PAD = FP8 ? 16 : 64;
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
    const uint32_t row = blockIdx.x * ROWS + warp * 16;
    const bool has_rows = row < n;
    const uint32_t from = blockIdx.y * slice, to = min(from + slice, k);
    const uint32_t stride = sub * 2 + PAD, width = GATED ? 2 * k : k;
    const uint32_t n_stages = (to - from) * BYTES / 128;
    unsigned char *ring = shared + COLUMNS * stride + warp * STAGES * STAGE_BYTES;
    /* Lane's part of a stage: chunk lane % 8 of rows lane / 8 + 0, 4, 8, 12. */
    const unsigned char *source =
        w + ((size_t)(has_rows ? row + lane / 8 : 0) * k + from) * BYTES + lane % 8 * 16;
    float acc[4] = {}, factor = 0.0f;
    if constexpr (BLOCK) /* lane i has that of stage i: a slice has at most 32 */
        if (has_rows && lane < n_stages)
            factor = w_block[(size_t)(row / 16) * (k / 128) + from / 128 + lane];

    auto fetch = [&](uint32_t stage) {
        if (has_rows && stage < n_stages)
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                copy16_async(ring + stage % STAGES * STAGE_BYTES +
                                 stage_offset(lane / 8 + i * 4, lane % 8),
                             source + (size_t)i * 4 * k * BYTES + (size_t)stage * 128, true);
        copy_commit();
    };
    /* The weights' first stages are under way while the kernel before drains. */
    for (uint32_t i = 0; i < STAGES - 1; i++)
        fetch(i);
    /* Columns past the tokens are zero throughout. */
    for (uint32_t i = n_tokens * stride / 16 + threadIdx.x; i < COLUMNS * stride / 16; i += THREADS)
        ((uint4 *)shared)[i] = make_uint4(0, 0, 0, 0);
    pdl_wait();
    for (uint32_t base = from; base < to; base += sub) {
        const uint32_t n_sub = min(sub, to - base), chunks = n_sub / 8;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n_tokens * chunks; i += THREADS) {
            const uint32_t t = i / chunks, at = i % chunks * 8;
            *(uint4 *)(shared + t * stride + at * 2) =
                load_x<FP8, GATED>(x + (size_t)t * width + base + at, k);
        }
        __syncthreads();
        const unsigned char *mine = shared + r * stride + c * (FP8 ? 32 : 16);
        const uint32_t first = (base - from) * BYTES / 128, last = first + n_sub * BYTES / 128;
        for (uint32_t stage = first; stage < last; stage++) {
            copy_wait<STAGES - 2>();
            __syncwarp(); /* every lane's copies of this stage are there, the oldest is read */
            fetch(stage + STAGES - 1);
            const unsigned char *tile = ring + stage % STAGES * STAGE_BYTES;
            float part[4] = {};
#pragma unroll
            for (uint32_t half = 0; half < 2; half++) {
                const uint4 w0 = *(const uint4 *)(tile + stage_offset(r, half * 4 + c));
                const uint4 w1 = *(const uint4 *)(tile + stage_offset(r + 8, half * 4 + c));
                multiply<FP8>(BLOCK ? part : acc, w0, w1,
                              mine + ((stage - first) * 2 + half) * BLOCK_K * 2);
            }
            if constexpr (BLOCK) {
                const float f = __shfl_sync(~0u, factor, (int)stage);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    acc[i] += part[i] * f;
            }
        }
    }

    /* Not earlier: waiting blocks of the next kernel would take the places of ours. */
    pdl_release();
    const uint32_t n_slices = gridDim.y;
    if (n_slices == 1) {
        if (!has_rows)
            return;
        const float gain = GATED && FP8 ? 1.0f / GATED_SCALE : 1.0f;
        const float s0 = FP8 ? w_scale[row + r] * gain : gain;
        const float s1 = FP8 ? w_scale[row + r + 8] * gain : gain;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t t = c * 2 + i % 2;
            if (t < n_tokens)
                y[(size_t)t * n + row + r + (i / 2) * 8] = (Out)(acc[i] * (i < 2 ? s0 : s1));
        }
        return;
    }

    if (has_rows)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t t = c * 2 + i % 2;
            if (t < n_tokens)
                __stcg(&partial[((size_t)blockIdx.y * n_tokens + t) * n + row + r + (i / 2) * 8],
                       acc[i]);
        }
    __shared__ bool is_last;
    __threadfence(); /* partial sums before the count */
    __syncthreads();
    if (threadIdx.x == 0)
        is_last = atomicAdd(&arrived[blockIdx.x], 1) == n_slices - 1;
    __syncthreads();
    if (!is_last)
        return;
    __threadfence(); /* the count before the others' partial sums */
    const float gain = GATED && FP8 ? 1.0f / GATED_SCALE : 1.0f;
    for (uint32_t i = threadIdx.x; i < ROWS * n_tokens; i += THREADS) {
        const uint32_t t = i / ROWS, at = blockIdx.x * ROWS + i % ROWS;
        if (at >= n)
            continue;
        float sum = 0.0f;
        for (uint32_t s = 0; s < n_slices; s++)
            sum += __ldcg(&partial[((size_t)s * n_tokens + t) * n + at]);
        y[(size_t)t * n + at] = (Out)(sum * (FP8 ? w_scale[at] * gain : gain));
    }
    if (threadIdx.x == 0)
        arrived[blockIdx.x] = 0;
}

/* K cut so that some 400 CTAs are there, in slices of 256 to 4096 that 128 divides. */
static uint32_t slice_for(uint32_t n, uint32_t k)
{
    const uint32_t n_tiles = (n + ROWS - 1) / ROWS;
    uint32_t slice = k < 4096 ? k : 4096;

    while (k % slice != 0 && slice > 128)
        slice -= 128;
    while ((uint64_t)n_tiles * (k / slice) < 380 && slice % 256 == 0 && slice > 256)
        slice /= 2;
    return slice;
}

template <bool FP8, bool GATED, bool BLOCK, class Out>
static int launch(const struct ll_skinny_args *a, cudaStream_t stream)
{
    const uint32_t slice = slice_for(a->n, a->k);
    /* Activations of a pass: 16 KiB, so that four CTAs share an SM. */
    uint32_t sub = 1024;
    if (sub > slice)
        sub = slice;
    const uint32_t n_slices = (a->k + slice - 1) / slice;
    const size_t shared =
        (size_t)COLUMNS * (sub * 2 + (FP8 ? 16 : 64)) + THREADS / 32 * STAGES * STAGE_BYTES;

    static_assert(COLUMNS * (1024 * 2 + 64) + THREADS / 32 * STAGES * STAGE_BYTES <= 56 << 10,
                  "four CTAs share an SM");
    if (cudaFuncSetAttribute(skinny_kernel<FP8, GATED, BLOCK, Out>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, 56 << 10) != cudaSuccess)
        return -EIO;
    return launch_chained(skinny_kernel<FP8, GATED, BLOCK, Out>,
                          dim3((a->n + ROWS - 1) / ROWS, n_slices), THREADS, shared, stream,
                          (Out *)a->y, (const bf16 *)a->x, (const unsigned char *)a->w, a->w_scale,
                          a->w_block, a->partial, a->arrived, a->n_tokens, a->n, a->k, slice, sub);
}

extern "C" bool ll_cuda_skinny_fits(const struct ll_skinny_args *a)
{
    return a->n_tokens <= LL_SKINNY_TOKENS_MAX && a->n % 16 == 0 && a->k % 128 == 0;
}

extern "C" size_t ll_cuda_skinny_partial_bytes(uint32_t n, uint32_t k)
{
    const uint32_t slice = slice_for(n, k), n_slices = (k + slice - 1) / slice;
    return n_slices == 1 ? 0 : (size_t)n_slices * LL_SKINNY_TOKENS_MAX * n * sizeof(float);
}

extern "C" int ll_cuda_skinny(const struct ll_skinny_args *args, cudaStream_t stream)
{
    if (!ll_cuda_skinny_fits(args))
        return -EINVAL;
    if (args->n_tokens == 0)
        return 0;
    if (!args->is_fp8) {
        if (args->is_f32)
            return args->is_gated ? -EINVAL : launch<false, false, false, float>(args, stream);
        return args->is_gated ? launch<false, true, false, bf16>(args, stream)
                              : launch<false, false, false, bf16>(args, stream);
    }
    if (args->w_block != NULL)
        return args->is_gated ? launch<true, true, true, bf16>(args, stream)
                              : launch<true, false, true, bf16>(args, stream);
    return args->is_gated ? launch<true, true, false, bf16>(args, stream)
                          : launch<true, false, false, bf16>(args, stream);
}
