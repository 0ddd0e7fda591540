/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_fairness.c - priorities, deadlines and shares, through the whole engine on the
 * fake backend: what each tenant gets is counted in tokens its clients have read. */
#include "tests/runtime/rig.h"

static struct rig rig; /* large */

/* Jain's index of n shares: 1 when all are equal. */
static double jain(const uint64_t *share, uint32_t n)
{
    double sum = 0, squares = 0;

    for (uint32_t i = 0; i < n; i++) {
        sum += (double)share[i];
        squares += (double)share[i] * (double)share[i];
    }
    return sum * sum / (n * squares);
}

/* Tokens read of requests that have ended, by the tenant they were submitted for. */
static void count(uint64_t *got, uint32_t c, bool by_client)
{
    struct rig_client *client = &rig.client[c];

    for (uint32_t i = 0; i < client->a.n_slots; i++) {
        struct rig_request *r = &client->request[i];
        if (r->is_open || r->gen == 0 || r->n_got == 0)
            continue;
        got[by_client ? c : r->spec.tenant] += r->n_got + r->spec.n_prompt;
        r->n_got = 0;
    }
}

static void one_client_that_asks_for_a_hundred_times_as_much_gets_its_share(void **state)
{
    (void)state;
    uint64_t got[8] = {0}, seed = 1;

    rig_open(&rig, &(struct rig_config){.n_clients = 8,
                                        .n_slots = 256,
                                        .n_device_slots = 8,
                                        .n_tokens_max = 256,
                                        .n_pages = 4000});
    for (int turn = 0; turn < 60000; turn++) {
        for (uint32_t c = 0; c < 8; c++) {
            uint32_t n_open = c == 0 ? 200 : 2; /* 0 floods; the others ask for their share */
            while (rig.client[c].n_open < n_open) {
                /* Its requests are larger, too. */
                struct rig_spec spec = {.n_prompt = (20 + seed % 60) * (c == 0 ? 4 : 1),
                                        .max_tokens = (10 + seed % 13) * (c == 0 ? 4 : 1),
                                        .flags = LL_REQ_IGNORE_EOS,
                                        .seed = seed};
                seed++;
                rig_submit(&rig, c, &spec);
            }
        }
        rig_turn(&rig);
        for (uint32_t c = 0; c < 8; c++) {
            rig_read(&rig, c, UINT32_MAX);
            count(got, c, true);
        }
    }
    assert_true(got[0] > 1000);
    double index = jain(got, 8);
    if (index < 0.99)
        fail_msg("Jain's index is %.4f", index);
    rig_finish(&rig, 100000);
    rig_close(&rig);
}

static void tenants_within_a_client_share_alike(void **state)
{
    (void)state;
    uint64_t got[5] = {0}, seed = 1;
    uint32_t n_open[5] = {0};

    rig_open(&rig, &(struct rig_config){
                       .n_slots = 512, .n_device_slots = 8, .n_tokens_max = 256, .n_pages = 4000});
    for (int turn = 0; turn < 60000; turn++) {
        memset(n_open, 0, sizeof(n_open));
        for (uint32_t i = 0; i < 512; i++)
            if (rig.client[0].request[i].is_open)
                n_open[rig.client[0].request[i].spec.tenant]++;
        for (uint32_t t = 0; t < 5; t++)
            for (; n_open[t] < (t == 0 ? 300u : 3u); n_open[t]++) {
                struct rig_spec spec = {.n_prompt = (20 + seed % 60) * (t == 0 ? 4 : 1),
                                        .max_tokens = (10 + seed % 13) * (t == 0 ? 4 : 1),
                                        .flags = LL_REQ_IGNORE_EOS,
                                        .tenant = t,
                                        .seed = seed};
                seed++;
                rig_submit(&rig, 0, &spec);
            }
        rig_turn(&rig);
        rig_read(&rig, 0, UINT32_MAX);
        count(got, 0, false);
    }
    double index = jain(got, 5);
    if (index < 0.99)
        fail_msg("Jain's index is %.4f", index);
    rig_finish(&rig, 100000);
    rig_close(&rig);
}

