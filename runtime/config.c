/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/config.c - the table of options. Reading it is config_read.c, --help config_help.c. */
#include "runtime/config.h"

#include "base/bits.h"
#include "base/err.h"
#include "ll/client.h"
#include "shm/wire.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/stat.h>

#define AT(field) offsetof(struct ll_config, field), sizeof(((struct ll_config *)NULL)->field)
#define KIB       1024.0
#define GIB       (1024.0 * 1024 * 1024)

static const struct ll_option options[] = {
    /* group, name, kind, field, low, high, choices, default, unit, help */
    {"Model", "model", LL_OPTION_STRING, AT(model), 0, 0, NULL, NULL, "DIR|NAME",
     "model directory, or a hub name found in the local cache; also the first argument"},
    {"Model", "served-model-name", LL_OPTION_STRING, AT(served_model_name), 0, 0, NULL, NULL,
     "NAME", "name shown to clients; default: the model's last path part"},
    {"Model", "load-format", LL_OPTION_CHOICE, AT(load_format), 0, 0, "auto|safetensors|dummy",
     "auto", NULL, "dummy: random weights; only the configuration is read"},
    {"Model", "model-shape", LL_OPTION_STRING, AT(model_shape), 0, 0, NULL, NULL, "NAME",
     "with --load-format dummy: llama-3.1-8b and the like, no model needed; a MODEL lends its "
     "text"},
    {"Model", "quantization", LL_OPTION_CHOICE, AT(quantization), 0, 0,
     "none|fp8|compressed-tensors|fbgemm_fp8|modelopt", "none", NULL,
     "fp8: BF16 linear layers become e4m3 while they load; an FP8 checkpoint needs no option"},
    {"Model", "weights-checksum", LL_OPTION_STRING, AT(weights_checksum), 0, 0, NULL, NULL,
     "print|HEX", "print the weights' XXH3-128 while they load, or refuse those that have another"},
    {"Model", "dtype", LL_OPTION_CHOICE, AT(dtype), 0, 0,
     "auto|float32|bfloat16|float16|half|float", "auto", NULL,
     "of computing; auto: the checkpoint's; float16 computes in bfloat16"},
    {"Model", "max-model-len", LL_OPTION_U32, AT(max_model_len), 0, 1 << 24, NULL, "0", "tokens",
     "longest prompt plus output; 0: the model's"},
    {"Model", "chat-template", LL_OPTION_STRING, AT(chat_template), 0, 0, NULL, NULL, "NAME",
     "llama3.1, llama3.2, llama3.3 or none; default: as the model says"},
    {"Model", "generation-config", LL_OPTION_CHOICE, AT(generation_config), 0, 0, "auto|none|vllm",
     "auto", NULL,
     "auto: default sampling from generation_config.json; none, vllm: neutral defaults"},
    {"Model", "seed", LL_OPTION_U64, AT(seed), 0, 1e18, NULL, "0", NULL, "of dummy weights"},

    {"Model", "reserve-weights", LL_OPTION_BOOL, AT(reserves_weights), 0, 0, NULL, "no", NULL,
     "keep memory for a second set of weights, so that llring reload can change them under load"},
    {"Model", "reload-wait", LL_OPTION_U32, AT(reload_wait_s), 0, 3600, NULL, "30", "s",
     "longest wait of new requests for those that run when weights change; then the reload is "
     "given "
     "up"},

    {"Device", "device", LL_OPTION_CHOICE, AT(device), 0, 0, "auto|cpu|cuda|fake", "auto", NULL,
     "auto: cuda where there is a GPU, else cpu; fake: no model, for tests"},
    {"Device", "kv-cache-dtype", LL_OPTION_CHOICE, AT(kv_cache_dtype), 0, 0,
     "auto|float32|bfloat16|fp8|fp8_e4m3", "auto", NULL, "auto: as --dtype"},
    {"Device", "kv-cache-memory-bytes", LL_OPTION_BYTES, AT(kv_cache_memory_bytes), 0,
     1024 * 1024 * GIB, NULL, "0", "bytes",
     "memory for the KV cache; 0: what is free, within reason"},
    {"Device", "num-gpu-blocks-override", LL_OPTION_U32, AT(n_pages), 0, 1 << 28, NULL, "0",
     "pages", "KV pages of 64 tokens; 0: from the bytes"},
    {"Device", "gpu-memory-utilization", LL_OPTION_FLOAT, AT(gpu_memory_utilization), 0.01, 1, NULL,
     "0.9", NULL, "share of a GPU's memory to use (cuda)"},
    {"Device", "tensor-parallel-size", LL_OPTION_U32, AT(tensor_parallel_size), 1, 8, NULL, "1",
     "ranks",
     "parts the model is cut into, 1, 2, 4 or 8, a GPU for each; cpu: in lockstep, for tests"},
    {"Device", "tp-shard-only", LL_OPTION_BOOL, AT(is_tp_shard_only), 0, 0, NULL, "no", NULL,
     "measure one rank of --tensor-parallel-size alone on one GPU, with dummy weights: its text "
     "means nothing"},
    {"Device", "threads", LL_OPTION_U32, AT(threads), 0, 1024, NULL, "0", NULL,
     "worker threads of the cpu device, the step thread included; 0: one a core"},
    {"Device", "cpus", LL_OPTION_STRING, AT(cpus), 0, 0, NULL, NULL, "LIST",
     "CPUs to use, \"0-3,8\"; the first is the step thread's; default: those allowed"},
    {"Device", "pin", LL_OPTION_CHOICE, AT(pin), 0, 0, "auto|always|never", "auto", NULL,
     "tie threads to CPUs; auto: with 3 CPUs or more, or with --cpus"},
    {"Device", "deterministic", LL_OPTION_BOOL, AT(is_deterministic), 0, 0, NULL, "no", NULL,
     "a request's answer has the same bits whatever else runs: products and pieces of prompts of "
     "fixed sizes, only whole pieces in the prefix cache; who gives way is swapped while there is "
     "room"},

    {"Load", "max-num-seqs", LL_OPTION_U32, AT(max_num_seqs), 0, 4096, NULL, "0", "requests",
     "running at once; 0: 256 (cpu: 32)"},
    {"Load", "max-num-batched-tokens", LL_OPTION_U32, AT(max_num_batched_tokens), 0, 65536, NULL,
     "0", "tokens", "in one step; 0: 2048 (cpu: 512)"},
    {"Load", "max-itl-ms", LL_OPTION_FLOAT, AT(max_itl_ms), 0, 60000, NULL, "0", "ms",
     "longest wait for a token while prompts arrive: they come in smaller chunks; 0: no limit"},
    {"Load", "max-waiting", LL_OPTION_U32, AT(max_waiting), 1, 65536, NULL, "1024", "requests",
     "waiting before new ones are answered with \"busy\""},
    {"Load", "max-waiting-tokens", LL_OPTION_U64, AT(max_waiting_tokens), 0, 1e12, NULL, "0",
     "tokens", "of prompts waiting, likewise; 0: no limit"},
    {"Load", "max-waiting-share", LL_OPTION_U32, AT(max_waiting_share), 1, 100, NULL, "50", "%",
     "of either that one user may fill while others are attached; 50: as much as stays free"},
    {"Load", "swap-space-bytes", LL_OPTION_BYTES, AT(swap_space_bytes), 0, 1e15, NULL, "0", "bytes",
     "host memory for KV pages of requests that have to give way; 0: they are computed again"},
    {"Load", "enable-prefix-caching", LL_OPTION_BOOL, AT(has_prefix_caching), 0, 0, NULL, "yes",
     NULL, "KV pages of ended requests are kept while there is room and found again"},
    {"Load", "max-logprobs", LL_OPTION_U32, AT(max_logprobs), 0, LL_TOP_MAX, NULL, "20", NULL,
     "most top logprobs a request may ask for"},
    {"Load", "stall-timeout", LL_OPTION_U32, AT(stall_timeout_s), 1, 86400, NULL, "30", "s",
     "a client that reads nothing so long loses its request"},
    {"Load", "step-timeout", LL_OPTION_U32, AT(step_timeout_s), 0, 3600, NULL, "0", "s",
     "a step that takes longer is a dead device; 0: 5 (cpu: 60)"},
    {"Load", "drain-timeout", LL_OPTION_U32, AT(drain_timeout_s), 1, 86400, NULL, "30", "s",
     "after SIGTERM: what still runs then is cut off"},
    {"Load", "spin-us", LL_OPTION_U64, AT(spin_us), 0, 1e15, NULL, "200", "us",
     "spin so long with nothing to do before sleeping"},

    {"Clients", "socket", LL_OPTION_STRING, AT(socket), 0, 0, NULL, NULL, "PATH",
     "control socket; default: $XDG_RUNTIME_DIR/llring/llring.sock or /run/llring/llring.sock"},
    {"Clients", "admin-socket", LL_OPTION_STRING, AT(admin_socket), 0, 0, NULL, NULL, "PATH",
     "default: admin.sock beside the control socket"},
    {"Clients", "isolate", LL_OPTION_CHOICE, AT(isolate), 0, 0, "uid|client", "uid", NULL,
     "who shares a request ring: the clients of a user, or nobody"},
    {"Clients", "max-clients", LL_OPTION_U32, AT(max_clients), 1, LL_ATTACHMENTS_MAX, NULL, "512",
     NULL, "attached at once"},
    {"Clients", "max-clients-per-user", LL_OPTION_U32, AT(max_clients_per_user), 1,
     LL_ATTACHMENTS_MAX, NULL, "512", NULL, "of one uid"},
    {"Clients", "max-slots", LL_OPTION_U32, AT(max_slots), LL_SLOTS_MIN, LL_SLOTS_MAX, NULL, "1024",
     "requests", "open at once, a client"},
    {"Clients", "max-slots-per-user", LL_OPTION_U32, AT(max_slots_per_user), LL_SLOTS_MIN, 1 << 18,
     NULL, "16384", "requests", "open at once, a user"},
    {"Clients", "max-arena-bytes", LL_OPTION_BYTES, AT(max_arena_bytes), 64 * KIB,
     LL_ARENA_BYTES_MAX, NULL, "64M", "bytes", "for prompts on the way, a client"},
    {"Clients", "max-arena-bytes-per-user", LL_OPTION_BYTES, AT(max_arena_bytes_per_user), 64 * KIB,
     1024 * GIB, NULL, "1G", "bytes", "for prompts on the way, a user"},

    {"Other", "log-level", LL_OPTION_CHOICE, AT(log_level), 0, 0, "error|warn|info|debug", "info",
     NULL, "what goes to standard error; never prompts, never outputs"},
    {"Other", "config", LL_OPTION_STRING, AT(file), 0, 0, NULL, NULL, "FILE",
     "read options from FILE: a line each, name = value"},
    {"Other", "print-config", LL_OPTION_BOOL, AT(wants_print), 0, 0, NULL, "no", NULL,
     "print the options in effect and exit"},
    {"Other", "help", LL_OPTION_BOOL, AT(wants_help), 0, 0, NULL, "no", NULL, "print this"},
    {"Other", "version", LL_OPTION_BOOL, AT(wants_version), 0, 0, NULL, "no", NULL,
     "print the version"},

    {"Accepted from commands for vllm serve", "enable-chunked-prefill", LL_OPTION_BOOL,
     AT(accepted.chunked_prefill), 0, 0, NULL, "yes", NULL, "prompts are always cut in chunks"},
    {"Accepted from commands for vllm serve", "enforce-eager", LL_OPTION_BOOL,
     AT(accepted.enforce_eager), 0, 0, NULL, "no", NULL, "without meaning here"},
    {"Accepted from commands for vllm serve", "trust-remote-code", LL_OPTION_BOOL,
     AT(accepted.trust_remote_code), 0, 0, NULL, "no", NULL, "code of a model is never run"},
    {"Accepted from commands for vllm serve", "disable-log-requests", LL_OPTION_BOOL,
     AT(accepted.disable_log_requests), 0, 0, NULL, "yes", NULL, "requests are never logged"},
    {"Accepted from commands for vllm serve", "block-size", LL_OPTION_U32, AT(accepted.block_size),
     1, 256, NULL, "64", "tokens", "KV pages have 64 tokens"},
    {"Accepted from commands for vllm serve", "pipeline-parallel-size", LL_OPTION_U32,
     AT(accepted.pipeline_parallel_size), 1, 1, NULL, "1", "GPUs", "there are no pipelines here"},
    {"Accepted from commands for vllm serve", "scheduling-policy", LL_OPTION_CHOICE,
     AT(accepted.scheduling_policy), 0, 0, "fcfs|priority", "fcfs", NULL,
     "first come, first served among equal priorities"},

    {"Fake device", "fake-vocab", LL_OPTION_FAKE, AT(fake), 17, 1 << 20, NULL, "1000", "ids",
     "vocabulary"},
    {"Fake device", "fake-eos-id", LL_OPTION_U32, AT(fake_eos_id), 0, UINT32_MAX, NULL,
     "4294967295", "id", "end id; 4294967295: none"},
    {"Fake device", "fake-eos-permille", LL_OPTION_FAKE, AT(fake), 0, 1000, NULL, NULL, NULL,
     "how often an end id is drawn"},
    {"Fake device", "fake-depth", LL_OPTION_FAKE, AT(fake), 1, 2, NULL, NULL, NULL,
     "steps in flight"},
    {"Fake device", "fake-step-us", LL_OPTION_FAKE, AT(fake), 0, 6e7, NULL, NULL, "us",
     "a step takes at least so long"},
    {"Fake device", "fake-token-ns", LL_OPTION_FAKE, AT(fake), 0, 1e9, NULL, NULL, "ns",
     "and this a token"},
    {"Fake device", "fake-polls", LL_OPTION_FAKE, AT(fake), 0, 1e9, NULL, NULL, NULL,
     "polls before a step is done"},
    {"Fake device", "fake-fail-at", LL_OPTION_FAKE, AT(fake), 0, 1e18, NULL, NULL, "step",
     "the step that fails"},
    {"Fake device", "fake-hang-at", LL_OPTION_FAKE, AT(fake), 0, 1e18, NULL, NULL, "step",
     "the step that hangs"},
    {"Fake device", "fake-hang-ms", LL_OPTION_FAKE, AT(fake), 0, 1e6, NULL, NULL, "ms",
     "until it is reported"},
    {"Fake device", "fake-fail-on", LL_OPTION_FAKE, AT(fake), 0, UINT32_MAX, NULL, NULL, "id",
     "a step with this id fails"},
    {"Fake device", "fake-abort-on", LL_OPTION_FAKE, AT(fake), 0, UINT32_MAX, NULL, NULL, "id",
     "a step with this id ends the process"},
    {"Fake device", "fake-nan-at", LL_OPTION_FAKE, AT(fake), 0, 1e18, NULL, NULL, "step",
     "the step whose first row has a NaN"},
    {"Fake device", "fake-verify", LL_OPTION_FAKE, AT(fake), 0, 1, NULL, NULL, NULL,
     "1: every page is read again for every token"},
};

