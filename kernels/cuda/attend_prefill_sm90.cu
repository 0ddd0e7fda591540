/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/attend_prefill_sm90.cu - attention of a prompt chunk over its cached pages, by
 * wgmma.
 *
 *   out[t, h] = sum_j softmax_j(q[t, h] . k[j] * scale) v[j],  j <= position of t
 *
 * A tile is up to 128 rows, each a (token, head of the KV head's group) pair, r = token * G + head.
 * Blocks stay and take tiles from a counter, the longest first. Two warpgroups of consumers hold 64
 * rows each; the producer brings K and V of 128 cached tokens (two pages) at a time, from the
 * newest back to the first, and runs ahead into the next tile. S = Q K^T and O += P V run on the
 * tensor cores while the other warpgroup does its softmax; P stays in registers.
 *
 *   bf16 cache: boxes of 64 tokens x 64 dims come by the copy engine, swizzled on the way
 *   e4m3 cache: pages come raw; the producer's warps widen them to fp16 (exact), so Q and P are
 * fp16 too
 *
 * Borders of cached tiles lie at multiples of 128 positions and a tile whose tokens a row does not
 * see changes nothing of it: a row's bits depend neither on the batch nor on where its chunk began.
 * Compute bound: 4 D flops a (query row, cached token). Reference: kernels/cpu; on older GPUs
 * attend_prefill.cu. */
#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/wgmma.cuh"

static constexpr int CHUNK = 2 * TILE; /* cached tokens a turn */
static constexpr int KV_STAGES = 2;    /* turns in shared memory, K and V each */
static constexpr int RAW_STAGES = 4;   /* e4m3: raw K or V on the way */
static constexpr int WIDENERS = 1;     /* e4m3: warpgroups of the producer */
static constexpr int ROWS = (int)LL_CUDA_TILE_ROWS;
static constexpr int ATOM = 64; /* dims of a 128-byte row */

/* Dynamic shared memory, from the first multiple of 1024 on. A matrix of r rows is D / 64 parts of
 * [r][128 bytes]. */
template <int D, bool FP8> struct prefill_smem {
    static constexpr int Q = ROWS * D * 2;
    static constexpr int KV = CHUNK * D * 2;
    static constexpr int RAW = CHUNK * D;
    static constexpr int K_AT = Q, V_AT = K_AT + KV_STAGES * KV, RAW_AT = V_AT + KV_STAGES * KV;
    static constexpr int BYTES = RAW_AT + (FP8 ? RAW_STAGES * RAW : 0) + 1024;
};

/* What a block does next; n_tokens 0: nothing. */
struct prefill_work {
    ll_cuda_tile tile;
    uint32_t head;
};

struct prefill_shared {
    uint64_t k_full[KV_STAGES], k_free[KV_STAGES], v_full[KV_STAGES], v_free[KV_STAGES];
    uint64_t raw_full[RAW_STAGES], work_full[2], work_free[2];
    prefill_work work[2]; /* item i in i % 2 */
};

static constexpr int prefill_threads(bool is_fp8)
{
    return 256 + 128 * (is_fp8 ? WIDENERS : 1);
}

#if __CUDA_ARCH__ >= 900 && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "for 9.0 this file needs sm_90a"
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ static inline float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

template <bool F16> __device__ static inline uint32_t pack_pair(float low, float high)
{
    if constexpr (F16) {
        const __half2 v = __floats2half2_rn(low, high);
        return *reinterpret_cast<const uint32_t *>(&v);
    } else
        return pack_bf16(low, high);
}

/* ---- work
 * ---------------------------------------------------------------------------------------*/
__device__ static inline prefill_work work_at(const ll_cuda_tables &t, uint32_t index,
                                              uint32_t n_kv_heads)
{
    const uint32_t n_tiles = t.counts->n_tiles;
    prefill_work work = {};

    /* The last tiles see the most cached tokens: they start first. */
    if (index / n_kv_heads < n_tiles)
        work.tile = t.tiles[n_tiles - 1 - index / n_kv_heads];
    work.head = index % n_kv_heads;
    return work;
}

/* A block's first two items are fixed, the second from the far end of a second round, so that sums
 * are even; the rest are taken as they come. */
__device__ static inline uint32_t work_second()
{
    return 2 * gridDim.x - 1 - blockIdx.x;
}
__device__ static inline uint32_t work_take(ll_cuda_counts *counts)
{
    return 2 * gridDim.x + atomicAdd(&counts->prefill_next, 1);
}

/* One thread: tells the block its item i. */
__device__ static inline void work_give(prefill_shared &sh, uint32_t i, const prefill_work &work)
{
    barrier_wait(&sh.work_free[i % 2], (i / 2 & 1) ^ 1);
    sh.work[i % 2] = work;
    barrier_arrive(&sh.work_full[i % 2]);
}

/* A warp. */
__device__ static inline prefill_work work_get(prefill_shared &sh, uint32_t i)
{
    barrier_wait(&sh.work_full[i % 2], i / 2 & 1);
    const prefill_work work = sh.work[i % 2];
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        barrier_arrive(&sh.work_free[i % 2]);
    return work;
}

/* One thread, after the block's last take: the last block of all leaves the counters at zero. */
__device__ static inline void work_end(ll_cuda_counts *counts)
{
    __threadfence();
    if (atomicAdd(&counts->prefill_done, 1) == gridDim.x - 1) {
        counts->prefill_next = 0;
        counts->prefill_done = 0;
    }
}

/* ---- producer
 * -----------------------------------------------------------------------------------*/
/* Cached tokens of the tile, newest turn first: turn i is chunk n_turns - 1 - i. */
struct prefill_range {
    const uint32_t *pages;
    uint32_t n_kv, n_turns, head, n_kv_heads;

    __device__ prefill_range(const ll_cuda_tables &t, const prefill_work &work, uint32_t n)
        : pages(t.page_table + (size_t)work.tile.slot * t.pages_per_seq),
          n_kv(work.tile.pos + work.tile.n_tokens), n_turns((n_kv + CHUNK - 1) / CHUNK),
          head(work.head), n_kv_heads(n)
    {
    }
    __device__ uint32_t chunk(uint32_t turn) const { return n_turns - 1 - turn; }
    /* Page p (0, 1) of a turn; past the end the last one again, which is masked. */
    __device__ uint32_t page(uint32_t turn, uint32_t p) const
    {
        return pages[min(chunk(turn) * 2 + p, (n_kv - 1) / TILE)];
    }
    /* Row of the layer's [rows][D] that a page's K or V begins with. */
    __device__ uint32_t row(uint32_t page, uint32_t which) const
    {
        return ((page * 2 + which) * n_kv_heads + head) * TILE;
    }
};

/* One thread. */
template <int D>
__device__ static inline void produce_bf16(const CUtensorMap *map, const ll_cuda_tables &t,
                                           uint32_t n_kv_heads, unsigned char *smem,
                                           prefill_shared &sh)
{
    using S = prefill_smem<D, false>;
    prefill_work work = work_at(t, blockIdx.x, n_kv_heads);
    prefill_work next = work_at(t, work_second(), n_kv_heads);
    uint32_t at = 0; /* turns of the tiles before */
    uint32_t page[2] = {}, older[2] = {};

    if (work.tile.n_tokens != 0) {
        const prefill_range range(t, work, n_kv_heads);
        page[0] = range.page(0, 0);
        page[1] = range.page(0, 1);
    }
    for (uint32_t item = 0;; item++) {
        work_give(sh, item, work);
        if (work.tile.n_tokens == 0)
            break;
        const uint32_t later = work_take(t.counts);
        const prefill_range range(t, work, n_kv_heads), range_next(t, next, n_kv_heads);

        auto copy = [&](unsigned char *to, const uint32_t(&of)[2], uint32_t which, uint64_t *full) {
            barrier_expect(full, S::KV);
#pragma unroll
            for (int p = 0; p < 2; p++)
#pragma unroll
                for (int part = 0; part < D / ATOM; part++)
                    copy_box(to + part * CHUNK * 128 + p * TILE * 128, map, part * ATOM,
                             range.row(of[p], which), full);
        };
        /* K is wanted a turn before V: K 0, K 1, V 0, K 2, V 1, ... */
        for (uint32_t turn = 0; turn <= range.n_turns; turn++) {
            uint32_t newer[2] = {};
            if (turn + 1 < range.n_turns) {
                newer[0] = range.page(turn + 1, 0);
                newer[1] = range.page(turn + 1, 1);
            } else if (turn + 1 == range.n_turns && next.tile.n_tokens != 0) {
                newer[0] = range_next.page(0, 0);
                newer[1] = range_next.page(0, 1);
            }
            if (turn < range.n_turns) {
                const uint32_t k = (at + turn) % KV_STAGES;
                barrier_wait(&sh.k_free[k], ((at + turn) / KV_STAGES & 1) ^ 1);
                copy(smem + S::K_AT + k * S::KV, page, 0, &sh.k_full[k]);
            }
            if (turn > 0) {
                const uint32_t v = (at + turn - 1) % KV_STAGES;
                barrier_wait(&sh.v_free[v], ((at + turn - 1) / KV_STAGES & 1) ^ 1);
                copy(smem + S::V_AT + v * S::KV, older, 1, &sh.v_full[v]);
            }
            if (turn < range.n_turns) {
                older[0] = page[0];
                older[1] = page[1];
                page[0] = newer[0];
                page[1] = newer[1];
            }
        }
        at += range.n_turns;
        work = next;
        next = work_at(t, later, n_kv_heads);
    }
    work_end(t.counts);
}

__device__ static inline uint32_t widen_pair(uint32_t two)
{
    uint32_t wide;
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.rn.f16x2.e4m3x2 %0, low;\n}"
        : "=r"(wide)
        : "r"(two));
    return wide;
}