static void a_higher_priority_overtakes_and_takes_a_slot(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.n_device_slots = 2, .checks = true});
    struct rig_spec spec = {.n_prompt = 30, .max_tokens = 500, .seed = 1, .priority = 1};
    int low[4];
    for (int i = 0; i < 4; i++) {
        spec.seed++;
        low[i] = rig_submit(&rig, 0, &spec);
    }
    for (int i = 0; i < 100; i++)
        rig_turn(&rig);
    spec.priority = -1;
    spec.max_tokens = 20;
    spec.seed = 99;
    int high = rig_submit(&rig, 0, &spec);
    struct rig_request *r = rig.client[0].request;
    for (int i = 0; i < 200 && r[high].is_open; i++) {
        rig_turn(&rig);
        rig_read(&rig, 0, UINT32_MAX);
    }
    assert_false(r[high].is_open);
    assert_true(r[low[0]].is_open && r[low[1]].is_open);
    assert_int_equal(RIG_STAT(&rig, preemptions), 1);
    rig_finish(&rig, 20000);
    for (int i = 0; i < 4; i++)
        assert_int_equal(r[low[i]].n_got, 500);
    rig_close(&rig);
}

static void who_waits_past_the_deadline_expires_at_once(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.n_device_slots = 1, .n_slots = 256});
    struct rig_spec spec = {.n_prompt = 30, .max_tokens = 800, .seed = 1};
    rig_submit(&rig, 0, &spec);
    for (int i = 0; i < 10; i++)
        rig_turn(&rig);
    uint64_t deadline_ns = rig.now_ns + 2 * LL_NS_PER_MS;
    for (uint32_t i = 0; i < 250; i++) {
        spec.seed++;
        spec.deadline_ns = i < 50 ? deadline_ns : 0;
        spec.max_tokens = i < 50 ? 1 : 800; /* by itself it could make it: it is let in */
        rig_submit(&rig, 0, &spec);
    }
    while (rig.now_ns < deadline_ns + 200 * LL_NS_PER_US) {
        rig_turn(&rig);
        rig_read(&rig, 0, UINT32_MAX);
    }
    assert_int_equal(RIG_STAT(&rig, requests_expired), 50);
    for (uint32_t i = 0; i < 256; i++)
        if (rig.client[0].request[i].is_open)
            rig_cancel(&rig, 0, i);
    rig_finish(&rig, 20000);
    rig_close(&rig);
}

/* A long prompt of the same tenant is under way: a short one does not wait for all of it. */
static void a_short_prompt_is_not_behind_all_of_a_long_one(void **state)
{
    (void)state;
    rig_open(&rig,
             &(struct rig_config){
                 .n_tokens_max = 128, .context_max = 16384, .n_slots = 16, .extra = "polls=3"});
    struct rig_spec spec = {.n_prompt = 16000, .max_tokens = 5, .seed = 1};
    int big = rig_submit(&rig, 0, &spec);
    for (int i = 0; i < 30; i++)
        rig_turn(&rig);
    spec.n_prompt = 60;
    spec.seed = 2;
    int small = rig_submit(&rig, 0, &spec);
    uint64_t steps = RIG_STAT(&rig, steps);
    struct rig_request *r = rig.client[0].request;
    while (r[small].n_got == 0) {
        rig_turn(&rig);
        rig_read(&rig, 0, UINT32_MAX);
    }
    assert_true(RIG_STAT(&rig, steps) - steps <= 4);
    assert_int_equal(r[big].n_got, 0);
    rig_finish(&rig, 20000);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_client_that_asks_for_a_hundred_times_as_much_gets_its_share),
        cmocka_unit_test(tenants_within_a_client_share_alike),
        cmocka_unit_test(a_higher_priority_overtakes_and_takes_a_slot),
        cmocka_unit_test(who_waits_past_the_deadline_expires_at_once),
        cmocka_unit_test(a_short_prompt_is_not_behind_all_of_a_long_one),
    };
    return cmocka_run_group_tests_name("runtime/fairness", tests, NULL, NULL);
}
