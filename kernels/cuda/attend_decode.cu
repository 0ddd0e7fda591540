/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/attend_decode.cu - attention of one new token a sequence over its cached pages.
 *
 *   out[h] = sum_j softmax_j(q[h] . k[j] * scale) v[j],  j < n_kv, for the G heads of a KV head at
 * once
 *
 * Persistent grid. A work item is (row, KV head, ll_cuda_split() cached tokens); the split depends
 * on the row's own length only, so a row's bits do not depend on the batch. Four warps of a CTA
 * stream: they take an item's granules (attend_step.cuh) in turn, each with a state of its own. At
 * an item's end each leaves its state in the slot of its ring that it would fill next, and goes on;
 * two more warps merge the four and do all that waits for global memory: a row of several items is
 * merged, in order, by whoever arrives last, each merging warp its own half of the numbers. So the
 * rings run on across items.
 *
 * Where rope_append did not run the kernel rotates Q as it loads it and K as it puts the newest
 * token's rows into their page, which the one warp does that will read them: the same bits.
 *
 * Before the kernels ahead have ended only what this step does not write is read: the step's tables
 * (made by its first kernel; a product of the step, which waits before it lets anyone start, lies
 * between) and pages without the newest token.
 *
 * Memory bound: 4 D bytes (bf16) a cached token and KV head. Reference: kernels/cpu. */
#include "kernels/cuda/attend_step.cuh"

static constexpr uint32_t STREAMS = 4, MERGERS = LL_CUDA_DECODE_MERGERS; /* warps */
static constexpr uint32_t DECODE_THREADS = (STREAMS + MERGERS) * 32, MERGE_THREADS = MERGERS * 32;

