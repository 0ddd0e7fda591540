/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_loader.c - the loader against a backend that records: every wanted byte comes
 * once, in the right place, whatever the split; a buffer is not touched before its ticket is done;
 * what goes wrong on disk or in the backend is told. */
#include "tests/runtime/checkpoint_maker.h"

#include "base/err.h"
#include "base/log.h"
#include "base/numbers.h"
#include "base/rng.h"
#include "ll/client.h"
#include "runtime/fp8.h"
#include "runtime/loader.h"
#include "runtime/tensor_names.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <errno.h>
#include <fcntl.h>
#include <math.h>

#define RANKS_MAX   4u
#define TENSORS_MAX 128
#define PENDING_MAX 4096u

struct pending { /* a piece the backend has not looked at yet: it reads it when fed() is asked */
    struct ll_tensor tensor;
    uint32_t rank;
    uint64_t offset;
    const uint8_t *data;
    size_t n_bytes;
    bool is_done;
};

/* The recording backend. Bytes are taken late, from the staging buffer, so a buffer that is filled
 * again too early shows as wrong bytes. */
struct ll_device {
    uint32_t n_ranks;
    uint32_t n_spans; /* each tensor is wanted in so many spans a rank, dealt out in turn */
    bool is_shared;   /* every rank wants everything */
    bool has_gaps;    /* spans of odd number are nobody's */
    bool has_places;  /* tells where bytes will lie */
    uint32_t lag;     /* fed() says "not yet" so often before it takes the piece */
    int fail_at;      /* feed() number that fails; -1 none */
    int no_want, no_seal;
    const char *spoil; /* file to damage at the first feed */
    bool is_cut;       /* by cutting it, else by touching it */

    struct pending *pending;
    uint32_t n_feeds, n_waits, n_pins, n_unpins, n_seals, n_placed;
    uint8_t *bytes[RANKS_MAX][TENSORS_MAX];
    uint8_t *times[RANKS_MAX][TENSORS_MAX]; /* how often each byte came */
    uint64_t n_bytes_max;
};

static uint32_t index_of(const struct ll_tensor *tensor)
{
    return (tensor->layer * LL_TENSOR_ROLES + (uint32_t)tensor->role) * 4 + tensor->part;
}

/* Span k of n of a tensor, uneven on purpose. */
static uint64_t cut_of(uint64_t size, uint32_t k, uint32_t n)
{
    return k == n ? size : size * k / n / 3 * 3;
}

static bool is_wanted(const struct ll_device *device, uint32_t k, uint32_t rank)
{
    if (device->has_gaps && k % 2 == 1)
        return false;
    return device->is_shared || k % device->n_ranks == rank;
}

static int rec_want(struct ll_device *device, const struct ll_tensor *tensor, struct ll_span *spans,
                    uint32_t n_max, struct ll_text *error)
{
    uint32_t n = 0, pieces = device->n_spans;

    if (device->no_want < 0) {
        snprintf(error->s, sizeof(error->s), "no kernel for this type");
        return device->no_want;
    }
    for (uint32_t rank = 0; rank < device->n_ranks; rank++)
        for (uint32_t k = 0; k < pieces && n < n_max; k++) {
            if (!is_wanted(device, k, rank))
                continue;
            uint64_t from = cut_of(tensor->size_bytes, k, pieces);
            spans[n++] =
                (struct ll_span){.offset = from,
                                 .size_bytes = cut_of(tensor->size_bytes, k + 1, pieces) - from,
                                 .rank = rank};
        }
    return (int)n;
}

static int rec_pin(struct ll_device *device, void *base, size_t size_bytes, struct ll_text *error)
{
    (void)error;
    if (size_bytes == 0) {
        device->n_unpins++;
        return 0;
    }
    assert_int_equal((uintptr_t)base % 4096, 0);
    assert_true(size_bytes > 0);
    device->n_pins++;
    return 0;
}

