/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_reader.c - each way of reading, byte for byte: odd sizes and places, short
 * reads, errors that go away and that stay, and machines that forbid the better ways. */
#include "tests/harness.h"

#include "base/err.h"
#include "base/log.h"
#include "base/rng.h"
#include "ll/client.h"
#include "runtime/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BUFFERS = 4, BUFFER_BYTES = 64 * 1024 };

static const char *const ways[] = {"auto", "fixed", "uring", "threads", "plain"};

struct fixture {
    struct ll_checkpoint_file file;
    uint8_t *bytes; /* what is in it */
    char *staging;
    struct ll_reader *reader;
    struct ll_reader_faults faults;
};

static uint64_t random_state;

static void make_file(struct fixture *f, const char *directory, uint64_t size, bool is_cold)
{
    struct stat st;

    memset(f, 0, sizeof(*f));
    snprintf(f->file.path, sizeof(f->file.path), "%s/llring-reader-XXXXXX", directory);
    int fd = mkstemp(f->file.path);
    assert_true(fd >= 0);
    f->bytes = malloc(size + 1);
    for (uint64_t i = 0; i < size; i++)
        f->bytes[i] = (uint8_t)(ll_splitmix64(&random_state) >> 33);
    assert_int_equal(write(fd, f->bytes, size), size);
    if (is_cold) {
        fsync(fd);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    }
    assert_int_equal(fstat(fd, &st), 0);
    close(fd);
    f->file.size_bytes = size;
    f->file.mtime_ns = (uint64_t)st.st_mtim.tv_sec * 1000000000ull + (uint64_t)st.st_mtim.tv_nsec;
    f->staging = mmap(NULL, BUFFERS * BUFFER_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(f->staging != MAP_FAILED);
}

static int open_reader(struct fixture *f, enum ll_reader_way way)
{
    struct ll_reader_options options = {.files = &f->file,
                                        .n_files = 1,
                                        .staging = f->staging,
                                        .staging_bytes = BUFFERS * BUFFER_BYTES,
                                        .buffer_bytes = BUFFER_BYTES,
                                        .depth = BUFFERS,
                                        .way = way,
                                        .faults = f->faults.result != NULL ? &f->faults : NULL};

    return ll_reader_open(&f->reader, &options);
}

static void free_file(struct fixture *f)
{
    ll_reader_close(f->reader);
    munmap(f->staging, BUFFERS * BUFFER_BYTES);
    unlink(f->file.path);
    free(f->bytes);
}

/* Up to BUFFERS random pieces at once; every byte is right. Gives the first error. */
static int read_pieces(struct fixture *f)
{
    struct ll_read read[BUFFERS];
    const uint64_t size = f->file.size_bytes;
    int rc = 0;

    for (int i = 0; i < BUFFERS; i++) {
        uint64_t offset = i == 0 ? 0 : ll_splitmix64(&random_state) % size;
        uint64_t most = (offset & ~4095ull) + BUFFER_BYTES;
        most = most < size ? most - offset : size - offset;
        read[i] = (struct ll_read){
            .offset = offset,
            .n_bytes = i == 1 ? most : 1 + ll_splitmix64(&random_state) % most,
            .buffer = f->staging + i * BUFFER_BYTES,
        };
        ll_reader_start(f->reader, &read[i]);
    }
    for (int n_left = BUFFERS; n_left > 0;) {
        int failed;
        struct ll_read *done = ll_reader_take(f->reader, true, &failed);
        if (failed < 0)
            fail_msg("%s", ll_err_text());
        if (done == NULL)
            continue;
        n_left--;
        if (done->error < 0 && rc == 0)
            rc = LL_ERR(done->error, "%s", done->error_text);
        if (done->error == 0)
            assert_memory_equal(done->first, f->bytes + done->offset, done->n_bytes);
    }
    return rc;
}

static void odd_sizes_and_places_are_read_right_by_every_way(void **state)
{
    static const uint64_t edges[] = {1,    2,    511,  512,  513,    4095,   4096,
                                     4097, 8191, 8192, 8193, 131071, 131073, 300000};

    (void)state;
    for (int way = LL_READER_FIXED; way <= LL_READER_PLAIN; way++)
        for (int is_cold = 0; is_cold < 2; is_cold++)
            for (uint64_t k = 0; k < sizeof(edges) / sizeof(edges[0]) + 8; k++) {
                struct fixture f;
                bool is_edge = k < sizeof(edges) / sizeof(edges[0]);
                uint64_t size = is_edge ? edges[k] : 1 + ll_splitmix64(&random_state) % 8193;
                make_file(&f, "/tmp", size, is_cold);
                if (open_reader(&f, (enum ll_reader_way)way) < 0)
                    fail_msg("%s, %llu bytes: %s", ways[way], (unsigned long long)size,
                             ll_err_text());
                for (int turn = 0; turn < 4; turn++)
                    if (read_pieces(&f) < 0)
                        fail_msg("%s, %llu bytes: %s", ways[way], (unsigned long long)size,
                                 ll_err_text());
                assert_int_equal(ll_reader_check(f.reader), 0);
                free_file(&f);
            }
}

static void files_of_a_memory_file_system_are_read_right(void **state)
{
    (void)state;
    if (access("/dev/shm", W_OK) != 0)
        skip();
    for (int way = LL_READER_AUTO; way <= LL_READER_PLAIN; way++) {
        struct fixture f;
        make_file(&f, "/dev/shm", 70001, false);
        assert_int_equal(open_reader(&f, (enum ll_reader_way)way), 0);
        assert_int_equal(read_pieces(&f), 0);
        assert_non_null(strstr(ll_reader_describe(f.reader), "1 from it")); /* it is the cache */
        free_file(&f);
    }
}

/* ---- faults -----------------------------------------------------------------------------------*/

struct faults {
    int error; /* given n_times in a row for each place */
    uint32_t n_times;
    bool is_short; /* each read brings at most 5000 bytes, the last ones 700 */
    bool is_cold;  /* past the page cache: those come in whole blocks */
    bool is_ended; /* every read ends at once */
    uint64_t last;
    uint32_t n_given;
};

static int64_t spoil(void *context, uint32_t file, uint64_t offset, uint64_t n_bytes,
                     int64_t result)
{
    struct faults *faults = context;

    (void)file, (void)n_bytes;
    if (faults->is_ended)
        return 0;
    if (faults->is_short)
        return result > 5000 ? 5000 : result > 700 && !faults->is_cold ? 700 : result;
    if (faults->error == 0)
        return result;
    if (offset != faults->last)
        faults->n_given = 0;
    faults->last = offset;
    return faults->n_given++ < faults->n_times ? faults->error : result;
}

/* One read of a whole buffer; what came of it. */
static int read_one(struct fixture *f, struct faults *faults, enum ll_reader_way way, bool is_cold)
{
    struct ll_read read = {.offset = 5, .n_bytes = 50000};
    int rc;

    make_file(f, "/tmp", 60000, is_cold);
    read.buffer = f->staging;
    f->faults = (struct ll_reader_faults){spoil, faults};
    faults->last = UINT64_MAX;
    assert_int_equal(open_reader(f, way), 0);
    ll_reader_start(f->reader, &read);
    struct ll_read *done = NULL;
    while (done == NULL)
        done = ll_reader_take(f->reader, true, &rc);
    assert_ptr_equal(done, &read);
    if (read.error == 0)
        assert_memory_equal(read.first, f->bytes + 5, 50000);
    else
        LL_ERR(read.error, "%s", read.error_text);
    free_file(f);
    return read.error;
}

static void short_reads_resume_and_passing_errors_pass(void **state)
{
    (void)state;
    for (int way = LL_READER_FIXED; way <= LL_READER_PLAIN; way++)
        for (int is_cold = 0; is_cold < 2; is_cold++) {
            struct fixture f;
            struct faults passing[] = {{.error = -EIO, .n_times = 2},
                                       {.error = -EINTR, .n_times = 9},
                                       {.error = -EAGAIN, .n_times = 9},
                                       {.is_short = true, .is_cold = is_cold}};
            for (size_t i = 0; i < sizeof(passing) / sizeof(passing[0]); i++)
                if (read_one(&f, &passing[i], (enum ll_reader_way)way, is_cold) != 0)
                    fail_msg("%s, fault %zu: %s", ways[way], i, ll_err_text());
        }
}

static void errors_that_stay_are_told_with_their_place(void **state)
{
    (void)state;
    for (int way = LL_READER_FIXED; way <= LL_READER_PLAIN; way++)
        for (int is_cold = 0; is_cold < 2; is_cold++) {
            struct fixture f;
            struct faults eio = {.error = -EIO, .n_times = 3}, ended = {.is_ended = true};
            struct faults bad = {.error = -ESTALE, .n_times = 1};
            assert_int_equal(read_one(&f, &eio, (enum ll_reader_way)way, is_cold), -EIO);
            assert_non_null(strstr(ll_err_text(), "Input/output error"));
            assert_non_null(strstr(ll_err_text(), "byte "));
            assert_int_equal(read_one(&f, &bad, (enum ll_reader_way)way, is_cold), -ESTALE);
            assert_int_equal(read_one(&f, &ended, (enum ll_reader_way)way, is_cold), LL_E_INVAL);
            assert_non_null(strstr(ll_err_text(), "the file ends here"));
        }
}

static void a_file_that_changed_is_noticed(void **state)
{
    struct fixture f;
    struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};

    (void)state;
    make_file(&f, "/tmp", 10000, false);
    f.file.size_bytes++;
    assert_int_equal(open_reader(&f, LL_READER_PLAIN), LL_E_INVAL);
    assert_non_null(strstr(ll_err_text(), "10000 bytes now"));
    f.file.size_bytes--;
    assert_int_equal(open_reader(&f, LL_READER_PLAIN), 0);
    assert_int_equal(utimensat(AT_FDCWD, f.file.path, times, 0), 0);
    assert_int_equal(ll_reader_check(f.reader), LL_E_INVAL);
    assert_non_null(strstr(ll_err_text(), "written to"));
    free_file(&f);
}

