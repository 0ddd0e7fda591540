/* SPDX-License-Identifier: Apache-2.0 */
/* tests/fuzz/fuzz_safetensors.c - the input is a header; the file behind it is as long as the
 * header says in its last offset where one can be found, so that good headers are accepted. */
#include "tests/fuzz/fuzz.h"

#include "runtime/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_data)
{
    struct ll_safetensors out;
    uint64_t n_most = 0, n = 0;

    for (size_t i = 0; i < n_data; i++) { /* the largest number that stands before a ']' */
        n = data[i] >= '0' && data[i] <= '9' ? n * 10 + (data[i] - '0') : 0;
        if (i + 1 < n_data && data[i + 1] == ']' && n > n_most)
            n_most = n;
    }
    uint64_t file_bytes = 8 + n_data + n_most;
    if (ll_safetensors_parse(&out, "f", (const char *)data, n_data, file_bytes) < 0)
        return 0;
    uint64_t at = 8 + n_data; /* S3, S4: back to back, to the last byte */
    for (uint32_t i = 0; i < out.n_entries; i++) {
        FUZZ_CHECK(out.entry[i].offset == at);
        FUZZ_CHECK(memchr(out.entry[i].name, '\0', sizeof(out.entry[i].name)) != NULL);
        FUZZ_CHECK(out.entry[i].n_dims <= LL_SAFETENSORS_RANK_MAX);
        at += out.entry[i].size_bytes;
    }
    FUZZ_CHECK(at == file_bytes);
    ll_safetensors_free(&out);
    return 0;
}
