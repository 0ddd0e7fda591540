/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cuda_step.c - whole steps of the CUDA module on small random models: against
 * the CPU backend, and what may not change a bit: the batch (deterministic), pages, slots, repeats,
 * launching by graph or kernel by kernel. Swaps, rebuilt slots, NaNs, bad batches. Skipped without
 * a GPU. */
#include "tests/kernels/cuda_module.h"

static const struct ll_backend *cuda;
#define DEMO_BACKEND() cuda
#include "ll/client.h"
#include "tests/kernels/sequence.h"

#include <math.h>

enum { SEQ_MAX = 64, OUT = 10 };

static struct ll_model_shape shape = {.n_layers = 2,
                                      .n_embd = 512,
                                      .n_heads = 6,
                                      .n_kv_heads = 2,
                                      .head_dim = 64,
                                      .n_ff = 1024,
                                      .n_vocab = 1003,
                                      .context_max = 384,
                                      .rope = LL_ROPE_PLAIN,
                                      .rms_eps = 1e-5f,
                                      .rope_theta = 1e4};

static struct ll_device *open_small(const char *extra, bool is_deterministic)
{
    struct ll_backend_caps caps;
    struct ll_backend_options options = {.dtype = LL_DTYPE_BF16,
                                         .has_dummy_weights = true,
                                         .is_deterministic = is_deterministic,
                                         .seed = 7,
                                         .pages_per_seq = PER_SEQ,
                                         .n_pages = SEQ_MAX * PER_SEQ + 7,
                                         .n_host_pages = 2 * PER_SEQ,
                                         .n_slots = SEQ_MAX,
                                         .n_rows_max = SEQ_MAX,
                                         .n_tokens_max = 1024,
                                         .extra = extra};

    return demo_open(&shape, options, &caps);
}

static void make_sequence(struct sequence *q, uint32_t i)
{
    static const uint32_t lengths[] = {1, 5, 63, 64, 65, 128, 200, 290};

    sequence_make(q, i, lengths[i % 8], shape.n_vocab);
}

static void keep_tops(struct sequence *q, const struct ll_result *r, uint32_t row)
{
    assert_int_equal(r->rows[row].n_ext, N_TOP);
    keep(q, r, row);
}

/* The prompt, in a step of its own: the first token. */
static void run_prompt(struct ll_device *device, struct sequence *q)
{
    struct first_step first;

    first_step(&first, q, q->n_prompt);
    first.row.n_top = N_TOP;
    struct ll_result r = demo_run(device, &first.batch);
    keep_tops(q, &r, 0);
}

/* One token for each, run ahead: step n + 1 is submitted before n is read. */
static void run_decode(struct ll_device *device, struct sequence *q, uint32_t n)
{
    int64_t ticket[2] = {0, 0};
    struct ll_text error = {""};

    for (uint32_t step = 1; step <= OUT; step++) {
        struct ll_row rows[SEQ_MAX];
        for (uint32_t i = 0; i < n; i++)
            rows[i] = (struct ll_row){.slot = q[i].slot,
                                      .pos = q[i].n_prompt + step - 1,
                                      .n_tokens = 1,
                                      .flags = LL_ROW_SAMPLE,
                                      .n_top = N_TOP};
        const struct ll_batch batch = {.n_rows = n, .rows = rows};
        if (step < OUT && (ticket[step % 2] = cuda->submit(device, &batch, &error)) < 0)
            fail_msg("submit: %s", error.s);
        if (step == 1)
            continue;
        struct ll_result r = demo_wait(cuda, device, ticket[(step - 1) % 2]);
        for (uint32_t i = 0; i < n; i++)
            keep_tops(&q[i], &r, i);
    }
}

static void run_all(struct ll_device *device, struct sequence *q, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        run_prompt(device, &q[i]);
    run_decode(device, q, n);
}

