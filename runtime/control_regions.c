/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/control_impl.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"

#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define PAGE_BYTES      4096u
#define ARENA_BYTES_MIN 65536u
/* Ring of events: the window of every slot, within these bounds (0.5 to 8 MiB). */
#define EVENTS_LOG2_MIN 13u
#define EVENTS_LOG2_MAX 17u
/* The clients of a domain can punch holes into its bell: what the step thread then reads is 0,
 * after a page fault. In lap 0 that would be an EMPTY word like any other, and a loop of punches
 * would slow down each look of the step thread for ever; in any later lap it is damage, and after
 * three repairs the bell is not looked at any more. */
#define BELL_START_LAP 1u
/* Polled lines of clients that lie at the same page offset fall into the same L1 sets: 512 of them
 * cost 20 times as much to look at. The head takes 128 B of the page, the hot lines 192 B. */
#define HOT_POSITIONS 59u

struct wish {
    uint32_t n_slots, arena_bytes;
};

static uint32_t clamp(uint32_t value, uint32_t low, uint32_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* What the client asks for, within the runtime's limits: the OFFER says what it gets. */
static struct wish make_wish(const struct ll_control_options *options,
                             const struct ll_msg_hello *hello)
{
    uint32_t arena_bytes = clamp(hello->arena_bytes, ARENA_BYTES_MIN, options->arena_bytes_max);

    return (struct wish){.n_slots = clamp(hello->n_slots, LL_SLOTS_MIN, options->n_slots_max),
                         .arena_bytes = (uint32_t)ll_align_up(arena_bytes, PAGE_BYTES)};
}

static void make_layout(struct ll_layout *out, const struct ll_control *control, uint32_t id,
                        const struct wish *wish)
{
    uint32_t n_slots = wish->n_slots;
    size_t at;

    *out = (struct ll_layout){.n_slots = n_slots, .arena_bytes = wish->arena_bytes};
    out->off_hot = sizeof(struct ll_req_head) + id % HOT_POSITIONS * LL_LINE_BYTES;
    out->off_slots = PAGE_BYTES;
    at = out->off_slots + (size_t)n_slots * sizeof(struct ll_req);
    if (control->options.is_isolated) {
        /* 2 words a slot: a submit and a cancel. Own position in the page for its polled lines. */
        out->bell_log2 = ll_log2_floor(ll_pow2_ceil(2ull * n_slots));
        out->off_bell = (uint32_t)ll_align_up(at, PAGE_BYTES) + id % 16 * 256;
        at = out->off_bell + ll_bell_bytes(out->bell_log2);
    } else {
        out->bell_log2 = control->bell_log2;
    }
    out->off_arena = (uint32_t)ll_align_up(at, PAGE_BYTES);
    out->req_bytes = ll_align_up((size_t)out->off_arena + out->arena_bytes, PAGE_BYTES);

    out->log2_events = ll_log2_floor(ll_pow2_ceil((uint64_t)n_slots * LL_WINDOW_EVENTS));
    if (out->log2_events < EVENTS_LOG2_MIN)
        out->log2_events = EVENTS_LOG2_MIN;
    if (out->log2_events > EVENTS_LOG2_MAX)
        out->log2_events = EVENTS_LOG2_MAX;
    out->off_rst = 256; /* past the head, a line pair further */
    out->off_events =
        (uint32_t)ll_align_up(out->off_rst + n_slots * sizeof(struct ll_rst), PAGE_BYTES);
    out->rsp_bytes = out->off_events + (sizeof(struct ll_event) << out->log2_events);
}

/* ---- quotas and domains -------------------------------------------------------------------*/

/* By uid, also where each client is a domain of its own: a user who may attach often must not get
 * by that what one client is refused. */
static int check_quota(struct ll_control *control, uid_t uid, const struct wish *wish, uint32_t *id)
{
    const struct ll_control_options *options = &control->options;
    uint32_t n_used = 0, n_of_uid = 0, n_slots_of_uid = 0;
    uint64_t arena_of_uid = 0;

    for (uint32_t i = 0; i < control->n_places; i++) {
        const struct ll_place *place = &control->place[i];
        if (place->state == LL_PLACE_FREE)
            continue;
        n_used++;
        if (place->attachment.uid == uid) {
            n_of_uid++;
            n_slots_of_uid += place->attachment.n_slots;
            arena_of_uid += place->attachment.arena_bytes;
        }
    }
    for (uint32_t i = 0; i < control->n_places; i++)
        if (control->domain[i].uid == uid &&
            ll_debt_is_due(&control->domain[i].control_debt, &ll_control_clock))
            return LL_ERR(LL_E_QUOTA,
                          "user %u makes waking and detaching its clients slow: watch their "
                          "descriptors fewer times, and try again in a while",
                          uid);
    if (n_used == control->n_places)
        return LL_ERR(LL_E_QUOTA,
                      "all %u attachments of the runtime are in use: close some clients",
                      control->n_places);
    if (n_of_uid >= options->n_per_uid_max)
        return LL_ERR(LL_E_QUOTA, "user %u has %u of %u attachments: close some clients", uid,
                      n_of_uid, options->n_per_uid_max);
    if (n_slots_of_uid + wish->n_slots > options->n_slots_uid_max)
        return LL_ERR(LL_E_QUOTA, "user %u has %u of %u slots: ask for fewer or close some clients",
                      uid, n_slots_of_uid, options->n_slots_uid_max);
    if (arena_of_uid + wish->arena_bytes > options->arena_bytes_uid_max)
        return LL_ERR(LL_E_QUOTA,
                      "user %u has %llu of %llu arena bytes: ask for a smaller arena or close some "
                      "clients",
                      uid, (unsigned long long)arena_of_uid,
                      (unsigned long long)options->arena_bytes_uid_max);
    for (*id = control->next_id; control->place[*id].state != LL_PLACE_FREE;)
        *id = (*id + 1) % control->n_places; /* ends: not all are used */
    return 0;
}

static void drop_from_domain(struct ll_domain *domain, uint32_t n_slots)
{
    LL_ASSERT(domain->n_attached > 0 && domain->n_slots >= n_slots);
    domain->n_attached--;
    domain->n_slots -= n_slots;
    if (domain->n_attached > 0)
        return;
    if (domain->region.base != NULL && ll_region_empty(&domain->region) < 0)
        ll_warn("a request ring's memory stays with who still maps it: %s", ll_err_text());
    ll_region_free(&domain->region);
    /* Who comes back has not paid by leaving. */
    *domain = (struct ll_domain){.uid = domain->uid,
                                 .step_debt = domain->step_debt,
                                 .control_debt = domain->control_debt,
                                 .region.fd = -1};
}

/* An unused one: what this user left in debt, or one without debts. */
static struct ll_domain *find_unused(struct ll_control *control, uid_t uid)
{
    struct ll_domain *best = NULL;
    int best_score = -1;

    for (uint32_t i = 0; i < control->n_places; i++) {
        struct ll_domain *domain = &control->domain[i];
        if (domain->is_used) /* the step thread's until it is not */
            continue;
        bool owes = domain->step_debt.ns > 0 || domain->control_debt.ns > 0;
        int score = owes ? (domain->uid == uid ? 2 : 0) : 1;
        if (score > best_score) {
            best = domain;
            best_score = score;
        }
    }
    LL_ASSERT(best != NULL); /* never more domains than attachments */
    if (best_score != 2)
        best->step_debt = best->control_debt = (struct ll_debt){0};
    return best;
}

/* The domain of this client; made when it is the first. */
static int join_domain(struct ll_control *control, uid_t uid, uint32_t n_slots,
                       struct ll_domain **out)
{
    struct ll_domain *domain = NULL;
    bool is_isolated = control->options.is_isolated;

    for (uint32_t i = 0; i < control->n_places && domain == NULL && !is_isolated; i++)
        if (control->domain[i].is_used && control->domain[i].uid == uid)
            domain = &control->domain[i];
    if (domain == NULL) {
        domain = find_unused(control, uid);
        *domain = (struct ll_domain){.id = (uint32_t)(domain - control->domain),
                                     .uid = uid,
                                     .step_debt = domain->step_debt,
                                     .control_debt = domain->control_debt,
                                     .region.fd = -1};
        /* Clients of a user share prefixes, also one after the other; isolated ones never do. */
        domain->cache_key = is_isolated ? 1ull << 63 | control->n_domains_made++ : uid;
        if (!is_isolated) {
            struct ll_bell bell;
            int rc = ll_region_create(&domain->region, "llring-bell",
                                      ll_align_up(ll_bell_bytes(control->bell_log2), PAGE_BYTES),
                                      control->options.numa_node);
            if (rc < 0)
                return rc;
            bool is_locked;
            ll_bell_init(&bell, domain->region.base, control->bell_log2, BELL_START_LAP);
            rc = ll_region_seal_size_final(&domain->region);
            if (rc == 0)
                rc = ll_region_populate(&domain->region, &is_locked);
            if (rc < 0) {
                ll_region_free(&domain->region);
                domain->region.fd = -1;
                return rc;
            }
            ll_bell_reader_init(&domain->bell, &bell);
        }
        domain->is_used = true;
    }
    domain->n_attached++;
    domain->n_slots += n_slots;
    *out = domain;
    return 0;
}

/* ---- an attachment ------------------------------------------------------------------------*/

void ll_control_free_attachment(struct ll_control *control, struct ll_attachment *attachment)
{
    struct ll_place *place = &control->place[attachment->id];

    LL_ASSERT(&place->attachment == attachment && place->state != LL_PLACE_FREE);
    if (attachment->domain != NULL)
        drop_from_domain(attachment->domain, attachment->n_slots);
    ll_region_free(&attachment->req);
    ll_region_free(&attachment->rsp);
    if (attachment->kick_fd >= 0)
        close(attachment->kick_fd);
    if (attachment->wake_fd >= 0)
        close(attachment->wake_fd);
    control->n_wakes_due -= place->is_wake_due;
    place->is_wake_due = false;
    place->state = LL_PLACE_FREE;
    /* The next holder's words differ from late ones of this one. */
    *attachment = (struct ll_attachment){.id = attachment->id,
                                         .incarnation = (attachment->incarnation + 1) & 0x3ff};
}

/* Whatever the client has written before the seals is written over: head, hot lines, slots, its own
 * bell. */
static void write_req(struct ll_attachment *attachment, const struct ll_layout *layout)
{
    uint8_t *base = attachment->req.base;
    struct ll_req_head *head = attachment->req.base;

    memset(base, 0, layout->off_arena);
    *head = (struct ll_req_head){.magic = LL_REQ_MAGIC,
                                 .abi_major = LL_ABI_MAJOR,
                                 .abi_minor = LL_ABI_MINOR,
                                 .size_bytes = (uint32_t)layout->req_bytes,
                                 .client_id = attachment->id,
                                 .incarnation = attachment->incarnation,
                                 .n_slots = layout->n_slots,
                                 .slot_bytes = sizeof(struct ll_req),
                                 .off_hot = layout->off_hot,
                                 .off_slots = layout->off_slots,
                                 .off_bell = layout->off_bell,
                                 .off_arena = layout->off_arena,
                                 .arena_bytes = layout->arena_bytes};
    if (layout->off_bell != 0) {
        struct ll_bell bell;
        ll_bell_init(&bell, base + layout->off_bell, layout->bell_log2, 0);
        ll_bell_reader_init(&attachment->domain->bell, &bell);
    }
}

static void write_rsp(struct ll_attachment *attachment, const struct ll_layout *layout)
{
    struct ll_rsp_head *head = attachment->rsp.base;

    *head = (struct ll_rsp_head){.magic = LL_RSP_MAGIC,
                                 .abi_major = LL_ABI_MAJOR,
                                 .abi_minor = LL_ABI_MINOR,
                                 .size_bytes = (uint32_t)layout->rsp_bytes,
                                 .client_id = attachment->id,
                                 .incarnation = attachment->incarnation,
                                 .n_slots = layout->n_slots,
                                 .log2_events = layout->log2_events,
                                 .off_slots = layout->off_rst,
                                 .off_events = layout->off_events,
                                 .client_state = LL_CLIENT_ATTACHED};
}

static void make_views(struct ll_control *control, struct ll_attachment *attachment,
                       const struct ll_layout *layout)
{
    uint8_t *req = attachment->req.base, *rsp = attachment->rsp.base;

    attachment->slot = (struct ll_req *)(req + layout->off_slots);
    attachment->hot = (struct ll_req_hot *)(req + layout->off_hot);
    attachment->arena = req + layout->off_arena;
    attachment->rsp_head = attachment->rsp.base;
    attachment->rst = (struct ll_rst *)(rsp + layout->off_rst);
    attachment->shadow = control->shadow + (size_t)attachment->id * control->options.n_slots_max;
    memset(attachment->shadow, 0, layout->n_slots * sizeof(struct ll_shadow));
    ll_event_writer_init(&attachment->events, (struct ll_event *)(rsp + layout->off_events),
                         layout->log2_events, &attachment->hot->cons_pos, 0);
}

static void note_lock(struct ll_control *control, bool is_locked)
{
    if (is_locked || control->has_warned_lock)
        return;
    control->has_warned_lock = true;
    ll_warn("shared memory is not locked into RAM (RLIMIT_MEMLOCK): it can be swapped out");
}

int ll_control_make_attachment(struct ll_control *control, struct ll_connection *connection,
                               const struct ll_msg_hello *hello, struct ll_layout *layout)
{
    const struct wish wish = make_wish(&control->options, hello);
    uint32_t id = 0;
    int rc = check_quota(control, connection->uid, &wish, &id);
    if (rc < 0)
        return rc;

    struct ll_place *place = &control->place[id];
    struct ll_attachment *attachment = &place->attachment;
    *attachment = (struct ll_attachment){.id = id,
                                         .incarnation = attachment->incarnation,
                                         .uid = connection->uid,
                                         .pid = connection->pid,
                                         .req.fd = -1,
                                         .rsp.fd = -1,
                                         .socket_fd = connection->fd,
                                         .pid_fd = -1,
                                         .kick_fd = -1,
                                         .wake_fd = -1};
    for (size_t i = 0; i < sizeof(attachment->name) - 1 && hello->name[i] != 0; i++)
        attachment->name[i] = hello->name[i] >= ' ' && hello->name[i] <= '~' ? hello->name[i] : '?';
    place->state = LL_PLACE_OFFERED;
    place->connection = (uint32_t)(connection - control->connection);

    make_layout(layout, control, id, &wish);
    int numa_node = control->options.numa_node;
    rc = join_domain(control, connection->uid, layout->n_slots, &attachment->domain);
    if (rc < 0)
        goto free_all;
    attachment->n_slots = layout->n_slots;
    attachment->arena_bytes = layout->arena_bytes;
    rc = ll_region_create(&attachment->req, "llring-req", layout->req_bytes, numa_node);
    if (rc == 0)
        rc = ll_region_create(&attachment->rsp, "llring-rsp", layout->rsp_bytes, numa_node);
    if (rc < 0)
        goto free_all;
    make_views(control, attachment, layout);
    rc = ll_region_seal_size(&attachment->req);
    if (rc == 0)
        rc = ll_region_seal_written(&attachment->rsp);
    if (rc < 0)
        goto free_all;

    attachment->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (attachment->kick_fd < 0) {
        rc = LL_ERRNO("eventfd");
        goto free_all;
    }
    control->next_id = (id + 1) % control->n_places;
    connection->attachment = attachment;
    return 0;

free_all:
    ll_control_free_attachment(control, attachment);
    return rc;
}

/* The lawful order: the client has mapped, so REQ can be closed against everybody else. Behind the
 * seals pages can no longer be taken away: those that are there now stay. */
int ll_control_take_regions(struct ll_control *control, struct ll_attachment *attachment)
{
    const struct wish wish = {attachment->n_slots, attachment->arena_bytes};
    struct ll_layout layout;
    bool is_req_locked, is_rsp_locked;

    make_layout(&layout, control, attachment->id, &wish);
    int rc = ll_region_seal_written(&attachment->req);
    if (rc < 0)
        return rc == -EPERM ? LL_E_PROTOCOL : rc;
    if (!ll_region_is_whole(&attachment->req) || !ll_region_is_whole(&attachment->rsp))
        return LL_ERR(LL_E_PROTOCOL, "MAPPED comes after every page of REQ and RSP was touched");
    rc = ll_region_populate(&attachment->req, &is_req_locked);
    if (rc == 0)
        rc = ll_region_populate(&attachment->rsp, &is_rsp_locked);
    if (rc < 0)
        return rc;
    ll_region_close_fd(&attachment->req);
    ll_region_close_fd(&attachment->rsp);
    note_lock(control, is_req_locked && is_rsp_locked);
    write_req(attachment, &layout);
    write_rsp(attachment, &layout);
    return 0;
}
