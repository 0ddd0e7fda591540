/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/attend_prefill_consume.cuh - the consumers of a prefill block: Q, scores, softmax,
 * values and the output of one item, by each of two warpgroups for its own 64 rows.
 *
 * Named barriers 3 and 4 are the warpgroups' own. Only in code made for sm_90a. */
#ifndef KERNELS_CUDA_ATTEND_PREFILL_CONSUME_CUH
#define KERNELS_CUDA_ATTEND_PREFILL_CONSUME_CUH

#include "kernels/cuda/attend_prefill_sm90.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <bool F16> __device__ static inline uint32_t pack_pair(float low, float high)
{
    if constexpr (F16) {
        const __half2 v = __floats2half2_rn(low, high);
        return *reinterpret_cast<const uint32_t *>(&v);
    } else
        return pack_bf16(low, high);
}

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

#endif
