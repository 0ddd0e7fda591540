/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/answer.h - collects the outputs of one request: text, ids, logprobs, how it ended.
 *
 *   A1  An answer is done after exactly one FINISH or ERROR, or when its submit failed.
 *   A2  Text grows by whole UTF-8 characters and never shows what a stop string may still take.
 *   A3  After a stop string the choice takes no more tokens; the runtime is told with
 *       ll_client_stop(), and what was under way is dropped here. */
#ifndef TOOLS_LLRING_ANSWER_H
#define TOOLS_LLRING_ANSWER_H

#include "tools/llring/connection.h"
#include "tools/llring/sampling.h"

#include <jansson.h>

struct answer_text {
    char *bytes; /* NUL-terminated; NULL while empty */
    size_t n, capacity;
};

struct answer_token {
    uint32_t id;
    float logprob;
    uint32_t first_top, n_top; /* in answer_choice.top */
};

struct answer_choice {
    struct ll_decoder *decoder; /* NULL without a tokenizer */
    struct ll_stopper *stopper; /* NULL without stop strings */
    struct answer_text text;
    struct answer_token *token; /* [n_tokens] */
    uint32_t n_tokens, tokens_max;
    struct ll_top_pair *top; /* [n_top] */
    uint32_t n_top, top_max;
    const char *finish; /* "stop", "length", "cancelled"; NULL: not ended */
};

struct answer {
    struct connection *connection;
    uint64_t id; /* of the request; 0: never submitted */
    struct answer_choice *choice;
    uint32_t n_choices;
    float *prompt_logprob; /* [n_prompt_logprobs]; [0] is NaN: nothing comes before it */
    uint32_t n_prompt_logprobs, prompt_logprobs_max;
    bool shows_logprobs; /* set by the command: answer_json() lists them a token */
    bool is_done;
    int error; /* 0, or the code that ended it; error_text then says what */
    uint32_t retry_ms;
    char error_text[512];
    uint32_t n_prompt, n_cached, n_out;
    uint64_t ttft_ns, total_ns;
};

/* Submits request with the answer's index as given in request->tag. stop: strings, may be empty.
 * LL_E_AGAIN leaves nothing behind: try again after a poll. Any other failure makes a done answer
 * with that error, and 0 is returned; -ENOMEM and the like come back as they are. */
int answer_start(struct answer *out, struct connection *connection,
                 const struct ll_request *request, const struct option_texts *stop);

/* Makes a done answer out of the error that this thread met last. */
void answer_fail(struct answer *out, int code);

/* Takes one output of this request. */
int answer_feed(struct answer *answer, const struct ll_output *output);

/* Waits until the answer is done and prints the text of choice 0 to stream as it grows (NULL:
 * prints nothing). Ctrl-C cancels the request and the wait goes on to its end. */
int answer_wait(struct answer *answer, FILE *stream);

void answer_free(struct answer *answer);

/* {"text", "ids", "finish_reason", "usage", ...}, or {"error"}; n > 1: {"choices": [...]}.
 * The caller owns it. */
json_t *answer_json(const struct answer *answer);
/* {"code", "name", "message"} of a failure. */
json_t *answer_error_json(int code, const char *text);

#endif
