/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_hostile.c - a runtime that writes what it should not: the client loses its
 * attachment at most, and each request still ends exactly once. */
#include "tests/client/support_echo.h"

#include "base/clock.h"
#include "base/rng.h"
#include "client/handle.h"

#include <math.h>
#include <unistd.h>

static struct ll_event script[1024];
static uint32_t n_script;

/* Writes the script for each request, as it stands when the request comes; an event's generation is
 * the request's plus its own. */
ECHO_PEEKS static void play(struct echo *echo, struct ll_attachment *client, uint32_t slot,
                            uint32_t gen)
{
    (void)echo;
    echo_phase(client, slot, gen, LL_PHASE_ACCEPTED);
    for (uint32_t i = 0; i < n_script; i++)
        echo_write(client, script[i].slot != 0 ? script[i].slot : slot, gen + script[i].gen,
                   script[i]);
}

static int setup(void **state)
{
    struct echo *echo = malloc(sizeof(*echo));

    echo_init(echo);
    echo->hook = play;
    echo_start(echo);
    memset(script, 0, sizeof(script));
    n_script = 0;
    *state = echo;
    return 0;
}

static int teardown(void **state)
{
    struct echo *echo = *state;
    int rc = echo_stop(echo);

    echo_free(echo);
    free(echo);
    return rc;
}

static struct ll_event *add(uint32_t type, uint32_t n)
{
    script[n_script] = (struct ll_event){.type = (uint8_t)type, .n = (uint8_t)n};
    return &script[n_script++];
}

/* Outputs until the request's end; terminal outputs are counted, the last code is kept. */
static int run(struct echo *echo, int n_requests, struct ll_output *last, uint32_t *n_outputs)
{
    struct ll_client *client = echo_open(echo, 16);
    uint32_t seed = 1, n_terminal = 0;
    struct ll_request request = echo_request(&seed, 10);
    struct ll_output out[8];
    uint64_t deadline_ns = ll_now_ns() + 10 * LL_NS_PER_S;
    int rc = 0;

    *n_outputs = 0;
    for (int i = 0; i < n_requests; i++)
        assert_int_equal(ll_client_submit(client, &request, NULL), 0);
    while (ll_client_n_open(client) > 0 && rc >= 0 && ll_now_ns() < deadline_ns) {
        rc = ll_client_wait(client, out, 8, (int64_t)LL_NS_PER_S);
        for (int i = 0; i < rc; i++) {
            *last = out[i];
            ++*n_outputs;
            n_terminal += out[i].type == LL_OUTPUT_FINISH || out[i].type == LL_OUTPUT_ERROR;
        }
    }
    assert_int_equal(n_terminal, n_requests);
    rc = ll_client_poll(client, out, 8);
    assert_true(rc <= 0); /* exactly one end each: nothing is left */
    if (rc < 0) {
        assert_int_equal(ll_client_submit(client, &request, NULL), rc);
        assert_int_equal(ll_client_wait(client, out, 8, -1), rc);
        assert_int_equal(ll_client_arm(client), 1);
        assert_true(strlen(ll_error_text()) > 0);
    }
    ll_client_close(client);
    return rc;
}

static void events_become_outputs(void **state)
{
    struct ll_event *e;
    struct ll_client *client;
    struct ll_output out[32];
    uint32_t seed = 1, n = 0;
    struct ll_request request = echo_request(&seed, 10);

    e = add(LL_EV_PROMPT, 3), e->index = 1, e->u.prompt[0] = -1, e->u.prompt[2] = -3;
    e = add(LL_EV_PROMPT_TOP, 2), e->index = 1, e->flags = LL_EV_LAST, e->u.top[1].id = 8;
    e = add(LL_EV_TOKEN, 1), e->u.token.id = 5, e->u.token.logprob = -0.25f;
    e = add(LL_EV_TOP, 5), e->u.top[0].id = 5, e->u.top[4].logprob = -9;
    e = add(LL_EV_TOP, 1), e->flags = LL_EV_LAST, e->u.top[0].id = 6;
    e = add(LL_EV_BURST, 10), e->index = 1;
    for (uint32_t i = 0; i < 10; i++)
        e->u.burst[i] = 100 + i;
    e = add(LL_EV_ERROR, 0), e->u.error.code = LL_E_BUSY, e->u.error.retry_ms = 250;
    memset(e->u.error.text, 'x', sizeof(e->u.error.text)); /* no NUL */

    client = echo_open(*state, 16);
    assert_int_equal(ll_client_submit(client, &request, NULL), 0);
    while (ll_client_n_open(client) > 0) /* an odd room, so that the burst is split */
        n += (uint32_t)ll_client_wait(client, out + n, 7, (int64_t)LL_NS_PER_S);
    assert_int_equal(n, 16);
    assert_int_equal(out[0].type, LL_OUTPUT_PROMPT);
    assert_int_equal(out[0].n, 3);
    assert_true(out[0].u.prompt_logprob[2] == -3);
    assert_int_equal(out[1].type, LL_OUTPUT_PROMPT_TOP);
    assert_true(out[1].last && out[1].u.top[1].id == 8);
    assert_int_equal(out[2].u.token.id, 5);
    assert_true(out[2].u.token.logprob == -0.25f);
    assert_int_equal(out[3].type, LL_OUTPUT_TOP);
    assert_true(!out[3].last && out[3].u.top[4].logprob == -9);
    assert_true(out[4].last && out[4].u.top[0].id == 6);
    for (uint32_t i = 0; i < 10; i++) {
        assert_int_equal(out[5 + i].type, LL_OUTPUT_TOKEN);
        assert_int_equal(out[5 + i].index, 1 + i);
        assert_int_equal(out[5 + i].u.token.id, 100 + i);
        assert_true(isnan(out[5 + i].u.token.logprob));
    }
    assert_int_equal(out[15].type, LL_OUTPUT_ERROR);
    assert_int_equal(out[15].u.error.code, LL_E_BUSY);
    assert_int_equal(out[15].u.error.retry_ms, 250);
    assert_int_equal(strlen(out[15].u.error.text), sizeof(script[0].u.error.text));
    ll_client_close(client);
}

