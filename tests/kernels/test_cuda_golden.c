/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cuda_golden.c - the demo model on the CUDA module against golden.json. Skipped
 * where there is no GPU. */
#include "kernels/backend.h"

#include <dlfcn.h>

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
    assert_true(a.n_equal >= 0.90 * a.n_ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bfloat16_gives_99_percent_of_the_greedy_ids),
        cmocka_unit_test(odd_chunks_give_them_too),
        cmocka_unit_test(an_fp8_cache_stays_close),
    };
    void *module = dlopen(LL_BUILD_DIR "/llring-cuda.so", RTLD_NOW | RTLD_LOCAL);

    if (module == NULL || access("/dev/nvidiactl", F_OK) != 0) {
        printf("skipped: no CUDA module or no GPU\n");
        return LL_SKIPPED;
    }
    const struct ll_backend *(*get)(void);
    *(void **)&get = dlsym(module, "ll_backend_cuda");
    cuda = get();
    golden = demo_golden();
    if (golden == NULL || !demo_shape(&shape)) {
        printf("skipped: no demo model (tools/demo-model) or no tests/data/golden.json\n");
        return LL_SKIPPED;
    }
    int rc = cmocka_run_group_tests_name("kernels/cuda golden", tests, NULL, NULL);
    json_decref(golden);
    return rc;
}
