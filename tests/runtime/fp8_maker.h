/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/fp8_maker.h - FP8 checkpoints of every form, made of the demo model, together with
 * the numbers that they stand for, in double. A made directory can be spoiled in one place. */
#ifndef TESTS_RUNTIME_FP8_MAKER_H
#define TESTS_RUNTIME_FP8_MAKER_H

#include "base/bits.h"
#include "base/numbers.h"
#include "runtime/checkpoint.h"
#include "runtime/tensor_names.h"
#include "tests/harness.h"

#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

enum fp8_kind { FP8_TENSOR, FP8_CHANNEL, FP8_BLOCK };

/* How a form writes its scales. */
struct fp8_form {
    const char *name;
    const char *quantization;    /* what stands in config.json; NULL: nothing */
    const char *hf_quant_config; /* the file; NULL: none */
    enum fp8_kind kind;
    enum ll_dtype scale_dtype;
    const char *scale_leaf; /* "weight_scale" */
    const char *one_shape;  /* shape of one number: "[]", "[1]" */
    bool has_flat_channels; /* [n], not [n, 1] */
    bool has_input_scales;
    bool has_head_scales;          /* those of the cache: [kv heads, 1, 1] */
    const char *k_scale, *v_scale; /* behind "model.layers.N."; NULL: none */
    bool (*is_fp8)(enum ll_tensor_role role, uint32_t layer); /* NULL: every linear */
    enum fp8_kind (*kind_of)(enum ll_tensor_role role);       /* NULL: kind */
};

/* Scales of the cache that forms with such write for keys and values, by head; one for all heads
 * where a form does not say has_head_scales. */
static float fp8_kv_scale[2][16] = {{0.02f, 0.02f}, {1.02f, 1.02f}};

struct fp8_demo { /* the demo model in float, by slot: role and layer */
    struct ll_model_shape shape;
    float *w[LL_TENSOR_ROLES][16];
};

struct fp8_made {
    char directory[64];
    double *w[LL_TENSOR_ROLES][16]; /* what was written, as it is to be read */
};

/* One change to a directory that is otherwise right. */
struct fp8_spoil {
    const char *tensor;        /* NULL: none */
    const char *dtype, *shape; /* instead of the right ones; NULL: as they are */
    const char *rename;        /* written under this name; "": left out */
    const char *from, *to;     /* in config.json; NULL: as it is */
};

static inline float *fp8_read_bf16(const struct ll_checkpoint *c,
                                   const struct ll_checkpoint_tensor *t)
{
    const uint64_t n = (uint64_t)t->tensor.rows * t->tensor.cols;
    uint16_t *half = malloc(n * 2);
    float *out = malloc(n * sizeof(*out));
    int fd = open(c->file[t->file].path, O_RDONLY | O_CLOEXEC);

    assert_int_equal(pread(fd, half, n * 2, (off_t)t->offset), n * 2);
    close(fd);
    for (uint64_t i = 0; i < n; i++)
        out[i] = ll_f32_from_bf16(half[i]);
    free(half);
    return out;
}

static inline void fp8_demo_open(struct fp8_demo *demo)
{
    struct ll_checkpoint *c = calloc(1, sizeof(*c));

    memset(demo, 0, sizeof(*demo));
    assert_int_equal(ll_checkpoint_open(c, ll_test_source("tools/demo-model")), 0);
    demo->shape = c->shape;
    assert_true(c->shape.n_layers <= 16);
    for (uint32_t i = 0; i < c->n_tensors; i++)
        demo->w[c->tensor[i].tensor.role][c->tensor[i].tensor.layer] =
            fp8_read_bf16(c, &c->tensor[i]);
    ll_checkpoint_close(c);
    free(c);
}

static inline void fp8_demo_close(struct fp8_demo *demo)
{
    for (int role = 0; role < LL_TENSOR_ROLES; role++)
        for (int layer = 0; layer < 16; layer++)
            free(demo->w[role][layer]);
}

/* ---- writing ----------------------------------------------------------------------------------*/

