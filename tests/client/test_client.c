/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_client.c - the library against an honest runtime: answers, limits, errors. */
#include "tests/client/support_echo.h"

#include "base/clock.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int setup(void **state)
{
    struct echo *echo = malloc(sizeof(*echo));

    echo_init(echo);
    echo_start(echo);
    *state = echo;
    return 0;
}

/* Ledger: everything accepted has ended, everybody attached has left. */
static int teardown(void **state)
{
    struct echo *echo = *state;
    struct echo_knobs *k = echo->knobs;
    bool was_drained = echo->is_terminated; /* by the test, with a client attached */

    int rc = echo_stop(echo);
    bool is_closed = k->n_accepted == k->n_finished + k->n_cancelled + k->n_stopped + k->n_lost &&
                     (was_drained || k->n_attached == k->n_detached);
    echo_free(echo);
    free(echo);
    return rc == 0 && is_closed ? 0 : -1;
}

/* ---- answers --------------------------------------------------------------------------------*/

static void a_request_is_answered_token_by_token(void **state)
{
    struct ll_client *client = echo_open(*state, 0);
    struct ll_output last;
    uint64_t id = 0;
    uint32_t seed = 41;
    struct ll_request request = echo_request(&seed, 10);

    request.tag = 0x1234567890abcdefull;
    assert_int_equal(ll_client_submit(client, &request, &id), 0);
    assert_true(id != 0);
    assert_int_equal(ll_client_n_open(client), 1);
    assert_int_equal(echo_read(client, id, seed, &last), 10);
    assert_int_equal(last.type, LL_OUTPUT_FINISH);
    assert_int_equal(last.u.finish.reason, LL_FINISH_LENGTH);
    assert_int_equal(last.u.finish.n_out, 10);
    assert_int_equal(last.u.finish.ttft_ns, 7000);
    assert_true(last.tag == request.tag);
    assert_int_equal(ll_client_n_open(client), 0);
    assert_int_equal(ll_client_poll(client, &last, 1), 0);
    ll_client_close(client);
}

static void info_says_what_the_runtime_publishes(void **state)
{
    struct ll_client *client = echo_open(*state, 64);
    struct ll_client_info info = {.struct_bytes = sizeof(info)};

    assert_int_equal(ll_client_info(client, &info), 0);
    assert_int_equal(info.n_vocab, ECHO_N_VOCAB);
    assert_int_equal(info.context_max, ECHO_CONTEXT);
    assert_int_equal(info.n_slots, 64);
    assert_int_equal(info.arena_bytes, 1 << 20);
    assert_int_equal(info.n_eos, 2);
    assert_int_equal(info.eos[1], 3);
    assert_string_equal(info.model, "echo");
    assert_string_equal(info.chat_format, "");
    assert_true(info.epoch != 0);
    assert_string_equal(info.tokenizer, "tokenizer image");
    assert_int_equal(info.tokenizer_bytes, 8192);
    assert_int_equal(ll_client_adapter(client, "legal"), 4);
    assert_int_equal(ll_client_adapter(client, "none"), LL_E_INVAL);
    info.struct_bytes = 4;
    assert_int_equal(ll_client_info(client, &info), LL_E_INVAL);
    ll_client_close(client);
}

static void stats_are_read_by_name(void **state)
{
    struct ll_client *client = echo_open(*state, 0);
    struct ll_stat stats[128];
    int n = ll_client_stats(client, stats, 128), found = 0;

    assert_int_equal(n, LL_STAT_N - LL_STAT_N_GPU); /* there is none here */
    for (int i = 0; i < n; i++)
        if (strcmp(stats[i].name, "attaches") == 0)
            found = (int)stats[i].value;
        else if (strcmp(stats[i].name, "ttft_ns") == 0)
            assert_true(stats[i].is_histogram);
    assert_int_equal(found, 1);
    assert_int_equal(ll_client_stats(client, stats, 1), LL_STAT_N - LL_STAT_N_GPU);
    ll_client_close(client);
}

