/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_split.c - the hand-written splitter against PCRE2 running the expression.
 *
 * Two things keep the oracle honest: \s is spelled out (PCRE2's also matches U+180E, which is not
 * White_Space), and texts have only code points that PCRE2's Unicode version, older than our
 * table's, puts in the same class. */
#include "tests/harness.h"

#include "client/text/split.h"
#include "client/text/unicode.h"
#include "tests/client/random_text.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define S_CHARS                                                                                    \
    "\\x{9}-\\x{d} \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"          \
    "\\x{205f}\\x{3000}"
#define EXPRESSION                                                                                 \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"                       \
    "| ?[^" S_CHARS "\\p{L}\\p{N}]+[\\r\\n]*|[" S_CHARS "]*[\\r\\n]+|[" S_CHARS "]+(?![^" S_CHARS  \
    "])|[" S_CHARS "]+"

static pcre2_code *compile(const char *expression)
{
    int error;
    PCRE2_SIZE at;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)expression, PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_UCP, &error, &at, NULL);

    assert_non_null(code);
    return code;
}

static bool matches(const pcre2_code *code, pcre2_match_data *match, uint32_t c)
{
    char bytes[4];
    int n = ll_utf8_encode(c, bytes);

    return pcre2_match(code, (PCRE2_SPTR)bytes, (size_t)n, 0, PCRE2_ANCHORED, match, NULL) > 0;
}

/* Bit a code point: PCRE2 and our table agree on its class. */
static uint64_t *agreed;

static bool is_agreed(uint32_t c)
{
    return (agreed[c / 64] >> c % 64 & 1) != 0;
}

static int compare_classes(void **state)
{
    (void)state;
    pcre2_code *letter = compile("\\p{L}"), *number = compile("\\p{N}");
    pcre2_code *space = compile("[" S_CHARS "]"), *unassigned = compile("\\p{Cn}");
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    uint32_t n_newer = 0;

    agreed = calloc(0x110000 / 64, 8);
    assert_non_null(agreed);
    for (uint32_t c = 0; c < 0x110000; c++) {
        if (c >= 0xd800 && c <= 0xdfff)
            continue;
        uint32_t class = matches(letter, match, c)   ? LL_UNICODE_LETTER
                         : matches(number, match, c) ? LL_UNICODE_NUMBER
                         : matches(space, match, c)  ? LL_UNICODE_SPACE
                                                     : LL_UNICODE_OTHER;
        if (class == ll_unicode_class(c))
            agreed[c / 64] |= 1ull << c % 64;
        else if (!matches(unassigned, match, c)) /* known to both, and not the same */
            fail_msg("U+%04X: our class %u, PCRE2's %u", c, ll_unicode_class(c), class);
        else
            n_newer++;
    }
    printf("%u code points are newer than PCRE2's Unicode and left out\n", n_newer);
    assert_true(n_newer < 30000);
    pcre2_match_data_free(match);
    pcre2_code_free(letter);
    pcre2_code_free(number);
    pcre2_code_free(space);
    pcre2_code_free(unassigned);
    return 0;
}

static int free_classes(void **state)
{
    (void)state;
    free(agreed);
    return 0;
}

static void assert_same_pieces(const pcre2_code *code, pcre2_match_data *match, const char *text,
                               size_t n)
{
    for (size_t at = 0; at < n;) {
        int rc = pcre2_match(code, (PCRE2_SPTR)text, n, at, PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK,
                             match, NULL);
        assert_true(rc > 0);
        size_t expected = pcre2_get_ovector_pointer(match)[1] - at;
        size_t piece = ll_split_piece(text + at, n - at);
        if (piece != expected) {
            for (size_t i = at; i < n && i < at + 48; i++)
                printf("\\x%02x", (uint8_t)text[i]);
            fail_msg("\nbyte %zu of %zu: piece of %zu bytes, PCRE2 %zu", at, n, piece, expected);
        }
        at += piece;
    }
}

/* Every text of up to five of these: each of the regex's letters and each class, spaces doubled. */
static void all_short_texts_split_as_the_regex_does(void **state)
{
    (void)state;
    static const char *const items[] = {
        " ",        "\n", "\r", "\t",       "\xc2\xa0",     "'",        "s", "R", "e", "l",
        "\xc5\xbf", "1",  "!",  "\xc3\xa9", "\xe1\xa0\x8e", "\xcc\x81",
    };
    const uint32_t n_items = sizeof(items) / sizeof(items[0]);
    pcre2_code *code = compile(EXPRESSION);
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    uint32_t n_texts = 0;

    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    for (uint32_t length = 1, n_all = n_items; length <= 5; length++, n_all *= n_items)
        for (uint32_t which = 0; which < n_all; which++, n_texts++) {
            char text[32];
            size_t n = 0;
            for (uint32_t i = 0, rest = which; i < length; i++, rest /= n_items) {
                size_t n_item = strlen(items[rest % n_items]);
                memcpy(text + n, items[rest % n_items], n_item);
                n += n_item;
            }
            assert_same_pieces(code, match, text, n);
        }
    assert_true(n_texts > 800000);
    pcre2_match_data_free(match);
    pcre2_code_free(code);
}

