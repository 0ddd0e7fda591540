/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/reply_completion.c - the words of /v1/completions. Evaluation harnesses compare
 * logprobs for equality: the chosen token's number and the same token's among the alternatives are
 * written from floats by one function. */
#include "tools/http/job.h"

#include "base/bits.h"

#include <math.h>

enum { TOKENS, LOGPROBS, TOPS, OFFSETS };

/* One key of a top_logprobs object, unless an equal one is there: different ids may have the same
 * text. from[k], n[k]: the keys so far in out. */
struct keys {
    size_t from[TOP_MAX + 1], n_bytes[TOP_MAX + 1];
    uint32_t n;
};
static void write_top(struct buffer *out, const struct job *job, struct keys *keys, uint32_t id,
                      float value)
{
    size_t before = out->n;

    if (keys->n > 0)
        buffer_put(out, ",", 1);
    size_t from = out->n;
    write_token(out, job, id);
    size_t n_bytes = out->n - from;
    for (uint32_t k = 0; k < keys->n; k++)
        if (keys->n_bytes[k] == n_bytes &&
            memcmp(out->data + keys->from[k], out->data + from, n_bytes) == 0) {
            out->n = before;
            return;
        }
    keys->from[keys->n] = from;
    keys->n_bytes[keys->n++] = n_bytes;
    buffer_put(out, ":", 1);
    buffer_json_logprob(out, value);
}

/* One token into the four arrays. has_value false: the first of a prompt, which has no logprob. */
static void add_token(struct job *job, struct buffer array[4], uint32_t id, bool has_value,
                      float value, const struct ll_top_pair *top, uint32_t n_top, uint64_t offset)
{
    struct keys keys = {.n = 0};

    for (int i = 0; array[TOKENS].n > 0 && i < 4; i++)
        if (i != TOKENS)
            buffer_put(&array[i], ",", 1);
    if (array[TOKENS].n > 0)
        buffer_put(&array[TOKENS], ",", 1);
    write_token(&array[TOKENS], job, id);
    buffer_printf(&array[OFFSETS], "%llu", (unsigned long long)offset);
    if (!has_value) {
        buffer_text(&array[LOGPROBS], "null");
        buffer_text(&array[TOPS], "null");
        return;
    }
    buffer_json_logprob(&array[LOGPROBS], value);
    buffer_put(&array[TOPS], "{", 1);
    bool is_among = false;
    for (uint32_t i = 0; i < n_top; i++)
        is_among = is_among || top[i].id == id;
    if (!is_among) /* it is always there; first, so that an equal text does not push it out */
        write_top(&array[TOPS], job, &keys, id, value);
    for (uint32_t i = 0; i < n_top; i++)
        write_top(&array[TOPS], job, &keys, top[i].id, top[i].logprob);
    buffer_put(&array[TOPS], "}", 1);
}

static void logprob(struct job *job, struct choice *choice)
{
    add_token(job, choice->logprobs, choice->pending_id, true, choice->pending_logprob, choice->top,
              (uint32_t)ll_min_u64(choice->n_top, job->params.n_top), choice->pending_offset);
}

static void write_arrays(struct buffer *out, struct choice *choice, struct buffer prompt[4])
{
    static const char *const names[] = {"{\"tokens\":[", "],\"token_logprobs\":[",
                                        "],\"top_logprobs\":[", "],\"text_offset\":["};

    buffer_text(out, ",\"logprobs\":");
    if (!choice->job->params.has_logprobs) {
        buffer_text(out, "null");
        return;
    }
    for (int i = 0; i < 4; i++) {
        buffer_text(out, names[i]);
        buffer_put(out, prompt[i].data, prompt[i].n);
        if (prompt[i].n > 0 && choice->logprobs[i].n > 0)
            buffer_put(out, ",", 1);
        buffer_put(out, choice->logprobs[i].data, choice->logprobs[i].n);
        choice->logprobs[i].n = 0;
    }
    buffer_text(out, "]}");
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
    struct buffer *out = &job->out, none[4] = {{0}};

    choice->has_begun = true;
    begin_chunk(job, "text_completion");
    buffer_put(out, "{\"index\":", 9);
    buffer_u64(out, choice->index);
    buffer_put(out, ",\"text\":", 8);
    buffer_json_string(out, choice->text.data, choice->text.n);
    choice->text.n = 0;
    write_arrays(out, choice, none);
    if (is_last) {
        buffer_printf(out, ",\"finish_reason\":\"%s\"", choice->finish);
        write_stop_reason(out, choice);
    } else {
        buffer_text(out, ",\"finish_reason\":null");
    }
    write_ids(out, choice);
    buffer_put(out, "}", 1);
    end_chunk(job);
}

static void call(struct job *job, struct choice *choice, uint32_t index, const char *arguments,
                 size_t n)
{
    (void)job, (void)choice, (void)index, (void)arguments, (void)n; /* has no tools */
}

static void finish(struct job *job)
{
    finish_stream(job, "text_completion");
}

/* The prompt's tokens with their scores: echo. */
static void score_prompt(struct part *part, struct buffer array[4])
{
    struct job *job = part->job;
    uint32_t stride = job->n_prompt_top;
    struct ll_decoder *decoder = NULL;
    uint64_t offset = 0;
    const char *text;

    if (job->link->tokenizer != NULL && ll_decoder_new(&decoder, job->link->tokenizer, 0) < 0)
        array[TOKENS].has_failed = true;
    for (uint32_t i = 0; i < part->prompt.n; i++) {
        uint32_t id = part->prompt.ids[i];
        add_token(job, array, id, i > 0, part->prompt_logprob[i],
                  part->prompt_top + (size_t)i * stride,
                  (uint32_t)ll_min_u64(part->n_prompt_top[i], job->params.n_top), offset);
        int n = decoder != NULL ? ll_decoder_feed(decoder, id, &text) : 0;
        if (n > 0)
            offset += count_characters(text, (size_t)n);
    }
    ll_decoder_free(decoder);
}

static void whole(struct job *job, struct buffer *out)
{
    write_head(out, job, "text_completion");
    buffer_text(out, ",\"choices\":[");
    for (uint32_t p = 0; p < job->n_parts; p++) {
        struct part *part = &job->part[p];
        struct buffer scores[4] = {{0}};
        if (job->params.echo && job->params.has_logprobs)
            score_prompt(part, scores);
        for (uint32_t k = 0; k < job->params.n; k++) {
            struct choice *choice = &part->choice[k];
            buffer_printf(out, "%s{\"index\":%u,\"text\":", p + k > 0 ? "," : "", choice->index);
            buffer_json_string(out, choice->text.data, choice->text.n);
            write_arrays(out, choice, scores);
            buffer_printf(out, ",\"finish_reason\":\"%s\"", choice->finish);
            write_stop_reason(out, choice);
            write_ids(out, choice);
            if (job->params.has_prompt_logprobs)
                write_prompt_logprobs(out, part);
            buffer_put(out, "}", 1);
        }
        for (int i = 0; i < 4; i++) {
            out->has_failed = out->has_failed || scores[i].has_failed;
            buffer_free(&scores[i]);
        }
    }
    buffer_text(out, "],");
    write_usage(out, job);
    buffer_put(out, "}", 1);
}

const struct reply_words reply_completion = {.chunk = chunk,
                                             .call = call,
                                             .finish = finish,
                                             .fail = fail_stream,
                                             .whole = whole,
                                             .logprob = logprob};
