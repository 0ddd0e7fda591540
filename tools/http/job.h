/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/job.h - one generation: its requests to the runtime, what came of them, the reply.
 *
 *   J1  A part is one request to the runtime: a prompt with its n choices. A chat has one part, a
 *       batch of prompts one each; choice k of part p has index p * n + k in the reply.
 *   J2  A job with a connection answers it exactly once. It is freed when it has answered (or lost
 *       its connection) and the runtime has ended every part that was submitted.
 *   J3  Streaming and not streaming take the same way through take_token(); only where pieces go
 *       differs, so both give the same text, calls and numbers.
 *   J4  The first bytes of a stream go out with the first token: until then an error can still have
 *       its own status. */
#ifndef TOOLS_HTTP_JOB_H
#define TOOLS_HTTP_JOB_H

#include "tools/http/fields.h"
#include "tools/http/prompt.h"
#include "tools/http/responses.h"

#define TOP_MAX 20

struct choice_call {
    char id[48];
    struct buffer name, arguments;
};

struct choice {
    struct job *job;
    uint32_t index; /* in the reply */
    struct ll_decoder *decoder;
    struct ll_stopper *stopper;   /* NULL: no stop strings */
    struct ll_toolcalls *machine; /* NULL: no tools */
    struct buffer text;           /* not yet sent, or all of it when not streaming */
    struct choice_call *call;     /* [n_calls] */
    uint32_t n_calls, calls_max;
    /* Pieces of JSON not yet sent: chat logprobs.content in [0]; completions tokens,
     * token_logprobs, top_logprobs, text_offset. */
    struct buffer logprobs[4];
    struct buffer ids; /* return_token_ids */
    /* the token whose alternatives are still coming */
    bool has_pending;
    uint32_t pending_id, n_top;
    float pending_logprob;
    uint64_t pending_offset; /* characters of text before it */
    struct ll_top_pair top[TOP_MAX];
    uint64_t n_characters; /* of text so far: text_offset */
    uint32_t n_tokens;
    bool has_begun, has_ended, has_told_end;
    const char *finish; /* "stop", "length" */
    int stop_string;    /* index in params.stop; -1 */
    uint32_t stop_id;   /* UINT32_MAX: none */
    uint64_t last_ns;
};

struct part {
    struct job *job;
    struct prompt prompt;
    uint64_t id;       /* of the request; 0: not submitted */
    struct link *link; /* it was submitted to; ours until has_ended (loop.c's detach()) */
    bool has_ended;
    struct choice *choice;          /* [params.n] */
    float *prompt_logprob;          /* [prompt.n]; NaN where unknown */
    struct ll_top_pair *prompt_top; /* [prompt.n][job.n_prompt_top] */
    uint8_t *n_prompt_top;          /* [prompt.n] */
    uint32_t n_cached;
};

struct job {
    struct loop *loop;
    struct job *next, *prev, *next_waiting;
    bool is_waiting;
    struct conn *conn;              /* NULL: the client left, or has its answer */
    struct link *link;              /* it was read with; its requests may go over others */
    const struct link_model *model; /* of that link, then */
    enum api api;
    const struct reply_words *words; /* of that API */
    json_t *root;
    char *tools_json;
    size_t n_tools_json;
    struct params params;
    uint32_t n_prompt_top; /* asked of the runtime: at least 1 where echo wants logprobs */
    uint32_t tenant;
    struct part *part; /* [n_parts] */
    uint32_t n_parts, n_submitted, n_ended;
    char id[64];
    int64_t created;
    struct response *response; /* API_RESPONSES */
    struct buffer head;        /* of every chunk of the stream, as far as all are the same */
    struct buffer out;         /* of the stream, not yet handed to the connection */
    bool has_begun, is_held, has_failed, is_cancelled;
    uint64_t begin_ns;
    bool has_first;
};

/* Reads a body and makes its job, not yet submitted. Any thread: touches link and body only. NULL
 * with *error. root is the job's from here on, in every case. */
struct job *job_new(json_t *root, enum api api, struct link *link, uint32_t tenant,
                    struct api_error *error);
/* Takes the connection's answer over and submits what finds room; answers itself when it fails. */
void job_start(struct job *job, struct loop *loop, struct conn *conn);
/* Of a job that was not started. */
void job_free(struct job *job);
/* A connection that goes: its job is cancelled. */
void job_abandon(struct job *job);
/* Hands what was written to the connection, holds or releases its requests by what is unsent. */
void job_flush(struct job *job);
/* One output of the runtime. */
void job_output(const struct ll_output *output);
/* Ends the job with an error: as its own reply, or in the stream when that has begun. */
void job_fail(struct job *job, int status, const char *message, const char *param,
              uint32_t retry_ms);
/* J2: at the end of whatever may have ended a job. */
void job_free_when_over(struct job *job);
/* Submits more of the jobs that wait for slots. */
void jobs_resume(struct loop *loop);
/* The last runtime is lost and every request has had its error; this ends what was never submitted.
 */
void jobs_fail_waiting(struct loop *loop, int code, const char *text);

/* reply_chat.c and reply_completion.c: the words of the two APIs. */
struct reply_words {
    /* A piece of a stream for a choice, from what it holds; is_last: with its finish_reason. */
    void (*chunk)(struct job *job, struct choice *choice, bool is_last);
    /* A tool call's begin, and a piece of its arguments. */
    void (*call)(struct job *job, struct choice *choice, uint32_t index, const char *arguments,
                 size_t n);
    /* What follows the last choice's last chunk. */
    void (*finish)(struct job *job);
    /* The same where the stream ends in an error. */
    void (*fail)(struct job *job, int status, const char *message, const char *param);
    /* The whole reply. */
    void (*whole)(struct job *job, struct buffer *out);
    /* Adds the pending token to the choice's logprobs. */
    void (*logprob)(struct job *job, struct choice *choice);
    /* chunk() and call() are wanted also where nothing is streamed: the reply is made of them. */
    bool has_items;
};
extern const struct reply_words reply_chat, reply_completion, reply_responses;

/* Shared by them. */
/* `data: {"id": ... "choices":[`, behind which a choice or nothing follows, then end_chunk(). */
void begin_chunk(struct job *job, const char *object);
void end_chunk(struct job *job);
void finish_stream(struct job *job, const char *object);
void fail_stream(struct job *job, int status, const char *message, const char *param);
void write_usage(struct buffer *out, const struct job *job);
const char *served_name_of(const struct job *job);
void write_head(struct buffer *out, const struct job *job, const char *object);
/* Text of one id, as a JSON string; "token_id:N" where asked for. */
void write_token(struct buffer *out, const struct job *job, uint32_t id);
void write_token_bytes(struct buffer *out, const struct job *job, uint32_t id);
void write_stop_reason(struct buffer *out, const struct choice *choice);
/* vLLM's "prompt_logprobs" of a part. */
void write_prompt_logprobs(struct buffer *out, const struct part *part);
const char *finish_of(const struct choice *choice);
uint64_t count_characters(const char *text, size_t n);
/* `"prefix" + 32 random hexadecimal digits`. */
void make_id(char *out, size_t n, const char *prefix);

#endif