static void spoil_file(const struct ll_device *device)
{
    struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};

    if (device->is_cut)
        assert_int_equal(truncate(device->spoil, 4096), 0);
    else
        assert_int_equal(utimensat(AT_FDCWD, device->spoil, times, 0), 0);
}

static void make_room(struct ll_device *device, const struct ll_tensor *tensor, uint32_t rank)
{
    uint32_t i = index_of(tensor);

    if (device->bytes[rank][i] == NULL) {
        device->bytes[rank][i] = calloc(1, tensor->size_bytes);
        device->times[rank][i] = calloc(1, tensor->size_bytes);
    }
}

static void *rec_place(struct ll_device *device, uint32_t weights, const struct ll_tensor *tensor,
                       uint32_t rank, uint64_t offset, size_t n_bytes)
{
    assert_int_equal(weights, 1);
    assert_true(offset + n_bytes <= tensor->size_bytes);
    if (!device->has_places)
        return NULL;
    make_room(device, tensor, rank);
    return device->bytes[rank][index_of(tensor)] + offset;
}

/* What was read into a place is fed from there, and is what lies there. */
static bool is_placed(const struct ll_device *device, const struct pending *p)
{
    const uint8_t *bytes = device->bytes[p->rank][index_of(&p->tensor)];

    if (bytes == NULL || p->data < bytes || p->data >= bytes + p->tensor.size_bytes)
        return false;
    assert_ptr_equal(p->data, bytes + p->offset);
    return true;
}

static int rec_feed(struct ll_device *device, uint32_t weights, const struct ll_tensor *tensor,
                    uint32_t rank, uint64_t offset, const void *data, size_t n_bytes,
                    uint64_t *ticket, struct ll_text *error)
{
    assert_int_equal(weights, 1);
    assert_true(device->n_feeds < PENDING_MAX);
    if ((int)device->n_feeds == device->fail_at) {
        snprintf(error->s, sizeof(error->s), "device memory is gone");
        return -ENOMEM;
    }
    if (device->n_feeds == 0 && device->spoil != NULL)
        spoil_file(device);
    device->pending[device->n_feeds] = (struct pending){
        .tensor = *tensor, .rank = rank, .offset = offset, .data = data, .n_bytes = n_bytes};
    device->n_placed += is_placed(device, &device->pending[device->n_feeds]);
    *ticket = ++device->n_feeds;
    return 0;
}

static int rec_fed(struct ll_device *device, uint64_t ticket, struct ll_text *error)
{
    struct pending *p = &device->pending[ticket - 1];
    uint32_t i = index_of(&p->tensor);

    (void)error;
    assert_true(ticket >= 1 && ticket <= device->n_feeds);
    if (p->is_done)
        return 1;
    if (device->lag > 0 && device->n_waits++ % (device->lag + 1) != device->lag)
        return 0;
    make_room(device, &p->tensor, p->rank);
    assert_true(p->offset + p->n_bytes <= p->tensor.size_bytes);
    if (p->data != device->bytes[p->rank][i] + p->offset)
        memcpy(device->bytes[p->rank][i] + p->offset, p->data, p->n_bytes);
    for (size_t k = 0; k < p->n_bytes; k++)
        device->times[p->rank][i][p->offset + k]++;
    if (p->n_bytes > device->n_bytes_max)
        device->n_bytes_max = p->n_bytes;
    p->is_done = true;
    return 1;
}

static int rec_seal(struct ll_device *device, uint32_t weights, struct ll_text *error)
{
    assert_int_equal(weights, 1);
    device->n_seals++;
    if (device->no_seal < 0)
        snprintf(error->s, sizeof(error->s), "layer 3 is not complete");
    return device->no_seal;
}

static const struct ll_backend recorder = {.abi = LL_BACKEND_ABI,
                                           .name = "recorder",
                                           .want = rec_want,
                                           .pin = rec_pin,
                                           .place = rec_place,
                                           .feed = rec_feed,
                                           .fed = rec_fed,
                                           .seal = rec_seal};

