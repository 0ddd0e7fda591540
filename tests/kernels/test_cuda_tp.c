/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cuda_tp.c - a model in parts on the CUDA module: the same answers as in one
 * piece, within the order of sums. Skipped where there is no GPU. */
#include "tests/kernels/cuda_module.h"

static const struct ll_backend *cuda;
#define DEMO_BACKEND() cuda
#include "tests/kernels/golden.h"

static bool has_demo;

/* Where the demo model is not, what needs it is skipped. */
static void need_demo(void)
{
    if (has_demo)
        return;
    printf("skipped: no demo model (tools/demo-model) or no tests/data/golden.json\n");
    skip();
}

static void the_demo_model_in_2_and_4_parts_gives_99_percent_of_the_ids(void **state)
{
    (void)state;
    need_demo();
    for (uint32_t n = 2; n <= 4; n *= 2) { /* four share the two KV heads */
        struct ll_backend_options options = {
            .dtype = LL_DTYPE_BF16, .tensor_parallel = n, .extra = "tp=lockstep"};
        struct answer a = run_cases(options, 2048, 40, 512);
        assert_true(a.n_ids > 500);
        assert_true(a.n_equal >= 0.99 * a.n_ids);
    }
}

static void odd_chunks_and_an_fp8_cache_too(void **state)
{
    (void)state;
    need_demo();
    struct ll_backend_options options = {
        .dtype = LL_DTYPE_BF16, .tensor_parallel = 2, .extra = "tp=lockstep"};
    struct answer a = run_cases(options, 300, 12, 37);

    assert_true(a.n_equal >= 0.99 * a.n_ids);
    options.kv_dtype = LL_DTYPE_E4M3;
    a = run_cases(options, 2048, 40, 512);
    assert_true(a.n_equal >= 0.95 * a.n_ids);
}

static void e4m3_weights_and_both_paths_of_products_too(void **state)
{
    (void)state;
    need_demo();
    struct ll_backend_options options = {
        .dtype = LL_DTYPE_BF16, .tensor_parallel = 2, .extra = "tp=lockstep"};
    demo_form = FEED_E4M3;
    struct answer a = run_cases(options, 2048, 40, 512);

    assert_true(a.n_equal >= 0.95 * a.n_ids);
    options.extra = "tp=lockstep,skinny=0";
    a = run_cases(options, 2048, 40, 512);
    demo_form = FEED_BF16;
    assert_true(a.n_equal >= 0.95 * a.n_ids);
}

/* ---- a random model that eight parts divide ---------------------------------------------------*/
static const struct ll_model_shape eight = {
    .n_layers = 3,
    .n_embd = 1024,
    .n_heads = 16,
    .n_kv_heads = 4,
    .head_dim = 64,
    .n_ff = 2048,
    .n_vocab = 2037, /* nothing divides it */
    .context_max = 1024,
    .rope = LL_ROPE_PLAIN,
    .rms_eps = 1e-5f,
    .rope_theta = 10000,
};
enum { N_PROMPT = 70, N_STEPS = 12, N_TOP = 20 };

static int feed_random(struct ll_device *device, enum ll_tensor_role role, uint32_t layer,
                       uint32_t rows, uint32_t cols, enum feed_as as, struct ll_text *error)
{
    struct ll_tensor t = {.role = role,
                          .layer = layer,
                          .part = LL_PART_WEIGHT,
                          .dtype = LL_DTYPE_BF16,
                          .rows = rows,
                          .cols = cols,
                          .size_bytes = (uint64_t)rows * cols * 2};
    uint16_t *x = malloc(t.size_bytes);
    uint64_t seed = role * 131 + layer * 7919 + 1;
    const float spread = rows == 1 ? 0.2f : 1.7f / sqrtf((float)cols);

    for (size_t i = 0; i < (size_t)rows * cols; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        const float u = (float)(seed >> 40) * 0x1p-23f - 1.0f;
        x[i] = ll_bf16_from_f32(u * spread + (rows == 1 ? 1.0f : 0.0f));
    }
    int rc = as != FEED_BF16 ? feed_e4m3(cuda, device, t, x, as, error)
                             : feed_tensor(cuda, device, &t, x, error);
    free(x);
    return rc;
}

