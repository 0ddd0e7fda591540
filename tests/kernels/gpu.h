/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/gpu.h - launchers of gpu.cu; 0 or -EIO. */
#ifndef TESTS_KERNELS_GPU_H
#define TESTS_KERNELS_GPU_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

int ll_test_gpu_read(const void *x, size_t n_bytes, uint32_t *out, cudaStream_t stream);
/* Never ends; flag: device memory that stays as it is, not 0xabcd. */
int ll_test_gpu_hang(uint32_t *flag, cudaStream_t stream);
int ll_test_gpu_wild_write(cudaStream_t stream);
int ll_test_gpu_delay(uint64_t ns, cudaStream_t stream);
int ll_test_gpu_nothing(cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