struct fixture {
    struct maker maker;
    struct ll_checkpoint checkpoint;
    struct ll_device device;
    struct ll_load_options options;
};

static struct fixture *open_fixture(const char *dtype, bool is_sharded)
{
    struct fixture *f = calloc(1, sizeof(*f));

    maker_init(&f->maker, dtype);
    if (is_sharded)
        maker_write_sharded(&f->maker);
    else
        maker_write_single(&f->maker);
    if (ll_checkpoint_open(&f->checkpoint, f->maker.directory) < 0)
        fail_msg("%s", ll_err_text());
    f->device = (struct ll_device){.n_ranks = 1, .n_spans = 1, .fail_at = -1};
    f->device.pending = calloc(PENDING_MAX, sizeof(*f->device.pending));
    return f;
}

static void close_fixture(struct fixture *f)
{
    for (uint32_t rank = 0; rank < RANKS_MAX; rank++)
        for (int i = 0; i < TENSORS_MAX; i++) {
            free(f->device.bytes[rank][i]);
            free(f->device.times[rank][i]);
        }
    free(f->device.pending);
    ll_checkpoint_close(&f->checkpoint);
    maker_free(&f->maker);
    free(f);
}

static int load(struct fixture *f)
{
    return ll_loader_run(&recorder, &f->device, 1, &f->checkpoint, &f->options);
}

/* Every rank has exactly what it wanted, each byte once and right. */
static void assert_all_there(const struct fixture *f)
{
    const struct ll_device *d = &f->device;

    assert_int_equal(d->n_seals, 1);
    for (uint32_t t = 0; t < f->checkpoint.n_tensors; t++) {
        const struct ll_checkpoint_tensor *tensor = &f->checkpoint.tensor[t];
        uint32_t i = index_of(&tensor->tensor);
        for (uint32_t k = 0; k < d->n_spans; k++) {
            uint64_t from = cut_of(tensor->tensor.size_bytes, k, d->n_spans);
            uint64_t to = cut_of(tensor->tensor.size_bytes, k + 1, d->n_spans);
            for (uint32_t rank = 0; rank < d->n_ranks; rank++) {
                bool wanted = is_wanted(d, k, rank);
                for (uint64_t at = from; at < to; at++) {
                    assert_int_equal(d->times[rank][i] == NULL ? 0 : d->times[rank][i][at], wanted);
                    if (wanted)
                        assert_int_equal(d->bytes[rank][i][at], maker_byte(tensor->name, at));
                }
            }
        }
    }
}

