/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/llring/answer.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "tools/llring/terminal.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define OUTPUTS_A_POLL 64

/* ---- growing arrays ---------------------------------------------------------------------------*/

/* Makes room for one more entry. */
static int grow(void **array, uint32_t n, uint32_t *n_max, size_t entry_bytes)
{
    if (n < *n_max)
        return 0;
    uint32_t wanted = *n_max == 0 ? 64 : *n_max * 2;
    void *larger = realloc(*array, wanted * entry_bytes);
    if (larger == NULL)
        return LL_ERR(-ENOMEM, "no memory for the answer");
    *array = larger;
    *n_max = wanted;
    return 0;
}

static int append_text(struct answer_text *text, const char *bytes, size_t n)
{
    if (text->n + n + 1 > text->capacity) {
        size_t wanted = ll_pow2_ceil(text->n + n + 64);
        char *larger = realloc(text->bytes, wanted);
        if (larger == NULL)
            return LL_ERR(-ENOMEM, "no memory for the answer");
        text->bytes = larger;
        text->capacity = wanted;
    }
    memcpy(text->bytes + text->n, bytes, n);
    text->n += n;
    text->bytes[text->n] = '\0';
    return 0;
}

/* ---- start and end
 * ------------------------------------------------------------------------------*/

void answer_fail(struct answer *out, int code)
{
    out->is_done = true;
    out->error = code;
    snprintf(out->error_text, sizeof(out->error_text), "%s", ll_error_text());
}

static int prepare_choice(struct answer_choice *choice, const struct connection *connection,
                          const struct option_texts *stop)
{
    int rc = 0;

    if (connection->tokenizer != NULL)
        rc = ll_decoder_new(&choice->decoder, connection->tokenizer, 0);
    if (rc < 0 || stop->n == 0 || choice->decoder == NULL)
        return rc;
    size_t n_bytes[OPTION_TEXTS_MAX];
    for (uint32_t i = 0; i < stop->n; i++)
        n_bytes[i] = strlen(stop->text[i]);
    return ll_stopper_new(&choice->stopper, stop->text, n_bytes, stop->n);
}

int answer_start(struct answer *out, struct connection *connection,
                 const struct ll_request *request, const struct option_texts *stop)
{
    struct answer answer = {.connection = connection};
    /* An n out of range is the library's to refuse; here it must only not be zero. */
    uint32_t n = (uint32_t)ll_min_u64(ll_max_u64(request->n, 1), 1024);
    int rc = 0;

    answer.choice = calloc(n, sizeof(*answer.choice));
    if (answer.choice == NULL)
        return LL_ERR(-ENOMEM, "no memory for %u choices", n);
    answer.n_choices = n;
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = prepare_choice(&answer.choice[i], connection, stop);
    if (rc == 0)
        rc = ll_client_submit(connection->client, request, &answer.id);
    if (rc == LL_E_AGAIN) {
        answer_free(&answer);
        return rc;
    }
    if (rc < 0)
        answer_fail(&answer, rc);
    *out = answer;
    return 0;
}

void answer_free(struct answer *answer)
{
    for (uint32_t i = 0; i < answer->n_choices; i++) {
        struct answer_choice *choice = &answer->choice[i];
        ll_decoder_free(choice->decoder);
        ll_stopper_free(choice->stopper);
        free(choice->text.bytes);
        free(choice->token);
        free(choice->top);
    }
    free(answer->choice);
    free(answer->prompt_logprob);
    *answer = (struct answer){0};
}

/* ---- outputs
 * ------------------------------------------------------------------------------------*/

/* Text that became whole: through the stop strings into the choice. */
static int take_text(struct answer *answer, struct answer_choice *choice, const char *bytes,
                     size_t n)
{
    int hit = -1;

    if (choice->stopper == NULL)
        return append_text(&choice->text, bytes, n);
    const char *shown;
    int n_shown = ll_stopper_feed(choice->stopper, bytes, n, &shown, &hit);
    if (n_shown < 0)
        return n_shown;
    int rc = append_text(&choice->text, shown, (size_t)n_shown);
    if (rc == 0 && hit >= 0) {
        choice->finish = "stop";
        rc = ll_client_stop(answer->connection->client, answer->id,
                            (uint32_t)(choice - answer->choice));
    }
    return rc;
}

static bool is_end_id(const struct connection *connection, uint32_t id)
{
    for (uint32_t i = 0; i < connection->info.n_eos; i++)
        if (connection->info.eos[i] == id)
            return true;
    return false;
}

