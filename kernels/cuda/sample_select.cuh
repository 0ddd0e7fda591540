/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/sample_select.cuh - the end of a filter's prefix, found by a cluster of blocks that
 * holds a row of values in its shared memory.
 *
 * By narrowing: count (top-k) or add up (top-p) what falls into each of 2048 bins that follow the
 * order of ids, find the bin in which the target is reached, and look at that bin's ids alone. Bins
 * are even steps below the largest value first, which leaves a handful of ids of any row that a
 * model makes; where too many share a bin (equal values, a long tail) the next bins are the next
 * bits of the order itself, value and then id, until at the last a bin has one id. The handful is
 * exchanged and ranked by every block.
 *
 *   C1  blocks of a cluster decide alike: from numbers that all of them hold, never from their own
 *   C2  what a block writes into another's memory is read there after the next cluster barrier
 *   C3  the split of a row depends on V alone, so a row's sums have the same bits in any batch */
#ifndef KERNELS_CUDA_SAMPLE_SELECT_CUH
#define KERNELS_CUDA_SAMPLE_SELECT_CUH

#include "kernels/cuda/sample.cuh"

static constexpr int THREADS = 512;
static constexpr uint32_t CTAS = 8; /* the largest portable cluster */
static constexpr uint32_t BINS = 2048, GROUPS = 64, GROUP_BINS = BINS / GROUPS;
static constexpr uint32_t SHARED_IDS = 64; /* of a bin, that a block gives to the others */
static constexpr uint32_t LISTED = 2048;   /* ids of a prefix that a block remembers */

/* Of a part of the row; values as keys, which one instruction compares over a warp. */
struct part_stats {
    uint32_t top, low, is_bad, top_id; /* raw */
    float sum;                         /* of e^(x - top) */
    uint32_t y_top, y_low, y_id;       /* after steps 2 to 5 */
};

/* A block's part of the row: values x[0 .. n) of ids first + i, of which only those listed count.
 */
struct row_part {
    uint32_t first, n, n_vocab, rank, is_listed, top_id;
    float scale, top, per_step; /* bins of level 0: (top - x) * per_step */
};

/* A block's shared memory; the values of its part follow. */
struct cluster_memory {
    struct {
        uint32_t low[BINS], high[BINS];
    } bins;                                 /* what this block has in each bin */
    unsigned long long group[CTAS][GROUPS]; /* what each block has in each group of bins */
    unsigned long long group_sum[GROUPS], bin_sum[GROUP_BINS];
    unsigned long long order[CTAS][SHARED_IDS]; /* the ids of one bin, each block's */
    unsigned long long ids[CTAS * SHARED_IDS], mass[CTAS * SHARED_IDS]; /* in one piece */
    unsigned long long best[CTAS], top[CTAS][LL_EXT_TOP_MAX];
    best_id warp_best[THREADS / 32];
    part_stats part[CTAS], warp_part[THREADS / 32];
    uint32_t n_top[CTAS], n_shared[CTAS], n_own, n_list;
    row_part s;
    float lse;
    prefix cut;
    ll_cuda_slot slot;
    ll_cuda_logit row;
    uint32_t area;
    uint16_t list[LISTED];
};

static constexpr size_t VALUES_AT = (sizeof(cluster_memory) + 15) / 16 * 16;

#if __CUDA_ARCH__ >= 900
/* By name rather than by argument: the compiler then knows that it is shared memory. */
__device__ static inline cluster_memory &memory()
{
    extern __shared__ __align__(16) unsigned char shared[];
    return *reinterpret_cast<cluster_memory *>(shared);
}
__device__ static inline float *values()
{
    extern __shared__ __align__(16) unsigned char shared[];
    return reinterpret_cast<float *>(shared + VALUES_AT);
}

__device__ static inline uint32_t cluster_rank()
{
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* The same place in another block's shared memory. */
__device__ static inline uint32_t address_at(const void *p, uint32_t rank)
{
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(smem_address(p)), "r"(rank));
    return there;
}
__device__ static inline uint32_t load_at(const uint32_t *p, uint32_t rank)
{
    uint32_t v;
    asm volatile("ld.shared::cluster.u32 %0, [%1];"
                 : "=r"(v)
                 : "r"(address_at(p, rank))
                 : "memory");
    return v;
}
__device__ static inline void store_at(uint32_t *p, uint32_t rank, uint32_t v)
{
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address_at(p, rank)), "r"(v) : "memory");
}
__device__ static inline void store_at(float *p, uint32_t rank, float v)
{
    store_at(reinterpret_cast<uint32_t *>(p), rank, __float_as_uint(v));
}
__device__ static inline void store_at(unsigned long long *p, uint32_t rank, unsigned long long v)
{
    asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(address_at(p, rank)), "l"(v) : "memory");
}