struct fp8_writer {
    char *header, *end;
    uint8_t *data;
    uint64_t n_data, n_data_max;
    const struct fp8_spoil *spoil;
};

static inline uint64_t fp8_dtype_bytes(const char *dtype)
{
    return strcmp(dtype, "F32") == 0 ? 4 : dtype[0] == 'F' && dtype[1] == '8' ? 1 : 2;
}

static inline void fp8_put(struct fp8_writer *w, const char *name, const char *dtype,
                           const char *shape, const void *bytes, uint64_t n_bytes)
{
    const struct fp8_spoil *spoil = w->spoil;

    if (spoil->tensor != NULL && strcmp(spoil->tensor, name) == 0) {
        if (spoil->rename != NULL && spoil->rename[0] == '\0')
            return;
        name = spoil->rename != NULL ? spoil->rename : name;
        dtype = spoil->dtype != NULL ? spoil->dtype : dtype;
        shape = spoil->shape != NULL ? spoil->shape : shape;
        uint64_t n = fp8_dtype_bytes(dtype);
        for (const char *at = strpbrk(shape, "0123456789"); at != NULL;) {
            char *next;
            n *= strtoull(at, &next, 10);
            at = strpbrk(next, "0123456789");
        }
        uint8_t *other = calloc(1, n + 1);
        memcpy(other, bytes, n < n_bytes ? n : n_bytes);
        w->spoil = &(const struct fp8_spoil){0};
        fp8_put(w, name, dtype, shape, other, n);
        w->spoil = spoil;
        free(other);
        return;
    }
    w->end +=
        sprintf(w->end, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%llu,%llu]}",
                w->end == w->header ? "{" : ",", name, dtype, shape, (unsigned long long)w->n_data,
                (unsigned long long)(w->n_data + n_bytes));
    assert_true(w->n_data + n_bytes <= w->n_data_max);
    memcpy(w->data + w->n_data, bytes, n_bytes);
    w->n_data += n_bytes;
}

static inline void fp8_write_file(const char *directory, const char *name, const void *a,
                                  size_t n_a, const void *b, size_t n_b, const void *c, size_t n_c)
{
    char path[160];

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(a, 1, n_a, file) + fwrite(b, 1, n_b, file) + fwrite(c, 1, n_c, file),
                     n_a + n_b + n_c);
    assert_int_equal(fclose(file), 0);
}

static inline const char *fp8_dtype_name(enum ll_dtype dtype)
{
    return dtype == LL_DTYPE_F32 ? "F32" : dtype == LL_DTYPE_F16 ? "F16" : "BF16";
}

/* Stores x as dtype (F32 or BF16); gives what a reader finds there. */
static inline float fp8_store(uint8_t *to, float x, enum ll_dtype dtype)
{
    uint16_t half = ll_bf16_from_f32(x);

    if (dtype == LL_DTYPE_F32) {
        memcpy(to, &x, 4);
        return x;
    }
    memcpy(to, &half, 2);
    return ll_f32_from_bf16(half);
}

static inline void fp8_put_one(struct fp8_writer *w, const char *name, const struct fp8_form *form,
                               float value)
{
    uint8_t bytes[4];

    fp8_store(bytes, value, form->scale_dtype);
    fp8_put(w, name, fp8_dtype_name(form->scale_dtype), form->one_shape, bytes,
            ll_dtype_bytes(form->scale_dtype));
}

static inline void fp8_put_kv_scale(struct fp8_writer *w, const char *name,
                                    const struct fp8_form *form, const float *scale,
                                    uint32_t n_heads)
{
    const uint32_t size = ll_dtype_bytes(form->scale_dtype);
    uint8_t bytes[16 * 4];
    char shape[32];

    if (!form->has_head_scales) {
        fp8_put_one(w, name, form, scale[0]);
        return;
    }
    for (uint32_t h = 0; h < n_heads; h++)
        fp8_store(bytes + h * size, scale[h], form->scale_dtype);
    snprintf(shape, sizeof(shape), "[%u,1,1]", n_heads);
    fp8_put(w, name, fp8_dtype_name(form->scale_dtype), shape, bytes, n_heads * size);
}

