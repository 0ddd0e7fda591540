/* SPDX-License-Identifier: Apache-2.0 */
/* The tensors of a model directory: which files hold them, and that each one the shape asks for is
 * there once, with the right dims and a type that can be served. */
#include "runtime/checkpoint_impl.h"

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "runtime/jsonfile.h"
#include "runtime/model_config.h"
#include "runtime/quantization.h"
#include "runtime/safetensors.h"
#include "runtime/tensor_names.h"

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
static_assert(LL_TENSOR_NAME_BYTES == LL_SAFETENSORS_NAME_MAX + 1, "in both directions");

/* The list of what must be there, in slot order, nothing found yet (size_bytes 0). */
static int make_expected(struct ll_checkpoint *out)
{
    const struct ll_model_shape *shape = &out->shape;

    out->n_tensors = ll_checkpoint_slots(shape);
    out->tensor = calloc((size_t)out->n_tensors * SLOT_TENSORS, sizeof(*out->tensor));
    if (out->tensor == NULL)
        return LL_ERR(-ENOMEM, "no memory for a list of %u tensors", out->n_tensors);
    for (uint32_t role = 0; role < LL_TENSOR_ROLES; role++) {
        uint32_t n_layers = ll_tensor_is_per_layer(role) ? shape->n_layers : 1;
        for (uint32_t layer = 0; layer < n_layers; layer++) {
            if (role == LL_TENSOR_HEAD && shape->is_tied)
                continue;
            struct ll_checkpoint_tensor *t = &out->tensor[ll_checkpoint_slot(shape, role, layer)];
            t->tensor = (struct ll_tensor){.role = role, .layer = layer};
            ll_tensor_dims(shape, role, &t->tensor.rows, &t->tensor.cols);
            ll_tensor_weight(t->name, role, layer);
        }
    }
    return 0;
}

/* ---- one file ---------------------------------------------------------------------------------*/

static int check_dtype(enum ll_dtype *out, const struct ll_safetensors_entry *entry,
                       const struct ll_checkpoint *checkpoint, const struct ll_tensor_id *id,
                       const char *path)
{
    static const struct {
        const char *name;
        enum ll_dtype dtype;
    } table[] = {{"BF16", LL_DTYPE_BF16},
                 {"F16", LL_DTYPE_F16},
                 {"F32", LL_DTYPE_F32},
                 {"F8_E4M3", LL_DTYPE_E4M3}};
    const bool can_be_fp8 = id->part == LL_PART_WEIGHT && ll_tensor_is_linear(id->role);

    for (size_t i = 0; i < LL_COUNT(table); i++)
        if (strcmp(entry->dtype, table[i].name) == 0)
            *out = table[i].dtype;
    if (*out == LL_DTYPE_E4M3 && can_be_fp8 && checkpoint->quantization_config == NULL)
        return LL_ERR(LL_E_INVAL,
                      "%s: tensor \"%s\" (byte %u): dtype is F8_E4M3, but config.json has no "
                      "quantization_config that says how it is scaled",
                      path, entry->name, entry->header_at);
    if (*out != 0 && (*out != LL_DTYPE_E4M3 || can_be_fp8))
        return 0;
    return LL_ERR(LL_E_UNSUPPORTED,
                  "%s: tensor \"%s\" (byte %u): dtype is %s; BF16, F16 and F32 are supported%s",
                  path, entry->name, entry->header_at, entry->dtype,
                  can_be_fp8 ? ", and F8_E4M3" : " here");
}

/* "[4, 8]" */
static const char *print_dims(char out[LL_SAFETENSORS_RANK_MAX * 22 + 3],
                              const struct ll_safetensors_entry *entry)
{
    size_t used = 0;

    out[used++] = '[';
    for (uint32_t i = 0; i < entry->n_dims; i++)
        used += (size_t)sprintf(out + used, "%s%llu", i > 0 ? ", " : "",
                                (unsigned long long)entry->dims[i]);
    out[used++] = ']';
    out[used] = '\0';
    return out;
}

