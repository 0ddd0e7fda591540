/* SPDX-License-Identifier: Apache-2.0 */
/* tests/base/test_numbers.c - e4m3 against its definition, every code and every tie. */
#include "base/numbers.h"
#include "base/rng.h"
#include "tests/harness.h"

#include <math.h>

/* The definition, in double: (-1)^sign * 2^(exponent - 7) * 1.fraction, without infinities. */
static double defined(int code)
{
    int exponent = code >> 3 & 15, fraction = code & 7;
    double size = exponent == 0 ? ldexp(fraction, -9) : ldexp(8 + fraction, exponent - 10);

    if ((code & 0x7f) == 0x7f)
        return NAN;
    return code & 0x80 ? -size : size;
}

static void every_code_widens_exactly_and_comes_back(void **state)
{
    (void)state;
    for (int code = 0; code < 256; code++) {
        float x = ll_f32_from_e4m3((uint8_t)code);
        if (isnan(defined(code))) {
            assert_true(isnan(x));
        } else {
            assert_true((double)x == defined(code));
            assert_int_equal(signbit(x) != 0, code >> 7);
        }
        assert_int_equal(ll_e4m3_from_f32(x), code);
    }
    assert_true(ll_f32_from_e4m3(0x7e) == LL_E4M3_MAX);
}

/* The code of the nearest number, ties to the even code, sizes past 448 to 448. */
static int nearest(float x)
{
    int best = 0;

    for (int code = 1; code < 0x7f; code++) {
        double now = fabs(fabs((double)x) - defined(code));
        double before = fabs(fabs((double)x) - defined(best));
        if (now < before || (now == before && code % 2 == 0))
            best = code;
    }
    return best | (signbit(x) ? 0x80 : 0);
}

static void narrowing_is_to_nearest_even_and_saturates(void **state)
{
    uint64_t random = ll_test_seed();

    (void)state;
    for (int code = 0; code < 0x7e; code++) { /* between neighbours: just below, the tie, above */
        float tie = (float)((defined(code) + defined(code + 1)) / 2);
        float near[3] = {nextafterf(tie, 0), tie, nextafterf(tie, 1000)};
        for (int i = 0; i < 3; i++) {
            assert_int_equal(ll_e4m3_from_f32(near[i]), nearest(near[i]));
            assert_int_equal(ll_e4m3_from_f32(-near[i]), nearest(-near[i]));
        }
    }
    for (int i = 0; i < 200000; i++) {
        float x = ll_f32_from_bits((uint32_t)ll_splitmix64(&random));
        if (!isnan(x))
            assert_int_equal(ll_e4m3_from_f32(x), nearest(x));
    }
    assert_int_equal(ll_e4m3_from_f32(INFINITY), 0x7e);
    assert_int_equal(ll_e4m3_from_f32(-1e30f), 0xfe);
    assert_int_equal(ll_e4m3_from_f32(-NAN) & 0x7f, 0x7f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_widens_exactly_and_comes_back),
        cmocka_unit_test(narrowing_is_to_nearest_even_and_saturates),
    };

    return cmocka_run_group_tests_name("base/numbers", tests, NULL, NULL);
}
