/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/reload.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "runtime/allocations.h"
#include "runtime/crashes.h"
#include "runtime/engine.h"
#include "runtime/loader.h"
#include "runtime/memory.h"
#include "runtime/reload_check.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NICENESS 10
#define JOIN_S   5 /* a read of a buffer takes milliseconds */

struct ll_reload {
    struct ll_reload_options options;
    struct ll_tokenizer_print print;
    struct ll_reload_report now;
    uint64_t begin_ns, step_ns; /* of this reload, of this state */
    uint64_t wait_ns;
    bool cuts;

    /* the thread; orders and results change hands under the lock, or with done_fd */
    bool has_thread;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wanted;
    bool has_order;
    _Atomic bool is_over; /* set under the lock; a read under way looks without it */
    int done_fd;          /* eventfd: the thread has a result */

    /* the thread's, from an order to its result */
    char model[1024], directory[1024];
    struct ll_checkpoint checkpoint;
    bool has_checkpoint;
    uint32_t set;
    int result;
    char result_text[512];

    struct ll_weights_switch to;
};

/* ---- the thread that reads --------------------------------------------------------------------*/

static int on_progress(void *context, const struct ll_load_progress *now)
{
    struct ll_reload *reload = context;

    ll_stat_set(&reload->options.stats->reload_bytes_done, now->bytes_done);
    ll_stat_set(&reload->options.stats->reload_bytes_total, now->bytes_total);
    /* Relaxed: a wish, of ll_reload_close(), that may be seen a buffer later. */
    return atomic_load_explicit(&reload->is_over, memory_order_relaxed) ? -ECANCELED : 0;
}

static int load(struct ll_reload *reload)
{
    const struct ll_setup *setup = reload->options.setup;
    const struct ll_load_options options = {
        .quantize_fp8 = setup->quantize_fp8,
        .numa_node = setup->topology.numa_node,
        .checksum = setup->config->weights_checksum[0] != 0 ? "print" : NULL,
        .faults = reload->options.faults,
        .callback = on_progress,
        .context = reload,
    };
    int rc = ll_config_find_model(reload->model, reload->directory, sizeof(reload->directory));

    if (rc == 0)
        rc = ll_reload_check(&reload->checkpoint, setup, &reload->print, reload->directory);
    reload->has_checkpoint = rc == 0;
    if (rc < 0)
        return rc;
    ll_stat_set(&reload->options.stats->reload_state, LL_RELOAD_READING);
    return ll_loader_run(setup->backend, setup->device, reload->set, &reload->checkpoint, &options);
}

/* The next order, or false: there will be none. */
static bool wait_for_order(struct ll_reload *reload)
{
    pthread_mutex_lock(&reload->lock);
    /* Relaxed: the lock orders it. */
    while (!reload->has_order && !atomic_load_explicit(&reload->is_over, memory_order_relaxed))
        pthread_cond_wait(&reload->wanted, &reload->lock);
    bool has_order =
        reload->has_order && !atomic_load_explicit(&reload->is_over, memory_order_relaxed);
    reload->has_order = false;
    pthread_mutex_unlock(&reload->lock);
    return has_order;
}

static void *run(void *context)
{
    struct ll_reload *reload = context;

    ll_crashes_guard_thread();
    ll_allocations_exempt_thread();
    pthread_setname_np(pthread_self(), "llring-reload");
    /* Of this thread and those that it makes; a wish. */
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICENESS);
    while (wait_for_order(reload)) {
        reload->result = load(reload);
        snprintf(reload->result_text, sizeof(reload->result_text), "%s",
                 reload->result < 0 ? ll_err_text() : "");
        /* A system call that both sides make: the result before its notice. */
        if (eventfd_write(reload->done_fd, 1) < 0)
            ll_error("reload: its end cannot be told: %s", strerror(errno));
    }
    return NULL;
}

/* ---- the end of a reload ----------------------------------------------------------------------*/

static void set_state(struct ll_reload *reload, enum ll_reload_state state)
{
    reload->now.state = state;
    ll_stat_set(&reload->options.stats->reload_state, (uint64_t)state);
}

