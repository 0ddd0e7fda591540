/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_fake.c - the fake backend keeps the seam's rules and notices broken ones. */
#include "tests/harness.h"

#include "kernels/fake/fake.h"
#include "ll/client.h"

#define N_SLOTS  4u
#define N_PAGES  16u
#define PER_SEQ  4u
#define N_VOCAB  1000u
#define N_PROMPT 100u
#define SEED     77u

struct fixture {
    const struct ll_backend *backend;
    struct ll_device *device;
    struct ll_backend_caps caps;
    struct ll_text error;
    struct ll_fake_rules rules;
    struct ll_sampling sampling;
    uint32_t prompt[N_PROMPT];
    uint32_t expected[64];
};

static const struct ll_model_shape shape = {.n_vocab = N_VOCAB, .context_max = 256};

static void open_with(struct fixture *f, const char *extra)
{
    struct ll_backend_options options = {
        .struct_bytes = sizeof(options),
        .n_slots = N_SLOTS,
        .n_pages = N_PAGES,
        .n_host_pages = 4,
        .n_tokens_max = 128,
        .n_rows_max = N_SLOTS,
        .pages_per_seq = PER_SEQ,
        .n_weights = 1,
        .extra = extra,
    };

    f->backend = ll_backend_fake();
    assert_int_equal(f->backend->open(&f->device, &options, &shape, &f->caps, &f->error), 0);
    f->rules.n_vocab = N_VOCAB;
    for (uint32_t i = 0; i < N_PROMPT; i++)
        f->prompt[i] = (i * 37 + 5) % N_VOCAB;
    ll_fake_continue(&f->rules, f->prompt, N_PROMPT, SEED, 0, &f->sampling, 64, f->expected);
}

static int setup(void **state)
{
    static struct fixture fixture;

    fixture = (struct fixture){0};
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    if (f->device != NULL)
        f->backend->close(f->device);
    return 0;
}

static struct ll_slot_init init_of(const struct fixture *f, uint32_t slot)
{
    return (struct ll_slot_init){
        .slot = slot,
        .n_prompt = N_PROMPT,
        .n_hist = N_PROMPT,
        .hist = f->prompt,
        .seed = SEED,
        .s = f->sampling,
    };
}

/* Submits one row (with an optional init and page set) and polls until it is done. */
static int step(struct fixture *f, const struct ll_slot_init *init, const struct ll_pages_set *set,
                const struct ll_row *row, struct ll_result *result)
{
    struct ll_batch batch = {
        .n_inits = init != NULL,
        .n_pages_sets = set != NULL,
        .n_rows = 1,
        .inits = init,
        .pages = set,
        .rows = row,
    };
    int64_t ticket = f->backend->submit(f->device, &batch, &f->error);
    int rc = 0;

    if (ticket < 0)
        return (int)ticket;
    while (rc == 0)
        rc = f->backend->poll(f->device, ticket, result, &f->error);
    return rc;
}

/* Prefills slot 0 on pages 3, 9 (and 5) and gives the first sampled id. */
static uint32_t prefill(struct fixture *f)
{
    static const uint32_t pages[] = {3, 9, 5};
    struct ll_slot_init init = init_of(f, 0);
    struct ll_pages_set set = {.slot = 0, .first = 0, .n = 3, .page = pages};
    struct ll_row row = {
        .slot = 0, .pos = 0, .n_tokens = N_PROMPT, .token = f->prompt, .flags = LL_ROW_SAMPLE};
    struct ll_result result;

    assert_int_equal(step(f, &init, &set, &row, &result), 1);
    assert_int_equal(result.n_rows, 1);
    assert_int_equal(result.rows[0].n_tokens, 1);
    return result.rows[0].token[0];
}

static void decoding_yields_the_expected_continuation(void **state)
{
    struct fixture *f = *state;
    struct ll_result result;

    open_with(f, NULL);
    uint32_t id = prefill(f);
    for (uint32_t n = 0;; n++) {
        assert_int_equal(id, f->expected[n]);
        if (n == 63)
            break;
        struct ll_row row = {
            .slot = 0, .pos = N_PROMPT + n, .n_tokens = 1, .token = &id, .flags = LL_ROW_SAMPLE};
        assert_int_equal(step(f, NULL, NULL, &row, &result), 1);
        id = result.rows[0].token[0];
    }
}

