/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/attend_prefill_produce.cuh - the producer of a prefill block: K and V of its items,
 * turn by turn, into shared memory, ahead of the consumers.
 *
 * bf16: one thread, the copy engine swizzles. e4m3: one thread fetches raw pages, all of the
 * warpgroup widen them. Only in code made for sm_90a. */
#ifndef KERNELS_CUDA_ATTEND_PREFILL_PRODUCE_CUH
#define KERNELS_CUDA_ATTEND_PREFILL_PRODUCE_CUH

#include "kernels/cuda/attend_prefill_sm90.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

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

#endif

#endif
