/* SPDX-License-Identifier: Apache-2.0 */
/* tests/e2e/test_same_outputs.c - what a request answers does not depend on who else is there:
 * alone, among others, from the prefix cache, preempted and computed again, preempted and copied to
 * host pages and back. Greedy and seeded, on the demo model; ids and logprobs, bit for bit. Each
 * test also proves that what it is about has happened. On a GPU: test_same_outputs_cuda.c. */
#include "tests/harness.h"
#include "base/clock.h"
#include "base/rng.h"
#include "ll/client.h"
#include "runtime/scheduler.h"

#ifdef ON_CUDA /* bits depend on the rows that a position is computed with: --deterministic */
#include <unistd.h>
#define CELL    LL_SCHED_GRID_MAX
#define DEVICE  "cuda", "--deterministic"
#define N_FIRST 4u
#else
#define CELL    64u
#define DEVICE  "cpu"
#define N_FIRST 3u
#endif
#define N_REQUESTS 12u
#define PROMPT_MAX 400u
#define TOKENS_MAX 150u

/* The longest needs 9 pages of 64 tokens, all of them together 79. */
#define FEW_PAGES "24"

struct answer {
    uint32_t n, n_cached;
    bool is_done;
    uint32_t id[TOKENS_MAX];
    float logprob[TOKENS_MAX];
};

static uint32_t prompt[N_REQUESTS][PROMPT_MAX];
static struct answer alone[N_REQUESTS], among[N_REQUESTS];
static struct ll_test_runtime runtime;
static struct ll_client *client;

static void start(const char *const *options)
{
    struct ll_client_options open = {.struct_bytes = sizeof(open)};
    const char *arguments[16] = {ll_test_source("tools/demo-model"), "--device", DEVICE};
    uint32_t n = N_FIRST;

    while (*options != NULL)
        arguments[n++] = *options++;
    assert_int_equal(ll_test_runtime_start(&runtime, arguments), 0);
    open.socket = runtime.socket;
    assert_int_equal(ll_client_open(&client, &open), 0);
}

static void stop(void)
{
    ll_client_close(client);
    assert_int_equal(ll_test_runtime_stop(&runtime), 0);
}

static uint64_t stat_of(const char *name)
{
    struct ll_stat stats[256];
    int n = ll_client_stats(client, stats, 256);

    for (int i = 0; i < n && i < 256; i++)
        if (strcmp(stats[i].name, name) == 0)
            return stats[i].value;
    fail_msg("no statistic \"%s\"", name);
    return 0;
}

/* Every second one is greedy, the others have seeds of their own. */
static void submit(uint32_t i, uint32_t flags)
{
    struct ll_request request = LL_REQUEST_INIT;

    request.tag = i;
    request.prompt = prompt[i];
    request.n_prompt = PROMPT_MAX - 29 * i;
    request.max_tokens = TOKENS_MAX;
    request.flags = LL_REQUEST_IGNORE_EOS | flags;
    if (i % 2 == 1) {
        request.temperature = 0.7f + 0.1f * (float)(i % 4);
        request.top_p = 0.95f;
        request.seed = 1000 + i;
    }
    request.frequency_penalty = 0.3f; /* counts must survive a preemption */
    if (ll_client_submit(client, &request, NULL) < 0)
        fail_msg("%s", ll_error_text());
}

static void collect(struct answer *answer, uint32_t n_open)
{
    struct ll_output out[64];

    while (n_open > 0) {
        int n = ll_client_wait(client, out, 64, 60 * (int64_t)LL_NS_PER_S);
        if (n <= 0)
            fail_msg("no output: %s", ll_error_text());
        for (int i = 0; i < n; i++) {
            struct answer *a = &answer[out[i].tag];
            assert_false(a->is_done);
            if (out[i].type == LL_OUTPUT_TOKEN) {
                assert_int_equal(out[i].index, a->n);
                assert_true(a->n < TOKENS_MAX);
                a->id[a->n] = out[i].u.token.id;
                a->logprob[a->n++] = out[i].u.token.logprob;
                continue;
            }
            if (out[i].type != LL_OUTPUT_FINISH)
                fail_msg("request %u: %s", (unsigned)out[i].tag, out[i].u.error.text);
            a->is_done = true;
            a->n_cached = out[i].u.finish.n_cached;
            n_open--;
        }
    }
}

