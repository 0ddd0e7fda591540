/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cpu_step.c - whole steps of the CPU backend on small random models: what may
 * not change a bit (batch, chunks, pages, threads, instruction set), slots, swaps. */
#include "tests/kernels/cpu_step.h"

static void check_against_alone(enum ll_dtype dtype, uint32_t n_threads, const char *extra,
                                uint32_t chunk, bool is_moved)
{
    static struct sequence alone[SEQ_MAX], q[SEQ_MAX];
    struct ll_device *device = open_small(n_threads, dtype, extra);

    run_alone(alone, dtype);
    for (uint32_t i = 0; i < SEQ_MAX; i++) {
        make_sequence(&q[i], i, prompts[i]);
        q[i].slot = is_moved ? SEQ_MAX - 1 - i : i;
        for (uint32_t p = 0; p < PER_SEQ && is_moved; p++)
            q[i].page[p] = (SEQ_MAX * PER_SEQ) - (p * SEQ_MAX + i);
    }
    run_together(device, q, SEQ_MAX, chunk);
    for (uint32_t i = 0; i < SEQ_MAX; i++)
        assert_same(&q[i], &alone[i]);
    backend->close(device);
}

static void a_row_gives_the_same_bits_alone_and_among_others(void **state)
{
    (void)state;
    check_against_alone(LL_DTYPE_F32, 1, NULL, 300, false);
    check_against_alone(LL_DTYPE_BF16, 1, NULL, 300, false);
}

static void chunks_of_a_prompt_give_the_same_bits_as_the_whole(void **state)
{
    (void)state;
    check_against_alone(LL_DTYPE_F32, 1, NULL, 13, false);
    check_against_alone(LL_DTYPE_BF16, 1, NULL, 1, false);
}

static void slots_and_pages_change_no_bit(void **state)
{
    (void)state;
    check_against_alone(LL_DTYPE_F32, 1, NULL, 64, true);
    check_against_alone(LL_DTYPE_BF16, 1, NULL, 64, true);
}

static void the_number_of_threads_changes_no_bit(void **state)
{
    (void)state;
    check_against_alone(LL_DTYPE_F32, 2, NULL, 50, false);
    check_against_alone(LL_DTYPE_BF16, 3, NULL, 50, false);
    check_against_alone(LL_DTYPE_BF16, 7, NULL, 9, true);
}

static void the_instruction_set_changes_no_bit(void **state)
{
    static const char *const sets[] = {"isa=portable", "isa=avx2", "isa=avx512"};

    (void)state;
    for (size_t i = 0; i < LL_COUNT(sets); i++)
        if (ll_cpu_inner_find(sets[i] + 4) != NULL)
            check_against_alone(LL_DTYPE_BF16, 2, sets[i], 100, false);
}

/* B2: thrown out after five tokens and set up again with prompt and output as history. */
static void a_preempted_sequence_goes_on_as_if_nothing_had_been(void **state)
{
    static struct sequence alone[SEQ_MAX], q;

    (void)state;
    run_alone(alone, LL_DTYPE_BF16);
    for (uint32_t i = 0; i < SEQ_MAX; i++) {
        struct ll_device *device = open_small(1, LL_DTYPE_BF16, NULL);
        make_sequence(&q, i, prompts[i]);
        memcpy(q.prompt + q.n_prompt, alone[i].out, 5 * sizeof(q.prompt[0]));
        struct first_step first;
        first_step(&first, &q, q.n_prompt + 5);
        first.row.n_top = N_TOP;
        for (uint32_t step = 5; step < OUT; step++) {
            struct ll_result r = demo_run(device, &first.batch);
            assert_int_equal(r.rows[0].token[0], alone[i].out[step]);
            assert_memory_equal(&r.rows[0].logprob[0], &alone[i].logprob[step], sizeof(float));
            first.row = (struct ll_row){.slot = q.slot,
                                        .pos = q.n_prompt + step,
                                        .n_tokens = 1,
                                        .flags = LL_ROW_SAMPLE,
                                        .n_top = N_TOP};
            first.batch.n_inits = first.batch.n_pages_sets = 0;
        }
        backend->close(device);
    }
}

