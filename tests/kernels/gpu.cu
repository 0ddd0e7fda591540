/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/gpu.cu - kernels that only tests need: reading as fast as the memory allows,
 * running for ever, writing where nothing is. */
#include "tests/kernels/gpu.h"

#include <errno.h>

__global__ void __launch_bounds__(1024) read_kernel(const uint4 *x, size_t n, uint32_t *out)
{
    uint4 sum = make_uint4(0, 0, 0, 0);

    for (size_t i = blockIdx.x * (size_t)1024 + threadIdx.x; i < n; i += (size_t)gridDim.x * 1024) {
        const uint4 v = __ldcs(x + i);
        sum.x ^= v.x;
        sum.y ^= v.y;
        sum.z ^= v.z;
        sum.w ^= v.w;
    }
    if ((sum.x ^ sum.y ^ sum.z ^ sum.w) == 0x12345678u) /* or the loads were for nothing */
        *out = 1;
}

__global__ void spin_kernel(volatile uint32_t *flag)
{
    while (*flag != 0xabcdu) /* nobody ever writes it */
        ;
}

__global__ void delay_kernel(uint64_t ns)
{
    uint64_t from, now;

    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(from));
    do
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    while (now - from < ns);
}

__global__ void write_kernel(volatile uint32_t *at)
{
    *at = 1;
}

__global__ void empty_kernel() {}

extern "C" int ll_test_gpu_read(const void *x, size_t n_bytes, uint32_t *out, cudaStream_t stream)
{
    read_kernel<<<2112, 1024, 0, stream>>>((const uint4 *)x, n_bytes / 16, out);
    return cudaGetLastError() == cudaSuccess ? 0 : -EIO;
}

extern "C" int ll_test_gpu_hang(uint32_t *flag, cudaStream_t stream)
{
    spin_kernel<<<1, 32, 0, stream>>>(flag);
    return cudaGetLastError() == cudaSuccess ? 0 : -EIO;
}

extern "C" int ll_test_gpu_wild_write(cudaStream_t stream)
{
    write_kernel<<<1, 1, 0, stream>>>((uint32_t *)0x10);
    return cudaGetLastError() == cudaSuccess ? 0 : -EIO;
}

extern "C" int ll_test_gpu_delay(uint64_t ns, cudaStream_t stream)
{
    delay_kernel<<<1, 1, 0, stream>>>(ns);
    return cudaGetLastError() == cudaSuccess ? 0 : -EIO;
}

extern "C" int ll_test_gpu_nothing(cudaStream_t stream)
{
    empty_kernel<<<1, 32, 0, stream>>>();
    return cudaGetLastError() == cudaSuccess ? 0 : -EIO;
}
