/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cuda_ops_comm.c - sums over ranks: the lockstep form against a plain sum on
 * the host, the peer form against the lockstep one, bit by bit; first with ranks as streams of one
 * GPU, then, where there are two, on GPUs. Skipped without a GPU. */
#include "tests/kernels/comm_world.h"
#include "tests/kernels/gpu.h"
#include "tests/kernels/random.h"

#include <sys/wait.h>
#include <unistd.h>

#define INBOX (1u << 20)
#define WAIT  2000000000ull

static const char *self;
static uint64_t seed = 1;

struct sum { /* one operation on every rank */
    uint32_t n_embd, n_rows, n_tokens;
    bool is_e4m3, sets_x, has_rows;
    void *delta[LL_CUDA_RANKS_MAX], *x[LL_CUDA_RANKS_MAX], *out[LL_CUDA_RANKS_MAX];
    void *weight[LL_CUDA_RANKS_MAX], *rows[LL_CUDA_RANKS_MAX];
    float *scale[LL_CUDA_RANKS_MAX];
    uint16_t *host_delta[LL_CUDA_RANKS_MAX], *host_x, *host_weight;
};

static uint16_t some_bf16(void)
{
    const float u = random_unit();
    const uint32_t kind = (uint32_t)(ll_splitmix64(&random_state) % 23);

    /* Zeros of both signs, pairs of -0 among them, and a few large ones. */
    return kind < 3 ? 0x8000 : kind == 3 ? 0 : ll_bf16_from_f32(kind == 4 ? 80 * u : u);
}

static uint16_t *some_row(size_t n)
{
    uint16_t *x = malloc(n * 2 + 2);

    for (size_t i = 0; i < n; i++)
        x[i] = some_bf16();
    return x;
}

static void *to_rank(const struct comm_world *w, uint32_t r, const void *host, size_t bytes)
{
    void *p = comm_new(w, r, bytes);

    comm_ok(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice), "to the device");
    return p;
}

static void make_sum(const struct comm_world *w, struct sum *s)
{
    const size_t n = (size_t)s->n_tokens * s->n_embd;
    struct ll_cuda_logit *rows = calloc(s->n_rows, sizeof(*rows));

    for (uint32_t i = 0; i < s->n_rows; i++)
        rows[i].token = i % 5 == 4 ? LL_CUDA_NONE : (i * 7u) % s->n_tokens;
    s->host_x = some_row(n);
    s->host_weight = some_row(s->n_embd);
    for (uint32_t r = 0; r < w->n; r++) {
        s->host_delta[r] = some_row(n);
        s->delta[r] = to_rank(w, r, s->host_delta[r], n * 2);
        s->x[r] = to_rank(w, r, s->host_x, n * 2);
        s->out[r] = comm_new(w, r, (size_t)s->n_rows * s->n_embd * 2);
        s->scale[r] = comm_new(w, r, s->n_rows * 4);
        s->weight[r] = to_rank(w, r, s->host_weight, s->n_embd * 2);
        s->rows[r] = to_rank(w, r, rows, s->n_rows * sizeof(*rows));
    }
    free(rows);
}

static void free_sum(const struct comm_world *w, struct sum *s)
{
    free(s->host_x);
    free(s->host_weight);
    for (uint32_t r = 0; r < w->n; r++) {
        void *const all[] = {s->delta[r], s->x[r],      s->out[r],
                             s->scale[r], s->weight[r], s->rows[r]};
        free(s->host_delta[r]);
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
            cudaFree(all[i]);
    }
}

static struct ll_comm_norm args_of(const struct sum *s, uint32_t r)
{
    return (struct ll_comm_norm){
        .n_parts = 1,
        .delta = {s->delta[r]},
        .x = {s->x[r]},
        .out = {s->out[r]},
        .scale = {s->is_e4m3 ? s->scale[r] : NULL},
        .weight = s->weight[r],
        .rows = s->has_rows ? s->rows[r] : NULL,
        .n_rows = s->n_rows,
        .n_embd = s->n_embd,
        .eps = 1e-5f,
        .bound = INFINITY,
        .sets_x = s->sets_x,
    };
}

