/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/intake_impl.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/clock.h"
#include "ll/client.h"

#include <string.h>

#define REPAIRS_MAX 3u

void ll_intake_init(struct ll_intake *intake, struct ll_seq_pool *pool, struct ll_outlet *outlet,
                    struct ll_stats *stats, const struct ll_gate_limits *limits)
{
    memset(intake, 0, sizeof(*intake));
    intake->pool = pool;
    intake->outlet = outlet;
    intake->stats = stats;
    intake->limits = *limits;
    intake->waiting_share = LL_INTAKE_SHARE;
}

/* ---- misbehaviour ----------------------------------------------------------------------------*/

static void count_malformed(struct ll_intake *intake, struct ll_attachment *client, uint64_t now_ns)
{
    ll_stat_add(&intake->stats->doorbells_bad, 1);
    if (now_ns - client->malformed_ns >= LL_NS_PER_S) {
        client->malformed_ns = now_ns;
        client->n_malformed = 0;
    }
    if (++client->n_malformed >= LL_INTAKE_MALFORMED_MAX)
        ll_outlet_fence(intake->outlet, client, LL_E_PROTOCOL);
}

/* ---- the slot is the truth (N1) --------------------------------------------------------------*/

/* The choices that the application ended since the last look; true: there are some. */
static bool look_at_stops(struct ll_intake *intake, struct ll_seq *leader,
                          const struct ll_req *slot)
{
    bool is_found = false;

    for (uint32_t k = 0; k * 32 < leader->n_choices; k++) {
        /* Relaxed: marks, nothing is read because of them. */
        uint32_t fresh = atomic_load_explicit(&slot->stop_choice[k], memory_order_relaxed) &
                         ~leader->stop_seen[k];
        leader->stop_seen[k] |= fresh;
        for (; fresh != 0; fresh &= fresh - 1) {
            uint32_t c = k * 32 + (uint32_t)__builtin_ctz(fresh);
            struct ll_seq *seq = ll_seq_member(intake->pool, leader, c);
            if (seq == NULL)
                continue;
            seq->is_stopped = is_found = true;
            if (seq->state == LL_SEQ_WAITING || seq->state == LL_SEQ_RUNNING)
                ll_seq_mark(intake->pool, seq);
        }
    }
    return is_found;
}

/* Looks at a slot; true: something was found. is_word: a doorbell says so, a scan only asks. */
static bool look_at_slot(struct ll_intake *intake, struct ll_attachment *client, uint32_t index,
                         uint64_t now_ns, bool is_word)
{
    const struct ll_req *slot = &client->slot[index];
    struct ll_shadow *shadow = &client->shadow[index];
    /* Acquire, pairs with the client's release of state in its submit: the request is in the slot
     * and in the arena before it says SUBMITTED. */
    uint32_t state = atomic_load_explicit(&slot->state, memory_order_acquire);
    uint32_t gen = state >> 8;
    bool is_found = false;

    if ((state & 0xffu) == LL_SLOT_SUBMITTED && gen != shadow->gen) {
        if (gen != ll_gen_next(shadow->gen) || shadow->phase != LL_SHADOW_IDLE) {
            count_malformed(intake, client, now_ns); /* a skipped gen, or two requests in a slot */
            return false;
        }
        if (!ll_intake_take_slot(intake, client, index, gen, now_ns))
            return false;
        is_found = true;
    } else if ((state & 0xffu) > LL_SLOT_SUBMITTED) {
        count_malformed(intake, client, now_ns);
        return false;
    }
    if (shadow->phase == LL_SHADOW_IDLE) { /* refused just now, ended before, or a stale word */
        if (is_word && !is_found)
            ll_stat_add(&intake->stats->doorbells_bad, 1);
        return is_found;
    }

    struct ll_seq *leader = &intake->pool->seq[shadow->sequence];
    /* Relaxed: a mark; the generation in it says which request is meant. */
    if (!leader->is_cancelled &&
        atomic_load_explicit(&slot->cancel_gen, memory_order_relaxed) == shadow->gen)
        is_found = leader->is_cancelled = true;
    is_found |= look_at_stops(intake, leader, slot);
    ll_intake_mark(intake, leader, now_ns);
    return is_found;
}

