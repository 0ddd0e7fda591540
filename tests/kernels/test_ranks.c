/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_ranks.c - who has what of a model in parts on GPUs: that all is had once, as
 * on the CPU backend where that cuts likewise, and that pieces of any size come to the right place.
 * Needs no GPU. */
#include "kernels/cuda/ranks.c"
#include "kernels/cpu/ranks.h"
#include "tests/harness.h"

#include "base/rng.h"

#include <stdlib.h>

static const struct ll_model_shape model = {
    .n_layers = 2,
    .n_embd = 512,
    .n_heads = 16,
    .n_kv_heads = 4,
    .head_dim = 128,
    .n_ff = 2048,
    .n_vocab = 2037,
};

static struct ll_tensor weight_of(enum ll_tensor_role role)
{
    struct ll_tensor t = {.role = role, .part = LL_PART_WEIGHT, .dtype = LL_DTYPE_BF16};
    uint32_t at;

    cut_rows(&model, &model, 1, role, 0, &at, &t.rows);
    cut_cols(&model, &model, role, 0, &at, &t.cols);
    t.size_bytes = (uint64_t)t.rows * t.cols * 2;
    return t;
}

/* Every number of every weight belongs to one rank, of K and V to as many as share a head; norms to
 * all. */
static void every_number_has_its_ranks(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 8; n *= 2)
        for (int role = 0; role < LL_TENSOR_ROLES; role++) {
            const struct ll_tensor t = weight_of((enum ll_tensor_role)role);
            const bool is_kv = role == LL_TENSOR_K || role == LL_TENSOR_V;
            const uint32_t wanted = t.rows == 1                     ? n
                                    : is_kv && n > model.n_kv_heads ? n / model.n_kv_heads
                                                                    : 1;
            unsigned char *count = calloc((size_t)t.rows * t.cols, 1);
            struct ll_cuda_slice s, before = {0};
            for (uint32_t r = 0; r < n; r++, before = s) {
                struct ll_text error = {""};
                assert_int_equal(ll_cuda_rank_slice(&model, n, &t, r, &s, &error), 0);
                assert_true(s.row >= before.row && s.col >= before.col); /* ids by rank: T4 */
                assert_true(s.row + s.n_rows <= t.rows && s.col + s.n_cols <= t.cols);
                for (uint32_t i = s.row; i < s.row + s.n_rows; i++)
                    for (uint32_t k = s.col; k < s.col + s.n_cols; k++)
                        count[(size_t)i * t.cols + k]++;
            }
            for (size_t i = 0; i < (size_t)t.rows * t.cols; i++)
                if (count[i] != wanted)
                    fail_msg("%u ranks, role %d: number %zu is had by %u, not %u", n, role, i,
                             count[i], wanted);
            free(count);
        }
}

/* Linear layers, their scales a row, a block or for all, and those of the cache. */
static void linear_layers_are_cut_as_on_the_cpu(void **state)
{
    (void)state;
    static const enum ll_tensor_role roles[] = {LL_TENSOR_Q,   LL_TENSOR_K,  LL_TENSOR_V,
                                                LL_TENSOR_O,   LL_TENSOR_UP, LL_TENSOR_GATE,
                                                LL_TENSOR_DOWN};
    uint32_t n_refused = 0;

    for (uint32_t n = 1; n <= 8; n *= 2)
        for (size_t i = 0; i < LL_COUNT(roles); i++)
            for (int form = 0; form < 6; form++) {
                struct ll_tensor t = weight_of(roles[i]);
                const uint32_t rows = t.rows, cols = t.cols;
                const bool is_kv = roles[i] == LL_TENSOR_K || roles[i] == LL_TENSOR_V;
                if (form > 0) {
                    t.part = form < 4 ? LL_PART_SCALE : LL_PART_KV_SCALE;
                    t.dtype = LL_DTYPE_F32;
                    t.rows = form == 1   ? 1
                             : form == 2 ? rows
                             : form == 3 ? (rows + 127) / 128
                             : form == 4 ? 1
                                         : model.n_kv_heads;
                    t.cols = form == 3 ? (cols + 127) / 128 : 1;
                }
                if (t.part == LL_PART_KV_SCALE && !is_kv)
                    continue;
                for (uint32_t r = 0; r < n; r++) {
                    struct ll_cuda_slice a;
                    struct ll_cpu_slice b;
                    struct ll_text error = {""};
                    const int x = ll_cuda_rank_slice(&model, n, &t, r, &a, &error);
                    const int y = ll_cpu_rank_slice(&model, n, &t, r, &b, &error);
                    assert_int_equal(x, y);
                    n_refused += x < 0;
                    if (x == 0 && (a.row != b.row || a.n_rows != b.n_rows || a.col != b.col ||
                                   a.n_cols != b.n_cols))
                        fail_msg("%u ranks, role %d, form %d, rank %u: %u+%u x %u+%u, on the CPU "
                                 "%u+%u x %u+%u",
                                 n, (int)roles[i], form, r, a.row, a.n_rows, a.col, a.n_cols, b.row,
                                 b.n_rows, b.col, b.n_cols);
                }
            }
    assert_int_equal(n_refused, 0); /* 128 divides all parts of this model */
}

