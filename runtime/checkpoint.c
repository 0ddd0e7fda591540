/* SPDX-License-Identifier: Apache-2.0 */
/* The tensors of a model directory: which files hold them, and that each one the shape asks for is
 * there once, with the right dims and a type that can be served. */
#include "runtime/checkpoint.h"

#include "base/bits.h"
#include "base/err.h"
#include "ll/client.h"
#include "runtime/jsonfile.h"
#include "runtime/model_config.h"
#include "runtime/safetensors.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define INDEX_BYTES_MAX (16u << 20)
#define FILES_MAX       1024u
#define SINGLE_FILE     "model.safetensors"
#define INDEX_FILE      "model.safetensors.index.json"

static_assert(sizeof(((struct ll_checkpoint_tensor *)0)->name) == LL_SAFETENSORS_NAME_MAX + 1,
              "a name that the header parser takes fits");

/* HF names by role; "model.layers.N." in front of those with is_layer. Slots of the tensor list:
 * embed, then each layer's nine in this order, then the final norm and the head. */
static const struct {
    const char *name;
    bool is_layer;
} roles[LL_TENSOR_ROLES] = {
    [LL_TENSOR_EMBED] = {"model.embed_tokens.weight", false},
    [LL_TENSOR_ATTN_NORM] = {"input_layernorm.weight", true},
    [LL_TENSOR_Q] = {"self_attn.q_proj.weight", true},
    [LL_TENSOR_K] = {"self_attn.k_proj.weight", true},
    [LL_TENSOR_V] = {"self_attn.v_proj.weight", true},
    [LL_TENSOR_O] = {"self_attn.o_proj.weight", true},
    [LL_TENSOR_FFN_NORM] = {"post_attention_layernorm.weight", true},
    [LL_TENSOR_GATE] = {"mlp.gate_proj.weight", true},
    [LL_TENSOR_UP] = {"mlp.up_proj.weight", true},
    [LL_TENSOR_DOWN] = {"mlp.down_proj.weight", true},
    [LL_TENSOR_FINAL_NORM] = {"model.norm.weight", false},
    [LL_TENSOR_HEAD] = {"lm_head.weight", false},
};

#define LAYER_ROLES  (LL_TENSOR_DOWN - LL_TENSOR_ATTN_NORM + 1u)
#define LAYER_PREFIX "model.layers."

static uint32_t slot_of(const struct ll_model_shape *shape, enum ll_tensor_role role,
                        uint32_t layer)
{
    if (role == LL_TENSOR_EMBED)
        return 0;
    if (role <= LL_TENSOR_DOWN)
        return 1 + layer * LAYER_ROLES + (role - LL_TENSOR_ATTN_NORM);
    return 1 + shape->n_layers * LAYER_ROLES + (role - LL_TENSOR_FINAL_NORM);
}

static void set_expected(struct ll_checkpoint_tensor *out, const struct ll_model_shape *s,
                         enum ll_tensor_role role, uint32_t layer)
{
    uint32_t q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim, e = s->n_embd;
    const uint32_t dims[LL_TENSOR_ROLES][2] = {
        [LL_TENSOR_EMBED] = {s->n_vocab, e},
        [LL_TENSOR_ATTN_NORM] = {1, e},
        [LL_TENSOR_Q] = {q, e},
        [LL_TENSOR_K] = {kv, e},
        [LL_TENSOR_V] = {kv, e},
        [LL_TENSOR_O] = {e, q},
        [LL_TENSOR_FFN_NORM] = {1, e},
        [LL_TENSOR_GATE] = {s->n_ff, e},
        [LL_TENSOR_UP] = {s->n_ff, e},
        [LL_TENSOR_DOWN] = {e, s->n_ff},
        [LL_TENSOR_FINAL_NORM] = {1, e},
        [LL_TENSOR_HEAD] = {s->n_vocab, e},
    };

