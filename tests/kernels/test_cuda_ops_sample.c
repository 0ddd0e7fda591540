/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cuda_ops_sample.c - the sampler on the GPU: token by token against the naive
 * one and the CPU's, draws against exact probabilities (chi-square), the same draw for the same
 * seed wherever a row stands, and the lists of logprobs; that of one block a row and that of a
 * cluster a row against each other on rows of any size and shape. Skipped without a GPU. */
#include "kernels/cuda/sample_cluster.h"
#include "tests/kernels/cuda_ops.h"
#include "tests/kernels/sampler.h"

enum { ROWS = 96, STEP = 6 };

/* Device tables for ROWS rows of logits over one vocabulary; row r samples slot n_slots - 1 - r. */
struct board {
    uint32_t n_vocab, stride;
    struct ll_cuda_logit logit[ROWS];
    struct ll_cuda_slot slot[ROWS];
    struct ll_bias bias[ROWS][LL_CUDA_BIAS_MAX];
    uint16_t *penalty; /* [ROWS][V] */
    float *x;          /* [ROWS][stride] */
    struct ll_cuda_tables tables;
    struct ll_row_out *rows;
    struct ll_ext *ext;
    uint16_t *penalty_after;
    struct ll_cuda_slot *slot_after;
};

static struct board *new_board(uint32_t n_vocab)
{
    struct board *b = calloc(1, sizeof(*b));

    b->n_vocab = n_vocab;
    b->stride = (n_vocab + 7) / 8 * 8;
    b->penalty = calloc((size_t)ROWS * n_vocab, 2);
    b->x = malloc((size_t)ROWS * b->stride * 4);
    for (uint32_t i = 0; i < ROWS * b->stride; i++)
        b->x[i] = NAN; /* also what pads a row */
    for (uint32_t r = 0; r < ROWS; r++)
        b->logit[r].token = LL_CUDA_NONE;
    return b;
}

static void free_results(struct board *b)
{
    free(b->rows);
    free(b->ext);
    free(b->penalty_after);
    free(b->slot_after);
}

static void free_board(struct board *b)
{
    free_results(b);
    free(b->penalty);
    free(b->x);
    free(b);
}

/* Puts a fixture's logits and settings into row r. */
static void put_row(struct board *b, uint32_t r, const struct fixture *f, uint32_t position)
{
    const struct ll_cpu_settings *c = &f->settings;
    const uint32_t s = ROWS - 1 - r;

    b->slot[s] = (struct ll_cuda_slot){
        .n_prompt = c->n_prompt,
        .choice = c->choice,
        .n_bias = c->n_bias,
        .seed = c->seed,
        .temperature = c->s.temperature,
        .top_p = c->s.top_p,
        .min_p = c->s.min_p,
        .repetition = c->s.repetition,
        .frequency = c->s.frequency,
        .presence = c->s.presence,
        .top_k = c->s.top_k,
        .min_tokens = c->s.min_tokens,
        .n_end = c->s.n_end,
        .has_penalty = c->has_penalties,
    };
    memcpy(b->slot[s].end, c->s.end, sizeof(c->s.end));
    memcpy(b->bias[s], c->bias, c->n_bias * sizeof(*c->bias));
    for (uint32_t v = 0; v < b->n_vocab; v++) {
        const uint32_t count = c->count[v];
        b->penalty[(size_t)s * b->n_vocab + v] =
            (uint16_t)((count != 0 ? 0x8000u : 0) | (count & 0x7fffu));
    }
    b->logit[r] = (struct ll_cuda_logit){
        .token = r, .slot = s, .row = r, .pos = position, .target = LL_CUDA_NONE};
    memcpy(b->x + (size_t)r * b->stride, f->x, b->n_vocab * 4);
}

