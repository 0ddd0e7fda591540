/* SPDX-License-Identifier: Apache-2.0 */
/* tools/offline/inspect.c - `llring inspect DIR`: what a model directory holds, how it is
 * quantised, what a token of context costs, and whether it fits a given memory and with which
 * limits. Reads headers only, no weights. */
#include "base/bits.h"
#include "base/err.h"
#include "runtime/checkpoint.h"
#include "runtime/config.h"
#include "runtime/memory.h"
#include "runtime/tensor_names.h"
#include "tools/llring/terminal.h"
#include "tools/offline/offline.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct inspect_options {
    const char *memory, *kv_cache_dtype;
    uint32_t max_model_len;
    float utilization;
    bool json, tensors;
};

#define AT(field) .offset = offsetof(struct inspect_options, field)
static const struct option options[] = {
    {.name = "memory",
     .letter = 'm',
     .kind = OPTION_TEXT,
     AT(memory),
     .argument = "BYTES",
     .help = "memory to fit into: 80G, 141GiB; default: what is free on this machine"},
    {.name = "gpu-memory-utilization",
     .kind = OPTION_F32,
     AT(utilization),
     .argument = "SHARE",
     .help = "share of that memory to use (default 0.9)",
     .min = 0.01,
     .max = 1},
    {.name = "kv-cache-dtype",
     .kind = OPTION_TEXT,
     AT(kv_cache_dtype),
     .argument = "TYPE",
     .help = "auto, bfloat16, fp8 or float32 (default auto: bfloat16)"},
    {.name = "max-model-len",
     .kind = OPTION_U32,
     AT(max_model_len),
     .argument = "TOKENS",
     .help = "context to plan for; 0: the model's"},
    {.name = "tensors", .kind = OPTION_FLAG, AT(tensors), .help = "every tensor, one a line"},
    {.name = "json", .kind = OPTION_FLAG, AT(json), .help = "one JSON object"},
    {.name = NULL},
};

/* What follows from shape, files and memory. */
struct facts {
    uint64_t n_parameters;
    uint64_t bytes[LL_DTYPE_E4M3 + 1]; /* of weights, by type */
    uint64_t kv_bytes_16, kv_bytes_8;  /* a token */
    uint64_t kv_bytes;                 /* a token, in the type planned for */
    uint64_t fp8_bytes;                /* weights after --quantization fp8 */
    uint64_t memory_bytes, usable_bytes;
    uint64_t n_tokens; /* of context that fit beside the weights */
    uint32_t context;
};

static const char *dtype_name(enum ll_dtype dtype)
{
    static const char *const names[] = {"?", "F32", "BF16", "F16", "F8_E4M3"};

    return names[dtype];
}

/* "80G", "141GiB", "1.5T", "1000": decimal without an i. False: not a size. */
static bool read_bytes(uint64_t *out, const char *text)
{
    static const char units[] = "KMGT";
    char *end;
    double value = strtod(text, &end), factor = 1;
    const char *unit = *end != '\0' ? strchr(units, *end & ~0x20) : NULL;

    if (end == text || !(value > 0) || value > 1e18)
        return false;
    if (unit != NULL) {
        bool is_binary = end[1] == 'i';
        for (const char *u = units; u <= unit; u++)
            factor *= is_binary ? 1024 : 1000;
        end += is_binary ? 2 : 1;
        end += *end == 'B' || *end == 'b';
    }
    *out = (uint64_t)(value * factor);
    return *end == '\0' && *out > 0;
}

static void count_tensors(struct facts *facts, const struct ll_checkpoint *c)
{
    for (uint32_t i = 0; i < c->n_tensors; i++) {
        const struct ll_tensor *t = &c->tensor[i].tensor;
        const uint64_t n = (uint64_t)t->rows * t->cols;
        facts->bytes[t->dtype] += t->size_bytes;
        if (t->part == LL_PART_WEIGHT)
            facts->n_parameters += n;
        facts->fp8_bytes += t->part == LL_PART_WEIGHT && ll_tensor_is_linear(t->role)
                                ? n + (t->dtype != LL_DTYPE_E4M3 ? 4ull * t->rows : 0)
                                : t->size_bytes;
    }
}

