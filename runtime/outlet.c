/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/outlet_impl.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/clock.h"
#include "ll/client.h"
#include "shm/wait.h"

#include <stdio.h>
#include <string.h>

#define TELLS_MAX  32u /* terminal events a call: 150 ns each, all lines of it are cold */
#define WAKES_HERE 8u  /* a send() to a sleeper costs microseconds */

void ll_outlet_init(struct ll_outlet *outlet, struct ll_seq_pool *pool, struct ll_stats *stats,
                    struct ll_mailbox *to_control)
{
    memset(outlet, 0, sizeof(*outlet));
    outlet->pool = pool;
    outlet->stats = stats;
    outlet->to_control = to_control;
    ll_waiting_init(&outlet->waiting, pool->n, UINT64_MAX);
}

void ll_outlet_attach(struct ll_outlet *outlet, struct ll_attachment *client)
{
    LL_ASSERT(client->id < LL_ATTACHMENTS_MAX && outlet->client[client->id] == NULL);
    outlet->client[client->id] = client;
    outlet->n_ids = (uint32_t)ll_max_u64(outlet->n_ids, client->id + 1);
}

void ll_outlet_detach(struct ll_outlet *outlet, struct ll_attachment *client)
{
    uint32_t n_kept = 0;

    LL_ASSERT(outlet->client[client->id] == client && client->n_seqs == 0);
    outlet->client[client->id] = NULL;
    for (uint32_t i = 0; i < outlet->n_touched; i++)
        if (outlet->touched[i] != client->id)
            outlet->touched[n_kept++] = outlet->touched[i];
    outlet->n_touched = n_kept;
}

/* ---- writing ---------------------------------------------------------------------------------*/

void ll_outlet_fence(struct ll_outlet *outlet, struct ll_attachment *client, int32_t code)
{
    if (client->is_fenced)
        return;
    client->is_fenced = true;
    ll_stat_add(&outlet->stats->clients_fenced, 1);
    for (uint32_t i = 0; i < client->n_slots; i++) {
        if (client->shadow[i].phase == LL_SHADOW_IDLE)
            continue;
        struct ll_seq *leader = &outlet->pool->seq[client->shadow[i].sequence];
        leader->is_lost = true;
        ll_seq_mark_request(outlet->pool, leader);
    }
    struct ll_mail mail = {LL_MAIL_FENCED, client, (uint64_t)(int64_t)code};
    /* One such mail a client: the box holds them all (mailbox.h). */
    LL_ASSERT(ll_mailbox_send(outlet->to_control, &mail));
}

/* ---- phases ----------------------------------------------------------------------------------*/

void ll_outlet_enter_queue(struct ll_outlet *outlet, struct ll_seq *leader, uint32_t n_choices,
                           uint64_t now_ns)
{
    outlet->client[leader->client]->domain->tokens_waiting += leader->n_prompt;
    ll_waiting_enter(&outlet->waiting, leader, n_choices, now_ns);
}

void ll_outlet_leave_queue(struct ll_outlet *outlet, struct ll_seq *leader, uint64_t now_ns,
                           bool has_started)
{
    if (!leader->has_place)
        return;
    outlet->client[leader->client]->domain->tokens_waiting -= leader->n_prompt;
    ll_waiting_leave(&outlet->waiting, leader, now_ns, has_started);
}

void ll_outlet_phase(struct ll_outlet *outlet, struct ll_seq *seq, enum ll_slot_phase phase,
                     uint64_t now_ns)
{
    struct ll_attachment *client = outlet->client[seq->client];
    struct ll_seq *leader = ll_seq_leader(outlet->pool, seq);
    struct ll_rst *rst = &client->rst[seq->slot];

    if (phase == LL_PHASE_ACCEPTED) {
        ll_stat_add(&outlet->stats->requests_accepted, 1);
        ll_stat_add(&outlet->stats->prompt_tokens, seq->n_prompt);
        rst->t_seen_ns = seq->t_seen_ns;
    } else if (phase == LL_PHASE_RUNNING && seq->t_run_ns == 0) {
        seq->t_run_ns = now_ns;
        if (!leader->has_run) {
            leader->has_run = true;
            ll_outlet_leave_queue(outlet, leader, now_ns, true);
            ll_hist_add(&outlet->stats->queue_ns, now_ns - seq->t_seen_ns);
        }
    }
    if (!client->is_fenced)
        ll_outlet_store_phase(client, seq->slot, seq->gen, phase);
}