__device__ static inline void cluster_arrive()
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ static inline void cluster_wait()
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ static inline void cluster_sync()
{
    cluster_arrive();
    cluster_wait();
}

__device__ static inline float value_at(float x)
{
    return __fmul_rn(x, memory().s.scale);
}

/* Even steps from top down to low; below 32 (e^-32 weighs nothing in 2^-40) one bin. */
__device__ static inline float steps_of(float top, float low)
{
    const float range = fminf(fmaxf(top - low, 1e-30f), 32.0f); /* low may be -inf */
    return (float)(BINS - 1) / range;
}

__device__ static inline uint32_t step_of(float x)
{
    const row_part &s = memory().s;
    return min(__float2uint_rz((s.top - x) * s.per_step), BINS - 1);
}

/* The order of ids as one rising integer. */
__device__ static inline unsigned long long order_of(uint32_t key, uint32_t id)
{
    return (unsigned long long)~key << 32 | id;
}

/* The ids still in question: all, or those in bin `step` of the even steps whose order begins with
 * `high`, down to bit `from`; their bins are the next bits down to bit `shift`. */
struct narrowed {
    uint32_t step, from, shift; /* from 65: all; 64: no bit of the order is settled yet */
    unsigned long long high;
};

/* Bin of an id, 0 for those that come first; BINS: not in question. */
__device__ static inline uint32_t bin_of(const narrowed &at, float x, uint32_t key, uint32_t id)
{
    const uint32_t step = step_of(x);

    if (at.from > 64)
        return step;
    const unsigned long long order = order_of(key, id);
    const bool is_one = step == at.step && (at.from == 64 || order >> at.from == at.high);
    return is_one ? (uint32_t)(order >> at.shift) & (BINS - 1) : BINS;
}

/* Into that bin: bits 63..53, 52..42, 41..31, 19..9 (ids have less than 20), 8..0. */
__device__ static inline void narrow(narrowed &at, uint32_t bin)
{
    if (at.from > 64) {
        at = {bin, 64, 53, 0};
        return;
    }
    const uint32_t width = at.from - at.shift;
    at.high = at.high << width | bin;
    at.from = at.shift;
    at.shift = at.from > 31 ? at.from - 11 : at.from == 31 ? 9 : 0;
}

/* bins[bin] += m, in two words: whoever makes a carry sees it. */
__device__ static inline void add_mass(uint32_t bin, unsigned long long mass)
{
    cluster_memory &m = memory();
    const uint32_t low = (uint32_t)mass, before = atomicAdd(&m.bins.low[bin], low);
    const uint32_t high = (uint32_t)(mass >> 32) + (before + low < low);

    if (high != 0)
        atomicAdd(&m.bins.high[bin], high);
}

/* f(is_there, x, i) for all values of this block that count, by all lanes of a warp together. */
template <class Visit> __device__ static inline void visit(const Visit &f)
{
    const cluster_memory &m = memory();

    if (m.s.is_listed) {
        const uint32_t n = m.n_list;
#pragma unroll 1
        for (uint32_t base = 0; base < n; base += THREADS) {
            const uint32_t j = base + threadIdx.x, i = j < n ? m.list[j] : 0;
            f(j < n, value_at(values()[i]), i);
        }
        return;
    }
    const uint32_t n = m.s.n;
#pragma unroll 1
    for (uint32_t base = 0; base * 4 < n; base += THREADS) {
        const uint32_t q = base + threadIdx.x;
        const float4 v = reinterpret_cast<const float4 *>(values())[q * 4 < n ? q : 0];
        f(q * 4 < n, value_at(v.x), q * 4);
        f(q * 4 + 1 < n, value_at(v.y), q * 4 + 1);
        f(q * 4 + 2 < n, value_at(v.z), q * 4 + 2);
        f(q * 4 + 3 < n, value_at(v.w), q * 4 + 3);
    }
}

/* Counts or weighs this block's ids in question into its bins, and tells every block what its
 * groups of bins have. */