static int find_facts(struct facts *facts, const struct ll_checkpoint *c,
                      const struct inspect_options *o)
{
    const struct ll_model_shape *s = &c->shape;
    const char *kv = o->kv_cache_dtype != NULL ? o->kv_cache_dtype : "auto";
    const uint64_t numbers = 2ull * s->n_layers * s->n_kv_heads * s->head_dim;
    uint32_t kv_size = strcmp(kv, "auto") == 0 || strcmp(kv, "bfloat16") == 0 ? 2
                       : strncmp(kv, "fp8", 3) == 0                           ? 1
                       : strcmp(kv, "float32") == 0                           ? 4
                                                                              : 0;

    *facts = (struct facts){.kv_bytes_16 = 2 * numbers, .kv_bytes_8 = numbers};
    if (kv_size == 0)
        return options_usage_error("inspect",
                                   "--kv-cache-dtype \"%s\" is none of auto, bfloat16, "
                                   "fp8, float32",
                                   kv);
    if (o->max_model_len > s->context_max)
        return options_usage_error("inspect", "--max-model-len %u is more than the model's %u",
                                   o->max_model_len, s->context_max);
    facts->kv_bytes = kv_size * numbers;
    facts->context = o->max_model_len != 0 ? o->max_model_len : s->context_max;
    facts->memory_bytes = ll_memory_available();
    if (o->memory != NULL && !read_bytes(&facts->memory_bytes, o->memory))
        return options_usage_error(
            "inspect", "--memory takes a size like 80G or 141GiB, not \"%s\"", o->memory);
    count_tensors(facts, c);
    facts->usable_bytes = (uint64_t)((double)facts->memory_bytes * (double)o->utilization);
    if (facts->usable_bytes > c->weights_bytes)
        facts->n_tokens = (facts->usable_bytes - c->weights_bytes) / facts->kv_bytes /
                          LL_PAGE_TOKENS * LL_PAGE_TOKENS;
    return EXIT_OK;
}

/* ---- text -------------------------------------------------------------------------------------*/

static double gb(uint64_t bytes)
{
    return (double)bytes / 1e9;
}

/* The tensors of one kind, all layers in a line: "model.layers.*.mlp.up_proj.weight". */
static void print_kinds(const struct ll_checkpoint *c)
{
    printf("\n%-46s %-8s %-16s %6s %10s\n", "tensors", "type", "shape", "count", "GB");
    for (uint32_t i = 0; i < c->n_tensors; i++) {
        const struct ll_tensor *t = &c->tensor[i].tensor;
        char name[LL_TENSOR_NAME_BYTES + 8], shape[32];
        const char *rest = strchr(c->tensor[i].name + strlen("model.layers."), '.');
        uint32_t n = 0;
        uint64_t bytes = 0;
        bool is_first = true;
        for (uint32_t k = 0; k < c->n_tensors; k++) {
            const struct ll_tensor *other = &c->tensor[k].tensor;
            if (other->role != t->role || other->part != t->part || other->dtype != t->dtype ||
                other->rows != t->rows || other->cols != t->cols)
                continue;
            is_first &= k >= i;
            n++;
            bytes += other->size_bytes;
        }
        if (!is_first)
            continue;
        if (ll_tensor_is_per_layer(t->role) && rest != NULL)
            snprintf(name, sizeof(name), "model.layers.*%s", rest);
        else
            snprintf(name, sizeof(name), "%s", c->tensor[i].name);
        if (t->rows == 1 && t->part == LL_PART_WEIGHT)
            snprintf(shape, sizeof(shape), "[%u]", t->cols);
        else
            snprintf(shape, sizeof(shape), "[%u, %u]", t->rows, t->cols);
        printf("%-46s %-8s %-16s %6u %10.4f\n", name, dtype_name(t->dtype), shape, n, gb(bytes));
    }
}

static void print_tensors(const struct ll_checkpoint *c)
{
    printf("\n%-52s %-8s %9s %9s %14s %14s  file\n", "tensor", "type", "rows", "columns", "bytes",
           "offset");
    for (uint32_t i = 0; i < c->n_tensors; i++) {
        const struct ll_checkpoint_tensor *t = &c->tensor[i];
        const char *slash = strrchr(c->file[t->file].path, '/');
        printf("%-52s %-8s %9u %9u %14llu %14llu  %s\n", t->name, dtype_name(t->tensor.dtype),
               t->tensor.rows, t->tensor.cols, (unsigned long long)t->tensor.size_bytes,
               (unsigned long long)t->offset, slash != NULL ? slash + 1 : c->file[t->file].path);
    }
}