static void assert_same(const struct sequence *a, const struct sequence *b, const char *what)
{
    assert_int_equal(a->n_out, OUT);
    assert_int_equal(b->n_out, OUT);
    for (uint32_t i = 0; i < OUT; i++)
        if (a->out[i] != b->out[i] || memcmp(&a->logprob[i], &b->logprob[i], 4) != 0 ||
            memcmp(a->top[i], b->top[i], sizeof(a->top[i])) != 0)
            fail_msg("%s: token %u of slot %u is %u (%.9g) and %u (%.9g)", what, i, a->slot,
                     a->out[i], (double)a->logprob[i], b->out[i], (double)b->logprob[i]);
}

static const char *const forms[] = {NULL, "weights=fp8"};

/* ---- what may not change a bit
 * ------------------------------------------------------------------*/
static void deterministic_rows_are_the_same_alone_and_among_64(void **state)
{
    static struct sequence together[SEQ_MAX], alone, few[9];

    (void)state;
    for (int form = 0; form < 2; form++) {
        struct ll_device *device = open_small(forms[form], true);
        for (uint32_t i = 0; i < SEQ_MAX; i++)
            make_sequence(&together[i], i);
        run_all(device, together, SEQ_MAX);
        for (uint32_t i = 0; i < SEQ_MAX; i += 5) {
            make_sequence(&alone, i);
            run_all(device, &alone, 1);
            assert_same(&alone, &together[i], "alone and among 64");
        }
        for (uint32_t i = 0; i < 9; i++)
            make_sequence(&few[i], i * 7);
        run_all(device, few, 9);
        for (uint32_t i = 0; i < 9; i++)
            assert_same(&few[i], &together[i * 7], "among 9 and among 64");
        cuda->close(device);
    }
}

static void pages_slots_and_repeats_change_no_bit(void **state)
{
    enum { N = 5 };
    static struct sequence first[N], again[N];
    const int n_repeats = getenv("LL_TEST_QUICK") != NULL ? 4 : 100;

    (void)state;
    for (int form = 0; form < 2; form++) {
        struct ll_device *device = open_small(forms[form], false);
        for (uint32_t i = 0; i < N; i++)
            make_sequence(&first[i], i * 3 + 2);
        run_all(device, first, N);
        for (int repeat = 0; repeat < n_repeats; repeat++) {
            for (uint32_t i = 0; i < N; i++) {
                make_sequence(&again[i], i * 3 + 2);
                again[i].slot = (i * 11 + (uint32_t)repeat * 5) % SEQ_MAX;
                for (uint32_t p = 0; p < PER_SEQ; p++)
                    again[i].page[p] =
                        ((i * PER_SEQ + p) * 5 + (uint32_t)repeat * 29) % (SEQ_MAX * PER_SEQ + 7);
            }
            run_all(device, again, N);
            for (uint32_t i = 0; i < N; i++)
                assert_same(&first[i], &again[i], "at another place");
        }
        cuda->close(device);
    }
}

static void a_graph_gives_the_bits_of_its_kernels_launched_one_by_one(void **state)
{
    enum { N = 12 };
    static const char *const eager[] = {"graph=0", "weights=fp8,graph=0"};
    static struct sequence a[N], b[N];

    (void)state;
    for (int form = 0; form < 2; form++) {
        struct ll_device *with = open_small(forms[form], true),
                         *without = open_small(eager[form], true);
        for (uint32_t i = 0; i < N; i++) {
            make_sequence(&a[i], i);
            make_sequence(&b[i], i);
        }
        run_all(with, a, N);
        run_all(without, b, N);
        for (uint32_t i = 0; i < N; i++)
            assert_same(&a[i], &b[i], "graph and kernels");
        cuda->close(with);
        cuda->close(without);
    }
}

