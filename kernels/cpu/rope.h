/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/rope.h - rotary position embedding, plain and "llama3".
 *
 * Pair i of a head is (i, i + D/2) (the half-split order of Hugging Face files) and turns by
 * position x frequency[i]. Frequencies and angles are computed in double, sine and cosine rounded
 * once to fp32, the rotation is done in fp32. */
#ifndef KERNELS_CPU_ROPE_H
#define KERNELS_CPU_ROPE_H

#include "kernels/backend.h"

/* frequency [D/2] = theta^(-2i/D), for llama3 divided by the factor where the wave is longer than
 * the original context, blended between. */
void ll_cpu_rope_frequencies(double *frequency, const struct ll_model_shape *shape);

/* cosine, sine [n] of position x frequency. */
void ll_cpu_rope_angles(float *cosine, float *sine, const double *frequency, uint32_t n,
                        uint32_t position);

/* Turns head [2 n]; with is_bf16 each result is rounded once. */
void ll_cpu_rope_turn(float *head, const float *cosine, const float *sine, uint32_t n,
                      bool is_bf16);

#endif
