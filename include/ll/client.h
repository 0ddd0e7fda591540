/* SPDX-License-Identifier: Apache-2.0 */
/* ll/client.h - send token sequences to a running llring and read tokens back.
 *
 * A client is one attachment to the runtime's shared memory. Submit, poll and cancel neither
 * allocate nor enter the kernel while the runtime is awake. This header knows token ids only;
 * text is in ll/text.h.
 *
 * THREADS  A handle belongs to one thread at a time; ll_client_cancel() alone may be called from
 *          any thread. More threads open more handles. After fork() the child must not use a
 *          handle: calls answer LL_E_FORKED, and ll_client_close() frees only its own memory.
 * ERRORS   Functions returning int give 0 or a count on success and a negative code on failure:
 *          LL_E_* below, or -errno for what the system refused. ll_error_text() then says in words
 *          what went wrong on this thread and what to do.
 * PROMISE  Every request that ll_client_submit() accepted ends in exactly one LL_OUTPUT_FINISH or
 *          LL_OUTPUT_ERROR, also when the runtime dies.
 *
 *     struct ll_client *client;
 *     if (ll_client_open(&client, NULL) < 0)
 *         return fail(ll_error_text());
 *     struct ll_request request = LL_REQUEST_INIT;
 *     request.prompt = ids, request.n_prompt = n_ids, request.max_tokens = 32;
 *     ll_client_submit(client, &request, &id);
 *     while (!done) {
 *         int n = ll_client_wait(client, out, 16, -1);
 *         for (int i = 0; i < n; i++) ...
 *     }
 */
#ifndef LL_CLIENT_H
#define LL_CLIENT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LL_API __attribute__((visibility("default")))

#define LL_VERSION_MAJOR 0
#define LL_VERSION_MINOR 1
#define LL_VERSION_PATCH 0

/* ---- errors ------------------------------------------------------------------------------
 * The same numbers stand in ERROR outputs. HTTP: the status the proxy answers with. What to do:
 *
 *   AGAIN         ll_client_poll() or _wait() until something has ended, then submit again
 *   INVAL         mend the field that the text names; sending it again will not help
 *   TOO_LONG      shorten the prompt or lower max_tokens
 *   NEVER_FITS    shorten the request or lower n; or start the runtime with more KV memory
 *   BUSY          send it again, not before retry_ms have passed. The waiting queue is full, has no
 *                 more of it for this user or tenant, or so much waits that deadline_ns would be
 *                 missed: then a later deadline, or another runtime, is the better answer
 *   QUOTA         close what is not used, or ask whoever runs the machine for larger limits
 *   ABI           install library and runtime of the same version
 *   PROTOCOL      close the handle, open another, send again what was open; and report it
 *   STALLED       read outputs faster, then send it again; others were not held up
 *   DEADLINE      send it again with a later deadline, if the answer is still wanted. It was
 *                 accepted and ended in the queue or half way
 *   RUNTIME_LOST  close the handle, open another and send again: nothing more will come
 *   TIMEOUT       the runtime may come back: try again in a second, or give up
 *   FORKED        open a handle in the child; close this one there, which only frees memory
 *   DRAINING      send it to another runtime, or again once this one has been started anew
 *   BACKEND       as RUNTIME_LOST: the runtime ends, whoever supervises it starts it again
 *   UNSUPPORTED   leave out what the text names, or use a runtime that has it
 *   DENIED        ask whoever runs the machine for access
 *   QUARANTINED   do not send it again: find out what is in it */
