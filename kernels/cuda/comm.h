/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/comm.h - what parts of one model tell each other: launchers, as ops.h.
 *
 * Products on slices give partial sums. Every all-reduce of the model is followed by the residual
 * add and a norm, so it is one operation here:
 *
 *   x[t] += sum over ranks of delta[t]  (fp32, rank 0 first),  out[t] = norm(x[t]), e4m3 or bf16
 *
 * Two forms give the same bits:
 *   lockstep  all parts lie on one GPU and one stream runs them: one kernel over N buffers
 *   peer      each part has a GPU of its own and pushes its delta into the others' inboxes
 *
 * An inbox word that has not arrived holds LL_COMM_EMPTY, two bf16 of -0; a sender never sends it
 * (such a pair goes as +0, in the lockstep form too). The receiver puts it back after reading, so a
 * message needs no barrier and no flag. Three buffers:
 *   C1  two calls next to each other never use the same buffer
 *   C2  a rank pushes call k only when all earlier calls are complete on it; so who pushes call k
 *       has the others' push k - 1, which they send after clearing their inbox of call k - 2
 * Every wait is bounded: past the limit it stores who waits for whom, and traps. */
#ifndef KERNELS_CUDA_COMM_H
#define KERNELS_CUDA_COMM_H

#include "kernels/cuda/ops.h"
#include "kernels/cuda/ranks.h"

#define LL_COMM_EMPTY   0x80008000u
#define LL_COMM_BUFFERS 3u
#define LL_COMM_WAIT_NS 1500000000ull /* a rank that fails ends the process within 2 s */

#ifdef __cplusplus
extern "C" {
#endif

struct ll_comm_norm {
    uint32_t n_ranks;                     /* summed up */
    uint32_t n_parts;                     /* held here: written */
    const void *delta[LL_CUDA_RANKS_MAX]; /* [T, E] bf16 of each rank; peer: [0], its own */
    void *x[LL_CUDA_RANKS_MAX];           /* [T, E] of each part held */
    void *out[LL_CUDA_RANKS_MAX];
    float *scale[LL_CUDA_RANKS_MAX]; /* NULL: out is bf16 */
    const void *weight;
    const struct ll_cuda_logit *rows; /* NULL, or the tokens to take; x stays as it is then */
    uint32_t n_rows, n_embd;
    float eps, bound; /* bound: of the largest magnitude that e4m3 is scaled for */
    bool sets_x; /* the first of a step: x = sum (the embedding, of which one rank has the row) */
};
int ll_comm_norm_lockstep(const struct ll_comm_norm *args, cudaStream_t stream);

/* Mapped host memory, one a rank: a wait of its that ran out. */
struct ll_comm_late {
    uint32_t is_set, rank, peer, what; /* what: LL_COMM_... */
};
enum { LL_COMM_SUM = 1, LL_COMM_IDS = 2, LL_COMM_LOGITS = 3 };

/* One rank's end of the connections to its peers. */
struct ll_comm_peer {
    uint32_t rank, n_ranks;
    uint32_t n_blocks_max;          /* that are surely resident at once */
    bool has_early_next;            /* the next kernel may start while this one waits (PDL) */
    size_t one_shot_vecs;           /* 16-byte words up to which a sum is one-shot */
    size_t inbox_vecs;              /* that a rank may send another in one call, at least as many */
    size_t rows_bytes;              /* finished rows: that fit into one buffer */
    void *inbox[LL_CUDA_RANKS_MAX]; /* of each rank: [BUFFERS][n_ranks][inbox_vecs] */
    void *rows_in[LL_CUDA_RANKS_MAX]; /* of each rank: [BUFFERS][rows_bytes] */
    uint64_t *ids[LL_CUDA_RANKS_MAX]; /* of each rank: [2][n_tokens_max] {step + 1, id} */
    uint32_t n_ids_max;
    uint32_t *logits_arrived; /* rank 0's */
    struct ll_comm_late *late;
    uint64_t wait_ns;
};
bool ll_comm_norm_peer_fits(const struct ll_comm_peer *peer, uint32_t n_rows, uint32_t n_embd);
/* buffer: 0 .. BUFFERS - 1 (C1). */
int ll_comm_norm_peer(const struct ll_comm_norm *args, const struct ll_comm_peer *peer,
                      uint32_t buffer, cudaStream_t stream);
/* The same in two shots, for larger messages: token t belongs to rank t % N, which alone sums it,
 * keeps its x and sends the finished row to the others: 2 (N - 1) / N of the bytes, less for e4m3,
 * instead of N - 1. All sums of a step take this form or none does. rows of the last: n_last. */
bool ll_comm_norm_split_fits(const struct ll_comm_peer *peer, uint32_t n_rows, uint32_t n_last,
                             uint32_t n_embd);
int ll_comm_norm_split(const struct ll_comm_norm *args, const struct ll_comm_peer *peer,
                       uint32_t buffer, cudaStream_t stream);
/* Clears an inbox of `bytes`. */
int ll_comm_inbox_clear(void *inbox, size_t bytes, cudaStream_t stream);

/* Ids that rank 0's device sampled are known to it alone: rank 0 sends all of the step's. */
int ll_comm_ids(const struct ll_comm_peer *peer, const uint32_t *step, uint32_t *token_id,
                uint32_t n_tokens, cudaStream_t stream);

/* out[t] = table[id[t] - first] where this part has the row, else zeros. */
int ll_comm_embed(void *out, const void *table, const uint32_t *token_id, const uint32_t *slot,
                  uint32_t n_tokens, uint32_t n_embd, uint32_t first, uint32_t n_vocab,
                  cudaStream_t stream);

/* Logits of all parts side by side: to[r, v] of width n_all (row length stride) from
 * part p's from[p][r, v - p * n_part], rows of n_part. */
int ll_comm_logits_lockstep(float *to, const float *const *from, uint32_t n_parts, uint32_t n_rows,
                            uint32_t n_part, uint32_t n_all, uint32_t stride, cudaStream_t stream);
/* One rank's share into rank 0's; on rank 0 it ends when all have come. */
int ll_comm_logits_peer(const struct ll_comm_peer *peer, float *to, const float *from,
                        uint32_t n_rows, uint32_t n_part, uint32_t n_all, uint32_t stride,
                        cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
