/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cuda_ops_attend.c - paged attention on the GPU against double and the CPU
 * backend's: awkward lengths, every group size, permuted and shared pages, poisoned pages around.
 * Skipped without a GPU. */
#include "kernels/cpu/attend.h"
#include "tests/kernels/cuda_ops.h"

enum { ROWS_MAX = 256, PER_SEQ_MAX = 2048 };

/* A pool of pages in which every row has its own or a shared list, and what the kernels need. */
struct attend {
    uint32_t H, K, D, n_rows, n_tokens, n_pages, pages_per_seq;
    bool is_fp8;
    uint32_t *table; /* [n_rows][pages_per_seq] */
    unsigned char *kv;
    float kv_scale[2 * 16];  /* of e4m3 pages: [k, v][K] */
    uint16_t *qkv;           /* [n_tokens][(H + 2K) D] */
    float *rope;             /* [longest][D / 2][cos, sin]; NULL: Q and K are rotated */
    bool is_apart;           /* rope_append runs first; else decode attention rotates */
    unsigned char *kv_after; /* with rope: the pages as they are then */
    struct ll_cuda_decode decode[ROWS_MAX];
    struct ll_cuda_tile *tiles;
    uint32_t n_decode, n_items, n_tiles;
};

static uint32_t common_divisor(uint32_t a, uint32_t b)
{
    return b == 0 ? a : common_divisor(b, a % b);
}

static uint32_t round_up_pages(uint32_t n)
{
    return (n + LL_PAGE_TOKENS - 1) / LL_PAGE_TOKENS;
}

/* Values of modest size: keys so that the softmax is neither flat nor one-hot. */
static void make_attend(struct attend *a, uint32_t H, uint32_t K, uint32_t D, bool is_fp8,
                        uint32_t n_rows, const uint32_t *n_kv, uint32_t n_tokens)
{
    uint32_t n = 0, longest = 0;

    *a = (struct attend){
        .H = H, .K = K, .D = D, .is_fp8 = is_fp8, .n_rows = n_rows, .n_tokens = n_tokens};
    for (uint32_t i = 0; i < 2 * K; i++) /* D 64: none are given, all are 1 */
        a->kv_scale[i] = is_fp8 && D == 128 ? 0.3f + random_unit() * 0.2f : 1.0f;
    for (uint32_t r = 0; r < n_rows; r++) {
        n += round_up_pages(n_kv[r]);
        longest = n_kv[r] > longest ? n_kv[r] : longest;
    }
    a->pages_per_seq = round_up_pages(longest);
    a->n_pages = n + 3;
    assert_true(n_rows <= ROWS_MAX && a->pages_per_seq <= PER_SEQ_MAX);
    a->table = malloc((size_t)n_rows * a->pages_per_seq * sizeof(uint32_t));
    /* Pages in falling order, spread: nobody's neighbours are its own. Free entries are garbage. */
    uint32_t next = 0, stride = 7;
    while (common_divisor(a->n_pages, stride) != 1)
        stride += 2;
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t p = 0; p < a->pages_per_seq; p++)
            a->table[r * a->pages_per_seq + p] =
                p < round_up_pages(n_kv[r]) ? (next++ * stride) % a->n_pages : 0x7fffffff;
    const size_t n_numbers = (size_t)a->n_pages * 2 * K * LL_PAGE_TOKENS * D;
    if (is_fp8) {
        a->kv = malloc(n_numbers);
        for (size_t i = 0; i < n_numbers; i++) /* |x| < 4 */
            a->kv[i] = (uint8_t)((ll_splitmix64(&random_state) & 0x80) |
                                 ll_splitmix64(&random_state) % 0x48);
    } else {
        uint16_t *kv = malloc(n_numbers * 2);
        for (size_t i = 0; i < n_numbers; i++)
            kv[i] = ll_bf16_from_f32(1.5f * random_unit());
        a->kv = (unsigned char *)kv;
    }
    a->qkv = malloc((size_t)n_tokens * (H + 2 * K) * D * 2);
    for (size_t i = 0; i < (size_t)n_tokens * (H + 2 * K) * D; i++)
        a->qkv[i] = ll_bf16_from_f32(1.5f * random_unit());
}