static void forget_checkpoint(struct ll_reload *reload)
{
    if (reload->has_checkpoint)
        ll_checkpoint_close(&reload->checkpoint);
    reload->has_checkpoint = false;
}

/* E2. */
static void fail(struct ll_reload *reload, int code, const char *text)
{
    struct ll_reload_report *now = &reload->now;

    now->code = code;
    now->elapsed_ns = ll_now_ns() - reload->begin_ns;
    snprintf(now->error, sizeof(now->error), "%s", text);
    set_state(reload, LL_RELOAD_IDLE);
    ll_stat_add(&reload->options.stats->reloads_failed, 1);
    forget_checkpoint(reload);
    ll_error("reload %llu of %s: %s; what served goes on serving", (unsigned long long)now->id,
             now->model, text);
}

static void succeed(struct ll_reload *reload)
{
    struct ll_setup *setup = reload->options.setup;
    struct ll_reload_report *now = &reload->now;

    now->set = reload->set;
    now->elapsed_ns = ll_now_ns() - reload->begin_ns;
    set_state(reload, LL_RELOAD_IDLE);
    snprintf(setup->directory, sizeof(setup->directory), "%s", reload->directory);
    snprintf(setup->served_name, sizeof(setup->served_name), "%s", reload->to.model.name);
    ll_stat_add(&reload->options.stats->reloads, 1);
    ll_stat_set(&reload->options.stats->weights_set, now->set);
    ll_stat_set(&reload->options.stats->load_ns, now->read_ns);
    forget_checkpoint(reload);
    ll_info(
        "reload %llu: %s serves, from set %u of weights; new requests waited for at most %.2f s, "
        "%u were cut off",
        (unsigned long long)now->id, setup->served_name, now->set, (double)now->waited_ns / 1e9,
        now->n_left);
}

static void on_switched(void *context, int result)
{
    struct ll_reload *reload = context;
    struct ll_reload_report *now = &reload->now;
    char text[400];

    now->n_left = reload->to.n_left;
    now->waited_ns = reload->to.waited_ns;
    if (result == 0) {
        succeed(reload);
        return;
    }
    if (result == LL_E_TIMEOUT)
        snprintf(
            text, sizeof(text),
            "%u requests that began before still ran after %llu s, as long as new ones may wait "
            "(--reload-wait): given up, nobody was disturbed. Give it longer, or let it cut "
            "them off (--cut)",
            now->n_left, (unsigned long long)(reload->wait_ns / LL_NS_PER_S));
    else
        snprintf(text, sizeof(text), "the runtime is stopping");
    fail(reload, result, text);
}

static void fill_model(struct ll_reload *reload)
{
    const struct ll_setup *setup = reload->options.setup;
    const struct ll_checkpoint *checkpoint =
        setup->has_checkpoint ? &reload->checkpoint : &setup->checkpoint;
    struct ll_served_model *model = &reload->to.model;

    *model = (struct ll_served_model){
        .temperature = checkpoint->temperature,
        .top_p = checkpoint->top_p,
        .min_p = checkpoint->min_p,
        .repetition_penalty = checkpoint->repetition_penalty,
        .top_k = checkpoint->top_k,
    };
    ll_setup_name(setup->config, reload->model, reload->directory, model->name,
                  sizeof(model->name));
}

/* The thread has a result. */
static void on_loaded(void *context, int fd, uint32_t events)
{
    struct ll_reload *reload = context;
    struct ll_reload_report *now = &reload->now;
    eventfd_t n;

    (void)events;
    if (eventfd_read(fd, &n) < 0)
        return;
    now->read_ns = ll_now_ns() - reload->begin_ns;
    if (reload->result < 0) {
        fail(reload, reload->result, reload->result_text);
        return;
    }
    reload->to = (struct ll_weights_switch){
        .weights = reload->set,
        .epoch = reload->options.info->weights_epoch + 1,
        .wait_ns = reload->wait_ns,
        .cuts = reload->cuts,
    };
    fill_model(reload);
    set_state(reload, LL_RELOAD_WAITING);
    ll_info("reload %llu: read in %.2f s; requests that run end on the old weights, new ones wait "
            "for that, %llu s at most",
            (unsigned long long)now->id, (double)now->read_ns / 1e9,
            (unsigned long long)(reload->wait_ns / LL_NS_PER_S));
    ll_control_switch(reload->options.control, &reload->to, on_switched, reload);
}