/* Rows of raw e4m3 to fp16 parts; rows from n_valid on become zero. */
template <int D>
__device__ static inline void widen_chunk(unsigned char *to, const unsigned char *raw,
                                          uint32_t n_valid)
{
#pragma unroll 4
    for (int c = threadIdx.x - 256; c < CHUNK * D / 16; c += 128 * WIDENERS) {
        const int row = c / (D / 16), column = c % (D / 16), part = column / 4;
        uint4 q = *(const uint4 *)(raw + c * 16);
        if (row >= (int)n_valid)
            q = make_uint4(0, 0, 0, 0);
        const uint4 low = make_uint4(widen_pair(q.x), widen_pair(q.x >> 16), widen_pair(q.y),
                                     widen_pair(q.y >> 16));
        const uint4 high = make_uint4(widen_pair(q.z), widen_pair(q.z >> 16), widen_pair(q.w),
                                      widen_pair(q.w >> 16));
        /* Parts take turns in which half goes first: eight lanes meet eight banks. */
        unsigned char *line = to + part * CHUNK * 128 + row * 128;
        const int first = column % 4 * 2, odd = part & 1;
        *(uint4 *)(line + (((first + odd) ^ (row & 7)) * 16)) = odd ? high : low;
        *(uint4 *)(line + (((first + 1 - odd) ^ (row & 7)) * 16)) = odd ? low : high;
    }
}

