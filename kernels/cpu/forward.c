/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/forward.c - the model: one step, from token ids to sampled ids, stage by stage.
 *
 * The three tables of stages near the end are the definition of a Llama decoder; each run_*()
 * above them is one of its lines. A stage is cut into items that any worker may run; the next
 * stage begins when all are done (team.h).
 *
 * Dims: T tokens of this step, E n_embd, H n_heads, K n_kv_heads, D head_dim, F n_ff, V n_vocab. */
#include "kernels/cpu/device.h"
#include "base/assert.h"
#include "base/clock.h"
#include "kernels/cpu/attend.h"
#include "kernels/cpu/embed.h"
#include "kernels/cpu/rope.h"

#include <math.h>

/* More items than threads, so that one that is late costs little. */
static uint32_t items_wanted(const struct ll_device *d)
{
    return d->team.n_threads * 4;
}

static const struct ll_cpu_matrix *rank_weight(const struct ll_device *d, enum ll_tensor_role role,
                                               uint32_t rank)
{
    return ll_cpu_weight(&d->now->weights[rank], d->layer, role);
}

/* Of rank 0, which alone has what is no linear of a layer; its parts of those are as large as any
 * other rank's. */
static const struct ll_cpu_matrix *weight(const struct ll_device *d, enum ll_tensor_role role)
{
    return rank_weight(d, role, 0);
}

static struct ll_cpu_cut cut_of(const struct ll_device *d, enum ll_tensor_role role,
                                uint32_t n_tokens)
{
    return ll_cpu_cut(weight(d, role)->rows, n_tokens, items_wanted(d));
}

/* ---- token-wise stages ---------------------------------------------------------------------- */
static uint32_t items_tokens(const struct ll_device *d)
{
    return (uint32_t)ll_div_ceil(d->now->n_tokens, LL_CPU_SMALL_ITEM);
}

static uint32_t end_of_tokens(const struct ll_device *d, uint32_t item)
{
    return (uint32_t)ll_min_u64(d->now->n_tokens, (uint64_t)(item + 1) * LL_CPU_SMALL_ITEM);
}

/* x[t] = embedding[token[t]]; cosine and sine of t's position, for all layers. */
static void run_embed(struct ll_device *d, uint32_t worker, uint32_t item)
{
    const struct ll_cpu_step *step = d->now;
    const uint32_t half = d->shape.head_dim / 2;

    (void)worker;
    for (uint32_t t = item * LL_CPU_SMALL_ITEM; t < end_of_tokens(d, item); t++) {
        ll_cpu_embed(d->x + t * d->ld_x, weight(d, LL_TENSOR_EMBED), step->token[t]);
        ll_cpu_rope_angles(d->cosine + (size_t)t * half, d->sine + (size_t)t * half, d->frequency,
                           half, step->position[t]);
    }
}

/* normed[t] = rmsnorm(x[t]) * weight */
static void run_norm(struct ll_device *d, uint32_t item, enum ll_tensor_role role)
{
    const float *scale = weight(d, role)->data;

    for (uint32_t t = item * LL_CPU_SMALL_ITEM; t < end_of_tokens(d, item); t++)
        d->inner->rmsnorm(d->normed + t * d->ld_x, d->x + t * d->ld_x, scale, d->shape.n_embd,
                          (uint32_t)d->ld_x, d->shape.rms_eps, d->is_bf16);
}

static void run_attn_norm(struct ll_device *d, uint32_t worker, uint32_t item)
{
    (void)worker;
    run_norm(d, item, LL_TENSOR_ATTN_NORM);
}

static void run_ffn_norm(struct ll_device *d, uint32_t worker, uint32_t item)
{
    (void)worker;
    run_norm(d, item, LL_TENSOR_FFN_NORM);
}

/* Scale of what the cache stores of a head; heads are those of all ranks, one after the other. */
static float kv_scale(const struct ll_device *d, enum ll_cpu_kv_side side, uint32_t kv_head)
{
    const uint32_t n = d->shape.n_kv_heads / d->n_ranks;

    return ll_cpu_kv_scale(&d->now->weights[kv_head / n], d->layer, side, kv_head % n);
}

