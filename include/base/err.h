/* SPDX-License-Identifier: Apache-2.0 */
/* base/err.h - one error text per thread, made once where the error happens.
 *
 * A function that fails returns a negative code: -errno for what the system said, LL_E_* of
 * ll/client.h for what we say. It records the words with LL_ERR or LL_ERRNO and gives the code
 * back; callers pass it on untouched, or put context in front with ll_err_prefix(). */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <errno.h>
#include <stddef.h>

#define LL_ERR_TEXT_BYTES 512

/* Records the text of this thread's last error and returns code, which must be negative. */
int ll_err_set(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Records "<text>: <strerror(error)>" and returns -error. */
int ll_err_set_errno(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts "<text>: " in front of what is recorded; returns code for use in a return statement. */
int ll_err_prefix(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The text of this thread's last error, "" when there was none. Valid until the next error. */
const char *ll_err_text(void);

#define LL_ERR(code, ...) ll_err_set((code), __VA_ARGS__)
#define LL_ERRNO(...)     ll_err_set_errno(errno, __VA_ARGS__)

#endif
