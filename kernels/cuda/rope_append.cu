/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/rope_append.cu - rotate Q and K, put K and V of each token into its KV page, in
 * steps that hold prompts (attend_decode.cu does it itself where all rows are decode rows).
 *
 * fp32 inside (rope.cuh), one rounding to bf16 (or, divided by the cache's scale, to e4m3,
 * saturating) at each store. Memory bound: qkv read, Q and the page rows written. Reference:
 * kernels/cpu. */
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/rope.cuh"

static constexpr int THREADS = 128;

template <bool FP8>
__device__ static inline void store8(void *row, uint32_t d, float (&f)[8], float scale)
{
    if constexpr (FP8) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            f[i] = __fdiv_rn(f[i], scale); /* as the CPU backend: the same code */
        *(uint2 *)((unsigned char *)row + d) = e4m3x8(f);
    } else
        *(bf16x8 *)((bf16 *)row + d) = pack(f);
}

template <bool FP8>
__global__ void __launch_bounds__(THREADS)
    rope_append_kernel(const ll_cuda_tables t, bf16 *__restrict__ qkv, unsigned char *kv,
                       const float *__restrict__ kv_scale, const float2 *__restrict__ rope,
                       uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim)
{
    pdl_release();
    pdl_wait();
    const uint32_t token = blockIdx.x, slot = t.token_slot[token];
    if (slot == LL_CUDA_NONE)
        return;
    const uint32_t pos = t.token_pos[token], half = head_dim / 2, per_head = half / 8;
    const uint32_t page = t.page_table[(size_t)slot * t.pages_per_seq + pos / LL_PAGE_TOKENS];
    bf16 *row = qkv + (size_t)token * (n_heads + 2 * n_kv_heads) * head_dim;
    const float2 *angle = rope + (size_t)pos * half;

    const uint32_t n_rotated = (n_heads + n_kv_heads) * per_head;
    for (uint32_t u = threadIdx.x; u < n_rotated; u += THREADS) {
        const uint32_t head = u / per_head, d = u % per_head * 8;
        float x[8], y[8];
        unpack(*(const bf16x8 *)(row + head * head_dim + d), x);
        unpack(*(const bf16x8 *)(row + head * head_dim + half + d), y);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float2 cs = angle[d + j];
            rotate(x[j], y[j], cs.x, cs.y);
        }
        if (head < n_heads) {
            *(bf16x8 *)(row + head * head_dim + d) = pack(x);
            *(bf16x8 *)(row + head * head_dim + half + d) = pack(y);
        } else {
            unsigned char *k = kv_row<FP8>(kv, page, 0, head - n_heads, pos % LL_PAGE_TOKENS,
                                           n_kv_heads, head_dim);
            const float k_scale = scale_of<FP8>(kv_scale, head - n_heads);
            store8<FP8>(k, d, x, k_scale);
            store8<FP8>(k, half + d, y, k_scale);
        }
    }
    const uint32_t n_v = n_kv_heads * head_dim / 8;
    for (uint32_t u = threadIdx.x; u < n_v; u += THREADS) {
        const uint32_t head = u * 8 / head_dim, d = u * 8 % head_dim;
        float v[8];
        unpack(*(const bf16x8 *)(row + (n_heads + n_kv_heads) * head_dim + u * 8), v);
        store8<FP8>(kv_row<FP8>(kv, page, 1, head, pos % LL_PAGE_TOKENS, n_kv_heads, head_dim), d,
                    v, scale_of<FP8>(kv_scale, n_kv_heads + head));
    }
}

extern "C" int ll_cuda_rope_append(const struct ll_cuda_attend_args *args, cudaStream_t stream)
{
    if (args->head_dim % 16 != 0)
        return -EINVAL;
    if (args->n_tokens == 0)
        return 0;
    auto kernel = args->is_kv_fp8 ? rope_append_kernel<true> : rope_append_kernel<false>;
    return launch_chained(kernel, args->n_tokens, THREADS, 0, stream, *args->tables,
                          (bf16 *)args->qkv, (unsigned char *)args->kv, args->kv_scale,
                          (const float2 *)args->rope, args->n_heads, args->n_kv_heads,
                          args->head_dim);
}
