/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/tp_peer.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/log.h"
#include "kernels/cuda/tp.h"
#include "ll/client.h"

#include <ctype.h>
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPIN_NS (100u * 1000) /* before a worker sleeps */

/* Which form a sum takes, by its bytes: kernels/README.md has the table. One shot sends each byte
 * to N - 1 others, so its limit falls with N; inbox: what a rank may send one other rank, N times
 * that in two shots where it is more than one shot's; NCCL above. */
struct limits {
    size_t one_shot, inbox;
};

static struct limits limits_of(uint32_t n_ranks)
{
    if (n_ranks == 2)
        return (struct limits){32u << 20, 32u << 20}; /* two shots move as many bytes */
    if (n_ranks == 4)
        return (struct limits){512u << 10, 4u << 20};
    return (struct limits){256u << 10, 4u << 20};
}

/* ---- checks -----------------------------------------------------------------------------------*/
int ll_tp_peer_check(uint32_t n, int first, struct ll_text *error)
{
    struct cudaDeviceProp one, other;
    int n_gpus = 0;
    cudaError_t s = cudaGetDeviceCount(&n_gpus);

    if (s != cudaSuccess || n_gpus - first < (int)n) {
        snprintf(error->s, sizeof(error->s),
                 "CUDA: --tensor-parallel-size %u needs as many GPUs, there are %d%s (%s)", n,
                 s != cudaSuccess ? 0 : n_gpus - first, first > 0 ? " from the chosen one on" : "",
                 s != cudaSuccess ? cudaGetErrorString(s)
                                  : "CUDA_VISIBLE_DEVICES says which are seen");
        return LL_E_UNSUPPORTED;
    }
    if ((s = cudaGetDeviceProperties(&one, first)) != cudaSuccess)
        return ll_cuda_fail(error, "device", s);
    for (int a = first; a < first + (int)n; a++) {
        if ((s = cudaGetDeviceProperties(&other, a)) != cudaSuccess)
            return ll_cuda_fail(error, "device", s);
        if (strcmp(one.name, other.name) != 0 ||
            one.multiProcessorCount != other.multiProcessorCount) {
            snprintf(error->s, sizeof(error->s),
                     "CUDA: --tensor-parallel-size %u takes GPUs of one kind: GPU %d is a %.60s "
                     "with %d SMs, GPU %d a %.60s with %d; choose with CUDA_VISIBLE_DEVICES",
                     n, first, one.name, one.multiProcessorCount, a, other.name,
                     other.multiProcessorCount);
            return LL_E_UNSUPPORTED;
        }
        for (int b = first; b < first + (int)n; b++) {
            int can = 1;
            if (a != b)
                s = cudaDeviceCanAccessPeer(&can, a, b);
            if (s != cudaSuccess || !can) {
                snprintf(error->s, sizeof(error->s),
                         "CUDA: --tensor-parallel-size %u: GPU %d cannot reach the memory of GPU "
                         "%d (no peer access): GPUs with NVLink are needed",
                         n, a, b);
                return LL_E_UNSUPPORTED;
            }
        }
    }
    return 0;
}

