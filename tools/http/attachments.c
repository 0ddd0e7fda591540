/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/attachments.c - a loop's attachments to the runtimes: tried until they are there,
 * polled, given up when their runtime is lost, and tried again. One that is lost takes along what
 * was submitted to it and nothing else. */
#include "tools/http/loop.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "tools/http/job.h"
#include "tools/http/salt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OUTPUTS_A_POLL  128
#define POLLS_A_TURN    8 /* then the sockets have their turn */
#define ARENA_BYTES     (16u << 20)
#define TRY_NS          (LL_NS_PER_S / 5)
#define TRY_SILENT_NS   (5 * LL_NS_PER_S) /* one that did not answer cost the loop its second */
#define ATTACH_ALONE_NS LL_NS_PER_S
#define ATTACH_NS       (LL_NS_PER_S / 4) /* where others are served meanwhile */

/* ---- links ------------------------------------------------------------------------------------*/

static uint64_t text_key(const struct server *server, const struct link *link)
{
    const struct ll_client_info *info = &link->info;
    const uint64_t facts[] = {
        info->n_vocab, info->bos, (uint64_t)link->chat_format,
        siphash(server->secret, info->eos, info->n_eos * sizeof(info->eos[0])),
        siphash(server->secret, info->tokenizer,
                info->tokenizer != NULL ? info->tokenizer_bytes : 0)};

    return siphash(server->secret, facts, sizeof(facts));
}

/* What the runtime says of itself becomes the latest model. false: no memory, the last one stays.
 */
static bool take_model(struct link *link, const struct ll_client_info *info)
{
    struct link_model *model = calloc(1, sizeof(*model));

    if (model == NULL)
        return false;
    *model = (struct link_model){.older = link_model(link),
                                 .weights_epoch = info->weights_epoch,
                                 .temperature = info->temperature,
                                 .top_p = info->top_p,
                                 .min_p = info->min_p,
                                 .repetition_penalty = info->repetition_penalty,
                                 .top_k = info->top_k};
    snprintf(model->name, sizeof(model->name), "%s", info->model);
    atomic_store_explicit(&link->model, model, memory_order_release);
    return true;
}

void link_refresh(struct link *link)
{
    struct ll_client_info now = {.struct_bytes = sizeof(now)};

    if (ll_client_info(link->client, &now) < 0 ||
        now.weights_epoch == link_model(link)->weights_epoch)
        return;
    if (take_model(link, &now))
        ll_info("the runtime at %s has other weights now: model %s", link->runtime->name,
                link_model(link)->name);
}

static void free_models(struct link *link)
{
    const struct link_model *model = link_model(link), *older;

    for (; model != NULL; model = older) {
        older = model->older;
        free((void *)(uintptr_t)model);
    }
}

struct link *link_open(const struct server *server, struct runtime *runtime, int *code)
{
    const struct ll_client_options options = {
        .struct_bytes = sizeof(options),
        .n_slots = server->options.n_slots,
        .arena_bytes = ARENA_BYTES,
        .socket = runtime->socket,
        .name = "llring-http",
        .timeout_ns = server->n_runtimes > 1 ? ATTACH_NS : ATTACH_ALONE_NS};
    struct link *link = calloc(1, sizeof(*link));
    int rc;

    if (link == NULL) {
        *code = LL_ERR(-ENOMEM, "no memory for an attachment");
        return NULL;
    }
    atomic_init(&link->n_refs, 1);
    link->runtime = runtime;
    link->info.struct_bytes = sizeof(link->info);
    rc = ll_client_open(&link->client, &options);
    if (rc == 0)
        rc = ll_client_info(link->client, &link->info);
    if (rc == 0 && link->info.tokenizer != NULL)
        rc = ll_tokenizer_from_image(&link->tokenizer, link->info.tokenizer,
                                     link->info.tokenizer_bytes);
    if (rc == 0 && !take_model(link, &link->info))
        rc = LL_ERR(-ENOMEM, "no memory for an attachment");
    if (rc < 0) {
        *code = rc;
        ll_tokenizer_free(link->tokenizer);
        ll_client_close(link->client);
        free(link);
        return NULL;
    }
    link->chat_format = ll_chat_format_find(link->info.chat_format);
    link->text_key = text_key(server, link);
    return link;
}

struct link *link_hold(struct link *link)
{
    /* Relaxed: whoever holds one reference may make another. */
    atomic_fetch_add_explicit(&link->n_refs, 1, memory_order_relaxed);
    return link;
}

void link_release(struct link *link)
{
    /* Acquire and release, pairs with itself in other threads: the last one to let go sees all that
     * the others did with the link. */
    if (atomic_fetch_sub_explicit(&link->n_refs, 1, memory_order_acq_rel) != 1)
        return;
    ll_tokenizer_free(link->tokenizer);
    ll_client_close(link->client);
    free_models(link);
    free(link);
}

/* ---- which of them counts ---------------------------------------------------------------------*/

static void say_down(struct attachment *at, int code, const char *text)
{
    at->code = code;
    snprintf(at->text, sizeof(at->text), "%s", text);
}

static void look_for_link(struct loop *loop)
{
    const struct attachment *best = &loop->at[0];

    for (uint32_t i = 1; i < loop->server->n_runtimes; i++) {
        const struct attachment *at = &loop->at[i];
        if ((best->link == NULL && at->link != NULL) ||
            (best->code != 0 && at->link != NULL && at->code == 0))
            best = at;
    }
    loop->link = best->link;
    loop->link_code = best->code;
    loop->link_text = best->text;
}

