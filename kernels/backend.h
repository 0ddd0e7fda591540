/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/backend.h - the seam: a backend takes whole steps.
 *
 * The only kernels/ header others include. One implementation a device kind: fake (tests), cpu (the
 * definition of the model), cuda (fused). A backend may fuse, capture, run ahead or run one
 * persistent kernel: nothing here forbids it.
 *
 *   B1  batches run in submission order, at most caps.depth in flight; submit copies its arguments
 *   B2  a device slot is a cache of host truth: an init rebuilds it at any time (penalty counts
 *       from hist, the random stream from the position), so preemption needs no read-back
 *   B3  a page in a copy belongs to the copy from the end of the last batch submitted before it
 *       until its ticket is done; rows may still read one that is copied to the host
 *   B4  a LATE_MASK row's sampler waits for its mask; the forward pass does not
 *   B5  feed slices for ranks, merges, interleaves, converts, quantises; staging is reusable when
 *       its ticket is done; seal tunes, captures, warms
 *   B6  poll never blocks, may do work (caps.poll_works), and itself reports a sticky error or a
 *       step past 1 s (log once) and past 5 s (error). After an error only close is allowed
 *   B7  errors come as text in the caller's struct ll_text (a backend may be a dlopened module)
 *   B8  logprobs are of the raw logits, natural log, before bias, penalties and temperature
 *
 *   B9  with n_weights 2, begin opens a set anew that no batch in flight names; until its seal none
 *       names it. That set is then loaded beside running steps: what the other set computes does not
 *       change, by a bit or by a failed load, and a set whose load was given up may be begun again
 *
 * THREADS  open, begin, want, pin, feed, fed, seal, close: one loader thread; submit, poll,
 *          late_mask, copy, copied: the step thread. Before the first seal and from close on never
 *          both; after it begin, want, pin, feed, fed and seal may run beside the step thread (B9).
 *
 * THE SAMPLER, the same in every backend, per row, in this order:
 *   1  raw logits x[v] give the logprobs: x[v] - logsumexp(x)
 *   2  while (tokens sampled so far) < min_tokens: x[end[i]] = -inf
 *   3  x[bias.id] += bias.bias
 *   4  repetition: for ids seen in prompt or output, x = x > 0 ? x / r : x * r
 *   5  frequency, presence: x -= frequency * count + presence * (count > 0), over output ids
 *   6  temperature 0: the largest x, ties to the lower id, done; else x /= temperature
 *   7  min_p: drop v with p[v] < min_p * max p
 *   8  top_k: keep the k largest of what is left (ties to the lower id)
 *   9  top_p: of p renormalised over what is left, keep the shortest prefix, by falling p (ties to
 *      the lower id), whose sum is >= top_p
 *  10  the largest of x[v] + g[v], g[v] = -log(-log(u)), u = ll_unit_f32(philox4x32(key = seed,
 *      counter = {v / 4, position, choice, 0})[v % 4]), position = place in the sequence that the
 *      new token takes. So a draw depends on (seed, choice, position) and nothing else.
 * A NaN among the raw logits makes the row's status LL_ROW_NAN; the request fails, the step not. */
#ifndef KERNELS_BACKEND_H
#define KERNELS_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LL_BACKEND_ABI    1u
#define LL_PAGE_TOKENS    64u /* B: tokens a KV page holds */
#define LL_ROW_TOKENS_MAX 8u  /* tokens one row can sample in a step (speculation) */
#define LL_END_IDS_MAX    16u /* eos (8) + stop (8) */
#define LL_EXT_TOP_MAX    20u

struct ll_text {
    char s[400];
};

/* ---- the model ------------------------------------------------------------------------------*/
enum ll_dtype {
    LL_DTYPE_F32 = 1,
    LL_DTYPE_BF16 = 2,
    LL_DTYPE_F16 = 3,
    LL_DTYPE_E4M3 = 4,
};

enum ll_rope_type { LL_ROPE_PLAIN = 0, LL_ROPE_LLAMA3 = 1 };