enum ll_error_code {
    LL_E_AGAIN = -1001,        /* 429 all slots or the arena are in use */
    LL_E_INVAL = -1002,        /* 400 a field is outside its range; the text names it */
    LL_E_TOO_LONG = -1003,     /* 400 prompt plus output exceed the context */
    LL_E_NEVER_FITS = -1004,   /* 400 more KV pages or choices than the runtime has room for */
    LL_E_BUSY = -1005,         /* 429 too many wait; retry_ms says when to come again */
    LL_E_QUOTA = -1006,        /* 429 attachments, descriptors or memory of this user used up */
    LL_E_ABI = -1007,          /* 500 runtime and library speak different wire versions */
    LL_E_PROTOCOL = -1008,     /* 500 the peer broke the shared-memory protocol */
    LL_E_STALLED = -1009,      /* 408 the application did not read its tokens for 30 s */
    LL_E_DEADLINE = -1010,     /* 408 the request's deadline passed */
    LL_E_RUNTIME_LOST = -1011, /* 503 the runtime is gone */
    LL_E_TIMEOUT = -1012,      /* 503 the runtime has shown no sign of life for 5 s */
    LL_E_FORKED = -1013,       /* 500 the handle belongs to the parent process */
    LL_E_DRAINING = -1014,     /* 503 the runtime is stopping and takes no new requests */
    LL_E_BACKEND = -1015,      /* 500 the device failed */
    LL_E_UNSUPPORTED = -1016,  /* 400 known, but this runtime cannot do it */
    LL_E_DENIED = -1017,       /* 401 this user may not do that */
    LL_E_QUARANTINED = -1018,  /* 400 the runtime crashed three times with this request open */
};

/* "LL_E_AGAIN" for a code above, "E..." for a system error, "LL_E_?" else; static storage. */
LL_API const char *ll_error_name(int code);
/* One sentence on what a code means and what the caller should do; static storage. */
LL_API const char *ll_error_advice(int code);
/* HTTP status of a code: as in the table; 500 for any other. */
LL_API int ll_error_http_status(int code);
/* What went wrong last on this thread, in words; "" before the first error. */
LL_API const char *ll_error_text(void);
/* Version of the library in use: major << 16 | minor << 8 | patch. */
LL_API uint32_t ll_version(void);

/* ---- open, close, ask ---------------------------------------------------------------------*/
struct ll_client; /* opaque */

struct ll_client_options {
    uint32_t struct_bytes; /* sizeof(struct ll_client_options): the struct can grow */
    uint32_t n_slots;      /* requests in flight at once, 16 .. 1024; 0: 32 */
    uint32_t arena_bytes;  /* prompts not yet taken over, 64 KiB .. 64 MiB; 0: 1 MiB */
    uint32_t spin_us;      /* spin so long before sleeping in ll_client_wait; 0: 20; ~0: for ever */
    const char *socket;    /* runtime's control socket; NULL: $LLRING_SOCKET, else the default:
                            * $XDG_RUNTIME_DIR/llring/llring.sock, /run/llring/llring.sock */
    const char *name;      /* shown by `llring top`, at most 63 bytes; NULL: the program's name */
    uint64_t timeout_ns;   /* for the attach; 0: 1 s */
};

/* Attaches to a running runtime. *out is written only on success; the caller closes it.
 * options NULL: all defaults.
 *   -ENOENT, -ECONNREFUSED  nobody listens at the socket: the runtime is not up
 *   -EACCES                 this user may not connect to it
 *   LL_E_ABI, LL_E_QUOTA, LL_E_DRAINING, LL_E_DENIED   refused by the runtime
 *   LL_E_TIMEOUT            no answer in timeout_ns */
LL_API int ll_client_open(struct ll_client **out, const struct ll_client_options *options);

/* Detaches and frees; requests still open are cancelled. NULL is accepted. */
LL_API void ll_client_close(struct ll_client *client);

/* What the runtime publishes about its model and limits. Strings live as long as the handle.
 *
 * A runtime may change its weights while clients are attached (llring reload). weights_epoch then
 * counts up and model, temperature, top_p, min_p, repetition_penalty and top_k become the new
 * model's: ask again to learn it, which costs next to nothing. What `model` pointed to becomes the
 * new name with that call, not before. All else stays as long as the attachment. */
