/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/random.h - inputs and comparisons for tests of single operations. */
#ifndef TESTS_KERNELS_RANDOM_H
#define TESTS_KERNELS_RANDOM_H

#include "base/rng.h"
#include "base/numbers.h"
#include "tests/harness.h"

#include <math.h>

#define GUARD      64          /* numbers after a buffer that nobody may touch */
#define GUARD_BITS 0x7fc0deadu /* a NaN whose payload is looked for */

static uint64_t random_state;

static inline float random_unit(void) /* -1 .. 1 */
{
    return (float)(int64_t)(ll_splitmix64(&random_state) >> 40) * 0x1p-23f - 1.0f;
}

/* Skewed on purpose: a mean, and every 97th number a hundred times larger. */
static inline float random_skewed(uint64_t i)
{
    float x = random_unit() + 0.25f;

    return i % 97 == 13 ? 100 * x : x;
}

/* n numbers and a guard, all NaN: what is not written shows, what is written past the end too. */
static inline float *poisoned(size_t n)
{
    float *x = aligned_alloc(64, ((n + GUARD) * sizeof(*x) + 63) & ~(size_t)63);

    for (size_t i = 0; i < n + GUARD; i++)
        x[i] = ll_f32_from_bits(GUARD_BITS);
    return x;
}

static inline void check_guard(const float *x, size_t n)
{
    for (size_t i = n; i < n + GUARD; i++)
        assert_int_equal(ll_f32_bits(x[i]), GUARD_BITS);
}

/* ||x - y|| / ||y||; a NaN anywhere gives a NaN, which no tolerance passes. */
static inline double distance(const float *x, const double *y, size_t n)
{
    double difference = 0, length = 0;

    for (size_t i = 0; i < n; i++) {
        difference += (x[i] - y[i]) * (x[i] - y[i]);
        length += y[i] * y[i];
    }
    return sqrt(difference) / (length > 0 ? sqrt(length) : 1);
}

static inline void assert_within(double value, double tolerance, const char *what)
{
    if (!(value <= tolerance))
        fail_msg("%s: %g is over %g", what, value, tolerance);
}

static inline void assert_same_bits(const float *x, const float *y, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (ll_f32_bits(x[i]) != ll_f32_bits(y[i]))
            fail_msg("%s: number %zu is %.9g and %.9g", what, i, (double)x[i], (double)y[i]);
}

#endif