/* All threads of the producer. Unit u of a tile's 2 n: K 0, K 1, V 0, K 2, V 1, ..., V n - 1. */
template <int D>
__device__ static inline void produce_e4m3(const unsigned char *kv, const ll_cuda_tables &t,
                                           uint32_t n_kv_heads, unsigned char *smem,
                                           prefill_shared &sh)
{
    using S = prefill_smem<D, true>;
    const bool is_first = threadIdx.x == 256;
    uint32_t at = 0, n_before = 0; /* turns and units of the tiles before */

    prefill_work next = {};

    if (is_first) {
        work_give(sh, 0, work_at(t, blockIdx.x, n_kv_heads));
        next = work_at(t, work_second(), n_kv_heads);
    }
    for (uint32_t item = 0;; item++) {
        const prefill_work work = work_get(sh, item);
        if (work.tile.n_tokens == 0)
            break;
        const prefill_range range(t, work, n_kv_heads);
        const uint32_t n_units = 2 * range.n_turns;
        const uint32_t later = is_first ? work_take(t.counts) : 0;
        auto is_v = [&](uint32_t u) { return u > 0 && (u % 2 == 0 || u == n_units - 1); };
        auto turn_of = [&](uint32_t u) {
            return u == 0             ? 0
                   : u == n_units - 1 ? range.n_turns - 1
                   : is_v(u)          ? u / 2 - 1
                                      : u / 2 + 1;
        };
        auto page_of = [&](uint32_t u, uint32_t p) {
            return is_first && u < n_units ? range.page(turn_of(u), p) : 0;
        };
        auto fetch = [&](uint32_t u, uint32_t page0, uint32_t page1) {
            if (u >= n_units || !is_first)
                return;
            const uint32_t slot = (n_before + u) % RAW_STAGES, page[2] = {page0, page1};
            unsigned char *to = smem + S::RAW_AT + slot * S::RAW;
            barrier_expect(&sh.raw_full[slot], S::RAW);
#pragma unroll
            for (int p = 0; p < 2; p++)
                copy_bulk(to + p * TILE * D, kv + (size_t)range.row(page[p], is_v(u)) * D, TILE * D,
                          &sh.raw_full[slot]);
        };
        for (uint32_t u = 0; u < RAW_STAGES; u++)
            fetch(u, page_of(u, 0), page_of(u, 1));
        for (uint32_t u = 0; u < n_units; u++) {
            const uint32_t slot = (n_before + u) % RAW_STAGES, turn = turn_of(u);
            const uint32_t stage = (at + turn) % KV_STAGES, parity = (at + turn) / KV_STAGES & 1;
            const bool v = is_v(u);
            /* Asked for now, used after the widening. */
            const uint32_t page0 = page_of(u + RAW_STAGES, 0), page1 = page_of(u + RAW_STAGES, 1);
            barrier_wait(v ? &sh.v_free[stage] : &sh.k_free[stage], parity ^ 1);
            barrier_wait(&sh.raw_full[slot], (n_before + u) / RAW_STAGES & 1);
            widen_chunk<D>(smem + (v ? S::V_AT : S::K_AT) + stage * S::KV,
                           smem + S::RAW_AT + slot * S::RAW,
                           range.n_kv - range.chunk(turn) * CHUNK);
            fence_async();
            __syncwarp();
            if (threadIdx.x % 32 == 0)
                barrier_arrive(v ? &sh.v_full[stage] : &sh.k_full[stage]);
            named_sync(6, 128 * WIDENERS); /* all have read the raw unit: its place may be filled */
            fetch(u + RAW_STAGES, page0, page1);
        }
        at += range.n_turns;
        n_before += n_units;
        if (is_first) {
            work_give(sh, item + 1, next);
            next = work_at(t, later, n_kv_heads);
        }
    }
    if (is_first)
        work_end(t.counts);
}

