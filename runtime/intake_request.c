/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/intake_request.c - one request, from its slot to WAITING: read, judged, given a place,
 * copied piece by piece. */
#include "runtime/intake_impl.h"

#include "base/assert.h"
#include "base/bits.h"
#include "ll/client.h"

/* ---- client memory: one atomic load a word, then only the copy -------------------------------*/

/* n_bytes is a multiple of 4; from is 4-aligned (the slot and what the gate let pass are). Two ids
 * a load where both sides allow it: 64 KiB in 4 us instead of 7. */
static void copy_words(void *to, const void *from, size_t n_bytes)
{
    size_t at = 0;

    /* Relaxed: the acquire of the slot's state came first; what a client changes meanwhile shows in
     * the copy or does not, and the copy alone is checked and used. */
    if ((((uintptr_t)to | (uintptr_t)from) & 7u) == 0)
        for (; at + sizeof(uint64_t) <= n_bytes; at += sizeof(uint64_t)) {
            const _Atomic uint64_t *source = (const void *)((const char *)from + at);
            uint64_t *target = (void *)((char *)to + at);
            *target = atomic_load_explicit(source, memory_order_relaxed);
        }
    for (; at < n_bytes; at += sizeof(uint32_t)) {
        const _Atomic uint32_t *source = (const void *)((const char *)from + at);
        uint32_t *target = (void *)((char *)to + at);
        *target = atomic_load_explicit(source, memory_order_relaxed);
    }
}

/* ---- a new request ---------------------------------------------------------------------------*/

static uint64_t tenant_key(const struct ll_attachment *client, uint32_t tenant)
{
    return (uint64_t)(client->incarnation & 0x3ffu) << 48 | (uint64_t)client->id << 32 | tenant;
}

/* N5: may a domain that has n_has of the queue get n_more, n_free being free? */
static bool is_within_share(const struct ll_intake *intake, uint64_t n_has, uint64_t n_more,
                            uint64_t n_free)
{
    uint64_t share = intake->waiting_share;

    return intake->n_domains < 2 || n_has == 0 || share >= 100 ||
           n_has + n_more <= n_free * share / (100 - share);
}

/* Does the client's domain leave others their part of the queue, in sequences and in prompt tokens,
 * if a request of n choices enters it? seq is counted among them already. */
static bool leaves_room(const struct ll_intake *intake, const struct ll_domain *domain,
                        const struct ll_seq *seq, uint32_t n)
{
    const struct ll_waiting *w = &intake->outlet->waiting;
    uint64_t n_free = w->n_max - ll_min_u64(w->n, w->n_max);
    uint64_t tokens_free = w->tokens_max - ll_min_u64(w->n_tokens, w->tokens_max);

    return w->n == 0 ||
           (is_within_share(intake, intake->pool->n_waiting[domain->id] - 1, n, n_free) &&
            (w->tokens_max == UINT64_MAX ||
             is_within_share(intake, domain->tokens_waiting, seq->n_prompt, tokens_free)));
}

/* A request in INTAKE loses all its choices but the first. */
static void drop_choices(struct ll_intake *intake, struct ll_seq *seq)
{
    struct ll_attachment *client = intake->client[seq->client];

    client->n_seqs -= seq->n_choices - 1;
    ll_outlet_unreserve_choices(client, seq->n_choices);
    ll_seq_unfork(intake->pool, seq);
}

/* Ends a request of state INTAKE: it counts as accepted, then as what became of it. */
static void end_intake(struct ll_intake *intake, struct ll_seq *seq, uint64_t now_ns)
{
    drop_choices(intake, seq);
    seq->end = seq->is_lost ? LL_END_LOST : seq->is_cancelled ? LL_END_CANCELLED : LL_END_STOP;
    seq->stop_id = LL_NONE;
    ll_outlet_phase(intake->outlet, seq, LL_PHASE_ACCEPTED, now_ns);
    ll_seq_move(intake->pool, seq, LL_SEQ_ENDING);
}

