/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_toolcalls.c - every form of tool call that Llama emits, cut into tokens in
 * every way, and everything that only looks like one. */
#include "tests/harness.h"

#include "base/rng.h"
#include "client/text/json.h"
#include "client/text/literal.h"
#include "ll/text.h"

#define TOOLS                                                                                      \
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"name\":\"no\"}}},"     \
    "{\"name\":\"get_weather\"},{\"type\":\"function\",\"function\":{\"name\":\"a-b.c\"}},"        \
    "{\"type\":\"function\",\"function\":{\"name\":\"brave_search\"}}]"
#define WITH_CODE "[{\"type\":\"code_interpreter\"},{\"name\":\"f\"}]"
#define TAG       "<|python_tag|>"

static struct ll_tokenizer *tokenizer;
static uint32_t byte_ids[256]; /* the id of each single byte */

static int setup(void **state)
{
    const char *path = ll_test_source("tools/demo-model/tokenizer.json");

    (void)state;
    if (ll_tokenizer_from_path(&tokenizer, path) < 0)
        return -1;
    for (uint32_t id = 0; id < ll_tokenizer_n_vocab(tokenizer); id++) {
        size_t n;
        const char *bytes = ll_tokenizer_bytes(tokenizer, id, &n);
        if (bytes != NULL && n == 1 && !ll_tokenizer_is_special(tokenizer, id))
            byte_ids[(uint8_t)bytes[0]] = id;
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    ll_tokenizer_free(tokenizer);
    return 0;
}

/* ---- running a text through the machine -------------------------------------------------------*/

enum cut { CUT_TOKENS, CUT_BYTES, CUT_RANDOM };

/* Ids of text. Special tokens in it are ids of their own; the rest is encoded whole, byte by byte,
 * or in random pieces. */
static size_t cut_text(const char *text, size_t n, enum cut cut, uint64_t *rng, uint32_t *ids,
                       size_t n_max)
{
    size_t n_ids = 0;

    if (cut == CUT_TOKENS)
        return (size_t)ll_encode(tokenizer, text, n, LL_ENCODE_SPECIAL, ids, n_max);
    for (size_t at = 0; at < n;) {
        const char *end = n - at > 2 && memcmp(text + at, "<|", 2) == 0
                              ? memmem(text + at, n - at, "|>", 2)
                              : NULL;
        if (end != NULL) {
            size_t length = (size_t)(end + 2 - (text + at));
            uint32_t id = ll_tokenizer_special(tokenizer, text + at, length);
            if (id != UINT32_MAX) {
                ids[n_ids++] = id;
                at += length;
                continue;
            }
        }
        size_t piece = 1;
        if (cut == CUT_RANDOM) {
            const char *next = memmem(text + at + 1, n - at - 1, "<|", 2);
            size_t most = next != NULL ? (size_t)(next - (text + at)) : n - at;
            piece = 1 + ll_splitmix64(rng) % 9;
            piece = piece < most ? piece : most;
        }
        if (cut == CUT_BYTES)
            ids[n_ids++] = byte_ids[(uint8_t)text[at]];
        else
            n_ids += (size_t)ll_encode(tokenizer, text + at, piece, 0, ids + n_ids, n_max - n_ids);
        at += piece;
    }
    return n_ids;
}

struct result {
    char *text; /* "C[content]N0[name]A0[arguments]..."; pieces of one kind joined */
    size_t n, n_max;
    uint32_t last_type, last_index;
};

static void add_event(struct result *result, const struct ll_toolcalls_event *event)
{
    assert_in_range(event->type, LL_TOOL_CONTENT, LL_TOOL_ARGUMENTS);
    assert_true(event->n_text > 0);
    assert_true(result->n + event->n_text + 32 < result->n_max);
    if (result->n > 0 && event->type == result->last_type && event->index == result->last_index &&
        event->type != LL_TOOL_NAME)
        result->n--; /* its ']' */
    else if (event->type == LL_TOOL_CONTENT)
        result->n += (size_t)sprintf(result->text + result->n, "C[");
    else
        result->n += (size_t)sprintf(result->text + result->n, "%c%u[",
                                     event->type == LL_TOOL_NAME ? 'N' : 'A', event->index);
    memcpy(result->text + result->n, event->text, event->n_text);
    result->n += event->n_text;
    result->text[result->n++] = ']';
    result->text[result->n] = '\0';
    result->last_type = event->type;
    result->last_index = event->index;
}

static void drain(struct ll_toolcalls *calls, struct result *result)
{
    struct ll_toolcalls_event event;
    int rc;

    while ((rc = ll_toolcalls_next(calls, &event)) == 1)
        add_event(result, &event);
    assert_int_equal(rc, 0);
}

static char *run(const char *tools, const char *text, size_t n, enum cut cut, uint64_t *rng)
{
    static uint32_t ids[1u << 20];
    struct ll_toolcalls *calls;
    struct result result = {.n_max = 16 * n + 4096}; /* escapes take 6, the marks of events 4 */
    size_t n_ids = cut_text(text, n, cut, rng, ids, 1u << 20);

    result.text = calloc(1, result.n_max);
    assert_in_range(n_ids, 0, 1u << 20);
    assert_int_equal(ll_toolcalls_new(&calls, tokenizer, tools, tools != NULL ? strlen(tools) : 0),
                     0);
    for (size_t i = 0; i < n_ids; i++) {
        assert_int_equal(ll_toolcalls_feed(calls, ids[i]), 0);
        drain(calls, &result);
    }
    assert_int_equal(ll_toolcalls_finish(calls), 0);
    drain(calls, &result);
    ll_toolcalls_free(calls);
    return result.text;
}

/* The same events for every way to cut the text. */
static void assert_reads(const char *tools, const char *text, const char *wanted)
{
    uint64_t rng = ll_test_seed();

    for (int turn = 0; turn < 8; turn++) {
        enum cut cut = turn == 0 ? CUT_TOKENS : turn == 1 ? CUT_BYTES : CUT_RANDOM;
        char *got = run(tools, text, strlen(text), cut, &rng);
        if (strcmp(got, wanted) != 0)
            fail_msg("cut %d of \"%s\":\n  got    %s\n  wanted %s", turn, text, got, wanted);
        free(got);
    }
}

/* ---- the forms --------------------------------------------------------------------------------*/

static void json_object_is_a_call(void **state)
{
    (void)state;
    assert_reads(TOOLS, "{\"name\": \"f\", \"parameters\": {\"a\": 1}}", "N0[f]A0[{\"a\": 1}]");
    assert_reads(TOOLS, "{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}",
                 "N0[f]A0[{}]");
    assert_reads(TOOLS, "\n {\"name\":\"f\",\"arguments\":{\"s\":\"a;b}{\\\"\"}}\n",
                 "N0[f]A0[{\"s\":\"a;b}{\\\"\"}]");
    assert_reads(TOOLS, "{\"parameters\": {\"x\": [1, {\"y\": null}]}, \"name\": \"a-b.c\"}",
                 "N0[a-b.c]A0[{\"x\": [1, {\"y\": null}]}]");
    assert_reads(TOOLS, "{\"n\\u0061me\": \"\\u0066\", \"parameters\": {}}", "N0[f]A0[{}]");
    assert_reads(TOOLS, "{\"name\": \"f\", \"parameters\": null}", "N0[f]A0[{}]");
    assert_reads(TOOLS, "{\"parameters\": null, \"name\": \"f\"}", "N0[f]A0[{}]");
    assert_reads(TOOLS,
                 "{\"id\": [1, {\"name\": \"x\"}], \"k\": -1.5e3, \"t\": true, \"name\": \"f\", "
                 "\"parameters\": {\"\u00e9\": \"\u65e5\U0001f600\"}, \"z\": 0}",
                 "N0[f]A0[{\"\u00e9\": \"\u65e5\U0001f600\"}]");
    /* Names and arguments that come again do not count. */
    assert_reads(TOOLS,
                 "{\"name\": \"f\", \"parameters\": {}, \"name\": \"g\", \"parameters\": {\"a\": "
                 "1}, \"arguments\": 3}",
                 "N0[f]A0[{}]");
}

static void python_tag_opens_a_call_anywhere(void **state)
{
    (void)state;
    assert_reads(TOOLS, TAG "{\"name\": \"f\", \"parameters\": {}}<|eom_id|>", "N0[f]A0[{}]");
    assert_reads(TOOLS, "Let me see." TAG "{\"name\": \"f\", \"parameters\": {}}<|eom_id|>",
                 "C[Let me see.]N0[f]A0[{}]");
    assert_reads(TOOLS, TAG "brave_search.call(query=\"who is \\\"x\\\" (y)\")<|eom_id|>",
                 "N0[brave_search]A0[{\"query\": \"who is \\\"x\\\" (y)\"}]");
    assert_reads(TOOLS, TAG "get_weather(city=\"x\", days=3)",
                 "N0[get_weather]A0[{\"city\": \"x\", \"days\": 3}]");
    assert_reads(TOOLS, TAG "[f()]", "N0[f]A0[{}]");
    assert_reads(TOOLS, TAG "<function=f>{}</function>", "N0[f]A0[{}]");
    assert_reads(TOOLS, TAG "print(f(1))<|eom_id|>", "C[print(f(1))]");
    assert_reads(TOOLS, "brave_search.call(query=\"x\")", "C[brave_search.call(query=\"x\")]");
    assert_reads(TOOLS, TAG " ", "");
    assert_reads(TOOLS, TAG TAG "{\"name\": \"f\", \"parameters\": {}}" TAG "[f(a=1)]",
                 "N0[f]A0[{}]N1[f]A1[{\"a\": 1}]");
    /* It ends a call that is not over. */
    assert_reads(TOOLS, "{\"name\": \"f\", \"parameters\": {\"a\": \"" TAG "[f()]",
                 "N0[f]A0[{\"a\": \"]N1[f]A1[{}]");
}

static void code_is_a_call_where_the_code_tool_is_given(void **state)
{
    (void)state;
    assert_reads(WITH_CODE, TAG "x = \"1\"\nprint(x)\\<|eom_id|>",
                 "N0[code_interpreter]A0[{\"code\": \"x = \\\"1\\\"\\nprint(x)\\\\\"}]");
    assert_reads(WITH_CODE, TAG "{'a': 1}", "N0[code_interpreter]A0[{\"code\": \"{'a': 1}\"}]");
    assert_reads(WITH_CODE, TAG "\u00e9", "N0[code_interpreter]A0[{\"code\": \"\u00e9\"}]");
    assert_reads(WITH_CODE, TAG "f(a=1)", "N0[f]A0[{\"a\": 1}]");
    assert_reads(WITH_CODE, TAG "[f()] and", "N0[f]A0[{}]C[ and]");
    assert_reads(WITH_CODE, "x = 1", "C[x = 1]");
}

static void function_tag_is_a_call(void **state)
{
    (void)state;
    assert_reads(TOOLS, "<function=get_weather>{\"city\": \"</function>\"}</function><|eot_id|>",
                 "N0[get_weather]A0[{\"city\": \"</function>\"}]");
    assert_reads(TOOLS, "<function=f>{}</function>\n<function=f>{\"a\":{}}</function>",
                 "N0[f]A0[{}]N1[f]A1[{\"a\":{}}]");
    assert_reads(TOOLS, "<function=f> {} </function>; done", "N0[f]A0[{}]C[; done]");
    assert_reads(TOOLS, "<function=f>{\"a\": 1}", "N0[f]A0[{\"a\": 1}]"); /* eot comes at once */
    assert_reads(TOOLS, "<function=g>{}</function>", "C[<function=g>{}</function>]");
    assert_reads(TOOLS, "<function=f>[1]</function>", "C[<function=f>[1]</function>]");
    assert_reads(TOOLS, "<functional", "C[<functional]");
    assert_reads(TOOLS, "<function=f>{}</funct", "N0[f]A0[{}]C[</funct]");
    assert_reads(TOOLS, "<function=f>{}</b>", "N0[f]A0[{}]C[</b>]");
}

static void python_list_holds_calls(void **state)
{
    (void)state;
    assert_reads(TOOLS, "[f(a='x', b=1), get_weather()]",
                 "N0[f]A0[{\"a\": \"x\", \"b\": 1}]N1[get_weather]A1[{}]");
    assert_reads(TOOLS, "[ f ( ) ]", "C[[ f ( ) ]]"); /* a name ends in its '(' */
    assert_reads(TOOLS, "[f( a = -1.5e-3 , b = True,c=[None, (1, 2,), {}], d={'k': \"it's\",},)\n]",
                 "N0[f]A0[{\"a\": -1.5e-3, \"b\": true, \"c\": [null, [1, 2], {}], \"d\": {\"k\": "
                 "\"it's\"}}]");
    assert_reads(TOOLS, "[f(s='\\'\\x41\\u00e9\\U0001F600\\n\\t\"\\\\\\d')]",
                 "N0[f]A0[{\"s\": \"'A\u00e9\U0001f600\\n\\t\\\"\\\\\\\\d\"}]");
    assert_reads(TOOLS, "[f(s='\\ud83d\\ude00')]", "N0[f]A0[{\"s\": \"\U0001f600\"}]");
    assert_reads(TOOLS, "[f(a=true, b=null)]", "N0[f]A0[{\"a\": true, \"b\": null}]");
    assert_reads(TOOLS, "[f(x=[1]), g(y=2)]", "N0[f]A0[{\"x\": [1]}]C[, g(y=2)]]");
    assert_reads(TOOLS, "[f(1)]", "C[[f(1)]]"); /* no name, no place in an object */
    assert_reads(TOOLS, "[f](http://x)", "C[[f](http://x)]");
    assert_reads(TOOLS, "[1] says", "C[[1] says]");
    assert_reads(TOOLS, "[f()] ok", "N0[f]A0[{}]C[ ok]");
    assert_reads(TOOLS, "[f(),]", "N0[f]A0[{}]");
    assert_reads(TOOLS, "[f() f()]", "N0[f]A0[{}]C[ f()]]");
}

static void several_objects_are_several_calls(void **state)
{
#define ONE "{\"name\": \"f\", \"parameters\": {\"a\": \"; \"}}"
#define TWO "N0[f]A0[{\"a\": \"; \"}]N1[f]A1[{\"a\": \"; \"}]"
    (void)state;
    assert_reads(TOOLS, ONE "; " ONE, TWO);
    assert_reads(TOOLS, ONE ";" ONE ";", TWO);
    assert_reads(TOOLS, ONE "\n" ONE, TWO);
    assert_reads(TOOLS, ONE ",\n\n" ONE, TWO);
    assert_reads(TOOLS, ONE ONE, TWO);
    assert_reads(TOOLS, "[" ONE ", " ONE "]", TWO);
    assert_reads(TOOLS, "[" ONE " " ONE "]", "N0[f]A0[{\"a\": \"; \"}]C[ " ONE "]]");
    assert_reads(TOOLS, ONE ";;" ONE, "N0[f]A0[{\"a\": \"; \"}]C[;;" ONE "]");
    assert_reads(TOOLS, ONE " I hope so. " ONE, "N0[f]A0[{\"a\": \"; \"}]C[ I hope so. " ONE "]");
    assert_reads(TOOLS, ONE "; {\"name\": \"g\", \"parameters\": {}}",
                 "N0[f]A0[{\"a\": \"; \"}]C[; {\"name\": \"g\", \"parameters\": {}}]");
}

/* ---- what is no call --------------------------------------------------------------------------*/

static void anything_else_is_content_unchanged(void **state)
{
    static const char *const texts[] = {
        "Hello",
        " ",
        "",
        "\n\nHi \u65e5\u672c",
        "{",
        "{}",
        "{ }",
        "[",
        "[]",
        "<",
        "{\"name\": \"f\"}",
        "{\"name\": \"f\", \"x\": {}}",
        "{\"name\": \"g\", \"parameters\": {}}",
        "{\"parameters\": {\"a\": 1}}",
        "{\"name\": 1, \"parameters\": {}}",
        "{\"name\": \"f\", \"parameters\": []}",
        "{\"name\": \"f\", \"parameters\": \"{}\"}",
        "{\"name\": \"f\", \"parameters\": nul",
        "{name: \"f\"}",
        "{'name': 'f'}",
        "{\"name\" \"f\"}",
        "{\"parameters\": {\"a\": 01}, \"name\": \"f\"}",
        "{\"parameters\": {\"a\": \"\\ud800\"}, \"name\": \"f\"}",
        "{\"parameters\": {\"a\": \"\\udc00\"}, \"name\": \"f\"}",
        "{\"parameters\": {\"a\": \"\\ud800\\u0041\"}, \"name\": \"f\"}",
        "{\"name\": \"f",
        "Use {\"name\": \"f\", \"parameters\": {}} to call.",
        "```json\n{\"name\": \"f\", \"parameters\": {}}\n```",
        "{broken} {\"name\": \"f\", \"parameters\": {}}",
        "{\"name\": \"f\",, \"parameters\": {}}",
        "{\"name\": \"\", \"parameters\": {}}",
        "{\"a\": 1} {\"name\": \"f\", \"parameters\": {}}",
        "{\"parameters\": {\"a\": [1,]}, \"name\": \"f\"}",
        "\xef\xbf\xbd",
        "[f(a==1)",
        "[f (",
        "<function=f",
        "<function=>{}",
        "[[f()]]",
    };
    char wanted[512];

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (strcmp(texts[i], "[f(a==1)") == 0)
            snprintf(wanted, sizeof(wanted), "N0[f]A0[{\"a\": ]C[=1)]");
        else if (texts[i][0] == '\0')
            wanted[0] = '\0';
        else
            snprintf(wanted, sizeof(wanted), "C[%s]", texts[i]);
        assert_reads(TOOLS, texts[i], wanted);
    }
    assert_reads(NULL, ONE, "C[" ONE "]");
    assert_reads("[]", ONE, "C[" ONE "]");
}

