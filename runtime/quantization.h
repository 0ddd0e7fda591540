/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/quantization.h - what a model directory says about how its linears are quantised.
 *
 * Read from quantization_config (or compression_config) in config.json, else from
 * hf_quant_config.json. FP8 (e4m3) in the forms that are around:
 *   compressed-tensors   static, dynamic and block FP8, in groups with targets and an ignore list
 *   fbgemm_fp8           dynamic FP8 with a list of modules left alone and an activation bound
 *   modelopt             static FP8, or per channel with dynamic activations
 *   fp8                  AutoFP8 (static, dynamic), or blocks as DeepSeek writes them
 * Other methods and other numbers are refused by name. Which tensors follow from it is
 * checkpoint.c's business. */
#ifndef RUNTIME_QUANTIZATION_H
#define RUNTIME_QUANTIZATION_H

#include <stdbool.h>

#include <jansson.h>

enum ll_quant_kind { LL_QUANT_TENSOR, LL_QUANT_CHANNEL, LL_QUANT_BLOCK }; /* a scale for each */

struct ll_quant_scheme {
    enum ll_quant_kind kind;
    bool is_static; /* activations have a stored scale */
};

enum ll_quant_verdict {
    LL_QUANT_NO,      /* stays in 16 or 32 bits */
    LL_QUANT_YES,     /* is FP8, by *scheme */
    LL_QUANT_UNKNOWN, /* a pattern of the configuration could not be judged: *scheme if it is FP8 */
};

struct ll_quantization; /* opaque */

/* *out stays NULL where config has neither field. where names the file in errors. */
int ll_quantization_read(struct ll_quantization **out, const json_t *config, const char *where);
/* The same for the top object of hf_quant_config.json. */
int ll_quantization_read_modelopt(struct ll_quantization **out, const json_t *config,
                                  const char *where);
/* NULL is accepted. */
void ll_quantization_free(struct ll_quantization *quantization);

/* What the configuration says of a linear, by its name: "model.layers.0.mlp.up_proj". */
enum ll_quant_verdict ll_quantization_of(const struct ll_quantization *quantization,
                                         const char *module, struct ll_quant_scheme *scheme);

/* "compressed-tensors", ... */
const char *ll_quantization_name(const struct ll_quantization *quantization);
/* Largest size of an activation that the format represents; 0: no bound. */
float ll_quantization_activation_bound(const struct ll_quantization *quantization);
/* The cache's scales are stored. */
bool ll_quantization_has_kv_scales(const struct ll_quantization *quantization);

#endif
