/* SPDX-License-Identifier: Apache-2.0 */
/* tests/fuzz/fuzz_canary.c - a planted bug. A fuzzing setup that does not find it finds nothing. */
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_data)
{
    if (n_data > 3 && data[0] == 'b' && data[1] == 'u' && data[2] == 'g') {
        volatile uint8_t past = data[n_data]; /* one byte too far */
        (void)past;
    }
    return 0;
}
