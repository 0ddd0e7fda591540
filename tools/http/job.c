/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/http/job.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "tools/http/salt.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

static const struct reply_words *words(const struct job *job)
{
    return job->api == API_CHAT ? &reply_chat : &reply_completion;
}

void make_id(char *out, size_t n, const char *prefix)
{
    unsigned char bytes[16];
    int at = snprintf(out, n, "%s", prefix);

    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
        memset(bytes, 0, sizeof(bytes)); /* cannot fail for so few bytes once the system is up */
    for (size_t i = 0; i < sizeof(bytes) && (size_t)at + 3 <= n; i++)
        at += snprintf(out + at, n - (size_t)at, "%02x", bytes[i]);
}

/* ---- making -----------------------------------------------------------------------------------*/

static void choice_free(struct choice *choice)
{
    ll_decoder_free(choice->decoder);
    ll_stopper_free(choice->stopper);
    ll_toolcalls_free(choice->machine);
    buffer_free(&choice->text);
    for (uint32_t i = 0; i < choice->n_calls; i++) {
        buffer_free(&choice->call[i].name);
        buffer_free(&choice->call[i].arguments);
    }
    free(choice->call);
    for (size_t i = 0; i < LL_COUNT(choice->logprobs); i++)
        buffer_free(&choice->logprobs[i]);
    buffer_free(&choice->ids);
}

static void job_free(struct job *job)
{
    for (uint32_t p = 0; job->part != NULL && p < job->n_parts; p++) {
        struct part *part = &job->part[p];
        for (uint32_t k = 0; part->choice != NULL && k < job->params.n; k++)
            choice_free(&part->choice[k]);
        free(part->choice);
        free(part->prompt.ids);
        free(part->prompt_logprob);
        free(part->prompt_top);
        free(part->n_prompt_top);
    }
    free(job->part);
    free(job->tools_json);
    params_free(&job->params);
    buffer_free(&job->out);
    json_decref(job->root);
    link_release(job->link);
    free(job);
}

void job_drop(struct job *job)
{
    job_free(job);
}

static int make_choice(struct choice *choice, const struct job *job)
{
    const struct params *params = &job->params;
    int rc = 0;

    if (job->link->tokenizer == NULL)
        return 0;
    if (params->uses_tools)
        rc = ll_toolcalls_new(&choice->machine, job->link->tokenizer, job->tools_json,
                              job->n_tools_json);
    if (rc == 0)
        rc = ll_decoder_new(&choice->decoder, job->link->tokenizer,
                            params->keeps_special ? LL_DECODE_SPECIAL : 0);
    if (rc == 0 && params->n_stops > 0)
        rc = ll_stopper_new(&choice->stopper, params->stop, params->n_stop_bytes, params->n_stops);
    return rc;
}

/* The answer begins with the prompt: as it was sent, or what its ids say. */
static int echo_prompt(struct choice *choice, const struct part *part)
{
    const struct prompt *prompt = &part->prompt;
    const char *text;
    int n = 0;

    if (prompt->text != NULL) {
        buffer_put(&choice->text, prompt->text, prompt->n_text);
    } else if (choice->decoder != NULL) {
        for (uint32_t i = 0; i < prompt->n && n >= 0; i++) {
            n = ll_decoder_feed(choice->decoder, prompt->ids[i], &text);
            buffer_put(&choice->text, text, n > 0 ? (size_t)n : 0);
        }
        if (n >= 0)
            n = ll_decoder_finish(choice->decoder, &text);
        buffer_put(&choice->text, text, n > 0 ? (size_t)n : 0);
        ll_decoder_reset(choice->decoder);
    }
    choice->n_characters = count_characters(choice->text.data, choice->text.n);
    return n < 0 ? n : 0;
}

static int make_part(struct part *part, struct job *job, uint32_t index, struct api_error *error)
{
    const struct params *params = &job->params;

    part->job = job;
    part->choice = calloc(params->n, sizeof(*part->choice));
    if (part->choice == NULL)
        return api_fail(error, 503, NULL, "no memory for the request");
    for (uint32_t k = 0; k < params->n; k++) {
        struct choice *choice = &part->choice[k];
        *choice = (struct choice){
            .job = job, .index = index * params->n + k, .stop_string = -1, .stop_id = UINT32_MAX};
        int rc = make_choice(choice, job);
        if (rc == 0 && params->echo)
            rc = echo_prompt(choice, part);
        if (rc < 0)
            return api_fail_code(error, rc, NULL);
    }
    bool wants_scores = params->has_prompt_logprobs || (params->echo && params->has_logprobs);
    if (!wants_scores)
        return 0;
    size_t n = part->prompt.n;
    part->prompt_logprob = calloc(n, sizeof(*part->prompt_logprob));
    part->n_prompt_top = calloc(n, sizeof(*part->n_prompt_top));
    part->prompt_top = calloc(n * ll_max_u64(job->n_prompt_top, 1), sizeof(*part->prompt_top));
    if (part->prompt_logprob == NULL || part->n_prompt_top == NULL || part->prompt_top == NULL)
        return api_fail(error, 503, NULL, "no memory for the prompt's logprobs");
    for (size_t i = 0; i < n; i++)
        part->prompt_logprob[i] = NAN;
    return 0;
}