static void call_that_breaks_late_keeps_what_was_said(void **state)
{
    (void)state;
    assert_reads(TOOLS, "{\"name\": \"f\", \"parameters\": {\"a\": 1]} more",
                 "N0[f]A0[{\"a\": 1]C[]} more]");
    assert_reads(TOOLS, "{\"name\": \"f\", \"parameters\": {\"a\": 1} oops",
                 "N0[f]A0[{\"a\": 1}]C[oops]");
    assert_reads(TOOLS, "{\"name\": \"f\", \"parameters\": {\"a\": \"cut off",
                 "N0[f]A0[{\"a\": \"cut off]");
    /* A raw line feed in a string is what models do; it comes out as JSON wants it. */
    assert_reads(TOOLS, "{\"name\": \"f\", \"parameters\": {\"a\": \"x\ny\"}}",
                 "N0[f]A0[{\"a\": \"x\\ny\"}]");
}

static void hostile_sizes_stay_bounded(void **state)
{
    size_t n = 300000;
    char *text = malloc(n + 64);
    uint64_t rng = ll_test_seed();

    (void)state;
    /* A key, a name, arguments before the name, white space, a nesting that never ends: all
     * content, nothing lost. */
    static const char *const starts[] = {"{\"",
                                         "{\"name\": \"",
                                         "{\"parameters\": {\"a\": \"",
                                         " ",
                                         "{\"parameters\": {\"a\": [",
                                         "[f",
                                         "<function=",
                                         "[",
                                         "{\"x\": 1"};
    static const char fills[] = "xyz [n f1";
    for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++) {
        size_t n_start = strlen(starts[i]);
        memset(text, fills[i], n);
        memcpy(text, starts[i], n_start);
        char *got = run(TOOLS, text, n, CUT_TOKENS, &rng);
        assert_int_equal(strlen(got), n + 3);
        assert_memory_equal(got, "C[", 2);
        assert_memory_equal(got + 2, text, n);
        free(got);
    }
    /* Arguments of any size stream through. */
    static const char start[] = "{\"name\": \"f\", \"parameters\": {\"a\": \"";
    memset(text, 'x', n);
    memcpy(text, start, strlen(start));
    strcpy(text + n, "\"}}");
    char *got = run(TOOLS, text, n + 3, CUT_TOKENS, &rng);
    assert_memory_equal(got, "N0[f]A0[{\"a\": \"x", 16);
    assert_int_equal(strlen(got), strlen("N0[f]A0[{\"a\": \"\"}]") + n - strlen(start));
    free(got);
    free(text);
}

