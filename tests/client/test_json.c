/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_json.c - the strict reader: what it takes, what it refuses and where. */
#include "tests/harness.h"

#include "base/err.h"
#include "base/rng.h"
#include "client/text/json.h"
#include "ll/client.h"

static int check(const char *text, uint32_t flags)
{
    return ll_json_check(text, strlen(text), 0, flags, "test");
}

static void valid_texts_pass(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "0",
        "-0",
        "-0.5e-10",
        "1E+2",
        "\"\"",
        " true ",
        "null",
        "[]",
        "{}",
        "[[],{}]",
        "{\"a\":1,\"a\":2}",
        "\t[1 , 2\n,\r3 ]\n",
        "\"\\u0000\\ud83d\\ude00\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
        "\"\xf4\x8f\xbf\xbf \xef\xbf\xbf \x7f\"",
        "{\"\":{\"\":[{}]}}",
        "123456789012345678901234567890",
        "1e999",
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        if (check(texts[i], 0) != 0)
            fail_msg("%s refused: %s", texts[i], ll_err_text());
}

static void broken_texts_are_refused_at_the_right_byte(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t at;
        const char *reason;
    } cases[] = {
        {"", 0, "ends too early"},
        {"  ", 2, "ends too early"},
        {"1 2", 2, "after the JSON value"},
        {"{}}", 2, "after the JSON value"},
        {"[1,]", 3, "expected a value"},
        {"[,1]", 1, "expected a value"},
        {"[1 2]", 3, "expected ',' or ']'"},
        {"[1}", 2, "expected ',' or ']'"},
        {"{\"a\":1]", 6, "expected ',' or '}'"},
        {"{\"a\":1,}", 7, "expected a key"},
        {"{a:1}", 1, "expected a key"},
        {"{\"a\" 1}", 5, "expected ':'"},
        {"{\"a\":}", 5, "expected a value"},
        {"NaN", 0, "expected a value"},
        {"Infinity", 0, "expected a value"},
        {"-Infinity", 0, "minus sign"},
        {"nul", 0, "expected a value"},
        {"nulll", 4, "after the JSON value"},
        {"01", 0, "leading zero"},
        {"-01", 0, "leading zero"},
        {"1.", 2, "decimal point"},
        {".5", 0, "expected a value"},
        {"1e", 2, "exponent"},
        {"1e+", 3, "exponent"},
        {"+1", 0, "expected a value"},
        {"0x10", 1, "after the JSON value"},
        {"'a'", 0, "expected a value"},
        {"\"a", 0, "closing quote"},
        {"\"a\nb\"", 2, "control character"},
        {"\"a\\", 2, "ends inside a string"},
        {"\"\\x41\"", 1, "unknown escape"},
        {"\"\\u12g4\"", 1, "hexadecimal"},
        {"\"\\u12", 1, "hexadecimal"},
        {"\"\\ud800\"", 1, "surrogate"},
        {"\"\\ud800\\u0041\"", 1, "surrogate"},
        {"\"\\udc00\\ud800\"", 1, "surrogate"},
        {"\"\xc0\x80\"", 1, "UTF-8"},
        {"\"\xed\xa0\x80\"", 1, "UTF-8"},
        {"\"\xf4\x90\x80\x80\"", 1, "UTF-8"},
        {"\"ab\xe2\x82\"", 3, "UTF-8"},
        {"\xef\xbb\xbf{}", 0, "expected a value"},
        {"[1] // no", 4, "after the JSON value"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char where[64];
        assert_int_equal(check(cases[i].text, 0), LL_E_INVAL);
        snprintf(where, sizeof(where), "test: byte %zu: ", cases[i].at);
        if (strncmp(ll_err_text(), where, strlen(where)) != 0 ||
            strstr(ll_err_text(), cases[i].reason) == NULL)
            fail_msg("%s: \"%s\", expected %s%s", cases[i].text, ll_err_text(), where,
                     cases[i].reason);
    }
}