/* Out of the page cache, so that reads go past it where the file system can. */
static void forget_files(const struct fixture *f)
{
    for (uint32_t i = 0; i < f->checkpoint.n_files; i++) {
        int fd = open(f->checkpoint.file[i].path, O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        fsync(fd);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
}

static void every_byte_arrives_once_in_three_types_by_every_way(void **state)
{
    static const char *const types[] = {"BF16", "F16", "F32"};

    (void)state;
    for (int i = 0; i < 3; i++)
        for (int way = LL_READER_AUTO; way <= LL_READER_PLAIN; way++)
            for (int is_cold = 0; is_cold < 2; is_cold++) {
                struct fixture *f = open_fixture(types[i], i == 1);
                if (is_cold)
                    forget_files(f);
                f->options.way = (enum ll_reader_way)way;
                f->device.lag = (uint32_t)(way % 3);
                assert_int_equal(load(f), 0);
                assert_all_there(f);
                assert_int_equal(f->device.n_pins, 1);
                assert_int_equal(f->device.n_unpins, 0); /* the seal's */
                close_fixture(f);
            }
}

static void ranks_get_what_they_want_in_any_split(void **state)
{
    (void)state;
    for (uint32_t ranks = 1; ranks <= RANKS_MAX; ranks++)
        for (uint32_t spans = 1; spans <= 13; spans += 4)
            for (int shared = 0; shared < 2; shared++) {
                struct fixture *f = open_fixture("BF16", ranks == 2);
                f->device.n_ranks = ranks;
                f->device.n_spans = spans;
                f->device.is_shared = shared;
                f->device.has_gaps = spans == 9;
                f->device.lag = ranks % 3;
                assert_int_equal(load(f), 0);
                assert_all_there(f);
                close_fixture(f);
            }
}

/* Two tensors that together are more than the staging buffers hold. */
static struct fixture *open_large_fixture(void)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct maker *maker = &f->maker;
    char config[2048];

    maker_init(maker, "F32");
    for (int i = 0; i < 2; i++) {
        struct maker_tensor *t =
            maker_find(maker, i == 0 ? "model.embed_tokens.weight" : "lm_head.weight");
        strcpy(t->shape, "[300001,16]");
        t->n_bytes = 300001ull * 16 * 4;
    }
    maker_layout(maker);
    maker_write_single(maker);
    const char *at = strstr(MAKER_CONFIG, "\"vocab_size\": 32");
    assert_non_null(at);
    snprintf(config, sizeof(config), "%.*s\"vocab_size\": 300001%s", (int)(at - MAKER_CONFIG),
             MAKER_CONFIG, at + strlen("\"vocab_size\": 32"));
    maker_write_text(maker, "config.json", config);
    if (ll_checkpoint_open(&f->checkpoint, maker->directory) < 0)
        fail_msg("%s", ll_err_text());
    f->device = (struct ll_device){.n_ranks = 1, .n_spans = 1, .fail_at = -1, .lag = 2};
    f->device.pending = calloc(PENDING_MAX, sizeof(*f->device.pending));
    return f;
}

/* Taken late: a buffer filled again too early would show. */
static void check_large_file(enum ll_reader_way way)
{
    struct fixture *f = open_large_fixture();

    f->device.n_ranks = 2;
    f->device.n_spans = 3;
    f->device.is_shared = true;
    f->options.way = way;
    forget_files(f);
    assert_int_equal(load(f), 0);
    assert_true(f->device.n_bytes_max <= 8u << 20);
    assert_int_equal(f->device.n_seals, 1);
    for (int i = 0; i < 2; i++) {
        struct ll_tensor tensor = {.role = i == 0 ? LL_TENSOR_EMBED : LL_TENSOR_HEAD};
        const char *name = i == 0 ? "model.embed_tokens.weight" : "lm_head.weight";
        uint32_t wrong = 0;
        for (uint64_t k = 0; k < 300001ull * 64; k++)
            wrong += f->device.bytes[1][index_of(&tensor)][k] != maker_byte(name, k) ||
                     f->device.times[0][index_of(&tensor)][k] != 1;
        assert_int_equal(wrong, 0);
    }
    close_fixture(f);
}

static void file_of_many_buffers_arrives_whole_by_every_way(void **state)
{
    (void)state;
    for (int way = LL_READER_FIXED; way <= LL_READER_PLAIN; way++)
        check_large_file((enum ll_reader_way)way);
}

/* Chunks that are one rank's part of one tensor are read to where they will lie (L5), where reads
 * may go anywhere: files of the page cache, by threads. */
static void what_is_only_copied_is_read_into_its_place(void **state)
{
    (void)state;
    for (uint32_t n_ranks = 1; n_ranks <= 2; n_ranks++)
        for (uint32_t is_shared = 0; is_shared < n_ranks; is_shared++) {
            struct fixture *f = open_large_fixture();
            f->device.n_ranks = n_ranks;
            f->device.n_spans = 2 * n_ranks - 1;
            f->device.is_shared = is_shared;
            f->device.has_places = true;
            f->options.way = LL_READER_THREADS;
            assert_int_equal(load(f), 0);
            assert_all_there(f);
            assert_true(f->device.n_placed < f->device.n_feeds); /* small ones share a chunk */
            assert_int_equal(f->device.n_placed > 0, n_ranks == 1 || !is_shared);
            close_fixture(f);
        }
}

static void assert_fails(struct fixture *f, int code, const char *word1, const char *word2)
{
    int rc = load(f);

    if (rc != code || strstr(ll_err_text(), word1) == NULL || strstr(ll_err_text(), word2) == NULL)
        fail_msg("%d: \"%s\" lacks \"%s\" or \"%s\"", rc, ll_err_text(), word1, word2);
}

/* ---- quantising on the way --------------------------------------------------------------------*/

static const char gate_name[] = "model.layers.1.mlp.gate_proj.weight";

/* A gate of 300,001 rows: two buffers of them. Every number is finite; with_nan: but one. */
static struct fixture *open_wide_fixture(bool with_nan)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct maker *maker = &f->maker;
    char config[2048];

    maker_init(maker, "BF16");
    for (int layer = 0; layer < 2; layer++)
        for (int i = 0; i < 3; i++) {
            static const char *const names[] = {"gate_proj", "up_proj", "down_proj"};
            char name[80];
            snprintf(name, sizeof(name), "model.layers.%d.mlp.%s.weight", layer, names[i]);
            struct maker_tensor *t = maker_find(maker, name);
            strcpy(t->shape, i == 2 ? "[16,300001]" : "[300001,16]");
            t->n_bytes = 300001ull * 16 * 2;
        }
    maker_layout(maker);
    maker_write_single(maker);
    const char *at = strstr(MAKER_CONFIG, "\"intermediate_size\": 24");
    assert_non_null(at);
    snprintf(config, sizeof(config), "%.*s\"intermediate_size\": 300001%s",
             (int)(at - MAKER_CONFIG), MAKER_CONFIG, at + strlen("\"intermediate_size\": 24"));
    maker_write_text(maker, "config.json", config);

    FILE *file = fopen(maker_path(maker, "model.safetensors"), "r+");
    size_t n_header;
    free(maker_header(maker, 0, &n_header));
    uint8_t *data = malloc(maker->data_bytes[0]);
    assert_int_equal(fseek(file, (long)(8 + n_header), SEEK_SET), 0);
    assert_int_equal(fread(data, 1, maker->data_bytes[0], file), maker->data_bytes[0]);
    for (uint64_t i = 1; i < maker->data_bytes[0]; i += 2)
        data[i] &= 0xbf; /* below 2 */
    if (with_nan) {
        uint64_t place = maker_find(maker, gate_name)->begin + 2 * (16ull * 290000 + 3);
        data[place + 1] = 0x7f;
        data[place] = 0xc0;
    }
    assert_int_equal(fseek(file, (long)(8 + n_header), SEEK_SET), 0);
    assert_int_equal(fwrite(data, 1, maker->data_bytes[0], file), maker->data_bytes[0]);
    fclose(file);
    free(data);
    if (ll_checkpoint_open(&f->checkpoint, maker->directory) < 0)
        fail_msg("%s", ll_err_text());
    f->device = (struct ll_device){.n_ranks = 2, .n_spans = 5, .fail_at = -1, .lag = 1};
    f->device.pending = calloc(PENDING_MAX, sizeof(*f->device.pending));
    f->options.quantize_fp8 = true;
    return f;
}

