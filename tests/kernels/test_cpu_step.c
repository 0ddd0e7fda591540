/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cpu_step.c - whole steps of the CPU backend on small random models: what may
 * not change a bit (batch, chunks, pages, threads, instruction set), slots, swaps, bad batches. */
#include "kernels/cpu/device.h"
#include "base/numbers.h"
#include "base/rng.h"
#include "base/clock.h"
#include "ll/client.h"
#include "tests/kernels/demo.h"

#include <math.h>

enum { SEQ_MAX = 8, PROMPT_MAX = 300, OUT = 12, PER_SEQ = 6 };

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

struct sequence { /* what is asked for, and what came */
    uint32_t slot, n_prompt, prompt[PROMPT_MAX + OUT];
    uint32_t page[PER_SEQ];
    struct ll_sampling s;
    uint64_t seed;
    uint32_t n_out, out[OUT];
    float logprob[OUT];
    struct ll_ext top[OUT][4];
    float score[PROMPT_MAX];
};

static struct ll_device *open_small(uint32_t n_threads, enum ll_dtype dtype, const char *extra)
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

static void make_sequence(struct sequence *q, uint32_t i, uint32_t n_prompt)
{
    uint64_t state = i + 1;

    *q = (struct sequence){.slot = i, .n_prompt = n_prompt, .seed = 1000 + i};
    for (uint32_t t = 0; t < n_prompt; t++)
        q->prompt[t] = (uint32_t)ll_splitmix64(&state) % shape.n_vocab;
    for (uint32_t p = 0; p < PER_SEQ; p++)
        q->page[p] = i * PER_SEQ + p;
    q->s = demo_sampling(i);
}

static struct ll_slot_init init_of(const struct sequence *q, uint32_t n_hist)
{
    return (struct ll_slot_init){.slot = q->slot,
                                 .n_prompt = q->n_prompt,
                                 .n_hist = n_hist,
                                 .hist = q->prompt,
                                 .seed = q->seed,
                                 .s = q->s};
}

static void keep(struct sequence *q, const struct ll_result *r, uint32_t row)
{
    const struct ll_row_out *o = &r->rows[row];

    assert_int_equal(o->slot, q->slot);
    assert_int_equal(o->status, LL_ROW_OK);
    assert_int_equal(o->n_tokens, 1);
    assert_true(o->n_ext >= 4);
    q->out[q->n_out] = o->token[0];
    q->logprob[q->n_out] = o->logprob[0];
    memcpy(q->top[q->n_out], r->ext + o->ext, sizeof(q->top[0]));
    q->n_out++;
}

/* Runs them together: prompts in chunks (all rows of one step), then decode, run ahead. */
static void run_together(struct ll_device *device, struct sequence *q, uint32_t n, uint32_t chunk)
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
                .n_top = is_last ? 4 : 0,
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
            const struct ll_ext *ext = r.ext + r.rows[j].ext + (is_last ? 4 : 0);
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
                                      .n_top = 4};
        struct ll_result r = demo_run(device, &(struct ll_batch){.n_rows = n, .rows = rows});
        for (uint32_t i = 0; i < n; i++)
            keep(&q[i], &r, i);
    }
}

static void assert_same(const struct sequence *a, const struct sequence *b)
{
    assert_int_equal(a->n_out, b->n_out);
    assert_memory_equal(a->out, b->out, sizeof(a->out));
    assert_memory_equal(a->logprob, b->logprob, sizeof(a->logprob));
    assert_memory_equal(a->top, b->top, sizeof(a->top));
    assert_memory_equal(a->score, b->score, sizeof(a->score));
}

static const uint32_t prompts[SEQ_MAX] = {1, 63, 64, 65, 128, 7, 300, 31};

/* Each sequence alone, its prompt in one piece, one thread, the best instruction set. */
static void run_alone(struct sequence *q, enum ll_dtype dtype)
{
    struct ll_device *device = open_small(1, dtype, NULL);

    for (uint32_t i = 0; i < SEQ_MAX; i++) {
        make_sequence(&q[i], i, prompts[i]);
        run_together(device, &q[i], 1, 512);
    }
    backend->close(device);
}

static void check_against_alone(enum ll_dtype dtype, uint32_t n_threads, const char *extra,
                                uint32_t chunk, bool is_moved)
{
    static struct sequence alone[SEQ_MAX], q[SEQ_MAX];
    struct ll_device *device = open_small(n_threads, dtype, extra);

    run_alone(alone, dtype);
    for (uint32_t i = 0; i < SEQ_MAX; i++) {
        make_sequence(&q[i], i, prompts[i]);
        q[i].slot = is_moved ? SEQ_MAX - 1 - i : i;
        for (uint32_t p = 0; p < PER_SEQ && is_moved; p++)
            q[i].page[p] = (SEQ_MAX * PER_SEQ) - (p * SEQ_MAX + i);
    }
    run_together(device, q, SEQ_MAX, chunk);
    for (uint32_t i = 0; i < SEQ_MAX; i++)
        assert_same(&q[i], &alone[i]);
    backend->close(device);
}

