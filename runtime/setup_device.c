/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/setup_device.c - the device for a model that setup.c has found: which backend, types of
 * numbers, limits and memory it is opened with. */
#include "runtime/setup_impl.h"

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "runtime/loader_plan.h"
#include "runtime/memory.h"
#include "runtime/scheduler.h"

#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define KV_PAGES_MAX (1u << 24)

/* ---- the backend -----------------------------------------------------------------------------*/

/* A GPU is there when its device node is: then a failure to use it is an error, not a reason to go
 * on slowly. */
static bool has_gpu(void)
{
    struct dirent *entry;
    bool is_found = false;
    DIR *dev = opendir("/dev");

    if (dev == NULL)
        return false;
    while ((entry = readdir(dev)) != NULL)
        is_found |= strncmp(entry->d_name, "nvidia", 6) == 0 && entry->d_name[6] >= '0' &&
                    entry->d_name[6] <= '9';
    closedir(dev);
    return is_found;
}

/* llring-cuda.so beside llringd or in ../lib/llring. */
static int load_module(struct ll_setup *setup)
{
    static const char *const places[] = {"llring-cuda.so", "../lib/llring/llring-cuda.so"};
    char own[512], path[640], first[256] = "";
    ssize_t n = readlink("/proc/self/exe", own, sizeof(own) - 1);

    own[n > 0 ? n : 0] = 0;
    char *slash = strrchr(own, '/');
    if (slash != NULL)
        *slash = 0;
    for (size_t i = 0; i < LL_COUNT(places) && setup->module == NULL; i++) {
        snprintf(path, sizeof(path), "%s/%s", own, places[i]);
        setup->module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (setup->module == NULL && access(path, F_OK) == 0)
            snprintf(first, sizeof(first), ": %s", dlerror());
    }
    if (setup->module == NULL)
        return LL_ERR(LL_E_UNSUPPORTED,
                      "device cuda: llring-cuda.so cannot be used%s (build it with -DLL_CUDA=ON "
                      "where nvcc is, or use --device cpu)",
                      first[0] != 0 ? first : ", it is not installed beside llringd");
    const struct ll_backend *(*entry)(void) =
        (const struct ll_backend *(*)(void))dlsym(setup->module, "ll_backend_cuda");
    if (entry == NULL)
        return LL_ERR(LL_E_ABI, "llring-cuda.so has no ll_backend_cuda: it is of another version");
    setup->backend = entry();
    return 0;
}

static int choose_backend(struct ll_setup *setup)
{
    uint32_t device = setup->config->device;
    int rc = 0;

    if (device == LL_DEVICE_AUTO)
        device = has_gpu() ? LL_DEVICE_CUDA : LL_DEVICE_CPU;
    if (device == LL_DEVICE_CUDA)
        rc = load_module(setup);
    else
        setup->backend = device == LL_DEVICE_FAKE ? ll_backend_fake() : ll_backend_cpu();
    if (rc == 0 && setup->backend->abi != LL_BACKEND_ABI)
        rc = LL_ERR(LL_E_ABI, "backend %s speaks version %u of the seam, this runtime %u",
                    setup->backend->name, setup->backend->abi, LL_BACKEND_ABI);
    return rc;
}

static void choose_dtypes(struct ll_setup *setup)
{
    struct ll_backend_options *o = &setup->options;

    switch (setup->config->dtype) {
    case LL_CONFIG_FLOAT32:
    case LL_CONFIG_FLOAT:
        o->dtype = LL_DTYPE_F32;
        break;
    case LL_CONFIG_FLOAT16:
    case LL_CONFIG_HALF:
        ll_info("--dtype float16: computes in bfloat16 (same size, wider range)");
        o->dtype = LL_DTYPE_BF16;
        break;
    case LL_CONFIG_BFLOAT16:
        o->dtype = LL_DTYPE_BF16;
        break;
    default:
        o->dtype = setup->checkpoint.dtype == LL_DTYPE_F32 ? LL_DTYPE_F32 : LL_DTYPE_BF16;
    }
    setup->dtype_name = o->dtype == LL_DTYPE_F32 ? "float32" : "bfloat16";

    static const enum ll_dtype kv[] = {
        [LL_KV_AUTO] = 0,
        [LL_KV_FLOAT32] = LL_DTYPE_F32,
        [LL_KV_BFLOAT16] = LL_DTYPE_BF16,
        [LL_KV_FP8] = LL_DTYPE_E4M3,
        [LL_KV_FP8_E4M3] = LL_DTYPE_E4M3,
    };
    o->kv_dtype = kv[setup->config->kv_cache_dtype];
}

