/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/skinny_wgmma.cu - matrix product for up to 256 tokens: decode at the speed of the
 * memory on sm_90a.
 *
 *   y[t, n] = bf16(sx[t] * sw[n] * sum_k x[t, k] w[n, k]),  w and x row-major, e4m3 (bf16: no
 * scales)
 *
 * Weights are the A operand of wgmma (64 rows a warpgroup), tokens the B operand (8 to 128
 * columns), so that few tokens waste arithmetic and not bytes. One warp copies: a unit is ROWS rows
 * of w and all tokens of x, 128 bytes of K, into a ring of STAGES; two warpgroups multiply. The
 * weights of the first STAGES units are on their way before the kernel in front has ended.
 *
 * Units are counted tile by tile (ROWS rows), along K in a tile; each range takes the next span of
 * them, one range a block, so that all blocks end together whatever the shape. A tile that several
 * ranges share is summed by the last of them to arrive, in the order of K. Ranges follow from the
 * weight's shape alone, so a token's bits depend neither on the other tokens nor on their number.
 *
 * The tensor cores add e4m3 products with 13 bits of mantissa: each 128 of K are added to fp32 sums
 * outside. Memory bound: N K bytes (bf16: 2 N K); T / ROWS of that again from the L2 for x.
 * Reference: kernels/cpu. */
#include "kernels/cuda/skinny_wgmma.h"
#include "kernels/cuda/skinny_wgmma.cuh"

static constexpr int GROUPS = 2;                  /* warpgroups that multiply */
static constexpr int THREADS = GROUPS * 128 + 32; /* and a warp that copies */
static constexpr int ROWS = GROUPS * 64;          /* of w a tile */
static constexpr int LINE = 128;                  /* bytes of K a unit */
static constexpr int STORE_STRIDE = 48; /* bytes a token: 16 rows and a gap for the banks */
static constexpr int WARP_STORE = 16 * STORE_STRIDE;
static constexpr uint32_t COLUMN_TOKENS = 128; /* tokens a block, at most */

struct product_args {
    bf16 *y;
    float *partial;
    uint32_t *arrived;
    const float *x_scale, *w_scale;
    uint32_t n_tokens, n;
    uint32_t n_blocks;  /* units along K */
    uint32_t span;      /* units a range */
    uint32_t n_units;   /* in all */
    uint32_t n_columns; /* blocks that share a range, COLUMN_TOKENS tokens each */
};

template <int T, int STAGES> struct layout {
    static constexpr int W_BYTES = ROWS * LINE, STAGE_BYTES = W_BYTES + T * LINE;
    static constexpr int STORE = STAGES * STAGE_BYTES, FULL = STORE + GROUPS * 4 * WARP_STORE;
    static constexpr int EMPTY = FULL + STAGES * 8, ORDER = EMPTY + STAGES * 8;
    static constexpr int SCALE = ORDER + GROUPS * 4; /* of x, a copy a group */
    static constexpr int BYTES = SCALE + GROUPS * T * 4;
    static constexpr int ALLOCATED = BYTES + 1024; /* operands lie at multiples of that */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* Starts one unit: 64 rows of w by T tokens, 128 bytes of K. e4m3: d begins anew. */
template <bool FP8, int T>
__device__ static inline void start(float (&d)[T / 2], const unsigned char *w,
                                    const unsigned char *x)
{
    const uint64_t a = operand(w), b = operand(x);

    wgmma_settle(d);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++)
        wgmma<FP8, T>::run(d, a + k * 2, b + k * 2, !FP8 || k > 0);
    wgmma_commit();
    wgmma_settle(d);
}

