/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/setup.h - from options and a model directory to an open device: every "0: automatic" of
 * the options gets its number here, and what does not go together is refused with both names.
 *
 * Defaults by device:  --max-num-seqs 256, cpu 32; --max-num-batched-tokens 2048, cpu 512
 * KV memory: --num-gpu-blocks-override pages, else --kv-cache-memory-bytes; else on the cpu what
 * all running sequences could fill, at most half of the memory that is free once the weights are
 * there; else --gpu-memory-utilization of the device's. */
#ifndef RUNTIME_SETUP_H
#define RUNTIME_SETUP_H

#include "runtime/checkpoint.h"
#include "runtime/config.h"
#include "runtime/topology.h"

struct ll_setup {
    const struct ll_config *config;
    struct ll_topology topology;
    char directory[1024]; /* the model's; "" for the fake device alone */
    bool has_checkpoint;
    struct ll_checkpoint checkpoint; /* made up for the fake device */
    char served_name[128];
    char chat_format[32]; /* "": chat is refused */

    const struct ll_backend *backend;
    void *module; /* dlopen handle; NULL: linked in */
    struct ll_device *device;
    struct ll_backend_options options;
    struct ll_backend_caps caps;
    const char *dtype_name;
    bool quantize_fp8; /* linears become FP8 while they load */
    char extra[64];    /* of options, where it is put together */
    uint32_t n_grid;   /* --deterministic: ll_scheduler_limits.n_grid */
    uint32_t n_prompt_max;
    bool is_usage; /* the error was one of the options: exit status 2 */
};

/* Reads the machine and the model; opens no device yet. *setup is zeroed here; free it with
 * _close in any case. */
int ll_setup_model(struct ll_setup *setup, const struct ll_config *config);
/* Opens the device. */
int ll_setup_device(struct ll_setup *setup);
void ll_setup_close(struct ll_setup *setup);

/* Parts of _model(), for a directory that is to take over (reload_check.h): the name that clients
 * see of a model asked for as `path` and found in `directory`; the chat format's name ("": none),
 * or an error of --chat-template; default sampling, neutral where --generation-config says so. */
void ll_setup_name(const struct ll_config *config, const char *path, const char *directory,
                   char *out, size_t n_bytes);
int ll_setup_chat_format(const struct ll_config *config, const struct ll_checkpoint *checkpoint,
                         char *out, size_t n_bytes);
void ll_setup_sampling(const struct ll_config *config, struct ll_checkpoint *checkpoint);

/* Memory that a device of this type of computing needs for a checkpoint's weights. */
uint64_t ll_setup_weights_bytes(const struct ll_setup *setup,
                                const struct ll_checkpoint *checkpoint);

/* KV memory of one page (K and V of 64 tokens, all layers). */
uint64_t ll_setup_page_bytes(const struct ll_model_shape *shape, enum ll_dtype kv_dtype);

#endif
