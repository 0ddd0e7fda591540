/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/state.h - what host and kernels share: the batch area, the device slots, results.
 *
 * A step is one graph launch. Its inputs lie in a ring of LL_CUDA_AREAS areas of mapped host
 * memory; the first kernel copies the area that the device's own step counter names into fixed
 * device tables, so the captured graph never changes. The last kernel writes rows and logprobs to
 * the mapped result area of the same number and stores the step's number with system scope, which
 * the step thread polls: no stream synchronisation, no event, no callback.
 *
 *   D1  the host fills area s % AREAS only after result s - AREAS was seen; depth is 2 < AREAS
 *   D2  device slots (last id, sampling parameters, counts) change only in stream order
 *   D3  table entries past the step's counts are "none" (slot UINT32_MAX): kernels skip them */
#ifndef KERNELS_CUDA_STATE_H
#define KERNELS_CUDA_STATE_H

#include "kernels/backend.h"

#define LL_CUDA_AREAS     4u
#define LL_CUDA_NONE      0xffffffffu
#define LL_CUDA_TILE_ROWS 128u /* most (token, head) rows of a prefill attention tile */
/* Query tokens a tile; even, because before 9.0 a block takes half a tile. */
#define LL_CUDA_TILE_TOKENS(n_group) (LL_CUDA_TILE_ROWS / 2 / (n_group) * 2)
#define LL_CUDA_BIAS_MAX  1024u

/* Device slot: a cache of host truth (B2). */
struct ll_cuda_slot {
    uint32_t last_token, n_prompt, choice, n_bias;
    uint64_t seed;
    float temperature, top_p, min_p, repetition, frequency, presence;
    uint32_t top_k, min_tokens, n_end, has_penalty;
    uint32_t end[LL_END_IDS_MAX];
};

struct ll_cuda_init {
    uint32_t slot, reserved;
    struct ll_cuda_slot value;
};

struct ll_cuda_pages {
    uint32_t slot, first, n, offset; /* into page_ids */
};

/* One row of logits to be computed: a sample or a score. */
struct ll_cuda_logit {
    uint32_t token; /* index into the step's tokens; NONE: padding */
    uint32_t slot;
    uint32_t row;    /* row of the batch */
    uint32_t pos;    /* place that the sampled (or scored) token takes in the sequence */
    uint32_t target; /* id to score; NONE: sample */
    uint32_t ext;    /* first entry of ll_ext */
    uint32_t n_top;
    uint32_t reserved;
};

/* A decode row (one query token) and the first of its work items. */
struct ll_cuda_decode {
    uint32_t token, slot, n_kv, first_item;
};

/* A tile of a prefill row: query tokens [token, token + n_tokens) at positions from pos. */
struct ll_cuda_tile {
    uint32_t token, slot, pos, n_tokens;
};

struct ll_cuda_counts {
    uint32_t n_inits, n_page_sets, n_tokens, n_logits, n_decode, n_decode_items, n_tiles, n_rows;
    uint32_t step; /* low bits of the ticket: a wrong area is a bug that shows */
    uint32_t prefill_next, prefill_done; /* device only: tiles taken, blocks done; else 0 */
    uint32_t reserved[5];
};

/* Mapped; written by the last kernel of a step. */
struct ll_cuda_done {
    uint32_t step; /* steps finished: stored last, system-scope release */
    uint32_t reserved;
    uint64_t device_ns[LL_CUDA_AREAS];
};

/* Offsets of one area's arrays, the same for all areas; sizes fixed at open. */
struct ll_cuda_layout {
    uint32_t n_tokens_max, n_rows_max, n_logits_max, n_tiles_max, n_page_ids_max, n_sets_max;
    size_t inits, sets, page_ids, token_id, token_pos, token_slot, logits, decode, tiles, bytes;
    /* results */
    size_t out_rows, out_ext, out_bytes;
    uint32_t n_ext_max, n_items_max;
};

#endif