/* ---- consumers
 * ------------------------------------------------------------------------------------*/
/* What all tiles share. */
struct prefill_model {
    const bf16 *qkv;
    bf16 *out;
    const float *kv_scale;
    uint32_t n_heads, n_kv_heads, n_group, inverse; /* ceil(65536 / n_group) */
    float scale;

    /* Row r of a tile: its token and head of the group; exact for 128 rows and 16 heads. */
    __device__ uint32_t token(uint32_t r) const { return r * inverse >> 16; }
    __device__ uint32_t head(uint32_t r) const { return r - token(r) * n_group; }
};

/* 16 bytes c of this warpgroup's 64 rows of Q and of the output: their row, and their place in
 * shared memory. */
template <int D> struct prefill_piece {
    uint32_t row, chunk, at;
    __device__ explicit prefill_piece(uint32_t c)
        : row(c / (D / 8)), chunk(c % (D / 8)),
          at(chunk / 8 * 64 * 128 + row * 128 + ((chunk % 8) ^ (row & 7)) * 16)
    {
    }
};

/* This warpgroup's rows of Q on their way to registers; rows past the tile's are zero. */
template <int D>
__device__ static inline void load_q(uint4 (&x)[D / 16], const prefill_model &model,
                                     const prefill_work &work)
{
    const uint32_t width = (model.n_heads + 2 * model.n_kv_heads) * D;
    const uint32_t n_rows = work.tile.n_tokens * model.n_group;
    const bf16 *from = model.qkv + (size_t)work.tile.token * width + work.head * model.n_group * D;

#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        const prefill_piece<D> piece(threadIdx.x % 128 + i * 128);
        const uint32_t r = threadIdx.x / 128 * 64 + piece.row;
        x[i] = make_uint4(0, 0, 0, 0);
        if (r < n_rows)
            x[i] = *(const uint4 *)(from + (size_t)model.token(r) * width + model.head(r) * D +
                                    piece.chunk * 8);
    }
}

