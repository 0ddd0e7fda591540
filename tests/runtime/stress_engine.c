/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/stress_engine.c - random runs of the engine on the fake backend, from one seed.
 *
 * Each round draws a configuration (pages, budgets, ring sizes, depth, faults) and a load (lengths,
 * logprobs, cancels, stops, deadlines, slow and dead readers), on a clock of its own. The rig
 * checks every event, the engine its invariants after every turn; at the end of a round everything
 * must be given back and the ledger must add up. The same seed gives the same run: the trace's hash
 * says so. LL_TEST_SEED replays one round. */
#include "tests/runtime/rig.h"

static struct rig rig; /* large */

struct round {
    uint64_t random, hash;
    uint32_t n_turns, n_requests;
    uint32_t read_chance[RIG_CLIENTS_MAX]; /* of 256, a turn */
    uint32_t cancel_chance, stop_chance, submit_chance;
    bool has_logprobs, has_deadlines;
    uint32_t n_priorities, n_tenants;
    uint32_t n_prefixes; /* prompts begin with one of so many; 0: all differ */
};

static uint32_t draw(struct round *r, uint32_t n)
{
    return (uint32_t)(ll_splitmix64(&r->random) >> 33) % n;
}

static uint32_t one_of(struct round *r, const uint32_t *list, uint32_t n)
{
    return list[draw(r, n)];
}
#define ONE_OF(r, ...)                                                                             \
    one_of((r), (const uint32_t[]){__VA_ARGS__},                                                   \
           sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

static void open_round(struct round *r, char *extra, size_t n_extra)
{
    uint32_t n_slots = ONE_OF(r, 1, 3, 16, 64);
    struct rig_config c = {
        .extra = extra,
        .eos_permille = ONE_OF(r, 0, 10, 200),
        .n_pages = ONE_OF(r, 9, 12, 20, 60, 400),
        .n_host_pages = ONE_OF(r, 0, 0, 5, 30),
        .always_swaps = draw(r, 2),
        .n_device_slots = n_slots,
        .n_rows_max = draw(r, 2) ? n_slots : 1 + draw(r, n_slots),
        .n_tokens_max = ONE_OF(r, 1, 7, 64, 300, 2000),
        .context_max = 512,
        .n_clients = 1 + draw(r, 4),
        .n_slots = ONE_OF(r, 16, 32, 64),
        .log2_events = ONE_OF(r, 7, 8, 12),
        .stall_ns = 50 * LL_NS_PER_MS,
        .checks = true,
        .has_no_cache = draw(r, 4) == 0,
    };

    snprintf(extra, n_extra, "depth=%u,polls=%u,verify=%u", 1 + draw(r, 2), ONE_OF(r, 1, 2, 7),
             draw(r, 4) > 0);
    for (uint32_t i = 0; i < c.n_clients; i++)
        r->read_chance[i] = ONE_OF(r, 256, 256, 256, 60, 3, 0);
    r->submit_chance = ONE_OF(r, 5, 60, 255);
    r->cancel_chance = ONE_OF(r, 0, 0, 4, 30);
    r->stop_chance = ONE_OF(r, 0, 0, 4);
    r->has_logprobs = draw(r, 3) == 0;
    r->n_priorities = ONE_OF(r, 1, 1, 2, 5);
    r->n_tenants = ONE_OF(r, 1, 1, 3, 20);
    r->n_prefixes = ONE_OF(r, 0, 1, 3, 20);
    r->has_deadlines = draw(r, 4) == 0;
    rig_open(&rig, &c);
}

static void submit_some(struct round *r, uint32_t client)
{
    struct rig_spec spec = {
        .n_prompt = 1 + draw(r, ONE_OF(r, 10, 100, 400)),
        .max_tokens = 1 + draw(r, ONE_OF(r, 3, 30, 110)),
        .seed = ll_splitmix64(&r->random),
    };

    if (r->n_prefixes > 0) {
        spec.shared_seed = draw(r, r->n_prefixes);
        spec.n_shared = draw(r, spec.n_prompt + 1);
        spec.salt = draw(r, 8) == 0;
        if (draw(r, 8) == 0)
            spec.flags |= LL_REQ_NO_CACHE;
    }
    spec.min_tokens = draw(r, 3) == 0 ? draw(r, spec.max_tokens) : 0;
    spec.flags |= draw(r, 8) == 0 ? LL_REQ_IGNORE_EOS : 0;
    if (r->has_logprobs) {
        spec.n_top = (uint8_t)draw(r, LL_TOP_MAX + 1);
        if (draw(r, 2)) {
            spec.flags |= LL_REQ_PROMPT_LOGPROBS;
            spec.n_prompt_top = (uint8_t)draw(r, LL_TOP_MAX + 1);
        }
    }
    spec.priority = (int8_t)((int)draw(r, r->n_priorities) - 1);
    spec.tenant = draw(r, r->n_tenants);
    if (r->has_deadlines && draw(r, 2))
        spec.deadline_ns = rig.now_ns + draw(r, 20) * LL_NS_PER_MS;
    if (rig_submit(&rig, client, &spec) >= 0)
        r->n_requests++;
}

/* What clients do between two turns. */
static void act(struct round *r)
{
    for (uint32_t i = 0; i < rig.c.n_clients; i++) {
        struct rig_client *client = &rig.client[i];
        if (client->is_gone)
            continue;
        if (draw(r, 256) < r->submit_chance)
            submit_some(r, i);
        uint32_t slot = draw(r, client->a.n_slots);
        if (client->request[slot].is_open && draw(r, 256) < r->cancel_chance)
            rig_cancel(&rig, i, slot);
        if (client->request[slot].is_open && draw(r, 256) < r->stop_chance)
            rig_stop(&rig, i, slot);
        if (draw(r, 256) < r->read_chance[i])
            r->hash = r->hash * 31 + rig_read(&rig, i, 1 + draw(r, 60));
        if (rig.c.n_clients > 1 && draw(r, 4000) == 0) {
            client->is_gone = true;
            rig_mail(&rig, LL_MAIL_DETACH, &client->a, draw(r, 2));
        }
    }
}

static uint64_t run_round(uint64_t seed)
{
    struct round r = {.random = seed};
    char extra[100];

    open_round(&r, extra, sizeof(extra));
    r.n_turns = 300 + draw(&r, 1500);
    for (uint32_t i = 0; i < r.n_turns; i++) {
        act(&r);
        int work = rig_turn(&rig);
        assert_true(work >= 0);
        r.hash = r.hash * 31 + (uint64_t)work;
    }
    /* Who is left reads again, and all comes to an end. */
    rig_finish(&rig, 400000);
    for (int i = 0; i < 200; i++)
        rig_turn(&rig);
    r.hash = r.hash * 31 + rig.n_events;
    r.hash = r.hash * 31 + RIG_STAT(&rig, preemptions);
    r.hash = r.hash * 31 + RIG_STAT(&rig, requests_finished);
    r.hash = r.hash * 31 + RIG_STAT(&rig, prompt_tokens_cached);
    r.hash = r.hash * 31 + RIG_STAT(&rig, preemptions_swapped);
    rig_close(&rig);
    return r.hash;
}

static void random_rounds_keep_every_promise(void **state)
{
    (void)state;
    uint64_t seed = ll_test_seed();
    uint64_t end_ns = ll_now_ns() + (uint64_t)(ll_test_seconds(3) * 1e9);
    bool is_replay = getenv("LL_TEST_SEED") != NULL;
    uint32_t n_rounds = 0;

    do { /* the first round is the printed seed's, so that a failure can be replayed */
        printf("\rround %u, seed %#llx ", ++n_rounds, (unsigned long long)seed);
        fflush(stdout);
        run_round(seed);
        ll_splitmix64(&seed);
    } while (!is_replay && ll_now_ns() < end_ns);
    printf("\n");
}

static void the_same_seed_gives_the_same_run(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        uint64_t first = run_round(seed), second = run_round(seed);
        assert_true(first == second);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_seed_gives_the_same_run),
        cmocka_unit_test(random_rounds_keep_every_promise),
    };
    return cmocka_run_group_tests_name("runtime/engine, random", tests, NULL, NULL);
}