/* ---- doorbells -------------------------------------------------------------------------------*/

static void take_word(struct ll_intake *intake, const struct ll_domain *domain, uint32_t word,
                      uint64_t now_ns)
{
    uint32_t id = ll_index_nospec(ll_word_client(word), LL_ATTACHMENTS_MAX);
    struct ll_attachment *client = intake->client[id];

    ll_stat_add(&intake->stats->doorbells, 1);
    if (client == NULL || client->domain != domain ||
        (client->incarnation & 0x3ffu) != ll_word_incarnation(word) || client->is_fenced ||
        client->is_leaving) {
        ll_stat_add(&intake->stats->doorbells_bad, 1); /* nobody to blame: dropped */
        return;
    }
    if (ll_word_slot(word) >= client->n_slots || ll_word_op(word) > LL_OP_STOP) {
        count_malformed(intake, client, now_ns);
        return;
    }
    client->n_doorbells++;
    look_at_slot(intake, client, ll_index_nospec(ll_word_slot(word), client->n_slots), now_ns,
                 true);
}

/* Somebody scribbled over the bell: words are lost, slots are not. */
static void repair(struct ll_intake *intake, struct ll_domain *domain)
{
    ll_bell_repair(&domain->bell);
    ll_stat_add(&intake->stats->bell_repairs, 1);
    domain->is_swept_only = domain->bell.n_repairs >= REPAIRS_MAX;
    for (uint32_t i = 0; i < intake->n_clients; i++)
        if (intake->client[intake->id[i]]->domain == domain)
            intake->client[intake->id[i]]->needs_scan = true;
    intake->next_sweep_ns = 0; /* at once */
}

static uint32_t poll_bell(struct ll_intake *intake, struct ll_domain *domain, uint64_t now_ns)
{
    uint32_t n = 0;

    while (n < LL_INTAKE_WORDS_TURN) {
        uint32_t word;
        int rc = ll_bell_pop(&domain->bell, &word);
        if (rc == 0) {
            domain->n_empty++;
            break;
        }
        if (rc < 0) {
            repair(intake, domain);
            return n + 1;
        }
        take_word(intake, domain, word, now_ns);
        n++;
    }
    return n;
}

/* ---- sweeps ----------------------------------------------------------------------------------*/

/* All slots of a client. What is counted here need not come by doorbell any more. */
static uint32_t scan_client(struct ll_intake *intake, struct ll_attachment *client,
                            uint64_t n_submitted, uint64_t now_ns)
{
    uint32_t n_found = 0;

    client->needs_scan = false;
    client->n_doorbells = n_submitted;
    for (uint32_t i = 0; i < client->n_slots && !client->is_fenced; i++)
        n_found += look_at_slot(intake, client, i, now_ns, false);
    if (n_found > 0 && !client->domain->is_swept_only)
        ll_bell_rewind(&client->domain->bell); /* its word may lie behind a hole */
    ll_stat_add(&intake->stats->sweeps, 1);
    ll_stat_add(&intake->stats->sweeps_found, n_found);
    return n_found;
}

static uint64_t n_submitted_of(const struct ll_attachment *client)
{
    /* Acquire, pairs with the client's release of n_submitted, which follows its slot's state: a
     * count seen is a slot seen. */
    return atomic_load_explicit(&client->hot->n_submitted, memory_order_acquire);
}

void ll_intake_sweep(struct ll_intake *intake, struct ll_attachment *client)
{
    if (intake->client[client->id] != client)
        return;
    client->needs_scan = true;
    intake->next_sweep_ns = 0;
}

