/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_sets.c - two sets of weights on one device (backend.h B9), on the CPU and on
 * the GPU where there is one: each answers as a device of its own would, to the bit, in whatever
 * turn, also while the other one is loaded anew by another thread. */
#include "tests/harness.h"
#include "tests/kernels/cuda_module.h"

#include "base/bits.h"
#include "base/numbers.h"
#include "base/rng.h"
#include "kernels/backend.h"
#include "ll/client.h"
#include "tests/kernels/feed.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

enum { OUT = 12, PROMPT = 70, PAGES = 2, SLOTS = 4 };

static const struct ll_model_shape shape = {.n_layers = 2,
                                            .n_embd = 256,
                                            .n_heads = 4,
                                            .n_kv_heads = 2,
                                            .head_dim = 64,
                                            .n_ff = 512,
                                            .n_vocab = 1003,
                                            .context_max = PAGES * LL_PAGE_TOKENS,
                                            .rms_eps = 1e-5f,
                                            .rope_theta = 1e4};

static const struct ll_backend *backend;
static enum feed_as form;

struct answer {
    uint32_t token[OUT];
    float logprob[OUT];
};

/* ---- weights ----------------------------------------------------------------------------------*/

static struct ll_tensor tensor_of(int role, uint32_t layer)
{
    const uint32_t q = shape.n_heads * shape.head_dim, kv = shape.n_kv_heads * shape.head_dim;
    const uint32_t e = shape.n_embd, f = shape.n_ff, v = shape.n_vocab;
    const uint32_t dims[LL_TENSOR_ROLES][2] = {
        [LL_TENSOR_EMBED] = {v, e},    [LL_TENSOR_ATTN_NORM] = {1, e},  [LL_TENSOR_Q] = {q, e},
        [LL_TENSOR_K] = {kv, e},       [LL_TENSOR_V] = {kv, e},         [LL_TENSOR_O] = {e, q},
        [LL_TENSOR_FFN_NORM] = {1, e}, [LL_TENSOR_GATE] = {f, e},       [LL_TENSOR_UP] = {f, e},
        [LL_TENSOR_DOWN] = {e, f},     [LL_TENSOR_FINAL_NORM] = {1, e}, [LL_TENSOR_HEAD] = {v, e}};

    return (struct ll_tensor){.role = (enum ll_tensor_role)role,
                              .layer = layer,
                              .dtype = LL_DTYPE_BF16,
                              .rows = dims[role][0],
                              .cols = dims[role][1],
                              .size_bytes = 2ull * dims[role][0] * dims[role][1]};
}

/* One tensor of the model number `seed`. */
static int feed_one(struct ll_device *device, int role, uint32_t layer, uint64_t seed,
                    struct ll_text *error)
{
    const struct ll_tensor t = tensor_of(role, layer);
    const bool is_global =
        role == LL_TENSOR_EMBED || role == LL_TENSOR_HEAD || role == LL_TENSOR_FINAL_NORM;
    const uint64_t n = (uint64_t)t.rows * t.cols;
    const float spread = t.rows == 1 ? 0.2f : 1.7f / sqrtf((float)t.cols);
    uint64_t rng = seed * 7919 + (uint64_t)role * 977 + layer * 31 + 5;
    uint16_t *x = malloc(n * 2);

    for (uint64_t i = 0; i < n; i++) {
        float u = (float)(int64_t)(ll_splitmix64(&rng) >> 40) * 0x1p-23f - 1.0f;
        x[i] = ll_bf16_from_f32((float)(t.rows == 1) + spread * u);
    }
    int rc = form != FEED_BF16 && t.rows > 1 && !is_global
                 ? feed_e4m3(backend, device, t, x, form, error)
                 : feed_tensor(backend, device, &t, x, error);
    free(x);
    return rc;
}

/* All but the last n_left tensors. */
static int feed_model(struct ll_device *device, uint64_t seed, uint32_t n_left,
                      struct ll_text *error)
{
    const uint32_t n_all = LL_TENSOR_ROLES + (shape.n_layers - 1) * (LL_TENSOR_ROLES - 3);
    uint32_t n = 0;
    int rc = 0;