static struct ll_device *open_eight(uint32_t n_parts, enum feed_as as, const char *extra)
{
    const struct ll_model_shape *s = &eight;
    const uint32_t q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
    const struct ll_backend_options options = {.struct_bytes = sizeof(options),
                                               .n_slots = 8,
                                               .n_tokens_max = 128,
                                               .n_rows_max = 8,
                                               .pages_per_seq = 16,
                                               .n_pages = 64,
                                               .n_host_pages = 8,
                                               .n_weights = 1,
                                               .numa_node = -1,
                                               .dtype = LL_DTYPE_BF16,
                                               .tensor_parallel = n_parts,
                                               .extra = extra};
    struct ll_backend_caps caps;
    struct ll_text error = {""};
    struct ll_device *device = NULL;
    int rc = cuda->open(&device, &options, s, &caps, &error);

    if (rc >= 0)
        rc = feed_random(device, LL_TENSOR_EMBED, 0, s->n_vocab, s->n_embd, FEED_BF16, &error);
    if (rc >= 0)
        rc = feed_random(device, LL_TENSOR_HEAD, 0, s->n_vocab, s->n_embd, FEED_BF16, &error);
    if (rc >= 0)
        rc = feed_random(device, LL_TENSOR_FINAL_NORM, 0, 1, s->n_embd, FEED_BF16, &error);
    for (uint32_t i = 0; i < s->n_layers && rc >= 0; i++) {
        const struct {
            enum ll_tensor_role role;
            uint32_t rows, cols;
        } parts[] = {
            {LL_TENSOR_ATTN_NORM, 1, s->n_embd},  {LL_TENSOR_FFN_NORM, 1, s->n_embd},
            {LL_TENSOR_Q, q, s->n_embd},          {LL_TENSOR_K, kv, s->n_embd},
            {LL_TENSOR_V, kv, s->n_embd},         {LL_TENSOR_O, s->n_embd, q},
            {LL_TENSOR_GATE, s->n_ff, s->n_embd}, {LL_TENSOR_UP, s->n_ff, s->n_embd},
            {LL_TENSOR_DOWN, s->n_embd, s->n_ff},
        };
        for (size_t p = 0; p < LL_COUNT(parts) && rc >= 0; p++)
            rc = feed_random(device, parts[p].role, i, parts[p].rows, parts[p].cols,
                             parts[p].rows > 1 ? as : FEED_BF16, &error);
    }
    if (rc >= 0)
        rc = cuda->seal(device, 0, &error);
    if (rc < 0)
        fail_msg("%u parts: %d %s", n_parts, rc, error.s);
    assert_int_equal(caps.n_ranks, n_parts);
    return device;
}

/* A prompt in two chunks, its first page out to the host and back to another place, then decode of
 * given ids: the best 20 of every step. */