/* What is held comes out once it is too much for a call, not only when the message ends. */
static void candidate_that_holds_too_much_is_let_go(void **state)
{
    struct ll_toolcalls *calls;
    struct ll_toolcalls_event event;
    uint32_t n_fed = 0;

    (void)state;
    assert_int_equal(ll_toolcalls_new(&calls, tokenizer, TOOLS, strlen(TOOLS)), 0);
    do {
        assert_int_equal(ll_toolcalls_feed(calls, byte_ids[' ']), 0);
        assert_true(++n_fed <= 65536);
    } while (ll_toolcalls_next(calls, &event) == 0);
    assert_int_equal(event.type, LL_TOOL_CONTENT);
    assert_int_equal(event.n_text, n_fed);
    ll_toolcalls_free(calls);
}

/* ---- random text ------------------------------------------------------------------------------*/

/* Arguments of every call that the machine closes are strict JSON objects; every cut gives the
 * same. */
static void random_mixtures_read_the_same_in_every_cut(void **state)
{
    static const char *const pieces[] = {"{",
                                         "}",
                                         "[",
                                         "]",
                                         "(",
                                         ")",
                                         "\"",
                                         "'",
                                         ":",
                                         ",",
                                         ";",
                                         " ",
                                         "\n",
                                         "\\",
                                         "\\u00",
                                         "41",
                                         "\"name\"",
                                         "\"f\"",
                                         "\"parameters\"",
                                         "\"arguments\"",
                                         "{\"name\": \"f\", \"parameters\": ",
                                         "{\"a\": 1}",
                                         "f(",
                                         "a=",
                                         "'x'",
                                         "True",
                                         "None",
                                         "-1.5",
                                         "<function=f>",
                                         "</function>",
                                         TAG,
                                         "[f(a=",
                                         ONE,
                                         "[f()]",
                                         "\u00e9",
                                         "\U0001f600",
                                         "null",
                                         "<|eom_id|>",
                                         "brave_search.call(",
                                         "query=\"x\")",
                                         "0",
                                         "e",
                                         "\t",
                                         "x"};
    uint64_t rng = ll_test_seed();
    char text[1024];
    uint32_t n_calls = 0;

    (void)state;
    for (int turn = 0; turn < 4000; turn++) {
        size_t n = 0;
        const char *tools = turn % 3 == 0 ? WITH_CODE : TOOLS;
        for (int k = (int)(ll_splitmix64(&rng) % 14); k >= 0; k--)
            n += (size_t)sprintf(
                text + n, "%s", pieces[ll_splitmix64(&rng) % (sizeof(pieces) / sizeof(pieces[0]))]);
        char *whole = run(tools, text, n, CUT_TOKENS, &rng);
        char *bytes = run(tools, text, n, CUT_BYTES, &rng);
        char *random = run(tools, text, n, CUT_RANDOM, &rng);
        if (strcmp(whole, bytes) != 0 || strcmp(whole, random) != 0)
            fail_msg("\"%s\"\n  tokens %s\n  bytes  %s\n  random %s", text, whole, bytes, random);
        n_calls += strstr(whole, "N0[") != NULL;
        free(whole);
        free(bytes);
        free(random);
    }
    assert_true(n_calls > 100);
}

