/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/client/support_echo.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/log.h"
#include "shm/wait.h"

#include <dirent.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct echo_request {
    uint32_t gen; /* last one taken */
    bool is_open;
    uint32_t sum, n_prompt, n_out, n_events, max_tokens, n_choices, stopped;
};

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, ll_error_text());   \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static uint64_t get(const _Atomic uint64_t *word)
{
    return atomic_load(word);
}

static struct echo_request *request_of(struct echo *echo, const struct ll_attachment *client,
                                       uint32_t slot)
{
    return &echo->request[(size_t)client->id * LL_SLOTS_MAX + slot];
}

void echo_phase(struct ll_attachment *client, uint32_t slot, uint32_t gen, enum ll_slot_phase phase)
{
    atomic_store_explicit(&client->rst[slot].state, gen << 8 | phase, memory_order_release);
}

static void wake(struct ll_attachment *client)
{
    ll_wait_fence();
    if (ll_wait_claim(client->hot))
        ll_wait_wake(client->wake_fd);
}

void echo_write(struct ll_attachment *client, uint32_t slot, uint32_t gen, struct ll_event event)
{
    MUST(ll_event_writer_room(&client->events, 1) > 0);
    event.slot = (uint16_t)slot;
    event.gen = (uint16_t)gen;
    event.t_ns = ll_now_ns();
    ll_event_write(&client->events, &event);
    wake(client);
}

/* ---- the step thread's substitute -----------------------------------------------------------*/

static void end(struct echo *echo, struct ll_attachment *client, uint32_t slot, uint32_t reason)
{
    struct echo_request *r = request_of(echo, client, slot);
    struct ll_event event = {.type = LL_EV_FINISH};

    event.u.finish.reason = reason;
    event.u.finish.stop_id = UINT32_MAX;
    event.u.finish.n_prompt = r->n_prompt;
    event.u.finish.n_out = r->n_out;
    event.u.finish.ttft_us = 7;
    echo_write(client, slot, r->gen, event);
    echo_phase(client, slot, r->gen, LL_PHASE_DONE);
    r->is_open = false;
    atomic_fetch_add(reason == LL_FINISH_CANCELLED ? &echo->knobs->n_cancelled
                     : reason == LL_FINISH_STOP    ? &echo->knobs->n_stopped
                                                   : &echo->knobs->n_finished,
                     1);
}

static void refuse(struct ll_attachment *client, uint32_t slot, uint32_t gen, int code,
                   const char *text)
{
    struct ll_event event = {.type = LL_EV_ERROR, .u.error.code = code};

    event.u.error.retry_ms = code == LL_E_BUSY ? 250 : 0;
    snprintf(event.u.error.text, sizeof(event.u.error.text), "%s", text);
    echo_write(client, slot, gen, event);
    echo_phase(client, slot, gen, LL_PHASE_DONE);
}

static void look_at_slot(struct echo *echo, struct ll_attachment *client, uint32_t slot)
{
    struct ll_req *req = &client->slot[slot];
    struct echo_request *r = request_of(echo, client, slot);
    uint32_t state = atomic_load_explicit(&req->state, memory_order_acquire);

    if ((state & 0xff) == LL_SLOT_SUBMITTED && state >> 8 != r->gen && !r->is_open) {
        r->gen = state >> 8;
        if (echo->hook != NULL) {
            echo->hook(echo, client, slot, r->gen);
            return;
        }
        if (echo->is_draining) {
            refuse(client, slot, r->gen, LL_E_DRAINING, "");
            return;
        }
        const uint32_t *prompt = (const uint32_t *)(client->arena + req->prompt_off);
        MUST(ll_span_fits(req->prompt_off, req->n_prompt * 4ull, client->arena_bytes));
        *r = (struct echo_request){.gen = r->gen,
                                   .is_open = true,
                                   .n_prompt = req->n_prompt,
                                   .n_choices = req->n,
                                   .max_tokens = req->max_tokens != 0 ? req->max_tokens : 16};
        for (uint32_t i = 0; i < req->n_prompt; i++)
            r->sum += prompt[i];
        echo_phase(client, slot, r->gen, LL_PHASE_ACCEPTED);
        atomic_fetch_add(&echo->knobs->n_accepted, 1);
    }
    if (!r->is_open)
        return;
    r->stopped |= atomic_load_explicit(&req->stop_choice[0], memory_order_acquire);
    if (atomic_load_explicit(&req->cancel_gen, memory_order_acquire) == r->gen)
        end(echo, client, slot, LL_FINISH_CANCELLED);
    else if (r->stopped != 0 && __builtin_popcount(r->stopped) == (int)r->n_choices)
        end(echo, client, slot, LL_FINISH_STOP);
}

