/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cuda_golden.c - the demo model on the CUDA module against golden.json. Skipped
 * where there is no GPU. */
#include "tests/kernels/cuda_module.h"

static const struct ll_backend *cuda;
#define DEMO_BACKEND() cuda
#include "tests/kernels/golden.h"

static void bfloat16_gives_99_percent_of_the_greedy_ids(void **state)
{
    (void)state;
    struct ll_backend_options options = {.dtype = LL_DTYPE_BF16};
    struct answer a = run_cases(options, 2048, 40, 512);

    assert_true(a.n_ids > 500);
    assert_true(a.n_equal >= 0.99 * a.n_ids);
}

static void odd_chunks_give_them_too(void **state)
{
    (void)state;
    struct ll_backend_options options = {.dtype = LL_DTYPE_BF16};
    struct answer a = run_cases(options, 300, 12, 37);

    assert_true(a.n_equal >= 0.99 * a.n_ids);
}

static void an_fp8_cache_stays_close(void **state)
{
    (void)state;
    struct ll_backend_options options = {.dtype = LL_DTYPE_BF16, .kv_dtype = LL_DTYPE_E4M3};
    struct answer a = run_cases(options, 2048, 40, 512);

    /* A 5.8 M-parameter model feels 8-bit keys: most ids, not 99 %. */
    assert_true(a.n_equal >= 0.95 * a.n_ids);
}

/* Every product through our own kernel where it fits, and none: the choice is not what makes it
 * right. */
static void each_path_of_products_gives_99_percent(void **state)
{
    (void)state;
    struct ll_backend_options options = {.dtype = LL_DTYPE_BF16, .extra = "skinny=0"};
    struct answer a = run_cases(options, 2048, 40, 512);

    assert_true(a.n_equal >= 0.99 * a.n_ids);
    options.extra = NULL;
    options.is_deterministic = true;
    a = run_cases(options, 2048, 40, 512);
    assert_true(a.n_equal >= 0.99 * a.n_ids);
}

/* A small model feels 8-bit weights. */
static void e4m3_weights_stay_close(void **state)
{
    (void)state;
    struct ll_backend_options options = {.dtype = LL_DTYPE_BF16};
    demo_form = FEED_E4M3;
    struct answer a = run_cases(options, 2048, 40, 512);

    assert_true(a.n_equal >= 0.95 * a.n_ids);
    options.extra = "skinny=0";
    a = run_cases(options, 2048, 40, 512);
    demo_form = FEED_BF16;
    assert_true(a.n_equal >= 0.95 * a.n_ids);
}

/* The same codes and scales on the CPU backend, which is what they mean. */
static void block_scaled_weights_answer_as_on_the_cpu(void **state)
{
    (void)state;
    struct ll_backend_options options = {.dtype = LL_DTYPE_BF16};
    const struct ll_backend *const gpu = cuda;
    demo_form = FEED_E4M3_BLOCKS;
    struct answer with = run_cases(options, 2048, 40, 512);
    options.extra = "skinny=0";
    struct answer without = run_cases(options, 2048, 40, 512);
    options.extra = NULL;
    options.is_deterministic = true;
    struct answer fixed = run_cases(options, 300, 12, 512);
    options.is_deterministic = false;
    struct answer few = run_cases(options, 300, 12, 512);
    cuda = ll_backend_cpu();
    struct answer cpu = run_cases(options, 300, 12, 512);
    cuda = gpu;
    demo_form = FEED_BF16;

    assert_true(with.n_equal >= 0.95 * with.n_ids);
    assert_true(without.n_equal >= 0.95 * without.n_ids);
    assert_true(fixed.n_equal >= 0.95 * fixed.n_ids);
    assert_true(fabs((double)few.n_equal - cpu.n_equal) <= 0.02 * cpu.n_ids);
}

/* Decodes greedily from one id at a time, so that every product sees few tokens; top logprobs out.
 */
