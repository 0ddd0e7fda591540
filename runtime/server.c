/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/server.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "runtime/admin.h"
#include "runtime/allocations.h"
#include "runtime/control.h"
#include "runtime/crashes.h"
#include "runtime/engine.h"
#include "runtime/gpu.h"
#include "runtime/loader.h"
#include "runtime/progress.h"
#include "runtime/reload.h"
#include "runtime/setup.h"
#include "runtime/tokimage.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

struct server {
    const struct ll_config *config;
    struct ll_setup setup;
    struct ll_tokimage tokimage;
    struct ll_region info, stat, tok;
    struct ll_mailbox to_step, to_control;
    int step_fd;
    struct ll_control *control;
    struct ll_admin *admin;
    struct ll_reload *reload;
    struct ll_gpu *gpu; /* NULL: no figures */
    struct ll_admin_phase phase[LL_ADMIN_PHASES];
    uint32_t n_phases;
    uint64_t phase_ns;

    struct ll_crashes crashes;
    struct ll_engine engine;
    bool has_engine;
    bool was_ready;
    pthread_t step_thread;
    bool has_step_thread;
};

/* ---- the process -----------------------------------------------------------------------------*/

/* V2: prompts lie in this memory; and nobody but root may trace it. */
static void hide_memory(void)
{
    struct rlimit none = {0, 0};

    setrlimit(RLIMIT_CORE, &none);
#ifndef LL_DEBUG /* where developers attach debuggers, and the leak checker traces */
    prctl(PR_SET_DUMPABLE, 0);
#endif
}

static void end_phase(struct server *server, const char *name)
{
    uint64_t now_ns = ll_now_ns();

    server->phase[server->n_phases++] = (struct ll_admin_phase){name, now_ns - server->phase_ns};
    server->phase_ns = now_ns;
}

/* ---- regions ---------------------------------------------------------------------------------*/

static int make_region(struct ll_region *out, const char *name, size_t n_bytes, int numa_node)
{
    bool is_locked;
    int rc = ll_region_create(out, name, ll_align_up(n_bytes, 4096), numa_node);

    if (rc < 0)
        out->fd = -1;
    if (rc == 0)
        rc = ll_region_seal_written(out);
    if (rc == 0)
        rc = ll_region_populate(out, &is_locked);
    return rc;
}

static int make_regions(struct server *server)
{
    int node = server->setup.topology.numa_node;
    int rc = make_region(&server->info, "llring-info", LL_INFO_BYTES, node);

    if (rc == 0)
        rc = make_region(&server->stat, "llring-stat", sizeof(struct ll_stat_region), node);
    if (rc == 0)
        ll_stat_init(server->stat.base, ll_now_ns());
    return rc;
}

static uint64_t random_u64(void)
{
    uint64_t word;

    if (getrandom(&word, sizeof(word), 0) != sizeof(word))
        word = ll_now_ns() ^ (uint64_t)getpid() << 32;
    return word;
}

/* Running and waiting together. */
static uint32_t n_sequences(const struct server *server)
{
    return server->setup.options.n_slots + server->config->max_waiting;
}

/* Each choice of a request is a sequence. */
static uint32_t n_choices_max(const struct server *server)
{
    return (uint32_t)ll_min_u64(LL_CHOICES_MAX, n_sequences(server));
}