static void free_attend(struct attend *a)
{
    free(a->table);
    free(a->kv);
    free(a->qkv);
    free(a->tiles);
}

static size_t number_at(const struct attend *a, uint32_t page, uint32_t which, uint32_t head,
                        uint32_t token)
{
    return ((((size_t)page * 2 + which) * a->K + head) * LL_PAGE_TOKENS + token) * a->D;
}

static double kv_value(const struct attend *a, size_t at)
{
    return (double)(a->is_fp8 ? e4m3_value(a->kv[at])
                              : ll_f32_from_bf16(((const uint16_t *)a->kv)[at]));
}

/* out [D] of one query token and head that sees the first n_kv cached tokens of a row. */
static void attend_in_double(const struct attend *a, uint32_t row, uint32_t token, uint32_t head,
                             uint32_t n_kv, double *out)
{
    const uint16_t *q = a->qkv + ((size_t)token * (a->H + 2 * a->K) + head) * a->D;
    const uint32_t kv_head = head / (a->H / a->K);
    double *score = malloc(n_kv * sizeof(*score)), top = -INFINITY, sum = 0;

    for (uint32_t j = 0; j < n_kv; j++) {
        const uint32_t page = a->table[row * a->pages_per_seq + j / LL_PAGE_TOKENS];
        const size_t k = number_at(a, page, 0, kv_head, j % LL_PAGE_TOKENS);
        double dot = 0;
        for (uint32_t d = 0; d < a->D; d++)
            dot += (double)ll_f32_from_bf16(q[d]) * kv_value(a, k + d);
        score[j] = dot * (double)a->kv_scale[kv_head] / sqrt(a->D);
        top = fmax(top, score[j]);
    }
    memset(out, 0, a->D * sizeof(*out));
    for (uint32_t j = 0; j < n_kv; j++) {
        const uint32_t page = a->table[row * a->pages_per_seq + j / LL_PAGE_TOKENS];
        const size_t v = number_at(a, page, 1, kv_head, j % LL_PAGE_TOKENS);
        const double p = exp(score[j] - top);
        sum += p;
        for (uint32_t d = 0; d < a->D; d++)
            out[d] += p * kv_value(a, v + d);
    }
    for (uint32_t d = 0; d < a->D; d++)
        out[d] *= (double)a->kv_scale[a->K + kv_head] / sum;
    free(score);
}

/* ---- running ----------------------------------------------------------------------------------*/
static void add_decode(struct attend *a, uint32_t token, uint32_t slot, uint32_t n_kv)
{
    a->decode[a->n_decode++] = (struct ll_cuda_decode){token, slot, n_kv, a->n_items};
    a->n_items += ll_cuda_n_items(n_kv, a->K);
}

/* Tiles of n query tokens from `token` on, at positions from pos. */
static void add_tiles(struct attend *a, uint32_t token, uint32_t slot, uint32_t pos, uint32_t n)
{
    const uint32_t per_tile = LL_CUDA_TILE_TOKENS(a->H / a->K);

    for (uint32_t i = 0; i < n; i += per_tile)
        a->tiles[a->n_tiles++] =
            (struct ll_cuda_tile){token + i, slot, pos + i, n - i < per_tile ? n - i : per_tile};
}

/* Attention of what a holds; out [n_tokens][H D] widened, all NaN where nothing was written. The
 * tokens past a cached length are poisoned: a kernel that reads them gives a NaN. */
