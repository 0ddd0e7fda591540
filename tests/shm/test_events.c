/* SPDX-License-Identifier: Apache-2.0 */
/* tests/shm/test_events.c - one thread: the rules E1..E4 of shm/events.h and the wrap of seq. */
#include "tests/harness.h"

#include "base/bits.h"
#include "ll/client.h"
#include "shm/events.h"

#define LOG2_EVENTS 7u
#define N_EVENTS    (1u << LOG2_EVENTS)

struct fixture {
    struct ll_event ring[N_EVENTS];
    _Atomic uint64_t cons;
    struct ll_event_writer writer;
    struct ll_event_reader reader;
};

static struct fixture fixture;

static void start_at(struct fixture *f, uint64_t start)
{
    memset(f, 0, sizeof(*f));
    ll_event_writer_init(&f->writer, f->ring, LOG2_EVENTS, &f->cons, start);
    ll_event_reader_init(&f->reader, f->ring, LOG2_EVENTS, &f->cons, start);
}

static int setup(void **state)
{
    start_at(&fixture, 0);
    *state = &fixture;
    return 0;
}

static void write_one(struct fixture *f, uint32_t index)
{
    struct ll_event event = {.type = LL_EV_TOKEN, .choice = 3, .slot = 7, .gen = 9, .index = index};

    memset(event.u.raw, (int)(index & 0xff), sizeof(event.u.raw));
    ll_event_write(&f->writer, &event);
}

static void read_one(struct fixture *f, uint32_t index)
{
    struct ll_event event;

    assert_true(ll_event_ready(&f->reader));
    assert_true(ll_event_read(&f->reader, &event));
    assert_int_equal(event.type, LL_EV_TOKEN);
    assert_int_equal(event.choice, 3);
    assert_int_equal(event.slot, 7);
    assert_int_equal(event.gen, 9);
    assert_int_equal(event.index, index);
    for (size_t i = 0; i < sizeof(event.u.raw); i++)
        assert_int_equal(event.u.raw[i], index & 0xff);
}

static void an_event_is_not_ready_before_it_is_written(void **state)
{
    struct fixture *f = *state;
    struct ll_event event;

    for (uint32_t i = 0; i < 3 * N_EVENTS; i++) {
        assert_false(ll_event_ready(&f->reader));
        assert_false(ll_event_read(&f->reader, &event));
        assert_true(ll_event_writer_room(&f->writer, 1) >= 1);
        write_one(f, i);
        read_one(f, i);
    }
}

static void an_event_made_in_place_is_not_ready_before_its_commit(void **state)
{
    struct fixture *f = *state;

    for (uint32_t i = 0; i < 3 * N_EVENTS; i++) {
        assert_true(ll_event_writer_room(&f->writer, 1) >= 1);
        struct ll_event *event = ll_event_begin(&f->writer);
        event->type = LL_EV_TOKEN;
        event->flags = event->n = 0;
        event->choice = 3;
        event->slot = 7;
        event->gen = 9;
        event->index = i;
        memset(event->u.raw, (int)(i & 0xff), sizeof(event->u.raw));
        assert_false(ll_event_ready(&f->reader));
        ll_event_commit(&f->writer);
        read_one(f, i);
    }
    f->writer.is_broken = true;
    assert_null(ll_event_begin(&f->writer));
}

static void a_full_ring_has_no_room_until_the_reader_publishes(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(ll_event_writer_room(&f->writer, N_EVENTS), N_EVENTS);
    for (uint32_t i = 0; i < N_EVENTS; i++)
        write_one(f, i);
    assert_int_equal(ll_event_writer_room(&f->writer, 1), 0);
    for (uint32_t i = 0; i < 63; i++)
        read_one(f, i);
    assert_int_equal(ll_event_writer_room(&f->writer, 1), 0); /* E4: every 64 */
    read_one(f, 63);
    assert_int_equal(ll_event_writer_room(&f->writer, 1), 64);
    read_one(f, 64);
    ll_event_publish(&f->reader);
    assert_int_equal(ll_event_writer_room(&f->writer, 64), 64); /* enough is known: no reload */
    assert_int_equal(ll_event_writer_room(&f->writer, 65), 65);
    for (uint32_t i = 0; i < 65; i++)
        write_one(f, N_EVENTS + i);
    for (uint32_t i = 65; i < N_EVENTS + 65; i++)
        read_one(f, i);
    assert_false(ll_event_ready(&f->reader));
}

/* A zeroed slot says seq 0, which is what position 2^32 - 1 waits for. */
static void seq_wraps_at_two_to_the_32(void **state)
{
    struct fixture *f = *state;
    static const uint64_t starts[] = {(1ull << 32) - 2, (1ull << 32) - 1, 1ull << 32,
                                      (1ull << 32) - N_EVENTS, UINT64_MAX - 1};

    for (size_t k = 0; k < LL_COUNT(starts); k++) {
        start_at(f, starts[k]);
        for (uint32_t fill = 1; fill <= N_EVENTS; fill += 9) {
            assert_true(ll_event_writer_room(&f->writer, fill) >= fill);
            for (uint32_t i = 0; i < fill; i++) {
                write_one(f, i);
            }
            for (uint32_t i = 0; i < fill; i++)
                read_one(f, i);
            assert_false(ll_event_ready(&f->reader));
            ll_event_publish(&f->reader);
        }
    }
}

static void a_read_position_out_of_range_breaks_the_writer(void **state)
{
    struct fixture *f = *state;
    static const int64_t off[] = {1, -1, N_EVENTS, -(int64_t)N_EVENTS - 1, INT64_MAX, INT64_MIN};

    for (size_t k = 0; k < LL_COUNT(off); k++) {
        start_at(f, 0);
        for (uint32_t i = 0; i < 2 * N_EVENTS; i++) { /* the writer has seen 128 + 63 .. */
            assert_true(ll_event_writer_room(&f->writer, N_EVENTS / 2) > 0);
            write_one(f, i);
            read_one(f, i);
        }
        uint64_t from = off[k] > 0 ? f->writer.prod : f->writer.cons;
        atomic_store(&f->cons, from + (uint64_t)off[k]);
        assert_int_equal(ll_event_writer_room(&f->writer, N_EVENTS + 1), LL_E_PROTOCOL);
        assert_true(f->writer.is_broken);
        uint64_t prod = f->writer.prod;
        write_one(f, 1); /* goes nowhere */
        assert_int_equal(f->writer.prod, prod);
        atomic_store(&f->cons, prod); /* and stays so */
        assert_int_equal(ll_event_writer_room(&f->writer, 1), LL_E_PROTOCOL);
    }
}

static void the_edges_of_the_range_are_sound(void **state)
{
    struct fixture *f = *state;

    for (uint32_t i = 0; i < N_EVENTS; i++)
        write_one(f, i);
    assert_int_equal(ll_event_writer_room(&f->writer, 1), 0); /* cons == prod - M */
    atomic_store(&f->cons, N_EVENTS);
    assert_int_equal(ll_event_writer_room(&f->writer, 1), N_EVENTS); /* cons == prod */
}

#define TEST(name) cmocka_unit_test_setup(name, setup)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(an_event_is_not_ready_before_it_is_written),
        TEST(an_event_made_in_place_is_not_ready_before_its_commit),
        TEST(a_full_ring_has_no_room_until_the_reader_publishes),
        TEST(seq_wraps_at_two_to_the_32),
        TEST(a_read_position_out_of_range_breaks_the_writer),
        TEST(the_edges_of_the_range_are_sound),
    };
    return cmocka_run_group_tests_name("shm/events", tests, NULL, NULL);
}
