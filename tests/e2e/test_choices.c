/* SPDX-License-Identifier: Apache-2.0 */
/* tests/e2e/test_choices.c - several choices of a request on the demo model: greedy ones are equal,
 * seeded ones are not, and each is what it is alone, whatever else runs. */
#include "tests/harness.h"
#include "base/clock.h"
#include "base/rng.h"
#include "ll/client.h"

#include <errno.h>

#define N_CHOICES  4u
#define N_PROMPT   150u
#define TOKENS_MAX 16u
#define N_OTHERS   6u

struct choice {
    uint32_t n, reason, n_out;
    uint32_t id[TOKENS_MAX];
    float logprob[TOKENS_MAX];
};

struct answer {
    struct choice choice[N_CHOICES];
    uint32_t n_finished, reason, n_prompt, n_out;
    int code;
};

static struct ll_test_runtime runtime;
static struct ll_client *client;
static uint32_t prompt[N_PROMPT];

static struct ll_request make_request(uint32_t n, float temperature)
{
    struct ll_request request = LL_REQUEST_INIT;

    request.prompt = prompt;
    request.n_prompt = N_PROMPT;
    request.max_tokens = TOKENS_MAX;
    request.n = n;
    request.temperature = temperature;
    request.seed = 77;
    request.flags = LL_REQUEST_IGNORE_EOS | LL_REQUEST_NO_CACHE;
    return request;
}

static uint64_t submit(const struct ll_request *request)
{
    uint64_t id = 0;

    if (ll_client_submit(client, request, &id) < 0)
        fail_msg("%s", ll_error_text());
    return id;
}

static void take(struct answer *answer, const struct ll_output *output)
{
    struct choice *c = &answer->choice[output->choice];

    assert_true(output->choice < N_CHOICES && answer->n_finished == 0);
    switch (output->type) {
    case LL_OUTPUT_TOKEN:
        assert_int_equal(c->reason, 0);
        assert_int_equal(output->index, c->n);
        assert_true(c->n < TOKENS_MAX);
        c->id[c->n] = output->u.token.id;
        c->logprob[c->n++] = output->u.token.logprob;
        break;
    case LL_OUTPUT_CHOICE:
        assert_int_equal(c->reason, 0);
        c->reason = output->u.choice_end.reason;
        c->n_out = output->u.choice_end.n_out;
        break;
    case LL_OUTPUT_FINISH:
        answer->n_finished++;
        answer->reason = output->u.finish.reason;
        answer->n_prompt = output->u.finish.n_prompt;
        answer->n_out = output->u.finish.n_out;
        break;
    case LL_OUTPUT_ERROR:
        answer->n_finished++;
        answer->code = output->u.error.code;
        break;
    default:
        fail_msg("output type %u", output->type);
    }
}

/* Outputs of one request until it ends; those of others are read and dropped. stop: a choice that
 * is stopped at its first token, or N_CHOICES. */
static void collect_and_stop(uint64_t id, struct answer *answer, uint32_t stop)
{
    struct ll_output output[32];

    *answer = (struct answer){0};
    while (answer->n_finished == 0) {
        int n = ll_client_wait(client, output, 32, 30 * (int64_t)LL_NS_PER_S);
        if (n <= 0)
            fail_msg("no output: %s", ll_error_text());
        for (int i = 0; i < n; i++) {
            if (output[i].id != id)
                continue;
            take(answer, &output[i]);
            if (output[i].type == LL_OUTPUT_TOKEN && output[i].choice == stop)
                assert_int_equal(ll_client_stop(client, id, stop), 0);
        }
    }
}

static void run(const struct ll_request *request, struct answer *answer)
{
    collect_and_stop(submit(request), answer, N_CHOICES);
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

static void assert_same(const struct choice *a, const struct choice *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->id, b->id, a->n * sizeof(a->id[0]));
    assert_memory_equal(a->logprob, b->logprob, a->n * sizeof(a->logprob[0]));
}

static bool is_same_text(const struct choice *a, const struct choice *b)
{
    return a->n == b->n && memcmp(a->id, b->id, a->n * sizeof(a->id[0])) == 0;
}

static void greedy_choices_are_equal_and_as_one_alone(void **state)
{
    (void)state;
    struct ll_request request = make_request(1, 0.0f);
    struct answer alone, all;

    run(&request, &alone);
    request.n = N_CHOICES;
    uint64_t n_shared = stat_of("prompt_tokens_shared");
    run(&request, &all);
    for (uint32_t c = 0; c < N_CHOICES; c++) {
        assert_same(&alone.choice[0], &all.choice[c]);
        assert_int_equal(all.choice[c].reason, LL_FINISH_LENGTH);
        assert_int_equal(all.choice[c].n_out, TOKENS_MAX);
    }
    assert_int_equal(all.n_out, N_CHOICES * TOKENS_MAX);
    assert_int_equal(all.n_prompt, N_PROMPT);
    /* 2 full pages of 64, once computed; without the prefix cache (NO_CACHE) */
    assert_int_equal(stat_of("prompt_tokens_shared") - n_shared, (N_CHOICES - 1) * 128);
}