/* Codes and scales of one linear; what they stand for goes to made. */
static inline void fp8_put_linear(struct fp8_writer *w, struct fp8_made *made,
                                  const struct fp8_demo *demo, const struct fp8_form *form,
                                  enum ll_tensor_role role, uint32_t layer)
{
    const enum fp8_kind kind = form->kind_of != NULL ? form->kind_of(role) : form->kind;
    const float *x = demo->w[role][layer];
    char module[LL_TENSOR_NAME_BYTES], name[LL_TENSOR_NAME_BYTES + 24], shape[64];
    uint32_t rows, cols;

    ll_tensor_dims(&demo->shape, role, &rows, &cols);
    const uint32_t per_row = kind == FP8_BLOCK ? (uint32_t)ll_div_ceil(cols, 128) : 1;
    const uint32_t n_rows = kind == FP8_BLOCK     ? (uint32_t)ll_div_ceil(rows, 128)
                            : kind == FP8_CHANNEL ? rows
                                                  : 1;
    const size_t size = ll_dtype_bytes(form->scale_dtype);
    uint8_t *codes = malloc((size_t)rows * cols), *scales = malloc(n_rows * per_row * size);
    float *largest = calloc(n_rows * per_row, sizeof(*largest));
    double *out = made->w[role][layer] = malloc((size_t)rows * cols * sizeof(*out));

    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < (size_t)rows * cols; i++) {
            size_t r = i / cols, c = i % cols;
            size_t at = kind == FP8_BLOCK     ? r / 128 * per_row + c / 128
                        : kind == FP8_CHANNEL ? r
                                              : 0;
            if (pass == 0) {
                largest[at] = fmaxf(largest[at], fabsf(x[i]));
                continue;
            }
            codes[i] = ll_e4m3_from_f32(x[i] / largest[at]);
            out[i] = (double)ll_f32_from_e4m3(codes[i]) * (double)largest[at];
        }
        for (size_t k = 0; k < (size_t)n_rows * per_row && pass == 0; k++)
            largest[k] = fp8_store(scales + k * size, largest[k] / 448, form->scale_dtype);
    }
    ll_tensor_module(module, role, layer);
    snprintf(name, sizeof(name), "%s.weight", module);
    snprintf(shape, sizeof(shape), "[%u,%u]", rows, cols);
    fp8_put(w, name, "F8_E4M3", shape, codes, (size_t)rows * cols);
    snprintf(name, sizeof(name), "%s.%s", module, form->scale_leaf);
    if (kind == FP8_TENSOR)
        snprintf(shape, sizeof(shape), "%s", form->one_shape);
    else if (kind == FP8_CHANNEL && form->has_flat_channels)
        snprintf(shape, sizeof(shape), "[%u]", n_rows);
    else
        snprintf(shape, sizeof(shape), "[%u,%u]", n_rows, per_row);
    fp8_put(w, name, fp8_dtype_name(form->scale_dtype), shape, scales, n_rows * per_row * size);
    if (form->has_input_scales) {
        snprintf(name, sizeof(name), "%s.input_scale", module);
        fp8_put_one(w, name, form, 0.01f);
    }
    free(codes);
    free(scales);
    free(largest);
}

static inline void fp8_put_plain(struct fp8_writer *w, struct fp8_made *made,
                                 const struct fp8_demo *demo, enum ll_tensor_role role,
                                 uint32_t layer)
{
    char name[LL_TENSOR_NAME_BYTES], shape[64];
    uint32_t rows, cols;

    ll_tensor_dims(&demo->shape, role, &rows, &cols);
    const size_t n = (size_t)rows * cols;
    uint16_t *half = malloc(n * 2);
    double *out = made->w[role][layer] = malloc(n * sizeof(*out));
    for (size_t i = 0; i < n; i++) {
        half[i] = ll_bf16_from_f32(demo->w[role][layer][i]);
        out[i] = (double)demo->w[role][layer][i];
    }
    ll_tensor_weight(name, role, layer);
    if (ll_tensor_is_vector(role))
        snprintf(shape, sizeof(shape), "[%u]", cols);
    else
        snprintf(shape, sizeof(shape), "[%u,%u]", rows, cols);
    fp8_put(w, name, "BF16", shape, half, n * 2);
    free(half);
}