void ll_intake_mark(struct ll_intake *intake, struct ll_seq *leader, uint64_t now_ns)
{
    bool is_over = leader->is_lost || leader->is_cancelled;

    if (leader->state != LL_SEQ_INTAKE) {
        if (is_over)
            ll_seq_mark_request(intake->pool, leader);
    } else if (is_over || (leader->is_stopped && leader->n_choices == 1)) {
        end_intake(intake, leader, now_ns);
    }
}

/* A sequence for a request of n choices, as far as its fixed part says; NULL: refused, *why. */
static struct ll_seq *make_sequence(struct ll_intake *intake, struct ll_attachment *client,
                                    const struct ll_gate_limits *limits, const struct ll_req *copy,
                                    uint32_t n, uint64_t now_ns, struct ll_refusal *why)
{
    const struct ll_waiting *waiting = &intake->outlet->waiting;
    uint64_t key = tenant_key(client, copy->tenant);

    if (intake->is_draining) {
        *why = (struct ll_refusal){LL_E_DRAINING, 0, "the runtime is stopping"};
        return NULL;
    }
    if (intake->pool->list[LL_SEQ_FREE].n < n) {
        *why = ll_waiting_busy(waiting, key, "requests open: too many");
        return NULL;
    }
    struct ll_seq *seq = ll_seq_take(intake->pool, client->domain->id);
    int rc = ll_gate_request(limits, copy, seq, why);
    seq->tenant_key = key;
    if (rc == 0 && !leaves_room(intake, client->domain, seq, n)) {
        *why = ll_waiting_busy(waiting, key, "of this user: too many wait");
        rc = LL_E_BUSY;
    }
    if (rc == 0 && ll_waiting_may_enter(waiting, seq, n, now_ns, why))
        return seq;
    ll_seq_move(intake->pool, seq, LL_SEQ_FREE);
    return NULL;
}

bool ll_intake_take_slot(struct ll_intake *intake, struct ll_attachment *client, uint32_t index,
                         uint32_t gen, uint64_t now_ns)
{
    struct ll_shadow *shadow = &client->shadow[index];
    struct ll_gate_limits limits = intake->limits;
    struct ll_refusal why;
    struct ll_req copy;

    limits.arena_bytes = client->arena_bytes;
    limits.n_ring_max = ll_outlet_choices_max(client);
    copy_words(&copy, &client->slot[index], sizeof(copy));
    uint32_t n = copy.n; /* what the gate refuses counts as one */
    if (n < 1 || n > limits.n_max || n > limits.n_ring_max)
        n = 1;
    bool is_late = n > 1 && n > intake->n_choices_left;
    if (is_late)
        intake->next_sweep_ns = 0; /* in the next turn */
    if (is_late || !ll_outlet_reserve(intake->outlet, client, n)) {
        client->needs_scan = true;
        return false;
    }
    shadow->gen = gen;
    ll_stat_add(&intake->stats->requests_submitted, 1);
    struct ll_seq *seq = make_sequence(intake, client, &limits, &copy, n, now_ns, &why);
    if (seq == NULL) {
        ll_outlet_unreserve_choices(client, n);
        ll_outlet_refuse(intake->outlet, client, index, gen, now_ns, &why);
        return true;
    }

    seq->client = (uint16_t)client->id;
    seq->domain = client->domain->cache_key;
    seq->slot = (uint16_t)index;
    seq->gen = gen;
    seq->t_seen_ns = now_ns;
    *shadow = (struct ll_shadow){gen, LL_SHADOW_COPYING, seq->index};
    client->n_open++;
    client->n_seqs += n;
    ll_outlet_enter_queue(intake->outlet, seq, n, now_ns);
    intake->n_choices_left -= n > 1 ? n : 0;
    ll_seq_fork(intake->pool, seq, n);
    return true;
}

/* ---- copying ---------------------------------------------------------------------------------*/