static void linears_are_quantised_across_buffers_and_ranks(void **state)
{
    struct fixture *f = open_wide_fixture(false);
    uint32_t n_checked = 0;

    (void)state;
    forget_files(f);
    if (load(f) < 0)
        fail_msg("%s", ll_err_text());
    for (uint32_t k = 0; k < f->checkpoint.n_tensors; k++) {
        const struct ll_checkpoint_tensor *t = &f->checkpoint.tensor[k];
        struct ll_tensor tensor = t->tensor;
        const uint32_t cols = tensor.cols;
        if (!ll_tensor_is_linear(tensor.role))
            continue;
        uint16_t *half = malloc(t->tensor.size_bytes), *scale = malloc(2ull * tensor.rows);
        uint8_t *codes = malloc((size_t)tensor.rows * cols);
        int fd = open(f->checkpoint.file[0].path, O_RDONLY | O_CLOEXEC);
        assert_int_equal(pread(fd, half, t->tensor.size_bytes, (off_t)t->offset),
                         t->tensor.size_bytes);
        close(fd);
        assert_int_equal(ll_fp8_quantize(codes, scale, half, LL_DTYPE_BF16, tensor.rows, cols),
                         tensor.rows);
        for (int part = LL_PART_WEIGHT; part <= LL_PART_SCALE; part++) {
            const uint8_t *want = part == LL_PART_WEIGHT ? codes : (uint8_t *)scale;
            uint64_t size =
                part == LL_PART_WEIGHT ? (uint64_t)tensor.rows * cols : 2ull * tensor.rows;
            tensor.part = (enum ll_tensor_part)part;
            for (uint32_t span = 0; span < 5; span++)
                for (uint64_t at = cut_of(size, span, 5); at < cut_of(size, span + 1, 5); at++)
                    n_checked += f->device.bytes[span % 2][index_of(&tensor)][at] == want[at] &&
                                 f->device.times[span % 2][index_of(&tensor)][at] == 1;
            assert_int_equal(n_checked, size);
            n_checked = 0;
        }
        free(half);
        free(scale);
        free(codes);
    }
    close_fixture(f);
}