/* On the device; sampling changes the logits of rows with a bias, nothing else of this. */
static void begin_board(struct board *b, struct ll_cuda_sample_args *args)
{
    const uint32_t step = STEP, n_ext = ROWS * 21;

    b->tables =
        (struct ll_cuda_tables){.step = dev_copy(&step, 4),
                                .logits = dev_copy(b->logit, sizeof(b->logit)),
                                .slots = dev_copy(b->slot, sizeof(b->slot)),
                                .penalty = dev_copy(b->penalty, (size_t)ROWS * b->n_vocab * 2),
                                .bias = dev_copy(b->bias, sizeof(b->bias))};
    *args = (struct ll_cuda_sample_args){
        .tables = &b->tables,
        .logits = dev_copy(b->x, (size_t)ROWS * b->stride * 4),
        .rows = dev_new(sizeof(struct ll_row_out) * ROWS * LL_CUDA_AREAS),
        .ext = dev_new(sizeof(struct ll_ext) * n_ext * LL_CUDA_AREAS),
        .n_rows_max = ROWS,
        .n_ext_max = n_ext,
        .n_logits = ROWS,
        .n_vocab = b->n_vocab};
}

typedef int (*sample_fn)(const struct ll_cuda_sample_args *args, cudaStream_t stream);

/* One launch; results stay until the next. */
static void run_board_by(struct board *b, sample_fn sample)
{
    const uint32_t area = STEP % LL_CUDA_AREAS;
    const size_t n_bytes = sizeof(struct ll_row_out) * ROWS;
    struct ll_cuda_sample_args args;

    begin_board(b, &args);
    launched_ok(sample(&args, 0), "sample");
    free_results(b);
    b->rows = dev_get(args.rows + (size_t)area * ROWS, n_bytes);
    b->ext = dev_get(args.ext + (size_t)area * args.n_ext_max, sizeof(*b->ext) * args.n_ext_max);
    b->penalty_after = dev_get(b->tables.penalty, (size_t)ROWS * b->n_vocab * 2);
    b->slot_after = dev_get(b->tables.slots, sizeof(b->slot));
    /* Other areas belong to other steps. */
    unsigned char *all = dev_get(args.rows, n_bytes * LL_CUDA_AREAS);
    for (size_t i = 0; i < n_bytes * LL_CUDA_AREAS; i++)
        assert_true(i / n_bytes == area || all[i] == 0xff);
    free(all);
    dev_end();
}

static void run_board(struct board *b)
{
    run_board_by(b, ll_cuda_sample);
}

/* ---- rows of any size: what a model makes, and what it should not
 * ------------------------------*/
enum shape {
    BELL,
    STEPS,
    TWO_VALUES,
    ALL_EQUAL,
    FLAT,
    PEAK_AND_INFINITIES,
    WIDE_AND_ZEROS,
    SHAPES
};

static float shaped(enum shape shape, uint32_t v, uint32_t n_vocab)
{
    const float bell = 2 * (random_unit() + random_unit() + random_unit() + random_unit());

    switch (shape) {
    case BELL:
        return bell;
    case STEPS: /* as logits rounded to few bits */
        return 0.25f * rintf(bell / 0.25f);
    case TWO_VALUES:
        return v % 7 == 3 ? 2.0f : -1.0f;
    case ALL_EQUAL:
        return 1.5f;
    case FLAT:
        return 0.001f * bell;
    case PEAK_AND_INFINITIES:
        return v == n_vocab / 2 ? 40.0f : v % 5 == 0 ? -INFINITY : bell;
    default:
        return v % 3 == 0 ? (v % 2 != 0 ? 0.0f : -0.0f) : 20 * bell;
    }
}

