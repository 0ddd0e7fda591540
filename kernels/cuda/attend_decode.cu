/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/attend_decode.cu - attention of one new token a sequence over its cached pages.
 *
 *   out[h] = sum_j softmax_j(q[h] . k[j] * scale) v[j],  j < n_kv, for the G heads of a KV head at
 * once
 *
 * Persistent grid. A work item is (row, KV head, 512 cached tokens): the split depends on the
 * position in the sequence only, so a row's bits do not depend on the batch. Four warps take 16 of
 * each page's 64 tokens and merge in shared memory; a row of several items is merged, in order, by
 * the CTA that arrives last. Memory bound: 2 K D bytes x 2 a cached token. Reference: kernels/cpu.
 */
#include "kernels/cuda/attend.cuh"

template <int D> struct merge_smem {
    float o[4][16][D];
    float m[4][16], l[4][16];
    bool is_last;
};

struct decode_item {
    uint32_t row, head, chunk, n_chunks, from, to;
};

__device__ static inline decode_item find_item(const ll_cuda_tables &t, uint32_t work,
                                               uint32_t n_kv_heads, uint32_t n_decode)
{
    decode_item item;
    item.head = work % n_kv_heads;
    const uint32_t index = work / n_kv_heads;
    uint32_t low = 0, high = n_decode - 1;
    while (low < high) {
        const uint32_t middle = (low + high + 1) / 2;
        if (t.decode[middle].first_item <= index)
            low = middle;
        else
            high = middle - 1;
    }
    item.row = low;
    item.chunk = index - t.decode[low].first_item;
    const uint32_t n_kv = t.decode[low].n_kv;
    item.n_chunks = (n_kv + LL_CUDA_SPLIT - 1) / LL_CUDA_SPLIT;
    item.from = item.chunk * LL_CUDA_SPLIT;
    item.to = min(n_kv, item.from + LL_CUDA_SPLIT);
    return item;
}

/* Q of the group's heads as A fragments; rows past the group are zero. */
template <int D>
__device__ static inline void load_q(uint32_t (&q)[D / 16][4], const bf16 *row, uint32_t n_group)
{
    const uint32_t lane = threadIdx.x % 32, r = lane / 4, c = (lane % 4) * 2;
#pragma unroll
    for (int step = 0; step < D / 16; step++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t head = r + (i % 2) * 8, d = step * 16 + c + (i / 2) * 8;
            q[step][i] = head < n_group ? *(const uint32_t *)(row + head * D + d) : 0;
        }
}

template <int D, bool FP8>
__device__ static void attend_item(const ll_cuda_tables &t, const decode_item &item,
                                   const bf16 *qkv, unsigned char *kv, unsigned char *shared,
                                   uint32_t n_heads, uint32_t n_kv_heads, float scale,
                                   float (&o)[D / 8][4], float (&m)[2], float (&l)[2])
{
    using S = attend_smem<D, FP8>;
    const ll_cuda_decode row = t.decode[item.row];
    const uint32_t n_group = n_heads / n_kv_heads, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t *pages = t.page_table + (size_t)row.slot * t.pages_per_seq;
    uint32_t q[D / 16][4];
    load_q<D>(q, qkv + (size_t)row.token * (n_heads + 2 * n_kv_heads) * D + item.head * n_group * D,
              n_group);

    const uint32_t n_tiles = (item.to - item.from + TILE - 1) / TILE;
    /* One group a tile, empty past the end, so that waits count alike. */
    auto start = [&](uint32_t tile) {
        if (tile < n_tiles) {
            const uint32_t first = item.from + tile * TILE, page = pages[first / TILE];
            load_tile<D, FP8>(shared + tile % STAGES * 2 * S::RAW,
                              kv_row<FP8>(kv, page, 0, item.head, 0, n_kv_heads, D),
                              kv_row<FP8>(kv, page, 1, item.head, 0, n_kv_heads, D),
                              item.to - first);
        }
        copy_commit();
    };
    for (int i = 0; i < STAGES - 1; i++)
        start(i);
    for (uint32_t tile = 0; tile < n_tiles; tile++) {
        start(tile + STAGES - 1);
        copy_wait<STAGES - 1>();
        __syncthreads();
        const unsigned char *k = shared + tile % STAGES * 2 * S::RAW, *v = k + S::RAW;
        if constexpr (FP8) {
            unsigned char *wide = shared + 2 * STAGES * S::RAW;
            widen_tile<D>(wide, k);
            widen_tile<D>(wide + S::WIDE, v);
            k = wide;
            v = wide + S::WIDE;
            __syncthreads();
        }
        float s[2][4] = {};
        scores<D, 2>(s, q, k, warp * 16);
        const uint32_t first = item.from + tile * TILE + warp * 16 + (lane % 4) * 2;
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[n][i] = first + n * 8 + i % 2 < item.to ? s[n][i] * (scale * LOG2E) : -INFINITY;
        softmax_step<D, 2>(s, o, m, l);
        uint32_t p[4];
        probability<2>(p, s, 0);
        accumulate<D>(o, p, v, warp * 16);
        __syncthreads(); /* the stage may be filled again */
    }
}

