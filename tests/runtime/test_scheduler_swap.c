/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_scheduler_swap.c - pages run out: who gives way, what is swapped, what is
 * computed again. */
#include "tests/runtime/scheduler_fixture.h"

/* ---- pages run out ----------------------------------------------------------------------------*/

static void the_one_admitted_last_gives_way_to_the_front_of_the_queue(void **state)
{
    (void)state;
    struct ll_seq *a, *b;
    make_two(&a, &b);
    struct ll_seq *c = arrive(54, 5);
    for (int i = 0; i < 100 && b->state == LL_SEQ_RUNNING; i++)
        if (plan()->n_rows > 0)
            apply();
    assert_int_equal(b->state, LL_SEQ_WAITING);
    assert_ptr_equal(ll_queue_first(&f.scheduler.queue), b);
    assert_int_equal(c->state, LL_SEQ_WAITING);
    assert_int_equal(b->n_pages, 0);
    assert_int_equal(ll_stat_get(&f.stats.preemptions), 1);
    assert_true(b->n_tokens > 54); /* what it sampled is not lost */
    uint32_t n_sampled = b->n_tokens;
    cancel(a);
    const struct ll_plan *p = plan();
    assert_int_equal(row_for(p, b)->pos, 0);
    assert_int_equal(row_for(p, b)->n_tokens, n_sampled);
    assert_true(b->needs_init);
    apply();
    assert_int_equal(b->n_tokens, n_sampled + 1);
}

static void a_victim_with_a_row_in_flight_keeps_its_token(void **state)
{
    (void)state;
    struct ll_seq *a, *b;
    make_two(&a, &b);
    for (int i = 0; i < 100 && !b->is_preempted; i++) { /* always one step ahead */
        if (f.n_planned - f.n_applied == DEPTH)
            apply();
        plan();
    }
    uint32_t n_tokens = b->n_tokens;
    assert_int_equal(b->state, LL_SEQ_RUNNING);
    assert_int_equal(b->n_in_flight, 1);
    assert_true(b->n_pages > 0); /* P5 */
    while (f.n_planned - f.n_applied > 0)
        apply();
    assert_int_equal(b->state, LL_SEQ_WAITING);
    assert_int_equal(b->n_tokens, n_tokens + 1);
    assert_int_equal(b->n_pages, 0);
}

static void pages_that_are_coming_cost_no_second_victim(void **state)
{
    (void)state;
    make(5, 1000, 10);
    struct ll_seq *a = arrive(54, 200), *b = arrive(54, 200);
    plan();
    apply();
    struct ll_seq *c = arrive(56, 200);
    c->priority = 1; /* goes before b would give way itself */
    plan();          /* a page each, two are free */
    apply();
    plan(); /* c takes one for its 57th token */
    plan(); /* a takes the other for its 57th, b finds none */
    /* c gives way, but has rows in flight: b waits for its pages, nobody else goes. */
    assert_true(c->is_preempted);
    assert_int_equal(b->n_pages, 1);
    assert_int_equal(a->n_pages, 2);
    apply();
    assert_int_equal(c->state, LL_SEQ_RUNNING);
    apply();
    assert_int_equal(c->state, LL_SEQ_WAITING);
    assert_non_null(row_for(plan(), b));
    assert_int_equal(b->n_pages, 2);
    assert_int_equal(a->state, LL_SEQ_RUNNING);
    assert_int_equal(ll_stat_get(&f.stats.preemptions), 1);
}

static void what_the_gate_let_through_wrongly_fails_alone(void **state)
{
    (void)state;
    make(2, 1000, 10);
    struct ll_seq *never = arrive(200, 10);
    struct ll_seq *grows = arrive(60, 200);
    plan();
    assert_int_equal(never->end, LL_END_FAILED);
    assert_int_equal(never->end_code, LL_E_NEVER_FITS);
    for (int i = 0; i < 100 && grows->end == LL_END_NONE; i++) {
        if (f.n_planned > f.n_applied)
            apply();
        plan();
    }
    assert_int_equal(grows->end_code, LL_E_NEVER_FITS);
    /* With n tokens known, n - 1 are in pages, and those of a whole row must be there too. */
    assert_int_equal(grows->n_tokens, 2 * 64 - LL_ROW_TOKENS_MAX + 1);
}

