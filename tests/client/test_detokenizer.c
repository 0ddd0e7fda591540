/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_detokenizer.c - ids to text: whole characters only, the same text however the
 * bytes are cut into tokens. */
#include "tests/client/tokenizers.h"

#include "client/text/json.h"
#include "tests/client/random_text.h"

struct text {
    char bytes[16384];
    size_t n;
};

static void append(struct text *text, const char *bytes, int n)
{
    assert_true(n >= 0 && text->n + (size_t)n <= sizeof(text->bytes));
    memcpy(text->bytes + text->n, bytes, (size_t)n);
    text->n += (size_t)n;
}

/* What a decoder gives must be whole characters by itself. */
static void append_checked(struct text *text, const char *bytes, int n)
{
    for (int at = 0; at < n;) {
        uint32_t code;
        int length = ll_utf8_decode(bytes + at, (size_t)(n - at), &code);
        assert_true(length > 0);
        at += length;
    }
    append(text, bytes, n);
}

static struct text decode(const struct ll_tokenizer *tokenizer, uint32_t flags, const uint32_t *ids,
                          size_t n_ids)
{
    struct ll_decoder *decoder;
    struct text text = {.n = 0};
    const char *piece;

    assert_int_equal(ll_decoder_new(&decoder, tokenizer, flags), 0);
    for (size_t i = 0; i < n_ids; i++) {
        int n = ll_decoder_feed(decoder, ids[i], &piece);
        append_checked(&text, piece, n);
    }
    int n = ll_decoder_finish(decoder, &piece);
    append_checked(&text, piece, n);
    ll_decoder_free(decoder);
    return text;
}

/* The ids of the single bytes. */
static void byte_ids(const struct ll_tokenizer *tokenizer, uint32_t out[256])
{
    for (uint32_t id = 0; id < ll_tokenizer_n_vocab(tokenizer); id++) {
        size_t n;
        const char *bytes = ll_tokenizer_bytes(tokenizer, id, &n);
        if (n == 1)
            out[(uint8_t)bytes[0]] = id;
    }
}

/* Expected texts: bytes.decode("utf-8", "replace") of Python 3. */
static void broken_bytes_become_replacement_characters(void **state)
{
    (void)state;
#define R "\xef\xbf\xbd"
    static const struct {
        const char *bytes, *text;
    } cases[] = {
        {"", ""},
        {"abc", "abc"},
        {"\xff", R},
        {"\xc0\x80", R R},
        {"\xe6\x97", R},
        {"\xe6\x97"
         "a",
         R "a"},
        {"\xf0\x9f\x98", R},
        {"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80"},
        {"\xf0\x9f\xf0\x9f\x98\x80", R "\xf0\x9f\x98\x80"},
        {"\xf0\x9f\x98\xe6\x97\xa5", R "\xe6\x97\xa5"},
        {"\xed\xa0\x80", R R R},
        {"\xf4\x90\x80\x80", R R R R},
        {"\xf4\x8f\xbf\xbf", "\xf4\x8f\xbf\xbf"},
        {"\xe0\x9f\xbf", R R R},
        {"\x80\xbf"
         "x",
         R R "x"},
        {"\xf1\x80\x80\xe1\x80\xc2"
         "b\x80"
         "c\x80\xbf"
         "d",
         R R R "b" R "c" R R "d"},
        {"\xc3\xc3\xa9\xc3", R "\xc3\xa9" R},
    };
    uint32_t byte_id[256], ids[16];

    byte_ids(demo, byte_id);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        size_t n = strlen(cases[i].bytes);
        for (size_t k = 0; k < n; k++)
            ids[k] = byte_id[(uint8_t)cases[i].bytes[k]];
        struct text text = decode(demo, 0, ids, n);
        if (text.n != strlen(cases[i].text) || memcmp(text.bytes, cases[i].text, text.n) != 0)
            fail_msg("case %zu: %.*s", i, (int)text.n, text.bytes);
    }
}

/* The whole stream decoded at once, from the definition: maximal invalid parts become U+FFFD. */
static struct text reference(const char *bytes, size_t n)
{
    struct text text = {.n = 0};

