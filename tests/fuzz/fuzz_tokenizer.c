/* SPDX-License-Identifier: Apache-2.0 */
/* tests/fuzz/fuzz_tokenizer.c - 'j': a tokenizer.json; 't': a tokenizer.model; 'i': a good image
 * with some words overwritten (u32 place, u32 value, ...). What is accepted must encode and decode
 * without a wild access, and an unharmed vocabulary must give back the text it was given. */
#include "tests/fuzz/fuzz.h"

#include "client/text/image.h"
#include "ll/text.h"

static const char sample[] =
    "The quick brown fox, 12345 it's \t\n\n  caf\xc3\xa9 \xe6\x97\xa5\xe6\x9c\xac \xff\xfe "
    "<|eot_id|>aaaaaaaaaaaaaaaaaaaaaaaa";

static void use(const struct ll_tokenizer *tokenizer, bool is_sound)
{
    uint32_t ids[256];
    char text[4096];
    size_t n_text = 0;
    int64_t n = ll_encode(tokenizer, sample, sizeof(sample) - 1, LL_ENCODE_SPECIAL, ids, 256);

    FUZZ_CHECK(n >= 0 && (!is_sound || n <= (int64_t)sizeof(sample)));
    for (int64_t i = 0; i < n && i < 256; i++) {
        size_t n_bytes;
        FUZZ_CHECK(ids[i] < ll_tokenizer_n_vocab(tokenizer));
        const char *bytes = ll_tokenizer_bytes(tokenizer, ids[i], &n_bytes);
        if (bytes != NULL && n_text + n_bytes <= sizeof(text)) {
            memcpy(text + n_text, bytes, n_bytes);
            n_text += n_bytes;
        }
    }
    if (is_sound && n <= 256 && n_text < sizeof(text) - LL_IMAGE_TOKEN_MAX)
        FUZZ_CHECK(n_text == sizeof(sample) - 1 && memcmp(text, sample, n_text) == 0);
}

static void use_image(const uint8_t *patch, size_t n_patch)
{
    static void *good;
    static size_t n_good;
    struct ll_tokenizer *tokenizer;
    uint32_t place, value;

    if (good == NULL)
        FUZZ_CHECK(ll_tokenizer_image_build(LL_SOURCE_DIR "/tools/demo-model/tokenizer.json", &good,
                                            &n_good) == 0);
    void *image = malloc(n_good);
    memcpy(image, good, n_good);
    for (; n_patch >= 8; patch += 8, n_patch -= 8) {
        memcpy(&place, patch, 4);
        memcpy(&value, patch + 4, 4);
        /* Half of the places lie in the header, where most of the rules are. */
        size_t at =
            place % 2 == 0 ? place / 2 % (sizeof(struct ll_image) / 4) : place / 2 % (n_good / 4);
        memcpy((char *)image + at * 4, &value, 4);
    }
    if (ll_tokenizer_from_image(&tokenizer, image, n_good) == 0) {
        use(tokenizer, false);
        ll_tokenizer_free(tokenizer);
    }
    free(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_data)
{
    struct ll_tokenizer *tokenizer;

    if (n_data == 0)
        return -1;
    if (data[0] == 'i') {
        use_image(data + 1, n_data - 1);
        return 0;
    }
    if (data[0] != 'j' && data[0] != 't')
        return -1;
    const char *name = data[0] == 'j' ? "tokenizer.json" : "tokenizer.model";
    fuzz_write(name, data + 1, n_data - 1);
    if (ll_tokenizer_from_path(&tokenizer, fuzz_path(name)) == 0) {
        use(tokenizer, true);
        ll_tokenizer_free(tokenizer);
    }
    return 0;
}
