/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/fake/fake_impl.h - what fake*.c share; nobody else includes it.
 *
 *   fake.c      the seam: open, submit (check and copy), poll, page copies
 *   fake_run.c  what a step does when it is due */
#ifndef KERNELS_FAKE_FAKE_IMPL_H
#define KERNELS_FAKE_FAKE_IMPL_H

#include "kernels/fake/fake.h"

#define LL_FAKE_NO_PAGE    UINT32_MAX
#define LL_FAKE_DEPTH_MAX  2u
#define LL_FAKE_COPIES_MAX 4096u

struct ll_fake_settings {
    uint64_t vocab, depth, step_us, token_ns, polls, eos_permille;
    uint64_t fail_at, hang_at, hang_ms, nan_at, verify;
    uint64_t fail_on, abort_on; /* UINT64_MAX: none */
};

struct ll_fake_slot {
    bool is_used;
    uint32_t n_prompt, choice;
    uint64_t seed;
    struct ll_sampling sampling;
    uint32_t n_hist; /* checked once, when the cache holds so many; 0: done */
    uint64_t hist_context;
    uint32_t last_id, last_position; /* what was sampled last and where it goes */
    bool has_last;
    uint32_t n_summed;  /* verify=0: pages whose sums are kept */
    uint32_t next_read; /* verify=0: page to be read again next */
};

struct ll_fake_batch {
    int64_t ticket; /* 0: none */
    uint64_t done_ns, n_polls;
    uint32_t n_inits, n_sets, n_rows, n_tokens;
    uint32_t generation;       /* of its weights */
    struct ll_slot_init *init; /* hist is NULL, its sum is in hist_context */
    uint64_t *hist_context;
    struct ll_pages_set *set; /* page points into set_page */
    uint32_t *set_page;
    struct ll_row *row; /* token points into token, or is NULL */
    uint32_t *token;
    struct ll_row_out *out;
    struct ll_ext *ext;
    uint32_t n_ext;
};

struct ll_device {
    struct ll_backend_options options;
    struct ll_fake_settings settings;
    struct ll_fake_rules rules;
    struct ll_backend_caps caps;
    uint32_t generation[2], n_generations;       /* what each set of weights holds; F3 */
    uint32_t *page;                              /* [n_pages][LL_PAGE_TOKENS] ids */
    uint32_t *host_page;                         /* [n_host_pages][LL_PAGE_TOKENS] */
    uint32_t *page_generation, *host_generation; /* F3 */
    uint32_t *table;                             /* [n_slots][pages_per_seq] */
    uint64_t *page_sum;                          /* [n_slots][pages_per_seq], verify=0 */
    struct ll_fake_slot *slot;
    bool *has_row; /* [n_slots], while a batch is checked */
    struct ll_fake_batch batch[LL_FAKE_DEPTH_MAX];
    int64_t n_submitted, n_done;
    uint64_t last_done_ns;
    struct ll_copy copy[LL_FAKE_COPIES_MAX]; /* ring */
    int64_t copy_after[LL_FAKE_COPIES_MAX];  /* batch that must be done first */
    int64_t n_copies, n_copied;
    int failed; /* sticky */
    struct ll_text failed_text;
};

static inline uint32_t *ll_fake_table(struct ll_device *device, uint32_t slot)
{
    return device->table + (size_t)slot * device->options.pages_per_seq;
}

/* Nothing works any more; the text is kept and copied to *error unless that is NULL. The code. */
int ll_fake_fail(struct ll_device *device, struct ll_text *error, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void ll_fake_apply_inits(struct ll_device *device, const struct ll_fake_batch *batch);
int ll_fake_run_row(struct ll_device *device, struct ll_fake_batch *batch, uint32_t index);
/* Those whose batch is done. */
void ll_fake_run_copies(struct ll_device *device);

#endif