/* The demo's config.json with a quantization_config in it. */
static inline void fp8_write_config(const struct fp8_made *made, const struct fp8_form *form,
                                    const struct fp8_spoil *spoil)
{
    char *text = malloc(65536), *changed = malloc(65536);
    FILE *file = fopen(ll_test_source("tools/demo-model/config.json"), "r");
    size_t n = fread(text, 1, 32768, file);

    fclose(file);
    text[n] = '\0';
    *strrchr(text, '}') = '\0';
    if (form->quantization != NULL) /* the object's fields go before its end */
        sprintf(text + strlen(text), ", \"quantization_config\": %s", form->quantization);
    strcat(text, "}");
    snprintf(changed, 65536, "%s", text);
    if (spoil->from != NULL) {
        const char *at = strstr(text, spoil->from);
        assert_non_null(at);
        snprintf(changed, 65536, "%.*s%s%s", (int)(at - text), text, spoil->to,
                 at + strlen(spoil->from));
    }
    fp8_write_file(made->directory, "config.json", changed, strlen(changed), "", 0, "", 0);
    if (form->hf_quant_config != NULL)
        fp8_write_file(made->directory, "hf_quant_config.json", form->hf_quant_config,
                       strlen(form->hf_quant_config), "", 0, "", 0);
    free(text);
    free(changed);
}

static inline bool fp8_is_quantised(const struct fp8_form *form, enum ll_tensor_role role,
                                    uint32_t layer)
{
    return ll_tensor_is_linear(role) && (form->is_fp8 == NULL || form->is_fp8(role, layer));
}

static inline void fp8_make(struct fp8_made *made, const struct fp8_demo *demo,
                            const struct fp8_form *form, const struct fp8_spoil *spoil)
{
    struct fp8_writer w = {.header = malloc(1 << 20), .n_data_max = 32u << 20, .spoil = spoil};
    char name[LL_TENSOR_NAME_BYTES + 24];

    memset(made, 0, sizeof(*made));
    snprintf(made->directory, sizeof(made->directory), "/tmp/llring-fp8-XXXXXX");
    assert_non_null(mkdtemp(made->directory));
    w.end = w.header;
    w.data = malloc(w.n_data_max);
    for (uint32_t layer = 0; layer < demo->shape.n_layers; layer++) {
        for (int role = 0; role < LL_TENSOR_ROLES; role++) {
            if (demo->w[role][layer] == NULL)
                continue;
            if (fp8_is_quantised(form, role, layer))
                fp8_put_linear(&w, made, demo, form, role, layer);
            else
                fp8_put_plain(&w, made, demo, role, layer);
        }
        const char *kv[] = {form->k_scale, form->v_scale};
        for (int i = 0; i < 2; i++)
            if (kv[i] != NULL) {
                snprintf(name, sizeof(name), "model.layers.%u.%s", layer, kv[i]);
                fp8_put_kv_scale(&w, name, form, fp8_kv_scale[i], demo->shape.n_kv_heads);
            }
    }
    w.end += sprintf(w.end, "}");
    while ((w.end - w.header) % 8 != 0)
        *w.end++ = ' ';
    uint64_t n_header = (uint64_t)(w.end - w.header);
    fp8_write_file(made->directory, "model.safetensors", &n_header, 8, w.header, n_header, w.data,
                   w.n_data);
    fp8_write_config(made, form, spoil);
    free(w.header);
    free(w.data);
}

static inline int fp8_remove_one(const char *path, const struct stat *st, int type,
                                 struct FTW *walk)
{
    (void)st, (void)type, (void)walk;
    return remove(path);
}

static inline void fp8_made_free(struct fp8_made *made)
{
    for (int role = 0; role < LL_TENSOR_ROLES; role++)
        for (int layer = 0; layer < 16; layer++)
            free(made->w[role][layer]);
    nftw(made->directory, fp8_remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

#endif