static float *run_attend(struct attend *a, int n_repeats)
{
    const size_t element = a->is_fp8 ? 1 : 2, n_out = (size_t)a->n_tokens * a->H * a->D;
    const size_t kv_bytes = (size_t)a->n_pages * 2 * a->K * LL_PAGE_TOKENS * a->D * element;
    const struct ll_cuda_counts counts = {
        .n_decode = a->n_decode, .n_decode_items = a->n_items, .n_tiles = a->n_tiles};
    uint32_t *arrived = dev_zero((size_t)ROWS_MAX * a->K * LL_CUDA_DECODE_MERGERS * 4);
    const size_t partial =
        (size_t)(a->n_items + 1) * a->K * ll_cuda_partial_floats(a->H / a->K, a->D) * 4;
    struct ll_cuda_tables tables = {
        .counts = dev_copy(&counts, sizeof(counts)),
        .decode = dev_copy(a->decode, sizeof(a->decode)),
        .tiles = dev_copy(a->tiles != NULL ? (const void *)a->tiles : (const void *)&counts,
                          a->n_tiles > 0 ? a->n_tiles * sizeof(*a->tiles) : 16),
        .page_table = dev_copy(a->table, (size_t)a->n_rows * a->pages_per_seq * 4),
        .pages_per_seq = a->pages_per_seq};
    uint32_t slot[ROWS_MAX], pos[ROWS_MAX] = {0};
    memset(slot, 0xff, sizeof(slot)); /* nobody's */
    for (uint32_t i = 0; i < a->n_decode && a->rope != NULL; i++) {
        slot[a->decode[i].token] = a->decode[i].slot;
        pos[a->decode[i].token] = a->decode[i].n_kv - 1;
    }
    tables.token_slot = dev_copy(slot, sizeof(slot));
    tables.token_pos = dev_copy(pos, sizeof(pos));
    void *out = dev_new(n_out * 2), *kv = dev_copy(a->kv, kv_bytes);
    const struct ll_cuda_attend_args args = {
        .tables = &tables,
        .qkv = dev_copy(a->qkv, (size_t)a->n_tokens * (a->H + 2 * a->K) * a->D * 2),
        .out = out,
        .kv = kv,
        .is_kv_fp8 = a->is_fp8,
        .kv_scale = a->is_fp8 && a->D == 128 ? dev_copy(a->kv_scale, sizeof(a->kv_scale)) : NULL,
        .partial = dev_new(partial),
        .arrived = arrived,
        .n_heads = a->H,
        .n_kv_heads = a->K,
        .head_dim = a->D,
        .n_tokens = a->n_tokens,
        .n_rows_max = ROWS_MAX,
        .n_tiles = a->n_tiles + 3, /* a bucket: more blocks than tiles */
        .n_blocks = 24,            /* far fewer than work items: each takes several */
        .scale = 1.0f / sqrtf((float)a->D),
        .rope = a->rope != NULL
                    ? dev_copy(a->rope, (size_t)a->pages_per_seq * LL_PAGE_TOKENS * a->D * 4)
                    : NULL,
        .is_rotated = a->rope == NULL || a->is_apart};
    unsigned char *first = NULL;
    if (a->is_apart)
        launched_ok(ll_cuda_rope_append(&args, 0), "rope and append");
    for (int i = 0; i < n_repeats; i++) {
        dev_poison(out, n_out * 2);
        if (a->n_decode > 0)
            launched_ok(ll_cuda_attend_decode(&args, 0), "decode attention");
        if (a->n_tiles > 0)
            launched_ok(ll_cuda_attend_prefill(&args, 0), "prefill attention");
        unsigned char *got = dev_get(out, n_out * 2);
        if (first != NULL) {
            assert_memory_equal(got, first, n_out * 2);
            free(got);
        } else
            first = got;
    }
    float *result = widened((const uint16_t *)first, n_out);
    unsigned char *kv_after = dev_get(kv, kv_bytes);
    uint32_t *left = dev_get(arrived, (size_t)ROWS_MAX * a->K * LL_CUDA_DECODE_MERGERS * 4);
    if (a->rope == NULL)
        assert_memory_equal(kv_after, a->kv, kv_bytes); /* attention only reads pages */
    for (uint32_t i = 0; i < ROWS_MAX * a->K * LL_CUDA_DECODE_MERGERS; i++)
        assert_int_equal(left[i], 0);
    free(left);
    free(first);
    if (a->rope == NULL)
        free(kv_after);
    else
        a->kv_after = kv_after;
    dev_end();
    return result;
}

