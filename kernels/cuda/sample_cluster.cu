/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/sample_cluster.cu - the sampler on 9.0: a cluster of blocks a row, which reads the
 * row once and keeps it in the shared memory of its blocks (sample_select.cuh).
 *
 * Greedy rows need one exchange between the blocks; a filter three, and a pass over shared memory
 * before each of the first and the last. Latency bound at few rows, bound by shared memory at many.
 * The raw logits stay as they are. Reference: kernels/cpu. */
#include "kernels/cuda/sample_cluster.h"
#include "kernels/cuda/sample_select.cuh"

static constexpr int QUADS = 8; /* 16-byte loads in flight a thread: a vocabulary of 131072 */

#if __CUDA_ARCH__ >= 900
/* Of what the lanes of a warp hold: in every lane. */
__device__ static inline part_stats warp_joined(const part_stats &p)
{
    part_stats all;

    all.top = __reduce_max_sync(~0u, p.top);
    all.low = __reduce_min_sync(~0u, p.low);
    all.is_bad = __reduce_or_sync(~0u, p.is_bad);
    all.y_top = __reduce_max_sync(~0u, p.y_top);
    all.y_low = __reduce_min_sync(~0u, p.y_low);
    all.y_id = __reduce_min_sync(~0u, p.y_top == all.y_top ? p.y_id : UINT32_MAX);
    all.top_id = __reduce_min_sync(~0u, p.top == all.top ? p.top_id : UINT32_MAX);
    all.sum = p.sum > 0.0f ? p.sum * __expf(value_of(p.top) - value_of(all.top)) : 0.0f;
    all.sum = warp_sum(all.sum);
    return all;
}

/* In program order, unlike a plain load: before the row is known to be one. */
__device__ static inline float4 load_early(const float4 *p)
{
    float4 v;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p));
    return v;
}

/* Of this thread's values, all raw. */
struct thread_stats {
    float top, low, sum;
    uint32_t top_id;
    bool is_bad;
};

__device__ static inline void load_round(float4 (&v)[QUADS], const float4 *from, uint32_t base,
                                         uint32_t n_quads)
{
#pragma unroll
    for (int k = 0; k < QUADS; k++)
        if (base + k * THREADS < n_quads)
            v[k] = load_early(from + base + k * THREADS);
}

/* Into shared memory, and into the thread's numbers: the sum is kept relative to its top. */
__device__ static inline void take_round(const float4 (&v)[QUADS], uint32_t base, uint32_t first,
                                         uint32_t n, thread_stats &mine)
{
    float4 *to = reinterpret_cast<float4 *>(values());
    const float before = mine.top;

#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        const uint32_t q = base + k * THREADS;
        const float f[4] = {v[k].x, v[k].y, v[k].z, v[k].w};
        if (q * 4 < n)
            to[q] = v[k];
#pragma unroll
        for (uint32_t j = 0; j < 4; j++)
            if (q * 4 + j < n) {
                mine.is_bad |= isnan(f[j]) || f[j] == INFINITY;
                if (f[j] > mine.top) { /* ids rise */
                    mine.top = f[j];
                    mine.top_id = first + q * 4 + j;
                }
                mine.low = fminf(mine.low, f[j]);
            }
    }
    if (mine.top == -INFINITY)
        return;
    mine.sum *= __expf(before - mine.top);
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        const float f[4] = {v[k].x, v[k].y, v[k].z, v[k].w};
#pragma unroll
        for (uint32_t j = 0; j < 4; j++)
            if ((base + k * THREADS) * 4 + j < n)
                mine.sum += __expf(f[j] - mine.top);
    }
}