static void many_requests_interleave_and_keep_their_order(void **state)
{
    struct ll_client *client = echo_open(*state, 32);
    enum { N = 3000 };
    static uint32_t seeds[N], n_seen[N];
    struct ll_output out[16];
    uint32_t n_sent = 0, n_done = 0;

    memset(n_seen, 0, sizeof(n_seen));
    while (n_done < N) {
        while (n_sent < N) {
            seeds[n_sent] = n_sent % ECHO_N_VOCAB;
            struct ll_request request = echo_request(&seeds[n_sent], 1 + n_sent % 40);
            request.tag = n_sent;
            int rc = ll_client_submit(client, &request, NULL);
            if (rc == LL_E_AGAIN)
                break;
            assert_int_equal(rc, 0);
            n_sent++;
        }
        int n = ll_client_wait(client, out, 16, (int64_t)(10 * LL_NS_PER_S));
        assert_true(n > 0);
        for (int i = 0; i < n; i++) {
            uint64_t tag = out[i].tag;
            assert_true(tag < N);
            if (out[i].type == LL_OUTPUT_TOKEN) {
                assert_int_equal(out[i].index, n_seen[tag]);
                assert_int_equal(out[i].u.token.id, (seeds[tag] + n_seen[tag]) % ECHO_N_VOCAB);
                n_seen[tag]++;
            } else {
                assert_int_equal(out[i].type, LL_OUTPUT_FINISH);
                assert_int_equal(n_seen[tag], 1 + tag % 40);
                n_done++;
            }
        }
    }
    ll_client_close(client);
}

static void prompts_wrap_around_the_arena_unharmed(void **state)
{
    struct ll_client_options options = {.struct_bytes = sizeof(options),
                                        .socket = ((struct echo *)*state)->socket,
                                        .arena_bytes = 65536};
    struct ll_client *client;
    static uint32_t prompt[ECHO_PROMPT];
    struct ll_output last;
    uint64_t id[3], rng = ll_test_seed();

    assert_int_equal(ll_client_open(&client, &options), 0);
    for (int round = 0; round < 400; round++) {
        uint32_t sum[3], n_sent = 0;
        for (; n_sent < 3; n_sent++) {
            struct ll_request request = echo_request(prompt, 3);
            rng = rng * 6364136223846793005ull + 1442695040888963407ull;
            request.n_prompt = 1 + (uint32_t)(rng >> 33) % ECHO_PROMPT;
            sum[n_sent] = 0;
            for (uint32_t i = 0; i < request.n_prompt; i++)
                sum[n_sent] += prompt[i] = (uint32_t)((rng >> 20) + i * 7919) % ECHO_N_VOCAB;
            int rc = ll_client_submit(client, &request, &id[n_sent]);
            memset(prompt, 0xff, sizeof(prompt)); /* it was copied */
            if (rc == LL_E_AGAIN)
                break;
            assert_int_equal(rc, 0);
        }
        for (uint32_t i = 0; i < n_sent; i++)
            assert_int_equal(echo_read(client, id[i], sum[i], &last), 3);
    }
    ll_client_close(client);
}

static void choices_each_end_and_the_request_once(void **state)
{
    struct ll_client *client = echo_open(*state, 0);
    struct ll_output out;
    uint32_t seed = 5, n_tokens = 0, n_choices = 0;
    struct ll_request request = echo_request(&seed, 4);

    request.n = 128;
    assert_int_equal(ll_client_submit(client, &request, NULL), 0);
    for (;;) {
        int n = ll_client_wait(client, &out, 1, (int64_t)LL_NS_PER_S);
        assert_int_equal(n, 1);
        if (out.type == LL_OUTPUT_FINISH)
            break;
        if (out.type == LL_OUTPUT_CHOICE) {
            assert_int_equal(out.choice, n_choices);
            assert_int_equal(out.u.choice_end.n_out, 4);
            n_choices++;
        } else {
            n_tokens++;
        }
    }
    assert_int_equal(n_tokens, 512);
    assert_int_equal(n_choices, 128);
    ll_client_close(client);
}

