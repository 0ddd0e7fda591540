/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/checkpoint.h - a Hugging Face model directory, read as hostile input.
 *
 * Opens config.json, generation_config.json, tokenizer_config.json and the safetensors headers
 * (one file or shards by index), checks every rule of the format (overlap, holes, overflow, size,
 * shapes against the config) and lists the tensors. Reads no weights. A refusal names file, tensor,
 * field and offset. Formats: the README of huggingface/safetensors. */
#ifndef RUNTIME_CHECKPOINT_H
#define RUNTIME_CHECKPOINT_H

#include "kernels/backend.h"

struct ll_quantization;

struct ll_checkpoint_tensor {
    struct ll_tensor tensor;
    uint32_t file;   /* index into file[] */
    uint64_t offset; /* from the start of the file */
    char name[128];
};

struct ll_checkpoint_file {
    char path[1024];
    uint64_t size_bytes;
    uint64_t mtime_ns; /* a file that changes while loading is refused */
};

struct ll_checkpoint {
    char directory[1024];
    struct ll_model_shape shape;
    enum ll_dtype dtype;                 /* of the linears: E4M3 where one of them is */
    struct ll_checkpoint_tensor *tensor; /* the model's weights by role and layer, then scales */
    uint32_t n_tensors;
    struct ll_checkpoint_file *file;
    uint32_t n_files;
    uint64_t weights_bytes; /* scales included */

    char quantization[32];                       /* "compressed-tensors", ...; "": none */
    float activation_bound;                      /* sizes above it are taken for it; 0: none */
    bool has_kv_scales;                          /* scales for an FP8 cache are among the tensors */
    struct ll_quantization *quantization_config; /* of the two above; NULL: none */

    /* generation: config.json, overridden by generation_config.json */
    uint32_t bos; /* UINT32_MAX: none */
    uint32_t n_eos;
    uint32_t eos[8];
    float temperature, top_p, min_p, repetition_penalty;
    uint32_t top_k;

    /* tokenizer_config.json */
    char chat_format[32];     /* its chat_format field; "" */
    char template_sha256[65]; /* of chat_template or chat_template.jinja; "" */
    bool has_tokenizer_json, has_tokenizer_model;
};

/* Opens and checks; *out is large: zero it first, free it with _close on success.
 * -ENOENT ..., LL_E_INVAL (broken), LL_E_UNSUPPORTED (another architecture, rope type, format). */
int ll_checkpoint_open(struct ll_checkpoint *out, const char *directory);
/* The same without weights, for --load-format dummy: no tensors, no files. */
int ll_checkpoint_open_config(struct ll_checkpoint *out, const char *directory);
void ll_checkpoint_close(struct ll_checkpoint *checkpoint);

#endif
