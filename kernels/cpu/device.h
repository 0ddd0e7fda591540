/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/device.h - the CPU device: what backend.c opens and forward.c computes with.
 *
 *   D1  at most two steps are in flight; step n lives in step[n & 1] until step n + 2 is submitted
 *   D2  the step thread owns what submit reads and writes: page tables, which settings a slot
 *       uses, tickets. A step carries copies of all it needs of them
 *   D3  the running step owns activations, KV pages it names, a slot's last token and position,
 *       and the settings its rows point to. An init writes the slot's other settings, so a step
 *       in flight keeps its own
 *   D4  activations are fp32 in memory; with is_bf16 they hold numbers that bf16 can hold
 *
 * Where bfloat16 rounds (as a bf16 GPU model does): the output of each norm (twice: before and
 * after the weight), of q, k, v, gate, up, o and down, of RoPE (once), of attention (scores,
 * softmax and weights stay fp32), of SwiGLU (once), and the residual stream after each addition.
 * Logits are fp32 sums, not rounded. */
#ifndef KERNELS_CPU_DEVICE_H
#define KERNELS_CPU_DEVICE_H

#include "kernels/cpu/kv.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/ranks.h"
#include "kernels/cpu/sample.h"
#include "kernels/cpu/team.h"
#include "kernels/cpu/weights.h"

#define LL_CPU_DEPTH      2u
#define LL_CPU_LOGITS     64u /* rows of logits held at once; more are made in rounds */
#define LL_CPU_QUERIES    32u /* query vectors an attention item takes, at least one token's */
#define LL_CPU_SMALL_ITEM 8u  /* tokens an item of the token-wise stages takes */
#define LL_CPU_PAGE_UNSET UINT32_MAX
#define LL_CPU_COPIES_MAX 64u

struct ll_cpu_slot {
    struct ll_cpu_settings settings[2];
    uint32_t settings_now;        /* D2: the one that rows submitted from now on use */
    bool is_set, has_sampled;     /* D2: initialised; a sampling row was submitted since */
    uint64_t init_mark, row_mark; /* D2: check of a batch that last named it */
    uint32_t last_token;          /* D3 */
    uint32_t next_position;       /* D3: the one last_token takes */
};

struct ll_cpu_row {
    uint32_t slot, position, n_tokens;
    uint32_t first_token; /* of the step's tokens */
    uint32_t first_page;  /* of the step's page list */
    uint32_t n_pages;
    uint16_t flags;
    uint8_t n_top, n_prompt_top;
    bool takes_last; /* the id and position are the device's */
    const struct ll_cpu_settings *settings;
};

struct ll_cpu_span {               /* tokens of one row that one attention item takes */
    uint32_t row, token, n_tokens; /* token: of the row */
};

struct ll_cpu_job { /* what is done with one row of logits, or a VERIFY row's several */
    uint32_t row, first_logits, n_logits;
    uint32_t target; /* scored id; unused when it samples */
    uint32_t ext;    /* first of its pairs */
    bool is_sampling;
};

struct ll_cpu_step {
    const struct ll_cpu_weights *weights; /* [n_ranks] */
    uint32_t n_rows, n_tokens, n_pages, n_spans, n_jobs, n_logits, n_ext;
    struct ll_cpu_row *row;   /* [n_rows_max] */
    uint32_t *token;          /* [n_tokens_max] ids; device ids are filled in at the start */
    uint32_t *position;       /* [n_tokens_max] */
    uint32_t *row_of;         /* [n_tokens_max] */
    uint32_t *page;           /* [n_rows_max * pages_per_seq] */
    struct ll_cpu_span *span; /* [n_tokens_max] */
    struct ll_cpu_job *job;   /* [n_tokens_max] */
    uint32_t *logits_token;   /* [n_tokens_max] token that each row of logits belongs to */
    struct ll_row_out *out;   /* [n_rows_max] */
    struct ll_ext *ext;       /* [n_ext_max] */
    uint64_t start_ns, end_ns;
    const char *failed; /* static text; NULL: fine */
};

struct ll_cpu_worker { /* private to a thread of the team */
    float *block[2];   /* [LL_CPU_ITEM_OUT + pad] matmul outputs */
    float *attend;
    struct ll_cpu_scratch sample;
};

struct ll_cpu_copy_list {
    int64_t after; /* B3: the last step submitted before it */
    uint32_t n, n_copied;
    struct ll_copy *copy; /* [n_copies_max] */
};

struct ll_device {
    struct ll_backend_options options;
    struct ll_model_shape shape; /* with ranks: KV heads of all of them, replicas included (T2) */
    struct ll_model_shape model; /* as it was given */
    uint32_t n_ranks;
    const struct ll_cpu_inner *inner;
    bool is_bf16, is_fp8_dummy;
    struct ll_cpu_weights weights[2][LL_CPU_RANKS_MAX];
    struct ll_cpu_kv kv;
    char *host_pages;
    uint32_t n_host_pages;
    double *frequency;        /* [D/2] */
    struct ll_cpu_slot *slot; /* [n_slots] */
    uint32_t *page_table;     /* [n_slots][pages_per_seq], D2 */
    struct ll_cpu_step step[LL_CPU_DEPTH];
    uint32_t n_ext_max;
    struct ll_cpu_worker *worker; /* [n_threads] */
    struct ll_cpu_copy_list copies[LL_CPU_COPIES_MAX];
    uint32_t n_copies_max;
    int64_t copy_submitted, copy_done;

    /* ---- the running step's (D3). ld_*: numbers from token to token, multiples of 16 */
    size_t ld_x, ld_q, ld_kv, ld_a, ld_h, ld_logits;
    float *x;             /* [T][E] residual stream */
    float *normed;        /* [T][E] */
    float *q;             /* [T][H*D] */
    float *k, *v;         /* [T][K*D] */
    float *a;             /* [T][H*D] attention's output */
    float *h;             /* [T][F] */
    float *cosine, *sine; /* [T][D/2] */
    float *logits;        /* [LL_CPU_LOGITS][V] */
    struct ll_cpu_step *now;
    uint32_t layer, stage;
    uint32_t first_job, end_job; /* of this round of logits */
    int64_t running;             /* ticket of the step that runs or ran last */

    /* ---- the step thread's */
    int64_t submitted, polled;
    uint64_t n_checks;
    _Atomic int64_t done; /* release by the team at a step's end, acquire in poll */
    int sticky;           /* 0 or the error that every call gives from now on */
    uint64_t seen_progress, last_poll_ns, stalled_ns;
    bool has_warned;

    struct ll_team team;

    struct { /* what close unmaps */
        void *base;
        size_t size_bytes;
    } mapping[64];
    uint32_t n_mappings;
};

/* Callbacks of the team (team.h): the model itself. context is the device. */
uint32_t ll_cpu_forward_next(void *context, uint32_t worker);
void ll_cpu_forward_item(void *context, uint32_t worker, uint32_t item);

#endif