static void a_zero_byte_is_refused(void **state)
{
    (void)state;
    assert_int_equal(ll_json_check("1\0", 2, 0, 0, "test"), LL_E_INVAL);
    assert_int_equal(ll_json_check("\"a\0\"", 4, 0, 0, "test"), LL_E_INVAL);
    assert_int_equal(ll_json_check("\"\\\0\"", 4, 0, 0, "test"), LL_E_INVAL);
}

static void depth_is_limited_and_costs_no_stack(void **state)
{
    (void)state;
    static char text[200001];

    for (uint32_t depth = 63; depth <= 65; depth++) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        assert_int_equal(ll_json_check(text, 2 * depth, 0, 0, "test"),
                         depth <= 64 ? 0 : LL_E_INVAL);
        assert_int_equal(ll_json_check(text, 2 * depth, 256, 0, "test"), 0);
    }
    memset(text, '[', 200000);
    assert_int_equal(ll_json_check(text, 200000, 256, 0, "test"), LL_E_INVAL);
    assert_non_null(strstr(ll_err_text(), "byte 256: nested too deeply"));
}

static void repeated_keys_are_found_however_written(void **state)
{
    (void)state;
    assert_int_equal(check("{\"a\":1,\"b\":2,\"a\":3}", 0), 0);
    assert_int_equal(check("{\"a\":1,\"b\":2,\"a\":3}", LL_JSON_UNIQUE), LL_E_INVAL);
    assert_non_null(strstr(ll_err_text(), "byte 14: the key \"a\" stands twice"));
    assert_int_equal(check("{\"a\":1,\"\\u0061\":3}", LL_JSON_UNIQUE), LL_E_INVAL);
    assert_int_equal(check("{\"\xc3\xa9\":1,\"\\u00e9\":3}", LL_JSON_UNIQUE), LL_E_INVAL);
    assert_int_equal(check("{\"\xf0\x9f\x98\x80x\":1,\"\\ud83d\\ude00\\u0078\":3}", LL_JSON_UNIQUE),
                     LL_E_INVAL);
    assert_int_equal(check("{\"\":{\"a\":0},\"b\":[{\"a\":1},{\"a\":2}],\"a\":{}}", LL_JSON_UNIQUE),
                     0);
    assert_int_equal(check("{\"x\":{\"a\":0,\"b\":[{\"a\":1}],\"a\":2}}", LL_JSON_UNIQUE),
                     LL_E_INVAL);
    assert_int_equal(check("{\"a\":1,\"aa\":2,\"\\u0061a\\u0061\":3}", LL_JSON_UNIQUE), 0);
}

static void tokens_come_in_order_with_spans(void **state)
{
    (void)state;
    const char *text = " {\"k\\n\": [1.5, \"v\"], \"x\": {\"y\": [true]}, \"z\": null} ";
    struct ll_json json;
    char out[8];
    const char *span;
    size_t n_span;

    ll_json_init(&json, text, strlen(text), 0);
    assert_int_equal(ll_json_next(&json), LL_JSON_OBJECT);
    assert_int_equal(ll_json_next(&json), LL_JSON_KEY);
    assert_true(ll_json_is(&json, "k\n"));
    assert_false(ll_json_is(&json, "k"));
    assert_false(ll_json_is(&json, "k\nx"));
    assert_int_equal(ll_json_string(&json, out, sizeof(out)), 2);
    assert_memory_equal(out, "k\n", 2);
    assert_int_equal(ll_json_next(&json), LL_JSON_ARRAY);
    assert_int_equal(ll_json_next(&json), LL_JSON_NUMBER);
    double number;
    int64_t integer;
    assert_true(ll_json_double(&json, &number) && number == 1.5);
    assert_false(ll_json_int(&json, &integer));
    assert_int_equal(ll_json_skip(&json, &span, &n_span), LL_JSON_STRING);
    assert_int_equal(n_span, 3);
    assert_memory_equal(span, "\"v\"", 3);
    assert_int_equal(ll_json_skip(&json, &span, &n_span), LL_JSON_ARRAY_END);
    assert_int_equal(ll_json_next(&json), LL_JSON_KEY);
    assert_int_equal(ll_json_skip(&json, &span, &n_span), LL_JSON_OBJECT);
    assert_int_equal(n_span, 13);
    assert_memory_equal(span, "{\"y\": [true]}", 13);
    assert_int_equal(ll_json_next(&json), LL_JSON_KEY);
    assert_int_equal(json.span_at, 42);
    assert_int_equal(ll_json_next(&json), LL_JSON_NULL);
    assert_int_equal(ll_json_next(&json), LL_JSON_OBJECT_END);
    assert_int_equal(json.depth, 0);
    assert_int_equal(ll_json_next(&json), LL_JSON_END);
    assert_int_equal(ll_json_next(&json), LL_JSON_END);
}

