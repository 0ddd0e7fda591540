/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/tp.h - one model in N parts (tensor parallel), each a struct ll_device.
 *
 * The runtime holds rank 0's; its tp leads to the others. Forms:
 *   peer      each part on a GPU of its own, with a thread of its own (tp_peer.h)
 *   lockstep  all parts on one GPU: rank 0's stream, tables and graphs run them all (tests)
 *   shard     rank 0's part alone; what the others would send is taken from its own buffers, so a
 *             step costs what it costs beside N - 1 GPUs but for the links, and its text means
 *             nothing (--tp-shard-only, for measurements)
 * What has the same name without _tp_ does it for one part; a device in one piece goes straight
 * there. */
#ifndef KERNELS_CUDA_TP_H
#define KERNELS_CUDA_TP_H

#include "kernels/cuda/comm.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/tp_peer.h"

#define LL_TP_TICKETS 64u
#define LL_TP_BOUNCE  (8u << 20)

enum ll_cuda_tp_form { LL_TP_PEER = 1, LL_TP_LOCKSTEP, LL_TP_SHARD };

struct ll_cuda_tp {
    enum ll_cuda_tp_form form;
    uint32_t n_parts; /* of the model */
    uint32_t n_held;  /* of them by this process: all, or 1 (shard) */
    struct ll_model_shape whole;
    struct ll_device *part[LL_CUDA_RANKS_MAX];
    struct ll_tp_peer *peer; /* that form's */

    /* Each stands for one of every part. Feeds and page copies come from two threads (B9). */
    struct ll_cuda_tp_tickets {
        int64_t n;
        int64_t of[LL_TP_TICKETS][LL_CUDA_RANKS_MAX];
    } feeds, copies;

    /* Columns of a piece, gathered for a part; a half is free when its last feed is done. */
    unsigned char *bounce[2];
    struct ll_device *bounce_part[2];
    uint64_t bounce_ticket[2];
    uint32_t next_bounce;
};

/* cuda_step.c: the step goes to the other ranks, too; all of them have launched what went
 * before; what ails any of them. */
int ll_cuda_tp_post(struct ll_device *d, const struct ll_cuda_size *size, struct ll_text *error);
int ll_cuda_tp_settle(struct ll_device *d, struct ll_text *error);
int ll_cuda_tp_health(struct ll_device *d, struct ll_text *error);

/* cuda_graph.c's forward pass: places of a sum, each before the named product's norm. */
enum ll_tp_place { LL_TP_FIRST, LL_TP_ATTN, LL_TP_FFN, LL_TP_LAST };

/* Parts that this one's stream runs, itself the 0th; all but 0 are led. */
uint32_t ll_cuda_tp_led(const struct ll_device *d);
struct ll_device *ll_cuda_tp_part(struct ll_device *d, uint32_t i);
/* Begins the sums of a step: each part's rows of the embedding into its delta, zeros where another
 * has them. */
int ll_cuda_tp_embed(struct ll_device *d, uint32_t n_tokens, uint32_t n_logits, uint32_t weights,
                     struct ll_text *error);
/* args without its widths. */
int ll_cuda_tp_norm(struct ll_device *d, struct ll_comm_norm *args, struct ll_text *error);
/* All parts' logits into rank 0's. */
int ll_cuda_tp_logits(struct ll_device *d, uint32_t n_logits, struct ll_text *error);

/* GPU of a part, counted from the first. */
int ll_cuda_tp_gpu(const struct ll_cuda_tp *tp, uint32_t rank);
/* Parts that have page tables of their own; 1 for a device in one piece. */
uint32_t ll_cuda_tp_tables(const struct ll_device *d);

int ll_cuda_tp_open(struct ll_device **out, const struct ll_backend_options *options,
                    const struct ll_model_shape *shape, struct ll_backend_caps *caps,
                    struct ll_text *error);
void ll_cuda_tp_close(struct ll_device *d);
int ll_cuda_tp_begin(struct ll_device *d, uint32_t weights, struct ll_text *error);
int ll_cuda_tp_want(struct ll_device *d, const struct ll_tensor *tensor, struct ll_span *spans,
                    uint32_t n_max, struct ll_text *error);
int ll_cuda_tp_feed(struct ll_device *d, uint32_t weights, const struct ll_tensor *tensor,
                    uint32_t rank, uint64_t offset, const void *data, size_t n_bytes,
                    uint64_t *ticket, struct ll_text *error);
int ll_cuda_tp_fed(struct ll_device *d, uint64_t ticket, struct ll_text *error);
int ll_cuda_tp_seal(struct ll_device *d, uint32_t weights, struct ll_text *error);
int64_t ll_cuda_tp_copy(struct ll_device *d, const struct ll_copy *list, uint32_t n,
                        struct ll_text *error);
int ll_cuda_tp_copied(struct ll_device *d, int64_t ticket, struct ll_text *error);

#endif
