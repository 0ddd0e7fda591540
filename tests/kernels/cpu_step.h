/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/cpu_step.h - sequences on a small random model of the CPU backend, run together and
 * compared. For test_cpu_step.c, test_cpu_weights.c, test_cpu_limits.c. */
#ifndef TESTS_KERNELS_CPU_STEP_H
#define TESTS_KERNELS_CPU_STEP_H

#include "kernels/cpu/device.h"
#include "base/numbers.h"
#include "base/clock.h"
#include "ll/client.h"
#include "tests/kernels/sequence.h"

#include <math.h>

enum { SEQ_MAX = 8, OUT = OUT_MAX };

static const struct ll_model_shape shape = {.n_layers = 3,
                                            .n_embd = 96,
                                            .n_heads = 6,
                                            .n_kv_heads = 2,
                                            .head_dim = 16,
                                            .n_ff = 200,
                                            .n_vocab = 333,
                                            .context_max = 384,
                                            .rope = LL_ROPE_PLAIN,
                                            .rms_eps = 1e-5f,
                                            .rope_theta = 1e4};

static const struct ll_backend *backend;

static inline struct ll_device *open_small(uint32_t n_threads, enum ll_dtype dtype,
                                           const char *extra)
{
    struct ll_backend_caps caps;
    struct ll_backend_options options = {.n_threads = n_threads,
                                         .dtype = dtype,
                                         .has_dummy_weights = true,
                                         .seed = 7,
                                         .pages_per_seq = PER_SEQ,
                                         .n_pages = SEQ_MAX * PER_SEQ + 1,
                                         .n_host_pages = PER_SEQ,
                                         .n_slots = SEQ_MAX,
                                         .n_tokens_max = 1024,
                                         .extra = extra};
    struct ll_device *device = demo_open(&shape, options, &caps);

    assert_true(caps.poll_works && caps.depth == 2 && caps.n_pages == SEQ_MAX * PER_SEQ + 1);
    return device;
}

static inline void make_sequence(struct sequence *q, uint32_t i, uint32_t n_prompt)
{
    sequence_make(q, i, n_prompt, shape.n_vocab);
}

/* Runs them together: prompts in chunks (all rows of one step), then decode, run ahead. */
static inline void run_together(struct ll_device *device, struct sequence *q, uint32_t n,
                                uint32_t chunk)
{
    uint32_t n_done[SEQ_MAX] = {0};
    bool is_left = true;

    for (bool is_first = true; is_left; is_first = false) {
        struct ll_slot_init inits[SEQ_MAX];
        struct ll_pages_set pages[SEQ_MAX];
        struct ll_row rows[SEQ_MAX];
        uint32_t of[SEQ_MAX], n_rows = 0;
        is_left = false;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t left = q[i].n_prompt - n_done[i], take = left < chunk ? left : chunk;
            inits[i] = init_of(&q[i], q[i].n_prompt);
            pages[i] = (struct ll_pages_set){q[i].slot, 0, PER_SEQ, q[i].page};
            if (left == 0)
                continue;
            bool is_last = take == left;
            rows[n_rows] = (struct ll_row){
                .slot = q[i].slot,
                .pos = n_done[i],
                .n_tokens = take,
                .n_top = is_last ? N_TOP : 0,
                .token = q[i].prompt + n_done[i],
                .flags = (uint16_t)((is_last ? LL_ROW_SAMPLE : 0) | LL_ROW_PROMPT_LOGPROBS)};
            of[n_rows++] = i;
            is_left |= !is_last;
        }
        struct ll_batch batch = {.n_inits = is_first ? n : 0,
                                 .n_pages_sets = is_first ? n : 0,
                                 .n_rows = n_rows,
                                 .inits = inits,
                                 .pages = pages,
                                 .rows = rows};
        struct ll_result r = demo_run(device, &batch);
        for (uint32_t j = 0; j < n_rows; j++) {
            struct sequence *s = &q[of[j]];
            bool is_last = (rows[j].flags & LL_ROW_SAMPLE) != 0;
            const struct ll_ext *ext = r.ext + r.rows[j].ext + (is_last ? N_TOP : 0);
            for (uint32_t t = 0; t < rows[j].n_tokens - is_last; t++) {
                assert_int_equal(ext[t].id, s->prompt[rows[j].pos + t + 1]);
                s->score[rows[j].pos + t + 1] = ext[t].logprob;
            }
            if (is_last)
                keep(s, &r, j);
            n_done[of[j]] += rows[j].n_tokens;
        }
    }
    for (uint32_t step = 1; step < OUT; step++) {
        struct ll_row rows[SEQ_MAX];
        for (uint32_t i = 0; i < n; i++)
            rows[i] = (struct ll_row){.slot = q[i].slot,
                                      .pos = q[i].n_prompt + step - 1,
                                      .n_tokens = 1,
                                      .flags = LL_ROW_SAMPLE,
                                      .n_top = N_TOP};
        struct ll_result r = demo_run(device, &(struct ll_batch){.n_rows = n, .rows = rows});
        for (uint32_t i = 0; i < n; i++)
            keep(&q[i], &r, i);
    }
}

static inline void assert_same(const struct sequence *a, const struct sequence *b)
{
    assert_int_equal(a->n_out, b->n_out);
    assert_memory_equal(a->out, b->out, sizeof(a->out));
    assert_memory_equal(a->logprob, b->logprob, sizeof(a->logprob));
    assert_memory_equal(a->top, b->top, sizeof(a->top));
    assert_memory_equal(a->score, b->score, sizeof(a->score));
}

static const uint32_t prompts[SEQ_MAX] = {1, 63, 64, 65, 128, 7, 300, 31};

/* Each sequence alone, its prompt in one piece, one thread, the best instruction set. */
static inline void run_alone(struct sequence *q, enum ll_dtype dtype)
{
    struct ll_device *device = open_small(1, dtype, NULL);

    for (uint32_t i = 0; i < SEQ_MAX; i++) {
        make_sequence(&q[i], i, prompts[i]);
        run_together(device, &q[i], 1, 512);
    }
    backend->close(device);
}

#endif
