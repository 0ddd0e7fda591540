/* SPDX-License-Identifier: Apache-2.0 */
/* shm/wire.h - the bytes two processes share: regions, slots, events, words, messages.
 *
 * Little-endian, fixed widths, explicit padding; every size and offset is asserted below and
 * dumped in tests/data/wire.golden. Not installed: only libllclient and llringd read it. A reader
 * takes offsets and strides from the OFFER message, never from sizeof.
 *
 *   INFO   one per runtime     written by the runtime, read-only to clients
 *   REQ    one per attachment  written by the client; the runtime only CASes wait_word
 *   RSP    one per attachment  written by the runtime, read-only to the client
 *   BELL   one per domain      words CASed by its clients and emptied by the runtime
 *   STAT   one per runtime     written by the runtime, read-only to clients (shm/stat.h)
 *   TOK    one per runtime     the tokenizer image (client/text/image.h), read-only to all
 *
 * W1  Each shared word has one writer, except BELL words and tail (CAS) and wait_word (the client
 *     sets it, the runtime CASes it to 0).
 * W2  The runtime reads a client-written word once, atomically, and checks the copy.
 * W3  Every generation is 24 bits, counts up a submit, and skips 0; events carry its low 16.
 * W4  A request's terminal event (FINISH, ERROR) is its last event. */
#ifndef SHM_WIRE_H
#define SHM_WIRE_H

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* Major must match; minor = the smaller of both sides. */
#define LL_ABI_MAJOR 1
#define LL_ABI_MINOR 0

#define LL_MAGIC8(s)                                                                               \
    ((uint64_t)(s)[0] | (uint64_t)(s)[1] << 8 | (uint64_t)(s)[2] << 16 | (uint64_t)(s)[3] << 24 |  \
     (uint64_t)(s)[4] << 32 | (uint64_t)(s)[5] << 40 | (uint64_t)(s)[6] << 48 |                    \
     (uint64_t)(s)[7] << 56)
#define LL_INFO_MAGIC LL_MAGIC8("LLINFO01")
#define LL_REQ_MAGIC  LL_MAGIC8("LLREQ_01")
#define LL_RSP_MAGIC  LL_MAGIC8("LLRSP_01")
#define LL_BELL_MAGIC LL_MAGIC8("LLBELL01")
#define LL_STAT_MAGIC LL_MAGIC8("LLSTAT01")

/* Limits of the wire; the runtime's configuration can only be tighter. */
#define LL_ATTACHMENTS_MAX 512u /* client id has 9 bits */
#define LL_SLOTS_MIN       16u
#define LL_SLOTS_MAX       1024u /* slot has 10 bits */
#define LL_ARENA_BYTES_MAX (64u << 20)
#define LL_STOP_MAX        8u
#define LL_BIAS_MAX        1024u
#define LL_TOP_MAX         20u
#define LL_CHOICES_MAX     128u
#define LL_EOS_MAX         8u
#define LL_WINDOW_EVENTS   256u /* per request: events written and not yet taken */

/* ---- INFO ---------------------------------------------------------------------------------*/
enum ll_runtime_state { LL_RT_STARTING = 1, LL_RT_READY = 2, LL_RT_DRAINING = 3, LL_RT_DEAD = 4 };

struct ll_adapter_entry {
    char name[56];
    uint32_t id;         /* 1.. ; 0 = entry unused */
    uint32_t generation; /* +1 each time the name is loaded anew */
};

#define LL_ADAPTERS_MAX  512u
#define LL_INFO_BYTES    65536u

