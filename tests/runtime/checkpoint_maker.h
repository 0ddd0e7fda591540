/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/checkpoint_maker.h - small model directories for tests: a correct two-layer Llama
 * written into a fresh directory, with places to break it. Byte i of a tensor is a function of its
 * name and i, so that whoever reads it can tell a misplaced byte. */
#ifndef TESTS_RUNTIME_CHECKPOINT_MAKER_H
#define TESTS_RUNTIME_CHECKPOINT_MAKER_H

#include "tests/harness.h"

#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAKER_TENSORS 21
#define MAKER_CONFIG                                                                               \
    "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 16, \"num_hidden_layers\": 2, "  \
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 8, "                    \
    "\"intermediate_size\": 24, \"vocab_size\": 32, \"max_position_embeddings\": 512, "            \
    "\"rms_norm_eps\": 1e-05, \"rope_theta\": 500000.0, \"hidden_act\": \"silu\", "                \
    "\"tie_word_embeddings\": false, \"bos_token_id\": 1, \"eos_token_id\": [2, 3]}"

struct maker_tensor {
    char name[160];
    char dtype[16];
    char shape[64]; /* as it stands in the header */
    uint64_t n_bytes;
    uint64_t begin, end; /* set by maker_layout(); a test may change them */
    int file;            /* which shard; -1: left out */
};

struct maker {
    char directory[64];
    struct maker_tensor tensor[MAKER_TENSORS + 4];
    int n_tensors;
    uint64_t data_bytes[4]; /* of each shard */
};

static inline uint8_t maker_byte(const char *name, uint64_t i)
{
    uint64_t h = 1469598103934665603ull;

    for (; *name != '\0'; name++)
        h = (h ^ (uint8_t)*name) * 1099511628211ull;
    h = (h ^ i) * 0x9e3779b97f4a7c15ull;
    return (uint8_t)(h >> 56);
}

static inline struct maker_tensor *maker_add(struct maker *maker, const char *name,
                                             const char *dtype, uint64_t rows, uint64_t cols)
{
    struct maker_tensor *tensor = &maker->tensor[maker->n_tensors++];
    uint64_t size = strcmp(dtype, "F32") == 0 ? 4 : 2;

    snprintf(tensor->name, sizeof(tensor->name), "%s", name);
    snprintf(tensor->dtype, sizeof(tensor->dtype), "%s", dtype);
    if (rows == 0)
        snprintf(tensor->shape, sizeof(tensor->shape), "[%llu]", (unsigned long long)cols);
    else
        snprintf(tensor->shape, sizeof(tensor->shape), "[%llu,%llu]", (unsigned long long)rows,
                 (unsigned long long)cols);
    tensor->n_bytes = (rows == 0 ? 1 : rows) * cols * size;
    tensor->file = 0;
    return tensor;
}

static inline struct maker_tensor *maker_find(struct maker *maker, const char *name)
{
    for (int i = 0; i < maker->n_tensors; i++)
        if (strcmp(maker->tensor[i].name, name) == 0)
            return &maker->tensor[i];
    fprintf(stderr, "no tensor %s\n", name);
    abort();
}

/* Gives each tensor its place, in list order, shard by shard. */
static inline void maker_layout(struct maker *maker)
{
    memset(maker->data_bytes, 0, sizeof(maker->data_bytes));
    for (int i = 0; i < maker->n_tensors; i++) {
        struct maker_tensor *tensor = &maker->tensor[i];
        if (tensor->file < 0)
            continue;
        tensor->begin = maker->data_bytes[tensor->file];
        tensor->end = maker->data_bytes[tensor->file] += tensor->n_bytes;
    }
}

/* A fresh directory and the tensors of MAKER_CONFIG in dtype; nothing written yet. */
static inline void maker_init(struct maker *maker, const char *dtype)
{
    static const struct {
        const char *name;
        uint64_t rows, cols;
    } layer[] = {
        {"input_layernorm", 0, 16},   {"self_attn.q_proj", 32, 16},
        {"self_attn.k_proj", 16, 16}, {"self_attn.v_proj", 16, 16},
        {"self_attn.o_proj", 16, 32}, {"post_attention_layernorm", 0, 16},
        {"mlp.gate_proj", 24, 16},    {"mlp.up_proj", 24, 16},
        {"mlp.down_proj", 16, 24},
    };
    char name[160];

    memset(maker, 0, sizeof(*maker));
    snprintf(maker->directory, sizeof(maker->directory), "/tmp/llring-checkpoint-XXXXXX");
    assert_non_null(mkdtemp(maker->directory));
    maker_add(maker, "model.embed_tokens.weight", dtype, 32, 16);
    for (int n = 0; n < 2; n++)
        for (size_t i = 0; i < sizeof(layer) / sizeof(layer[0]); i++) {
            snprintf(name, sizeof(name), "model.layers.%d.%s.weight", n, layer[i].name);
            maker_add(maker, name, dtype, layer[i].rows, layer[i].cols);
        }
    maker_add(maker, "model.norm.weight", dtype, 0, 16);
    maker_add(maker, "lm_head.weight", dtype, 32, 16);
    assert_int_equal(maker->n_tensors, MAKER_TENSORS);
    maker_layout(maker);
}

