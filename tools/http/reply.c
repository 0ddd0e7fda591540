/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/reply.c - words that both APIs use: usage, tokens as text, prompt logprobs, errors. */
#include "tools/http/job.h"

#include "base/bits.h"

#include <math.h>
#include <stdio.h>
#include <sys/random.h>

void make_id(char *out, size_t n, const char *prefix)
{
    unsigned char bytes[16];
    int at = snprintf(out, n, "%s", prefix);

    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
        memset(bytes, 0, sizeof(bytes)); /* cannot fail for so few bytes once the system is up */
    for (size_t i = 0; i < sizeof(bytes) && (size_t)at + 3 <= n; i++)
        at += snprintf(out + at, n - (size_t)at, "%02x", bytes[i]);
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

static const char *error_type(int status)
{
    switch (status) {
    case 401:
        return "AuthenticationError";
    case 403:
        return "PermissionDeniedError";
    case 404:
        return "NotFoundError";
    case 429:
        return "RateLimitError";
    case 500:
        return "InternalServerError";
    case 501:
        return "NotImplementedError";
    case 503:
        return "ServiceUnavailableError";
    default:
        return "BadRequestError";
    }
}

void error_json(struct buffer *out, int status, const char *message, const char *param)
{
    buffer_text(out, "{\"error\":{\"message\":");
    buffer_json_text(out, message);
    buffer_printf(out, ",\"type\":\"%s\",\"param\":", error_type(status));
    if (param != NULL && param[0] != '\0')
        buffer_json_text(out, param);
    else
        buffer_text(out, "null");
    buffer_printf(out, ",\"code\":%d}}", status);
}

const char *served_name_of(const struct job *job)
{
    const struct option_texts *names = &job->loop->server->options.served_names;

    return names->n > 0 ? names->text[0] : job->model->name;
}

void write_head(struct buffer *out, const struct job *job, const char *object)
{
    buffer_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", job->id,
                  object, (long long)job->created);
    buffer_json_text(out, served_name_of(job));
}

void begin_chunk(struct job *job, const char *object)
{
    struct buffer *head = &job->head;

    if (head->n == 0) {
        buffer_text(head, "data: ");
        write_head(head, job, object);
        buffer_text(head, ",\"choices\":[");
        job->out.has_failed = job->out.has_failed || head->has_failed;
    }
    buffer_put(&job->out, head->data, head->n);
}

void end_chunk(struct job *job)
{
    buffer_put(&job->out, "]", 1);
    if (job->params.continuous_usage) {
        buffer_put(&job->out, ",", 1);
        write_usage(&job->out, job);
    } else if (job->params.includes_usage) {
        buffer_text(&job->out, ",\"usage\":null");
    }
    buffer_put(&job->out, "}\n\n", 3);
}

void finish_stream(struct job *job, const char *object)
{
    if (job->params.includes_usage) { /* a chunk without choices: that is how clients know it */
        begin_chunk(job, object);
        buffer_text(&job->out, "],");
        write_usage(&job->out, job);
        buffer_text(&job->out, "}\n\n");
    }
    buffer_text(&job->out, "data: [DONE]\n\n");
}

void fail_stream(struct job *job, int status, const char *message, const char *param)
{
    buffer_text(&job->out, "data: ");
    error_json(&job->out, status, message, param);
    buffer_text(&job->out, "\n\ndata: [DONE]\n\n");
}

void write_usage(struct buffer *out, const struct job *job)
{
    uint64_t n_prompt = 0, n_cached = 0, n_out = 0;

    for (uint32_t p = 0; p < job->n_parts; p++) {
        const struct part *part = &job->part[p];
        n_prompt += part->prompt.n;
        n_cached += part->n_cached;
        for (uint32_t k = 0; k < job->params.n; k++)
            n_out += part->choice[k].n_tokens;
    }
    buffer_printf(out,
                  "\"usage\":{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,"
                  "\"total_tokens\":%llu,\"prompt_tokens_details\":{\"cached_tokens\":%llu}}",
                  (unsigned long long)n_prompt, (unsigned long long)n_out,
                  (unsigned long long)(n_prompt + n_out), (unsigned long long)n_cached);
}

void write_token(struct buffer *out, const struct job *job, uint32_t id)
{
    size_t n = 0;
    const char *bytes =
        job->link->tokenizer != NULL ? ll_tokenizer_bytes(job->link->tokenizer, id, &n) : NULL;

    if (job->params.tokens_as_ids || job->link->tokenizer == NULL)
        buffer_printf(out, "\"token_id:%u\"", id);
    else
        buffer_json_string(out, bytes != NULL ? bytes : "", n);
}

void write_token_bytes(struct buffer *out, const struct job *job, uint32_t id)
{
    size_t n = 0;
    const char *bytes =
        job->link->tokenizer != NULL ? ll_tokenizer_bytes(job->link->tokenizer, id, &n) : NULL;

    if (bytes == NULL) {
        buffer_text(out, "null");
        return;
    }
    buffer_put(out, "[", 1);
    for (size_t i = 0; i < n; i++)
        buffer_printf(out, "%s%u", i > 0 ? "," : "", (unsigned char)bytes[i]);
    buffer_put(out, "]", 1);
}

void write_stop_reason(struct buffer *out, const struct choice *choice)
{
    const struct params *params = &choice->job->params;

    buffer_text(out, ",\"stop_reason\":");
    if (choice->stop_string >= 0)
        buffer_json_string(out, params->stop[choice->stop_string],
                           params->n_stop_bytes[choice->stop_string]);
    else if (choice->stop_id != UINT32_MAX)
        buffer_printf(out, "%u", choice->stop_id);
    else
        buffer_text(out, "null");
}

/* "id": {"logprob", "rank", "decoded_token"}; rank 0: not among the likeliest that were asked for.
 */
static void write_prompt_entry(struct buffer *out, const struct part *part, uint32_t id,
                               float logprob, uint32_t rank)
{
    buffer_printf(out, "\"%u\":{\"logprob\":", id);
    buffer_json_logprob(out, logprob);
    if (rank > 0)
        buffer_printf(out, ",\"rank\":%u", rank);
    else
        buffer_text(out, ",\"rank\":null");
    buffer_text(out, ",\"decoded_token\":");
    write_token(out, part->job, id);
    buffer_put(out, "}", 1);
}

void write_prompt_logprobs(struct buffer *out, const struct part *part)
{
    uint32_t stride = part->job->n_prompt_top;

    buffer_text(out, ",\"prompt_logprobs\":[null");
    for (uint32_t i = 1; i < part->prompt.n; i++) {
        const struct ll_top_pair *top = part->prompt_top + (size_t)i * stride;
        uint32_t n_top =
            (uint32_t)ll_min_u64(part->n_prompt_top[i], part->job->params.n_prompt_top);
        uint32_t id = part->prompt.ids[i], rank = 0;
        for (uint32_t k = 0; k < n_top; k++)
            if (top[k].id == id)
                rank = k + 1;
        buffer_text(out, ",{");
        write_prompt_entry(out, part, id, part->prompt_logprob[i], rank);
        for (uint32_t k = 0; k < n_top; k++) {
            if (top[k].id == id)
                continue;
            buffer_put(out, ",", 1);
            write_prompt_entry(out, part, top[k].id, top[k].logprob, k + 1);
        }
        buffer_put(out, "}", 1);
    }
    buffer_put(out, "]", 1);
}