void ll_outlet_refuse(struct ll_outlet *outlet, struct ll_attachment *client, uint32_t slot,
                      uint32_t gen, uint64_t now_ns, const struct ll_refusal *why)
{
    LL_ASSERT(client->credits_reserved > 0);
    client->credits_reserved--;
    ll_stat_add(&outlet->stats->requests_rejected, 1);
    if (client->is_fenced)
        return;

    struct ll_event event = {
        .type = LL_EV_ERROR, .slot = (uint16_t)slot, .gen = (uint16_t)gen, .t_ns = now_ns};
    event.u.error.code = why->code;
    event.u.error.retry_ms = why->retry_ms;
    snprintf(event.u.error.text, sizeof(event.u.error.text), "%s", why->text);
    ll_outlet_write(outlet, client, &event);
    client->rst[slot].status = why->code;
    ll_outlet_store_phase(client, slot, gen, LL_PHASE_DONE);
}

/* ---- what a step yielded ---------------------------------------------------------------------*/

/* Straight into the ring: an event written in pieces and copied at once waits for the store buffer,
 * which was half of what a token took. */
static void write_token(struct ll_outlet *outlet, struct ll_attachment *client,
                        const struct ll_seq *seq, const struct ll_yield *yield, uint32_t k,
                        uint64_t now_ns)
{
    LL_ASSERT(client->events.prod - client->events.cons <= client->events.mask); /* O3 */
    struct ll_event *event = ll_event_begin(&client->events);

    if (event == NULL)
        return;
    event->type = LL_EV_TOKEN;
    event->flags = 0;
    event->n = 1;
    event->choice = (uint8_t)seq->choice;
    event->slot = (uint16_t)seq->slot;
    event->gen = (uint16_t)seq->gen;
    event->index = yield->index + k;
    event->t_ns = now_ns;
    memset(&event->u, 0, sizeof(event->u));
    event->u.token.id = yield->token[k];
    event->u.token.logprob = yield->logprob[k];
    ll_event_commit(&client->events);
    outlet->n_events++;
    ll_outlet_touch(outlet, client);
}

static void write_tokens(struct ll_outlet *outlet, struct ll_attachment *client, struct ll_seq *seq,
                         const struct ll_yield *yield, uint64_t now_ns)
{
    struct ll_seq *leader = ll_seq_leader(outlet->pool, seq);

    for (uint32_t k = 0; k < yield->n_tokens; k++) {
        write_token(outlet, client, seq, yield, k, now_ns);
        leader->n_written++;

        const struct ll_ext *top = seq->n_top > 0 ? yield->top + k * seq->n_top : NULL;
        for (uint32_t i = 0; i < seq->n_top; i += LL_OUTLET_TOPS) {
            struct ll_event event = ll_outlet_event(seq, LL_EV_TOP, yield->index + k, now_ns);
            event.n = (uint8_t)ll_min_u64(LL_OUTLET_TOPS, seq->n_top - i);
            event.flags = i + event.n == seq->n_top ? LL_EV_LAST : 0;
            for (uint32_t j = 0; j < event.n; j++) {
                event.u.top[j].id = top[i + j].id;
                event.u.top[j].logprob = top[i + j].logprob;
            }
            ll_outlet_write(outlet, client, &event);
            leader->n_written++;
        }
    }
}