/* B2: a slot rebuilt from the history, over the same pages, goes on with the same draws. */
static void a_slot_rebuilt_from_its_history_goes_on_the_same(void **state)
{
    static struct sequence whole, q;

    (void)state;
    struct ll_device *device = open_small(NULL, false);
    for (uint32_t i = 0; i < 6; i++) {
        make_sequence(&whole, i);
        run_all(device, &whole, 1);
        make_sequence(&q, i);
        memcpy(q.prompt + q.n_prompt, whole.out, 5 * sizeof(q.prompt[0]));
        q.slot = 40 + i; /* other slot, pages as they are */
        const struct ll_slot_init init = init_of(&q, q.n_prompt + 5);
        const struct ll_pages_set pages = {q.slot, 0, PER_SEQ, q.page};
        for (uint32_t step = 5; step < OUT; step++) {
            const struct ll_row row = {.slot = q.slot,
                                       .pos = q.n_prompt + step - 1,
                                       .n_tokens = 1,
                                       .flags = LL_ROW_SAMPLE,
                                       .n_top = N_TOP};
            const struct ll_batch batch = {.n_inits = step == 5,
                                           .n_pages_sets = step == 5,
                                           .n_rows = 1,
                                           .inits = &init,
                                           .pages = &pages,
                                           .rows = &row};
            struct ll_result r = demo_run(device, &batch);
            assert_int_equal(r.rows[0].token[0], whole.out[step]);
            assert_memory_equal(&r.rows[0].logprob[0], &whole.logprob[step], sizeof(float));
        }
    }
    cuda->close(device);
}

static void wait_copied(struct ll_device *device, int64_t ticket)
{
    struct ll_text error = {""};
    int rc;

    assert_true(ticket > 0);
    while ((rc = cuda->copied(device, ticket, &error)) == 0)
        ;
    if (rc < 0)
        fail_msg("copied: %s", error.s);
}

/* B3, and swap: out to the host while the step that fills them runs, back into other pages. */
static void pages_come_back_from_the_host_as_they_went(void **state)
{
    static struct sequence whole, q, other;
    struct ll_text error = {""};
    struct ll_copy out[PER_SEQ], in[PER_SEQ];

    (void)state;
    for (int form = 0; form < 2; form++) {
        struct ll_device *device = open_small(forms[form], false);
        make_sequence(&whole, 7);
        run_all(device, &whole, 1);
        make_sequence(&q, 7);
        struct first_step first;
        first_step(&first, &q, q.n_prompt);
        int64_t step = cuda->submit(device, &first.batch, &error);
        for (uint32_t p = 0; p < PER_SEQ; p++) {
            out[p] =
                (struct ll_copy){.dst = 2 * PER_SEQ - 1 - p, .src = q.page[p], .kind = LL_COPY_D2H};
            in[p] = (struct ll_copy){
                .dst = 100 + 3 * p, .src = 2 * PER_SEQ - 1 - p, .kind = LL_COPY_H2D};
        }
        int64_t ticket = cuda->copy(device, out, PER_SEQ, &error);
        assert_int_equal(demo_wait(cuda, device, step).rows[0].token[0], whole.out[0]);
        wait_copied(device, ticket);
        make_sequence(&other, 6); /* somebody else's tokens over the old pages */
        memcpy(other.page, q.page, sizeof(q.page));
        run_all(device, &other, 1);
        wait_copied(device, cuda->copy(device, in, PER_SEQ, &error));
        for (uint32_t p = 0; p < PER_SEQ; p++)
            q.page[p] = 100 + 3 * p;
        for (uint32_t i = 1; i < OUT; i++) {
            first.row = (struct ll_row){
                .slot = q.slot, .pos = q.n_prompt + i - 1, .n_tokens = 1, .flags = LL_ROW_SAMPLE};
            first.batch.n_inits = 0;
            first.batch.n_pages_sets = i == 1;
            struct ll_result r = demo_run(device, &first.batch);
            assert_int_equal(r.rows[0].token[0], whole.out[i]);
            assert_memory_equal(&r.rows[0].logprob[0], &whole.logprob[i], sizeof(float));
        }
        out[0].src = SEQ_MAX * PER_SEQ + 7;
        assert_int_equal(cuda->copy(device, out, 1, &error), LL_E_INVAL);
        cuda->close(device);
    }
}