static void sweep(struct echo *echo, struct ll_attachment *client)
{
    for (uint32_t slot = 0; slot < client->n_slots; slot++)
        look_at_slot(echo, client, slot);
}

static bool poll_bell(struct echo *echo, struct ll_domain *domain)
{
    uint32_t word;
    bool did = false;

    for (;;) {
        int rc = ll_bell_pop(&domain->bell, &word);
        if (rc == 0)
            return did;
        did = true;
        if (rc < 0) {
            ll_bell_repair(&domain->bell);
            continue;
        }
        struct ll_attachment *client = echo->client[ll_word_client(word)];
        if (client == NULL || client->incarnation != ll_word_incarnation(word))
            continue;
        atomic_fetch_add(&echo->knobs->n_words, 1);
        client->n_doorbells++;
        look_at_slot(echo, client, ll_index_nospec(ll_word_slot(word), client->n_slots));
    }
}

static bool generate(struct echo *echo, struct ll_attachment *client)
{
    bool did = false;

    for (uint32_t slot = 0; slot < client->n_slots; slot++) {
        struct echo_request *r = request_of(echo, client, slot);
        if (!r->is_open)
            continue;
        /* A choice's token, or an ending with its CHOICE events. */
        uint32_t taken = atomic_load_explicit(&client->slot[slot].taken, memory_order_relaxed);
        if (r->n_events - taken >= LL_WINDOW_EVENTS ||
            ll_event_writer_room(&client->events, 512) < 512)
            continue;
        did = true;
        if (r->n_out == r->max_tokens * r->n_choices) {
            for (uint32_t c = 0; c < r->n_choices && r->n_choices > 1; c++) {
                struct ll_event event = {.type = LL_EV_CHOICE, .choice = (uint8_t)c};
                event.u.choice_end.reason = LL_FINISH_LENGTH;
                event.u.choice_end.stop_id = UINT32_MAX;
                event.u.choice_end.n_out = r->max_tokens;
                echo_write(client, slot, r->gen, event);
            }
            end(echo, client, slot, LL_FINISH_LENGTH);
            continue;
        }
        struct ll_event event = {.type = LL_EV_TOKEN,
                                 .choice = (uint8_t)(r->n_out % r->n_choices),
                                 .index = r->n_out / r->n_choices};
        event.u.token.id = (r->sum + event.index) % ECHO_N_VOCAB;
        event.u.token.logprob = -0.5f;
        echo_write(client, slot, r->gen, event);
        r->n_out++;
        r->n_events++;
    }
    return did;
}

static uint32_t n_open(struct echo *echo, const struct ll_attachment *client)
{
    uint32_t n = 0;

    for (uint32_t slot = 0; slot < client->n_slots; slot++)
        n += request_of(echo, client, slot)->is_open;
    return n;
}

static void answer(struct echo *echo, enum ll_mail_type type, void *attachment, uint64_t value)
{
    struct ll_mail mail = {type, attachment, value};

    MUST(ll_mailbox_send(&echo->to_control, &mail));
    ll_wait_wake(ll_control_notify_fd(echo->control));
}

static void detach(struct echo *echo, struct ll_attachment *client, bool has_died)
{
    poll_bell(echo, client->domain); /* until empty: the quarantine of rule A3 */
    atomic_fetch_add(has_died ? &echo->knobs->n_lost : &echo->knobs->n_cancelled,
                     n_open(echo, client));
    memset(request_of(echo, client, 0), 0, LL_SLOTS_MAX * sizeof(struct echo_request));
    epoll_ctl(echo->epoll_fd, EPOLL_CTL_DEL, client->kick_fd, NULL);
    echo->client[client->id] = NULL;
    atomic_fetch_add(&echo->knobs->n_detached, 1);
    answer(echo, LL_MAIL_DETACHED, client, 0);
}