uint64_t ll_setup_page_bytes(const struct ll_model_shape *shape, enum ll_dtype kv_dtype)
{
    return 2ull * shape->n_layers * shape->n_kv_heads * shape->head_dim * LL_PAGE_TOKENS *
           ll_dtype_bytes(kv_dtype);
}

uint64_t ll_setup_weights_bytes(const struct ll_setup *setup,
                                const struct ll_checkpoint *checkpoint)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < checkpoint->n_tensors; i++) {
        const struct ll_tensor *t = &checkpoint->tensor[i].tensor;
        const uint64_t n = (uint64_t)t->rows * t->cols;
        if (setup->quantize_fp8 && ll_load_is_quantised(t))
            total += n + 4ull * t->rows;
        else if (t->dtype == LL_DTYPE_E4M3 || t->dtype == LL_DTYPE_BF16)
            total += t->size_bytes;
        else
            total += n * ll_dtype_bytes(setup->options.dtype);
    }
    return total;
}

/* Pages where nobody said how many: what all sequences could fill, within free memory. */
static uint32_t choose_pages(const struct ll_setup *setup, uint32_t pages_per_seq)
{
    const struct ll_backend_options *o = &setup->options;
    uint64_t wanted = ll_min_u64((uint64_t)o->n_slots * pages_per_seq, KV_PAGES_MAX);
    uint64_t page_bytes =
        ll_setup_page_bytes(&setup->checkpoint.shape, o->kv_dtype != 0 ? o->kv_dtype : o->dtype);
    uint64_t free_bytes = ll_memory_available();
    uint64_t weights_bytes =
        ll_setup_weights_bytes(setup, &setup->checkpoint) * setup->options.n_weights;

    if (setup->config->device == LL_DEVICE_FAKE)
        return (uint32_t)ll_min_u64(wanted, 65536);
    free_bytes = free_bytes > weights_bytes ? (free_bytes - weights_bytes) / 2 : 0;
    return (uint32_t)ll_max_u64(ll_min_u64(wanted, free_bytes / page_bytes), 1);
}

static int choose_swap(struct ll_setup *setup)
{
    const struct ll_config *config = setup->config;
    struct ll_backend_options *o = &setup->options;
    uint64_t page_bytes =
        ll_setup_page_bytes(&setup->checkpoint.shape, o->kv_dtype != 0 ? o->kv_dtype : o->dtype);
    uint64_t n_pages = config->swap_space_bytes / page_bytes, free_bytes = ll_memory_available();

    if (config->swap_space_bytes == 0)
        return 0;
    if (n_pages == 0)
        return ll_setup_usage(
            setup,
            LL_ERR(LL_E_INVAL, "--swap-space-bytes: %llu bytes hold no KV page, which has %llu",
                   (unsigned long long)config->swap_space_bytes, (unsigned long long)page_bytes));
    if (free_bytes != 0 && config->swap_space_bytes > free_bytes)
        return ll_setup_usage(
            setup,
            LL_ERR(LL_E_INVAL, "--swap-space-bytes: %llu bytes, this machine has %llu free",
                   (unsigned long long)config->swap_space_bytes, (unsigned long long)free_bytes));
    o->n_host_pages = (uint32_t)ll_min_u64(n_pages, KV_PAGES_MAX);
    return 0;
}