static void a_stalled_reader_stops_only_its_own_stream(void **state)
{
    struct ll_client *client = echo_open(*state, 0);
    uint32_t slow_seed = 1, fast_seed = 2;
    struct ll_request slow = echo_request(&slow_seed, 3000), fast = echo_request(&fast_seed, 100);
    struct ll_output last;
    uint64_t slow_id, id;

    assert_int_equal(ll_client_submit(client, &slow, &slow_id), 0);
    for (int i = 0; i < 100; i++) { /* 10,000 events pass by while slow's window is used up */
        assert_int_equal(ll_client_submit(client, &fast, &id), 0);
        assert_int_equal(echo_read(client, id, fast_seed, &last), 100);
    }
    assert_int_equal(echo_read(client, slow_id, slow_seed, &last), 3000);
    ll_client_close(client);
}

/* ---- ends -------------------------------------------------------------------------------------*/

static void *cancel_from_a_thread(void *context)
{
    void **pair = context;

    ll_client_cancel(pair[0], *(uint64_t *)pair[1]);
    return NULL;
}

static void cancel_ends_a_request_once_from_any_thread(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 0);
    uint32_t seed = 9;
    struct ll_request request = echo_request(&seed, 1000);
    struct ll_output last;
    uint64_t id;
    void *pair[2] = {client, &id};
    pthread_t thread;

    atomic_store(&echo->knobs->holds, true);
    assert_int_equal(ll_client_submit(client, &request, &id), 0);
    pthread_create(&thread, NULL, cancel_from_a_thread, pair);
    pthread_join(thread, NULL);
    echo_read(client, id, seed, &last);
    assert_int_equal(last.type, LL_OUTPUT_FINISH);
    assert_int_equal(last.u.finish.reason, LL_FINISH_CANCELLED);
    /* Ended, unknown, never given out: ignored. */
    assert_int_equal(ll_client_cancel(client, id), 0);
    assert_int_equal(ll_client_cancel(client, 0), 0);
    assert_int_equal(ll_client_cancel(client, UINT64_MAX), 0);
    atomic_store(&echo->knobs->holds, false);
    /* A late cancel does not hit the next request of the same slot. */
    uint64_t old = id;
    request.max_tokens = 5;
    assert_int_equal(ll_client_submit(client, &request, &id), 0);
    assert_int_equal(ll_client_cancel(client, old), 0);
    assert_int_equal(echo_read(client, id, seed, &last), 5);
    assert_int_equal(last.u.finish.reason, LL_FINISH_LENGTH);
    ll_client_close(client);
}

static void stop_ends_a_choice_as_a_success(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 0);
    uint32_t seed = 9;
    struct ll_request request = echo_request(&seed, 1000);
    struct ll_output last;
    uint64_t id;

    atomic_store(&echo->knobs->holds, true);
    assert_int_equal(ll_client_submit(client, &request, &id), 0);
    assert_int_equal(ll_client_stop(client, id, 1), LL_E_INVAL);
    assert_non_null(strstr(ll_error_text(), "choice"));
    assert_int_equal(ll_client_stop(client, id + (1 << 20), 0), 0);
    assert_int_equal(ll_client_stop(client, id, 0), 0);
    echo_read(client, id, seed, &last);
    assert_int_equal(last.u.finish.reason, LL_FINISH_STOP);
    atomic_store(&echo->knobs->holds, false);
    ll_client_close(client);
}

static void closing_cancels_what_is_open(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 0);
    uint32_t seed = 9;
    struct ll_request request = echo_request(&seed, 1000);

    atomic_store(&echo->knobs->holds, true);
    for (int i = 0; i < 5; i++)
        assert_int_equal(ll_client_submit(client, &request, NULL), 0);
    echo_await(&echo->knobs->n_accepted, 5);
    ll_client_close(client);
    echo_await(&echo->knobs->n_detached, 1);
    assert_int_equal(echo->knobs->n_cancelled, 5);
    atomic_store(&echo->knobs->holds, false);
    ll_client_close(NULL);
}

/* ---- limits and errors ------------------------------------------------------------------------*/

