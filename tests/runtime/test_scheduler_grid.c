/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_scheduler_grid.c - with a grid (scheduler.h P9) a prompt's rows are its cells,
 * whatever else runs. Any load and fault: tests/sim/grid.c. */
#include "tests/runtime/scheduler_fixture.h"

static void make_grid(uint32_t n_pages, uint32_t n_tokens_max, uint32_t n_grid)
{
    make(n_pages, n_tokens_max, 10);
    f.scheduler.limits.n_grid = n_grid;
}

static void expect_row(const struct ll_plan *p, const struct ll_seq *seq, uint32_t pos, uint32_t n)
{
    const struct ll_plan_row *row = row_for(p, seq);

    assert_non_null(row);
    assert_int_equal(row->pos, pos);
    assert_int_equal(row->n_tokens, n);
}

/* A prompt as the n-th that arrived had it, then ids as they were sampled. */
static struct ll_seq *arrive_again(uint32_t nth, uint32_t n_same, uint32_t n_prompt)
{
    struct ll_seq *seq = arrive(n_prompt, 10);

    for (uint32_t i = 0; i < n_prompt; i++)
        seq->token[i] = i < n_same ? i + nth * 10000 : NEXT_ID;
    return seq;
}

static void a_cell_fits_beside_all_that_decode(void **state)
{
    struct ll_scheduler_limits limits = {
        .n_rows_max = 16, .n_tokens_max = 100, .n_slots = 16, .context_max = CONTEXT};

    (void)state;
    assert_int_equal(ll_scheduler_grid(2048, 256), LL_SCHED_GRID_MAX);
    assert_int_equal(ll_scheduler_grid(512, 256), 256);
    assert_int_equal(ll_scheduler_grid(511, 256), 192);
    assert_int_equal(ll_scheduler_grid(319, 256), 0);
    assert_int_equal(ll_scheduler_grid(8, 16), 0);
    make(10, 1000, 10);
    struct ll_scheduler other;
    limits.n_grid = 128;
    assert_int_equal(ll_scheduler_init(&other, &limits, &f.pool, &f.kv, &f.outlet, &f.stats),
                     -EINVAL);
    limits.n_grid = 50;
    assert_int_equal(ll_scheduler_init(&other, &limits, &f.pool, &f.kv, &f.outlet, &f.stats),
                     -EINVAL);
    limits.n_grid = 64;
    assert_int_equal(ll_scheduler_init(&other, &limits, &f.pool, &f.kv, &f.outlet, &f.stats), 0);
    ll_scheduler_free(&other);
}

static void a_prompt_s_rows_are_its_cells_alone_and_beside_another(void **state)
{
    (void)state;
    make_grid(100, 1000, 128);
    struct ll_seq *a = arrive(300, 10);
    expect_row(plan(), a, 0, 128); /* though all of it fits */
    apply();
    struct ll_seq *b = arrive(257, 10);
    const struct ll_plan *p = plan();
    expect_row(p, a, 128, 128);
    expect_row(p, b, 0, 128);
    apply();
    p = plan();
    expect_row(p, a, 256, 44);
    expect_row(p, b, 128, 128);
    apply();
    p = plan();
    expect_row(p, a, 300, 1);
    expect_row(p, b, 256, 1);
    assert_true(row_for(p, b)->flags & LL_ROW_SAMPLE);
    apply();
}

static void a_cell_without_room_waits_whole_and_nobody_passes_it(void **state)
{
    (void)state;
    make_grid(100, 200, 128);
    struct ll_seq *a = arrive(300, 10), *b = arrive(300, 10), *c = arrive(20, 10);
    for (uint32_t i = 0, n_b = 0; i < 5; i++) {
        const struct ll_plan *p = plan();
        if (row_for(p, a) != NULL && row_for(p, b) == NULL)
            assert_true(row_for(p, c) == NULL || b->state != LL_SEQ_RUNNING);
        if (row_for(p, b) != NULL && b->n_tokens == 300) {
            expect_row(p, b, n_b, n_b == 256 ? 44 : 128);
            n_b += 128;
        }
        apply();
    }
    run_all();
    assert_int_equal(f.pool.list[LL_SEQ_FREE].n, N_SEQS);
}

