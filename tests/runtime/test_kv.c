/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_kv.c - the page pool: K1 to K4 of runtime/kv.h. */
#include "tests/harness.h"

#include "base/rng.h"
#include "runtime/kv.h"

#define N_SEQS  8u
#define N_PAGES 20u

struct fixture {
    struct ll_seq_pool pool;
    struct ll_kv kv;
};

static int setup(void **state)
{
    static struct fixture f;

    *state = &f;
    return ll_seq_pool_init(&f.pool, N_SEQS, 1024) < 0 || ll_kv_init(&f.kv, N_PAGES, 10, 1) < 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    ll_kv_free(&f->kv);
    ll_seq_pool_free(&f->pool);
    return 0;
}

static void pages_are_counted_in_64_tokens(void **state)
{
    (void)state;
    assert_int_equal(ll_kv_pages_for(0), 0);
    assert_int_equal(ll_kv_pages_for(1), 1);
    assert_int_equal(ll_kv_pages_for(64), 1);
    assert_int_equal(ll_kv_pages_for(65), 2);
}

static void growing_takes_only_what_is_missing(void **state)
{
    struct fixture *f = *state;
    struct ll_seq *seq = ll_seq_take(&f->pool, 0);

    assert_true(ll_kv_grow(&f->kv, seq, 100));
    assert_int_equal(seq->n_pages, 2);
    uint32_t first = seq->page[0];
    assert_true(ll_kv_grow(&f->kv, seq, 128));
    assert_int_equal(seq->n_pages, 2);
    assert_true(ll_kv_grow(&f->kv, seq, 129));
    assert_int_equal(seq->n_pages, 3);
    assert_int_equal(seq->page[0], first);
    assert_int_equal(f->kv.n_free, N_PAGES - 3);
    ll_kv_check(&f->kv, &f->pool);
    ll_kv_release(&f->kv, seq);
    assert_int_equal(f->kv.n_free, N_PAGES);
    ll_kv_check(&f->kv, &f->pool);
}

static void a_pool_too_small_gives_nothing_rather_than_some(void **state)
{
    struct fixture *f = *state;
    struct ll_seq *a = ll_seq_take(&f->pool, 0), *b = ll_seq_take(&f->pool, 0);

    assert_true(ll_kv_grow(&f->kv, a, 64 * 15));
    assert_false(ll_kv_grow(&f->kv, b, 64 * 6));
    assert_int_equal(b->n_pages, 0);
    assert_int_equal(f->kv.n_free, 5);
    assert_true(ll_kv_grow(&f->kv, b, 64 * 5));
    assert_int_equal(f->kv.n_free, 0);
    ll_kv_check(&f->kv, &f->pool);
    ll_kv_release(&f->kv, a);
    ll_kv_release(&f->kv, b);
}

static void random_growth_keeps_every_page_with_one_owner(void **state)
{
    struct fixture *f = *state;
    struct ll_seq *seq[N_SEQS];
    uint64_t random = ll_test_seed();

    for (uint32_t i = 0; i < N_SEQS; i++)
        seq[i] = ll_seq_take(&f->pool, 0);
    for (int round = 0; round < 20000; round++) {
        uint64_t r = ll_splitmix64(&random);
        struct ll_seq *s = seq[r % N_SEQS];
        uint32_t n_before = s->n_pages, n_free = f->kv.n_free;
        if (r >> 8 & 1) {
            ll_kv_release(&f->kv, s);
        } else {
            uint32_t n_wanted = ll_kv_pages_for((r >> 16) % 1024);
            bool fits = n_wanted <= n_before + n_free;
            assert_int_equal(ll_kv_grow(&f->kv, s, (r >> 16) % 1024), fits);
        }
        ll_kv_check(&f->kv, &f->pool);
    }
}

static void a_shared_page_is_free_only_when_nobody_holds_it(void **state)
{
    struct fixture *f = *state;
    struct ll_seq *a = ll_seq_take(&f->pool, 0), *b = ll_seq_take(&f->pool, 0);

    ll_kv_grow(&f->kv, a, 128);
    ll_kv_share(&f->kv, a, 0);
    ll_kv_attach(&f->kv, b, a->page[0]);
    ll_kv_check(&f->kv, &f->pool);
    assert_false(ll_kv_may_write(&f->kv, a, 0, 1)); /* K1 */
    assert_false(ll_kv_may_write(&f->kv, b, 0, 1));
    assert_true(ll_kv_may_write(&f->kv, a, 64, 128));
    assert_false(ll_kv_may_write(&f->kv, a, 64, 129)); /* no such page */
    ll_kv_release(&f->kv, a);
    assert_int_equal(f->kv.n_free, N_PAGES - 1);
    ll_kv_check(&f->kv, &f->pool);
    ll_kv_release(&f->kv, b);
    assert_int_equal(f->kv.n_free, N_PAGES);
}