/* The ring as a warp that multiplies sees it: units are begun and released in order. */
template <int T, int STAGES> struct reader {
    unsigned char *base;
    uint64_t *full, *empty;
    uint32_t group;
    uint32_t stage = 0, parity = 0, oldest = 0;

    template <bool FP8> __device__ inline void begin(float (&d)[T / 2])
    {
        const unsigned char *w = base + stage * layout<T, STAGES>::STAGE_BYTES;
        barrier_wait(&full[stage], parity);
        start<FP8, T>(d, w + group * 64 * LINE, w + layout<T, STAGES>::W_BYTES);
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    __device__ inline void release()
    {
        if (threadIdx.x % 32 == 0)
            barrier_arrive(&empty[oldest]);
        if (++oldest == STAGES)
            oldest = 0;
    }
};

template <int COUNT> __device__ static inline void add(float (&sum)[COUNT], float (&part)[COUNT])
{
    wgmma_settle(part);
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        sum[i] += part[i];
}

/* n units of a tile. The next unit is begun before the last is added, where registers allow. */
template <bool FP8, int T, int STAGES>
__device__ static inline void multiply(float (&sum)[T / 2], reader<T, STAGES> &ring, uint32_t n)
{
    if constexpr (!FP8) {
        ring.template begin<false>(sum);
        for (uint32_t i = 1; i < n; i++) {
            ring.template begin<false>(sum);
            wgmma_wait<1>();
            ring.release();
        }
        wgmma_wait<0>();
        wgmma_settle(sum);
        ring.release();
    } else if constexpr (T > 64) {
        float part[T / 2];
        for (uint32_t i = 0; i < n; i++) {
            ring.template begin<true>(part);
            wgmma_wait<0>();
            ring.release();
            add(sum, part);
        }
    } else {
        float even[T / 2], odd[T / 2];
        ring.template begin<true>(even);
        for (uint32_t i = 1; i + 1 < n; i += 2) {
            ring.template begin<true>(odd);
            wgmma_wait<1>();
            ring.release();
            add(sum, even);
            ring.template begin<true>(even);
            wgmma_wait<1>();
            ring.release();
            add(sum, odd);
        }
        if (n % 2 == 0) {
            ring.template begin<true>(odd);
            wgmma_wait<1>();
            ring.release();
            add(sum, even);
            wgmma_wait<0>();
            ring.release();
            add(sum, odd);
        } else {
            wgmma_wait<0>();
            ring.release();
            add(sum, even);
        }
    }
}

/* Leaves a group's share of a tile for the others. True for the last of the tile's ranges: sum is
 * then the whole, added in the order of K. */
template <int T>
__device__ static inline bool meet(float (&sum)[T / 2], const product_args &a, uint32_t tile,
                                   uint32_t range, uint32_t column, uint32_t group, uint32_t *order)
{
    constexpr uint32_t PART = 64 * T / 4; /* float4s of a group's 64 rows */
    const uint32_t first = tile * a.n_blocks / a.span, thread = threadIdx.x % 128,
                   last = ((tile + 1) * a.n_blocks - 1) / a.span;
    uint32_t *count = a.arrived + (tile * a.n_columns + column) * GROUPS + group;

    if (first == last)
        return true;
    /* A range leaves at most two parts: of its first tile and of its last. */
    auto part = [&](uint32_t of) {
        const uint32_t slot = of * 2 + (of * a.span / a.n_blocks != tile);
        return (float4 *)a.partial +
               (((size_t)slot * a.n_columns + column) * GROUPS + group) * PART + thread;
    };
    float4 *mine = part(range);
#pragma unroll
    for (int i = 0; i < T / 8; i++)
        __stcg(mine + i * 128,
               make_float4(sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]));
    named_sync(1 + group, 128);
    if (thread == 0) {
        __threadfence(); /* the group's partial sums before the count */
        *order = atomicAdd(count, 1);
        __threadfence(); /* the count before the others' partial sums */
    }
    named_sync(1 + group, 128);
    if (*order != last - first)
        return false;
    if (thread == 0)
        *count = 0;
#pragma unroll
    for (int i = 0; i < T / 2; i++)
        sum[i] = 0.0f;
    constexpr int AT_ONCE = T <= 32 ? 4 : T <= 64 ? 2 : 1; /* parts on their way */
    for (uint32_t of = first; of <= last; of += AT_ONCE) {
        float4 v[AT_ONCE][T / 8];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
#pragma unroll
            for (int i = 0; i < T / 8; i++)
                v[j][i] = __ldcg(part(min(of + j, last)) + i * 128);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            if (of + j > last)
                break;
#pragma unroll
            for (int i = 0; i < T / 8; i++) {
                sum[4 * i] += v[j][i].x;
                sum[4 * i + 1] += v[j][i].y;
                sum[4 * i + 2] += v[j][i].z;
                sum[4 * i + 3] += v[j][i].w;
            }
        }
    }
    return true;
}

/* Scales a warp's 16 rows from row on and stores them, turned, 16 tokens at a time. */
template <bool FP8, int T>
__device__ static inline void finish(const float (&sum)[T / 2], const product_args &a, uint32_t row,
                                     float w0, float w1, const float *x_scale, uint32_t first_token,
                                     unsigned char *box)
{
    const uint32_t lane = threadIdx.x % 32, c = lane % 4;

    if (row >= a.n)
        return;
    /* Blocks of 8 x 8 at (row, token) 0 0, 8 0, 0 8, 8 8: a lane names a token's 8 rows. */
    const uint32_t place =
        smem_address(box + (lane % 8 + lane / 16 * 8) * STORE_STRIDE + lane / 8 % 2 * 16);
#pragma unroll
    for (int i = 0; i < T / 16; i++) {
        const uint32_t t = first_token + i * 16;
        if (t >= a.n_tokens)
            break;
        uint32_t v[4];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int at = i * 16 + j * 8 + (int)c * 2;
            const float x0 = FP8 ? x_scale[at] : 1.0f, x1 = FP8 ? x_scale[at + 1] : 1.0f;
            const float *d = &sum[8 * i + 4 * j];
            v[2 * j] = pack_bf16(d[0] * x0 * w0, d[1] * x1 * w0);
            v[2 * j + 1] = pack_bf16(d[2] * x0 * w1, d[3] * x1 * w1);
        }
        __syncwarp(); /* the last 16 tokens are read */
        stmatrix4_trans(place, v);
        __syncwarp();
        if (t + lane / 2 < a.n_tokens)
            *(uint4 *)(a.y + (size_t)(t + lane / 2) * a.n + row + lane % 2 * 8) =
                *(const uint4 *)(box + lane / 2 * STORE_STRIDE + lane % 2 * 16);
    }
}
#endif

