/* SPDX-License-Identifier: Apache-2.0 */
#include "client/handle.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "shm/wait.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>

/* A polling client looks into the socket when the heartbeat is older than this: 50 ms while the
 * runtime works, more while it sleeps, since it then beats every 100 ms. */
#define SILENT_NS        (50 * LL_NS_PER_MS)
#define SILENT_ASLEEP_NS (150 * LL_NS_PER_MS)
#define PROBE_NS         (50 * LL_NS_PER_MS) /* and at most that often */
#define SWEEP_NS         (100 * LL_NS_PER_MS)
/* Longest sleep in one go: after it a hung runtime is noticed. */
#define TICK_NS LL_NS_PER_S
/* Turns of the spin loop between two looks at the clock: some 3 us. */
#define SPINS_A_LOOK 64u

int ll_client_check(const struct ll_client *client)
{
    if (ll_client_is_forked(client))
        return LL_ERR(LL_E_FORKED,
                      "this client was opened by the parent process: open one in this process");
    /* Acquire, pairs with the release in ll_client_fail(): the text before the code. */
    int code = atomic_load_explicit(&client->broken, memory_order_acquire);
    return code == 0 ? 0 : LL_ERR(code, "%s", client->broken_text);
}

/* ---- signs of life ----------------------------------------------------------------------------*/

uint64_t ll_client_silence_ns(const struct ll_client *client, uint64_t now_ns)
{
    /* Relaxed: a time, it publishes nothing. */
    uint64_t beat_ns = atomic_load_explicit(&client->info->heartbeat_ns, memory_order_relaxed);

    beat_ns = ll_max_u64(beat_ns, client->attached_ns);
    return now_ns > beat_ns ? now_ns - beat_ns : 0;
}

bool ll_client_is_silent(struct ll_client *client, uint64_t now_ns)
{
    /* Relaxed: only decides how soon the socket is looked at. */
    uint32_t is_asleep = atomic_load_explicit(&client->info->rt_sleeping, memory_order_relaxed);

    return ll_client_silence_ns(client, now_ns) > (is_asleep ? SILENT_ASLEEP_NS : SILENT_NS) &&
           now_ns - client->probed_ns > PROBE_NS;
}

void ll_client_check_peer(struct ll_client *client)
{
    /* Acquire, pairs with the release of the control thread: the reason after the state. */
    if (atomic_load_explicit(&client->rsp_head->client_state, memory_order_acquire) !=
        LL_CLIENT_FENCED)
        return;
    int reason = atomic_load_explicit(&client->rsp_head->client_reason, memory_order_relaxed);
    ll_client_fail(client, LL_E_PROTOCOL,
                   "the runtime fenced this client (%s): it broke the shared-memory protocol",
                   ll_error_name(reason));
}

/* The runtime closed the socket, or was closed with it. What it wrote before still counts. */
static void lose(struct ll_client *client)
{
    ll_client_drain(client);
    ll_client_check_peer(client);
    /* Acquire, pairs with the step thread's release: the reason after the state. */
    uint32_t state = atomic_load_explicit(&client->info->rt_state, memory_order_acquire);
    uint32_t reason = atomic_load_explicit(&client->info->rt_reason, memory_order_relaxed);
    if (state == LL_RT_DEAD)
        ll_client_fail(client, LL_E_RUNTIME_LOST,
                       "the runtime stopped (%s): open the client anew when it is back",
                       ll_error_name(-(int)reason));
    ll_client_fail(client, LL_E_RUNTIME_LOST,
                   state == LL_RT_DRAINING
                       ? "the runtime was stopped: open the client anew when it is back"
                       : "the runtime is gone: open the client anew when it is back");
}

static void take_message(struct ll_client *client, const struct ll_msg_refuse *message, int n)
{
    if (message->head.type != LL_MSG_KICK || n < (int)sizeof(*message) || message->code >= 0)
        return; /* DRAIN: INFO.rt_state says it; anything else is of a later version */
    ll_client_drain(client);
    ll_client_check_peer(client);
    ll_client_fail(client, message->code, "%.*s",
                   (int)strnlen(message->text, sizeof(message->text)), message->text);
}

void ll_client_probe(struct ll_client *client)
{
    union {
        struct ll_msg_refuse refuse;
        uint8_t bytes[LL_MSG_BYTES_MAX];
    } message;
    bool was_reset = false;

    client->probed_ns = ll_now_ns();
    for (int i = 0; i < 16; i++) {
        int n = ll_msg_recv(client->socket_fd, &message, sizeof(message));
        if (n == -EAGAIN || n == -EINTR)
            return;
        if (n == -ECONNRESET && !was_reset) {
            was_reset = true; /* the runtime left messages unread; its last one may still be here */
            continue;
        }
        if (n <= 0) {
            if (n == LL_E_PROTOCOL)
                ll_client_fail(client, n, "the runtime sent a broken message");
            else
                lose(client);
            return;
        }
        take_message(client, &message.refuse, n);
    }
}

void ll_client_sweep(struct ll_client *client)
{
    const struct ll_msg_plain message = {{LL_MSG_MAGIC, LL_MSG_SWEEP, sizeof(message)}};
    uint64_t now_ns = ll_now_ns();
    /* Relaxed: only keeps two threads from asking at once; too many would do no harm. */
    uint64_t last_ns = atomic_load_explicit(&client->sweep_ns, memory_order_relaxed);

    if (now_ns - last_ns < SWEEP_NS ||
        !atomic_compare_exchange_strong_explicit(&client->sweep_ns, &last_ns, now_ns,
                                                 memory_order_relaxed, memory_order_relaxed))
        return;
    /* A lost one costs the 10 ms until the runtime's own sweep. */
    ll_msg_send(client->socket_fd, &message, sizeof(message), NULL, 0);
}

