/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cpu_golden.c - the demo model on the CPU backend against golden.json, which a
 * float32 PyTorch model wrote: greedy ids, their log probabilities, the prompt's, the top 20. */
#include "tests/kernels/golden.h"

/* Sanitizers cost a factor of 20 and more: a sample of the cases then. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { CASES_MAX = 6, PROMPT_MAX = 60, IDS_MIN = 40, PORTABLE_CASES = 1 };
#else
enum { CASES_MAX = 40, PROMPT_MAX = 2048, IDS_MIN = 500, PORTABLE_CASES = 2 };
#endif

static void float32_gives_every_greedy_id_and_logprob(void **state)
{
    (void)state;
    struct answer a =
        run_cases((struct ll_backend_options){.n_threads = 2}, PROMPT_MAX, CASES_MAX, 512);

    assert_true(a.n_ids >= IDS_MIN);
    assert_int_equal(a.n_equal, a.n_ids);
    assert_true(a.worst < F32_WORST);
}

static void portable_code_gives_them_too(void **state)
{
    (void)state;
    struct ll_backend_options options = {.n_threads = 1, .extra = "isa=portable"};
    struct answer a = run_cases(options, 42, PORTABLE_CASES, 20);

    assert_true(a.n_ids >= 4);
    assert_int_equal(a.n_equal, a.n_ids);
    assert_true(a.worst < F32_WORST);
}

static void bfloat16_gives_99_percent_of_them(void **state)
{
    (void)state;
    struct ll_backend_options options = {.n_threads = 2, .dtype = LL_DTYPE_BF16};
    struct answer a = run_cases(options, PROMPT_MAX, CASES_MAX, 512);

    assert_true(a.n_ids >= IDS_MIN);
    assert_true(a.n_equal >= 0.99 * a.n_ids);
    /* And it is bf16 that was computed in: float32's closeness would be a bug here. */
    assert_true(a.worst > F32_WORST);
}

/* Keys and values of the demo model need no scale. */
static void pages_in_e4m3_give_98_percent_of_them(void **state)
{
    (void)state;
    struct ll_backend_options options = {.n_threads = 2, .kv_dtype = LL_DTYPE_E4M3};
    struct answer a = run_cases(options, PROMPT_MAX, CASES_MAX, 512);

    assert_true(a.n_ids >= IDS_MIN);
    assert_true(a.n_equal >= 0.98 * a.n_ids);
    assert_true(a.worst > F32_WORST);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(float32_gives_every_greedy_id_and_logprob),
        cmocka_unit_test(portable_code_gives_them_too),
        cmocka_unit_test(bfloat16_gives_99_percent_of_them),
        cmocka_unit_test(pages_in_e4m3_give_98_percent_of_them),
    };

    golden = demo_golden();
    if (golden == NULL || !demo_shape(&shape)) {
        fprintf(stderr, "tools/demo-model or tests/data/golden.json cannot be read\n");
        return 1;
    }
    int rc = cmocka_run_group_tests_name("kernels/cpu golden", tests, NULL, NULL);
    json_decref(golden);
    return rc;
}
