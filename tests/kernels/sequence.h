/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/sequence.h - a sequence on a small random model: what is asked for, the step that
 * begins it, what came of it. For cpu_step.h and test_cuda_step.c, which know how to run several.
 */
#ifndef TESTS_KERNELS_SEQUENCE_H
#define TESTS_KERNELS_SEQUENCE_H

#include "base/rng.h"
#include "tests/kernels/demo.h"

enum { PROMPT_MAX = 300, OUT_MAX = 12, PER_SEQ = 6, N_TOP = 4 };

struct sequence {
    uint32_t slot, n_prompt, prompt[PROMPT_MAX + OUT_MAX];
    uint32_t page[PER_SEQ];
    struct ll_sampling s;
    uint64_t seed;
    uint32_t n_out, out[OUT_MAX];
    float logprob[OUT_MAX];
    struct ll_ext top[OUT_MAX][N_TOP];
    float score[PROMPT_MAX];
};

/* The i-th of several: a random prompt, the slot and pages with its number. */
static inline void sequence_make(struct sequence *q, uint32_t i, uint32_t n_prompt,
                                 uint32_t n_vocab)
{
    uint64_t state = i + 1;

    *q = (struct sequence){.slot = i, .n_prompt = n_prompt, .seed = 1000 + i};
    for (uint32_t t = 0; t < n_prompt; t++)
        q->prompt[t] = (uint32_t)ll_splitmix64(&state) % n_vocab;
    for (uint32_t p = 0; p < PER_SEQ; p++)
        q->page[p] = i * PER_SEQ + p;
    q->s = demo_sampling(i);
}

static inline struct ll_slot_init init_of(const struct sequence *q, uint32_t n_hist)
{
    return (struct ll_slot_init){.slot = q->slot,
                                 .n_prompt = q->n_prompt,
                                 .n_hist = n_hist,
                                 .hist = q->prompt,
                                 .seed = q->seed,
                                 .s = q->s};
}

/* A step of one row that sets its slot up. The batch points into it: it stays where it is, and what
 * the caller changes counts. */
struct first_step {
    struct ll_slot_init init;
    struct ll_pages_set pages;
    struct ll_row row;
    struct ll_batch batch;
};

/* The first n tokens, prompt and then what was sampled, in one row that samples the next. */
static inline void first_step(struct first_step *f, const struct sequence *q, uint32_t n)
{
    f->init = init_of(q, n);
    f->pages = (struct ll_pages_set){q->slot, 0, PER_SEQ, q->page};
    f->row =
        (struct ll_row){.slot = q->slot, .n_tokens = n, .token = q->prompt, .flags = LL_ROW_SAMPLE};
    f->batch = (struct ll_batch){.n_inits = 1,
                                 .n_pages_sets = 1,
                                 .n_rows = 1,
                                 .inits = &f->init,
                                 .pages = &f->pages,
                                 .rows = &f->row};
}

/* What a row that asked for the top N_TOP gave. */
static inline void keep(struct sequence *q, const struct ll_result *r, uint32_t row)
{
    const struct ll_row_out *o = &r->rows[row];

    assert_int_equal(o->slot, q->slot);
    assert_int_equal(o->status, LL_ROW_OK);
    assert_int_equal(o->n_tokens, 1);
    assert_true(o->n_ext >= N_TOP); /* then a prompt's scores */
    q->out[q->n_out] = o->token[0];
    q->logprob[q->n_out] = o->logprob[0];
    memcpy(q->top[q->n_out], r->ext + o->ext, sizeof(q->top[0]));
    q->n_out++;
}

#endif