/* What rank r has now; the caller frees it. */
static unsigned char *snapshot(const struct sum *s, uint32_t r, size_t *n_bytes)
{
    const size_t x = (size_t)s->n_tokens * s->n_embd * 2, scale = s->is_e4m3 ? s->n_rows * 4 : 0;
    const size_t out = (size_t)s->n_rows * s->n_embd * (s->is_e4m3 ? 1 : 2);
    unsigned char *p = malloc(x + out + scale);

    comm_ok(cudaMemcpy(p, s->x[r], x, cudaMemcpyDeviceToHost), "x");
    comm_ok(cudaMemcpy(p + x, s->out[r], out, cudaMemcpyDeviceToHost), "out");
    comm_ok(cudaMemcpy(p + x + out, s->scale[r], scale, cudaMemcpyDeviceToHost), "scale");
    *n_bytes = x + out + scale;
    return p;
}

/* x and out of the lockstep form against sums in fp32, rank 0 first. */
static void check_lockstep(const struct comm_world *w, const struct sum *s,
                           const unsigned char *got)
{
    const uint16_t *x = (const uint16_t *)got, *out = x + (size_t)s->n_tokens * s->n_embd;
    float *row = malloc(s->n_embd * sizeof(*row));

    for (uint32_t i = 0; i < s->n_rows; i++) {
        uint32_t t = i;
        double sum_sq = 0;
        if (s->has_rows)
            t = i % 5 == 4 ? 0 : (i * 7u) % s->n_tokens;
        for (uint32_t e = 0; e < s->n_embd; e++) {
            const size_t at = (size_t)t * s->n_embd + e;
            float sum = ll_f32_from_bf16(s->host_delta[0][at]);
            for (uint32_t r = 1; r < w->n; r++)
                sum += ll_f32_from_bf16(s->host_delta[r][at]);
            if (!s->sets_x)
                sum = ll_f32_from_bf16(s->host_x[at]) + sum;
            row[e] = ll_f32_from_bf16(ll_bf16_from_f32(sum));
            sum_sq += (double)row[e] * row[e];
            if (!s->has_rows && ll_f32_from_bf16(x[at]) != row[e])
                fail_msg("x[%u, %u] is %g, not %g", t, e, ll_f32_from_bf16(x[at]), row[e]);
        }
        const double norm = 1 / sqrt(sum_sq / s->n_embd + 1e-5);
        for (uint32_t e = 0; e < s->n_embd && !s->is_e4m3; e++) {
            const double want = row[e] * norm * ll_f32_from_bf16(s->host_weight[e]);
            const double have = ll_f32_from_bf16(out[(size_t)i * s->n_embd + e]);
            if (!(fabs(have - want) <= fabs(want) * 0.012 + 1e-30))
                fail_msg("out[%u, %u] is %g, not %g", i, e, have, want);
        }
    }
    free(row);
}

enum form { ONE_SHOT, SPLIT };

static int enqueue(const struct comm_world *w, enum form form, const struct ll_comm_norm *args,
                   uint32_t r, uint32_t buffer)
{
    return form == SPLIT ? ll_comm_norm_split(args, &w->end[r], buffer, w->stream[r])
                         : ll_comm_norm_peer(args, &w->end[r], buffer, w->stream[r]);
}

/* Rank r's x, out and scales are want's; in two shots x of its own tokens is. */
static void check_rank(const struct comm_world *w, const struct sum *s, enum form form, uint32_t r,
                       const unsigned char *want)
{
    const size_t row_bytes = s->n_embd * 2, x_bytes = s->n_tokens * row_bytes;
    size_t n_bytes;

    comm_use(w, r);
    unsigned char *have = snapshot(s, r, &n_bytes);
    for (size_t b = 0; b < n_bytes; b++)
        if (have[b] != want[b] && (form == ONE_SHOT || b >= x_bytes || b / row_bytes % w->n == r))
            fail_msg("rank %u of %u, form %d, %u x %u, e4m3 %d: byte %zu of %zu differs", r, w->n,
                     form, s->n_rows, s->n_embd, s->is_e4m3, b, n_bytes);
    free(have);
}

