/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cpu_weights.c - weights of the CPU backend: any dtype and split, what is
 * missing, what cannot be used, NaNs, random ones. */
#include "tests/kernels/cpu_step.h"

/* ---- weights
 * -------------------------------------------------------------------------------------- */
static struct ll_tensor tensor_of(enum ll_tensor_role role, enum ll_dtype dtype)
{
    const uint32_t q = shape.n_heads * shape.head_dim, kv = shape.n_kv_heads * shape.head_dim;
    const struct {
        uint32_t rows, cols;
    } size[LL_TENSOR_ROLES] = {{shape.n_vocab, shape.n_embd},
                               {1, shape.n_embd},
                               {q, shape.n_embd},
                               {kv, shape.n_embd},
                               {kv, shape.n_embd},
                               {shape.n_embd, q},
                               {1, shape.n_embd},
                               {shape.n_ff, shape.n_embd},
                               {shape.n_ff, shape.n_embd},
                               {shape.n_embd, shape.n_ff},
                               {1, shape.n_embd},
                               {shape.n_vocab, shape.n_embd}};

    return (struct ll_tensor){.role = role,
                              .dtype = dtype,
                              .rows = size[role].rows,
                              .cols = size[role].cols,
                              .size_bytes = (uint64_t)size[role].rows * size[role].cols *
                                            ll_dtype_bytes(dtype)};
}

static bool is_global(int role)
{
    return role == LL_TENSOR_EMBED || role == LL_TENSOR_FINAL_NORM || role == LL_TENSOR_HEAD;
}

/* Numbers that bf16, f16 and f32 all hold exactly. */
static float plain_number(const struct ll_tensor *t, uint64_t i)
{
    uint64_t state = i * 31 + (uint64_t)t->role * 7 + t->layer;
    float x = (float)(int32_t)(ll_splitmix64(&state) % 127) - 63;

    return t->rows == 1 ? 1 + x / 64 : (x == 0 ? 1 : x) / 512;
}

static void *bytes_of(const struct ll_tensor *t)
{
    uint8_t *bytes = malloc(t->size_bytes);

    for (uint64_t i = 0; i < (uint64_t)t->rows * t->cols; i++) {
        float x = plain_number(t, i);
        uint16_t half = ll_bf16_from_f32(x);
        if (t->dtype == LL_DTYPE_F16) { /* normal numbers only here */
            uint32_t bits = ll_f32_bits(x);
            half = (uint16_t)((bits >> 16 & 0x8000u) | (((bits >> 23 & 0xffu) - 112u) << 10) |
                              (bits >> 13 & 0x3ffu));
        }
        if (t->dtype == LL_DTYPE_F32)
            memcpy(bytes + 4 * i, &x, 4);
        else
            memcpy(bytes + 2 * i, &half, 2);
    }
    return bytes;
}

static bool uses_places; /* writes what it can to where it will lie, and feeds it from there */
static uint32_t n_placed, n_staged; /* pieces */

/* Feeds all, in pieces of odd sizes in a shuffled order; skip: a role of layer 1 to leave out. */
static int feed_all(struct ll_device *device, enum ll_dtype dtype, bool is_split, int skip,
                    struct ll_text *error)
{
    for (uint32_t layer = 0; layer < shape.n_layers; layer++) {
        for (int role = 0; role < LL_TENSOR_ROLES; role++) {
            struct ll_tensor t = tensor_of(role, dtype);
            struct ll_span span;
            uint64_t ticket;
            t.layer = layer;
            if ((is_global(role) && layer > 0) || (role == skip && layer == 1))
                continue;
            assert_int_equal(backend->want(device, &t, &span, 1, error), 1);
            assert_int_equal(span.size_bytes, t.size_bytes);
            uint8_t *bytes = bytes_of(&t);
            uint64_t piece = is_split ? 1 + t.size_bytes / 7 : t.size_bytes;
            piece = is_split && piece > 13 ? piece | 1 : piece; /* splits numbers */
            uint64_t n_pieces = ll_div_ceil(t.size_bytes, piece);
            for (uint64_t i = 0; i < n_pieces; i++) {
                uint64_t at = (i * 3 + 1) % n_pieces;
                at = n_pieces % 3 == 0 ? n_pieces - 1 - i : at;
                uint64_t n = ll_min_u64(piece, t.size_bytes - at * piece);
                uint8_t *copy = malloc(n); /* staging: gone right after */
                uint8_t *place =
                    uses_places ? backend->place(device, 0, &t, 0, at * piece, n) : NULL;
                uint8_t *from = place != NULL ? place : copy;
                n_placed += place != NULL;
                n_staged += place == NULL;
                memcpy(from, bytes + at * piece, n);
                int rc = backend->feed(device, 0, &t, 0, at * piece, from, n, &ticket, error);
                free(copy);
                if (rc < 0)
                    return rc;
                assert_int_equal(backend->fed(device, ticket, error), 1);
            }
            free(bytes);
        }
    }
    return 0;
}

