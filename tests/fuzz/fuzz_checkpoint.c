/* SPDX-License-Identifier: Apache-2.0 */
/* tests/fuzz/fuzz_checkpoint.c - a model directory whose header of tensors is hostile: names, types
 * and shapes against what config.json says of the model and of its quantisation. The first byte
 * says which configuration ('0' none, '1' compressed-tensors, '2' fbgemm_fp8, '3' modelopt, '4' fp8
 * with blocks), the rest is the header; the file behind it is as long as its last offset says. */
#include "tests/fuzz/fuzz.h"

#include "runtime/checkpoint.h"
#include "runtime/tensor_names.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DATA_MAX (1u << 24)

static const char *const quantizations[] = {
    "",
    ", \"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\": "
    "\"float-quantized\", \"ignore\": [\"lm_head\", \"re:.*layers.1.*\"], \"config_groups\": "
    "{\"g\": "
    "{\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 8, \"type\": \"float\", \"strategy\": "
    "\"channel\"}}}}",
    ", \"quantization_config\": {\"quant_method\": \"fbgemm_fp8\", \"modules_to_not_convert\": "
    "[\"lm_head\", \"model.layers.0\"]}",
    ", \"quantization_config\": {\"quant_method\": \"modelopt\", \"quant_algo\": \"FP8\", "
    "\"ignore\": [\"*o_proj\"], \"kv_cache_quant_algo\": \"FP8\"}",
    ", \"quantization_config\": {\"quant_method\": \"fp8\", \"activation_scheme\": \"dynamic\", "
    "\"weight_block_size\": [128, 128]}",
};

static void write_files(char which, const uint8_t *header, size_t n_header, uint64_t n_data)
{
    char config[2048];
    uint64_t length = n_header;

    int n = snprintf(config, sizeof(config),
                     "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 16, "
                     "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
                     "\"num_key_value_heads\": 2, \"head_dim\": 8, \"intermediate_size\": 24, "
                     "\"vocab_size\": 32, \"max_position_embeddings\": 512, \"rms_norm_eps\": "
                     "1e-05%s}",
                     quantizations[which - '0']);
    fuzz_write("config.json", config, (size_t)n);
    fuzz_write("model.safetensors", &length, sizeof(length));
    int fd = open(fuzz_path("model.safetensors"), O_WRONLY | O_CLOEXEC);
    FUZZ_CHECK(fd >= 0 && pwrite(fd, header, n_header, 8) == (ssize_t)n_header);
    FUZZ_CHECK(ftruncate(fd, (off_t)(8 + n_header + n_data)) == 0);
    close(fd);
}

/* Weights have the shape's dims, scales belong to FP8 weights, all of them lie inside the file. */
static void check_tensors(const struct ll_checkpoint *c, uint64_t file_bytes)
{
    for (uint32_t i = 0; i < c->n_tensors; i++) {
        const struct ll_tensor *t = &c->tensor[i].tensor;
        uint32_t rows, cols;
        ll_tensor_dims(&c->shape, t->role, &rows, &cols);
        FUZZ_CHECK(t->layer < c->shape.n_layers);
        FUZZ_CHECK(t->size_bytes == (uint64_t)t->rows * t->cols * ll_dtype_bytes(t->dtype));
        FUZZ_CHECK(c->tensor[i].offset + t->size_bytes <= file_bytes);
        if (t->part == LL_PART_WEIGHT)
            FUZZ_CHECK(t->rows == rows && t->cols == cols);
        else
            FUZZ_CHECK(t->dtype != LL_DTYPE_E4M3 && c->quantization[0] != '\0');
        if (t->part == LL_PART_SCALE)
            FUZZ_CHECK(ll_tensor_is_linear(t->role) && t->rows <= rows && t->cols <= cols);
        if (t->dtype == LL_DTYPE_E4M3)
            FUZZ_CHECK(ll_tensor_is_linear(t->role) && c->quantization[0] != '\0');
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_data)
{
    static struct ll_checkpoint out;
    uint64_t n_most = 0, n = 0;

    if (n_data == 0 || data[0] < '0' || data[0] > '4')
        return -1;
    for (size_t i = 1; i < n_data; i++) { /* the largest number that stands before a ']' */
        n = data[i] >= '0' && data[i] <= '9' ? n * 10 + (data[i] - '0') : 0;
        if (i + 1 < n_data && data[i + 1] == ']' && n > n_most)
            n_most = n;
    }
    if (n_most > DATA_MAX)
        return -1;
    write_files((char)data[0], data + 1, n_data - 1, n_most);
    memset(&out, 0, sizeof(out));
    if (ll_checkpoint_open(&out, fuzz_directory()) == 0) {
        check_tensors(&out, 8 + n_data - 1 + n_most);
        ll_checkpoint_close(&out);
    }
    unlink(fuzz_path("model.safetensors"));
    unlink(fuzz_path("config.json"));
    return 0;
}
