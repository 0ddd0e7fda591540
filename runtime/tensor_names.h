/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/tensor_names.h - the names that Hugging Face checkpoints give the tensors of a Llama.
 *
 * A name is a module ("model.layers.0.self_attn.q_proj"), a dot and a leaf: "weight", and in
 * quantised checkpoints scales under several names (the KV cache's under seven). */
#ifndef RUNTIME_TENSOR_NAMES_H
#define RUNTIME_TENSOR_NAMES_H

#include "kernels/backend.h"

#define LL_TENSOR_NAME_BYTES 128

struct ll_tensor_id {
    enum ll_tensor_role role;
    enum ll_tensor_part part;
    uint32_t layer;
    bool is_both;          /* a KV scale of K (role) and of V: the old kv_scale */
    bool is_inverse_named; /* weight_scale_inv: DeepSeek's name; multiplied all the same */
};

enum ll_tensor_found {
    LL_TENSOR_UNKNOWN = 0,
    LL_TENSOR_FOUND = 1,
    LL_TENSOR_UNUSED = 2, /* known and without use: rotation tables, zero points that are zero */
};

/* Which tensor of a model of n_layers layers a name means. */
enum ll_tensor_found ll_tensor_find(struct ll_tensor_id *out, const char *name, uint32_t n_layers);

/* "model.layers.3.mlp.up_proj", with ".weight" behind: the name of the weight. */
void ll_tensor_module(char out[LL_TENSOR_NAME_BYTES], enum ll_tensor_role role, uint32_t layer);
void ll_tensor_weight(char out[LL_TENSOR_NAME_BYTES], enum ll_tensor_role role, uint32_t layer);

bool ll_tensor_is_per_layer(enum ll_tensor_role role);
bool ll_tensor_is_vector(enum ll_tensor_role role); /* a norm's */
bool ll_tensor_is_linear(enum ll_tensor_role role); /* of a layer: what FP8 is used for */

/* Rows and columns that the model's shape gives it; vectors have one row. */
void ll_tensor_dims(const struct ll_model_shape *shape, enum ll_tensor_role role, uint32_t *rows,
                    uint32_t *cols);

#endif
