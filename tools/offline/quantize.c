/* SPDX-License-Identifier: Apache-2.0 */
/* tools/offline/quantize.c - `llring quantize SRC DST`: a checkpoint whose linears are e4m3 with a
 * scale a row, in the form that compressed-tensors calls FP8 dynamic, which vLLM and transformers
 * read. The codes are those that `--quantization fp8` makes while it loads (runtime/fp8.h).
 *
 *   Q1  it works in a directory beside DST, hidden and of its own; DST appears, complete and read
 *       once, by a rename; whatever goes wrong before, or Ctrl-C, removes what was written
 *   Q2  memory: a piece of a tensor at a time, and a scale a row of the largest one */
#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "runtime/checkpoint.h"
#include "runtime/config.h"
#include "runtime/fp8.h"
#include "runtime/jsonfile.h"
#include "runtime/tensor_names.h"
#include "tools/llring/terminal.h"
#include "tools/offline/offline.h"
#include "tools/offline/writer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE_BYTES ((size_t)8 << 20)

static const struct option options[] = {{.name = NULL}};

/* Files beside the weights that belong to the model. */
static const char *const companions[] = {
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "chat_template.jinja",
    "special_tokens_map.json",
    "LICENSE",
    "LICENSE.txt",
    "USE_POLICY.md",
    "NOTICE",
};

struct job {
    struct ll_checkpoint from, made;
    char target[1024], work[1100]; /* DST, and where it is made */
    bool has_work;
    uint8_t *piece;   /* [PIECE_BYTES] as read; e4m3 in place */
    uint16_t *scales; /* [rows of the largest tensor] */
    uint64_t done_bytes, total_bytes, start_ns;
};

/* ---- paths ------------------------------------------------------------------------------------*/

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash != NULL ? slash + 1 : path;
}

static void path_in(char out[2300], const char *directory, const char *name)
{
    snprintf(out, 2300, "%s/%s", directory, name);
}

/* Q1. Only what this program wrote is there: plain files. */
static void remove_work(const struct job *job)
{
    char path[2300];
    struct dirent *entry;
    DIR *directory = opendir(job->work);

    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        path_in(path, job->work, entry->d_name);
        if (entry->d_name[0] != '.' || strlen(entry->d_name) > 2)
            unlink(path);
    }
    if (directory != NULL)
        closedir(directory);
    rmdir(job->work);
}

static int make_work(struct job *job, const char *target)
{
    int n = snprintf(job->target, sizeof(job->target), "%s", target);
    struct stat st;

    while (n > 1 && n < (int)sizeof(job->target) && job->target[n - 1] == '/')
        job->target[--n] = '\0';
    if (n <= 0 || n >= (int)sizeof(job->target) - 32)
        return LL_ERR(-ENAMETOOLONG, "DST: the path must have 1 .. %zu bytes",
                      sizeof(job->target) - 32);
    if (lstat(job->target, &st) == 0)
        return LL_ERR(-EEXIST, "%s is already there; give a name that is free", job->target);
    const char *base = base_name(job->target);
    snprintf(job->work, sizeof(job->work), "%.*s.%s.XXXXXX", (int)(base - job->target), job->target,
             base);
    if (mkdtemp(job->work) == NULL)
        return LL_ERRNO("no directory can be made beside DST, %s", job->target);
    job->has_work = true;
    return chmod(job->work, 0755) < 0 ? LL_ERRNO("%s", job->work) : 0;
}

/* ---- tensors ----------------------------------------------------------------------------------*/

static bool becomes_fp8(const struct ll_tensor *tensor)
{
    return tensor->part == LL_PART_WEIGHT && ll_tensor_is_linear(tensor->role);
}