static inline const char *maker_path(const struct maker *maker, const char *name)
{
    static char path[256];

    snprintf(path, sizeof(path), "%s/%s", maker->directory, name);
    return path;
}

static inline void maker_write(const struct maker *maker, const char *name, const void *bytes,
                               size_t n_bytes)
{
    FILE *file = fopen(maker_path(maker, name), "w");

    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n_bytes, file), n_bytes);
    assert_int_equal(fclose(file), 0);
}

static inline void maker_write_text(const struct maker *maker, const char *name, const char *text)
{
    maker_write(maker, name, text, strlen(text));
}

/* The header of one shard; the caller frees it. */
static inline char *maker_header(const struct maker *maker, int file, size_t *n_header)
{
    char *text = malloc(65536), *at = text;

    at += sprintf(at, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < maker->n_tensors; i++) {
        const struct maker_tensor *tensor = &maker->tensor[i];
        if (tensor->file == file)
            at +=
                sprintf(at, ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%llu,%llu]}",
                        tensor->name, tensor->dtype, tensor->shape,
                        (unsigned long long)tensor->begin, (unsigned long long)tensor->end);
    }
    at += sprintf(at, "}");
    while ((at - text) % 8 != 0)
        *at++ = ' ';
    *n_header = (size_t)(at - text);
    return text;
}

/* A file with this header and the data of the shard's tensors. */
static inline void maker_write_file(const struct maker *maker, const char *name, int file,
                                    const char *header, size_t n_header)
{
    size_t n = 8 + n_header + maker->data_bytes[file];
    uint8_t *bytes = calloc(1, n);

    for (int i = 0; i < 8; i++)
        bytes[i] = (uint8_t)((uint64_t)n_header >> (8 * i));
    memcpy(bytes + 8, header, n_header);
    for (int i = 0; i < maker->n_tensors; i++) {
        const struct maker_tensor *tensor = &maker->tensor[i];
        if (tensor->file != file)
            continue;
        for (uint64_t k = 0; k < tensor->n_bytes && tensor->begin + k < maker->data_bytes[file];
             k++)
            bytes[8 + n_header + tensor->begin + k] = maker_byte(tensor->name, k);
    }
    maker_write(maker, name, bytes, n);
    free(bytes);
}

/* config.json and model.safetensors (shard 0). */
static inline void maker_write_single(const struct maker *maker)
{
    size_t n_header;
    char *header = maker_header(maker, 0, &n_header);

    maker_write_text(maker, "config.json", MAKER_CONFIG);
    maker_write_file(maker, "model.safetensors", 0, header, n_header);
    free(header);
}

static inline const char *maker_shard_name(int file)
{
    static char name[64];

    snprintf(name, sizeof(name), "model-0000%d-of-00003.safetensors", file + 1);
    return name;
}

/* config.json, three shards and their index. */
static inline void maker_write_sharded(struct maker *maker)
{
    char index[8192], *at = index;

    for (int i = 0; i < maker->n_tensors; i++)
        maker->tensor[i].file = i % 3;
    maker_layout(maker);
    maker_write_text(maker, "config.json", MAKER_CONFIG);
    at += sprintf(at, "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {");
    for (int i = 0; i < maker->n_tensors; i++)
        at += sprintf(at, "%s\"%s\": \"%s\"", i > 0 ? ", " : "", maker->tensor[i].name,
                      maker_shard_name(maker->tensor[i].file));
    sprintf(at, "}}");
    maker_write_text(maker, "model.safetensors.index.json", index);
    for (int file = 0; file < 3; file++) {
        size_t n_header;
        char *header = maker_header(maker, file, &n_header);
        maker_write_file(maker, maker_shard_name(file), file, header, n_header);
        free(header);
    }
}

static inline int maker_remove_one(const char *path, const struct stat *st, int type,
                                   struct FTW *walk)
{
    (void)st, (void)type, (void)walk;
    return remove(path);
}

static inline void maker_free(struct maker *maker)
{
    nftw(maker->directory, maker_remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

#endif