static void print_fit(const struct facts *f, const struct ll_checkpoint *c,
                      const struct inspect_options *o)
{
    printf("memory        %.2f GB%s, of which %.0f %% are used: %.2f GB\n", gb(f->memory_bytes),
           o->memory == NULL ? " free on this machine" : "", 100 * (double)o->utilization,
           gb(f->usable_bytes));
    if (f->n_tokens < 2 * LL_PAGE_TOKENS) {
        printf("fits          no: the weights take %.2f GB\n", gb(c->weights_bytes));
        if (f->fp8_bytes + 2 * LL_PAGE_TOKENS * f->kv_bytes <= f->usable_bytes &&
            c->dtype != LL_DTYPE_E4M3)
            printf("              it would with --quantization fp8: %.2f GB\n", gb(f->fp8_bytes));
        return;
    }
    printf(
        "fits          yes, beside %llu tokens of context: %llu request%s of %u tokens at once\n",
        (unsigned long long)f->n_tokens, (unsigned long long)(f->n_tokens / f->context),
        f->n_tokens / f->context == 1 ? "" : "s", f->context);
    if (f->n_tokens < f->context)
        printf("              with --max-model-len %llu; longer ones do not fit\n",
               (unsigned long long)f->n_tokens);
}

static void print_text(const struct facts *f, const struct ll_checkpoint *c,
                       const struct inspect_options *o)
{
    const struct ll_model_shape *s = &c->shape;

    printf("model         %s\n", c->directory);
    printf(
        "shape         %u layers, width %u, %u heads of %u, %u KV heads, ffn %u, vocabulary %u%s\n",
        s->n_layers, s->n_embd, s->n_heads, s->head_dim, s->n_kv_heads, s->n_ff, s->n_vocab,
        s->is_tied ? ", tied head" : "");
    printf("context       %u tokens, rope theta %g", s->context_max, s->rope_theta);
    if (s->rope == LL_ROPE_LLAMA3)
        printf(", llama3 scaling by %g from %u", s->rope_factor, s->rope_original_context);
    printf("\nparameters    %.3f G\n", (double)f->n_parameters / 1e9);
    printf("quantisation  %s%s\n", c->quantization[0] != '\0' ? c->quantization : "none",
           c->has_kv_scales ? ", with scales for an FP8 cache" : "");
    if (c->activation_bound > 0)
        printf("              activations bounded at %g\n", (double)c->activation_bound);
    printf("weights       %.3f GB in %u file%s:", gb(c->weights_bytes), c->n_files,
           c->n_files == 1 ? "" : "s");
    for (int dtype = LL_DTYPE_F32; dtype <= LL_DTYPE_E4M3; dtype++)
        if (f->bytes[dtype] > 0)
            printf(" %s %.3f", dtype_name((enum ll_dtype)dtype), gb(f->bytes[dtype]));
    printf("\nKV cache      %llu bytes a token in bfloat16, %llu in fp8\n",
           (unsigned long long)f->kv_bytes_16, (unsigned long long)f->kv_bytes_8);
    print_fit(f, c, o);
    if (o->tensors)
        print_tensors(c);
    else
        print_kinds(c);
}

/* ---- JSON -------------------------------------------------------------------------------------*/

static json_t *tensors_json(const struct ll_checkpoint *c)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < c->n_tensors; i++) {
        const struct ll_checkpoint_tensor *t = &c->tensor[i];
        const char *slash = strrchr(c->file[t->file].path, '/');
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:s}", "name", t->name, "dtype",
                            dtype_name(t->tensor.dtype), "rows", (json_int_t)t->tensor.rows,
                            "columns", (json_int_t)t->tensor.cols, "bytes",
                            (json_int_t)t->tensor.size_bytes, "offset", (json_int_t)t->offset,
                            "file", slash != NULL ? slash + 1 : c->file[t->file].path));
    }
    return list;
}

