/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/cuda_module.h - the CUDA backend of this build, opened as llringd opens it. */
#ifndef TESTS_KERNELS_CUDA_MODULE_H
#define TESTS_KERNELS_CUDA_MODULE_H

#include "kernels/backend.h"

#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>

/* NULL, and it is said, where there is no module or no GPU. The module stays open. */
static inline const struct ll_backend *cuda_module(void)
{
    void *module = dlopen(LL_BUILD_DIR "/llring-cuda.so", RTLD_NOW | RTLD_LOCAL);
    const struct ll_backend *(*get)(void) = NULL;

    if (module != NULL)
        *(void **)&get = dlsym(module, "ll_backend_cuda");
    if (get == NULL || access("/dev/nvidiactl", F_OK) != 0) {
        printf("skipped: no CUDA module or no GPU\n");
        return NULL;
    }
    return get();
}

#endif