static int take_token(struct answer *answer, struct answer_choice *choice,
                      const struct ll_output *output)
{
    uint32_t id = output->u.token.id;

    if (choice->finish != NULL)
        return 0; /* A3 */
    int rc = grow((void **)&choice->token, choice->n_tokens, &choice->tokens_max,
                  sizeof(*choice->token));
    if (rc < 0)
        return rc;
    choice->token[choice->n_tokens++] = (struct answer_token){
        .id = id, .logprob = output->u.token.logprob, .first_top = choice->n_top};
    if (choice->decoder == NULL || is_end_id(answer->connection, id))
        return 0;
    const char *text;
    int n = ll_decoder_feed(choice->decoder, id, &text);
    if (n == LL_E_INVAL)
        return 0; /* ids past the vocabulary exist in padded models: they have no text */
    return n > 0 ? take_text(answer, choice, text, (size_t)n) : n;
}

static int take_top(struct answer_choice *choice, const struct ll_output *output)
{
    if (choice->finish != NULL || choice->n_tokens == 0)
        return 0;
    for (uint32_t i = 0; i < output->n && i < LL_COUNT(output->u.top); i++) {
        int rc = grow((void **)&choice->top, choice->n_top, &choice->top_max, sizeof(*choice->top));
        if (rc < 0)
            return rc;
        choice->top[choice->n_top++] = output->u.top[i];
        choice->token[choice->n_tokens - 1].n_top++;
    }
    return 0;
}

static int take_prompt(struct answer *answer, const struct ll_output *output)
{
    for (uint32_t i = 0; i < output->n && i < LL_COUNT(output->u.prompt_logprob); i++) {
        while (answer->n_prompt_logprobs <= output->index + i) {
            int rc = grow((void **)&answer->prompt_logprob, answer->n_prompt_logprobs,
                          &answer->prompt_logprobs_max, sizeof(*answer->prompt_logprob));
            if (rc < 0)
                return rc;
            answer->prompt_logprob[answer->n_prompt_logprobs++] = NAN;
        }
        answer->prompt_logprob[output->index + i] = output->u.prompt_logprob[i];
    }
    return 0;
}

/* What decoder and stopper still hold comes out, unless a stop string was found. */
static int close_choice(struct answer *answer, struct answer_choice *choice, uint32_t reason)
{
    static const char *const names[] = {[LL_FINISH_STOP] = "stop",
                                        [LL_FINISH_LENGTH] = "length",
                                        [LL_FINISH_CANCELLED] = "cancelled"};
    const char *text;

    if (choice->finish != NULL)
        return 0;
    if (choice->decoder != NULL) {
        int n = ll_decoder_finish(choice->decoder, &text);
        int rc = n > 0 ? take_text(answer, choice, text, (size_t)n) : n;
        if (rc < 0)
            return rc;
    }
    if (choice->stopper != NULL && choice->finish == NULL) {
        int n = ll_stopper_finish(choice->stopper, &text);
        int rc = n > 0 ? append_text(&choice->text, text, (size_t)n) : n;
        if (rc < 0)
            return rc;
    }
    if (choice->finish == NULL)
        choice->finish = reason < LL_COUNT(names) && names[reason] != NULL ? names[reason] : "stop";
    return 0;
}

static int take_finish(struct answer *answer, const struct ll_output *output)
{
    int rc = 0;

    answer->is_done = true;
    answer->n_prompt = output->u.finish.n_prompt;
    answer->n_cached = output->u.finish.n_cached;
    answer->n_out = output->u.finish.n_out;
    answer->ttft_ns = output->u.finish.ttft_ns;
    answer->total_ns = output->u.finish.total_ns;
    for (uint32_t i = 0; i < answer->n_choices && rc == 0; i++)
        rc = close_choice(answer, &answer->choice[i], output->u.finish.reason);
    return rc;
}

int answer_feed(struct answer *answer, const struct ll_output *output)
{
    struct answer_choice *choice =
        output->choice < answer->n_choices ? &answer->choice[output->choice] : NULL;

    switch (output->type) {
    case LL_OUTPUT_TOKEN:
        return choice != NULL ? take_token(answer, choice, output) : 0;
    case LL_OUTPUT_TOP:
        return choice != NULL ? take_top(choice, output) : 0;
    case LL_OUTPUT_PROMPT:
        return take_prompt(answer, output);
    case LL_OUTPUT_CHOICE:
        return choice != NULL ? close_choice(answer, choice, output->u.choice_end.reason) : 0;
    case LL_OUTPUT_FINISH:
        return take_finish(answer, output);
    case LL_OUTPUT_ERROR:
        answer->is_done = true;
        answer->error = output->u.error.code;
        answer->retry_ms = output->u.error.retry_ms;
        snprintf(answer->error_text, sizeof(answer->error_text), "%s", output->u.error.text);
        return 0;
    default:
        return 0; /* a newer runtime's output that this program does not know */
    }
}