/* The lockstep form right; the other form the same bits on every rank; and again from where the
 * first left x, in the next buffer. */
static void check_sum(struct comm_world *w, struct sum *s, enum form form, uint32_t *buffer)
{
    const size_t x_bytes = (size_t)s->n_tokens * s->n_embd * 2;
    size_t n_bytes;

    make_sum(w, s);
    void *x = comm_new(w, 0, x_bytes);
    comm_ok(cudaMemcpy(x, s->x[0], x_bytes, cudaMemcpyDeviceToDevice), "x");
    for (int round = 0; round < 2; round++) {
        struct ll_comm_norm all = args_of(s, 0);
        all.n_ranks = w->n;
        comm_use(w, 0);
        /* On one GPU, which reads the others' memory where there are several. */
        for (uint32_t r = 1; r < w->n; r++)
            all.delta[r] = s->delta[r];
        all.x[0] = x;
        comm_ok(cudaDeviceSynchronize(), "x");
        if (ll_comm_norm_lockstep(&all, w->stream[0]) != 0)
            fail_msg("lockstep: %u x %u", s->n_rows, s->n_embd);
        comm_ok(cudaStreamSynchronize(w->stream[0]), "lockstep");
        struct sum lockstep = *s;
        lockstep.x[0] = x;
        unsigned char *want = snapshot(&lockstep, 0, &n_bytes);
        if (round == 0)
            check_lockstep(w, s, want);
        comm_ok(cudaMemset(s->out[0], 0xff, (size_t)s->n_rows * s->n_embd), "poison");
        comm_ok(cudaDeviceSynchronize(), "poison");

        *buffer = (*buffer + 1) % LL_COMM_BUFFERS;
        for (uint32_t i = 0; i < w->n; i++) {
            const uint32_t r = (i + *buffer) % w->n; /* not always in the same order */
            const struct ll_comm_norm one = args_of(s, r);
            comm_use(w, r);
            if (enqueue(w, form, &one, r, *buffer) != 0)
                fail_msg("form %d: %u x %u", form, s->n_rows, s->n_embd);
        }
        comm_wait(w);
        for (uint32_t r = 0; r < w->n; r++)
            check_rank(w, s, form, r, want);
        free(want);
    }
    cudaFree(x);
    free_sum(w, s);
}

static void run_sizes(bool is_real)
{
    static const uint32_t widths[] = {8,    16,   24,   136,  768,   2040, 2048,
                                      2056, 4096, 5120, 8192, 12296, 16384};
    static const uint32_t counts[] = {1, 2, 3, 7, 8, 31, 63, 301};
    uint32_t n_sums[2] = {0};

    for (uint32_t n = 2; n <= 8; n *= 2) {
        struct comm_world w;
        uint32_t buffer = 0;
        if (is_real && !comm_has_gpus(n))
            break;
        comm_open(&w, n, is_real, INBOX, WAIT);
        for (size_t i = 0; i < sizeof(widths) / sizeof(widths[0]); i++)
            for (size_t j = 0; j < sizeof(counts) / sizeof(counts[0]); j++)
                for (int form = ONE_SHOT; form <= SPLIT; form++) {
                    struct sum s = {.n_embd = widths[i],
                                    .n_rows = counts[j],
                                    .n_tokens = counts[j],
                                    .is_e4m3 = (i + j) % 2 == 0,
                                    .sets_x = (i + j) % 3 == 0,
                                    .has_rows = (i + j) % 4 == 3};
                    s.n_tokens += s.has_rows ? 5 : 0;
                    if (form == ONE_SHOT
                            ? !ll_comm_norm_peer_fits(&w.end[0], s.n_rows, s.n_embd)
                            : !ll_comm_norm_split_fits(&w.end[0], s.has_rows ? n : s.n_rows,
                                                       s.has_rows ? s.n_rows : 0, s.n_embd))
                        continue;
                    check_sum(&w, &s, (enum form)form, &buffer);
                    n_sums[form]++;
                }
        comm_close(&w);
    }
    printf("%u sums in one shot, %u in two, of 16 bytes to 9 MB, twice each\n", n_sums[0],
           n_sums[1]);
    assert_true(n_sums[0] > 60 && n_sums[1] > 60);
}