template <int D, bool F16>
__device__ static inline void place_q(unsigned char *to, const uint4 (&x)[D / 16])
{
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint4 y = x[i];
        if constexpr (F16) {
            float f[8];
            uint32_t wide[4];
            unpack(*reinterpret_cast<const bf16x8 *>(&y), f);
#pragma unroll
            for (int k = 0; k < 4; k++)
                wide[k] = pack_pair<true>(fminf(fmaxf(f[2 * k], -65504.0f), 65504.0f),
                                          fminf(fmaxf(f[2 * k + 1], -65504.0f), 65504.0f));
            y = make_uint4(wide[0], wide[1], wide[2], wide[3]);
        }
        *(uint4 *)(to + prefill_piece<D>(threadIdx.x % 128 + i * 128).at) = y;
    }
}

/* s = Q K^T of 128 cached tokens; q, k: shared addresses. */
template <int D, bool F16>
__device__ static inline void issue_scores(float (&s)[64], uint32_t q, uint32_t k)
{
    const uint64_t a = operand(q, 16, 1024), b = operand(k, 16, 1024);
#pragma unroll
    for (int step = 0; step < D / 16; step++)
        wgmma_shared<F16>(s, a + ((step / 4 * 64 * 128 + step % 4 * 32) >> 4),
                          b + ((step / 4 * CHUNK * 128 + step % 4 * 32) >> 4), step > 0);
    wgmma_commit();
}

template <int D, bool F16>
__device__ static inline void issue_values(float (&o)[D / 2], const uint32_t (&p)[8][4], uint32_t v)
{
    const uint64_t b = operand(v, CHUNK * 128, 1024);
#pragma unroll
    for (int step = 0; step < 8; step++)
        wgmma_registers<F16>(o, p[step], b + ((step * 16 * 128) >> 4));
    wgmma_commit();
}

struct prefill_softmax { /* of this thread's two rows */
    float m[2], l[2], keep[2], unit;
    uint32_t limit[2]; /* cached tokens seen */
};

/* s -> exp2(unit s - max); first: the column of s[0]. */
template <bool MASKED>
__device__ static inline void softmax_turn(prefill_softmax &x, float (&s)[64], uint32_t first)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top[2] = {x.m[r], -INFINITY};
#pragma unroll
        for (int n = 0; n < 16; n++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float &e = s[4 * n + 2 * r + c];
                if (MASKED && first + 8 * n + c >= x.limit[r])
                    e = -INFINITY;
                top[c] = fmaxf(top[c], e);
            }
        float m = fmaxf(top[0], top[1]);
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
        /* A row that has seen nothing yet: exp2(-inf - 0) = 0, no NaN. */
        const float base = MASKED && m == -INFINITY ? 0.0f : m * x.unit;
        x.keep[r] = exp2_fast(x.m[r] * x.unit - base);
        x.m[r] = m;
        float sum[2] = {};
#pragma unroll
        for (int n = 0; n < 16; n++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float &e = s[4 * n + 2 * r + c];
                e = exp2_fast(fmaf(e, x.unit, -base));
                sum[c] += e;
            }
        x.l[r] = x.l[r] * x.keep[r] + (sum[0] + sum[1]);
    }
}

template <bool F16>
__device__ static inline void pack_probabilities(uint32_t (&p)[8][4], const float (&s)[64])
{
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            p[i][k] = pack_pair<F16>(s[8 * i + 2 * k], s[8 * i + 2 * k + 1]);
}

/* Turns [from, to): scores of each, values of the one before; both in flight during the softmax.
 * at: turns of the tiles before. */