static int print_json(const struct facts *f, const struct ll_checkpoint *c,
                      const struct inspect_options *o)
{
    const struct ll_model_shape *s = &c->shape;
    json_t *types = json_object(), *files = json_array();

    for (int dtype = LL_DTYPE_F32; dtype <= LL_DTYPE_E4M3; dtype++)
        if (f->bytes[dtype] > 0)
            json_object_set_new(types, dtype_name((enum ll_dtype)dtype),
                                json_integer((json_int_t)f->bytes[dtype]));
    for (uint32_t i = 0; i < c->n_files; i++)
        json_array_append_new(files, json_pack("{s:s, s:I}", "path", c->file[i].path, "bytes",
                                               (json_int_t)c->file[i].size_bytes));
    json_t *shape = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "layers",
                              (json_int_t)s->n_layers, "width", (json_int_t)s->n_embd, "heads",
                              (json_int_t)s->n_heads, "kv_heads", (json_int_t)s->n_kv_heads,
                              "head_dim", (json_int_t)s->head_dim, "ffn", (json_int_t)s->n_ff,
                              "vocabulary", (json_int_t)s->n_vocab, "context",
                              (json_int_t)s->context_max, "tied_head", (int)s->is_tied);
    json_t *fit = json_pack(
        "{s:I, s:I, s:b, s:I, s:I, s:I}", "memory_bytes", (json_int_t)f->memory_bytes,
        "usable_bytes", (json_int_t)f->usable_bytes, "fits",
        (int)(f->n_tokens >= 2 * LL_PAGE_TOKENS), "context_tokens", (json_int_t)f->n_tokens,
        "requests_at_full_context", (json_int_t)(f->n_tokens / f->context), "weights_bytes_as_fp8",
        (json_int_t)f->fp8_bytes);
    json_t *all = json_pack("{s:s, s:o, s:I, s:s, s:b, s:I, s:o, s:o, s:I, s:I, s:o}", "directory",
                            c->directory, "shape", shape, "parameters", (json_int_t)f->n_parameters,
                            "quantization", c->quantization[0] != '\0' ? c->quantization : "none",
                            "kv_scales", (int)c->has_kv_scales, "weights_bytes",
                            (json_int_t)c->weights_bytes, "weights_by_type", types, "files", files,
                            "kv_bytes_per_token_bfloat16", (json_int_t)f->kv_bytes_16,
                            "kv_bytes_per_token_fp8", (json_int_t)f->kv_bytes_8, "memory", fit);
    if (all != NULL && o->tensors)
        json_object_set_new(all, "tensors", tensors_json(c));
    int rc = all != NULL ? json_dumpf(all, stdout, JSON_INDENT(2)) : -1;
    printf("\n");
    json_decref(all);
    return rc == 0 ? EXIT_OK : terminal_fail("the result could not be written");
}

static int run(const struct command *command, int argc, char **argv)
{
    struct inspect_options o = {.utilization = 0.9f};
    struct ll_checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));
    struct facts facts;
    char directory[1024];
    int n_operands, rc = options_parse(command, argc, argv, &o, &n_operands);

    if (rc != OPTIONS_GO_ON || checkpoint == NULL) {
        free(checkpoint);
        return rc != OPTIONS_GO_ON ? rc : terminal_fail("no memory");
    }
    rc = ll_config_find_model(argv[1], directory, sizeof(directory));
    if (rc == 0)
        rc = ll_checkpoint_open(checkpoint, directory);
    if (rc < 0) {
        free(checkpoint);
        return terminal_fail("%s", ll_err_text());
    }
    rc = find_facts(&facts, checkpoint, &o);
    if (rc == EXIT_OK && o.json)
        rc = print_json(&facts, checkpoint, &o);
    else if (rc == EXIT_OK)
        print_text(&facts, checkpoint, &o);
    ll_checkpoint_close(checkpoint);
    free(checkpoint);
    return rc;
}

const struct command command_inspect = {
    .name = "inspect",
    .summary = "what a model directory holds, and whether it fits",
    .operands = "MODEL",
    .details =
        "Reads headers only. Sizes for activations and the device's own needs are not in it:\n"
        "that is what the share of memory left over is for.",
    .groups = {{"Options", options, 0}},
    .n_operands_min = 1,
    .n_operands_max = 1,
    .run = run,
};