static int read_from(const struct job *job, int fd, const struct ll_checkpoint_tensor *t,
                     uint64_t at, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(fd, job->piece + done, n - done, (off_t)(t->offset + at + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return LL_ERRNO("%s: tensor \"%s\": read at byte %llu",
                            ll_path_tail(job->from.file[t->file].path), t->name,
                            (unsigned long long)(t->offset + at + done));
        if (got == 0)
            return LL_ERR(-EIO, "%s: tensor \"%s\": the file ends before byte %llu",
                          ll_path_tail(job->from.file[t->file].path), t->name,
                          (unsigned long long)(t->offset + at + done));
        done += (size_t)got;
    }
    return 0;
}

static int report(struct job *job, uint64_t n_bytes)
{
    double seconds = (double)(ll_now_ns() - job->start_ns) / 1e9;

    job->done_bytes += n_bytes;
    terminal_progress("quantizing: %.0f %%, %.2f of %.2f GB, %.2f GB/s",
                      100.0 * (double)job->done_bytes / (double)job->total_bytes,
                      (double)job->done_bytes / 1e9, (double)job->total_bytes / 1e9,
                      seconds > 0 ? (double)job->done_bytes / 1e9 / seconds : 0.0);
    return interrupts_count() > 0 ? LL_ERR(-EINTR, "interrupted") : 0;
}

static struct writer_tensor *find(struct writer_tensor *tensors, uint32_t n, const char *name)
{
    for (uint32_t i = 0; i < n; i++)
        if (strcmp(tensors[i].name, name) == 0)
            return &tensors[i];
    return NULL;
}

static int copy_tensor(struct job *job, int fd, const struct ll_checkpoint_tensor *t,
                       struct writer *writer, const struct writer_tensor *to)
{
    int rc = 0;

    for (uint64_t at = 0; at < t->tensor.size_bytes && rc == 0; at += PIECE_BYTES) {
        size_t n = ll_min_u64(PIECE_BYTES, t->tensor.size_bytes - at);
        rc = read_from(job, fd, t, at, n);
        if (rc == 0)
            rc = writer_put(writer, to, at, job->piece, n);
        if (rc == 0)
            rc = report(job, n);
    }
    return rc;
}

static int quantize_tensor(struct job *job, int fd, const struct ll_checkpoint_tensor *t,
                           struct writer *writer, const struct writer_tensor *to,
                           const struct writer_tensor *scale)
{
    const uint32_t cols = t->tensor.cols;
    const size_t row_bytes = t->tensor.size_bytes / t->tensor.rows;
    const uint32_t n_at_once = (uint32_t)(PIECE_BYTES / row_bytes);
    int rc = 0;

    if (n_at_once == 0)
        return LL_ERR(-EINVAL, "tensor \"%s\": rows of %zu bytes are too long", t->name, row_bytes);
    for (uint32_t row = 0; row < t->tensor.rows && rc == 0; row += n_at_once) {
        uint32_t n = (uint32_t)ll_min_u64(n_at_once, t->tensor.rows - row);
        rc = read_from(job, fd, t, row * row_bytes, n * row_bytes);
        if (rc < 0)
            return rc;
        uint32_t bad =
            ll_fp8_quantize(job->piece, job->scales + row, job->piece, t->tensor.dtype, n, cols);
        if (bad < n)
            return LL_ERR(-EINVAL,
                          "%s: tensor \"%s\": row %u holds a NaN or an infinity and cannot be "
                          "quantised",
                          ll_path_tail(job->from.file[t->file].path), t->name, row + bad);
        rc = writer_put(writer, to, (uint64_t)row * cols, job->piece, (size_t)n * cols);
        if (rc == 0)
            rc = report(job, n * row_bytes);
    }
    return rc < 0 ? rc : writer_put(writer, scale, 0, job->scales, 2ull * t->tensor.rows);
}

/* What one file of the result holds; gives the number of tensors. */
static uint32_t list_tensors(const struct job *job, uint32_t file, struct writer_tensor *out)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < job->from.n_tensors; i++) {
        const struct ll_checkpoint_tensor *t = &job->from.tensor[i];
        const struct ll_tensor *from = &t->tensor;
        if (t->file != file)
            continue;
        struct writer_tensor *to = &out[n++];
        *to = (struct writer_tensor){.dtype = from->dtype,
                                     .rows = ll_tensor_is_vector(from->role) ? 0 : from->rows,
                                     .cols = from->cols,
                                     .size_bytes = from->size_bytes};
        snprintf(to->name, sizeof(to->name), "%s", t->name);
        if (!becomes_fp8(from))
            continue;
        to->dtype = LL_DTYPE_E4M3;
        to->size_bytes = (uint64_t)from->rows * from->cols;
        out[n] = (struct writer_tensor){
            .dtype = LL_DTYPE_BF16, .rows = from->rows, .cols = 1, .size_bytes = 2ull * from->rows};
        snprintf(out[n].name, sizeof(out[n].name), "%.*s_scale", 140, t->name);
        n++;
    }
    return n;
}

static int fill_file(struct job *job, uint32_t file, struct writer *writer,
                     struct writer_tensor *tensors, uint32_t n)
{
    int fd = open(job->from.file[file].path, O_RDONLY | O_CLOEXEC), rc = 0;