template <int D, bool FP8>
__global__ void __launch_bounds__(ATTEND_THREADS)
    decode_kernel(const ll_cuda_tables t, const bf16 *__restrict__ qkv, unsigned char *kv,
                  const float *__restrict__ kv_scale, bf16 *__restrict__ out,
                  float *__restrict__ partial, uint32_t *arrived, uint32_t n_heads,
                  uint32_t n_kv_heads, float scale)
{
    extern __shared__ __align__(128) unsigned char shared[];
    merge_smem<D> &merge = *reinterpret_cast<merge_smem<D> *>(shared);
    pdl_wait();
    const uint32_t n_decode = t.counts->n_decode;
    const uint32_t n_work = t.counts->n_decode_items * n_kv_heads, n_group = n_heads / n_kv_heads;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    for (uint32_t work = blockIdx.x; work < n_work; work += gridDim.x) {
        const decode_item item = find_item(t, work, n_kv_heads, n_decode);
        float o[D / 8][4] = {}, m[2] = {-INFINITY, -INFINITY}, l[2] = {};
        const float v_scale = scale_of<FP8>(kv_scale, n_kv_heads + item.head);
        attend_item<D, FP8>(t, item, qkv, kv, shared, n_heads, n_kv_heads,
                            scale * scale_of<FP8>(kv_scale, item.head), o, m, l);

        /* Four warps' parts meet in shared memory (the stages are free now). */
#pragma unroll
        for (int d = 0; d < D / 8; d++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                merge.o[warp][lane / 4 + (i / 2) * 8][d * 8 + (lane % 4) * 2 + i % 2] = o[d][i];
        if (lane % 4 == 0)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                merge.m[warp][lane / 4 + r * 8] = m[r];
                merge.l[warp][lane / 4 + r * 8] = l[r];
            }
        __syncthreads();

        const uint32_t token = t.decode[item.row].token;
        bf16 *to = out + (size_t)token * n_heads * D + item.head * n_group * D;
        float *mine =
            partial + ((size_t)(work / n_kv_heads) * n_kv_heads + item.head) * n_group * (D + 2);
        for (uint32_t i = threadIdx.x; i < n_group * D; i += ATTEND_THREADS) {
            const uint32_t g = i / D, d = i % D;
            float top = merge.m[0][g];
            for (int w = 1; w < 4; w++)
                top = fmaxf(top, merge.m[w][g]);
            float sum = 0.0f, value = 0.0f;
            for (int w = 0; w < 4; w++) {
                const float keep = exp2f(merge.m[w][g] - top);
                sum += merge.l[w][g] * keep;
                value += merge.o[w][g][d] * keep;
            }
            if (item.n_chunks == 1) {
                to[i] = __float2bfloat16_rn(v_scale * value / sum);
            } else {
                mine[g * (D + 2) + d] = value;
                if (d == 0) {
                    mine[g * (D + 2) + D] = top;
                    mine[g * (D + 2) + D + 1] = sum;
                }
            }
        }
        if (item.n_chunks > 1) {
            __threadfence(); /* the partial before the count */
            __syncthreads();
            if (threadIdx.x == 0)
                merge.is_last =
                    atomicAdd(&arrived[item.row * n_kv_heads + item.head], 1) == item.n_chunks - 1;
            __syncthreads();
            if (merge.is_last) {
                __threadfence(); /* the count before the others' partials */
                const float *first =
                    partial + ((size_t)t.decode[item.row].first_item * n_kv_heads + item.head) *
                                  n_group * (D + 2);
                const size_t stride = (size_t)n_kv_heads * n_group * (D + 2);
                for (uint32_t i = threadIdx.x; i < n_group * D; i += ATTEND_THREADS) {
                    const uint32_t g = i / D, d = i % D;
                    const float *p = first + g * (D + 2);
                    float top = -INFINITY, sum = 0.0f, value = 0.0f;
                    for (uint32_t c = 0; c < item.n_chunks; c++)
                        top = fmaxf(top, __ldcg(p + c * stride + D));
                    for (uint32_t c = 0; c < item.n_chunks; c++) {
                        const float keep = exp2f(__ldcg(p + c * stride + D) - top);
                        sum += __ldcg(p + c * stride + D + 1) * keep;
                        value += __ldcg(p + c * stride + d) * keep;
                    }
                    to[i] = __float2bfloat16_rn(v_scale * value / sum);
                }
                if (threadIdx.x == 0)
                    arrived[item.row * n_kv_heads + item.head] = 0;
            }
        }
        __syncthreads(); /* merge memory becomes stages again */
    }
}

template <int D, bool FP8>
static int launch(const struct ll_cuda_attend_args *a, cudaStream_t stream)
{
    constexpr int BYTES = attend_smem<D, FP8>::BYTES > (int)sizeof(merge_smem<D>)
                              ? attend_smem<D, FP8>::BYTES
                              : (int)sizeof(merge_smem<D>);
    auto kernel = decode_kernel<D, FP8>;

    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES) !=
        cudaSuccess)
        return -EIO;
    return launch_chained(kernel, a->n_blocks, ATTEND_THREADS, BYTES, stream, *a->tables,
                          (const bf16 *)a->qkv, (unsigned char *)a->kv, a->kv_scale, (bf16 *)a->out,
                          a->partial, a->arrived, a->n_heads, a->n_kv_heads, a->scale);
}

extern "C" int ll_cuda_attend_decode(const struct ll_cuda_attend_args *args, cudaStream_t stream)
{
    if (args->n_kv_heads == 0 || args->n_heads % args->n_kv_heads != 0 ||
        args->n_heads / args->n_kv_heads > 16)
        return -EINVAL;
    if (args->head_dim == 128)
        return args->is_kv_fp8 ? launch<128, true>(args, stream) : launch<128, false>(args, stream);
    if (args->head_dim == 64)
        return args->is_kv_fp8 ? launch<64, true>(args, stream) : launch<64, false>(args, stream);
    return -EINVAL;
}