struct ll_model_shape {
    uint32_t n_layers;   /* L */
    uint32_t n_embd;     /* E */
    uint32_t n_heads;    /* H */
    uint32_t n_kv_heads; /* K, divides H */
    uint32_t head_dim;   /* D, even */
    uint32_t n_ff;       /* F */
    uint32_t n_vocab;    /* V */
    uint32_t context_max;
    bool is_tied; /* the head is the embedding */
    enum ll_rope_type rope;
    float rms_eps;
    double rope_theta;
    double rope_factor, rope_low_freq, rope_high_freq; /* llama3 */
    uint32_t rope_original_context;
};

/* HF names and layouts: weights are [out][in] row-major; Q and K rows are in the half-split order
 * (rotation pairs i and i + D/2). */
enum ll_tensor_role {
    LL_TENSOR_EMBED = 0,  /* [V, E] */
    LL_TENSOR_ATTN_NORM,  /* [E] */
    LL_TENSOR_Q,          /* [H*D, E] */
    LL_TENSOR_K,          /* [K*D, E] */
    LL_TENSOR_V,          /* [K*D, E] */
    LL_TENSOR_O,          /* [E, H*D] */
    LL_TENSOR_FFN_NORM,   /* [E] */
    LL_TENSOR_GATE,       /* [F, E] */
    LL_TENSOR_UP,         /* [F, E] */
    LL_TENSOR_DOWN,       /* [E, F] */
    LL_TENSOR_FINAL_NORM, /* [E] */
    LL_TENSOR_HEAD,       /* [V, E]; absent when tied */
    LL_TENSOR_ROLES,
};

enum ll_tensor_part {
    LL_PART_WEIGHT = 0,
    LL_PART_SCALE = 1,       /* multiplies the weight: rows, cols are 1, 1 or out, 1 or
                                ceil(out/128), ceil(in/128) */
    LL_PART_INPUT_SCALE = 2, /* static activation scale, 1, 1 */
    LL_PART_KV_SCALE = 3,    /* with role K or V: scale of what the cache stores, 1, 1 or K, 1 */
};

struct ll_tensor {
    enum ll_tensor_role role;
    enum ll_tensor_part part;
    uint32_t layer; /* 0 for the ones without */
    enum ll_dtype dtype;
    uint32_t rows, cols; /* vectors: rows = 1 */
    uint64_t size_bytes;
};

struct ll_span { /* bytes of a tensor that some rank needs */
    uint64_t offset, size_bytes;
    uint32_t rank;
};

/* ---- open -----------------------------------------------------------------------------------*/
struct ll_backend_options {
    uint32_t struct_bytes;
    uint32_t n_slots;          /* device slots: sequences that run at once */
    uint32_t n_pages;          /* KV pages; 0: from kv_bytes */
    uint32_t n_host_pages;     /* pages for swap; 0: none */
    uint64_t kv_bytes;         /* memory for KV pages; 0: from memory_fraction */
    float memory_fraction;     /* of the device's memory, weights included; 0: backend's choice */
    uint32_t n_tokens_max;     /* tokens a batch, over all rows */
    uint32_t n_rows_max;       /* rows a batch */
    uint32_t pages_per_seq;    /* page table row length */
    uint32_t tensor_parallel;  /* ranks; 1 */
    uint32_t n_weights;        /* weight sets kept at once: 1, or 2 for reload */
    enum ll_dtype dtype;       /* of compute: BF16 or F32 */
    enum ll_dtype kv_dtype;    /* BF16, F32, E4M3; 0: as dtype */
    uint32_t n_threads;        /* cpu: workers, the step thread included; 0: one */
    const int *cpus;           /* [n_threads] CPU of each worker, -1 anywhere; NULL: not pinned */
    int numa_node;             /* -1: any */
    bool is_deterministic;
    bool has_dummy_weights;    /* random weights made by the backend; nothing is fed */
    uint64_t seed;             /* of dummy weights */
    float activation_max;      /* of a row narrowed to FP8, what is larger saturates; 0: any */
    const char *extra;         /* backend's own "key=value,..."; NULL. fake: see kernels/fake */
};