    out->tensor = (struct ll_tensor){.role = role,
                                     .part = LL_PART_WEIGHT,
                                     .layer = layer,
                                     .rows = dims[role][0],
                                     .cols = dims[role][1]};
    if (roles[role].is_layer)
        snprintf(out->name, sizeof(out->name), LAYER_PREFIX "%u.%s", layer, roles[role].name);
    else
        snprintf(out->name, sizeof(out->name), "%s", roles[role].name);
}

/* The list of what must be there, in slot order, nothing found yet (size_bytes 0). */
static int make_expected(struct ll_checkpoint *out)
{
    const struct ll_model_shape *shape = &out->shape;

    out->n_tensors = slot_of(shape, LL_TENSOR_HEAD, 0) + !shape->is_tied;
    out->tensor = calloc(out->n_tensors, sizeof(*out->tensor));
    if (out->tensor == NULL)
        return LL_ERR(-ENOMEM, "no memory for a list of %u tensors", out->n_tensors);
    for (uint32_t role = 0; role < LL_TENSOR_ROLES; role++) {
        uint32_t n_layers = roles[role].is_layer ? shape->n_layers : 1;
        for (uint32_t layer = 0; layer < n_layers; layer++)
            if (role != LL_TENSOR_HEAD || !shape->is_tied)
                set_expected(&out->tensor[slot_of(shape, role, layer)], shape, role, layer);
    }
    return 0;
}

/* The slot of a tensor's name; -1 for one that the model does not have. */
static int64_t find_slot(const struct ll_checkpoint *checkpoint, const char *name)
{
    const char *rest = name;
    uint64_t layer = 0;
    bool is_layer = strncmp(name, LAYER_PREFIX, strlen(LAYER_PREFIX)) == 0;

    if (is_layer) {
        const char *digits = name + strlen(LAYER_PREFIX);
        for (rest = digits; *rest >= '0' && *rest <= '9' && layer < UINT32_MAX; rest++)
            layer = layer * 10 + (uint64_t)(*rest - '0');
        if (rest == digits || *rest != '.' || (*digits == '0' && rest > digits + 1) ||
            layer >= checkpoint->shape.n_layers)
            return -1;
        rest++;
    }
    for (uint32_t role = 0; role < LL_TENSOR_ROLES; role++)
        if (roles[role].is_layer == is_layer && strcmp(rest, roles[role].name) == 0) {
            uint32_t slot = slot_of(&checkpoint->shape, role, (uint32_t)layer);
            return slot < checkpoint->n_tensors ? (int64_t)slot : -1;
        }
    return -1;
}

/* Present in some files and not used: rotation tables of old converters, and the head of a model
 * whose config ties it to the embedding. */
static bool is_ignored(const struct ll_checkpoint *checkpoint, const char *name)
{
    static const char suffix[] = ".rotary_emb.inv_freq";
    size_t n = strlen(name);

    if (n >= strlen(suffix) && strcmp(name + n - strlen(suffix), suffix) == 0)
        return true;
    return checkpoint->shape.is_tied && strcmp(name, roles[LL_TENSOR_HEAD].name) == 0;
}

/* ---- one file ---------------------------------------------------------------------------------*/

static int check_dtype(enum ll_dtype *out, const struct ll_safetensors_entry *entry,
                       const char *path)
{
    static const struct {
        const char *name;
        enum ll_dtype dtype;
    } table[] = {{"BF16", LL_DTYPE_BF16}, {"F16", LL_DTYPE_F16}, {"F32", LL_DTYPE_F32}};

    for (size_t i = 0; i < LL_COUNT(table); i++)
        if (strcmp(entry->dtype, table[i].name) == 0) {
            *out = table[i].dtype;
            return 0;
        }
    return LL_ERR(LL_E_UNSUPPORTED,
                  "%s: tensor \"%s\" (byte %u): dtype is %s; BF16, F16 and F32 are supported", path,
                  entry->name, entry->header_at, entry->dtype);
}