static void a_row_gives_the_same_bits_alone_and_among_others(void **state)
{
    (void)state;
    check_against_alone(LL_DTYPE_F32, 1, NULL, 300, false);
    check_against_alone(LL_DTYPE_BF16, 1, NULL, 300, false);
}

static void chunks_of_a_prompt_give_the_same_bits_as_the_whole(void **state)
{
    (void)state;
    check_against_alone(LL_DTYPE_F32, 1, NULL, 13, false);
    check_against_alone(LL_DTYPE_BF16, 1, NULL, 1, false);
}

static void slots_and_pages_change_no_bit(void **state)
{
    (void)state;
    check_against_alone(LL_DTYPE_F32, 1, NULL, 64, true);
    check_against_alone(LL_DTYPE_BF16, 1, NULL, 64, true);
}

static void the_number_of_threads_changes_no_bit(void **state)
{
    (void)state;
    check_against_alone(LL_DTYPE_F32, 2, NULL, 50, false);
    check_against_alone(LL_DTYPE_BF16, 3, NULL, 50, false);
    check_against_alone(LL_DTYPE_BF16, 7, NULL, 9, true);
}

static void the_instruction_set_changes_no_bit(void **state)
{
    static const char *const sets[] = {"isa=portable", "isa=avx2", "isa=avx512"};

    (void)state;
    for (size_t i = 0; i < LL_COUNT(sets); i++)
        if (ll_cpu_inner_find(sets[i] + 4) != NULL)
            check_against_alone(LL_DTYPE_BF16, 2, sets[i], 100, false);
}

/* B2: thrown out after five tokens and set up again with prompt and output as history. */
static void a_preempted_sequence_goes_on_as_if_nothing_had_been(void **state)
{
    static struct sequence alone[SEQ_MAX], q;

    (void)state;
    run_alone(alone, LL_DTYPE_BF16);
    for (uint32_t i = 0; i < SEQ_MAX; i++) {
        struct ll_device *device = open_small(1, LL_DTYPE_BF16, NULL);
        make_sequence(&q, i, prompts[i]);
        memcpy(q.prompt + q.n_prompt, alone[i].out, 5 * sizeof(q.prompt[0]));
        struct ll_slot_init init = init_of(&q, q.n_prompt + 5);
        struct ll_pages_set pages = {q.slot, 0, PER_SEQ, q.page};
        struct ll_row row = {.slot = q.slot,
                             .n_tokens = q.n_prompt + 5,
                             .token = q.prompt,
                             .flags = LL_ROW_SAMPLE,
                             .n_top = 4};
        struct ll_batch batch = {.n_inits = 1,
                                 .n_pages_sets = 1,
                                 .n_rows = 1,
                                 .inits = &init,
                                 .pages = &pages,
                                 .rows = &row};
        for (uint32_t step = 5; step < OUT; step++) {
            struct ll_result r = demo_run(device, &batch);
            assert_int_equal(r.rows[0].token[0], alone[i].out[step]);
            assert_memory_equal(&r.rows[0].logprob[0], &alone[i].logprob[step], sizeof(float));
            row = (struct ll_row){.slot = q.slot,
                                  .pos = q.n_prompt + step,
                                  .n_tokens = 1,
                                  .flags = LL_ROW_SAMPLE,
                                  .n_top = 4};
            batch = (struct ll_batch){.n_rows = 1, .rows = &row};
        }
        backend->close(device);
    }
}

static struct ll_result poll_done(struct ll_device *device, int64_t ticket)
{
    struct ll_text error = {""};
    struct ll_result r;
    int rc;

    do
        rc = backend->poll(device, ticket, &r, &error);
    while (rc == 0);
    if (rc < 0)
        fail_msg("poll: %s", error.s);
    return r;
}

/* A step in flight keeps its settings when the next batch sets its slot up anew (D3). */
static void a_new_owner_of_a_slot_does_not_touch_the_step_in_flight(void **state)
{
    static struct sequence alone[SEQ_MAX];
    struct ll_text error = {""};

    (void)state;
    run_alone(alone, LL_DTYPE_F32);
    struct ll_device *device = open_small(2, LL_DTYPE_F32, NULL);
    int64_t ticket[SEQ_MAX];
    for (uint32_t i = 0; i < SEQ_MAX; i++) { /* all of them in slot 0, back to back */
        struct sequence q;
        make_sequence(&q, i, prompts[i]);
        q.slot = 0;
        struct ll_slot_init init = init_of(&q, q.n_prompt);
        struct ll_pages_set pages = {0, 0, PER_SEQ, q.page};
        struct ll_row row = {
            .slot = 0, .n_tokens = q.n_prompt, .token = q.prompt, .flags = LL_ROW_SAMPLE};
        struct ll_batch batch = {.n_inits = 1,
                                 .n_pages_sets = 1,
                                 .n_rows = 1,
                                 .inits = &init,
                                 .pages = &pages,
                                 .rows = &row};
        if (i >= 2)
            assert_int_equal(poll_done(device, ticket[i - 2]).rows[0].token[0],
                             alone[i - 2].out[0]);
        ticket[i] = backend->submit(device, &batch, &error);
        memset(&q, 0xff, sizeof(q)); /* submit has copied all of it */
        memset(&row, 0xff, sizeof(row));
        assert_int_equal(ticket[i], i + 1);
    }
    for (uint32_t i = SEQ_MAX - 2; i < SEQ_MAX; i++)
        assert_int_equal(poll_done(device, ticket[i]).rows[0].token[0], alone[i].out[0]);
    backend->close(device);
}

