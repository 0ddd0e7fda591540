/* SPDX-License-Identifier: Apache-2.0 */
/* base/assert.h - what is already known, stated; kept in release builds (rule R12).
 *
 * For programmer errors only. What a client, a file or the network can cause is an error value. */
#ifndef BASE_ASSERT_H
#define BASE_ASSERT_H

/* Prints where and what to standard error and aborts. */
_Noreturn void ll_assert_fail(const char *file, int line, const char *what);

#define LL_ASSERT(condition)                                                                       \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0))                                                     \
            ll_assert_fail(__FILE__, __LINE__, #condition);                                        \
    } while (0)

/* Expensive walks (ll_*_check() after each step) run only in debug builds and in tests. */
#ifdef LL_DEBUG
#define LL_DEBUG_ASSERT(condition) LL_ASSERT(condition)
#else
#define LL_DEBUG_ASSERT(condition) ((void)0)
#endif

#endif