static void numbers_convert_exactly_or_not_at_all(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool is_int, is_double;
        int64_t integer;
        double number;
    } cases[] = {
        {"9223372036854775807", true, true, INT64_MAX, 0x1p63},
        {"-9223372036854775808", true, true, INT64_MIN, -0x1p63},
        {"9223372036854775808", false, true, 0, 0x1p63},
        {"-9223372036854775809", false, true, 0, -0x1p63},
        {"-0", true, true, 0, -0.0},
        {"1e3", false, true, 0, 1000},
        {"1.0", false, true, 0, 1},
        {"1e308", false, true, 0, 1e308},
        {"1e309", false, false, 0, 0},
        {"4.9e-324", false, true, 0, 0x1p-1074},
        {"0.1", false, true, 0, 0.1},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct ll_json json;
        int64_t integer;
        double number;
        ll_json_init(&json, cases[i].text, strlen(cases[i].text), 0);
        assert_int_equal(ll_json_next(&json), LL_JSON_NUMBER);
        assert_int_equal(ll_json_int(&json, &integer), cases[i].is_int);
        if (cases[i].is_int)
            assert_true(integer == cases[i].integer);
        assert_int_equal(ll_json_double(&json, &number), cases[i].is_double);
        if (cases[i].is_double)
            assert_memory_equal(&number, &cases[i].number, sizeof(number));
    }
}

static void a_short_buffer_counts_what_it_drops(void **state)
{
    (void)state;
    const char *text = "\"ab\\u20accd\"";
    struct ll_json json;
    char out[4] = "....";

    ll_json_init(&json, text, strlen(text), 0);
    assert_int_equal(ll_json_next(&json), LL_JSON_STRING);
    assert_int_equal(ll_json_string(&json, NULL, 0), 7);
    assert_int_equal(ll_json_string(&json, out, 3), 7);
    assert_memory_equal(out, "ab\xe2.", 4);
}

static void assert_prints(const char *text, uint32_t indent, const char *expected)
{
    char out[512];
    struct ll_sink sink = {.bytes = out, .capacity = sizeof(out) - 1};

    assert_int_equal(ll_json_print(&sink, text, strlen(text), indent, "test"), 0);
    assert_true(sink.n < sizeof(out));
    out[sink.n] = '\0';
    assert_string_equal(out, expected);

    struct ll_sink none = {0};
    assert_int_equal(ll_json_print(&none, text, strlen(text), indent, "test"), 0);
    assert_int_equal(none.n, sink.n);
}

/* Expected texts come from Python 3: json.dumps(json.loads(text), ensure_ascii=False[, indent=4])
 */
static void printing_is_what_python_prints(void **state)
{
    (void)state;
    const char *text =
        "{\"b\":[1,2.50,{}],\"a\" : {\"x\":[],\"\\u00e9\\/\":\"q\\\"\\u0001\\u007f\\ud83d\\ude00"
        "\\u2028\"},\"c\":[[null,true]]}";
    assert_prints(text, 0,
                  "{\"b\": [1, 2.50, {}], \"a\": {\"x\": [], \"\xc3\xa9/\": \"q\\\"\\u0001\x7f"
                  "\xf0\x9f\x98\x80\xe2\x80\xa8\"}, \"c\": [[null, true]]}");
    assert_prints(text, 4,
                  "{\n    \"b\": [\n        1,\n        2.50,\n        {}\n    ],\n    \"a\": {\n"
                  "        \"x\": [],\n        \"\xc3\xa9/\": \"q\\\"\\u0001\x7f\xf0\x9f\x98\x80"
                  "\xe2\x80\xa8\"\n    },\n    \"c\": [\n        [\n            null,\n"
                  "            true\n        ]\n    ]\n}");
    assert_prints("[]", 4, "[]");
    assert_prints(" \"\\ud83d\\ude00\\ud83d\\ude01\\u0041\" ", 4,
                  "\"\xf0\x9f\x98\x80\xf0\x9f\x98\x81"
                  "A\"");
    assert_prints("[{}]", 2, "[\n  {}\n]");

    struct ll_sink none = {0};
    assert_int_equal(ll_json_print(&none, "[1", 2, 0, "tools"), LL_E_INVAL);
    assert_non_null(strstr(ll_err_text(), "tools: byte 2"));
}