/* truncate_prompt_tokens, then the context's length. */
static int check_length(struct job *job, struct part *part, struct api_error *error)
{
    const struct params *params = &job->params;
    const struct ll_client_info *info = &job->link->info;
    uint64_t n_new = ll_max_u64(params->max_tokens, 1);
    struct prompt *prompt = &part->prompt;

    if (params->truncate != 0) {
        uint64_t keep = (uint64_t)params->truncate;
        if (params->truncate < 0)
            keep = info->context_max > n_new ? info->context_max - n_new : 1;
        if (keep < prompt->n) {
            if (!params->truncates_right)
                memmove(prompt->ids, prompt->ids + (prompt->n - keep), keep * sizeof(uint32_t));
            prompt->n = (uint32_t)keep;
            prompt->text = NULL; /* what is echoed is what was used */
        }
    }
    if (prompt->n + n_new > info->context_max || prompt->n > info->n_prompt_max)
        return api_fail(error, 400, job->api == API_CHAT ? "messages" : "prompt",
                        "This model's maximum context length is %u tokens. However, you requested "
                        "%llu tokens (%u in the prompt, %llu for the completion). Shorten one.",
                        info->context_max, (unsigned long long)(prompt->n + n_new), prompt->n,
                        (unsigned long long)n_new);
    return 0;
}

static int read_prompts(struct job *job, struct api_error *error)
{
    struct prompt single, *prompts = &single;
    uint32_t n = 1;
    int rc;

    if (job->api == API_CHAT)
        rc = prompt_from_chat(job->root, job->params.tools, job->link, &single, error);
    else
        rc =
            prompts_from_field(job->root, job->params.adds_special, job->link, &prompts, &n, error);
    if (rc < 0)
        return rc;
    job->part = calloc(n, sizeof(*job->part));
    if (job->part == NULL) {
        if (prompts == &single)
            free(single.ids);
        else
            prompts_free(prompts, n);
        return api_fail(error, 503, NULL, "no memory for the request");
    }
    job->n_parts = n;
    for (uint32_t i = 0; i < n; i++)
        job->part[i].prompt = prompts[i];
    if (prompts != &single)
        free(prompts);
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        rc = check_length(job, &job->part[i], error);
        if (rc == 0)
            rc = make_part(&job->part[i], job, i, error);
    }
    return rc;
}

static int dump_tools(struct job *job, struct api_error *error)
{
    if (!job->params.uses_tools)
        return 0;
    job->tools_json = json_dumps(job->params.tools, JSON_COMPACT);
    if (job->tools_json == NULL)
        return api_fail(error, 503, NULL, "no memory for the tools");
    job->n_tools_json = strlen(job->tools_json);
    return 0;
}

struct job *job_new(json_t *root, enum api api, struct link *link, uint32_t tenant,
                    struct api_error *error)
{
    struct job *job = calloc(1, sizeof(*job));

    if (job == NULL) {
        json_decref(root);
        api_fail(error, 503, NULL, "no memory for the request");
        return NULL;
    }
    job->root = root;
    job->api = api;
    job->link = link_hold(link);
    job->tenant = tenant;
    if (fields_read(root, api, link, &job->params, error) < 0)
        goto fail;
    job->n_prompt_top = job->params.n_prompt_top;
    if (job->params.echo && job->params.has_logprobs)
        job->n_prompt_top = (uint32_t)ll_max_u64(job->n_prompt_top, job->params.n_top);
    if (dump_tools(job, error) < 0 || read_prompts(job, error) < 0)
        goto fail;
    make_id(job->id, sizeof(job->id), api == API_CHAT ? "chatcmpl-" : "cmpl-");
    job->created = (int64_t)time(NULL);
    return job;
fail:
    job_free(job);
    return NULL;
}

/* ---- submitting -------------------------------------------------------------------------------*/

static void unlink_job(struct job *job)
{
    struct loop *loop = job->loop;

    if (job->prev != NULL)
        job->prev->next = job->next;
    else
        loop->jobs = job->next;
    if (job->next != NULL)
        job->next->prev = job->prev;
    if (job->is_waiting) {
        struct job **at = &loop->waiting;
        while (*at != job)
            at = &(*at)->next_waiting;
        *at = job->next_waiting;
    }
}

