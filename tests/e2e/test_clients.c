/* SPDX-License-Identifier: Apache-2.0 */
/* tests/e2e/test_clients.c - many client processes on the demo model at once: each gets what it
 * would get alone, also while others die, stall, cancel and fork; then the ledger adds up. */
#include "tests/harness.h"
#include "base/bits.h"
#include "base/clock.h"
#include "ll/client.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef ON_CUDA /* test_clients_cuda.c */
#define N_CLIENTS  64
#define TOKENS_MAX 48
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define N_CLIENTS  16 /* ten times slower, so less of the same */
#define TOKENS_MAX 16
#else
#define N_CLIENTS  32
#define TOKENS_MAX 48
#endif
#define PROMPT_MAX 400 /* golden cases with longer prompts are left out: time, not principle */

struct result {
    int code; /* 0, or what went wrong */
    uint32_t reason, n;
    uint32_t id[TOKENS_MAX];
    float logprob[TOKENS_MAX];
};

/* Shared by all processes of a test. */
struct board {
    _Atomic uint32_t n_ready;
    _Atomic uint32_t go;
    struct result result[N_CLIENTS];
};

static struct ll_test_runtime runtime;
static uint32_t prompt[N_CLIENTS][PROMPT_MAX], n_prompt[N_CLIENTS];
static struct result alone[N_CLIENTS];

static struct ll_client *open_client(void)
{
    struct ll_client_options options = {.struct_bytes = sizeof(options), .socket = runtime.socket};
    struct ll_client *client = NULL;
    int rc;

    /* So many at once: the runtime tells some to come again. */
    for (int i = 0; (rc = ll_client_open(&client, &options)) == LL_E_QUOTA && i < 100; i++)
        usleep(50000);
    if (rc < 0)
        fprintf(stderr, "open: %s\n", ll_error_text());
    return client;
}

/* Request k: every second one samples from its own seed, the others are greedy. */
static struct ll_request make_request(uint32_t k)
{
    struct ll_request request = LL_REQUEST_INIT;

    request.prompt = prompt[k];
    request.n_prompt = n_prompt[k];
    request.max_tokens = TOKENS_MAX;
    if (k % 2 == 1) {
        request.temperature = 0.9f;
        request.top_p = 0.95f;
        request.seed = 1000 + k;
        request.flags = LL_REQUEST_IGNORE_EOS;
    }
    return request;
}

static void collect(struct ll_client *client, uint64_t id, struct result *out)
{
    struct ll_output output[32];

    for (;;) {
        int n = ll_client_wait(client, output, 32, 20 * (int64_t)LL_NS_PER_S);
        if (n <= 0) {
            out->code = n < 0 ? n : -ETIMEDOUT;
            return;
        }
        for (int i = 0; i < n; i++) {
            if (output[i].id != id)
                continue;
            if (output[i].type == LL_OUTPUT_TOKEN && out->n < TOKENS_MAX) {
                out->id[out->n] = output[i].u.token.id;
                out->logprob[out->n++] = output[i].u.token.logprob;
            } else if (output[i].type == LL_OUTPUT_FINISH) {
                out->reason = output[i].u.finish.reason;
                return;
            } else if (output[i].type == LL_OUTPUT_ERROR) {
                out->code = output[i].u.error.code;
                return;
            }
        }
    }
}

static void run_request(struct ll_client *client, uint32_t k, struct result *out)
{
    struct ll_request request = make_request(k);
    uint64_t id;

    *out = (struct result){0};
    out->code = ll_client_submit(client, &request, &id);
    if (out->code == 0)
        collect(client, id, out);
}

static void check_equal(const struct result *a, const struct result *b, uint32_t k)
{
    if (a->code != 0 || b->code != 0)
        fail_msg("request %u: %s alone, %s together", k, ll_error_name(a->code),
                 ll_error_name(b->code));
    assert_int_equal(a->reason, b->reason);
    assert_int_equal(a->n, b->n);
    for (uint32_t i = 0; i < a->n; i++) {
        if (a->id[i] != b->id[i])
            fail_msg("request %u, token %u: %u alone, %u together", k, i, a->id[i], b->id[i]);
        assert_memory_equal(&a->logprob[i], &b->logprob[i], sizeof(float));
    }
}

static uint64_t stat_of(struct ll_client *client, const char *name)
{
    struct ll_stat stats[256];
    int n = ll_client_stats(client, stats, 256);

    for (int i = 0; i < n && i < 256; i++)
        if (strcmp(stats[i].name, name) == 0)
            return stats[i].value;
    fail_msg("no statistic \"%s\"", name);
    return 0;
}

