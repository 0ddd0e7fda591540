/* SPDX-License-Identifier: Apache-2.0 */
/* base/hist.h - log-linear histogram of u64 values: 32 buckets an octave, so a quantile is
 * read within 3.2 %. Fixed size, no locks: one writer with relaxed stores, any number of readers;
 * it lies in the STAT region as well as in private memory. */
#ifndef BASE_HIST_H
#define BASE_HIST_H

#include "base/bits.h"

#include <stdatomic.h>

#define LL_HIST_SUB_BITS 5
#define LL_HIST_BUCKETS  ((48 - LL_HIST_SUB_BITS + 1) << LL_HIST_SUB_BITS) /* values below 2^48 */

struct ll_hist {
    _Atomic uint64_t count;
    _Atomic uint64_t sum;
    _Atomic uint64_t max;
    _Atomic uint64_t bucket[LL_HIST_BUCKETS];
};

/* Bucket of a value; values from 2^48 on share the last one. */
static inline uint32_t ll_hist_bucket(uint64_t value)
{
    if (value < (1u << LL_HIST_SUB_BITS))
        return (uint32_t)value;
    uint32_t octave = ll_log2_floor(value) - LL_HIST_SUB_BITS;
    uint32_t index = ((octave + 1) << LL_HIST_SUB_BITS) +
                     (uint32_t)((value >> octave) & ((1u << LL_HIST_SUB_BITS) - 1));
    return index < LL_HIST_BUCKETS ? index : LL_HIST_BUCKETS - 1;
}

/* Smallest value of a bucket. */
static inline uint64_t ll_hist_bucket_low(uint32_t bucket)
{
    if (bucket < (1u << LL_HIST_SUB_BITS))
        return bucket;
    uint32_t octave = (bucket >> LL_HIST_SUB_BITS) - 1;
    uint64_t sub = bucket & ((1u << LL_HIST_SUB_BITS) - 1);
    return ((1ull << LL_HIST_SUB_BITS) + sub) << octave;
}

/* Relaxed throughout: one writer, and a reader's figures may be a moment old. */
static inline void ll_hist_bump(_Atomic uint64_t *word, uint64_t by)
{
    atomic_store_explicit(word, atomic_load_explicit(word, memory_order_relaxed) + by,
                          memory_order_relaxed);
}

/* n times the same value. */
static inline void ll_hist_add_n(struct ll_hist *hist, uint64_t value, uint64_t n)
{
    ll_hist_bump(&hist->bucket[ll_hist_bucket(value)], n);
    ll_hist_bump(&hist->sum, value * n);
    if (value > atomic_load_explicit(&hist->max, memory_order_relaxed))
        atomic_store_explicit(&hist->max, value, memory_order_relaxed);
    ll_hist_bump(&hist->count, n);
}

static inline void ll_hist_add(struct ll_hist *hist, uint64_t value)
{
    ll_hist_add_n(hist, value, 1);
}

/* Value below which the share q (0 .. 1) of all values lies: the middle of its bucket, or the
 * maximum for the last one filled. 0 when empty. */
static inline uint64_t ll_hist_quantile(const struct ll_hist *hist, double q)
{
    uint64_t count = atomic_load_explicit(&hist->count, memory_order_relaxed);
    uint64_t max = atomic_load_explicit(&hist->max, memory_order_relaxed);
    uint64_t wanted = (uint64_t)(q * (double)count), seen = 0;

    if (count == 0)
        return 0;
    for (uint32_t i = 0; i < LL_HIST_BUCKETS; i++) {
        seen += atomic_load_explicit(&hist->bucket[i], memory_order_relaxed);
        if (seen > wanted) {
            uint64_t low = ll_hist_bucket_low(i);
            uint64_t high = i + 1 < LL_HIST_BUCKETS ? ll_hist_bucket_low(i + 1) : low + 1;
            return ll_min_u64((low + high) / 2, max);
        }
    }
    return max;
}

#endif
