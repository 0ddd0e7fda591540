/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/job_output.c - what the runtime says of a job: tokens, alternatives, ends, errors. */
#include "tools/http/job.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "tools/http/balance.h"

#include <stdlib.h>

/* ---- tokens -----------------------------------------------------------------------------------*/

/* Text that is content, through the stop strings. */
static int take_text(struct part *part, struct choice *choice, const char *text, size_t n)
{
    const struct params *params = &part->job->params;
    const char *shown = text;
    int hit = -1, n_shown = (int)n;

    /* Before min_tokens nothing ends, and no stop string begins there. */
    if (choice->stopper != NULL && choice->n_tokens > params->min_tokens) {
        n_shown = ll_stopper_feed(choice->stopper, text, n, &shown, &hit);
        if (n_shown < 0)
            return n_shown;
    }
    buffer_put(&choice->text, shown, (size_t)n_shown);
    choice->n_characters += count_characters(shown, (size_t)n_shown);
    if (hit < 0)
        return 0;
    if (params->includes_stop)
        buffer_put(&choice->text, params->stop[hit], params->n_stop_bytes[hit]);
    choice->finish = "stop";
    choice->stop_string = hit;
    return ll_client_stop(part->link->client, part->id, (uint32_t)(choice - part->choice));
}

/* Is a piece of the answer told of when it is there? */
static bool tells_pieces(const struct job *job)
{
    return job->params.is_stream || job->words->has_items;
}

static struct choice_call *call_at(struct choice *choice, uint32_t index)
{
    if (index < choice->n_calls)
        return &choice->call[index];
    if (index != choice->n_calls)
        return NULL;
    if (choice->n_calls == choice->calls_max) {
        uint32_t wanted = choice->calls_max * 2 + 4;
        struct choice_call *larger = realloc(choice->call, wanted * sizeof(*larger));
        if (larger == NULL)
            return NULL;
        choice->call = larger;
        choice->calls_max = wanted;
    }
    struct choice_call *call = &choice->call[choice->n_calls++];
    *call = (struct choice_call){0};
    make_id(call->id, sizeof(call->id),
            choice->job->api == API_RESPONSES ? "call_" : "chatcmpl-tool-");
    return call;
}

/* What the tool-call machine found in the tokens so far. */
static int take_events(struct part *part, struct choice *choice)
{
    struct job *job = part->job;
    struct ll_toolcalls_event event;

    while (choice->finish == NULL && ll_toolcalls_next(choice->machine, &event) > 0) {
        if (event.type == LL_TOOL_CONTENT) {
            int rc = take_text(part, choice, event.text, event.n_text);
            if (rc < 0)
                return rc;
            continue;
        }
        if (event.index > 0 && job->params.one_call)
            continue;
        struct choice_call *call = call_at(choice, event.index);
        if (call == NULL)
            return LL_ERR(-ENOMEM, "no memory for a tool call");
        if (tells_pieces(job) && (choice->text.n > 0 || !choice->has_begun))
            job->words->chunk(job, choice, false);
        if (event.type == LL_TOOL_NAME) {
            buffer_put(&call->name, event.text, event.n_text);
            if (tells_pieces(job))
                job->words->call(job, choice, event.index, NULL, 0);
        } else {
            buffer_put(&call->arguments, event.text, event.n_text);
            if (tells_pieces(job))
                job->words->call(job, choice, event.index, event.text, event.n_text);
        }
    }
    return 0;
}

static bool is_among(const uint32_t *list, uint32_t n, uint32_t id)
{
    for (uint32_t i = 0; i < n; i++)
        if (list[i] == id)
            return true;
    return false;
}

/* Will the runtime end the choice with this id? Its text is then no part of the answer. */
static bool ends_choice(const struct job *job, const struct choice *choice, uint32_t id)
{
    const struct ll_client_info *info = &job->link->info;
    const struct params *params = &job->params;

    if (choice->n_tokens <= params->min_tokens)
        return false; /* n_tokens counts this one; an end before min_tokens does not happen */
    return (!params->ignores_eos && is_among(info->eos, info->n_eos, id)) ||
           is_among(params->stop_id, params->n_stop_ids, id);
}

/* The token is complete with its alternatives: its piece of the stream goes out. */
static void settle(struct job *job, struct choice *choice)
{
    choice->has_pending = false;
    if (!tells_pieces(job) || choice->has_told_end)
        return;
    if (choice->finish != NULL) {
        choice->has_told_end = true;
        job->words->chunk(job, choice, true);
    } else if (choice->text.n > 0 || choice->logprobs[0].n > 0 || job->params.returns_ids ||
               job->params.continuous_usage || !choice->has_begun) {
        job->words->chunk(job, choice, false);
    }
}

static void settle_pending(struct job *job, struct choice *choice)
{
    if (!choice->has_pending)
        return;
    job->words->logprob(job, choice);
    settle(job, choice);
}