/* shm/stat.h: at idle everything that came in has gone out, and nothing is held. */
static void check_ledger(struct ll_client *client)
{
    static const char *const ends[] = {"requests_finished", "requests_cancelled",
                                       "requests_expired",  "requests_stalled",
                                       "requests_failed",   "requests_lost"};
    uint64_t n_ended, deadline_ns = ll_now_ns() + 10 * LL_NS_PER_S;

    do { /* figures may be a moment old */
        usleep(10000);
        n_ended = 0;
        for (size_t i = 0; i < LL_COUNT(ends); i++)
            n_ended += stat_of(client, ends[i]);
    } while ((n_ended != stat_of(client, "requests_accepted") ||
              stat_of(client, "credits_reserved") != 0) &&
             ll_now_ns() < deadline_ns);
    assert_int_equal(n_ended, stat_of(client, "requests_accepted"));
    assert_int_equal(stat_of(client, "requests_submitted"),
                     stat_of(client, "requests_accepted") + stat_of(client, "requests_rejected"));
    assert_int_equal(stat_of(client, "pages_free"), stat_of(client, "pages_total"));
    assert_int_equal(stat_of(client, "sequences_free"), stat_of(client, "sequences_total"));
    assert_int_equal(stat_of(client, "credits_reserved"), 0);
#ifndef ON_CUDA /* whose driver allocates as it likes */
    assert_int_equal(stat_of(client, "allocations_after_ready"), 0);
#endif
}

/* ---- client processes
 * --------------------------------------------------------------------------*/

