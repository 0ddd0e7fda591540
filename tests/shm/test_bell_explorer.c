/* SPDX-License-Identifier: Apache-2.0 */
/* tests/shm/test_bell_explorer.c - every interleaving of the request ring's real code.
 *
 * shm/bell.c is compiled in here with its atomic operations replaced by hooks. A step of a process
 * is one such operation and the code up to the next: push_once() or ll_bell_pop() is called anew,
 * the operations it has done already are answered from its log, the next one is done for real, and
 * the one after that jumps out. So a state is the ring's memory plus, for each process, where it is
 * (its log, at most three values: nothing is carried from one attempt to the next) and what it has
 * yet to do. The search visits every state once.
 *
 *   producers  n_pushes each; at BEHIND they may try again or give up, at any time
 *   crashes    up to two producers die between any two operations
 *   rewind     the consumer stores a low tail_hint once or twice, at any time between pops
 *   repair     in one configuration the consumer starts ll_bell_repair() once, at any time
 *
 * In each state, with every other producer stopped there for ever (SIGSTOP is this, too):
 *   stuck      a live producer and the consumer alone cannot finish the producer's push
 *   lost       the consumer finds EMPTY though a word that was rung has not come (B2)
 *   duplicate  a word comes twice, or one that was not rung, or out of its producer's order
 * All must be 0, and each planted fault must be found. Assumes sequential consistency. */
#include "tests/harness.h"

#include "base/bits.h"
#include "base/clock.h"
#include "ll/client.h"
#include "shm/bell.h"

static uint64_t hook_load(const void *address, size_t bytes);
static void hook_store(void *address, size_t bytes, uint64_t value);
static bool hook_cas(void *address, uint64_t *expected, uint64_t desired);

#undef atomic_load_explicit
#undef atomic_store_explicit
#undef atomic_compare_exchange_strong_explicit
#define atomic_load_explicit(p, order)                            hook_load((const void *)(p), sizeof(*(p)))
#define atomic_store_explicit(p, v, order)                        hook_store((void *)(p), sizeof(*(p)), (v))
#define atomic_compare_exchange_strong_explicit(p, e, d, yes, no) hook_cas((void *)(p), (e), (d))

enum fault { NO_FAULT, NO_HELP_PAST_CONSUMED, HELP_PAST_A_FULL_RING };
static enum fault planted;

#define BELL_MUST_HELP(ahead)                                                                      \
    (planted == NO_HELP_PAST_CONSUMED   ? (ahead) == 1                                             \
     : planted == HELP_PAST_A_FULL_RING ? true                                                     \
                                        : (ahead) > 0)
#include "shm/bell.c"

#define WORDS_MAX     4u
#define PRODUCERS_MAX 3u
#define LOG_MAX       8u

/* ---- a state: plain bytes, everything unused is zero, so that equal states are equal bytes */

struct operation {
    uint64_t value; /* read, or found by a CAS */
    uint64_t done;  /* a CAS that succeeded */
};

struct producer {
    struct operation log[3];
    uint8_t n_log;
    uint8_t n_started; /* pushes finished or given up: the next one's number */
    uint8_t rung;      /* bit k: push k's word is in the ring */
    uint8_t came;      /* bit k: the consumer got it */
    uint8_t is_dead;
    uint8_t pad[3];
};

struct state {
    uint64_t tail, word[WORDS_MAX], head;
    struct producer producer[PRODUCERS_MAX];
    struct operation consumer[LOG_MAX];
    uint8_t n_consumer_log, is_repairing, n_crashes, n_repairs;
    uint8_t n_rewinds, pad[3];
    uint32_t ring_gen, pad1;
};

struct search {
    uint32_t log2_words, n_producers, n_pushes, n_crashes_max, n_repairs_max, n_rewinds_max;
    uint32_t start_lap;
    uint64_t n_states, n_stuck, n_lost, n_duplicate, n_damaged;
    /* Visited: 128-bit hashes, open addressing. */
    uint64_t (*seen)[2];
    uint64_t n_slots;
    struct state *stack;
    size_t n_stack, capacity;
};

/* ---- the hooks */

static union {
    struct ll_bell_head head;
    char bytes[sizeof(struct ll_bell_head) + WORDS_MAX * sizeof(uint64_t)];
} ring __attribute__((aligned(64)));

static struct operation *step_log;
static uint32_t step_n, step_at, step_max;
static jmp_buf step_end;

/* The logged answer, NULL when this operation is the one to do now; jumps out at the one after. */
static const struct operation *next_operation(void)
{
    if (step_at < step_n)
        return &step_log[step_at++];
    if (step_at > step_n)
        longjmp(step_end, 1);
    return NULL;
}

static void record(uint64_t value, bool done)
{
    LL_ASSERT(step_n < step_max);
    step_log[step_at++] = (struct operation){.value = value, .done = done};
}