static void chunked_prefill_yields_the_same(void **state)
{
    struct fixture *f = *state;
    static const uint32_t pages[] = {1, 2};
    struct ll_slot_init init = init_of(f, 0);
    struct ll_pages_set set = {.slot = 0, .first = 0, .n = 2, .page = pages};
    struct ll_result result;

    open_with(f, "verify=0");
    for (uint32_t at = 0; at < N_PROMPT; at += 7) {
        uint32_t n = at + 7 <= N_PROMPT ? 7 : N_PROMPT - at;
        struct ll_row row = {.slot = 0, .pos = at, .n_tokens = n, .token = f->prompt + at};
        row.flags = at + n == N_PROMPT ? LL_ROW_SAMPLE : 0;
        assert_int_equal(step(f, at == 0 ? &init : NULL, at == 0 ? &set : NULL, &row, &result), 1);
        assert_int_equal(result.rows[0].n_tokens, at + n == N_PROMPT);
    }
    assert_int_equal(result.rows[0].token[0], f->expected[0]);
}

static void two_batches_run_ahead_without_the_host_knowing_the_id(void **state)
{
    struct fixture *f = *state;
    struct ll_row row = {.slot = 0, .n_tokens = 1, .flags = LL_ROW_SAMPLE};
    struct ll_batch batch = {.n_rows = 1, .rows = &row};
    struct ll_result result;

    open_with(f, "polls=3");
    assert_int_equal(f->caps.depth, 2);
    uint32_t id = prefill(f);
    row.pos = N_PROMPT;
    row.token = &id;
    int64_t first = f->backend->submit(f->device, &batch, &f->error);
    row.pos = N_PROMPT + 1;
    row.token = NULL;
    int64_t second = f->backend->submit(f->device, &batch, &f->error);
    assert_int_equal(second, first + 1);
    assert_int_equal(f->backend->submit(f->device, &batch, &f->error), LL_E_AGAIN);
    id = 0; /* B1: submit copied it */

    assert_int_equal(f->backend->poll(f->device, first, &result, &f->error), 0);
    assert_int_equal(f->backend->poll(f->device, first, &result, &f->error), 0);
    assert_int_equal(f->backend->poll(f->device, first, &result, &f->error), 1);
    assert_int_equal(result.rows[0].token[0], f->expected[1]);
    while (f->backend->poll(f->device, second, &result, &f->error) == 0)
        ;
    assert_int_equal(result.rows[0].token[0], f->expected[2]);
}

static void a_wrong_page_changes_the_output(void **state)
{
    struct fixture *f = *state;
    struct ll_result result;

    open_with(f, NULL);
    uint32_t id = prefill(f);
    /* Page 9 held positions 64..99; 7 never held anything. */
    static const uint32_t wrong[] = {7};
    struct ll_pages_set set = {.slot = 0, .first = 1, .n = 1, .page = wrong};
    struct ll_row row = {
        .slot = 0, .pos = N_PROMPT, .n_tokens = 1, .token = &id, .flags = LL_ROW_SAMPLE};
    assert_int_equal(step(f, NULL, &set, &row, &result), 1);
    assert_int_not_equal(result.rows[0].token[0], f->expected[1]);
}

static void a_page_overwritten_by_another_slot_changes_the_output(void **state)
{
    struct fixture *f = *state;
    static const uint32_t taken[] = {3, 11}; /* 3 belongs to slot 0 */
    struct ll_slot_init init = init_of(f, 1);
    struct ll_pages_set set = {.slot = 1, .first = 0, .n = 2, .page = taken};
    uint32_t other[N_PROMPT] = {0};
    struct ll_result result;

    open_with(f, "verify=0"); /* also when full pages are only read again in turn */
    uint32_t id = prefill(f);
    init.hist = other;
    struct ll_row row = {
        .slot = 1, .pos = 0, .n_tokens = N_PROMPT, .token = other, .flags = LL_ROW_SAMPLE};
    assert_int_equal(step(f, &init, &set, &row, &result), 1);
    row = (struct ll_row){
        .slot = 0, .pos = N_PROMPT, .n_tokens = 1, .token = &id, .flags = LL_ROW_SAMPLE};
    assert_int_equal(step(f, NULL, NULL, &row, &result), 1);
    assert_int_not_equal(result.rows[0].token[0], f->expected[1]);
}

static void a_slot_is_rebuilt_from_its_history(void **state)
{
    struct fixture *f = *state;
    static const uint32_t pages[] = {12, 13};
    uint32_t hist[N_PROMPT + 5];
    struct ll_slot_init init = init_of(f, 2);
    struct ll_pages_set set = {.slot = 2, .first = 0, .n = 2, .page = pages};
    struct ll_result result;

    open_with(f, NULL);
    memcpy(hist, f->prompt, sizeof(f->prompt));
    memcpy(hist + N_PROMPT, f->expected, 5 * sizeof(uint32_t));
    init.hist = hist;
    init.n_hist = N_PROMPT + 5;
    struct ll_row row = {
        .slot = 2, .pos = 0, .n_tokens = N_PROMPT + 5, .token = hist, .flags = LL_ROW_SAMPLE};
    assert_int_equal(step(f, &init, &set, &row, &result), 1);
    assert_int_equal(result.rows[0].token[0], f->expected[5]);
    /* A history that the pages do not hold is noticed. */
    hist[50]++;
    struct ll_slot_init again = init;
    uint32_t fed[N_PROMPT + 5];
    memcpy(fed, hist, sizeof(hist));
    fed[50]--;
    row.token = fed;
    assert_int_equal(step(f, &again, &set, &row, &result), LL_E_INVAL);
    assert_non_null(strstr(f->error.s, "history"));
}