    for (uint32_t layer = 0; layer < shape.n_layers; layer++)
        for (int role = 0; role < LL_TENSOR_ROLES; role++) {
            bool is_global =
                role == LL_TENSOR_EMBED || role == LL_TENSOR_HEAD || role == LL_TENSOR_FINAL_NORM;
            if ((is_global && layer > 0) || n++ >= n_all - n_left || rc < 0)
                continue;
            rc = feed_one(device, role, layer, seed, error);
        }
    return rc;
}

static void load(struct ll_device *device, uint32_t set, uint64_t seed)
{
    struct ll_text error = {""};

    feed_set = set;
    int rc = backend->begin(device, set, &error);
    if (rc == 0)
        rc = feed_model(device, seed, 0, &error);
    if (rc == 0)
        rc = backend->seal(device, set, &error);
    if (rc < 0)
        fail_msg("set %u: %s", set, error.s);
}

static struct ll_device *open_device(uint32_t n_weights, bool is_dummy)
{
    const struct ll_backend_options options = {.struct_bytes = sizeof(options),
                                               .n_slots = SLOTS,
                                               .n_pages = SLOTS * PAGES,
                                               .n_tokens_max = 256,
                                               .n_rows_max = SLOTS,
                                               .pages_per_seq = PAGES,
                                               .n_weights = n_weights,
                                               .dtype = LL_DTYPE_BF16,
                                               .n_threads = 1,
                                               .numa_node = -1,
                                               .has_dummy_weights = is_dummy};
    struct ll_backend_caps caps;
    struct ll_device *device = NULL;
    struct ll_text error = {""};

    if (backend->open(&device, &options, &shape, &caps, &error) < 0)
        fail_msg("open: %s", error.s);
    return device;
}

/* ---- steps ------------------------------------------------------------------------------------*/

static void submit(struct ll_device *device, const struct ll_batch *batch, int64_t *ticket)
{
    struct ll_text error = {""};

    *ticket = backend->submit(device, batch, &error);
    if (*ticket < 0)
        fail_msg("submit: %s", error.s);
}

static void keep(struct ll_device *device, int64_t ticket, struct answer *answer, uint32_t i)
{
    struct ll_text error = {""};
    struct ll_result result;
    int rc;

    while ((rc = backend->poll(device, ticket, &result, &error)) == 0)
        ;
    if (rc < 0)
        fail_msg("poll: %s", error.s);
    assert_int_equal(result.rows[0].status, LL_ROW_OK);
    answer->token[i] = result.rows[0].token[0];
    answer->logprob[i] = result.rows[0].logprob[0];
}

/* Step i of a stream: the prompt, then a token each. */
static void submit_step(struct ll_device *device, uint32_t set, uint32_t slot, uint32_t i,
                        int64_t *ticket)
{
    static uint32_t prompt[PROMPT];
    const uint32_t page[PAGES] = {slot * PAGES, slot * PAGES + 1};
    const struct ll_slot_init init = {.slot = slot,
                                      .n_prompt = PROMPT,
                                      .n_hist = PROMPT,
                                      .hist = prompt,
                                      .s = {.top_p = 1, .repetition = 1}};
    const struct ll_pages_set pages = {slot, 0, PAGES, page};
    struct ll_row row = {.slot = slot, .n_tokens = PROMPT, .token = prompt, .flags = LL_ROW_SAMPLE};

    for (uint32_t t = 0; t < PROMPT; t++)
        prompt[t] = (t * 37 + 11) % shape.n_vocab;
    if (i > 0) {
        row.n_tokens = 1;
        row.token = NULL;
        row.pos = PROMPT + i - 1;
    }
    const struct ll_batch batch = {.weights = set,
                                   .n_inits = i == 0,
                                   .n_pages_sets = i == 0,
                                   .n_rows = 1,
                                   .inits = &init,
                                   .pages = &pages,
                                   .rows = &row};
    submit(device, &batch, ticket);
}

static struct answer ask(struct ll_device *device, uint32_t set, uint32_t slot)
{
    struct answer answer;
    int64_t ticket;

