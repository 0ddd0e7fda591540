/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cpu_limits.c - the CPU backend: bad batches and options, idle threads, polls.
 */
#include "tests/kernels/cpu_step.h"

/* ---- bad batches, idling
 * ---------------------------------------------------------------------------- */
static void bad_batches_are_refused_and_good_ones_go_on(void **state)
{
    struct ll_device *device = open_small(1, LL_DTYPE_F32, NULL);
    struct ll_text error = {""};
    const uint32_t ids[3] = {1, 2, 3}, bad_id = shape.n_vocab, page = 2, bad_page = 1000;
    struct ll_slot_init init = {.n_prompt = 3, .n_hist = 3, .hist = ids, .s = demo_greedy()};
    struct ll_pages_set pages = {0, 0, 1, &page};
    const struct ll_row good = {.n_tokens = 3, .token = ids, .flags = LL_ROW_SAMPLE};
    struct ll_row row = good, rows[2] = {good, good};
    struct ll_batch batch = {.n_inits = 1,
                             .n_pages_sets = 1,
                             .n_rows = 1,
                             .inits = &init,
                             .pages = &pages,
                             .rows = &row};

    (void)state;
#define REFUSED(code, words)                                                                       \
    do {                                                                                           \
        assert_int_equal(backend->submit(device, &batch, &error), code);                           \
        if (strstr(error.s, words) == NULL)                                                        \
            fail_msg("\"%s\" says nothing of \"%s\"", error.s, words);                             \
    } while (0)
    batch.n_inits = 0;
    REFUSED(LL_E_INVAL, "never set up");
    batch.n_inits = 1;
    row.slot = SEQ_MAX;
    REFUSED(LL_E_INVAL, "slot 8 of 8");
    row = good;
    row.pos = 64;
    REFUSED(LL_E_INVAL, "no page for position 64");
    row.pos = 382;
    REFUSED(LL_E_INVAL, "a sequence has 384");
    row = good;
    row.token = &bad_id;
    row.n_tokens = 1;
    REFUSED(LL_E_INVAL, "id 333 of 333");
    row.token = NULL;
    REFUSED(LL_E_INVAL, "runs ahead");
    row = good;
    row.flags |= LL_ROW_LATE_MASK;
    REFUSED(LL_E_UNSUPPORTED, "late mask");
    row = good;
    row.n_top = 21;
    REFUSED(LL_E_INVAL, "top ids");
    row = good;
    pages.page = &bad_page;
    REFUSED(LL_E_INVAL, "page 1000");
    pages.page = &page;
    init.adapter = 1;
    REFUSED(LL_E_UNSUPPORTED, "adapter");
    init.adapter = 0;
    batch.weights = 1;
    REFUSED(LL_E_INVAL, "weight set 1");
    batch.weights = 0;
    batch.rows = rows;
    batch.n_rows = 2;
    REFUSED(LL_E_INVAL, "has a row already");
    batch.rows = &row;
    batch.n_rows = 1;
    assert_int_equal(demo_run(device, &batch).rows[0].n_tokens, 1);

    /* Depth: a third waits until one is polled. */
    batch.n_inits = batch.n_pages_sets = 0;
    row = (struct ll_row){.pos = 3, .n_tokens = 1, .flags = LL_ROW_SAMPLE};
    assert_int_equal(backend->submit(device, &batch, &error), 2);
    row.pos = 4;
    assert_int_equal(backend->submit(device, &batch, &error), 3);
    row.pos = 5;
    REFUSED(LL_E_AGAIN, "in flight");
    struct ll_result r;
    assert_int_equal(backend->poll(device, 3, &r, &error), LL_E_INVAL); /* out of order */
    demo_wait(backend, device, 2);
    assert_int_equal(backend->submit(device, &batch, &error), 4);
    backend->close(device); /* with two in flight */
    backend->close(NULL);
#undef REFUSED
}