struct ll_client_info {
    uint32_t struct_bytes;   /* in: sizeof(struct ll_client_info) */
    uint32_t n_vocab;        /* ids are 0 .. n_vocab - 1 */
    uint32_t context_max;    /* prompt plus output, tokens */
    uint32_t n_prompt_max;   /* longest prompt a request may have, tokens */
    uint32_t n_slots;        /* of this attachment */
    uint32_t arena_bytes;    /* of this attachment */
    uint32_t n_max;          /* samples a request */
    uint32_t n_top_max;      /* top logprobs */
    uint32_t bos;            /* begin-of-text id; UINT32_MAX: none */
    uint32_t n_eos;          /* 0 .. 8 */
    uint32_t eos[8];         /* ids that end a sequence unless LL_REQUEST_IGNORE_EOS */
    float temperature;       /* the model's default sampling; a request has its own values */
    float top_p;
    float min_p;
    float repetition_penalty;
    uint32_t top_k;          /* 0: off */
    const char *model;       /* served name */
    const char *chat_format; /* name for ll_chat_format_find(); "": chat is refused */
    const char *backend;     /* "cpu", "cuda", "fake" */
    const char *dtype;       /* "bfloat16", "float32", "fp8" */
    uint64_t epoch;          /* random per start of the runtime */
    uint64_t weights_epoch;  /* counts reloads */
    const void *tokenizer;   /* tokenizer image for ll_tokenizer_from_image(); NULL: none */
    uint64_t tokenizer_bytes;
};
LL_API int ll_client_info(struct ll_client *client, struct ll_client_info *out);

/* Index of an adapter by name for ll_request.adapter, LL_E_INVAL when there is none. */
LL_API int ll_client_adapter(const struct ll_client *client, const char *name);

/* ---- requests -----------------------------------------------------------------------------*/
enum ll_request_flags {
    LL_REQUEST_IGNORE_EOS = 1u << 0,      /* only max_tokens, stop ids and the context end it */
    LL_REQUEST_PROMPT_LOGPROBS = 1u << 1, /* LL_OUTPUT_PROMPT for each prompt token but the first */
    LL_REQUEST_NO_CACHE = 1u << 2,        /* neither use nor fill the prefix cache */
};

/* A bias on one id's logit, applied before temperature. */
struct ll_logit_bias {
    uint32_t id; /* < n_vocab */
    float bias;  /* -100 .. 100 */
};

/* Fill from LL_REQUEST_INIT, then set what differs. Everything pointed to is copied before
 * ll_client_submit() returns. Range violations are LL_E_INVAL and name the field.
 *
 * Several choices (n > 1): the prompt is computed once; then each choice is sampled from its own
 * random stream (seed, choice), so with temperature 0 they are all equal, and choice c is the same
 * whatever else runs. All fields hold for each choice by itself: max_tokens, min_tokens, penalties,
 * stop ids; deadline_ns, priority and tenant are the request's, and the tenant pays for all. Outputs
 * of the choices come interleaved, in order within a choice, and say in `choice` whose they are:
 *   TOKEN, TOP ...  of choices 0 .. n - 1
 *   PROMPT ...      once a request, of whichever choice computes the prompt
 *   CHOICE          this one has ended (stop, length); nothing of it follows
 *   FINISH, ERROR   once, after all of them. Cancel, deadline and errors end all choices at once:
 *                   those still open then have no CHOICE
 * All choices of a request share its window of 256 outputs that were not read yet. */
struct ll_request {
    uint32_t struct_bytes;       /* sizeof(struct ll_request) */
    uint32_t flags;              /* LL_REQUEST_* */
    uint64_t tag;                /* yours; comes back in every output */
    const uint32_t *prompt;      /* [n_prompt] ids < n_vocab */
    uint32_t n_prompt;           /* 1 .. n_prompt_max */
    uint32_t max_tokens;         /* 1 .. context_max - n_prompt; 0: as many as fit */
    uint32_t min_tokens;         /* 0 .. max_tokens: no end id before that many */
    uint32_t n;                  /* choices, 1 .. n_max of ll_client_info; see below */
    float temperature;           /* 0 .. 2; 0 takes the likeliest (greedy) */
    float top_p;                 /* 0 < p <= 1; 1: off */
    float min_p;                 /* 0 .. 1; 0: off */
    uint32_t top_k;              /* 0: off */
    float repetition_penalty;    /* 0 < r <= 10; 1: off; on prompt and output ids */
    float frequency_penalty;     /* -2 .. 2; 0: off; on output ids */
    float presence_penalty;      /* -2 .. 2; 0: off; on output ids */
    uint64_t seed;               /* same seed, same tokens, whatever else runs */
    uint64_t deadline_ns;        /* CLOCK_MONOTONIC; 0: none; past it the request expires */
    const uint32_t *stop;        /* [n_stop] ids that end a sequence, beside eos */
    uint32_t n_stop;             /* 0 .. 8 */
    uint32_t n_top;              /* top logprobs a token, 0 .. 20 */
    uint32_t n_prompt_top;       /* the same for prompt tokens (needs PROMPT_LOGPROBS), 0 .. 20 */
    uint32_t n_bias;             /* 0 .. 1024 */
    const struct ll_logit_bias *bias; /* [n_bias] */
    int32_t priority;            /* -128 .. 127; lower runs first; 0 */
    uint32_t adapter;            /* 0: none; else from ll_client_adapter() */
    uint32_t tenant;             /* fairness group inside this client; 0 */
    uint32_t draft_max;          /* speculation bound; 0: the runtime's */
    uint64_t salt[2];            /* prefix cache is shared only among equal salts */
    const void *grammar;         /* compiled grammar; NULL: none */
    uint32_t grammar_bytes;
    uint32_t reserved;           /* 0 */
};