static void drafts_are_kept_up_to_the_first_wrong_one(void **state)
{
    static struct sequence alone[SEQ_MAX], q;

    (void)state;
    run_alone(alone, LL_DTYPE_F32);
    for (uint32_t i = 0; i < SEQ_MAX; i++) {
        for (uint32_t n_right = 0; n_right < 4; n_right++) {
            struct ll_device *device = open_small(2, LL_DTYPE_F32, NULL);
            make_sequence(&q, i, prompts[i]);
            run_together(device, &q, 1, 512); /* fills the pages; the slot is set up anew below */
            uint32_t ids[5];
            for (uint32_t t = 0; t < 5; t++)
                ids[t] = alone[i].out[t];
            ids[1 + n_right] = (ids[1 + n_right] + 1) % shape.n_vocab;
            memcpy(q.prompt + q.n_prompt, alone[i].out, sizeof(q.prompt[0]));
            struct ll_slot_init init = init_of(&q, q.n_prompt + 1);
            struct ll_row row = {.slot = q.slot,
                                 .pos = q.n_prompt,
                                 .n_tokens = 5,
                                 .token = ids,
                                 .flags = LL_ROW_SAMPLE | LL_ROW_VERIFY,
                                 .n_top = 4};
            struct ll_batch batch = {.n_inits = 1, .n_rows = 1, .inits = &init, .rows = &row};
            struct ll_result r = demo_run(device, &batch);
            assert_int_equal(r.rows[0].n_tokens, n_right + 1);
            assert_int_equal(r.rows[0].n_ext, 4 * (n_right + 1));
            for (uint32_t t = 0; t <= n_right; t++) {
                assert_int_equal(r.rows[0].token[t], alone[i].out[1 + t]);
                assert_memory_equal(r.ext + r.rows[0].ext + 4 * t, alone[i].top[1 + t],
                                    sizeof(alone[i].top[0]));
            }
            /* And the device knows where it stands: it runs ahead from a lower bound. */
            row = (struct ll_row){
                .slot = q.slot, .pos = q.n_prompt + 1, .n_tokens = 1, .flags = LL_ROW_SAMPLE};
            r = demo_run(device, &(struct ll_batch){.n_rows = 1, .rows = &row});
            assert_int_equal(r.rows[0].token[0], alone[i].out[2 + n_right]);
            backend->close(device);
        }
    }
}

static void pages_come_back_from_the_host_as_they_went(void **state)
{
    static struct sequence alone[SEQ_MAX], q;
    struct ll_text error = {""};
    struct ll_copy out[PER_SEQ], in[PER_SEQ];

    (void)state;
    run_alone(alone, LL_DTYPE_F32);
    struct ll_device *device = open_small(1, LL_DTYPE_F32, NULL);
    make_sequence(&q, 4, prompts[4]);
    struct ll_slot_init init = init_of(&q, q.n_prompt);
    struct ll_pages_set pages = {q.slot, 0, PER_SEQ, q.page};
    struct ll_row row = {
        .slot = q.slot, .n_tokens = q.n_prompt, .token = q.prompt, .flags = LL_ROW_SAMPLE};
    struct ll_batch batch = {.n_inits = 1,
                             .n_pages_sets = 1,
                             .n_rows = 1,
                             .inits = &init,
                             .pages = &pages,
                             .rows = &row};
    int64_t step = backend->submit(device, &batch, &error);
    for (uint32_t p = 0; p < PER_SEQ; p++) {
        out[p] = (struct ll_copy){.dst = PER_SEQ - 1 - p, .src = q.page[p], .kind = LL_COPY_D2H};
        in[p] = (struct ll_copy){.dst = p, .src = PER_SEQ - 1 - p, .kind = LL_COPY_H2D};
    }
    int64_t ticket = backend->copy(device, out, PER_SEQ, &error); /* while the step runs */
    assert_int_equal(ticket, 1);
    for (int i = 0; i < 100; i++) /* one thread: the step has not begun, so no page may move */
        assert_int_equal(backend->copied(device, ticket, &error), 0);
    assert_int_equal(poll_done(device, step).rows[0].token[0], alone[4].out[0]);
    while (backend->copied(device, ticket, &error) == 0)
        ;
    ticket = backend->copy(device, in, PER_SEQ, &error);
    while (backend->copied(device, ticket, &error) == 0)
        ;
    for (uint32_t p = 0; p < PER_SEQ; p++)
        q.page[p] = p; /* other pages than before */
    for (uint32_t i = 1; i < OUT; i++) {
        row = (struct ll_row){
            .slot = q.slot, .pos = q.n_prompt + i - 1, .n_tokens = 1, .flags = LL_ROW_SAMPLE};
        batch =
            (struct ll_batch){.n_pages_sets = i == 1, .pages = &pages, .n_rows = 1, .rows = &row};
        assert_int_equal(demo_run(device, &batch).rows[0].token[0], alone[4].out[i]);
    }
    out[0].src = SEQ_MAX * PER_SEQ + 1;
    assert_int_equal(backend->copy(device, out, 1, &error), LL_E_INVAL);
    backend->close(device);
}

