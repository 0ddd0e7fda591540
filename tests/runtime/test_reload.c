/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_reload.c - runtime/reload.h in one process: a CPU device with two sets, the
 * real control loop, this thread as both control and step thread, the reload's own thread reading.
 * A reload fails at every read, in several ways; each time the old weights answer to the bit as
 * before and the next reload works. With clients: tests/http/test_reload.sh. */
#include "tests/runtime/checkpoint_maker.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/rng.h"
#include "ll/client.h"
#include "runtime/engine.h"
#include "runtime/loader.h"
#include "runtime/reload.h"
#include "shm/wait.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

enum { PROMPT = 5, OUT = 6, READS = 3 /* a shard each */ };

struct answer {
    uint32_t token[OUT];
    float logprob[OUT];
};

enum fault { FAULT_NONE, FAULT_EIO, FAULT_END, FAULT_DENIED, FAULT_TOUCHED, FAULT_CUT, FAULT_SLOW };

static struct fixture {
    struct maker maker[2]; /* the models A and B: other numbers in the same shape */
    struct ll_config config;
    struct ll_setup setup;
    struct ll_region info, stat;
    struct ll_mailbox to_step, to_control;
    int step_fd, tick_fd;
    struct ll_control *control;
    struct ll_reload *reload;
    struct ll_reader_faults faults;

    /* what the next reload meets */
    enum fault fault;
    int at; /* number of the read */
    _Atomic int n_reads;
    char spoilt[256];
    _Atomic bool is_held; /* FAULT_SLOW: reads wait for it to end */

    /* the step thread's part */
    int answers_switch; /* with this code; 1: not at all */
    uint32_t set;
    uint32_t n_steps;

    void (*scenario)(void); /* of the control loop's ticks */
    uint32_t stage;
    uint64_t since_ns;
    bool is_over;
} f;

static struct answer of_a, of_b;

/* ---- models -----------------------------------------------------------------------------------*/

/* Small numbers of either sign in every bf16 of a file. */
static void fill(const char *path, uint64_t seed)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat st;
    uint64_t n_header;

    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    uint8_t *bytes = malloc((size_t)st.st_size);
    assert_int_equal(pread(fd, bytes, (size_t)st.st_size, 0), st.st_size);
    memcpy(&n_header, bytes, 8);
    for (size_t at = 8 + n_header; at + 1 < (size_t)st.st_size; at += 2) {
        uint64_t r = ll_splitmix64(&seed);
        bytes[at] = (uint8_t)r;
        bytes[at + 1] = (uint8_t)(0x3d | (r >> 8 & 0x80));
    }
    assert_int_equal(pwrite(fd, bytes, (size_t)st.st_size, 0), st.st_size);
    close(fd);
    free(bytes);
}

static void make_model(struct maker *maker, uint64_t seed)
{
    maker_init(maker, "BF16");
    maker_write_sharded(maker);
    for (int file = 0; file < 3; file++)
        fill(maker_path(maker, maker_shard_name(file)), seed * 10 + (uint64_t)file);
}

/* ---- the device -------------------------------------------------------------------------------*/

static struct answer ask(uint32_t set)
{
    static const uint32_t prompt[PROMPT] = {4, 9, 17, 5, 30}, page = 0;
    const struct ll_backend *backend = f.setup.backend;
    const struct ll_slot_init init = {
        .n_prompt = PROMPT, .n_hist = PROMPT, .hist = prompt, .s = {.top_p = 1, .repetition = 1}};
    const struct ll_pages_set pages = {0, 0, 1, &page};
    struct ll_text error = {""};
    struct ll_result result;
    struct answer answer;

    for (uint32_t i = 0; i < OUT; i++) {
        const struct ll_row row = {.pos = i == 0 ? 0 : PROMPT + i - 1,
                                   .n_tokens = i == 0 ? PROMPT : 1,
                                   .token = i == 0 ? prompt : NULL,
                                   .flags = LL_ROW_SAMPLE};
        const struct ll_batch batch = {.weights = set,
                                       .n_inits = i == 0,
                                       .n_pages_sets = i == 0,
                                       .n_rows = 1,
                                       .inits = &init,
                                       .pages = &pages,
                                       .rows = &row};
        int64_t ticket = backend->submit(f.setup.device, &batch, &error);
        if (ticket < 0)
            fail_msg("%s", error.s);
        while (backend->poll(f.setup.device, ticket, &result, &error) == 0)
            ;
        assert_int_equal(result.rows[0].status, LL_ROW_OK);
        answer.token[i] = result.rows[0].token[0];
        answer.logprob[i] = result.rows[0].logprob[0];
    }
    return answer;
}

static void expect_serving(const struct answer *wanted, const char *what)
{
    struct answer got = ask(f.set);

    if (memcmp(&got, wanted, sizeof(got)) != 0)
        fail_msg("%s: other weights serve", what);
}

