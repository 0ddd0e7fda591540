/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/golden.h - runs the cases of golden.json on a backend: greedy ids, their log
 * probabilities, the prompt's, the top 20. Define DEMO_BACKEND() before for another than the CPU.
 */
#ifndef TESTS_KERNELS_GOLDEN_H
#define TESTS_KERNELS_GOLDEN_H

#include "tests/kernels/demo.h"

#include <math.h>

static struct ll_model_shape shape;
static json_t *golden;

struct answer {
    uint32_t n_equal, n_ids; /* greedy ids, each after the file's own ids before it */
    double worst;            /* largest difference of a log probability */
};

/* Largest value still a rounding: the file has 5 decimals. */
#define F32_WORST 1e-3

static void differ(struct answer *a, double x, double y)
{
    double d = fabs(x - y);
    a->worst = d > a->worst || isnan(d) ? d : a->worst;
}

/* A step of one token of slot 0; id NULL: what was sampled last. */
static int64_t decode_one(struct ll_device *device, uint32_t pos, const uint32_t *id)
{
    struct ll_row row = {.slot = 0, .pos = pos, .n_tokens = 1, .token = id, .flags = LL_ROW_SAMPLE};
    struct ll_batch batch = {.n_rows = 1, .rows = &row};
    struct ll_text error = {""};
    int64_t ticket = DEMO_BACKEND()->submit(device, &batch, &error);

    if (ticket < 0)
        fail_msg("submit: %s", error.s);
    return ticket;
}

/* Runs one case in slot 0, chunks of `chunk` prompt tokens, then decode with run-ahead two deep. */
static void run_case(struct ll_device *device, const json_t *c, uint32_t chunk, bool scores,
                     struct answer *a)
{
    const uint32_t n_equal_before = a->n_equal;
    const json_t *ids = json_object_get(c, "prompt_ids"), *want = json_object_get(c, "greedy_ids");
    const json_t *want_logprobs = json_object_get(c, "greedy_logprobs");
    const json_t *prompt_logprobs = json_object_get(c, "prompt_logprobs");
    const json_t *top_ids = json_object_get(c, "top_ids");
    const json_t *top_logprobs = json_object_get(c, "top_logprobs");
    const uint32_t n_prompt = (uint32_t)json_array_size(ids),
                   n_want = (uint32_t)json_array_size(want);
    uint32_t *prompt = malloc((n_prompt + 1) * sizeof(*prompt)), page[32];

    for (uint32_t i = 0; i < n_prompt; i++)
        prompt[i] = (uint32_t)json_integer_value(json_array_get(ids, i));
    for (uint32_t i = 0; i < 32; i++)
        page[i] = i;
    struct ll_slot_init init = {
        .slot = 0, .n_prompt = n_prompt, .n_hist = n_prompt, .hist = prompt, .s = demo_greedy()};
    struct ll_pages_set pages = {.slot = 0, .first = 0, .n = 32, .page = page};

    for (uint32_t at = 0; at < n_prompt; at += chunk) {
        uint32_t n = n_prompt - at < chunk ? n_prompt - at : chunk;
        bool is_last = at + n == n_prompt;
        struct ll_row row = {.slot = 0, .pos = at, .n_tokens = n, .token = prompt + at};
        row.flags =
            (uint16_t)((is_last ? LL_ROW_SAMPLE : 0) | (scores ? LL_ROW_PROMPT_LOGPROBS : 0));
        row.n_top = is_last ? 20 : 0;
        struct ll_batch batch = {.n_inits = at == 0,
                                 .n_pages_sets = at == 0,
                                 .n_rows = 1,
                                 .inits = &init,
                                 .pages = &pages,
                                 .rows = &row};
        struct ll_result r = demo_run(device, &batch);
        const struct ll_ext *ext = r.ext + r.rows[0].ext;
        assert_int_equal(r.rows[0].status, LL_ROW_OK);
        uint32_t n_scored = scores ? n - is_last : 0;
        assert_int_equal(r.rows[0].n_ext, row.n_top + n_scored);
        for (uint32_t i = 0; i < n_scored; i++) {
            assert_int_equal(ext[row.n_top + i].id, prompt[at + i + 1]);
            differ(a, ext[row.n_top + i].logprob,
                   json_number_value(json_array_get(prompt_logprobs, at + i + 1)));
        }
        if (!is_last)
            continue;
        assert_int_equal(r.rows[0].n_tokens, 1);
        for (uint32_t i = 0; i < 20; i++)
            differ(a, ext[i].logprob, json_number_value(json_array_get(top_logprobs, i)));
        a->n_equal += ext[0].id == (uint32_t)json_integer_value(json_array_get(top_ids, 0)) &&
                      r.rows[0].token[0] == (uint32_t)json_integer_value(json_array_get(want, 0));
        a->n_ids++;
        differ(a, r.rows[0].logprob[0], json_number_value(json_array_get(want_logprobs, 0)));
    }

    /* Two in flight: token n + 1 is submitted before n is known. A token that differs counts once:
     * the next step runs again with the file's. */
    int64_t ticket[2] = {0};
    bool is_forced = a->n_equal == n_equal_before;
    for (uint32_t i = 1; i <= n_want; i++) {
        const uint32_t forced = (uint32_t)json_integer_value(json_array_get(want, i - 1));
        if (i < n_want)
            ticket[i % 2] = decode_one(device, n_prompt + i - 1, is_forced ? &forced : NULL);
        is_forced = false;
        if (i == 1)
            continue;
        struct ll_result r = demo_wait(DEMO_BACKEND(), device, ticket[(i - 1) % 2]);
        const bool is_equal = r.rows[0].token[0] == forced;
        a->n_equal += is_equal;
        a->n_ids++;
        if (is_equal)
            differ(a, r.rows[0].logprob[0],
                   json_number_value(json_array_get(want_logprobs, i - 1)));
        else if (i < n_want) {
            demo_wait(DEMO_BACKEND(), device, ticket[i % 2]);
            ticket[i % 2] = decode_one(device, n_prompt + i - 1, &forced);
        }
    }
    free(prompt);
}

static struct answer run_cases(struct ll_backend_options options, uint32_t n_prompt_max,
                               uint32_t n_cases_max, uint32_t chunk)
{
    struct ll_backend_caps caps;
    struct ll_device *device = demo_open(&shape, options, &caps);
    struct answer a = {0};
    uint32_t n_cases = 0;

    for (size_t i = 0; i < json_array_size(golden) && n_cases < n_cases_max; i++) {
        const json_t *c = json_array_get(golden, i);
        if (json_array_size(json_object_get(c, "prompt_ids")) > n_prompt_max)
            continue;
        run_case(device, c, chunk, true, &a);
        n_cases++;
    }
    printf("%s: %u cases, %u of %u ids equal, worst logprob difference %.2e\n", caps.device,
           n_cases, a.n_equal, a.n_ids, a.worst);
    DEMO_BACKEND()->close(device);
    return a;
}

#endif
