/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_scheduler_cache.c - the prefix cache: who finds what, who shares, what goes.
 */
#include "tests/runtime/scheduler_fixture.h"

/* ---- the prefix cache -------------------------------------------------------------------------*/

static void a_prompt_seen_before_is_computed_from_its_last_page(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(200, 1);
    plan();
    struct ll_seq *b = arrive_like(a, 200, 1);
    apply(); /* a has ended, its three full pages are known */
    assert_int_equal(a->state, LL_SEQ_FREE);
    assert_int_equal(f.kv.n_idle, 3);
    const struct ll_plan *p = plan();
    assert_int_equal(p->n_rows, 1);
    assert_int_equal(p->row[0].pos, 192);
    assert_int_equal(p->row[0].n_tokens, 8);
    assert_int_equal(b->n_cached, 192);
    assert_int_equal(ll_stat_get(&f.stats.prompt_tokens_cached), 192);
    apply();
    assert_int_equal(f.kv.n_idle, 3);
}

static void the_last_token_of_a_prompt_is_always_computed(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(192, 1);
    plan();
    struct ll_seq *b = arrive_like(a, 192, 1);
    apply();
    assert_int_equal(plan()->row[0].n_tokens, 64);
    assert_int_equal(b->n_cached, 128); /* floor(191 / 64) pages */
    apply();
}

static void running_sequences_share_pages_and_never_write_them(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(130, 100);
    plan();
    apply();
    struct ll_seq *b = arrive_like(a, 130, 100);
    plan();
    assert_int_equal(b->page[0], a->page[0]);
    assert_int_equal(b->page[1], a->page[1]);
    assert_int_not_equal(b->page[2], a->page[2]);
    assert_int_equal(f.kv.page[a->page[0]].refs, 2);
    assert_false(ll_kv_may_write(&f.kv, a, 64, 65));
    assert_true(ll_kv_may_write(&f.kv, a, 130, 131));
    apply();
    run_all();
    assert_int_equal(f.pool.list[LL_SEQ_FREE].n, N_SEQS);
    assert_int_equal(ll_kv_available(&f.kv), 100);
}

static void generated_text_is_found_too(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(100, 100);
    uint32_t tokens[200];
    memcpy(tokens, a->token, sizeof(uint32_t) * 100);
    run_all();
    for (int i = 100; i < 200; i++)
        tokens[i] = NEXT_ID; /* what apply() samples */
    struct ll_seq *b = arrive(200, 1);
    memcpy(b->token, tokens, sizeof(tokens));
    plan();
    assert_int_equal(b->n_cached, 192);
    apply();
}

static void no_cache_neither_uses_nor_fills(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(200, 1);
    a->flags = LL_REQ_NO_CACHE;
    plan();
    struct ll_seq *b = arrive_like(a, 200, 1);
    apply();
    assert_int_equal(f.kv.n_idle, 0);
    plan();
    assert_int_equal(b->n_cached, 0);
    struct ll_seq *c = arrive_like(b, 200, 1);
    c->flags = LL_REQ_NO_CACHE;
    apply();
    assert_int_equal(f.kv.n_idle, 3);
    plan();
    assert_int_equal(c->n_cached, 0);
    apply();
}

static void prompt_logprobs_are_computed_whatever_is_cached(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(200, 1);
    plan();
    struct ll_seq *b = arrive_like(a, 200, 1);
    b->flags = LL_REQ_PROMPT_LOGPROBS;
    apply();
    assert_int_equal(plan()->row[0].n_scored, 199);
    apply();
}

static void who_may_not_share_finds_nothing(void **state)
{
    (void)state;
    for (int i = 0; i < 7; i++) {
        make(100, 1000, 10);
        struct ll_seq *a = arrive(200, 1);
        plan();
        struct ll_seq *b = arrive_like(a, 200, 1);
        apply();
        uint64_t *const fields[] = {&b->salt[0], &b->salt[1], &b->domain,
                                    &f.scheduler.weights_epoch};
        if (i < 4)
            ++*fields[i];
        else if (i == 4)
            b->adapter = 1;
        else if (i == 5)
            b->adapter_generation = 1;
        plan();
        assert_int_equal(b->n_cached, i == 6 ? 192 : 0); /* the last round changes nothing */
        apply();
        if (i < 6)
            teardown(NULL);
    }
}

