/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/comm.cu - a model's parts on one GPU: sums over N buffers, the embedding's and the
 * head's rows in parts.
 *
 * Memory bound: norm reads N + 1 rows and writes 2 a part. Reference: the peer form (comm_peer.cu)
 * must give the same bits; tests/kernels/test_cuda_comm.c has a plain one. */
#include "kernels/cuda/comm.cuh"

/* RANKS a constant: all their words are on the way at once. */
template <int RANKS, int THREADS, int VECS>
__global__ void __launch_bounds__(THREADS) norm_kernel(const ll_comm_norm a, uint32_t n_vecs)
{
    pdl_release();
    bf16x8 w[VECS];
#pragma unroll
    for (int k = 0; k < VECS; k++)
        if (threadIdx.x + k * THREADS < n_vecs)
            w[k] = ((const bf16x8 *)a.weight)[threadIdx.x + k * THREADS];
    pdl_wait();
    uint32_t t = blockIdx.x;
    if (a.rows != nullptr)
        t = a.rows[blockIdx.x].token == LL_CUDA_NONE ? 0 : a.rows[blockIdx.x].token;
    float v[VECS][8];

#pragma unroll
    for (int k = 0; k < VECS; k++) {
        const uint32_t i = threadIdx.x + k * THREADS;
        if (i >= n_vecs)
            continue;
        const size_t at = (size_t)t * n_vecs + i;
        uint4 come[RANKS];
#pragma unroll
        for (int r = 0; r < RANKS; r++)
            come[r] = ((const uint4 *)a.delta[r])[at];
        unpack(never_empty(come[0]), v[k]);
#pragma unroll
        for (int r = 1; r < RANKS; r++)
            add(v[k], never_empty(come[r]));
        const bf16x8 x = new_x(v[k], (const bf16x8 *)a.x[0] + at, a.sets_x);
        if (a.rows == nullptr)
            for (uint32_t p = 0; p < a.n_parts; p++)
                ((bf16x8 *)a.x[p])[at] = x;
    }
    finish_row<THREADS, VECS>(a, v, w, n_vecs, 0,
                              put_parts{a, (size_t)blockIdx.x * n_vecs, blockIdx.x});
}

template <int RANKS> static int launch_norm(const ll_comm_norm *args, cudaStream_t stream)
{
    const uint32_t n_vecs = args->n_embd / 8;

#define LAUNCH(threads, vecs)                                                                      \
    return launch_chained(norm_kernel<RANKS, threads, vecs>, args->n_rows, threads, 0, stream,     \
                          *args, n_vecs)
    LL_COMM_BY_WIDTH(n_vecs, LAUNCH);
#undef LAUNCH
}

extern "C" int ll_comm_norm_lockstep(const struct ll_comm_norm *args, cudaStream_t stream)
{
    const uint32_t n_vecs = args->n_embd / 8;

    if (args->n_embd == 0 || args->n_embd % 8 != 0 || n_vecs > 2048 || args->n_parts == 0 ||
        args->n_parts > args->n_ranks)
        return -EINVAL;
    if (args->n_rows == 0)
        return 0;
    switch (args->n_ranks) {
    case 1:
        return launch_norm<1>(args, stream);
    case 2:
        return launch_norm<2>(args, stream);
    case 4:
        return launch_norm<4>(args, stream);
    case 8:
        return launch_norm<8>(args, stream);
    }
    return -EINVAL;
}

__global__ void __launch_bounds__(128)
    embed_kernel(bf16x8 *__restrict__ out, const bf16x8 *__restrict__ table,
                 const uint32_t *__restrict__ id, const uint32_t *__restrict__ slot,
                 uint32_t n_vecs, uint32_t first, uint32_t n_vocab)
{
    pdl_release();
    pdl_wait();
    const uint32_t t = blockIdx.x;
    const uint32_t row = id[t] - first; /* wraps below */
    const bool is_mine = slot[t] != LL_CUDA_NONE && row < n_vocab;

    for (uint32_t i = threadIdx.x; i < n_vecs; i += 128)
        out[(size_t)t * n_vecs + i] = is_mine ? table[(size_t)row * n_vecs + i] : bf16x8{};
}

extern "C" int ll_comm_embed(void *out, const void *table, const uint32_t *token_id,
                             const uint32_t *slot, uint32_t n_tokens, uint32_t n_embd,
                             uint32_t first, uint32_t n_vocab, cudaStream_t stream)
{
    if (n_embd == 0 || n_embd % 8 != 0)
        return -EINVAL;
    if (n_tokens == 0)
        return 0;
    return launch_chained(embed_kernel, n_tokens, 128, 0, stream, (bf16x8 *)out,
                          (const bf16x8 *)table, token_id, slot, n_embd / 8, first, n_vocab);
}

struct logit_parts {
    const float *from[LL_CUDA_RANKS_MAX];
};

__global__ void __launch_bounds__(256)
    logits_kernel(float *__restrict__ to, const logit_parts parts, uint32_t n_part, uint32_t n_all,
                  uint32_t stride)
{
    pdl_release();
    pdl_wait();
    for (uint32_t v = blockIdx.x * 256 + threadIdx.x; v < n_all; v += gridDim.x * 256)
        to[(size_t)blockIdx.y * stride + v] =
            parts.from[v / n_part][(size_t)blockIdx.y * n_part + v % n_part];
}

extern "C" int ll_comm_logits_lockstep(float *to, const float *const *from, uint32_t n_parts,
                                       uint32_t n_rows, uint32_t n_part, uint32_t n_all,
                                       uint32_t stride, cudaStream_t stream)
{
    logit_parts parts = {};

    if (n_parts == 0 || n_parts > LL_CUDA_RANKS_MAX || n_all > n_parts * n_part || stride < n_all ||
        n_rows > 65535)
        return -EINVAL;
    if (n_rows == 0)
        return 0;
    for (uint32_t p = 0; p < n_parts; p++)
        parts.from[p] = from[p];
    return launch_chained(logits_kernel, dim3((n_all + 2047) / 2048, n_rows), 256, 0, stream, to,
                          parts, n_part, n_all, stride);
}