__device__ static inline void fill_bins(const narrowed &at, const prefix &within, bool is_mass)
{
    cluster_memory &m = memory();
    const uint32_t first = m.s.first;

    for (uint32_t i = threadIdx.x; i < (is_mass ? 2 * BINS : BINS) / 4; i += THREADS)
        reinterpret_cast<uint4 *>(m.bins.low)[i] = make_uint4(0, 0, 0, 0); /* high follows low */
    __syncthreads();
    if (is_mass)
        visit([&](bool is_there, float x, uint32_t i) {
            const uint32_t key = key_of(x);
            const uint32_t bin =
                is_there && is_in(within, key, first + i) ? bin_of(at, x, key, first + i) : BINS;
            unsigned long long mass = bin < BINS ? mass_of(x, m.s.top) : 0;
            /* Equal values meet in one bin: a warp of them adds once. */
            if (__all_sync(~0u, bin == __shfl_sync(~0u, bin, 0))) {
#pragma unroll
                for (int d = 16; d > 0; d >>= 1)
                    mass += __shfl_xor_sync(~0u, mass, d);
                mass = threadIdx.x % 32 == 0 ? mass : 0;
            }
            if (mass != 0)
                add_mass(bin, mass);
        });
    else
        visit([&](bool is_there, float x, uint32_t i) {
            const uint32_t key = key_of(x);
            const uint32_t bin =
                is_there && is_in(within, key, first + i) ? bin_of(at, x, key, first + i) : BINS;
            if (bin < BINS)
                atomicAdd(&m.bins.low[bin], 1);
        });
    __syncthreads();
    static_assert(THREADS * 4 == BINS && GROUP_BINS == 32,
                  "four bins a thread, eight threads a group");
    const uint4 low = reinterpret_cast<const uint4 *>(m.bins.low)[threadIdx.x];
    unsigned long long sum = (unsigned long long)low.x + low.y + low.z + low.w;
    if (is_mass) {
        const uint4 high = reinterpret_cast<const uint4 *>(m.bins.high)[threadIdx.x];
        sum += ((unsigned long long)high.x + high.y + high.z + high.w) << 32;
    }
#pragma unroll
    for (int d = 1; d < 8; d <<= 1)
        sum += __shfl_xor_sync(~0u, sum, d);
    store_at(&m.group[m.s.rank][threadIdx.x / 8], threadIdx.x % CTAS, sum);
    cluster_sync();
}

/* Of N sums in the warp's lanes, N / 32 in each: the one in which `above` plus those before it
 * reaches the target; N where none does. above becomes what comes before it. */
template <uint32_t EACH>
__device__ static inline uint32_t crossing(const unsigned long long *sums, uint64_t target,
                                           unsigned long long &above)
{
    const uint32_t lane = threadIdx.x % 32;
    unsigned long long mine[EACH], sum = 0;

#pragma unroll
    for (uint32_t i = 0; i < EACH; i++)
        sum += mine[i] = sums[lane * EACH + i];
    unsigned long long before = sum;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
        const unsigned long long other = __shfl_up_sync(~0u, before, d);
        before += lane >= (uint32_t)d ? other : 0;
    }
    before += above - sum;
    const uint32_t hit = __ballot_sync(~0u, before < target && before + sum >= target);
    if (hit == 0)
        return 32 * EACH;
    uint32_t at = lane * EACH;
#pragma unroll
    for (uint32_t i = 0; i + 1 < EACH; i++)
        if (at == lane * EACH + i && before + mine[i] < target) {
            before += mine[i];
            at++;
        }
    const int winner = __ffs((int)hit) - 1;
    above = __shfl_sync(~0u, before, winner);
    return __shfl_sync(~0u, at, winner);
}

/* Finds the bin in which `above` plus what the row's bins hold reaches the target, and what comes
 * before it; BINS: it is not reached. top_p >= 0: the target is that share of all bins' sum. */
__device__ static inline uint32_t find_crossing(unsigned long long &above, uint64_t &target,
                                                float top_p, bool is_mass)
{
    cluster_memory &m = memory();
    const uint32_t place = threadIdx.x / 8, rank = threadIdx.x % CTAS;
    unsigned long long sum = m.group[rank][place];

    static_assert(CTAS == 8 && THREADS == 8 * GROUPS, "eight threads a group, one a block");
#pragma unroll
    for (int d = 1; d < 8; d <<= 1)
        sum += __shfl_xor_sync(~0u, sum, d);
    if (rank == 0)
        m.group_sum[place] = sum;
    __syncthreads();
    if (top_p >= 0.0f) {
        unsigned long long total =
            m.group_sum[threadIdx.x % 32] + m.group_sum[threadIdx.x % 32 + 32];
#pragma unroll
        for (int d = 1; d < 32; d <<= 1)
            total += __shfl_xor_sync(~0u, total, d);
        target = mass_target(top_p, total);
    }
    const uint32_t group = crossing<GROUPS / 32>(m.group_sum, target, above);
    if (group == GROUPS)
        return BINS;
    /* The bins of one group alone, from every block's memory: they stay until the next barrier. */
    if (place < GROUP_BINS) {
        const uint32_t bin = group * GROUP_BINS + place;
        sum = load_at(&m.bins.low[bin], rank);
        if (is_mass)
            sum += (unsigned long long)load_at(&m.bins.high[bin], rank) << 32;
#pragma unroll
        for (int d = 1; d < 8; d <<= 1)
            sum += __shfl_xor_sync(~0u, sum, d);
        if (rank == 0)
            m.bin_sum[place] = sum;
    }
    __syncthreads();
    return group * GROUP_BINS + crossing<1>(m.bin_sum, target, above);
}