    if (fd < 0)
        return LL_ERRNO("%s", job->from.file[file].path);
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    for (uint32_t i = 0; i < job->from.n_tensors && rc == 0; i++) {
        const struct ll_checkpoint_tensor *t = &job->from.tensor[i];
        char scale[LL_TENSOR_NAME_BYTES + 8];
        if (t->file != file)
            continue;
        snprintf(scale, sizeof(scale), "%s_scale", t->name);
        const struct writer_tensor *to = find(tensors, n, t->name);
        rc = becomes_fp8(&t->tensor)
                 ? quantize_tensor(job, fd, t, writer, to, find(tensors, n, scale))
                 : copy_tensor(job, fd, t, writer, to);
    }
    close(fd);
    return rc;
}

/* The weight map gets the file's tensors; total their bytes. */
static int write_file(struct job *job, uint32_t file, json_t *map, uint64_t *total)
{
    char path[2300];
    const char *name = base_name(job->from.file[file].path);
    struct writer writer;
    struct writer_tensor *tensors = calloc(2ull * job->from.n_tensors, sizeof(*tensors));

    if (tensors == NULL)
        return LL_ERR(-ENOMEM, "no memory for a list of %u tensors", job->from.n_tensors);
    uint32_t n = list_tensors(job, file, tensors);
    path_in(path, job->work, name);
    int rc = writer_open(&writer, path, tensors, n);
    if (rc == 0)
        rc = fill_file(job, file, &writer, tensors, n);
    if (rc == 0)
        rc = writer_close(&writer);
    else if (writer.fd >= 0)
        close(writer.fd);
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        json_object_set_new(map, tensors[i].name, json_string(name));
        *total += tensors[i].size_bytes;
    }
    free(tensors);
    return rc;
}

/* ---- the other files --------------------------------------------------------------------------*/

static int write_bytes(const char *path, const void *bytes, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666), rc = 0;

    if (fd < 0)
        return LL_ERRNO("%s", path);
    for (size_t done = 0; done < n && rc == 0;) {
        ssize_t wrote = write(fd, (const char *)bytes + done, n - done);
        if (wrote < 0 && errno != EINTR)
            rc = LL_ERRNO("%s: write", path);
        done += wrote > 0 ? (size_t)wrote : 0;
    }
    if (rc == 0 && fsync(fd) < 0)
        rc = LL_ERRNO("%s: fsync", path);
    close(fd);
    return rc;
}

static int write_json(const struct job *job, const char *name, const json_t *json)
{
    char path[2300];
    char *text = json_dumps(json, JSON_INDENT(2));

    if (text == NULL)
        return LL_ERR(-ENOMEM, "%s: no memory", name);
    path_in(path, job->work, name);
    int rc = write_bytes(path, text, strlen(text));
    free(text);
    return rc;
}

/* The source's config.json with what was done to it. */
static int write_config(const struct job *job)
{
    char path[2300];
    json_t *config = NULL;

    path_in(path, job->from.directory, "config.json");
    int rc = ll_jsonfile_read(&config, path, 1u << 20);
    if (rc < 0)
        return rc;
    json_t *args = json_pack("{s:{s:i, s:s, s:b, s:s, s:b, s:n, s:n, s:n, s:s, s:{}},"
                             " s:{s:i, s:s, s:b, s:s, s:b, s:n, s:n, s:n, s:n, s:{}},"
                             " s:n, s:[s]}",
                             "weights", "num_bits", 8, "type", "float", "symmetric", 1, "strategy",
                             "channel", "dynamic", 0, "group_size", "block_structure", "actorder",
                             "observer", "minmax", "observer_kwargs", /* ---- */
                             "input_activations", "num_bits", 8, "type", "float", "symmetric", 1,
                             "strategy", "token", "dynamic", 1, "group_size", "block_structure",
                             "actorder", "observer", "observer_kwargs", /* ---- */
                             "output_activations", "targets", "Linear");
    json_t *quantization = json_pack(
        "{s:s, s:s, s:s, s:[s], s:n, s:n, s:{s:o}}", "quant_method", "compressed-tensors", "format",
        "float-quantized", "quantization_status", "compressed", "ignore", "lm_head",
        "kv_cache_scheme", "global_compression_ratio", "config_groups", "group_0", args);
    if (quantization == NULL ||
        json_object_set_new(config, "quantization_config", quantization) < 0)
        rc = LL_ERR(-ENOMEM, "config.json: no memory");
    else
        rc = write_json(job, "config.json", config);
    json_decref(config);
    return rc;
}

