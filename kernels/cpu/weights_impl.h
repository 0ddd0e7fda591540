/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/weights_impl.h - what the weights' files share: weights.c (what is wanted, sizes),
 * weights_feed.c (what has come), weights_seal.c (all is there; random weights). */
#ifndef KERNELS_CPU_WEIGHTS_IMPL_H
#define KERNELS_CPU_WEIGHTS_IMPL_H

#include "base/bits.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/weights.h"
#include "ll/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Places of a role's parts. */
enum { LL_CPU_WEIGHT, LL_CPU_SCALE, LL_CPU_KV_SCALE };

struct ll_cpu_name {
    char s[64];
};

extern const char *const ll_cpu_dtype_names[];
struct ll_cpu_name ll_cpu_tensor_name(enum ll_tensor_role role, uint32_t layer, uint32_t place);
void ll_cpu_tensor_shape(const struct ll_model_shape *shape, enum ll_tensor_role role,
                         uint32_t *rows, uint32_t *cols);
/* Roles that the set has; for the ones without a layer, layer is 0. */
bool ll_cpu_has_tensor(const struct ll_cpu_weights *weights, enum ll_tensor_role role,
                       uint32_t layer);

/* weights_feed.c: gives a tensor its memory; then number `index` of it. */
int ll_cpu_tensor_make_room(const struct ll_cpu_weights *weights, struct ll_cpu_tensor *t,
                            const struct ll_tensor *tensor, struct ll_text *error);
void ll_cpu_tensor_put(struct ll_cpu_tensor *t, uint64_t index, float value);

static inline bool ll_cpu_is_per_layer(enum ll_tensor_role role)
{
    return role != LL_TENSOR_EMBED && role != LL_TENSOR_FINAL_NORM && role != LL_TENSOR_HEAD;
}

static inline bool ll_cpu_is_vector(enum ll_tensor_role role)
{
    return role == LL_TENSOR_ATTN_NORM || role == LL_TENSOR_FFN_NORM ||
           role == LL_TENSOR_FINAL_NORM;
}

static inline bool ll_cpu_is_linear(enum ll_tensor_role role)
{
    return role != LL_TENSOR_EMBED && !ll_cpu_is_vector(role);
}

static inline uint32_t ll_cpu_place_of(const struct ll_tensor *tensor)
{
    return tensor->part == LL_PART_SCALE      ? LL_CPU_SCALE
           : tensor->part == LL_PART_KV_SCALE ? LL_CPU_KV_SCALE
                                              : LL_CPU_WEIGHT;
}

static inline struct ll_cpu_tensor *ll_cpu_tensor_at(const struct ll_cpu_weights *weights,
                                                     enum ll_tensor_role role, uint32_t layer,
                                                     uint32_t place)
{
    return &weights->tensor[(layer * LL_TENSOR_ROLES + role) * LL_CPU_PARTS + place];
}

static inline size_t ll_cpu_n_entries(const struct ll_cpu_weights *weights)
{
    return LL_CPU_PARTS * (size_t)LL_TENSOR_ROLES *
           (weights->shape.n_layers > 0 ? weights->shape.n_layers : 1);
}

#endif