static struct ll_device *open_fed(enum ll_dtype dtype)
{
    struct ll_text error = {""};
    struct ll_backend_caps caps;
    struct ll_device *device = NULL;
    struct ll_backend_options options = {.struct_bytes = sizeof(options),
                                         .n_slots = 1,
                                         .n_pages = PER_SEQ,
                                         .n_tokens_max = 512,
                                         .n_rows_max = 1,
                                         .pages_per_seq = PER_SEQ,
                                         .n_weights = 1,
                                         .dtype = dtype,
                                         .numa_node = -1};

    if (backend->open(&device, &options, &shape, &caps, &error) < 0)
        fail_msg("open: %s", error.s);
    return device;
}

static void any_dtype_and_any_split_of_the_weights_give_the_same_model(void **state)
{
    static const enum ll_dtype dtypes[] = {LL_DTYPE_BF16, LL_DTYPE_F16, LL_DTYPE_F32};
    static struct sequence q[2][6];

    (void)state;
    for (int compute = 0; compute < 2; compute++) {
        for (int i = 0; i < 6; i++) {
            struct ll_text error = {""};
            struct ll_device *device = open_fed(compute == 0 ? LL_DTYPE_F32 : LL_DTYPE_BF16);
            if (feed_all(device, dtypes[i / 2], i % 2 == 1, -1, &error) < 0 ||
                backend->seal(device, 0, &error) < 0)
                fail_msg("%s", error.s);
            make_sequence(&q[compute][i], 0, 65);
            run_together(device, &q[compute][i], 1, 512);
            backend->close(device);
            /* A form has lanes of its own: f32 weights may round sums otherwise than bf16 ones. */
            int same = compute == 0 && i >= 2 ? 2 : 0;
            assert_same(&q[compute][i], &q[compute][same]);
            const struct sequence *a = &q[compute][i], *b = &q[compute][0];
            assert_int_equal(a->out[0], b->out[0]);
            for (int t = 0; t < OUT && a->out[t] == b->out[t]; t++)
                assert_true(fabsf(a->logprob[t] - b->logprob[t]) < 1e-4f);
        }
    }
    assert_true(memcmp(q[0][0].logprob, q[1][0].logprob, sizeof(q[0][0].logprob)) != 0);
}

/* Padded rows (the down projection's 200 columns), other types and pieces that cut numbers go
 * through feed all the same. */
static void weights_put_into_their_places_give_the_same_model(void **state)
{
    static const enum ll_dtype dtypes[] = {LL_DTYPE_BF16, LL_DTYPE_F16};
    static struct sequence q[2];
    struct ll_text error = {""};

    (void)state;
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 2; k++) {
            struct ll_device *device = open_fed(LL_DTYPE_BF16);
            uses_places = k == 1;
            n_placed = n_staged = 0;
            if (feed_all(device, dtypes[i / 2], i % 2 == 1, -1, &error) < 0 ||
                backend->seal(device, 0, &error) < 0)
                fail_msg("%s", error.s);
            make_sequence(&q[k], 0, 65);
            run_together(device, &q[k], 1, 512);
            backend->close(device);
        }
        uses_places = false;
        assert_true(n_staged > 0);
        assert_int_equal(n_placed > 0, dtypes[i / 2] == LL_DTYPE_BF16);
        assert_same(&q[0], &q[1]);
    }
}