/* Poisons what lies past the cached length in a row's last page. */
static void poison_tail(struct attend *a, uint32_t row, uint32_t n_kv)
{
    const uint32_t page = a->table[row * a->pages_per_seq + (n_kv - 1) / LL_PAGE_TOKENS];

    for (uint32_t which = 0; which < 2; which++)
        for (uint32_t head = 0; head < a->K; head++)
            for (uint32_t t = (n_kv - 1) % LL_PAGE_TOKENS + 1; t < LL_PAGE_TOKENS; t++)
                memset(a->kv + number_at(a, page, which, head, t) * (a->is_fp8 ? 1 : 2), 0xff,
                       a->D * (a->is_fp8 ? 1 : 2));
}

/* The same by the CPU backend, whose pages lie alike; out [H][D]. */
static void attend_on_cpu(const struct attend *a, uint32_t row, uint32_t token, uint32_t n_kv,
                          float *out)
{
    const uint32_t group = a->H / a->K;
    const size_t head_bytes = (size_t)LL_PAGE_TOKENS * a->D * (a->is_fp8 ? 1 : 2);
    const struct ll_cpu_kv kv = {.base = (char *)a->kv,
                                 .n_pages = a->n_pages,
                                 .n_kv_heads = a->K,
                                 .head_dim = a->D,
                                 .d16 = a->D,
                                 .form = a->is_fp8 ? LL_FORM_E4M3 : LL_FORM_BF16,
                                 .head_bytes = head_bytes,
                                 .page_bytes = 2 * a->K * head_bytes};
    float *q = widened(a->qkv + (size_t)token * (a->H + 2 * a->K) * a->D, (size_t)a->H * a->D);
    float *scratch = malloc(ll_cpu_attend_scratch(a->D, group) * sizeof(*scratch));

    for (uint32_t head = 0; head < a->K; head++)
        ll_cpu_attend(&(struct ll_cpu_attend){.inner = ll_cpu_inner_find(NULL),
                                              .kv = &kv,
                                              .page = a->table + (size_t)row * a->pages_per_seq,
                                              .kv_head = head,
                                              .group = group,
                                              .n_tokens = 1,
                                              .position = n_kv - 1,
                                              .q = q + (size_t)head * group * a->D,
                                              .out = out + (size_t)head * group * a->D,
                                              .ld_q = (size_t)a->H * a->D,
                                              .ld_out = (size_t)a->H * a->D,
                                              .k_scale = a->kv_scale[head],
                                              .v_scale = a->kv_scale[a->K + head],
                                              .is_bf16 = true,
                                              .scratch = scratch});
    free(q);
    free(scratch);
}

static void check_against_cpu(const struct attend *a, const float *out, uint32_t row,
                              uint32_t token, uint32_t n_kv)
{
    const size_t n = (size_t)a->H * a->D;
    float *cpu = malloc(n * sizeof(*cpu));
    double *want = malloc(n * sizeof(*want));

    attend_on_cpu(a, row, token, n_kv, cpu);
    for (size_t i = 0; i < n; i++)
        want[i] = (double)cpu[i];
    const double far = distance(out + token * n, want, n);
    if (!(far <= (a->is_fp8 ? 1e-2 : 5e-3)))
        fail_msg("H %u K %u D %u %s: token %u of %u cached: %g from the CPU's", a->H, a->K, a->D,
                 a->is_fp8 ? "e4m3" : "bf16", token, n_kv, far);
    free(cpu);
    free(want);
}