struct ll_backend_caps {
    uint32_t depth;       /* batches in flight, 1 or 2 */
    uint32_t n_ranks;
    uint32_t n_pages;     /* what was made */
    uint32_t n_host_pages;
    uint64_t weights_bytes, kv_bytes, host_kv_bytes;
    bool poll_works;      /* poll does the work: call it again and again, do not sleep */
    bool late_mask;
    char device[64];      /* "2 threads, AVX-512", "NVIDIA H200" */
    char pci[16];         /* bus id of the first GPU, "0000:3b:00.0"; "": none */
};

/* ---- a step -----------------------------------------------------------------------------------*/
struct ll_sampling {
    float temperature, top_p, min_p;
    float repetition, frequency, presence;
    uint32_t top_k;      /* 0: off */
    uint32_t min_tokens; /* end ids are barred until so many are sampled */
    uint32_t n_end;
    uint32_t end[LL_END_IDS_MAX];
};

struct ll_bias {
    uint32_t id;
    float bias;
};

/* Makes or rebuilds a device slot. hist: prompt ids, then ids sampled before (after a preemption).
 * Tokens sampled so far = position of the next token - n_prompt. */
struct ll_slot_init {
    uint32_t slot, adapter, choice, n_prompt, n_hist;
    const uint32_t *hist;
    uint64_t seed;
    struct ll_sampling s;
    const struct ll_bias *bias;
    uint32_t n_bias;
};

/* Page table of slot: entries [first, first + n) become page[0 .. n). */
struct ll_pages_set {
    uint32_t slot, first, n;
    const uint32_t *page;
};

enum ll_row_flags {
    LL_ROW_SAMPLE = 1u << 0,          /* sample after the last token; without: prefill only */
    LL_ROW_VERIFY = 1u << 1,          /* the last n_tokens - 1 ids are drafts */
    LL_ROW_PROMPT_LOGPROBS = 1u << 2, /* score: the target of position p is token[p + 1 - pos] */
    LL_ROW_LATE_MASK = 1u << 3,
};

/* A row runs n_tokens ids at positions pos .. pos + n_tokens - 1 of its slot, attending to all
 * earlier positions. token NULL: n_tokens is 1 and the id is what the device sampled last for this
 * slot (run-ahead); pos is then exact without VERIFY in flight, else a lower bound.
 * With PROMPT_LOGPROBS and without SAMPLE, token has n_tokens + 1 ids: the last is a target only. */
struct ll_row {
    uint32_t slot, pos, n_tokens;
    const uint32_t *token;
    uint16_t flags;
    uint8_t n_top, n_prompt_top;
};

struct ll_batch {
    uint32_t weights; /* weight set, 0 or 1 */
    uint32_t n_inits, n_pages_sets, n_rows;
    const struct ll_slot_init *inits; /* applied first */
    const struct ll_pages_set *pages; /* then these */
    const struct ll_row *rows;        /* at most one a slot */
};

enum ll_row_status { LL_ROW_OK = 0, LL_ROW_NAN = 1 };

struct ll_ext {
    uint32_t id;
    float logprob;
};

/* One a row of the batch, in its order. ext: n_top pairs for each sampled token, best first; then
 * with PROMPT_LOGPROBS, for each scored position: the target's pair and n_prompt_top pairs. */
struct ll_row_out {
    uint32_t slot;
    uint8_t status, n_tokens; /* n_tokens 0 without SAMPLE */
    uint16_t reserved;
    uint32_t token[LL_ROW_TOKENS_MAX];
    float logprob[LL_ROW_TOKENS_MAX];
    uint32_t ext, n_ext; /* into ll_result.ext */
};

struct ll_result { /* valid until the batch two tickets later is submitted */
    const struct ll_row_out *rows;
    const struct ll_ext *ext;
    uint32_t n_rows;
    uint64_t device_ns; /* time the step took on the device */
};

enum ll_copy_kind { LL_COPY_D2H = 1, LL_COPY_H2D = 2 };
struct ll_copy {
    uint32_t dst, src; /* page ids of the two sides */
    uint8_t kind;
};

