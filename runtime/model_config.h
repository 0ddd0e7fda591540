/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/model_config.h - the small JSON files beside the weights.
 *
 * Part of ll_checkpoint_open(): config.json gives the shape, generation_config.json the default
 * sampling, tokenizer_config.json and chat_template.jinja how to chat. Every number is checked
 * against a range before anything is sized by it; unknown fields are ignored; what would change
 * the arithmetic and is not built (another rope type, biases) is refused; quantisation has a file
 * of its own (quantization.h). */
#ifndef RUNTIME_MODEL_CONFIG_H
#define RUNTIME_MODEL_CONFIG_H

#include "runtime/checkpoint.h"

/* Fills shape, bos, eos, sampling defaults, chat_format, template_sha256 and has_tokenizer_* of
 * *out from the files of out->directory. Errors as ll_checkpoint_open(). */
int ll_model_config_read(struct ll_checkpoint *out);

#endif