/* ---- faults, in the reload's thread -----------------------------------------------------------*/

static int64_t on_read(void *context, uint32_t file, uint64_t offset, uint64_t n_bytes,
                       int64_t result)
{
    const struct timespec past[2] = {{.tv_sec = 1}, {.tv_sec = 1}};

    (void)context, (void)file, (void)offset, (void)n_bytes;
    int n = atomic_fetch_add(&f.n_reads, 1);
    while (f.fault == FAULT_SLOW && atomic_load(&f.is_held))
        usleep(1000);
    if (n < f.at)
        return result;
    switch (f.fault) {
    case FAULT_EIO:
        return -EIO;
    case FAULT_END:
        return 0;
    case FAULT_DENIED:
        return -EACCES;
    case FAULT_TOUCHED:
        utimensat(AT_FDCWD, f.spoilt, past, 0);
        return result;
    case FAULT_CUT:
        if (truncate(f.spoilt, 100) < 0)
            return -EIO;
        return result;
    default:
        return result;
    }
}

/* ---- the control loop -------------------------------------------------------------------------*/

/* The step thread's answers; steps of the set that serves run all the while. */
static void play_step_thread(void)
{
    struct ll_mail mail;

    while (ll_mailbox_take(&f.to_step, &mail)) {
        struct ll_weights_switch *to = mail.attachment;
        if (mail.type == LL_MAIL_DRAIN) {
            mail.type = LL_MAIL_IDLE;
        } else if (mail.type == LL_MAIL_SWITCH) {
            assert_int_equal(to->weights, 1 - f.set);
            assert_true(to->epoch > ((struct ll_info_region *)f.info.base)->weights_epoch);
            if (f.answers_switch == 1)
                continue;
            if (f.answers_switch == 0) {
                f.set = to->weights;
                ((struct ll_info_region *)f.info.base)->weights_epoch = to->epoch;
            }
            to->n_left = f.answers_switch == 0 ? 0 : 7;
            mail.type = LL_MAIL_SWITCHED;
            mail.value = (uint64_t)(int64_t)f.answers_switch;
        } else {
            continue;
        }
        assert_true(ll_mailbox_send(&f.to_control, &mail));
        ll_wait_wake(ll_control_notify_fd(f.control));
    }
    ask(f.set);
    f.n_steps++;
}

static void on_tick(void *context, int fd, uint32_t events)
{
    uint64_t n;

    (void)context, (void)events;
    if (read(fd, &n, sizeof(n)) < 0)
        return;
    play_step_thread();
    if (!f.is_over)
        f.scenario();
    if (f.is_over)
        ll_control_drain(f.control);
}

static struct ll_reload_report report(void)
{
    struct ll_reload_report now;

    ll_reload_report(f.reload, &now);
    return now;
}

static int begin(const struct maker *maker)
{
    const struct ll_reload_order order = {.model = maker->directory, .wait_s = 3};

    atomic_store(&f.n_reads, 0);
    f.since_ns = ll_now_ns();
    return ll_reload_begin(f.reload, &order);
}

/* ---- set-up -----------------------------------------------------------------------------------*/

static void make_region(struct ll_region *region, const char *name, size_t n_bytes)
{
    assert_int_equal(ll_region_create(region, name, ll_align_up(n_bytes, 4096), -1), 0);
    assert_int_equal(ll_region_seal_written(region), 0);
}

static void open_device(const char *option)
{
    const char *const argv[] = {"llringd",
                                f.maker[0].directory,
                                "--device",
                                "cpu",
                                "--threads",
                                "1",
                                "--max-num-seqs",
                                "4",
                                "--num-gpu-blocks-override",
                                "8",
                                option};
    const int argc = option != NULL ? 11 : 10;

    if (ll_config_read(&f.config, argc, (char *const *)(uintptr_t)argv) < 0 ||
        ll_setup_model(&f.setup, &f.config) < 0 || ll_setup_device(&f.setup) < 0 ||
        ll_loader_run(f.setup.backend, f.setup.device, 0, &f.setup.checkpoint, NULL) < 0)
        fail_msg("%s", ll_err_text());
}