/* A step in flight keeps its settings when the next batch sets its slot up anew (D3). */
static void a_new_owner_of_a_slot_does_not_touch_the_step_in_flight(void **state)
{
    static struct sequence alone[SEQ_MAX];
    struct ll_text error = {""};

    (void)state;
    run_alone(alone, LL_DTYPE_F32);
    struct ll_device *device = open_small(2, LL_DTYPE_F32, NULL);
    int64_t ticket[SEQ_MAX];
    for (uint32_t i = 0; i < SEQ_MAX; i++) { /* all of them in slot 0, back to back */
        struct sequence q;
        make_sequence(&q, i, prompts[i]);
        q.slot = 0;
        struct first_step first;
        first_step(&first, &q, q.n_prompt);
        if (i >= 2)
            assert_int_equal(demo_wait(backend, device, ticket[i - 2]).rows[0].token[0],
                             alone[i - 2].out[0]);
        ticket[i] = backend->submit(device, &first.batch, &error);
        memset(&q, 0xff, sizeof(q)); /* submit has copied all of it */
        memset(&first, 0xff, sizeof(first));
        assert_int_equal(ticket[i], i + 1);
    }
    for (uint32_t i = SEQ_MAX - 2; i < SEQ_MAX; i++)
        assert_int_equal(demo_wait(backend, device, ticket[i]).rows[0].token[0], alone[i].out[0]);
    backend->close(device);
}

static void drafts_are_kept_up_to_the_first_wrong_one(void **state)
{
    static struct sequence alone[SEQ_MAX], q;

    (void)state;
    run_alone(alone, LL_DTYPE_F32);
    for (uint32_t i = 0; i < SEQ_MAX; i++) {
        for (uint32_t n_right = 0; n_right < 4; n_right++) {
            struct ll_device *device = open_small(2, LL_DTYPE_F32, NULL);
            make_sequence(&q, i, prompts[i]);
            run_together(device, &q, 1, 512); /* fills the pages; the slot is set up anew below */
            uint32_t ids[5];
            for (uint32_t t = 0; t < 5; t++)
                ids[t] = alone[i].out[t];
            ids[1 + n_right] = (ids[1 + n_right] + 1) % shape.n_vocab;
            memcpy(q.prompt + q.n_prompt, alone[i].out, sizeof(q.prompt[0]));
            struct ll_slot_init init = init_of(&q, q.n_prompt + 1);
            struct ll_row row = {.slot = q.slot,
                                 .pos = q.n_prompt,
                                 .n_tokens = 5,
                                 .token = ids,
                                 .flags = LL_ROW_SAMPLE | LL_ROW_VERIFY,
                                 .n_top = 4};
            struct ll_batch batch = {.n_inits = 1, .n_rows = 1, .inits = &init, .rows = &row};
            struct ll_result r = demo_run(device, &batch);
            assert_int_equal(r.rows[0].n_tokens, n_right + 1);
            assert_int_equal(r.rows[0].n_ext, 4 * (n_right + 1));
            for (uint32_t t = 0; t <= n_right; t++) {
                assert_int_equal(r.rows[0].token[t], alone[i].out[1 + t]);
                assert_memory_equal(r.ext + r.rows[0].ext + 4 * t, alone[i].top[1 + t],
                                    sizeof(alone[i].top[0]));
            }
            /* And the device knows where it stands: it runs ahead from a lower bound. */
            row = (struct ll_row){
                .slot = q.slot, .pos = q.n_prompt + 1, .n_tokens = 1, .flags = LL_ROW_SAMPLE};
            r = demo_run(device, &(struct ll_batch){.n_rows = 1, .rows = &row});
            assert_int_equal(r.rows[0].token[0], alone[i].out[2 + n_right]);
            backend->close(device);
        }
    }
}