/* Penalties are counted from it: what it lacks would not be penalised. */
static void a_history_that_lacks_what_was_fed_is_refused(void **state)
{
    struct fixture *f = *state;
    static const uint32_t pages[] = {3, 9};
    uint32_t fed[N_PROMPT + 5];
    struct ll_slot_init init = init_of(f, 2);
    struct ll_pages_set set = {.slot = 2, .first = 0, .n = 2, .page = pages};
    struct ll_result result;

    open_with(f, NULL);
    memcpy(fed, f->prompt, sizeof(f->prompt));
    memcpy(fed + N_PROMPT, f->expected, 5 * sizeof(uint32_t));
    struct ll_row row = {
        .slot = 2, .pos = 0, .n_tokens = N_PROMPT + 5, .token = fed, .flags = LL_ROW_SAMPLE};
    assert_int_equal(step(f, &init, &set, &row, &result), LL_E_INVAL);
    assert_non_null(strstr(f->error.s, "its history has"));
}

static void end_ids_wait_for_min_tokens(void **state)
{
    struct fixture *f = *state;
    struct ll_fake_rules rules = {.n_vocab = N_VOCAB, .eos_permille = 1000};
    struct ll_sampling s = {.min_tokens = 3, .n_end = 1, .end = {42}};
    uint32_t ids[8];
    struct ll_result result;

    open_with(f, "eos_permille=1000");
    assert_int_equal(ll_fake_continue(&rules, f->prompt, N_PROMPT, SEED, 0, &s, 8, ids), 4);
    assert_int_equal(ids[3], 42);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_not_equal(ids[i], 42);
    f->sampling = s;
    uint32_t id = prefill(f);
    for (uint32_t n = 0; n < 3; n++) {
        assert_int_equal(id, ids[n]);
        struct ll_row row = {
            .slot = 0, .pos = N_PROMPT + n, .n_tokens = 1, .token = &id, .flags = LL_ROW_SAMPLE};
        assert_int_equal(step(f, NULL, NULL, &row, &result), 1);
        id = result.rows[0].token[0];
    }
    assert_int_equal(id, 42);
}

static void logprobs_come_in_the_order_of_the_seam(void **state)
{
    struct fixture *f = *state;
    static const uint32_t pages[] = {0, 1};
    struct ll_slot_init init = init_of(f, 0);
    struct ll_pages_set set = {.slot = 0, .first = 0, .n = 2, .page = pages};
    struct ll_result result;

    open_with(f, NULL);
    /* 70 tokens and a target, no sample; then the rest with a sample. */
    struct ll_row row = {.slot = 0,
                         .pos = 0,
                         .n_tokens = 70,
                         .token = f->prompt,
                         .flags = LL_ROW_PROMPT_LOGPROBS,
                         .n_prompt_top = 2};
    assert_int_equal(step(f, &init, &set, &row, &result), 1);
    assert_int_equal(result.rows[0].n_tokens, 0);
    assert_int_equal(result.rows[0].n_ext, 70 * 3);
    for (uint32_t p = 0; p < 70; p++) {
        const struct ll_ext *ext = result.ext + result.rows[0].ext + p * 3;
        uint64_t context = ll_fake_context(f->prompt, p + 1);
        assert_int_equal(ext[0].id, f->prompt[p + 1]);
        assert_true(ext[0].logprob == ll_fake_logprob(context, f->prompt[p + 1]));
        assert_int_equal(ext[2].id, ll_fake_top(&f->rules, context, 1).id);
    }
    row = (struct ll_row){.slot = 0,
                          .pos = 70,
                          .n_tokens = 30,
                          .token = f->prompt + 70,
                          .flags = LL_ROW_PROMPT_LOGPROBS | LL_ROW_SAMPLE,
                          .n_top = 3};
    assert_int_equal(step(f, NULL, NULL, &row, &result), 1);
    assert_int_equal(result.rows[0].n_ext, 3 + 29);
    assert_int_equal(result.ext[result.rows[0].ext + 3].id, f->prompt[71]);
    assert_int_equal(result.rows[0].token[0], f->expected[0]);
}