static void put_shaped_row(struct board *b, uint32_t r, enum shape shape)
{
    const uint32_t s = ROWS - 1 - r, n_vocab = b->n_vocab;
    const uint64_t bits = ll_splitmix64(&random_state);
    struct ll_cuda_slot *slot = &b->slot[s];

    for (uint32_t v = 0; v < n_vocab; v++)
        b->x[(size_t)r * b->stride + v] = shaped(shape, v, n_vocab);
    *slot = (struct ll_cuda_slot){.n_prompt = 5, .seed = bits, .repetition = 1};
    slot->choice = (uint32_t)bits % 3;
    slot->temperature = r % 9 == 0 ? 0 : 0.3f + fabsf(random_unit());
    slot->top_k = (bits >> 8 & 1) != 0 ? 1 + (uint32_t)(bits >> 32) % (r % 3 == 0 ? 60000 : 60) : 0;
    slot->top_p = (bits >> 9 & 1) != 0 ? 0.05f + 0.94f * fabsf(random_unit()) : 1;
    slot->min_p = (bits >> 10 & 3) == 0 ? 0.1f * fabsf(random_unit()) : 0;
    slot->n_bias = (bits >> 12 & 1) != 0 ? 5 : 0;
    for (uint32_t i = 0; i < slot->n_bias; i++)
        b->bias[s][i] =
            (struct ll_bias){(uint32_t)ll_splitmix64(&random_state) % n_vocab, 4 * random_unit()};
    slot->n_end = (uint32_t)(bits >> 13) % 4;
    for (uint32_t i = 0; i < slot->n_end; i++)
        slot->end[i] = (uint32_t)ll_splitmix64(&random_state) % n_vocab;
    slot->min_tokens = (bits >> 15 & 1) != 0 ? 20 : 0;
    slot->has_penalty = bits >> 16 & 1;
    slot->repetition = slot->has_penalty != 0 ? 1.2f : 1;
    slot->frequency = slot->has_penalty != 0 ? 0.3f * random_unit() : 0;
    for (uint32_t i = 0; i < 40; i++)
        b->penalty[(size_t)s * n_vocab + ll_splitmix64(&random_state) % n_vocab] =
            (uint16_t)(0x8000u | i % 3);
    b->logit[r] = (struct ll_cuda_logit){.token = r,
                                         .slot = s,
                                         .row = r,
                                         .pos = 10 + r % 3,
                                         .target = r % 5 == 4 ? (r * 977) % n_vocab : LL_CUDA_NONE,
                                         .ext = r * 21,
                                         .n_top = r % 3 == 0 ? LL_EXT_TOP_MAX : r % 3};
}

/* ---- tests ------------------------------------------------------------------------------------*/
static void each_token_is_the_naive_sampler_s_and_the_cpu_s(void **state)
{
    static const uint32_t vocabs[] = {1, 2, 17, 64, 257, 4999};
    struct naive *n = malloc(sizeof(*n));
    uint32_t n_checked = 0, n_cpu = 0, n_all = 0;

    (void)state;
    for (uint32_t group = 0; group < (is_quick() ? 6u : 36u); group++) {
        struct board *b = new_board(vocabs[group % 6]);
        struct fixture *f[ROWS];
        uint32_t want[ROWS];
        for (uint32_t r = 0; r < ROWS; r++) {
            const uint32_t position = 10 + r % 3;
            want[r] = UINT32_MAX;
            if (r % 11 == 5)
                continue; /* padding */
            f[r] = open_fixture(b->n_vocab);
            set_logits(f[r], r % 7 == 0 ? 0.5f : 8, r % 3 == 0 ? 0.25f : 0);
            random_settings(f[r]);
            put_row(b, r, f[r], position);
            apply_naively(f[r], position, n);
            double best = -INFINITY, second = -INFINITY;
            for (uint32_t v = 0; v < b->n_vocab; v++) {
                double score = n->is_kept[v] ? n->y[v] + noise(f[r], v, position) : -INFINITY;
                if (score > best) {
                    second = best;
                    best = score;
                    want[r] = v;
                } else if (score > second)
                    second = score;
            }
            /* fp32 may see two scores or a threshold the other way round when they are this near.
             */
            if (n->is_on_edge || fabs(best - second) < 1e-4 || !isfinite(best))
                want[r] = UINT32_MAX;
        }
        run_board(b);
        for (uint32_t r = 0; r < ROWS; r++) {
            const struct ll_row_out *o = &b->rows[r];
            if (r % 11 == 5) {
                assert_int_equal(o->token[0], 0xffffffff); /* nobody's: not written */
                continue;
            }
            assert_int_equal(o->status, LL_ROW_OK);
            assert_int_equal(o->n_tokens, 1);
            assert_true(o->token[0] < b->n_vocab);
            const uint32_t cpu =
                ll_cpu_sample(inner, &f[r]->logits, &f[r]->settings, 10 + r % 3, &f[r]->scratch);
            if (want[r] != UINT32_MAX && o->token[0] != want[r]) {
                const struct ll_sampling *s = &f[r]->settings.s;
                fail_msg(
                    "vocabulary %u: %u instead of %u (CPU %u): temperature %g, top-k %u, "
                    "top-p %.9g, min-p %.9g, penalties %d (%g %g %g), %u biases, %u ends until "
                    "%u; logits %.9g %.9g",
                    b->n_vocab, o->token[0], want[r], cpu, (double)s->temperature, s->top_k,
                    (double)s->top_p, (double)s->min_p, f[r]->settings.has_penalties,
                    (double)s->repetition, (double)s->frequency, (double)s->presence,
                    f[r]->settings.n_bias, s->n_end, s->min_tokens, (double)f[r]->x[o->token[0]],
                    (double)f[r]->x[want[r]]);
            }
            n_checked += want[r] != UINT32_MAX;
            n_cpu += o->token[0] == cpu;
            n_all++;
            assert_within(
                fabs((double)o->logprob[0] - (double)ll_cpu_logprob(&f[r]->logits, o->token[0])),
                2e-5, "logprob");
            /* The slot knows its last id and counts it. */
            const uint32_t s = ROWS - 1 - r;
            assert_int_equal(b->slot_after[s].last_token, o->token[0]);
            for (uint32_t v = 0; v < b->n_vocab; v++) {
                const size_t at = (size_t)s * b->n_vocab + v;
                uint16_t then = b->penalty[at];
                if (v == o->token[0] && b->slot[s].has_penalty)
                    then = (uint16_t)(0x8000u | (then + 1));
                assert_int_equal(b->penalty_after[at], then);
            }
            close_fixture(f[r]);
        }
        free_board(b);
    }
    printf("%u tokens equal the naive sampler's, %u of %u the CPU's\n", n_checked, n_cpu, n_all);
    assert_true(n_checked > n_all * 8 / 10);
    assert_true(n_cpu > n_all * 99 / 100);
    free(n);
}