static void fill_info(struct server *server)
{
    struct ll_info_region *info = server->info.base;
    const struct ll_setup *setup = &server->setup;
    const struct ll_checkpoint *checkpoint = &setup->checkpoint;

    info->magic = LL_INFO_MAGIC;
    info->abi_major = LL_ABI_MAJOR;
    info->abi_minor = LL_ABI_MINOR;
    info->size_bytes = LL_INFO_BYTES;
    info->epoch = random_u64();
    info->pid = (uint32_t)getpid();
    info->n_vocab = checkpoint->shape.n_vocab;
    info->context_max = checkpoint->shape.context_max;
    info->n_prompt_max = setup->n_prompt_max;
    info->weights_epoch = 1;
    snprintf(info->name, sizeof(info->name), "%s", setup->served_name);
    snprintf(info->chat_format, sizeof(info->chat_format), "%s", setup->chat_format);
    snprintf(info->backend, sizeof(info->backend), "%s", setup->backend->name);
    snprintf(info->dtype, sizeof(info->dtype), "%s", setup->dtype_name);
    info->bos = checkpoint->bos;
    info->n_eos = (uint32_t)ll_min_u64(checkpoint->n_eos, LL_EOS_MAX);
    memcpy(info->eos, checkpoint->eos, info->n_eos * sizeof(info->eos[0]));
    info->temperature = checkpoint->temperature;
    info->top_p = checkpoint->top_p;
    info->min_p = checkpoint->min_p;
    info->repetition_penalty = checkpoint->repetition_penalty;
    info->top_k = checkpoint->top_k;
    info->n_max = n_choices_max(server);
    info->n_top_max = server->config->max_logprobs;
    info->n_stop_max = LL_STOP_MAX;
    info->n_bias_max = LL_BIAS_MAX;
    info->window_events = LL_WINDOW_EVENTS;
    /* Relaxed: nobody can map it before READY, which is stored with release. */
    atomic_store_explicit(&info->heartbeat_ns, ll_now_ns(), memory_order_relaxed);
    atomic_store_explicit(&info->rt_state, LL_RT_STARTING, memory_order_relaxed);
}

/* ---- weights and tokenizer -------------------------------------------------------------------*/

/* V3: the signals are blocked; one that waits is taken here, since the loop that would is not yet
 * running. */
static bool is_stop_asked(void)
{
    const struct timespec at_once = {0, 0};
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    return sigtimedwait(&set, NULL, &at_once) > 0;
}

static int on_progress(void *context, const struct ll_load_progress *now)
{
    ll_progress_show(context, now);
    return is_stop_asked() ? -ECANCELED : 0;
}

static int load_weights(struct server *server)
{
    struct ll_setup *setup = &server->setup;
    struct ll_progress progress;
    struct ll_text error = {""};
    const bool is_loaded = setup->has_checkpoint && !setup->options.has_dummy_weights;
    uint64_t start_ns = ll_now_ns(), seal_ns = 0;
    int rc;

    if (!is_loaded) {
        rc = setup->backend->seal(setup->device, 0, &error);
        seal_ns = ll_now_ns() - start_ns;
        if (rc < 0)
            return LL_ERR(rc, "device %s: %s", setup->backend->name, error.s);
    } else {
        ll_progress_init(&progress);
        const char *checksum = setup->config->weights_checksum;
        const struct ll_load_options options = {.quantize_fp8 = setup->quantize_fp8,
                                                .numa_node = setup->topology.numa_node,
                                                .checksum = checksum[0] != 0 ? checksum : NULL,
                                                .callback = on_progress,
                                                .context = &progress,
                                                .seal_ns = &seal_ns};
        rc = ll_loader_run(setup->backend, setup->device, 0, &setup->checkpoint, &options);
        ll_progress_end(&progress);
        if (rc < 0)
            return rc;
        double seconds = (double)(ll_now_ns() - start_ns) / 1e9;
        double gb = (double)setup->checkpoint.weights_bytes / 1e9;
        ll_info("weights: %.2f GB in %.2f s, %.2f GB/s%s", gb, seconds, gb / seconds,
                setup->quantize_fp8 ? "; linear layers are FP8 now" : "");
    }
    struct ll_stats *stats = &((struct ll_stat_region *)server->stat.base)->v;
    ll_stat_set(&stats->weights_bytes, is_loaded ? ll_setup_weights_bytes(setup, &setup->checkpoint)
                                                 : setup->caps.weights_bytes);
    ll_stat_set(&stats->load_ns, ll_now_ns() - start_ns);
    ll_stat_set(&stats->start_seal_ns, seal_ns);
    return is_stop_asked() ? -ECANCELED : 0;
}

static int begin_tokenizer(struct server *server)
{
    const struct ll_checkpoint *checkpoint = &server->setup.checkpoint;

    if (!checkpoint->has_tokenizer_json && !checkpoint->has_tokenizer_model) {
        if (server->setup.has_checkpoint)
            ll_warn("the model has neither tokenizer.json nor tokenizer.model: clients can send "
                    "token ids only");
        return 0;
    }
    return ll_tokimage_begin(&server->tokimage, server->setup.directory);
}

static int finish_tokenizer(struct server *server)
{
    if (server->tokimage.child == 0)
        return 0;
    return ll_tokimage_finish(&server->tokimage, server->setup.topology.numa_node, &server->tok);
}