/* Shared memory of a warp's ring: at 9.0 two CTAs fit, at 8.9 one. */
static constexpr uint32_t ring_bytes(bool is_90)
{
    return is_90 ? 24576 : 16384;
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
static constexpr uint32_t RING_BYTES = ring_bytes(true);
#else
static constexpr uint32_t RING_BYTES = ring_bytes(false);
#endif

struct decode_args {
    const bf16 *qkv;
    unsigned char *kv;
    const float *kv_scale;
    const float2 *rope; /* NULL: qkv is rotated, and its K and V are in their pages */
    bf16 *out;
    float *partial;
    uint32_t *arrived;
    uint32_t n_heads, n_kv_heads;
    float scale;
};

/* i: head of K, or n_kv_heads + head of V. */
template <bool FP8> __device__ static inline float cache_scale(const decode_args &a, uint32_t i)
{
    return FP8 && a.kv_scale != nullptr ? a.kv_scale[i] : 1.0f;
}

struct decode_item {
    uint32_t row, head, n_chunks, n_kv, slot, token, first_item;
    uint32_t from, to; /* cached tokens */
};

/* A whole warp's search, 32 rows a look. */
__device__ static inline decode_item find_item(const ll_cuda_tables &t, uint32_t work,
                                               uint32_t n_kv_heads, uint32_t n_decode)
{
    const uint32_t lane = threadIdx.x % 32, index = work / n_kv_heads;
    uint32_t low = 0, n = n_decode;

    while (n > 1) { /* the row is one of [low, low + n) */
        const uint32_t step = (n + 31) / 32, at = lane * step;
        const bool is_before = at < n && t.decode[low + at].first_item <= index;
        const uint32_t last = (uint32_t)__popc(__ballot_sync(~0u, is_before)) - 1;
        low += last * step;
        n = min(step, n - last * step);
    }
    const uint4 row = __ldg((const uint4 *)&t.decode[low]); /* token, slot, n_kv, first_item */
    const uint32_t split = ll_cuda_split(row.z, n_kv_heads);
    decode_item item;
    item.row = low;
    item.head = work % n_kv_heads;
    item.token = row.x;
    item.slot = row.y;
    item.n_kv = row.z;
    item.first_item = row.w;
    item.n_chunks = (row.z + split - 1) / split;
    item.from = (index - row.w) * split;
    item.to = min(row.z, item.from + split);
    return item;
}

/* The slots of a streaming warp in the order in which it will work on them, across items: K, then V
 * of each of its granules. */
template <int D, bool FP8> struct slot_source {
    using G = granule<D, FP8>;
    const ll_cuda_tables &t;
    const decode_args &a;
    uint32_t n_decode, n_work;
    uint32_t work, token, to, n_kv, row, head, window, page_ids;
    const uint32_t *pages;
    unsigned char *next_v; /* NULL: K comes next */

    /* The first item from `first` on in which this warp has a granule. */
    __device__ void open(uint32_t first)
    {
        for (work = first; work < n_work; work += gridDim.x) {
            const decode_item item = find_item(t, work, a.n_kv_heads, n_decode);
            token = item.from + threadIdx.x / 32 * G::TOKENS;
            to = item.to;
            n_kv = item.n_kv;
            row = item.token;
            head = item.head;
            pages = t.page_table + (size_t)item.slot * t.pages_per_seq;
            window = ~0u;
            if (token < to)
                return;
        }
    }
    /* Does the slot hold the token that this step itself appends? */
    __device__ bool is_new() const { return work < n_work && token + G::TOKENS >= n_kv; }
    /* Row j (Q's heads, K's, V's) of this item's token as the product left it. */
    __device__ const bf16 *product(uint32_t j) const
    {
        return a.qkv + ((size_t)row * (a.n_heads + 2 * a.n_kv_heads) + j) * D;
    }
    /* One group a call, empty past the end, so that waits count alike. */
    __device__ void start(uint32_t slot)
    {
        const bool is_appended = a.rope != nullptr && is_new();
        const uint32_t last = (n_kv - 1) % G::TOKENS * G::ROW; /* the newest token's place */
        if (next_v != nullptr) {
            if (is_appended)
                append_row<D, FP8>(next_v + last, product(a.n_heads + a.n_kv_heads + head), nullptr,
                                   cache_scale<FP8>(a, a.n_kv_heads + head));
            load_slot<D, FP8>(slot, next_v, to - token);
            next_v = nullptr;
            token += STREAMS * G::TOKENS;
            if (token >= to)
                open(work + gridDim.x);
        } else if (work < n_work) {
            const uint32_t page = token / LL_PAGE_TOKENS;
            if (page / 32 != window) { /* ids of 32 pages, one a lane */
                const uint32_t mine = page / 32 * 32 + threadIdx.x % 32;
                window = page / 32;
                page_ids = mine * LL_PAGE_TOKENS < to ? pages[mine] : 0;
            }
            const size_t id = __shfl_sync(~0u, page_ids, page % 32);
            const size_t block = (size_t)LL_PAGE_TOKENS * G::ROW;
            unsigned char *k =
                a.kv + (id * 2 * a.n_kv_heads + head) * block + token % LL_PAGE_TOKENS * G::ROW;
            if (is_appended)
                append_row<D, FP8>(k + last, product(a.n_heads + head),
                                   a.rope + (size_t)(n_kv - 1) * (D / 2),
                                   cache_scale<FP8>(a, head));
            load_slot<D, FP8>(slot, k, to - token);
            next_v = k + a.n_kv_heads * block;
        }
        copy_commit();
    }
};

/* Where streaming and merging warps meet. */
enum { FULL = 1, EMPTY = 2 };
__device__ static inline void meet(uint32_t barrier)
{
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(DECODE_THREADS) : "memory");
}
__device__ static inline void arrive(uint32_t barrier)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(DECODE_THREADS) : "memory");
}

/* What the streaming warps leave: maxima, sums, and where their outputs lie. */
template <int NT> struct left_parts {
    float m[STREAMS][NT * 8], l[STREAMS][NT * 8];
    uint32_t slot[STREAMS];
};

/* Where head h, dim d of a warp's output lies in a slot: the fragments' stores and the rows' loads
 * both meet 32 banks. */
template <int D> __device__ static inline uint32_t merge_place(uint32_t head, uint32_t d)
{
    return head * D + (d ^ (head / 2 % 4 * 8));
}

template <int D, bool FP8, int NT>
__device__ static inline void leave_state(float *to, float *m, float *l, attend_state<D, NT> &a,
                                          uint32_t n_group)
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t head = n * 8 + t * 2 + h;
            float sum = a.l[n][h];
            sum += __shfl_xor_sync(~0u, sum, 4);
            sum += __shfl_xor_sync(~0u, sum, 8);
            sum += __shfl_xor_sync(~0u, sum, 16);
            if (head >= n_group)
                continue;
            if (g == 0) {
                m[head] = a.m[n][h];
                l[head] = sum;
            }
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                if constexpr (FP8) { /* rows g, g + 8 are dims 2g, 2g + 1 */
                    *(float2 *)(to + merge_place<D>(head, d * 16 + g * 2)) =
                        make_float2(a.o[d][n][h], a.o[d][n][2 + h]);
                } else {
                    to[merge_place<D>(head, d * 16 + g)] = a.o[d][n][h];
                    to[merge_place<D>(head, d * 16 + 8 + g)] = a.o[d][n][2 + h];
                }
            }
        }
}

