/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/cuda_backend.c - the CUDA backend: open, the memory plan, close, the table of calls.
 *
 * extra: "weights=fp8" makes dummy weights e4m3; "source=fp8" says that most of what will be fed
 * is, for the memory plan; "device=N" picks a GPU; "skinny=0" leaves all products to cuBLASLt,
 * "wgmma=0" those of more than a few tokens; "graph=0" launches kernel by kernel. */
#include "kernels/cuda/tp.h"

#include "base/bits.h"
#include "ll/client.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_FRACTION 0.92f
#define LOGIT_ROWS_MAX   1024u

const struct ll_backend *ll_backend_cuda(void) __attribute__((visibility("default")));

int ll_cuda_fail(struct ll_text *error, const char *what, cudaError_t status)
{
    snprintf(error->s, sizeof(error->s), "CUDA: %s: %s", what, cudaGetErrorString(status));
    return status == cudaErrorMemoryAllocation ? -ENOMEM : -EIO;
}

int ll_cuda_op(struct ll_text *error, const char *what, int rc)
{
    if (rc >= 0)
        return 0;
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess)
        return ll_cuda_fail(error, what, status);
    snprintf(error->s, sizeof(error->s), "CUDA: %s: no kernel for a step or a model of this size",
             what);
    return rc;
}

int ll_cuda_no_memory(struct ll_text *error, const char *what)
{
    snprintf(error->s, sizeof(error->s), "CUDA: no host memory for %s: free some and start again",
             what);
    return -ENOMEM;
}

cudaError_t ll_cuda_zeroed(void **out, size_t size_bytes)
{
    cudaError_t s = cudaMalloc(out, size_bytes > 0 ? size_bytes : 16);

    return s == cudaSuccess ? cudaMemset(*out, 0, size_bytes) : s;
}

bool ll_cuda_has_extra(const struct ll_backend_options *options, const char *key_value)
{
    return options->extra != NULL && strstr(options->extra, key_value) != NULL;
}

int ll_cuda_first_gpu(const struct ll_backend_options *options)
{
    const char *at = options->extra != NULL ? strstr(options->extra, "device=") : NULL;

    return at != NULL ? atoi(at + strlen("device=")) : 0;
}

static int refuse(struct ll_text *error, int code, const char *why, uint32_t value)
{
    snprintf(error->s, sizeof(error->s), "CUDA: %s (%u)", why, value);
    return code;
}

static int check_shape(const struct ll_backend_options *o, const struct ll_model_shape *s,
                       struct ll_text *error)
{
    if (s->head_dim != 64 && s->head_dim != 128)
        return refuse(error, LL_E_UNSUPPORTED, "head_dim must be 64 or 128", s->head_dim);
    if (s->n_kv_heads == 0 || s->n_heads % s->n_kv_heads != 0 || s->n_heads / s->n_kv_heads > 16)
        return refuse(error, LL_E_UNSUPPORTED, "heads a KV head must be 1 to 16", s->n_heads);
    if (s->n_embd % 16 != 0 || s->n_ff % 16 != 0 || s->n_embd > 16384)
        return refuse(error, LL_E_UNSUPPORTED, "widths must be multiples of 16, at most 16384",
                      s->n_embd);
    if (o->dtype == LL_DTYPE_F32)
        return refuse(error, LL_E_UNSUPPORTED, "computes in bfloat16; use --device cpu for float32",
                      32);
    return 0;
}