template <bool FP8, int T, int STAGES>
__global__ void __launch_bounds__(THREADS)
    product_kernel(const __grid_constant__ CUtensorMap w_map,
                   const __grid_constant__ CUtensorMap x_map, const product_args a)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    using L = layout<T, STAGES>;
    extern __shared__ unsigned char shared[];
    unsigned char *const base = shared + (1024 - smem_address(shared) % 1024) % 1024;
    uint64_t *const full = (uint64_t *)(base + L::FULL), *const empty =
                                                             (uint64_t *)(base + L::EMPTY);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t range = blockIdx.x / a.n_columns, column = blockIdx.x % a.n_columns;
    const uint32_t from = range * a.span, to = min(from + a.span, a.n_units);

    const bool copies = threadIdx.x == GROUPS * 128; /* one thread of the last warp */
    const uint32_t n_first = min(to - from, (uint32_t)STAGES);
    const uint64_t once = policy_evict_first(), often = policy_evict_last();
    auto load_w = [&](uint32_t i) {
        const uint32_t unit = from + i, s = i % STAGES;
        barrier_expect(&full[s], L::STAGE_BYTES);
        copy_box(base + s * L::STAGE_BYTES, &w_map, (int)(unit % a.n_blocks * LINE),
                 (int)(unit / a.n_blocks * ROWS), &full[s], once);
    };
    auto load_x = [&](uint32_t i) {
        const uint32_t s = i % STAGES;
        copy_box(base + s * L::STAGE_BYTES + L::W_BYTES, &x_map,
                 (int)((from + i) % a.n_blocks * LINE), (int)(column * T), &full[s], often);
    };

    if (copies) {
        tensor_prefetch(&w_map);
        tensor_prefetch(&x_map);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], GROUPS * 4);
        }
        barrier_init_done();
        for (uint32_t i = 0; i < n_first; i++)
            load_w(i);
    }
    __syncthreads(); /* the barriers are there */
    pdl_wait();      /* x, its scales and the partial sums' room are ours from here on */
    if (copies) {
        for (uint32_t i = 0; i < n_first; i++)
            load_x(i);
        for (uint32_t i = n_first; i < to - from; i++) {
            barrier_wait(&empty[i % STAGES], (i / STAGES - 1) & 1);
            load_w(i);
            load_x(i);
        }
    }
    if (warp == GROUPS * 4)
        return;

    const uint32_t group = warp / 4, r = lane / 4;
    float *const x_scale = (float *)(base + L::SCALE) + group * T;
    if (FP8) {
        for (uint32_t i = threadIdx.x % 128; i < T; i += 128)
            x_scale[i] = column * T + i < a.n_tokens ? a.x_scale[column * T + i] : 0.0f;
        named_sync(1 + group, 128);
    }
    reader<T, STAGES> ring = {base, full, empty, group};
    for (uint32_t unit = from; unit < to;) {
        const uint32_t tile = unit / a.n_blocks, end = min((tile + 1) * a.n_blocks, to);
        const uint32_t row = tile * ROWS + group * 64 + warp % 4 * 16;
        const float w0 = FP8 && row < a.n ? a.w_scale[row + r] : 1.0f;
        const float w1 = FP8 && row < a.n ? a.w_scale[row + r + 8] : 1.0f;
        float sum[T / 2];
#pragma unroll
        for (int i = 0; i < T / 2; i++)
            sum[i] = 0.0f;
        multiply<FP8, T, STAGES>(sum, ring, end - unit);
        unit = end;
        if (meet<T>(sum, a, tile, range, column, group, (uint32_t *)(base + L::ORDER) + group))
            finish<FP8, T>(sum, a, row, w0, w1, x_scale, column * T,
                           base + L::STORE + warp * WARP_STORE);
    }
#endif
}

/* ---- host -------------------------------------------------------------------------------------*/
struct plan {
    uint32_t n_blocks, span, n_units, n_ranges;
};

/* By the weight's shape alone: the fewest units a block that all of it takes, then no more blocks
 * than that needs. */