static void on_one_gpu_peers_give_the_bits_of_lockstep(void **state)
{
    (void)state;
    run_sizes(false);
}

static void on_several_gpus_too(void **state)
{
    (void)state;
    if (!comm_has_gpus(2)) {
        printf("one GPU\n");
        skip();
    }
    run_sizes(true);
}

/* ---- soak -------------------------------------------------------------------------------------*/
enum { CYCLE = 7, PER_GRAPH = 20 * CYCLE, WIDTH = 4096, ROWS_MAX = 24 };

/* Whole numbers whose sum over a cycle is zero: exact in bf16, so x comes back to where it began,
 * and one stale or torn message leaves a difference for ever. */
static uint16_t *cycle_of_deltas(uint32_t n)
{
    uint16_t *x = malloc((size_t)CYCLE * n * 2);

    for (uint32_t e = 0; e < n; e++) {
        float sum = 0;
        for (uint32_t k = 0; k < CYCLE; k++) {
            float v = k + 1 < CYCLE ? (float)(ll_splitmix64(&random_state) % 9) - 4 : -sum;
            sum += v;
            x[(size_t)k * n + e] = ll_bf16_from_f32(v);
        }
    }
    return x;
}

static cudaGraphExec_t chain(struct comm_world *w, uint32_t r, const struct sum *s, enum form form)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;

    comm_use(w, r);
    comm_ok(cudaStreamBeginCapture(w->stream[r], cudaStreamCaptureModeThreadLocal), "capture");
    for (uint32_t k = 0; k < PER_GRAPH; k++) {
        struct ll_comm_norm one = args_of(s, r);
        one.delta[0] = (const uint16_t *)s->delta[r] + (size_t)(k % CYCLE) * s->n_rows * WIDTH;
        if (ll_splitmix64(&random_state) % 16 == 0)
            ll_test_gpu_delay(ll_splitmix64(&random_state) % 40000, w->stream[r]);
        /* The order of buffers that a step of a model has (C1). */
        if (enqueue(w, form, &one, r, k == 0 ? 2 : k % 2) != 0)
            fail_msg("capture");
    }
    comm_ok(cudaStreamEndCapture(w->stream[r], &graph), "capture");
    comm_ok(cudaGraphInstantiate(&exec, graph, 0), "graph");
    cudaGraphDestroy(graph);
    return exec;
}

static void check_soak(const struct comm_world *w, const struct sum *s, enum form form,
                       uint32_t done)
{
    static uint16_t x[ROWS_MAX * WIDTH];

    for (uint32_t r = 0; r < w->n; r++) {
        comm_use(w, r);
        comm_ok(cudaMemcpy(x, s->x[r], (size_t)s->n_rows * WIDTH * 2, cudaMemcpyDeviceToHost), "x");
        for (uint32_t e = 0; e < s->n_rows * WIDTH; e++)
            if (ll_f32_from_bf16(x[e]) != (float)(e % 17) &&
                (form == ONE_SHOT || e / WIDTH % w->n == r))
                fail_msg("rank %u of %u, form %d, after %u sums: x[%u] is %g, not %u", r, w->n,
                         form, done, e, ll_f32_from_bf16(x[e]), e % 17);
    }
}