static int choose_device(struct ll_device *d, struct ll_backend_caps *caps, struct ll_text *error)
{
    struct cudaDeviceProp p;
    const int index =
        ll_cuda_first_gpu(&d->options) + (d->tp != NULL ? ll_cuda_tp_gpu(d->tp, d->rank) : 0);
    int n = 0;
    cudaError_t s = cudaGetDeviceCount(&n);

    d->gpu = index;
    if (s != cudaSuccess) {
        snprintf(error->s, sizeof(error->s), "CUDA: no GPU %d: %s", index, cudaGetErrorString(s));
        return -ENODEV;
    }
    if (index >= n) {
        snprintf(error->s, sizeof(error->s),
                 "CUDA: no GPU %d: %d are seen, counted from 0 (CUDA_VISIBLE_DEVICES says which)",
                 index, n);
        return -ENODEV;
    }
    if ((s = cudaSetDevice(index)) != cudaSuccess ||
        (s = cudaGetDeviceProperties(&p, index)) != cudaSuccess)
        return ll_cuda_fail(error, "device", s);
    if (p.major < 8)
        return refuse(error, LL_E_UNSUPPORTED, "needs compute capability 8.0, this GPU has major",
                      (uint32_t)p.major);
    d->level = ll_cuda_level();
    if (d->level == 0)
        return refuse(error, LL_E_UNSUPPORTED, "was built without code for compute capability",
                      (uint32_t)(p.major * 10 + p.minor));
    d->n_sm = (uint32_t)p.multiProcessorCount;
    if (d->rank > 0)
        return 0;
    snprintf(caps->device, sizeof(caps->device), "%.63s", p.name);
    if (cudaDeviceGetPCIBusId(caps->pci, sizeof(caps->pci), index) != cudaSuccess)
        caps->pci[0] = 0;
    return 0;
}

/* ---- host memory ------------------------------------------------------------------------------*/
static void plan_layout(struct ll_device *d)
{
    struct ll_cuda_layout *l = &d->layout;
    const struct ll_backend_options *o = &d->options;
    const uint32_t n_group = d->shape.n_heads / d->shape.n_kv_heads;
    size_t at = sizeof(struct ll_cuda_counts);

    l->n_tokens_max = o->n_tokens_max;
    l->n_rows_max = o->n_rows_max;
    l->n_logits_max = o->n_rows_max > LOGIT_ROWS_MAX ? o->n_rows_max : LOGIT_ROWS_MAX;
    l->n_tiles_max = o->n_tokens_max / LL_CUDA_TILE_TOKENS(n_group) + o->n_rows_max + 1;
    l->n_page_ids_max = o->n_rows_max * 4 + o->n_tokens_max / LL_PAGE_TOKENS + o->pages_per_seq * 8;
    l->n_sets_max = o->n_rows_max;
    l->n_ext_max = o->n_rows_max * LL_EXT_TOP_MAX + LOGIT_ROWS_MAX * (1 + LL_EXT_TOP_MAX);
#define PLACE(field, n, type)                                                                      \
    do {                                                                                           \
        at = ll_align_up(at, 128);                                                                 \
        l->field = at;                                                                             \
        at += (size_t)(n) * sizeof(type);                                                          \
    } while (0)
    PLACE(inits, l->n_rows_max, struct ll_cuda_init);
    PLACE(sets, l->n_sets_max, struct ll_cuda_pages);
    PLACE(page_ids, l->n_page_ids_max, uint32_t);
    PLACE(token_id, l->n_tokens_max, uint32_t);
    PLACE(token_pos, l->n_tokens_max, uint32_t);
    PLACE(token_slot, l->n_tokens_max, uint32_t);
    PLACE(logits, l->n_logits_max, struct ll_cuda_logit);
    PLACE(decode, l->n_rows_max, struct ll_cuda_decode);
    PLACE(tiles, l->n_tiles_max, struct ll_cuda_tile);
    l->bytes = ll_align_up(at, 4096);
    at = 0;
    PLACE(out_rows, (size_t)l->n_rows_max * LL_CUDA_AREAS, struct ll_row_out);
    PLACE(out_ext, (size_t)l->n_ext_max * LL_CUDA_AREAS, struct ll_ext);
    l->out_bytes = ll_align_up(at, 4096);
#undef PLACE
}

static cudaError_t mapped(void **host, void **device, size_t size_bytes)
{
    cudaError_t s = cudaHostAlloc(host, size_bytes, cudaHostAllocMapped | cudaHostAllocPortable);

    if (s != cudaSuccess)
        return s;
    memset(*host, 0, size_bytes);
    return cudaHostGetDevicePointer(device, *host, 0);
}