static void seeded_choices_differ_and_are_the_same_among_others(void **state)
{
    (void)state;
    struct ll_request request = make_request(N_CHOICES, 1.0f), other = make_request(3, 0.8f);
    struct answer alone, among, one;

    run(&request, &alone);
    for (uint32_t a = 0; a < N_CHOICES; a++)
        for (uint32_t b = 0; b < a; b++)
            assert_false(is_same_text(&alone.choice[a], &alone.choice[b]));

    for (uint32_t i = 0; i < N_OTHERS; i++) {
        other.seed = i;
        other.n_prompt = 20 + 17 * i;
        submit(&other);
    }
    run(&request, &among);
    for (uint32_t c = 0; c < N_CHOICES; c++)
        assert_same(&alone.choice[c], &among.choice[c]);

    request.n = 1;
    request.flags &= ~(uint32_t)LL_REQUEST_NO_CACHE;
    run(&request, &one);
    assert_same(&alone.choice[0], &one.choice[0]);
    request.n = N_CHOICES; /* now with the prefix cache */
    run(&request, &among);
    for (uint32_t c = 0; c < N_CHOICES; c++)
        assert_same(&alone.choice[c], &among.choice[c]);
}

/* Biases lie with the request's first sequence: the others must find them. */
static void a_bias_holds_for_every_choice(void **state)
{
    (void)state;
    const struct ll_logit_bias bias[] = {{.id = 40, .bias = 100.0f}};
    struct ll_request request = make_request(N_CHOICES, 0.0f);
    struct answer answer;

    request.bias = bias;
    request.n_bias = 1;
    run(&request, &answer);
    for (uint32_t c = 0; c < N_CHOICES; c++)
        for (uint32_t i = 0; i < TOKENS_MAX; i++)
            assert_int_equal(answer.choice[c].id[i], 40);
}

static void one_choice_is_stopped_and_the_others_go_on(void **state)
{
    (void)state;
    const struct ll_request request = make_request(N_CHOICES, 1.0f);
    struct answer whole, answer;

    run(&request, &whole);
    collect_and_stop(submit(&request), &answer, 2);
    for (uint32_t c = 0; c < N_CHOICES; c++) {
        if (c != 2) {
            assert_same(&whole.choice[c], &answer.choice[c]);
            assert_int_equal(answer.choice[c].reason, LL_FINISH_LENGTH);
            continue;
        }
        /* Quick as the demo model is, the stop may have come behind its last token. */
        assert_int_equal(answer.choice[2].n_out, answer.choice[2].n);
        assert_memory_equal(whole.choice[2].id, answer.choice[2].id,
                            answer.choice[2].n * sizeof(answer.choice[2].id[0]));
    }
    assert_int_equal(answer.reason, LL_FINISH_LENGTH);
}

static void cancel_ends_all_choices_with_one_finish(void **state)
{
    (void)state;
    struct ll_request request = make_request(N_CHOICES, 1.0f);
    struct answer answer;

    request.max_tokens = 0; /* as many as fit: it ends by the cancel */
    uint64_t id = submit(&request);
    assert_int_equal(ll_client_cancel(client, id), 0);
    collect_and_stop(id, &answer, N_CHOICES);
    assert_int_equal(answer.code, 0);
    assert_int_equal(answer.reason, LL_FINISH_CANCELLED);
    for (uint32_t c = 0; c < N_CHOICES; c++)
        assert_int_equal(answer.choice[c].reason, 0);
}

static void more_choices_than_there_can_be_are_refused_here(void **state)
{
    (void)state;
    struct ll_client_info info = {.struct_bytes = sizeof(info)};
    struct ll_request request = make_request(1, 1.0f);
    uint64_t id;

    assert_int_equal(ll_client_info(client, &info), 0);
    assert_int_equal(info.n_max, 128);
    request.n = 129;
    assert_int_equal(ll_client_submit(client, &request, &id), LL_E_INVAL);
    assert_non_null(strstr(ll_error_text(), "n: 129, must be 1 .. 128"));
}

static int setup(void **state)
{
    const char *const arguments[] = {ll_test_source("tools/demo-model"), "--device", "cpu", NULL};
    struct ll_client_options options = {.struct_bytes = sizeof(options)};
    uint64_t random = 1;

    (void)state;
    if (ll_test_runtime_start(&runtime, arguments) < 0)
        return -1;
    options.socket = runtime.socket;
    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = (uint32_t)(ll_splitmix64(&random) % 3000);
    return ll_client_open(&client, &options);
}

static int teardown(void **state)
{
    (void)state;
    ll_client_close(client);
    return ll_test_runtime_stop(&runtime);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_choices_are_equal_and_as_one_alone),
        cmocka_unit_test(seeded_choices_differ_and_are_the_same_among_others),
        cmocka_unit_test(a_bias_holds_for_every_choice),
        cmocka_unit_test(one_choice_is_stopped_and_the_others_go_on),
        cmocka_unit_test(cancel_ends_all_choices_with_one_finish),
        cmocka_unit_test(more_choices_than_there_can_be_are_refused_here),
    };
    return cmocka_run_group_tests_name("e2e/choices", tests, setup, teardown);
}
