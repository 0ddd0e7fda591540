/* SPDX-License-Identifier: Apache-2.0 */
/* tests/base/test_base.c - the helpers all others stand on. */
#include "tests/harness.h"

#include "base/bits.h"
#include "base/err.h"
#include "base/hist.h"
#include "base/rng.h"

static void a_histogram_bucket_holds_its_values(void **state)
{
    (void)state;
    uint64_t seed = ll_test_seed();

    for (int i = 0; i < 100000; i++) {
        uint64_t value = ll_splitmix64(&seed) >> (16 + ll_splitmix64(&seed) % 48);
        uint32_t bucket = ll_hist_bucket(value);
        assert_true(bucket < LL_HIST_BUCKETS);
        assert_true(ll_hist_bucket_low(bucket) <= value);
        if (bucket + 1 < LL_HIST_BUCKETS)
            assert_true(value < ll_hist_bucket_low(bucket + 1));
    }
}

static void quantiles_are_within_a_bucket(void **state)
{
    (void)state;
    static struct ll_hist hist;

    for (uint64_t i = 1; i <= 100000; i++)
        ll_hist_add(&hist, i);
    uint64_t p50 = ll_hist_quantile(&hist, 0.5), p99 = ll_hist_quantile(&hist, 0.99);
    assert_true(p50 > 48400 && p50 < 51600);
    assert_true(p99 > 95800 && p99 <= 100000);
    assert_int_equal(ll_hist_quantile(&hist, 1.0), 100000);
}

/* Known answers of the Random123 distribution (kat_vectors, philox4x32 10 rounds). */
static void philox_gives_the_published_vectors(void **state)
{
    (void)state;
    uint32_t zero[4] = {0, 0, 0, 0}, ones[4] = {~0u, ~0u, ~0u, ~0u}, out[4];

    ll_philox4x32(0, zero, out);
    assert_int_equal(out[0], 0x6627e8d5);
    assert_int_equal(out[1], 0xe169c58d);
    assert_int_equal(out[2], 0xbc57ac4c);
    assert_int_equal(out[3], 0x9b00dbd8);
    ll_philox4x32(~0ull, ones, out);
    assert_int_equal(out[0], 0x408f276d);
    assert_int_equal(out[1], 0x41c83b0e);
    assert_int_equal(out[2], 0xa20bc7c6);
    assert_int_equal(out[3], 0x6d5451fd);
}

static void a_unit_float_is_never_0_or_1(void **state)
{
    (void)state;
    assert_true(ll_unit_f32(0) > 0.0f);
    assert_true(ll_unit_f32(UINT32_MAX) < 1.0f);
    assert_true(ll_unit_f32(UINT32_MAX) > 0.9999f);
}

static void spans_never_wrap(void **state)
{
    (void)state;
    assert_true(ll_span_fits(0, 10, 10));
    assert_true(ll_span_fits(10, 0, 10));
    assert_false(ll_span_fits(1, 10, 10));
    assert_false(ll_span_fits(11, 0, 10));
    assert_false(ll_span_fits(UINT64_MAX, 2, 10));
    assert_false(ll_span_fits(2, UINT64_MAX, 10));
    assert_int_equal(ll_index_nospec(3, 4), 3);
    assert_int_equal(ll_index_nospec(4, 4), 0);
    assert_int_equal(ll_index_nospec(UINT32_MAX, 4), 0);
}

static void an_error_keeps_its_text_and_takes_a_prefix(void **state)
{
    (void)state;
    assert_int_equal(LL_ERR(-1002, "field %s", "x"), -1002);
    assert_string_equal(ll_err_text(), "field x");
    assert_int_equal(ll_err_prefix(-1002, "file %d", 7), -1002);
    assert_string_equal(ll_err_text(), "file 7: field x");
    errno = ENOENT;
    assert_int_equal(LL_ERRNO("open %s", "y"), -ENOENT);
    assert_string_equal(ll_err_text(), "open y: No such file or directory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_histogram_bucket_holds_its_values),
        cmocka_unit_test(quantiles_are_within_a_bucket),
        cmocka_unit_test(philox_gives_the_published_vectors),
        cmocka_unit_test(a_unit_float_is_never_0_or_1),
        cmocka_unit_test(spans_never_wrap),
        cmocka_unit_test(an_error_keeps_its_text_and_takes_a_prefix),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
