/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/cuda_sets.c - a second set of weights, loaded beside running steps (backend.h B9).
 *
 *   S1  all that two sets need is allocated with the first load, in the same forms: weights, scales
 *       and common graphs. Graphs hold addresses, and these never change, so that one captured
 *       before a reload is right after it
 *   S2  after the first seal a load touches its own set's memory and host copies of scales, the
 *       load stream, the feed events and its staging. Streams, graphs, activations and the tuner
 *       are the step thread's
 *   S3  a load that needs what was not allocated (block scales, scales of the cache) is refused;
 *       one that has no use for what there is finds it at 1 */
#include "kernels/cuda/cuda_scales.h"
#include "kernels/cuda/device.h"

#include "ll/client.h"

#include <stdio.h>

/* S3. */
static void reset_scales(struct ll_device *d, struct ll_cuda_weights *w)
{
    const size_t n_kv = (size_t)d->shape.n_layers * 2 * d->shape.n_kv_heads;

    for (size_t i = 0; w->kv_scale_host != NULL && i < n_kv; i++)
        w->kv_scale_host[i] = 1.0f;
    for (uint32_t i = 0; w->layer != NULL && i < d->shape.n_layers; i++) {
        ll_cuda_scale_reset(&w->layer[i].qkv);
        ll_cuda_scale_reset(&w->layer[i].o);
        ll_cuda_scale_reset(&w->layer[i].gate_up);
        ll_cuda_scale_reset(&w->layer[i].down);
    }
}

int ll_cuda_begin(struct ll_device *d, uint32_t weights, struct ll_text *error)
{
    if (weights >= d->options.n_weights) {
        snprintf(error->s, sizeof(error->s), "CUDA: weight set %u of %u", weights,
                 d->options.n_weights);
        return LL_E_INVAL;
    }
    cudaError_t s = cudaSetDevice(d->gpu); /* which a thread has for itself */
    if (s != cudaSuccess)
        return ll_cuda_fail(error, "device", s);
    d->loading = weights;
    d->weights[weights].is_sealed = false;
    d->weights[weights].n_fed = d->weights[weights].n_due = 0;
    reset_scales(d, &d->weights[weights]);
    return 0;
}

int ll_cuda_set_lacks(struct ll_text *error, const char *what)
{
    snprintf(error->s, sizeof(error->s),
             "CUDA: has %s, which the weights of the start have not, so that the second set was "
             "reserved without: start llringd with these weights",
             what);
    return LL_E_UNSUPPORTED;
}