/* q[t], k[t] turn with t's position; k[t] and v[t] go to their place in the pages. */
static void run_rope(struct ll_device *d, uint32_t worker, uint32_t item)
{
    const struct ll_cpu_step *step = d->now;
    const uint32_t n_dim = d->shape.head_dim, half = n_dim / 2;

    (void)worker;
    for (uint32_t t = item * LL_CPU_SMALL_ITEM; t < end_of_tokens(d, item); t++) {
        const float *cosine = d->cosine + (size_t)t * half, *sine = d->sine + (size_t)t * half;
        const uint32_t position = step->position[t];
        const struct ll_cpu_row *row = &step->row[step->row_of[t]];
        const uint32_t page = step->page[row->first_page + position / LL_PAGE_TOKENS];
        for (uint32_t h = 0; h < d->shape.n_heads; h++)
            ll_cpu_rope_turn(d->q + t * d->ld_q + h * n_dim, cosine, sine, half, d->is_bf16);
        for (uint32_t h = 0; h < d->shape.n_kv_heads; h++) {
            float *k = d->k + t * d->ld_kv + h * n_dim, *v = d->v + t * d->ld_kv + h * n_dim;
            ll_cpu_rope_turn(k, cosine, sine, half, d->is_bf16);
            ll_cpu_kv_put(&d->kv, ll_cpu_kv_at(&d->kv, page, d->layer, LL_CPU_KEY, h),
                          position % LL_PAGE_TOKENS, k, kv_scale(d, LL_CPU_KEY, h));
            ll_cpu_kv_put(&d->kv, ll_cpu_kv_at(&d->kv, page, d->layer, LL_CPU_VALUE, h),
                          position % LL_PAGE_TOKENS, v, kv_scale(d, LL_CPU_VALUE, h));
        }
    }
}

/* ---- products -----------------------------------------------------------------------------------
 */
/* out = w x for one block, rounded */
static void project(struct ll_device *d, uint32_t worker, float *out, size_t ld_out,
                    const struct ll_cpu_matrix *w, const float *x, size_t ld_x,
                    const struct ll_cpu_block *b, bool is_bf16)
{
    float *y = d->worker[worker].block[0];
    const uint32_t n16 = (uint32_t)ll_align_up(b->n_rows, 16);

    ll_cpu_matmul(d->inner, y, w, x, ld_x, b);
    for (uint32_t t = 0; t < b->n_tokens; t++)
        d->inner->store(out + (b->token + t) * ld_out + b->row, y + (size_t)t * n16, n16, is_bf16);
}

/* y = w in for one block, each rank's columns with its part of in, added up (ranks.h, T3) */
static void project_ranks(struct ll_device *d, uint32_t worker, float *y, enum ll_tensor_role role,
                          const float *in, size_t ld_in, const struct ll_cpu_block *b)
{
    float *part = d->worker[worker].block[1];
    const size_t n = ll_align_up(b->n_rows, 16) * b->n_tokens;

    ll_cpu_matmul(d->inner, y, weight(d, role), in, ld_in, b);
    for (uint32_t rank = 1; rank < d->n_ranks; rank++) {
        const struct ll_cpu_matrix *w = rank_weight(d, role, rank);
        ll_cpu_matmul(d->inner, part, w, in + (size_t)rank * w->cols, ld_in, b);
        for (size_t i = 0; i < n; i++)
            y[i] += part[i];
    }
}

/* x += w in for one block: back to the residual stream */
static void project_add(struct ll_device *d, uint32_t worker, enum ll_tensor_role role,
                        const float *in, size_t ld_in, uint32_t item)
{
    const struct ll_cpu_cut cut = cut_of(d, role, d->now->n_tokens);
    const struct ll_cpu_block b = ll_cpu_cut_block(&cut, item);
    float *y = d->worker[worker].block[0];
    const uint32_t n16 = (uint32_t)ll_align_up(b.n_rows, 16);

    project_ranks(d, worker, y, role, in, ld_in, &b);
    for (uint32_t t = 0; t < b.n_tokens; t++)
        d->inner->add(d->x + (b.token + t) * d->ld_x + b.row, y + (size_t)t * n16, n16, d->is_bf16);
}