static void pages_come_back_from_the_host_as_they_went(void **state)
{
    static struct sequence alone[SEQ_MAX], q;
    struct ll_text error = {""};
    struct ll_copy out[PER_SEQ], in[PER_SEQ];

    (void)state;
    run_alone(alone, LL_DTYPE_F32);
    struct ll_device *device = open_small(1, LL_DTYPE_F32, NULL);
    make_sequence(&q, 4, prompts[4]);
    struct first_step first;
    first_step(&first, &q, q.n_prompt);
    int64_t step = backend->submit(device, &first.batch, &error);
    for (uint32_t p = 0; p < PER_SEQ; p++) {
        out[p] = (struct ll_copy){.dst = PER_SEQ - 1 - p, .src = q.page[p], .kind = LL_COPY_D2H};
        in[p] = (struct ll_copy){.dst = p, .src = PER_SEQ - 1 - p, .kind = LL_COPY_H2D};
    }
    int64_t ticket = backend->copy(device, out, PER_SEQ, &error); /* while the step runs */
    assert_int_equal(ticket, 1);
    for (int i = 0; i < 100; i++) /* one thread: the step has not begun, so no page may move */
        assert_int_equal(backend->copied(device, ticket, &error), 0);
    assert_int_equal(demo_wait(backend, device, step).rows[0].token[0], alone[4].out[0]);
    while (backend->copied(device, ticket, &error) == 0)
        ;
    ticket = backend->copy(device, in, PER_SEQ, &error);
    while (backend->copied(device, ticket, &error) == 0)
        ;
    for (uint32_t p = 0; p < PER_SEQ; p++)
        q.page[p] = p; /* other pages than before */
    for (uint32_t i = 1; i < OUT; i++) {
        first.row = (struct ll_row){
            .slot = q.slot, .pos = q.n_prompt + i - 1, .n_tokens = 1, .flags = LL_ROW_SAMPLE};
        first.batch.n_inits = 0;
        first.batch.n_pages_sets = i == 1;
        assert_int_equal(demo_run(device, &first.batch).rows[0].token[0], alone[4].out[i]);
    }
    out[0].src = SEQ_MAX * PER_SEQ + 1;
    assert_int_equal(backend->copy(device, out, 1, &error), LL_E_INVAL);
    backend->close(device);
}

static void a_prompt_is_scored_with_its_last_target_only_named(void **state)
{
    static struct sequence alone[SEQ_MAX];
    struct ll_device *device;

    (void)state;
    run_alone(alone, LL_DTYPE_F32);
    device = open_small(1, LL_DTYPE_F32, NULL);
    struct sequence *q = &alone[3];
    struct first_step first;
    first_step(&first, q, q->n_prompt);
    first.row.n_tokens = q->n_prompt - 1;
    first.row.flags = LL_ROW_PROMPT_LOGPROBS;
    first.row.n_prompt_top = 3;
    struct ll_result r = demo_run(device, &first.batch);
    assert_int_equal(r.rows[0].n_tokens, 0);
    assert_int_equal(r.rows[0].n_ext, 4 * (q->n_prompt - 1));
    for (uint32_t t = 0; t + 1 < q->n_prompt; t++) {
        const struct ll_ext *ext = r.ext + r.rows[0].ext + 4 * t;
        assert_int_equal(ext[0].id, q->prompt[t + 1]);
        assert_memory_equal(&ext[0].logprob, &q->score[t + 1], sizeof(float));
        assert_true(ext[1].logprob >= ext[2].logprob && ext[2].logprob >= ext[3].logprob);
        assert_true(ext[1].logprob >= ext[0].logprob);
    }
    backend->close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_row_gives_the_same_bits_alone_and_among_others),
        cmocka_unit_test(chunks_of_a_prompt_give_the_same_bits_as_the_whole),
        cmocka_unit_test(slots_and_pages_change_no_bit),
        cmocka_unit_test(the_number_of_threads_changes_no_bit),
        cmocka_unit_test(the_instruction_set_changes_no_bit),
        cmocka_unit_test(a_preempted_sequence_goes_on_as_if_nothing_had_been),
        cmocka_unit_test(a_new_owner_of_a_slot_does_not_touch_the_step_in_flight),
        cmocka_unit_test(drafts_are_kept_up_to_the_first_wrong_one),
        cmocka_unit_test(pages_come_back_from_the_host_as_they_went),
        cmocka_unit_test(a_prompt_is_scored_with_its_last_target_only_named),
    };
    backend = ll_backend_cpu();
    return cmocka_run_group_tests_name("kernels/cpu steps", tests, NULL, NULL);
}