static void temperature_0_takes_the_largest_and_the_lower_id_of_equals(void **state)
{
    struct naive *n = malloc(sizeof(*n));

    (void)state;
    for (uint32_t group = 0; group < 4; group++) {
        struct board *b = new_board(group % 2 == 0 ? 61 : 4096);
        uint32_t want[ROWS];
        for (uint32_t r = 0; r < ROWS; r++) {
            struct fixture *f = open_fixture(b->n_vocab);
            set_logits(f, 3, 0.5f);
            random_settings(f);
            f->settings.s.temperature = 0;
            f->settings.has_penalties = false;
            put_row(b, r, f, 10);
            apply_naively(f, 10, n);
            want[r] = n->order[0];
            close_fixture(f);
        }
        run_board(b);
        for (uint32_t r = 0; r < ROWS; r++)
            assert_int_equal(b->rows[r].token[0], want[r]);
        free_board(b);
    }
    free(n);
}

static void draws_follow_the_exact_probabilities_for_every_combination_of_filters(void **state)
{
    enum { V = 61 };
    const uint32_t n_launches = is_quick() ? 4 : 10500; /* of ROWS draws: a million */
    struct naive *n = malloc(sizeof(*n));

    (void)state;
    for (uint32_t combination = 0; combination < 16; combination++) {
        struct board *b = new_board(V);
        struct fixture *f = open_fixture(V);
        struct ll_cuda_sample_args args;
        struct ll_row_out rows[ROWS];
        uint32_t seen[V] = {0}, freedom;
        set_logits(f, 3, 0);
        f->settings.s.temperature = (combination & 8) != 0 ? 0.7f : 1.0f;
        f->settings.s.top_k = (combination & 1) != 0 ? 20 : 0;
        f->settings.s.top_p = (combination & 2) != 0 ? 0.8f : 1.0f;
        f->settings.s.min_p = (combination & 4) != 0 ? 0.02f : 0.0f;
        apply_naively(f, 0, n);
        for (uint32_t r = 0; r < ROWS; r++)
            put_row(b, r, f, r % 3);
        begin_board(b, &args);
        for (uint32_t launch = 0; launch < n_launches; launch++) {
            for (uint32_t r = 0; r < ROWS; r++)
                b->slot[r].seed = ll_splitmix64(&random_state);
            cuda_ok(cudaMemcpy(b->tables.slots, b->slot, sizeof(b->slot), cudaMemcpyHostToDevice),
                    "slots");
            assert_int_equal(ll_cuda_sample(&args, 0), 0);
            cuda_ok(cudaMemcpy(rows, args.rows + STEP % LL_CUDA_AREAS * ROWS, sizeof(rows),
                               cudaMemcpyDeviceToHost),
                    "rows");
            for (uint32_t r = 0; r < ROWS; r++) {
                const uint32_t token = rows[r].token[0];
                if (token >= V || (!n->is_kept[token] && !n->is_on_edge))
                    fail_msg("combination %u drew %u, which a filter removes", combination, token);
                seen[token]++;
            }
        }
        dev_end();
        double statistic = chi_square(n->p, seen, V, (double)n_launches * ROWS, &freedom);
        if (!(statistic < freedom + 6 * sqrt(2.0 * freedom) + 12))
            fail_msg("combination %u: chi-square %.1f with %u degrees of freedom", combination,
                     statistic, freedom);
        close_fixture(f);
        free_board(b);
    }
    free(n);
}

