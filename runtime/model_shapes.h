/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/model_shapes.h - the published Llama 3 models' shapes by name, for --model-shape: what a
 * machine does with a model can be measured without having it. */
#ifndef RUNTIME_MODEL_SHAPES_H
#define RUNTIME_MODEL_SHAPES_H

#include "kernels/backend.h"

/* "llama-3.1-8b" and the like. LL_E_INVAL: no such name, the text lists them; LL_E_UNSUPPORTED: a
 * model that this version cannot hold. */
int ll_model_shape_find(const char *name, struct ll_model_shape *out);

#endif
