/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/gate.c - every field of struct ll_req has its range here, once (rule R6).
 *
 * Reads private copies only. A range is written so that NaN falls outside it. What the wire can say
 * and this runtime cannot do is LL_E_UNSUPPORTED, what nobody could do is LL_E_INVAL. */
#include "runtime/gate.h"

#include "base/assert.h"
#include "base/bits.h"
#include "ll/client.h"
#include "runtime/kv.h"

#include <stdarg.h>
#include <stdio.h>

/* The text is at most 31 bytes: "field: limit". */
static int refuse(struct ll_refusal *why, int32_t code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int refuse(struct ll_refusal *why, int32_t code, const char *format, ...)
{
    va_list args;

    *why = (struct ll_refusal){.code = code};
    va_start(args, format);
    vsnprintf(why->text, sizeof(why->text), format, args);
    va_end(args);
    return code;
}

/* low <= value <= high; false for NaN. */
static bool is_within(float value, float low, float high)
{
    return value >= low && value <= high;
}

static int check_reserved(const struct ll_req *copy, struct ll_refusal *why)
{
    uint32_t bits = copy->pad1;

    for (size_t i = 0; i < LL_COUNT(copy->pad0); i++)
        bits |= copy->pad0[i];
    for (size_t i = 0; i < LL_COUNT(copy->pad2); i++)
        bits |= copy->pad2[i];
    for (size_t i = 0; i < LL_COUNT(copy->pad3); i++)
        bits |= copy->pad3[i];
    if (bits != 0)
        return refuse(why, LL_E_INVAL, "reserved fields: must be 0");
    if ((copy->flags & ~(uint32_t)LL_REQ_FLAGS_ALL) != 0)
        return refuse(why, LL_E_INVAL, "flags: unknown bits");
    /* Relaxed: a private copy. */
    if (atomic_load_explicit(&copy->taken, memory_order_relaxed) != 0)
        return refuse(why, LL_E_INVAL, "taken: must start at 0");
    return 0;
}

static int check_abilities(const struct ll_gate_limits *limits, const struct ll_req *copy,
                           struct ll_refusal *why)
{
    if (copy->n < 1 || copy->n > LL_CHOICES_MAX)
        return refuse(why, LL_E_INVAL, "n: 1 to %u", LL_CHOICES_MAX);
    if (copy->n > limits->n_max)
        return refuse(why, LL_E_NEVER_FITS, "n: %u sequences, has %u", copy->n, limits->n_max);
    if (copy->n > 1 && copy->n > limits->n_ring_max)
        return refuse(why, LL_E_NEVER_FITS, "n: %u, ring has room for %u", copy->n,
                      limits->n_ring_max);
    if (copy->draft_max != 0 && !limits->has_draft)
        return refuse(why, LL_E_UNSUPPORTED, "draft_max: only 0 here");
    if (copy->adapter != 0 && limits->n_adapters == 0)
        return refuse(why, LL_E_UNSUPPORTED, "adapter: none loaded here");
    if (copy->adapter > limits->n_adapters)
        return refuse(why, LL_E_INVAL, "adapter: 0 to %u", limits->n_adapters);
    if ((copy->grammar_off | copy->grammar_bytes) != 0 && !limits->has_grammar)
        return refuse(why, LL_E_UNSUPPORTED, "grammar: none here");
    return 0;
}

static int check_sampling(const struct ll_gate_limits *limits, const struct ll_req *copy,
                          struct ll_refusal *why)
{
    if (!is_within(copy->temperature, 0.0f, 2.0f))
        return refuse(why, LL_E_INVAL, "temperature: 0 to 2");
    if (!(is_within(copy->top_p, 0.0f, 1.0f) && copy->top_p != 0.0f))
        return refuse(why, LL_E_INVAL, "top_p: above 0, at most 1");
    if (!is_within(copy->min_p, 0.0f, 1.0f))
        return refuse(why, LL_E_INVAL, "min_p: 0 to 1");
    if (!(is_within(copy->repetition, 0.0f, 10.0f) && copy->repetition != 0.0f))
        return refuse(why, LL_E_INVAL, "repetition: above 0, at most 10");
    if (!is_within(copy->frequency, -2.0f, 2.0f))
        return refuse(why, LL_E_INVAL, "frequency: -2 to 2");
    if (!is_within(copy->presence, -2.0f, 2.0f))
        return refuse(why, LL_E_INVAL, "presence: -2 to 2");
    if (copy->n_top > limits->n_top_max)
        return refuse(why, LL_E_INVAL, "n_top: 0 to %u", limits->n_top_max);
    if (copy->n_prompt_top > limits->n_top_max)
        return refuse(why, LL_E_INVAL, "n_prompt_top: 0 to %u", limits->n_top_max);
    if (copy->n_prompt_top != 0 && (copy->flags & LL_REQ_PROMPT_LOGPROBS) == 0)
        return refuse(why, LL_E_INVAL, "n_prompt_top: needs its flag");
    if (copy->n_stop > LL_STOP_MAX)
        return refuse(why, LL_E_INVAL, "n_stop: 0 to %u", LL_STOP_MAX);
    for (uint32_t i = 0; i < copy->n_stop; i++)
        if (copy->stop[i] >= limits->n_vocab)
            return refuse(why, LL_E_INVAL, "stop[%u]: below %u", i, limits->n_vocab);
    return 0;
}

static int check_spans(const struct ll_gate_limits *limits, const struct ll_req *copy,
                       struct ll_refusal *why)
{
    if (copy->prompt_off % 4 != 0 ||
        !ll_span_fits(copy->prompt_off, (uint64_t)copy->n_prompt * sizeof(uint32_t),
                      limits->arena_bytes))
        return refuse(why, LL_E_INVAL, "prompt: not in the arena");
    if (copy->n_bias > LL_BIAS_MAX)
        return refuse(why, LL_E_INVAL, "n_bias: 0 to %u", LL_BIAS_MAX);
    if (copy->bias_off % 4 != 0 ||
        !ll_span_fits(copy->bias_off, (uint64_t)copy->n_bias * sizeof(struct ll_bias),
                      limits->arena_bytes))
        return refuse(why, LL_E_INVAL, "bias: not in the arena");
    if (copy->grammar_off % 4 != 0 ||
        !ll_span_fits(copy->grammar_off, copy->grammar_bytes, limits->arena_bytes))
        return refuse(why, LL_E_INVAL, "grammar: not in the arena");
    return 0;
}

/* Prompt and output against the context and the whole empty page pool; *max_tokens is resolved. */
static int check_length(const struct ll_gate_limits *limits, const struct ll_req *copy,
                        uint32_t *max_tokens, struct ll_refusal *why)
{
    uint64_t pool_tokens = (uint64_t)limits->n_pages_total * LL_PAGE_TOKENS;

    if (copy->n_prompt < 1)
        return refuse(why, LL_E_INVAL, "n_prompt: 1 to %u", limits->n_prompt_max);
    if (copy->n_prompt > limits->n_prompt_max)
        return refuse(why, LL_E_TOO_LONG, "n_prompt: at most %u", limits->n_prompt_max);
    if ((uint64_t)copy->n_prompt + (copy->max_tokens != 0 ? copy->max_tokens : 1) >
        limits->context_max)
        return refuse(why, LL_E_TOO_LONG, "prompt+output: at most %u", limits->context_max);

    *max_tokens = copy->max_tokens;
    if (*max_tokens == 0) {
        *max_tokens = limits->context_max - copy->n_prompt;
        if (pool_tokens > copy->n_prompt)
            *max_tokens = (uint32_t)ll_min_u64(*max_tokens, pool_tokens - copy->n_prompt);
    }
    /* A sequence never books pages for more (sequence.h, Q4). */
    uint64_t n_tokens = (uint64_t)copy->n_prompt + *max_tokens;
    if (n_tokens > pool_tokens)
        return refuse(why, LL_E_NEVER_FITS, "pages: needs %u, has %u", ll_kv_pages_for(n_tokens),
                      limits->n_pages_total);
    if (copy->min_tokens > *max_tokens)
        return refuse(why, LL_E_INVAL, "min_tokens: at most %u", *max_tokens);
    return 0;
}

static void add_end(struct ll_sampling *sampling, uint32_t id)
{
    for (uint32_t i = 0; i < sampling->n_end; i++)
        if (sampling->end[i] == id)
            return;
    sampling->end[sampling->n_end++] = id;
}

/* x + 0 turns -0 into 0 and leaves the rest: the sampler compares with 0 in more than one way. */
static struct ll_sampling make_sampling(const struct ll_gate_limits *limits,
                                        const struct ll_req *copy)
{
    struct ll_sampling s = {
        .temperature = copy->temperature + 0.0f,
        .top_p = copy->top_p,
        .min_p = copy->min_p + 0.0f,
        .repetition = copy->repetition,
        .frequency = copy->frequency + 0.0f,
        .presence = copy->presence + 0.0f,
        /* The whole vocabulary or more is no restriction. */
        .top_k = copy->top_k >= limits->n_vocab ? 0 : copy->top_k,
        .min_tokens = copy->min_tokens,
    };

    static_assert(LL_EOS_MAX + LL_STOP_MAX <= LL_END_IDS_MAX, "all end ids have a place");
    if ((copy->flags & LL_REQ_IGNORE_EOS) == 0)
        for (uint32_t i = 0; i < limits->n_eos; i++)
            add_end(&s, limits->eos[i]);
    for (uint32_t i = 0; i < copy->n_stop; i++)
        add_end(&s, copy->stop[i]);
    return s;
}

int ll_gate_request(const struct ll_gate_limits *limits, const struct ll_req *copy,
                    struct ll_seq *out, struct ll_refusal *why)
{
    uint32_t max_tokens = 0;
    int rc = check_reserved(copy, why);

    if (rc == 0)
        rc = check_abilities(limits, copy, why);
    if (rc == 0)
        rc = check_length(limits, copy, &max_tokens, why);
    if (rc == 0)
        rc = check_spans(limits, copy, why);
    if (rc == 0)
        rc = check_sampling(limits, copy, why);
    if (rc < 0)
        return rc;

    out->tag = copy->tag;
    out->n_prompt = copy->n_prompt;
    out->max_tokens = max_tokens;
    out->flags = copy->flags;
    out->n_top = copy->n_top;
    out->n_prompt_top = copy->n_prompt_top;
    out->priority = copy->priority;
    out->tenant = copy->tenant;
    out->adapter = copy->adapter;
    out->salt[0] = copy->salt[0];
    out->salt[1] = copy->salt[1];
    out->deadline_ns = copy->deadline_ns;
    out->seed = copy->seed;
    out->sampling = make_sampling(limits, copy);
    out->n_bias = copy->n_bias;
    out->prompt_off = copy->prompt_off;
    out->bias_off = copy->bias_off;
    return 0;
}

/* Is one of n ids not below n_vocab? Without a branch an id, so that the compiler takes several at
 * once: with n_vocab <= 2^31 the difference or the id itself has its top bit set exactly then. */
static bool has_foreign(const uint32_t *id, uint32_t n, uint32_t n_vocab)
{
    uint32_t any = 0;

    for (uint32_t i = 0; i < n; i++)
        any |= (n_vocab - 1 - id[i]) | id[i];
    return any >> 31 != 0;
}

#define IDS_AT_ONCE 256u /* a constant: loops of known length are vectorised by -O2 */

int ll_gate_prompt(const struct ll_gate_limits *limits, const struct ll_seq *seq, uint32_t from,
                   uint32_t to, struct ll_refusal *why)
{
    const uint32_t *id = seq->token;
    uint32_t i = from;

    LL_ASSERT(limits->n_vocab > 0 && limits->n_vocab <= 1u << 31);
    while (to - i >= IDS_AT_ONCE && !has_foreign(id + i, IDS_AT_ONCE, limits->n_vocab))
        i += IDS_AT_ONCE;
    for (; i < to; i++)
        if (id[i] >= limits->n_vocab)
            return refuse(why, LL_E_INVAL, "prompt[%u]: below %u", i, limits->n_vocab);
    return 0;
}

int ll_gate_bias(const struct ll_gate_limits *limits, const struct ll_seq *seq,
                 struct ll_refusal *why)
{
    for (uint32_t i = 0; i < seq->n_bias; i++) {
        if (seq->bias[i].id >= limits->n_vocab)
            return refuse(why, LL_E_INVAL, "bias[%u].id: below %u", i, limits->n_vocab);
        if (!is_within(seq->bias[i].bias, -100.0f, 100.0f))
            return refuse(why, LL_E_INVAL, "bias[%u]: -100 to 100", i);
    }
    return 0;
}