/* Seed, choice and position decide; the row, the slot and the neighbours do not. */
static void a_draw_depends_on_seed_choice_and_position_alone(void **state)
{
    struct board *b = new_board(4999);
    struct fixture *f = open_fixture(4999);
    uint32_t first[ROWS], n_other = 0;

    (void)state;
    set_logits(f, 0.1f, 0);
    for (uint32_t r = 0; r < ROWS; r++) {
        f->settings.seed = r / 4;
        f->settings.choice = r % 4 == 1 ? 1 : 0;
        put_row(b, r, f, r % 4 == 2 ? 51 : 50); /* rows 4 i and 4 i + 3 are alike */
    }
    run_board(b);
    for (uint32_t r = 0; r < ROWS; r++)
        first[r] = b->rows[r].token[0];
    for (uint32_t i = 0; i < ROWS / 4; i++) {
        assert_int_equal(first[4 * i], first[4 * i + 3]);
        n_other += (first[4 * i] != first[4 * i + 1]) + (first[4 * i] != first[4 * i + 2]);
    }
    assert_true(n_other > ROWS / 2 * 8 / 10);
    /* The same requests in the opposite order, half of the rows empty. */
    for (uint32_t r = 0; r < ROWS; r++)
        b->logit[r].token = LL_CUDA_NONE;
    for (uint32_t i = 0; i < ROWS; i += 2) {
        f->settings.seed = i / 4;
        f->settings.choice = i % 4 == 1 ? 1 : 0;
        put_row(b, ROWS - 1 - i, f, i % 4 == 2 ? 51 : 50);
    }
    for (int repeat = 0; repeat < (is_quick() ? 2 : 100); repeat++) {
        run_board(b);
        for (uint32_t i = 0; i < ROWS; i += 2)
            assert_int_equal(b->rows[ROWS - 1 - i].token[0], first[i]);
    }
    close_fixture(f);
    free_board(b);
}

