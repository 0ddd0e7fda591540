/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/control.c - the control thread's part: clients come and go, mail is answered.
 *
 * An attachment's memory is freed as soon as DETACHED comes, so that under ASan a later look at it
 * shows; its id is then given to the next incarnation. */
#include "tests/sim/sim.h"

#include "shm/wait.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

void sim_mail(struct sim_world *w, enum ll_mail_type type, void *attachment, uint64_t value)
{
    struct ll_mail mail = {type, attachment, value};

    SIM_CHECK(w, ll_mailbox_send(&w->to_step, &mail), "the step thread's mailbox is full");
}

static void *zeroed(size_t n, size_t size)
{
    void *memory = aligned_alloc(64, ll_align_up(n * size, 64));

    if (memory == NULL)
        abort();
    return memset(memory, 0, n * size);
}

/* An attachment as the control thread makes it, but of private memory. */
void sim_attach(struct sim_world *w, struct sim_client *client, enum sim_kind kind)
{
    const struct sim_knobs *k = &w->k;
    uint32_t n_slots = k->n_slots, id = (uint32_t)(client - w->client);
    uint32_t incarnation = client->incarnation + 1;

    *client = (struct sim_client){
        .place = SIM_ATTACHED,
        .kind = kind,
        .id = id,
        .incarnation = incarnation,
        .domain = &w->domain[id % k->n_domains],
        .arena_stride = k->context_max * 4 + 64,
        .slot = zeroed(n_slots, sizeof(struct ll_req)),
        .hot = zeroed(1, sizeof(struct ll_req_hot)),
        .event = zeroed(1u << k->log2_events, sizeof(struct ll_event)),
        .request = zeroed(n_slots, sizeof(struct sim_request)),
        .read_chance = SIM_ONE_OF(w, 256, 256, 60),
        .return_step = UINT64_MAX,
        .notice_step = UINT64_MAX,
    };
    client->arena = zeroed(n_slots, client->arena_stride);
    for (uint32_t i = 0; i < n_slots; i++)
        client->request[i].prompt = zeroed(k->context_max, sizeof(uint32_t));
    if (kind == SIM_STALLED) {
        client->is_hoarder = sim_draw(w, 2);
        client->read_chance = client->is_hoarder ? 256 : SIM_ONE_OF(w, 0, 1, 3);
    }
    if (kind == SIM_HOSTILE)
        w->has_lost_some = client->domain->has_hostile = true;
    client->a = (struct ll_attachment){
        .id = id,
        .incarnation = incarnation,
        .domain = &client->domain->d,
        .socket_fd = -1,
        .pid_fd = -1,
        .kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
        .wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
        .slot = client->slot,
        .hot = client->hot,
        .arena = client->arena,
        .arena_bytes = n_slots * client->arena_stride,
        .n_slots = n_slots,
        .rsp_head = zeroed(1, sizeof(struct ll_rsp_head)),
        .rst = zeroed(n_slots, sizeof(struct ll_rst)),
        .shadow = zeroed(n_slots, sizeof(struct ll_shadow)),
    };
    SIM_CHECK(w, client->a.kick_fd >= 0 && client->a.wake_fd >= 0, "no descriptors left");
    ll_event_writer_init(&client->a.events, client->event, k->log2_events, &client->hot->cons_pos,
                         0);
    ll_event_reader_init(&client->reader, client->event, k->log2_events, &client->hot->cons_pos, 0);
    sim_mail(w, LL_MAIL_ATTACH, &client->a, 0);
}

void sim_forget_client(struct sim_client *client)
{
    for (uint32_t i = 0; i < client->a.n_slots; i++)
        free(client->request[i].prompt);
    free(client->slot);
    free(client->hot);
    free(client->arena);
    free(client->event);
    free(client->request);
    free(client->a.rsp_head);
    free(client->a.rst);
    free(client->a.shadow);
    close(client->a.kick_fd);
    close(client->a.wake_fd);
    *client = (struct sim_client){
        .incarnation = client->incarnation, .return_step = UINT64_MAX, .notice_step = UINT64_MAX};
}

void sim_detach(struct sim_world *w, struct sim_client *client, bool has_died)
{
    client->place = SIM_LEAVING;
    w->has_lost_some = true;
    sim_mail(w, LL_MAIL_DETACH, &client->a, has_died);
}