static void a_published_page_is_idle_until_it_is_wanted(void **state)
{
    struct fixture *f = *state;
    struct ll_seq *a = ll_seq_take(&f->pool, 0), *b = ll_seq_take(&f->pool, 0);

    ll_kv_grow(&f->kv, a, 200);
    for (uint32_t i = 0; i < 3; i++)
        ll_kv_publish(&f->kv, a, i, (struct ll_chain){i, i});
    uint32_t first = a->page[0], last = a->page[2];
    ll_kv_release(&f->kv, a);
    assert_int_equal(f->kv.n_idle, 3);
    assert_int_equal(ll_kv_available(&f->kv), N_PAGES);
    ll_kv_check(&f->kv, &f->pool);
    assert_int_equal(f->kv.idle_first, last); /* a prefix loses its end first */
    ll_kv_attach(&f->kv, b, first);
    assert_int_equal(f->kv.n_idle, 2);
    ll_kv_check(&f->kv, &f->pool);
    assert_int_equal(ll_kv_evict(&f->kv, N_PAGES, 1), 1);
    assert_false(ll_prefix_has(&f->kv.index, last)); /* nor does what was used last go first */
    assert_int_equal(ll_kv_evict(&f->kv, N_PAGES - 2, 8), 0); /* so many are free already */
    assert_true(ll_kv_grow(&f->kv, b, 10 * 64));
    assert_true(ll_kv_grow(&f->kv, a, 10 * 64)); /* all, the last idle one too */
    assert_int_equal(f->kv.index.n_indexed, 1);
    ll_kv_check(&f->kv, &f->pool);
    ll_kv_release(&f->kv, a);
    ll_kv_release(&f->kv, b);
}

static void no_fault(void *on)
{
    struct fixture *f = on;
    ll_kv_check(&f->kv, &f->pool);
}

static void free_foreign_page(void *on)
{
    struct fixture *f = on;
    struct ll_seq *a = ll_seq_take(&f->pool, 0), *b = ll_seq_take(&f->pool, 0);

    ll_kv_grow(&f->kv, a, 64);
    ll_kv_grow(&f->kv, b, 64);
    b->page[0] = a->page[0];
    ll_kv_release(&f->kv, b);
}

static void lose_page(void *on)
{
    struct fixture *f = on;
    struct ll_seq *a = ll_seq_take(&f->pool, 0);

    ll_kv_grow(&f->kv, a, 128);
    a->n_pages = 1;
    ll_kv_check(&f->kv, &f->pool);
}

static void double_page(void *on)
{
    struct fixture *f = on;
    struct ll_seq *a = ll_seq_take(&f->pool, 0);

    ll_kv_grow(&f->kv, a, 128);
    a->page[1] = a->page[0];
    ll_kv_check(&f->kv, &f->pool);
}

static void write_in_secret(void *on)
{
    struct fixture *f = on;
    struct ll_seq *a = ll_seq_take(&f->pool, 0), *b = ll_seq_take(&f->pool, 0);

    ll_kv_grow(&f->kv, a, 64);
    ll_kv_share(&f->kv, a, 0);
    ll_kv_attach(&f->kv, b, a->page[0]);
    f->kv.page[a->page[0]].owner = a->index; /* as if it might still be written */
    ll_kv_check(&f->kv, &f->pool);
}

static void hold_a_page_of_old(void *on)
{
    struct fixture *f = on;
    struct ll_seq *a = ll_seq_take(&f->pool, 0), *b = ll_seq_take(&f->pool, 0);

    ll_kv_grow(&f->kv, a, 64);
    b->page[0] = a->page[0];
    b->page_epoch[0] = a->page_epoch[0];
    ll_kv_release(&f->kv, a);
    ll_kv_grow(&f->kv, a, 64); /* the same page, another epoch */
    ll_kv_share(&f->kv, a, 0);
    b->n_pages = 1;
    ll_kv_release(&f->kv, b);
}

static void attach_a_free_page(void *on)
{
    struct fixture *f = on;
    struct ll_seq *a = ll_seq_take(&f->pool, 0);

    ll_kv_attach(&f->kv, a, 0);
}

static void faults_are_noticed(void **state)
{
    struct fixture *f = *state;

    assert_false(ll_test_aborts(no_fault, f));
    assert_true(ll_test_aborts(free_foreign_page, f));
    assert_true(ll_test_aborts(lose_page, f));
    assert_true(ll_test_aborts(double_page, f));
    assert_true(ll_test_aborts(write_in_secret, f));
    assert_true(ll_test_aborts(hold_a_page_of_old, f));
    assert_true(ll_test_aborts(attach_a_free_page, f));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_counted_in_64_tokens),
        TEST(growing_takes_only_what_is_missing),
        TEST(a_pool_too_small_gives_nothing_rather_than_some),
        TEST(random_growth_keeps_every_page_with_one_owner),
        TEST(a_shared_page_is_free_only_when_nobody_holds_it),
        TEST(a_published_page_is_idle_until_it_is_wanted),
        TEST(faults_are_noticed),
    };
    return cmocka_run_group_tests_name("runtime/kv", tests, NULL, NULL);
}