/* Steps 2 to 5 of the sampler on this block's part, in place, where they change anything. */
__device__ static inline void adjust_part(const ll_cuda_tables &t, uint32_t n_vocab,
                                          part_stats &mine)
{
    cluster_memory &m = memory();
    const uint32_t first = m.s.first, n = m.s.n;
    const bool bars_end = m.slot.n_end > 0 && m.row.pos - m.slot.n_prompt < m.slot.min_tokens;
    const uint16_t *penalty = m.slot.has_penalty && t.penalty != nullptr
                                  ? t.penalty + (size_t)m.row.slot * n_vocab + first
                                  : nullptr;
    float *x = values(), y_top = -INFINITY, y_low = INFINITY;

    mine.y_top = mine.top;
    mine.y_low = mine.low;
    mine.y_id = mine.top_id;
    if (m.slot.n_bias == 0 && !bars_end && penalty == nullptr)
        return;
    const ll_bias *bias = t.bias + (size_t)m.row.slot * LL_CUDA_BIAS_MAX;
    for (uint32_t i = threadIdx.x; i < m.slot.n_bias; i += THREADS)
        if (bias[i].id - first < n)
            atomicAdd(&x[bias[i].id - first], bias[i].bias);
    __syncthreads();
    if (bars_end && threadIdx.x < m.slot.n_end && m.slot.end[threadIdx.x] - first < n)
        x[m.slot.end[threadIdx.x] - first] = -INFINITY;
    __syncthreads();
    mine.y_id = UINT32_MAX;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
        float y = x[i];
        if (penalty != nullptr)
            x[i] = y = penalised(y, penalty[i], m.slot);
        if (y > y_top || mine.y_id == UINT32_MAX) {
            y_top = y;
            mine.y_id = first + i;
        }
        y_low = fminf(y_low, y);
    }
    mine.y_top = mine.y_id != UINT32_MAX ? key_of(y_top) : 0;
    mine.y_low = mine.y_id != UINT32_MAX ? key_of(y_low) : UINT32_MAX;
}

/* From each thread's numbers to m.part: each block's, in every block. */
__device__ static inline void exchange(const part_stats &mine)
{
    cluster_memory &m = memory();
    const part_stats of_warp = warp_joined(mine);

    if (threadIdx.x % 32 == 0)
        m.warp_part[threadIdx.x / 32] = of_warp;
    __syncthreads();
    if (threadIdx.x < 32) {
        static_assert(THREADS / 32 == 16, "a lane a warp, twice");
        part_stats p = m.warp_part[threadIdx.x % 16];
        p.sum = threadIdx.x < 16 ? p.sum : 0.0f;
        p = warp_joined(p);
        if (threadIdx.x < CTAS) {
            part_stats *to = &m.part[m.s.rank];
            store_at(&to->top, threadIdx.x, p.top);
            store_at(&to->low, threadIdx.x, p.low);
            store_at(&to->top_id, threadIdx.x, p.top_id);
            store_at(&to->is_bad, threadIdx.x, p.is_bad);
            store_at(&to->sum, threadIdx.x, p.sum);
            store_at(&to->y_top, threadIdx.x, p.y_top);
            store_at(&to->y_low, threadIdx.x, p.y_low);
            store_at(&to->y_id, threadIdx.x, p.y_id);
        }
    }
    cluster_sync();
}

/* The row's numbers, in every thread of the cluster. */
__device__ static inline part_stats row_stats()
{
    part_stats p = memory().part[threadIdx.x % CTAS];

    p.sum = threadIdx.x % 32 < CTAS ? p.sum : 0.0f;
    return warp_joined(p);
}