template <int D, bool FP8, bool MASKED>
__device__ static inline void consume(uint32_t from, uint32_t to, uint32_t at,
                                      const prefill_range &range, prefill_softmax &x,
                                      float (&s)[64], float (&o)[D / 2], uint32_t (&p)[8][4],
                                      uint32_t q, uint32_t smem, prefill_shared &sh)
{
    using S = prefill_smem<D, FP8>;
    const uint32_t lane = threadIdx.x % 32;

    for (uint32_t turn = from; turn < to; turn++) {
        const uint32_t k = (at + turn) % KV_STAGES, v = (at + turn - 1) % KV_STAGES;
        barrier_wait(&sh.k_full[k], (at + turn) / KV_STAGES & 1);
        wgmma_fence();
        issue_scores<D, FP8>(s, q, smem + S::K_AT + k * S::KV);
        barrier_wait(&sh.v_full[v], (at + turn - 1) / KV_STAGES & 1);
        wgmma_fence();
        issue_values<D, FP8>(o, p, smem + S::V_AT + v * S::KV);
        wgmma_wait<1>();
        wgmma_settle(s);
        if (lane == 0)
            barrier_arrive(&sh.k_free[k]);
        softmax_turn<MASKED>(x, s, range.chunk(turn) * CHUNK + lane % 4 * 2);
        wgmma_wait<0>();
        wgmma_settle(o);
        if (lane == 0)
            barrier_arrive(&sh.v_free[v]);
#pragma unroll
        for (int i = 0; i < D / 2; i++)
            o[i] *= x.keep[i / 2 % 2];
        pack_probabilities<FP8>(p, s);
    }
}

/* Zeroes V rows from n_valid on: a probability of 0 times what a page held before may be NaN. Both
 * warpgroups do it, each before its own product. */
template <int D> __device__ static inline void zero_tail(unsigned char *v, uint32_t n_valid)
{
    for (uint32_t c = n_valid * 8 + threadIdx.x % 128; c < CHUNK * 8; c += 128)
#pragma unroll
        for (int part = 0; part < D / ATOM; part++)
            *(uint4 *)(v + part * CHUNK * 128 + c * 16) = make_uint4(0, 0, 0, 0);
    fence_async();
    named_sync(3 + threadIdx.x / 128, 128);
}

/* O / l of this warpgroup's rows, through Q's place, so that whole lines go out. */
template <int D>
__device__ static inline void store_tile(const prefill_model &model, const prefill_work &work,
                                         const prefill_softmax &x, const float (&o)[D / 2],
                                         float out_scale, unsigned char *rows)
{
    const uint32_t group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const uint32_t n_rows = work.tile.n_tokens * model.n_group;
    bf16 *to =
        model.out + ((size_t)work.tile.token * model.n_heads + work.head * model.n_group) * D;
    float inverse[2];

#pragma unroll
    for (int r = 0; r < 2; r++) {
        float l = x.l[r];
        l += __shfl_xor_sync(~0u, l, 1);
        l += __shfl_xor_sync(~0u, l, 2);
        inverse[r] = out_scale / l;
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const uint32_t row = warp * 16 + lane / 4 + r * 8;
            *(uint32_t *)(rows + n / 8 * 64 * 128 + row * 128 + ((n % 8) ^ (row & 7)) * 16 +
                          lane % 4 * 4) =
                pack_bf16(o[4 * n + 2 * r] * inverse[r], o[4 * n + 2 * r + 1] * inverse[r]);
        }
    named_sync(3 + group, 128);
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        const prefill_piece<D> piece(threadIdx.x % 128 + i * 128);
        const uint32_t r = group * 64 + piece.row;
        if (r < n_rows)
            *(uint4 *)(to + ((size_t)model.token(r) * model.n_heads + model.head(r)) * D +
                       piece.chunk * 8) = *(const uint4 *)(rows + piece.at);
    }
    named_sync(3 + group, 128); /* the next tile's Q may come */
}