static void write_scored(struct ll_outlet *outlet, struct ll_attachment *client, struct ll_seq *seq,
                         const struct ll_yield *yield, uint64_t now_ns)
{
    struct ll_seq *leader = ll_seq_leader(outlet->pool, seq);
    const uint32_t stride = 1u + seq->n_prompt_top;

    for (uint32_t i = 0; i < yield->n_scored; i += LL_OUTLET_PROMPTS) {
        struct ll_event event = ll_outlet_event(seq, LL_EV_PROMPT, yield->first_scored + i, now_ns);
        event.n = (uint8_t)ll_min_u64(LL_OUTLET_PROMPTS, yield->n_scored - i);
        for (uint32_t j = 0; j < event.n; j++)
            event.u.prompt[j] = yield->scored[(i + j) * stride].logprob;
        ll_outlet_write(outlet, client, &event);
        leader->n_written++;
    }
    for (uint32_t k = 0; k < yield->n_scored && seq->n_prompt_top > 0; k++) {
        const struct ll_ext *top = &yield->scored[k * stride + 1];
        for (uint32_t i = 0; i < seq->n_prompt_top; i += LL_OUTLET_TOPS) {
            struct ll_event event =
                ll_outlet_event(seq, LL_EV_PROMPT_TOP, yield->first_scored + k, now_ns);
            event.n = (uint8_t)ll_min_u64(LL_OUTLET_TOPS, seq->n_prompt_top - i);
            event.flags = i + event.n == seq->n_prompt_top ? LL_EV_LAST : 0;
            for (uint32_t j = 0; j < event.n; j++) {
                event.u.top[j].id = top[i + j].id;
                event.u.top[j].logprob = top[i + j].logprob;
            }
            ll_outlet_write(outlet, client, &event);
            leader->n_written++;
        }
    }
}

static void flush_stats(struct ll_outlet *outlet)
{
    struct ll_stats *stats = outlet->stats;

    if (outlet->n_gaps > 0) {
        ll_hist_add_n(&stats->token_gap_ns, outlet->gap_ns, outlet->n_gaps);
        ll_waiting_learn_gap(&outlet->waiting, outlet->gap_ns);
    }
    ll_stat_add(&stats->output_tokens, outlet->n_output);
    ll_stat_add(&stats->events_written, outlet->n_events);
    outlet->n_gaps = outlet->n_output = outlet->n_events = 0;
}

/* Nearly all rows of a step have the gap of the row before. */
static void count_gap(struct ll_outlet *outlet, uint64_t gap_ns)
{
    if (gap_ns != outlet->gap_ns && outlet->n_gaps > 0) {
        ll_hist_add_n(&outlet->stats->token_gap_ns, outlet->gap_ns, outlet->n_gaps);
        outlet->n_gaps = 0;
    }
    outlet->gap_ns = gap_ns;
    outlet->n_gaps++;
}

static void publish_yield(struct ll_outlet *outlet, const struct ll_yield *yield, uint64_t now_ns)
{
    struct ll_seq *seq = &outlet->pool->seq[yield->seq];
    struct ll_seq *leader = ll_seq_leader(outlet->pool, seq);
    struct ll_attachment *client = outlet->client[seq->client];

    LL_ASSERT(yield->n_booked <= leader->n_booked);
    leader->n_booked -= yield->n_booked;
    client->credits_reserved -= yield->n_booked;
    if (seq->is_told || client->is_fenced) /* rows that were in flight when it ended */
        return;

    LL_ASSERT(ll_outlet_row_events(seq, yield->n_tokens, yield->n_scored) <= yield->n_booked);
    if (yield->n_scored > 0)
        write_scored(outlet, client, seq, yield, now_ns);
    write_tokens(outlet, client, seq, yield, now_ns);
    if (yield->n_tokens == 0)
        return;
    outlet->n_output += yield->n_tokens;
    bool is_first = seq->t_last_ns == 0;
    if (!is_first)
        count_gap(outlet, now_ns - seq->t_last_ns);
    seq->t_last_ns = now_ns;
    if (!is_first || leader->t_first_ns != 0) /* the one lies in a line that is touched anyway */
        return;
    leader->t_first_ns = now_ns;
    ll_hist_add(&outlet->stats->ttft_ns, now_ns - seq->t_seen_ns);
    ll_waiting_learn_first(&outlet->waiting, now_ns - seq->t_run_ns,
                           seq->n_prompt - leader->n_cached);
}