    for (uint32_t i = 0; i < OUT; i++) {
        submit_step(device, set, slot, i, &ticket);
        keep(device, ticket, &answer, i);
    }
    return answer;
}

/* Two streams in turn, each on its set, the other one's step in flight. */
static void ask_both(struct ll_device *device, struct answer *answers)
{
    int64_t ticket[2];

    submit_step(device, 0, 0, 0, &ticket[0]);
    for (uint32_t i = 0; i < OUT; i++) {
        submit_step(device, 1, 1, i, &ticket[1]);
        keep(device, ticket[0], &answers[0], i);
        if (i + 1 < OUT)
            submit_step(device, 0, 0, i + 1, &ticket[0]);
        keep(device, ticket[1], &answers[1], i);
    }
}

static struct answer alone(uint64_t seed)
{
    struct ll_device *device = open_device(1, false);

    load(device, 0, seed);
    struct answer answer = ask(device, 0, 2);
    backend->close(device);
    return answer;
}

static void assert_same(const struct answer *got, const struct answer *wanted, const char *what)
{
    for (uint32_t i = 0; i < OUT; i++)
        if (got->token[i] != wanted->token[i] ||
            memcmp(&got->logprob[i], &wanted->logprob[i], sizeof(float)) != 0)
            fail_msg("%s, %s form %d: token %u is %u (%.9g), not %u (%.9g)", what, backend->name,
                     (int)form, i, got->token[i], (double)got->logprob[i], wanted->token[i],
                     (double)wanted->logprob[i]);
}

/* ---- loading beside steps ---------------------------------------------------------------------*/

struct loading {
    struct ll_device *device;
    uint32_t set;
    uint64_t seed;
    _Atomic bool is_over;
};

static void *run_load(void *context)
{
    struct loading *loading = context;

    load(loading->device, loading->set, loading->seed);
    atomic_store(&loading->is_over, true);
    return NULL;
}

/* The other set is asked all the while. */
static void load_beside(struct ll_device *device, uint32_t set, uint64_t seed,
                        const struct answer *others)
{
    struct loading loading = {.device = device, .set = set, .seed = seed};
    pthread_t thread;
    uint32_t n = 0;

    assert_int_equal(pthread_create(&thread, NULL, run_load, &loading), 0);
    do {
        struct answer answer = ask(device, 1 - set, n++ % SLOTS);
        assert_same(&answer, others, "while the other set is loaded");
    } while (!atomic_load(&loading.is_over));
    pthread_join(thread, NULL);
}

static void check_sets(void)
{
    const struct answer a = alone(1), b = alone(2), c = alone(3);
    struct ll_device *device = open_device(2, false);
    struct answer answers[2];
    struct ll_text error = {""};

    assert_true(memcmp(&a, &b, sizeof(a)) != 0 && memcmp(&b, &c, sizeof(b)) != 0);
    load(device, 0, 1);
    struct answer answer = ask(device, 0, 2);
    assert_same(&answer, &a, "the first set");
    const uint32_t id = 1, page = 0;
    const struct ll_slot_init init = {
        .slot = 3, .n_prompt = 1, .n_hist = 1, .hist = &id, .s = {.top_p = 1, .repetition = 1}};
    const struct ll_pages_set pages = {3, 0, 1, &page};
    const struct ll_row row = {.slot = 3, .n_tokens = 1, .token = &id};
    struct ll_batch batch = {.weights = 1,
                             .n_inits = 1,
                             .n_pages_sets = 1,
                             .n_rows = 1,
                             .inits = &init,
                             .pages = &pages,
                             .rows = &row};
    assert_int_equal(backend->submit(device, &batch, &error), LL_E_INVAL); /* not sealed */
    batch.weights = 2;
    assert_int_equal(backend->submit(device, &batch, &error), LL_E_INVAL); /* there is none */
    assert_int_equal(backend->begin(device, 2, &error), LL_E_INVAL);

    load_beside(device, 1, 2, &a);
    ask_both(device, answers);
    assert_same(&answers[0], &a, "in turn");
    assert_same(&answers[1], &b, "in turn");
    load_beside(device, 0, 3, &b); /* over what served first */
    ask_both(device, answers);
    assert_same(&answers[0], &c, "loaded over");
    assert_same(&answers[1], &b, "beside one loaded over");

    /* A load that is given up, and one that lacks something, disturb nobody and end nothing. */
    feed_set = 0;
    assert_int_equal(backend->begin(device, 0, &error), 0);
    assert_int_equal(feed_model(device, 1, 9, &error), 0);
    answer = ask(device, 1, 3);
    assert_same(&answer, &b, "beside half a load");
    assert_int_equal(backend->begin(device, 0, &error), 0);
    assert_int_equal(feed_model(device, 1, 1, &error), 0);
    struct ll_span span;
    const struct ll_tensor last = tensor_of(LL_TENSOR_DOWN, shape.n_layers - 1);
    if (form == FEED_BF16) {
        assert_int_equal(backend->want(device, &last, &span, 1, &error), 1);
        assert_true(backend->seal(device, 0, &error) < 0);
        batch.weights = 0;
        assert_int_equal(backend->submit(device, &batch, &error), LL_E_INVAL);
    }
    load_beside(device, 0, 1, &b);
    ask_both(device, answers);
    assert_same(&answers[0], &a, "after loads that failed");
    assert_same(&answers[1], &b, "after loads that failed");
    backend->close(device);
}

