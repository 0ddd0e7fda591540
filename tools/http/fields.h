/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/fields.h - the fields of a request's body, each read and checked once.
 *
 *   F1  null is the same as absent. An unknown field is ignored, as clients expect, unless it asks
 *       for a constraint on the output: such a one is met or refused, never dropped.
 *   F2  What the model's maker recommends holds where the request says nothing.
 *   F3  Texts point into the JSON document, which its owner keeps. */
#ifndef TOOLS_HTTP_FIELDS_H
#define TOOLS_HTTP_FIELDS_H

#include "tools/http/server.h"

#include <jansson.h>

enum api { API_CHAT, API_COMPLETIONS, API_RESPONSES };

struct api_error {
    int status;
    uint32_t retry_ms;
    char param[64]; /* "": none */
    char message[512];
};
/* Fills *error; -1 for use in a return statement. */
int api_fail(struct api_error *error, int status, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* The same from what the library said last on this thread. */
int api_fail_code(struct api_error *error, int code, const char *param);

#define FIELD_STOPS_MAX LL_STOP_STRINGS_MAX

struct params {
    uint32_t n, max_tokens, min_tokens;
    bool has_max_tokens, has_seed;
    float temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty;
    uint32_t top_k;
    uint64_t seed;
    const char *stop[FIELD_STOPS_MAX];
    size_t n_stop_bytes[FIELD_STOPS_MAX];
    uint32_t n_stops;
    uint32_t stop_id[8], n_stop_ids;
    struct ll_logit_bias *bias; /* params_free() */
    uint32_t n_bias;
    bool ignores_eos, keeps_special, includes_stop;
    bool has_logprobs;
    uint32_t n_top;
    bool echo;
    bool has_prompt_logprobs;
    uint32_t n_prompt_top;
    int32_t priority;
    const char *cache_salt;
    int64_t truncate; /* 0: off; -1: to what fits; else tokens kept */
    bool truncates_right;
    bool is_stream, includes_usage, continuous_usage;
    bool tokens_as_ids, returns_ids;
    bool adds_special; /* begin-of-text in front of a raw prompt */
    /* chat */
    const json_t *tools;
    bool uses_tools, one_call;
};

int fields_read(const json_t *root, enum api api, const struct link *link, struct params *out,
                struct api_error *error);
void params_free(struct params *params);

/* A JSON document from a body: strict, at most 64 levels deep, no key twice. NULL with *error. */
json_t *body_parse(const char *text, size_t n, struct api_error *error);

#endif