static uint32_t items_of(const struct ll_device *d, enum ll_tensor_role role)
{
    const struct ll_cpu_cut cut = cut_of(d, role, d->now->n_tokens);

    return ll_cpu_cut_items(&cut);
}

static uint32_t items_qkv(const struct ll_device *d)
{
    return d->n_ranks *
           (items_of(d, LL_TENSOR_Q) + items_of(d, LL_TENSOR_K) + items_of(d, LL_TENSOR_V));
}

/* q = Wq normed, k = Wk normed, v = Wv normed */
static void run_qkv(struct ll_device *d, uint32_t worker, uint32_t item)
{
    const struct {
        enum ll_tensor_role role;
        float *out;
        size_t ld;
    } part[] = {
        {LL_TENSOR_Q, d->q, d->ld_q}, {LL_TENSOR_K, d->k, d->ld_kv}, {LL_TENSOR_V, d->v, d->ld_kv}};

    for (size_t i = 0; i < LL_COUNT(part); i++) {
        const struct ll_cpu_cut cut = cut_of(d, part[i].role, d->now->n_tokens);
        const uint32_t n_items = ll_cpu_cut_items(&cut), rank = item / n_items;
        if (rank < d->n_ranks) {
            const struct ll_cpu_block b = ll_cpu_cut_block(&cut, item % n_items);
            const struct ll_cpu_matrix *w = rank_weight(d, part[i].role, rank);
            project(d, worker, part[i].out + (size_t)rank * w->rows, part[i].ld, w, d->normed,
                    d->ld_x, &b, d->is_bf16);
            return;
        }
        item -= n_items * d->n_ranks;
    }
}

static uint32_t items_attend(const struct ll_device *d)
{
    return d->now->n_spans * d->shape.n_kv_heads;
}

/* a[t] = attention of q[t] over all keys up to t's position */
static void run_attend(struct ll_device *d, uint32_t worker, uint32_t item)
{
    const struct ll_cpu_step *step = d->now;
    const struct ll_cpu_span *span = &step->span[item / d->shape.n_kv_heads];
    const struct ll_cpu_row *row = &step->row[span->row];
    const uint32_t kv_head = item % d->shape.n_kv_heads;
    const uint32_t group = d->shape.n_heads / d->shape.n_kv_heads;
    const size_t t = row->first_token + span->token,
                 at = (size_t)kv_head * group * d->shape.head_dim;

    ll_cpu_attend(&(struct ll_cpu_attend){
        .inner = d->inner,
        .kv = &d->kv,
        .page = step->page + row->first_page,
        .layer = d->layer,
        .kv_head = kv_head,
        .group = group,
        .n_tokens = span->n_tokens,
        .position = step->position[t],
        .q = d->q + t * d->ld_q + at,
        .out = d->a + t * d->ld_a + at,
        .ld_q = d->ld_q,
        .ld_out = d->ld_a,
        .k_scale = kv_scale(d, LL_CPU_KEY, kv_head),
        .v_scale = kv_scale(d, LL_CPU_VALUE, kv_head),
        .is_bf16 = d->is_bf16,
        .scratch = d->worker[worker].attend,
    });
}

static uint32_t items_o(const struct ll_device *d)
{
    return items_of(d, LL_TENSOR_O);
}

/* x += Wo a */
static void run_o(struct ll_device *d, uint32_t worker, uint32_t item)
{
    project_add(d, worker, LL_TENSOR_O, d->a, d->ld_a, item);
}

static uint32_t items_gate_up(const struct ll_device *d)
{
    return d->n_ranks * items_of(d, LL_TENSOR_GATE);
}

