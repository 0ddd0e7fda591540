/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/checkpoint_quant.c - what quantisation asks for: each linear is FP8 or not as the
 * configuration says, and has the scales for it. */
#include "runtime/checkpoint_impl.h"

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "runtime/jsonfile.h"
#include "runtime/quantization.h"
#include "runtime/tensor_names.h"

#include <string.h>

/* The scales that a quantised linear must have, and their shapes. */
static int check_scales(const struct ll_checkpoint *checkpoint,
                        const struct ll_checkpoint_tensor *weight, const char *module,
                        const struct ll_quant_scheme *scheme)
{
    const char *path = ll_path_tail(checkpoint->file[weight->file].path);
    const struct ll_tensor *w = &weight->tensor;
    const struct ll_checkpoint_tensor *scale = ll_checkpoint_scale(checkpoint, w, LL_PART_SCALE);
    const struct ll_checkpoint_tensor *input =
        ll_checkpoint_scale(checkpoint, w, LL_PART_INPUT_SCALE);
    uint32_t rows = 1, cols = 1;

    if (scale == NULL)
        return LL_ERR(LL_E_INVAL, "%s: tensor \"%s\" is F8_E4M3, and \"%s.%s\" is missing", path,
                      weight->name, module,
                      scheme->kind == LL_QUANT_BLOCK && strcmp(checkpoint->quantization, "fp8") == 0
                          ? "weight_scale_inv"
                          : "weight_scale");
    if (scheme->kind == LL_QUANT_CHANNEL)
        rows = w->rows;
    if (scheme->kind == LL_QUANT_BLOCK) {
        rows = (uint32_t)ll_div_ceil(w->rows, 128);
        cols = (uint32_t)ll_div_ceil(w->cols, 128);
    }
    if (scale->tensor.rows != rows || scale->tensor.cols != cols)
        return LL_ERR(LL_E_INVAL,
                      "%s: tensor \"%s\": shape is [%u, %u], the quantisation that config.json "
                      "describes asks for [%u, %u]",
                      ll_path_tail(checkpoint->file[scale->file].path), scale->name,
                      scale->tensor.rows, scale->tensor.cols, rows, cols);
    if (scheme->is_static && input == NULL)
        return LL_ERR(LL_E_INVAL,
                      "%s: \"%s.input_scale\" is missing; config.json says that activations have "
                      "stored scales",
                      path, module);
    if (input != NULL && (input->tensor.rows != 1 || input->tensor.cols != 1))
        return LL_ERR(LL_E_INVAL, "%s: tensor \"%s\": shape is [%u, %u], must be one number",
                      ll_path_tail(checkpoint->file[input->file].path), input->name,
                      input->tensor.rows, input->tensor.cols);
    return 0;
}

/* A linear against what the configuration says of it. */
static int check_linear(const struct ll_checkpoint *checkpoint,
                        const struct ll_checkpoint_tensor *weight)
{
    char module[LL_TENSOR_NAME_BYTES];
    struct ll_quant_scheme scheme;
    const bool is_fp8 = weight->tensor.dtype == LL_DTYPE_E4M3;
    const char *path = ll_path_tail(checkpoint->file[weight->file].path);

    ll_tensor_module(module, weight->tensor.role, weight->tensor.layer);
    enum ll_quant_verdict verdict =
        ll_quantization_of(checkpoint->quantization_config, module, &scheme);
    if (is_fp8 && verdict == LL_QUANT_NO)
        return LL_ERR(LL_E_INVAL,
                      "%s: tensor \"%s\" is F8_E4M3, but config.json's quantisation leaves \"%s\" "
                      "alone",
                      path, weight->name, module);
    if (!is_fp8 && verdict == LL_QUANT_YES)
        return LL_ERR(LL_E_INVAL,
                      "%s: tensor \"%s\" is not F8_E4M3, but config.json's quantisation does not "
                      "leave \"%s\" alone",
                      path, weight->name, module);
    if (is_fp8)
        return check_scales(checkpoint, weight, module, &scheme);
    const struct ll_checkpoint_tensor *scale =
        ll_checkpoint_scale(checkpoint, &weight->tensor, LL_PART_SCALE);
    if (scale == NULL)
        scale = ll_checkpoint_scale(checkpoint, &weight->tensor, LL_PART_INPUT_SCALE);
    if (scale != NULL)
        return LL_ERR(LL_E_INVAL, "%s: tensor \"%s\" is there, but \"%s\" is not F8_E4M3",
                      ll_path_tail(checkpoint->file[scale->file].path), scale->name, weight->name);
    return 0;
}

/* A cache's scale: one number or one a head. Where one of K and V is there it is the other's, too.
 */
static int check_kv_scales(struct ll_checkpoint *out)
{
    const uint32_t n_found = out->n_tensors;

    for (uint32_t i = ll_checkpoint_slots(&out->shape); i < n_found; i++) {
        const struct ll_checkpoint_tensor *t = &out->tensor[i];
        struct ll_tensor other = t->tensor;
        if (t->tensor.part != LL_PART_KV_SCALE)
            continue;
        if (t->tensor.rows != 1 && t->tensor.rows != out->shape.n_kv_heads)
            return LL_ERR(LL_E_INVAL, "%s: tensor \"%s\": %u numbers, must be 1 or %u (KV heads)",
                          ll_path_tail(out->file[t->file].path), t->name, t->tensor.rows,
                          out->shape.n_kv_heads);
        out->has_kv_scales = true;
        other.role = other.role == LL_TENSOR_K ? LL_TENSOR_V : LL_TENSOR_K;
        if (ll_checkpoint_scale(out, &other, LL_PART_KV_SCALE) != NULL)
            continue;
        ll_warn("%s: the cache's scale \"%s\" is taken for K and V: the other is not there",
                ll_path_tail(out->directory), t->name);
        out->tensor[out->n_tensors] = *t;
        out->tensor[out->n_tensors++].tensor.role = other.role;
    }
    return 0;
}

int ll_checkpoint_check_quantization(struct ll_checkpoint *out)
{
    for (uint32_t i = 0; i < ll_checkpoint_slots(&out->shape); i++)
        if (ll_tensor_is_linear(out->tensor[i].tensor.role)) {
            int rc = check_linear(out, &out->tensor[i]);
            if (rc < 0)
                return rc;
        }
    for (uint32_t i = ll_checkpoint_slots(&out->shape); i < out->n_tensors; i++)
        if (out->tensor[i].tensor.role == LL_TENSOR_HEAD)
            return LL_ERR(LL_E_UNSUPPORTED,
                          "%s: tensor \"%s\": a quantised lm_head is not supported",
                          ll_path_tail(out->file[out->tensor[i].file].path), out->tensor[i].name);
    return check_kv_scales(out);
}
