/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/embed.cu - look up each token's embedding row.
 *
 *   out[t,e] = table[id[t], e]
 *
 * Memory bound: 4 bytes an element. Padding tokens (slot none) give zeros, so that what follows
 * stays finite. Reference: kernels/cpu. */
#include "kernels/cuda/common.cuh"

__global__ void __launch_bounds__(128)
    embed_kernel(bf16x8 *__restrict__ out, const bf16x8 *__restrict__ table,
                 const uint32_t *__restrict__ id, const uint32_t *__restrict__ slot,
                 uint32_t n_vecs, uint32_t n_vocab)
{
    pdl_release();
    pdl_wait();
    const uint32_t t = blockIdx.x;
    const bool is_used = slot[t] != LL_CUDA_NONE && id[t] < n_vocab;
    const bf16x8 *row = table + (size_t)(is_used ? id[t] : 0) * n_vecs;

    for (uint32_t i = threadIdx.x; i < n_vecs; i += 128) {
        bf16x8 v = row[i];
        if (!is_used)
            v = bf16x8{};
        out[(size_t)t * n_vecs + i] = v;
    }
}

extern "C" int ll_cuda_embed(void *out, const void *table, const uint32_t *token_id,
                             const uint32_t *slot, uint32_t n_tokens, uint32_t n_embd,
                             uint32_t n_vocab, cudaStream_t stream)
{
    if (n_embd == 0 || n_embd % 8 != 0)
        return -EINVAL;
    if (n_tokens == 0)
        return 0;
    return launch_chained(embed_kernel, n_tokens, 128, 0, stream, (bf16x8 *)out,
                          (const bf16x8 *)table, token_id, slot, n_embd / 8, n_vocab);
}