/* ---- engine and sockets ----------------------------------------------------------------------*/

static int make_control(struct server *server)
{
    const struct ll_config *config = server->config;
    const struct ll_control_options options = {
        .socket = config->socket,
        .is_isolated = config->isolate == LL_ISOLATE_CLIENT,
        .numa_node = server->setup.topology.numa_node,
        .n_attachments_max = config->max_clients,
        .n_per_uid_max = (uint32_t)ll_min_u64(config->max_clients_per_user, config->max_clients),
        .n_slots_max = config->max_slots,
        .n_slots_uid_max = config->max_slots_per_user,
        .arena_bytes_max = (uint32_t)config->max_arena_bytes,
        .arena_bytes_uid_max = config->max_arena_bytes_per_user,
        .drain_ns = config->drain_timeout_s * LL_NS_PER_S,
        .info = &server->info,
        .stat = &server->stat,
        .tok = &server->tok,
        .to_step = &server->to_step,
        .to_control = &server->to_control,
        .step_fd = server->step_fd,
    };

    return ll_control_create(&server->control, &options);
}

static struct ll_gate_limits gate_limits(const struct server *server)
{
    const struct ll_setup *setup = &server->setup;
    struct ll_gate_limits limits = {
        .n_vocab = setup->checkpoint.shape.n_vocab,
        .context_max = setup->checkpoint.shape.context_max,
        .n_prompt_max = setup->n_prompt_max,
        .n_pages_total = setup->caps.n_pages,
        .n_max = n_choices_max(server),
        .n_top_max = server->config->max_logprobs,
        .n_eos = setup->checkpoint.n_eos,
    };

    memcpy(limits.eos, setup->checkpoint.eos, sizeof(limits.eos));
    return limits;
}

/* A CPU may work on a large model's prompt for long; its backend ends a step that does not move
 * after 5 s by itself, so here only a limit of the whole is needed. Any other device that takes 5 s
 * for a step is dead (backend.h B6). */
static uint64_t step_timeout_ns(const struct server *server)
{
    bool is_cpu = strcmp(server->setup.backend->name, "cpu") == 0;

    if (server->config->step_timeout_s != 0)
        return server->config->step_timeout_s * LL_NS_PER_S;
    return (is_cpu ? 60 : 5) * LL_NS_PER_S;
}

static int make_engine(struct server *server)
{
    const struct ll_config *config = server->config;
    const struct ll_setup *setup = &server->setup;
    const struct ll_engine_options options = {
        .backend = setup->backend,
        .device = setup->device,
        .caps = setup->caps,
        .n_sequences = n_sequences(server),
        .n_waiting_max = config->max_waiting,
        .tokens_waiting_max = config->max_waiting_tokens,
        .waiting_share = config->max_waiting_share,
        .limits = {.n_rows_max = setup->options.n_rows_max,
                   .n_tokens_max = setup->options.n_tokens_max,
                   .n_slots = setup->options.n_slots,
                   .context_max = setup->checkpoint.shape.context_max,
                   .stall_ns = config->stall_timeout_s * LL_NS_PER_S,
                   .has_prefix_cache = config->has_prefix_caching,
                   .is_deterministic = config->is_deterministic,
                   .n_grid = setup->n_grid,
                   .max_itl_ns = (uint64_t)((double)config->max_itl_ms * LL_NS_PER_MS)},
        .gate = gate_limits(server),
        .info = server->info.base,
        .stat = server->stat.base,
        .from_control = &server->to_step,
        .to_control = &server->to_control,
        .control_fd = server->step_fd,
        .notify_fd = ll_control_notify_fd(server->control),
        .spin_ns = ll_max_u64(config->spin_us, 1) * LL_NS_PER_US,
        .seed = random_u64(),
        .step_timeout_ns = step_timeout_ns(server),
        .yields = setup->topology.yields,
        .crashes = &server->crashes,
    };
    int rc = ll_engine_open(&server->engine, &options);

    server->has_engine = rc == 0;
    if (rc == 0)
        rc = ll_crashes_watch(&server->crashes, &server->engine.pool);
    return rc;
}

/* What the last runtimes at this socket came to grief with. Under the lock that make_control took.
 */