static int make_host_memory(struct ll_device *d, struct ll_text *error)
{
    const size_t staging = ll_align_up(d->n_vocab_all * sizeof(uint16_t), 16) +
                           LL_CUDA_BIAS_MAX * sizeof(struct ll_bias);
    cudaError_t s;

    plan_layout(d);
    s = mapped((void **)&d->done, (void **)&d->done_device, 4096);
    if (d->rank > 0) /* all parts read the one batch; rank 0 alone has results */
        d->areas_device = d->tp->part[0]->areas_device;
    else if (s == cudaSuccess)
        s = mapped((void **)&d->areas, (void **)&d->areas_device, d->layout.bytes * LL_CUDA_AREAS);
    if (s == cudaSuccess && d->rank == 0)
        s = mapped((void **)&d->results, (void **)&d->results_device, d->layout.out_bytes);
    for (uint32_t i = 0; i < LL_CUDA_AREAS && s == cudaSuccess && d->rank == 0; i++) {
        s = cudaHostAlloc((void **)&d->slot_staging[i], staging, cudaHostAllocDefault);
        if (s == cudaSuccess)
            s = cudaEventCreateWithFlags(&d->slot_copied[i], cudaEventDisableTiming);
    }
    for (uint32_t i = 0; i < LL_CUDA_COPIES_MAX && s == cudaSuccess; i++)
        s = cudaEventCreateWithFlags(&d->copy_event[i], cudaEventDisableTiming);
    for (uint32_t i = 0; i < LL_CUDA_COPIES_MAX && s == cudaSuccess; i++)
        s = cudaEventCreateWithFlags(&d->feed_event[i], cudaEventDisableTiming);
    if (s == cudaSuccess)
        s = cudaEventCreateWithFlags(&d->batch_event, cudaEventDisableTiming);
    return s == cudaSuccess ? 0 : ll_cuda_fail(error, "host memory", s);
}

/* ---- device memory ----------------------------------------------------------------------------*/
static int make_tables(struct ll_device *d, struct ll_text *error)
{
    const struct ll_backend_options *o = &d->options;
    const struct ll_cuda_layout *l = &d->layout;
    struct ll_cuda_tables *t = &d->tables;
    /* Padded to the largest bucket a full batch can fall into. */
    const size_t n_tokens = ll_cuda_token_bucket(l->n_tokens_max);
    const size_t n_logits = ll_pow2_ceil(l->n_logits_max) * 4;
    const size_t n_sampled = d->rank == 0 ? o->n_slots : 0;
    const struct {
        void **at;
        size_t bytes;
    } parts[] = {
        {(void **)&t->counts, sizeof(*t->counts)},
        {(void **)&t->step, sizeof(*t->step)},
        {(void **)&t->begin_ns, sizeof(*t->begin_ns)},
        {(void **)&t->token_id, n_tokens * 4},
        {(void **)&t->token_pos, n_tokens * 4},
        {(void **)&t->token_slot, n_tokens * 4},
        {(void **)&t->logits, n_logits * sizeof(*t->logits)},
        {(void **)&t->decode, l->n_rows_max * sizeof(*t->decode)},
        {(void **)&t->tiles, l->n_tiles_max * sizeof(*t->tiles)},
        {(void **)&t->slots, o->n_slots * sizeof(*t->slots)},
        {(void **)&t->page_table, (size_t)o->n_slots * o->pages_per_seq * 4},
        {(void **)&t->penalty, n_sampled * d->n_vocab_all * 2},
        {(void **)&t->bias, n_sampled * LL_CUDA_BIAS_MAX * sizeof(struct ll_bias)},
    };
    cudaError_t s = cudaSuccess;

    if (d->is_led) {
        *t = d->tp->part[0]->tables;
        return 0;
    }
    t->pages_per_seq = o->pages_per_seq;
    for (size_t i = 0; i < LL_COUNT(parts) && s == cudaSuccess; i++)
        s = ll_cuda_zeroed(parts[i].at, parts[i].bytes);
    return s == cudaSuccess ? 0 : ll_cuda_fail(error, "tables", s);
}

/* Room for the largest product's partial sums and its row blocks' counts. */
static void skinny_sizes(const struct ll_device *d, size_t *partial_bytes, size_t *n_arrived)
{
    const struct ll_model_shape *m = &d->shape;
    const uint32_t q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim;
    const uint32_t shapes[][2] = {{q + 2 * kv, m->n_embd},
                                  {m->n_embd, q},
                                  {2 * m->n_ff, m->n_embd},
                                  {m->n_embd, m->n_ff},
                                  {d->n_vocab_padded, m->n_embd}};

    *partial_bytes = *n_arrived = 0;
    for (size_t i = 0; i < LL_COUNT(shapes); i++) {
        *partial_bytes =
            ll_max_u64(*partial_bytes, ll_cuda_skinny_partial_bytes(shapes[i][0], shapes[i][1]));
        *n_arrived = ll_max_u64(*n_arrived, shapes[i][0] / 64 + 1);
        for (int is_fp8 = 0; is_fp8 < 2; is_fp8++) {
            size_t bytes, n;
            ll_cuda_skinny_wgmma_room(shapes[i][0], shapes[i][1], is_fp8,
                                      LL_SKINNY_WGMMA_TOKENS_MAX, &bytes, &n);
            *partial_bytes = ll_max_u64(*partial_bytes, bytes);
            *n_arrived = ll_max_u64(*n_arrived, n);
        }
    }
}