void attachments_init(struct loop *loop)
{
    for (uint32_t i = 0; i < loop->server->n_runtimes; i++) {
        loop->at[i].loop = loop;
        say_down(&loop->at[i], LL_E_RUNTIME_LOST, "the runtime is not attached yet");
    }
    look_for_link(loop);
}

/* ---- coming and going -------------------------------------------------------------------------*/

static void on_runtime(evutil_socket_t fd, short what, void *context)
{
    (void)fd, (void)what, (void)context; /* the turn polls */
}

static void say_attached(const struct attachment *at, bool is_again)
{
    struct loop *loop = at->loop;
    struct server *server = loop->server;
    bool is_first = !loop->has_greeted;

    /* The last thread says so: before, a connection could be one's that has no runtime yet.
     * Relaxed: only decides who greets. */
    loop->has_greeted = true;
    if (is_first && atomic_fetch_add_explicit(&server->n_greeted, 1, memory_order_relaxed) + 1 ==
                        server->options.n_threads)
        server_say_hello(server, at->link);
    else if (loop->index == 0 && (is_again || server->n_runtimes > 1))
        ll_info("attached to the runtime%s: model %s at %s", is_again ? " again" : "",
                link_model(at->link)->name, at->link->runtime->name);
}

/* V4. */
static bool fits_others(const struct attachment *at, const struct link *link)
{
    const struct loop *loop = at->loop;

    for (uint32_t i = 0; i < loop->server->n_runtimes; i++)
        if (loop->at[i].link != NULL && loop->at[i].link->text_key != link->text_key)
            return false;
    return true;
}

static void attach(struct attachment *at, struct runtime *runtime, uint64_t now_ns)
{
    struct loop *loop = at->loop;
    char text[256];
    int code = 0;
    struct link *link = link_open(loop->server, runtime, &code);

    at->next_try_ns = now_ns + (code == LL_E_TIMEOUT ? TRY_SILENT_NS : TRY_NS);
    snprintf(text, sizeof(text), "%s", link == NULL ? ll_error_text() : "");
    if (link != NULL && !fits_others(at, link)) {
        code = LL_E_INVAL;
        snprintf(
            text, sizeof(text),
            "the runtime at %s serves model %s, with another tokenizer or chat format than the "
            "others: it is not used",
            runtime->name, link_model(link)->name);
        at->next_try_ns = now_ns + TRY_SILENT_NS;
        link_release(link);
        link = NULL;
    }
    if (link == NULL) {
        if (at->code != code && loop->index == 0)
            ll_info("waiting for the runtime: %s", text);
        say_down(at, code, text);
        return;
    }
    at->link = link;
    at->code = 0;
    bool is_again = at->was_attached;
    at->was_attached = true;
    event_assign(&at->event, loop->base, ll_client_fd(link->client), EV_READ | EV_PERSIST,
                 on_runtime, at);
    event_add(&at->event, NULL);
    say_attached(at, is_again);
}

void attachments_try(struct loop *loop, uint64_t now_ns)
{
    for (uint32_t i = 0; i < loop->server->n_runtimes; i++)
        if (loop->at[i].link == NULL && now_ns >= loop->at[i].next_try_ns)
            attach(&loop->at[i], &loop->server->runtime[i], now_ns);
    look_for_link(loop);
}

/* The attachment is over; its requests have had their errors. */
static void detach(struct attachment *at, int code)
{
    struct loop *loop = at->loop;
    struct link *link = at->link;
    char text[256];

    snprintf(text, sizeof(text), "%s", ll_error_text());
    if (loop->index == 0)
        ll_warn("the runtime is lost: %s", text);
    event_del(&at->event);
    say_down(at, code, text);
    at->link = NULL;
    look_for_link(loop);
    if (loop->link == NULL)
        jobs_fail_waiting(loop, code, text);
    link_release(link);
}

void attachments_end(struct loop *loop)
{
    for (uint32_t i = 0; i < loop->server->n_runtimes; i++) {
        struct attachment *at = &loop->at[i];
        if (at->link == NULL)
            continue;
        event_del(&at->event);
        link_release(at->link);
        at->link = NULL;
    }
    loop->link = NULL;
}

/* ---- turns ------------------------------------------------------------------------------------*/

bool attachments_arm(struct loop *loop)
{
    bool is_ready = false;

    for (uint32_t i = 0; i < loop->server->n_runtimes; i++) {
        struct attachment *at = &loop->at[i];
        if (at->link == NULL)
            continue;
        int armed = ll_client_arm(at->link->client);
        bool was_usable = at->code == 0;
        if (armed < 0)
            say_down(at, armed, ll_error_text());
        else
            at->code = 0;
        if ((at->code == 0) != was_usable)
            look_for_link(loop);
        is_ready |= armed > 0;
    }
    return is_ready;
}

static bool poll_one(struct attachment *at)
{
    struct ll_output output[OUTPUTS_A_POLL];

    for (int i = 0; i < POLLS_A_TURN; i++) {
        int n = ll_client_poll(at->link->client, output, OUTPUTS_A_POLL);
        if (n < 0) {
            detach(at, n);
            return false;
        }
        for (int k = 0; k < n; k++)
            job_output(&output[k]);
        if (n < OUTPUTS_A_POLL)
            return false;
    }
    return true;
}

bool attachments_poll(struct loop *loop)
{
    bool has_more = false;

    for (uint32_t i = 0; i < loop->server->n_runtimes; i++)
        if (loop->at[i].link != NULL)
            has_more |= poll_one(&loop->at[i]);
    return has_more;
}