template <int D, bool FP8, int NT>
__device__ static inline void stream_items(const ll_cuda_tables &t, const decode_args &a,
                                           unsigned char *shared, left_parts<NT> &left)
{
    using G = granule<D, FP8>;
    constexpr uint32_t RING = RING_BYTES / G::SLOT;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t n_group = a.n_heads / a.n_kv_heads;
    const uint32_t n_decode = t.counts->n_decode, n_work = t.counts->n_decode_items * a.n_kv_heads;
    const uint32_t ring = smem_address(shared) + warp * RING_BYTES;
    slot_source<D, FP8> source = {t, a, n_decode, n_work};
    uint32_t slot = 0; /* the next one to work on */
    bool has_waited = false;

    source.next_v = nullptr;
    source.open(blockIdx.x);
    for (uint32_t i = 0; i < RING - 1; i++) {
        if (!has_waited && source.is_new()) {
            pdl_wait();
            has_waited = true;
        }
        source.start(ring + i * G::SLOT);
    }
    if (!has_waited)
        pdl_wait();

    for (uint32_t work = blockIdx.x; work < n_work; work += gridDim.x) {
        const decode_item item = find_item(t, work, a.n_kv_heads, n_decode);
        const float unit = a.scale * LOG2_E * cache_scale<FP8>(a, item.head);
        uint32_t q[NT][D / 16][2];
        attend_state<D, NT> state;
        load_heads<D, FP8, NT>(
            q,
            a.qkv + ((size_t)item.token * (a.n_heads + 2 * a.n_kv_heads) + item.head * n_group) * D,
            n_group, a.rope != nullptr ? a.rope + (size_t)(item.n_kv - 1) * (D / 2) : nullptr);
        clear(state);
        if (work != blockIdx.x)
            meet(EMPTY); /* what was left of the last item has been read */
        for (uint32_t from = item.from + warp * G::TOKENS; from < item.to;
             from += STREAMS * G::TOKENS) {
            float s[G::TILES][NT][4] = {};
            uint32_t p[G::TILES][NT][2];
            source.start(ring + (slot + RING - 1) % RING * G::SLOT);
            copy_wait<RING - 1>();
            __syncwarp();
            granule_scores<D, FP8, NT>(s, q, ring + slot * G::SLOT);
            __syncwarp(); /* the slot may be filled again */
            slot = (slot + 1) % RING;
            source.start(ring + (slot + RING - 1) % RING * G::SLOT);
            granule_softmax<D, FP8, NT>(p, state, s, item.to - from, unit);
            copy_wait<RING - 1>();
            __syncwarp();
            granule_values<D, FP8, NT>(state.o, p, ring + slot * G::SLOT);
            __syncwarp();
            slot = (slot + 1) % RING;
        }
        const uint32_t free = warp * RING_BYTES + (slot + RING - 1) % RING * G::SLOT;
        leave_state<D, FP8, NT>((float *)(shared + free), left.m[warp], left.l[warp], state,
                                n_group);
        if (lane == 0)
            left.slot[warp] = free;
        arrive(FULL);
    }
    if (blockIdx.x < n_work)
        meet(EMPTY);
}

/* This warp's numbers of all chunks of a row, in order, to the row's output. first: chunk 0's
 * partial results; ml: offset of this warp's copy of maxima and sums. Four heads at once, the last
 * again where there are not so many: no branch stands between the loads. */