static void soak(uint32_t n, bool is_real, enum form form, uint32_t n_sums)
{
    const uint32_t n_rows = form == SPLIT ? ROWS_MAX : 1;
    struct comm_world w;
    cudaGraphExec_t exec[LL_CUDA_RANKS_MAX];
    struct sum s = {.n_embd = WIDTH, .n_rows = n_rows, .n_tokens = n_rows};
    uint32_t done = 0;

    comm_open(&w, n, is_real, INBOX, WAIT);
    make_sum(&w, &s);
    for (uint32_t e = 0; e < n_rows * WIDTH; e++)
        s.host_x[e] = ll_bf16_from_f32((float)(e % 17));
    for (uint32_t r = 0; r < n; r++) {
        uint16_t *delta = cycle_of_deltas(n_rows * WIDTH);
        cudaFree(s.delta[r]);
        s.delta[r] = to_rank(&w, r, delta, (size_t)CYCLE * n_rows * WIDTH * 2);
        comm_ok(cudaMemcpy(s.x[r], s.host_x, (size_t)n_rows * WIDTH * 2, cudaMemcpyHostToDevice),
                "x");
        free(delta);
        exec[r] = chain(&w, r, &s, form);
    }
    comm_use(&w, 0);
    comm_ok(cudaDeviceSynchronize(), "x");
    while (done < n_sums) {
        for (uint32_t i = 0; i < 20; i++, done += PER_GRAPH) {
            const uint32_t first = (uint32_t)(ll_splitmix64(&random_state) % n);
            for (uint32_t k = 0; k < n; k++) {
                comm_use(&w, (first + k) % n);
                comm_ok(cudaGraphLaunch(exec[(first + k) % n], w.stream[(first + k) % n]),
                        "launch");
            }
        }
        comm_wait(&w);
        check_soak(&w, &s, form, done);
    }
    for (uint32_t r = 0; r < n; r++)
        cudaGraphExecDestroy(exec[r]);
    free_sum(&w, &s);
    comm_close(&w);
    printf("%u ranks%s, %s: %u sums\n", n, is_real ? " on GPUs" : "",
           form == SPLIT ? "two shots" : "one shot", done);
}

static void a_hundred_thousand_sums_with_ranks_out_of_step(void **state)
{
    (void)state;
    for (uint32_t n = 2; n <= 8; n *= 2) {
        soak(n, false, ONE_SHOT, n == 2 ? 100000 : 10000);
        soak(n, false, SPLIT, n == 2 ? 20000 : 5000);
    }
    if (comm_has_gpus(2)) {
        soak(2, true, ONE_SHOT, 100000);
        soak(2, true, SPLIT, 100000);
    }
}

/* ---- ids and logits ---------------------------------------------------------------------------*/
static void run_ids_and_logits(uint32_t n, bool is_real)
{
    enum { N_IDS = 700, N_ROWS = 5, PART = 48, ALL = 48 * 8 - 5 };
    struct comm_world w;
    uint32_t ids[N_IDS], got[N_IDS];
    uint32_t *device_ids[LL_CUDA_RANKS_MAX], *step[LL_CUDA_RANKS_MAX];
    float *part[LL_CUDA_RANKS_MAX], logits[8][N_ROWS * PART], all[N_ROWS * 384];
    const uint32_t n_all = n == 8 ? ALL : PART * n - 5;

    comm_open(&w, n, is_real, 4096, WAIT);
    float *to = comm_new(&w, 0, sizeof(all));
    for (uint32_t r = 0; r < n; r++) {
        for (uint32_t i = 0; i < N_ROWS * PART; i++)
            logits[r][i] = random_unit();
        part[r] = to_rank(&w, r, logits[r], sizeof(logits[r]));
        device_ids[r] = comm_new(&w, r, sizeof(ids));
        step[r] = comm_new(&w, r, 4);
    }
    for (uint32_t s = 5; s < 9; s++) {
        for (uint32_t i = 0; i < N_IDS; i++)
            ids[i] = (uint32_t)ll_splitmix64(&random_state);
        for (uint32_t r = 0; r < n; r++) {
            comm_use(&w, r);
            comm_ok(cudaMemcpy(step[r], &s, 4, cudaMemcpyHostToDevice), "step");
            comm_ok(cudaMemset(device_ids[r], 0xff, sizeof(ids)), "ids");
            if (r == 0)
                comm_ok(cudaMemcpy(device_ids[0], ids, sizeof(ids), cudaMemcpyHostToDevice), "ids");
            comm_ok(cudaDeviceSynchronize(), "ids");
        }
        for (uint32_t r = n; r-- > 0;) {
            comm_use(&w, r);
            assert_int_equal(ll_comm_ids(&w.end[r], step[r], device_ids[r], N_IDS, w.stream[r]), 0);
            assert_int_equal(
                ll_comm_logits_peer(&w.end[r], to, part[r], N_ROWS, PART, n_all, 384, w.stream[r]),
                0);
        }
        comm_wait(&w);
        for (uint32_t r = 0; r < n; r++) {
            comm_use(&w, r);
            comm_ok(cudaMemcpy(got, device_ids[r], sizeof(ids), cudaMemcpyDeviceToHost), "ids");
            assert_memory_equal(got, ids, sizeof(ids));
        }
        comm_use(&w, 0);
        comm_ok(cudaMemcpy(all, to, sizeof(all), cudaMemcpyDeviceToHost), "logits");
        for (uint32_t row = 0; row < N_ROWS; row++)
            for (uint32_t v = 0; v < n_all; v++)
                assert_true(all[row * 384 + v] == logits[v / PART][row * PART + v % PART]);
        comm_ok(cudaMemset(to, 0xff, sizeof(all)), "logits");
        comm_ok(cudaDeviceSynchronize(), "logits");
    }
    for (uint32_t r = 0; r < n; r++) {
        cudaFree(part[r]);
        cudaFree(device_ids[r]);
        cudaFree(step[r]);
    }
    cudaFree(to);
    comm_close(&w);
}