static bool take_mail(struct echo *echo)
{
    struct epoll_event event = {.events = EPOLLIN};
    struct ll_mail mail;
    bool did = false;

    while (ll_mailbox_take(&echo->to_step, &mail)) {
        struct ll_attachment *client = mail.attachment;
        did = true;
        switch (mail.type) {
        case LL_MAIL_ATTACH:
            MUST(echo->client[client->id] == NULL);
            echo->client[client->id] = client;
            event.data.fd = client->kick_fd;
            MUST(epoll_ctl(echo->epoll_fd, EPOLL_CTL_ADD, client->kick_fd, &event) == 0);
            atomic_fetch_add(&echo->knobs->n_attached, 1);
            break;
        case LL_MAIL_DETACH:
            MUST(echo->client[client->id] == client);
            detach(echo, client, mail.value != 0);
            break;
        case LL_MAIL_SWEEP:
            atomic_fetch_add(&echo->knobs->n_sweeps, 1);
            if (echo->client[client->id] == client)
                sweep(echo, client);
            break;
        case LL_MAIL_DRAIN:
            echo->is_draining = true;
            break;
        default:
            MUST(mail.type == LL_MAIL_STOP);
            echo->is_stopping = true;
        }
    }
    return did;
}

static bool turn(struct echo *echo, uint64_t now_ns, uint64_t *sweep_ns)
{
    struct ll_info_region *info = echo->info.base;
    bool did = take_mail(echo), is_sweep = now_ns >= *sweep_ns, is_idle = true;

    if (!atomic_load(&echo->knobs->is_heartless))
        atomic_store_explicit(&info->heartbeat_ns, now_ns, memory_order_relaxed);
    if (is_sweep)
        *sweep_ns = now_ns + 10 * LL_NS_PER_MS;
    for (uint32_t i = 0; i < LL_ATTACHMENTS_MAX; i++) {
        struct ll_attachment *client = echo->client[i];
        if (client == NULL)
            continue;
        if (!atomic_load(&echo->knobs->ignores)) {
            did |= poll_bell(echo, client->domain);
            uint64_t n = atomic_load_explicit(&client->hot->n_submitted, memory_order_acquire);
            if (is_sweep && n != client->n_doorbells) {
                client->n_doorbells = n;
                sweep(echo, client);
            }
        }
        if (client->is_fenced)
            continue;
        if (ll_event_writer_room(&client->events, 1) < 0) {
            client->is_fenced = true;
            answer(echo, LL_MAIL_FENCED, client, (uint64_t)(int64_t)LL_E_PROTOCOL);
            continue;
        }
        if (!atomic_load(&echo->knobs->holds))
            did |= generate(echo, client);
        is_idle &= n_open(echo, client) == 0;
    }
    if (echo->is_draining && is_idle) {
        echo->is_draining = false;
        answer(echo, LL_MAIL_IDLE, NULL, 0);
    }
    return did;
}

static bool is_quiet(struct echo *echo)
{
    if (atomic_load(&echo->to_step.tail) != atomic_load(&echo->to_step.head))
        return false;
    for (uint32_t i = 0; i < LL_ATTACHMENTS_MAX; i++)
        if (echo->client[i] != NULL && !ll_bell_is_empty(&echo->client[i]->domain->bell))
            return false;
    return true;
}

static void sleep_now(struct echo *echo)
{
    struct epoll_event events[64];

    ll_wait_runtime_arm(echo->info.base);
    if (is_quiet(echo)) {
        atomic_fetch_add(&echo->knobs->n_sleeps, 1);
        int n = epoll_wait(echo->epoll_fd, events, 64, 100);
        if (n == 0 && !is_quiet(echo))
            atomic_fetch_add(&echo->knobs->n_lost_wakes, 1);
        for (int i = 0; i < n; i++)
            ll_wait_drain(events[i].data.fd);
    }
    ll_wait_runtime_disarm(echo->info.base);
}

static void *run_step(void *context)
{
    struct echo *echo = context;
    uint64_t busy_ns = ll_now_ns(), sweep_ns = 0;

    while (!echo->is_stopping) {
        uint64_t now_ns = ll_now_ns();
        uint32_t pause_ns = atomic_load(&echo->knobs->pause_ns);
        if (turn(echo, now_ns, &sweep_ns)) {
            busy_ns = now_ns;
            if (pause_ns > 100000)
                usleep(pause_ns / 1000);
            else /* finer than a timer */
                while (pause_ns != 0 && ll_now_ns() - now_ns < pause_ns)
                    ll_cpu_relax();
        } else if (now_ns - busy_ns > 200 * LL_NS_PER_US &&
                   !atomic_load(&echo->knobs->never_sleeps)) {
            sleep_now(echo);
        } else {
            sched_yield(); /* two CPUs may be all there is */
        }
    }
    return NULL;
}