static void run_eight(struct ll_device *device, struct ll_ext *out)
{
    uint32_t ids[N_PROMPT + N_STEPS], page[16];

    for (uint32_t i = 0; i < N_PROMPT + N_STEPS; i++)
        ids[i] = (i * 2654435761u >> 7) % eight.n_vocab;
    for (uint32_t i = 0; i < 16; i++)
        page[i] = 31 - i;
    const struct ll_slot_init init = {
        .slot = 3, .n_prompt = N_PROMPT, .n_hist = N_PROMPT, .hist = ids, .s = demo_greedy()};
    const struct ll_pages_set pages = {.slot = 3, .n = 16, .page = page};
    for (uint32_t at = 0; at < N_PROMPT + N_STEPS;) {
        const uint32_t n = at < N_PROMPT ? N_PROMPT / 2 : 1;
        const struct ll_row row = {.slot = 3,
                                   .pos = at,
                                   .n_tokens = n,
                                   .token = ids + at,
                                   .n_top = N_TOP,
                                   .flags = LL_ROW_SAMPLE};
        const struct ll_batch batch = {.n_inits = at == 0,
                                       .n_pages_sets = at == 0 || at == N_PROMPT,
                                       .n_rows = 1,
                                       .inits = &init,
                                       .pages = &pages,
                                       .rows = &row};
        if (at == N_PROMPT) {
            struct ll_text error = {""};
            const struct ll_copy away = {.dst = 5, .src = page[0], .kind = LL_COPY_D2H},
                                 back = {.dst = 60, .src = 5, .kind = LL_COPY_H2D};
            int64_t ticket = cuda->copy(device, &away, 1, &error);
            while (cuda->copied(device, ticket, &error) == 0)
                ;
            ticket = cuda->copy(device, &back, 1, &error);
            while (cuda->copied(device, ticket, &error) == 0)
                ;
            page[0] = 60;
        }
        struct ll_result r = demo_run(device, &batch);
        assert_int_equal(r.rows[0].status, LL_ROW_OK);
        at += n;
        if (at > N_PROMPT) {
            memcpy(out, r.ext + r.rows[0].ext, N_TOP * sizeof(*out));
            out += N_TOP;
        }
    }
}

/* A random model's best ids lie close together: the one's best must be as good in the other, within
 * the limit. */
static void compare_with_one(const struct ll_ext *one, const struct ll_ext *many, uint32_t n_parts,
                             double limit)
{
    uint32_t n_equal = 0;
    double worst = 0;

    for (uint32_t i = 0; i < N_STEPS; i++) {
        const struct ll_ext *a = one + i * N_TOP, *b = many + i * N_TOP;
        double behind = INFINITY; /* of one's best id in many */
        n_equal += a[0].id == b[0].id;
        for (uint32_t k = 0; k < N_TOP; k++)
            for (uint32_t j = 0; j < N_TOP; j++)
                if (a[k].id == b[j].id) {
                    const double d = fabs(a[k].logprob - b[j].logprob);
                    worst = d > worst || isnan(d) ? d : worst;
                    behind = k == 0 ? b[0].logprob - b[j].logprob : behind;
                }
        assert_true(behind <= 2 * limit);
    }
    printf("%u parts: %u of %u best ids equal, worst logprob difference %.4f\n", n_parts, n_equal,
           N_STEPS, worst);
    assert_true(worst < limit);
}

static void eight_parts_give_what_one_gives(void **state)
{
    (void)state;
    static struct ll_ext one[N_STEPS * N_TOP], many[N_STEPS * N_TOP], again[N_STEPS * N_TOP];
    static const struct {
        enum feed_as as;
        uint32_t n_max; /* ranks that do not share a block of scales */
        double limit;
    } forms[] = {{FEED_BF16, 8, 0.1}, {FEED_E4M3, 8, 0.2}, {FEED_E4M3_BLOCKS, 2, 0.2}};
    for (size_t i = 0; i < LL_COUNT(forms); i++) {
        struct ll_device *device = open_eight(1, forms[i].as, NULL);
        run_eight(device, one);
        cuda->close(device);
        for (uint32_t n = 2; n <= forms[i].n_max; n *= 2) {
            device = open_eight(n, forms[i].as, "tp=lockstep");
            run_eight(device, many);
            run_eight(device, again);
            cuda->close(device);
            assert_memory_equal(many, again, sizeof(many));
            compare_with_one(one, many, n, forms[i].limit);
        }
    }
}