static void open_fixture(const char *option, void (*scenario)(void))
{
    static bool has_models;
    struct ll_control_options control = {.socket = NULL};
    char socket[128];

    struct maker kept[2] = {f.maker[0], f.maker[1]};
    memset(&f, 0, sizeof(f));
    f.maker[0] = kept[0];
    f.maker[1] = kept[1];
    if (!has_models) {
        make_model(&f.maker[0], 1);
        make_model(&f.maker[1], 2);
        has_models = true;
    }
    open_device(option);
    make_region(&f.info, "info", LL_INFO_BYTES);
    make_region(&f.stat, "stat", sizeof(struct ll_stat_region));
    ll_stat_init(f.stat.base, ll_now_ns());
    struct ll_info_region *info = f.info.base;
    info->weights_epoch = 1;
    info->rt_state = LL_RT_READY;
    f.step_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    snprintf(socket, sizeof(socket), "%s/s", f.maker[0].directory);
    control.socket = socket;
    control.info = &f.info;
    control.stat = &f.stat;
    control.to_step = &f.to_step;
    control.to_control = &f.to_control;
    control.step_fd = f.step_fd;
    assert_int_equal(ll_control_create(&f.control, &control), 0);
    f.faults = (struct ll_reader_faults){on_read, NULL};
    const struct ll_reload_options reload = {
        .setup = &f.setup,
        .control = f.control,
        .info = info,
        .stats = &((struct ll_stat_region *)f.stat.base)->v,
        .faults = &f.faults,
    };
    assert_int_equal(ll_reload_open(&f.reload, &reload), 0);
    f.scenario = scenario;
    f.tick_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    const struct itimerspec each = {{0, 1000000}, {0, 1000000}};
    assert_int_equal(timerfd_settime(f.tick_fd, 0, &each, NULL), 0);
    assert_int_equal(ll_control_watch(f.control, f.tick_fd, EPOLLIN, on_tick, NULL), 0);
}

static void run_and_close(void)
{
    assert_int_equal(ll_control_run(f.control), 0);
    assert_true(ll_reload_close(f.reload));
    ll_control_destroy(f.control);
    ll_setup_close(&f.setup);
    ll_region_free(&f.info);
    ll_region_free(&f.stat);
    close(f.tick_fd);
    close(f.step_fd);
}

/* ---- there and back ---------------------------------------------------------------------------*/

static void go_there_and_back(void)
{
    const struct ll_reload_report now = report();

    if (f.stage > 0 && now.state != LL_RELOAD_IDLE) {
        struct ll_reload_order again = {.model = "x", .wait_s = UINT32_MAX};
        assert_int_equal(ll_reload_begin(f.reload, &again), LL_E_BUSY); /* E1 */
        return;
    }
    if (f.stage == 0)
        of_a = ask(0);
    assert_int_equal(now.code, 0);
    assert_int_equal(now.set, f.stage % 2);
    assert_int_equal(now.id, f.stage);
    assert_int_equal(now.bytes_done, now.bytes_total);
    if (f.stage == 1)
        of_b = ask(1);
    expect_serving(f.stage % 2 == 0 ? &of_a : &of_b, "there and back");
    if (f.stage == 4)
        f.is_over = true;
    else
        assert_int_equal(begin(&f.maker[(f.stage + 1) % 2]), 0);
    f.stage++;
}

static void it_goes_there_and_back(void **state)
{
    (void)state;
    open_fixture("--reserve-weights", go_there_and_back);
    run_and_close();
    assert_true(memcmp(&of_a, &of_b, sizeof(of_a)) != 0);
}

/* ---- a fault at every read --------------------------------------------------------------------*/

static const struct {
    enum fault fault;
    const char *words;
} faults[] = {
    {FAULT_EIO, "Input/output error"},   {FAULT_END, "ends"},
    {FAULT_DENIED, "Permission denied"}, {FAULT_TOUCHED, "changed"},
    {FAULT_CUT, "model-0000"},
};

static void prepare(void)
{
    f.fault = faults[f.stage / 2 / READS % LL_COUNT(faults)].fault;
    f.at = (int)(f.stage / 2 % READS);
    maker_free(&f.maker[1]); /* what the last fault has left of it */
    make_model(&f.maker[1], 2);
    snprintf(f.spoilt, sizeof(f.spoilt), "%s", maker_path(&f.maker[1], maker_shard_name(f.at)));
}

/* Even stages: a reload that must fail; odd ones: one that works, forth or back. */
static void fail_everywhere(void)
{
    const uint32_t n_stages = 2 * READS * LL_COUNT(faults);
    const struct ll_reload_report now = report();

    if (now.state != LL_RELOAD_IDLE)
        return;
    if (f.stage > 0) {
        uint32_t last = f.stage - 1;
        if (last % 2 == 0) {
            if (now.code >= 0 || strstr(now.error, "model-0000") == NULL ||
                strstr(now.error, faults[last / 2 / READS].words) == NULL)
                fail_msg("fault %u at read %d: code %d, \"%s\"", last / 2 / READS, f.at, now.code,
                         now.error);
            assert_true(ll_now_ns() - f.since_ns < 20 * LL_NS_PER_S);
        } else {
            assert_int_equal(now.code, 0);
        }
        uint32_t n_good = f.stage / 2;
        assert_int_equal(now.set, n_good % 2);
        expect_serving(n_good % 2 == 0 ? &of_a : &of_b, "beside faults");
    }
    if (f.stage == n_stages) {
        struct ll_stats *stats = &((struct ll_stat_region *)f.stat.base)->v;
        assert_int_equal(ll_stat_get(&stats->reloads), n_stages / 2);
        assert_int_equal(ll_stat_get(&stats->reloads_failed), n_stages / 2);
        f.is_over = true;
        return;
    }
    if (f.stage % 2 == 0) {
        prepare();
        assert_int_equal(begin(&f.maker[1]), 0);
    } else {
        f.fault = FAULT_NONE;
        if (f.stage / 2 % 2 == 0) {
            maker_free(&f.maker[1]);
            make_model(&f.maker[1], 2);
        }
        assert_int_equal(begin(&f.maker[f.stage / 2 % 2 == 0 ? 1 : 0]), 0);
    }
    f.stage++;
}

