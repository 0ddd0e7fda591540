/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/support_echo.h - a runtime without an engine: the real control thread, and a step
 * thread that answers each request with the sum of its prompt counted up, one token a turn.
 *
 * As threads of the test (echo_start) its inside can be reached: a hook may write any event. As a
 * process of its own (echo_start_process) it can be stopped and killed. The knobs lie in shared
 * memory and work for both. */
#ifndef TESTS_CLIENT_SUPPORT_ECHO_H
#define TESTS_CLIENT_SUPPORT_ECHO_H

#include "tests/harness.h"

#include "ll/client.h"
#include "runtime/control.h"

#include <pthread.h>
#include <stdatomic.h>

#define ECHO_N_VOCAB 1000u
#define ECHO_CONTEXT 4096u
#define ECHO_PROMPT  4000u

struct echo_knobs {
    /* set by the test */
    _Atomic bool holds;        /* requests are accepted, nothing is generated */
    _Atomic bool ignores;      /* nothing is taken from bells or slots */
    _Atomic bool is_heartless; /* no heartbeat any more */
    _Atomic bool never_sleeps;
    _Atomic uint32_t pause_ns; /* between two turns that generate */
    /* counted by the step thread */
    _Atomic uint64_t n_attached, n_detached, n_accepted, n_finished, n_cancelled, n_stopped, n_lost,
        n_sweeps, n_sleeps, n_words, n_lost_wakes;
};

/* For tests that look at what the step thread has: the order comes from the bell or the ring, which
 * lie in two mappings of the same memory, so ThreadSanitizer does not see it. */
#define ECHO_PEEKS __attribute__((no_sanitize("thread")))

struct echo;
/* Called on the step thread instead of accepting; the request is the test's from then on. */
typedef void echo_hook(struct echo *echo, struct ll_attachment *client, uint32_t slot,
                       uint32_t gen);

struct echo {
    char directory[64], socket[100];
    struct echo_knobs *knobs;
    struct ll_control_options options; /* limits may be set before echo_start() */
    echo_hook *hook;
    void *hook_context;
    pid_t pid; /* of echo_start_process() */

    struct ll_region info, stat, tok;
    struct ll_mailbox to_step, to_control;
    struct ll_control *control;
    int step_fd, control_result;
    pthread_t step_thread, control_thread;
    bool is_draining, is_stopping, is_terminated;
    struct ll_attachment *client[LL_ATTACHMENTS_MAX];
    struct echo_request *request; /* [LL_ATTACHMENTS_MAX][LL_SLOTS_MAX] */
    int epoll_fd;
};

/* Makes the directory and the knobs; then set options, then start. */
void echo_init(struct echo *echo);
void echo_start(struct echo *echo);
void echo_start_process(struct echo *echo);
/* SIGTERM to the control thread: the drain begins. */
void echo_terminate(struct echo *echo);
/* Terminates unless that was done, joins, checks that nothing is left; the control thread's result
 * or exit status. */
int echo_stop(struct echo *echo);
/* Of a process: SIGKILL and wait. */
void echo_kill(struct echo *echo);
/* A new life at the same path after echo_kill(). */
void echo_restart_process(struct echo *echo);
/* Removes the directory. */
void echo_free(struct echo *echo);

/* For hooks: writes an event of (slot, gen) as the runtime would, and wakes the client. */
void echo_write(struct ll_attachment *client, uint32_t slot, uint32_t gen, struct ll_event event);
void echo_phase(struct ll_attachment *client, uint32_t slot, uint32_t gen,
                enum ll_slot_phase phase);

/* Opens a client of the echo; fails the test where it cannot. */
struct ll_client *echo_open(const struct echo *echo, uint32_t n_slots);
/* A small request whose answer starts at seed and counts up. */
struct ll_request echo_request(const uint32_t *seed, uint32_t max_tokens);
/* Reads until the request ends: its terminal output in *last, the number of tokens returned; fails
 * the test where the answer is not the one that echo_request() asked for. */
uint32_t echo_read(struct ll_client *client, uint64_t id, uint32_t seed, struct ll_output *last);

/* Waits until *word has reached value; fails the test after 10 s. */
void echo_await(const _Atomic uint64_t *word, uint64_t value);
uint32_t count_descriptors(void);

#endif