static void what_the_seam_forbids_is_named(void **state)
{
    struct fixture *f = *state;
    struct ll_slot_init init = init_of(f, 0);
    struct ll_row row = {
        .slot = 0, .pos = 0, .n_tokens = 10, .token = f->prompt, .flags = LL_ROW_SAMPLE};
    struct ll_result result;

    open_with(f, NULL);
    assert_int_equal(step(f, &init, NULL, &row, &result), LL_E_INVAL);
    assert_non_null(strstr(f->error.s, "no page"));
    /* Sticky: nothing works afterwards. */
    assert_int_equal(step(f, &init, NULL, &row, &result), LL_E_INVAL);
}

static void a_run_ahead_row_at_the_wrong_place_is_named(void **state)
{
    struct fixture *f = *state;
    struct ll_row row = {
        .slot = 0, .pos = N_PROMPT + 1, .n_tokens = 1, .token = NULL, .flags = LL_ROW_SAMPLE};
    struct ll_result result;

    open_with(f, NULL);
    prefill(f);
    assert_int_equal(step(f, NULL, NULL, &row, &result), LL_E_INVAL);
    assert_non_null(strstr(f->error.s, "run-ahead"));
}

static void faults_come_when_asked_for(void **state)
{
    struct fixture *f = *state;
    struct ll_result result;

    open_with(f, "nan_at=2,fail_at=3");
    uint32_t id = prefill(f);
    struct ll_row row = {
        .slot = 0, .pos = N_PROMPT, .n_tokens = 1, .token = &id, .flags = LL_ROW_SAMPLE};
    assert_int_equal(step(f, NULL, NULL, &row, &result), 1);
    assert_int_equal(result.rows[0].status, LL_ROW_NAN);
    assert_int_equal(step(f, NULL, NULL, &row, &result), LL_E_BACKEND);
    f->backend->close(f->device);

    open_with(f, "hang_at=1,hang_ms=20");
    struct ll_slot_init init = init_of(f, 0);
    row.pos = 0;
    assert_int_equal(step(f, &init, NULL, &row, &result), LL_E_BACKEND);
    assert_non_null(strstr(f->error.s, "hangs"));
}

static void pages_travel_to_the_host_and_back(void **state)
{
    struct fixture *f = *state;
    struct ll_copy out = {.dst = 2, .src = 3, .kind = LL_COPY_D2H};
    struct ll_copy back = {.dst = 14, .src = 2, .kind = LL_COPY_H2D};
    struct ll_copy wrong = {.dst = 4, .src = 3, .kind = LL_COPY_D2H};
    static const uint32_t moved[] = {14};
    struct ll_pages_set set = {.slot = 0, .first = 0, .n = 1, .page = moved};
    struct ll_result result;

    open_with(f, NULL);
    uint32_t id = prefill(f);
    int64_t ticket = f->backend->copy(f->device, &out, 1, &f->error);
    assert_int_equal(f->backend->copied(f->device, ticket, &f->error), 1);
    f->backend->copy(f->device, &back, 1, &f->error);
    assert_int_equal(f->backend->copy(f->device, &wrong, 1, &f->error), LL_E_INVAL);
    struct ll_row row = {
        .slot = 0, .pos = N_PROMPT, .n_tokens = 1, .token = &id, .flags = LL_ROW_SAMPLE};
    assert_int_equal(step(f, NULL, &set, &row, &result), 1);
    assert_int_equal(result.rows[0].token[0], f->expected[1]);
}

static void a_bad_option_is_refused_with_the_list(void **state)
{
    struct fixture *f = *state;
    struct ll_backend_options options = {
        .n_slots = 1, .n_tokens_max = 1, .n_rows_max = 1, .pages_per_seq = 1};
    static const char *const bad[] = {"speed=9", "depth=3", "step_us=-1", "polls", "vocab=x"};

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        options.extra = bad[i];
        f->error.s[0] = 0;
        assert_int_equal(ll_backend_fake()->open(&f->device, &options, &shape, &f->caps, &f->error),
                         LL_E_INVAL);
        assert_non_null(strstr(f->error.s, "fake: "));
        assert_null(f->device);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(decoding_yields_the_expected_continuation),
        TEST(chunked_prefill_yields_the_same),
        TEST(two_batches_run_ahead_without_the_host_knowing_the_id),
        TEST(a_wrong_page_changes_the_output),
        TEST(a_page_overwritten_by_another_slot_changes_the_output),
        TEST(a_slot_is_rebuilt_from_its_history),
        TEST(a_history_that_lacks_what_was_fed_is_refused),
        TEST(end_ids_wait_for_min_tokens),
        TEST(logprobs_come_in_the_order_of_the_seam),
        TEST(what_the_seam_forbids_is_named),
        TEST(a_run_ahead_row_at_the_wrong_place_is_named),
        TEST(faults_come_when_asked_for),
        TEST(pages_travel_to_the_host_and_back),
        TEST(a_bad_option_is_refused_with_the_list),
    };
    return cmocka_run_group_tests_name("kernels/fake", tests, NULL, NULL);
}
