/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_tokenizer.c - text to ids and back: published vectors, every vocabulary entry,
 * random text, merging against the plain definition, time on one-class texts, the demo model's
 * prompts. The parts on Llama 3's vocabulary need shared/llama3/tokenizer.model. */
#include "tests/harness.h"

#include "base/err.h"
#include "base/rng.h"
#include "client/text/json.h"
#include "client/text/split.h"
#include "client/text/tokenizer.h"
#include "client/text/utf8.h"

#include <unistd.h>

static struct ll_tokenizer *llama; /* NULL: the vocabulary is not here */
static struct ll_tokenizer *demo;

static const char *demo_path(void)
{
    static char path[512];

    snprintf(path, sizeof(path), "%s", ll_test_source("tools/demo-model/tokenizer.json"));
    if (access(path, R_OK) == 0)
        return path;
    return ll_test_shared("models/tiny-chat/tokenizer.json");
}

static int open_tokenizers(void **state)
{
    (void)state;
    const char *path = ll_test_shared("llama3/tokenizer.model");

    if (path == NULL)
        printf("no shared/llama3/tokenizer.model: the tests on Llama 3's vocabulary are skipped\n");
    else if (ll_tokenizer_from_path(&llama, path) < 0)
        fail_msg("%s", ll_err_text());
    path = demo_path();
    if (path == NULL)
        fail_msg("tools/demo-model/tokenizer.json is missing");
    if (ll_tokenizer_from_path(&demo, path) < 0)
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

#define NEED_LLAMA()                                                                               \
    if (llama == NULL)                                                                             \
    skip()

static void the_published_vectors_come_out(void **state)
{
    (void)state;
    NEED_LLAMA();
    static const struct {
        const char *text;
        uint32_t flags;
        uint32_t ids[16];
        int n;
    } cases[] = {
        {"This is a test sentence.", LL_ENCODE_BOS, {128000, 2028, 374, 264, 1296, 11914, 13}, 7},
        {"Hello world!", 0, {9906, 1917, 0}, 3},
        {"  two  spaces", 0, {220, 1403, 220, 12908}, 4},
        {"\n\n\n", 0, {1432}, 1},
        {"123456789", 0, {4513, 10961, 16474}, 3},
        {"it's IT'S", 0, {275, 596, 8871, 13575}, 4},
        {"na\xc3\xafve caf\xc3\xa9", 0, {3458, 38672, 588, 53050}, 4},
        {"\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e\xe3\x83\x86\xe3\x82\xb9\xe3\x83\x88",
         0,
         {102433, 102158, 57933, 71634},
         4},
        {"\xf0\x9f\x98\x80\xf0\x9f\x91\x8d\xf0\x9f\x8f\xbd",
         0,
         {76460, 222, 9468, 239, 235, 9468, 237, 121},
         8},
        {"\t\tif x:\n", 0, {197, 748, 865, 512}, 4},
        {"system", 0, {9125}, 1},
        {"user", 0, {882}, 1},
        {"assistant", 0, {78191}, 1},
        {"\n\n", 0, {271}, 1},
        {"ipython", 0, {23799, 4690}, 2},
        {"<|eot_id|>", 0, {27, 91, 68, 354, 851, 91, 29}, 7},
        {"<|eot_id|>", LL_ENCODE_SPECIAL, {128009}, 1},
        {"a<|eot_id|><|eot_id", LL_ENCODE_SPECIAL, {64, 128009, 27, 91, 68, 354, 851}, 7},
        {"", LL_ENCODE_BOS, {128000}, 1},
        {"", 0, {0}, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint32_t ids[32];
        int64_t n = ll_encode(llama, cases[i].text, strlen(cases[i].text), cases[i].flags, ids, 32);
        if (n != cases[i].n || memcmp(ids, cases[i].ids, (size_t)n * 4) != 0) {
            for (int k = 0; k < n; k++)
                printf(" %u", ids[k]);
            fail_msg("%s: other ids", cases[i].text);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_published_vectors_come_out),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, open_tokenizers, close_tokenizers);
}