/* ---- orders -----------------------------------------------------------------------------------*/

/* E4, with the numbers. */
static int refuse_unreserved(const struct ll_reload *reload)
{
    const struct ll_setup *setup = reload->options.setup;
    const struct ll_stats *stats = reload->options.stats;
    uint64_t total = ll_stat_get(&stats->gpu_memory_total_bytes),
             used = ll_stat_get(&stats->gpu_memory_used_bytes);
    bool is_gpu = strcmp(setup->backend->name, "cuda") == 0;
    uint64_t free_bytes = is_gpu ? total - ll_min_u64(used, total) : ll_memory_available();
    char has[64] = "";

    if (free_bytes != 0)
        snprintf(has, sizeof(has), ", and %.2f GB are free now", (double)free_bytes / 1e9);
    return LL_ERR(LL_E_UNSUPPORTED,
                  "llringd was started without --reserve-weights, so there is no second set of "
                  "weights to read into: it would need %.2f GB%s. Start it with --reserve-weights, "
                  "or stop it and start it with the new model",
                  (double)ll_stat_get(&stats->weights_bytes) / 1e9, has);
}

static int check_order(const struct ll_reload *reload, const struct ll_reload_order *order)
{
    const struct ll_setup *setup = reload->options.setup;
    const struct ll_reload_report *now = &reload->now;
    /* Relaxed: the control thread itself begins a drain. */
    uint32_t state = atomic_load_explicit(&reload->options.info->rt_state, memory_order_relaxed);

    if (!now->is_reserved)
        return refuse_unreserved(reload);
    if (setup->backend->begin == NULL)
        return LL_ERR(LL_E_UNSUPPORTED, "the %s device has one set of weights only",
                      setup->backend->name);
    if (setup->options.has_dummy_weights)
        return LL_ERR(LL_E_UNSUPPORTED,
                      "this runtime has random weights (--load-format dummy): there is nothing to "
                      "reload");
    if (setup->config->weights_checksum[0] != 0 &&
        strcmp(setup->config->weights_checksum, "print") != 0)
        return LL_ERR(LL_E_UNSUPPORTED,
                      "--weights-checksum names the only weights that this runtime may serve");
    if (state != LL_RT_READY)
        return LL_ERR(LL_E_DRAINING, "the runtime is stopping");
    if (now->state != LL_RELOAD_IDLE)
        return LL_ERR(LL_E_BUSY, "a reload of %.300s is under way (%s): wait for its end",
                      now->model,
                      ll_reload_state_name(
                          (enum ll_reload_state)ll_stat_get(&reload->options.stats->reload_state)));
    if (order->model[0] == 0)
        return LL_ERR(LL_E_INVAL, "reload of what? give a model's directory");
    if (strlen(order->model) >= sizeof(now->model))
        return LL_ERR(-ENAMETOOLONG, "the model's path is longer than %zu bytes",
                      sizeof(now->model) - 1);
    if (order->wait_s != UINT32_MAX && order->wait_s > 3600)
        return LL_ERR(LL_E_INVAL, "--reload-wait: %u, must be 0 .. 3600 s", order->wait_s);
    return 0;
}