static uint64_t hook_load(const void *address, size_t bytes)
{
    const struct operation *known = next_operation();
    uint64_t value = 0;

    if (known != NULL)
        return known->value;
    memcpy(&value, address, bytes);
    record(value, false);
    return value;
}

static void hook_store(void *address, size_t bytes, uint64_t value)
{
    if (next_operation() != NULL)
        return;
    memcpy(address, &value, bytes);
    record(value, true);
}

static bool hook_cas(void *address, uint64_t *expected, uint64_t desired)
{
    const struct operation *known = next_operation();
    uint64_t value;

    if (known == NULL) {
        memcpy(&value, address, sizeof(value));
        bool done = value == *expected;
        if (done)
            memcpy(address, &desired, sizeof(desired));
        record(value, done);
        known = &step_log[step_at - 1];
    }
    if (!known->done)
        *expected = known->value;
    return known->done != 0;
}

static void load_ring(const struct search *search, const struct state *state)
{
    memcpy(&ring.head.tail_hint, &state->tail, sizeof(state->tail));
    memcpy(&ring.head.ring_gen, &state->ring_gen, sizeof(state->ring_gen));
    memcpy(ring.head.word, state->word, sizeof(uint64_t) << search->log2_words);
}

static void save_ring(const struct search *search, struct state *state)
{
    memcpy(&state->tail, &ring.head.tail_hint, sizeof(state->tail));
    memcpy(&state->ring_gen, &ring.head.ring_gen, sizeof(state->ring_gen));
    memcpy(state->word, ring.head.word, sizeof(uint64_t) << search->log2_words);
}

/* ---- one step of a process */

static uint32_t payload_of(uint32_t producer, uint32_t push)
{
    return producer << 4 | push;
}

/* One operation of producer p. True when its attempt is over; *result then says how. */
static bool step_producer(const struct search *search, struct state *state, uint32_t p,
                          enum push_result *result)
{
    struct producer *producer = &state->producer[p];
    uint32_t payload = payload_of(p, producer->n_started);
    volatile bool is_over = false;

    /* The fourth operation is the CAS of tail, which no state holds: the attempt ends with it. */
    static struct operation four[LL_COUNT(producer->log) + 1];
    memcpy(four, producer->log, sizeof(producer->log));
    load_ring(search, state);
    step_log = four;
    step_n = producer->n_log;
    step_max = LL_COUNT(four);
    step_at = 0;
    if (setjmp(step_end) == 0) {
        *result = push_once(&ring.head, search->log2_words, payload);
        is_over = true;
    }
    save_ring(search, state);
    /* Operation 2 is the word's CAS, where there is one (operation 1 read EMPTY of tail's lap). */
    if (producer->n_log == 2 && four[2].done &&
        word_ahead(four[1].value, four[0].value >> search->log2_words) == 0)
        producer->rung |= (uint8_t)(1u << producer->n_started);
    if (is_over) {
        memset(producer->log, 0, sizeof(producer->log));
        producer->n_log = 0;
    } else {
        memcpy(producer->log, four, sizeof(producer->log));
        producer->n_log++;
    }
    if (is_over && *result == PUSHED)
        producer->n_started++;
    return is_over;
}

enum pop { POP_UNDER_WAY, POP_EMPTY, POP_GOT, POP_DAMAGED, POP_WRONG, POP_REPAIRED };

/* One operation of the consumer. */
static enum pop step_consumer(const struct search *search, struct state *state)
{
    struct ll_bell_reader reader = {.bell = {&ring.head, search->log2_words}, .head = state->head};
    uint32_t payload = 0;
    volatile int rc = -1;
    volatile bool is_over = false;

    load_ring(search, state);
    step_log = state->consumer;
    step_n = state->n_consumer_log;
    step_max = LOG_MAX;
    step_at = 0;
    if (setjmp(step_end) == 0) {
        if (state->is_repairing)
            ll_bell_repair(&reader);
        else
            rc = ll_bell_pop(&reader, &payload);
        is_over = true;
    }
    save_ring(search, state);
    if (!is_over) {
        state->n_consumer_log++;
        return POP_UNDER_WAY;
    }
    memset(state->consumer, 0, sizeof(state->consumer));
    state->n_consumer_log = 0;
    state->head = reader.head;
    if (state->is_repairing) {
        state->is_repairing = 0;
        return POP_REPAIRED;
    }
    if (rc <= 0)
        return rc == 0 ? POP_EMPTY : POP_DAMAGED;

    uint32_t p = payload >> 4, bit = 1u << (payload & 15);
    if (p >= search->n_producers || (state->producer[p].rung & bit) == 0 ||
        state->producer[p].came >= bit)
        return POP_WRONG;
    state->producer[p].came |= (uint8_t)bit;
    return POP_GOT;
}