static void options_that_cannot_be_are_refused(void **state)
{
    struct ll_text error = {""};
    struct ll_backend_caps caps;
    struct ll_device *device = NULL;
    const struct ll_backend_options good = {.struct_bytes = sizeof(good),
                                            .n_slots = 1,
                                            .n_pages = 1,
                                            .n_tokens_max = 8,
                                            .n_rows_max = 1,
                                            .pages_per_seq = 1,
                                            .n_weights = 1,
                                            .dtype = LL_DTYPE_F32,
                                            .numa_node = -1};
    struct ll_backend_options o = good;
    struct ll_model_shape s = shape;

    (void)state;
    o.dtype = LL_DTYPE_F16;
    assert_int_equal(backend->open(&device, &o, &shape, &caps, &error), LL_E_UNSUPPORTED);
    o = good;
    o.kv_dtype = LL_DTYPE_F16;
    assert_int_equal(backend->open(&device, &o, &shape, &caps, &error), LL_E_UNSUPPORTED);
    o = good;
    o.tensor_parallel = 5;
    assert_int_equal(backend->open(&device, &o, &shape, &caps, &error), LL_E_UNSUPPORTED);
    o = good;
    o.extra = "speed=11";
    assert_int_equal(backend->open(&device, &o, &shape, &caps, &error), LL_E_INVAL);
    o = good;
    o.struct_bytes--;
    assert_int_equal(backend->open(&device, &o, &shape, &caps, &error), LL_E_ABI);
    s.n_kv_heads = 4;
    assert_int_equal(backend->open(&device, &good, &s, &caps, &error), LL_E_INVAL);
    assert_null(device);
}

static uint64_t cpu_ns(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * LL_NS_PER_S + (uint64_t)t.tv_nsec;
}

static void idle_threads_take_no_cpu_time_and_wake_for_the_next_step(void **state)
{
    static struct sequence alone[SEQ_MAX], q;
    struct ll_device *device = open_small(4, LL_DTYPE_F32, NULL);

    (void)state;
    run_alone(alone, LL_DTYPE_F32);
    for (int round = 0; round < 3; round++) {
        make_sequence(&q, 3, prompts[3]);
        run_together(device, &q, 1, 512);
        assert_same(&q, &alone[3]);
        usleep(20000); /* spinning is over */
        uint64_t before = cpu_ns(CLOCK_PROCESS_CPUTIME_ID);
        usleep(200000);
        assert_true(cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - before < 5 * LL_NS_PER_MS);
    }
    backend->close(device);
}

/* In time of this thread: what other processes take of the machine is not poll's. */
static void poll_returns_soon(void **state)
{
    static struct sequence q;
    struct ll_text error = {""};
    struct ll_device *device = open_small(1, LL_DTYPE_F32, NULL);
    uint64_t shortest = UINT64_MAX;

    (void)state;
    make_sequence(&q, 6, prompts[6]);
    for (int round = 0; round < 20; round++) {
        struct first_step first;
        first_step(&first, &q, q.n_prompt);
        struct ll_result r;
        int64_t ticket = backend->submit(device, &first.batch, &error);
        uint64_t longest = 0;
        int rc, n_polls = 0;
        do {
            uint64_t start = cpu_ns(CLOCK_THREAD_CPUTIME_ID);
            rc = backend->poll(device, ticket, &r, &error);
            uint64_t took = cpu_ns(CLOCK_THREAD_CPUTIME_ID) - start;
            longest = took > longest ? took : longest;
            n_polls++;
        } while (rc == 0);
        assert_int_equal(rc, 1);
        assert_true(n_polls > 1); /* it came back before the step was over */
        shortest = longest < shortest ? longest : shortest;
    }
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    shortest /= 20;
#endif
    assert_true(shortest < 2 * LL_NS_PER_MS); /* a slice of 50 us and one item */
    backend->close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_batches_are_refused_and_good_ones_go_on),
        cmocka_unit_test(options_that_cannot_be_are_refused),
        cmocka_unit_test(idle_threads_take_no_cpu_time_and_wake_for_the_next_step),
        cmocka_unit_test(poll_returns_soon),
    };
    backend = ll_backend_cpu();
    return cmocka_run_group_tests_name("kernels/cpu limits", tests, NULL, NULL);
}