/* On GPUs of their own the parts give the very bits that they give in lockstep. */
static void two_gpus_give_the_bits_of_lockstep(void **state)
{
    (void)state;
    static struct ll_ext lockstep[N_STEPS * N_TOP], peer[N_STEPS * N_TOP];
    static const char *const extras[][2] = {
        {"tp=lockstep", ""}, {"tp=lockstep,graph=0", "graph=0"}, {"tp=lockstep", "graph=0"}};
    const struct ll_backend_options probe = {.struct_bytes = sizeof(probe),
                                             .n_slots = 1,
                                             .n_tokens_max = 16,
                                             .n_rows_max = 1,
                                             .pages_per_seq = 4,
                                             .n_pages = 8,
                                             .n_weights = 1,
                                             .dtype = LL_DTYPE_BF16,
                                             .has_dummy_weights = true,
                                             .tensor_parallel = 2};
    struct ll_backend_caps caps;
    struct ll_text error = {""};
    struct ll_device *device = NULL;
    if (cuda->open(&device, &probe, &eight, &caps, &error) < 0) {
        printf("%s\n", error.s);
        assert_non_null(strstr(error.s, "--tensor-parallel-size 2"));
        skip();
    }
    cuda->close(device);
    for (size_t i = 0; i < LL_COUNT(extras); i++)
        for (int form = FEED_BF16; form <= FEED_E4M3; form++) {
            device = open_eight(2, (enum feed_as)form, extras[i][0]);
            run_eight(device, lockstep);
            cuda->close(device);
            device = open_eight(2, (enum feed_as)form, extras[i][1]);
            for (int again = 0; again < 3; again++) {
                run_eight(device, peer);
                assert_memory_equal(peer, lockstep, sizeof(peer));
            }
            cuda->close(device);
        }
    need_demo();
    struct ll_backend_options options = {.dtype = LL_DTYPE_BF16, .tensor_parallel = 2};
    struct answer a = run_cases(options, 2048, 40, 512);
    assert_true(a.n_equal >= 0.99 * a.n_ids);
}

static void what_cannot_be_cut_is_refused(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_parts;
        bool is_dummy;
        const char *extra, *says;
    } bad[] = {
        {3, true, "tp=lockstep", "takes 1, 2, 4 or 8"},
        {16, true, "tp=lockstep", "takes 1, 2, 4 or 8"},
        {8, true, "tp=lockstep", "do not divide 4 heads"},
        {2, false, "tp=shard", "--load-format dummy"},
    };
    struct ll_model_shape few = eight;
    few.n_heads = few.n_kv_heads = 4;
    for (size_t i = 0; i < LL_COUNT(bad); i++) {
        const struct ll_backend_options options = {.struct_bytes = sizeof(options),
                                                   .n_slots = 2,
                                                   .n_tokens_max = 16,
                                                   .n_rows_max = 2,
                                                   .pages_per_seq = 4,
                                                   .n_pages = 8,
                                                   .n_weights = 1,
                                                   .dtype = LL_DTYPE_BF16,
                                                   .has_dummy_weights = bad[i].is_dummy,
                                                   .tensor_parallel = bad[i].n_parts,
                                                   .extra = bad[i].extra};
        struct ll_backend_caps caps;
        struct ll_text error = {""};
        struct ll_device *device = NULL;
        assert_true(cuda->open(&device, &options, &few, &caps, &error) < 0);
        if (strstr(error.s, bad[i].says) == NULL)
            fail_msg("case %zu: \"%s\" lacks \"%s\"", i, error.s, bad[i].says);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_cut_is_refused),
        cmocka_unit_test(eight_parts_give_what_one_gives),
        cmocka_unit_test(two_gpus_give_the_bits_of_lockstep),
        cmocka_unit_test(the_demo_model_in_2_and_4_parts_gives_99_percent_of_the_ids),
        cmocka_unit_test(odd_chunks_and_an_fp8_cache_too),
        cmocka_unit_test(e4m3_weights_and_both_paths_of_products_too),
    };
    cuda = cuda_module();
    if (cuda == NULL)
        return LL_SKIPPED;
    golden = demo_golden();
    has_demo = golden != NULL && demo_shape(&shape);
    int rc = cmocka_run_group_tests_name("kernels/cuda tp", tests, NULL, NULL);
    json_decref(golden);
    return rc;
}
