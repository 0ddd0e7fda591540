/* SPDX-License-Identifier: Apache-2.0 */
/* tests/fuzz/fuzz.h - what the fuzz targets share. A target is one file fuzz_<name>.c with
 * LLVMFuzzerTestOneInput(); tools/dev/fuzz builds and runs it. Beside not crashing, a target states
 * with FUZZ_CHECK what must hold for whatever was accepted. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_data);

#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);         \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* The directory that tools/dev/fuzz made, in memory, for the parsers that read files. */
static inline const char *fuzz_directory(void)
{
    const char *path = getenv("LL_FUZZ_DIRECTORY");

    return path != NULL ? path : ".";
}

static inline const char *fuzz_path(const char *name)
{
    static char path[256];

    snprintf(path, sizeof(path), "%s/%s", fuzz_directory(), name);
    return path;
}

static inline void fuzz_write(const char *name, const void *bytes, size_t n_bytes)
{
    FILE *file = fopen(fuzz_path(name), "wb");

    FUZZ_CHECK(file != NULL);
    FUZZ_CHECK(fwrite(bytes, 1, n_bytes, file) == n_bytes);
    FUZZ_CHECK(fclose(file) == 0);
}

#endif