#define LL_REQUEST_INIT                                                                            \
    {                                                                                              \
        .struct_bytes = sizeof(struct ll_request), .n = 1, .top_p = 1.0f,                          \
        .repetition_penalty = 1.0f                                                                 \
    }

/* Queues one request and writes its id (never 0, unique in this handle) to *id_out, which may be
 * NULL. The runtime can see it when this returns.
 *   LL_E_AGAIN   all slots or the arena are in use and nothing was queued: poll, then try again
 *   LL_E_INVAL, LL_E_TOO_LONG, LL_E_UNSUPPORTED   seen here already; nothing was queued
 *   LL_E_DRAINING   the runtime is stopping; requests already open go on
 *   LL_E_TIMEOUT    the runtime hangs; nothing was queued, later calls may succeed
 *   LL_E_RUNTIME_LOST, LL_E_PROTOCOL, LL_E_FORKED   this handle is of no more use: open another
 * What only the runtime can tell (LL_E_BUSY, LL_E_NEVER_FITS, ...) comes as an ERROR output. */
LL_API int ll_client_submit(struct ll_client *client, const struct ll_request *request,
                            uint64_t *id_out);

/* Asks for an early end; the request still ends in one FINISH (LL_FINISH_CANCELLED), unless it
 * ended before. Unknown ids are ignored. Any thread. */
LL_API int ll_client_cancel(struct ll_client *client, uint64_t id);

/* The application found a stop string in a choice: that choice ends as LL_FINISH_STOP and counts
 * as a success; other choices go on. Tokens already on the way still arrive. */
LL_API int ll_client_stop(struct ll_client *client, uint64_t id, uint32_t choice);

/* ---- outputs ------------------------------------------------------------------------------*/
enum ll_output_type {
    LL_OUTPUT_TOKEN = 1,  /* one output token */
    LL_OUTPUT_TOP = 2,    /* top logprobs of the last TOKEN, n pairs, best first; `last` closes */
    LL_OUTPUT_PROMPT = 3, /* logprobs of prompt tokens index .. index + n - 1 */
    LL_OUTPUT_PROMPT_TOP = 4, /* n pairs of prompt top logprobs, n_prompt_top a position, flat */
    LL_OUTPUT_CHOICE = 5, /* a choice of n > 1 ended by itself */
    LL_OUTPUT_FINISH = 6, /* the request ended well; nothing follows */
    LL_OUTPUT_ERROR = 7,  /* the request failed; nothing follows */
};

enum ll_finish_reason {
    LL_FINISH_STOP = 1,      /* eos, a stop id, or ll_client_stop() */
    LL_FINISH_LENGTH = 2,    /* max_tokens or the context */
    LL_FINISH_CANCELLED = 3, /* ll_client_cancel(), or the handle closed */
};

struct ll_top_pair {
    uint32_t id;
    float logprob;
};