static int make_activations(struct ll_device *d, struct ll_text *error)
{
    const struct ll_model_shape *m = &d->shape;
    const size_t t = ll_align_up(ll_cuda_token_bucket(d->layout.n_tokens_max), 16) + 16;
    const size_t r = ll_cuda_logit_bucket(d->layout.n_logits_max, UINT32_MAX),
                 q = (size_t)m->n_heads * m->head_dim;
    const size_t kv = (size_t)m->n_kv_heads * m->head_dim;
    const size_t wide = m->n_ff > q ? m->n_ff : q;
    size_t partial_bytes, n_arrived;
    skinny_sizes(d, &partial_bytes, &n_arrived);
    const struct {
        void **at;
        size_t bytes;
    } parts[] = {
        {&d->x, t * m->n_embd * 2},
        {&d->h, t * m->n_embd * 2},
        {&d->qkv, t * (q + 2 * kv) * 2},
        {&d->attn, t * q * 2},
        {&d->delta, t * m->n_embd * 2},
        {&d->gate_up, t * m->n_ff * 4},
        {&d->act, t * wide * 2},
        {&d->gathered, r * m->n_embd * 2},
        {(void **)&d->h_scale, t * 4},
        {(void **)&d->act_scale, t * 4},
        {(void **)&d->logits, r * d->n_vocab_padded * 4},
        {(void **)&d->arrived,
         (size_t)d->layout.n_rows_max * m->n_kv_heads * LL_CUDA_DECODE_MERGERS * 4},
        {(void **)&d->convert, LL_CUDA_STAGING},
        {(void **)&d->skinny_partial, partial_bytes},
        {(void **)&d->skinny_arrived, n_arrived * 4},
    };
    cudaError_t s = cudaSuccess;

    for (size_t i = 0; i < LL_COUNT(parts) && s == cudaSuccess; i++)
        s = ll_cuda_zeroed(parts[i].at, parts[i].bytes);
    if (s == cudaSuccess && d->level < 89)
        s = ll_cuda_zeroed(&d->widened, LL_CUDA_WIDENED);
    d->logits_all = d->logits;
    if (d->tp != NULL && d->rank == 0) {
        d->logits_all = NULL;
        if (s == cudaSuccess)
            s = ll_cuda_zeroed((void **)&d->logits_all, r * ll_align_up(d->n_vocab_all, 8) * 4);
    }
    return s == cudaSuccess ? 0 : ll_cuda_fail(error, "activations", s);
}

/* cos and sin of every position, in double on the host. */
static int make_rope(struct ll_device *d, struct ll_text *error)
{
    const struct ll_model_shape *m = &d->shape;
    const uint32_t half = m->head_dim / 2;
    const size_t bytes = (size_t)m->context_max * half * 2 * sizeof(float);
    float *table = malloc(bytes);
    double *inverse = malloc(half * sizeof(double));
    int rc = 0;

    if (table == NULL || inverse == NULL) {
        rc = ll_cuda_no_memory(error, "the rope table");
        goto free_tables;
    }
    for (uint32_t i = 0; i < half; i++) {
        double f = pow(m->rope_theta, -2.0 * i / m->head_dim);
        if (m->rope == LL_ROPE_LLAMA3) {
            double wave = 2.0 * M_PI / f, original = m->rope_original_context;
            double s =
                (original / wave - m->rope_low_freq) / (m->rope_high_freq - m->rope_low_freq);
            if (wave > original / m->rope_low_freq)
                f /= m->rope_factor;
            else if (wave >= original / m->rope_high_freq)
                f = (1.0 - s) * f / m->rope_factor + s * f;
        }
        inverse[i] = f;
    }
    for (uint32_t pos = 0; pos < m->context_max; pos++)
        for (uint32_t i = 0; i < half; i++) {
            double angle = pos * inverse[i];
            table[((size_t)pos * half + i) * 2] = (float)cos(angle);
            table[((size_t)pos * half + i) * 2 + 1] = (float)sin(angle);
        }
    cudaError_t s = cudaMalloc((void **)&d->rope, bytes);
    if (s == cudaSuccess)
        s = cudaMemcpy(d->rope, table, bytes, cudaMemcpyHostToDevice);
    rc = s == cudaSuccess ? 0 : ll_cuda_fail(error, "rope table", s);
free_tables:
    free(table);
    free(inverse);
    return rc;
}