const struct ll_option *ll_config_options(size_t *n)
{
    *n = LL_COUNT(options);
    return options;
}

/* ---- model names -----------------------------------------------------------------------------*/

static bool is_directory(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static void cache_directory(char *out, size_t n_bytes)
{
    const char *cache = getenv("HF_HUB_CACHE"), *home = getenv("HF_HOME");

    if (cache != NULL && cache[0] != 0)
        snprintf(out, n_bytes, "%s", cache);
    else if (home != NULL && home[0] != 0)
        snprintf(out, n_bytes, "%s/hub", home);
    else
        snprintf(out, n_bytes, "%s/.cache/huggingface/hub",
                 getenv("HOME") != NULL ? getenv("HOME") : "");
}

int ll_config_find_model(const char *name, char *directory, size_t n_bytes)
{
    const char *slash = strchr(name, '/');
    char cache[512], base[900], revision[128] = "", path[1100];

    if (is_directory(name)) {
        if ((size_t)snprintf(directory, n_bytes, "%s", name) >= n_bytes)
            return LL_ERR(-ENAMETOOLONG, "the model's path is longer than %zu bytes", n_bytes - 1);
        return 0;
    }
    if (access(name, F_OK) == 0)
        return LL_ERR(-ENOTDIR, "%s is a file: give the model's directory", name);
    if (slash == NULL || slash == name || name[0] == '.' || strchr(slash + 1, '/') != NULL)
        return LL_ERR(-ENOENT,
                      "no model directory \"%s\": give a directory with config.json, or a hub name "
                      "(org/model) that is in the local cache",
                      name);

    cache_directory(cache, sizeof(cache));
    snprintf(base, sizeof(base), "%s/models--%.*s--%s", cache, (int)(slash - name), name,
             slash + 1);
    snprintf(path, sizeof(path), "%s/refs/main", base);
    FILE *file = fopen(path, "re");
    if (file != NULL) {
        if (fscanf(file, "%127[0-9a-f]", revision) != 1)
            revision[0] = 0;
        fclose(file);
    }
    snprintf(path, sizeof(path), "%s/snapshots/%s", base, revision);
    if (revision[0] == 0 || !is_directory(path))
        return LL_ERR(-ENOENT,
                      "\"%s\" is neither a directory nor a model of the local cache %s (nothing is "
                      "downloaded: fetch it there first, or give a directory)",
                      name, cache);
    if ((size_t)snprintf(directory, n_bytes, "%s", path) >= n_bytes)
        return LL_ERR(-ENAMETOOLONG, "the model's path is longer than %zu bytes", n_bytes - 1);
    return 0;
}