/* A3: no word of this incarnation may still lie in the bell. */
static void check_quarantine(struct sim_world *w, const struct sim_client *client)
{
    const struct ll_bell_reader *reader = &client->domain->d.bell;
    const struct ll_bell_head *head = reader->bell.head;
    uint64_t n = 1ull << reader->bell.log2_words;

    if (client->domain->d.is_swept_only)
        return;
    for (uint64_t at = reader->head; at < reader->head + n; at++) {
        uint64_t word = atomic_load_explicit(&head->word[at & (n - 1)], memory_order_relaxed);
        if (word >> 31 != (at >> reader->bell.log2_words & 0xffffffffu) * 2 + 1)
            break;
        SIM_CHECK(w,
                  ll_word_client(word) != client->id ||
                      ll_word_incarnation(word) != (client->incarnation & 0x3ffu),
                  "client %u was given back while its doorbells lie in the bell", client->id);
    }
}

static void take_detached(struct sim_world *w, struct sim_client *client)
{
    SIM_CHECK(w, client->place == SIM_LEAVING, "DETACHED for client %u, who has not left",
              client->id);
    SIM_CHECK(w, client->a.n_seqs == 0 && client->a.credits_reserved == 0,
              "client %u was given back with %u sequences, %lld credits", client->id,
              client->a.n_seqs, (long long)client->a.credits_reserved);
    if (client->kind != SIM_HOSTILE)
        check_quarantine(w, client);
    uint64_t return_step = w->step + sim_draw(w, 60);
    uint32_t id = client->id;
    sim_forget_client(client);
    client->id = id;
    client->return_step = return_step;
}

static void take_mail(struct sim_world *w, const struct ll_mail *mail)
{
    struct ll_attachment *a = mail->attachment;
    struct sim_client *client = a != NULL ? &w->client[a->id] : NULL;

    switch (mail->type) {
    case LL_MAIL_DETACHED:
        take_detached(w, client);
        break;
    case LL_MAIL_FENCED:
        SIM_CHECK(w, client->kind == SIM_HOSTILE, "client %u was fenced (%s), it is not hostile",
                  client->id, ll_error_name((int)(int64_t)mail->value));
        w->n.fenced++;
        if (client->place == SIM_ATTACHED || client->place == SIM_DEAD)
            sim_detach(w, client, true);
        break;
    case LL_MAIL_WAKE:
        ll_wait_wake(a->wake_fd);
        break;
    case LL_MAIL_IDLE:
        SIM_CHECK(w, w->is_draining && !w->has_idle, "IDLE without a drain, or twice");
        w->has_idle = true;
        break;
    case LL_MAIL_FAILED:
        SIM_CHECK(w, !w->is_failed, "FAILED twice");
        w->is_failed = true;
        break;
    default:
        sim_fail(w, "mail %d from the step thread", (int)mail->type);
    }
}

static enum sim_kind draw_kind(struct sim_world *w)
{
    if (w->k.is_quiet)
        return SIM_HONEST;
    return (enum sim_kind)SIM_ONE_OF(w, SIM_HONEST, SIM_HONEST, SIM_HONEST, SIM_BUGGY, SIM_DYING,
                                     SIM_STALLED, SIM_HOSTILE);
}

void sim_control(struct sim_world *w)
{
    struct ll_mail mail;

    while (ll_mailbox_take(&w->to_control, &mail))
        take_mail(w, &mail);
    for (uint32_t i = 0; i < w->k.n_clients; i++) {
        struct sim_client *client = &w->client[i];
        switch (client->place) {
        case SIM_OUT:
            if (w->step >= client->return_step && !w->is_calm)
                sim_attach(w, client, draw_kind(w));
            break;
        case SIM_ATTACHED:
            if (client->sweeps) {
                client->sweeps = false;
                sim_mail(w, LL_MAIL_SWEEP, &client->a, 0);
            }
            if (!w->is_calm && client->kind == SIM_DYING && sim_chance(w, w->k.death_chance))
                sim_kill(w, client);
            else if (!w->is_calm && client->kind == SIM_HONEST && sim_chance(w, w->k.bye_chance))
                sim_detach(w, client, false);
            break;
        case SIM_DEAD:
            if (w->step >= client->notice_step)
                sim_detach(w, client, true);
            break;
        case SIM_LEAVING:
            break;
        }
    }
}
