/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_sequence.c - the pool and its lists: Q1 of runtime/sequence.h. */
#include "tests/harness.h"

#include "runtime/sequence.h"

#define N_SEQS  5u
#define CONTEXT 300u

static int setup(void **state)
{
    static struct ll_seq_pool pool;

    *state = &pool;
    return ll_seq_pool_init(&pool, N_SEQS, CONTEXT);
}

static int teardown(void **state)
{
    ll_seq_pool_free(*state);
    return 0;
}

/* A sequence as intake leaves it. */
static struct ll_seq *waiting(struct ll_seq_pool *pool)
{
    struct ll_seq *seq = ll_seq_take(pool, 0);

    seq->n_prompt = seq->n_tokens = seq->n_copied = 10;
    seq->max_tokens = 5;
    ll_seq_move(pool, seq, LL_SEQ_WAITING);
    return seq;
}

static void each_has_its_own_arrays_of_full_length(void **state)
{
    struct ll_seq_pool *pool = *state;
    struct ll_seq *seq[N_SEQS];

    for (uint32_t i = 0; i < N_SEQS; i++) {
        seq[i] = ll_seq_take(pool, 0);
        assert_non_null(seq[i]);
        for (uint32_t k = 0; k < CONTEXT; k++)
            seq[i]->token[k] = i;
        for (uint32_t k = 0; k < pool->page_capacity; k++)
            seq[i]->page[k] = i;
        for (uint32_t k = 0; k < LL_BIAS_MAX; k++)
            seq[i]->bias[k].id = i;
    }
    for (uint32_t i = 0; i < N_SEQS; i++) {
        for (uint32_t k = 0; k < CONTEXT; k++)
            assert_int_equal(seq[i]->token[k], i);
        for (uint32_t k = 0; k < pool->page_capacity; k++)
            assert_int_equal(seq[i]->page[k], i);
        for (uint32_t k = 0; k < LL_BIAS_MAX; k++)
            assert_int_equal(seq[i]->bias[k].id, i);
    }
    assert_null(ll_seq_take(pool, 0));
    ll_seq_check(pool);
}

/* All of it, whatever fields there will be: but for the arrays, which are its own for ever. */
static void a_sequence_taken_again_is_clean(void **state)
{
    struct ll_seq_pool *pool = *state;
    struct ll_seq *seq = ll_seq_take(pool, 0);
    const struct ll_seq first = *seq;

    memset(seq, 0x5a, sizeof(*seq));
    seq->index = first.index;
    seq->state = first.state;
    seq->prev = first.prev;
    seq->next = first.next;
    seq->token = first.token;
    seq->page = first.page;
    seq->page_epoch = first.page_epoch;
    seq->bias = first.bias;
    seq->member = first.member;
    /* What it must have given back before it is FREE. */
    seq->n_in_flight = seq->n_pages = seq->n_booked = 0;
    seq->device_slot = seq->account = seq->line = LL_NONE;
    seq->leader = seq->index;
    seq->n_members = 1;
    seq->domain_id = 0;
    seq->is_marked = false;
    ll_seq_move(pool, seq, LL_SEQ_FREE);
    assert_ptr_equal(ll_seq_take(pool, 0), seq); /* the warm one comes first */
    assert_memory_equal(seq, &first, sizeof(first));
}

static void lists_keep_their_order(void **state)
{
    struct ll_seq_pool *pool = *state;
    struct ll_seq *a = waiting(pool), *b = waiting(pool), *c = waiting(pool);
    const struct ll_seq_list *list = &pool->list[LL_SEQ_WAITING];

    assert_int_equal(list->n, 3);
    assert_int_equal(list->first, a->index);
    assert_int_equal(list->last, c->index);
    ll_seq_move_front(pool, b, LL_SEQ_WAITING);
    assert_int_equal(list->first, b->index);
    assert_int_equal(b->next, a->index);
    ll_seq_move(pool, b, LL_SEQ_WAITING);
    assert_int_equal(list->last, b->index);
    assert_int_equal(list->first, a->index);
    ll_seq_check(pool);
    a->device_slot = 0;
    assert_int_equal(a->state, LL_SEQ_WAITING);
    a->device_slot = LL_NONE;
    ll_seq_move(pool, a, LL_SEQ_RUNNING);
    assert_int_equal(list->first, c->index);
    assert_int_equal(pool->list[LL_SEQ_RUNNING].n, 1);
}

static void no_fault(void *on)
{
    struct ll_seq_pool *pool = on;
    ll_seq_move(pool, waiting(pool), LL_SEQ_WAITING);
    ll_seq_check(pool);
}

static void wait_with_pages(void *on)
{
    struct ll_seq_pool *pool = on;
    struct ll_seq *seq = waiting(pool);

    ll_seq_move(pool, seq, LL_SEQ_RUNNING);
    seq->n_pages = 1;
    ll_seq_move_front(pool, seq, LL_SEQ_WAITING);
}

static void free_with_a_row_in_flight(void *on)
{
    struct ll_seq_pool *pool = on;
    struct ll_seq *seq = waiting(pool);

    ll_seq_move(pool, seq, LL_SEQ_RUNNING);
    seq->n_in_flight = 1;
    seq->end = LL_END_STOP;
    seq->is_told = true;
    ll_seq_move(pool, seq, LL_SEQ_ENDING);
    ll_seq_move(pool, seq, LL_SEQ_FREE);
}

static void free_untold(void *on)
{
    struct ll_seq_pool *pool = on;
    struct ll_seq *seq = waiting(pool);

    seq->end = LL_END_STOP;
    ll_seq_move(pool, seq, LL_SEQ_ENDING);
    ll_seq_move(pool, seq, LL_SEQ_FREE);
}

static void end_without_a_reason(void *on)
{
    struct ll_seq_pool *pool = on;
    ll_seq_move(pool, waiting(pool), LL_SEQ_ENDING);
}

static void break_a_list(void *on)
{
    struct ll_seq_pool *pool = on;
    struct ll_seq *a = waiting(pool);

    waiting(pool);
    a->next = LL_NONE;
    ll_seq_check(pool);
}

static void faults_are_noticed(void **state)
{
    assert_false(ll_test_aborts(no_fault, *state));
    assert_true(ll_test_aborts(wait_with_pages, *state));
    assert_true(ll_test_aborts(free_with_a_row_in_flight, *state));
    assert_true(ll_test_aborts(free_untold, *state));
    assert_true(ll_test_aborts(end_without_a_reason, *state));
    assert_true(ll_test_aborts(break_a_list, *state));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(each_has_its_own_arrays_of_full_length),
        TEST(a_sequence_taken_again_is_clean),
        TEST(lists_keep_their_order),
        TEST(faults_are_noticed),
    };
    return cmocka_run_group_tests_name("runtime/sequence", tests, NULL, NULL);
}