static void a_prompt_is_scored_with_its_last_target_only_named(void **state)
{
    static struct sequence alone[SEQ_MAX];
    struct ll_device *device;

    (void)state;
    run_alone(alone, LL_DTYPE_F32);
    device = open_small(1, LL_DTYPE_F32, NULL);
    struct sequence *q = &alone[3];
    struct ll_slot_init init = init_of(q, q->n_prompt);
    struct ll_pages_set pages = {q->slot, 0, PER_SEQ, q->page};
    struct ll_row row = {.slot = q->slot,
                         .n_tokens = q->n_prompt - 1,
                         .token = q->prompt,
                         .flags = LL_ROW_PROMPT_LOGPROBS,
                         .n_prompt_top = 3};
    struct ll_batch batch = {.n_inits = 1,
                             .n_pages_sets = 1,
                             .n_rows = 1,
                             .inits = &init,
                             .pages = &pages,
                             .rows = &row};
    struct ll_result r = demo_run(device, &batch);
    assert_int_equal(r.rows[0].n_tokens, 0);
    assert_int_equal(r.rows[0].n_ext, 4 * (q->n_prompt - 1));
    for (uint32_t t = 0; t + 1 < q->n_prompt; t++) {
        const struct ll_ext *ext = r.ext + r.rows[0].ext + 4 * t;
        assert_int_equal(ext[0].id, q->prompt[t + 1]);
        assert_memory_equal(&ext[0].logprob, &q->score[t + 1], sizeof(float));
        assert_true(ext[1].logprob >= ext[2].logprob && ext[2].logprob >= ext[3].logprob);
        assert_true(ext[1].logprob >= ext[0].logprob);
    }
    backend->close(device);
}

/* ---- weights
 * -------------------------------------------------------------------------------------- */
static struct ll_tensor tensor_of(enum ll_tensor_role role, enum ll_dtype dtype)
{
    const uint32_t q = shape.n_heads * shape.head_dim, kv = shape.n_kv_heads * shape.head_dim;
    const struct {
        uint32_t rows, cols;
    } size[LL_TENSOR_ROLES] = {{shape.n_vocab, shape.n_embd},
                               {1, shape.n_embd},
                               {q, shape.n_embd},
                               {kv, shape.n_embd},
                               {kv, shape.n_embd},
                               {shape.n_embd, q},
                               {1, shape.n_embd},
                               {shape.n_ff, shape.n_embd},
                               {shape.n_ff, shape.n_embd},
                               {shape.n_embd, shape.n_ff},
                               {1, shape.n_embd},
                               {shape.n_vocab, shape.n_embd}};

    return (struct ll_tensor){.role = role,
                              .dtype = dtype,
                              .rows = size[role].rows,
                              .cols = size[role].cols,
                              .size_bytes = (uint64_t)size[role].rows * size[role].cols *
                                            ll_dtype_bytes(dtype)};
}

static bool is_global(int role)
{
    return role == LL_TENSOR_EMBED || role == LL_TENSOR_FINAL_NORM || role == LL_TENSOR_HEAD;
}

/* Numbers that bf16, f16 and f32 all hold exactly. */
static float plain_number(const struct ll_tensor *t, uint64_t i)
{
    uint64_t state = i * 31 + (uint64_t)t->role * 7 + t->layer;
    float x = (float)(int32_t)(ll_splitmix64(&state) % 127) - 63;

    return t->rows == 1 ? 1 + x / 64 : (x == 0 ? 1 : x) / 512;
}

static void *bytes_of(const struct ll_tensor *t)
{
    uint8_t *bytes = malloc(t->size_bytes);

    for (uint64_t i = 0; i < (uint64_t)t->rows * t->cols; i++) {
        float x = plain_number(t, i);
        uint16_t half = ll_bf16_from_f32(x);
        if (t->dtype == LL_DTYPE_F16) { /* normal numbers only here */
            uint32_t bits = ll_f32_bits(x);
            half = (uint16_t)((bits >> 16 & 0x8000u) | (((bits >> 23 & 0xffu) - 112u) << 10) |
                              (bits >> 13 & 0x3ffu));
        }
        if (t->dtype == LL_DTYPE_F32)
            memcpy(bytes + 4 * i, &x, 4);
        else
            memcpy(bytes + 2 * i, &half, 2);
    }
    return bytes;
}

