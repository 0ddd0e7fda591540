/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/cuda_ops.h - device memory with poison and guards, 8-bit and 16-bit numbers, for
 * the tests of single CUDA operations.
 *
 * Every buffer lies between guards of GUARD_BYTES and starts as 0xff throughout: a NaN in fp32,
 * bf16 and e4m3. What is not written shows as a NaN; dev_end() finds what was written outside. */
#ifndef TESTS_KERNELS_CUDA_OPS_H
#define TESTS_KERNELS_CUDA_OPS_H

#include "kernels/cuda/ops.h"
#include "tests/kernels/random.h"

#include <cuda_runtime_api.h>
#include <errno.h>
#include <unistd.h>

enum { GUARD_BYTES = 1024, BUFFERS_MAX = 64 };

static struct dev_buffer {
    unsigned char *base;
    size_t n_bytes; /* between the guards */
} dev_buffers[BUFFERS_MAX];
static int n_dev_buffers;

static inline void cuda_ok(cudaError_t s, const char *what)
{
    if (s != cudaSuccess)
        fail_msg("%s: %s", what, cudaGetErrorString(s));
}

/* Waits for what was launched and finds out whether it went well. */
static inline void launched_ok(int rc, const char *what)
{
    if (rc != 0)
        fail_msg("%s: %d (%s)", what, rc, cudaGetErrorString(cudaGetLastError()));
    cuda_ok(cudaDeviceSynchronize(), what);
}

static inline size_t guarded_bytes(size_t n_bytes)
{
    return (n_bytes + 255) / 256 * 256;
}

static inline void *dev_new(size_t n_bytes)
{
    struct dev_buffer *b = &dev_buffers[n_dev_buffers++];
    const size_t all = guarded_bytes(n_bytes) + 2 * GUARD_BYTES;

    assert_true(n_dev_buffers <= BUFFERS_MAX);
    cuda_ok(cudaMalloc((void **)&b->base, all), "cudaMalloc");
    cuda_ok(cudaMemset(b->base, 0xff, all), "cudaMemset");
    b->n_bytes = n_bytes;
    return b->base + GUARD_BYTES;
}

static inline void *dev_copy(const void *host, size_t n_bytes)
{
    void *p = dev_new(n_bytes);

    cuda_ok(cudaMemcpy(p, host, n_bytes, cudaMemcpyHostToDevice), "to the device");
    return p;
}

static inline void *dev_zero(size_t n_bytes)
{
    void *p = dev_new(n_bytes);

    cuda_ok(cudaMemset(p, 0, n_bytes), "cudaMemset");
    return p;
}

static inline void dev_poison(void *p, size_t n_bytes)
{
    cuda_ok(cudaMemset(p, 0xff, n_bytes), "cudaMemset");
}

/* A host copy of device memory; the caller frees it. */
static inline void *dev_get(const void *p, size_t n_bytes)
{
    void *host = malloc(n_bytes);

    cuda_ok(cudaMemcpy(host, p, n_bytes, cudaMemcpyDeviceToHost), "from the device");
    return host;
}

/* Checks every guard and frees every buffer. */
static inline void dev_end(void)
{
    for (int i = 0; i < n_dev_buffers; i++) {
        const struct dev_buffer *b = &dev_buffers[i];
        const size_t all = guarded_bytes(b->n_bytes) + 2 * GUARD_BYTES;
        unsigned char *host = dev_get(b->base, all);
        for (size_t k = 0; k < all; k++)
            if ((k < GUARD_BYTES || k >= GUARD_BYTES + b->n_bytes) && host[k] != 0xff)
                fail_msg("buffer %d of %zu bytes: byte %zd was written", i, b->n_bytes,
                         (ssize_t)k - GUARD_BYTES);
        free(host);
        cudaFree(b->base);
    }
    n_dev_buffers = 0;
}

/* ---- numbers --------------------------------------------------------------------------------*/
static inline float e4m3_value(uint8_t code)
{
    const int e = code >> 3 & 15, m = code & 7;
    const float x = e == 15 && m == 7 ? NAN
                    : e == 0          ? ldexpf((float)m, -9)
                                      : ldexpf(1.0f + (float)m / 8, e - 7);

    return code & 0x80 ? -x : x;
}

/* Is code what x rounds to? A thousandth of slack: the quotient may be rounded before. */
static inline void check_e4m3(uint8_t code, double x, const char *what)
{
    const double size = fabs(x) > 448 ? 448 : fabs(x);
    const int e = size < 0x1p-6 ? -6 : ilogb(size);
    const double half = ldexp(0.5, e - 3), got = (double)e4m3_value(code);

    if (!(fabs(got - copysign(size, x)) <= half * 1.001 + size * 1e-6))
        fail_msg("%s: %g became %g", what, x, got);
}

/* n bf16 numbers, skewed, times width. */
static inline uint16_t *random_bf16s(size_t n, float width)
{
    uint16_t *x = malloc(n * sizeof(*x));

    for (size_t i = 0; i < n; i++)
        x[i] = ll_bf16_from_f32(width * random_skewed(i));
    return x;
}

/* Codes of all kinds but NaN: subnormals and +-448 come often enough. */
static inline uint8_t *random_e4m3s(size_t n)
{
    uint8_t *x = malloc(n);

    for (size_t i = 0; i < n; i++)
        do
            x[i] = (uint8_t)ll_splitmix64(&random_state);
        while ((x[i] & 0x7f) == 0x7f);
    return x;
}

static inline float *random_scales(size_t n)
{
    float *x = malloc(n * sizeof(*x));

    for (size_t i = 0; i < n; i++)
        x[i] = 0.001f + 0.01f * fabsf(random_unit());
    return x;
}

static inline float *widened(const uint16_t *x, size_t n)
{
    float *y = malloc(n * sizeof(*y));

    for (size_t i = 0; i < n; i++)
        y[i] = ll_f32_from_bf16(x[i]);
    return y;
}

/* A bf16 result of the device, widened. */
static inline float *get_bf16s(const void *p, size_t n)
{
    uint16_t *x = dev_get(p, n * sizeof(*x));
    float *y = widened(x, n);

    free(x);
    return y;
}

/* ---- running --------------------------------------------------------------------------------*/
/* 77 where no GPU can be used. */
static inline int cuda_tests_begin(void)
{
    int n = 0;

    if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) {
        printf("skipped: no GPU\n");
        return LL_SKIPPED;
    }
    random_state = ll_test_seed();
    return 0;
}

/* LL_TEST_QUICK: fewer and smaller cases, for compute-sanitizer. */
static inline bool is_quick(void)
{
    return getenv("LL_TEST_QUICK") != NULL;
}

#endif