static int check_dims(const struct ll_safetensors_entry *entry, const struct ll_tensor *wanted,
                      const char *path)
{
    bool is_vector = wanted->rows == 1 &&
                     (wanted->role == LL_TENSOR_ATTN_NORM || wanted->role == LL_TENSOR_FFN_NORM ||
                      wanted->role == LL_TENSOR_FINAL_NORM);
    char found[LL_SAFETENSORS_RANK_MAX * 22 + 1] = "";

    if (is_vector && entry->n_dims == 1 && entry->dims[0] == wanted->cols)
        return 0;
    if (!is_vector && entry->n_dims == 2 && entry->dims[0] == wanted->rows &&
        entry->dims[1] == wanted->cols)
        return 0;
    for (uint32_t i = 0, used = 0; i < entry->n_dims; i++)
        used += (uint32_t)snprintf(found + used, sizeof(found) - used, "%s%llu", i > 0 ? ", " : "",
                                   (unsigned long long)entry->dims[i]);
    if (is_vector)
        return LL_ERR(LL_E_INVAL,
                      "%s: tensor \"%s\" (byte %u): shape is [%s], config.json asks for [%u]", path,
                      entry->name, entry->header_at, found, wanted->cols);
    return LL_ERR(LL_E_INVAL,
                  "%s: tensor \"%s\" (byte %u): shape is [%s], config.json asks for [%u, %u]", path,
                  entry->name, entry->header_at, found, wanted->rows, wanted->cols);
}

/* Where the index says that a tensor lies; NULL: no index, every file is right. */
static const char *mapped_file(const json_t *weight_map, const char *name)
{
    return json_string_value(json_object_get(weight_map, name));
}

static int take_entry(struct ll_checkpoint *out, const struct ll_safetensors_entry *entry,
                      uint32_t file, const char *base, const json_t *weight_map)
{
    char shown[LL_SHOWN_BYTES];
    const char *path = ll_path_tail(out->file[file].path);
    int64_t slot = find_slot(out, entry->name);

    if (is_ignored(out, entry->name))
        return 0;
    if (slot < 0)
        return LL_ERR(LL_E_INVAL,
                      "%s: tensor \"%s\" (byte %u) is no part of a Llama model of the shape in "
                      "config.json",
                      path, ll_shown(shown, entry->name), entry->header_at);
    if (weight_map != NULL) {
        const char *mapped = mapped_file(weight_map, entry->name);
        if (mapped == NULL || strcmp(mapped, base) != 0)
            return LL_ERR(LL_E_INVAL, "%s: tensor \"%s\" (byte %u): " INDEX_FILE " puts it in %s",
                          path, entry->name, entry->header_at,
                          mapped != NULL ? ll_shown(shown, mapped) : "no file");
    }

    struct ll_checkpoint_tensor *tensor = &out->tensor[slot];
    int rc = check_dims(entry, &tensor->tensor, path);
    if (rc == 0)
        rc = check_dtype(&tensor->tensor.dtype, entry, path);
    if (rc < 0)
        return rc;
    tensor->tensor.size_bytes = entry->size_bytes; /* names are unique in a file, and the map */
    tensor->file = file;                           /* gives a tensor to one file: never twice */
    tensor->offset = entry->offset;
    out->weights_bytes += entry->size_bytes;
    return 0;
}

