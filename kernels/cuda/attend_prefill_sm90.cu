/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/attend_prefill_sm90.cu - attention of a prompt chunk over its cached pages, by
 * wgmma.
 *
 *   out[t, h] = sum_j softmax_j(q[t, h] . k[j] * scale) v[j],  j <= position of t
 *
 * A tile is up to 128 rows, each a (token, head of the KV head's group) pair, r = token * G + head.
 * Blocks stay and take tiles from a counter, the longest first. Two warpgroups of consumers hold 64
 * rows each; the producer brings K and V of 128 cached tokens (two pages) at a time, from the
 * newest back to the first, and runs ahead into the next tile. S = Q K^T and O += P V run on the
 * tensor cores while the other warpgroup does its softmax; P stays in registers.
 *
 *   bf16 cache: boxes of 64 tokens x 64 dims come by the copy engine, swizzled on the way
 *   e4m3 cache: pages come raw; the producer's warps widen them to fp16 (exact), so Q and P are
 *               fp16 too
 *
 * Borders of cached tiles lie at multiples of 128 positions and a tile whose tokens a row does not
 * see changes nothing of it: a row's bits depend neither on the batch nor on where its chunk began.
 * Compute bound: 4 D flops a (query row, cached token). Reference: kernels/cpu; on older GPUs
 * attend_prefill.cu. This file is the kernel and its launcher; attend_prefill_sm90.cuh has what a
 * block's warps share, attend_prefill_produce.cuh and attend_prefill_consume.cuh their two parts.
 */
#include "kernels/cuda/attend_prefill_consume.cuh"
#include "kernels/cuda/attend_prefill_produce.cuh"

template <int D, bool FP8>
__global__ void __launch_bounds__(prefill_threads(FP8), 1)
    prefill_sm90_kernel(const __grid_constant__ CUtensorMap map, const ll_cuda_tables t,
                        const bf16 *__restrict__ qkv, const unsigned char *kv,
                        const float *__restrict__ kv_scale, bf16 *__restrict__ out,
                        uint32_t n_heads, uint32_t n_kv_heads, float scale)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char shared[];
    __shared__ prefill_shared sh;
    unsigned char *smem = shared + (1024 - (smem_address(shared) & 1023)) % 1024;

    if (threadIdx.x == 0) {
        for (int i = 0; i < KV_STAGES; i++) {
            barrier_init(&sh.k_full[i], FP8 ? 4 * WIDENERS : 1); /* a lane of each warp */
            barrier_init(&sh.v_full[i], FP8 ? 4 * WIDENERS : 1);
            barrier_init(&sh.k_free[i], 8);
            barrier_init(&sh.v_free[i], 8);
        }
        for (int i = 0; i < RAW_STAGES; i++)
            barrier_init(&sh.raw_full[i], 1);
        for (int i = 0; i < 2; i++) {
            barrier_init(&sh.work_full[i], 1);
            barrier_init(&sh.work_free[i], 8 + (FP8 ? 4 * WIDENERS : 0));
        }
        barrier_init_done();
    }
    __syncthreads();
    pdl_wait();

    /* From lane 0, so that the compiler sees that a warp goes one way. */
    if (__shfl_sync(~0u, threadIdx.x / 128, 0) >= 2) {
        registers_give<FP8 ? 104 : 40>();
        if constexpr (FP8)
            produce_e4m3<D>(kv, t, n_kv_heads, smem, sh);
        else if (threadIdx.x == 256)
            produce_bf16<D>(&map, t, n_kv_heads, smem, sh);
    } else {
        registers_take<FP8 ? 200 : 232>();
        const uint32_t n_group = n_heads / n_kv_heads;
        const prefill_model model = {
            qkv,  out, kv_scale, n_heads, n_kv_heads, n_group, (65536 + n_group - 1) / n_group,
            scale};
        uint4 q[D / 16];
        uint32_t at = 0;
        prefill_work work = work_get(sh, 0);
        if (!FP8 && work.tile.n_tokens != 0)
            load_q<D>(q, model, work);
        for (uint32_t item = 0; work.tile.n_tokens != 0; item++) {
            const prefill_range range(t, work, n_kv_heads);
            consume_tile<D, FP8>(model, work, q, item, at, range, smem, sh);
            at += range.n_turns;
        }
    }
#endif
}

/* The layer's pages as [rows][D], in boxes of 64 x 64. */
static int make_map(CUtensorMap *map, const struct ll_cuda_attend_args *a)
{
    const PFN_cuTensorMapEncodeTiled_v12000 encode = tensor_map_encoder();
    const cuuint64_t size[2] = {a->head_dim, 1ull << 31}, pitch[1] = {(cuuint64_t)a->head_dim * 2};
    const cuuint32_t box[2] = {ATOM, TILE}, step[2] = {1, 1};

    if (encode == nullptr)
        return -EIO;
    return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, a->kv, size, pitch, box, step,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS
               ? 0
               : -EIO;
}

/* One block an SM; fewer where the caller wants a smaller grid. */
static uint32_t n_blocks_most(const struct ll_cuda_attend_args *a)
{
    static const uint32_t n_sm = [] {
        int device = 0, n = 0;
        const bool is_known =
            cudaGetDevice(&device) == cudaSuccess &&
            cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
        return is_known ? (uint32_t)n : 0u;
    }(); /* of all GPUs of a process, which are of one kind */
    return a->n_blocks > 0 && a->n_blocks < n_sm ? a->n_blocks : n_sm;
}

template <int D, bool FP8>
static int launch(const struct ll_cuda_attend_args *a, cudaStream_t stream)
{
    constexpr int BYTES = prefill_smem<D, FP8>::BYTES;
    auto kernel = prefill_sm90_kernel<D, FP8>;
    const uint32_t n_work = a->n_tiles * a->n_kv_heads;
    const uint32_t n_most = n_blocks_most(a), n_blocks = n_work < n_most ? n_work : n_most;
    CUtensorMap map = {};

    if (!FP8 && make_map(&map, a) < 0)
        return -EIO;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES) !=
        cudaSuccess)
        return -EIO;
    return launch_chained(kernel, n_blocks, prefill_threads(FP8), BYTES, stream, map, *a->tables,
                          (const bf16 *)a->qkv, (const unsigned char *)a->kv, a->kv_scale,
                          (bf16 *)a->out, a->n_heads, a->n_kv_heads, a->scale);
}

extern "C" int ll_cuda_attend_prefill_sm90(const struct ll_cuda_attend_args *a, cudaStream_t stream)
{
    if (a->head_dim == 128)
        return a->is_kv_fp8 ? launch<128, true>(a, stream) : launch<128, false>(a, stream);
    return a->is_kv_fp8 ? launch<64, true>(a, stream) : launch<64, false>(a, stream);
}
