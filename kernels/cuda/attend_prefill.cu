/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/attend_prefill.cu - causal attention of a prompt chunk over its cached pages.
 *
 * For GPUs before 9.0, and the entry for all: from 9.0 on it goes to attend_prefill_sm90.cu. A
 * block takes half a tile: up to 64 / G query tokens of one row times the G heads of one KV head:
 * 64 packed rows, 16 a warp, each with its own causal bound. The chunk's own K and V are in the
 * pages already (rope_append ran before). Two-stage cp.async pipeline, mma.sync bf16, fp32 online
 * softmax.
 * Compute bound: 4 D flops a (query row, cached token). Reference: kernels/cpu. */
#include "kernels/cuda/attend.cuh"

static constexpr uint32_t ROWS = LL_CUDA_TILE_ROWS / 2; /* of a block */

template <int D, bool FP8>
__global__ void __launch_bounds__(ATTEND_THREADS)
    prefill_kernel(const ll_cuda_tables t, const bf16 *__restrict__ qkv, unsigned char *kv,
                   const float *__restrict__ kv_scale, bf16 *__restrict__ out, uint32_t n_heads,
                   uint32_t n_kv_heads, float scale)
{
    using S = attend_smem<D, FP8>;
    extern __shared__ __align__(128) unsigned char shared[];
    pdl_wait();
    const uint32_t head = blockIdx.y, n_group = n_heads / n_kv_heads;
    const uint32_t index = blockIdx.x / 2, skip = blockIdx.x % 2 * (ROWS / n_group);
    if (index >= t.counts->n_tiles)
        return;
    /* The last tiles see the most cached tokens: they start first. */
    ll_cuda_tile tile = t.tiles[t.counts->n_tiles - 1 - index];
    if (skip >= tile.n_tokens)
        return;
    tile.token += skip;
    tile.pos += skip;
    tile.n_tokens = min(tile.n_tokens - skip, ROWS / n_group);
    const float unit = scale * LOG2E * scale_of<FP8>(kv_scale, head);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t width = (n_heads + 2 * n_kv_heads) * D, n_rows = tile.n_tokens * n_group;
    const uint32_t *pages = t.page_table + (size_t)tile.slot * t.pages_per_seq;
    const bf16 *q_base = qkv + (size_t)tile.token * width + head * n_group * D;

    /* Row r of the tile is token r / G, head r % G. This thread's two rows: */
    uint32_t row[2], limit[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        row[r] = warp * 16 + lane / 4 + r * 8;
        limit[r] = row[r] < n_rows ? tile.pos + row[r] / n_group + 1 : 0; /* cached tokens seen */
    }
    uint32_t q[D / 16][4];
#pragma unroll
    for (int step = 0; step < D / 16; step++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t r = row[i % 2], d = step * 16 + (lane % 4) * 2 + (i / 2) * 8;
            q[step][i] = r < n_rows ? *(const uint32_t *)(q_base + (size_t)(r / n_group) * width +
                                                          r % n_group * D + d)
                                    : 0;
        }

    const uint32_t n_kv = tile.pos + tile.n_tokens, n_tiles = (n_kv + TILE - 1) / TILE;
    /* One group a tile, empty past the end, so that waits count alike. */
    auto start = [&](uint32_t i) {
        if (i < n_tiles) {
            const uint32_t page = pages[i];
            load_tile<D, FP8>(shared + i % STAGES * 2 * S::RAW,
                              kv_row<FP8>(kv, page, 0, head, 0, n_kv_heads, D),
                              kv_row<FP8>(kv, page, 1, head, 0, n_kv_heads, D), n_kv - i * TILE);
        }
        copy_commit();
    };
    float o[D / 8][4] = {}, m[2] = {-INFINITY, -INFINITY}, l[2] = {};
    for (int i = 0; i < STAGES - 1; i++)
        start(i);
    for (uint32_t i = 0; i < n_tiles; i++) {
        start(i + STAGES - 1);
        copy_wait<STAGES - 1>();
        __syncthreads();
        const unsigned char *k = shared + i % STAGES * 2 * S::RAW, *v = k + S::RAW;
        if constexpr (FP8) {
            unsigned char *wide = shared + 2 * STAGES * S::RAW;
            widen_tile<D>(wide, k);
            widen_tile<D>(wide + S::WIDE, v);
            k = wide;
            v = wide + S::WIDE;
            __syncthreads();
        }
        float s[8][4] = {};
        scores<D, 8>(s, q, k, 0);
        const uint32_t first = i * TILE + (lane % 4) * 2;
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                s[n][j] = first + n * 8 + j % 2 < limit[j / 2] ? s[n][j] * unit : -INFINITY;
        softmax_step<D, 8>(s, o, m, l);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            uint32_t p[4];
            probability<8>(p, s, c);
            accumulate<D>(o, p, v, c * 16);
        }
        __syncthreads();
    }

#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (row[r] >= n_rows)
            continue;
        bf16 *to = out + (size_t)(tile.token + row[r] / n_group) * n_heads * D +
                   (head * n_group + row[r] % n_group) * D;
        const float inverse = scale_of<FP8>(kv_scale, n_kv_heads + head) / l[r];
#pragma unroll
        for (int d = 0; d < D / 8; d++)
            *(uint32_t *)(to + d * 8 + (lane % 4) * 2) =
                pack_bf16(o[d][2 * r] * inverse, o[d][2 * r + 1] * inverse);
    }
}

template <int D, bool FP8>
static int launch(const struct ll_cuda_attend_args *a, cudaStream_t stream)
{
    constexpr int BYTES = attend_smem<D, FP8>::BYTES;
    auto kernel = prefill_kernel<D, FP8>;

    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES) !=
        cudaSuccess)
        return -EIO;
    return launch_chained(kernel, dim3(2 * a->n_tiles, a->n_kv_heads), ATTEND_THREADS, BYTES,
                          stream, *a->tables, (const bf16 *)a->qkv, (unsigned char *)a->kv,
                          a->kv_scale, (bf16 *)a->out, a->n_heads, a->n_kv_heads, a->scale);
}

extern "C" int ll_cuda_attend_prefill(const struct ll_cuda_attend_args *args, cudaStream_t stream)
{
    if (args->n_kv_heads == 0 || args->n_heads % args->n_kv_heads != 0 ||
        args->n_heads / args->n_kv_heads > 16)
        return -EINVAL;
    if (args->n_tiles == 0)
        return 0;
    if (ll_cuda_level() >= 90 && (args->head_dim == 128 || args->head_dim == 64))
        return ll_cuda_attend_prefill_sm90(args, stream);
    if (args->head_dim == 128)
        return args->is_kv_fp8 ? launch<128, true>(args, stream) : launch<128, false>(args, stream);
    if (args->head_dim == 64)
        return args->is_kv_fp8 ? launch<64, true>(args, stream) : launch<64, false>(args, stream);
    return -EINVAL;
}