/* ---- swap -------------------------------------------------------------------------------------*/

/* As make_two(), with swap whatever it costs. */
static void make_two_that_swap(struct ll_seq **a, struct ll_seq **b)
{
    make_two(a, b);
    f.scheduler.limits.is_deterministic = true;
}

static void a_victim_goes_to_the_host_and_comes_back_without_computing(void **state)
{
    (void)state;
    struct ll_seq *a, *b;
    make_two_that_swap(&a, &b);
    f.scheduler.limits.has_prefix_cache = false;
    lower(b); /* the one to give way */
    for (int i = 0; i < 100 && b->swap == LL_SWAP_NONE; i++) {
        while (f.n_planned > f.n_applied)
            apply();
        plan();
    }
    /* The plan lists the copy of b's page; the page is b's until it is done. */
    const struct ll_plan *p = &f.plan[(f.n_planned - 1) % (DEPTH + 1)];
    assert_int_equal(b->swap, LL_SWAP_OUT);
    assert_int_equal(p->n_copies, 1);
    assert_int_equal(p->copy[0].kind, LL_COPY_D2H);
    assert_int_equal(p->copy[0].src, b->page[0]);
    uint32_t host_page = p->copy[0].dst, n_tokens = b->n_tokens + b->n_in_flight, n_kv = b->pos_hi;
    uint64_t batch = p->copy_batch;
    assert_int_equal(f.kv.n_host_free, 7);
    while (f.n_planned > f.n_applied)
        apply();
    assert_int_equal(b->state, LL_SEQ_RUNNING); /* still being copied */
    assert_int_equal(b->n_pages, 1);
    ll_scheduler_copied(&f.scheduler, batch);
    check();
    assert_int_equal(b->state, LL_SEQ_WAITING);
    assert_int_equal(b->swap, LL_SWAP_HELD);
    assert_int_equal(b->n_pages, 0);
    assert_int_equal(b->n_tokens, n_tokens); /* what was in flight counts */

    cancel(a);
    p = plan(); /* b comes back: nothing to run before its pages are there */
    assert_int_equal(p->n_rows, 0);
    assert_int_equal(p->n_copies, 1);
    assert_int_equal(p->copy[0].kind, LL_COPY_H2D);
    assert_int_equal(p->copy[0].src, host_page);
    assert_int_equal(p->copy[0].dst, b->page[0]);
    batch = p->copy_batch;
    assert_int_equal(b->state, LL_SEQ_RUNNING);
    assert_int_equal(plan()->n_rows, 0);
    ll_scheduler_copied(&f.scheduler, batch);
    check();
    assert_int_equal(f.kv.n_host_free, 8);
    p = plan();
    assert_int_equal(row_for(p, b)->pos, n_kv); /* goes on where it was */
    assert_int_equal(row_for(p, b)->n_tokens, 1);
    assert_true(b->needs_init);
    assert_int_equal(ll_stat_get(&f.stats.preemptions_swapped), 1);
    apply();
}

static void what_ends_while_it_is_copied_keeps_its_pages_until_then(void **state)
{
    (void)state;
    struct ll_seq *a, *b;
    make_two_that_swap(&a, &b);
    lower(b);
    run_until(b, LL_SEQ_RUNNING, LL_SWAP_OUT);
    cancel(b);
    while (f.n_planned > f.n_applied)
        apply();
    plan();
    assert_int_equal(b->state, LL_SEQ_ENDING);
    assert_true(b->n_pages > 0 && b->n_host > 0);
    ll_outlet_publish(&f.outlet, NULL, 0, f.now_ns);
    assert_true(b->is_told); /* its client does not wait for that */
    assert_int_equal(b->state, LL_SEQ_ENDING);
    ll_scheduler_copied(&f.scheduler, 1);
    assert_int_equal(b->n_pages, 0);
    ll_outlet_publish(&f.outlet, NULL, 0, f.now_ns);
    assert_int_equal(b->state, LL_SEQ_FREE);
    assert_int_equal(f.kv.n_host_free, 8);
    while (f.n_planned > f.n_applied)
        apply();
}

