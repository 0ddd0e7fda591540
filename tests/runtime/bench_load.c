/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/bench_load.c - the loader beside fio, on the same file.
 *
 * A checkpoint of the shape of Llama 3.2 1B (or 8B) is written into a directory of the file system
 * that is to be measured, and removed at the end. Each round reads it cold by fio (io_uring,
 * O_DIRECT, the loader's block size and depth), cold by the loader with each way of reading, warm
 * by plain pread into one buffer (what the page cache gives one thread) and warm by the loader. The
 * backend wants every byte and takes it without looking, so that reading alone is measured; with
 * --cpu-backend the last lines load into the CPU backend, too.
 * Printed: GB/s, median of the rounds; the share of fio, or of pread; CPU seconds a 10 GB.
 *
 * With --rounds 0 --keep the checkpoint is only made: for tools/dev/bench-start.
 *
 * Usage: bench_load [--dir DIR] [--shape llama-3.2-1b] [--fp8] [--rounds N] [--cpu-backend]
 * [--keep]
 *                   [--json] */
#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "runtime/loader.h"
#include "runtime/model_shapes.h"
#include "runtime/tensor_names.h"
#include "tools/offline/writer.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ROUNDS_MAX = 32, BLOCK_BYTES = 8 << 20, DEPTH = 16 };

struct line {
    const char *name, *against; /* the line that it is held against; NULL: none */
    double rate[ROUNDS_MAX], cpu[ROUNDS_MAX];
    int n;
};

static struct line lines[] = {
    {.name = "fio, cold"},
    {.name = "loader, cold, registered buffers", .against = "fio, cold"},
    {.name = "loader, cold, plain reads of io_uring", .against = "fio, cold"},
    {.name = "loader, cold, 8 threads", .against = "fio, cold"},
    {.name = "pread, from the page cache"},
    {.name = "loader, from the page cache", .against = "pread, from the page cache"},
    {.name = "loader into the cpu backend, from the page cache"},
};
enum { FIO, COLD_FIXED, COLD_URING, COLD_THREADS, PREAD, WARM, WARM_CPU, LINES };

static char directory[900], path[1000];
static struct ll_checkpoint checkpoint;

/* ---- the checkpoint ---------------------------------------------------------------------------*/

static void die(const char *what)
{
    fprintf(stderr, "bench_load: %s: %s\n", what, ll_err_text());
    exit(1);
}

/* What compressed-tensors says of a checkpoint whose linear layers are e4m3, a scale a row. */
static const char fp8_config[] =
    ", \"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\": "
    "\"float-quantized\", \"ignore\": [\"lm_head\"], \"config_groups\": {\"group_0\": "
    "{\"targets\": "
    "[\"Linear\"], \"weights\": {\"num_bits\": 8, \"type\": \"float\", \"symmetric\": true, "
    "\"strategy\": \"channel\", \"dynamic\": false}, \"input_activations\": {\"num_bits\": 8, "
    "\"type\": \"float\", \"symmetric\": true, \"strategy\": \"token\", \"dynamic\": true}}}}";

static void write_config(const struct ll_model_shape *s, bool is_fp8)
{
    char name[1000];

    snprintf(name, sizeof(name), "%s/config.json", directory);
    FILE *file = fopen(name, "w");
    if (file == NULL)
        die(name);
    fprintf(file,
            "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": %u, "
            "\"num_hidden_layers\": %u, \"num_attention_heads\": %u, \"num_key_value_heads\": %u, "
            "\"head_dim\": %u, \"intermediate_size\": %u, \"vocab_size\": %u, "
            "\"max_position_embeddings\": 8192, \"rms_norm_eps\": 1e-05, \"rope_theta\": 500000.0, "
            "\"tie_word_embeddings\": %s%s}\n",
            s->n_embd, s->n_layers, s->n_heads, s->n_kv_heads, s->head_dim, s->n_ff, s->n_vocab,
            s->is_tied ? "true" : "false", is_fp8 ? fp8_config : "");
    fclose(file);
}

/* The tensors of a model of this shape; gives how many. */
static uint32_t list_tensors(struct writer_tensor *tensors, const struct ll_model_shape *s,
                             bool is_fp8)
{
    uint32_t n = 0;

    for (uint32_t role = 0; role < LL_TENSOR_ROLES; role++) {
        uint32_t n_layers = ll_tensor_is_per_layer(role) ? s->n_layers : 1;
        for (uint32_t layer = 0; layer < n_layers; layer++) {
            struct writer_tensor *t = &tensors[n];
            char name[LL_TENSOR_NAME_BYTES];
            if (role == LL_TENSOR_HEAD && s->is_tied)
                continue;
            const bool is_quantised = is_fp8 && ll_tensor_is_linear(role);
            *t = (struct writer_tensor){.dtype = is_quantised ? LL_DTYPE_E4M3 : LL_DTYPE_BF16};
            ll_tensor_dims(s, role, &t->rows, &t->cols);
            t->size_bytes = (uint64_t)ll_dtype_bytes(t->dtype) * t->rows * t->cols;
            t->rows = ll_tensor_is_vector(role) ? 0 : t->rows;
            ll_tensor_weight(t->name, role, layer);
            n++;
            if (is_quantised) {
                tensors[n] = (struct writer_tensor){.dtype = LL_DTYPE_BF16,
                                                    .rows = t->rows,
                                                    .cols = 1,
                                                    .size_bytes = 2ull * t->rows};
                ll_tensor_weight(name, role, layer);
                snprintf(tensors[n++].name, sizeof(t->name), "%s_scale", name);
            }
        }
    }
    return n;
}

static void write_checkpoint(const struct ll_model_shape *s, bool is_fp8)
{
    struct writer_tensor *tensors = calloc(s->n_layers * 16 + 3, sizeof(*tensors));
    struct writer writer;
    uint16_t *block = malloc(BLOCK_BYTES);
    const uint32_t n = list_tensors(tensors, s, is_fp8);

    /* Small numbers of both signs, as bf16 and as e4m3. */
    for (size_t i = 0; i < BLOCK_BYTES / 2; i++)
        block[i] = (uint16_t)(0x3c00 + i * 7919 % 127 + (i % 2 << 15));
    if (writer_open(&writer, path, tensors, n) < 0)
        die("cannot write");
    for (uint32_t i = 0; i < n; i++)
        for (uint64_t at = 0; at < tensors[i].size_bytes; at += BLOCK_BYTES)
            if (writer_put(&writer, &tensors[i], at, block,
                           ll_min_u64(BLOCK_BYTES, tensors[i].size_bytes - at)) < 0)
                die("cannot write");
    if (writer_close(&writer) < 0)
        die("cannot write");
    free(block);
    free(tensors);
}

static void make_cold(void)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    fdatasync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}

