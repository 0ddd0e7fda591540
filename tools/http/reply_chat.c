/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/reply_chat.c - the words of /v1/chat/completions. */
#include "tools/http/job.h"

#include "base/bits.h"

static void logprob(struct job *job, struct choice *choice)
{
    struct buffer *out = &choice->logprobs[0];
    uint32_t n_top = (uint32_t)ll_min_u64(choice->n_top, job->params.n_top);

    if (out->n > 0)
        buffer_put(out, ",", 1);
    buffer_text(out, "{\"token\":");
    write_token(out, job, choice->pending_id);
    buffer_text(out, ",\"logprob\":");
    buffer_json_logprob(out, choice->pending_logprob);
    buffer_text(out, ",\"bytes\":");
    write_token_bytes(out, job, choice->pending_id);
    buffer_text(out, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i < n_top; i++) {
        buffer_text(out, i > 0 ? ",{\"token\":" : "{\"token\":");
        write_token(out, job, choice->top[i].id);
        buffer_text(out, ",\"logprob\":");
        buffer_json_logprob(out, choice->top[i].logprob);
        buffer_text(out, ",\"bytes\":");
        write_token_bytes(out, job, choice->top[i].id);
        buffer_put(out, "}", 1);
    }
    buffer_text(out, "]}");
}

/* Up to the delta's first key. */
static void begin_delta(struct job *job, const struct choice *choice)
{
    begin_chunk(job, "chat.completion.chunk");
    buffer_put(&job->out, "{\"index\":", 9);
    buffer_u64(&job->out, choice->index);
    buffer_put(&job->out, ",\"delta\":{", 10);
}

/* Behind the choice's last key. */
static void end_choice(struct job *job)
{
    buffer_put(&job->out, "}", 1);
    end_chunk(job);
}

static void write_logprobs(struct buffer *out, struct choice *choice)
{
    if (choice->logprobs[0].n == 0) {
        buffer_text(out, ",\"logprobs\":null");
        return;
    }
    buffer_text(out, ",\"logprobs\":{\"content\":[");
    buffer_put(out, choice->logprobs[0].data, choice->logprobs[0].n);
    buffer_text(out, "],\"refusal\":null}");
    choice->logprobs[0].n = 0;
}

static void write_ids(struct buffer *out, struct choice *choice)
{
    if (!choice->job->params.returns_ids)
        return;
    buffer_text(out, ",\"token_ids\":[");
    buffer_put(out, choice->ids.data, choice->ids.n);
    buffer_put(out, "]", 1);
    choice->ids.n = 0;
}

static void chunk(struct job *job, struct choice *choice, bool is_last)
{
    struct buffer *out = &job->out;

    if (!choice->has_begun) {
        choice->has_begun = true;
        begin_delta(job, choice);
        buffer_text(out, "\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                         "\"finish_reason\":null");
        end_choice(job);
    }
    if (!is_last && choice->text.n == 0 && choice->logprobs[0].n == 0 && choice->ids.n == 0)
        return;
    begin_delta(job, choice);
    if (choice->text.n > 0) {
        buffer_text(out, "\"content\":");
        buffer_json_string(out, choice->text.data, choice->text.n);
        choice->text.n = 0;
    }
    buffer_put(out, "}", 1);
    write_logprobs(out, choice);
    if (is_last) {
        buffer_printf(out, ",\"finish_reason\":\"%s\"", finish_of(choice));
        write_stop_reason(out, choice);
    } else {
        buffer_text(out, ",\"finish_reason\":null");
    }
    write_ids(out, choice);
    end_choice(job);
}

static void call(struct job *job, struct choice *choice, uint32_t index, const char *arguments,
                 size_t n)
{
    struct buffer *out = &job->out;
    const struct choice_call *of = &choice->call[index];

    begin_delta(job, choice);
    buffer_printf(out, "\"tool_calls\":[{\"index\":%u,", index);
    if (arguments == NULL) {
        buffer_printf(out, "\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":", of->id);
        buffer_json_string(out, of->name.data, of->name.n);
        buffer_text(out, ",\"arguments\":\"\"}");
    } else {
        buffer_text(out, "\"function\":{\"arguments\":");
        buffer_json_string(out, arguments, n);
        buffer_put(out, "}", 1);
    }
    buffer_text(out, "}]},\"logprobs\":null,\"finish_reason\":null");
    end_choice(job);
}

static void finish(struct job *job)
{
    finish_stream(job, "chat.completion.chunk");
}

static void write_message(struct buffer *out, const struct choice *choice)
{
    buffer_text(out, "\"message\":{\"role\":\"assistant\",\"content\":");
    if (choice->n_calls > 0 && choice->text.n == 0)
        buffer_text(out, "null");
    else
        buffer_json_string(out, choice->text.data, choice->text.n);
    buffer_text(out, ",\"refusal\":null");
    for (uint32_t i = 0; i < choice->n_calls; i++) {
        const struct choice_call *of = &choice->call[i];
        buffer_printf(out, "%s{\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":",
                      i == 0 ? ",\"tool_calls\":[" : ",", of->id);
        buffer_json_string(out, of->name.data, of->name.n);
        buffer_text(out, ",\"arguments\":");
        buffer_json_string(out, of->arguments.data, of->arguments.n);
        buffer_text(out, i + 1 == choice->n_calls ? "}}]" : "}}");
    }
    buffer_put(out, "}", 1);
}

static void whole(struct job *job, struct buffer *out)
{
    struct part *part = &job->part[0];

    write_head(out, job, "chat.completion");
    buffer_text(out, ",\"choices\":[");
    for (uint32_t k = 0; k < job->params.n; k++) {
        struct choice *choice = &part->choice[k];
        buffer_printf(out, "%s{\"index\":%u,", k > 0 ? "," : "", choice->index);
        write_message(out, choice);
        write_logprobs(out, choice);
        buffer_printf(out, ",\"finish_reason\":\"%s\"", finish_of(choice));
        write_stop_reason(out, choice);
        write_ids(out, choice);
        buffer_put(out, "}", 1);
    }
    buffer_text(out, "],");
    write_usage(out, job);
    if (job->params.has_prompt_logprobs)
        write_prompt_logprobs(out, part);
    buffer_text(out, ",\"system_fingerprint\":null}");
}

const struct reply_words reply_chat = {.chunk = chunk,
                                       .call = call,
                                       .finish = finish,
                                       .fail = fail_stream,
                                       .whole = whole,
                                       .logprob = logprob};
