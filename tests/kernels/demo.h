/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/demo.h - the demo model and its golden answers, read by the tests themselves, and
 * a device to run them on. No code of runtime/ is used: what is tested here stands alone. */
#ifndef TESTS_KERNELS_DEMO_H
#define TESTS_KERNELS_DEMO_H

#include "kernels/backend.h"
#include "tests/harness.h"
#include "tests/kernels/feed.h"

#include <fcntl.h>
#include <jansson.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef DEMO_BACKEND
#define DEMO_BACKEND() ll_backend_cpu()
#endif

static inline json_t *demo_golden(void)
{
    return json_load_file(ll_test_source("tests/data/golden.json"), 0, NULL);
}

static inline double demo_number(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

/* False where the model is not there. */
static inline bool demo_shape(struct ll_model_shape *shape)
{
    json_t *c = json_load_file(ll_test_source("tools/demo-model/config.json"), 0, NULL);

    if (c == NULL)
        return false;
    const json_t *rope = json_object_get(c, "rope_scaling");
    *shape = (struct ll_model_shape){
        .n_layers = (uint32_t)demo_number(c, "num_hidden_layers"),
        .n_embd = (uint32_t)demo_number(c, "hidden_size"),
        .n_heads = (uint32_t)demo_number(c, "num_attention_heads"),
        .n_kv_heads = (uint32_t)demo_number(c, "num_key_value_heads"),
        .head_dim = (uint32_t)demo_number(c, "head_dim"),
        .n_ff = (uint32_t)demo_number(c, "intermediate_size"),
        .n_vocab = (uint32_t)demo_number(c, "vocab_size"),
        .context_max = (uint32_t)demo_number(c, "max_position_embeddings"),
        .is_tied = json_is_true(json_object_get(c, "tie_word_embeddings")),
        .rope = LL_ROPE_LLAMA3,
        .rms_eps = (float)demo_number(c, "rms_norm_eps"),
        .rope_theta = demo_number(c, "rope_theta"),
        .rope_factor = demo_number(rope, "factor"),
        .rope_low_freq = demo_number(rope, "low_freq_factor"),
        .rope_high_freq = demo_number(rope, "high_freq_factor"),
        .rope_original_context = (uint32_t)demo_number(rope, "original_max_position_embeddings"),
    };
    json_decref(c);
    return true;
}

static inline bool demo_role(const char *name, struct ll_tensor *tensor)
{
    static const struct {
        const char *name;
        enum ll_tensor_role role;
    } known[] = {
        {"input_layernorm", LL_TENSOR_ATTN_NORM}, {"self_attn.q_proj", LL_TENSOR_Q},
        {"self_attn.k_proj", LL_TENSOR_K},        {"self_attn.v_proj", LL_TENSOR_V},
        {"self_attn.o_proj", LL_TENSOR_O},        {"post_attention_layernorm", LL_TENSOR_FFN_NORM},
        {"mlp.gate_proj", LL_TENSOR_GATE},        {"mlp.up_proj", LL_TENSOR_UP},
        {"mlp.down_proj", LL_TENSOR_DOWN},
    };
    char part[64];

    tensor->layer = 0;
    if (strcmp(name, "model.embed_tokens.weight") == 0)
        tensor->role = LL_TENSOR_EMBED;
    else if (strcmp(name, "model.norm.weight") == 0)
        tensor->role = LL_TENSOR_FINAL_NORM;
    else if (strcmp(name, "lm_head.weight") == 0)
        tensor->role = LL_TENSOR_HEAD;
    else if (sscanf(name, "model.layers.%u.%63[a-z_.]", &tensor->layer, part) == 2) {
        for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
            size_t n = strlen(known[i].name);
            if (strncmp(part, known[i].name, n) == 0 && strcmp(part + n, ".weight") == 0) {
                tensor->role = known[i].role;
                return true;
            }
        }
        return false;
    } else
        return false;
    return true;
}

static enum feed_as demo_form; /* of linear layers */