struct ll_output {
    uint64_t id;     /* of the request */
    uint64_t tag;    /* of the request */
    uint32_t type;   /* enum ll_output_type */
    uint32_t choice; /* 0 .. n - 1 */
    uint32_t index;  /* TOKEN, TOP: place of the token in the choice; PROMPT*: prompt position */
    uint32_t n;      /* entries of the array below that are valid */
    uint64_t t_ns;   /* CLOCK_MONOTONIC when the runtime wrote it */
    uint32_t last;   /* TOP, PROMPT_TOP: no more pairs for this token or position */
    uint32_t reserved;
    union {
        struct {
            uint32_t id;
            float logprob; /* natural log of the raw softmax; NaN where not computed */
        } token;
        struct ll_top_pair top[5];
        float prompt_logprob[10];
        struct {
            uint32_t reason;  /* enum ll_finish_reason */
            uint32_t stop_id; /* the id that ended it; UINT32_MAX: none */
            uint32_t n_out;
        } choice_end;
        struct {
            uint32_t reason;  /* of choice 0; CANCELLED: of all that had not ended */
            uint32_t stop_id; /* of choice 0 */
            uint32_t n_prompt;
            uint32_t n_cached; /* prompt tokens taken from the prefix cache */
            uint32_t n_out;    /* over all choices */
            uint32_t reserved;
            uint64_t ttft_ns;  /* submit seen by the runtime -> first token written */
            uint64_t total_ns; /* submit seen by the runtime -> this event */
        } finish;
        struct {
            int32_t code;      /* LL_E_* */
            uint32_t retry_ms; /* with LL_E_BUSY */
            char text[96];     /* one sentence, NUL-terminated */
        } error;
    } u;
};

/* Takes what has arrived, at most n_max outputs, in order within a request, without waiting.
 * Returns the count, 0 for none. A failure of the whole attachment (LL_E_RUNTIME_LOST, ...) first
 * comes as one ERROR output for each open request and then as this call's result. */
LL_API int ll_client_poll(struct ll_client *client, struct ll_output *out, int n_max);

/* The same for one request only; others stay queued. */
LL_API int ll_client_poll_request(struct ll_client *client, uint64_t id, struct ll_output *out,
                                  int n_max);

/* Flow control for one request: while it is held, ll_client_poll() and _wait() leave its outputs
 * queued and are not woken for them; the runtime stops that request alone when its window is full
 * and ends it as LL_E_STALLED after its stall timeout. Unknown ids are ignored. */
LL_API int ll_client_hold(struct ll_client *client, uint64_t id, int is_held);

/* ll_client_poll that waits until something arrives or timeout_ns is over (0: at once, -1: never).
 * Spins first (ll_client_options.spin_us), then sleeps. 0 on timeout. LL_E_TIMEOUT: the runtime
 * hangs; requests are still open and later calls may succeed. */
LL_API int ll_client_wait(struct ll_client *client, struct ll_output *out, int n_max,
                          int64_t timeout_ns);

/* For event loops: a descriptor that becomes readable when outputs may be there or the runtime has
 * gone. It is an epoll descriptor of the library's own: watch it for reading with poll, select or
 * another epoll, level-triggered, and never read, change or close it. LL_E_FORKED in a child. */
LL_API int ll_client_fd(const struct ll_client *client);
/* Arm before each sleep on that descriptor; after waking, poll.
 *   0  armed: sleep
 *   1  outputs, or the end of the attachment, are there already: do not sleep, poll
 *   LL_E_TIMEOUT  not armed: the runtime hangs. Requests are still open; try again after a second
 *   LL_E_FORKED   this process did not open the handle
 * A runtime that hangs wakes nobody: let the event loop come round once a second and arm again. */
LL_API int ll_client_arm(struct ll_client *client);

/* Requests submitted and not yet ended by an output the application has read. */
LL_API uint32_t ll_client_n_open(const struct ll_client *client);

/* ---- statistics ---------------------------------------------------------------------------
 * The runtime's counters, read from shared memory without asking it. */
struct ll_stat {
    const char *name; /* "requests_submitted", ...; static for the life of the handle */
    uint64_t value;   /* counter or gauge; a histogram's count */
    uint64_t p50, p90, p99, max, sum; /* histograms only, in the unit that ends the name; else 0 */
    uint32_t is_histogram;
    uint32_t reserved;
};
/* Reads up to n_max entries; returns how many there are. */
LL_API int ll_client_stats(const struct ll_client *client, struct ll_stat *out, int n_max);

#ifdef __cplusplus
}
#endif

#endif