/* ---- the same model as the CPU's
 * ----------------------------------------------------------------*/
static struct ll_tensor tensor_of(enum ll_tensor_role role, uint32_t layer)
{
    const uint32_t q = shape.n_heads * shape.head_dim, kv = shape.n_kv_heads * shape.head_dim;
    const uint32_t size[LL_TENSOR_ROLES][2] = {{shape.n_vocab, shape.n_embd},
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
    struct ll_tensor t = {.role = role,
                          .layer = layer,
                          .dtype = LL_DTYPE_BF16,
                          .rows = size[role][0],
                          .cols = size[role][1]};

    t.size_bytes = (uint64_t)t.rows * t.cols * 2;
    return t;
}

static bool is_global(enum ll_tensor_role role)
{
    return role == LL_TENSOR_EMBED || role == LL_TENSOR_FINAL_NORM || role == LL_TENSOR_HEAD;
}

/* Feeds the same random weights to any backend, linear layers in 8 bits if told; nan: put one into
 * the embedding of id 5. */
static struct ll_device *open_fed(const struct ll_backend *to, const char *extra, enum feed_as as,
                                  bool has_nan)
{
    struct ll_text error = {""};
    struct ll_backend_caps caps;
    struct ll_device *device = NULL;
    const struct ll_backend_options options = {.struct_bytes = sizeof(options),
                                               .n_slots = SEQ_MAX,
                                               .n_pages = SEQ_MAX * PER_SEQ,
                                               .n_tokens_max = 1024,
                                               .n_rows_max = SEQ_MAX,
                                               .pages_per_seq = PER_SEQ,
                                               .n_weights = 1,
                                               .dtype = LL_DTYPE_BF16,
                                               .n_threads = 1,
                                               .numa_node = -1,
                                               .extra = extra};

    if (to->open(&device, &options, &shape, &caps, &error) < 0)
        fail_msg("open: %s", error.s);
    for (uint32_t layer = 0; layer < shape.n_layers; layer++)
        for (int role = 0; role < LL_TENSOR_ROLES; role++) {
            if (is_global(role) && layer > 0)
                continue;
            const struct ll_tensor t = tensor_of(role, layer);
            const uint64_t n = (uint64_t)t.rows * t.cols;
            uint16_t *x = malloc(n * 2);
            uint64_t rng = (uint64_t)role * 977 + layer * 31 + 5;
            const float spread = t.rows == 1 ? 0.2f : 1.7f / sqrtf((float)t.cols);
            for (uint64_t i = 0; i < n; i++) {
                float u = (float)(int64_t)(ll_splitmix64(&rng) >> 40) * 0x1p-23f - 1.0f;
                x[i] = ll_bf16_from_f32((t.rows == 1) + spread * u);
            }
            if (has_nan && role == LL_TENSOR_EMBED)
                x[5 * shape.n_embd + 9] = 0x7fc0;
            int rc;
            if (as != FEED_BF16 && t.rows > 1 && !is_global(role))
                rc = feed_e4m3(to, device, t, x, as, &error);
            else
                rc = feed_tensor(to, device, &t, x, &error);
            free(x);
            if (rc < 0)
                fail_msg("role %d: %s", role, error.s);
        }
    if (to->seal(device, 0, &error) < 0)
        fail_msg("seal: %s", error.s);
    return device;
}

/* Scores of a prompt's ids, in chunks. */
static void score(const struct ll_backend *with, struct ll_device *device, struct sequence *q,
                  uint32_t chunk, float *out)
{
    const struct ll_slot_init init = init_of(q, q->n_prompt);
    const struct ll_pages_set pages = {q->slot, 0, PER_SEQ, q->page};
    struct ll_text error = {""};

    for (uint32_t at = 0; at < q->n_prompt - 1; at += chunk) {
        const uint32_t left = q->n_prompt - 1 - at;
        const struct ll_row row = {.slot = q->slot,
                                   .pos = at,
                                   .n_tokens = left < chunk ? left : chunk,
                                   .token = q->prompt + at,
                                   .flags = LL_ROW_PROMPT_LOGPROBS};
        const struct ll_batch batch = {.n_inits = at == 0,
                                       .n_pages_sets = at == 0,
                                       .n_rows = 1,
                                       .inits = &init,
                                       .pages = &pages,
                                       .rows = &row};
        int64_t ticket = with->submit(device, &batch, &error);
        struct ll_result r = demo_wait(with, device, ticket);
        assert_int_equal(r.rows[0].n_ext, row.n_tokens);
        for (uint32_t i = 0; i < row.n_tokens; i++) {
            assert_int_equal(r.ext[r.rows[0].ext + i].id, q->prompt[at + i + 1]);
            out[at + i] = r.ext[r.rows[0].ext + i].logprob;
        }
    }
}

static void check_against_cpu(const char *extra, enum feed_as as, double mean_max,
                              double largest_max)
{
    static struct sequence q;
    float mine[PROMPT_MAX], theirs[PROMPT_MAX];
    struct ll_device *gpu = open_fed(cuda, extra, as, false),
                     *cpu = open_fed(ll_backend_cpu(), NULL, as, false);
    double mean = 0, largest = 0;
    uint32_t n = 0;
    static const uint32_t chunks[] = {300, 37, 8, 1};

    for (uint32_t k = 0; k < 4; k++) {
        make_sequence(&q, 7 + 8 * k);
        score(ll_backend_cpu(), cpu, &q, 300, theirs);
        score(cuda, gpu, &q, chunks[k], mine);
        for (uint32_t i = 0; i < q.n_prompt - 1; i++) {
            double d = fabs((double)mine[i] - (double)theirs[i]);
            mean += d;
            largest = d > largest || isnan(d) ? d : largest;
            n++;
        }
    }
    printf("%s weights, %s: logprobs of %u ids: mean difference %.4f, largest %.4f\n",
           as == FEED_BF16   ? "bf16"
           : as == FEED_E4M3 ? "e4m3"
                             : "e4m3 block",
           extra != NULL ? extra : "as it comes", n, mean / n, largest);
    assert_true(mean / n <= mean_max && largest <= largest_max);
    cuda->close(gpu);
    ll_backend_cpu()->close(cpu);
}

/* Both round to bf16 at the same places; sums have another order. Where the GPU narrows activations
 * to 8 bits the logits move by some
 * hundredths of their spread, which is about 1. */
static void a_model_gives_the_cpu_s_log_probabilities(void **state)
{
    (void)state;
    check_against_cpu(NULL, FEED_BF16, 0.02, 0.1);
    check_against_cpu("skinny=0", FEED_BF16, 0.02, 0.1);
    check_against_cpu(NULL, FEED_E4M3, 0.1, 0.6);
    check_against_cpu("skinny=0", FEED_E4M3, 0.1, 0.6);
}

/* Activations stay in 16 bits, as on the CPU. K and V begin inside a block of the merged matrix,
 * and so does up; a down projection whose last block is narrow. */
static void weights_with_block_scales_give_them_too(void **state)
{
    const struct ll_model_shape kept = shape;

    (void)state;
    check_against_cpu(NULL, FEED_E4M3_BLOCKS, 0.02, 0.1);
    shape.n_kv_heads = 3;
    check_against_cpu(NULL, FEED_E4M3_BLOCKS, 0.02, 0.1);
    shape.n_ff = 1040;
    check_against_cpu(NULL, FEED_E4M3_BLOCKS, 0.02, 0.1);
    check_against_cpu("skinny=0", FEED_E4M3_BLOCKS, 0.02, 0.1);
    shape = kept;
}

/* ---- faults in what is given
 * --------------------------------------------------------------------*/
static void a_nan_fails_its_row_and_not_the_step(void **state)
{
    static struct sequence q[3];
    struct ll_slot_init inits[3];
    struct ll_pages_set pages[3];
    struct ll_row rows[3];
    struct ll_device *device = open_fed(cuda, NULL, FEED_BF16, true);

    (void)state;
    for (uint32_t i = 0; i < 3; i++) {
        make_sequence(&q[i], i + 2);
        for (uint32_t t = 0; t < q[i].n_prompt; t++)
            q[i].prompt[t] = q[i].prompt[t] == 5 ? 6 : q[i].prompt[t];
        if (i == 1)
            q[i].prompt[q[i].n_prompt - 1] = 5;
        inits[i] = init_of(&q[i], q[i].n_prompt);
        pages[i] = (struct ll_pages_set){q[i].slot, 0, PER_SEQ, q[i].page};
        rows[i] = (struct ll_row){.slot = q[i].slot,
                                  .n_tokens = q[i].n_prompt,
                                  .token = q[i].prompt,
                                  .flags = LL_ROW_SAMPLE};
    }
    const struct ll_batch batch = {
        .n_inits = 3, .n_pages_sets = 3, .n_rows = 3, .inits = inits, .pages = pages, .rows = rows};
    struct ll_result r = demo_run(device, &batch);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(r.rows[i].status, i == 1 ? LL_ROW_NAN : LL_ROW_OK);
    cuda->close(device);
}

static void bad_batches_are_refused_and_good_ones_go_on(void **state)
{
    static struct sequence q, again;
    static struct ll_row many[SEQ_MAX + 1];
    struct ll_text error = {""};
    struct ll_device *device = open_small(NULL, false);
    const uint32_t ids[2000] = {0};

    (void)state;
    make_sequence(&q, 4);
    run_all(device, &q, 1);
    for (uint32_t i = 0; i <= SEQ_MAX; i++)
        many[i] = (struct ll_row){.slot = i % SEQ_MAX, .n_tokens = 1, .token = ids};
    const struct ll_row bad[] = {
        {.n_tokens = 2000, .token = ids},                        /* more than a batch holds */
        {.n_tokens = 0, .token = ids},                           /* nothing */
        {.n_tokens = 2, .token = ids, .flags = LL_ROW_VERIFY},   /* not served */
        {.n_tokens = 1, .token = ids, .flags = LL_ROW_LATE_MASK} /* not served */
    };
    for (size_t i = 0; i < LL_COUNT(bad); i++) {
        const struct ll_batch batch = {.n_rows = 1, .rows = &bad[i]};
        assert_true(cuda->submit(device, &batch, &error) < 0);
        assert_true(error.s[0] != 0);
    }
    const struct ll_batch full = {.n_rows = SEQ_MAX + 1, .rows = many}, empty = {0};
    assert_int_equal(cuda->submit(device, &full, &error), LL_E_INVAL);
    assert_int_equal(cuda->submit(device, &empty, &error), LL_E_INVAL);
    make_sequence(&again, 4);
    run_all(device, &again, 1);
    assert_same(&q, &again, "after refusals");
    cuda->close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_gives_the_cpu_s_log_probabilities),
        cmocka_unit_test(weights_with_block_scales_give_them_too),
        cmocka_unit_test(deterministic_rows_are_the_same_alone_and_among_64),
        cmocka_unit_test(pages_slots_and_repeats_change_no_bit),
        cmocka_unit_test(a_graph_gives_the_bits_of_its_kernels_launched_one_by_one),
        cmocka_unit_test(a_slot_rebuilt_from_its_history_goes_on_the_same),
        cmocka_unit_test(pages_come_back_from_the_host_as_they_went),
        cmocka_unit_test(a_nan_fails_its_row_and_not_the_step),
        cmocka_unit_test(bad_batches_are_refused_and_good_ones_go_on),
    };
    cuda = cuda_module();
    if (cuda == NULL)
        return LL_SKIPPED;
    return cmocka_run_group_tests_name("kernels/cuda steps", tests, NULL, NULL);
}
