/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/reload_check.h - may the model in another directory take over from the one that serves?
 *
 * What clients have learnt at attach stays true as long as they are attached, so it must be equal:
 * vocabulary and tokenizer, chat format, begin and end ids, context. What the device was made for
 * must be equal too: the shape, rope, and whether linears are FP8. Name and default sampling may
 * differ: clients are told (wire.h, INFO). */
#ifndef RUNTIME_RELOAD_CHECK_H
#define RUNTIME_RELOAD_CHECK_H

#include "runtime/setup.h"

/* Of the file that a tokenizer is made from. */
struct ll_tokenizer_print {
    uint64_t lo, hi; /* XXH3-128; 0, 0: there is no such file */
};
int ll_tokenizer_print(struct ll_tokenizer_print *out, const char *directory);

/* Opens a directory as ll_checkpoint_open() does and compares it with what serves; `print` is of
 * the tokenizer that clients have. An error says what differs. *out is the caller's on success. */
int ll_reload_check(struct ll_checkpoint *out, const struct ll_setup *setup,
                    const struct ll_tokenizer_print *print, const char *directory);

#endif
