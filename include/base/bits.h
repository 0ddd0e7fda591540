/* SPDX-License-Identifier: Apache-2.0 */
/* base/bits.h - small integer helpers, overflow-checked arithmetic, the spin hint. */
#ifndef BASE_BITS_H
#define BASE_BITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LL_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* The field's line size; 2 x 64 B where two writers must not share: the prefetcher pulls pairs. */
#define LL_LINE_BYTES 64

static inline bool ll_is_pow2(uint64_t x) { return x != 0 && (x & (x - 1)) == 0; }

/* Smallest power of two >= x; x in 1 .. 2^63. */
static inline uint64_t ll_pow2_ceil(uint64_t x)
{
    return x <= 1 ? 1 : 1ull << (64 - __builtin_clzll(x - 1));
}

/* floor(log2(x)), x > 0. */
static inline uint32_t ll_log2_floor(uint64_t x) { return 63u - (uint32_t)__builtin_clzll(x); }

static inline uint64_t ll_div_ceil(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }

/* a rounded up to a multiple of the power of two b; the caller knows that it cannot wrap. */
static inline uint64_t ll_align_up(uint64_t a, uint64_t b) { return (a + b - 1) & ~(b - 1); }

static inline uint64_t ll_min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t ll_max_u64(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* For numbers from files and clients: false where the result does not fit; *out is then
 * unspecified. */
static inline bool ll_checked_add(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline bool ll_checked_mul(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

/* Does [offset, offset + length) lie inside [0, size)? Never wraps. */
static inline bool ll_span_fits(uint64_t offset, uint64_t length, uint64_t size)
{
    return offset <= size && length <= size - offset;
}

/* index when index < size, else 0, without a branch that a processor could guess past
 * (Spectre v1); size > 0. For indices read from memory that another process writes. */
static inline uint32_t ll_index_nospec(uint32_t index, uint32_t size)
{
    uint64_t mask = (uint64_t)((int64_t)((uint64_t)index - (uint64_t)size) >> 63);
    return index & (uint32_t)mask;
}

static inline void ll_cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

#endif