static void full_slots_and_a_full_arena_say_again(void **state)
{
    struct echo *echo = *state;
    struct ll_client_options options = {.struct_bytes = sizeof(options),
                                        .socket = echo->socket,
                                        .n_slots = 16,
                                        .arena_bytes = 65536};
    struct ll_client *client;
    static uint32_t prompt[ECHO_PROMPT];
    struct ll_request request = echo_request(prompt, 1);
    struct ll_output out[64];

    assert_int_equal(ll_client_open(&client, &options), 0);
    atomic_store(&echo->knobs->ignores, true);
    for (int i = 0; i < 16; i++)
        assert_int_equal(ll_client_submit(client, &request, NULL), 0);
    assert_int_equal(ll_client_submit(client, &request, NULL), LL_E_AGAIN);
    assert_non_null(strstr(ll_error_text(), "16 slots"));
    atomic_store(&echo->knobs->ignores, false);
    while (ll_client_n_open(client) > 0)
        assert_true(ll_client_wait(client, out, 64, (int64_t)(5 * LL_NS_PER_S)) > 0);

    atomic_store(&echo->knobs->ignores, true);
    request.n_prompt = ECHO_PROMPT; /* 16,000 bytes: four fit into 65,536 */
    for (int i = 0; i < 4; i++)
        assert_int_equal(ll_client_submit(client, &request, NULL), 0);
    assert_int_equal(ll_client_submit(client, &request, NULL), LL_E_AGAIN);
    assert_non_null(strstr(ll_error_text(), "arena"));
    assert_int_equal(ll_client_n_open(client), 4);
    /* The space is free again as soon as the runtime has accepted, long before the end. */
    atomic_store(&echo->knobs->holds, true);
    atomic_store(&echo->knobs->ignores, false);
    echo_await(&echo->knobs->n_accepted, 20);
    for (int i = 0; i < 4; i++)
        assert_int_equal(ll_client_submit(client, &request, NULL), 0);
    atomic_store(&echo->knobs->holds, false);
    while (ll_client_n_open(client) > 0)
        assert_true(ll_client_wait(client, out, 64, (int64_t)(5 * LL_NS_PER_S)) > 0);
    ll_client_close(client);
}

/* One case: a request that is right but for one field. */
#define REFUSED(code, word, change)                                                                \
    do {                                                                                           \
        struct ll_request r = request;                                                             \
        change;                                                                                    \
        assert_int_equal(ll_client_submit(client, &r, NULL), code);                                \
        if (strstr(ll_error_text(), word) == NULL)                                                 \
            fail_msg("\"%s\" does not name %s", ll_error_text(), word);                            \
    } while (0)
#define ACCEPTED(change)                                                                           \
    do {                                                                                           \
        struct ll_request r = request;                                                             \
        struct ll_output last;                                                                     \
        uint64_t id;                                                                               \
        change;                                                                                    \
        if (ll_client_submit(client, &r, &id) != 0)                                                \
            fail_msg("refused: %s", ll_error_text());                                              \
        do                                                                                         \
            assert_int_equal(ll_client_wait(client, &last, 1, -1), 1);                             \
        while (last.type != LL_OUTPUT_FINISH);                                                     \
    } while (0)