template <int D>
__device__ static inline void merge_chunks(bf16 *to, const float *first, size_t stride,
                                           uint32_t n_chunks, uint32_t ml, uint32_t n_group,
                                           float unit, float v_scale)
{
    constexpr int HEADS = 4, PER_HEAD = D / MERGE_THREADS;
    const uint32_t lane = threadIdx.x % 32, thread = threadIdx.x - STREAMS * 32;

    for (uint32_t h0 = 0; h0 < n_group; h0 += HEADS) {
        float top[HEADS], sum[HEADS] = {}, value[HEADS][PER_HEAD] = {};
        const float *from[HEADS], *ml_of[HEADS];
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            const uint32_t head = min(h0 + h, n_group - 1);
            from[h] = first + head * D + thread;
            ml_of[h] = first + ml + head * 2;
            top[h] = -INFINITY;
        }
        for (uint32_t c = lane; c < n_chunks; c += 32)
#pragma unroll
            for (int h = 0; h < HEADS; h++)
                top[h] = fmaxf(top[h], __ldcg(ml_of[h] + c * stride));
#pragma unroll
        for (int h = 0; h < HEADS; h++)
            top[h] = warp_max(top[h]);
        for (uint32_t c0 = 0; c0 < n_chunks; c0 += 32) {
            const uint32_t n = min(32u, n_chunks - c0);
            float keep[HEADS] = {};
            if (lane < n)
#pragma unroll
                for (int h = 0; h < HEADS; h++) {
                    const float2 x = __ldcg((const float2 *)(ml_of[h] + (c0 + lane) * stride));
                    keep[h] = exp2_fast((x.x - top[h]) * unit);
                    sum[h] += x.y * keep[h];
                }
#pragma unroll 4
            for (uint32_t c = 0; c < n; c++)
#pragma unroll
                for (int h = 0; h < HEADS; h++) {
                    const float factor = __shfl_sync(~0u, keep[h], c);
#pragma unroll
                    for (int i = 0; i < PER_HEAD; i++)
                        value[h][i] +=
                            factor * __ldcg(from[h] + (c0 + c) * stride + i * MERGE_THREADS);
                }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            const float all = warp_sum(sum[h]);
            if (h0 + h < n_group)
#pragma unroll
                for (int i = 0; i < PER_HEAD; i++)
                    to[(h0 + h) * D + i * MERGE_THREADS] =
                        __float2bfloat16_rn(__fdividef(value[h][i] * v_scale, all));
        }
    }
}

template <int D, bool FP8, int NT>
__device__ static inline void merge_items(const ll_cuda_tables &t, const decode_args &a,
                                          const unsigned char *shared, const left_parts<NT> &left)
{
    constexpr int N = NT * 8 * D / MERGE_THREADS, PER_HEAD = D / MERGE_THREADS;
    static_assert(D % MERGE_THREADS == 0, "a thread's numbers lie MERGE_THREADS apart");
    const uint32_t thread = threadIdx.x - STREAMS * 32, warp = thread / 32, lane = thread % 32;
    const uint32_t n_group = a.n_heads / a.n_kv_heads;
    const uint32_t n_decode = t.counts->n_decode, n_work = t.counts->n_decode_items * a.n_kv_heads;

    pdl_wait();
    for (uint32_t work = blockIdx.x; work < n_work; work += gridDim.x) {
        const decode_item item = find_item(t, work, a.n_kv_heads, n_decode);
        const float unit = a.scale * LOG2_E * cache_scale<FP8>(a, item.head);
        const float v_scale = cache_scale<FP8>(a, a.n_kv_heads + item.head);
        float value[N], top[NT * 8], sum[NT * 8];

        meet(FULL);
#pragma unroll
        for (int h = 0; h < NT * 8; h++) {
            if (h >= n_group)
                break;
            float keep[STREAMS];
            top[h] = left.m[0][h];
#pragma unroll
            for (uint32_t w = 1; w < STREAMS; w++)
                top[h] = fmaxf(top[h], left.m[w][h]);
            sum[h] = 0.0f;
#pragma unroll
            for (uint32_t w = 0; w < STREAMS; w++) { /* no granule: m -inf, the rest zeros */
                keep[w] = exp2_fast((left.m[w][h] - top[h]) * unit);
                sum[h] += left.l[w][h] * keep[w];
            }
#pragma unroll
            for (int i = 0; i < PER_HEAD; i++) {
                float x = 0.0f;
#pragma unroll
                for (uint32_t w = 0; w < STREAMS; w++)
                    x += keep[w] * ((const float *)(shared + left.slot[w]))[merge_place<D>(
                                       h, i * MERGE_THREADS + thread)];
                value[h * PER_HEAD + i] = x;
            }
        }
        arrive(EMPTY);

        bf16 *to = a.out + (size_t)item.token * a.n_heads * D + item.head * n_group * D + thread;
        if (item.n_chunks > 1) {
            /* [G][D] outputs, then [MERGERS][G] maxima and sums, one copy a warp, so that a warp's
             * half is whole by its own stores. */
            const uint32_t n_floats = ll_cuda_partial_floats(n_group, D);
            const uint32_t ml = n_group * (D + 2 * warp);
            const size_t stride = (size_t)a.n_kv_heads * n_floats;
            float *mine = a.partial + (size_t)(work / a.n_kv_heads) * stride + item.head * n_floats;
#pragma unroll
            for (int h = 0; h < NT * 8; h++) {
                if (h >= n_group)
                    break;
#pragma unroll
                for (int i = 0; i < PER_HEAD; i++)
                    mine[h * D + i * MERGE_THREADS + thread] = value[h * PER_HEAD + i];
                if (lane == 0)
                    *(float2 *)(mine + ml + h * 2) = make_float2(top[h], sum[h]);
            }
            uint32_t *count = &a.arrived[(item.row * a.n_kv_heads + item.head) * MERGERS + warp];
            uint32_t before = 0;
            __syncwarp();
            if (lane == 0) /* the warp's partial before the count, the count before others' */
                asm volatile("{\n\tfence.acq_rel.gpu;\n\tatom.relaxed.gpu.global.add.u32 %0, [%1], "
                             "1;\n\tfence.acq_rel.gpu;\n\t}"
                             : "=r"(before)
                             : "l"(count)
                             : "memory");
            __syncwarp();
            if (__shfl_sync(~0u, before, 0) != item.n_chunks - 1)
                continue;
            merge_chunks<D>(to, a.partial + item.first_item * stride + item.head * n_floats, stride,
                            item.n_chunks, ml, n_group, unit, v_scale);
            if (lane == 0)
                *count = 0;
        } else {
#pragma unroll
            for (int h = 0; h < NT * 8; h++) {
                if (h >= n_group)
                    break;
#pragma unroll
                for (int i = 0; i < PER_HEAD; i++)
                    to[h * D + i * MERGE_THREADS] =
                        __float2bfloat16_rn(__fdividef(value[h * PER_HEAD + i] * v_scale, sum[h]));
            }
        }
    }
}