/* One tile, whose Q is in x; then work and x are the next one's. */
template <int D, bool FP8>
__device__ static inline void
consume_tile(const prefill_model &model, prefill_work &work, uint4 (&q_next)[D / 16], uint32_t item,
             uint32_t at, const prefill_range &range, unsigned char *smem, prefill_shared &sh)
{
    using S = prefill_smem<D, FP8>;
    const uint32_t group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    unsigned char *q_rows = smem + group * 64 * D * 2;
    const uint32_t q = smem_address(q_rows), base = smem_address(smem);
    prefill_softmax x = {{-INFINITY, -INFINITY}, {}, {}, model.scale * LOG2E, {}};
    float out_scale = 1.0f, s[64], o[D / 2] = {};
    uint32_t p[8][4];

    if constexpr (FP8) {
        x.unit *= scale_of<FP8>(model.kv_scale, work.head);
        out_scale = scale_of<FP8>(model.kv_scale, model.n_kv_heads + work.head);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const uint32_t row = group * 64 + warp * 16 + lane / 4 + r * 8;
        x.limit[r] =
            row < work.tile.n_tokens * model.n_group ? work.tile.pos + model.token(row) + 1 : 0;
    }
    if constexpr (FP8) /* there were no registers for it before */
        load_q<D>(q_next, model, work);
    place_q<D, FP8>(q_rows, q_next);
    fence_async();
    named_sync(3 + group, 128);

    const uint32_t first = at % KV_STAGES, parity = at / KV_STAGES & 1;
    barrier_wait(&sh.k_full[first], parity);
    wgmma_fence();
    issue_scores<D, FP8>(s, q, base + S::K_AT + first * S::KV);
    wgmma_wait<0>();
    wgmma_settle(s);
    if (lane == 0)
        barrier_arrive(&sh.k_free[first]);
    softmax_turn<true>(x, s, range.chunk(0) * CHUNK + lane % 4 * 2);
    pack_probabilities<FP8>(p, s);
    if (!FP8 && range.n_kv % CHUNK != 0) {
        barrier_wait(&sh.v_full[first], parity);
        zero_tail<D>(smem + S::V_AT + first * S::KV, range.n_kv % CHUNK);
    }
    /* Chunks that end at or before the first row's limit need no mask. */
    const uint32_t n_masked = max(1u, range.n_turns - (work.tile.pos + 1) / CHUNK);
    consume<D, FP8, true>(1, n_masked, at, range, x, s, o, p, q, base, sh);
    consume<D, FP8, false>(n_masked, range.n_turns, at, range, x, s, o, p, q, base, sh);

    const uint32_t last = at + range.n_turns - 1, v = last % KV_STAGES;
    barrier_wait(&sh.v_full[v], last / KV_STAGES & 1);
    wgmma_fence();
    issue_values<D, FP8>(o, p, base + S::V_AT + v * S::KV);
    const prefill_work done = work;
    work = work_get(sh, item + 1);
    if (!FP8 && work.tile.n_tokens != 0)
        load_q<D>(q_next, model, work);
    wgmma_wait<0>();
    wgmma_settle(o);
    if (lane == 0)
        barrier_arrive(&sh.v_free[v]);
    store_tile<D>(model, done, x, o, out_scale, q_rows);
}
#endif