static void what_waits_on_the_host_gives_its_pages_back_at_its_end(void **state)
{
    (void)state;
    struct ll_seq *a, *b;
    make_two_that_swap(&a, &b);
    lower(b);
    run_until(b, LL_SEQ_RUNNING, LL_SWAP_OUT);
    while (f.n_planned > f.n_applied)
        apply();
    ll_scheduler_copied(&f.scheduler, 1);
    assert_int_equal(b->swap, LL_SWAP_HELD);
    cancel(b);
    plan();
    assert_int_equal(f.kv.n_host_free, 8);
    assert_int_equal(b->end, LL_END_CANCELLED);
    apply();
}

static void without_host_pages_a_victim_is_computed_again(void **state)
{
    (void)state;
    struct ll_seq *a, *b;
    make_two_that_swap(&a, &b);
    lower(b);
    struct ll_seq *other = &f.pool.seq[N_SEQS - 1];
    assert_true(ll_kv_host_take(&f.kv, other, 8)); /* all are in use */
    other->swap = LL_SWAP_HELD;
    run_until(b, LL_SEQ_WAITING, LL_SWAP_NONE);
    assert_int_equal(ll_stat_get(&f.stats.preemptions), 1);
    ll_kv_host_drop(&f.kv, other, 8);
    other->swap = LL_SWAP_NONE;
    apply();
}

static void the_model_says_whether_to_copy_or_to_compute(void **state)
{
    (void)state;
    for (int round = 0; round < 2; round++) {
        struct ll_seq *a, *b;
        make_two(&a, &b);
        lower(b);
        learn_a_device(); /* 57 tokens: 0.57 ms */
        f.scheduler.cost.copy_ns = round == 0 ? 200000 : 400000;
        for (int i = 0; i < 100 && ll_stat_get(&f.stats.preemptions) == 0; i++) {
            while (f.n_planned > f.n_applied)
                apply();
            plan();
        }
        assert_int_equal(ll_stat_get(&f.stats.preemptions), 1);
        assert_int_equal(ll_stat_get(&f.stats.preemptions_swapped), round == 0);
        while (f.n_planned > f.n_applied)
            apply();
        if (round == 0)
            teardown(NULL);
    }
}

static void the_cache_spares_copies_back(void **state)
{
    (void)state;
    make(7, 1000, 10);
    f.scheduler.limits.is_deterministic = true;
    struct ll_seq *a = arrive(150, 200), *b = arrive(140, 200);
    b->priority = 1;
    plan();
    apply();
    plan(); /* b, 4 pages are free */
    apply();
    run_until(b, LL_SEQ_RUNNING, LL_SWAP_OUT);
    uint32_t n_copies = 0;
    for (uint64_t batch = 1; b->state == LL_SEQ_RUNNING; batch++) {
        while (f.n_planned > f.n_applied)
            apply();
        ll_scheduler_copied(&f.scheduler, batch);
    }
    uint32_t n_host = b->n_host;
    cancel(a);
    const struct ll_plan *p = plan();
    n_copies = p->n_copies;
    assert_int_equal(b->n_attached + n_copies, n_host);
    assert_true(b->n_attached >= 1);
    assert_int_equal(b->pos_hi, b->n_swapped);
    ll_scheduler_copied(&f.scheduler, f.scheduler.n_copy_batches);
    assert_int_equal(row_for(plan(), b)->n_tokens, 1);
    apply();
}

int main(void)
{
#define TEST(name) cmocka_unit_test_teardown(name, teardown)
    const struct CMUnitTest tests[] = {
        TEST(the_one_admitted_last_gives_way_to_the_front_of_the_queue),
        TEST(a_victim_with_a_row_in_flight_keeps_its_token),
        TEST(pages_that_are_coming_cost_no_second_victim),
        TEST(what_the_gate_let_through_wrongly_fails_alone),
        TEST(a_victim_goes_to_the_host_and_comes_back_without_computing),
        TEST(what_ends_while_it_is_copied_keeps_its_pages_until_then),
        TEST(what_waits_on_the_host_gives_its_pages_back_at_its_end),
        TEST(without_host_pages_a_victim_is_computed_again),
        TEST(the_model_says_whether_to_copy_or_to_compute),
        TEST(the_cache_spares_copies_back),
    };
    return cmocka_run_group_tests_name("runtime/scheduler, pages run out", tests, NULL, NULL);
}
