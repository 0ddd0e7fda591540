/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/nccl.h"

#include "ll/client.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* As NCCL's header has them (2.x). */
enum { NCCL_SUCCESS = 0, NCCL_BFLOAT16 = 9, NCCL_SUM = 0 };

static struct { /* one library a process */
    int (*init_all)(void **comms, int n, const int *devices);
    int (*all_reduce)(const void *from, void *to, size_t n, int type, int op, void *comm,
                      cudaStream_t stream);
    int (*destroy)(void *comm);
    const char *(*words)(int result);
} calls;

static int load(struct ll_nccl *nccl, struct ll_text *error)
{
    const struct {
        void **at;
        const char *name;
    } names[] = {
        {(void **)&calls.init_all, "ncclCommInitAll"},
        {(void **)&calls.all_reduce, "ncclAllReduce"},
        {(void **)&calls.destroy, "ncclCommDestroy"},
        {(void **)&calls.words, "ncclGetErrorString"},
    };

    nccl->module = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (nccl->module == NULL) {
        snprintf(error->s, sizeof(error->s),
                 "CUDA: several GPUs need NCCL: libnccl.so.2 cannot be opened (%.200s); install "
                 "libnccl2, or use one GPU",
                 dlerror());
        return LL_E_UNSUPPORTED;
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        *names[i].at = dlsym(nccl->module, names[i].name);
        if (*names[i].at == NULL) {
            snprintf(error->s, sizeof(error->s), "CUDA: libnccl.so.2 has no %s", names[i].name);
            return LL_E_UNSUPPORTED;
        }
    }
    return 0;
}

int ll_nccl_open(struct ll_nccl *nccl, uint32_t n_ranks, const int *gpu, struct ll_text *error)
{
    const char *nvls = getenv("NCCL_NVLS_ENABLE");

    memset(nccl, 0, sizeof(*nccl));
    if (nvls != NULL && strcmp(nvls, "0") != 0) {
        snprintf(error->s, sizeof(error->s),
                 "CUDA: NCCL_NVLS_ENABLE=%.20s: NVLink multicast is not used here; unset it", nvls);
        return LL_E_INVAL;
    }
    /* Connections are made now, not by the first sum of a size, which may be inside a capture. */
    if (setenv("NCCL_NVLS_ENABLE", "0", 1) < 0 || setenv("NCCL_RUNTIME_CONNECT", "0", 1) < 0)
        return -ENOMEM;
    int rc = load(nccl, error);
    if (rc < 0) {
        ll_nccl_close(nccl);
        return rc;
    }
    rc = calls.init_all(nccl->comm, (int)n_ranks, gpu);
    if (rc != NCCL_SUCCESS) {
        snprintf(error->s, sizeof(error->s), "CUDA: NCCL init: %.200s", calls.words(rc));
        memset(nccl->comm, 0, sizeof(nccl->comm));
        ll_nccl_close(nccl);
        return -EIO;
    }
    nccl->n_ranks = n_ranks;
    return 0;
}

void ll_nccl_close(struct ll_nccl *nccl)
{
    for (uint32_t r = 0; r < nccl->n_ranks; r++)
        if (nccl->comm[r] != NULL)
            calls.destroy(nccl->comm[r]);
    if (nccl->module != NULL)
        dlclose(nccl->module);
    memset(nccl, 0, sizeof(*nccl));
}

int ll_nccl_sum(const struct ll_nccl *nccl, uint32_t rank, void *data, size_t n,
                cudaStream_t stream, struct ll_text *error)
{
    int rc = calls.all_reduce(data, data, n, NCCL_BFLOAT16, NCCL_SUM, nccl->comm[rank], stream);

    if (rc == NCCL_SUCCESS)
        return 0;
    snprintf(error->s, sizeof(error->s), "CUDA: NCCL sum on rank %u: %.200s", rank,
             calls.words(rc));
    return -EIO;
}
