/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/tp_peer.h - parts on several GPUs of one host: checks, connections, a thread a rank.
 *
 * The step thread writes a batch into the one mapped area, posts the step's size to the other
 * ranks' threads and launches rank 0's graph itself; each thread launches its rank's. Rank 0 alone
 * answers. A thread sleeps when nothing was posted for a while.
 *
 *   P1  posted is written by the step thread, taken by the worker; posted - taken <= depth (2)
 *   P2  a worker touches its own part and nothing else after start */
#ifndef KERNELS_CUDA_TP_PEER_H
#define KERNELS_CUDA_TP_PEER_H

#include "kernels/cuda/comm.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/nccl.h"

#include <pthread.h>
#include <stdatomic.h>

#define LL_TP_POSTS 4u

struct ll_tp_worker {
    struct ll_device *part;
    pthread_t thread;
    bool is_started;
    char cpus[128]; /* of the GPU's node, "0-15,32"; "": not known */
    struct ll_cuda_size size[LL_TP_POSTS];
    _Alignas(64) _Atomic uint32_t posted;
    _Atomic uint32_t is_asleep, is_ending;
    _Alignas(64) _Atomic uint32_t taken;
    _Atomic int rc; /* of its first failure */
    struct ll_text error;
};

struct ll_tp_peer {
    struct ll_comm_peer end[LL_CUDA_RANKS_MAX];
    struct { /* of the step being captured, by rank */
        enum ll_sum_form { LL_SUM_ONE_SHOT = 1, LL_SUM_SPLIT, LL_SUM_NCCL } form;
        uint32_t n_sums, n_tokens;
    } step[LL_CUDA_RANKS_MAX];
    struct ll_comm_late *late; /* mapped, [n_ranks] */
    struct ll_nccl nccl;
    struct ll_tp_worker worker[LL_CUDA_RANKS_MAX]; /* 0: none */
};

struct ll_cuda_tp;

/* Are there n GPUs of one kind that reach each other's memory? first: the lowest device. */
int ll_tp_peer_check(uint32_t n, int first, struct ll_text *error);
/* Connections between tp's parts, which are open; then threads. */
int ll_tp_peer_open(struct ll_cuda_tp *tp, struct ll_text *error);
void ll_tp_peer_close(struct ll_cuda_tp *tp);

/* Chooses the form of a step's sums; ids from rank 0. */
int ll_tp_peer_begin(struct ll_cuda_tp *tp, struct ll_device *part, uint32_t n_tokens,
                     uint32_t n_logits, struct ll_text *error);
/* Sum and norm of part rank (args: without widths). */
int ll_tp_peer_norm(struct ll_cuda_tp *tp, struct ll_device *part, struct ll_comm_norm *args,
                    struct ll_text *error);

/* To all ranks but 0; -EIO when one has failed. */
int ll_tp_peer_post(struct ll_cuda_tp *tp, const struct ll_cuda_size *size, struct ll_text *error);
/* Until every rank has launched what was posted: work that the step thread puts onto their streams
 * comes after it then. */
int ll_tp_peer_settle(struct ll_cuda_tp *tp, struct ll_text *error);
/* 0, or what has gone wrong on any rank, in one message. */
int ll_tp_peer_health(struct ll_cuda_tp *tp, struct ll_text *error);

#endif