int answer_wait(struct answer *answer, FILE *stream)
{
    struct ll_output output[OUTPUTS_A_POLL];
    struct ll_client *client = answer->connection->client;
    size_t n_shown = 0;
    bool is_cancelled = false;
    int failure = 0;

    while (!answer->is_done) {
        if (interrupts_count() > 0 && !is_cancelled) {
            ll_client_cancel(client, answer->id);
            is_cancelled = true;
        }
        /* A tenth of a second: Ctrl-C is answered within that. */
        int n = ll_client_wait(client, output, OUTPUTS_A_POLL, 100 * (int64_t)LL_NS_PER_MS);
        if (n < 0 && n != -EINTR) {
            answer_fail(answer, n);
            /* A runtime that hangs (LL_E_TIMEOUT) may wake up: it shall not go on with this. */
            ll_client_cancel(client, answer->id);
            break;
        }
        for (int i = 0; i < n; i++)
            if (output[i].id == answer->id && failure == 0)
                failure = answer_feed(answer, &output[i]);
        const struct answer_text *text = &answer->choice[0].text;
        if (stream != NULL && text->n > n_shown) {
            fwrite(text->bytes + n_shown, 1, text->n - n_shown, stream);
            fflush(stream);
            n_shown = text->n;
        }
        if (failure < 0) {
            answer_fail(answer, failure);
            ll_client_cancel(client, answer->id);
        }
    }
    return answer->error;
}

/* ---- JSON
 * ---------------------------------------------------------------------------------------*/

/* Text of an id; bytes that are no whole characters become U+FFFD. */
static json_t *token_text(const struct answer *answer, uint32_t id)
{
    size_t n = 0;
    const char *bytes = answer->connection->tokenizer != NULL
                            ? ll_tokenizer_bytes(answer->connection->tokenizer, id, &n)
                            : NULL;
    json_t *text = bytes != NULL ? json_stringn(bytes, n) : json_null();

    return text != NULL ? text : json_string("\xef\xbf\xbd");
}

static json_t *logprob_json(float logprob)
{
    return isfinite(logprob) ? json_real((double)logprob) : json_null();
}

static json_t *token_json(const struct answer *answer, const struct answer_choice *choice,
                          const struct answer_token *token)
{
    json_t *top = json_array();

    for (uint32_t i = 0; i < token->n_top; i++) {
        const struct ll_top_pair *pair = &choice->top[token->first_top + i];
        json_array_append_new(top, json_pack("{s:i, s:o, s:o}", "id", (int)pair->id, "token",
                                             token_text(answer, pair->id), "logprob",
                                             logprob_json(pair->logprob)));
    }
    return json_pack("{s:i, s:o, s:o, s:o}", "id", (int)token->id, "token",
                     token_text(answer, token->id), "logprob", logprob_json(token->logprob), "top",
                     top);
}

static json_t *choice_json(const struct answer *answer, const struct answer_choice *choice)
{
    json_t *ids = json_array();
    json_t *object = json_object();

    for (uint32_t i = 0; i < choice->n_tokens; i++)
        json_array_append_new(ids, json_integer(choice->token[i].id));
    if (choice->decoder != NULL)
        json_object_set_new(
            object, "text",
            json_stringn(choice->text.bytes != NULL ? choice->text.bytes : "", choice->text.n));
    json_object_set_new(object, "ids", ids);
    json_object_set_new(object, "finish_reason",
                        choice->finish != NULL ? json_string(choice->finish) : json_null());
    if (answer->shows_logprobs) {
        json_t *logprobs = json_array();
        for (uint32_t i = 0; i < choice->n_tokens; i++)
            json_array_append_new(logprobs, token_json(answer, choice, &choice->token[i]));
        json_object_set_new(object, "logprobs", logprobs);
    }
    return object;
}

json_t *answer_error_json(int code, const char *text)
{
    return json_pack("{s:i, s:s, s:s}", "code", code, "name", ll_error_name(code), "message",
                     text[0] != '\0' ? text : ll_error_advice(code));
}

json_t *answer_json(const struct answer *answer)
{
    json_t *object;

    if (answer->error < 0)
        return json_pack("{s:o}", "error", answer_error_json(answer->error, answer->error_text));
    if (answer->n_choices == 1) {
        object = choice_json(answer, &answer->choice[0]);
    } else {
        json_t *choices = json_array();
        for (uint32_t i = 0; i < answer->n_choices; i++)
            json_array_append_new(choices, choice_json(answer, &answer->choice[i]));
        object = json_pack("{s:o}", "choices", choices);
    }
    if (answer->n_prompt_logprobs > 0) {
        json_t *logprobs = json_array();
        for (uint32_t i = 0; i < answer->n_prompt_logprobs; i++)
            json_array_append_new(logprobs, logprob_json(answer->prompt_logprob[i]));
        json_object_set_new(object, "prompt_logprobs", logprobs);
    }
    json_object_set_new(object, "usage",
                        json_pack("{s:i, s:i, s:i}", "prompt_tokens", (int)answer->n_prompt,
                                  "cached_tokens", (int)answer->n_cached, "completion_tokens",
                                  (int)answer->n_out));
    json_object_set_new(object, "timing",
                        json_pack("{s:f, s:f}", "ttft_ms", (double)answer->ttft_ns / 1e6,
                                  "total_ms", (double)answer->total_ns / 1e6));
    return object;
}