static void decode_top(const char *extra, struct ll_ext *out, uint32_t n_steps)
{
    const struct ll_model_shape small = {
        .n_layers = 2,
        .n_embd = 2048,
        .n_heads = 16,
        .n_kv_heads = 4,
        .head_dim = 128,
        .n_ff = 5632,
        .n_vocab = 4104,
        .context_max = 1024,
        .rope = LL_ROPE_PLAIN,
        .rms_eps = 1e-5f,
        .rope_theta = 10000,
    };
    struct ll_backend_options options = {.dtype = LL_DTYPE_BF16,
                                         .has_dummy_weights = true,
                                         .seed = 7,
                                         .extra = extra,
                                         .pages_per_seq = 16};
    struct ll_backend_caps caps;
    struct ll_device *device = demo_open(&small, options, &caps);
    uint32_t page[16], id;

    for (uint32_t i = 0; i < 16; i++)
        page[i] = 15 - i;
    for (uint32_t step = 0; step < n_steps; step++) {
        id = (step * 2654435761u) % small.n_vocab;
        const struct ll_slot_init init = {
            .n_prompt = n_steps, .n_hist = 1, .hist = &id, .s = demo_greedy()};
        const struct ll_pages_set pages = {.n = 16, .page = page};
        const struct ll_row row = {
            .pos = step, .n_tokens = 1, .token = &id, .n_top = 5, .flags = LL_ROW_SAMPLE};
        const struct ll_batch batch = {.n_inits = step == 0,
                                       .n_pages_sets = step == 0,
                                       .n_rows = 1,
                                       .inits = &init,
                                       .pages = &pages,
                                       .rows = &row};
        struct ll_result r = demo_run(device, &batch);
        assert_int_equal(r.rows[0].status, LL_ROW_OK);
        memcpy(out + step * 5, r.ext + r.rows[0].ext, 5 * sizeof(*out));
    }
    cuda->close(device);
}

/* e4m3 weights: our product takes 16-bit activations, cuBLASLt 8-bit ones, so they differ by the
 * quantisation of activations and no more. */
static void our_product_agrees_with_cublas(void **state)
{
    (void)state;
    enum { N_STEPS = 40 };
    static struct ll_ext ours[N_STEPS * 5], theirs[N_STEPS * 5], again[N_STEPS * 5];
    uint32_t n_equal = 0;
    double sum = 0;

    decode_top("weights=fp8", ours, N_STEPS);
    decode_top("weights=fp8", again, N_STEPS);
    decode_top("weights=fp8,skinny=0", theirs, N_STEPS);
    assert_memory_equal(ours, again, sizeof(ours));
    for (uint32_t i = 0; i < N_STEPS; i++) {
        n_equal += ours[i * 5].id == theirs[i * 5].id;
        sum += fabs(ours[i * 5].logprob - theirs[i * 5].logprob);
    }
    printf("e4m3 weights: %u of %u best ids equal, mean logprob difference %.3f\n", n_equal,
           N_STEPS, sum / N_STEPS);
    assert_true(n_equal >= N_STEPS * 3 / 4);
    assert_true(sum / N_STEPS < 0.1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bfloat16_gives_99_percent_of_the_greedy_ids),
        cmocka_unit_test(odd_chunks_give_them_too),
        cmocka_unit_test(each_path_of_products_gives_99_percent),
        cmocka_unit_test(an_fp8_cache_stays_close),
        cmocka_unit_test(e4m3_weights_stay_close),
        cmocka_unit_test(block_scaled_weights_answer_as_on_the_cpu),
        cmocka_unit_test(our_product_agrees_with_cublas),
    };
    cuda = cuda_module();
    if (cuda == NULL)
        return LL_SKIPPED;
    golden = demo_golden();
    if (golden == NULL || !demo_shape(&shape)) {
        printf("skipped: no demo model (tools/demo-model) or no tests/data/golden.json\n");
        return LL_SKIPPED;
    }
    int rc = cmocka_run_group_tests_name("kernels/cuda golden", tests, NULL, NULL);
    json_decref(golden);
    return rc;
}