/* Lists this block's ids down to the bin of the even steps and gives every block those in it. */
__device__ static inline void gather_bin(const narrowed &at, const prefix &within, uint32_t bin)
{
    cluster_memory &m = memory();
    const bool makes_list = at.from > 64 && !m.s.is_listed;
    const uint32_t first = m.s.first;

    if (threadIdx.x == 0) {
        m.n_own = 0;
        if (makes_list)
            m.n_list = 0;
    }
    __syncthreads();
    visit([&](bool is_there, float x, uint32_t i) {
        const uint32_t key = key_of(x);
        const uint32_t b =
            is_there && is_in(within, key, first + i) ? bin_of(at, x, key, first + i) : BINS;
        if (b > bin || (b < bin && !makes_list))
            return;
        if (makes_list) {
            const uint32_t k = atomicAdd(&m.n_list, 1);
            if (k < LISTED)
                m.list[k] = (uint16_t)i;
        }
        if (b == bin) {
            const uint32_t k = atomicAdd(&m.n_own, 1);
#pragma unroll 1
            for (uint32_t r = 0; r < CTAS && k < SHARED_IDS; r++)
                store_at(&m.order[m.s.rank][k], r, order_of(key, first + i));
        }
    });
    __syncthreads();
    if (threadIdx.x < CTAS)
        store_at(&m.n_shared[m.s.rank], threadIdx.x, m.n_own);
    if (threadIdx.x == 0 && makes_list)
        m.s.is_listed = m.n_list <= LISTED;
    cluster_sync();
}

/* Ranks the ids of the bin and ends the prefix at the one that reaches the target. */
__device__ static inline prefix cut_bin(unsigned long long above, uint64_t target, bool is_mass)
{
    cluster_memory &m = memory();
    uint32_t n = 0;

    static_assert(SHARED_IDS * CTAS == THREADS, "one id a thread");
    const uint32_t rank = threadIdx.x / SHARED_IDS, k = threadIdx.x % SHARED_IDS;
#pragma unroll
    for (uint32_t r = 0; r < CTAS; r++) {
        const uint32_t n_rank = m.n_shared[r];
        if (r == rank && k < n_rank) {
            const unsigned long long order = m.order[r][k];
            m.ids[n + k] = order;
            m.mass[n + k] = is_mass ? mass_of(value_of(~(uint32_t)(order >> 32)), m.s.top) : 1;
        }
        n += n_rank;
    }
    __syncthreads();
    /* Eight lanes an id. */
#pragma unroll 1
    for (uint32_t base = 0; base < n; base += THREADS / 8) {
        const uint32_t j = base + threadIdx.x / 8;
        const unsigned long long order = j < n ? m.ids[j] : 0;
        unsigned long long before = 0;
#pragma unroll 2
        for (uint32_t i = threadIdx.x % 8; i < n; i += 8)
            before += m.ids[i] < order ? m.mass[i] : 0;
#pragma unroll
        for (int d = 1; d < 8; d <<= 1)
            before += __shfl_xor_sync(~0u, before, d);
        before += above;
        if (j < n && threadIdx.x % 8 == 0 && before < target && before + m.mass[j] >= target)
            m.cut = {~(uint32_t)(order >> 32), (uint32_t)order};
    }
    __syncthreads();
    return m.cut;
}

/* The shortest prefix of `within` that holds `target` ids or, with top_p >= 0, that share of its
 * mass; all of it where there is less. All threads of the cluster call it. */
__device__ static inline prefix select_prefix(prefix within, uint64_t target, float top_p)
{
    narrowed at = {0, 65, 0, 0};
    unsigned long long above = 0;
    const bool is_mass = top_p >= 0.0f;

    for (;;) {
        fill_bins(at, within, is_mass);
        const uint32_t bin = find_crossing(above, target, at.from > 64 ? top_p : -1.0f, is_mass);
        if (bin == BINS) {
            cluster_sync(); /* all have read what the next selection writes */
            return within;
        }
        gather_bin(at, within, bin);
        bool fits = true;
        for (uint32_t r = 0; r < CTAS; r++)
            fits &= memory().n_shared[r] <= SHARED_IDS;
        if (fits)
            return cut_bin(above, target, is_mass);
        narrow(at, bin);
    }
}
#endif

#endif