/* Feeds all, in pieces of odd sizes in a shuffled order; skip: a role of layer 1 to leave out. */
static int feed_all(struct ll_device *device, enum ll_dtype dtype, bool is_split, int skip,
                    struct ll_text *error)
{
    for (uint32_t layer = 0; layer < shape.n_layers; layer++) {
        for (int role = 0; role < LL_TENSOR_ROLES; role++) {
            struct ll_tensor t = tensor_of(role, dtype);
            struct ll_span span;
            uint64_t ticket;
            t.layer = layer;
            if ((is_global(role) && layer > 0) || (role == skip && layer == 1))
                continue;
            assert_int_equal(backend->want(device, &t, &span, 1, error), 1);
            assert_int_equal(span.size_bytes, t.size_bytes);
            uint8_t *bytes = bytes_of(&t);
            uint64_t piece = is_split ? 1 + t.size_bytes / 7 : t.size_bytes;
            piece = is_split && piece > 13 ? piece | 1 : piece; /* splits numbers */
            uint64_t n_pieces = ll_div_ceil(t.size_bytes, piece);
            for (uint64_t i = 0; i < n_pieces; i++) {
                uint64_t at = (i * 3 + 1) % n_pieces;
                at = n_pieces % 3 == 0 ? n_pieces - 1 - i : at;
                uint64_t n = ll_min_u64(piece, t.size_bytes - at * piece);
                uint8_t *copy = malloc(n); /* staging: gone right after */
                memcpy(copy, bytes + at * piece, n);
                int rc = backend->feed(device, 0, &t, 0, at * piece, copy, n, &ticket, error);
                free(copy);
                if (rc < 0)
                    return rc;
                assert_int_equal(backend->fed(device, ticket, error), 1);
            }
            free(bytes);
        }
    }
    return 0;
}

static struct ll_device *open_fed(enum ll_dtype dtype)
{
    struct ll_text error = {""};
    struct ll_backend_caps caps;
    struct ll_device *device = NULL;
    struct ll_backend_options options = {.struct_bytes = sizeof(options),
                                         .n_slots = 1,
                                         .n_pages = PER_SEQ,
                                         .n_tokens_max = 512,
                                         .n_rows_max = 1,
                                         .pages_per_seq = PER_SEQ,
                                         .n_weights = 1,
                                         .dtype = dtype,
                                         .numa_node = -1};

    if (backend->open(&device, &options, &shape, &caps, &error) < 0)
        fail_msg("open: %s", error.s);
    return device;
}

static void any_dtype_and_any_split_of_the_weights_give_the_same_model(void **state)
{
    static const enum ll_dtype dtypes[] = {LL_DTYPE_BF16, LL_DTYPE_F16, LL_DTYPE_F32};
    static struct sequence q[2][6];

    (void)state;
    for (int compute = 0; compute < 2; compute++) {
        for (int i = 0; i < 6; i++) {
            struct ll_text error = {""};
            struct ll_device *device = open_fed(compute == 0 ? LL_DTYPE_F32 : LL_DTYPE_BF16);
            if (feed_all(device, dtypes[i / 2], i % 2 == 1, -1, &error) < 0 ||
                backend->seal(device, 0, &error) < 0)
                fail_msg("%s", error.s);
            make_sequence(&q[compute][i], 0, 65);
            run_together(device, &q[compute][i], 1, 512);
            backend->close(device);
            /* A form has lanes of its own: f32 weights may round sums otherwise than bf16 ones. */
            int same = compute == 0 && i >= 2 ? 2 : 0;
            assert_same(&q[compute][i], &q[compute][same]);
            const struct sequence *a = &q[compute][i], *b = &q[compute][0];
            assert_int_equal(a->out[0], b->out[0]);
            for (int t = 0; t < OUT && a->out[t] == b->out[t]; t++)
                assert_true(fabsf(a->logprob[t] - b->logprob[t]) < 1e-4f);
        }
    }
    assert_true(memcmp(q[0][0].logprob, q[1][0].logprob, sizeof(q[0][0].logprob)) != 0);
}