static void *run_control(void *context)
{
    struct echo *echo = context;

    echo->control_result = ll_control_run(echo->control);
    return NULL;
}

/* ---- life -----------------------------------------------------------------------------------*/

void echo_init(struct echo *echo)
{
    memset(echo, 0, sizeof(*echo));
    snprintf(echo->directory, sizeof(echo->directory), "/tmp/llring-test-XXXXXX");
    MUST(mkdtemp(echo->directory) != NULL);
    snprintf(echo->socket, sizeof(echo->socket), "%s/llring.sock", echo->directory);
    echo->knobs =
        mmap(NULL, sizeof(*echo->knobs), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(echo->knobs != MAP_FAILED);
    echo->options = (struct ll_control_options){.numa_node = -1};
    ll_log_set_level(LL_LOG_ERROR);
}

static void fill_info(struct ll_info_region *info)
{
    info->magic = LL_INFO_MAGIC;
    info->abi_major = LL_ABI_MAJOR;
    info->abi_minor = LL_ABI_MINOR;
    info->size_bytes = LL_INFO_BYTES;
    info->epoch = ll_now_ns() | 1;
    info->pid = (uint32_t)getpid();
    info->n_vocab = ECHO_N_VOCAB;
    info->context_max = ECHO_CONTEXT;
    info->n_prompt_max = ECHO_PROMPT;
    info->heartbeat_ns = ll_now_ns();
    info->bos = 1;
    info->n_eos = 2;
    info->eos[0] = 2;
    info->eos[1] = 3;
    info->temperature = 0.6f;
    info->top_p = 0.9f;
    info->repetition_penalty = 1;
    info->n_max = LL_CHOICES_MAX;
    info->n_top_max = LL_TOP_MAX;
    info->n_stop_max = LL_STOP_MAX;
    info->n_bias_max = LL_BIAS_MAX;
    info->window_events = LL_WINDOW_EVENTS;
    info->weights_epoch = 1;
    strcpy(info->name, "echo");
    strcpy(info->backend, "echo");
    strcpy(info->dtype, "none");
    info->n_adapters = 1;
    strcpy(info->adapter[3].name, "legal");
    info->adapter[3].id = 4;
}

void echo_start(struct echo *echo)
{
    struct epoll_event event = {.events = EPOLLIN};

    MUST(ll_region_create(&echo->info, "info", LL_INFO_BYTES, -1) == 0);
    MUST(ll_region_create(&echo->stat, "stat", ll_align_up(sizeof(struct ll_stat_region), 4096),
                          -1) == 0);
    MUST(ll_region_create(&echo->tok, "tok", 8192, -1) == 0);
    fill_info(echo->info.base);
    ll_stat_init(echo->stat.base, ll_now_ns());
    strcpy(echo->tok.base, "tokenizer image");
    MUST(ll_region_seal_written(&echo->info) == 0);
    MUST(ll_region_seal_written(&echo->stat) == 0);
    MUST(ll_region_seal_const(&echo->tok) == 0);
    memset(&echo->to_step, 0, sizeof(echo->to_step));
    memset(&echo->to_control, 0, sizeof(echo->to_control));
    memset(echo->client, 0, sizeof(echo->client));
    echo->is_draining = echo->is_stopping = echo->is_terminated = false;
    echo->step_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    echo->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    echo->request = calloc((size_t)LL_ATTACHMENTS_MAX * LL_SLOTS_MAX, sizeof(*echo->request));
    MUST(echo->step_fd >= 0 && echo->epoll_fd >= 0 && echo->request != NULL);
    event.data.fd = echo->step_fd;
    MUST(epoll_ctl(echo->epoll_fd, EPOLL_CTL_ADD, echo->step_fd, &event) == 0);

    echo->options.socket = echo->socket;
    echo->options.info = &echo->info;
    echo->options.stat = &echo->stat;
    echo->options.tok = &echo->tok;
    echo->options.to_step = &echo->to_step;
    echo->options.to_control = &echo->to_control;
    echo->options.step_fd = echo->step_fd;
    MUST(ll_control_create(&echo->control, &echo->options) == 0);
    MUST(ll_control_listen(echo->control) == 0);
    MUST(pthread_create(&echo->step_thread, NULL, run_step, echo) == 0);
    MUST(pthread_create(&echo->control_thread, NULL, run_control, echo) == 0);
}

static int join(struct echo *echo)
{
    pthread_join(echo->control_thread, NULL);
    pthread_join(echo->step_thread, NULL);
    ll_control_check(echo->control);
    ll_control_destroy(echo->control);
    ll_region_free(&echo->info);
    ll_region_free(&echo->stat);
    ll_region_free(&echo->tok);
    close(echo->step_fd);
    close(echo->epoll_fd);
    free(echo->request);
    return echo->control_result;
}

void echo_start_process(struct echo *echo)
{
    int ready[2];
    char byte;

    MUST(pipe(ready) == 0);
    echo->pid = fork();
    MUST(echo->pid >= 0);
    if (echo->pid == 0) {
        close(ready[0]);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        ll_control_block_signals();
        echo_start(echo);
        MUST(write(ready[1], "", 1) == 1);
        close(ready[1]);
        _exit(-join(echo));
    }
    close(ready[1]);
    MUST(read(ready[0], &byte, 1) == 1);
    close(ready[0]);
}

void echo_restart_process(struct echo *echo)
{
    echo->pid = 0;
    echo_start_process(echo);
}

void echo_terminate(struct echo *echo)
{
    echo->is_terminated = true;
    kill(echo->pid != 0 ? echo->pid : getpid(), SIGTERM);
}

int echo_stop(struct echo *echo)
{
    int status;

    if (!echo->is_terminated)
        echo_terminate(echo);
    if (echo->pid == 0)
        return join(echo);
    kill(echo->pid, SIGCONT);
    MUST(waitpid(echo->pid, &status, 0) == echo->pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void echo_kill(struct echo *echo)
{
    kill(echo->pid, SIGKILL);
    MUST(waitpid(echo->pid, NULL, 0) == echo->pid);
}

void echo_free(struct echo *echo)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf '%s'", echo->directory);
    MUST(system(command) == 0);
    munmap(echo->knobs, sizeof(*echo->knobs));
}

/* ---- the client's side ------------------------------------------------------------------------*/

struct ll_client *echo_open(const struct echo *echo, uint32_t n_slots)
{
    struct ll_client_options options = {
        .struct_bytes = sizeof(options), .socket = echo->socket, .n_slots = n_slots};
    struct ll_client *client = NULL;

    MUST(ll_client_open(&client, &options) == 0);
    return client;
}

struct ll_request echo_request(const uint32_t *seed, uint32_t max_tokens)
{
    struct ll_request request = LL_REQUEST_INIT;

    request.prompt = seed;
    request.n_prompt = 1;
    request.max_tokens = max_tokens;
    return request;
}

uint32_t echo_read(struct ll_client *client, uint64_t id, uint32_t seed, struct ll_output *last)
{
    struct ll_output out;
    uint32_t n_tokens = 0;
    uint64_t deadline_ns = ll_now_ns() + 30 * LL_NS_PER_S;

    for (;;) {
        int n = ll_client_poll_request(client, id, &out, 1);
        if (n < 0)
            fail_msg("poll_request: %s", ll_error_text());
        if (n == 0) {
            if (ll_now_ns() > deadline_ns)
                fail_msg("no answer in 30 s");
            sched_yield();
            continue;
        }
        assert_int_equal(out.id, id);
        if (out.type == LL_OUTPUT_TOKEN) {
            assert_int_equal(out.index, n_tokens);
            assert_int_equal(out.u.token.id, (seed + n_tokens) % ECHO_N_VOCAB);
            n_tokens++;
        }
        if (out.type == LL_OUTPUT_FINISH || out.type == LL_OUTPUT_ERROR) {
            *last = out;
            return n_tokens;
        }
    }
}

void echo_await(const _Atomic uint64_t *word, uint64_t value)
{
    uint64_t deadline_ns = ll_now_ns() + 30 * LL_NS_PER_S;

    while (get(word) < value) {
        if (ll_now_ns() > deadline_ns)
            fail_msg("a count stays at %llu, expected %llu", (unsigned long long)get(word),
                     (unsigned long long)value);
        usleep(1000);
    }
}

uint32_t count_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    uint32_t n = 0;

    while (readdir(directory) != NULL)
        n++;
    closedir(directory);
    return n;
}