/* Reads the header of base (a name in the directory) as file out->n_files. */
static int read_shard(struct ll_checkpoint *out, const char *base, const json_t *weight_map)
{
    struct ll_safetensors header;
    struct ll_checkpoint_file *file = &out->file[out->n_files];
    int n = snprintf(file->path, sizeof(file->path), "%s/%s", out->directory, base);

    if (n < 0 || (size_t)n >= sizeof(file->path))
        return LL_ERR(-ENAMETOOLONG, "%s: path longer than %zu bytes", ll_path_tail(base),
                      sizeof(file->path) - 1);
    int rc = ll_safetensors_read(&header, file->path);
    if (rc == -ENOENT && weight_map != NULL)
        return ll_err_prefix(rc, "a file named in " INDEX_FILE " is missing");
    if (rc < 0)
        return rc;
    file->size_bytes = header.file_bytes;
    file->mtime_ns = header.mtime_ns;
    out->n_files++;
    for (uint32_t i = 0; i < header.n_entries && rc == 0; i++)
        rc = take_entry(out, &header.entry[i], out->n_files - 1, base, weight_map);
    ll_safetensors_free(&header);
    return rc;
}

/* ---- shards by index --------------------------------------------------------------------------*/

/* A shard's name must be a plain name in the directory: nothing may lead out of it. */
static int check_shard_name(const char *where, const char *tensor, const json_t *value)
{
    char shown_tensor[LL_SHOWN_BYTES], shown[LL_SHOWN_BYTES];
    const char *name = json_string_value(value);
    static const char suffix[] = ".safetensors";

    ll_shown(shown_tensor, tensor);
    if (name == NULL)
        return LL_ERR(LL_E_INVAL, "%sweight_map: \"%s\" must have a file name", where,
                      shown_tensor);
    size_t n = strlen(name);
    if (strchr(name, '/') != NULL || strstr(name, "..") != NULL || name[0] == '.')
        return LL_ERR(LL_E_INVAL,
                      "%sweight_map: \"%s\" lies in \"%s\"; only files of the directory itself are "
                      "read",
                      where, shown_tensor, ll_shown(shown, name));
    if (n <= strlen(suffix) || n > 255 || strcmp(name + n - strlen(suffix), suffix) != 0)
        return LL_ERR(LL_E_INVAL, "%sweight_map: \"%s\" lies in \"%s\", not a .safetensors file",
                      where, shown_tensor, ll_shown(shown, name));
    return 0;
}

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct file names of the map, sorted. */
static int list_shards(const char ***names, uint32_t *n_names, const char *where, json_t *map)
{
    const char *tensor;
    json_t *value;
    size_t n = 0;
    const char **list = calloc(json_object_size(map) + 1, sizeof(*list));

    if (list == NULL)
        return LL_ERR(-ENOMEM, "%sno memory for %zu names", where, json_object_size(map));
    json_object_foreach(map, tensor, value)
    {
        int rc = check_shard_name(where, tensor, value);
        if (rc < 0) {
            free(list);
            return rc;
        }
        list[n++] = json_string_value(value);
    }
    qsort(list, n, sizeof(*list), compare_strings);
    uint32_t unique = 0;
    for (size_t i = 0; i < n; i++)
        if (unique == 0 || strcmp(list[unique - 1], list[i]) != 0)
            list[unique++] = list[i];
    if (unique == 0 || unique > FILES_MAX) {
        free(list);
        return LL_ERR(LL_E_INVAL, "%sweight_map names %u files, must be 1 .. %u", where, unique,
                      FILES_MAX);
    }
    *names = list;
    *n_names = unique;
    return 0;
}

static int read_shards(struct ll_checkpoint *out, const char *where, const json_t *index)
{
    json_t *map = json_object_get(index, "weight_map");
    const char **names = NULL;
    uint32_t n_names = 0;

    if (!json_is_object(map))
        return LL_ERR(LL_E_INVAL, "%sweight_map is missing or not an object", where);
    int rc = list_shards(&names, &n_names, where, map);
    if (rc < 0)
        return rc;
    out->file = calloc(n_names, sizeof(*out->file));
    if (out->file == NULL)
        rc = LL_ERR(-ENOMEM, "%sno memory for %u files", where, n_names);
    for (uint32_t i = 0; i < n_names && rc == 0; i++)
        rc = read_shard(out, names[i], map);

    /* The other way round: what the map promises and its file does not hold. */
    for (uint32_t i = 0; i < out->n_tensors && rc == 0; i++) {
        const char *file = mapped_file(map, out->tensor[i].name);
        if (file != NULL && out->tensor[i].tensor.size_bytes == 0)
            rc = LL_ERR(LL_E_INVAL, "%stensor \"%s\" is not in %s, where weight_map puts it", where,
                        out->tensor[i].name, file);
    }
    free(names);
    return rc;
}