static void logprobs_and_the_top_list_are_of_the_raw_logits(void **state)
{
    (void)state;
    for (uint32_t group = 0; group < 4; group++) {
        struct board *b = new_board(group % 2 == 0 ? 23 : 4999);
        struct fixture *f[ROWS];
        for (uint32_t r = 0; r < ROWS; r++) {
            f[r] = open_fixture(b->n_vocab);
            set_logits(f[r], 20, r % 3 == 0 ? 0.5f : 0);
            random_settings(f[r]); /* biases and penalties must not show */
            put_row(b, r, f[r], 10);
            b->logit[r].ext = r * 21;
            b->logit[r].n_top = r % 2 == 0 ? LL_EXT_TOP_MAX : r % LL_EXT_TOP_MAX;
            if (r % 4 == 1) /* a prompt's id is scored, nothing sampled */
                b->logit[r].target = (r * 97) % b->n_vocab;
        }
        run_board(b);
        for (uint32_t r = 0; r < ROWS; r++) {
            const struct ll_ext *ext = b->ext + r * 21;
            const bool is_scored = b->logit[r].target != LL_CUDA_NONE;
            if (is_scored) {
                assert_int_equal(ext->id, b->logit[r].target);
                assert_within(
                    fabs((double)ext->logprob - (double)ll_cpu_logprob(&f[r]->logits, ext->id)),
                    2e-5, "score");
                ext++;
            }
            for (uint32_t i = 0; i < b->logit[r].n_top; i++) {
                const float *x = f[r]->x;
                uint32_t n_before = 0;
                assert_true(ext[i].id < b->n_vocab);
                for (uint32_t v = 0; v < b->n_vocab; v++)
                    n_before += x[v] > x[ext[i].id] || (x[v] == x[ext[i].id] && v < ext[i].id);
                assert_int_equal(n_before, i);
                assert_within(
                    fabs((double)ext[i].logprob - (double)ll_cpu_logprob(&f[r]->logits, ext[i].id)),
                    2e-5, "top");
            }
            close_fixture(f[r]);
        }
        free_board(b);
    }
}

static void a_nan_or_an_infinity_fails_its_row_only(void **state)
{
    struct board *b = new_board(4999);
    struct fixture *f = open_fixture(4999);

    (void)state;
    for (uint32_t r = 0; r < ROWS; r++) {
        set_logits(f, 5, 0);
        if (r % 3 == 0)
            f->x[(r * 53) % 4999] = r % 2 == 0 ? NAN : INFINITY;
        if (r % 3 == 1)
            f->x[(r * 53) % 4999] = -INFINITY; /* a model may rule an id out */
        put_row(b, r, f, 10);
    }
    run_board(b);
    for (uint32_t r = 0; r < ROWS; r++)
        assert_int_equal(b->rows[r].status, r % 3 == 0 ? LL_ROW_NAN : LL_ROW_OK);
    close_fixture(f);
    free_board(b);
}

static void a_row_with_every_id_barred_still_gives_an_id(void **state)
{
    struct board *b = new_board(2);
    struct fixture *f = open_fixture(2);

    (void)state;
    set_logits(f, 1, 0);
    f->settings.s.n_end = 2;
    f->settings.s.end[1] = 1;
    f->settings.s.min_tokens = 1;
    for (uint32_t r = 0; r < ROWS; r++) {
        f->settings.s.temperature = (float)(r % 2);
        f->settings.s.top_p = r % 4 < 2 ? 1 : 0.5f;
        f->settings.s.top_k = r % 8 < 4 ? 0 : 1;
        f->settings.s.min_p = r % 16 < 8 ? 0 : 0.1f;
        put_row(b, r, f, 0);
    }
    run_board(b);
    for (uint32_t r = 0; r < ROWS; r++)
        assert_true(b->rows[r].token[0] < 2);
    close_fixture(f);
    free_board(b);
}

static void both_samplers_choose_the_same_ids_on_rows_of_any_size_and_shape(void **state)
{
    static const uint32_t vocabs[] = {1, 7, 31, 33, 4999, 32000, 128256, 151937};

    (void)state;
    for (uint32_t i = 0; i < (is_quick() ? 5u : 8u); i++) {
        if (!ll_cuda_sample_cluster_fits(vocabs[i]))
            continue;
        struct board *b = new_board(vocabs[i]);
        for (uint32_t r = 0; r < ROWS; r++)
            if (r % 11 != 5)
                put_shaped_row(b, r, (enum shape)(r % SHAPES));
        run_board_by(b, ll_cuda_sample_plain);
        struct ll_row_out *rows = b->rows;
        struct ll_ext *ext = b->ext;
        uint16_t *penalty = b->penalty_after;
        b->rows = NULL;
        b->ext = NULL;
        b->penalty_after = NULL;
        run_board_by(b, ll_cuda_sample_cluster);
        for (uint32_t r = 0; r < ROWS; r++) {
            const struct ll_row_out *o = &b->rows[r];
            if (o->token[0] != rows[r].token[0] || o->status != rows[r].status)
                fail_msg("vocabulary %u, row %u: %u (status %u) instead of %u (%u)", vocabs[i], r,
                         o->token[0], o->status, rows[r].token[0], rows[r].status);
            for (uint32_t k = 0; k < 21; k++)
                assert_int_equal(b->ext[r * 21 + k].id, ext[r * 21 + k].id);
        }
        assert_memory_equal(b->penalty_after, penalty, (size_t)ROWS * vocabs[i] * 2);
        free(rows);
        free(ext);
        free(penalty);
        free_board(b);
    }
}