static void every_field_is_checked_at_its_edges(void **state)
{
    struct ll_client *client = echo_open(*state, 0);
    static uint32_t prompt[ECHO_CONTEXT], bad_id[2] = {1, ECHO_N_VOCAB};
    static struct ll_logit_bias bias[1025];
    struct ll_request request = echo_request(prompt, 1);
    const float inf = INFINITY;

    REFUSED(LL_E_INVAL, "struct_bytes", r.struct_bytes = 8);
    REFUSED(LL_E_INVAL, "flags", r.flags = 8);
    REFUSED(LL_E_INVAL, "reserved", r.reserved = 1);
    REFUSED(LL_E_INVAL, "n_prompt", r.n_prompt = 0);
    REFUSED(LL_E_INVAL, "n_prompt", r.prompt = NULL);
    REFUSED(LL_E_TOO_LONG, "n_prompt", r.n_prompt = ECHO_PROMPT + 1);
    ACCEPTED(r.n_prompt = ECHO_PROMPT);
    REFUSED(LL_E_TOO_LONG, "max_tokens", r.max_tokens = ECHO_CONTEXT);
    REFUSED(LL_E_TOO_LONG, "max_tokens", r.max_tokens = UINT32_MAX);
    ACCEPTED(r.max_tokens = ECHO_CONTEXT - 1);
    ACCEPTED(r.max_tokens = 0);
    REFUSED(LL_E_INVAL, "prompt[1]", (r.prompt = bad_id, r.n_prompt = 2));
    REFUSED(LL_E_INVAL, "min_tokens", r.min_tokens = 2);
    ACCEPTED(r.min_tokens = 1);
    REFUSED(LL_E_INVAL, "min_tokens", (r.max_tokens = 0, r.min_tokens = ECHO_CONTEXT));
    REFUSED(LL_E_INVAL, "n: 0", r.n = 0);
    REFUSED(LL_E_INVAL, "n: 129", r.n = 129);
    ACCEPTED(r.n = 128);
    REFUSED(LL_E_INVAL, "n_top", r.n_top = 21);
    ACCEPTED(r.n_top = 20);
    REFUSED(LL_E_INVAL, "n_prompt_top", r.n_prompt_top = 1);
    REFUSED(LL_E_INVAL, "n_prompt_top",
            (r.n_prompt_top = 21, r.flags = LL_REQUEST_PROMPT_LOGPROBS));
    ACCEPTED((r.n_prompt_top = 20, r.flags = LL_REQUEST_PROMPT_LOGPROBS));
    REFUSED(LL_E_INVAL, "priority", r.priority = 128);
    REFUSED(LL_E_INVAL, "priority", r.priority = -129);
    ACCEPTED(r.priority = -128);
    REFUSED(LL_E_INVAL, "adapter", r.adapter = 513);
    const float bad_temperature[] = {-0.1f, 2.1f, NAN, inf, -inf};
    for (int i = 0; i < 5; i++) {
        REFUSED(LL_E_INVAL, "temperature", r.temperature = bad_temperature[i]);
        REFUSED(LL_E_INVAL, "top_p", r.top_p = bad_temperature[i]);
        REFUSED(LL_E_INVAL, "min_p", r.min_p = bad_temperature[i]);
        if (i != 1)
            REFUSED(LL_E_INVAL, "repetition_penalty", r.repetition_penalty = bad_temperature[i]);
        if (i != 0) {
            REFUSED(LL_E_INVAL, "frequency_penalty", r.frequency_penalty = bad_temperature[i]);
            REFUSED(LL_E_INVAL, "presence_penalty", r.presence_penalty = bad_temperature[i]);
        }
    }
    ACCEPTED(r.temperature = 2);
    REFUSED(LL_E_INVAL, "top_p", r.top_p = 0);
    REFUSED(LL_E_INVAL, "repetition_penalty", r.repetition_penalty = 0);
    REFUSED(LL_E_INVAL, "repetition_penalty", r.repetition_penalty = 10.5f);
    ACCEPTED((r.repetition_penalty = 10, r.frequency_penalty = -2, r.presence_penalty = 2));
    REFUSED(LL_E_INVAL, "n_stop", (r.n_stop = 9, r.stop = prompt));
    REFUSED(LL_E_INVAL, "stop", r.n_stop = 1);
    REFUSED(LL_E_INVAL, "stop[1]", (r.n_stop = 2, r.stop = bad_id));
    ACCEPTED((r.n_stop = 8, r.stop = prompt));
    REFUSED(LL_E_INVAL, "n_bias", (r.n_bias = 1025, r.bias = bias));
    REFUSED(LL_E_INVAL, "bias", r.n_bias = 1);
    ACCEPTED((r.n_bias = 1024, r.bias = bias));
    bias[7].bias = 100.5f;
    REFUSED(LL_E_INVAL, "bias[7].bias", (r.n_bias = 1024, r.bias = bias));
    bias[7].bias = NAN;
    REFUSED(LL_E_INVAL, "bias[7].bias", (r.n_bias = 1024, r.bias = bias));
    bias[7].bias = 0, bias[9].id = ECHO_N_VOCAB;
    REFUSED(LL_E_INVAL, "bias[9].id", (r.n_bias = 1024, r.bias = bias));
    REFUSED(LL_E_INVAL, "grammar", r.grammar_bytes = 4);
    REFUSED(LL_E_INVAL, "arena", (r.grammar = prompt, r.grammar_bytes = 2u << 20));
    struct {
        struct ll_request request;
        uint64_t newer;
    } larger = {.request = request, .newer = 1};
    larger.request.struct_bytes = sizeof(larger);
    assert_int_equal(ll_client_submit(client, &larger.request, NULL), LL_E_UNSUPPORTED);
    struct ll_output out;
    assert_int_equal(ll_client_poll(client, &out, 0), LL_E_INVAL);
    assert_int_equal(ll_client_n_open(client), 0); /* nothing refused took a slot */
    ll_client_close(client);
}