static void a_step_has_one_cell_however_short_its_time(void **state)
{
    (void)state;
    make_grid(100, 1000, 128);
    f.scheduler.limits.max_itl_ns = 1; /* no step is that short */
    learn_a_device();
    struct ll_seq *a = arrive(10, 400);
    plan();
    apply();
    struct ll_seq *b = arrive(200, 10), *c = arrive(200, 10);
    const struct ll_plan *p = plan();
    expect_row(p, a, 10, 1);
    expect_row(p, b, 0, 128);
    assert_null(row_for(p, c));
    apply();
    run_all();
    assert_int_equal(f.pool.list[LL_SEQ_FREE].n, N_SEQS);
}

static void the_cache_gives_whole_cells(void **state)
{
    (void)state;
    make_grid(100, 1000, 128);
    arrive(300, 10);
    run_all();
    struct ll_seq *b = arrive_again(1, 300, 300), *c = arrive_again(1, 250, 250),
                  *d = arrive_again(1, 256, 256);
    const struct ll_plan *p = plan();
    expect_row(p, b, 256, 44);
    expect_row(p, c, 128, 122); /* three of its pages are there, two are a cell */
    apply();
    expect_row(plan(), d, 128, 128); /* the last token is computed: and its cell with it */
    apply();
}

/* Computed a token a row, they are other numbers than a prompt's. */
static void sampled_text_is_not_found(void **state)
{
    (void)state;
    make_grid(100, 1000, 128);
    arrive(100, 200);
    run_all();
    struct ll_seq *b = arrive_again(1, 100, 290);
    expect_row(plan(), b, 0, 128);
    apply();
}

static void what_was_sampled_is_computed_again_one_by_one(void **state)
{
    (void)state;
    make_grid(3, 1000, 64);
    f.scheduler.limits.has_prefix_cache = false;
    struct ll_seq *a = arrive(54, 150), *b = arrive(54, 150);
    plan();
    apply();
    run_until(b, LL_SEQ_WAITING, LL_SWAP_NONE); /* 3 pages are not enough for both */
    while (f.n_planned > f.n_applied)
        apply();
    const uint32_t n_tokens = b->n_tokens;
    assert_true(n_tokens > 55);
    cancel(a);
    expect_row(plan(), b, 0, 54);
    apply();
    for (uint32_t pos = 54; pos < n_tokens; pos++) {
        const struct ll_plan *p = plan();
        expect_row(p, b, pos, 1);
        assert_int_equal((row_for(p, b)->flags & LL_ROW_SAMPLE) != 0, pos == n_tokens - 1);
        apply();
    }
    assert_int_equal(b->n_tokens, n_tokens + 1);
}

static void a_scored_prompt_has_a_finer_grid_and_shares_nothing(void **state)
{
    (void)state;
    make_grid(100, 1000, 128);
    struct ll_seq *a = arrive(300, 3);
    a->flags |= LL_REQ_PROMPT_LOGPROBS;
    a->n_prompt_top = 5;
    const uint32_t n_fit = ll_outlet_scored_max(a, 1);
    uint32_t pos = 0, n_cell = 0;
    for (int i = 0; pos < 300; i++) {
        const struct ll_plan *p = plan();
        if (p->n_rows > 0) {
            const struct ll_plan_row *row = row_for(p, a);
            n_cell = pos == 0 ? row->n_tokens : n_cell;
            assert_true(n_cell <= n_fit && n_cell > n_fit / 2 && 64 % n_cell == 0);
            expect_row(p, a, pos, (uint32_t)ll_min_u64(n_cell, 300 - pos));
            pos += row->n_tokens;
            apply();
        }
        atomic_store(&f.client.hot->cons_pos, f.client.a.events.prod);
        atomic_store(&f.client.slot[a->slot].taken, a->n_written);
        assert_true(i < 1000);
    }
    run_all();
    struct ll_seq *b = arrive_again(1, 300, 300);
    expect_row(plan(), b, 0, 128);
    apply();
}

int main(void)
{
#define TEST(name) cmocka_unit_test_teardown(name, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_cell_fits_beside_all_that_decode),
        TEST(a_prompt_s_rows_are_its_cells_alone_and_beside_another),
        TEST(a_cell_without_room_waits_whole_and_nobody_passes_it),
        TEST(a_step_has_one_cell_however_short_its_time),
        TEST(the_cache_gives_whole_cells),
        TEST(sampled_text_is_not_found),
        TEST(what_was_sampled_is_computed_again_one_by_one),
        TEST(a_scored_prompt_has_a_finer_grid_and_shares_nothing),
    };
    return cmocka_run_group_tests_name("runtime/scheduler, grid", tests, NULL, NULL);
}