static int choose_sizes(struct ll_setup *setup)
{
    const struct ll_config *config = setup->config;
    const struct ll_model_shape *shape = &setup->checkpoint.shape;
    struct ll_backend_options *o = &setup->options;
    bool is_cpu = strcmp(setup->backend->name, "cpu") == 0;
    bool is_cuda = strcmp(setup->backend->name, "cuda") == 0;

    o->n_rows_max = config->max_num_seqs != 0 ? config->max_num_seqs : is_cpu ? 32 : 256;
    o->n_slots = o->n_rows_max;
    o->n_tokens_max = config->max_num_batched_tokens != 0
                          ? config->max_num_batched_tokens
                          : (uint32_t)ll_max_u64(is_cpu ? 512 : 2048, o->n_rows_max);
    if (o->n_tokens_max < o->n_rows_max)
        return ll_setup_usage(
            setup,
            LL_ERR(LL_E_INVAL,
                   "--max-num-batched-tokens (%u) must be at least --max-num-seqs (%u): each "
                   "running request takes one",
                   o->n_tokens_max, o->n_rows_max));
    if (config->is_deterministic) {
        setup->n_grid = ll_scheduler_grid(o->n_tokens_max, o->n_rows_max);
        if (setup->n_grid == 0)
            return ll_setup_usage(
                setup, LL_ERR(LL_E_INVAL,
                              "--deterministic: --max-num-batched-tokens (%u) must be at "
                              "least --max-num-seqs (%u) and %u more: a piece of a prompt "
                              "is never cut",
                              o->n_tokens_max, o->n_rows_max, LL_PAGE_TOKENS));
        ll_info("deterministic: prompts are computed in pieces of %u tokens", setup->n_grid);
    }
    o->pages_per_seq = (uint32_t)ll_div_ceil(shape->context_max, LL_PAGE_TOKENS);
    o->n_pages = config->n_pages;
    o->kv_bytes = config->kv_cache_memory_bytes;
    if (o->n_pages == 0 && o->kv_bytes == 0 && !is_cuda)
        o->n_pages = choose_pages(setup, o->pages_per_seq);
    int rc = choose_swap(setup);
    if (rc < 0)
        return rc;
    o->memory_fraction = is_cuda ? config->gpu_memory_utilization : 0;
    return 0;
}

/* A second set is refused before the first is loaded, not after. A GPU's memory is its backend's.
 */
static int check_reserve(const struct ll_setup *setup)
{
    const uint64_t needed = 2 * ll_setup_weights_bytes(setup, &setup->checkpoint);
    const uint64_t free_bytes = ll_memory_available();

    if (setup->options.n_weights == 1 || free_bytes == 0 || needed <= free_bytes ||
        strcmp(setup->backend->name, "cpu") != 0)
        return 0;
    return LL_ERR(-ENOMEM,
                  "--reserve-weights: two sets of weights need %.2f GB, this machine has %.2f free",
                  (double)needed / 1e9, (double)free_bytes / 1e9);
}

/* --quantization fp8 makes FP8 of what is not; the other names say what the checkpoint is. */
static int choose_quantization(struct ll_setup *setup)
{
    static const char *const names[] = {
        [LL_QUANTIZATION_NONE] = "",
        [LL_QUANTIZATION_FP8] = "fp8",
        [LL_QUANTIZATION_COMPRESSED_TENSORS] = "compressed-tensors",
        [LL_QUANTIZATION_FBGEMM_FP8] = "fbgemm_fp8",
        [LL_QUANTIZATION_MODELOPT] = "modelopt",
    };
    const uint32_t wish = setup->config->quantization;
    const char *found = setup->checkpoint.quantization;
    bool is_fp8 = setup->checkpoint.dtype == LL_DTYPE_E4M3 || wish == LL_QUANTIZATION_FP8;

    if (wish > LL_QUANTIZATION_FP8 && strcmp(names[wish], found) != 0)
        return ll_setup_usage(
            setup, LL_ERR(LL_E_INVAL,
                          "--quantization %s: the checkpoint %s%s; leave the option away, "
                          "the checkpoint says what it is",
                          names[wish], found[0] != 0 ? "is " : "is not quantised", found));
    if (!is_fp8 || setup->config->device == LL_DEVICE_FAKE)
        return 0;
    setup->dtype_name = "fp8";
    setup->options.activation_max = setup->checkpoint.activation_bound;
    if (setup->options.has_dummy_weights)
        setup->options.extra = "weights=fp8";
    else if (strcmp(setup->backend->name, "cuda") == 0)
        setup->options.extra = "source=fp8"; /* for its memory plan */
    setup->quantize_fp8 = wish == LL_QUANTIZATION_FP8;
    return 0;
}