static int check_dims(const struct ll_safetensors_entry *entry, const struct ll_tensor *wanted,
                      const char *path)
{
    const bool is_vector = ll_tensor_is_vector(wanted->role);
    char found[LL_SAFETENSORS_RANK_MAX * 22 + 3];

    if (is_vector && entry->n_dims == 1 && entry->dims[0] == wanted->cols)
        return 0;
    if (!is_vector && entry->n_dims == 2 && entry->dims[0] == wanted->rows &&
        entry->dims[1] == wanted->cols)
        return 0;
    if (is_vector)
        return LL_ERR(LL_E_INVAL,
                      "%s: tensor \"%s\" (byte %u): shape is %s, config.json asks for [%u]", path,
                      entry->name, entry->header_at, print_dims(found, entry), wanted->cols);
    return LL_ERR(
        LL_E_INVAL, "%s: tensor \"%s\" (byte %u): shape is %s, config.json asks for [%u, %u]", path,
        entry->name, entry->header_at, print_dims(found, entry), wanted->rows, wanted->cols);
}

/* The shapes that scales come in, as rows and columns: [], [1] and [1, 1] are one number; [n] and
 * [n, 1] (and [n, 1, 1], of a KV cache) are n; [a, b] are those of blocks. False: another one. */
static bool read_scale_dims(uint32_t *rows, uint32_t *cols,
                            const struct ll_safetensors_entry *entry, bool can_be_block)
{
    uint64_t n = 1;

    for (uint32_t i = 0; i < entry->n_dims; i++) {
        if (entry->dims[i] == 0 || entry->dims[i] > UINT32_MAX || n > UINT32_MAX)
            return false;
        n *= entry->dims[i];
    }
    *rows = entry->n_dims > 0 ? (uint32_t)entry->dims[0] : 1;
    *cols = 1;
    if (n == *rows)
        return entry->n_dims <= 3;
    *cols = entry->n_dims == 2 ? (uint32_t)entry->dims[1] : 0;
    return can_be_block && entry->n_dims == 2;
}

/* Where the index says that a tensor lies; NULL: no index, every file is right. */
static const char *mapped_file(const json_t *weight_map, const char *name)
{
    return json_string_value(json_object_get(weight_map, name));
}

/* Where the entry of the file goes in the list. */
static void place_entry(struct ll_checkpoint *out, struct ll_checkpoint_tensor *tensor,
                        const struct ll_safetensors_entry *entry, uint32_t file)
{
    tensor->tensor.size_bytes = entry->size_bytes;
    tensor->file = file;
    tensor->offset = entry->offset;
    out->weights_bytes += entry->size_bytes;
}

static int take_weight(struct ll_checkpoint *out, const struct ll_safetensors_entry *entry,
                       const struct ll_tensor_id *id, uint32_t file, const char *path)
{
    struct ll_checkpoint_tensor *tensor =
        &out->tensor[ll_checkpoint_slot(&out->shape, id->role, id->layer)];
    int rc = check_dims(entry, &tensor->tensor, path);

    if (rc == 0)
        rc = check_dtype(&tensor->tensor.dtype, entry, out, id, path);
    if (rc == 0) /* names are unique in a file, and the map gives one file: never twice */
        place_entry(out, tensor, entry, file);
    return rc;
}

/* One more scale at the end of the list. */
static int add_scale(struct ll_checkpoint *out, const struct ll_safetensors_entry *entry,
                     struct ll_tensor_id id, uint32_t file, const char *path)
{
    struct ll_tensor tensor = {.role = id.role, .part = id.part, .layer = id.layer};
    const struct ll_checkpoint_tensor *other = ll_checkpoint_scale(out, &tensor, id.part);
    char found[LL_SAFETENSORS_RANK_MAX * 22 + 3];