/* One store: a single operation. */
static void rewind_tail(const struct search *search, struct state *state)
{
    struct ll_bell_reader reader = {.bell = {&ring.head, search->log2_words}, .head = state->head};
    struct operation one[1];

    load_ring(search, state);
    step_log = one;
    step_n = step_at = 0;
    step_max = 1;
    ll_bell_rewind(&reader);
    save_ring(search, state);
}

/* ---- what must hold in every state */

/* Runs the consumer to EMPTY; false: what came was wrong. */
static bool drain(struct search *search, struct state *state)
{
    for (;;) {
        switch (step_consumer(search, state)) {
        case POP_EMPTY:
            return true;
        case POP_WRONG:
            search->n_duplicate++;
            return false;
        case POP_DAMAGED:
            search->n_damaged++;
            return false;
        default:
            break;
        }
    }
}

static bool can_finish(struct search *search, struct state state, uint32_t p)
{
    enum push_result result = AGAIN;

    for (uint32_t tries = 0; tries < 64 && result != PUSHED; tries++) {
        if (!drain(search, &state))
            return true; /* counted there */
        while (!step_producer(search, &state, p, &result))
            continue;
    }
    return result == PUSHED;
}

static void check_state(struct search *search, const struct state *state)
{
    struct state copy = *state;

    if (drain(search, &copy) && copy.n_repairs == 0) /* a repair may lose words: B4 */
        for (uint32_t p = 0; p < search->n_producers; p++)
            search->n_lost += copy.producer[p].came != copy.producer[p].rung;
    for (uint32_t p = 0; p < search->n_producers; p++) {
        const struct producer *producer = &state->producer[p];
        if (!producer->is_dead && producer->n_started < search->n_pushes)
            search->n_stuck += !can_finish(search, *state, p);
    }
}

/* ---- the search */

static bool is_new(struct search *search, const struct state *state)
{
    uint64_t word, a = 0x9e3779b97f4a7c15ull, b = 0xd1b54a32d192ed03ull;

    static_assert(sizeof(*state) % 8 == 0, "hashed by words");
    for (size_t i = 0; i < sizeof(*state); i += 8) {
        memcpy(&word, (const char *)state + i, sizeof(word));
        a = (a ^ word) * 0xbf58476d1ce4e5b9ull;
        a ^= a >> 29;
        b = (b ^ (word + i)) * 0x94d049bb133111ebull;
        b ^= b >> 31;
    }
    a |= 1; /* 0, 0 is an empty slot */
    LL_ASSERT(search->n_states * 10 < search->n_slots * 9);
    for (uint64_t i = (a >> 7) & (search->n_slots - 1);; i = (i + 1) & (search->n_slots - 1)) {
        if (search->seen[i][0] == a && search->seen[i][1] == b)
            return false;
        if (search->seen[i][0] == 0) {
            search->seen[i][0] = a;
            search->seen[i][1] = b;
            search->n_states++;
            return true;
        }
    }
}

static void visit(struct search *search, const struct state *state)
{
    if (!is_new(search, state))
        return;
    if (search->n_stack == search->capacity) {
        search->capacity = search->capacity == 0 ? 4096 : 2 * search->capacity;
        search->stack = realloc(search->stack, search->capacity * sizeof(*search->stack));
        LL_ASSERT(search->stack != NULL);
    }
    search->stack[search->n_stack++] = *state;
}

static void expand(struct search *search, const struct state *state)
{
    for (uint32_t p = 0; p < search->n_producers; p++) {
        const struct producer *producer = &state->producer[p];
        if (producer->is_dead || producer->n_started == search->n_pushes)
            continue;
        struct state next = *state;
        enum push_result result;
        bool is_over = step_producer(search, &next, p, &result);
        visit(search, &next);
        if (is_over && result == BEHIND) { /* ... or this was the last of its tries */
            next.producer[p].n_started++;
            visit(search, &next);
        }
        if (producer->n_log > 0 && state->n_crashes < search->n_crashes_max) {
            next = *state;
            next.n_crashes++;
            next.producer[p].is_dead = 1;
            memset(next.producer[p].log, 0, sizeof(next.producer[p].log));
            next.producer[p].n_log = 0;
            visit(search, &next);
        }
    }
    struct state next = *state;
    switch (step_consumer(search, &next)) {
    case POP_WRONG:
        search->n_duplicate++;
        break;
    case POP_DAMAGED:
        search->n_damaged++;
        break;
    default:
        visit(search, &next);
    }
    if (state->n_consumer_log == 0 && state->n_rewinds < search->n_rewinds_max) {
        next = *state;
        next.n_rewinds++;
        rewind_tail(search, &next);
        visit(search, &next);
    }
    if (state->n_consumer_log == 0 && state->n_repairs < search->n_repairs_max) {
        next = *state;
        next.n_repairs++;
        next.is_repairing = 1;
        visit(search, &next);
    }
}