struct ll_device; /* a backend's own */

struct ll_backend {
    uint32_t abi; /* LL_BACKEND_ABI */
    const char *name;

    /* *out only on success; caps filled. -ENOMEM, LL_E_UNSUPPORTED (shape, dtype, option), ... */
    int (*open)(struct ll_device **out, const struct ll_backend_options *options,
                const struct ll_model_shape *shape, struct ll_backend_caps *caps,
                struct ll_text *error);
    void (*close)(struct ll_device *device); /* NULL accepted; waits for what runs */

    /* A load into weight set `weights` begins: what it held, or was given by a load that failed,
     * counts no more. Not needed before the first load after open. NULL: one set only. */
    int (*begin)(struct ll_device *device, uint32_t weights, struct ll_text *error);
    /* Byte ranges of a tensor that are needed: count (<= n_max), 0: not wanted at all, negative:
     * this dtype or shape cannot be used. */
    int (*want)(struct ll_device *device, const struct ll_tensor *tensor, struct ll_span *spans,
                uint32_t n_max, struct ll_text *error);
    /* Lets the device copy straight from [base, base + size), until seal, close, or another call;
     * size 0 ends it. */
    int (*pin)(struct ll_device *device, void *base, size_t size_bytes, struct ll_text *error);
    /* Takes bytes [offset, offset + n) of a tensor for a rank into weight set `weights`. data may be
     * reused when fed(*ticket) says so. Pieces may come in any order and of any size. */
    int (*feed)(struct ll_device *device, uint32_t weights, const struct ll_tensor *tensor,
                uint32_t rank, uint64_t offset, const void *data, size_t n_bytes,
                uint64_t *ticket, struct ll_text *error);
    /* Optional (NULL: nothing has such a place). Where bytes [offset, offset + n) of a tensor lie
     * once they are fed, if they lie there as in the file; NULL: they do not. Whoever writes them
     * there himself then feeds them from there, which copies nothing. */
    void *(*place)(struct ll_device *device, uint32_t weights, const struct ll_tensor *tensor,
                   uint32_t rank, uint64_t offset, size_t n_bytes);
    /* 1 done, 0 not yet, negative error. */
    int (*fed)(struct ll_device *device, uint64_t ticket, struct ll_text *error);
    /* All of weight set `weights` is there: check completeness, tune, capture, warm. */
    int (*seal)(struct ll_device *device, uint32_t weights, struct ll_text *error);

    /* Ticket of the batch; the n-th batch has ticket n, from 1. Negative: LL_E_AGAIN when depth
     * batches are in flight, else a sticky error. */
    int64_t (*submit)(struct ll_device *device, const struct ll_batch *batch,
                      struct ll_text *error);
    /* 1 and *out: done; 0: not yet; negative: sticky error (B6). In ticket order. */
    int (*poll)(struct ll_device *device, int64_t ticket, struct ll_result *out,
                struct ll_text *error);
    /* Mask for the k-th sampled token of a LATE_MASK row: bit v set = id v allowed. NULL where caps
     * say no. */
    int (*late_mask)(struct ll_device *device, int64_t ticket, uint32_t row, uint32_t k,
                     const uint32_t *bits, struct ll_text *error);
    /* Starts page copies; copied() as fed(). */
    int64_t (*copy)(struct ll_device *device, const struct ll_copy *list, uint32_t n,
                    struct ll_text *error);
    int (*copied)(struct ll_device *device, int64_t ticket, struct ll_text *error);
};

/* Those linked in. The CUDA one is a module: llring-cuda.so exports `ll_backend_cuda`. */
const struct ll_backend *ll_backend_fake(void);
const struct ll_backend *ll_backend_cpu(void);

static inline uint32_t ll_dtype_bytes(enum ll_dtype dtype)
{
    switch (dtype) {
    case LL_DTYPE_F32:
        return 4;
    case LL_DTYPE_BF16:
    case LL_DTYPE_F16:
        return 2;
    case LL_DTYPE_E4M3:
        return 1;
    }
    return 0;
}

#endif