/* ---- all of them ------------------------------------------------------------------------------*/

static int read_weights(struct ll_checkpoint *out)
{
    char path[sizeof(out->directory) + 40], where[256];
    struct stat st;
    json_t *index;

    /* As transformers does: one file wins over an index beside it. */
    snprintf(path, sizeof(path), "%s/" SINGLE_FILE, out->directory);
    if (stat(path, &st) == 0) {
        out->file = calloc(1, sizeof(*out->file));
        if (out->file == NULL)
            return LL_ERR(-ENOMEM, "no memory for the list of files");
        return read_shard(out, SINGLE_FILE, NULL);
    }
    snprintf(path, sizeof(path), "%s/" INDEX_FILE, out->directory);
    int rc = ll_jsonfile_read(&index, path, INDEX_BYTES_MAX);
    if (rc == -ENOENT)
        return LL_ERR(rc,
                      "%s: holds neither " SINGLE_FILE " nor " INDEX_FILE
                      "; other weight formats are not read",
                      ll_path_tail(out->directory));
    if (rc < 0)
        return rc;
    snprintf(where, sizeof(where), "%s: ", ll_path_tail(path));
    rc = read_shards(out, where, index);
    json_decref(index);
    return rc;
}

static int check_complete(const struct ll_checkpoint *checkpoint)
{
    uint32_t n_missing = 0;
    const char *first = NULL;

    for (uint32_t i = 0; i < checkpoint->n_tensors; i++)
        if (checkpoint->tensor[i].tensor.size_bytes == 0 && n_missing++ == 0)
            first = checkpoint->tensor[i].name;
    if (n_missing == 0)
        return 0;
    return LL_ERR(LL_E_INVAL, "%s: tensor \"%s\" is missing (%u of %u are)%s",
                  ll_path_tail(checkpoint->directory), first, n_missing, checkpoint->n_tensors,
                  strcmp(first, roles[LL_TENSOR_HEAD].name) == 0
                      ? "; config.json does not say tie_word_embeddings: true"
                      : "");
}

static int open_directory(struct ll_checkpoint *out, const char *directory, bool has_weights)
{
    int rc, n = snprintf(out->directory, sizeof(out->directory), "%s", directory);

    if (n <= 0 || (size_t)n >= sizeof(out->directory))
        return LL_ERR(-ENAMETOOLONG, "model directory: the path must have 1 .. %zu bytes",
                      sizeof(out->directory) - 1);
    while (n > 1 && out->directory[n - 1] == '/')
        out->directory[--n] = '\0';
    rc = ll_model_config_read(out);
    if (rc == 0 && has_weights)
        rc = make_expected(out);
    if (rc == 0 && has_weights)
        rc = read_weights(out);
    if (rc == 0 && has_weights)
        rc = check_complete(out);
    if (rc < 0) {
        ll_checkpoint_close(out);
        return rc;
    }
    out->dtype = has_weights ? out->tensor[slot_of(&out->shape, LL_TENSOR_Q, 0)].tensor.dtype
                             : LL_DTYPE_BF16;
    return 0;
}

int ll_checkpoint_open(struct ll_checkpoint *out, const char *directory)
{
    return open_directory(out, directory, true);
}

int ll_checkpoint_open_config(struct ll_checkpoint *out, const char *directory)
{
    return open_directory(out, directory, false);
}

void ll_checkpoint_close(struct ll_checkpoint *checkpoint)
{
    free(checkpoint->tensor);
    free(checkpoint->file);
    *checkpoint = (struct ll_checkpoint){0};
}