struct ll_info_region {
    uint64_t magic; /* LL_INFO_MAGIC */
    uint16_t abi_major, abi_minor;
    uint32_t size_bytes;
    uint64_t epoch; /* random per start */
    uint32_t pid;
    uint32_t n_vocab;
    uint32_t context_max;
    uint32_t n_prompt_max;
    uint32_t reserved0[6];
    /* 64: 1 while the step thread sleeps; written relaxed between seq_cst fences (shm/wait.h) */
    _Atomic uint32_t rt_sleeping;
    uint32_t reserved1[15];
    /* 128: CLOCK_MONOTONIC of the step loop's last turn, stored at least every 100 ms */
    _Atomic uint64_t heartbeat_ns;
    uint64_t reserved2[7];
    /* 192 */
    _Atomic uint32_t rt_state; /* enum ll_runtime_state */
    _Atomic uint32_t rt_reason;  /* LL_E_* negated, with LL_RT_DEAD */
    uint64_t weights_epoch; /* counts reloads */
    /* 208: a reload changes weights_epoch, name and the five of default sampling under this sequence
     * lock: odd while they are being written */
    _Atomic uint32_t model_seq;
    uint32_t reserved7;
    uint64_t reserved3[5];
    /* 256 */
    char name[128];
    char chat_format[32];
    char backend[16];
    char dtype[16];
    /* 448 */
    uint32_t bos; /* UINT32_MAX: none */
    uint32_t n_eos;
    uint32_t eos[LL_EOS_MAX];
    float temperature, top_p, min_p, repetition_penalty;
    uint32_t top_k;
    uint32_t n_max, n_top_max, n_stop_max, n_bias_max;
    uint32_t reserved4;
    /* 528 */
    uint64_t window_events;
    uint64_t reserved5[445];
    /* 4096: adapters under a sequence lock: odd while being written */
    _Atomic uint32_t adapters_seq;
    uint32_t n_adapters;
    uint64_t reserved6[7];
    struct ll_adapter_entry adapter[LL_ADAPTERS_MAX]; /* 4160 */
};

/* ---- BELL: the request ring's word ----------------------------------------------------------
 * 63..32 lap | 31 full | 30..29 op | 28..20 client | 19..10 incarnation | 9..0 slot
 * x = word >> 31 is 2 * lap when EMPTY and 2 * lap + 1 when FULL. */
enum ll_op { LL_OP_SUBMIT = 0, LL_OP_CANCEL = 1, LL_OP_STOP = 2 };

static inline uint32_t ll_word_pack(enum ll_op op, uint32_t client, uint32_t incarnation,
                                    uint32_t slot)
{
    return (uint32_t)op << 29 | (client & 0x1ffu) << 20 | (incarnation & 0x3ffu) << 10 |
           (slot & 0x3ffu);
}
static inline uint32_t ll_word_op(uint64_t word) { return (uint32_t)(word >> 29) & 3u; }
static inline uint32_t ll_word_client(uint64_t word) { return (uint32_t)(word >> 20) & 0x1ffu; }
static inline uint32_t ll_word_incarnation(uint64_t word)
{
    return (uint32_t)(word >> 10) & 0x3ffu;
}
static inline uint32_t ll_word_slot(uint64_t word) { return (uint32_t)word & 0x3ffu; }

/* Head of a BELL, alone in its region or inside REQ (--isolate client). */
struct ll_bell_head {
    uint64_t magic;
    uint32_t log2_words;
    uint32_t reserved0[13];
    _Atomic uint32_t ring_gen; /* 64: +1 at each repair */
    uint32_t reserved1[15];
    _Atomic uint64_t tail_hint; /* 128: first position that may be EMPTY; a low value is safe */
    uint64_t reserved2[15];
    _Atomic uint64_t word[]; /* 256 */
};

/* ---- REQ ------------------------------------------------------------------------------------
 * Head page, hot lines at off_hot (staggered by client id, so that 512 clients' lines do not fall
 * into one L1 set), slots, own bell (isolate mode), arena. */
struct ll_req_head {
    uint64_t magic;
    uint16_t abi_major, abi_minor;
    uint32_t size_bytes;
    uint32_t client_id, incarnation;
    uint32_t n_slots, slot_bytes;
    uint32_t off_hot, off_slots;
    uint32_t off_bell, off_arena; /* off_bell 0: the domain's BELL region */
    uint32_t arena_bytes;
    uint32_t reserved[19];
};