static void seal_names_what_is_missing(void **state)
{
    struct ll_text error = {""};
    struct ll_device *device = open_fed(LL_DTYPE_F32);

    (void)state;
    assert_true(feed_all(device, LL_DTYPE_BF16, true, LL_TENSOR_GATE, &error) == 0);
    assert_int_equal(backend->seal(device, 0, &error), LL_E_INVAL);
    assert_non_null(strstr(error.s, "layers.1.mlp.gate_proj has not come"));

    struct ll_tensor t = tensor_of(LL_TENSOR_GATE, LL_DTYPE_BF16);
    uint8_t *bytes = calloc(1, t.size_bytes);
    uint64_t ticket;
    t.layer = 1;
    backend->feed(device, 0, &t, 0, 0, bytes, 100, &ticket, &error);
    backend->feed(device, 0, &t, 0, 201, bytes, t.size_bytes - 201, &ticket, &error);
    assert_int_equal(backend->seal(device, 0, &error), LL_E_INVAL);
    assert_non_null(strstr(error.s, "layers.1.mlp.gate_proj lacks bytes 100 to 201 of"));

    struct ll_row row = {.n_tokens = 1, .token = (const uint32_t[]){1}, .flags = LL_ROW_SAMPLE};
    assert_int_equal(backend->submit(device, &(struct ll_batch){.n_rows = 1, .rows = &row}, &error),
                     LL_E_INVAL);
    assert_non_null(strstr(error.s, "not sealed"));
    backend->feed(device, 0, &t, 0, 99, bytes, 103, &ticket, &error); /* overlaps both */
    assert_int_equal(backend->seal(device, 0, &error), 0);
    assert_int_equal(backend->feed(device, 0, &t, 0, t.size_bytes, bytes, 1, &ticket, &error),
                     LL_E_INVAL);
    free(bytes);
    backend->close(device);
}

static void weights_that_cannot_be_used_are_refused_in_words(void **state)
{
    struct ll_text error = {""};
    struct ll_span span;
    struct ll_device *device = open_fed(LL_DTYPE_BF16);
    struct ll_tensor t;

    (void)state;
    t = tensor_of(LL_TENSOR_Q, LL_DTYPE_BF16);
    t.rows--;
    assert_int_equal(backend->want(device, &t, &span, 1, &error), LL_E_INVAL);
    assert_non_null(strstr(error.s, "layers.0.self_attn.q_proj"));
    t = tensor_of(LL_TENSOR_Q, LL_DTYPE_BF16);
    t.layer = shape.n_layers;
    assert_int_equal(backend->want(device, &t, &span, 1, &error), LL_E_INVAL);
    t = tensor_of(LL_TENSOR_K, LL_DTYPE_F32);
    t.part = LL_PART_KV_SCALE;
    assert_int_equal(backend->want(device, &t, &span, 1, &error), 0);
    backend->close(device);
}

static void a_nan_in_the_weights_makes_the_row_fail_and_not_the_step(void **state)
{
    struct ll_text error = {""};
    struct ll_device *device = open_fed(LL_DTYPE_BF16);
    struct ll_tensor t = tensor_of(LL_TENSOR_EMBED, LL_DTYPE_BF16);
    const uint16_t nan = 0x7fc0;
    uint64_t ticket;

    (void)state;
    assert_true(feed_all(device, LL_DTYPE_BF16, false, -1, &error) == 0);
    backend->feed(device, 0, &t, 0, 2ull * shape.n_embd * 9 + 10, &nan, 2, &ticket, &error);
    assert_int_equal(backend->seal(device, 0, &error), 0);
    for (uint32_t id = 8; id <= 10; id++) { /* id 9's embedding holds the NaN */
        struct ll_slot_init init = {.n_prompt = 1, .n_hist = 1, .hist = &id, .s = demo_greedy()};
        struct ll_pages_set pages = {0, 0, 1, (const uint32_t[]){3}};
        struct ll_row row = {.n_tokens = 1, .token = &id, .flags = LL_ROW_SAMPLE};
        struct ll_batch batch = {.n_inits = 1,
                                 .n_pages_sets = 1,
                                 .n_rows = 1,
                                 .inits = &init,
                                 .pages = &pages,
                                 .rows = &row};
        struct ll_result r = demo_run(device, &batch);
        assert_int_equal(r.rows[0].status, id == 9 ? LL_ROW_NAN : LL_ROW_OK);
        assert_int_equal(r.rows[0].n_tokens, id == 9 ? 0 : 1);
    }
    backend->close(device);
}

static void dummy_weights_are_random_never_zero_and_follow_the_seed(void **state)
{
    struct ll_cpu_weights w[3];
    struct ll_text error;

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ll_cpu_weights_open(&w[i], &shape, LL_DTYPE_BF16, -1, &error), 0);
        assert_int_equal(ll_cpu_weights_dummy(&w[i], i == 2 ? 6 : 5, false, &error), 0);
    }
    for (int role = 0; role < LL_TENSOR_ROLES; role++) {
        const struct ll_cpu_matrix *m = ll_cpu_weight(&w[0], 0, role);
        size_t bytes = (size_t)m->rows * m->stride * ll_cpu_form_bytes(m->form);
        assert_memory_equal(m->data, ll_cpu_weight(&w[1], 0, role)->data, bytes);
        assert_memory_not_equal(m->data, ll_cpu_weight(&w[2], 0, role)->data, bytes);
        for (uint32_t i = 0; i < m->rows * m->stride; i++) {
            float x = m->form == LL_FORM_F32 ? ((const float *)m->data)[i]
                                             : ll_f32_from_bf16(((const uint16_t *)m->data)[i]);
            assert_true((x != 0) == (i % m->stride < m->cols)); /* and pads are zero */
        }
    }
    for (int i = 0; i < 3; i++)
        ll_cpu_weights_close(&w[i]);
}