    for (size_t at = 0; at < n;) {
        uint32_t code;
        int length = ll_utf8_decode(bytes + at, n - at, &code);
        if (length > 0) {
            append(&text, bytes + at, length);
            at += (size_t)length;
        } else {
            append(&text, R, 3);
            at += length == 0 ? n - at : (size_t)-length;
        }
    }
    return text;
}

struct by_bytes {
    const char *bytes;
    size_t n;
    uint32_t id;
};

static int compare(const void *left, const void *right)
{
    const struct by_bytes *a = left, *b = right;
    int order = memcmp(a->bytes, b->bytes, a->n < b->n ? a->n : b->n);

    return order != 0 ? order : (a->n > b->n) - (a->n < b->n);
}

/* Cuts bytes into random tokens that spell them. */
static size_t random_cut(const struct by_bytes *tokens, uint32_t n_tokens, uint64_t *seed,
                         const char *bytes, size_t n, uint32_t *ids)
{
    size_t n_ids = 0;

    for (size_t at = 0; at < n;) {
        for (;;) {
            size_t length = 1 + below(seed, 8);
            struct by_bytes key = {bytes + at, length < n - at ? length : n - at, 0};
            const struct by_bytes *found = bsearch(&key, tokens, n_tokens, sizeof(key), compare);
            if (found == NULL)
                continue;
            ids[n_ids++] = found->id;
            at += found->n;
            break;
        }
    }
    return n_ids;
}

static void every_cut_gives_the_same_text(void **state)
{
    (void)state;
    const struct ll_tokenizer *tokenizer = llama != NULL ? llama : demo;
    uint32_t n_tokens = 0, n_vocab = ll_tokenizer_n_vocab(tokenizer), ids[2048];
    struct by_bytes *tokens = malloc(n_vocab * sizeof(*tokens));
    uint64_t seed = ll_test_seed();

    for (uint32_t id = 0; id < n_vocab; id++) {
        struct by_bytes token = {.id = id};
        token.bytes = ll_tokenizer_bytes(tokenizer, id, &token.n);
        if (!ll_tokenizer_is_special(tokenizer, id))
            tokens[n_tokens++] = token;
    }
    qsort(tokens, n_tokens, sizeof(*tokens), compare);
    for (int round = 0; round < 2000; round++) {
        char bytes[400];
        size_t n = random_text(&seed, bytes, 65 + below(&seed, 335), round % 4 != 0);
        if (round % 8 == 1) /* nothing but lead and continuation bytes */
            for (size_t i = 0; i < n; i++)
                bytes[i] = (char)(0x80 | below(&seed, 128));
        struct text expected = reference(bytes, n);
        for (int cut = 0; cut < 4; cut++) {
            size_t n_ids = random_cut(tokens, n_tokens, &seed, bytes, n, ids);
            struct text text = decode(tokenizer, 0, ids, n_ids);
            assert_int_equal(text.n, expected.n);
            assert_memory_equal(text.bytes, expected.bytes, text.n);
        }
        int64_t n_ids = ll_encode(tokenizer, bytes, n, 0, ids, 2048);
        struct text text = decode(tokenizer, 0, ids, (size_t)n_ids);
        assert_int_equal(text.n, expected.n);
        assert_memory_equal(text.bytes, expected.bytes, text.n);
    }
    free(tokens);
}

static void a_character_comes_when_its_last_byte_does(void **state)
{
    (void)state;
    const char *emoji = "x\xf0\x9f\x98\x80y";
    uint32_t byte_id[256];
    struct ll_decoder *decoder;
    const char *text;
    static const int expected[] = {1, 0, 0, 0, 4, 1};

    byte_ids(demo, byte_id);
    assert_int_equal(ll_decoder_new(&decoder, demo, 0), 0);
    for (int i = 0; i < 6; i++)
        assert_int_equal(ll_decoder_feed(decoder, byte_id[(uint8_t)emoji[i]], &text), expected[i]);
    assert_int_equal(ll_decoder_finish(decoder, &text), 0);

    /* A tail is forgotten by reset, and comes out once at the end otherwise. */
    assert_int_equal(ll_decoder_feed(decoder, byte_id[0xf0], &text), 0);
    ll_decoder_reset(decoder);
    assert_int_equal(ll_decoder_feed(decoder, byte_id['z'], &text), 1);
    assert_int_equal(ll_decoder_feed(decoder, byte_id[0xe6], &text), 0);
    assert_int_equal(ll_decoder_finish(decoder, &text), 3);
    assert_memory_equal(text, R, 3);
    assert_int_equal(ll_decoder_finish(decoder, &text), 0);
    ll_decoder_free(decoder);
    ll_decoder_free(NULL);
}