struct ll_req_hot {
    _Atomic uint32_t wait_word; /* 0 running, 1 asleep on the wake descriptor */
    uint32_t reserved0[15];
    _Atomic uint64_t cons_pos; /* events read; stored every 64 events and before sleeping */
    uint64_t reserved1[7];
    _Atomic uint64_t n_submitted; /* doorbells meant: submits, cancels, stops */
    uint64_t reserved2[7];
};

/* The generation after gen (W3); 0 before the first. */
static inline uint32_t ll_gen_next(uint32_t gen) { return gen >= 0xffffffu ? 1 : gen + 1; }

#define LL_SLOT_FREE      0u
#define LL_SLOT_SUBMITTED 1u

enum ll_req_flags { /* ll_req.flags: as enum ll_request_flags of ll/client.h */
    LL_REQ_IGNORE_EOS = 1u << 0,
    LL_REQ_PROMPT_LOGPROBS = 1u << 1,
    LL_REQ_NO_CACHE = 1u << 2,
    LL_REQ_FLAGS_ALL = 7u,
};

/* One request: written by the client while its slot is free, read by the runtime after SUBMITTED.
 * Offsets are bytes into the arena, 4-aligned. */
struct ll_req {
    _Atomic uint32_t state;      /* gen << 8 | LL_SLOT_*: SUBMITTED stored with release, last */
    _Atomic uint32_t cancel_gen; /* gen to be cancelled; 0 none */
    uint64_t tag;
    uint32_t prompt_off, n_prompt; /* 16 */
    uint32_t max_tokens, min_tokens;
    uint64_t deadline_ns, seed; /* 32 */
    uint32_t flags;             /* 48 LL_REQ_* */
    uint16_t n;
    int8_t priority;
    uint8_t n_top;
    uint8_t n_prompt_top; /* 56 */
    uint8_t pad0[3];
    uint32_t pad1;
    float temperature, top_p, min_p, repetition, frequency, presence; /* 64 */
    uint32_t top_k, n_stop;                                           /* 88 */
    uint32_t stop[LL_STOP_MAX];                                       /* 96 */
    uint32_t bias_off, n_bias;                                        /* 128 ll_logit_bias[] */
    uint32_t grammar_off, grammar_bytes;                              /* 136 */
    uint32_t adapter, tenant;                                         /* 144 */
    uint64_t salt[2];                                                 /* 152 */
    uint32_t draft_max;                                               /* 168 */
    uint32_t pad2[5];                                                 /* 172 */
    _Atomic uint32_t taken;          /* 192 events of this request the application has consumed */
    _Atomic uint32_t stop_choice[4]; /* 196 bit c: the application ended choice c (op STOP) */
    uint32_t pad3[11];
};

/* ---- RSP ----------------------------------------------------------------------------------*/
struct ll_rsp_head {
    uint64_t magic;
    uint16_t abi_major, abi_minor;
    uint32_t size_bytes;
    uint32_t client_id, incarnation;
    uint32_t n_slots, log2_events;
    uint32_t off_slots, off_events;
    uint32_t reserved0[6];
    _Atomic uint32_t client_state; /* 64 enum ll_client_state */
    _Atomic int32_t client_reason; /* LL_E_* with FENCED */
    uint32_t reserved1[14];
    _Atomic uint64_t prod_pos; /* 128 statistics only */
    uint64_t reserved2[7];
};

enum ll_client_state { LL_CLIENT_ATTACHED = 1, LL_CLIENT_FENCED = 2, LL_CLIENT_GONE = 3 };

enum ll_slot_phase {
    LL_PHASE_IDLE = 0,
    LL_PHASE_ACCEPTED = 1, /* slot and arena copied: the arena space is the client's again */
    LL_PHASE_RUNNING = 2,
    LL_PHASE_DONE = 3, /* terminal event written; also for a refused request */
};

struct ll_rst {
    _Atomic uint32_t state; /* gen << 8 | enum ll_slot_phase, stored with release */
    int32_t status;
    uint32_t n_out, n_cached;
    uint64_t t_seen_ns, t_first_ns, t_last_ns;
    uint64_t reserved[3];
};