static void bad_options_are_named(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client;
    const struct ll_client_options good = {.struct_bytes = sizeof(good), .socket = echo->socket};
    struct ll_client_options o;
    char name[65];

    memset(name, 'x', 64), name[64] = 0;
    o = good, o.struct_bytes = 0;
    assert_int_equal(ll_client_open(&client, &o), LL_E_INVAL);
    o = good, o.n_slots = 15;
    assert_int_equal(ll_client_open(&client, &o), LL_E_INVAL);
    assert_non_null(strstr(ll_error_text(), "n_slots"));
    o = good, o.n_slots = 1025;
    assert_int_equal(ll_client_open(&client, &o), LL_E_INVAL);
    o = good, o.arena_bytes = 65535;
    assert_int_equal(ll_client_open(&client, &o), LL_E_INVAL);
    o = good, o.arena_bytes = (64u << 20) + 1;
    assert_int_equal(ll_client_open(&client, &o), LL_E_INVAL);
    assert_non_null(strstr(ll_error_text(), "arena_bytes"));
    o = good, o.name = name;
    assert_int_equal(ll_client_open(&client, &o), LL_E_INVAL);
    assert_non_null(strstr(ll_error_text(), "name"));
    o = good, o.n_slots = 1024, o.arena_bytes = 64u << 20, o.name = name + 1;
    assert_int_equal(ll_client_open(&client, &o), 0);
    struct ll_client_info info = {.struct_bytes = sizeof(info)};
    assert_int_equal(ll_client_info(client, &info), 0);
    assert_int_equal(info.n_slots, 1024);
    assert_int_equal(info.arena_bytes, 64 << 20);
    ll_client_close(client);
}

static void errors_of_the_runtime_come_with_code_and_words(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 0);
    uint32_t seed = 3;
    struct ll_request request = echo_request(&seed, 5);
    struct ll_output last;
    uint64_t id;

    echo_terminate(echo); /* a drain: what is open goes on, new ones are refused */
    struct ll_stat stats[1];
    for (int i = 0; i < 2000; i++) {
        int rc = ll_client_submit(client, &request, &id);
        if (rc == LL_E_DRAINING || rc == LL_E_RUNTIME_LOST)
            break;
        assert_int_equal(rc, 0);
        echo_read(client, id, seed, &last);
        assert_true(last.type == LL_OUTPUT_FINISH || last.u.error.code == LL_E_DRAINING ||
                    last.u.error.code == LL_E_RUNTIME_LOST);
        if (last.type == LL_OUTPUT_ERROR && last.u.error.code == LL_E_DRAINING)
            assert_string_equal(last.u.error.text, ll_error_advice(LL_E_DRAINING));
        usleep(1000);
    }
    assert_int_equal(ll_client_stats(client, stats, 1),
                     LL_STAT_N - LL_STAT_N_GPU); /* the mapping lives on */
    ll_client_close(client);
}

/* ---- nobody there ---------------------------------------------------------------------------*/