int ll_reload_begin(struct ll_reload *reload, const struct ll_reload_order *order)
{
    const struct ll_setup *setup = reload->options.setup;
    struct ll_reload_report *now = &reload->now;
    int rc = check_order(reload, order);

    if (rc < 0)
        return rc;
    *now = (struct ll_reload_report){.id = now->id + 1, .set = now->set, .is_reserved = true};
    snprintf(now->model, sizeof(now->model), "%s", order->model);
    snprintf(reload->model, sizeof(reload->model), "%s", order->model);
    reload->begin_ns = ll_now_ns();
    reload->wait_ns =
        (order->wait_s != UINT32_MAX ? order->wait_s : setup->config->reload_wait_s) * LL_NS_PER_S;
    reload->cuts = order->cuts;
    reload->set = 1 - now->set;
    /* The thread, which writes them later, waits for the lock below. */
    ll_stat_set(&reload->options.stats->reload_bytes_done, 0);
    ll_stat_set(&reload->options.stats->reload_bytes_total, 0);
    set_state(reload, LL_RELOAD_CHECKING);
    ll_info("reload %llu: reading %s into set %u of weights", (unsigned long long)now->id,
            now->model, reload->set);
    pthread_mutex_lock(&reload->lock);
    reload->has_order = true;
    pthread_cond_signal(&reload->wanted);
    pthread_mutex_unlock(&reload->lock);
    return 0;
}

void ll_reload_report(const struct ll_reload *reload, struct ll_reload_report *out)
{
    const struct ll_stats *stats = reload->options.stats;

    *out = reload->now;
    out->state = (enum ll_reload_state)ll_stat_get(&stats->reload_state); /* READING, too */
    out->bytes_done = ll_stat_get(&stats->reload_bytes_done);
    out->bytes_total = ll_stat_get(&stats->reload_bytes_total);
    if (out->state != LL_RELOAD_IDLE)
        out->elapsed_ns = ll_now_ns() - reload->begin_ns;
}

const char *ll_reload_state_name(enum ll_reload_state state)
{
    static const char *const names[] = {"idle", "checking", "reading", "waiting"};

    return names[state];
}

/* ---- open, close ------------------------------------------------------------------------------*/

static int start_thread(struct ll_reload *reload)
{
    reload->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (reload->done_fd < 0)
        return LL_ERRNO("eventfd");
    int rc = ll_control_watch(reload->options.control, reload->done_fd, EPOLLIN, on_loaded, reload);
    if (rc < 0)
        return rc;
    int error = pthread_create(&reload->thread, NULL, run, reload);
    if (error != 0)
        return ll_err_set_errno(error, "the thread that reads weights");
    reload->has_thread = true;
    return 0;
}

int ll_reload_open(struct ll_reload **out, const struct ll_reload_options *options)
{
    struct ll_reload *reload = calloc(1, sizeof(*reload));
    int rc = 0;

    if (reload == NULL)
        return LL_ERR(-ENOMEM, "no memory for reloads");
    reload->options = *options;
    reload->done_fd = -1;
    reload->now.is_reserved = options->setup->options.n_weights > 1;
    pthread_mutex_init(&reload->lock, NULL);
    pthread_cond_init(&reload->wanted, NULL);
    if (reload->now.is_reserved && options->setup->has_checkpoint)
        rc = ll_tokenizer_print(&reload->print, options->setup->directory);
    if (rc == 0 && reload->now.is_reserved)
        rc = start_thread(reload);
    if (rc < 0) {
        ll_reload_close(reload);
        return rc;
    }
    *out = reload;
    return 0;
}

bool ll_reload_close(struct ll_reload *reload)
{
    struct timespec until;

    if (reload == NULL)
        return true;
    if (reload->has_thread) {
        pthread_mutex_lock(&reload->lock);
        /* Relaxed: on_progress() may see it a buffer later; for the others the lock orders it. */
        atomic_store_explicit(&reload->is_over, true, memory_order_relaxed);
        pthread_cond_signal(&reload->wanted);
        pthread_mutex_unlock(&reload->lock);
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += JOIN_S;
        if (pthread_timedjoin_np(reload->thread, NULL, &until) != 0)
            return false;
    }
    if (reload->done_fd >= 0) {
        ll_control_unwatch(reload->options.control, reload->done_fd);
        close(reload->done_fd);
    }
    forget_checkpoint(reload);
    pthread_cond_destroy(&reload->wanted);
    pthread_mutex_destroy(&reload->lock);
    free(reload);
    return true;
}
