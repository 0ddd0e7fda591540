/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/config.h - what llringd can be told: one table of options drives everything.
 *
 * Each row has name, default, range, unit and help; parsing, --help, the environment
 * (LLRING_MAX_MODEL_LEN) and the configuration file (max-model-len = 4096) follow from it. A flag
 * wins over the environment, that over the file, that over the default. `_` and `-` are the same in
 * names. Names follow `vllm serve` where that has them.
 *
 * A value is checked where it is read; what only model or device can tell (server.h) is checked
 * there. An error is one sentence that says where the value came from and what is allowed. */
#ifndef RUNTIME_CONFIG_H
#define RUNTIME_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum ll_config_device { LL_DEVICE_AUTO, LL_DEVICE_CPU, LL_DEVICE_CUDA, LL_DEVICE_FAKE };
enum ll_config_dtype { /* float16 computes in bfloat16; half and float are vLLM's other names */
                       LL_CONFIG_AUTO,
                       LL_CONFIG_FLOAT32,
                       LL_CONFIG_BFLOAT16,
                       LL_CONFIG_FLOAT16,
                       LL_CONFIG_HALF,
                       LL_CONFIG_FLOAT,
};
enum ll_config_kv { LL_KV_AUTO, LL_KV_FLOAT32, LL_KV_BFLOAT16, LL_KV_FP8, LL_KV_FP8_E4M3 };
enum ll_config_isolate { LL_ISOLATE_UID, LL_ISOLATE_CLIENT };
enum ll_config_quantization {
    LL_QUANTIZATION_NONE,
    LL_QUANTIZATION_FP8,
    LL_QUANTIZATION_COMPRESSED_TENSORS,
    LL_QUANTIZATION_FBGEMM_FP8,
    LL_QUANTIZATION_MODELOPT,
};
enum ll_config_load { LL_LOAD_AUTO, LL_LOAD_SAFETENSORS, LL_LOAD_DUMMY };
enum ll_config_generation { LL_GENERATION_AUTO, LL_GENERATION_NONE, LL_GENERATION_VLLM };

struct ll_config {
    /* model */
    char model[1024];
    char served_model_name[128];
    char model_shape[32]; /* "": the model's own */
    uint32_t load_format, quantization, dtype, generation_config;
    char weights_checksum[40]; /* "": none; "print", or 32 hex digits */
    char chat_template[32];
    uint32_t max_model_len; /* 0: the model's */
    uint64_t seed;
    bool reserves_weights; /* memory for a second set, for reload */
    uint32_t reload_wait_s;

    /* device and memory */
    uint32_t device, kv_cache_dtype;
    uint64_t kv_cache_memory_bytes; /* 0: see server.h */
    uint32_t n_pages;               /* 0: from the bytes */
    float gpu_memory_utilization;
    uint32_t tensor_parallel_size;
    bool is_tp_shard_only;
    uint32_t threads; /* 0: all CPUs */
    char cpus[256];   /* "0-3,8"; "": any */
    uint32_t pin;     /* 0 auto, 1 always, 2 never */
    bool is_deterministic;

    /* load */
    uint32_t max_num_seqs, max_num_batched_tokens; /* 0: by device */
    float max_itl_ms;                              /* 0: no limit */
    uint32_t max_waiting;
    uint64_t max_waiting_tokens; /* 0: no limit */
    uint32_t max_waiting_share;
    bool has_prefix_caching;
    uint64_t swap_space_bytes; /* host memory for pages of preempted requests; 0: none */
    uint32_t max_logprobs;
    uint32_t stall_timeout_s, step_timeout_s, drain_timeout_s;
    uint64_t spin_us; /* UINT64_MAX: for ever */

    /* clients */
    char socket[101], admin_socket[108]; /* the control socket has a lock file beside it */
    uint32_t isolate;
    uint32_t max_clients, max_clients_per_user, max_slots, max_slots_per_user;
    uint64_t max_arena_bytes, max_arena_bytes_per_user;

    uint32_t log_level;

    /* accepted because commands people have carry them; without effect */
    struct {
        bool chunked_prefill, enforce_eager, trust_remote_code, disable_log_requests;
        uint32_t block_size, pipeline_parallel_size, scheduling_policy;
    } accepted;

    char fake[512];       /* "key=value,..." for the fake backend */
    uint32_t fake_eos_id; /* UINT32_MAX: none */

    char file[1024]; /* --config */
    bool wants_help, wants_version, wants_print;
};

enum ll_option_kind {
    LL_OPTION_STRING,
    LL_OPTION_BOOL, /* --x, --no-x */
    LL_OPTION_U32,
    LL_OPTION_U64,
    LL_OPTION_BYTES, /* 123, 4K, 1.5G, 16GiB */
    LL_OPTION_FLOAT,
    LL_OPTION_CHOICE,
    LL_OPTION_FAKE, /* a number, handed on as key=value */
};

struct ll_option {
    const char *group;
    const char *name; /* with '-' */
    enum ll_option_kind kind;
    size_t offset, size_bytes; /* in struct ll_config */
    double low, high;          /* of numbers, both allowed */
    const char *choices;       /* "a|b|c": the value is the index */
    const char *initial;       /* as the user would write it; NULL: "" */
    const char *unit;          /* NULL: none */
    const char *help;
};

/* The table, for --help, manual page and completion. */
const struct ll_option *ll_config_options(size_t *n);

/* Reads defaults, file, environment and argv[1 .. argc). LL_E_INVAL: usage (exit 2), -ENOENT ...:
 * the file. With --help, --version or --print-config the rest may be incomplete. */
int ll_config_read(struct ll_config *out, int argc, char *const *argv);

/* The effective configuration, a key = value line each, fit for --config. */
void ll_config_print(const struct ll_config *config, FILE *to);
void ll_config_help(FILE *to);

/* Turns a hub name (org/model) into its directory in the local cache ($HF_HUB_CACHE, $HF_HOME/hub,
 * ~/.cache/huggingface/hub); a directory stays as it is. Nothing is ever downloaded. -ENOENT. */
int ll_config_find_model(const char *name, char *directory, size_t n_bytes);

#endif