/* The logprob of the id to be scored, and the row's best raw logits, those of the prefix. */
__device__ static inline void write_list(const ll_cuda_sample_args &a, const prefix &top,
                                         const float *raw)
{
    cluster_memory &m = memory();
    const uint32_t n_ids = m.s.is_listed ? m.n_list : m.s.n, n = m.row.n_top;
    ll_ext *ext = a.ext + (size_t)memory().area * a.n_ext_max + m.row.ext;

    if (m.row.target != LL_CUDA_NONE) {
        if (m.s.rank == 0 && threadIdx.x == 0)
            ext[0] = {m.row.target, raw[m.row.target] - m.lse};
        ext++;
    }
    if (n == 0)
        return;

    if (threadIdx.x == 0)
        m.n_own = 0;
    __syncthreads();
#pragma unroll 1
    for (uint32_t j = threadIdx.x; j < n_ids; j += THREADS) {
        const uint32_t i = m.s.is_listed ? m.list[j] : j;
        if (is_in(top, key_of(values()[i]), m.s.first + i)) {
            const uint32_t k = atomicAdd(&m.n_own, 1);
            if (k < LL_EXT_TOP_MAX)
                store_at(&m.top[m.s.rank][k], 0, order_of(key_of(values()[i]), m.s.first + i));
        }
    }
    __syncthreads();
    if (threadIdx.x == 0)
        store_at(&m.n_top[m.s.rank], 0, m.n_own);
    cluster_sync();
    if (m.s.rank != 0)
        return;
    uint32_t n_all = 0;
    for (uint32_t r = 0; r < CTAS; r++)
        n_all += m.n_top[r];
    if (threadIdx.x < CTAS * LL_EXT_TOP_MAX &&
        threadIdx.x % LL_EXT_TOP_MAX < m.n_top[threadIdx.x / LL_EXT_TOP_MAX]) {
        const unsigned long long mine =
            m.top[threadIdx.x / LL_EXT_TOP_MAX][threadIdx.x % LL_EXT_TOP_MAX];
        uint32_t place = 0;
#pragma unroll 1
        for (uint32_t r = 0; r < CTAS; r++)
#pragma unroll 1
            for (uint32_t k = 0; k < m.n_top[r]; k++)
                place += m.top[r][k] < mine;
        ext[place] = {(uint32_t)mine, value_of(~(uint32_t)(mine >> 32)) - m.lse};
    }
    for (uint32_t i = n_all + threadIdx.x; i < n; i += THREADS)
        ext[i] = {0, -INFINITY}; /* a vocabulary smaller than n */
}

/* Step 10 over this block's part. No noise is above 16.64: an id that even so, or with the bound
 * -log(1 - u) of its own, stays below a score that is there already has lost. */
__device__ static inline best_id draw(const prefix &keep, uint32_t pos)
{
    const cluster_memory &m = memory();
    best_id mine = {-INFINITY, UINT32_MAX};
    uint32_t bits[4];

    if (m.s.is_listed) {
        const uint32_t n = m.n_list;
#pragma unroll 1
        for (uint32_t j = threadIdx.x; j < n; j += THREADS) {
            const uint32_t i = m.list[j], id = m.s.first + i;
            const float y = value_at(values()[i]);
            if (!is_in(keep, key_of(y), id))
                continue;
            philox(m.slot.seed, id / 4, pos, m.slot.choice, 0, bits);
            const uint32_t even = id & 2 ? bits[2] : bits[0], odd = id & 2 ? bits[3] : bits[1];
            const float score = noisy(y, id & 1 ? odd : even);
            if (is_better(score, id, mine.value, mine.id))
                mine = {score, id};
        }
        return mine;
    }
    const uint32_t top_id = m.s.top_id;
    philox(m.slot.seed, top_id / 4, pos, m.slot.choice, 0, bits);
    const uint32_t even = top_id & 2 ? bits[2] : bits[0], odd = top_id & 2 ? bits[3] : bits[1];
    float least = -INFINITY;
    if (is_in(keep, key_of(m.s.top), top_id))
        least = noisy(m.s.top, top_id & 1 ? odd : even) - 1e-3f;
#pragma unroll 1
    for (uint32_t q = threadIdx.x; q * 4 < m.s.n; q += THREADS) {
        const float4 v = reinterpret_cast<const float4 *>(values())[q];
        const float f[4] = {value_at(v.x), value_at(v.y), value_at(v.z), value_at(v.w)};
        const uint32_t id = m.s.first + q * 4;
        bool may_win[4], is_any = false;
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            may_win[j] =
                q * 4 + j < m.s.n && f[j] + 16.7f > least && is_in(keep, key_of(f[j]), id + j);
            is_any |= may_win[j];
        }
        if (!is_any)
            continue;
        philox(m.slot.seed, id / 4, pos, m.slot.choice, 0, bits);
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const float rest = ((float)(0x7fffffu - (bits[j] >> 9)) + 0.5f) * 0x1p-23f; /* 1 - u */
            if (!may_win[j] || f[j] - __logf(rest) < least)
                continue;
            const float score = noisy(f[j], bits[j]);
            if (is_better(score, id + j, mine.value, mine.id))
                mine = {score, id + j};
            least = fmaxf(least, score - 1e-3f);
        }
    }
    return mine;
}