/* The order in which equal values come, over more blocks than one. */
static void among_equal_values_the_lower_ids_come_first_wherever_they_lie(void **state)
{
    struct board *b = new_board(40001);

    (void)state;
    for (uint32_t r = 0; r < ROWS; r++) {
        put_shaped_row(b, r, ALL_EQUAL);
        b->slot[ROWS - 1 - r] = (struct ll_cuda_slot){
            .temperature = 1, .top_p = 1, .repetition = 1, .seed = r, .top_k = 1 + r * 400};
        b->logit[r].target = LL_CUDA_NONE;
        b->logit[r].n_top = LL_EXT_TOP_MAX;
        if (r % 2 == 1) /* the share that r * 400 ids and a half have */
            b->slot[ROWS - 1 - r] = (struct ll_cuda_slot){.temperature = 1,
                                                          .top_p = ((float)r * 400 + 0.5f) / 40001,
                                                          .repetition = 1,
                                                          .seed = r};
    }
    run_board(b);
    for (uint32_t r = 0; r < ROWS; r++) {
        assert_true(b->rows[r].token[0] < 1 + r * 400 + (r % 2));
        for (uint32_t k = 0; k < LL_EXT_TOP_MAX; k++)
            assert_int_equal(b->ext[r * 21 + k].id, k);
    }
    free_board(b);
}

static void a_row_alone_has_the_bits_of_the_row_among_others(void **state)
{
    const uint32_t n_vocab = is_quick() ? 4999 : 128256;
    struct board *b = new_board(n_vocab);
    struct ll_cuda_logit all[ROWS];

    (void)state;
    for (uint32_t r = 0; r < ROWS; r++)
        put_shaped_row(b, r, (enum shape)(r % SHAPES));
    memcpy(all, b->logit, sizeof(all));
    run_board(b);
    struct ll_row_out *rows = b->rows;
    struct ll_ext *ext = b->ext;
    b->rows = NULL;
    b->ext = NULL;
    for (uint32_t r = 1; r < ROWS; r += 13) {
        for (uint32_t k = 0; k < ROWS; k++)
            b->logit[k].token = LL_CUDA_NONE;
        b->logit[r] = all[r];
        run_board(b);
        assert_memory_equal(&b->rows[r], &rows[r], sizeof(rows[r]));
        assert_memory_equal(b->ext + r * 21, ext + r * 21, 21 * sizeof(*ext));
    }
    free(rows);
    free(ext);
    free_board(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_token_is_the_naive_sampler_s_and_the_cpu_s),
        cmocka_unit_test(temperature_0_takes_the_largest_and_the_lower_id_of_equals),
        cmocka_unit_test(draws_follow_the_exact_probabilities_for_every_combination_of_filters),
        cmocka_unit_test(a_draw_depends_on_seed_choice_and_position_alone),
        cmocka_unit_test(logprobs_and_the_top_list_are_of_the_raw_logits),
        cmocka_unit_test(a_nan_or_an_infinity_fails_its_row_only),
        cmocka_unit_test(a_row_with_every_id_barred_still_gives_an_id),
        cmocka_unit_test(both_samplers_choose_the_same_ids_on_rows_of_any_size_and_shape),
        cmocka_unit_test(among_equal_values_the_lower_ids_come_first_wherever_they_lie),
        cmocka_unit_test(a_row_alone_has_the_bits_of_the_row_among_others),
    };
    int rc = cuda_tests_begin();

    inner = ll_cpu_inner_find(NULL);
    return rc != 0 ? rc : cmocka_run_group_tests_name("kernels/cuda sampler", tests, NULL, NULL);
}
