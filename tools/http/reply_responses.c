/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/reply_responses.c - the words of /v1/responses: items, and an event for each step. */
#include "tools/http/job.h"

#include "base/bits.h"

#include <stdio.h>

/* ---- events -----------------------------------------------------------------------------------*/

static void begin_event(struct job *job, const char *type)
{
    buffer_printf(&job->out, "event: %s\ndata: {\"type\":\"%s\",\"sequence_number\":%llu", type,
                  type, (unsigned long long)job->response->sequence++);
}

static void begin_item_event(struct job *job, const char *type)
{
    const struct response *response = job->response;

    begin_event(job, type);
    buffer_printf(&job->out, ",\"item_id\":\"%s\",\"output_index\":%u", response->item_id,
                  response->n_items - 1);
    if (response->open == ITEM_MESSAGE)
        buffer_text(&job->out, ",\"content_index\":0");
}

static void end_event(struct job *job)
{
    buffer_put(&job->out, "}\n\n", 3);
}

/* ---- items ------------------------------------------------------------------------------------*/

/* The one part of a message. */
static void write_part(struct buffer *out, const struct response *response)
{
    buffer_text(out, "{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[");
    buffer_put(out, response->scores.data, response->scores.n);
    buffer_text(out, "],\"text\":");
    buffer_json_string(out, response->text.data, response->text.n);
    buffer_put(out, "}", 1);
}

/* The open item; is_new: before anything of it is known. */
static void write_item(struct buffer *out, const struct job *job, const struct choice *choice,
                       const char *status, bool is_new)
{
    const struct response *response = job->response;

    buffer_printf(out, "{\"id\":\"%s\",\"type\":\"%s\",\"status\":\"%s\"", response->item_id,
                  response->open == ITEM_MESSAGE ? "message" : "function_call", status);
    if (response->open == ITEM_MESSAGE) {
        buffer_text(out, ",\"role\":\"assistant\",\"content\":[");
        if (!is_new)
            write_part(out, response);
        buffer_text(out, "]}");
        return;
    }
    const struct choice_call *call = &choice->call[response->call];
    buffer_printf(out, ",\"call_id\":\"%s\",\"name\":", call->id);
    buffer_json_string(out, call->name.data, call->name.n);
    buffer_text(out, ",\"arguments\":");
    buffer_json_string(out, call->arguments.data, is_new ? 0 : call->arguments.n);
    buffer_put(out, "}", 1);
}

/* Its last events but the item's own. */
static void tell_done(struct job *job, const struct choice *choice)
{
    const struct response *response = job->response;

    if (response->open == ITEM_MESSAGE) {
        begin_item_event(job, "response.output_text.done");
        buffer_text(&job->out, ",\"text\":");
        buffer_json_string(&job->out, response->text.data, response->text.n);
        buffer_text(&job->out, ",\"logprobs\":[");
        buffer_put(&job->out, response->scores.data, response->scores.n);
        buffer_put(&job->out, "]", 1);
        end_event(job);
        begin_item_event(job, "response.content_part.done");
        buffer_text(&job->out, ",\"part\":");
        write_part(&job->out, response);
    } else {
        const struct choice_call *call = &choice->call[response->call];
        begin_item_event(job, "response.function_call_arguments.done");
        buffer_text(&job->out, ",\"name\":");
        buffer_json_string(&job->out, call->name.data, call->name.n);
        buffer_text(&job->out, ",\"arguments\":");
        buffer_json_string(&job->out, call->arguments.data, call->arguments.n);
    }
    end_event(job);
}

static void close_item(struct job *job, const struct choice *choice, const char *status)
{
    struct response *response = job->response;

    if (response->open == ITEM_NONE)
        return;
    if (response->n_items > 1)
        buffer_put(&response->items, ",", 1);
    size_t from = response->items.n;
    write_item(&response->items, job, choice, status, false);
    if (job->params.is_stream) {
        tell_done(job, choice);
        begin_event(job, "response.output_item.done");
        buffer_printf(&job->out, ",\"output_index\":%u,\"item\":", response->n_items - 1);
        if (!response->items.has_failed)
            buffer_put(&job->out, response->items.data + from, response->items.n - from);
        end_event(job);
    }
    response->open = ITEM_NONE;
    response->text.n = response->scores.n = 0;
}

static void open_item(struct job *job, const struct choice *choice, enum response_item item,
                      uint32_t call)
{
    struct response *response = job->response;

    close_item(job, choice, "completed");
    response->open = item;
    response->call = call;
    response->n_items++;
    make_id(response->item_id, sizeof(response->item_id), item == ITEM_MESSAGE ? "msg_" : "fc_");
    if (!job->params.is_stream)
        return;
    begin_event(job, "response.output_item.added");
    buffer_printf(&job->out, ",\"output_index\":%u,\"item\":", response->n_items - 1);
    write_item(&job->out, job, choice, "in_progress", true);
    end_event(job);
    if (item != ITEM_MESSAGE)
        return;
    begin_item_event(job, "response.content_part.added");
    buffer_text(&job->out, ",\"part\":");
    write_part(&job->out, response);
    end_event(job);
}

/* ---- the response -----------------------------------------------------------------------------*/