static uint64_t weights_estimate(const struct ll_device *d)
{
    const struct ll_model_shape *m = &d->shape;
    const uint64_t q = (uint64_t)m->n_heads * m->head_dim,
                   kv = (uint64_t)m->n_kv_heads * m->head_dim;
    const uint64_t linear =
        m->n_layers * ((q * 2 + kv * 2) * m->n_embd + 3ull * m->n_ff * m->n_embd);
    const uint64_t vocab = (uint64_t)d->n_vocab_padded * m->n_embd * (m->is_tied ? 1 : 2);

    return linear * (d->is_fp8_dummy || ll_cuda_has_extra(&d->options, "source=fp8") ? 1 : 2) +
           vocab * 2 + m->n_layers * m->n_embd * 4ull;
}

/* KV pages: as told, or what the fraction leaves after weights. */
int ll_cuda_plan_pages(struct ll_device *d, uint32_t n_sharing, uint32_t *n_pages,
                       struct ll_text *error)
{
    const struct ll_model_shape *m = &d->shape;
    const struct ll_backend_options *o = &d->options;
    size_t free_bytes = 0, total_bytes = 0;

    d->page_bytes =
        (size_t)2 * m->n_kv_heads * LL_PAGE_TOKENS * m->head_dim * (d->is_kv_fp8 ? 1 : 2);
    const size_t whole_page = d->page_bytes * m->n_layers;
    cudaError_t s = cudaMemGetInfo(&free_bytes, &total_bytes);
    if (s != cudaSuccess)
        return ll_cuda_fail(error, "memory info", s);
    if (o->n_pages > 0) {
        *n_pages = o->n_pages;
    } else {
        uint64_t budget = o->kv_bytes;
        if (budget == 0) {
            const double fraction = o->memory_fraction > 0 ? o->memory_fraction : DEFAULT_FRACTION;
            const double left = fraction * (double)total_bytes -
                                (double)(total_bytes - free_bytes) -
                                (double)weights_estimate(d) * o->n_weights * n_sharing;
            budget = left > 0 ? (uint64_t)left : 0;
        }
        *n_pages = (uint32_t)(budget / whole_page / n_sharing);
    }
    if (*n_pages < 2) {
        snprintf(
            error->s, sizeof(error->s),
            "CUDA: %.1f GB free of %.1f leave no room for KV pages of %zu KiB beside %.1f GB of "
            "weights%s: raise --gpu-memory-utilization or take a smaller model",
            (double)free_bytes / 1e9, (double)total_bytes / 1e9, whole_page / 1024,
            (double)weights_estimate(d) * d->options.n_weights * n_sharing / 1e9,
            d->options.n_weights > 1 ? " (two sets, --reserve-weights)" : "");
        return -ENOMEM;
    }
    return 0;
}

int ll_cuda_make_kv(struct ll_device *d, uint32_t n_pages, struct ll_text *error)
{
    const struct ll_model_shape *m = &d->shape;
    const struct ll_backend_options *o = &d->options;
    const size_t whole_page = d->page_bytes * m->n_layers;

    d->n_pages = n_pages;
    cudaError_t s = cudaMalloc(&d->kv, d->n_pages * whole_page);
    if (s == cudaSuccess)
        s = cudaMemset(d->kv, 0, d->n_pages * whole_page);
    /* Partial results of split decode rows: as many as all cached tokens give,
     * twice because rows may share pages, and one a row. */
    d->layout.n_items_max =
        (uint32_t)(2ull * d->n_pages * LL_PAGE_TOKENS / LL_CUDA_SPLIT_MIN) + o->n_rows_max + 1;
    if (s == cudaSuccess)
        s = cudaMalloc((void **)&d->partial,
                       (size_t)d->layout.n_items_max * m->n_kv_heads *
                           ll_cuda_partial_floats(m->n_heads / m->n_kv_heads, m->head_dim) * 4);
    d->n_host_pages = o->n_host_pages;
    if (s == cudaSuccess && d->n_host_pages > 0)
        s = cudaHostAlloc((void **)&d->kv_host, d->n_host_pages * whole_page, cudaHostAllocDefault);
    return s == cudaSuccess ? 0 : ll_cuda_fail(error, "KV pages", s);
}