/* 16 heads take twice the registers: one CTA an SM then. */
template <int D, bool FP8, int NT>
__global__ void __launch_bounds__(DECODE_THREADS, NT == 1 ? 2 : 1)
    decode_kernel(const ll_cuda_tables t, const decode_args a)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ left_parts<NT> left;

    if (threadIdx.x < STREAMS * 32)
        stream_items<D, FP8, NT>(t, a, shared, left);
    else
        merge_items<D, FP8, NT>(t, a, shared, left);
}

template <int D, bool FP8, int NT>
static int launch(const struct ll_cuda_attend_args *a, cudaStream_t stream)
{
    const int n_bytes = (int)(STREAMS * ring_bytes(ll_cuda_level() >= 90));
    const decode_args args = {
        (const bf16 *)a->qkv, (unsigned char *)a->kv,
        a->kv_scale,          a->is_rotated ? nullptr : (const float2 *)a->rope,
        (bf16 *)a->out,       a->partial,
        a->arrived,           a->n_heads,
        a->n_kv_heads,        a->scale};
    auto kernel = decode_kernel<D, FP8, NT>;

    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, n_bytes) !=
        cudaSuccess)
        return -EIO;
    return launch_chained(kernel, a->n_blocks, DECODE_THREADS, n_bytes, stream, *a->tables, args);
}

template <int D, bool FP8>
static int launch_group(const struct ll_cuda_attend_args *a, cudaStream_t stream)
{
    return a->n_heads / a->n_kv_heads <= 8 ? launch<D, FP8, 1>(a, stream)
                                           : launch<D, FP8, 2>(a, stream);
}

extern "C" int ll_cuda_attend_decode(const struct ll_cuda_attend_args *args, cudaStream_t stream)
{
    if (args->n_kv_heads == 0 || args->n_heads % args->n_kv_heads != 0 ||
        args->n_heads / args->n_kv_heads > 16)
        return -EINVAL;
    if (args->head_dim == 128)
        return args->is_kv_fp8 ? launch_group<128, true>(args, stream)
                               : launch_group<128, false>(args, stream);
    if (args->head_dim == 64)
        return args->is_kv_fp8 ? launch_group<64, true>(args, stream)
                               : launch_group<64, false>(args, stream);
    return -EINVAL;
}
