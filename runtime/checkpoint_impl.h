/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/checkpoint_impl.h - what checkpoint.c and checkpoint_quant.c share: the list of tensors.
 */
#ifndef RUNTIME_CHECKPOINT_IMPL_H
#define RUNTIME_CHECKPOINT_IMPL_H

#include "runtime/checkpoint.h"

/* Slots of the tensor list: embed, then each layer's nine by role, then the final norm and the
 * head. Behind them come the scales as they are found: at most three a slot (SCALE, INPUT_SCALE,
 * KV_SCALE). */
#define LAYER_ROLES  (LL_TENSOR_DOWN - LL_TENSOR_ATTN_NORM + 1u)
#define SLOT_TENSORS 4u

static inline uint32_t ll_checkpoint_slot(const struct ll_model_shape *shape,
                                          enum ll_tensor_role role, uint32_t layer)
{
    if (role == LL_TENSOR_EMBED)
        return 0;
    if (role <= LL_TENSOR_DOWN)
        return 1 + layer * LAYER_ROLES + (role - LL_TENSOR_ATTN_NORM);
    return 1 + shape->n_layers * LAYER_ROLES + (role - LL_TENSOR_FINAL_NORM);
}

static inline uint32_t ll_checkpoint_slots(const struct ll_model_shape *shape)
{
    return ll_checkpoint_slot(shape, LL_TENSOR_HEAD, 0) + !shape->is_tied;
}

/* The scale of a slot that was found; NULL: none so far. */
static inline struct ll_checkpoint_tensor *
ll_checkpoint_scale(const struct ll_checkpoint *checkpoint, const struct ll_tensor *of,
                    enum ll_tensor_part part)
{
    for (uint32_t i = ll_checkpoint_slots(&checkpoint->shape); i < checkpoint->n_tensors; i++) {
        const struct ll_tensor *t = &checkpoint->tensor[i].tensor;
        if (t->role == of->role && t->layer == of->layer && t->part == part)
            return &checkpoint->tensor[i];
    }
    return NULL;
}

/* checkpoint_quant.c: types and scales of all that was found, against what the configuration says.
 */
int ll_checkpoint_check_quantization(struct ll_checkpoint *out);

#endif