static bool is_over(const struct job *job)
{
    return job->n_ended == job->n_submitted && (job->conn == NULL);
}

/* J2. */
static void free_when_over(struct job *job)
{
    if (!is_over(job))
        return;
    unlink_job(job);
    job_free(job);
}

static int submit_part(struct job *job, struct part *part)
{
    const struct params *params = &job->params;
    struct ll_request request = LL_REQUEST_INIT;

    request.tag = (uint64_t)(uintptr_t)part;
    request.prompt = part->prompt.ids;
    request.n_prompt = part->prompt.n;
    /* Scoring alone (echo, max_tokens 0) runs one token, which is dropped. */
    request.max_tokens = params->has_max_tokens ? (uint32_t)ll_max_u64(params->max_tokens, 1) : 0;
    request.min_tokens = params->min_tokens;
    request.n = params->n;
    request.temperature = params->temperature;
    request.top_p = params->top_p;
    request.min_p = params->min_p;
    request.top_k = params->top_k;
    request.repetition_penalty = params->repetition_penalty;
    request.frequency_penalty = params->frequency_penalty;
    request.presence_penalty = params->presence_penalty;
    request.seed = params->seed;
    if (!params->has_seed)
        (void)!getrandom(&request.seed, sizeof(request.seed), 0);
    request.stop = params->stop_id;
    request.n_stop = params->n_stop_ids;
    /* One at least: what is then sent with each token is sure to come. */
    request.n_top = params->has_logprobs ? (uint32_t)ll_max_u64(params->n_top, 1) : 0;
    request.n_prompt_top = job->n_prompt_top;
    request.bias = params->bias;
    request.n_bias = params->n_bias;
    request.priority = params->priority;
    request.tenant = job->tenant;
    make_salt(job->loop->server->secret, job->tenant, params->cache_salt,
              params->cache_salt != NULL ? strlen(params->cache_salt) : 0, request.salt);
    if (params->ignores_eos)
        request.flags |= LL_REQUEST_IGNORE_EOS;
    if (part->prompt_logprob != NULL)
        request.flags |= LL_REQUEST_PROMPT_LOGPROBS;
    return ll_client_submit(job->loop->link->client, &request, &part->id);
}

/* Nobody waits for what is still under way. */
static void cancel(struct job *job)
{
    if (job->is_cancelled || job->loop->link != job->link)
        return;
    job->is_cancelled = true;
    for (uint32_t i = 0; i < job->n_submitted; i++) {
        if (job->part[i].has_ended)
            continue;
        ll_client_hold(job->link->client, job->part[i].id, 0); /* its end must come through */
        ll_client_cancel(job->link->client, job->part[i].id);
    }
}

/* Ends the job with an error: as its own reply, or in the stream when that has begun. */
static void job_fail(struct job *job, int status, const char *message, const char *param,
                     uint32_t retry_ms)
{
    struct conn *conn = job->conn;

    if (job->has_failed)
        return;
    job->has_failed = true;
    cancel(job);
    if (conn == NULL)
        return;
    job->conn = NULL;
    conn->job = NULL;
    ll_hist_bump(&job->loop->figures.finished_abort, 1);
    if (!job->has_begun) {
        conn_reply_error(conn, status, message, param, retry_ms);
        return;
    }
    struct buffer *out = &job->out;
    buffer_text(out, "data: ");
    error_json(out, status, message, param);
    buffer_text(out, "\n\ndata: [DONE]\n\n");
    conn_stream_put(conn, out->data, out->n);
    out->n = 0;
    conn_stream_end(conn);
}

static void wait_for_slots(struct job *job)
{
    struct job **at = &job->loop->waiting;

    if (job->is_waiting)
        return;
    while (*at != NULL)
        at = &(*at)->next_waiting;
    job->next_waiting = NULL;
    *at = job;
    job->is_waiting = true;
}

/* Submits what finds room. */
static void submit(struct job *job)
{
    while (job->n_submitted < job->n_parts && !job->has_failed) {
        int rc = submit_part(job, &job->part[job->n_submitted]);
        if (rc == LL_E_AGAIN && job->n_submitted > 0) {
            wait_for_slots(job);
            return;
        }
        if (rc < 0) {
            bool is_full = rc == LL_E_AGAIN;
            job_fail(job, is_full ? 429 : ll_error_http_status(rc),
                     is_full ? "as many requests as this server takes are under way: try again "
                               "in a second"
                             : ll_error_text(),
                     NULL, is_full || rc == LL_E_BUSY ? 1000 : 0);
            return;
        }
        job->n_submitted++;
    }
}