/* ---- publish, wake, fail ----------------------------------------------------------------------*/

static void set_gauges(struct ll_outlet *outlet)
{
    const struct ll_seq_list *list = outlet->pool->list;

    ll_stat_set(&outlet->stats->requests_running, list[LL_SEQ_RUNNING].n);
    ll_stat_set(&outlet->stats->requests_waiting, list[LL_SEQ_WAITING].n + list[LL_SEQ_INTAKE].n);
    ll_stat_set(&outlet->stats->tokens_waiting, outlet->waiting.n_tokens);
    ll_stat_set(&outlet->stats->sequences_total, outlet->pool->n);
    ll_stat_set(&outlet->stats->sequences_free, list[LL_SEQ_FREE].n);
}

void ll_outlet_publish(struct ll_outlet *outlet, const struct ll_yield *yields, uint32_t n,
                       uint64_t now_ns)
{
    struct ll_seq_pool *pool = outlet->pool;
    uint32_t n_told = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (i + LL_SEQ_AHEAD < n)
            ll_seq_prefetch(&pool->seq[yields[i + LL_SEQ_AHEAD].seq]);
        publish_yield(outlet, &yields[i], now_ns);
    }
    flush_stats(outlet);

    for (uint32_t i = pool->list[LL_SEQ_ENDING].first, next; i != LL_NONE; i = next) {
        struct ll_seq *seq = &pool->seq[i];
        next = seq->next;
        if (!seq->is_told) {
            if (n_told++ == TELLS_MAX)
                break; /* the next turn goes on */
            ll_outlet_tell(outlet, seq, now_ns);
        }
        if (ll_seq_is_done(seq)) {
            LL_ASSERT(seq->n_booked == 0);
            outlet->client[seq->client]->n_seqs--;
            ll_seq_move(pool, seq, LL_SEQ_FREE);
        }
    }
    set_gauges(outlet);
}

static void wake_here(struct ll_outlet *outlet, struct ll_attachment *client)
{
    struct ll_debt *debt = &client->domain->step_debt;
    struct ll_debt_call call = ll_debt_begin(debt, &outlet->clock);

    ll_wait_wake(client->wake_fd);
    ll_debt_end(debt, &outlet->clock, &call);
}

void ll_outlet_wake(struct ll_outlet *outlet)
{
    uint32_t n_woken = 0, n_kept = 0;

    if (outlet->n_touched == 0)
        return;
    ll_wait_fence();
    for (uint32_t i = 0; i < outlet->n_touched; i++) {
        struct ll_attachment *client = outlet->client[outlet->touched[i]];
        /* Relaxed: prod_pos is a statistic. */
        atomic_store_explicit(&client->rsp_head->prod_pos, client->events.prod,
                              memory_order_relaxed);
        if (ll_debt_is_due(&client->domain->step_debt, &outlet->clock)) {
            outlet->touched[n_kept++] = client->id;
            continue;
        }
        client->is_touched = false;
        if (!ll_wait_claim(client->hot))
            continue;
        ll_stat_add(&outlet->stats->wakes_sent, 1);
        struct ll_mail mail = {LL_MAIL_WAKE, client, 0};
        /* Half the box is kept for mail that cannot be done without. */
        if (++n_woken <= WAKES_HERE ||
            ll_mailbox_room(outlet->to_control) <= LL_MAILBOX_LENGTH / 2 ||
            !ll_mailbox_send(outlet->to_control, &mail))
            wake_here(outlet, client);
    }
    outlet->n_touched = n_kept;
}