/* What only makes sense on GPUs; --tp-shard-only is the backend's "tp=shard". */
static int choose_shard(struct ll_setup *setup)
{
    const struct ll_config *config = setup->config;
    const char *extra = setup->options.extra;
    const bool is_cuda = strcmp(setup->backend->name, "cuda") == 0;

    if (!is_cuda && strcmp(config->model_shape, "llama-3.1-405b") == 0)
        return ll_setup_usage(
            setup, LL_ERR(LL_E_INVAL, "--model-shape llama-3.1-405b takes --device cuda"));
    if (!config->is_tp_shard_only)
        return 0;
    if (config->tensor_parallel_size < 2)
        return ll_setup_usage(setup,
                              LL_ERR(LL_E_INVAL, "--tp-shard-only runs one rank of several: give "
                                                 "--tensor-parallel-size 2, 4 or 8"));
    if (!is_cuda)
        return ll_setup_usage(setup, LL_ERR(LL_E_INVAL, "--tp-shard-only takes --device cuda"));
    if (config->load_format != LL_LOAD_DUMMY)
        return ll_setup_usage(setup, LL_ERR(LL_E_INVAL,
                                            "--tp-shard-only computes nonsense, for measurements: "
                                            "it goes with --load-format dummy only"));
    snprintf(setup->extra, sizeof(setup->extra), "%.40s,tp=shard", extra != NULL ? extra : "");
    setup->options.extra = setup->extra;
    ll_warn("--tp-shard-only: one rank of %u alone; what it answers means nothing",
            config->tensor_parallel_size);
    return 0;
}

static int check_checksum(struct ll_setup *setup)
{
    const char *text = setup->config->weights_checksum;

    if (text[0] == 0 || strcmp(text, "print") == 0 ||
        (strlen(text) == 32 && strspn(text, "0123456789abcdefABCDEF") == 32))
        return 0;
    return ll_setup_usage(setup, LL_ERR(LL_E_INVAL,
                                        "--weights-checksum: \"%s\" is neither print nor 32 hex "
                                        "digits",
                                        text));
}

int ll_setup_device(struct ll_setup *setup)
{
    const struct ll_config *config = setup->config;
    struct ll_backend_options *o = &setup->options;
    struct ll_text error = {""};
    int rc = choose_backend(setup);

    if (rc < 0)
        return rc;
    o->struct_bytes = sizeof(*o);
    o->n_weights = config->reserves_weights ? 2 : 1;
    choose_dtypes(setup);
    o->tensor_parallel = config->tensor_parallel_size;
    o->n_threads = setup->topology.n_threads;
    o->cpus = setup->topology.worker;
    o->numa_node = setup->topology.numa_node;
    o->is_deterministic = config->is_deterministic;
    o->has_dummy_weights = config->load_format == LL_LOAD_DUMMY;
    o->seed = config->seed;
    o->extra = config->device == LL_DEVICE_FAKE ? config->fake : NULL;
    rc = choose_quantization(setup);
    if (rc == 0)
        rc = choose_sizes(setup); /* beside weights of that type */
    if (rc == 0)
        rc = choose_shard(setup);
    if (rc == 0)
        rc = check_checksum(setup);
    if (rc == 0)
        rc = check_reserve(setup);
    if (rc < 0)
        return rc;

    rc = setup->backend->open(&setup->device, o, &setup->checkpoint.shape, &setup->caps, &error);
    if (rc < 0)
        return LL_ERR(rc, "device %s: %s", setup->backend->name, error.s);
    uint64_t pool_tokens = (uint64_t)setup->caps.n_pages * LL_PAGE_TOKENS;
    if (pool_tokens < 2)
        return LL_ERR(LL_E_INVAL,
                      "device %s: no room for a single KV page of %llu bytes: give "
                      "--kv-cache-memory-bytes more",
                      setup->backend->name,
                      (unsigned long long)ll_setup_page_bytes(
                          &setup->checkpoint.shape, o->kv_dtype != 0 ? o->kv_dtype : o->dtype));
    setup->n_prompt_max =
        (uint32_t)ll_min_u64(setup->checkpoint.shape.context_max, pool_tokens) - 1;
    if (pool_tokens < setup->checkpoint.shape.context_max)
        ll_warn("the KV cache holds %llu tokens, less than the context of %u: longer requests are "
                "refused (--kv-cache-memory-bytes gives it more, --max-model-len less context)",
                (unsigned long long)pool_tokens, setup->checkpoint.shape.context_max);
    return 0;
}
