/* SPDX-License-Identifier: Apache-2.0 */
/* tests/fuzz/fuzz_config.c - the JSON files of a model directory. The first byte says which of them
 * the rest is: '0' config.json, '1' generation_config.json, '2' tokenizer_config.json, '3' the
 * index of the shards, '4' hf_quant_config.json; the others are good. */
#include "tests/fuzz/fuzz.h"

#include "runtime/checkpoint.h"
#include "runtime/model_config.h"
#include "runtime/quantization.h"

static const char good_config[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 16, \"num_hidden_layers\": 2, "
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 8, "
    "\"intermediate_size\": 24, \"vocab_size\": 32, \"max_position_embeddings\": 512, "
    "\"rms_norm_eps\": 1e-05}";

static void check_shape(const struct ll_model_shape *s)
{
    FUZZ_CHECK(s->n_layers >= 1 && s->n_layers <= 1024);
    FUZZ_CHECK(s->n_heads >= 1 && s->n_kv_heads >= 1 && s->n_heads % s->n_kv_heads == 0);
    FUZZ_CHECK(s->head_dim >= 2 && s->head_dim % 2 == 0 && s->head_dim <= 1024);
    FUZZ_CHECK(s->n_embd >= 1 && s->n_ff >= 1 && s->n_vocab >= 1 && s->context_max >= 1);
    FUZZ_CHECK(s->rms_eps > 0 && s->rope_theta >= 1);
    if (s->rope == LL_ROPE_LLAMA3)
        FUZZ_CHECK(s->rope_factor >= 1 && s->rope_high_freq > s->rope_low_freq &&
                   s->rope_low_freq > 0 && s->rope_original_context >= 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_data)
{
    static const char *const names[] = {"config.json", "generation_config.json",
                                        "tokenizer_config.json", "model.safetensors.index.json",
                                        "hf_quant_config.json"};
    static struct ll_checkpoint out;

    if (n_data == 0 || data[0] < '0' || data[0] > '4')
        return -1;
    const char *name = names[data[0] - '0'];
    fuzz_write("config.json", good_config, sizeof(good_config) - 1);
    fuzz_write(name, data + 1, n_data - 1);

    memset(&out, 0, sizeof(out));
    snprintf(out.directory, sizeof(out.directory), "%s", fuzz_directory());
    if (ll_model_config_read(&out) == 0) {
        struct ll_quant_scheme scheme;
        if (out.quantization_config != NULL) {
            ll_quantization_of(out.quantization_config, "model.layers.0.mlp.up_proj", &scheme);
            FUZZ_CHECK(scheme.kind <= LL_QUANT_BLOCK);
            FUZZ_CHECK(ll_quantization_activation_bound(out.quantization_config) >= 0);
        }
        check_shape(&out.shape);
        FUZZ_CHECK(out.n_eos <= 8);
        for (uint32_t i = 0; i < out.n_eos; i++)
            FUZZ_CHECK(out.eos[i] < out.shape.n_vocab);
        FUZZ_CHECK(out.bos == UINT32_MAX || out.bos < out.shape.n_vocab);
        FUZZ_CHECK(out.temperature >= 0 && out.temperature <= 2);
        FUZZ_CHECK(out.top_p > 0 && out.top_p <= 1 && out.min_p >= 0 && out.min_p <= 1);
        FUZZ_CHECK(memchr(out.chat_format, '\0', sizeof(out.chat_format)) != NULL);
    }
    ll_quantization_free(out.quantization_config);
    /* No weights here: whatever the index names, it is refused, and nothing leaks. */
    memset(&out, 0, sizeof(out));
    FUZZ_CHECK(ll_checkpoint_open(&out, fuzz_directory()) < 0);
    unlink(fuzz_path(name));
    return 0;
}