/* All choices wait; but the first, without the prompt: it is copied to them when they start. */
static void accept(struct ll_intake *intake, struct ll_seq *leader, uint64_t now_ns)
{
    struct ll_attachment *client = intake->client[leader->client];

    client->shadow[leader->slot].phase = LL_SHADOW_ACCEPTED;
    ll_outlet_phase(intake->outlet, leader, LL_PHASE_ACCEPTED, now_ns);
    for (uint32_t c = 0; c < leader->n_choices; c++) {
        struct ll_seq *seq = ll_seq_member(intake->pool, leader, c);
        seq->n_tokens = seq->n_prompt;
        seq->request_hash = leader->request_hash;
        ll_seq_move(intake->pool, seq, LL_SEQ_WAITING);
        seq->is_held = c > 0;
        if (seq->is_stopped)
            ll_seq_mark(intake->pool, seq);
    }
}

/* The last gate: has this request been there in three crashes? */
static int look_into_crashes(const struct ll_crashes *crashes, struct ll_seq *seq,
                             struct ll_refusal *why)
{
    seq->request_hash = ll_crashes_hash(seq);
    if (!ll_crashes_may_refuse(crashes) || !ll_crashes_refuses(crashes, seq->request_hash))
        return 0;
    *why = (struct ll_refusal){LL_E_QUARANTINED, 0, "open in 3 crashes: not again"};
    return why->code;
}

/* Copies and checks a piece of the prompt, then the biases; true: the sequence is WAITING or gone.
 * *n_left falls by the bytes copied. */
static bool copy_some(struct ll_intake *intake, struct ll_seq *seq, uint32_t *n_left,
                      uint64_t now_ns)
{
    struct ll_attachment *client = intake->client[seq->client];
    uint32_t n = (uint32_t)ll_min_u64(seq->n_prompt - seq->n_copied, *n_left / sizeof(uint32_t));
    uint32_t bias_bytes = seq->n_bias * (uint32_t)sizeof(struct ll_bias);
    struct ll_refusal why;

    copy_words(seq->token + seq->n_copied,
               client->arena + seq->prompt_off + seq->n_copied * sizeof(uint32_t),
               n * sizeof(uint32_t));
    int rc = ll_gate_prompt(&intake->limits, seq, seq->n_copied, seq->n_copied + n, &why);
    seq->n_copied += n;
    *n_left -= n * (uint32_t)sizeof(uint32_t);
    if (rc == 0) {
        static_assert(LL_BIAS_MAX * sizeof(struct ll_bias) <= LL_INTAKE_BYTES_TURN, "a turn's");
        if (seq->n_copied < seq->n_prompt || bias_bytes > *n_left)
            return false;
        copy_words(seq->bias, client->arena + seq->bias_off, bias_bytes);
        *n_left -= bias_bytes;
        rc = ll_gate_bias(&intake->limits, seq, &why);
    }
    if (rc == 0 && intake->crashes != NULL)
        rc = look_into_crashes(intake->crashes, seq, &why);
    if (rc < 0) {
        drop_choices(intake, seq);
        client->shadow[seq->slot].phase = LL_SHADOW_IDLE;
        client->n_open--;
        client->n_seqs--;
        ll_outlet_leave_queue(intake->outlet, seq, now_ns, false);
        ll_outlet_refuse(intake->outlet, client, seq->slot, seq->gen, now_ns, &why);
        ll_seq_move(intake->pool, seq, LL_SEQ_FREE);
        return true;
    }
    accept(intake, seq, now_ns);
    return true;
}

uint32_t ll_intake_copy_prompts(struct ll_intake *intake, uint64_t now_ns)
{
    const struct ll_seq_list *list = &intake->pool->list[LL_SEQ_INTAKE];
    uint32_t n_left = LL_INTAKE_BYTES_TURN, work = 0;

    while (list->first != LL_NONE && n_left >= sizeof(uint32_t)) {
        struct ll_seq *seq = &intake->pool->seq[list->first];
        work++;
        if (seq->is_lost) { /* its client was fenced */
            end_intake(intake, seq, now_ns);
            continue;
        }
        if (!copy_some(intake, seq, &n_left, now_ns))
            break;
    }
    return work;
}