/* Every event counts as taken, whatever it holds: what does not would be room lost for ever. */
ECHO_PEEKS static void every_event_read_gives_room_back(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 16);
    struct ll_output out[32];
    uint32_t seed = 1, taken = 0;
    struct ll_request request = echo_request(&seed, 10);

    add(LL_EV_PROMPT, 3);
    add(LL_EV_PROMPT_TOP, 2)->flags = LL_EV_LAST;
    add(LL_EV_TOKEN, 1);
    add(LL_EV_TOP, 5);
    add(LL_EV_TOP, 1)->flags = LL_EV_LAST;
    add(LL_EV_BURST, 10);
    assert_int_equal(ll_client_submit(client, &request, NULL), 0);
    for (uint32_t n = 0; n < 15;) {
        int rc = ll_client_wait(client, out, 7, (int64_t)LL_NS_PER_S);
        assert_true(rc > 0);
        n += (uint32_t)rc;
    }
    for (uint32_t i = 0; i < 16; i++)
        taken += atomic_load(&echo->client[client->client_id]->slot[i].taken);
    assert_int_equal(taken, 6);
    ll_client_close(client);
}

static void an_event_of_unknown_type_ends_the_attachment(void **state)
{
    struct ll_output last;
    uint32_t n;

    for (uint32_t type = 0; type <= 247; type += 19) {
        n_script = 0;
        add(type == 0 ? 0 : LL_EV_ERROR + type, 1);
        assert_int_equal(run(*state, 3, &last, &n), LL_E_PROTOCOL);
        assert_int_equal(last.type, LL_OUTPUT_ERROR);
        assert_int_equal(last.u.error.code, LL_E_PROTOCOL);
    }
}

static void counts_out_of_range_end_the_attachment(void **state)
{
    const struct {
        uint32_t type, n;
    } bad[] = {{LL_EV_BURST, 0},   {LL_EV_BURST, 11},   {LL_EV_TOP, 6},       {LL_EV_TOP, 0},
               {LL_EV_PROMPT, 11}, {LL_EV_PROMPT, 255}, {LL_EV_PROMPT_TOP, 6}};
    struct ll_output last;
    uint32_t n;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        n_script = 0;
        add(bad[i].type, bad[i].n);
        assert_int_equal(run(*state, 2, &last, &n), LL_E_PROTOCOL);
    }
    n_script = 0;
    add(LL_EV_TOKEN, 1)->choice = 1;
    assert_int_equal(run(*state, 2, &last, &n), LL_E_PROTOCOL);
    n_script = 0;
    add(LL_EV_ERROR, 0); /* code 0 */
    assert_int_equal(run(*state, 2, &last, &n), LL_E_PROTOCOL);
}

static void a_slot_out_of_range_ends_the_attachment(void **state)
{
    struct ll_output last;
    uint32_t n;

    add(LL_EV_TOKEN, 1)->slot = 16;
    assert_int_equal(run(*state, 1, &last, &n), LL_E_PROTOCOL);
    n_script = 0;
    add(LL_EV_TOKEN, 1)->slot = 65535;
    assert_int_equal(run(*state, 1, &last, &n), LL_E_PROTOCOL);
}

