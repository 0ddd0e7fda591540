/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/engine_switch.c - another set of weights takes over, between two steps (engine.h). */
#include "runtime/engine_impl.h"

#include "base/assert.h"
#include "ll/client.h"

#include <string.h>

static void answer(struct ll_engine *engine, int code)
{
    struct ll_weights_switch *to = engine->switching;

    to->waited_ns = ll_engine_clock_ns(engine) - engine->switch_since_ns;
    engine->switch_result = code;
    engine->is_switch_over = true;
    engine->is_dirty = true;
}

/* INFO's part that changes, under its sequence lock (wire.h). */
static void publish_model(struct ll_info_region *info, uint64_t weights_epoch,
                          const struct ll_served_model *model)
{
    /* Relaxed: this thread alone writes it. */
    uint32_t seq = atomic_load_explicit(&info->model_seq, memory_order_relaxed);

    atomic_store_explicit(&info->model_seq, seq + 1, memory_order_relaxed);
    /* Release fence, pairs with the acquire fence of readers (client/info.c): who sees a word of
     * the new model sees the odd count, too. */
    atomic_thread_fence(memory_order_release);
    info->weights_epoch = weights_epoch;
    memcpy(info->name, model->name, sizeof(info->name));
    info->temperature = model->temperature;
    info->top_p = model->top_p;
    info->min_p = model->min_p;
    info->repetition_penalty = model->repetition_penalty;
    info->top_k = model->top_k;
    /* Release, pairs with the readers' first, acquire, look: the model before the even count. */
    atomic_store_explicit(&info->model_seq, seq + 2, memory_order_release);
}

void ll_engine_begin_switch(struct ll_engine *engine, struct ll_weights_switch *to)
{
    LL_ASSERT(engine->switching == NULL);
    LL_ASSERT(to->epoch > engine->scheduler.weights_epoch);
    engine->switching = to;
    engine->switch_since_ns = engine->now_ns; /* of this turn, as go_on_switching()'s */
    engine->is_switch_over = false;
    to->n_left = 0;
    if (engine->is_draining)
        answer(engine, LL_E_DRAINING);
    else
        ll_scheduler_withhold(&engine->scheduler);
}

void ll_engine_give_up_switch(struct ll_engine *engine, int code)
{
    if (engine->switching == NULL || engine->is_switch_over)
        return;
    ll_scheduler_resume(&engine->scheduler);
    answer(engine, code);
}

static void make_switch(struct ll_engine *engine)
{
    struct ll_weights_switch *to = engine->switching;

    ll_scheduler_switch(&engine->scheduler, to->epoch);
    engine->weights = to->weights;
    publish_model(engine->options.info, to->epoch, &to->model);
    answer(engine, 0);
}

/* Has all that began ended, the steps in flight too? */
static bool is_drained(const struct ll_engine *engine)
{
    return ll_engine_in_flight(engine) == 0 && engine->pool.list[LL_SEQ_RUNNING].n == 0 &&
           ll_scheduler_n_begun(&engine->scheduler) == 0;
}

/* wait_ns is over. Where nothing is left but steps of what has just ended, these are waited for. */
static void end_waiting(struct ll_engine *engine)
{
    struct ll_weights_switch *to = engine->switching;

    to->n_left = ll_scheduler_n_begun(&engine->scheduler);
    if (to->n_left == 0)
        return;
    engine->is_dirty = true;
    if (to->cuts)
        ll_scheduler_cut(&engine->scheduler, LL_E_DRAINING);
    else
        ll_engine_give_up_switch(engine, LL_E_TIMEOUT);
}

void ll_engine_go_on_switching(struct ll_engine *engine, uint64_t now_ns)
{
    struct ll_weights_switch *to = engine->switching;

    if (!engine->is_switch_over && is_drained(engine))
        make_switch(engine);
    else if (!engine->is_switch_over && to->n_left == 0 &&
             now_ns - engine->switch_since_ns >= to->wait_ns)
        end_waiting(engine);
    const struct ll_mail mail = {.type = LL_MAIL_SWITCHED,
                                 .attachment = to,
                                 .value = (uint64_t)(int64_t)engine->switch_result};
    if (engine->is_switch_over && ll_mailbox_send(engine->options.to_control, &mail))
        engine->switching = NULL;
}