enum ll_event_type {
    LL_EV_TOKEN = 1,
    LL_EV_BURST = 2, /* up to 10 ids without logprobs: for speculation */
    LL_EV_TOP = 3,
    LL_EV_PROMPT = 4,
    LL_EV_PROMPT_TOP = 5,
    LL_EV_CHOICE = 6,
    LL_EV_FINISH = 7,
    LL_EV_ERROR = 8,
};
#define LL_EV_LAST 1u /* flags: last TOP of a token, last PROMPT_TOP of a position */

struct ll_event {
    _Atomic uint32_t seq; /* low 32 bits of position + 1, stored last with release */
    uint8_t type, flags, n, choice;
    uint16_t slot, gen;
    uint32_t index;
    uint64_t t_ns;
    union { /* 24 */
        struct {
            uint32_t id;
            float logprob;
        } token;
        uint32_t burst[10];
        struct {
            uint32_t id;
            float logprob;
        } top[5];
        float prompt[10];
        struct {
            uint32_t reason, stop_id, n_out;
        } choice_end;
        struct {
            uint32_t reason, stop_id, n_prompt, n_cached;
            uint32_t n_out, ttft_us;
            uint64_t total_ns;
        } finish;
        struct {
            int32_t code;
            uint32_t retry_ms;
            char text[32]; /* NUL-terminated: which field, which limit */
        } error;
        uint8_t raw[40];
    } u;
};

/* ---- control socket (SOCK_SEQPACKET) ------------------------------------------------------------
 * c->s HELLO   s->c OFFER + descriptors | REFUSE   c->s MAPPED   s->c READY
 * later: c->s SWEEP (at most 10/s), BYE; s->c KICK, DRAIN. The runtime never accepts descriptors. */
#define LL_MSG_MAGIC     0x314d4c4cu /* "LLM1" */
#define LL_MSG_BYTES_MAX 512u
#define LL_ATTACH_NS     1000000000ull /* a stage that takes longer ends the attach */

enum ll_msg_type {
    LL_MSG_HELLO = 1,
    LL_MSG_OFFER = 2,
    LL_MSG_MAPPED = 3,
    LL_MSG_READY = 4,
    LL_MSG_REFUSE = 5,
    LL_MSG_SWEEP = 6,
    LL_MSG_BYE = 7,
    LL_MSG_KICK = 8,
    LL_MSG_DRAIN = 9,
};

struct ll_msg_head {
    uint32_t magic;
    uint16_t type;
    uint16_t size_bytes; /* of the whole message */
};

struct ll_msg_hello {
    struct ll_msg_head head;
    uint16_t abi_major, abi_minor;
    uint32_t features; /* 0 */
    uint32_t n_slots;  /* wanted; the offer may be lower */
    uint32_t arena_bytes;
    uint32_t pid_hint;
    uint32_t reserved0;
    char name[64]; /* NUL-terminated */
    uint32_t reserved[8];
};

/* Descriptors follow the OFFER in this order; a bit not set in fd_mask has none. */
enum ll_offer_fd {
    LL_FD_INFO = 0,
    LL_FD_REQ = 1,
    LL_FD_RSP = 2,
    LL_FD_KICK = 3, /* eventfd the client writes to wake the runtime */
    LL_FD_WAKE = 4, /* stream socket: readable when the runtime wakes the client (wait.h S3) */
    LL_FD_TOK = 5,
    LL_FD_STAT = 6,
    LL_FD_BELL = 7,
    LL_FD_COUNT = 8,
};

struct ll_msg_offer {
    struct ll_msg_head head;
    uint16_t abi_major, abi_minor;
    uint32_t features;
    uint64_t epoch;
    uint32_t client_id, incarnation;
    uint32_t fd_mask;
    uint32_t flags; /* 0 */
    uint64_t info_bytes, req_bytes, rsp_bytes, tok_bytes, stat_bytes, bell_bytes;
    uint32_t req_off_hot, req_off_slots, req_off_bell, req_off_arena;
    uint32_t arena_bytes, n_slots, req_slot_bytes, bell_log2;
    uint32_t rsp_off_slots, rsp_off_events, rsp_log2_events, rsp_slot_bytes;
    uint32_t reserved[16];
};

