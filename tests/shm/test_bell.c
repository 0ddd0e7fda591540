/* SPDX-License-Identifier: Apache-2.0 */
/* tests/shm/test_bell.c - one thread: the rules B1..B4 of shm/bell.h, the wrap of the lap, full and
 * damaged rings. All interleavings are in test_bell_explorer.c, killed producers in stress_bell.c.
 */
#include "tests/harness.h"

#include "base/bits.h"
#include "ll/client.h"
#include "shm/bell.h"

#define LOG2_WORDS 5u
#define N_WORDS    (1u << LOG2_WORDS)

struct fixture {
    void *memory;
    struct ll_bell bell;
    struct ll_bell_reader reader;
};

static struct fixture fixture;

static void start_at(struct fixture *f, uint32_t lap)
{
    ll_bell_init(&f->bell, f->memory, LOG2_WORDS, lap);
    ll_bell_reader_init(&f->reader, &f->bell);
}

static int setup(void **state)
{
    fixture.memory = aligned_alloc(4096, ll_align_up(ll_bell_bytes(LOG2_WORDS), 4096));
    start_at(&fixture, 0);
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    free(((struct fixture *)*state)->memory);
    return 0;
}

static _Atomic uint64_t *word_at(struct fixture *f, uint64_t position)
{
    return &f->bell.head->word[position % N_WORDS];
}

/* n pushes and pops of distinct payloads, one by one. */
static void run(struct fixture *f, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t payload = ~0u;
        assert_true(ll_bell_push(&f->bell, i));
        assert_false(ll_bell_is_empty(&f->reader));
        assert_int_equal(ll_bell_pop(&f->reader, &payload), 1);
        assert_int_equal(payload, i);
        assert_true(ll_bell_is_empty(&f->reader));
        assert_int_equal(ll_bell_pop(&f->reader, &payload), 0);
    }
}

static void words_come_out_in_the_order_they_went_in(void **state)
{
    struct fixture *f = *state;

    for (uint32_t round = 0; round < 1000; round++) {
        uint32_t n = round % (N_WORDS + 1), payload;
        for (uint32_t i = 0; i < n; i++)
            assert_true(ll_bell_push(&f->bell, round << 8 | i));
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(ll_bell_pop(&f->reader, &payload), 1);
            assert_int_equal(payload, round << 8 | i);
        }
        assert_int_equal(ll_bell_pop(&f->reader, &payload), 0);
    }
    assert_int_equal(ll_bell_position(&f->reader), 1000 / 33 * (32 * 33 / 2) + 10 * 9 / 2);
}

static void a_payload_has_31_bits_and_all_arrive(void **state)
{
    struct fixture *f = *state;
    uint32_t in = ll_word_pack(LL_OP_STOP, 511, 1023, 1023), out;

    assert_true(ll_bell_push(&f->bell, in));
    assert_int_equal(ll_bell_pop(&f->reader, &out), 1);
    assert_int_equal(out, in);
    assert_int_equal(ll_word_op(out), LL_OP_STOP);
    assert_int_equal(ll_word_client(out), 511);
    assert_int_equal(ll_word_incarnation(out), 1023);
    assert_int_equal(ll_word_slot(out), 1023);
    assert_true(ll_bell_push(&f->bell, UINT32_MAX)); /* bit 31 is the ring's own */
    assert_int_equal(ll_bell_pop(&f->reader, &out), 1);
    assert_int_equal(out, INT32_MAX);
}

static void full_ring_refuses_a_push_and_keeps_its_words(void **state)
{
    struct fixture *f = *state;
    uint32_t payload;

    for (uint32_t i = 0; i < N_WORDS; i++)
        assert_true(ll_bell_push(&f->bell, i));
    assert_false(ll_bell_push(&f->bell, 99));
    assert_int_equal(ll_bell_pop(&f->reader, &payload), 1);
    assert_int_equal(payload, 0);
    assert_true(ll_bell_push(&f->bell, 100)); /* one free word is enough */
    assert_false(ll_bell_push(&f->bell, 101));
    for (uint32_t i = 1; i < N_WORDS; i++) {
        assert_int_equal(ll_bell_pop(&f->reader, &payload), 1);
        assert_int_equal(payload, i);
    }
    assert_int_equal(ll_bell_pop(&f->reader, &payload), 1);
    assert_int_equal(payload, 100);
    run(f, 3 * N_WORDS);
}