static void ids_and_logits_reach_their_ranks(void **state)
{
    (void)state;
    for (uint32_t n = 2; n <= 8; n *= 2)
        run_ids_and_logits(n, false);
    if (comm_has_gpus(2))
        run_ids_and_logits(2, true);
}

/* ---- a rank that never comes ------------------------------------------------------------------*/
/* In a process of its own: a kernel that traps leaves no usable device. 0: rank 0 gave up in time
 * and said for whom it had waited. */
static int run_missing(void)
{
    struct comm_world w;
    struct sum s = {.n_embd = 4096, .n_rows = 2, .n_tokens = 2};
    const uint64_t wait_ns = 200000000ull;

    comm_open(&w, 2, false, INBOX, wait_ns);
    make_sum(&w, &s);
    const struct ll_comm_norm one = args_of(&s, 0);
    if (ll_comm_norm_peer(&one, &w.end[0], 0, w.stream[0]) != 0)
        return 2;
    if (cudaStreamSynchronize(w.stream[0]) == cudaSuccess)
        return 3;
    const struct ll_comm_late *late = &w.late[0];
    return late->is_set == 1 && late->rank == 0 && late->peer == 1 && late->what == LL_COMM_SUM ? 0
                                                                                                : 4;
}

static void a_rank_that_never_comes_is_named(void **state)
{
    (void)state;
    int status = -1;
    const pid_t child = fork();

    if (child == 0) {
        execl(self, self, "--missing", (char *)NULL);
        _exit(127);
    }
    assert_true(child > 0 && waitpid(child, &status, 0) == child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rank_that_never_comes_is_named),
        cmocka_unit_test(on_one_gpu_peers_give_the_bits_of_lockstep),
        cmocka_unit_test(on_several_gpus_too),
        cmocka_unit_test(ids_and_logits_reach_their_ranks),
        cmocka_unit_test(a_hundred_thousand_sums_with_ranks_out_of_step),
    };
    if (access("/dev/nvidiactl", F_OK) != 0) {
        printf("skipped: no GPU\n");
        return LL_SKIPPED;
    }
    /* A kernel that is loaded at its first launch waits for one that waits for it. */
    setenv("CUDA_MODULE_LOADING", "EAGER", 1);
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 1);
    self = argv[0];
    if (argc > 1 && strcmp(argv[1], "--missing") == 0)
        return run_missing();
    if (argc > 1)
        seed = strtoull(argv[1], NULL, 0);
    random_state = seed;
    printf("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests_name("kernels/cuda comm", tests, NULL, NULL);
}