/* ---- ways of reading --------------------------------------------------------------------------*/

static double cpu_seconds(int who)
{
    struct rusage used;

    getrusage(who, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void keep(int line, uint64_t bytes, double seconds, double cpu)
{
    struct line *l = &lines[line];

    l->rate[l->n] = (double)bytes / 1e9 / seconds;
    l->cpu[l->n++] = cpu / ((double)bytes / 1e10);
}

/* False where fio is not installed. */
static bool run_fio(void)
{
    char command[2200], text[512];
    double rate = 0;
    double cpu = cpu_seconds(RUSAGE_CHILDREN);

    snprintf(command, sizeof(command),
             "fio --name=load --filename='%s' --readonly --rw=read --bs=%d --iodepth=%d --direct=1 "
             "--ioengine=io_uring --registerfiles --fixedbufs --numjobs=1 --minimal 2>/dev/null",
             path, BLOCK_BYTES, DEPTH);
    FILE *pipe = popen(command, "r");
    if (pipe == NULL)
        return false;
    if (fgets(text, sizeof(text), pipe) != NULL) {
        const char *at = text;
        for (int i = 0; i < 6 && at != NULL; i++) /* the seventh field: KiB/s read */
            at = strchr(at + (i > 0), ';');
        rate = at != NULL ? strtod(at + 1, NULL) * 1024 : 0;
    }
    while (fgets(text, sizeof(text), pipe) != NULL)
        ;
    if (pclose(pipe) != 0 || rate <= 0)
        return false;
    keep(FIO, checkpoint.file[0].size_bytes, (double)checkpoint.file[0].size_bytes / rate,
         cpu_seconds(RUSAGE_CHILDREN) - cpu);
    return true;
}

struct ll_device {
    uint64_t n_bytes;
};

static int take_want(struct ll_device *device, const struct ll_tensor *tensor,
                     struct ll_span *spans, uint32_t n_max, struct ll_text *error)
{
    (void)device, (void)n_max, (void)error;
    spans[0] = (struct ll_span){.size_bytes = tensor->size_bytes};
    return 1;
}

static int take_feed(struct ll_device *device, uint32_t weights, const struct ll_tensor *tensor,
                     uint32_t rank, uint64_t offset, const void *data, size_t n_bytes,
                     uint64_t *ticket, struct ll_text *error)
{
    (void)weights, (void)tensor, (void)rank, (void)offset, (void)data, (void)error;
    device->n_bytes += n_bytes;
    *ticket = 1;
    return 0;
}

static int take_fed(struct ll_device *device, uint64_t ticket, struct ll_text *error)
{
    (void)device, (void)ticket, (void)error;
    return 1;
}

static int take_seal(struct ll_device *device, uint32_t weights, struct ll_text *error)
{
    (void)device, (void)weights, (void)error;
    return 0;
}

static const struct ll_backend taker = {
    .name = "taker", .want = take_want, .feed = take_feed, .fed = take_fed, .seal = take_seal};

static void run_loader(int line, enum ll_reader_way way)
{
    struct ll_device device = {0};
    const struct ll_load_options options = {.numa_node = -1, .way = way};
    double cpu = cpu_seconds(RUSAGE_SELF);
    uint64_t start_ns = ll_now_ns();

    if (ll_loader_run(&taker, &device, 0, &checkpoint, &options) < 0)
        die("load");
    if (device.n_bytes != checkpoint.weights_bytes)
        die("bytes are missing");
    keep(line, device.n_bytes, (double)(ll_now_ns() - start_ns) / 1e9,
         cpu_seconds(RUSAGE_SELF) - cpu);
}

static void run_cpu_backend(void)
{
    struct ll_text error = {""};
    struct ll_backend_caps caps;
    struct ll_device *device = NULL;
    struct ll_backend_options options = {.struct_bytes = sizeof(options),
                                         .n_slots = 1,
                                         .n_pages = 1,
                                         .n_tokens_max = 1,
                                         .n_rows_max = 1,
                                         .pages_per_seq = 1,
                                         .n_weights = 1,
                                         .dtype = LL_DTYPE_BF16,
                                         .numa_node = -1};

    if (ll_backend_cpu()->open(&device, &options, &checkpoint.shape, &caps, &error) < 0)
        die(error.s);
    double cpu = cpu_seconds(RUSAGE_SELF);
    uint64_t start_ns = ll_now_ns();
    if (ll_loader_run(ll_backend_cpu(), device, 0, &checkpoint, NULL) < 0)
        die("load");
    keep(WARM_CPU, checkpoint.weights_bytes, (double)(ll_now_ns() - start_ns) / 1e9,
         cpu_seconds(RUSAGE_SELF) - cpu);
    ll_backend_cpu()->close(device);
}

/* The file through one buffer: what one thread gets out of the page cache. */
static void run_pread(bool is_measured)
{
    char *buffer = aligned_alloc(4096, BLOCK_BYTES);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    uint64_t total = 0;

    memset(buffer, 1, BLOCK_BYTES);
    double cpu = cpu_seconds(RUSAGE_SELF);
    uint64_t start_ns = ll_now_ns();
    for (ssize_t n; (n = read(fd, buffer, BLOCK_BYTES)) > 0;)
        total += (uint64_t)n;
    if (is_measured)
        keep(PREAD, total, (double)(ll_now_ns() - start_ns) / 1e9, cpu_seconds(RUSAGE_SELF) - cpu);
    close(fd);
    free(buffer);
}

/* ---- results ----------------------------------------------------------------------------------*/

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double median(const double *list, int n)
{
    double sorted[ROUNDS_MAX];

    memcpy(sorted, list, (size_t)n * sizeof(*list));
    qsort(sorted, (size_t)n, sizeof(*sorted), compare_doubles);
    return n > 0 ? sorted[n / 2] : 0;
}

static void print_results(bool is_json)
{
    const char *separator = "[\n";

    if (!is_json)
        printf("| %.2f GB, %d blocks of %d MiB | GB/s | of the other | CPU s for 10 GB |\n"
               "|---|---|---|---|\n",
               (double)checkpoint.weights_bytes / 1e9, DEPTH, BLOCK_BYTES >> 20);
    for (int i = 0; i < LINES; i++) {
        double rate = median(lines[i].rate, lines[i].n), other = 0;
        for (int k = 0; k < LINES && lines[i].against != NULL; k++)
            if (strcmp(lines[k].name, lines[i].against) == 0)
                other = median(lines[k].rate, lines[k].n);
        if (lines[i].n == 0)
            continue;
        if (is_json) {
            printf("%s  {\"what\": \"%s\", \"GBps\": %.3f, \"share\": %.3f, \"cpu_s_10GB\": %.3f}",
                   separator, lines[i].name, rate, other > 0 ? rate / other : 0,
                   median(lines[i].cpu, lines[i].n));
            separator = ",\n";
        } else if (other > 0) {
            printf("| %s | %.2f | %.0f %% | %.2f |\n", lines[i].name, rate, 100 * rate / other,
                   median(lines[i].cpu, lines[i].n));
        } else {
            printf("| %s | %.2f | | %.2f |\n", lines[i].name, rate,
                   median(lines[i].cpu, lines[i].n));
        }
    }
    if (is_json)
        printf("\n]\n");
}

struct arguments {
    const char *parent, *shape;
    bool is_json, is_kept, is_fp8, has_cpu;
    int n_rounds;
};

/* 0, or 2: what to exit with. */
static int read_arguments(struct arguments *a, int argc, char **argv)
{
    *a = (struct arguments){.parent = "/tmp", .shape = "llama-3.2-1b", .n_rounds = 3};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--json") == 0)
            a->is_json = true;
        else if (strcmp(argv[i], "--keep") == 0)
            a->is_kept = true;
        else if (strcmp(argv[i], "--fp8") == 0)
            a->is_fp8 = true;
        else if (strcmp(argv[i], "--cpu-backend") == 0)
            a->has_cpu = true;
        else if (strcmp(argv[i], "--dir") == 0 && value != NULL)
            a->parent = argv[++i];
        else if (strcmp(argv[i], "--shape") == 0 && value != NULL)
            a->shape = argv[++i];
        else if (strcmp(argv[i], "--rounds") == 0 && value != NULL && value[0] >= '0' &&
                 value[0] <= '9' && atoi(value) <= ROUNDS_MAX)
            a->n_rounds = atoi(argv[++i]);
        else {
            fprintf(stderr,
                    "usage: %s [--dir DIR] [--shape llama-3.2-1b] [--fp8] [--rounds 0..%d] "
                    "[--cpu-backend] [--keep] [--json]\n",
                    argv[0], ROUNDS_MAX);
            return 2;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct ll_model_shape shape;
    struct arguments a;
    bool has_fio = true;

    if (read_arguments(&a, argc, argv) != 0)
        return 2;
    if (ll_model_shape_find(a.shape, &shape) < 0)
        die("shape");
    ll_log_set_level(LL_LOG_WARN);
    snprintf(directory, sizeof(directory), "%s/llring-bench-load-XXXXXX", a.parent);
    if (mkdtemp(directory) == NULL)
        die(directory);
    snprintf(path, sizeof(path), "%s/model.safetensors", directory);
    write_config(&shape, a.is_fp8);
    write_checkpoint(&shape, a.is_fp8);
    if (ll_checkpoint_open(&checkpoint, directory) < 0)
        die("open");
    for (int round = 0; round < a.n_rounds; round++) {
        make_cold();
        has_fio = has_fio && run_fio();
        for (int way = 0; way < 3; way++) {
            make_cold();
            run_loader(COLD_FIXED + way, (enum ll_reader_way)(LL_READER_FIXED + way));
        }
        run_pread(false); /* fills the page cache */
        run_pread(true);
        run_loader(WARM, LL_READER_AUTO);
        if (a.has_cpu)
            run_cpu_backend();
    }
    if (!has_fio)
        fprintf(stderr, "fio is not installed: nothing to hold the cold loads against\n");
    if (a.n_rounds > 0)
        print_results(a.is_json);
    ll_checkpoint_close(&checkpoint);
    if (a.is_kept) {
        printf("%s\n", directory);
        return 0;
    }
    char config[1000];
    snprintf(config, sizeof(config), "%s/config.json", directory);
    unlink(config);
    unlink(path);
    rmdir(directory);
    return 0;
}