/* ---- bad batches, idling
 * ---------------------------------------------------------------------------- */
static void bad_batches_are_refused_and_good_ones_go_on(void **state)
{
    struct ll_device *device = open_small(1, LL_DTYPE_F32, NULL);
    struct ll_text error = {""};
    const uint32_t ids[3] = {1, 2, 3}, bad_id = shape.n_vocab, page = 2, bad_page = 1000;
    struct ll_slot_init init = {.n_prompt = 3, .n_hist = 3, .hist = ids, .s = demo_greedy()};
    struct ll_pages_set pages = {0, 0, 1, &page};
    const struct ll_row good = {.n_tokens = 3, .token = ids, .flags = LL_ROW_SAMPLE};
    struct ll_row row = good, rows[2] = {good, good};
    struct ll_batch batch = {.n_inits = 1,
                             .n_pages_sets = 1,
                             .n_rows = 1,
                             .inits = &init,
                             .pages = &pages,
                             .rows = &row};

    (void)state;
#define REFUSED(code, words)                                                                       \
    do {                                                                                           \
        assert_int_equal(backend->submit(device, &batch, &error), code);                           \
        if (strstr(error.s, words) == NULL)                                                        \
            fail_msg("\"%s\" says nothing of \"%s\"", error.s, words);                             \
    } while (0)
    batch.n_inits = 0;
    REFUSED(LL_E_INVAL, "never set up");
    batch.n_inits = 1;
    row.slot = SEQ_MAX;
    REFUSED(LL_E_INVAL, "slot 8 of 8");
    row = good;
    row.pos = 64;
    REFUSED(LL_E_INVAL, "no page for position 64");
    row.pos = 382;
    REFUSED(LL_E_INVAL, "a sequence has 384");
    row = good;
    row.token = &bad_id;
    row.n_tokens = 1;
    REFUSED(LL_E_INVAL, "id 333 of 333");
    row.token = NULL;
    REFUSED(LL_E_INVAL, "runs ahead");
    row = good;
    row.flags |= LL_ROW_LATE_MASK;
    REFUSED(LL_E_UNSUPPORTED, "late mask");
    row = good;
    row.n_top = 21;
    REFUSED(LL_E_INVAL, "top ids");
    row = good;
    pages.page = &bad_page;
    REFUSED(LL_E_INVAL, "page 1000");
    pages.page = &page;
    init.adapter = 1;
    REFUSED(LL_E_UNSUPPORTED, "adapter");
    init.adapter = 0;
    batch.weights = 1;
    REFUSED(LL_E_INVAL, "weight set 1");
    batch.weights = 0;
    batch.rows = rows;
    batch.n_rows = 2;
    REFUSED(LL_E_INVAL, "has a row already");
    batch.rows = &row;
    batch.n_rows = 1;
    assert_int_equal(demo_run(device, &batch).rows[0].n_tokens, 1);

    /* Depth: a third waits until one is polled. */
    batch.n_inits = batch.n_pages_sets = 0;
    row = (struct ll_row){.pos = 3, .n_tokens = 1, .flags = LL_ROW_SAMPLE};
    assert_int_equal(backend->submit(device, &batch, &error), 2);
    row.pos = 4;
    assert_int_equal(backend->submit(device, &batch, &error), 3);
    row.pos = 5;
    REFUSED(LL_E_AGAIN, "in flight");
    struct ll_result r;
    assert_int_equal(backend->poll(device, 3, &r, &error), LL_E_INVAL); /* out of order */
    poll_done(device, 2);
    assert_int_equal(backend->submit(device, &batch, &error), 4);
    backend->close(device); /* with two in flight */
    backend->close(NULL);
#undef REFUSED
}

static void options_that_cannot_be_are_refused(void **state)
{
    struct ll_text error = {""};
    struct ll_backend_caps caps;
    struct ll_device *device = NULL;
    const struct ll_backend_options good = {.struct_bytes = sizeof(good),
                                            .n_slots = 1,
                                            .n_pages = 1,
                                            .n_tokens_max = 8,
                                            .n_rows_max = 1,
                                            .pages_per_seq = 1,
                                            .n_weights = 1,
                                            .dtype = LL_DTYPE_F32,
                                            .numa_node = -1};
    struct ll_backend_options o = good;
    struct ll_model_shape s = shape;

    (void)state;
    o.dtype = LL_DTYPE_F16;
    assert_int_equal(backend->open(&device, &o, &shape, &caps, &error), LL_E_UNSUPPORTED);
    o = good;
    o.kv_dtype = LL_DTYPE_F16;
    assert_int_equal(backend->open(&device, &o, &shape, &caps, &error), LL_E_UNSUPPORTED);
    o = good;
    o.tensor_parallel = 5;
    assert_int_equal(backend->open(&device, &o, &shape, &caps, &error), LL_E_UNSUPPORTED);
    o = good;
    o.extra = "speed=11";
    assert_int_equal(backend->open(&device, &o, &shape, &caps, &error), LL_E_INVAL);
    o = good;
    o.struct_bytes--;
    assert_int_equal(backend->open(&device, &o, &shape, &caps, &error), LL_E_ABI);
    s.n_kv_heads = 4;
    assert_int_equal(backend->open(&device, &good, &s, &caps, &error), LL_E_INVAL);
    assert_null(device);
}

