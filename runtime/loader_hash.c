/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/loader_hash.h"

#include "base/assert.h"
#include "base/err.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

struct part {
    const void *bytes; /* NULL: not there */
    size_t n_bytes;
};

struct ll_load_hash {
    XXH3_state_t *state; /* the thread's; anybody's when it is idle */
    pthread_mutex_t lock;
    pthread_cond_t has_work, has_done;
    pthread_t thread;
    struct part *part; /* [n_window], chunk i in part[i % n_window] */
    uint32_t n_window;
    uint32_t n_hashed, n_taken; /* chunks, from the first on */
    bool is_ending;
};

static struct part *next_part(struct ll_load_hash *hash)
{
    return &hash->part[hash->n_hashed % hash->n_window];
}

static void *work(void *context)
{
    struct ll_load_hash *hash = context;

    pthread_mutex_lock(&hash->lock);
    while (!hash->is_ending) {
        const struct part part = *next_part(hash);
        if (part.bytes == NULL) {
            pthread_cond_wait(&hash->has_work, &hash->lock);
            continue;
        }
        pthread_mutex_unlock(&hash->lock);
        XXH3_128bits_update(hash->state, part.bytes, part.n_bytes);
        pthread_mutex_lock(&hash->lock);
        next_part(hash)->bytes = NULL;
        hash->n_hashed++;
        pthread_cond_signal(&hash->has_done);
    }
    pthread_mutex_unlock(&hash->lock);
    return NULL;
}

int ll_load_hash_open(struct ll_load_hash **out, uint32_t n_window)
{
    struct ll_load_hash *hash = calloc(1, sizeof(*hash));

    if (hash == NULL || (hash->state = XXH3_createState()) == NULL ||
        (hash->part = calloc(n_window, sizeof(*hash->part))) == NULL) {
        if (hash != NULL)
            XXH3_freeState(hash->state);
        free(hash);
        return LL_ERR(-ENOMEM, "no memory for a checksum");
    }
    XXH3_128bits_reset(hash->state);
    hash->n_window = n_window;
    pthread_mutex_init(&hash->lock, NULL);
    pthread_cond_init(&hash->has_work, NULL);
    pthread_cond_init(&hash->has_done, NULL);
    int rc = pthread_create(&hash->thread, NULL, work, hash);
    if (rc != 0) {
        XXH3_freeState(hash->state);
        free(hash->part);
        free(hash);
        return ll_err_set_errno(rc, "a thread for the checksum");
    }
    *out = hash;
    return 0;
}

void ll_load_hash_close(struct ll_load_hash *hash)
{
    if (hash == NULL)
        return;
    pthread_mutex_lock(&hash->lock);
    hash->is_ending = true;
    pthread_cond_signal(&hash->has_work);
    pthread_mutex_unlock(&hash->lock);
    pthread_join(hash->thread, NULL);
    pthread_cond_destroy(&hash->has_work);
    pthread_cond_destroy(&hash->has_done);
    pthread_mutex_destroy(&hash->lock);
    XXH3_freeState(hash->state);
    free(hash->part);
    free(hash);
}

void ll_load_hash_add(struct ll_load_hash *hash, uint32_t chunk, const void *bytes, size_t n_bytes)
{
    pthread_mutex_lock(&hash->lock);
    LL_ASSERT(chunk >= hash->n_hashed && chunk - hash->n_hashed < hash->n_window); /* H2 */
    hash->part[chunk % hash->n_window] = (struct part){bytes, n_bytes};
    pthread_cond_signal(&hash->has_work);
    pthread_mutex_unlock(&hash->lock);
}

bool ll_load_hash_is_busy(struct ll_load_hash *hash)
{
    pthread_mutex_lock(&hash->lock);
    bool is_busy = hash->n_taken < hash->n_hashed || next_part(hash)->bytes != NULL;
    pthread_mutex_unlock(&hash->lock);
    return is_busy;
}

int64_t ll_load_hash_take(struct ll_load_hash *hash, bool is_waiting)
{
    int64_t chunk = -1;

    pthread_mutex_lock(&hash->lock);
    while (is_waiting && hash->n_taken == hash->n_hashed && next_part(hash)->bytes != NULL)
        pthread_cond_wait(&hash->has_done, &hash->lock);
    if (hash->n_taken < hash->n_hashed)
        chunk = hash->n_taken++;
    pthread_mutex_unlock(&hash->lock);
    return chunk;
}

void ll_load_hash_text(const struct ll_load_hash *hash, char out[LL_LOAD_HASH_BYTES])
{
    XXH128_hash_t h = XXH3_128bits_digest(hash->state);

    snprintf(out, LL_LOAD_HASH_BYTES, "%016llx%016llx", (unsigned long long)h.high64,
             (unsigned long long)h.low64);
}