static void a_nan_empties_the_cache(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(200, 1);
    plan();
    struct ll_seq *b = arrive_like(a, 200, 1), *c = arrive_like(a, 200, 1);
    apply();
    c->flags = LL_REQ_NO_CACHE;
    const struct ll_plan *p = plan();
    assert_int_equal(b->n_cached, 192);
    struct ll_result result = {.rows = f.out, .ext = f.ext, .n_rows = p->n_rows};
    for (uint32_t i = 0; i < p->n_rows; i++)
        f.out[i] = (struct ll_row_out){.slot = f.pool.seq[p->row[i].seq].device_slot,
                                       .status = LL_ROW_NAN};
    f.n_applied++;
    ll_scheduler_apply(&f.scheduler, p, &result, f.now_ns, f.yields);
    ll_outlet_publish(&f.outlet, f.yields, p->n_rows, f.now_ns);
    struct ll_seq *d = arrive_like(b, 200, 1);
    plan();
    assert_int_equal(d->n_cached, 0);
    apply();
}

static void idle_pages_go_the_longest_unused_first(void **state)
{
    (void)state;
    make(6, 1000, 10);
    struct ll_seq *a = arrive(130, 1);
    uint32_t prompt[130];
    memcpy(prompt, a->token, sizeof(prompt));
    plan();
    apply();
    arrive(130, 1);
    plan();
    apply();
    assert_int_equal(f.kv.n_idle, 4);
    struct ll_seq *c = arrive(200, 1); /* 4 pages: two are free, two idle ones go */
    plan();
    apply();
    assert_int_equal(c->state, LL_SEQ_FREE);
    struct ll_seq *again = arrive(130, 1);
    memcpy(again->token, prompt, sizeof(prompt));
    plan();
    assert_int_equal(again->n_cached, 0); /* a's went, the other's are there */
    apply();
}

static void idle_pages_become_free_in_pieces_for_a_long_prompt(void **state)
{
    (void)state;
    make(80, 4000, 12);
    f.scheduler.limits.context_max = CONTEXT;
    for (uint32_t i = 0; i < 5; i++) {
        struct ll_seq *a = arrive(1000, 1);
        while (a->state != LL_SEQ_FREE)
            if (plan()->n_rows > 0)
                apply();
    }
    uint32_t n_free = f.kv.n_free, n_wanted = ll_kv_pages_for(1001);
    assert_int_equal(f.kv.n_idle, 75);
    struct ll_seq *b = arrive(1000, 1);
    struct ll_planning p = {.s = &f.scheduler, .now_ns = f.now_ns, .n_starts = 1};
    ll_sched_adopt(&f.scheduler);
    for (uint32_t i = 1; n_free + 4 * i < n_wanted; i++) {
        p.n_lookups = p.n_evict = 4;
        ll_sched_admit(&p, 1000);
        assert_int_equal(f.kv.n_free, n_free + 4 * i);
        assert_int_equal(b->state, LL_SEQ_WAITING);
        check();
    }
    p.n_lookups = p.n_evict = 4;
    ll_sched_admit(&p, 1000);
    assert_int_equal(b->state, LL_SEQ_RUNNING);
    plan();
    apply();
}

static void a_call_starts_as_many_as_its_bound_and_the_next_goes_on(void **state)
{
    (void)state;
    make(100, 1000, 10);
    for (uint32_t i = 0; i < 3; i++)
        arrive(10, 5);
    struct ll_planning p = {.s = &f.scheduler, .now_ns = f.now_ns, .n_starts = 2, .n_lookups = 9};
    ll_sched_adopt(&f.scheduler);
    ll_sched_admit(&p, 1000);
    assert_int_equal(f.pool.list[LL_SEQ_RUNNING].n, 2);
    p.n_starts = 2;
    ll_sched_admit(&p, 1000);
    assert_int_equal(f.pool.list[LL_SEQ_RUNNING].n, 3);
    plan();
    apply();
}

static void what_was_cancelled_or_is_due_ends_while_the_device_works(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(10, 50), *b = arrive(10, 50);
    b->deadline_ns = f.now_ns + 50000;
    plan();
    cancel(a);
    assert_true(ll_scheduler_prepare(&f.scheduler, f.now_ns) > 0);
    assert_int_equal(a->state, LL_SEQ_ENDING);
    assert_int_equal(b->state, LL_SEQ_RUNNING);
    assert_true(ll_scheduler_prepare(&f.scheduler, b->deadline_ns) > 0);
    assert_int_equal(b->state, LL_SEQ_ENDING);
    apply();
}