static void run_all(struct answer *answer, uint32_t flags)
{
    memset(answer, 0, N_REQUESTS * sizeof(*answer));
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        submit(i, flags);
    collect(answer, N_REQUESTS);
}

static void assert_as_alone(const struct answer *answer)
{
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        assert_int_equal(answer[i].n, TOKENS_MAX);
        for (uint32_t k = 0; k < TOKENS_MAX; k++)
            if (answer[i].id[k] != alone[i].id[k] ||
                memcmp(&answer[i].logprob[k], &alone[i].logprob[k], sizeof(float)) != 0)
                fail_msg("request %u token %u: id %u logprob %a, alone %u %a", i, k,
                         answer[i].id[k], (double)answer[i].logprob[k], alone[i].id[k],
                         (double)alone[i].logprob[k]);
    }
}

static void among_others_as_alone(void **state)
{
    (void)state;
    start((const char *const[]){"--no-enable-prefix-caching", NULL});
    run_all(among, 0);
    assert_int_equal(stat_of("preemptions"), 0);
    stop();
    assert_as_alone(among);
}

static void check_cache(const char *option, uint32_t n_cell)
{
    start((const char *const[]){option, NULL});
    run_all(among, 0);
    assert_as_alone(among);
    run_all(among, 0);
    stop();
    assert_as_alone(among);
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        assert_int_equal(among[i].n_cached, (PROMPT_MAX - 29 * i - 1) / n_cell * n_cell);
}

static void from_the_prefix_cache_as_computed(void **state)
{
    (void)state;
    check_cache(NULL, CELL);
#ifndef ON_CUDA                                        /* where it is so already */
    check_cache("--deterministic", LL_SCHED_GRID_MAX); /* in whole pieces: it has its grid */
#endif
}

static void preempted_and_computed_again(void **state)
{
    (void)state;
    start((const char *const[]){"--num-gpu-blocks-override", FEW_PAGES, NULL});
    run_all(among, 0);
    assert_true(stat_of("preemptions") > 0);
    assert_int_equal(stat_of("preemptions_swapped"), 0);
    stop();
    assert_as_alone(among);
}

static void preempted_and_copied_to_host_pages_and_back(void **state)
{
    (void)state;
    /* --deterministic swaps, whatever the model says of the costs. */
    start((const char *const[]){"--num-gpu-blocks-override", FEW_PAGES, "--swap-space-bytes", "64M",
                                "--deterministic", NULL});
    run_all(among, 0);
    assert_true(stat_of("preemptions_swapped") > 0);
    stop();
    assert_as_alone(among);
}

static int setup(void **state)
{
    uint64_t random = 7;

    (void)state;
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        for (uint32_t k = 0; k < PROMPT_MAX; k++)
            prompt[i][k] = (uint32_t)(ll_splitmix64(&random) % 3000);
    start((const char *const[]){NULL});
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        submit(i, LL_REQUEST_NO_CACHE);
        collect(alone, 1);
    }
    stop();
    return 0;
}

int main(void)
{
#ifdef ON_CUDA
    if (access("/dev/nvidiactl", F_OK) != 0 || access(LL_BUILD_DIR "/llring-cuda.so", F_OK) != 0) {
        printf("skipped: no GPU, or no llring-cuda.so\n");
        return LL_SKIPPED;
    }
#endif
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(among_others_as_alone),
        cmocka_unit_test(from_the_prefix_cache_as_computed),
        cmocka_unit_test(preempted_and_computed_again),
        cmocka_unit_test(preempted_and_copied_to_host_pages_and_back),
    };
    return cmocka_run_group_tests_name("e2e/same_outputs", tests, setup, NULL);
}