static void a_place_is_of_whole_numbers_within_the_tensor(void **state)
{
    struct ll_device *device = open_fed(LL_DTYPE_BF16);
    struct ll_tensor t = tensor_of(LL_TENSOR_GATE, LL_DTYPE_BF16);

    (void)state;
    char *first = backend->place(device, 0, &t, 0, 0, 64);
    assert_non_null(first);
    assert_ptr_equal(backend->place(device, 0, &t, 0, 192, 64), first + 192);
    assert_null(backend->place(device, 0, &t, 0, 1, 64));
    assert_null(backend->place(device, 0, &t, 0, 0, 63));
    assert_null(backend->place(device, 0, &t, 0, t.size_bytes - 62, 64));
    assert_null(backend->place(device, 1, &t, 0, 0, 64));
    assert_null(backend->place(device, 0, &t, 1, 0, 64));
    t.dtype = LL_DTYPE_F32;
    t.size_bytes *= 2;
    assert_null(backend->place(device, 0, &t, 0, 0, 64));
    backend->close(device);
}

static void seal_names_what_is_missing(void **state)
{
    struct ll_text error = {""};
    struct ll_device *device = open_fed(LL_DTYPE_F32);

    (void)state;
    assert_true(feed_all(device, LL_DTYPE_BF16, true, LL_TENSOR_GATE, &error) == 0);
    assert_int_equal(backend->seal(device, 0, &error), LL_E_INVAL);
    assert_non_null(strstr(error.s, "layers.1.mlp.gate_proj has not come"));

    struct ll_tensor t = tensor_of(LL_TENSOR_GATE, LL_DTYPE_BF16);
    uint8_t *bytes = calloc(1, t.size_bytes);
    uint64_t ticket;
    t.layer = 1;
    backend->feed(device, 0, &t, 0, 0, bytes, 100, &ticket, &error);
    backend->feed(device, 0, &t, 0, 201, bytes, t.size_bytes - 201, &ticket, &error);
    assert_int_equal(backend->seal(device, 0, &error), LL_E_INVAL);
    assert_non_null(strstr(error.s, "layers.1.mlp.gate_proj lacks bytes 100 to 201 of"));

    struct ll_row row = {.n_tokens = 1, .token = (const uint32_t[]){1}, .flags = LL_ROW_SAMPLE};
    assert_int_equal(backend->submit(device, &(struct ll_batch){.n_rows = 1, .rows = &row}, &error),
                     LL_E_INVAL);
    assert_non_null(strstr(error.s, "not sealed"));
    backend->feed(device, 0, &t, 0, 99, bytes, 103, &ticket, &error); /* overlaps both */
    assert_int_equal(backend->seal(device, 0, &error), 0);
    assert_int_equal(backend->feed(device, 0, &t, 0, t.size_bytes, bytes, 1, &ticket, &error),
                     LL_E_INVAL);
    free(bytes);
    backend->close(device);
}

static void weights_that_cannot_be_used_are_refused_in_words(void **state)
{
    struct ll_text error = {""};
    struct ll_span span;
    struct ll_device *device = open_fed(LL_DTYPE_BF16);
    struct ll_tensor t;

    (void)state;
    t = tensor_of(LL_TENSOR_Q, LL_DTYPE_BF16);
    t.rows--;
    assert_int_equal(backend->want(device, &t, &span, 1, &error), LL_E_INVAL);
    assert_non_null(strstr(error.s, "layers.0.self_attn.q_proj"));
    t = tensor_of(LL_TENSOR_Q, LL_DTYPE_BF16);
    t.layer = shape.n_layers;
    assert_int_equal(backend->want(device, &t, &span, 1, &error), LL_E_INVAL);
    t = tensor_of(LL_TENSOR_K, LL_DTYPE_F32);
    t.part = LL_PART_KV_SCALE;
    assert_int_equal(backend->want(device, &t, &span, 1, &error), 0);
    backend->close(device);
}