/* The best id of all blocks, in block 0 alone. */
__device__ static inline uint32_t cluster_best(best_id mine)
{
    cluster_memory &m = memory();

    mine = warp_best(mine);
    if (threadIdx.x % 32 == 0)
        m.warp_best[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x < 32) {
        mine = {-INFINITY, UINT32_MAX};
        if (threadIdx.x < THREADS / 32)
            mine = m.warp_best[threadIdx.x];
        mine = warp_best(mine);
        if (threadIdx.x == 0)
            store_at(&m.best[m.s.rank], 0, (unsigned long long)key_of(mine.value) << 32 | ~mine.id);
    }
    cluster_arrive();
    if (m.s.rank != 0)
        return 0; /* nobody writes into this block's memory any more */
    cluster_wait();
    unsigned long long best = 0;
    for (uint32_t r = 0; r < CTAS; r++)
        best = max(best, m.best[r]);
    return ~(uint32_t)best;
}

/* What selections follow: an order of values, times scale, from top down to low. */
__device__ static inline void begin_selecting(float top, float low, float scale, uint32_t top_id)
{
    cluster_memory &m = memory();

    __syncthreads();
    if (threadIdx.x == 0) {
        m.s.scale = scale;
        m.s.top = __fmul_rn(top, scale);
        m.s.top_id = top_id;
        m.s.per_step = steps_of(m.s.top, __fmul_rn(low, scale));
        m.s.is_listed = false;
    }
    __syncthreads();
}

__device__ static inline ll_row_out *row_out(const ll_cuda_sample_args &a)
{
    return a.rows + (size_t)memory().area * a.n_rows_max + memory().row.row;
}

__device__ static inline void fail_row(const ll_cuda_sample_args &a)
{
    ll_row_out *out = row_out(a);

    out->status = LL_ROW_NAN;
    if (memory().row.target == LL_CUDA_NONE)
        out->n_tokens = 0;
}

__device__ static inline void end_row(const ll_cuda_sample_args &a, const ll_cuda_tables &t,
                                      const float *raw, uint32_t id)
{
    const cluster_memory &m = memory();
    ll_row_out *out = row_out(a);

    out->token[0] = id;
    out->logprob[0] = raw[id] - m.lse;
    out->status = LL_ROW_OK;
    out->n_tokens = 1;
    t.slots[m.row.slot].last_token = id;
    if (m.slot.has_penalty && t.penalty != nullptr)
        count_id(t.penalty + (size_t)m.row.slot * a.n_vocab + id);
}
#endif

