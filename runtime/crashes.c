/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/crashes.h"

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCK_MAGIC    0x316873617263726cull /* "lrcrash1" */
#define FILE_BYTES_MAX (16u << 20)
#define BLOCK_ENTRIES  (1u << 17)
#define HASHED_IDS_MAX 16384u /* of a longer prompt its two halves of this, and its length */
#define STACK_BYTES    32768u
#define STACKS         2u /* the step thread's and the control thread's */

struct block {
    uint64_t magic, time_s, n;
    struct ll_chain hash[]; /* [n] */
};
static_assert(sizeof(struct block) == 24 && sizeof(struct ll_chain) == 16, "bytes of a file");

/* ---- hashes -----------------------------------------------------------------------------------*/

static struct ll_chain hash_bytes(const void *bytes, size_t n_bytes, struct ll_chain before)
{
    XXH128_hash_t h = XXH3_128bits_withSeed(bytes, n_bytes, before.lo ^ before.hi << 1);

    return (struct ll_chain){h.low64, h.high64};
}

struct ll_chain ll_crashes_hash(const struct ll_seq *seq)
{
    const struct ll_sampling *s = &seq->sampling;
    const float reals[] = {s->temperature, s->top_p,     s->min_p,
                           s->repetition,  s->frequency, s->presence};
    const uint32_t numbers[] = {seq->n_prompt,     seq->max_tokens, seq->flags, seq->n_top,
                                seq->n_prompt_top, seq->adapter,    s->top_k,   s->min_tokens,
                                s->n_end,          seq->n_choices};
    struct ll_chain h = {0, 0};
    uint32_t n_part = seq->n_prompt;

    if (n_part > HASHED_IDS_MAX)
        n_part = HASHED_IDS_MAX / 2;
    h = hash_bytes(seq->token, n_part * sizeof(uint32_t), h);
    if (n_part < seq->n_prompt)
        h = hash_bytes(seq->token + seq->n_prompt - n_part, n_part * sizeof(uint32_t), h);
    h = hash_bytes(reals, sizeof(reals), h);
    h = hash_bytes(numbers, sizeof(numbers), h);
    h = hash_bytes(s->end, s->n_end * sizeof(s->end[0]), h);
    h = hash_bytes(seq->bias, seq->n_bias * sizeof(seq->bias[0]), h);
    h.lo |= 1; /* never {0, 0} */
    return h;
}

static int compare_hashes(const void *a, const void *b)
{
    const struct ll_chain *x = a, *y = b;

    if (x->lo != y->lo)
        return x->lo < y->lo ? -1 : 1;
    return x->hi < y->hi ? -1 : x->hi > y->hi;
}

static bool has_hash(const struct ll_chain *sorted, size_t n, const struct ll_chain *hash)
{
    return n > 0 && bsearch(hash, sorted, n, sizeof(*hash), compare_hashes) != NULL;
}

bool ll_crashes_refuses(const struct ll_crashes *crashes, struct ll_chain hash)
{
    return has_hash(crashes->refused, crashes->n_refused, &hash);
}

/* ---- reading ----------------------------------------------------------------------------------*/

/* Copies the blocks that still count to the front of the file's bytes; true when all of it was
 * sound. *block: where they begin, oldest first. */
static bool find_blocks(char *bytes, size_t n_bytes, uint64_t now_s, struct block **block,
                        uint32_t *n_blocks)
{
    size_t at = 0;

    *n_blocks = 0;
    while (n_bytes - at >= sizeof(struct block)) {
        struct block *next = (struct block *)(void *)(bytes + at);
        if (next->magic != BLOCK_MAGIC || next->n == 0 || next->n > BLOCK_ENTRIES ||
            next->n * sizeof(struct ll_chain) > n_bytes - at - sizeof(*next))
            return false;
        at += sizeof(*next) + next->n * sizeof(struct ll_chain);
        if (next->time_s > now_s || now_s - next->time_s > LL_CRASHES_REMEMBERED_S)
            continue;
        if (*n_blocks == LL_CRASHES_BLOCKS_MAX)
            memmove(block, block + 1, (--*n_blocks) * sizeof(*block));
        block[(*n_blocks)++] = next;
    }
    return at == n_bytes;
}