static void ranks_that_would_share_a_block_of_scales_are_refused(void **state)
{
    (void)state;
    struct ll_model_shape small = model;
    struct ll_tensor t = {
        .role = LL_TENSOR_GATE, .part = LL_PART_SCALE, .dtype = LL_DTYPE_F32, .cols = 4};
    struct ll_cuda_slice s;
    struct ll_text error = {""};

    small.n_ff = 512; /* 64 a rank */
    t.rows = small.n_ff / 128;
    assert_int_equal(ll_cuda_rank_slice(&small, 8, &t, 1, &s, &error), LL_E_UNSUPPORTED);
    assert_non_null(strstr(error.s, "--tensor-parallel-size"));
    assert_int_equal(ll_cuda_rank_slice(&small, 4, &t, 1, &s, &error), 0);
    assert_true(s.row == 1 && s.n_rows == 1 && s.n_cols == 4);
}

/* Pieces of 1 byte and up, in any order: what each rank gets lies where its slice has it. */
static void pieces_of_any_size_come_to_their_place(void **state)
{
    (void)state;
    uint64_t random = 7;

    for (uint32_t n = 1; n <= 8; n *= 2)
        for (int round = 0; round < 60; round++) {
            const uint32_t rows = 8 * (1 + (uint32_t)(ll_splitmix64(&random) % 5)),
                           cols = 16 * (1 + (uint32_t)(ll_splitmix64(&random) % 5));
            const struct ll_tensor t = {.dtype = round % 2 ? LL_DTYPE_BF16 : LL_DTYPE_E4M3,
                                        .rows = rows,
                                        .cols = cols,
                                        .size_bytes = (uint64_t)rows * cols * (round % 2 ? 2 : 1)};
            const uint64_t size = round % 2 ? 2 : 1;
            const bool by_rows = round % 3 == 0;
            const uint32_t rank = (uint32_t)(ll_splitmix64(&random) % n);
            const struct ll_cuda_slice s =
                by_rows ? (struct ll_cuda_slice){rank * (rows / n), rows / n, 0, cols}
                        : (struct ll_cuda_slice){0, rows, rank * (cols / n), cols / n};
            const size_t part_bytes = (size_t)s.n_rows * s.n_cols * size;
            unsigned char *whole = malloc(t.size_bytes), *part = malloc(part_bytes),
                          *piece = malloc(t.size_bytes);
            size_t n_got = 0;
            for (uint64_t i = 0; i < t.size_bytes; i++)
                whole[i] = (unsigned char)ll_splitmix64(&random);
            memset(part, 0, part_bytes);
            for (uint64_t at = 0; at < t.size_bytes;) {
                const size_t m =
                    ll_min_u64(1 + ll_splitmix64(&random) % (3 * cols), t.size_bytes - at);
                uint64_t to = 0, again = 0;
                size_t first = 0;
                bool is_run = false;
                const size_t k =
                    ll_cuda_rank_cut(&t, &s, at, whole + at, m, &to, NULL, &first, &is_run);
                assert_int_equal(
                    ll_cuda_rank_cut(&t, &s, at, whole + at, m, &again, piece, &first, &is_run), k);
                assert_true(to == again && to + k <= part_bytes);
                if (k > 0 && is_run) /* then the piece itself holds them */
                    assert_memory_equal(piece, whole + at + first, k);
                memcpy(part + to, piece, k);
                n_got += k;
                at += m;
            }
            assert_int_equal(n_got, part_bytes);
            for (uint32_t i = 0; i < s.n_rows; i++)
                assert_memory_equal(part + i * s.n_cols * size,
                                    whole + ((s.row + i) * (uint64_t)cols + s.col) * size,
                                    s.n_cols * size);
            free(whole);
            free(part);
            free(piece);
        }
}

static void models_that_cannot_be_cut_are_refused(void **state)
{
    (void)state;
    struct ll_model_shape s = model;
    struct ll_text error = {""};

    for (uint32_t n = 1; n <= 8; n *= 2)
        assert_int_equal(ll_cuda_ranks_check(&s, n, &error), 0);
    static const uint32_t bad[] = {0, 3, 5, 6, 16};
    for (size_t i = 0; i < LL_COUNT(bad); i++)
        assert_int_equal(ll_cuda_ranks_check(&s, bad[i], &error), LL_E_UNSUPPORTED);
    s.n_heads = 12;
    assert_int_equal(ll_cuda_ranks_check(&s, 8, &error), LL_E_UNSUPPORTED);
    s = model;
    s.n_kv_heads = 3;
    assert_int_equal(ll_cuda_ranks_check(&s, 2, &error), LL_E_UNSUPPORTED);
    s = model;
    s.n_ff = 1000;
    assert_int_equal(ll_cuda_ranks_check(&s, 8, &error), LL_E_UNSUPPORTED);
    s = model;
    s.n_vocab = 100; /* 16 a rank: the eighth would have none */
    assert_int_equal(ll_cuda_ranks_check(&s, 8, &error), LL_E_UNSUPPORTED);
    assert_int_equal(ll_cuda_ranks_check(&s, 4, &error), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_number_has_its_ranks),
        cmocka_unit_test(linear_layers_are_cut_as_on_the_cpu),
        cmocka_unit_test(ranks_that_would_share_a_block_of_scales_are_refused),
        cmocka_unit_test(pieces_of_any_size_come_to_their_place),
        cmocka_unit_test(models_that_cannot_be_cut_are_refused),
    };
    return cmocka_run_group_tests_name("kernels/ranks", tests, NULL, NULL);
}