/* The lap is 32 bits: laps 2^32 - 2, 2^32 - 1, 0, 1, with the ring empty, part full and full. */
static void the_lap_wraps_at_two_to_the_32(void **state)
{
    struct fixture *f = *state;
    uint32_t payload;

    start_at(f, UINT32_MAX - 1);
    run(f, 4 * N_WORDS);
    for (uint32_t filled = 1; filled <= N_WORDS; filled++) {
        start_at(f, UINT32_MAX - 1);
        run(f, N_WORDS + filled / 2);
        for (uint32_t i = 0; i < N_WORDS * 3 / filled * filled; i += filled) {
            for (uint32_t k = 0; k < filled; k++)
                assert_true(ll_bell_push(&f->bell, i + k));
            if (filled == N_WORDS)
                assert_false(ll_bell_push(&f->bell, 0));
            for (uint32_t k = 0; k < filled; k++) {
                assert_int_equal(ll_bell_pop(&f->reader, &payload), 1);
                assert_int_equal(payload, i + k);
            }
        }
    }
    assert_int_equal(*word_at(f, f->reader.head) >> 32, f->reader.head / N_WORDS % (1ull << 32));
}

/* A producer killed between its word and its step of tail leaves tail behind: others help, whether
 * the word is still there or was consumed, and across a whole lap. */
static void a_low_tail_is_helped_forward(void **state)
{
    struct fixture *f = *state;
    uint32_t payload;

    for (uint32_t lag = 0; lag <= N_WORDS; lag++) {
        run(f, N_WORDS);
        atomic_store(&f->bell.head->tail_hint, f->reader.head - lag);
        assert_true(ll_bell_push(&f->bell, lag));
        assert_int_equal(ll_bell_pop(&f->reader, &payload), 1);
        assert_int_equal(payload, lag);
        assert_int_equal(f->bell.head->tail_hint, f->reader.head);
    }
    for (uint32_t i = 0; i < N_WORDS; i++) /* full and not consumed: helped, then refused */
        assert_true(ll_bell_push(&f->bell, i));
    atomic_store(&f->bell.head->tail_hint, f->reader.head);
    assert_false(ll_bell_push(&f->bell, 99));
    assert_int_equal(ll_bell_pop(&f->reader, &payload), 1);
    assert_true(ll_bell_push(&f->bell, 99));
}

static void a_scribbled_tail_ends_a_push_in_bounded_time(void **state)
{
    struct fixture *f = *state;
    static const int64_t off[] = {1,         N_WORDS,   1000000, INT64_MAX,
                                  -0x100000, INT64_MIN, -1,      -(int64_t)N_WORDS};
    uint32_t payload;

    for (size_t i = 0; i < LL_COUNT(off); i++) {
        start_at(f, 1u << 20);
        run(f, 7);
        atomic_store(&f->bell.head->tail_hint, f->reader.head + (uint64_t)off[i]);
        ll_bell_push(&f->bell, 1); /* either answer, but an answer */
        ll_bell_repair(&f->reader);
        assert_int_equal(ll_bell_pop(&f->reader, &payload), 0);
        run(f, 2 * N_WORDS);
    }
}

/* Somebody moves tail past the head: pushes land behind a hole and pop answers 0. A rewind brings
 * them, now or as the ring comes round, without a repair. */
static void a_rewind_fills_the_hole_that_a_high_tail_leaves(void **state)
{
    struct fixture *f = *state;
    uint32_t payload;

    start_at(f, UINT32_MAX);
    run(f, 3);
    atomic_store(&f->bell.head->tail_hint, f->reader.head + 2);
    assert_true(ll_bell_push(&f->bell, 7));
    assert_int_equal(ll_bell_pop(&f->reader, &payload), 0);
    ll_bell_rewind(&f->reader);
    for (uint32_t i = 0; i < 3; i++)
        assert_true(ll_bell_push(&f->bell, i));
    static const uint32_t order[] = {0, 1, 7, 2};
    for (size_t i = 0; i < LL_COUNT(order); i++) {
        assert_int_equal(ll_bell_pop(&f->reader, &payload), 1);
        assert_int_equal(payload, order[i]);
    }
    run(f, 3 * N_WORDS);
}

