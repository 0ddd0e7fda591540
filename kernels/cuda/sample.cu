/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/sample.cu - from logits to a token, exactly as kernels/backend.h defines it.
 *
 * One block a row. No sort: every filter keeps a prefix of the order "larger value first, lower id
 * first on ties", so a filter's result is (key, m): all ids above key and the first m at key. The
 * prefix is found by radix selection on the float's ordered bits, 11 + 11 + 10 bits, by count for
 * top-k and by mass in 64-bit fixed point for top-p: sums do not depend on their order, so neither
 * do draws. Gumbel-max over what is left; ids come from Philox, not from the place in the batch.
 *
 * L2 bound: 4 V bytes a pass; greedy 2 passes, all filters about 12. Where clusters are, that of
 * sample_cluster.cu serves; this one where they are not, and any size of vocabulary. Reference:
 * kernels/cpu. */
#include "kernels/cuda/sample.cuh"
#include "kernels/cuda/sample_cluster.h"

static constexpr int THREADS = 1024;
static constexpr int BINS = 2048;

struct row_view {
    float *x;                /* [V], raw until the sparse changes are applied */
    const uint16_t *penalty; /* NULL: none */
    const ll_cuda_slot *slot;
    uint32_t n_vocab;
};

__device__ static best_id block_best(best_id mine)
{
    __shared__ best_id part[THREADS / 32];
    mine = warp_best(mine);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = mine;
    __syncthreads();
    for (int i = 0; i < THREADS / 32; i++)
        if (is_better(part[i].value, part[i].id, mine.value, mine.id))
            mine = part[i];
    return mine;
}

/* Steps 2 to 5 of the sampler but for the sparse ones, which lie in x already. */
__device__ static inline float changed(const row_view &r, uint32_t v)
{
    return r.penalty != nullptr ? penalised(r.x[v], r.penalty[v], *r.slot) : r.x[v];
}

/* Id of the m-th (from 1) element at exactly `key` inside `within`, in id order. */
template <class Key>
__device__ static uint32_t tie_cutoff(const Key &key_at, uint32_t n_vocab, const prefix &within,
                                      uint32_t key, uint32_t m)
{
    __shared__ uint32_t found;
    uint32_t seen = 0;

    __syncthreads();
    if (threadIdx.x == 0)
        found = UINT32_MAX;
    __syncthreads();
    for (uint32_t base = 0; base < n_vocab && seen < m; base += THREADS) {
        const uint32_t v = base + threadIdx.x;
        const bool hit = v < n_vocab && key_at(v) == key && is_in(within, key, v);
        const uint32_t n = (uint32_t)__syncthreads_count(hit);
        if (seen + n >= m && hit) {
            /* Rank inside this chunk: rare and short, so counted plainly. */
            uint32_t rank = seen;
            for (uint32_t w = base; w <= v; w++)
                rank += key_at(w) == key && is_in(within, key, w);
            if (rank == m)
                found = v;
        }
        seen += n;
    }
    __syncthreads();
    return found;
}

/* Shared memory of a selection, one for all its instances. */
struct select_memory {
    unsigned long long bin[BINS];
    unsigned long long above, each;
    uint32_t digit;
};

/* Shortest prefix of `within` whose weight reaches target; weight_at gives an element's weight (1
 * to count, its mass for top-p). All of `within` when the total is below target. */