static void without_a_runtime_the_error_says_what_to_do(void **state)
{
    (void)state;
    struct ll_client *client = (void *)1;
    struct ll_client_options o = {.struct_bytes = sizeof(o), .socket = "/tmp/llring-nobody.sock"};

    assert_int_equal(ll_client_open(&client, &o), -ENOENT);
    assert_non_null(strstr(ll_error_text(), "/tmp/llring-nobody.sock"));
    assert_non_null(strstr(ll_error_text(), "llring serve"));
    assert_ptr_equal(client, (void *)1);
    setenv("LLRING_SOCKET", "/tmp/llring-nobody-else.sock", 1);
    assert_int_equal(ll_client_open(&client, NULL), -ENOENT);
    assert_non_null(strstr(ll_error_text(), "/tmp/llring-nobody-else.sock"));
    unsetenv("LLRING_SOCKET");
    setenv("XDG_RUNTIME_DIR", "/tmp/llring-no-directory", 1);
    assert_int_equal(ll_client_open(&client, NULL), -ENOENT);
    assert_non_null(
        strstr(ll_error_text(), "/tmp/llring-no-directory/llring/llring.sock or /run/"));
    unsetenv("XDG_RUNTIME_DIR");
    char path[200];
    memset(path, 'x', sizeof(path)), path[199] = 0;
    o.socket = path;
    assert_int_equal(ll_client_open(&client, &o), -ENAMETOOLONG);
}

static void the_default_socket_is_found(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client;
    char directory[80];

    setenv("LLRING_SOCKET", echo->socket, 1);
    assert_int_equal(ll_client_open(&client, NULL), 0);
    ll_client_close(client);
    unsetenv("LLRING_SOCKET");
    snprintf(directory, sizeof(directory), "%s/llring", echo->directory);
    assert_int_equal(symlink(echo->directory, directory), 0);
    setenv("XDG_RUNTIME_DIR", echo->directory, 1);
    assert_int_equal(ll_client_open(&client, NULL), 0);
    ll_client_close(client);
    unsetenv("XDG_RUNTIME_DIR");
}

/* ---- fork -------------------------------------------------------------------------------------*/

static void a_forked_child_is_told_and_disturbs_nobody(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 0);
    uint32_t seed = 77;
    struct ll_request request = echo_request(&seed, 50);
    struct ll_output out;
    uint64_t id;
    int status;

    atomic_store(&echo->knobs->holds, true);
    assert_int_equal(ll_client_submit(client, &request, &id), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct ll_client_info info = {.struct_bytes = sizeof(info)};
        struct ll_stat stat;
        int n_wrong = ll_client_submit(client, &request, NULL) != LL_E_FORKED;
        n_wrong += ll_client_poll(client, &out, 1) != LL_E_FORKED;
        n_wrong += ll_client_poll_request(client, id, &out, 1) != LL_E_FORKED;
        n_wrong += ll_client_wait(client, &out, 1, -1) != LL_E_FORKED;
        n_wrong += ll_client_cancel(client, id) != LL_E_FORKED;
        n_wrong += ll_client_stop(client, id, 0) != LL_E_FORKED;
        n_wrong += ll_client_fd(client) != LL_E_FORKED;
        n_wrong += ll_client_arm(client) != LL_E_FORKED;
        n_wrong += ll_client_info(client, &info) != LL_E_FORKED;
        n_wrong += ll_client_adapter(client, "legal") != LL_E_FORKED;
        n_wrong += ll_client_stats(client, &stat, 1) != LL_E_FORKED;
        ll_client_close(client);
        _exit(n_wrong);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    atomic_store(&echo->knobs->holds, false);
    struct ll_output last;
    assert_int_equal(echo_read(client, id, seed, &last), 50); /* the parent's goes on */
    ll_client_close(client);
}

/* ---- event loops ------------------------------------------------------------------------------*/

