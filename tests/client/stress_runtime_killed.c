/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/stress_runtime_killed.c - T15: kill -9 of the runtime under load, again and again;
 * three client processes reconnect and check that each request ends exactly once, with the right
 * tokens before. */
#include "tests/client/support_echo.h"

#include "base/clock.h"
#include "base/rng.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define N_CLIENTS 3

struct tally {
    _Atomic bool is_over;
    _Atomic uint64_t n_finished, n_lost, n_reopened, n_wrong;
};

static void wrong(struct tally *tally, const char *what)
{
    fprintf(stderr, "client %d: %s: %s\n", getpid(), what, ll_error_text());
    atomic_fetch_add(&tally->n_wrong, 1);
}

/* One attachment until the runtime dies under it. */
static void live(struct tally *tally, struct ll_client *client, uint64_t *rng)
{
    uint32_t seed[16], n_next[16] = {0}, n_ended[16] = {0};
    bool is_open[16] = {false};
    struct ll_output out[32];
    int rc = 0;

    while (!(atomic_load(&tally->is_over) && ll_client_n_open(client) == 0)) {
        for (uint32_t i = 0; i < 16 && rc >= 0 && !atomic_load(&tally->is_over); i++) {
            if (is_open[i])
                continue;
            seed[i] = (uint32_t)ll_splitmix64(rng) % ECHO_N_VOCAB;
            struct ll_request request =
                echo_request(&seed[i], 1 + (uint32_t)ll_splitmix64(rng) % 100);
            request.tag = i;
            rc = ll_client_submit(client, &request, NULL);
            if (rc == LL_E_AGAIN)
                rc = 0;
            else if (rc == 0)
                is_open[i] = true, n_next[i] = n_ended[i] = 0;
        }
        rc = ll_client_wait(client, out, 32, (int64_t)LL_NS_PER_S);
        if (rc < 0)
            break;
        for (int i = 0; i < rc; i++) {
            uint64_t tag = out[i].tag;
            if (tag >= 16 || !is_open[tag]) {
                wrong(tally, "an output of a request that is not open");
            } else if (out[i].type == LL_OUTPUT_TOKEN) {
                if (out[i].u.token.id != (seed[tag] + n_next[tag]++) % ECHO_N_VOCAB)
                    wrong(tally, "a wrong token");
            } else {
                is_open[tag] = false;
                atomic_fetch_add(
                    out[i].type == LL_OUTPUT_FINISH ? &tally->n_finished : &tally->n_lost, 1);
                if (out[i].type == LL_OUTPUT_ERROR && out[i].u.error.code != LL_E_RUNTIME_LOST)
                    wrong(tally, "another error than RUNTIME_LOST");
            }
        }
    }
    if (rc < 0 && rc != LL_E_RUNTIME_LOST)
        wrong(tally, "another result than RUNTIME_LOST");
    for (int i = 0; i < 16; i++)
        if (is_open[i])
            wrong(tally, "a request that never ended");
    if (ll_client_n_open(client) != 0)
        wrong(tally, "requests still counted as open");
}

static void run_client(const struct echo *echo, struct tally *tally, uint64_t rng)
{
    struct ll_client_options options = {
        .struct_bytes = sizeof(options), .socket = echo->socket, .n_slots = 16};
    struct ll_client *client;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (!atomic_load(&tally->is_over)) {
        if (ll_client_open(&client, &options) != 0) {
            usleep(500); /* between two lives of the runtime */
            continue;
        }
        atomic_fetch_add(&tally->n_reopened, 1);
        live(tally, client, &rng);
        ll_client_close(client);
    }
    _exit(0);
}

static void a_runtime_killed_under_load_loses_nothing_silently(void **state)
{
    (void)state;
    struct echo echo;
    struct tally *tally =
        mmap(NULL, sizeof(*tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t rng = ll_test_seed(), n_kills = 0;
    pid_t pid[N_CLIENTS];

    echo_init(&echo);
    echo_start_process(&echo);
    for (int i = 0; i < N_CLIENTS; i++) {
        pid[i] = fork();
        if (pid[i] == 0)
            run_client(&echo, tally, rng + (uint64_t)i);
    }
    uint64_t end_ns = ll_now_ns() + (uint64_t)(ll_test_seconds(6) * 1e9);
    while (ll_now_ns() < end_ns || n_kills < 100) { /* T15 asks for 100, however long they take */
        usleep(20000 + (useconds_t)(ll_splitmix64(&rng) % 100000));
        echo_kill(&echo);
        n_kills++;
        echo_restart_process(&echo);
    }
    atomic_store(&tally->is_over, true);
    for (int i = 0; i < N_CLIENTS; i++) {
        int status;
        assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    printf("%llu kills, %llu finished, %llu lost, %llu attached\n", (unsigned long long)n_kills,
           (unsigned long long)tally->n_finished, (unsigned long long)tally->n_lost,
           (unsigned long long)tally->n_reopened);
    assert_int_equal(echo_stop(&echo), 0);
    echo_free(&echo);
    assert_int_equal(tally->n_wrong, 0);
    assert_true(tally->n_lost > 0 && tally->n_finished > 0);
    assert_true(tally->n_reopened > n_kills);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_runtime_killed_under_load_loses_nothing_silently),
    };
    return cmocka_run_group_tests_name("client/runtime_killed", tests, NULL, NULL);
}
