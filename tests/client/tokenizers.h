/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/tokenizers.h - the two vocabularies the text tests run on: the demo model's, always
 * there, and Llama 3's, where shared/llama3/tokenizer.model exists. */
#ifndef TESTS_CLIENT_TOKENIZERS_H
#define TESTS_CLIENT_TOKENIZERS_H

#include "tests/harness.h"

#include "base/err.h"
#include "base/rng.h"
#include "ll/text.h"

static struct ll_tokenizer *demo;
static struct ll_tokenizer *llama; /* NULL: the file is not here */

#define NEED_LLAMA()                                                                               \
    do {                                                                                           \
        if (llama == NULL)                                                                         \
            skip();                                                                                \
    } while (0)

static int open_tokenizers(void **state)
{
    (void)state;
    const char *path = ll_test_shared("llama3/tokenizer.model");

    if (path == NULL)
        printf("shared/llama3/tokenizer.model is not here: tests on that vocabulary are skipped\n");
    else if (ll_tokenizer_from_path(&llama, path) < 0)
        fail_msg("%s", ll_err_text());
    if (ll_tokenizer_from_path(&demo, ll_test_source("tools/demo-model")) < 0)
        fail_msg("%s", ll_err_text());
    return 0;
}

static int close_tokenizers(void **state)
{
    (void)state;
    ll_tokenizer_free(llama);
    ll_tokenizer_free(demo);
    return 0;
}

/* A whole file, malloc'd. */
static inline char *read_file(const char *path, size_t *n_bytes)
{
    FILE *file = fopen(path, "rb");

    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *text = malloc((size_t)size + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, (size_t)size, file), size);
    text[size] = '\0';
    fclose(file);
    *n_bytes = (size_t)size;
    return text;
}

static inline uint32_t below(uint64_t *seed, uint32_t n)
{
    return (uint32_t)(ll_splitmix64(seed) % n);
}

#endif