static void check_all_forms(void)
{
    static const enum feed_as forms[] = {FEED_BF16, FEED_E4M3, FEED_E4M3_BLOCKS};

    for (size_t i = 0; i < LL_COUNT(forms); i++) {
        form = forms[i];
        check_sets();
    }
    form = FEED_BF16;
}

/* Random weights are there from the start, for both. */
static void check_dummy(void)
{
    struct ll_device *device = open_device(2, true);
    struct ll_text error = {""};

    assert_int_equal(backend->seal(device, 0, &error), 0);
    struct answer a = ask(device, 0, 0), b = ask(device, 1, 1);
    assert_same(&b, &a, "random weights of one seed");
    backend->close(device);
}

static void two_sets_on_the_cpu(void **state)
{
    (void)state;
    backend = ll_backend_cpu();
    check_all_forms();
    check_dummy();
}

static void two_sets_on_the_gpu(void **state)
{
    (void)state;
    backend = cuda_module();
    if (backend == NULL)
        skip();
    check_all_forms();
    check_dummy();
}

/* What the first weights had no use for was not reserved; what they had and the next have not is 1.
 */
static void other_scales_on_the_gpu(void **state)
{
    struct ll_text error = {""};

    (void)state;
    backend = cuda_module();
    if (backend == NULL)
        skip();
    form = FEED_E4M3;
    const struct answer plain = alone(2);
    struct ll_device *device = open_device(2, false);
    load(device, 0, 1);
    form = FEED_E4M3_BLOCKS;
    feed_set = 1;
    assert_int_equal(backend->begin(device, 1, &error), 0);
    assert_int_equal(feed_model(device, 2, 0, &error), LL_E_UNSUPPORTED);
    assert_non_null(strstr(error.s, "block scales"));
    form = FEED_BF16;
    assert_int_equal(backend->begin(device, 1, &error), 0);
    assert_int_equal(feed_model(device, 2, 0, &error), LL_E_UNSUPPORTED);
    assert_non_null(strstr(error.s, "16-bit weights"));
    form = FEED_E4M3;
    load(device, 1, 2);
    struct answer answer = ask(device, 1, 0);
    assert_same(&answer, &plain, "after two refusals");
    backend->close(device);

    form = FEED_E4M3_BLOCKS;
    device = open_device(2, false);
    load(device, 0, 1);
    form = FEED_E4M3;
    load(device, 1, 2); /* products with blocks of 1: sums of another order, the same numbers */
    answer = ask(device, 1, 0);
    assert_true(fabsf(answer.logprob[0] - plain.logprob[0]) < 0.3f);
    backend->close(device);
    form = FEED_BF16;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_sets_on_the_cpu),
        cmocka_unit_test(two_sets_on_the_gpu),
        cmocka_unit_test(other_scales_on_the_gpu),
    };

    return cmocka_run_group_tests_name("kernels/sets", tests, NULL, NULL);
}