    if (other != NULL)
        return LL_ERR(LL_E_INVAL, "%s: tensor \"%s\" (byte %u): \"%s\" is the same scale", path,
                      entry->name, entry->header_at, other->name);
    int rc = check_dtype(&tensor.dtype, entry, out, &id, path);
    if (rc < 0)
        return rc;
    if (!read_scale_dims(&tensor.rows, &tensor.cols, entry, id.part == LL_PART_SCALE))
        return LL_ERR(LL_E_INVAL, "%s: tensor \"%s\" (byte %u): shape %s is none that scales have",
                      path, entry->name, entry->header_at, print_dims(found, entry));

    struct ll_checkpoint_tensor *added = &out->tensor[out->n_tensors++];
    added->tensor = tensor;
    snprintf(added->name, sizeof(added->name), "%s", entry->name);
    place_entry(out, added, entry, file);
    return 0;
}

static int take_entry(struct ll_checkpoint *out, const struct ll_safetensors_entry *entry,
                      uint32_t file, const char *base, const json_t *weight_map)
{
    char shown[LL_SHOWN_BYTES];
    const char *path = ll_path_tail(out->file[file].path);
    struct ll_tensor_id id;
    enum ll_tensor_found found = ll_tensor_find(&id, entry->name, out->shape.n_layers);

    if (found == LL_TENSOR_UNUSED ||
        (found == LL_TENSOR_FOUND && id.role == LL_TENSOR_HEAD && out->shape.is_tied))
        return 0;
    if (found == LL_TENSOR_UNKNOWN)
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
    if (id.part == LL_PART_WEIGHT)
        return take_weight(out, entry, &id, file, path);
    if (out->quantization_config == NULL)
        return LL_ERR(LL_E_INVAL,
                      "%s: tensor \"%s\" (byte %u): a scale, but config.json has no "
                      "quantization_config",
                      path, entry->name, entry->header_at);
    int rc = add_scale(out, entry, id, file, path);
    if (rc == 0 && id.is_both) {
        id.role = LL_TENSOR_V;
        rc = add_scale(out, entry, id, file, path);
    }
    return rc;
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

    for (uint32_t i = 0; i < ll_checkpoint_slots(&checkpoint->shape); i++)
        if (checkpoint->tensor[i].tensor.size_bytes == 0 && n_missing++ == 0)
            first = checkpoint->tensor[i].name;
    if (n_missing == 0)
        return 0;
    return LL_ERR(LL_E_INVAL, "%s: tensor \"%s\" is missing (%u of %u are)%s",
                  ll_path_tail(checkpoint->directory), first, n_missing,
                  ll_checkpoint_slots(&checkpoint->shape),
                  strcmp(first, "lm_head.weight") == 0
                      ? "; config.json does not say tie_word_embeddings: true"
                      : "");
}

/* ---- opening ----------------------------------------------------------------------------------*/

static int open_weights(struct ll_checkpoint *out)
{
    int rc = make_expected(out);

    if (rc == 0)
        rc = read_weights(out);
    if (rc == 0)
        rc = check_complete(out);
    if (rc == 0 && out->quantization_config != NULL)
        rc = ll_checkpoint_check_quantization(out);
    if (rc < 0)
        return rc;
    out->dtype = out->tensor[ll_checkpoint_slot(&out->shape, LL_TENSOR_Q, 0)].tensor.dtype;
    for (uint32_t i = 0; i < out->n_tensors; i++)
        if (out->tensor[i].tensor.dtype == LL_DTYPE_E4M3)
            out->dtype = LL_DTYPE_E4M3;
    return 0;
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
    if (rc == 0 && out->quantization_config != NULL) {
        snprintf(out->quantization, sizeof(out->quantization), "%s",
                 ll_quantization_name(out->quantization_config));
        out->activation_bound = ll_quantization_activation_bound(out->quantization_config);
    }
    out->dtype = out->quantization_config != NULL ? LL_DTYPE_E4M3 : LL_DTYPE_BF16;
    if (rc == 0 && has_weights)
        rc = open_weights(out);
    if (rc < 0)
        ll_checkpoint_close(out);
    return rc;
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
    ll_quantization_free(checkpoint->quantization_config);
    free(checkpoint->tensor);
    free(checkpoint->file);
    *checkpoint = (struct ll_checkpoint){0};
}
