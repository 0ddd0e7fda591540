/* SPDX-License-Identifier: Apache-2.0 */
/* tests/e2e/test_same_output.c - what a request gets does not depend on what became of it on the
 * way: alone, among others, with its prompt from the cache, preempted and computed again, preempted
 * and swapped to the host. On the demo model and the CPU device, token for token, greedy and
 * seeded; counters prove that each of these happened. */
#include "tests/harness.h"
#include "base/clock.h"
#include "base/rng.h"
#include "ll/client.h"

#define N_REQUESTS 6u
#define N_PROMPT   150u
#define N_OUT      120u

struct answer {
    uint64_t request;
    uint32_t n, n_cached;
    uint32_t id[N_OUT];
    bool has_ended;
};

static struct ll_test_runtime runtime;
static struct ll_client *client;
static uint32_t prompt[N_REQUESTS][N_PROMPT];
static struct answer alone[N_REQUESTS];

static void start(const char *const *more)
{
    const char *arguments[16] = {ll_test_source("tools/demo-model"), "--device", "cpu",
                                 "--max-model-len", "512"};
    struct ll_client_options options = {.struct_bytes = sizeof(options)};

    for (uint32_t i = 0; more[i] != NULL; i++)
        arguments[5 + i] = more[i];
    assert_int_equal(ll_test_runtime_start(&runtime, arguments), 0);
    options.socket = runtime.socket;
    if (ll_client_open(&client, &options) < 0)
        fail_msg("%s", ll_error_text());
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

/* Every second one is greedy. */
static void submit(uint32_t i, uint32_t flags, struct answer *answer)
{
    struct ll_request request = LL_REQUEST_INIT;

    request.prompt = prompt[i];
    request.n_prompt = N_PROMPT - 7 * i; /* ends at another place in its page */
    request.max_tokens = N_OUT;
    request.temperature = i % 2 == 0 ? 0.0f : 1.0f;
    request.seed = 1000 + i;
    request.flags = LL_REQUEST_IGNORE_EOS | flags;
    *answer = (struct answer){0};
    if (ll_client_submit(client, &request, &answer->request) < 0)
        fail_msg("%s", ll_error_text());
}

static void take(struct answer *answers, uint32_t n, const struct ll_output *output)
{
    uint32_t i = 0;

    while (i < n && answers[i].request != output->id)
        i++;
    assert_true(i < n && !answers[i].has_ended);
    struct answer *answer = &answers[i];
    if (output->type == LL_OUTPUT_TOKEN) {
        assert_int_equal(output->index, answer->n);
        assert_true(answer->n < N_OUT);
        answer->id[answer->n++] = output->u.token.id;
        return;
    }
    if (output->type == LL_OUTPUT_ERROR)
        fail_msg("%s: %s", ll_error_name(output->u.error.code), output->u.error.text);
    assert_int_equal(output->type, LL_OUTPUT_FINISH);
    assert_int_equal(output->u.finish.reason, LL_FINISH_LENGTH);
    answer->n_cached = output->u.finish.n_cached;
    answer->has_ended = true;
}

static void collect(struct answer *answers, uint32_t n)
{
    struct ll_output output[32];

    for (uint32_t n_ended = 0; n_ended < n;) {
        int got = ll_client_wait(client, output, 32, 60 * (int64_t)LL_NS_PER_S);
        if (got <= 0)
            fail_msg("no output: %s", ll_error_text());
        for (int i = 0; i < got; i++) {
            take(answers, n, &output[i]);
            n_ended += output[i].type == LL_OUTPUT_FINISH;
        }
    }
}

/* All at once. */
static void run_together(uint32_t flags, struct answer *answers)
{
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        submit(i, flags, &answers[i]);
    collect(answers, N_REQUESTS);
}

static void assert_as_alone(const struct answer *answers)
{
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        assert_int_equal(alone[i].n, N_OUT);
        assert_int_equal(answers[i].n, N_OUT);
        for (uint32_t k = 0; k < N_OUT; k++)
            if (answers[i].id[k] != alone[i].id[k])
                fail_msg("request %u, token %u: %u, alone %u", i, k, answers[i].id[k],
                         alone[i].id[k]);
    }
}

static void among_others_and_from_the_cache(void **state)
{
    (void)state;
    struct answer answers[N_REQUESTS];
    const char *const more[] = {NULL};

    start(more);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        submit(i, LL_REQUEST_NO_CACHE, &alone[i]);
        collect(&alone[i], 1);
        assert_int_equal(alone[i].n_cached, 0);
    }
    run_together(LL_REQUEST_NO_CACHE, answers);
    assert_as_alone(answers);
    run_together(0, answers); /* fills the cache */
    assert_as_alone(answers);
    run_together(0, answers);
    assert_as_alone(answers);
    for (uint32_t i = 0; i < N_REQUESTS; i++) /* full pages, but for the last token */
        assert_int_equal(answers[i].n_cached, (N_PROMPT - 7 * i - 1) / 64 * 64);
    assert_int_equal(stat_of("preemptions"), 0);
    assert_true(stat_of("prompt_tokens_cached") > 0);
    stop();
}

static void preempted_and_computed_again(void **state)
{
    (void)state;
    struct answer answers[N_REQUESTS];
    const char *const more[] = {"--num-gpu-blocks-override", "12", NULL};

    start(more);
    run_together(LL_REQUEST_NO_CACHE, answers);
    assert_as_alone(answers);
    assert_true(stat_of("preemptions") > 0);
    assert_int_equal(stat_of("preemptions_swapped"), 0);
    run_together(0, answers); /* and partly from the cache */
    assert_as_alone(answers);
    stop();
}

static void preempted_and_swapped(void **state)
{
    (void)state;
    struct answer answers[N_REQUESTS];
    const char *const more[] = {"--num-gpu-blocks-override", "12", "--swap-space-bytes", "67108864",
                                "--deterministic",           NULL};

    start(more);
    run_together(LL_REQUEST_NO_CACHE, answers);
    assert_as_alone(answers);
    uint64_t n_swapped = stat_of("preemptions_swapped");
    assert_true(n_swapped > 0);
    assert_int_equal(n_swapped, stat_of("preemptions")); /* --deterministic: never otherwise */
    run_together(0, answers);
    assert_as_alone(answers);
    assert_true(stat_of("preemptions_swapped") > n_swapped);
    stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(among_others_and_from_the_cache), /* makes what the others compare with */
        cmocka_unit_test(preempted_and_computed_again),
        cmocka_unit_test(preempted_and_swapped),
    };
    uint64_t random = 1;

    for (uint32_t i = 0; i < N_REQUESTS; i++)
        for (uint32_t k = 0; k < N_PROMPT; k++)
            prompt[i][k] = (uint32_t)(ll_splitmix64(&random) % 3000);
    return cmocka_run_group_tests_name("e2e/same_output", tests, NULL, NULL);
}
