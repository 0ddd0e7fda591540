/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_intake_choices.c - how a request for several choices comes in: a sequence each
 * from the start, credits for their ends, and all of it given back where the request does not come
 * about. */
#include "tests/runtime/desk.h"

#define LONG_PROMPT 60000u /* ids: more than a turn copies */

static struct desk desk;

static void submit_choices(uint32_t slot, uint32_t n_prompt, uint32_t n)
{
    struct ll_req *req = desk_fill(&desk, 0, slot, n_prompt);

    req->n = (uint16_t)n;
    desk_publish(&desk, 0, slot);
    desk_word(&desk, 0, LL_OP_SUBMIT, slot);
}

static uint32_t in_state(enum ll_seq_state state)
{
    return desk.pool.list[state].n;
}

static void assert_nothing_is_held(void)
{
    assert_int_equal(in_state(LL_SEQ_FREE), desk.pool.n);
    assert_int_equal(desk.client[0].a.credits_reserved, 0);
    assert_int_equal(desk.client[0].a.n_seqs, 0);
    assert_int_equal(desk.outlet.waiting.n_tokens, 0);
    desk_close(&desk);
}

static void choices_are_sequences_with_a_credit_each_and_one_more(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    submit_choices(0, 10, 5);
    desk_turn(&desk);
    assert_int_equal(in_state(LL_SEQ_WAITING), 5);
    assert_int_equal(desk.client[0].a.credits_reserved, 6);
    assert_int_equal(desk.client[0].a.n_open, 1);
    assert_int_equal(desk.outlet.waiting.n_tokens, 10);
    assert_int_equal(DESK_STAT(&desk, requests_accepted), 1);
    const struct ll_seq *leader = desk_seq(&desk, 0, 0);
    for (uint32_t c = 0; c < 5; c++) {
        const struct ll_seq *seq = ll_seq_member(&desk.pool, leader, c);
        assert_int_equal(seq->choice, c);
        assert_int_equal(seq->is_held, c > 0);
        assert_int_equal(seq->n_tokens, 10);
    }
    atomic_store(&desk.client[0].slot[0].cancel_gen, 1);
    desk_word(&desk, 0, LL_OP_CANCEL, 0);
    desk_turn(&desk);
    assert_int_equal(desk.pool.marked.n, 1); /* the plan ends them all by the one */
    for (uint32_t c = 0; c < 5; c++)
        desk_end(&desk, ll_seq_member(&desk.pool, leader, c), LL_END_CANCELLED);
    desk_publish_ends(&desk);
    desk_publish_ends(&desk); /* the leader last */
    struct ll_event event = desk_read(&desk, 0);
    assert_int_equal(event.type, LL_EV_FINISH);
    assert_int_equal(event.u.finish.reason, LL_FINISH_CANCELLED);
    assert_false(desk_has_event(&desk, 0));
    assert_nothing_is_held();
}

static void a_cancel_while_the_prompt_is_copied_ends_all_choices(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    submit_choices(0, LONG_PROMPT, 5);
    desk_turn(&desk);
    assert_int_equal(in_state(LL_SEQ_INTAKE), 5);
    atomic_store(&desk.client[0].slot[0].cancel_gen, 1);
    desk_word(&desk, 0, LL_OP_CANCEL, 0);
    desk_turn(&desk);
    desk_publish_ends(&desk);
    struct ll_event event = desk_read(&desk, 0);
    assert_int_equal(event.type, LL_EV_FINISH);
    assert_int_equal(event.u.finish.reason, LL_FINISH_CANCELLED);
    assert_int_equal(DESK_STAT(&desk, requests_cancelled), 1);
    assert_nothing_is_held();
}

static void a_prompt_refused_late_gives_all_choices_back(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    submit_choices(0, LONG_PROMPT, 5);
    ((uint32_t *)(void *)desk.client[0].arena)[LONG_PROMPT - 1] = DESK_VOCAB;
    for (int i = 0; i < 5; i++)
        desk_turn(&desk);
    desk_expect_error(&desk, 0, 0, LL_E_INVAL, "prompt[59999]: below 1000");
    assert_int_equal(DESK_STAT(&desk, requests_rejected), 1);
    assert_nothing_is_held();
}

static void a_stop_while_the_prompt_is_copied_is_one_choice_s(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    submit_choices(0, LONG_PROMPT, 3);
    desk_turn(&desk);
    atomic_store(&desk.client[0].slot[0].stop_choice[0], 1u << 1 | 1u << 9);
    desk_word(&desk, 0, LL_OP_STOP, 0);
    for (int i = 0; i < 5; i++)
        desk_turn(&desk);
    const struct ll_seq *leader = desk_seq(&desk, 0, 0);
    assert_int_equal(in_state(LL_SEQ_WAITING), 3);
    assert_int_equal(desk.pool.marked.n, 1);
    for (uint32_t c = 0; c < 3; c++) {
        struct ll_seq *seq = ll_seq_member(&desk.pool, leader, c);
        assert_int_equal(seq->is_stopped, c == 1);
        assert_int_equal(seq->is_marked, c == 1);
        seq->is_held = false;
        desk_end(&desk, seq, LL_END_STOP);
    }
    desk_publish_ends(&desk);
    desk_publish_ends(&desk);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(desk_read(&desk, 0).type, LL_EV_CHOICE);
    assert_int_equal(desk_read(&desk, 0).type, LL_EV_FINISH);
    assert_nothing_is_held();
}

static void a_turn_makes_a_bounded_number_of_sequences(void **state)
{
    (void)state;
    desk_open(&desk, 600, false);
    for (uint32_t slot = 0; slot < 5; slot++)
        submit_choices(slot, 10, 100);
    desk_turn(&desk);
    assert_int_equal(in_state(LL_SEQ_WAITING), LL_INTAKE_CHOICES_TURN / 100 * 100);
    desk_turn(&desk); /* at once, not with the next sweep that is due */
    assert_int_equal(in_state(LL_SEQ_WAITING), 400);
    desk_turn(&desk);
    assert_int_equal(in_state(LL_SEQ_WAITING), 500);
    desk_close(&desk);
}

static void write_one(void)
{
    struct ll_event event = {.type = LL_EV_TOKEN};

    ll_event_write(&desk.client[0].a.events, &event);
}

static void a_request_waits_for_room_in_the_ring_for_all_its_ends(void **state)
{
    (void)state;
    desk_open(&desk, 600, false);
    /* 1,024 events: 129 for the request, 64 for a row, 31 for the other slots; one is missing. */
    for (uint32_t i = 0; i < 1024 - 129 - 64 - 31 + 1; i++)
        write_one();
    submit_choices(0, 10, 128);
    ll_intake_poll(&desk.intake, desk.now_ns);
    assert_int_equal(in_state(LL_SEQ_FREE), 600);
    desk_read(&desk, 0);
    desk.now_ns += LL_INTAKE_SWEEP_NS;
    desk_turn(&desk);
    assert_int_equal(in_state(LL_SEQ_WAITING), 128);
    desk_close(&desk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choices_are_sequences_with_a_credit_each_and_one_more),
        cmocka_unit_test(a_cancel_while_the_prompt_is_copied_ends_all_choices),
        cmocka_unit_test(a_prompt_refused_late_gives_all_choices_back),
        cmocka_unit_test(a_stop_while_the_prompt_is_copied_is_one_choice_s),
        cmocka_unit_test(a_turn_makes_a_bounded_number_of_sequences),
        cmocka_unit_test(a_request_waits_for_room_in_the_ring_for_all_its_ends),
    };
    return cmocka_run_group_tests_name("runtime/intake_choices", tests, NULL, NULL);
}