template <int D, bool FP8>
__global__ void __launch_bounds__(prefill_threads(FP8), 1)
    prefill_sm90_kernel(const __grid_constant__ CUtensorMap map, const ll_cuda_tables t,
                        const bf16 *__restrict__ qkv, const unsigned char *kv,
                        const float *__restrict__ kv_scale, bf16 *__restrict__ out,
                        uint32_t n_heads, uint32_t n_kv_heads, float scale)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char shared[];
    __shared__ prefill_shared sh;
    unsigned char *smem = shared + (1024 - (smem_address(shared) & 1023)) % 1024;

    if (threadIdx.x == 0) {
        for (int i = 0; i < KV_STAGES; i++) {
            barrier_init(&sh.k_full[i], FP8 ? 4 * WIDENERS : 1); /* a lane of each warp */
            barrier_init(&sh.v_full[i], FP8 ? 4 * WIDENERS : 1);
            barrier_init(&sh.k_free[i], 8);
            barrier_init(&sh.v_free[i], 8);
        }
        for (int i = 0; i < RAW_STAGES; i++)
            barrier_init(&sh.raw_full[i], 1);
        for (int i = 0; i < 2; i++) {
            barrier_init(&sh.work_full[i], 1);
            barrier_init(&sh.work_free[i], 8 + (FP8 ? 4 * WIDENERS : 0));
        }
        barrier_init_done();
    }
    __syncthreads();
    pdl_wait();

    /* From lane 0, so that the compiler sees that a warp goes one way. */
    if (__shfl_sync(~0u, threadIdx.x / 128, 0) >= 2) {
        registers_give<FP8 ? 104 : 40>();
        if constexpr (FP8)
            produce_e4m3<D>(kv, t, n_kv_heads, smem, sh);
        else if (threadIdx.x == 256)
            produce_bf16<D>(&map, t, n_kv_heads, smem, sh);
    } else {
        registers_take<FP8 ? 200 : 232>();
        const uint32_t n_group = n_heads / n_kv_heads;
        const prefill_model model = {
            qkv,  out, kv_scale, n_heads, n_kv_heads, n_group, (65536 + n_group - 1) / n_group,
            scale};
        uint4 q[D / 16];
        uint32_t at = 0;
        prefill_work work = work_get(sh, 0);
        if (!FP8 && work.tile.n_tokens != 0)
            load_q<D>(q, model, work);
        for (uint32_t item = 0; work.tile.n_tokens != 0; item++) {
            const prefill_range range(t, work, n_kv_heads);
            consume_tile<D, FP8>(model, work, q, item, at, range, smem, sh);
            at += range.n_turns;
        }
    }
#endif
}

/* ---- launcher
 * ---------------------------------------------------------------------------------------*/
/* The layer's pages as [rows][D], in boxes of 64 x 64. The driver's function is asked of the
 * runtime: no libcuda at link time. */
static int make_map(CUtensorMap *map, const struct ll_cuda_attend_args *a)
{
    typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                  const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                  const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                  CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    static encode_fn encode;
    const cuuint64_t size[2] = {a->head_dim, 1ull << 31}, pitch[1] = {(cuuint64_t)a->head_dim * 2};
    const cuuint32_t box[2] = {ATOM, TILE}, step[2] = {1, 1};

    if (encode == nullptr) {
        void *found = nullptr;
        cudaDriverEntryPointQueryResult result;
        if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                             cudaEnableDefault, &result) != cudaSuccess ||
            result != cudaDriverEntryPointSuccess)
            return -EIO;
        encode = (encode_fn)found;
    }
    return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, a->kv, size, pitch, box, step,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS
               ? 0
               : -EIO;
}

/* One block an SM; fewer where the caller wants a smaller grid. */
static uint32_t n_blocks_most(const struct ll_cuda_attend_args *a)
{
    static uint32_t n_sm; /* one device a process */
    int device = 0, n = 0;

    if (n_sm == 0 && cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device) == cudaSuccess)
        n_sm = (uint32_t)n;
    return a->n_blocks > 0 && a->n_blocks < n_sm ? a->n_blocks : n_sm;
}

template <int D, bool FP8>
static int launch(const struct ll_cuda_attend_args *a, cudaStream_t stream)
{
    constexpr int BYTES = prefill_smem<D, FP8>::BYTES;
    auto kernel = prefill_sm90_kernel<D, FP8>;
    const uint32_t n_work = a->n_tiles * a->n_kv_heads;
    const uint32_t n_most = n_blocks_most(a), n_blocks = n_work < n_most ? n_work : n_most;
    CUtensorMap map = {};

    if (!FP8 && make_map(&map, a) < 0)
        return -EIO;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES) !=
        cudaSuccess)
        return -EIO;
    return launch_chained(kernel, n_blocks, prefill_threads(FP8), BYTES, stream, map, *a->tables,
                          (const bf16 *)a->qkv, (const unsigned char *)a->kv, a->kv_scale,
                          (bf16 *)a->out, a->n_heads, a->n_kv_heads, a->scale);
}

extern "C" int ll_cuda_attend_prefill_sm90(const struct ll_cuda_attend_args *a, cudaStream_t stream)
{
    if (a->head_dim == 128)
        return a->is_kv_fp8 ? launch<128, true>(a, stream) : launch<128, false>(a, stream);
    return a->is_kv_fp8 ? launch<64, true>(a, stream) : launch<64, false>(a, stream);
}