static void a_fault_at_any_read_leaves_what_serves(void **state)
{
    (void)state;
    open_fixture("--reserve-weights", fail_everywhere);
    run_and_close();
    assert_true(f.n_steps > 30); /* beside all that */
}

/* ---- the switch that is not made --------------------------------------------------------------*/

static void be_refused(void)
{
    static const int codes[] = {LL_E_TIMEOUT, LL_E_DRAINING, 0};
    const struct ll_reload_report now = report();

    if (now.state != LL_RELOAD_IDLE)
        return;
    if (f.stage > 0) {
        assert_int_equal(now.code, codes[f.stage - 1]);
        if (f.stage == 1) {
            assert_int_equal(now.n_left, 7);
            assert_non_null(strstr(now.error, "7 requests that began before still ran after 3 s"));
        }
        expect_serving(now.code == 0 ? &of_b : &of_a, "after a refusal");
    }
    f.is_over = f.stage == LL_COUNT(codes);
    if (f.is_over)
        return;
    f.answers_switch = codes[f.stage++];
    assert_int_equal(begin(&f.maker[1]), 0);
}

static void a_switch_that_is_not_made_is_told(void **state)
{
    (void)state;
    open_fixture("--reserve-weights", be_refused);
    run_and_close();
}

/* ---- stops ------------------------------------------------------------------------------------*/

static void stop_while_reading(void)
{
    if (f.stage++ == 0) {
        f.fault = FAULT_SLOW;
        atomic_store(&f.is_held, true);
        assert_int_equal(begin(&f.maker[1]), 0);
    } else if (report().state == LL_RELOAD_READING && atomic_load(&f.n_reads) > 0) {
        expect_serving(&of_a, "while a read does not end");
        f.is_over = true;
    }
}

static void *let_go(void *context)
{
    (void)context;
    usleep(200000);
    atomic_store(&f.is_held, false);
    return NULL;
}

static void a_stop_cuts_reading_short(void **state)
{
    pthread_t thread;

    (void)state;
    open_fixture("--reserve-weights", stop_while_reading);
    assert_int_equal(ll_control_run(f.control), 0);
    pthread_create(&thread, NULL, let_go, NULL);
    assert_true(ll_reload_close(f.reload));
    assert_true(atomic_load(&f.n_reads) < READS + 2); /* not to the end */
    pthread_join(thread, NULL);
    ll_control_destroy(f.control);
    ll_setup_close(&f.setup);
}

static void stop_while_waiting(void)
{
    if (f.stage++ == 0) {
        f.answers_switch = 1;
        assert_int_equal(begin(&f.maker[1]), 0);
    } else if (report().state == LL_RELOAD_WAITING) {
        f.is_over = true;
    }
}

static void a_stop_while_it_waits_too(void **state)
{
    (void)state;
    open_fixture("--reserve-weights", stop_while_waiting);
    run_and_close();
}

/* ---- refusals ---------------------------------------------------------------------------------*/

static void be_unreserved(void)
{
    assert_int_equal(begin(&f.maker[1]), LL_E_UNSUPPORTED);
    assert_non_null(strstr(ll_err_text(), "--reserve-weights"));
    f.is_over = true;
}

static void without_a_second_set_it_is_refused(void **state)
{
    (void)state;
    open_fixture(NULL, be_unreserved);
    run_and_close();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_goes_there_and_back),
        cmocka_unit_test(a_fault_at_any_read_leaves_what_serves),
        cmocka_unit_test(a_switch_that_is_not_made_is_told),
        cmocka_unit_test(a_stop_cuts_reading_short),
        cmocka_unit_test(a_stop_while_it_waits_too),
        cmocka_unit_test(without_a_second_set_it_is_refused),
    };

    ll_log_set_level(LL_LOG_ERROR);
    int rc = cmocka_run_group_tests_name("runtime/reload", tests, NULL, NULL);
    maker_free(&f.maker[0]);
    maker_free(&f.maker[1]);
    return rc;
}