static void check_token(const struct attend *a, const float *out, uint32_t row, uint32_t token,
                        uint32_t n_kv)
{
    double *want = malloc(a->D * sizeof(*want));

    for (uint32_t head = 0; head < a->H; head++) {
        attend_in_double(a, row, token, head, n_kv, want);
        const double far = distance(out + ((size_t)token * a->H + head) * a->D, want, a->D);
        if (!(far <= (a->is_fp8 ? 1e-2 : 5e-3)))
            fail_msg("H %u K %u D %u %s: token %u head %u of %u cached: %g", a->H, a->K, a->D,
                     a->is_fp8 ? "e4m3" : "bf16", token, head, n_kv, far);
    }
    free(want);
    check_against_cpu(a, out, row, token, n_kv);
}

static const uint32_t lengths[] = {1,   2,   15,  16,  17,  63,  64,  65,  127,  128,  129, 255,
                                   256, 257, 500, 511, 512, 513, 640, 700, 1024, 1025, 8191};

static void check_decode(uint32_t H, uint32_t K, uint32_t D, bool is_fp8)
{
    const uint32_t n = sizeof(lengths) / sizeof(lengths[0]) - (is_quick() ? 4 : 0);
    struct attend a;

    make_attend(&a, H, K, D, is_fp8, n, lengths, n + 2);
    for (uint32_t r = 0; r < n; r++) {
        add_decode(&a, n + 1 - r, r, lengths[r]); /* tokens in another order than rows */
        poison_tail(&a, r, lengths[r]);
    }
    float *out = run_attend(&a, is_quick() ? 2 : 20);
    for (uint32_t r = 0; r < n; r++)
        check_token(&a, out, r, n + 1 - r, lengths[r]);
    for (uint32_t i = 0; i < 2 * H * D; i++) /* tokens 0 and 1 are nobody's */
        assert_true(isnan(out[i]));

    /* A row alone: the same bits, whatever else is in the batch. */
    const uint32_t alone = n - 2;
    a.n_decode = a.n_items = 0;
    add_decode(&a, n + 1 - alone, alone, lengths[alone]);
    float *single = run_attend(&a, 1);
    assert_memory_equal(single + (size_t)(n + 1 - alone) * H * D,
                        out + (size_t)(n + 1 - alone) * H * D, H * D * sizeof(float));
    free(single);
    free(out);
    free_attend(&a);
}

static void decode_attention_is_right_at_every_length_and_alone(void **state)
{
    (void)state;
    for (int fp8 = 0; fp8 < 2; fp8++) {
        check_decode(4, 4, 64, fp8);
        check_decode(6, 2, 128, fp8);
        check_decode(16, 4, 128, fp8);
        check_decode(8, 2, 64, fp8);
        if (is_quick())
            continue;
        check_decode(24, 8, 128, fp8);
        check_decode(16, 2, 128, fp8);
        check_decode(16, 1, 64, fp8);
        check_decode(16, 1, 128, fp8);
    }
}

static void one_row_of_131072_tokens_is_right(void **state)
{
    const uint32_t n_kv = is_quick() ? 1700 : 131072;
    struct attend a;

    (void)state;
    make_attend(&a, 8, 2, 128, false, 1, &n_kv, 1);
    add_decode(&a, 0, 0, n_kv);
    float *out = run_attend(&a, 3);
    check_token(&a, out, 0, 0, n_kv);
    free(out);
    free_attend(&a);
}

