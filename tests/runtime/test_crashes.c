/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_crashes.c - the crash ledger's file, its arithmetic and its hashes. That a
 * crash of llringd leads there is shown by tests/tools/test_supervise.sh. */
#include "runtime/crashes.h"
#include "tests/harness.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NOW_S 1000000u

struct fixture {
    char directory[32], path[64];
    struct ll_crashes crashes;
    struct ll_seq seq;
    uint32_t token[40000];
    struct ll_bias bias[2];
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    strcpy(f->directory, "/tmp/llring-crashes-XXXXXX");
    assert_non_null(mkdtemp(f->directory));
    snprintf(f->path, sizeof(f->path), "%s/s.crashes", f->directory);
    f->crashes.fd = -1;
    for (uint32_t i = 0; i < 40000; i++)
        f->token[i] = i * 7 % 1000;
    f->seq = (struct ll_seq){.token = f->token,
                             .bias = f->bias,
                             .n_prompt = 100,
                             .max_tokens = 10,
                             .n_bias = 1,
                             .sampling = {.top_p = 1, .repetition = 1, .n_end = 1, .end = {9}}};
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[128];

    ll_crashes_close(&f->crashes);
    snprintf(command, sizeof(command), "rm -rf '%s'", f->directory);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

/* ---- the file ---------------------------------------------------------------------------------*/

/* A block of one crash with two requests: hash {lo, 1} and one that no other crash has. */
static void add_block(const struct fixture *f, uint64_t time_s, uint64_t lo)
{
    const uint64_t words[] = {0x316873617263726cull, time_s, 2, lo, 1, 1000 + time_s, 1};
    FILE *file = fopen(f->path, "a");

    assert_non_null(file);
    assert_int_equal(fwrite(words, sizeof(words), 1, file), 1);
    fclose(file);
}

static void open_at(struct fixture *f, uint64_t now_s)
{
    ll_crashes_close(&f->crashes);
    assert_int_equal(ll_crashes_open(&f->crashes, f->path, now_s), 0);
}

static bool refuses(const struct fixture *f, uint64_t lo)
{
    return ll_crashes_refuses(&f->crashes, (struct ll_chain){lo, 1});
}

static void three_crashes_within_five_minutes_refuse_what_all_had(void **state)
{
    struct fixture *f = *state;

    add_block(f, NOW_S - 300, 7);
    add_block(f, NOW_S - 100, 7);
    add_block(f, NOW_S - 50, 5);
    open_at(f, NOW_S);
    assert_false(ll_crashes_may_refuse(&f->crashes));
    assert_int_equal(f->crashes.n_recent, 3);
    add_block(f, NOW_S, 7);
    open_at(f, NOW_S);
    assert_true(ll_crashes_may_refuse(&f->crashes));
    assert_int_equal(f->crashes.n_refused, 1);
    assert_true(refuses(f, 7));
    assert_false(refuses(f, 5));
    assert_false(ll_crashes_refuses(&f->crashes, (struct ll_chain){7, 2}));
    open_at(f, NOW_S + 3600); /* the last one is an hour old */
    assert_true(f->crashes.n_refused == 0 && f->crashes.n_blocks == 1);
}

static void what_was_refused_stays_so_for_an_hour(void **state)
{
    struct fixture *f = *state;

    for (uint64_t i = 0; i < 3; i++)
        add_block(f, NOW_S + i, 7);
    open_at(f, NOW_S + 3600); /* all three still count: the last is younger */
    assert_true(refuses(f, 7));
    open_at(f, NOW_S + 3601);
    assert_false(refuses(f, 7));
}

static void crashes_further_apart_are_chance(void **state)
{
    struct fixture *f = *state;

    add_block(f, NOW_S - 301, 7);
    add_block(f, NOW_S - 100, 7);
    add_block(f, NOW_S, 7);
    open_at(f, NOW_S);
    assert_false(refuses(f, 7));
}

static void a_block_of_the_future_does_not_count(void **state)
{
    struct fixture *f = *state;

    for (uint64_t i = 1; i <= 3; i++)
        add_block(f, NOW_S + i, 7);
    open_at(f, NOW_S);
    assert_int_equal(f->crashes.n_blocks, 0);
}

static void only_the_latest_64_count(void **state)
{
    struct fixture *f = *state;

    for (uint64_t i = 0; i < 3; i++)
        add_block(f, NOW_S - 299, 7);
    for (uint64_t i = 0; i < 64; i++)
        add_block(f, NOW_S - 200 + i, 50 + i);
    open_at(f, NOW_S);
    assert_int_equal(f->crashes.n_blocks, 64);
    assert_int_equal(f->crashes.n_refused, 0);
}

/* C4: cut anywhere, the blocks before the cut count, and nothing else happens. */
static void a_damaged_file_counts_as_far_as_it_goes(void **state)
{
    struct fixture *f = *state;

    for (off_t length = 3 * 56; length >= 0; length--) {
        unlink(f->path);
        for (uint64_t i = 0; i < 3; i++)
            add_block(f, NOW_S - i, 7);
        assert_int_equal(truncate(f->path, length), 0);
        open_at(f, NOW_S);
        assert_int_equal(f->crashes.n_blocks, length / 56);
        assert_int_equal(refuses(f, 7), length == 3 * 56);
    }
    const uint64_t huge[] = {0x316873617263726cull, NOW_S, UINT64_MAX / 16, 7, 1};
    ll_crashes_close(&f->crashes);
    int fd = open(f->path, O_WRONLY | O_TRUNC | O_CREAT, 0600);
    assert_int_equal(write(fd, huge, sizeof(huge)), sizeof(huge));
    close(fd);
    open_at(f, NOW_S);
    assert_int_equal(f->crashes.n_blocks, 0);
}

static void what_is_no_file_of_ours_is_left_alone(void **state)
{
    struct fixture *f = *state;
    char other[80];

    snprintf(other, sizeof(other), "%s/other", f->directory);
    int fd = open(other, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, "precious", 8), 8);
    close(fd);
    assert_int_equal(symlink(other, f->path), 0);
    open_at(f, NOW_S);
    assert_int_equal(f->crashes.fd, -1);
    ll_crashes_close(&f->crashes);
    struct stat st;
    assert_int_equal(stat(other, &st), 0);
    assert_int_equal(st.st_size, 8);
    unlink(f->path);
    assert_int_equal(mkfifo(f->path, 0600), 0);
    open_at(f, NOW_S);
    assert_int_equal(f->crashes.fd, -1);
}