static void quoting_escapes_as_python_does(void **state)
{
    (void)state;
    char out[64];
    struct ll_sink sink = {.bytes = out, .capacity = sizeof(out)};

    ll_json_quote(&sink, "a\"\\/\b\f\n\r\t\0\x1f\x7f\xff", 13);
    const char expected[] = "\"a\\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\x7f\xff\"";
    assert_int_equal(sink.n, sizeof(expected) - 1);
    assert_memory_equal(out, expected, sink.n);
}

/* Damages valid texts byte by byte; the reader must end, stay inside the buffer (a heap block, for
 * ASan) and, when it accepts, print something it accepts again with the same meaning. */
static void damaged_texts_never_crash(void **state)
{
    (void)state;
    static const char *const seeds[] = {
        "{\"model\":{\"vocab\":{\"a\":0,\"\\u0120b\":1},\"merges\":[\"a "
        "b\",[\"c\",\"d\"]]},\"n\":-1.5e3}",
        "[true,false,null,\"\\ud83d\\ude00 \xf0\x9f\x98\x80\",[[[{}]]],{\"k\":{\"k\":[0]}}]",
    };
    static const char alphabet[] = "{}[]\",:\\u0dD8tfn-1.eE \n\x80\xc3\xe2\xf0";
    uint64_t seed = ll_test_seed();
    int n_accepted = 0;

    for (int round = 0; round < 200000; round++) {
        const char *from = seeds[round % 2];
        size_t n = strlen(from);
        if (ll_splitmix64(&seed) % 4 == 0)
            n = ll_splitmix64(&seed) % (n + 1);
        char *text = malloc(n + 1);
        memcpy(text, from, n);
        for (uint64_t k = ll_splitmix64(&seed) % 4; k > 0 && n > 0; k--)
            text[ll_splitmix64(&seed) % n] =
                alphabet[ll_splitmix64(&seed) % (sizeof(alphabet) - 1)];
        char *exact = realloc(text, n > 0 ? n : 1);
        if (ll_json_check(exact, n, 0, LL_JSON_UNIQUE, "test") == 0) {
            char out[1024], again[1024];
            struct ll_sink first = {out, sizeof(out), 0}, second = {again, sizeof(again), 0};
            assert_int_equal(ll_json_print(&first, exact, n, 4, "test"), 0);
            assert_true(first.n <= sizeof(out));
            assert_int_equal(ll_json_check(out, first.n, 0, LL_JSON_UNIQUE, "test"), 0);
            assert_int_equal(ll_json_print(&second, out, first.n, 4, "test"), 0);
            assert_int_equal(second.n, first.n);
            assert_memory_equal(out, again, first.n);
            n_accepted++;
        }
        free(exact);
    }
    assert_true(n_accepted > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(valid_texts_pass),
        cmocka_unit_test(broken_texts_are_refused_at_the_right_byte),
        cmocka_unit_test(a_zero_byte_is_refused),
        cmocka_unit_test(depth_is_limited_and_costs_no_stack),
        cmocka_unit_test(repeated_keys_are_found_however_written),
        cmocka_unit_test(tokens_come_in_order_with_spans),
        cmocka_unit_test(numbers_convert_exactly_or_not_at_all),
        cmocka_unit_test(a_short_buffer_counts_what_it_drops),
        cmocka_unit_test(printing_is_what_python_prints),
        cmocka_unit_test(quoting_escapes_as_python_does),
        cmocka_unit_test(damaged_texts_never_crash),
    };
    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