/* ---- wait
 * ---------------------------------------------------------------------------------------*/

static uint64_t deadline_of(uint64_t now_ns, int64_t timeout_ns)
{
    if (timeout_ns < 0 || (uint64_t)timeout_ns > UINT64_MAX - now_ns)
        return UINT64_MAX;
    return now_ns + (uint64_t)timeout_ns;
}

static int say_hung(struct ll_client *client, uint64_t now_ns)
{
    client->is_hung = true;
    return LL_ERR(LL_E_TIMEOUT,
                  "the runtime has shown no sign of life for %llu s: look at its log, restart it",
                  (unsigned long long)(ll_client_silence_ns(client, now_ns) / LL_NS_PER_S));
}

/* Anything to hand over: outputs, or the end of the attachment? */
static bool has_news(const struct ll_client *client)
{
    return ll_client_has_output(client) ||
           atomic_load_explicit(&client->broken, memory_order_relaxed) != 0;
}

/* Spins until there is news or spin_ns or the deadline is over; LL_E_TIMEOUT as ll_client_wait. */
static int spin(struct ll_client *client, uint64_t start_ns, uint64_t deadline_ns)
{
    uint64_t end_ns =
        UINT64_MAX - start_ns < client->spin_ns ? UINT64_MAX : start_ns + client->spin_ns;

    end_ns = ll_min_u64(end_ns, deadline_ns);
    for (uint32_t turn = 1;; turn++) {
        ll_client_drain(client);
        if (has_news(client))
            return 0;
        if (turn % SPINS_A_LOOK == 0) {
            uint64_t now_ns = ll_now_ns();
            ll_client_check_peer(client);
            if (ll_client_is_silent(client, now_ns))
                ll_client_probe(client);
            if (has_news(client))
                return 0;
            if (now_ns >= end_ns)
                return 0;
            /* Not at once: a caller that tries again must not go round at full speed, and a runtime
             * that has just been continued gets the time for a heartbeat. */
            if (now_ns - start_ns > TICK_NS &&
                ll_client_silence_ns(client, now_ns) > LL_CLIENT_HANG_NS)
                return say_hung(client, now_ns);
        }
        ll_cpu_relax();
    }
}

/* Sleeps once, at most to the deadline and a tick. */
static void sleep_once(struct ll_client *client, uint64_t now_ns, uint64_t deadline_ns)
{
    struct pollfd fds[2] = {{.fd = client->wake_fd, .events = POLLIN},
                            {.fd = client->socket_fd, .events = POLLIN}};
    uint64_t sleep_ns = ll_min_u64(deadline_ns - now_ns, TICK_NS);
    struct timespec span = {.tv_sec = (time_t)(sleep_ns / LL_NS_PER_S),
                            .tv_nsec = (long)(sleep_ns % LL_NS_PER_S)};

    ll_event_publish(&client->events);
    ll_wait_arm(client->hot);
    /* After the fence in ll_wait_arm(): an event written before is seen here, one written after
     * sees us asleep. */
    if (!ll_event_ready(&client->events)) {
        int n = ppoll(fds, 2, &span, NULL);
        if (n == 0 && ll_event_ready(&client->events))
            client->n_lost_wakes++; /* stays 0: tests look at it */
        if (n > 0 && fds[0].revents != 0)
            ll_wait_drain(client->wake_fd);
        if (n > 0 && fds[1].revents != 0)
            ll_client_probe(client);
    }
    ll_wait_disarm(client->hot);
}

int ll_client_wait(struct ll_client *client, struct ll_output *out, int n_max, int64_t timeout_ns)
{
    int n = ll_client_poll(client, out, n_max);

    if (n != 0 || timeout_ns == 0)
        return n;
    uint64_t now_ns = ll_now_ns(), deadline_ns = deadline_of(now_ns, timeout_ns);
    int rc = spin(client, now_ns, deadline_ns);
    if (rc < 0)
        return rc;
    while (!has_news(client)) {
        now_ns = ll_now_ns();
        if (now_ns >= deadline_ns)
            return 0;
        sleep_once(client, now_ns, deadline_ns);
        ll_client_drain(client);
        ll_client_check_peer(client);
        if (has_news(client))
            break;
        now_ns = ll_now_ns();
        if (ll_client_silence_ns(client, now_ns) > LL_CLIENT_HANG_NS)
            return say_hung(client, now_ns);
        client->is_hung = false;
    }
    n = ll_client_take(client, out, n_max);
    return n > 0 ? n : ll_client_check(client);
}

/* ---- event loops ------------------------------------------------------------------------------*/

int ll_client_fd(const struct ll_client *client)
{
    return ll_client_is_forked(client) ? ll_client_check(client) : client->epoll_fd;
}

int ll_client_arm(struct ll_client *client)
{
    if (ll_client_is_forked(client))
        return ll_client_check(client);
    ll_client_drain(client);
    ll_client_check_peer(client);
    if (has_news(client))
        return 1;
    uint64_t now_ns = ll_now_ns();
    if (ll_client_silence_ns(client, now_ns) > LL_CLIENT_HANG_NS) {
        ll_client_probe(client);
        return has_news(client) ? 1 : say_hung(client, now_ns);
    }
    client->is_hung = false;
    ll_event_publish(&client->events);
    ll_wait_arm(client->hot);
    client->is_armed = true;
    if (!ll_event_ready(&client->events))
        return 0;
    ll_wait_disarm(client->hot);
    client->is_armed = false;
    return 1;
}