__global__ void __launch_bounds__(THREADS, 2)
    cluster_kernel(const ll_cuda_sample_args a, const ll_cuda_tables t, uint32_t stride)
{
#if __CUDA_ARCH__ >= 900
    cluster_memory &m = memory();
    const uint32_t index = blockIdx.x / CTAS, part = (a.n_vocab + 4 * CTAS - 1) / (4 * CTAS) * 4;
    const uint32_t rank = cluster_rank(), first = min(rank * part, a.n_vocab),
                   n = min(part, a.n_vocab - first);
    const float *raw = a.logits + (size_t)index * stride;

    if (threadIdx.x == 0)
        m.s = {first, n, a.n_vocab, rank, 0, 0, 0, 0, 0};
    pdl_release();
    pdl_wait();
    const float4 *from = reinterpret_cast<const float4 *>(raw + first);
    const uint32_t n_quads = (n + 3) / 4; /* the row's padding makes the last one whole */
    float4 v[QUADS];
    load_round(v, from, threadIdx.x, n_quads);
    const ll_cuda_logit *at = t.logits + index;
    if (at->token == LL_CUDA_NONE)
        return;
    cluster_arrive(); /* all blocks run from the wait on: their memory may be written */
    if (threadIdx.x < sizeof(m.slot) / 4)
        ((uint32_t *)&m.slot)[threadIdx.x] = ((const uint32_t *)&t.slots[at->slot])[threadIdx.x];
    else if (threadIdx.x >= THREADS - sizeof(m.row) / 4)
        ((uint32_t *)&m.row)[threadIdx.x - (THREADS - sizeof(m.row) / 4)] =
            ((const uint32_t *)at)[threadIdx.x - (THREADS - sizeof(m.row) / 4)];
    if (threadIdx.x == 32)
        m.area = *t.step % LL_CUDA_AREAS;
    thread_stats own = {-INFINITY, INFINITY, 0.0f, UINT32_MAX, false};
    take_round(v, threadIdx.x, first, n, own);
    for (uint32_t base = THREADS * QUADS; base < n_quads; base += THREADS * QUADS) {
        load_round(v, from, base + threadIdx.x, n_quads);
        take_round(v, base + threadIdx.x, first, n, own);
    }
    part_stats mine = {key_of(own.top), key_of(own.low), own.is_bad, own.top_id, own.sum, 0, 0, 0};
    __syncthreads();
    cluster_wait();

    /* One selection after another by the same code: of the list of logprobs, top-k, top-p. */
    enum { LIST, TOP_K, TOP_P } stage = TOP_K;
    if (m.row.target != LL_CUDA_NONE || m.row.n_top > 0)
        stage = LIST;
    prefix keep = {0, UINT32_MAX};
    uint32_t id = UINT32_MAX; /* to be drawn */
    for (;;) {
        if (stage != TOP_P) {
            if (stage == TOP_K)
                adjust_part(t, a.n_vocab, mine);
            exchange(mine);
            const part_stats all = row_stats();
            if (all.is_bad || all.top == key_of(-INFINITY)) {
                if (rank == 0 && threadIdx.x == 0)
                    fail_row(a);
                return;
            }
            if (threadIdx.x == 0)
                m.lse = value_of(all.top) + logf(all.sum);
            if (stage == TOP_K) {
                /* Where every id is barred any will do, there must be one. */
                id = all.y_top == key_of(-INFINITY) ? 0
                     : m.slot.temperature == 0.0f   ? all.y_id
                                                    : UINT32_MAX;
                if (id != UINT32_MAX)
                    break;
                begin_selecting(value_of(all.y_top), value_of(all.y_low), 1.0f / m.slot.temperature,
                                all.y_id);
                keep = {key_of(-INFINITY), 0};
                if (m.slot.min_p > 0.0f)
                    keep = {key_of(m.s.top + logf(m.slot.min_p)), UINT32_MAX};
            } else {
                begin_selecting(value_of(all.top), value_of(all.low), 1.0f, 0);
            }
        }
        const uint32_t target = stage == LIST ? m.row.n_top : stage == TOP_K ? m.slot.top_k : 0;
        const float top_p = stage == TOP_P ? m.slot.top_p : -1.0f;
        if (stage == TOP_P ? top_p < 1.0f : target > 0 && target < a.n_vocab)
            keep = select_prefix(keep, target, top_p);
        if (stage == TOP_P)
            break;
        if (stage == LIST) {
            write_list(a, keep, raw);
            if (m.row.target != LL_CUDA_NONE)
                return;
        }
        stage = stage == LIST ? TOP_K : TOP_P;
    }
    if (id == UINT32_MAX)
        id = cluster_best(draw(keep, m.row.pos));
    if (rank == 0 && threadIdx.x == 0)
        end_row(a, t, raw, id < a.n_vocab ? id : 0);
#endif
}

static size_t shared_bytes(uint32_t n_vocab)
{
    return VALUES_AT + (size_t)((n_vocab + 4 * CTAS - 1) / (4 * CTAS)) * 16;
}

extern "C" bool ll_cuda_sample_cluster_fits(uint32_t n_vocab)
{
    return ll_cuda_level() >= 90 && shared_bytes(n_vocab) <= 227 * 1024;
}

extern "C" int ll_cuda_sample_cluster(const struct ll_cuda_sample_args *args, cudaStream_t stream)
{
    const size_t bytes = shared_bytes(args->n_vocab);
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config = {};

    if (!ll_cuda_sample_cluster_fits(args->n_vocab))
        return -EINVAL;
    if (args->n_logits == 0)
        return 0;
    /* Of each device, so not remembered: there may be several, and launches are captured once. */
    if (cudaFuncSetAttribute(cluster_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)bytes) != cudaSuccess)
        return -EIO;
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = CTAS;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = args->n_logits * CTAS;
    config.blockDim = THREADS;
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 2;
    return cudaLaunchKernelEx(&config, cluster_kernel, *args, *args->tables,
                              (args->n_vocab + 7) / 8 * 8) == cudaSuccess
               ? 0
               : -EIO;
}