static void note_time(struct job *job, struct choice *choice, uint64_t now_ns)
{
    struct loop_figures *figures = &job->loop->figures;

    if (!job->has_first) {
        job->has_first = true;
        ll_hist_add(&figures->ttft_ns, now_ns > job->begin_ns ? now_ns - job->begin_ns : 0);
    }
    if (choice->last_ns != 0 && now_ns > choice->last_ns)
        ll_hist_add(&figures->gap_ns, now_ns - choice->last_ns);
    choice->last_ns = now_ns;
}

static int take_token(struct part *part, struct choice *choice, const struct ll_output *output)
{
    struct job *job = part->job;
    const struct params *params = &job->params;
    uint32_t id = output->u.token.id;
    const char *text;
    int rc = 0;

    if (choice->finish != NULL || (params->echo && params->max_tokens == 0))
        return 0;
    choice->n_tokens++;
    note_time(job, choice, output->t_ns);
    if (params->returns_ids)
        buffer_printf(&choice->ids, "%s%u", choice->ids.n > 0 ? "," : "", id);
    choice->has_pending = params->has_logprobs;
    choice->pending_id = id;
    choice->pending_offset = choice->n_characters;
    choice->pending_logprob = output->u.token.logprob;
    choice->n_top = 0;
    bool is_end = ends_choice(job, choice, id);
    bool is_shown =
        !is_end || (params->includes_stop && is_among(params->stop_id, params->n_stop_ids, id));
    if (is_shown && choice->machine != NULL) {
        rc = ll_toolcalls_feed(choice->machine, id);
        if (rc >= 0)
            rc = take_events(part, choice);
    } else if (is_shown && choice->decoder != NULL) {
        int n = ll_decoder_feed(choice->decoder, id, &text);
        if (n == LL_E_INVAL)
            n = 0; /* ids past the vocabulary exist in padded models: they have no text */
        rc = n > 0 ? take_text(part, choice, text, (size_t)n) : n;
    }
    if (rc >= 0 && !choice->has_pending && !is_end)
        settle(job, choice);
    return rc < 0 ? rc : 0;
}

static void take_top(struct job *job, struct choice *choice, const struct ll_output *output)
{
    if (!choice->has_pending)
        return;
    for (uint32_t i = 0; i < output->n && choice->n_top < TOP_MAX; i++)
        choice->top[choice->n_top++] = output->u.top[i];
    if (output->last)
        settle_pending(job, choice);
}

/* ---- ends -------------------------------------------------------------------------------------*/

static int close_choice(struct part *part, struct choice *choice, uint32_t reason, uint32_t stop_id)
{
    struct job *job = part->job;
    const char *text;
    int n = 0;

    if (choice->has_ended)
        return 0;
    choice->has_ended = true;
    settle_pending(job, choice);
    if (choice->finish == NULL && choice->machine != NULL) {
        n = ll_toolcalls_finish(choice->machine);
        if (n >= 0)
            n = take_events(part, choice);
    } else if (choice->finish == NULL && choice->decoder != NULL) {
        n = ll_decoder_finish(choice->decoder, &text);
        if (n > 0)
            n = take_text(part, choice, text, (size_t)n);
    }
    if (n >= 0 && choice->finish == NULL && choice->stopper != NULL) {
        n = ll_stopper_finish(choice->stopper, &text);
        if (n > 0)
            buffer_put(&choice->text, text, (size_t)n);
    }
    if (choice->finish == NULL) {
        choice->finish = reason == LL_FINISH_LENGTH ? "length" : "stop";
        if (reason == LL_FINISH_STOP &&
            is_among(job->params.stop_id, job->params.n_stop_ids, stop_id))
            choice->stop_id = stop_id;
    }
    if (tells_pieces(job) && !choice->has_told_end) {
        choice->has_told_end = true;
        job->words->chunk(job, choice, true);
    }
    struct loop_figures *figures = &job->loop->figures;
    ll_hist_bump(choice->n_calls > 0        ? &figures->finished_tools
                 : choice->finish[0] == 'l' ? &figures->finished_length
                                            : &figures->finished_stop,
                 1);
    ll_hist_bump(&figures->output_tokens, choice->n_tokens);
    ll_hist_add(&figures->output_length, choice->n_tokens);
    return n < 0 ? n : 0;
}

static bool has_lost_memory(const struct job *job)
{
    for (uint32_t p = 0; p < job->n_parts; p++)
        for (uint32_t k = 0; k < job->params.n; k++) {
            const struct choice *choice = &job->part[p].choice[k];
            if (choice->text.has_failed || choice->logprobs[0].has_failed ||
                choice->logprobs[2].has_failed || choice->ids.has_failed)
                return true;
        }
    const struct response *response = job->response;
    if (response != NULL &&
        (response->text.has_failed || response->scores.has_failed || response->items.has_failed))
        return true;
    return job->out.has_failed;
}

