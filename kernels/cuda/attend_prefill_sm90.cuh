/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/attend_prefill_sm90.cuh - what the producer and the consumers of a prefill block
 * share: its shared memory, the items of work it takes, and the cached tokens of one.
 *
 *   W1  item i is in work[i % 2] from its full barrier to its free one; n_tokens 0 ends the block
 *   W2  the counters of work are zero between kernels: the last block to end clears them */
#ifndef KERNELS_CUDA_ATTEND_PREFILL_SM90_CUH
#define KERNELS_CUDA_ATTEND_PREFILL_SM90_CUH

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

#endif

#endif