static void numbers_that_cannot_be_quantised_are_named(void **state)
{
    struct fixture *f = open_wide_fixture(true);

    (void)state;
    assert_fails(f, LL_E_INVAL, gate_name, "row 290000 holds a NaN");
    assert_int_equal(f->device.n_seals, 0);
    close_fixture(f);
}

/* The definition, number by number, and both ways of computing it. */
static void quantising_a_row_is_what_the_header_says(void **state)
{
    static const enum ll_dtype dtypes[] = {LL_DTYPE_BF16, LL_DTYPE_F16, LL_DTYPE_F32};
    enum { ROWS = 7, COLS = 777 };
    uint64_t random = ll_test_seed();

    (void)state;
    for (int d = 0; d < 3; d++) {
        const uint32_t size = ll_dtype_bytes(dtypes[d]);
        uint8_t *in = malloc(ROWS * COLS * 4), codes[2][ROWS * COLS];
        uint16_t scale[2][ROWS];
        float x[ROWS][COLS];
        for (int i = 0; i < ROWS * COLS; i++) {
            float value =
                ((float)(ll_splitmix64(&random) >> 40) * 0x1p-23f - 1) * (i / COLS == 2   ? 0
                                                                          : i / COLS == 3 ? 0x1p-14f
                                                                                          : 8);
            uint16_t half = ll_bf16_from_f32(value);
            if (dtypes[d] == LL_DTYPE_F16)
                half = (uint16_t)(ll_splitmix64(&random) & (i / COLS == 2 ? 0x8000 : 0xbfff));
            memcpy(in + (size_t)i * size, size == 4 ? (void *)&value : (void *)&half, size);
            x[i / COLS][i % COLS] = dtypes[d] == LL_DTYPE_F32    ? value
                                    : dtypes[d] == LL_DTYPE_BF16 ? ll_f32_from_bf16(half)
                                                                 : ll_f32_from_f16(half);
        }
        assert_int_equal(ll_fp8_quantize_plain(codes[0], scale[0], in, dtypes[d], ROWS, COLS),
                         ROWS);
        assert_int_equal(ll_fp8_quantize(codes[1], scale[1], in, dtypes[d], ROWS, COLS), ROWS);
        assert_memory_equal(codes[0], codes[1], sizeof(codes[0]));
        assert_memory_equal(scale[0], scale[1], sizeof(scale[0]));
        for (int r = 0; r < ROWS; r++) {
            float most = 0, by = ll_f32_from_bf16(scale[0][r]);
            for (int c = 0; c < COLS; c++)
                most = fmaxf(most, fabsf(x[r][c]));
            if (most == 0) {
                assert_true(by == 1);
                continue;
            }
            assert_true(by >= most / 448 && by <= most / 448 * (1 + 0x1p-7f));
            for (int c = 0; c < COLS; c++)
                assert_int_equal(codes[0][r * COLS + c], ll_e4m3_from_f32(x[r][c] / by));
        }
        /* In place, too. */
        assert_int_equal(ll_fp8_quantize(in, scale[1], in, dtypes[d], ROWS, COLS), ROWS);
        assert_memory_equal(in, codes[0], sizeof(codes[0]));
        free(in);
    }
}

