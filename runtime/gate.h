/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/gate.h - rule R6: nothing reaches the scheduler that this file has not proved.
 *
 * Pure: it checks private copies and knows no client memory, no clock, no device. Every field of a
 * request has its range here, once; a refusal names the field and the limit in at most 31 bytes for
 * the ERROR event. */
#ifndef RUNTIME_GATE_H
#define RUNTIME_GATE_H

#include "runtime/sequence.h"

struct ll_gate_limits {
    uint32_t n_vocab, context_max, n_prompt_max;
    uint32_t n_pages_total; /* what the whole empty pool holds */
    uint32_t arena_bytes;   /* of this client */
    uint32_t n_max;         /* choices: sequences there are */
    uint32_t n_ring_max;    /* choices that this client's ring has room for */
    uint32_t n_top_max;
    uint32_t n_adapters;
    uint32_t n_eos;
    uint32_t eos[LL_EOS_MAX];
    bool has_grammar, has_draft; /* what this runtime can do */
};

struct ll_refusal {
    int32_t code; /* LL_E_* */
    uint32_t retry_ms;
    char text[32];
};

/* Checks the fixed part (a private copy of struct ll_req) and fills the sequence's parameters.
 * 0, or a negative code with *why filled. */
int ll_gate_request(const struct ll_gate_limits *limits, const struct ll_req *copy,
                    struct ll_seq *out, struct ll_refusal *why);

/* Checks prompt ids [from, to) of the copy in seq->token; then, once, the biases. */
int ll_gate_prompt(const struct ll_gate_limits *limits, const struct ll_seq *seq, uint32_t from,
                   uint32_t to, struct ll_refusal *why);
int ll_gate_bias(const struct ll_gate_limits *limits, const struct ll_seq *seq,
                 struct ll_refusal *why);

#endif