static void write_responses_usage(struct buffer *out, const struct job *job)
{
    const struct part *part = &job->part[0];

    buffer_printf(out,
                  "{\"input_tokens\":%u,\"input_tokens_details\":{\"cached_tokens\":%u},"
                  "\"output_tokens\":%u,\"output_tokens_details\":{\"reasoning_tokens\":0},"
                  "\"total_tokens\":%u}",
                  part->prompt.n, part->n_cached, part->choice[0].n_tokens,
                  part->prompt.n + part->choice[0].n_tokens);
}

/* message: of an error; NULL: there is none. */
static void write_response(struct buffer *out, const struct job *job, const char *status,
                           const char *message)
{
    const struct response *response = job->response;
    bool is_over = strcmp(status, "in_progress") != 0;

    buffer_printf(out, "{\"id\":\"%s\",\"object\":\"response\",\"created_at\":%lld,", job->id,
                  (long long)job->created);
    buffer_printf(out, "\"status\":\"%s\",\"error\":", status);
    if (message != NULL) {
        buffer_text(out, "{\"code\":\"server_error\",\"message\":");
        buffer_json_text(out, message);
        buffer_put(out, "}", 1);
    } else {
        buffer_text(out, "null");
    }
    buffer_text(out, strcmp(status, "incomplete") == 0
                         ? ",\"incomplete_details\":{\"reason\":\"max_output_tokens\"},\"model\":"
                         : ",\"incomplete_details\":null,\"model\":");
    buffer_json_text(out, served_name_of(job));
    buffer_text(out, ",\"output\":[");
    buffer_put(out, response->items.data, response->items.n);
    buffer_printf(out, "],\"temperature\":%g,\"top_p\":%g,\"top_logprobs\":%u",
                  (double)job->params.temperature, (double)job->params.top_p, job->params.n_top);
    buffer_put(out, response->echo.data, response->echo.n);
    buffer_text(out, ",\"usage\":");
    if (is_over && message == NULL)
        write_responses_usage(out, job);
    else
        buffer_text(out, "null");
    buffer_put(out, "}", 1);
}

static void tell_response(struct job *job, const char *type, const char *status,
                          const char *message)
{
    begin_event(job, type);
    buffer_text(&job->out, ",\"response\":");
    write_response(&job->out, job, status, message);
    end_event(job);
}

static const char *status_of(const struct choice *choice)
{
    return choice->finish[0] == 'l' ? "incomplete" : "completed";
}

/* ---- the words --------------------------------------------------------------------------------*/

static void begin(struct job *job, struct choice *choice)
{
    if (choice->has_begun)
        return;
    choice->has_begun = true;
    if (!job->params.is_stream)
        return;
    tell_response(job, "response.created", "in_progress", NULL);
    tell_response(job, "response.in_progress", "in_progress", NULL);
}

static void chunk(struct job *job, struct choice *choice, bool is_last)
{
    struct response *response = job->response;
    struct buffer *scores = &choice->logprobs[0];

    begin(job, choice);
    /* A message without text stands for an answer without anything. */
    if (response->open != ITEM_MESSAGE &&
        (choice->text.n > 0 || (is_last && response->n_items == 0)))
        open_item(job, choice, ITEM_MESSAGE, 0);
    if (choice->text.n > 0) {
        buffer_put(&response->text, choice->text.data, choice->text.n);
        if (response->scores.n > 0 && scores->n > 0)
            buffer_put(&response->scores, ",", 1);
        buffer_put(&response->scores, scores->data, scores->n);
        if (job->params.is_stream) {
            begin_item_event(job, "response.output_text.delta");
            buffer_text(&job->out, ",\"delta\":");
            buffer_json_string(&job->out, choice->text.data, choice->text.n);
            buffer_text(&job->out, ",\"logprobs\":[");
            buffer_put(&job->out, scores->data, scores->n);
            buffer_put(&job->out, "]", 1);
            end_event(job);
        }
        choice->text.n = scores->n = 0;
    }
    if (is_last)
        close_item(job, choice, status_of(choice));
}

static void call(struct job *job, struct choice *choice, uint32_t index, const char *arguments,
                 size_t n)
{
    struct response *response = job->response;

    if (arguments == NULL) {
        open_item(job, choice, ITEM_CALL, index);
        choice->logprobs[0].n = 0; /* of no text */
    } else if (job->params.is_stream && response->open == ITEM_CALL) {
        begin_item_event(job, "response.function_call_arguments.delta");
        buffer_text(&job->out, ",\"delta\":");
        buffer_json_string(&job->out, arguments, n);
        end_event(job);
    }
}

static void finish(struct job *job)
{
    const char *status = status_of(&job->part[0].choice[0]);

    tell_response(job, status[0] == 'i' ? "response.incomplete" : "response.completed", status,
                  NULL);
}

static void fail(struct job *job, int status, const char *message, const char *param)
{
    (void)status, (void)param; /* have no place in it */
    tell_response(job, "response.failed", "failed", message);
}

static void whole(struct job *job, struct buffer *out)
{
    write_response(out, job, status_of(&job->part[0].choice[0]), NULL);
}

static void logprob(struct job *job, struct choice *choice)
{
    reply_chat.logprob(job, choice);
}

const struct reply_words reply_responses = {.chunk = chunk,
                                            .call = call,
                                            .finish = finish,
                                            .fail = fail,
                                            .whole = whole,
                                            .logprob = logprob,
                                            .has_items = true};