static struct board *new_board(void)
{
    void *memory =
        mmap(NULL, sizeof(struct board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    assert_ptr_not_equal(memory, MAP_FAILED);
    return memory;
}

/* Ready, and off with everybody else. */
static void wait_for_go(struct board *board)
{
    /* Sequentially consistent throughout: a barrier in a test, and nobody counts its time. */
    atomic_fetch_add(&board->n_ready, 1);
    while (atomic_load(&board->go) == 0)
        usleep(500);
}

static void start_all(struct board *board, uint32_t n)
{
    while (atomic_load(&board->n_ready) < n)
        usleep(500);
    atomic_store(&board->go, 1);
}

static pid_t start_client(struct board *board, uint32_t k)
{
    pid_t pid = fork();

    if (pid != 0)
        return pid;
    struct ll_client *client = open_client();
    wait_for_go(board);
    if (client == NULL)
        _exit(1);
    run_request(client, k, &board->result[k]);
    ll_client_close(client);
    _exit(0);
}

/* A request that would run for long; how it goes on is the process's fault. */
static uint64_t start_long(struct ll_client *client, uint32_t max_tokens)
{
    struct ll_request request = make_request(1);
    uint64_t id = 0;

    request.max_tokens = max_tokens;
    if (client == NULL || ll_client_submit(client, &request, &id) < 0)
        _exit(1);
    return id;
}

static pid_t start_one_that_dies(struct board *board)
{
    pid_t pid = fork();

    if (pid != 0)
        return pid;
    struct ll_client *client = open_client();
    wait_for_go(board);
    start_long(client, 4000);
    struct ll_output output[4];
    ll_client_wait(client, output, 4, -1);
    kill(getpid(), SIGKILL);
    _exit(1);
}

/* Reads nothing, until the runtime has ended its request. */
static pid_t start_one_that_stalls(struct board *board)
{
    pid_t pid = fork();

    if (pid != 0)
        return pid;
    struct ll_client *client = open_client();
    wait_for_go(board);
    start_long(client, 600); /* more than the window of 256 events */
    uint64_t deadline_ns = ll_now_ns() + 120 * LL_NS_PER_S;
    while (stat_of(client, "requests_stalled") == 0) {
        if (ll_now_ns() > deadline_ns)
            _exit(2);
        usleep(10000);
    }
    struct ll_output output[32];
    int n;
    while ((n = ll_client_wait(client, output, 32, 5 * (int64_t)LL_NS_PER_S)) > 0)
        if (output[n - 1].type == LL_OUTPUT_ERROR)
            break;
    bool is_right = n > 0 && output[n - 1].u.error.code == LL_E_STALLED;
    ll_client_close(client);
    _exit(is_right ? 0 : 1);
}

static pid_t start_one_that_cancels(struct board *board)
{
    pid_t pid = fork();

    if (pid != 0)
        return pid;
    struct ll_client *client = open_client();
    wait_for_go(board);
    uint64_t id = start_long(client, 4000);
    struct ll_output output[32];
    struct result result = {0};
    if (ll_client_wait(client, output, 32, -1) <= 0 || ll_client_cancel(client, id) < 0)
        _exit(1);
    collect(client, id, &result);
    ll_client_close(client);
    _exit(result.code == 0 && result.reason == LL_FINISH_CANCELLED ? 0 : 1);
}

/* The child may do nothing with the handle; the parent's request goes on. */
static pid_t start_one_that_forks(struct board *board, uint32_t k)
{
    pid_t pid = fork();

    if (pid != 0)
        return pid;
    struct ll_client *client = open_client();
    wait_for_go(board);
    struct ll_request request = make_request(k);
    uint64_t id;
    int status;
    if (client == NULL || ll_client_submit(client, &request, &id) < 0)
        _exit(1);
    pid_t child = fork();
    if (child == 0) {
        struct ll_output output[4];
        bool is_refused = ll_client_submit(client, &request, NULL) == LL_E_FORKED &&
                          ll_client_poll(client, output, 4) == LL_E_FORKED &&
                          ll_client_cancel(client, id) == LL_E_FORKED;
        ll_client_close(client);
        _exit(is_refused ? 0 : 1);
    }
    collect(client, id, &board->result[k]);
    ll_client_close(client);
    _exit(waitpid(child, &status, 0) == child && status == 0 ? 0 : 1);
}

static int status_of(pid_t pid)
{
    int status = -1;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

/* ---- tests
 * ----------------------------------------------------------------------------------------*/

static void together_each_gets_what_it_gets_alone(void **state)
{
    struct board *board = new_board();
    pid_t pid[N_CLIENTS];

    (void)state;
    for (uint32_t k = 0; k < N_CLIENTS; k++)
        pid[k] = start_client(board, k);
    start_all(board, N_CLIENTS);
    for (uint32_t k = 0; k < N_CLIENTS; k++)
        assert_int_equal(status_of(pid[k]), 0);
    for (uint32_t k = 0; k < N_CLIENTS; k++)
        check_equal(&alone[k], &board->result[k], k);
    munmap(board, sizeof(*board));
}

static void clients_that_misbehave_disturb_nobody(void **state)
{
    enum { N_GOOD = 12, FORKER = N_GOOD };
    struct board *board = new_board();
    pid_t good[N_GOOD], dies[2], stalls, cancels, forks;

    (void)state;
    for (uint32_t k = 0; k < N_GOOD; k++)
        good[k] = start_client(board, k);
    dies[0] = start_one_that_dies(board);
    dies[1] = start_one_that_dies(board);
    stalls = start_one_that_stalls(board);
    cancels = start_one_that_cancels(board);
    forks = start_one_that_forks(board, FORKER);
    start_all(board, N_GOOD + 5);

    for (uint32_t k = 0; k < N_GOOD; k++)
        assert_int_equal(status_of(good[k]), 0);
    assert_int_equal(status_of(dies[0]), SIGKILL);
    assert_int_equal(status_of(dies[1]), SIGKILL);
    assert_int_equal(status_of(cancels), 0);
    assert_int_equal(status_of(forks), 0);
    assert_int_equal(status_of(stalls), 0);
    for (uint32_t k = 0; k < N_GOOD; k++)
        check_equal(&alone[k], &board->result[k], k);
    check_equal(&alone[FORKER], &board->result[FORKER], FORKER);

    struct ll_client *client = open_client();
    assert_non_null(client);
    check_ledger(client);
    assert_int_equal(stat_of(client, "requests_lost"), 2);
    assert_int_equal(stat_of(client, "requests_stalled"), 1);
    assert_int_equal(stat_of(client, "requests_cancelled"), 1);
    assert_int_equal(stat_of(client, "clients_died"), 2);
    ll_client_close(client);
    munmap(board, sizeof(*board));
}

/* ---- set-up
 * -----------------------------------------------------------------------------------------*/

/* One for each client; more clients than prompts go round once more, with seeds of their own. */
static uint32_t read_prompts(void)
{
    json_error_t error;
    json_t *golden = json_load_file(ll_test_source("tests/data/golden.json"), 0, &error);
    const size_t n_cases = json_array_size(golden);
    uint32_t n = 0;

    for (size_t c = 0; c < 2 * n_cases && n < N_CLIENTS; c++) {
        const json_t *ids = json_object_get(json_array_get(golden, c % n_cases), "prompt_ids");
        if (json_array_size(ids) > PROMPT_MAX)
            continue;
        n_prompt[n] = (uint32_t)json_array_size(ids);
        for (uint32_t i = 0; i < n_prompt[n]; i++)
            prompt[n][i] = (uint32_t)json_integer_value(json_array_get(ids, i));
        n++;
    }
    json_decref(golden);
    return n;
}

static int setup(void **state)
{
    static char model[512];
#ifdef ON_CUDA
    /* Bit for bit the same in any company. */
    const char *arguments[] = {model,  "--stall-timeout", "1", "--log-level", "warn", "--device",
                               "cuda", "--deterministic", NULL};
#else
    const char *arguments[] = {model, "--stall-timeout", "1", "--log-level", "warn", NULL};
#endif

    (void)state;
    if (read_prompts() != N_CLIENTS)
        return -1;
    snprintf(model, sizeof(model), "%s", ll_test_source("tools/demo-model"));
    if (ll_test_runtime_start(&runtime, arguments) < 0)
        return -1;
    struct ll_client *client = open_client();
    for (uint32_t k = 0; k < N_CLIENTS && client != NULL; k++)
        run_request(client, k, &alone[k]);
    ll_client_close(client);
    return client != NULL ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return ll_test_runtime_stop(&runtime);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(together_each_gets_what_it_gets_alone),
        cmocka_unit_test(clients_that_misbehave_disturb_nobody),
    };

#ifdef ON_CUDA
    if (access("/dev/nvidiactl", F_OK) != 0 || access(LL_BUILD_DIR "/llring-cuda.so", F_OK) != 0) {
        printf("skipped: no GPU or no CUDA module\n");
        return LL_SKIPPED;
    }
#endif
    return cmocka_run_group_tests_name("e2e/clients", tests, setup, teardown);
}