/* Of either order: a clock may be set back. */
static uint64_t seconds_apart(const struct block *a, const struct block *b)
{
    return a->time_s > b->time_s ? a->time_s - b->time_s : b->time_s - a->time_s;
}

/* C1, for the hashes of one block, the last of the three. */
static void find_refused(struct ll_crashes *crashes, struct block *const *block, uint32_t last)
{
    for (uint64_t i = 0; i < block[last]->n; i++) {
        const struct ll_chain *hash = &block[last]->hash[i];
        uint32_t n = 1;
        if (i > 0 && compare_hashes(hash, hash - 1) == 0) /* twice in flight */
            continue;
        for (uint32_t b = last; b-- > 0;)
            n += seconds_apart(block[last], block[b]) <= LL_CRASHES_WITHIN_S &&
                 has_hash(block[b]->hash, block[b]->n, hash);
        if (n >= LL_CRASHES_TO_REFUSE)
            crashes->refused[crashes->n_refused++] = *hash;
    }
}

static int take_blocks(struct ll_crashes *crashes, struct block *const *block, uint32_t n_blocks,
                       uint64_t now_s)
{
    uint64_t n_hashes = 0;

    for (uint32_t b = 0; b < n_blocks; b++) {
        qsort(block[b]->hash, block[b]->n, sizeof(struct ll_chain), compare_hashes);
        crashes->n_recent += now_s - block[b]->time_s <= LL_CRASHES_WITHIN_S;
        n_hashes += block[b]->n;
    }
    crashes->n_blocks = n_blocks;
    crashes->refused = calloc(n_hashes + 1, sizeof(*crashes->refused));
    if (crashes->refused == NULL)
        return LL_ERR(-ENOMEM, "no memory for the crash ledger");
    for (uint32_t b = LL_CRASHES_TO_REFUSE - 1; b < n_blocks; b++)
        find_refused(crashes, block, b);
    qsort(crashes->refused, crashes->n_refused, sizeof(*crashes->refused), compare_hashes);
    return 0;
}

/* The file anew, with the blocks that still count. */
static void rewrite(struct ll_crashes *crashes, struct block *const *block, uint32_t n_blocks)
{
    bool is_written = ftruncate(crashes->fd, 0) == 0;

    for (uint32_t b = 0; b < n_blocks && is_written; b++) {
        size_t n = sizeof(struct block) + block[b]->n * sizeof(struct ll_chain);
        is_written = write(crashes->fd, block[b], n) == (ssize_t)n;
    }
    if (!is_written)
        ll_warn("the crash ledger %s cannot be written: %s", crashes->path, strerror(errno));
}

static int read_file(struct ll_crashes *crashes, size_t n_bytes, uint64_t now_s)
{
    struct block *block[LL_CRASHES_BLOCKS_MAX];
    uint32_t n_blocks = 0;
    char *bytes = aligned_alloc(16, ll_align_up(n_bytes + 1, 16));

    if (bytes == NULL)
        return LL_ERR(-ENOMEM, "no memory for the crash ledger");
    ssize_t n = pread(crashes->fd, bytes, n_bytes, 0);
    if (!find_blocks(bytes, n > 0 ? (size_t)n : 0, now_s, block, &n_blocks))
        ll_warn("the crash ledger %s is damaged: what can be read of it counts", crashes->path);
    int rc = take_blocks(crashes, block, n_blocks, now_s);
    if (rc == 0)
        rewrite(crashes, block, n_blocks);
    free(bytes);
    return rc;
}

int ll_crashes_open(struct ll_crashes *crashes, const char *path, uint64_t now_s)
{
    struct stat st;

    *crashes = (struct ll_crashes){.fd = -1};
    if ((size_t)snprintf(crashes->path, sizeof(crashes->path), "%s", path) >= sizeof(crashes->path))
        return 0;
    int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0) {
        ll_warn("no crash ledger: %s: %s", path, strerror(errno));
        return 0;
    }
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid() ||
        st.st_size > FILE_BYTES_MAX) {
        ll_warn("no crash ledger: %s is no file of this user's, or too large: remove it", path);
        close(fd);
        return 0;
    }
    crashes->fd = fd;
    return read_file(crashes, (size_t)st.st_size, now_s);
}