static int read_crashes(struct server *server)
{
    char path[sizeof(server->crashes.path)];
    struct ll_stats *stats = &((struct ll_stat_region *)server->stat.base)->v;

    snprintf(path, sizeof(path), "%s.crashes", server->config->socket);
    int rc = ll_crashes_open(&server->crashes, path, (uint64_t)time(NULL));
    ll_stat_set(&stats->crashes_recent, server->crashes.n_recent);
    ll_stat_set(&stats->requests_quarantined, server->crashes.n_refused);
    if (server->crashes.n_refused > 0)
        ll_warn("%u requests were there in %u crashes within %u s each: refused for up to %u "
                "minutes (remove %s, with the runtime stopped, to forget that)",
                server->crashes.n_refused, LL_CRASHES_TO_REFUSE, LL_CRASHES_WITHIN_S,
                LL_CRASHES_REMEMBERED_S / 60, path);
    else if (server->crashes.n_recent > 0)
        ll_warn("%u crashes with requests open in the last %u s; one that is in %u of them is then "
                "refused",
                server->crashes.n_recent, LL_CRASHES_WITHIN_S, LL_CRASHES_TO_REFUSE);
    return rc;
}

static void *run_step_thread(void *context)
{
    struct server *server = context;

    ll_crashes_guard_thread();
    pthread_setname_np(pthread_self(), "llring-step");
    ll_topology_take_step_cpu(&server->setup.topology);
    ll_engine_run(&server->engine); /* its end reaches the control thread by mail */
    return NULL;
}

static int open_doors(struct server *server)
{
    const struct ll_reload_options reload = {
        .setup = &server->setup,
        .control = server->control,
        .info = server->info.base,
        .stats = &((struct ll_stat_region *)server->stat.base)->v,
    };
    struct ll_admin_options options = {
        .socket = server->config->admin_socket,
        .control = server->control,
        .info = server->info.base,
        .stat = server->stat.base,
        .model = server->setup.directory,
        .device = server->setup.caps.device,
        .n_phases = server->n_phases,
    };

    memcpy(options.phase, server->phase, sizeof(options.phase));
    int error = pthread_create(&server->step_thread, NULL, run_step_thread, server);
    if (error != 0)
        return ll_err_set_errno(error, "the step thread");
    server->has_step_thread = true;
    ll_topology_leave_step_cpu(&server->setup.topology);
    int rc = ll_reload_open(&server->reload, &reload); /* its thread leaves the step's CPU, too */
    options.reload = server->reload;
    if (rc == 0)
        rc = ll_admin_open(&server->admin, &options);
    if (rc == 0)
        rc = ll_gpu_open(&server->gpu, server->control, server->stat.base, server->setup.caps.pci);
    return rc < 0 ? rc : ll_control_listen(server->control);
}

/* ---- start and stop --------------------------------------------------------------------------*/

static void say_ready(const struct server *server)
{
    const struct ll_setup *setup = &server->setup;
    struct ll_stat_region *stat = server->stat.base;
    uint64_t ready_ns = ll_now_ns() - stat->start_ns;

    struct ll_stats *v = &stat->v;
    /* In the order of start(); load_weights() has told of its own. */
    _Atomic uint64_t *const spans[] = {&v->start_open_ns, &v->start_device_ns, NULL,
                                       &v->start_tokenizer_ns, &v->start_engine_ns};
    for (uint32_t i = 0; i < server->n_phases && i < LL_COUNT(spans); i++)
        if (spans[i] != NULL)
            ll_stat_set(spans[i], server->phase[i].ns);
    ll_stat_set(&v->ready_ns, ready_ns);
    ll_info("%s on %s (%s), %s: context %u, %u requests at once, KV cache %llu tokens",
            setup->served_name, setup->backend->name, setup->caps.device, setup->dtype_name,
            setup->checkpoint.shape.context_max, setup->options.n_rows_max,
            (unsigned long long)setup->caps.n_pages * LL_PAGE_TOKENS);
    ll_info("ready after %.2f s: %s", (double)ready_ns / 1e9, server->config->socket);
}