/* Lengths at which a row's work items double in size, and the ones around. */
static void rows_are_right_where_their_items_double_in_size(void **state)
{
    static const struct {
        uint32_t H, K, D, longest; /* of the smallest items */
    } shapes[] = {{8, 8, 64, 16384}, {8, 2, 64, 65536}, {4, 1, 128, 65536}};

    (void)state;
    if (is_quick())
        skip();
    for (uint32_t s = 0; s < 3; s++)
        for (int fp8 = 0; fp8 < 2; fp8++) {
            const uint32_t n_kv[] = {shapes[s].longest, shapes[s].longest + 1};
            struct attend a;
            assert_int_equal(ll_cuda_split(n_kv[0], shapes[s].K) * 2,
                             ll_cuda_split(n_kv[1], shapes[s].K));
            make_attend(&a, shapes[s].H, shapes[s].K, shapes[s].D, fp8, 2, n_kv, 2);
            for (uint32_t r = 0; r < 2; r++) {
                add_decode(&a, r, r, n_kv[r]);
                poison_tail(&a, r, n_kv[r]);
            }
            float *out = run_attend(&a, 2);
            for (uint32_t r = 0; r < 2; r++)
                check_token(&a, out, r, r, n_kv[r]);
            free(out);
            free_attend(&a);
        }
}

/* 256 rows of all lengths, a hundred times; then each of some alone: the same bits. */
static void check_among_255(uint32_t H, uint32_t K, uint32_t D, bool is_fp8)
{
    const uint32_t n = is_quick() ? 20 : 256;
    uint32_t n_kv[256];
    struct attend a;

    for (uint32_t r = 0; r < n; r++)
        n_kv[r] = 1 + (uint32_t)(ll_splitmix64(&random_state) % (r % 8 == 0 ? 2000 : 300));
    make_attend(&a, H, K, D, is_fp8, n, n_kv, n);
    for (uint32_t r = 0; r < n; r++) {
        add_decode(&a, r, r, n_kv[r]);
        poison_tail(&a, r, n_kv[r]);
    }
    float *all = run_attend(&a, is_quick() ? 2 : 100);
    for (uint32_t r = 0; r < n; r += 51) {
        check_token(&a, all, r, r, n_kv[r]);
        a.n_decode = a.n_items = 0;
        add_decode(&a, r, r, n_kv[r]);
        float *alone = run_attend(&a, 1);
        assert_memory_equal(alone + (size_t)r * H * D, all + (size_t)r * H * D,
                            H * D * sizeof(float));
        free(alone);
    }
    free(all);
    free_attend(&a);
}

static void a_row_has_the_same_bits_alone_and_among_255_others(void **state)
{
    (void)state;
    check_among_255(8, 2, 128, false);
    check_among_255(8, 2, 128, true);
    check_among_255(6, 2, 64, true);
    check_among_255(16, 1, 128, true);
}

/* Rotating and appending inside the kernel: every bit as by rope_append before it. */
static void check_rotated_inside(uint32_t H, uint32_t K, uint32_t D, bool is_fp8)
{
    static const uint32_t n_kv[] = {1, 32, 33, 64, 65, 256, 257, 700};
    struct attend a;

    make_attend(&a, H, K, D, is_fp8, 8, n_kv, 8);
    const size_t n_angles = (size_t)a.pages_per_seq * LL_PAGE_TOKENS * D / 2;
    a.rope = malloc(n_angles * 2 * sizeof(float));
    for (size_t i = 0; i < n_angles; i++) {
        const double angle = 3.2 * (double)random_unit();
        a.rope[2 * i] = (float)cos(angle);
        a.rope[2 * i + 1] = (float)sin(angle);
    }
    for (uint32_t r = 0; r < 8; r++) {
        add_decode(&a, 7 - r, r, n_kv[r]);
        poison_tail(&a, r, n_kv[r]);
    }
    const size_t kv_bytes = (size_t)a.n_pages * 2 * K * LL_PAGE_TOKENS * D * (is_fp8 ? 1 : 2);
    a.is_apart = true;
    float *apart = run_attend(&a, 1);
    unsigned char *kv_apart = a.kv_after;
    a.is_apart = false;
    float *inside = run_attend(&a, is_quick() ? 2 : 20);
    assert_memory_not_equal(kv_apart, a.kv, kv_bytes);
    assert_memory_equal(a.kv_after, kv_apart, kv_bytes);
    for (size_t i = 0; i < (size_t)8 * H * D; i++)
        assert_false(isnan(apart[i]));
    assert_memory_equal(inside, apart, (size_t)8 * H * D * sizeof(float));
    free(apart);
    free(inside);
    free(kv_apart);
    free(a.kv_after);
    free(a.rope);
    free_attend(&a);
}