struct ll_msg_mapped {
    struct ll_msg_head head;
    uint64_t epoch;
};

struct ll_msg_ready {
    struct ll_msg_head head;
    uint64_t epoch;
};

struct ll_msg_refuse { /* REFUSE and KICK */
    struct ll_msg_head head;
    int32_t code; /* LL_E_* */
    uint32_t abi_min, abi_max; /* major << 16 | minor of the runtime, with LL_E_ABI */
    char text[192];
};

struct ll_msg_plain { /* SWEEP, BYE */
    struct ll_msg_head head;
};

struct ll_msg_drain {
    struct ll_msg_head head;
    uint64_t deadline_ns;
};

/* ---- the layout, asserted -------------------------------------------------------------------*/
#define LL_AT(type, field, offset) static_assert(offsetof(type, field) == (offset), #type "." #field)

static_assert(sizeof(struct ll_info_region) <= LL_INFO_BYTES, "INFO fits its region");
LL_AT(struct ll_info_region, rt_sleeping, 64);
LL_AT(struct ll_info_region, heartbeat_ns, 128);
LL_AT(struct ll_info_region, rt_state, 192);
LL_AT(struct ll_info_region, name, 256);
LL_AT(struct ll_info_region, bos, 448);
LL_AT(struct ll_info_region, window_events, 528);
LL_AT(struct ll_info_region, adapters_seq, 4096);
LL_AT(struct ll_info_region, adapter, 4160);
static_assert(sizeof(struct ll_adapter_entry) == 64, "adapter entry");
LL_AT(struct ll_bell_head, ring_gen, 64);
LL_AT(struct ll_bell_head, tail_hint, 128);
LL_AT(struct ll_bell_head, word, 256);
static_assert(sizeof(struct ll_req_head) == 128, "REQ head");
static_assert(sizeof(struct ll_req_hot) == 192, "REQ hot lines");
static_assert(sizeof(struct ll_req) == 256, "request slot");
LL_AT(struct ll_req, prompt_off, 16);
LL_AT(struct ll_req, deadline_ns, 32);
LL_AT(struct ll_req, flags, 48);
LL_AT(struct ll_req, n_prompt_top, 56);
LL_AT(struct ll_req, temperature, 64);
LL_AT(struct ll_req, top_k, 88);
LL_AT(struct ll_req, stop, 96);
LL_AT(struct ll_req, bias_off, 128);
LL_AT(struct ll_req, grammar_off, 136);
LL_AT(struct ll_req, adapter, 144);
LL_AT(struct ll_req, salt, 152);
LL_AT(struct ll_req, draft_max, 168);
LL_AT(struct ll_req, taken, 192);
LL_AT(struct ll_req, stop_choice, 196);
static_assert(sizeof(struct ll_rsp_head) == 192, "RSP head");
LL_AT(struct ll_rsp_head, client_state, 64);
LL_AT(struct ll_rsp_head, prod_pos, 128);
static_assert(sizeof(struct ll_rst) == 64, "response slot");
static_assert(sizeof(struct ll_event) == 64, "event");
LL_AT(struct ll_event, type, 4);
LL_AT(struct ll_event, slot, 8);
LL_AT(struct ll_event, index, 12);
LL_AT(struct ll_event, t_ns, 16);
LL_AT(struct ll_event, u, 24);
static_assert(sizeof(struct ll_msg_hello) == 128, "HELLO");
static_assert(sizeof(struct ll_msg_offer) <= LL_MSG_BYTES_MAX, "OFFER");
static_assert(sizeof(struct ll_msg_refuse) <= LL_MSG_BYTES_MAX, "REFUSE");

#endif