/* All parts have ended well. */
static void complete(struct job *job)
{
    struct conn *conn = job->conn;
    struct buffer body = {0};

    if (has_lost_memory(job)) {
        job_fail(job, 503, "no memory for the answer", NULL, 1000);
        return;
    }
    ll_hist_add(&job->loop->figures.total_ns, ll_now_ns() - job->begin_ns);
    if (job->params.is_stream) {
        job->words->finish(job);
        job_flush(job);
        job->conn = NULL;
        conn->job = NULL;
        conn_stream_end(conn);
        return;
    }
    job->words->whole(job, &body);
    job->conn = NULL;
    conn->job = NULL;
    if (body.has_failed)
        conn_reply_error(conn, 503, "no memory for the answer", NULL, 1000);
    else
        conn_reply(conn, 200, "application/json", body.data, body.n, NULL);
    buffer_free(&body);
}

static int take_finish(struct part *part, const struct ll_output *output)
{
    struct job *job = part->job;
    struct loop_figures *figures = &job->loop->figures;
    int rc = 0;

    part->n_cached = output->u.finish.n_cached;
    ll_hist_bump(&figures->prompt_tokens, part->prompt.n);
    ll_hist_bump(&figures->cached_tokens, part->n_cached);
    ll_hist_add(&figures->prompt_length, part->prompt.n);
    ll_hist_add(&figures->n_choices, job->params.n);
    if (job->params.max_tokens > 0)
        ll_hist_add(&figures->max_tokens, job->params.max_tokens);
    uint64_t first_ns = output->u.finish.ttft_ns, total_ns = output->u.finish.total_ns;
    uint64_t n_later = output->u.finish.n_out / job->params.n;
    ll_hist_add(&figures->prefill_ns, first_ns);
    ll_hist_add(&figures->decode_ns, total_ns - ll_min_u64(first_ns, total_ns));
    if (n_later > 1)
        ll_hist_add(&figures->per_token_ns,
                    (total_ns - ll_min_u64(first_ns, total_ns)) / (n_later - 1));
    for (uint32_t k = 0; k < job->params.n && rc == 0; k++)
        rc =
            close_choice(part, &part->choice[k], output->u.finish.reason, output->u.finish.stop_id);
    return rc;
}

static void take_prompt(struct part *part, const struct ll_output *output)
{
    uint32_t n_top = part->job->n_prompt_top;

    if (part->prompt_logprob == NULL || output->index >= part->prompt.n)
        return;
    if (output->type == LL_OUTPUT_PROMPT) {
        for (uint32_t i = 0; i < output->n && output->index + i < part->prompt.n; i++)
            part->prompt_logprob[output->index + i] = output->u.prompt_logprob[i];
        return;
    }
    uint8_t *n = &part->n_prompt_top[output->index];
    for (uint32_t i = 0; i < output->n && *n < n_top; i++, (*n)++)
        part->prompt_top[(size_t)output->index * n_top + *n] = output->u.top[i];
}

static void take_error(struct part *part, const struct ll_output *output)
{
    struct job *job = part->job;
    int code = output->u.error.code;
    uint32_t retry_ms = output->u.error.retry_ms;
    int status = ll_error_http_status(code);

    if ((status == 429 || status == 503) && retry_ms == 0)
        retry_ms = 1000;
    job_fail(job, status, output->u.error.text, NULL, retry_ms);
}

void job_output(const struct ll_output *output)
{
    struct part *part = (struct part *)(uintptr_t)output->tag;
    struct job *job = part->job;
    struct choice *choice = output->choice < job->params.n ? &part->choice[output->choice] : NULL;
    int rc = 0;

    if (output->type == LL_OUTPUT_FINISH || output->type == LL_OUTPUT_ERROR) {
        part->has_ended = true;
        balance_ended(part->link);
        job->n_ended++;
    }
    if (job->conn != NULL && !job->has_failed) {
        switch (output->type) {
        case LL_OUTPUT_TOKEN:
            rc = choice != NULL ? take_token(part, choice, output) : 0;
            break;
        case LL_OUTPUT_TOP:
            if (choice != NULL)
                take_top(job, choice, output);
            break;
        case LL_OUTPUT_PROMPT:
        case LL_OUTPUT_PROMPT_TOP:
            take_prompt(part, output);
            break;
        case LL_OUTPUT_CHOICE:
            if (choice != NULL)
                rc = close_choice(part, choice, output->u.choice_end.reason,
                                  output->u.choice_end.stop_id);
            break;
        case LL_OUTPUT_FINISH:
            rc = take_finish(part, output);
            break;
        case LL_OUTPUT_ERROR:
            take_error(part, output);
            break;
        default:
            break; /* a newer runtime's */
        }
        if (rc < 0)
            job_fail(job, 500, ll_error_text(), NULL, 0);
        else if (!job->has_failed && job->n_ended == job->n_parts)
            complete(job);
        if (job->conn != NULL)
            conn_touch(job->conn);
    }
    job_free_when_over(job);
}