template <class Key, class Weight>
__device__ static prefix select_prefix(select_memory &memory, const Key &key_at,
                                       const Weight &weight_at, uint32_t n_vocab,
                                       const prefix &within, uint64_t target)
{
    unsigned long long *bin = memory.bin;
    uint32_t high = 0, mask = 0; /* digits fixed so far */
    uint64_t above = 0;          /* weight of keys above the fixed digits */
    const int shifts[3] = {21, 10, 0};
    const uint32_t widths[3] = {11, 11, 10};

    for (int pass = 0; pass < 3; pass++) {
        const uint32_t n_bins = 1u << widths[pass];
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n_bins; i += THREADS)
            bin[i] = 0;
        if (threadIdx.x == 0)
            memory.digit = UINT32_MAX;
        __syncthreads();
        for (uint32_t v = threadIdx.x; v < n_vocab; v += THREADS) {
            const uint32_t key = key_at(v);
            if ((key & mask) == high && is_in(within, key, v))
                atomicAdd(&bin[key >> shifts[pass] & (n_bins - 1)],
                          (unsigned long long)weight_at(v));
        }
        __syncthreads();
        /* From the top digit down; one warp walks 32 bins at a time. */
        if (threadIdx.x < 32) {
            uint64_t sum = above;
            for (int base = (int)n_bins - 32; base >= 0; base -= 32) {
                const uint32_t lane = threadIdx.x;
                unsigned long long w = bin[base + 31 - lane], inclusive = w;
#pragma unroll
                for (int d = 1; d < 32; d <<= 1) {
                    const unsigned long long other = __shfl_up_sync(~0u, inclusive, d);
                    if (lane >= (uint32_t)d)
                        inclusive += other;
                }
                const uint32_t hit = __ballot_sync(~0u, w != 0 && sum + inclusive >= target);
                if (hit != 0) {
                    if ((int)lane == __ffs((int)hit) - 1) {
                        memory.digit = (uint32_t)(base + 31) - lane;
                        memory.above = sum + inclusive - w;
                    }
                    break;
                }
                sum += __shfl_sync(~0u, inclusive, 31);
            }
        }
        __syncthreads();
        if (memory.digit == UINT32_MAX)
            return within; /* the total is below target: nothing is dropped */
        high |= memory.digit << shifts[pass];
        mask |= (n_bins - 1) << shifts[pass];
        above = memory.above;
    }
    /* Elements at the key all weigh the same; how many of them are needed? */
    const uint64_t at_key = bin[high & 1023u];
    if (threadIdx.x == 0)
        memory.each = 1;
    __syncthreads();
    for (uint32_t v = threadIdx.x; v < n_vocab; v += THREADS)
        if (key_at(v) == high && is_in(within, high, v) && weight_at(v) > 0)
            atomicMax(&memory.each, (unsigned long long)weight_at(v)); /* all the same */
    __syncthreads();
    const uint64_t each = memory.each, missing = target > above ? target - above : 1;
    const uint64_t needed = (missing + each - 1) / each;
    if (needed * each >= at_key)
        return prefix{high, within.key == high ? within.last_id : UINT32_MAX};
    return prefix{high, tie_cutoff(key_at, n_vocab, within, high, (uint32_t)needed)};
}

/* The n best raw logits, best first, into ext. */
__device__ static void write_top(select_memory &memory, const row_view &r, uint32_t n, float lse,
                                 ll_ext *ext)
{
    __shared__ ll_ext list[LL_EXT_TOP_MAX];
    __shared__ uint32_t n_list;
    const prefix all = {0, UINT32_MAX};
    auto key_at = [&](uint32_t v) { return key_of(r.x[v]); };
    auto one = [](uint32_t) { return 1u; };
    const prefix top = select_prefix(memory, key_at, one, r.n_vocab, all, n);

    if (threadIdx.x == 0)
        n_list = 0;
    __syncthreads();
    for (uint32_t v = threadIdx.x; v < r.n_vocab; v += THREADS)
        if (is_in(top, key_at(v), v)) {
            const uint32_t i = atomicAdd(&n_list, 1);
            if (i < LL_EXT_TOP_MAX)
                list[i] = {v, r.x[v]};
        }
    __syncthreads();
    if (threadIdx.x < n && threadIdx.x < n_list) {
        const ll_ext mine = list[threadIdx.x];
        uint32_t rank = 0;
        for (uint32_t i = 0; i < n_list; i++)
            rank += is_better(list[i].logprob, list[i].id, mine.logprob, mine.id);
        ext[rank] = {mine.id, mine.logprob - lse};
    }
    for (uint32_t i = n_list + threadIdx.x; i < n; i += THREADS)
        ext[i] = {0, -INFINITY}; /* a vocabulary smaller than n */
}