/* ---- a crash ----------------------------------------------------------------------------------*/

static struct ll_crashes *watched;
static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
static struct sigaction former[LL_COUNT(signals)];

/* Also in a signal handler, in a process that is broken: reads within bounds, calls nothing but
 * what may be called there, writes once. */
void ll_crashes_record(struct ll_crashes *crashes)
{
    const struct ll_seq_pool *pool = crashes->pool;
    struct block *block = crashes->block;
    struct timespec now;

    /* Relaxed: whoever is second writes nothing, and reads nothing of the first's. */
    if (pool == NULL || crashes->fd < 0 ||
        atomic_exchange_explicit(&crashes->is_recorded, true, memory_order_relaxed))
        return;
    clock_gettime(CLOCK_REALTIME, &now);
    *block = (struct block){.magic = BLOCK_MAGIC, .time_s = (uint64_t)now.tv_sec};
    for (uint32_t i = 0; i < pool->n && block->n < BLOCK_ENTRIES; i++) {
        const struct ll_seq *seq = &pool->seq[i];
        if (seq->state != LL_SEQ_FREE && seq->request_hash.lo != 0)
            block->hash[block->n++] = seq->request_hash;
    }
    if (block->n > 0)
        (void)!write(crashes->fd, block, sizeof(*block) + block->n * sizeof(block->hash[0]));
}

static void on_crash(int number)
{
    ll_crashes_record(watched);
    for (size_t i = 0; i < LL_COUNT(signals); i++)
        if (signals[i] == number)
            sigaction(number, &former[i], NULL);
    raise(number); /* blocked until this returns; then it ends the process as it would have */
}

int ll_crashes_watch(struct ll_crashes *crashes, const struct ll_seq_pool *pool)
{
    struct sigaction action = {.sa_handler = on_crash, .sa_flags = SA_ONSTACK};
    size_t n_entries = ll_min_u64(pool->n, BLOCK_ENTRIES);

    if (crashes->fd < 0)
        return 0;
    crashes->block = calloc(1, sizeof(struct block) + n_entries * sizeof(struct ll_chain));
    if (crashes->block == NULL)
        return LL_ERR(-ENOMEM, "no memory for the crash ledger");
    crashes->pool = pool;
    watched = crashes;
    for (size_t i = 0; i < LL_COUNT(signals); i++)
        sigaction(signals[i], &action, &former[i]);
    return 0;
}

void ll_crashes_guard_thread(void)
{
    static _Alignas(16) char stack[STACKS][STACK_BYTES];
    static _Atomic uint32_t n_used;
    /* Relaxed: only hands out numbers. */
    uint32_t i = atomic_fetch_add_explicit(&n_used, 1, memory_order_relaxed);
    const stack_t of = {.ss_sp = stack[i % STACKS], .ss_size = STACK_BYTES};

    stack_t own;

    /* A sanitizer's threads have one of its own, which it unmaps at their end. */
    if (i < STACKS && sigaltstack(NULL, &own) == 0 && (own.ss_flags & SS_DISABLE) != 0)
        sigaltstack(&of, NULL);
}

void ll_crashes_close(struct ll_crashes *crashes)
{
    if (watched == crashes && crashes->pool != NULL) {
        for (size_t i = 0; i < LL_COUNT(signals); i++)
            sigaction(signals[i], &former[i], NULL);
        watched = NULL;
    }
    if (crashes->fd >= 0) {
        /* Relaxed: the step thread has been joined. */
        if (crashes->n_blocks == 0 &&
            !atomic_load_explicit(&crashes->is_recorded, memory_order_relaxed))
            unlink(crashes->path);
        close(crashes->fd);
    }
    free(crashes->refused);
    free(crashes->block);
    *crashes = (struct ll_crashes){.fd = -1};
}
