/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/rope.h"
#include "base/numbers.h"

#include <math.h>

void ll_cpu_rope_frequencies(double *frequency, const struct ll_model_shape *shape)
{
    const double context = (double)shape->rope_original_context;

    for (uint32_t i = 0; i < shape->head_dim / 2; i++) {
        double f = pow(shape->rope_theta, -2.0 * i / shape->head_dim);
        if (shape->rope == LL_ROPE_LLAMA3) {
            double wave = 2 * M_PI / f;
            if (wave > context / shape->rope_low_freq) {
                f /= shape->rope_factor;
            } else if (wave > context / shape->rope_high_freq) {
                double s = (context / wave - shape->rope_low_freq) /
                           (shape->rope_high_freq - shape->rope_low_freq);
                f = (1 - s) * f / shape->rope_factor + s * f;
            }
        }
        frequency[i] = f;
    }
}

void ll_cpu_rope_angles(float *cosine, float *sine, const double *frequency, uint32_t n,
                        uint32_t position)
{
    for (uint32_t i = 0; i < n; i++) {
        double c, s;
        sincos(position * frequency[i], &s, &c);
        cosine[i] = (float)c;
        sine[i] = (float)s;
    }
}

void ll_cpu_rope_turn(float *head, const float *cosine, const float *sine, uint32_t n, bool is_bf16)
{
    float *low = head, *high = head + n;

    for (uint32_t i = 0; i < n; i++) {
        float a = low[i] * cosine[i] - high[i] * sine[i];
        float b = high[i] * cosine[i] + low[i] * sine[i];
        low[i] = is_bf16 ? ll_round_bf16(a) : a;
        high[i] = is_bf16 ? ll_round_bf16(b) : b;
    }
}