void job_start(struct job *job, struct loop *loop, struct conn *conn)
{
    job->loop = loop;
    job->conn = conn;
    conn->job = job;
    conn->state = CONN_BUSY;
    job->begin_ns = conn->request_ns;
    job->next = loop->jobs;
    if (loop->jobs != NULL)
        loop->jobs->prev = job;
    loop->jobs = job;
    if (loop->link == NULL || loop->link != job->link)
        job_fail(job, 503, "the runtime went away while the request was being read: try again",
                 NULL, 1000);
    else
        submit(job);
    free_when_over(job);
}

void jobs_resume(struct loop *loop)
{
    struct job *list = loop->waiting;

    loop->waiting = NULL;
    while (list != NULL) {
        struct job *job = list;
        list = job->next_waiting;
        job->is_waiting = false;
        if (job->conn != NULL && loop->link == job->link)
            submit(job);
        free_when_over(job);
    }
}

void jobs_fail_waiting(struct loop *loop, int code, const char *text)
{
    while (loop->waiting != NULL) {
        struct job *job = loop->waiting;
        loop->waiting = job->next_waiting;
        job->is_waiting = false;
        job_fail(job, ll_error_http_status(code), text, NULL, 1000);
        free_when_over(job);
    }
}

void job_abandon(struct job *job)
{
    job->conn = NULL;
    ll_hist_bump(&job->loop->figures.gone, 1);
    cancel(job);
    job->has_failed = true;
    free_when_over(job);
}

/* ---- streaming --------------------------------------------------------------------------------*/

static void hold(struct job *job, bool is_held)
{
    if (job->is_held == is_held || job->loop->link != job->link)
        return;
    job->is_held = is_held;
    for (uint32_t i = 0; i < job->n_submitted; i++)
        if (!job->part[i].has_ended)
            ll_client_hold(job->link->client, job->part[i].id, is_held);
}

void job_flush(struct job *job)
{
    if (job->out.n > 0) {
        if (!job->has_begun) {
            job->has_begun = true;
            ll_hist_bump(&job->loop->figures.streams, 1);
            conn_stream_begin(job->conn, "text/event-stream; charset=utf-8");
        }
        conn_stream_put(job->conn, job->out.data, job->out.n);
        job->out.n = 0;
    }
    size_t n_unsent = conn_unsent(job->conn);
    if (n_unsent > OUT_BYTES_HOLD)
        hold(job, true);
    else if (n_unsent < OUT_BYTES_RELEASE)
        hold(job, false);
}

uint64_t count_characters(const char *text, size_t n)
{
    uint64_t count = 0;

    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)text[i] & 0xc0) != 0x80;
    return count;
}

const char *finish_of(const struct choice *choice)
{
    if (choice->n_calls > 0 && strcmp(choice->finish, "stop") == 0)
        return "tool_calls";
    return choice->finish;
}

/* ---- tokens -----------------------------------------------------------------------------------*/

/* Text that is content, through the stop strings. */
static int take_text(struct part *part, struct choice *choice, const char *text, size_t n)
{
    const struct params *params = &part->job->params;
    const char *shown = text;
    int hit = -1, n_shown = (int)n;

    if (choice->stopper != NULL) {
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
    return ll_client_stop(part->job->link->client, part->id, (uint32_t)(choice - part->choice));
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
    make_id(call->id, sizeof(call->id), "chatcmpl-tool-");
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
        if (job->params.is_stream && (choice->text.n > 0 || !choice->has_begun))
            words(job)->chunk(job, choice, false);
        if (event.type == LL_TOOL_NAME) {
            buffer_put(&call->name, event.text, event.n_text);
            if (job->params.is_stream)
                words(job)->call(job, choice, event.index, NULL, 0);
        } else {
            buffer_put(&call->arguments, event.text, event.n_text);
            if (job->params.is_stream)
                words(job)->call(job, choice, event.index, event.text, event.n_text);
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
    if (!job->params.is_stream || choice->has_told_end)
        return;
    if (choice->finish != NULL) {
        choice->has_told_end = true;
        words(job)->chunk(job, choice, true);
    } else if (choice->text.n > 0 || choice->logprobs[0].n > 0 || job->params.returns_ids ||
               job->params.continuous_usage || !choice->has_begun) {
        words(job)->chunk(job, choice, false);
    }
}

static void settle_pending(struct job *job, struct choice *choice)
{
    if (!choice->has_pending)
        return;
    words(job)->logprob(job, choice);
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
    if (job->params.is_stream && !choice->has_told_end) {
        choice->has_told_end = true;
        words(job)->chunk(job, choice, true);
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
        if (job->params.includes_usage)
            words(job)->usage(job);
        buffer_text(&job->out, "data: [DONE]\n\n");
        job_flush(job);
        job->conn = NULL;
        conn->job = NULL;
        conn_stream_end(conn);
        return;
    }
    words(job)->whole(job, &body);
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
    free_when_over(job);
}