void ll_cuda_part_close(struct ll_device *d)
{
    if (d == NULL)
        return;
    cudaSetDevice(d->gpu);
    cudaDeviceSynchronize();
    if (d->is_led) { /* rank 0's */
        memset(&d->tables, 0, sizeof(d->tables));
        d->stream = NULL;
    }
    if (d->logits_all == d->logits)
        d->logits_all = NULL;
    ll_cuda_unpin(d);
    for (uint32_t i = 0; i < d->n_graphs; i++)
        cudaGraphExecDestroy(d->graph[i].exec);
    ll_cuda_weights_free(d);
    ll_gemm_close(&d->gemm);
    struct ll_cuda_tables *t = &d->tables;
    void *const device[] = {
        t->counts,         t->step,    t->begin_ns,  t->token_id, t->token_pos,  t->token_slot,
        t->logits,         t->decode,  t->tiles,     t->slots,    t->page_table, t->penalty,
        t->bias,           d->kv,      d->rope,      d->x,        d->h,          d->qkv,
        d->attn,           d->delta,   d->gate_up,   d->act,      d->gathered,   d->h_scale,
        d->act_scale,      d->logits,  d->partial,   d->arrived,  d->convert,    d->skinny_partial,
        d->skinny_arrived, d->widened, d->logits_all};
    void *const host[] = {d->areas,           d->results,         d->done,
                          d->kv_host,         d->slot_staging[0], d->slot_staging[1],
                          d->slot_staging[2], d->slot_staging[3]};
    for (size_t i = 0; i < LL_COUNT(device); i++)
        cudaFree(device[i]);
    for (size_t i = 0; i < LL_COUNT(host); i++)
        cudaFreeHost(host[i]);
    for (uint32_t i = 0; i < LL_CUDA_AREAS; i++)
        if (d->slot_copied[i] != NULL)
            cudaEventDestroy(d->slot_copied[i]);
    for (uint32_t i = 0; i < LL_CUDA_COPIES_MAX; i++) {
        if (d->copy_event[i] != NULL)
            cudaEventDestroy(d->copy_event[i]);
        if (d->feed_event[i] != NULL)
            cudaEventDestroy(d->feed_event[i]);
    }
    if (d->batch_event != NULL)
        cudaEventDestroy(d->batch_event);
    cudaStream_t streams[] = {d->stream, d->copy_stream, d->load_stream};
    for (size_t i = 0; i < LL_COUNT(streams); i++)
        if (streams[i] != NULL)
            cudaStreamDestroy(streams[i]);
    free(d);
}

int ll_cuda_part_open(struct ll_device **out, const struct ll_backend_options *options,
                      const struct ll_model_shape *shape, struct ll_cuda_tp *tp, uint32_t rank,
                      struct ll_backend_caps *caps, struct ll_text *error)
{
    int rc = check_shape(options, shape, error);

