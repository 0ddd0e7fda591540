/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/cuda_fault.c - faults of a device, for the test build of the CUDA module alone.
 *
 * LL_CUDA_FAULT=hang@N or address@N: with step N an endless kernel, or a write to an address that
 * nothing has, goes onto the step's stream. Compiled in only with -DLL_CUDA_FAULTS. */
#include "kernels/cuda/device.h"
#include "tests/kernels/gpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int ll_cuda_fault(struct ll_device *d)
{
    const char *fault = getenv("LL_CUDA_FAULT");
    const char *at = fault != NULL ? strchr(fault, '@') : NULL;

    if (at == NULL || d->n_submitted + 1 != atoll(at + 1))
        return 0;
    if (strncmp(fault, "hang@", 5) == 0)
        return ll_test_gpu_hang(d->arrived, d->stream);
    return strncmp(fault, "address@", 8) == 0 ? ll_test_gpu_wild_write(d->stream) : -EINVAL;
}