static void rotating_and_appending_inside_changes_no_bit(void **state)
{
    (void)state;
    for (int fp8 = 0; fp8 < 2; fp8++) {
        check_rotated_inside(8, 2, 128, fp8);
        check_rotated_inside(6, 2, 64, fp8);
        check_rotated_inside(16, 1, 128, fp8);
    }
}

/* Two rows with the same pages (a shared prefix), and the same contents at other places. */
static void check_shared_pages(bool is_fp8)
{
    enum { N = 700, H = 16, K = 4, D = 128 };
    const uint32_t n_kv[3] = {N, N, N};
    struct attend a;

    make_attend(&a, H, K, D, is_fp8, 3, n_kv, 3);
    const uint32_t n = a.pages_per_seq;
    const size_t page_bytes = (size_t)2 * K * LL_PAGE_TOKENS * D * (is_fp8 ? 1 : 2);
    memcpy(a.table + n, a.table, n * 4); /* row 1: row 0's pages */
    for (uint32_t p = 0; p < n; p++)     /* row 2: a copy of them elsewhere */
        memcpy(a.kv + a.table[2 * n + p] * page_bytes, a.kv + a.table[p] * page_bytes, page_bytes);
    const size_t width = (H + 2 * K) * D;
    for (uint32_t t = 1; t < 3; t++)
        memcpy(a.qkv + t * width, a.qkv, width * 2);
    for (uint32_t t = 0; t < 3; t++)
        add_decode(&a, t, t, N);
    float *out = run_attend(&a, 2);
    check_token(&a, out, 0, 0, N);
    assert_memory_equal(out, out + H * D, H * D * sizeof(float));
    assert_memory_equal(out, out + 2 * H * D, H * D * sizeof(float));
    free(out);
    free_attend(&a);
}

static void where_pages_lie_and_who_shares_them_changes_no_bit(void **state)
{
    (void)state;
    check_shared_pages(false);
    check_shared_pages(true);
}

/* Rows of several tokens: chunk starts at, before and past page borders. */
static void check_prefill(uint32_t H, uint32_t K, uint32_t D, bool is_fp8)
{
    static const uint32_t pos[] = {0, 63, 127, 64, 0, 0, 0, 0, 100, 128, 500, 1000};
    static const uint32_t n_new[] = {2, 3, 1, 65, 150, 64, 129, 700, 29, 128, 33, 130};
    const uint32_t n = is_quick() ? 5 : 12;
    uint32_t n_kv[12], first[12], n_tokens = 1;
    struct attend a;

    for (uint32_t r = 0; r < n; r++) {
        n_kv[r] = pos[r] + n_new[r];
        first[r] = n_tokens;
        n_tokens += n_new[r];
    }
    make_attend(&a, H, K, D, is_fp8, n, n_kv, n_tokens + 1);
    a.tiles = calloc(n_tokens + 1, sizeof(*a.tiles));
    for (uint32_t r = 0; r < n; r++) {
        add_tiles(&a, first[r], r, pos[r], n_new[r]);
        poison_tail(&a, r, n_kv[r]);
    }
    float *out = run_attend(&a, is_quick() ? 2 : 10);
    for (uint32_t r = 0; r < n; r++)
        for (uint32_t i = 0; i<n_new[r]; i += n_new[r]> 40 ? 13 : 1)
            check_token(&a, out, r, first[r] + i, pos[r] + i + 1);
    for (uint32_t i = 0; i < H * D; i++) {
        assert_true(isnan(out[i]));
        assert_true(isnan(out[(size_t)n_tokens * H * D + i]));
    }
    free(out);
    free_attend(&a);
}