static bool has_failed(const struct search *search)
{
    return search->n_stuck + search->n_lost + search->n_duplicate + search->n_damaged > 0;
}

/* Visits all states; with a fault planted only up to the first finding. */
static void explore(struct search *search)
{
    uint64_t start_ns = ll_now_ns();
    struct state first;

    memset(&first, 0, sizeof(first));
    search->n_slots = 1u << 22;
    search->seen = calloc(search->n_slots, sizeof(*search->seen));
    assert_non_null(search->seen);
    first.tail = first.head = (uint64_t)search->start_lap << search->log2_words;
    for (uint32_t i = 0; i < 1u << search->log2_words; i++)
        first.word[i] = word_empty(search->start_lap);
    visit(search, &first);
    while (search->n_stack > 0 && (planted == NO_FAULT || !has_failed(search))) {
        struct state state = search->stack[--search->n_stack];
        check_state(search, &state);
        expand(search, &state);
    }
    free(search->stack);
    free(search->seen);
    printf("N %u, P %u x %u pushes, %u crashes, %u repairs, %u rewinds, fault %d: %llu states, "
           "%llu stuck, "
           "%llu lost, %llu duplicate, %llu damaged, %.1f s\n",
           1u << search->log2_words, search->n_producers, search->n_pushes, search->n_crashes_max,
           search->n_repairs_max, search->n_rewinds_max, (int)planted,
           (unsigned long long)search->n_states, (unsigned long long)search->n_stuck,
           (unsigned long long)search->n_lost, (unsigned long long)search->n_duplicate,
           (unsigned long long)search->n_damaged, (double)(ll_now_ns() - start_ns) / 1e9);
}

#define CASE(words, producers, pushes, crashes, repairs, rewinds, lap)                             \
    {                                                                                              \
        .log2_words = (words), .n_producers = (producers), .n_pushes = (pushes),                   \
        .n_crashes_max = (crashes), .n_repairs_max = (repairs), .n_rewinds_max = (rewinds),        \
        .start_lap = (lap)                                                                         \
    }
/* A sanitizer makes a state 10 times as dear: there the cases of three producers are left out. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PRODUCERS_HERE 2u
#else
#define PRODUCERS_HERE PRODUCERS_MAX
#endif
/* log2 words, producers, pushes, crashes, repairs, rewinds, first lap */
static const struct search cases[] = {
    CASE(1, 2, 3, 2, 0, 2, UINT32_MAX), CASE(1, 3, 2, 2, 0, 0, UINT32_MAX - 1),
    CASE(2, 2, 3, 2, 0, 1, UINT32_MAX), CASE(2, 3, 2, 2, 0, 0, 0),
    CASE(1, 2, 2, 1, 1, 0, UINT32_MAX),
};

static void no_interleaving_loses_repeats_or_blocks(void **state)
{
    (void)state;
    planted = NO_FAULT;
    for (size_t i = 0; i < LL_COUNT(cases); i++) {
        struct search search = cases[i];
        if (search.n_producers > PRODUCERS_HERE)
            continue;
        explore(&search);
        assert_int_equal(search.n_stuck, 0);
        assert_int_equal(search.n_lost, 0);
        assert_int_equal(search.n_duplicate, 0);
        assert_int_equal(search.n_damaged, 0);
        assert_true(search.n_states > 1000);
    }
}

static void helping_past_full_words_only_gets_stuck(void **state)
{
    (void)state;
    planted = NO_HELP_PAST_CONSUMED;
    for (size_t i = 0; i < LL_COUNT(cases); i++) {
        struct search search = cases[i];
        if (search.n_producers > PRODUCERS_HERE)
            continue;
        explore(&search);
        assert_true(search.n_stuck > 0);
        assert_int_equal(search.n_lost + search.n_duplicate + search.n_damaged, 0);
    }
}

static void helping_past_a_full_ring_leaves_holes(void **state)
{
    (void)state;
    planted = HELP_PAST_A_FULL_RING;
    for (size_t i = 0; i < LL_COUNT(cases); i++) {
        struct search search = cases[i];
        if (search.n_producers > PRODUCERS_HERE)
            continue;
        explore(&search);
        assert_true(search.n_lost + search.n_stuck > 0); /* lost, but where a repair comes first */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_interleaving_loses_repeats_or_blocks),
        cmocka_unit_test(helping_past_full_words_only_gets_stuck),
        cmocka_unit_test(helping_past_a_full_ring_leaves_holes),
    };
    return cmocka_run_group_tests_name("shm/bell explorer", tests, NULL, NULL);
}