/* Steps 2 and 3, in place; remembers the raw values of what it changes. */
__device__ static void apply_sparse(const row_view &r, const ll_cuda_slot &slot,
                                    const ll_bias *bias, bool bars_end, float *raw_bias,
                                    float *raw_end)
{
    for (uint32_t i = threadIdx.x; i < slot.n_bias; i += THREADS)
        raw_bias[i] = bias[i].id < r.n_vocab ? r.x[bias[i].id] : 0.0f;
    if (threadIdx.x < slot.n_end)
        raw_end[threadIdx.x] = slot.end[threadIdx.x] < r.n_vocab ? r.x[slot.end[threadIdx.x]] : 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < slot.n_bias; i += THREADS)
        if (bias[i].id < r.n_vocab)
            atomicAdd(&r.x[bias[i].id], bias[i].bias);
    __syncthreads();
    if (bars_end && threadIdx.x < slot.n_end && slot.end[threadIdx.x] < r.n_vocab)
        r.x[slot.end[threadIdx.x]] = -INFINITY;
    __syncthreads();
}

__device__ static uint32_t choose(select_memory &memory, const row_view &r,
                                  const ll_cuda_slot &slot, uint32_t pos)
{
    if (slot.temperature == 0.0f) {
        best_id mine = {-INFINITY, UINT32_MAX};
        for (uint32_t v = threadIdx.x; v < r.n_vocab; v += THREADS) {
            const float x = changed(r, v);
            if (is_better(x, v, mine.value, mine.id))
                mine = {x, v};
        }
        return block_best(mine).id;
    }

    const float inverse_t = 1.0f / slot.temperature;
    auto y_at = [&](uint32_t v) { return __fmul_rn(changed(r, v), inverse_t); };
    auto key_at = [&](uint32_t v) { return key_of(y_at(v)); };
    float top = -INFINITY;
    for (uint32_t v = threadIdx.x; v < r.n_vocab; v += THREADS)
        top = fmaxf(top, y_at(v));
    top = block_max<THREADS>(top);

    prefix keep = {key_of(-INFINITY), 0};
    if (slot.min_p > 0.0f)
        keep = {key_of(top + logf(slot.min_p)), UINT32_MAX};
    if (slot.top_k > 0 && slot.top_k < r.n_vocab)
        keep = select_prefix(
            memory, key_at, [](uint32_t) { return 1u; }, r.n_vocab, keep, slot.top_k);
    if (slot.top_p < 1.0f) {
        auto mass_at = [&](uint32_t v) { return mass_of(y_at(v), top); };
        __shared__ unsigned long long total;
        if (threadIdx.x == 0)
            total = 0;
        __syncthreads();
        unsigned long long mine = 0;
        for (uint32_t v = threadIdx.x; v < r.n_vocab; v += THREADS)
            if (is_in(keep, key_at(v), v))
                mine += mass_at(v);
#pragma unroll
        for (int d = 16; d > 0; d >>= 1)
            mine += __shfl_xor_sync(~0u, mine, d);
        if (threadIdx.x % 32 == 0)
            atomicAdd(&total, mine);
        __syncthreads();
        keep =
            select_prefix(memory, key_at, mass_at, r.n_vocab, keep, mass_target(slot.top_p, total));
    }

    best_id mine = {-INFINITY, UINT32_MAX};
    for (uint32_t quad = threadIdx.x; quad * 4 < r.n_vocab; quad += THREADS) {
        uint32_t bits[4];
        bool has_bits = false;
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const uint32_t v = quad * 4 + j;
            if (v >= r.n_vocab)
                break;
            const float y = y_at(v);
            if (!is_in(keep, key_of(y), v))
                continue;
            if (!has_bits) {
                philox(slot.seed, quad, pos, slot.choice, 0, bits);
                has_bits = true;
            }
            const float score = noisy(y, bits[j]);
            if (is_better(score, v, mine.value, mine.id))
                mine = {score, v};
        }
    }
    return block_best(mine).id;
}