static int copy_companions(const struct job *job)
{
    for (size_t i = 0; i < LL_COUNT(companions); i++) {
        char path[2300];
        char *bytes;
        size_t n;
        path_in(path, job->from.directory, companions[i]);
        int rc = ll_file_read(&bytes, &n, path, 256u << 20);
        if (rc == -ENOENT)
            continue;
        if (rc < 0)
            return rc;
        path_in(path, job->work, companions[i]);
        rc = write_bytes(path, bytes, n);
        free(bytes);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* ---- all of it --------------------------------------------------------------------------------*/

static int prepare(struct job *job, const char *source)
{
    char directory[1024];
    uint32_t n_rows_max = 1;
    int rc = ll_config_find_model(source, directory, sizeof(directory));

    if (rc == 0)
        rc = ll_checkpoint_open(&job->from, directory);
    if (rc < 0)
        return rc;
    if (job->from.quantization[0] != '\0')
        return LL_ERR(-EINVAL, "%s is quantised already (%s); give its BF16 or F16 checkpoint",
                      directory, job->from.quantization);
    for (uint32_t i = 0; i < job->from.n_tensors; i++) {
        job->total_bytes += job->from.tensor[i].tensor.size_bytes;
        n_rows_max = (uint32_t)ll_max_u64(n_rows_max, job->from.tensor[i].tensor.rows);
    }
    job->piece = malloc(PIECE_BYTES);
    job->scales = malloc(n_rows_max * sizeof(*job->scales));
    return job->piece == NULL || job->scales == NULL ? LL_ERR(-ENOMEM, "no memory for 8 MiB") : 0;
}

static int write_all(struct job *job)
{
    json_t *map = json_object();
    uint64_t total = 0;
    int rc = map == NULL ? LL_ERR(-ENOMEM, "no memory") : 0;

    for (uint32_t i = 0; i < job->from.n_files && rc == 0; i++)
        rc = write_file(job, i, map, &total);
    bool is_sharded = job->from.n_files > 1 ||
                      strcmp(base_name(job->from.file[0].path), "model.safetensors") != 0;
    if (rc == 0 && is_sharded) {
        json_t *index = json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)total,
                                  "weight_map", map);
        rc = index == NULL ? LL_ERR(-ENOMEM, "no memory for the index")
                           : write_json(job, "model.safetensors.index.json", index);
        json_decref(index);
    }
    json_decref(map);
    if (rc == 0)
        rc = write_config(job);
    if (rc == 0)
        rc = copy_companions(job);
    if (rc == 0 && (rc = ll_checkpoint_open(&job->made, job->work)) < 0)
        ll_err_prefix(rc, "what was written cannot be read");
    return rc;
}

/* Q1: the result gets its name. */
static int publish(const struct job *job)
{
    int fd = open(job->work, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    if (interrupts_count() > 0)
        return LL_ERR(-EINTR, "interrupted");
    return rename(job->work, job->target) < 0 ? LL_ERRNO("%s", job->target) : 0;
}

static int run(const struct command *command, int argc, char **argv)
{
    struct job *job = calloc(1, sizeof(*job));
    char unused;
    int n_operands, rc = options_parse(command, argc, argv, &unused, &n_operands);

    if (rc != OPTIONS_GO_ON || job == NULL) {
        free(job);
        return rc != OPTIONS_GO_ON ? rc : terminal_fail("no memory");
    }
    interrupts_catch();
    signal(SIGXFSZ,
           SIG_IGN); /* a file too large for the limit is a failed write, as a full disk is */
    job->start_ns = ll_now_ns();
    rc = prepare(job, argv[1]);
    if (rc == 0)
        rc = make_work(job, argv[2]);
    if (rc == 0)
        rc = write_all(job);
    if (rc == 0)
        rc = publish(job);
    terminal_progress_done();
    if (rc == 0)
        printf("%s: %.2f GB, was %.2f GB; FP8 dynamic (compressed-tensors) in %.1f s\n",
               job->target, (double)job->made.weights_bytes / 1e9,
               (double)job->from.weights_bytes / 1e9, (double)(ll_now_ns() - job->start_ns) / 1e9);
    else if (job->has_work)
        remove_work(job);
    int code = rc == 0        ? EXIT_OK
               : rc == -EINTR ? EXIT_INTERRUPTED
                              : terminal_fail("%s", ll_err_text());
    ll_checkpoint_close(&job->from);
    ll_checkpoint_close(&job->made);
    free(job->piece);
    free(job->scales);
    free(job);
    return code;
}

const struct command command_quantize = {
    .name = "quantize",
    .summary = "write an FP8 checkpoint of a BF16 one",
    .operands = "SRC DST",
    .details =
        "The linear layers become e4m3 with a scale for each output row, in the form that\n"
        "compressed-tensors calls FP8 dynamic: vLLM and transformers read it, too. DST must\n"
        "not exist; it appears when everything is written. Needs little memory, no GPU.",
    .groups = {{"Options", options, 0}},
    .n_operands_min = 2,
    .n_operands_max = 2,
    .run = run,
};