static void prefill_attention_is_causal_and_right_over_cached_pages(void **state)
{
    (void)state;
    for (int fp8 = 0; fp8 < 2; fp8++) {
        check_prefill(4, 4, 64, fp8);
        check_prefill(6, 2, 128, fp8);
        check_prefill(16, 4, 128, fp8);
        if (is_quick())
            continue;
        check_prefill(8, 1, 64, fp8);
        check_prefill(16, 1, 128, fp8);
        check_prefill(5, 1, 128, fp8); /* 24 of 25 tokens that a tile could hold */
        check_prefill(12, 4, 64, fp8);
    }
}

/* A prompt in one go, cut elsewhere, and its last piece alone: the same bits. */
static void where_a_chunk_begins_and_who_is_beside_it_changes_no_bit(void **state)
{
    enum { N = 700, H = 16, K = 4, D = 128 };
    static const uint32_t cuts[] = {0, 100, 333, N};
    const uint32_t n_kv = N, n_cuts = 3;

    (void)state;
    for (int fp8 = 0; fp8 < 2; fp8++) {
        struct attend a;
        make_attend(&a, H, K, D, fp8, 1, &n_kv, N);
        a.tiles = calloc(N, sizeof(*a.tiles));
        poison_tail(&a, 0, N);
        add_tiles(&a, 0, 0, 0, N);
        float *whole = run_attend(&a, 1);
        a.n_tiles = 0;
        for (uint32_t i = 0; i < n_cuts; i++)
            add_tiles(&a, cuts[i], 0, cuts[i], cuts[i + 1] - cuts[i]);
        float *pieces = run_attend(&a, 1);
        assert_memory_equal(pieces, whole, (size_t)N * H * D * sizeof(float));
        a.n_tiles = 0;
        add_tiles(&a, cuts[2], 0, cuts[2], N - cuts[2]);
        float *last = run_attend(&a, 1);
        assert_memory_equal(last + (size_t)cuts[2] * H * D, whole + (size_t)cuts[2] * H * D,
                            (size_t)(N - cuts[2]) * H * D * sizeof(float));
        free(whole);
        free(pieces);
        free(last);
        free_attend(&a);
    }
}

static void what_no_kernel_is_made_for_is_refused(void **state)
{
    const struct ll_cuda_attend_args bad[] = {
        {.n_heads = 34, .n_kv_heads = 2, .head_dim = 128, .n_tiles = 1},
        {.n_heads = 7, .n_kv_heads = 2, .head_dim = 128, .n_tiles = 1},
        {.n_heads = 4, .n_kv_heads = 2, .head_dim = 96, .n_tiles = 1},
        {.n_heads = 4, .n_kv_heads = 0, .head_dim = 64, .n_tiles = 1}};

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(ll_cuda_attend_decode(&bad[i], 0), -EINVAL);
        assert_int_equal(ll_cuda_attend_prefill(&bad[i], 0), -EINVAL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_attention_is_right_at_every_length_and_alone),
        cmocka_unit_test(one_row_of_131072_tokens_is_right),
        cmocka_unit_test(rows_are_right_where_their_items_double_in_size),
        cmocka_unit_test(a_row_has_the_same_bits_alone_and_among_255_others),
        cmocka_unit_test(rotating_and_appending_inside_changes_no_bit),
        cmocka_unit_test(where_pages_lie_and_who_shares_them_changes_no_bit),
        cmocka_unit_test(prefill_attention_is_causal_and_right_over_cached_pages),
        cmocka_unit_test(where_a_chunk_begins_and_who_is_beside_it_changes_no_bit),
        cmocka_unit_test(what_no_kernel_is_made_for_is_refused),
    };
    int rc = cuda_tests_begin();

    return rc != 0 ? rc : cmocka_run_group_tests_name("kernels/cuda attention", tests, NULL, NULL);
}
