/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/step.cu - first and last kernel of a step: tables in, step number out.
 *
 * begin reads the mapped batch area (8 to ~100 KB over PCIe, once) and is the only kernel that
 * does. Tables are padded to the bucket with "none". Latency bound: a launch, then
 * bytes over PCIe (not measured alone). */
#include "kernels/cuda/common.cuh"

static constexpr int THREADS = 256;

/* Block 0 alone, so that inits, page sets and the ids that depend on them stay ordered. */
__device__ static void apply_changes(const ll_cuda_tables &t, const unsigned char *area,
                                     const ll_cuda_layout &l, const ll_cuda_counts &counts)
{
    const ll_cuda_init *inits = reinterpret_cast<const ll_cuda_init *>(area + l.inits);
    const ll_cuda_pages *sets = reinterpret_cast<const ll_cuda_pages *>(area + l.sets);
    const uint32_t *ids = reinterpret_cast<const uint32_t *>(area + l.page_ids);

    for (uint32_t i = threadIdx.x / 32; i < counts.n_inits; i += THREADS / 32) {
        const uint32_t *from = reinterpret_cast<const uint32_t *>(&inits[i].value);
        uint32_t *to = reinterpret_cast<uint32_t *>(&t.slots[inits[i].slot]);
        for (uint32_t w = threadIdx.x % 32; w < sizeof(ll_cuda_slot) / 4; w += 32)
            to[w] = from[w];
    }
    for (uint32_t i = threadIdx.x / 32; i < counts.n_page_sets; i += THREADS / 32) {
        uint32_t *row = t.page_table + (size_t)sets[i].slot * t.pages_per_seq + sets[i].first;
        for (uint32_t w = threadIdx.x % 32; w < sets[i].n; w += 32)
            row[w] = ids[sets[i].offset + w];
    }
}

__global__ void __launch_bounds__(THREADS)
    begin_kernel(const ll_cuda_tables t, const unsigned char *areas, const ll_cuda_layout l,
                 uint32_t n_tokens, uint32_t n_logits)
{
    pdl_release();
    pdl_wait();
    const unsigned char *area = areas + (size_t)(*t.step % LL_CUDA_AREAS) * l.bytes;
    const ll_cuda_counts counts = *reinterpret_cast<const ll_cuda_counts *>(area);

    if (blockIdx.x == 0) {
        if (threadIdx.x == 0) {
            *t.counts = counts;
            *t.begin_ns = now_ns();
        }
        apply_changes(t, area, l, counts);
        __syncthreads();
        /* Ids: a host id, or what the device sampled last for the slot (slots are settled now). */
        const uint32_t *id = reinterpret_cast<const uint32_t *>(area + l.token_id);
        const uint32_t *slot = reinterpret_cast<const uint32_t *>(area + l.token_slot);
        for (uint32_t i = threadIdx.x; i < n_tokens; i += THREADS) {
            uint32_t s = i < counts.n_tokens ? slot[i] : LL_CUDA_NONE;
            uint32_t v = s != LL_CUDA_NONE ? id[i] : 0;
            if (s != LL_CUDA_NONE && v == LL_CUDA_NONE)
                v = t.slots[s].last_token;
            t.token_id[i] = v;
            t.token_slot[i] = s;
        }
        return;
    }
    /* Other blocks: tables that depend on nothing. blockIdx 1.. of gridDim - 1. */
    const uint32_t stride = (gridDim.x - 1) * THREADS;
    const uint32_t first = (blockIdx.x - 1) * THREADS + threadIdx.x;
    const uint32_t *pos = reinterpret_cast<const uint32_t *>(area + l.token_pos);
    for (uint32_t i = first; i < n_tokens; i += stride)
        t.token_pos[i] = i < counts.n_tokens ? pos[i] : 0;
    const ll_cuda_logit *logits = reinterpret_cast<const ll_cuda_logit *>(area + l.logits);
    for (uint32_t i = first; i < n_logits; i += stride) {
        if (i < counts.n_logits)
            t.logits[i] = logits[i];
        else
            t.logits[i].token = LL_CUDA_NONE;
    }
    const ll_cuda_decode *decode = reinterpret_cast<const ll_cuda_decode *>(area + l.decode);
    for (uint32_t i = first; i < counts.n_decode; i += stride)
        t.decode[i] = decode[i];
    const ll_cuda_tile *tiles = reinterpret_cast<const ll_cuda_tile *>(area + l.tiles);
    for (uint32_t i = first; i < counts.n_tiles; i += stride)
        t.tiles[i] = tiles[i];
}

__global__ void end_kernel(const ll_cuda_tables t, ll_cuda_done *done)
{
    pdl_release();
    pdl_wait();
    const uint32_t step = *t.step + 1;
    const uint64_t now = now_ns();

    done->device_ns[*t.step % LL_CUDA_AREAS] = now - *t.begin_ns;

    *t.step = step;
    /* All kernels before this one are complete, so their results are performed; the release at
     * system scope, paired with the host's acquire load in cuda_step.c, makes them visible. */
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(&done->step), "r"(step) : "memory");
}

extern "C" int ll_cuda_step_begin(const struct ll_cuda_tables *tables, const unsigned char *areas,
                                  const struct ll_cuda_layout *layout, uint32_t n_tokens,
                                  uint32_t n_logits, cudaStream_t stream)
{
    const uint32_t n_blocks = 2 + n_tokens / 1024;

    return launch_chained(begin_kernel, n_blocks, THREADS, 0, stream, *tables, areas, *layout,
                          n_tokens, n_logits);
}

extern "C" int ll_cuda_step_end(const struct ll_cuda_tables *tables, struct ll_cuda_done *done,
                                cudaStream_t stream)
{
    return launch_chained(end_kernel, 1, 1, 0, stream, *tables, done);
}