/* ---- machines that forbid -----------------------------------------------------------------------
 */
/* Runs body in a child; its exit status. */
static int in_child(int (*body)(void))
{
    int status;

    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        _exit(body());
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

/* Asks for the best way; 0 when it ends up at this one and reads right. */
static int ends_up_at(enum ll_reader_way way)
{
    struct fixture f;

    make_file(&f, "/tmp", 100000, true);
    if (open_reader(&f, LL_READER_FIXED) < 0)
        return 2;
    int rc = ll_reader_way(f.reader) != way ? 3 : read_pieces(&f) < 0 ? 4 : 0;
    if (rc != 0)
        fprintf(stderr, "%s: %s\n", ways[ll_reader_way(f.reader)], ll_reader_describe(f.reader));
    free_file(&f);
    return rc;
}

static int without_io_uring(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        return LL_SKIPPED;
    return ends_up_at(LL_READER_THREADS);
}

static int with_little_locked_memory(void)
{
    struct rlimit limit = {64 * 1024, 64 * 1024};

    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0 || (getuid() == 0 && setuid(65534) != 0))
        return LL_SKIPPED;
    return ends_up_at(LL_READER_URING);
}

static int with_all(void)
{
    return ends_up_at(LL_READER_FIXED);
}

static void where_io_uring_is_forbidden_threads_read(void **state)
{
    (void)state;
    int status = in_child(without_io_uring);
    if (status == LL_SKIPPED)
        skip();
    assert_int_equal(status, 0);
}

static void where_little_memory_may_be_locked_buffers_are_not_registered(void **state)
{
    (void)state;
    if (in_child(with_all) != 0) /* no io_uring on this machine at all */
        skip();
    int status = in_child(with_little_locked_memory);
    if (status == LL_SKIPPED)
        skip();
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(odd_sizes_and_places_are_read_right_by_every_way),
        cmocka_unit_test(files_of_a_memory_file_system_are_read_right),
        cmocka_unit_test(short_reads_resume_and_passing_errors_pass),
        cmocka_unit_test(errors_that_stay_are_told_with_their_place),
        cmocka_unit_test(a_file_that_changed_is_noticed),
        cmocka_unit_test(where_io_uring_is_forbidden_threads_read),
        cmocka_unit_test(where_little_memory_may_be_locked_buffers_are_not_registered),
    };

    random_state = ll_test_seed();
    ll_log_set_level(LL_LOG_WARN);
    return cmocka_run_group_tests_name("runtime/reader", tests, NULL, NULL);
}