static void a_nan_in_the_weights_makes_the_row_fail_and_not_the_step(void **state)
{
    struct ll_text error = {""};
    struct ll_device *device = open_fed(LL_DTYPE_BF16);
    struct ll_tensor t = tensor_of(LL_TENSOR_EMBED, LL_DTYPE_BF16);
    const uint16_t nan = 0x7fc0;
    uint64_t ticket;

    (void)state;
    assert_true(feed_all(device, LL_DTYPE_BF16, false, -1, &error) == 0);
    backend->feed(device, 0, &t, 0, 2ull * shape.n_embd * 9 + 10, &nan, 2, &ticket, &error);
    assert_int_equal(backend->seal(device, 0, &error), 0);
    for (uint32_t id = 8; id <= 10; id++) { /* id 9's embedding holds the NaN */
        struct ll_slot_init init = {.n_prompt = 1, .n_hist = 1, .hist = &id, .s = demo_greedy()};
        struct ll_pages_set pages = {0, 0, 1, (const uint32_t[]){3}};
        struct ll_row row = {.n_tokens = 1, .token = &id, .flags = LL_ROW_SAMPLE};
        struct ll_batch batch = {.n_inits = 1,
                                 .n_pages_sets = 1,
                                 .n_rows = 1,
                                 .inits = &init,
                                 .pages = &pages,
                                 .rows = &row};
        struct ll_result r = demo_run(device, &batch);
        assert_int_equal(r.rows[0].status, id == 9 ? LL_ROW_NAN : LL_ROW_OK);
        assert_int_equal(r.rows[0].n_tokens, id == 9 ? 0 : 1);
    }
    backend->close(device);
}

static void dummy_weights_are_random_never_zero_and_follow_the_seed(void **state)
{
    struct ll_cpu_weights w[3];
    struct ll_text error;

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ll_cpu_weights_open(&w[i], &shape, LL_DTYPE_BF16, -1, &error), 0);
        assert_int_equal(ll_cpu_weights_dummy(&w[i], i == 2 ? 6 : 5, false, &error), 0);
    }
    for (int role = 0; role < LL_TENSOR_ROLES; role++) {
        const struct ll_cpu_matrix *m = ll_cpu_weight(&w[0], 0, role);
        size_t bytes = (size_t)m->rows * m->stride * ll_cpu_form_bytes(m->form);
        assert_memory_equal(m->data, ll_cpu_weight(&w[1], 0, role)->data, bytes);
        assert_memory_not_equal(m->data, ll_cpu_weight(&w[2], 0, role)->data, bytes);
        for (uint32_t i = 0; i < m->rows * m->stride; i++) {
            float x = m->form == LL_FORM_F32 ? ((const float *)m->data)[i]
                                             : ll_f32_from_bf16(((const uint16_t *)m->data)[i]);
            assert_true((x != 0) == (i % m->stride < m->cols)); /* and pads are zero */
        }
    }
    for (int i = 0; i < 3; i++)
        ll_cpu_weights_close(&w[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_dtype_and_any_split_of_the_weights_give_the_same_model),
        cmocka_unit_test(weights_put_into_their_places_give_the_same_model),
        cmocka_unit_test(a_place_is_of_whole_numbers_within_the_tensor),
        cmocka_unit_test(seal_names_what_is_missing),
        cmocka_unit_test(weights_that_cannot_be_used_are_refused_in_words),
        cmocka_unit_test(a_nan_in_the_weights_makes_the_row_fail_and_not_the_step),
        cmocka_unit_test(dummy_weights_are_random_never_zero_and_follow_the_seed),
    };
    backend = ll_backend_cpu();
    return cmocka_run_group_tests_name("kernels/cpu weights", tests, NULL, NULL);
}