/* h = silu(Wgate normed) * (Wup normed) */
static void run_gate_up(struct ll_device *d, uint32_t worker, uint32_t item)
{
    const struct ll_cpu_cut cut = cut_of(d, LL_TENSOR_GATE, d->now->n_tokens);
    const uint32_t n_items = ll_cpu_cut_items(&cut), rank = item / n_items;
    const struct ll_cpu_block b = ll_cpu_cut_block(&cut, item % n_items);
    const struct ll_cpu_matrix *w = rank_weight(d, LL_TENSOR_GATE, rank);
    float *h = d->h + (size_t)rank * w->rows;
    float *gate = d->worker[worker].block[0], *up = d->worker[worker].block[1];
    const uint32_t n16 = (uint32_t)ll_align_up(b.n_rows, 16);

    ll_cpu_matmul(d->inner, gate, w, d->normed, d->ld_x, &b);
    ll_cpu_matmul(d->inner, up, rank_weight(d, LL_TENSOR_UP, rank), d->normed, d->ld_x, &b);
    for (uint32_t t = 0; t < b.n_tokens; t++)
        d->inner->swiglu(h + (b.token + t) * d->ld_h + b.row, gate + (size_t)t * n16,
                         up + (size_t)t * n16, n16, d->is_bf16);
}

static uint32_t items_down(const struct ll_device *d)
{
    return items_of(d, LL_TENSOR_DOWN);
}

/* x += Wdown h */
static void run_down(struct ll_device *d, uint32_t worker, uint32_t item)
{
    project_add(d, worker, LL_TENSOR_DOWN, d->h, d->ld_h, item);
}

/* ---- logits: only of tokens that sample or are scored, LL_CPU_LOGITS of them a round -----------
 */
static uint32_t first_logits(const struct ll_device *d)
{
    return d->now->job[d->first_job].first_logits;
}

static uint32_t n_logits(const struct ll_device *d)
{
    const struct ll_cpu_job *last = &d->now->job[d->end_job - 1];

    return last->first_logits + last->n_logits - first_logits(d);
}

static uint32_t items_final_norm(const struct ll_device *d)
{
    return (uint32_t)ll_div_ceil(n_logits(d), LL_CPU_SMALL_ITEM);
}

/* normed[i] = rmsnorm(x[token of logits i]) * weight */
static void run_final_norm(struct ll_device *d, uint32_t worker, uint32_t item)
{
    const float *scale = weight(d, LL_TENSOR_FINAL_NORM)->data;
    const uint32_t n = n_logits(d), first = first_logits(d);

    (void)worker;
    for (uint32_t i = item * LL_CPU_SMALL_ITEM; i < n && i < (item + 1) * LL_CPU_SMALL_ITEM; i++) {
        const float *x = d->x + d->now->logits_token[first + i] * d->ld_x;
        d->inner->rmsnorm(d->normed + i * d->ld_x, x, scale, d->shape.n_embd, (uint32_t)d->ld_x,
                          d->shape.rms_eps, d->is_bf16);
    }
}

static uint32_t items_head(const struct ll_device *d)
{
    const struct ll_cpu_cut cut = cut_of(d, LL_TENSOR_HEAD, n_logits(d));

    return ll_cpu_cut_items(&cut);
}

/* logits[i] = Whead normed[i] */
static void run_head(struct ll_device *d, uint32_t worker, uint32_t item)
{
    const struct ll_cpu_cut cut = cut_of(d, LL_TENSOR_HEAD, n_logits(d));
    const struct ll_cpu_block b = ll_cpu_cut_block(&cut, item);

    project(d, worker, d->logits, d->ld_logits, weight(d, LL_TENSOR_HEAD), d->normed, d->ld_x, &b,
            false);
}

static uint32_t items_jobs(const struct ll_device *d)
{
    return d->end_job - d->first_job;
}

static struct ll_cpu_logits logits_at(struct ll_device *d, uint32_t index)
{
    float *x = d->logits + (size_t)(index - first_logits(d)) * d->ld_logits;

    for (size_t v = d->shape.n_vocab; v < d->ld_logits; v++)
        x[v] = -INFINITY;
    return (struct ll_cpu_logits){
        .x = x, .n_vocab = d->shape.n_vocab, .n16 = (uint32_t)d->ld_logits};
}