static void an_event_loop_sleeps_on_the_descriptor(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 0);
    struct pollfd fd = {.fd = ll_client_fd(client), .events = POLLIN};
    uint32_t seed = 11, n_tokens = 0, n_sleeps = 0;
    struct ll_request request = echo_request(&seed, 200);
    struct ll_output out[16];
    bool is_done = false;

    atomic_store(&echo->knobs->pause_ns, 300000);
    assert_int_equal(ll_client_submit(client, &request, NULL), 0);
    while (!is_done) {
        int n = ll_client_arm(client);
        assert_in_range(n, 0, 1);
        if (n == 0) {
            n_sleeps++;
            assert_int_equal(poll(&fd, 1, 2000), 1);
        }
        while ((n = ll_client_poll(client, out, 16)) > 0)
            for (int i = 0; i < n; i++) {
                n_tokens += out[i].type == LL_OUTPUT_TOKEN;
                is_done |= out[i].type == LL_OUTPUT_FINISH;
            }
        assert_int_equal(n, 0);
    }
    assert_int_equal(n_tokens, 200);
    assert_true(n_sleeps > 10);
    assert_int_equal(ll_client_arm(client), 0);
    assert_int_equal(poll(&fd, 1, 20), 0); /* level: nothing left over */
    ll_client_close(client);
}

static void waiting_with_a_timeout_returns_in_time(void **state)
{
    struct ll_client *client = echo_open(*state, 0);
    struct ll_output out;
    uint64_t start_ns = ll_now_ns();

    assert_int_equal(ll_client_wait(client, &out, 1, 0), 0);
    assert_int_equal(ll_client_wait(client, &out, 1, 50 * (int64_t)LL_NS_PER_MS), 0);
    uint64_t took_ns = ll_now_ns() - start_ns;
    assert_true(took_ns >= 50 * LL_NS_PER_MS && took_ns < 10 * LL_NS_PER_S);
    ll_client_close(client);
}

/* ---- lost doorbells ---------------------------------------------------------------------------*/

ECHO_PEEKS static void a_doorbell_that_is_lost_costs_a_sweep(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 0);
    uint32_t seed = 4;
    struct ll_request request = echo_request(&seed, 3);
    struct ll_output last;
    uint64_t id;

    /* Zero the ring behind everybody's back, as a peer of the same domain could. */
    struct ll_bell bell = {0};
    for (uint32_t i = 0; bell.head == NULL; i = (i + 1) % LL_ATTACHMENTS_MAX) {
        if (echo->client[i] != NULL) /* the echo hears of us a moment after we are attached */
            bell = echo->client[i]->domain->bell.bell;
        else if (i == LL_ATTACHMENTS_MAX - 1)
            usleep(1000);
    }
    for (int round = 0; round < 20; round++) {
        for (uint64_t i = 0; i < 1ull << bell.log2_words; i++)
            atomic_store(&bell.head->word[i], 0);
        assert_int_equal(ll_client_submit(client, &request, &id), 0);
        assert_int_equal(echo_read(client, id, seed, &last), 3);
    }
    ll_client_close(client);
}

int main(void)
{
#define WITH_ECHO(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_ECHO(a_request_is_answered_token_by_token),
        WITH_ECHO(info_says_what_the_runtime_publishes),
        WITH_ECHO(stats_are_read_by_name),
        WITH_ECHO(many_requests_interleave_and_keep_their_order),
        WITH_ECHO(prompts_wrap_around_the_arena_unharmed),
        WITH_ECHO(choices_each_end_and_the_request_once),
        WITH_ECHO(a_stalled_reader_stops_only_its_own_stream),
        WITH_ECHO(cancel_ends_a_request_once_from_any_thread),
        WITH_ECHO(stop_ends_a_choice_as_a_success),
        WITH_ECHO(closing_cancels_what_is_open),
        WITH_ECHO(full_slots_and_a_full_arena_say_again),
        WITH_ECHO(every_field_is_checked_at_its_edges),
        WITH_ECHO(bad_options_are_named),
        cmocka_unit_test(without_a_runtime_the_error_says_what_to_do),
        WITH_ECHO(the_default_socket_is_found),
        WITH_ECHO(a_forked_child_is_told_and_disturbs_nobody),
        WITH_ECHO(an_event_loop_sleeps_on_the_descriptor),
        WITH_ECHO(waiting_with_a_timeout_returns_in_time),
        WITH_ECHO(a_doorbell_that_is_lost_costs_a_sweep),
        WITH_ECHO(errors_of_the_runtime_come_with_code_and_words),
    };
    ll_control_block_signals();
    return cmocka_run_group_tests_name("client", tests, NULL, NULL);
}