static void a_long_prompt_is_looked_up_in_pieces(void **state)
{
    (void)state;
    make(200, 4000, 12);
    f.scheduler.limits.context_max = CONTEXT;
    struct ll_seq *a = arrive(1000, 1);
    uint32_t prompt[1000];
    memcpy(prompt, a->token, sizeof(prompt));
    while (a->state != LL_SEQ_FREE)
        if (plan()->n_rows > 0)
            apply();
    assert_int_equal(f.kv.n_idle, 15);
    /* With a bound of a few look-ups a call, nothing starts before all of them are made. */
    struct ll_seq *b = arrive(1000, 1);
    memcpy(b->token, prompt, sizeof(prompt));
    struct ll_planning p = {.s = &f.scheduler, .now_ns = f.now_ns, .n_starts = 1};
    ll_sched_adopt(&f.scheduler);
    for (uint32_t i = 1; i <= 3; i++) {
        p.n_lookups = 4;
        ll_sched_admit(&p, 1000);
        assert_int_equal(b->n_pages, 4 * i);
        assert_int_equal(b->state, LL_SEQ_WAITING);
        check();
    }
    p.n_lookups = 4;
    ll_sched_admit(&p, 1000);
    assert_int_equal(b->n_pages, 16);
    assert_int_equal(b->n_cached, 960);
    plan();
    apply();
}

static void a_waiting_sequence_gives_cached_pages_up_to_running_ones(void **state)
{
    (void)state;
    make(5, 1000, 10);
    struct ll_seq *a = arrive(130, 1);
    uint32_t prompt[130];
    memcpy(prompt, a->token, sizeof(prompt));
    plan();
    apply();
    struct ll_seq *b = arrive(120, 200);
    plan();
    struct ll_seq *c = arrive(250, 1); /* two cached pages and two that are not there */
    memcpy(c->token, prompt, sizeof(prompt));
    apply();
    plan();
    assert_int_equal(c->n_pages, 2);
    assert_int_equal(c->state, LL_SEQ_WAITING);
    for (int i = 0; i < 150 && c->n_pages > 0; i++) {
        apply();
        plan();
        atomic_store(&f.client.hot->cons_pos, f.client.a.events.prod);
        for (uint32_t k = 0; k < N_SEQS; k++)
            atomic_store(&f.client.slot[k].taken, f.pool.seq[k].n_written);
    }
    assert_int_equal(c->n_pages, 0);
    assert_true(b->n_pages > 3);
    assert_int_equal(ll_stat_get(&f.stats.preemptions), 0);
    apply();
}

static void who_overtakes_finds_no_pages_kept_back(void **state)
{
    (void)state;
    make(3, 1000, 10);
    struct ll_seq *a = arrive(130, 1);
    uint32_t prompt[130];
    memcpy(prompt, a->token, sizeof(prompt));
    plan();
    apply();
    assert_int_equal(f.kv.n_idle, 2);
    struct ll_seq *runs = arrive(20, 60);
    plan();
    struct ll_seq *b = arrive(130, 1); /* holds what is cached and waits for one more page */
    memcpy(b->token, prompt, sizeof(prompt));
    plan();
    assert_int_equal(b->n_pages, 2);
    struct ll_seq *c = arrive(150, 1); /* wants all pages, and goes first */
    c->flags = LL_REQ_NO_CACHE;
    c->priority = -1;
    cancel(runs);
    for (int i = 0; i < 5 && c->state != LL_SEQ_RUNNING; i++) {
        while (f.n_planned > f.n_applied)
            apply();
        plan();
    }
    assert_int_equal(c->state, LL_SEQ_RUNNING);
    apply();
    run_all();
    assert_int_equal(f.pool.list[LL_SEQ_FREE].n, N_SEQS);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_teardown(name, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_prompt_seen_before_is_computed_from_its_last_page),
        TEST(the_last_token_of_a_prompt_is_always_computed),
        TEST(running_sequences_share_pages_and_never_write_them),
        TEST(generated_text_is_found_too),
        TEST(no_cache_neither_uses_nor_fills),
        TEST(prompt_logprobs_are_computed_whatever_is_cached),
        TEST(who_may_not_share_finds_nothing),
        TEST(a_nan_empties_the_cache),
        TEST(idle_pages_go_the_longest_unused_first),
        TEST(idle_pages_become_free_in_pieces_for_a_long_prompt),
        TEST(a_call_starts_as_many_as_its_bound_and_the_next_goes_on),
        TEST(what_was_cancelled_or_is_due_ends_while_the_device_works),
        TEST(a_long_prompt_is_looked_up_in_pieces),
        TEST(a_waiting_sequence_gives_cached_pages_up_to_running_ones),
        TEST(who_overtakes_finds_no_pages_kept_back),
    };
    return cmocka_run_group_tests_name("runtime/scheduler, prefix cache", tests, NULL, NULL);
}