static int start(struct server *server)
{
    int rc = ll_setup_model(&server->setup, server->config);

    if (rc == 0)
        rc = make_regions(server);
    if (rc == 0 && (server->step_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        rc = LL_ERRNO("eventfd");
    if (rc == 0)
        rc = make_control(server); /* V1: the lock, before anything that takes long */
    if (rc == 0)
        rc = read_crashes(server);
    if (rc == 0)
        rc = begin_tokenizer(server); /* forks: before the device makes threads */
    end_phase(server, "open");
    if (rc == 0)
        rc = ll_setup_device(&server->setup);
    end_phase(server, "device");
    if (rc == 0)
        rc = load_weights(server);
    end_phase(server, "weights");
    if (rc == 0)
        rc = finish_tokenizer(server);
    end_phase(server, "tokenizer");
    if (rc < 0)
        return rc;
    fill_info(server);
    rc = make_engine(server);
    end_phase(server, "engine");
    return rc < 0 ? rc : open_doors(server);
}

/* The kernel takes everything back when the process is gone. */
_Noreturn static void end_at_once(int status)
{
    fflush(NULL);
    _exit(status);
}

/* V4. The step thread has been told to stop, by the control loop or here. After a device has failed
 * (R11, device_failure is the exit status) nothing of it is closed: a kernel that never ends would
 * hold up whoever waits for it, the driver's exit handlers too. Likewise where a reload is stuck in
 * a read: status is the exit status then. */
static void take_apart(struct server *server, int device_failure, int status)
{
    ll_allocations_watch(NULL);
    ll_admin_close(server->admin);
    ll_gpu_close(server->gpu);
    if (server->has_step_thread)
        pthread_join(server->step_thread, NULL);
    ll_crashes_close(&server->crashes); /* still under the control socket's lock */
    bool is_stuck = device_failure == 0 && !ll_reload_close(server->reload);
    ll_control_destroy(server->control);
    if (device_failure != 0)
        end_at_once(device_failure);
    if (is_stuck) {
        ll_warn("the reload that was under way does not end: it is left behind");
        end_at_once(status);
    }
    if (server->has_engine)
        ll_engine_close(&server->engine);
    ll_tokimage_cancel(&server->tokimage);
    ll_setup_close(&server->setup);
    ll_region_free(&server->tok);
    ll_region_free(&server->stat);
    ll_region_free(&server->info);
    if (server->step_fd >= 0)
        close(server->step_fd);
}

static void stop_step_thread(struct server *server)
{
    struct ll_mail mail = {.type = LL_MAIL_STOP};

    if (server->has_step_thread && ll_mailbox_send(&server->to_step, &mail))
        if (eventfd_write(server->step_fd, 1) < 0)
            ll_warn("waking the step thread: %s", strerror(errno));
}

int ll_server_run(const struct ll_config *config)
{
    /* Large and aligned: not on the stack. */
    struct server *server = aligned_alloc(64, ll_align_up(sizeof(*server), 64));
    int rc;

    if (server == NULL) {
        ll_error("out of memory");
        return 1;
    }
    memset(server, 0, sizeof(*server));
    server->config = config;
    server->step_fd = server->info.fd = server->stat.fd = server->tok.fd = -1;
    server->crashes.fd = -1;
    server->tokimage = (struct ll_tokimage){.file = -1, .errors = -1};
    server->phase_ns = ll_now_ns();
    hide_memory();
    tzset(); /* the first line of the log would, with allocations, perhaps after READY */
    ll_crashes_guard_thread();
    ll_control_block_signals();

    rc = start(server);
    if (rc == 0) {
        struct ll_stat_region *stat = server->stat.base;
        say_ready(server);
        server->was_ready = true;
        ll_allocations_watch(&stat->v.allocations_after_ready);
        rc = ll_control_run(server->control);
        if (rc == 0)
            ll_info("stopped");
        else
            ll_error("stopped: %s", rc == -EINTR ? "cut short by a second signal"
                                                 : "the device failed, and its clients were told");
    } else if (rc == -ECANCELED) {
        ll_info("stopped while loading");
        rc = 0;
        stop_step_thread(server);
    } else {
        ll_error("%s", ll_err_text());
        stop_step_thread(server);
    }
    int failure = server->setup.is_usage ? 2 : server->was_ready && rc != -EINTR ? 3 : 1;
    take_apart(server, rc == LL_E_BACKEND ? failure : 0, rc == 0 ? 0 : failure);
    free(server);
    return rc == 0 ? 0 : failure;
}