static void stale_events_and_second_ends_are_dropped(void **state)
{
    struct ll_output last;
    uint32_t n;

    add(LL_EV_TOKEN, 1)->slot = 9;         /* a free slot */
    add(LL_EV_TOKEN, 1)->gen = UINT16_MAX; /* of the request before, of the next one */
    add(LL_EV_FINISH, 0)->gen = 1;
    add(LL_EV_FINISH, 0)->u.finish.reason = LL_FINISH_STOP;
    add(LL_EV_FINISH, 0)->u.finish.reason = LL_FINISH_LENGTH;
    add(LL_EV_TOKEN, 1);
    add(LL_EV_ERROR, 0)->u.error.code = LL_E_BACKEND;
    assert_int_equal(run(*state, 1, &last, &n), 0);
    assert_int_equal(n, 1);
    assert_int_equal(last.u.finish.reason, LL_FINISH_STOP);
}

static void more_events_than_the_window_end_the_attachment(void **state)
{
    struct ll_output last;
    uint32_t n;

    for (int i = 0; i < 600; i++)
        add(LL_EV_TOKEN, 1);
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 16);
    uint32_t seed = 1;
    struct ll_request request = echo_request(&seed, 10);
    assert_int_equal(ll_client_submit(client, &request, NULL), 0);
    usleep(50000);
    /* All of them are in the ring when the first poll drains it. */
    int n_all = 0, rc;
    while ((rc = ll_client_poll(client, &last, 1)) > 0)
        n_all++;
    assert_int_equal(rc, LL_E_PROTOCOL);
    assert_int_equal(n_all, 512);
    assert_int_equal(last.u.error.code, LL_E_PROTOCOL);
    ll_client_close(client);
    n_script = 0;
    for (int i = 0; i < 256; i++)
        add(LL_EV_TOKEN, 1);
    for (int i = 0; i < 128; i++)
        add(LL_EV_CHOICE, 0);
    add(LL_EV_FINISH, 0);
    assert_int_equal(run(echo, 16, &last, &n), 0); /* an honest runtime's worst */
    assert_int_equal(n, 16 * 385);
}

static void random_events_never_harm_the_client(void **state)
{
    uint64_t rng = ll_test_seed();
    struct ll_output last;
    uint32_t n;

    for (int round = 0; round < 200; round++) {
        n_script = 1 + (uint32_t)(ll_splitmix64(&rng) % 40);
        for (uint32_t i = 0; i < n_script; i++) {
            uint64_t *words = (uint64_t *)&script[i];
            for (size_t k = 0; k < sizeof(script[i]) / 8; k++)
                words[k] = ll_splitmix64(&rng);
            if (round % 2 == 0) { /* nearly sound ones get further */
                script[i].type = (uint8_t)(1 + script[i].type % 8);
                script[i].n = script[i].n % 12;
                script[i].choice = script[i].choice % 64 == 0;
                script[i].slot = script[i].gen = 0;
            }
        }
        add(LL_EV_FINISH, 0);
        run(*state, 4, &last, &n);
    }
}

ECHO_PEEKS static void a_forged_reading_position_gets_the_client_fenced(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 16);
    struct ll_output out;
    uint32_t seed = 1;
    struct ll_request request = echo_request(&seed, 10);

    assert_int_equal(ll_client_submit(client, &request, NULL), 0); /* no answer: empty script */
    echo_await(&echo->knobs->n_words, 1);
    for (uint32_t i = 0; i < LL_ATTACHMENTS_MAX; i++)
        if (echo->client[i] != NULL) {
            atomic_store(&echo->client[i]->hot->cons_pos, 12345);
            /* The writer looks when its own count says full. */
            echo->client[i]->events.cons =
                echo->client[i]->events.prod - echo->client[i]->events.mask - 1;
        }
    assert_int_equal(ll_client_wait(client, &out, 1, (int64_t)(5 * LL_NS_PER_S)), 1);
    assert_int_equal(out.type, LL_OUTPUT_ERROR);
    assert_int_equal(out.u.error.code, LL_E_PROTOCOL);
    assert_int_equal(ll_client_wait(client, &out, 1, -1), LL_E_PROTOCOL);
    assert_non_null(strstr(ll_error_text(), "fenced"));
    assert_int_equal(ll_client_cancel(client, out.id), LL_E_PROTOCOL);
    ll_client_close(client);
    echo_await(&echo->knobs->n_detached, 1);
    client = echo_open(echo, 16); /* a new one is welcome */
    ll_client_close(client);
}

int main(void)
{
#define WITH_ECHO(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_ECHO(events_become_outputs),
        WITH_ECHO(every_event_read_gives_room_back),
        WITH_ECHO(an_event_of_unknown_type_ends_the_attachment),
        WITH_ECHO(counts_out_of_range_end_the_attachment),
        WITH_ECHO(a_slot_out_of_range_ends_the_attachment),
        WITH_ECHO(stale_events_and_second_ends_are_dropped),
        WITH_ECHO(more_events_than_the_window_end_the_attachment),
        WITH_ECHO(random_events_never_harm_the_client),
        WITH_ECHO(a_forged_reading_position_gets_the_client_fenced),
    };
    ll_control_block_signals();
    return cmocka_run_group_tests_name("client/hostile", tests, NULL, NULL);
}