static void start_sweep(struct ll_intake *intake, uint64_t now_ns)
{
    if (intake->sweep_at < intake->n_clients)
        return; /* one is under way */
    if (now_ns >= intake->next_sweep_ns) {
        intake->sweep_at = 0;
        intake->is_full_sweep = true;
        /* One client each time whatever the counts say: a word that a peer forged in its name may
         * stand for one that was lost, and then they agree for ever. */
        if (intake->n_clients > 0)
            intake->client[intake->id[intake->n_full_sweeps++ % intake->n_clients]]->needs_scan =
                true;
        intake->next_sweep_ns = now_ns + LL_INTAKE_SWEEP_NS;
        intake->next_fast_ns = now_ns + LL_INTAKE_SWEEP_FAST_NS;
    } else if (now_ns >= intake->next_fast_ns) {
        intake->sweep_at = 0;
        intake->is_full_sweep = false;
        intake->next_fast_ns = now_ns + LL_INTAKE_SWEEP_FAST_NS;
    }
}

static uint32_t go_on_sweeping(struct ll_intake *intake, uint64_t now_ns)
{
    uint32_t n_left = LL_INTAKE_SLOTS_TURN, n_found = 0;

    for (; intake->sweep_at < intake->n_clients; intake->sweep_at++) {
        struct ll_attachment *client = intake->client[intake->id[intake->sweep_at]];
        if (client->is_fenced || client->is_leaving ||
            (!intake->is_full_sweep && !client->domain->is_swept_only))
            continue;
        uint64_t n_submitted = n_submitted_of(client);
        if (n_submitted == client->n_doorbells && !client->needs_scan)
            continue;
        if (client->n_slots > n_left)
            break; /* in the next turn */
        n_left -= client->n_slots;
        n_found += scan_client(intake, client, n_submitted, now_ns);
    }
    return n_found;
}

/* ---- a turn ----------------------------------------------------------------------------------*/

uint32_t ll_intake_poll(struct ll_intake *intake, uint64_t now_ns)
{
    uint32_t work = 0;

    intake->n_choices_left = LL_INTAKE_CHOICES_TURN;
    for (uint32_t i = 0; i < intake->n_domains; i++) {
        struct ll_domain *domain = intake->domain[i];
        if (domain->is_swept_only)
            continue;
        if (ll_bell_is_empty(&domain->bell)) /* mostly, and then without a call */
            domain->n_empty++;
        else
            work += poll_bell(intake, domain, now_ns);
    }
    start_sweep(intake, now_ns);
    if (intake->sweep_at < intake->n_clients)
        work += go_on_sweeping(intake, now_ns);
    if (intake->pool->list[LL_SEQ_INTAKE].first != LL_NONE)
        work += ll_intake_copy_prompts(intake, now_ns);
    return work;
}

bool ll_intake_is_quiet(const struct ll_intake *intake)
{
    if (intake->pool->list[LL_SEQ_INTAKE].first != LL_NONE)
        return false;
    for (uint32_t i = 0; i < intake->n_domains; i++)
        if (!intake->domain[i]->is_swept_only && !ll_bell_is_empty(&intake->domain[i]->bell))
            return false;
    for (uint32_t i = 0; i < intake->n_clients; i++) {
        const struct ll_attachment *client = intake->client[intake->id[i]];
        if (client->domain->is_swept_only && !client->is_fenced && !client->is_leaving &&
            n_submitted_of(client) != client->n_doorbells)
            return false;
    }
    return true;
}

/* ---- clients come and go ---------------------------------------------------------------------*/

void ll_intake_attach(struct ll_intake *intake, struct ll_attachment *client)
{
    LL_ASSERT(client->id < LL_ATTACHMENTS_MAX && intake->client[client->id] == NULL);
    intake->client[client->id] = client;
    if (intake->sweep_at == intake->n_clients) /* no sweep under way: none begins by this */
        intake->sweep_at++;
    intake->id[intake->n_clients++] = (uint16_t)client->id;
    if (client->domain->n_polled++ == 0)
        intake->domain[intake->n_domains++] = client->domain;
    ll_outlet_attach(intake->outlet, client);
    ll_stat_set(&intake->stats->clients_attached, intake->n_clients);
}