static void a_clean_end_leaves_no_file_unless_it_still_says_something(void **state)
{
    struct fixture *f = *state;

    open_at(f, NOW_S);
    assert_int_equal(access(f->path, F_OK), 0);
    ll_crashes_close(&f->crashes);
    assert_int_equal(access(f->path, F_OK), -1);
    add_block(f, NOW_S, 7);
    open_at(f, NOW_S);
    ll_crashes_close(&f->crashes);
    assert_int_equal(access(f->path, F_OK), 0);
}

/* ---- a crash ----------------------------------------------------------------------------------*/

/* In a child: a pool with one request accepted, then the fault. */
static void crash_with(struct fixture *f, uint64_t lo, void (*fault)(struct ll_crashes *crashes))
{
    ll_crashes_close(&f->crashes);
    pid_t pid = fork();

    if (pid == 0) {
        struct ll_seq_pool pool;
        struct ll_crashes crashes;
        signal(SIGSEGV, SIG_DFL); /* the test runner has its own */
        signal(SIGABRT, SIG_DFL);
        if (ll_seq_pool_init(&pool, 3, 64) < 0 ||
            ll_crashes_open(&crashes, f->path, (uint64_t)time(NULL)) < 0 ||
            ll_crashes_watch(&crashes, &pool) < 0)
            _exit(1);
        ll_crashes_guard_thread();
        ll_seq_take(&pool, 0)->request_hash = (struct ll_chain){lo, 1};
        ll_seq_take(&pool, 0); /* not accepted yet: no hash */
        fault(&crashes);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    open_at(f, (uint64_t)time(NULL));
}

static void abort_it(struct ll_crashes *crashes)
{
    (void)crashes;
    abort();
}

static void fault_memory(struct ll_crashes *crashes)
{
    (void)crashes;
    raise(SIGSEGV); /* a real fault would end in a sanitizer's hands first */
}

static void fail_device_then_abort(struct ll_crashes *crashes)
{
    ll_crashes_record(crashes);
    abort();
}

static void kill_it(struct ll_crashes *crashes)
{
    (void)crashes;
    kill(getpid(), SIGKILL);
}

static void end_it(struct ll_crashes *crashes)
{
    ll_crashes_close(crashes);
}

static void each_crash_writes_one_block_and_sigkill_and_a_clean_end_none(void **state)
{
    struct fixture *f = *state;

    crash_with(f, 7, kill_it);
    assert_int_equal(f->crashes.n_blocks, 0);
    crash_with(f, 7, end_it);
    assert_int_equal(f->crashes.n_blocks, 0);
    crash_with(f, 7, abort_it);
    assert_int_equal(f->crashes.n_blocks, 1);
    crash_with(f, 7, fault_memory);
    assert_int_equal(f->crashes.n_blocks, 2);
    assert_false(refuses(f, 7));
    crash_with(f, 7, fail_device_then_abort);
    assert_int_equal(f->crashes.n_blocks, 3);
    assert_true(refuses(f, 7));
    assert_int_equal(f->crashes.n_refused, 1);
}

/* ---- hashes -----------------------------------------------------------------------------------*/

static bool is_same(const struct fixture *f, struct ll_chain as)
{
    struct ll_chain h = ll_crashes_hash(&f->seq);

    return h.lo == as.lo && h.hi == as.hi;
}

static void who_asks_and_the_seed_do_not_matter(void **state)
{
    struct fixture *f = *state;
    struct ll_chain h = ll_crashes_hash(&f->seq);

    f->seq.seed = 5;
    f->seq.tag = 6;
    f->seq.client = 7;
    f->seq.tenant = 8;
    f->seq.salt[0] = 9;
    f->seq.priority = 1;
    assert_true(is_same(f, h));
    assert_true(h.lo != 0);
}

#define CHANGED(field, value)                                                                      \
    do {                                                                                           \
        __typeof__(field) before_ = (field);                                                       \
        (field) = (value);                                                                         \
        assert_false(is_same(f, h));                                                               \
        (field) = before_;                                                                         \
        assert_true(is_same(f, h));                                                                \
    } while (0)

static void every_id_and_every_parameter_matters(void **state)
{
    struct fixture *f = *state;
    struct ll_chain h = ll_crashes_hash(&f->seq);

    for (uint32_t i = 0; i < f->seq.n_prompt; i++)
        CHANGED(f->token[i], 5000);
    CHANGED(f->seq.n_prompt, 99);
    CHANGED(f->seq.max_tokens, 11);
    CHANGED(f->seq.flags, 1);
    CHANGED(f->seq.n_top, 1);
    CHANGED(f->seq.n_choices, 2);
    CHANGED(f->seq.sampling.temperature, 1.0f);
    CHANGED(f->seq.sampling.top_p, 0.5f);
    CHANGED(f->seq.sampling.top_k, 4);
    CHANGED(f->seq.sampling.end[0], 10);
    CHANGED(f->seq.n_bias, 2);
    CHANGED(f->bias[0].bias, 1.0f);
    f->seq.n_prompt = 40000; /* longer than what is hashed: both ends and the length */
    h = ll_crashes_hash(&f->seq);
    CHANGED(f->token[0], 5000);
    CHANGED(f->token[39999], 5000);
    CHANGED(f->seq.n_prompt, 39999);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(three_crashes_within_five_minutes_refuse_what_all_had),
        TEST(what_was_refused_stays_so_for_an_hour),
        TEST(crashes_further_apart_are_chance),
        TEST(a_block_of_the_future_does_not_count),
        TEST(only_the_latest_64_count),
        TEST(a_damaged_file_counts_as_far_as_it_goes),
        TEST(what_is_no_file_of_ours_is_left_alone),
        TEST(a_clean_end_leaves_no_file_unless_it_still_says_something),
        TEST(each_crash_writes_one_block_and_sigkill_and_a_clean_end_none),
        TEST(who_asks_and_the_seed_do_not_matter),
        TEST(every_id_and_every_parameter_matters),
    };

    return cmocka_run_group_tests_name("runtime/crashes", tests, NULL, NULL);
}
