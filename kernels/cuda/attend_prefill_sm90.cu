/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/attend_prefill_sm90.cu - attention of a prompt chunk over its cached pages, by
 * wgmma.
 *
 *   out[t, h] = sum_j softmax_j(q[t, h] . k[j] * scale) v[j],  j <= position of t
 *
 * A block has one tile: up to 128 rows, each a (token, head of the KV head's group) pair, r = token
 * * G + head. Two warpgroups of consumers hold 64 rows each; a third brings K and V of 128 cached
 * tokens (two pages) at a time, from the newest back to the first. S = Q K^T and O += P V run on
 * the tensor cores while the other warpgroup does its softmax, P stays in registers.
 *
 *   bf16 cache: boxes of 64 tokens x 64 dims come by the copy engine, swizzled on the way
 *   e4m3 cache: pages come raw; the third warpgroup widens them to fp16 (exact), so Q and P are
 * fp16 too
 *
 * Borders of cached tiles lie at multiples of 128 positions and a tile whose tokens a row does not
 * see changes nothing of it: a row's bits depend neither on the batch nor on where its chunk began.
 * Compute bound: 4 D flops a (query row, cached token). Reference: kernels/cpu; on older GPUs
 * attend_prefill.cu. */
#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/wgmma.cuh"

static constexpr int CHUNK = 2 * TILE;          /* cached tokens a turn */
static constexpr int KV_STAGES = 2;             /* turns in shared memory, K and V each */
static constexpr int RAW_STAGES = 4;            /* e4m3: raw K or V on the way */
static constexpr int PREFILL_THREADS = 3 * 128; /* consumers 0 and 1, producer 2 */
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

struct prefill_barriers {
    uint64_t k_full[KV_STAGES], k_free[KV_STAGES], v_full[KV_STAGES], v_free[KV_STAGES];
    uint64_t raw_full[RAW_STAGES];
};

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

/* ---- producer
 * -----------------------------------------------------------------------------------*/
/* Cached tokens of the tile, newest turn first: turn i is chunk n_turns - 1 - i. */
struct prefill_range {
    const uint32_t *pages;
    uint32_t n_kv, n_turns, head, n_kv_heads;
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
__device__ static inline void produce_bf16(const CUtensorMap *map, const prefill_range &range,
                                           unsigned char *smem, prefill_barriers &bar)
{
    using S = prefill_smem<D, false>;
    uint32_t page[2] = {range.page(0, 0), range.page(0, 1)}, older[2] = {page[0], page[1]};

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
        if (turn < range.n_turns) {
            const uint32_t stage = turn % KV_STAGES, parity = turn / KV_STAGES & 1;
            uint32_t next[2] = {};
            if (turn + 1 < range.n_turns) {
                next[0] = range.page(turn + 1, 0);
                next[1] = range.page(turn + 1, 1);
            }
            barrier_wait(&bar.k_free[stage], parity ^ 1);
            copy(smem + S::K_AT + stage * S::KV, page, 0, &bar.k_full[stage]);
            if (turn > 0) {
                const uint32_t v = (turn - 1) % KV_STAGES;
                barrier_wait(&bar.v_free[v], ((turn - 1) / KV_STAGES & 1) ^ 1);
                copy(smem + S::V_AT + v * S::KV, older, 1, &bar.v_full[v]);
            }
            older[0] = page[0];
            older[1] = page[1];
            page[0] = next[0];
            page[1] = next[1];
        } else {
            const uint32_t v = (turn - 1) % KV_STAGES;
            barrier_wait(&bar.v_free[v], ((turn - 1) / KV_STAGES & 1) ^ 1);
            copy(smem + S::V_AT + v * S::KV, older, 1, &bar.v_full[v]);
        }
    }
}

/* 128 threads. Unit u of the raw ring: K 0, K 1, V 0, K 2, V 1, ..., V n - 1. */
template <int D>
__device__ static inline void produce_e4m3(const unsigned char *kv, const prefill_range &range,
                                           unsigned char *smem, prefill_barriers &bar)
{
    using S = prefill_smem<D, true>;
    const uint32_t thread = threadIdx.x % 128, n_units = 2 * range.n_turns;
    auto is_v = [&](uint32_t u) { return u > 0 && (u % 2 == 0 || u == n_units - 1); };
    auto turn_of = [&](uint32_t u) {
        return u == 0 ? 0 : u == n_units - 1 ? range.n_turns - 1 : is_v(u) ? u / 2 - 1 : u / 2 + 1;
    };
    auto fetch = [&](uint32_t u) {
        if (u >= n_units || thread != 0)
            return;
        const uint32_t slot = u % RAW_STAGES, turn = turn_of(u);
        unsigned char *to = smem + S::RAW_AT + slot * S::RAW;
        barrier_expect(&bar.raw_full[slot], S::RAW);
#pragma unroll
        for (int p = 0; p < 2; p++)
            copy_bulk(to + p * TILE * D, kv + (size_t)range.row(range.page(turn, p), is_v(u)) * D,
                      TILE * D, &bar.raw_full[slot]);
    };
    for (uint32_t u = 0; u < RAW_STAGES; u++)
        fetch(u);
    for (uint32_t u = 0; u < n_units; u++) {
        const uint32_t slot = u % RAW_STAGES, turn = turn_of(u), stage = turn % KV_STAGES;
        const uint32_t parity = turn / KV_STAGES & 1;
        const bool v = is_v(u);
        const unsigned char *raw = smem + S::RAW_AT + slot * S::RAW;
        unsigned char *to = smem + (v ? S::V_AT : S::K_AT) + stage * S::KV;
        const uint32_t n_valid = range.n_kv - range.chunk(turn) * CHUNK;
        barrier_wait(v ? &bar.v_free[stage] : &bar.k_free[stage], parity ^ 1);
        barrier_wait(&bar.raw_full[slot], u / RAW_STAGES & 1);
#pragma unroll 4
        for (int c = thread; c < CHUNK * D / 16; c += 128) {
            const int row = c / (D / 16), column = c % (D / 16), part = column / 4;
            uint4 q = *(const uint4 *)(raw + c * 16);
            if (row >= (int)n_valid)
                q = make_uint4(0, 0, 0, 0);
            const uint32_t word[4] = {q.x, q.y, q.z, q.w};
            uint32_t wide[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(
                    (__nv_fp8x2_storage_t)(word[i / 2] >> (16 * (i & 1))), __NV_E4M3);
                wide[i] = (uint32_t)pair.x | (uint32_t)pair.y << 16;
            }
            /* Parts take turns in which half goes first: eight lanes meet eight banks. */
            unsigned char *line = to + part * CHUNK * 128 + row * 128;
            const int first = column % 4 * 2, odd = part & 1;
            const uint4 low = make_uint4(wide[0], wide[1], wide[2], wide[3]);
            const uint4 high = make_uint4(wide[4], wide[5], wide[6], wide[7]);
            *(uint4 *)(line + (((first + odd) ^ (row & 7)) * 16)) = odd ? high : low;
            *(uint4 *)(line + (((first + 1 - odd) ^ (row & 7)) * 16)) = odd ? low : high;
        }
        fence_async();
        barrier_arrive(v ? &bar.v_full[stage] : &bar.k_full[stage]);
        named_sync(6, 128); /* all have read the raw unit: its place may be filled again */
        fetch(u + RAW_STAGES);
    }
}

/* ---- consumers
 * ------------------------------------------------------------------------------------*/
/* This warpgroup's 64 rows of Q into shared memory; rows past the tile's are zero. */
template <int D, bool F16>
__device__ static inline void load_q_rows(unsigned char *to, const bf16 *q_base, uint32_t first_row,
                                          uint32_t n_rows, uint32_t n_group, uint32_t width)
{
#pragma unroll
    for (int c = threadIdx.x % 128; c < 64 * D / 8; c += 128) {
        const int row = c / (D / 8), chunk = c % (D / 8);
        const uint32_t r = first_row + row;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (r < n_rows)
            x = *(const uint4 *)(q_base + (size_t)(r / n_group) * width + r % n_group * D +
                                 chunk * 8);
        if constexpr (F16) {
            float f[8];
            unpack(*reinterpret_cast<const bf16x8 *>(&x), f);
            uint32_t wide[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                wide[i] = pack_pair<true>(fminf(fmaxf(f[2 * i], -65504.0f), 65504.0f),
                                          fminf(fmaxf(f[2 * i + 1], -65504.0f), 65504.0f));
            x = make_uint4(wide[0], wide[1], wide[2], wide[3]);
        }
        *(uint4 *)(to + chunk / 8 * 64 * 128 + row * 128 + ((chunk % 8) ^ (row & 7)) * 16) = x;
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

/* Turns [from, to): scores of each, values of the one before; both in flight during the softmax. */
template <int D, bool FP8, bool MASKED>
__device__ static inline void
consume(uint32_t from, uint32_t to, const prefill_range &range, prefill_softmax &x, float (&s)[64],
        float (&o)[D / 2], uint32_t (&p)[8][4], uint32_t q, uint32_t smem, prefill_barriers &bar)
{
    using S = prefill_smem<D, FP8>;
    const uint32_t lane = threadIdx.x % 32;

    for (uint32_t turn = from; turn < to; turn++) {
        const uint32_t k = turn % KV_STAGES, v = (turn - 1) % KV_STAGES;
        barrier_wait(&bar.k_full[k], turn / KV_STAGES & 1);
        wgmma_fence();
        issue_scores<D, FP8>(s, q, smem + S::K_AT + k * S::KV);
        barrier_wait(&bar.v_full[v], (turn - 1) / KV_STAGES & 1);
        wgmma_fence();
        issue_values<D, FP8>(o, p, smem + S::V_AT + v * S::KV);
        wgmma_wait<1>();
        wgmma_settle(s);
        if (lane == 0)
            barrier_arrive(&bar.k_free[k]);
        softmax_turn<MASKED>(x, s, range.chunk(turn) * CHUNK + lane % 4 * 2);
        wgmma_wait<0>();
        wgmma_settle(o);
        if (lane == 0)
            barrier_arrive(&bar.v_free[v]);
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

template <int D, bool FP8>
__device__ static inline void
consume_tile(const ll_cuda_tile &tile, const prefill_range &range, const bf16 *q_base,
             bf16 *out_base, uint32_t n_rows, uint32_t n_group, uint32_t width, uint32_t out_width,
             float unit, float out_scale, unsigned char *smem, prefill_barriers &bar)
{
    using S = prefill_smem<D, FP8>;
    const uint32_t group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    unsigned char *q_rows = smem + group * 64 * D * 2;
    const uint32_t q = smem_address(q_rows), base = smem_address(smem);
    prefill_softmax x = {{-INFINITY, -INFINITY}, {}, {}, unit, {}};
    float s[64], o[D / 2] = {};
    uint32_t p[8][4];

#pragma unroll
    for (int r = 0; r < 2; r++) {
        const uint32_t row = group * 64 + warp * 16 + lane / 4 + r * 8;
        x.limit[r] = row < n_rows ? tile.pos + row / n_group + 1 : 0;
    }
    load_q_rows<D, FP8>(q_rows, q_base, group * 64, n_rows, n_group, width);
    fence_async();
    named_sync(3 + group, 128);

    barrier_wait(&bar.k_full[0], 0);
    wgmma_fence();
    issue_scores<D, FP8>(s, q, base + S::K_AT);
    wgmma_wait<0>();
    wgmma_settle(s);
    if (lane == 0)
        barrier_arrive(&bar.k_free[0]);
    softmax_turn<true>(x, s, range.chunk(0) * CHUNK + lane % 4 * 2);
    pack_probabilities<FP8>(p, s);
    if (!FP8 && range.n_kv % CHUNK != 0) {
        barrier_wait(&bar.v_full[0], 0);
        zero_tail<D>(smem + S::V_AT, range.n_kv % CHUNK);
    }
    /* Chunks that end at or before the first row's limit need no mask. */
    const uint32_t n_masked = max(1u, range.n_turns - (tile.pos + 1) / CHUNK);
    consume<D, FP8, true>(1, n_masked, range, x, s, o, p, q, base, bar);
    consume<D, FP8, false>(n_masked, range.n_turns, range, x, s, o, p, q, base, bar);

    const uint32_t last = range.n_turns - 1, v = last % KV_STAGES;
    barrier_wait(&bar.v_full[v], last / KV_STAGES & 1);
    wgmma_fence();
    issue_values<D, FP8>(o, p, base + S::V_AT + v * S::KV);
    wgmma_wait<0>();
    wgmma_settle(o);

    /* Through Q's place, so that whole lines go out. */
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
            *(uint32_t *)(q_rows + n / 8 * 64 * 128 + row * 128 + ((n % 8) ^ (row & 7)) * 16 +
                          lane % 4 * 4) =
                pack_bf16(o[4 * n + 2 * r] * inverse[r], o[4 * n + 2 * r + 1] * inverse[r]);
        }
    named_sync(3 + group, 128);
    for (int c = threadIdx.x % 128; c < 64 * D / 8; c += 128) {
        const uint32_t row = c / (D / 8), chunk = c % (D / 8), r = group * 64 + row;
        if (r < n_rows)
            *(uint4 *)(out_base + (size_t)(r / n_group) * out_width + r % n_group * D + chunk * 8) =
                *(const uint4 *)(q_rows + chunk / 8 * 64 * 128 + row * 128 +
                                 ((chunk % 8) ^ (row & 7)) * 16);
    }
}
#endif

template <int D, bool FP8>
__global__ void __launch_bounds__(PREFILL_THREADS, 1)
    prefill_sm90_kernel(const __grid_constant__ CUtensorMap map, const ll_cuda_tables t,
                        const bf16 *__restrict__ qkv, const unsigned char *kv,
                        const float *__restrict__ kv_scale, bf16 *__restrict__ out,
                        uint32_t n_heads, uint32_t n_kv_heads, float scale)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char shared[];
    __shared__ prefill_barriers bar;
    pdl_wait();
    const uint32_t n_tiles = t.counts->n_tiles, index = blockIdx.x / n_kv_heads;
    if (index >= n_tiles)
        return;
    /* The last tiles see the most cached tokens: they start first. */
    const ll_cuda_tile tile = t.tiles[n_tiles - 1 - index];
    const uint32_t head = blockIdx.x % n_kv_heads, n_group = n_heads / n_kv_heads;
    const uint32_t n_kv = tile.pos + tile.n_tokens;
    const prefill_range range = {t.page_table + (size_t)tile.slot * t.pages_per_seq, n_kv,
                                 (n_kv + CHUNK - 1) / CHUNK, head, n_kv_heads};
    unsigned char *smem = shared + (1024 - (smem_address(shared) & 1023)) % 1024;

    if (threadIdx.x == 0) {
        for (int i = 0; i < KV_STAGES; i++) {
            barrier_init(&bar.k_full[i], FP8 ? 128 : 1);
            barrier_init(&bar.v_full[i], FP8 ? 128 : 1);
            barrier_init(&bar.k_free[i], 8); /* a lane of each consumer warp */
            barrier_init(&bar.v_free[i], 8);
        }
        for (int i = 0; i < RAW_STAGES; i++)
            barrier_init(&bar.raw_full[i], 1);
        barrier_init_done();
    }
    __syncthreads();

    /* From lane 0, so that the compiler sees that a warp goes one way. */
    const uint32_t group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (group == 2) {
        if constexpr (FP8) {
            registers_give<72>();
            produce_e4m3<D>(kv, range, smem, bar);
        } else {
            registers_give<24>();
            if (threadIdx.x == 256)
                produce_bf16<D>(&map, range, smem, bar);
        }
    } else {
        registers_take<FP8 ? 216 : 240>();
        const uint32_t width = (n_heads + 2 * n_kv_heads) * D;
        consume_tile<D, FP8>(tile, range, qkv + (size_t)tile.token * width + head * n_group * D,
                             out + ((size_t)tile.token * n_heads + head * n_group) * D,
                             tile.n_tokens * n_group, n_group, width, n_heads * D,
                             scale * LOG2E * scale_of<FP8>(kv_scale, head),
                             scale_of<FP8>(kv_scale, n_kv_heads + head), smem, bar);
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

template <int D, bool FP8>
static int launch(const struct ll_cuda_attend_args *a, cudaStream_t stream)
{
    constexpr int BYTES = prefill_smem<D, FP8>::BYTES;
    auto kernel = prefill_sm90_kernel<D, FP8>;
    CUtensorMap map = {};

    if (!FP8 && make_map(&map, a) < 0)
        return -EIO;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES) !=
        cudaSuccess)
        return -EIO;
    return launch_chained(kernel, a->n_tiles * a->n_kv_heads, PREFILL_THREADS, BYTES, stream, map,
                          *a->tables, (const bf16 *)a->qkv, (const unsigned char *)a->kv,
                          a->kv_scale, (bf16 *)a->out, a->n_heads, a->n_kv_heads, a->scale);
}

extern "C" int ll_cuda_attend_prefill_sm90(const struct ll_cuda_attend_args *a, cudaStream_t stream)
{
    if (a->head_dim == 128)
        return a->is_kv_fp8 ? launch<128, true>(a, stream) : launch<128, false>(a, stream);
    return a->is_kv_fp8 ? launch<64, true>(a, stream) : launch<64, false>(a, stream);
}
