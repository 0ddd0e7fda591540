/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/outlet_end.c - how a sequence's end is told: a choice's own, then the one terminal event
 * of the request, and what is counted with it. */
#include "runtime/outlet_impl.h"

#include "base/bits.h"
#include "base/clock.h"
#include "ll/client.h"

#include <stdio.h>

static uint32_t n_out(const struct ll_seq *seq)
{
    return seq->n_tokens > seq->n_prompt ? seq->n_tokens - seq->n_prompt : 0;
}

static uint32_t reason_of(enum ll_end end)
{
    return end == LL_END_STOP     ? LL_FINISH_STOP
           : end == LL_END_LENGTH ? LL_FINISH_LENGTH
                                  : LL_FINISH_CANCELLED;
}

static bool is_good(enum ll_end end)
{
    return end == LL_END_STOP || end == LL_END_LENGTH;
}

static void fill_finish(struct ll_event *event, const struct ll_seq *leader, enum ll_end end,
                        uint64_t now_ns)
{
    event->type = LL_EV_FINISH;
    event->u.finish.reason = reason_of(end);
    event->u.finish.stop_id = end == LL_END_STOP ? leader->stop_id : UINT32_MAX;
    event->u.finish.n_prompt = leader->n_prompt;
    event->u.finish.n_cached = leader->n_cached;
    event->u.finish.n_out = (uint32_t)leader->n_out;
    event->u.finish.ttft_us =
        leader->t_first_ns == 0
            ? 0
            : (uint32_t)ll_min_u64((leader->t_first_ns - leader->t_seen_ns) / LL_NS_PER_US,
                                   UINT32_MAX);
    event->u.finish.total_ns = now_ns - leader->t_seen_ns;
}

static void fill_error(struct ll_event *event, enum ll_end end, int32_t code)
{
    const char *text = "";

    event->type = LL_EV_ERROR;
    if (end == LL_END_EXPIRED) {
        event->u.error.code = LL_E_DEADLINE;
        text = "deadline_ns: has passed";
    } else if (end == LL_END_STALLED) {
        event->u.error.code = LL_E_STALLED;
        text = "tokens were not read in time";
    } else {
        event->u.error.code = code;
        text = code == LL_E_BACKEND ? "the device failed" : "";
    }
    snprintf(event->u.error.text, sizeof(event->u.error.text), "%s", text);
}

static void count_end(struct ll_stats *stats, const struct ll_seq *leader, enum ll_end end,
                      uint64_t now_ns)
{
    _Atomic uint64_t *const column[] = {
        [LL_END_NONE] = NULL,
        [LL_END_STOP] = &stats->requests_finished,
        [LL_END_LENGTH] = &stats->requests_finished,
        [LL_END_CANCELLED] = &stats->requests_cancelled,
        [LL_END_EXPIRED] = &stats->requests_expired,
        [LL_END_STALLED] = &stats->requests_stalled,
        [LL_END_FAILED] = &stats->requests_failed,
        [LL_END_LOST] = &stats->requests_lost,
    };

    LL_ASSERT(end > LL_END_NONE && end < LL_COUNT(column));
    ll_stat_add(column[end], 1);
    if (is_good(end)) {
        ll_hist_add(&stats->request_total_ns, now_ns - leader->t_seen_ns);
        ll_hist_add(&stats->prompt_length, leader->n_prompt);
        ll_hist_add(&stats->output_length, leader->n_out);
    }
}

/* The one terminal event (W4, Q5), after all choices; the slot is the client's again. */
static void tell_request(struct ll_outlet *outlet, struct ll_seq *leader, uint64_t now_ns)
{
    struct ll_attachment *client = outlet->client[leader->client];
    struct ll_shadow *shadow = &client->shadow[leader->slot];
    enum ll_end end = leader->request_end != LL_END_NONE ? leader->request_end : leader->end;

    ll_outlet_unstarve(outlet, leader);
    LL_ASSERT(shadow->sequence == leader->index && shadow->phase != LL_SHADOW_IDLE);
    ll_outlet_leave_queue(outlet, leader, now_ns, false);
    if (is_good(end))
        ll_waiting_learn_end(&outlet->waiting, leader, now_ns);
    shadow->phase = LL_SHADOW_IDLE;
    client->n_open--;
    LL_ASSERT(client->credits_reserved > 0);
    client->credits_reserved--;
    count_end(outlet->stats, leader, end, now_ns);
    if (client->is_fenced || end == LL_END_LOST)
        return;

    struct ll_event event = ll_outlet_event(leader, LL_EV_FINISH, (uint32_t)leader->n_out, now_ns);
    if (is_good(end) || end == LL_END_CANCELLED)
        fill_finish(&event, leader, end, now_ns);
    else
        fill_error(&event, end, leader->request_code);
    ll_outlet_write(outlet, client, &event);

    struct ll_rst *rst = &client->rst[leader->slot];
    rst->status = event.type == LL_EV_ERROR ? event.u.error.code : 0;
    rst->n_out = (uint32_t)leader->n_out;
    rst->n_cached = leader->n_cached;
    rst->t_first_ns = leader->t_first_ns;
    rst->t_last_ns = leader->t_final_ns;
    ll_outlet_store_phase(client, leader->slot, leader->gen, LL_PHASE_DONE);
}

/* One of several choices has ended; the event says how, where it ended by itself. */
static void tell_choice(struct ll_outlet *outlet, struct ll_seq *leader, const struct ll_seq *seq,
                        uint64_t now_ns)
{
    struct ll_attachment *client = outlet->client[seq->client];

    LL_ASSERT(client->credits_reserved > 0);
    client->credits_reserved--;
    if (client->is_fenced || !is_good(seq->end))
        return;
    struct ll_event event = ll_outlet_event(seq, LL_EV_CHOICE, n_out(seq), now_ns);
    event.u.choice_end.reason = reason_of(seq->end);
    event.u.choice_end.stop_id = seq->end == LL_END_STOP ? seq->stop_id : UINT32_MAX;
    event.u.choice_end.n_out = n_out(seq);
    ll_outlet_write(outlet, client, &event);
    leader->n_written++;
}

void ll_outlet_tell(struct ll_outlet *outlet, struct ll_seq *seq, uint64_t now_ns)
{
    struct ll_seq *leader = ll_seq_leader(outlet->pool, seq);

    LL_ASSERT(!seq->is_told && leader->n_untold > 0);
    seq->is_told = true;
    leader->n_untold--;
    leader->n_out += n_out(seq);
    leader->t_final_ns = ll_max_u64(leader->t_final_ns, seq->t_last_ns);
    if (!is_good(seq->end) && leader->request_end == LL_END_NONE) {
        leader->request_end = seq->end;
        leader->request_code = seq->end_code;
    }
    if (leader->n_choices > 1)
        tell_choice(outlet, leader, seq, now_ns);
    if (leader->n_untold == 0)
        tell_request(outlet, leader, now_ns);
}