static void random_texts_split_as_the_regex_does(void **state)
{
    (void)state;
    pcre2_code *code = compile(EXPRESSION);
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    uint64_t seed = ll_test_seed();

    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    for (int round = 0; round < 20000; round++) {
        char text[600], kept[600];
        size_t n = random_text(&seed, text, 65 + ll_splitmix64(&seed) % (sizeof(text) - 65), false),
               n_kept = 0;
        for (size_t at = 0; at < n;) {
            uint32_t c = 0;
            int length = ll_utf8_decode(text + at, n - at, &c);
            assert_true(length > 0);
            if (is_agreed(c)) {
                memcpy(kept + n_kept, text + at, (size_t)length);
                n_kept += (size_t)length;
            }
            at += (size_t)length;
        }
        assert_same_pieces(code, match, kept, n_kept);
    }
    pcre2_match_data_free(match);
    pcre2_code_free(code);
}

/* Every code point PCRE2 knows, as first, middle and last character. */
static void every_code_point_splits_as_the_regex_does(void **state)
{
    (void)state;
    static const char *const frames[][2] = {
        {"", "a"}, {" ", "1"}, {"a", " !"}, {"1", "\n"}, {"'", "s"}, {"  ", ""},
    };
    pcre2_code *code = compile(EXPRESSION);
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);

    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    for (uint32_t c = 0; c < 0x110000; c++) {
        if (!is_agreed(c) || (c > 0x40000 && c < 0xe0000 && c % 251 != 0)) /* all unassigned */
            continue;
        for (size_t f = 0; f < sizeof(frames) / sizeof(frames[0]); f++) {
            char text[16];
            size_t n = strlen(frames[f][0]);
            memcpy(text, frames[f][0], n);
            n += (size_t)ll_utf8_encode(c, text + n);
            memcpy(text + n, frames[f][1], strlen(frames[f][1]));
            n += strlen(frames[f][1]);
            assert_same_pieces(code, match, text, n);
        }
    }
    pcre2_match_data_free(match);
    pcre2_code_free(code);
}

static void known_code_points_have_their_class(void **state)
{
    (void)state;
    static const struct {
        uint32_t code, class;
    } cases[] = {
        {'a', LL_UNICODE_LETTER},    {0xaa, LL_UNICODE_LETTER},    {0x2b0, LL_UNICODE_LETTER},
        {0x300, LL_UNICODE_OTHER},   {'5', LL_UNICODE_NUMBER},     {0xb2, LL_UNICODE_NUMBER},
        {0x2163, LL_UNICODE_NUMBER}, {0x85, LL_UNICODE_SPACE},     {0x3000, LL_UNICODE_SPACE},
        {0x180e, LL_UNICODE_OTHER},  {0x200b, LL_UNICODE_OTHER},   {0x4e00, LL_UNICODE_LETTER},
        {0x9fff, LL_UNICODE_LETTER}, {0x31350, LL_UNICODE_LETTER}, {0x323af, LL_UNICODE_LETTER},
        {0x323b0, LL_UNICODE_OTHER}, {0x10ffff, LL_UNICODE_OTHER}, {0xd7a3, LL_UNICODE_LETTER},
        {0xac00, LL_UNICODE_LETTER}, {0x1f600, LL_UNICODE_OTHER},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (ll_unicode_class(cases[i].code) != cases[i].class)
            fail_msg("U+%04X has class %u", cases[i].code, ll_unicode_class(cases[i].code));
}

static void broken_bytes_are_pieces_of_their_own(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t n[6];
    } cases[] = {
        {"a\xff"
         "b",
         {1, 1, 1}},
        {" \xff", {1, 1}},
        {"  \xff", {1, 1, 1}},
        {"!\xe6\x97", {1, 1, 1}},
        {"\xc3"
         "a",
         {1, 1}},
        {"\xed\xa0\x80", {1, 1, 1}},
        {"\xe6\x97\xa5\xe6", {3, 1}},
        {"\n \xf0\x9f\x98", {1, 1, 1, 1, 1}},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        size_t n = strlen(cases[i].text);
        for (size_t at = 0, k = 0; at < n; k++) {
            assert_int_equal(ll_split_piece(cases[i].text + at, n - at), cases[i].n[k]);
            at += cases[i].n[k];
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_code_points_have_their_class),
        cmocka_unit_test(all_short_texts_split_as_the_regex_does),
        cmocka_unit_test(every_code_point_splits_as_the_regex_does),
        cmocka_unit_test(random_texts_split_as_the_regex_does),
        cmocka_unit_test(broken_bytes_are_pieces_of_their_own),
    };
    return cmocka_run_group_tests_name("split", tests, compare_classes, free_classes);
}
