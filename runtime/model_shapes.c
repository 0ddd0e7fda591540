/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model_shapes.h"

#include "base/bits.h"
#include "base/err.h"
#include "ll/client.h"

#include <string.h>

#define LLAMA(l, e, h, d, f, tied, factor)                                                         \
    {                                                                                              \
        .n_layers = l, .n_embd = e, .n_heads = h, .n_kv_heads = 8, .head_dim = d, .n_ff = f,       \
        .n_vocab = 128256, .context_max = 131072, .is_tied = tied, .rope = LL_ROPE_LLAMA3,         \
        .rms_eps = 1e-5f, .rope_theta = 500000.0, .rope_factor = factor, .rope_low_freq = 1.0,     \
        .rope_high_freq = 4.0, .rope_original_context = 8192                                       \
    }

/* From the models' config.json files. */
static const struct {
    const char *name;
    struct ll_model_shape shape;
} shapes[] = {
    {"llama-3.2-1b", LLAMA(16, 2048, 32, 64, 8192, true, 32.0)},
    {"llama-3.2-3b", LLAMA(28, 3072, 24, 128, 8192, true, 32.0)},
    {"llama-3.1-8b", LLAMA(32, 4096, 32, 128, 14336, false, 8.0)},
    {"llama-3.1-70b", LLAMA(80, 8192, 64, 128, 28672, false, 8.0)},
    {"llama-3.3-70b", LLAMA(80, 8192, 64, 128, 28672, false, 8.0)},
    {"llama-3.1-405b", LLAMA(126, 16384, 128, 128, 53248, false, 8.0)},
};

int ll_model_shape_find(const char *name, struct ll_model_shape *out)
{
    for (size_t i = 0; i < LL_COUNT(shapes); i++)
        if (strcmp(name, shapes[i].name) == 0) {
            *out = shapes[i].shape;
            return 0;
        }
    return LL_ERR(LL_E_INVAL,
                  "--model-shape: \"%s\" is none of llama-3.2-1b, llama-3.2-3b, llama-3.1-8b, "
                  "llama-3.1-70b, llama-3.3-70b, llama-3.1-405b",
                  name);
}