__global__ void __launch_bounds__(THREADS)
    sample_kernel(const ll_cuda_sample_args a, const ll_cuda_tables t, uint32_t stride)
{
    pdl_wait();
    const ll_cuda_logit row = t.logits[blockIdx.x];
    if (row.token == LL_CUDA_NONE)
        return;
    __shared__ select_memory memory;
    __shared__ ll_cuda_slot slot;
    __shared__ float raw_bias[LL_CUDA_BIAS_MAX], raw_end[LL_END_IDS_MAX];
    if (threadIdx.x < sizeof(slot) / 4)
        ((uint32_t *)&slot)[threadIdx.x] = ((const uint32_t *)&t.slots[row.slot])[threadIdx.x];
    __syncthreads();

    const uint32_t area = *t.step % LL_CUDA_AREAS;
    ll_row_out *out = a.rows + (size_t)area * a.n_rows_max + row.row;
    ll_ext *ext = a.ext + (size_t)area * a.n_ext_max + row.ext;
    row_view r = {a.logits + (size_t)blockIdx.x * stride, nullptr, &slot, a.n_vocab};

    /* 1: logsumexp of the raw logits; a NaN or +inf makes the sum a NaN or inf. */
    float top = -INFINITY;
    bool is_bad = false;
    for (uint32_t v = threadIdx.x; v < r.n_vocab; v += THREADS) {
        is_bad |= isnan(r.x[v]) || r.x[v] == INFINITY;
        top = fmaxf(top, r.x[v]);
    }
    is_bad = __syncthreads_or(is_bad) != 0;
    top = block_max<THREADS>(top);
    if (is_bad || top == -INFINITY) {
        if (threadIdx.x == 0) {
            out->status = LL_ROW_NAN;
            if (row.target == LL_CUDA_NONE)
                out->n_tokens = 0;
        }
        return;
    }
    float sum = 0.0f;
    for (uint32_t v = threadIdx.x; v < r.n_vocab; v += THREADS)
        sum += __expf(r.x[v] - top);
    const float lse = top + logf(block_sum<THREADS>(sum));

    if (row.target != LL_CUDA_NONE) {
        if (threadIdx.x == 0)
            ext[0] = {row.target, r.x[row.target] - lse};
        if (row.n_top > 0)
            write_top(memory, r, row.n_top, lse, ext + 1);
        return;
    }
    if (row.n_top > 0)
        write_top(memory, r, row.n_top, lse, ext);
    __syncthreads();

    const ll_bias *bias = t.bias + (size_t)row.slot * LL_CUDA_BIAS_MAX;
    const bool bars_end = row.pos - slot.n_prompt < slot.min_tokens;
    const bool is_sparse = slot.n_bias > 0 || (bars_end && slot.n_end > 0);
    if (is_sparse)
        apply_sparse(r, slot, bias, bars_end, raw_bias, raw_end);
    if (slot.has_penalty && t.penalty != nullptr)
        r.penalty = t.penalty + (size_t)row.slot * a.n_vocab;

    uint32_t id = choose(memory, r, slot, row.pos);
    if (id >= a.n_vocab) /* every id is barred: any will do, there must be one */
        id = 0;
    if (threadIdx.x == 0) {
        float raw = r.x[id];
        if (is_sparse)
            for (uint32_t i = 0; i < slot.n_bias; i++)
                if (bias[i].id == id)
                    raw = raw_bias[i];
        if (is_sparse && bars_end) /* barred, and taken all the same: nothing else was left */
            for (uint32_t i = 0; i < slot.n_end; i++)
                if (slot.end[i] == id)
                    raw = raw_end[i];
        out->token[0] = id;
        out->logprob[0] = raw - lse;
        out->status = LL_ROW_OK;
        out->n_tokens = 1;
        t.slots[row.slot].last_token = id;
        if (r.penalty != nullptr)
            count_id(t.penalty + (size_t)row.slot * a.n_vocab + id);
    }
}

extern "C" int ll_cuda_sample_plain(const struct ll_cuda_sample_args *args, cudaStream_t stream)
{
    if (args->n_logits == 0)
        return 0;
    return launch_chained(sample_kernel, args->n_logits, THREADS, 0, stream, *args, *args->tables,
                          (args->n_vocab + 7) / 8 * 8);
}

extern "C" int ll_cuda_sample(const struct ll_cuda_sample_args *args, cudaStream_t stream)
{
    return ll_cuda_sample_cluster_fits(args->n_vocab) ? ll_cuda_sample_cluster(args, stream)
                                                      : ll_cuda_sample_plain(args, stream);
}