/* ---- workers ----------------------------------------------------------------------------------*/
static void futex(_Atomic uint32_t *word, int op, uint32_t value)
{
    syscall(SYS_futex, (uint32_t *)word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* CPUs near a GPU, as sysfs writes them. */
static void find_cpus(char *out, size_t size, int gpu)
{
    char id[32], path[96];

    out[0] = 0;
    if (cudaDeviceGetPCIBusId(id, sizeof(id), gpu) != cudaSuccess)
        return;
    for (char *c = id; *c != 0; c++)
        *c = (char)tolower((unsigned char)*c);
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/local_cpulist", id);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return;
    if (fgets(out, (int)size, file) == NULL)
        out[0] = 0;
    out[strcspn(out, "\n")] = 0;
    fclose(file);
}

/* Best effort: a worker elsewhere is a little later, no more. */
static void pin_to(const char *cpus)
{
    cpu_set_t set;
    CPU_ZERO(&set);

    for (const char *at = cpus; *at != 0;) {
        char *end;
        unsigned long from = strtoul(at, &end, 10), to = from;
        if (end == at)
            return;
        if (*end == '-')
            to = strtoul(end + 1, &end, 10);
        for (unsigned long c = from; c <= to && c < CPU_SETSIZE; c++)
            CPU_SET(c, &set);
        at = *end == ',' ? end + 1 : end;
        if (*end != ',' && *end != 0)
            return;
    }
    if (CPU_COUNT(&set) > 0)
        sched_setaffinity(0, sizeof(set), &set);
}

/* Until something is posted; false: the end. */
static bool await_post(struct ll_tp_worker *w, uint32_t taken)
{
    const uint64_t from_ns = ll_now_ns();

    for (;;) {
        /* Acquire, pairs with the release in ll_tp_peer_post: the size is there. */
        if (atomic_load_explicit(&w->posted, memory_order_acquire) != taken)
            return true;
        /* Relaxed: nothing comes with it. */
        if (atomic_load_explicit(&w->is_ending, memory_order_relaxed))
            return false;
        if (ll_now_ns() - from_ns < SPIN_NS) {
            ll_cpu_relax();
            continue;
        }
        /* Sequentially consistent, as the poster's store of posted and load of is_asleep: one of
         * the two sees the other's, so no post is slept over. */
        atomic_store(&w->is_asleep, 1);
        if (atomic_load(&w->posted) == taken && !atomic_load(&w->is_ending))
            futex(&w->posted, FUTEX_WAIT, taken);
        atomic_store(&w->is_asleep, 0);
    }
}

static void *worker_main(void *argument)
{
    struct ll_tp_worker *w = argument;
    struct ll_device *d = w->part;
    uint32_t taken = 0;

    pin_to(w->cpus);
    cudaSetDevice(d->gpu);
    while (await_post(w, taken)) {
        const struct ll_cuda_size size = w->size[taken % LL_TP_POSTS];
        const int rc = ll_cuda_launch(d, &size, &w->error);
        /* Release, pairs with the acquires in post and health: the launch is made, or the error's
         * text is there. */
        if (rc < 0) {
            atomic_store_explicit(&w->rc, rc, memory_order_release);
            return NULL;
        }
        atomic_store_explicit(&w->taken, ++taken, memory_order_release);
    }
    return NULL;
}

static int start_worker(struct ll_tp_worker *w, struct ll_device *part, struct ll_text *error)
{
    w->part = part;
    find_cpus(w->cpus, sizeof(w->cpus), part->gpu);
    int rc = pthread_create(&w->thread, NULL, worker_main, w);
    if (rc != 0) {
        snprintf(error->s, sizeof(error->s), "a thread for rank %u: %s", part->rank, strerror(rc));
        return -rc;
    }
    char name[16];
    snprintf(name, sizeof(name), "ll-rank-%u", part->rank);
    pthread_setname_np(w->thread, name);
    w->is_started = true;
    return 0;
}

int ll_tp_peer_settle(struct ll_cuda_tp *tp, struct ll_text *error)
{
    for (uint32_t r = 1; r < tp->n_parts; r++) {
        struct ll_tp_worker *w = &tp->peer->worker[r];
        /* Acquire, pairs with worker_main's release: the launch is made. */
        while (atomic_load_explicit(&w->taken, memory_order_acquire) !=
               atomic_load_explicit(&w->posted, memory_order_relaxed)) {
            if (atomic_load_explicit(&w->rc, memory_order_acquire) < 0) {
                snprintf(error->s, sizeof(error->s), "rank %u: %.340s", r, w->error.s);
                return -EIO;
            }
            ll_cpu_relax();
        }
    }
    return 0;
}

int ll_tp_peer_post(struct ll_cuda_tp *tp, const struct ll_cuda_size *size, struct ll_text *error)
{
    for (uint32_t r = 1; r < tp->n_parts; r++) {
        struct ll_tp_worker *w = &tp->peer->worker[r];
        /* Relaxed: this thread alone writes it. */
        const uint32_t posted = atomic_load_explicit(&w->posted, memory_order_relaxed);
        /* Acquire, pairs with worker_main's release. P1 holds unless a rank has failed. */
        if (atomic_load_explicit(&w->rc, memory_order_acquire) < 0 ||
            posted - atomic_load_explicit(&w->taken, memory_order_acquire) >= LL_TP_POSTS) {
            snprintf(error->s, sizeof(error->s), "rank %u: %.340s", r,
                     w->error.s[0] != 0 ? w->error.s : "does not launch its steps");
            return -EIO;
        }
        w->size[posted % LL_TP_POSTS] = *size;
        /* Sequentially consistent (a release, too): see await_post. */
        atomic_store(&w->posted, posted + 1);
        if (atomic_load(&w->is_asleep))
            futex(&w->posted, FUTEX_WAKE, 1);
    }
    return 0;
}

int ll_tp_peer_health(struct ll_cuda_tp *tp, struct ll_text *error)
{
    static const char *const what[] = {"?", "sum", "ids", "logits"};
    struct ll_tp_peer *peer = tp->peer;

    for (uint32_t r = 0; r < tp->n_parts; r++) {
        const struct ll_comm_late *late = &peer->late[r];
        /* Acquire, pairs with the system fence of comm_peer.cu: who and what are there. */
        if (__atomic_load_n(&late->is_set, __ATOMIC_ACQUIRE)) {
            snprintf(error->s, sizeof(error->s),
                     "CUDA: rank %u waited %.1f s for the %s of rank %u: that GPU or its link has "
                     "failed",
                     late->rank, (double)LL_COMM_WAIT_NS / 1e9,
                     what[late->what < 4 ? late->what : 0], late->peer);
            return -EIO;
        }
    }
    for (uint32_t r = 1; r < tp->n_parts; r++)
        if (atomic_load_explicit(&peer->worker[r].rc, memory_order_acquire) < 0) {
            snprintf(error->s, sizeof(error->s), "rank %u: %.340s", r, peer->worker[r].error.s);
            return -EIO;
        }
    for (uint32_t r = 1; r < tp->n_parts; r++) {
        const struct ll_tp_worker *w = &peer->worker[r];
        /* A worker that is about to launch may be capturing, and a query ends that. This thread
         * alone posts, so one that has taken all stays idle meanwhile. Acquire: as in settle. */
        if (atomic_load_explicit(&w->taken, memory_order_acquire) !=
            atomic_load_explicit(&w->posted, memory_order_relaxed))
            continue;
        cudaError_t s = cudaStreamQuery(tp->part[r]->stream);
        if (s != cudaSuccess && s != cudaErrorNotReady) {
            snprintf(error->s, sizeof(error->s), "CUDA: rank %u: step: %s", r,
                     cudaGetErrorString(s));
            return -EIO;
        }
    }
    return 0;
}

/* ---- connections ------------------------------------------------------------------------------*/
/* What others write into on this rank's GPU. */
static cudaError_t make_inboxes(struct ll_cuda_tp *tp, uint32_t r)
{
    const struct ll_comm_peer *own = &tp->peer->end[r];
    const size_t bytes = LL_COMM_BUFFERS * tp->n_parts * own->inbox_vecs * 16;
    const size_t rows_bytes = LL_COMM_BUFFERS * own->rows_bytes;
    const uint32_t n_ids = ll_cuda_token_bucket(tp->part[r]->layout.n_tokens_max);
    void *inbox = NULL, *rows_in = NULL;
    uint64_t *ids = NULL;
    cudaError_t s = cudaSetDevice(tp->part[r]->gpu);

    for (uint32_t other = 0; other < tp->n_parts && s == cudaSuccess; other++) {
        if (other == r)
            continue;
        s = cudaDeviceEnablePeerAccess(tp->part[other]->gpu, 0);
        if (s == cudaErrorPeerAccessAlreadyEnabled) {
            cudaGetLastError();
            s = cudaSuccess;
        }
    }
    if (s == cudaSuccess)
        s = cudaMalloc(&inbox, bytes);
    if (s == cudaSuccess)
        s = cudaMalloc(&rows_in, rows_bytes);
    if (s == cudaSuccess && (ll_comm_inbox_clear(inbox, bytes, tp->part[r]->stream) < 0 ||
                             ll_comm_inbox_clear(rows_in, rows_bytes, tp->part[r]->stream) < 0))
        s = cudaGetLastError();
    if (s == cudaSuccess)
        s = ll_cuda_zeroed((void **)&ids, (size_t)n_ids * 2 * sizeof(*ids));
    uint32_t *arrived = NULL;
    if (s == cudaSuccess && r == 0)
        s = ll_cuda_zeroed((void **)&arrived, sizeof(*arrived));
    if (s == cudaSuccess)
        s = cudaDeviceSynchronize();
    for (uint32_t other = 0; other < tp->n_parts; other++) {
        struct ll_comm_peer *end = &tp->peer->end[other];
        end->inbox[r] = inbox;
        end->rows_in[r] = rows_in;
        end->ids[r] = ids;
        if (r == 0)
            end->logits_arrived = arrived;
        end->n_ids_max = n_ids;
    }
    return s;
}

int ll_tp_peer_open(struct ll_cuda_tp *tp, struct ll_text *error)
{
    const struct limits limits = limits_of(tp->n_parts);
    int gpu[LL_CUDA_RANKS_MAX];
    void *late;

    tp->peer = aligned_alloc(64, ll_align_up(sizeof(*tp->peer), 64));
    if (tp->peer == NULL)
        return ll_cuda_no_memory(error, "connections between GPUs");
    memset(tp->peer, 0, sizeof(*tp->peer));
    for (uint32_t r = 0; r < tp->n_parts; r++)
        gpu[r] = tp->part[r]->gpu;
    int rc = ll_nccl_open(&tp->peer->nccl, tp->n_parts, gpu, error);
    if (rc < 0)
        return rc;
    cudaError_t s =
        cudaHostAlloc((void **)&tp->peer->late, 4096, cudaHostAllocMapped | cudaHostAllocPortable);
    if (s == cudaSuccess) {
        memset(tp->peer->late, 0, 4096);
        s = cudaHostGetDevicePointer(&late, tp->peer->late, 0);
    }
    for (uint32_t r = 0; r < tp->n_parts && s == cudaSuccess; r++) {
        tp->peer->end[r].rank = r;
        tp->peer->end[r].n_ranks = tp->n_parts;
        tp->peer->end[r].n_blocks_max = tp->part[r]->n_sm;
        tp->peer->end[r].has_early_next = true;
        tp->peer->end[r].one_shot_vecs = limits.one_shot / 16;
        tp->peer->end[r].inbox_vecs = limits.inbox / 16;
        /* As many rows as the others may send, with room for their scales. */
        tp->peer->end[r].rows_bytes =
            limits.inbox > limits.one_shot ? tp->n_parts * limits.inbox / 64 * 65 : 64;
        tp->peer->end[r].late = (struct ll_comm_late *)late + r;
        tp->peer->end[r].wait_ns = LL_COMM_WAIT_NS;
        s = make_inboxes(tp, r);
    }
    if (s != cudaSuccess)
        return ll_cuda_fail(error, "connections between GPUs", s);
    for (uint32_t r = 1; r < tp->n_parts; r++) {
        rc = start_worker(&tp->peer->worker[r], tp->part[r], error);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Workers end first: parts are closed after this. */
void ll_tp_peer_close(struct ll_cuda_tp *tp)
{
    struct ll_tp_peer *peer = tp->peer;

    if (peer == NULL)
        return;
    for (uint32_t r = 1; r < tp->n_parts; r++) {
        struct ll_tp_worker *w = &peer->worker[r];
        if (!w->is_started)
            continue;
        atomic_store(&w->is_ending, 1);
        futex(&w->posted, FUTEX_WAKE, 1);
        pthread_join(w->thread, NULL);
    }
    for (uint32_t r = 0; r < tp->n_parts; r++)
        if (tp->part[r] != NULL) {
            cudaSetDevice(tp->part[r]->gpu);
            cudaDeviceSynchronize();
        }
    ll_nccl_close(&peer->nccl);
    for (uint32_t r = 0; r < tp->n_parts; r++) {
        cudaFree(peer->end[0].inbox[r]);
        cudaFree(peer->end[0].rows_in[r]);
        cudaFree(peer->end[0].ids[r]);
    }
    cudaFree(peer->end[0].logits_arrived);
    cudaFreeHost(peer->late);
    free(peer);
    tp->peer = NULL;
}

/* ---- a sum ------------------------------------------------------------------------------------*/
int ll_tp_peer_begin(struct ll_cuda_tp *tp, struct ll_device *part, uint32_t n_tokens,
                     uint32_t n_logits, struct ll_text *error)
{
    const struct ll_comm_peer *end = &tp->peer->end[part->rank];
    const uint32_t n_embd = part->shape.n_embd;
    const enum ll_sum_form form = ll_comm_norm_peer_fits(end, n_tokens, n_embd) ? LL_SUM_ONE_SHOT
                                  : ll_comm_norm_split_fits(end, n_tokens, n_logits, n_embd)
                                      ? LL_SUM_SPLIT
                                      : LL_SUM_NCCL;

    tp->peer->step[part->rank].form = form;
    tp->peer->step[part->rank].n_sums = 0;
    tp->peer->step[part->rank].n_tokens = n_tokens;
    return ll_cuda_op(
        error, "ids",
        ll_comm_ids(end, part->tables.step, part->tables.token_id, n_tokens, part->stream));
}

int ll_tp_peer_norm(struct ll_cuda_tp *tp, struct ll_device *part, struct ll_comm_norm *args,
                    struct ll_text *error)
{
    struct ll_tp_peer *peer = tp->peer;
    const uint32_t r = part->rank;
    const enum ll_sum_form form = peer->step[r].form;
    int rc;

    args->n_ranks = tp->n_parts;
    /* C1: buffer 2 begins a step, 0 and 1 take turns then. */
    const uint32_t n = peer->step[r].n_sums++, buffer = n == 0 ? 2 : n % 2;
    if (form == LL_SUM_SPLIT) {
        rc = ll_comm_norm_split(args, &peer->end[r], buffer, part->stream);
    } else if (ll_comm_norm_peer_fits(&peer->end[r], args->n_rows, args->n_embd)) {
        rc = ll_comm_norm_peer(args, &peer->end[r], buffer, part->stream);
    } else {
        rc = ll_nccl_sum(&peer->nccl, r, (void *)args->delta[0],
                         (size_t)peer->step[r].n_tokens * args->n_embd, part->stream, error);
        if (rc < 0)
            return rc;
        args->n_ranks = 1;
        rc = ll_comm_norm_lockstep(args, part->stream);
    }
    return ll_cuda_op(error, "sum over ranks", rc);
}