static struct plan plan_for(uint32_t n, uint32_t k_bytes)
{
    /* Of H100 SXM and H200. With fewer the same ranges run in turns: another number for each GPU
     * would change a token's bits. */
    static constexpr uint32_t N_SM = 132;
    struct plan p;

    p.n_blocks = k_bytes / LINE;
    p.n_units = (n + ROWS - 1) / ROWS * p.n_blocks;
    p.span = (p.n_units + N_SM - 1) / N_SM;
    p.n_ranges = (p.n_units + p.span - 1) / p.span;
    return p;
}

/* Boxes of LINE bytes by box_rows of a row-major matrix; rows past the end come as zeros. */
static int map_rows(CUtensorMap *map, const void *matrix, uint32_t rows, uint32_t row_bytes,
                    uint32_t box_rows)
{
    const PFN_cuTensorMapEncodeTiled_v12000 encode = tensor_map_encoder();
    const cuuint64_t size[2] = {row_bytes, rows}, stride[1] = {row_bytes};
    const cuuint32_t box[2] = {LINE, box_rows}, step[2] = {1, 1};

    return encode != nullptr &&
                   encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, (void *)matrix, size, stride, box,
                          step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                          CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                          CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS
               ? 0
               : -EIO;
}

template <bool FP8, int T, int STAGES>
static int launch(const struct ll_skinny_wgmma_args *a, cudaStream_t stream)
{
    using L = layout<T, STAGES>;
    static_assert(L::ALLOCATED <= 227 << 10, "an SM's shared memory");
    const uint32_t row_bytes = a->k * (FP8 ? 1 : 2);
    const struct plan p = plan_for(a->n, row_bytes);
    const uint32_t n_columns = (a->n_tokens + COLUMN_TOKENS - 1) / COLUMN_TOKENS;
    const product_args args = {.y = (bf16 *)a->y,
                               .partial = a->partial,
                               .arrived = a->arrived,
                               .x_scale = a->x_scale,
                               .w_scale = a->w_scale,
                               .n_tokens = a->n_tokens,
                               .n = a->n,
                               .n_blocks = p.n_blocks,
                               .span = p.span,
                               .n_units = p.n_units,
                               .n_columns = n_columns};
    CUtensorMap w, x;

    if (map_rows(&w, a->w, a->n, row_bytes, ROWS) < 0 ||
        map_rows(&x, a->x, a->n_tokens, row_bytes, T) < 0 ||
        cudaFuncSetAttribute(product_kernel<FP8, T, STAGES>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                             L::ALLOCATED) != cudaSuccess)
        return -EIO;
    return launch_chained(product_kernel<FP8, T, STAGES>, p.n_ranges * n_columns, THREADS,
                          L::ALLOCATED, stream, w, x, args);
}

extern "C" bool ll_cuda_skinny_wgmma_fits(const struct ll_skinny_wgmma_args *a)
{
    return ll_cuda_level() >= 90 && a->n_tokens <= LL_SKINNY_WGMMA_TOKENS_MAX && a->n % 16 == 0 &&
           a->k % 128 == 0 && tensor_map_encoder() != nullptr;
}

extern "C" void ll_cuda_skinny_wgmma_room(uint32_t n, uint32_t k, bool is_fp8, uint32_t n_tokens,
                                          size_t *partial_bytes, size_t *n_arrived)
{
    *partial_bytes = *n_arrived = 0;
    if (n % 16 != 0 || k % 128 != 0)
        return;
    const struct plan p = plan_for(n, k * (is_fp8 ? 1 : 2));
    const uint32_t n_columns = (n_tokens + COLUMN_TOKENS - 1) / COLUMN_TOKENS;

    *partial_bytes = (size_t)p.n_ranges * 2 * n_columns * ROWS * COLUMN_TOKENS * sizeof(float);
    *n_arrived = (size_t)p.n_units / p.n_blocks * n_columns * GROUPS;
}

template <bool FP8> static int launch_for(const struct ll_skinny_wgmma_args *a, cudaStream_t stream)
{
    return a->n_tokens <= 16   ? launch<FP8, 16, 11>(a, stream)
           : a->n_tokens <= 32 ? launch<FP8, 32, 10>(a, stream)
           : a->n_tokens <= 64 ? launch<FP8, 64, 8>(a, stream)
                               : launch<FP8, 128, 6>(a, stream);
}

extern "C" int ll_cuda_skinny_wgmma(const struct ll_skinny_wgmma_args *args, cudaStream_t stream)
{
    if (!ll_cuda_skinny_wgmma_fits(args))
        return -EINVAL;
    if (args->n_tokens == 0)
        return 0;
    return args->is_fp8 ? launch_for<true>(args, stream) : launch_for<false>(args, stream);
}
