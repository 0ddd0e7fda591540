/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/reference.h - a Llama in double, as plainly as it can be written: what a set of
 * weights means, to hold a backend against. */
#ifndef TESTS_RUNTIME_REFERENCE_H
#define TESTS_RUNTIME_REFERENCE_H

#include "base/numbers.h"
#include "kernels/backend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static inline void reference_norm(double *out, const double *x, const double *w, uint32_t n,
                                  double eps)
{
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (uint32_t i = 0; i < n; i++)
        out[i] = x[i] / sqrt(sum / n + eps) * w[i];
}

static inline void reference_product(double *out, const double *w, const double *x, uint32_t rows,
                                     uint32_t cols)
{
    for (uint32_t r = 0; r < rows; r++) {
        double sum = 0;
        for (uint32_t c = 0; c < cols; c++)
            sum += w[(size_t)r * cols + c] * x[c];
        out[r] = sum;
    }
}

static inline double reference_frequency(const struct ll_model_shape *s, uint32_t i)
{
    const double f = pow(s->rope_theta, -2.0 * i / s->head_dim),
                 length = 2 * 3.14159265358979323846 / f;

    if (s->rope != LL_ROPE_LLAMA3 || length < s->rope_original_context / s->rope_high_freq)
        return f;
    if (length > s->rope_original_context / s->rope_low_freq)
        return f / s->rope_factor;
    double smooth = (s->rope_original_context / length - s->rope_low_freq) /
                    (s->rope_high_freq - s->rope_low_freq);
    return (1 - smooth) * f / s->rope_factor + smooth * f;
}

static inline void reference_rope(double *x, const struct ll_model_shape *s, uint32_t n_heads,
                                  uint32_t position)
{
    const uint32_t half = s->head_dim / 2;

    for (uint32_t h = 0; h < n_heads; h++, x += s->head_dim)
        for (uint32_t i = 0; i < half; i++) {
            double angle = position * reference_frequency(s, i), a = x[i], b = x[i + half];
            x[i] = a * cos(angle) - b * sin(angle);
            x[i + half] = b * cos(angle) + a * sin(angle);
        }
}

/* Attention of the token at position over keys and values [position + 1][K * D]. */
static inline void reference_attend(double *out, const double *q, const double *k, const double *v,
                                    const struct ll_model_shape *s, uint32_t position)
{
    const uint32_t d = s->head_dim, kv = s->n_kv_heads * d, group = s->n_heads / s->n_kv_heads;
    double *p = malloc((position + 1) * sizeof(*p));

    for (uint32_t h = 0; h < s->n_heads; h++) {
        const uint32_t at = h / group * d;
        double top = -INFINITY, sum = 0;
        for (uint32_t t = 0; t <= position; t++) {
            p[t] = 0;
            for (uint32_t i = 0; i < d; i++)
                p[t] += q[h * d + i] * k[t * kv + at + i] / sqrt(d);
            top = fmax(top, p[t]);
        }
        for (uint32_t t = 0; t <= position; t++)
            sum += p[t] = exp(p[t] - top);
        for (uint32_t i = 0; i < d; i++) {
            out[h * d + i] = 0;
            for (uint32_t t = 0; t <= position; t++)
                out[h * d + i] += p[t] / sum * v[t * kv + at + i];
        }
    }
    free(p);
}

/* What an e4m3 cache gives back, with a scale for each head of D numbers; NULL: as it is. */
static inline void reference_store(double *x, uint32_t n, uint32_t head_dim, const float *scale)
{
    for (uint32_t i = 0; i < n && scale != NULL; i++) {
        const double by = (double)scale[i / head_dim];
        x[i] = (double)ll_f32_from_e4m3(ll_e4m3_from_f32((float)(x[i] / by))) * by;
    }
}

/* Log probabilities [n][V] after each of n ids. kv_scale: of keys and of values, by
 * head; NULL: no e4m3 cache. w: by role
 * and layer; a tied head is the embedding.
 */
static inline void reference_run(double *logprobs, const struct ll_model_shape *s,
                                 double *const w[LL_TENSOR_ROLES][16], const uint32_t *ids,
                                 uint32_t n, const float *const kv_scale[2])
{
    const uint32_t e = s->n_embd, q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim,
                   f = s->n_ff;
    double *k = malloc((size_t)s->n_layers * n * kv * sizeof(*k));
    double *v = malloc((size_t)s->n_layers * n * kv * sizeof(*v));
    double *x = malloc(e * sizeof(*x)), *y = malloc(e * sizeof(*y)),
           *query = malloc(q * sizeof(*query));
    double *a = malloc(q * sizeof(*a)), *gate = malloc(f * sizeof(*gate)),
           *up = malloc(f * sizeof(*up));

    for (uint32_t t = 0; t < n; t++) {
        memcpy(x, w[LL_TENSOR_EMBED][0] + (size_t)ids[t] * e, e * sizeof(*x));
        for (uint32_t l = 0; l < s->n_layers; l++) {
            double *keys = k + (size_t)l * n * kv, *values = v + (size_t)l * n * kv;
            reference_norm(y, x, w[LL_TENSOR_ATTN_NORM][l], e, (double)s->rms_eps);
            reference_product(query, w[LL_TENSOR_Q][l], y, q, e);
            reference_product(keys + t * kv, w[LL_TENSOR_K][l], y, kv, e);
            reference_product(values + t * kv, w[LL_TENSOR_V][l], y, kv, e);
            reference_rope(query, s, s->n_heads, t);
            reference_rope(keys + t * kv, s, s->n_kv_heads, t);
            reference_store(keys + t * kv, kv, s->head_dim, kv_scale[0]);
            reference_store(values + t * kv, kv, s->head_dim, kv_scale[1]);
            reference_attend(a, query, keys, values, s, t);
            reference_product(y, w[LL_TENSOR_O][l], a, e, q);
            for (uint32_t i = 0; i < e; i++)
                x[i] += y[i];
            reference_norm(y, x, w[LL_TENSOR_FFN_NORM][l], e, (double)s->rms_eps);
            reference_product(gate, w[LL_TENSOR_GATE][l], y, f, e);
            reference_product(up, w[LL_TENSOR_UP][l], y, f, e);
            for (uint32_t i = 0; i < f; i++)
                gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
            reference_product(y, w[LL_TENSOR_DOWN][l], gate, e, f);
            for (uint32_t i = 0; i < e; i++)
                x[i] += y[i];
        }
        double *out = logprobs + (size_t)t * s->n_vocab, top = -INFINITY, sum = 0;
        reference_norm(y, x, w[LL_TENSOR_FINAL_NORM][0], e, (double)s->rms_eps);
        reference_product(out, w[s->is_tied ? LL_TENSOR_EMBED : LL_TENSOR_HEAD][0], y, s->n_vocab,
                          e);
        for (uint32_t i = 0; i < s->n_vocab; i++)
            top = fmax(top, out[i]);
        for (uint32_t i = 0; i < s->n_vocab; i++)
            sum += exp(out[i] - top);
        for (uint32_t i = 0; i < s->n_vocab; i++)
            out[i] -= top + log(sum);
    }
    free(k);
    free(v);
    free(x);
    free(y);
    free(query);
    free(a);
    free(gate);
    free(up);
}

#endif