static uint64_t cpu_ns(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * LL_NS_PER_S + (uint64_t)t.tv_nsec;
}

static void idle_threads_take_no_cpu_time_and_wake_for_the_next_step(void **state)
{
    static struct sequence alone[SEQ_MAX], q;
    struct ll_device *device = open_small(4, LL_DTYPE_F32, NULL);

    (void)state;
    run_alone(alone, LL_DTYPE_F32);
    for (int round = 0; round < 3; round++) {
        make_sequence(&q, 3, prompts[3]);
        run_together(device, &q, 1, 512);
        assert_same(&q, &alone[3]);
        usleep(20000); /* spinning is over */
        uint64_t before = cpu_ns(CLOCK_PROCESS_CPUTIME_ID);
        usleep(200000);
        assert_true(cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - before < 5 * LL_NS_PER_MS);
    }
    backend->close(device);
}

/* In time of this thread: what other processes take of the machine is not poll's. */
static void poll_returns_soon(void **state)
{
    static struct sequence q;
    struct ll_text error = {""};
    struct ll_device *device = open_small(1, LL_DTYPE_F32, NULL);
    uint64_t shortest = UINT64_MAX;

    (void)state;
    make_sequence(&q, 6, prompts[6]);
    for (int round = 0; round < 20; round++) {
        struct ll_slot_init init = init_of(&q, q.n_prompt);
        struct ll_pages_set pages = {q.slot, 0, PER_SEQ, q.page};
        struct ll_row row = {
            .slot = q.slot, .n_tokens = q.n_prompt, .token = q.prompt, .flags = LL_ROW_SAMPLE};
        struct ll_batch batch = {.n_inits = 1,
                                 .n_pages_sets = 1,
                                 .n_rows = 1,
                                 .inits = &init,
                                 .pages = &pages,
                                 .rows = &row};
        struct ll_result r;
        int64_t ticket = backend->submit(device, &batch, &error);
        uint64_t longest = 0;
        int rc, n_polls = 0;
        do {
            uint64_t start = cpu_ns(CLOCK_THREAD_CPUTIME_ID);
            rc = backend->poll(device, ticket, &r, &error);
            uint64_t took = cpu_ns(CLOCK_THREAD_CPUTIME_ID) - start;
            longest = took > longest ? took : longest;
            n_polls++;
        } while (rc == 0);
        assert_int_equal(rc, 1);
        assert_true(n_polls > 1); /* it came back before the step was over */
        shortest = longest < shortest ? longest : shortest;
    }
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    shortest /= 20;
#endif
    assert_true(shortest < 2 * LL_NS_PER_MS); /* a slice of 50 us and one item */
    backend->close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_row_gives_the_same_bits_alone_and_among_others),
        cmocka_unit_test(chunks_of_a_prompt_give_the_same_bits_as_the_whole),
        cmocka_unit_test(slots_and_pages_change_no_bit),
        cmocka_unit_test(the_number_of_threads_changes_no_bit),
        cmocka_unit_test(the_instruction_set_changes_no_bit),
        cmocka_unit_test(a_preempted_sequence_goes_on_as_if_nothing_had_been),
        cmocka_unit_test(a_new_owner_of_a_slot_does_not_touch_the_step_in_flight),
        cmocka_unit_test(drafts_are_kept_up_to_the_first_wrong_one),
        cmocka_unit_test(pages_come_back_from_the_host_as_they_went),
        cmocka_unit_test(a_prompt_is_scored_with_its_last_target_only_named),
        cmocka_unit_test(any_dtype_and_any_split_of_the_weights_give_the_same_model),
        cmocka_unit_test(seal_names_what_is_missing),
        cmocka_unit_test(weights_that_cannot_be_used_are_refused_in_words),
        cmocka_unit_test(a_nan_in_the_weights_makes_the_row_fail_and_not_the_step),
        cmocka_unit_test(dummy_weights_are_random_never_zero_and_follow_the_seed),
        cmocka_unit_test(bad_batches_are_refused_and_good_ones_go_on),
        cmocka_unit_test(options_that_cannot_be_are_refused),
        cmocka_unit_test(idle_threads_take_no_cpu_time_and_wake_for_the_next_step),
        cmocka_unit_test(poll_returns_soon),
    };

    backend = ll_backend_cpu();
    return cmocka_run_group_tests_name("kernels/cpu steps", tests, NULL, NULL);
}