/* Feeds the demo model's BF16 file; piece_bytes 0: a tensor at a time. */
static inline int demo_feed(const struct ll_backend *backend, struct ll_device *device,
                            size_t piece_bytes, struct ll_text *error)
{
    const char *path = ll_test_source("tools/demo-model/model.safetensors");
    int fd = open(path, O_RDONLY | O_CLOEXEC), rc = 0;
    struct stat st;
    uint64_t n_header;

    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    const char *file = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_true(file != MAP_FAILED);
    close(fd);
    memcpy(&n_header, file, sizeof(n_header));
    json_t *header = json_loadb(file + 8, n_header, 0, NULL);
    assert_non_null(header);

    const char *name;
    json_t *entry;
    json_object_foreach(header, name, entry)
    {
        struct ll_tensor t = {.part = LL_PART_WEIGHT, .dtype = LL_DTYPE_BF16};
        if (rc < 0 || !demo_role(name, &t))
            continue;
        const json_t *shape = json_object_get(entry, "shape");
        const json_t *offsets = json_object_get(entry, "data_offsets");
        size_t n_dims = json_array_size(shape);
        t.rows = n_dims == 1 ? 1 : (uint32_t)json_integer_value(json_array_get(shape, 0));
        t.cols = (uint32_t)json_integer_value(json_array_get(shape, n_dims - 1));
        uint64_t begin = (uint64_t)json_integer_value(json_array_get(offsets, 0));
        t.size_bytes = (uint64_t)json_integer_value(json_array_get(offsets, 1)) - begin;
        if (demo_form != FEED_BF16 && t.rows > 1 && t.role != LL_TENSOR_EMBED &&
            t.role != LL_TENSOR_HEAD) {
            rc = feed_e4m3(backend, device, t, (const uint16_t *)(file + 8 + n_header + begin),
                           demo_form, error);
            continue;
        }
        struct ll_span span;
        rc = backend->want(device, &t, &span, 1, error);
        size_t piece = piece_bytes > 0 ? piece_bytes : t.size_bytes;
        for (uint64_t at = 0; at < t.size_bytes && rc >= 0; at += piece) {
            uint64_t ticket, n = t.size_bytes - at < piece ? t.size_bytes - at : piece;
            rc = backend->feed(device, 0, &t, 0, at, file + 8 + n_header + begin + at, n, &ticket,
                               error);
        }
    }
    json_decref(header);
    munmap((void *)file, (size_t)st.st_size);
    return rc;
}

/* A device with the demo model's weights, or random ones of options.has_dummy_weights. Zero fields
 * of options get the defaults below. */
static inline struct ll_device *demo_open(const struct ll_model_shape *shape,
                                          struct ll_backend_options options,
                                          struct ll_backend_caps *caps)
{
    const struct ll_backend *backend = DEMO_BACKEND();
    struct ll_device *device = NULL;
    struct ll_text error = {""};

    options.struct_bytes = sizeof(options);
    options.n_slots = options.n_slots > 0 ? options.n_slots : 32;
    options.n_tokens_max = options.n_tokens_max > 0 ? options.n_tokens_max : 512;
    options.n_rows_max = options.n_rows_max > 0 ? options.n_rows_max : 32;
    options.pages_per_seq = options.pages_per_seq > 0 ? options.pages_per_seq : 32;
    options.n_pages = options.n_pages > 0 ? options.n_pages : options.n_slots * 32;
    options.n_weights = 1;
    options.numa_node = -1;
    options.dtype = options.dtype != 0 ? options.dtype : LL_DTYPE_F32;
    int rc = backend->open(&device, &options, shape, caps, &error);
    if (rc >= 0 && !options.has_dummy_weights)
        rc = demo_feed(backend, device, 0, &error);
    if (rc >= 0)
        rc = backend->seal(device, 0, &error);
    if (rc < 0)
        fail_msg("open: %d %s", rc, error.s);
    return device;
}

/* Polls until the step is done. */
static inline struct ll_result demo_wait(const struct ll_backend *backend, struct ll_device *device,
                                         int64_t ticket)
{
    struct ll_text error = {""};
    struct ll_result result;
    int rc;

    while ((rc = backend->poll(device, ticket, &result, &error)) == 0)
        ;
    if (rc < 0)
        fail_msg("poll: %d %s", rc, error.s);
    return result;
}

/* Submits and polls until done. */
static inline struct ll_result demo_run(struct ll_device *device, const struct ll_batch *batch)
{
    const struct ll_backend *backend = DEMO_BACKEND();
    struct ll_text error = {""};
    int64_t ticket = backend->submit(device, batch, &error);

    if (ticket < 0)
        fail_msg("submit: %lld %s", (long long)ticket, error.s);
    return demo_wait(backend, device, ticket);
}

static inline struct ll_sampling demo_greedy(void)
{
    return (struct ll_sampling){.top_p = 1, .repetition = 1};
}

/* Of the i-th sequence of several: greedy, warm, and with all filters and penalties in turn. */
static inline struct ll_sampling demo_sampling(uint32_t i)
{
    struct ll_sampling s = demo_greedy();

    if (i % 3 == 1)
        s.temperature = 1.3f;
    if (i % 3 == 2) {
        s.temperature = 0.9f;
        s.top_p = 0.9f;
        s.top_k = 40;
        s.repetition = 1.2f;
        s.presence = 0.1f;
    }
    return s;
}

#endif