    if (rc < 0)
        return rc;
    struct ll_device *d = calloc(1, sizeof(*d));
    if (d == NULL)
        return ll_cuda_no_memory(error, "the backend");
    d->options = *options;
    if (d->options.n_weights == 0)
        d->options.n_weights = 1;
    d->shape = *shape;
    d->tp = tp;
    d->rank = rank;
    d->is_led = tp != NULL && rank > 0 && tp->form == LL_TP_LOCKSTEP;
    d->n_vocab_all = tp != NULL ? tp->whole.n_vocab : shape->n_vocab;
    d->n_vocab_padded =
        ll_cuda_rank_vocab(tp != NULL ? &tp->whole : shape, tp != NULL ? tp->n_parts : 1);
    d->is_fp8_dummy = ll_cuda_has_extra(options, "weights=fp8");
    d->has_skinny = !options->is_deterministic && !ll_cuda_has_extra(options, "skinny=0");
    d->has_wgmma = d->has_skinny && !ll_cuda_has_extra(options, "wgmma=0");
    d->activation_max = options->activation_max > 0 ? options->activation_max : INFINITY;
    d->has_graphs = !ll_cuda_has_extra(options, "graph=0");
    d->is_kv_fp8 = options->kv_dtype == LL_DTYPE_E4M3;
    rc = choose_device(d, caps, error);
    if (rc < 0)
        goto close_device;
    for (uint32_t i = 0; i < d->options.n_weights && i < 2; i++) {
        d->weights[i].layer = calloc(shape->n_layers, sizeof(struct ll_cuda_layer));
        if (d->weights[i].layer == NULL) {
            rc = ll_cuda_no_memory(error, "the table of layers");
            goto close_device;
        }
    }
    cudaError_t s = cudaSuccess;
    if (d->is_led)
        d->stream = tp->part[0]->stream;
    else
        s = cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking);
    if (s == cudaSuccess)
        s = cudaStreamCreateWithFlags(&d->copy_stream, cudaStreamNonBlocking);
    if (s == cudaSuccess)
        s = cudaStreamCreateWithFlags(&d->load_stream, cudaStreamNonBlocking);
    if (s != cudaSuccess) {
        rc = ll_cuda_fail(error, "stream", s);
        goto close_device;
    }
    rc = ll_gemm_open(&d->gemm, error);
    d->gemm.is_fixed = options->is_deterministic;
    if (rc < 0 || (rc = make_host_memory(d, error)) < 0 || (rc = make_tables(d, error)) < 0 ||
        (rc = make_activations(d, error)) < 0 || (rc = make_rope(d, error)) < 0)
        goto close_device;
    /* Memory is cleared on the default stream, which ours do not wait for. */
    s = cudaDeviceSynchronize();
    if (s != cudaSuccess) {
        rc = ll_cuda_fail(error, "open", s);
        goto close_device;
    }
    *out = d;
    return 0;

close_device:
    ll_cuda_part_close(d);
    return rc;
}

void ll_cuda_add_caps(const struct ll_device *d, struct ll_backend_caps *caps)
{
    const uint64_t page = d->page_bytes * d->shape.n_layers;

    caps->n_pages = d->n_pages;
    caps->n_host_pages = d->n_host_pages;
    caps->weights_bytes += weights_estimate(d);
    caps->kv_bytes += d->n_pages * page;
    caps->host_kv_bytes += d->n_host_pages * page;
}

static int backend_open(struct ll_device **out, const struct ll_backend_options *options,
                        const struct ll_model_shape *shape, struct ll_backend_caps *caps,
                        struct ll_text *error)
{
    struct ll_device *d;
    uint32_t n_pages;

    *caps = (struct ll_backend_caps){.depth = 2, .n_ranks = 1};
    if (options->tensor_parallel > 1)
        return ll_cuda_tp_open(out, options, shape, caps, error);
    int rc = ll_cuda_part_open(&d, options, shape, NULL, 0, caps, error);
    if (rc < 0)
        return rc;
    if ((rc = ll_cuda_plan_pages(d, 1, &n_pages, error)) < 0 ||
        (rc = ll_cuda_make_kv(d, n_pages, error)) < 0) {
        ll_cuda_part_close(d);
        return rc;
    }
    cudaError_t s = cudaDeviceSynchronize();
    if (s != cudaSuccess) {
        ll_cuda_part_close(d);
        return ll_cuda_fail(error, "open", s);
    }
    ll_cuda_add_caps(d, caps);
    *out = d;
    return 0;
}

const struct ll_backend *ll_backend_cuda(void)
{
    static const struct ll_backend backend = {
        .abi = LL_BACKEND_ABI,
        .name = "cuda",
        .open = backend_open,
        .close = ll_cuda_tp_close,
        .begin = ll_cuda_tp_begin,
        .want = ll_cuda_tp_want,
        .pin = ll_cuda_pin,
        .feed = ll_cuda_tp_feed,
        .fed = ll_cuda_tp_fed,
        .seal = ll_cuda_tp_seal,
        .submit = ll_cuda_submit,
        .poll = ll_cuda_poll,
        .copy = ll_cuda_tp_copy,
        .copied = ll_cuda_tp_copied,
    };
    return &backend;
}
