/* SPDX-License-Identifier: Apache-2.0 */
/* tests/e2e/test_liveness.c - llringd killed under load, again and again; stopped and continued.
 * The fake device answers the same tokens to the same request in every life. */
#include "tests/harness.h"

#include "base/bits.h"
#include "base/clock.h"
#include "ll/client.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define N_REQUESTS 24
#define TOKENS     64

static struct ll_test_runtime runtime;
static uint32_t wanted[N_REQUESTS][TOKENS];
static uint64_t fastest_ns = UINT64_MAX; /* from a kill to the first word of it, over all kills */

static void start(void)
{
    const char *model = ll_test_source("tools/demo-model");
    const char *arguments[] = {model, "--device", "fake", "--log-level", "error", NULL};

    assert_int_equal(ll_test_runtime_start(&runtime, arguments), 0);
}

static struct ll_client *open_client(void)
{
    struct ll_client_options options = {.struct_bytes = sizeof(options), .socket = runtime.socket};
    struct ll_client *client = NULL;

    if (ll_client_open(&client, &options) != 0)
        fail_msg("open: %s", ll_error_text());
    return client;
}

static void submit(struct ll_client *client, uint32_t k)
{
    uint32_t prompt[100];
    struct ll_request request = LL_REQUEST_INIT;

    for (uint32_t i = 0; i < 100; i++)
        prompt[i] = (k * 131 + i * 7) % 200;
    request.prompt = prompt;
    request.n_prompt = 20 + k;
    request.max_tokens = TOKENS;
    request.flags = LL_REQUEST_IGNORE_EOS;
    request.tag = k;
    assert_int_equal(ll_client_submit(client, &request, NULL), 0);
}

/* Runs all requests once; kills the runtime after n_outputs outputs (0: never). Each request ends
 * exactly once; its tokens are the wanted ones as far as they came. Returns the number finished. */
static uint32_t run(struct ll_client *client, uint32_t n_outputs, bool is_first)
{
    struct ll_output out[16];
    uint32_t n_next[N_REQUESTS] = {0}, n_ended[N_REQUESTS] = {0};
    uint32_t n_seen = 0, n_finished = 0;
    uint64_t kill_ns = 0;
    int rc;

    for (uint32_t k = 0; k < N_REQUESTS; k++)
        submit(client, k);
    while (ll_client_n_open(client) > 0) {
        rc = ll_client_wait(client, out, 16, 10 * (int64_t)LL_NS_PER_S);
        if (rc <= 0)
            fail_msg("wait: %d %s", rc, ll_error_text());
        for (int i = 0; i < rc; i++) {
            uint64_t k = out[i].tag;
            assert_true(k < N_REQUESTS);
            n_seen++;
            if (out[i].type == LL_OUTPUT_TOKEN) {
                assert_int_equal(n_ended[k], 0);
                assert_int_equal(out[i].index, n_next[k]);
                if (is_first)
                    wanted[k][n_next[k]] = out[i].u.token.id;
                assert_int_equal(out[i].u.token.id, wanted[k][n_next[k]++]);
                continue;
            }
            assert_int_equal(++n_ended[k], 1);
            if (out[i].type == LL_OUTPUT_FINISH) {
                assert_int_equal(n_next[k], TOKENS);
                n_finished++;
            } else {
                assert_int_equal(out[i].u.error.code, LL_E_RUNTIME_LOST);
                assert_true(kill_ns != 0);
                fastest_ns = ll_min_u64(fastest_ns, ll_now_ns() - kill_ns);
            }
        }
        if (n_outputs != 0 && n_seen >= n_outputs && kill_ns == 0) {
            kill_ns = ll_now_ns();
            kill(runtime.pid, SIGKILL);
        }
    }
    for (uint32_t k = 0; k < N_REQUESTS; k++)
        assert_int_equal(n_ended[k], 1);
    return n_finished;
}

static void llringd_killed_under_load_tells_every_request(void **state)
{
    (void)state;
    uint64_t rng = ll_test_seed(), end_ns = ll_now_ns() + (uint64_t)(ll_test_seconds(8) * 1e9);
    struct ll_output out;
    uint32_t n_kills = 0, n_lost = 0;

    start();
    struct ll_client *client = open_client();
    assert_int_equal(run(client, 0, true), N_REQUESTS);
    ll_client_close(client);
    for (; n_kills < 24 || ll_now_ns() < end_ns; n_kills++) {
        rng = rng * 6364136223846793005ull + 1442695040888963407ull;
        client = open_client();
        n_lost += N_REQUESTS - run(client, 1 + (uint32_t)(rng >> 40) % 1200, false);
        assert_int_equal(ll_client_wait(client, &out, 1, 2 * (int64_t)LL_NS_PER_S),
                         LL_E_RUNTIME_LOST);
        ll_client_close(client);
        ll_test_runtime_stop(&runtime); /* reaps it and removes the directory */
        start();
    }
    printf("%u kills, %u of %u requests lost\n", n_kills, n_lost, n_kills * N_REQUESTS);
    assert_true(n_lost > n_kills);
    assert_true(fastest_ns < 100 * LL_NS_PER_MS); /* not each: the machine may be loaded */
    assert_int_equal(ll_test_runtime_stop(&runtime), 0);
}

static void llringd_stopped_is_said_to_hang_and_goes_on(void **state)
{
    (void)state;
    struct ll_output out;

    start();
    struct ll_client *client = open_client();
    int status;
    kill(runtime.pid, SIGSTOP); /* it takes its time: the request could be answered before */
    assert_int_equal(waitpid(runtime.pid, &status, WUNTRACED), runtime.pid);
    assert_true(WIFSTOPPED(status));
    uint64_t start_ns = ll_now_ns();
    submit(client, 1); /* the silence is too short yet */
    int rc = ll_client_wait(client, &out, 1, -1);
    assert_int_equal(rc, LL_E_TIMEOUT);
    assert_in_range(ll_now_ns() - start_ns, 4500 * LL_NS_PER_MS, 20 * LL_NS_PER_S);
    kill(runtime.pid, SIGCONT);
    do {
        rc = ll_client_wait(client, &out, 1, 10 * (int64_t)LL_NS_PER_S);
        assert_int_equal(rc, 1);
    } while (out.type == LL_OUTPUT_TOKEN);
    assert_int_equal(out.type, LL_OUTPUT_FINISH);
    assert_int_equal(out.u.finish.n_out, TOKENS);
    ll_client_close(client);
    assert_int_equal(ll_test_runtime_stop(&runtime), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llringd_killed_under_load_tells_every_request),
        cmocka_unit_test(llringd_stopped_is_said_to_hang_and_goes_on),
    };
    return cmocka_run_group_tests_name("e2e/liveness", tests, NULL, NULL);
}