/* Samples after the row's last token; with drafts, after each one that was guessed right. */
static void sample_row(struct ll_device *d, uint32_t worker, const struct ll_cpu_job *job)
{
    struct ll_cpu_step *step = d->now;
    const struct ll_cpu_row *row = &step->row[job->row];
    const struct ll_cpu_settings *settings = row->settings;
    const uint32_t first = row->first_token + row->n_tokens - job->n_logits; /* token of logits 0 */
    struct ll_cpu_slot *slot = &d->slot[row->slot];
    struct ll_row_out *out = &step->out[job->row];

    for (uint32_t i = 0; i < job->n_logits; i++) {
        struct ll_cpu_logits logits = logits_at(d, job->first_logits + i);
        if (!ll_cpu_logits_measure(d->inner, &logits)) {
            out->status = LL_ROW_NAN;
            slot->last_token = 0; /* a row that ran ahead reads it; its result is thrown away */
            slot->next_position = step->position[first + i] + 1;
            return;
        }
        uint32_t position = step->position[first + i] + 1;
        uint32_t token =
            ll_cpu_sample(d->inner, &logits, settings, position, &d->worker[worker].sample);
        out->token[i] = token;
        out->logprob[i] = ll_cpu_logprob(&logits, token);
        out->n_tokens = (uint8_t)(i + 1);
        ll_cpu_top(&logits, row->n_top, step->ext + job->ext + i * row->n_top);
        out->n_ext += row->n_top;
        if (settings->has_penalties)
            settings->count[token]++;
        slot->last_token = token;
        slot->next_position = position;
        if (i + 1 < job->n_logits && token != step->token[first + i + 1])
            return;
    }
}

/* The log probability of the id that follows in the prompt, and the likeliest ones. */
static void score(struct ll_device *d, const struct ll_cpu_job *job)
{
    struct ll_cpu_step *step = d->now;
    const struct ll_cpu_row *row = &step->row[job->row];
    struct ll_cpu_logits logits = logits_at(d, job->first_logits);
    struct ll_ext *ext = step->ext + job->ext;

    if (!ll_cpu_logits_measure(d->inner, &logits))
        logits.log_sum = NAN; /* run_jobs() of one row run in parallel: end_step() sees the NaN */
    ext[0] = (struct ll_ext){job->target, ll_cpu_logprob(&logits, job->target)};
    ll_cpu_top(&logits, row->n_prompt_top, ext + 1);
}

static void run_jobs(struct ll_device *d, uint32_t worker, uint32_t item)
{
    const struct ll_cpu_job *job = &d->now->job[d->first_job + item];

    if (job->is_sampling)
        sample_row(d, worker, job);
    else
        score(d, job);
}

/* ---- the model ----------------------------------------------------------------------------------
 */
struct stage {
    uint32_t (*items)(const struct ll_device *d);
    void (*run)(struct ll_device *d, uint32_t worker, uint32_t item);
    bool is_small; /* a single item is not worth a barrier: who ended the stage before runs it */
};

static const struct stage first_stage = {items_tokens, run_embed, false};

static const struct stage layer_stages[] = {
    {items_tokens, run_attn_norm, true}, /* normed = rmsnorm(x) */
    {items_qkv, run_qkv, false},         /* q, k, v = Wq, Wk, Wv normed */
    {items_tokens, run_rope, true},      /* turn q, k; append k, v to the pages */
    {items_attend, run_attend, false},   /* a = softmax(q k / sqrt(D)) v */
    {items_o, run_o, false},             /* x += Wo a */
    {items_tokens, run_ffn_norm, true},  /* normed = rmsnorm(x) */
    {items_gate_up, run_gate_up, false}, /* h = silu(Wgate normed) * (Wup normed) */
    {items_down, run_down, false},       /* x += Wdown h */
};

static const struct stage logits_stages[] = {
    {items_final_norm, run_final_norm, true}, /* normed = rmsnorm(x) of those wanted */
    {items_head, run_head, false},            /* logits = Whead normed */
    {items_jobs, run_jobs, false},            /* sample or score */
};

/* d->stage counts through first_stage, the layer's, and the logits'. */
enum { STAGE_LAYER = 1, STAGE_LOGITS = 1 + LL_COUNT(layer_stages) };
enum { STAGE_END = STAGE_LOGITS + LL_COUNT(logits_stages) };