static void literals_come_out_as_strict_json_or_fault(void **state)
{
    static const char alphabet[] = "{}[]()\"':,=\\ux0123456789abcdefTrueNonFalsenull.-+ \n\x01n";
    uint64_t rng = ll_test_seed();
    uint32_t n_done = 0;

    (void)state;
    for (int turn = 0; turn < 400000; turn++) {
        struct ll_literal literal;
        char out[1024];
        size_t n_out = 0;
        enum ll_literal_result result = LL_LITERAL_MORE;
        if (turn % 3 == 0)
            ll_literal_init_call(&literal);
        else
            ll_literal_init(&literal, turn % 3 == 1);
        for (int i = 0; i < 60 && result == LL_LITERAL_MORE; i++) {
            result =
                ll_literal_feed(&literal, alphabet[ll_splitmix64(&rng) % (sizeof(alphabet) - 1)]);
            if (result >= 0) {
                memcpy(out + n_out, literal.out, literal.n_out);
                n_out += literal.n_out;
            }
        }
        if (result > 0) {
            n_done++;
            if (ll_json_check(out, n_out, 0, 0, "output") < 0)
                fail_msg("%s: %.*s", ll_error_text(), (int)n_out, out);
        }
    }
    assert_true(n_done > 10000);
}

static void bad_arguments_are_refused(void **state)
{
    static const char *const bad[] = {"",
                                      "{}",
                                      "[1]",
                                      "[{}]",
                                      "[{\"name\": 1}]",
                                      "[{\"name\": \"\"}]",
                                      "[{\"function\": 1}]",
                                      "[{\"name\":\"a\",\"name\":\"b\"}]",
                                      "[{\"name\": \"a\\u0000\"}]",
                                      "[{\"type\": 3}]",
                                      "["};
    struct ll_toolcalls *calls;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(ll_toolcalls_new(&calls, tokenizer, bad[i], strlen(bad[i])), LL_E_INVAL);
        assert_non_null(strstr(ll_error_text(), "tools"));
    }
    assert_int_equal(ll_toolcalls_new(&calls, tokenizer, TOOLS, strlen(TOOLS)), 0);
    assert_int_equal(ll_toolcalls_feed(calls, UINT32_MAX), LL_E_INVAL);
    ll_toolcalls_free(calls);
    ll_toolcalls_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_object_is_a_call),
        cmocka_unit_test(python_tag_opens_a_call_anywhere),
        cmocka_unit_test(code_is_a_call_where_the_code_tool_is_given),
        cmocka_unit_test(function_tag_is_a_call),
        cmocka_unit_test(python_list_holds_calls),
        cmocka_unit_test(several_objects_are_several_calls),
        cmocka_unit_test(anything_else_is_content_unchanged),
        cmocka_unit_test(call_that_breaks_late_keeps_what_was_said),
        cmocka_unit_test(hostile_sizes_stay_bounded),
        cmocka_unit_test(candidate_that_holds_too_much_is_let_go),
        cmocka_unit_test(random_mixtures_read_the_same_in_every_cut),
        cmocka_unit_test(literals_come_out_as_strict_json_or_fault),
        cmocka_unit_test(bad_arguments_are_refused),
    };
    return cmocka_run_group_tests_name("client/toolcalls", tests, setup, teardown);
}