static void a_scribbled_word_is_reported_and_repaired(void **state)
{
    struct fixture *f = *state;
    uint32_t payload;

    for (uint32_t kind = 0; kind < 6; kind++) {
        start_at(f, UINT32_MAX - 1);
        run(f, N_WORDS + 3);
        uint64_t head = f->reader.head, empty = head / N_WORDS << 32;
        const uint64_t bad[] = {
            empty | 5,            /* EMPTY with a payload */
            empty + (1ull << 32), /* EMPTY of the next lap */
            empty - (1ull << 32), /* EMPTY of the lap before */
            empty - (1ull << 31), /* FULL of the lap before */
            empty + (3ull << 31), /* FULL of the next lap */
            empty ^ (1ull << 63),
        };
        atomic_store(word_at(f, head), bad[kind]);
        ll_bell_push(&f->bell, 1);
        assert_false(ll_bell_is_empty(&f->reader));
        assert_int_equal(ll_bell_pop(&f->reader, &payload), LL_E_PROTOCOL);
        assert_int_equal(f->reader.head, head);
        ll_bell_repair(&f->reader);
        assert_int_equal(f->reader.n_repairs, 1);
        assert_int_equal(f->bell.head->ring_gen, 1);
        assert_true(ll_bell_is_empty(&f->reader));
        run(f, 3 * N_WORDS);
    }
}

/* A push caught by a repair in mid-air must not land in the refilled ring: its CAS expects a lap
 * that is gone. */
static void a_repair_goes_past_every_lap_a_producer_may_hold(void **state)
{
    struct fixture *f = *state;
    uint32_t payload;

    run(f, 5);
    uint64_t held = 6 / N_WORDS; /* what a producer has read, for a word of this lap or the next */
    for (uint32_t i = 0; i < N_WORDS; i++)
        assert_true(ll_bell_push(&f->bell, i)); /* a full ring is dropped: the slots are swept */
    ll_bell_repair(&f->reader);
    for (uint32_t i = 0; i < N_WORDS; i++) {
        assert_true(*word_at(f, i) >> 32 > held + 1);
        assert_int_equal(*word_at(f, i) >> 31 & 1, 0);
    }
    assert_int_equal(ll_bell_pop(&f->reader, &payload), 0);
    run(f, 2 * N_WORDS);
}

static void attach_refuses_what_is_no_ring(void **state)
{
    struct fixture *f = *state;
    size_t bytes = ll_bell_bytes(LOG2_WORDS);
    struct ll_bell bell;

    assert_int_equal(ll_bell_attach(&bell, f->memory, bytes, LOG2_WORDS), 0);
    assert_ptr_equal(bell.head, f->memory);
    assert_int_equal(ll_bell_attach(&bell, f->memory, bytes - 1, LOG2_WORDS), LL_E_PROTOCOL);
    assert_int_equal(ll_bell_attach(&bell, f->memory, bytes, LOG2_WORDS + 1), LL_E_PROTOCOL);
    assert_int_equal(ll_bell_attach(&bell, f->memory, SIZE_MAX, 4), LL_E_PROTOCOL);
    assert_int_equal(ll_bell_attach(&bell, f->memory, SIZE_MAX, 21), LL_E_PROTOCOL);
    assert_int_equal(ll_bell_attach(&bell, f->memory, SIZE_MAX, LOG2_WORDS + 1), LL_E_PROTOCOL);
    assert_int_equal(ll_bell_attach(&bell, (char *)f->memory + 8, bytes, LOG2_WORDS),
                     LL_E_PROTOCOL);
    f->bell.head->magic++;
    assert_int_equal(ll_bell_attach(&bell, f->memory, bytes, LOG2_WORDS), LL_E_PROTOCOL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(words_come_out_in_the_order_they_went_in),
        TEST(a_payload_has_31_bits_and_all_arrive),
        TEST(full_ring_refuses_a_push_and_keeps_its_words),
        TEST(the_lap_wraps_at_two_to_the_32),
        TEST(a_low_tail_is_helped_forward),
        TEST(a_scribbled_tail_ends_a_push_in_bounded_time),
        TEST(a_rewind_fills_the_hole_that_a_high_tail_leaves),
        TEST(a_scribbled_word_is_reported_and_repaired),
        TEST(a_repair_goes_past_every_lap_a_producer_may_hold),
        TEST(attach_refuses_what_is_no_ring),
    };
    return cmocka_run_group_tests_name("shm/bell", tests, NULL, NULL);
}