static void forget(struct ll_intake *intake, struct ll_attachment *client)
{
    uint32_t i = 0;

    while (intake->id[i] != client->id)
        i++;
    intake->id[i] = intake->id[--intake->n_clients];
    if (intake->sweep_at > intake->n_clients)
        intake->sweep_at = intake->n_clients;
    intake->client[client->id] = NULL;

    if (--client->domain->n_polled == 0) {
        for (i = 0; intake->domain[i] != client->domain;)
            i++;
        intake->domain[i] = intake->domain[--intake->n_domains];
    }
    ll_outlet_detach(intake->outlet, client);
    ll_stat_set(&intake->stats->clients_attached, intake->n_clients);
}

static void begin_leaving(struct ll_intake *intake, struct ll_attachment *client, bool has_died)
{
    client->is_leaving = true;
    client->quarantine_pos = ll_bell_position(&client->domain->bell);
    client->quarantine_empty = client->domain->n_empty;
    for (uint32_t i = 0; i < client->n_slots; i++) {
        if (client->shadow[i].phase == LL_SHADOW_IDLE)
            continue;
        struct ll_seq *seq = &intake->pool->seq[client->shadow[i].sequence];
        if (has_died)
            seq->is_lost = true;
        else
            seq->is_cancelled = true;
        ll_intake_mark(intake, seq, seq->t_seen_ns);
    }
}

/* A3: words the client pushed while it lived have all been consumed. */
static bool is_quarantine_over(const struct ll_attachment *client)
{
    const struct ll_domain *domain = client->domain;

    return domain->is_swept_only || domain->n_empty != client->quarantine_empty ||
           ll_bell_position(&domain->bell) - client->quarantine_pos >=
               1ull << domain->bell.bell.log2_words;
}

bool ll_intake_detach(struct ll_intake *intake, struct ll_attachment *client, bool has_died)
{
    LL_ASSERT(intake->client[client->id] == client);
    if (!client->is_leaving)
        begin_leaving(intake, client, has_died);
    if (client->n_seqs > 0 || !is_quarantine_over(client))
        return false;
    forget(intake, client);
    return true;
}

void ll_intake_check(const struct ll_intake *intake)
{
    uint32_t n_clients = 0, n_polled = 0;

    for (uint32_t i = 0; i < intake->outlet->n_ids; i++) { /* which had them all */
        const struct ll_attachment *client = intake->client[i];
        if (client == NULL)
            continue;
        n_clients++;
        uint32_t n_open = 0;
        for (uint32_t k = 0; k < client->n_slots; k++) {
            const struct ll_shadow *shadow = &client->shadow[k];
            if (shadow->phase == LL_SHADOW_IDLE)
                continue;
            n_open++;
            const struct ll_seq *seq = &intake->pool->seq[shadow->sequence];
            LL_ASSERT(seq->client == client->id && seq->slot == k && seq->gen == shadow->gen);
            LL_ASSERT(seq->leader == seq->index && seq->n_untold > 0);
            LL_ASSERT(seq->state != LL_SEQ_FREE);
            LL_ASSERT(shadow->phase == LL_SHADOW_ACCEPTED || seq->state == LL_SEQ_INTAKE ||
                      seq->state == LL_SEQ_ENDING);
        }
        LL_ASSERT(n_open == client->n_open);
    }
    LL_ASSERT(n_clients == intake->n_clients && intake->sweep_at <= n_clients);
    for (uint32_t i = 0; i < intake->n_domains; i++)
        n_polled += intake->domain[i]->n_polled;
    LL_ASSERT(n_polled == n_clients);
    uint64_t n_tokens = 0;
    for (uint32_t i = 0; i < intake->n_domains; i++)
        n_tokens += intake->domain[i]->tokens_waiting;
    LL_ASSERT(n_tokens == intake->outlet->waiting.n_tokens);
}