static const struct stage *stage_of(const struct ll_device *d)
{
    if (d->stage >= STAGE_LOGITS)
        return &logits_stages[d->stage - STAGE_LOGITS];
    return d->stage >= STAGE_LAYER ? &layer_stages[d->stage - STAGE_LAYER] : &first_stage;
}

/* Takes the next jobs whose logits fit; false when none are left. */
static bool next_round(struct ll_device *d)
{
    const struct ll_cpu_step *step = d->now;
    uint32_t n = 0;

    d->first_job = d->end_job;
    while (d->end_job < step->n_jobs && n + step->job[d->end_job].n_logits <= LL_CPU_LOGITS)
        n += step->job[d->end_job++].n_logits;
    return d->end_job > d->first_job;
}

/* What only the device knows when a row runs ahead: the id sampled last and its position. */
static void begin_step(struct ll_device *d)
{
    d->now = &d->step[++d->running % LL_CPU_DEPTH];
    d->layer = d->stage = 0;
    d->first_job = d->end_job = 0;
    struct ll_cpu_step *step = d->now;
    step->start_ns = ll_now_ns();
    step->failed = NULL;
    for (uint32_t i = 0; i < step->n_rows; i++) {
        struct ll_cpu_row *row = &step->row[i];
        if (row->takes_last) {
            const struct ll_cpu_slot *slot = &d->slot[row->slot];
            row->position = slot->next_position;
            step->token[row->first_token] = slot->last_token;
        }
        for (uint32_t t = 0; t < row->n_tokens; t++)
            step->position[row->first_token + t] = row->position + t;
        uint32_t last_page = (row->position + row->n_tokens - 1) / LL_PAGE_TOKENS;
        if (last_page >= row->n_pages ||
            step->page[row->first_page + last_page] == LL_CPU_PAGE_UNSET) {
            step->failed = "a row that ran ahead has no page for its position";
            d->stage = STAGE_END;
        }
    }
}

static void end_step(struct ll_device *d)
{
    struct ll_cpu_step *step = d->now;

    for (uint32_t i = 0; i < step->n_jobs; i++) {
        const struct ll_cpu_job *job = &step->job[i];
        if (!job->is_sampling && isnan(step->ext[job->ext].logprob))
            step->out[job->row].status = LL_ROW_NAN;
    }
    for (uint32_t i = 0; i < step->n_rows; i++)
        if (step->out[i].status == LL_ROW_NAN)
            step->out[i].n_tokens = 0;
    step->end_ns = ll_now_ns();
    d->now = NULL;
    /* Release, pairs with the acquire in backend.c's poll: results first, then the ticket. */
    atomic_store_explicit(&d->done, d->running, memory_order_release);
}

/* Moves the program counter; false at the step's end. */
static bool advance(struct ll_device *d)
{
    if (d->stage >= STAGE_END)
        return false;
    d->stage++;
    if (d->stage == STAGE_LOGITS && d->layer + 1 < d->shape.n_layers) {
        d->layer++;
        d->stage = STAGE_LAYER;
    } else if (d->stage == STAGE_LOGITS || d->stage == STAGE_END) {
        d->layer = 0; /* the tensors without a layer lie there */
        d->stage = next_round(d) ? STAGE_LOGITS : STAGE_END;
    }
    return d->stage < STAGE_END;
}

uint32_t ll_cpu_forward_next(void *context, uint32_t worker)
{
    struct ll_device *d = context;

    if (d->now == NULL) {
        begin_step(d);
        if (d->stage < STAGE_END)
            return stage_of(d)->items(d);
    }
    while (advance(d)) {
        const struct stage *stage = stage_of(d);
        uint32_t n_items = stage->items(d);
        if (n_items > 1 || !stage->is_small)
            return n_items;
        stage->run(d, worker, 0);
    }
    end_step(d);
    return 0;
}

void ll_cpu_forward_item(void *context, uint32_t worker, uint32_t item)
{
    struct ll_device *d = context;

    stage_of(d)->run(d, worker, item);
}