void ll_outlet_fail_all(struct ll_outlet *outlet, int32_t code, uint64_t now_ns)
{
    struct ll_seq_pool *pool = outlet->pool;

    for (uint32_t i = 0; i < pool->n; i++) {
        struct ll_seq *seq = &pool->seq[i];
        if (seq->state == LL_SEQ_FREE || seq->is_told)
            continue;
        if (seq->state == LL_SEQ_INTAKE && seq->leader == i)
            ll_outlet_phase(outlet, seq, LL_PHASE_ACCEPTED, now_ns);
        if (seq->end == LL_END_NONE) {
            seq->end = ll_seq_leader(pool, seq)->is_lost ? LL_END_LOST : LL_END_FAILED;
            seq->end_code = code;
        }
        if (seq->state != LL_SEQ_ENDING)
            ll_seq_move(pool, seq, LL_SEQ_ENDING);
        ll_outlet_tell(outlet, seq, now_ns);
    }
    set_gauges(outlet);
}

void ll_outlet_check(const struct ll_outlet *outlet)
{
    const struct ll_stats *s = outlet->stats;
    const struct ll_seq_pool *pool = outlet->pool;
    int64_t reserved[LL_ATTACHMENTS_MAX];
    uint32_t n_open[LL_ATTACHMENTS_MAX], n_seqs[LL_ATTACHMENTS_MAX];
    uint64_t n_untold = 0, n_intake = 0;
    uint32_t n_starved = 0;

    memset(reserved, 0, outlet->n_ids * sizeof(reserved[0]));
    memset(n_open, 0, outlet->n_ids * sizeof(n_open[0]));
    memset(n_seqs, 0, outlet->n_ids * sizeof(n_seqs[0]));

    for (uint32_t i = 0; i < pool->n; i++) {
        const struct ll_seq *seq = &pool->seq[i];
        if (seq->state == LL_SEQ_FREE)
            continue;
        LL_ASSERT(seq->client < outlet->n_ids && outlet->client[seq->client] != NULL);
        LL_ASSERT(!seq->is_told || seq->state == LL_SEQ_ENDING);
        n_seqs[seq->client]++;
        if (seq->leader != i)
            continue;
        n_starved += seq->starved_ns != 0;
        bool is_open = seq->n_untold > 0, has_choices = seq->n_choices > 1;
        LL_ASSERT(seq->n_written + seq->n_booked - seq->n_taken <=
                  LL_WINDOW_EVENTS + (has_choices ? seq->n_choices : 0));
        reserved[seq->client] +=
            (int64_t)seq->n_booked + is_open + (has_choices ? (int64_t)seq->n_untold : 0); /* O1 */
        n_open[seq->client] += is_open;
        n_untold += is_open && seq->state != LL_SEQ_INTAKE;
        n_intake += seq->state == LL_SEQ_INTAKE;
    }
    for (uint32_t i = 0; i < outlet->n_ids; i++) {
        const struct ll_attachment *client = outlet->client[i];
        if (client == NULL) {
            LL_ASSERT(n_seqs[i] == 0);
            continue;
        }
        LL_ASSERT(client->credits_reserved == reserved[i]);
        LL_ASSERT(client->n_open == n_open[i] && client->n_seqs == n_seqs[i]);
        /* O1, O3: what is promised fits. */
        LL_ASSERT(client->is_fenced ||
                  client->events.prod - client->events.cons + (uint64_t)reserved[i] <=
                      (uint64_t)client->events.mask + 1);
    }
    LL_ASSERT(n_starved == outlet->n_starved);
    ll_waiting_check(&outlet->waiting, pool);
    LL_ASSERT(ll_stat_get(&s->requests_submitted) ==
              ll_stat_get(&s->requests_rejected) + ll_stat_get(&s->requests_accepted) + n_intake);
    LL_ASSERT(ll_stat_get(&s->requests_accepted) ==
              ll_stat_get(&s->requests_finished) + ll_stat_get(&s->requests_cancelled) +
                  ll_stat_get(&s->requests_expired) + ll_stat_get(&s->requests_stalled) +
                  ll_stat_get(&s->requests_failed) + ll_stat_get(&s->requests_lost) + n_untold);
}