static void specials_are_left_out_unless_asked_for(void **state)
{
    (void)state;
    uint32_t ids[16];
    int64_t n = ll_encode(demo, "hi<|eot_id|>", 12, LL_ENCODE_SPECIAL | LL_ENCODE_BOS, ids, 16);

    struct text without = decode(demo, 0, ids, (size_t)n);
    assert_int_equal(without.n, 2);
    assert_memory_equal(without.bytes, "hi", 2);
    struct text with = decode(demo, LL_DECODE_SPECIAL, ids, (size_t)n);
    assert_int_equal(with.n, 29);
    assert_memory_equal(with.bytes, "<|begin_of_text|>hi<|eot_id|>", 29);
}

/* Left out means: as if it were not in the list, even inside a character. */
static void a_special_inside_a_character_does_not_break_it(void **state)
{
    (void)state;
    uint32_t byte_id[256];

    byte_ids(demo, byte_id);
    uint32_t ids[] = {byte_id[0xc3], 4105, byte_id[0xa9]};
    struct text text = decode(demo, 0, ids, 3);
    assert_int_equal(text.n, 2);
    assert_memory_equal(text.bytes, "\xc3\xa9", 2);
    text = decode(demo, LL_DECODE_SPECIAL, ids, 3);
    assert_int_equal(text.n, 3 + 10 + 3);
    assert_memory_equal(text.bytes, R "<|eot_id|>" R, text.n);
}

static void an_id_outside_the_vocabulary_is_refused(void **state)
{
    (void)state;
    struct ll_decoder *decoder;
    const char *text;

    assert_int_equal(ll_decoder_new(&decoder, demo, LL_DECODE_SPECIAL), 0);
    assert_int_equal(ll_decoder_feed(decoder, 4352, &text), LL_E_INVAL);
    assert_int_equal(ll_decoder_feed(decoder, UINT32_MAX, &text), LL_E_INVAL);
    assert_non_null(strstr(ll_err_text(), "4294967295"));
    assert_int_equal(ll_decoder_feed(decoder, 0, &text), 1);
    ll_decoder_free(decoder);
}

/* golden.json: what the demo model said, as ids and as text. */
static void the_demo_models_answers_have_their_text(void **state)
{
    (void)state;
    size_t n_text;
    char *file = read_file(ll_test_source("tests/data/golden.json"), &n_text);
    struct ll_json json;
    enum ll_json_token token;
    struct text text = {.n = 0};
    int n_same = 0;

    ll_json_init(&json, file, n_text, 0);
    while ((token = ll_json_next(&json)) > LL_JSON_END) {
        if (token != LL_JSON_KEY || json.depth != 2)
            continue;
        if (ll_json_is(&json, "greedy_ids")) {
            uint32_t ids[1024];
            size_t n = 0;
            int64_t id;
            assert_int_equal(ll_json_next(&json), LL_JSON_ARRAY);
            while (ll_json_next(&json) == LL_JSON_NUMBER && ll_json_int(&json, &id) && n < 1024)
                ids[n++] = (uint32_t)id;
            text = decode(demo, 0, ids, n);
        } else if (ll_json_is(&json, "greedy_text")) {
            char expected[16384];
            assert_int_equal(ll_json_next(&json), LL_JSON_STRING);
            size_t n = ll_json_string(&json, expected, sizeof(expected));
            n_same += n == text.n && memcmp(expected, text.bytes, n) == 0;
        }
    }
    free(file);
    assert_int_equal(n_same, 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_bytes_become_replacement_characters),
        cmocka_unit_test(every_cut_gives_the_same_text),
        cmocka_unit_test(a_character_comes_when_its_last_byte_does),
        cmocka_unit_test(specials_are_left_out_unless_asked_for),
        cmocka_unit_test(a_special_inside_a_character_does_not_break_it),
        cmocka_unit_test(an_id_outside_the_vocabulary_is_refused),
        cmocka_unit_test(the_demo_models_answers_have_their_text),
    };
    return cmocka_run_group_tests_name("detokenizer", tests, open_tokenizers, close_tokenizers);
}