/* ---- the checksum -----------------------------------------------------------------------------*/

/* Of a file's data: everything is wanted here, and lies in one run. */
static void hash_data(const struct fixture *f, char out[40])
{
    const struct ll_checkpoint_file *file = &f->checkpoint.file[0];
    const uint64_t n = f->checkpoint.weights_bytes;
    uint8_t *data = malloc(n);
    int fd = open(file->path, O_RDONLY | O_CLOEXEC);

    assert_int_equal(pread(fd, data, n, (off_t)(file->size_bytes - n)), n);
    close(fd);
    XXH128_hash_t h = XXH3_128bits(data, n);
    snprintf(out, 40, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
    free(data);
}

static void the_checksum_is_that_of_the_bytes_by_every_way_and_with_fp8(void **state)
{
    (void)state;
    for (int turn = 0; turn <= LL_READER_PLAIN + 1; turn++) {
        const bool is_fp8 =
            turn > LL_READER_PLAIN; /* which changes the bytes, after they are hashed */
        struct fixture *f = is_fp8 ? open_wide_fixture(false) : open_fixture("F32", false);
        char text[40];
        hash_data(f, text);
        f->options.way = is_fp8 ? LL_READER_THREADS : (enum ll_reader_way)turn;
        f->options.quantize_fp8 = is_fp8;
        f->options.checksum = text;
        forget_files(f);
        if (load(f) < 0)
            fail_msg("turn %d: %s", turn, ll_err_text());
        if (!is_fp8) {
            text[31] = text[31] == '0' ? '1' : '0';
            assert_fails(f, LL_E_INVAL, "have the checksum", "not");
        }
        assert_int_equal(f->device.n_seals, 1);
        close_fixture(f);
    }
}

struct seen {
    uint64_t last, total;
    int n_calls, stop_at;
};

static int watch(void *context, const struct ll_load_progress *progress)
{
    struct seen *seen = context;

    assert_true(progress->bytes_done >= seen->last);
    assert_true(progress->bytes_done <= progress->bytes_total);
    seen->last = progress->bytes_done;
    seen->total = progress->bytes_total;
    return ++seen->n_calls == seen->stop_at;
}

static void progress_rises_to_the_total_and_can_stop_the_load(void **state)
{
    struct fixture *f = open_fixture("BF16", true);
    struct seen seen = {0};

    (void)state;
    f->device.n_ranks = 2; /* bytes that two ranks want are read, and counted, once */
    f->device.is_shared = true;
    f->options.callback = watch;
    f->options.context = &seen;
    assert_int_equal(load(f), 0);
    assert_int_equal(seen.last, f->checkpoint.weights_bytes);
    assert_int_equal(seen.total, f->checkpoint.weights_bytes);
    assert_true(seen.n_calls > 1);
    close_fixture(f);

    f = open_fixture("BF16", true);
    seen = (struct seen){.stop_at = 2};
    f->options.callback = watch;
    f->options.context = &seen;
    assert_int_equal(load(f), -ECANCELED);
    assert_int_equal(f->device.n_seals, 0);
    close_fixture(f);
}

static void errors_of_the_backend_come_with_its_words_and_the_tensor(void **state)
{
    struct fixture *f = open_fixture("BF16", false);

    (void)state;
    f->device.no_want = LL_E_UNSUPPORTED;
    assert_fails(f, LL_E_UNSUPPORTED, "model.embed_tokens.weight", "no kernel for this type");
    f->device.no_want = 0;
    f->device.fail_at = 3;
    f->device.lag = 1;
    assert_fails(f, -ENOMEM, "model.layers.0.", "device memory is gone");
    for (uint32_t i = 0; i < f->device.n_feeds; i++) /* waited for what was in flight */
        assert_true(f->device.pending[i].is_done);
    assert_int_equal(f->device.n_seals, 0);
    close_fixture(f);

    f = open_fixture("BF16", false);
    f->device.no_seal = LL_E_BACKEND;
    assert_fails(f, LL_E_BACKEND, "sealing", "layer 3 is not complete");
    close_fixture(f);
}

static void file_that_changes_while_loading_is_refused(void **state)
{
    struct fixture *f = open_fixture("BF16", false);
    char path[256];

    (void)state;
    snprintf(path, sizeof(path), "%s", maker_path(&f->maker, "model.safetensors"));
    f->device.spoil = path;
    assert_fails(f, LL_E_INVAL, "model.safetensors", "written to");
    assert_int_equal(f->device.n_seals, 0);
    close_fixture(f);

    /* Between opening and loading: cut, longer, gone. */
    f = open_fixture("BF16", false);
    snprintf(path, sizeof(path), "%s", maker_path(&f->maker, "model.safetensors"));
    assert_int_equal(truncate(path, 3000), 0);
    assert_fails(f, LL_E_INVAL, "model.safetensors", "3000 bytes now");
    unlink(path);
    assert_fails(f, -ENOENT, "model.safetensors", "No such file");
    close_fixture(f);
}

static void file_cut_off_while_loading_is_a_short_read_with_its_place(void **state)
{
    struct fixture *f = open_fixture("BF16", true);
    char path[256];

    (void)state;
    /* The first feed, of the first shard, cuts the last one. */
    snprintf(path, sizeof(path), "%s", maker_path(&f->maker, maker_shard_name(2)));
    f->device.spoil = path;
    f->device.is_cut = true;
    assert_fails(f, LL_E_INVAL, maker_shard_name(2), "while loading");
    close_fixture(f);

    /* Gaps in what is wanted make many reads of one file; the cut comes after the first. */
    f = open_fixture("F32", false);
    snprintf(path, sizeof(path), "%s", maker_path(&f->maker, "model.safetensors"));
    f->device.spoil = path;
    f->device.is_cut = true;
    f->device.has_gaps = true;
    f->device.n_spans = 4;
    assert_fails(f, LL_E_INVAL, "model.layers.", "the file ends here");
    assert_int_equal(f->device.n_seals, 0);
    close_fixture(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_arrives_once_in_three_types_by_every_way),
        cmocka_unit_test(ranks_get_what_they_want_in_any_split),
        cmocka_unit_test(file_of_many_buffers_arrives_whole_by_every_way),
        cmocka_unit_test(what_is_only_copied_is_read_into_its_place),
        cmocka_unit_test(linears_are_quantised_across_buffers_and_ranks),
        cmocka_unit_test(numbers_that_cannot_be_quantised_are_named),
        cmocka_unit_test(quantising_a_row_is_what_the_header_says),
        cmocka_unit_test(the_checksum_is_that_of_the_bytes_by_every_way_and_with_fp8),
        cmocka_unit_test(progress_rises_to_the_total_and_can_stop_the_load),
        cmocka_unit_test(errors_of_the_backend_come_with_its_words_and_the_tensor),
        cmocka_unit_test(file_that_changes_while_loading_is_refused),
        cmocka_unit_test(file_cut_off_while_loading_is_a_short_read_with_its_place),
    };
    ll_log_set_level(LL_LOG_WARN);
    return cmocka_run_group_tests_name("runtime/loader", tests, NULL, NULL);
}
