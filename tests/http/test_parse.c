/* SPDX-License-Identifier: Apache-2.0 */
/* tests/http/test_parse.c - the HTTP parser: what it takes, what it refuses, and that the way the
 * bytes are cut changes nothing (P1 of tools/http/parse.h). */
#include "tests/harness.h"

#include "base/bits.h"
#include "base/rng.h"
#include "tools/http/parse.h"

#define BODY_MAX 4096

struct result {
    enum http_progress end;
    int status;
    uint32_t n_requests, n_body; /* done; bytes of all bodies */
    uint64_t hash;               /* of methods, paths, headers and bodies */
};

static void mix(struct result *result, const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        result->hash = (result->hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3ull;
}

static void mix_request(struct result *result, const struct http_parser *parser)
{
    mix(result, &parser->method, sizeof(parser->method));
    mix(result, parser->head.data + parser->path.offset, parser->path.n);
    mix(result, parser->head.data + parser->query.offset, parser->query.n);
    for (uint32_t i = 0; i < parser->n_headers; i++) {
        mix(result, parser->head.data + parser->header[i].name.offset, parser->header[i].name.n);
        mix(result, parser->head.data + parser->header[i].value.offset, parser->header[i].value.n);
    }
    mix(result, parser->body.data, parser->body.n);
    result->n_body += (uint32_t)parser->body.n;
    result->n_requests++;
}

/* Feeds a piece; false once the parser has refused. Requests that are done are taken off. */
static bool feed(struct http_parser *parser, const char *bytes, size_t n, struct result *result)
{
    bool again = true;

    while (n > 0 || again) {
        size_t n_used;
        enum http_progress progress = http_parser_feed(parser, bytes, n, &n_used);
        assert_true(n_used <= n);
        bytes += n_used;
        n -= n_used;
        again = progress == HTTP_HEAD_DONE;
        result->end = progress;
        if (progress == HTTP_BAD) {
            result->status = parser->status;
            return false;
        }
        if (progress == HTTP_DONE) {
            mix_request(result, parser);
            http_parser_next(parser);
        }
    }
    return true;
}

/* Cuts the text at up to two places, or into single bytes when at[0] is 0. */
static struct result parse(const char *text, size_t n, size_t first, size_t second)
{
    struct http_parser parser;
    struct result result = {.hash = 0xcbf29ce484222325ull};
    const size_t cuts[4] = {0, first, second, n};

    http_parser_init(&parser, BODY_MAX);
    if (first == 0) {
        for (size_t i = 0; i < n; i++)
            if (!feed(&parser, text + i, 1, &result))
                break;
    } else {
        for (int i = 0; i < 3; i++)
            if (cuts[i + 1] > cuts[i] &&
                !feed(&parser, text + cuts[i], cuts[i + 1] - cuts[i], &result))
                break;
    }
    http_parser_free(&parser);
    return result;
}

struct sample {
    const char *text;
    size_t n;
    int status; /* refused with it; 0: accepted */
    uint32_t n_requests;
    const char *body; /* accepted: of the last request */
};
#define TEXT(text) text, sizeof(text) - 1
#define HOST       "Host: a\r\n"

static const struct sample samples[] = {
    {TEXT("GET / HTTP/1.1\r\n" HOST "\r\n"), 0, 1, ""},
    {TEXT("\r\nGET /a?b=c HTTP/1.1\r\nhost:a\r\n\r\n"), 0, 1, ""},
    {TEXT("GET / HTTP/1.0\r\n\r\n"), 0, 1, ""},
    {TEXT("OPTIONS * HTTP/1.1\r\n" HOST "\r\n"), 0, 1, ""},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nabc"), 0, 1, "abc"},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Content-Length: 0\r\n\r\n"), 0, 1, ""},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: Chunked\r\n\r\n"
          "3\r\nabc\r\n00a\r\n0123456789\r\n0\r\n\r\n"),
     0, 1, "abc0123456789"},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nxGET /2 HTTP/1.1\r\n" HOST "\r\n"),
     0, 2, ""},
    {TEXT("GET / HTTP/1.1\r\nHost: a\r\nX-T: \xe6\x9d\xb1\tb \r\n\r\n"), 0, 1, ""},
    /* framing that two programs could read differently */
    {TEXT("POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"),
     400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\nContent-Length: 4\r\n\r\n"), 400, 0,
     NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\nContent-Length: 3\r\n\r\n"), 400, 0,
     NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Content-Length: 3, 3\r\n\r\n"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Content-Length: +3\r\n\r\n"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Content-Length: -1\r\n\r\n"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Content-Length: 0x3\r\n\r\n"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Content-Length:\r\n\r\n"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Content-Length: 99999999999999999999\r\n\r\n"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Content-Length : 3\r\n\r\nabc"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Content-Length: 4097\r\n\r\n"), 413, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: xchunked\r\n\r\n"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip, chunked\r\n\r\n"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n"
          "Transfer-Encoding: chunked\r\n\r\n"),
     400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\0x\r\n\r\n"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding:\r\n chunked\r\n\r\n"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n"), 400, 0,
     NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n"), 400, 0,
     NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n"), 400, 0,
     NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n\r\n"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n-1\r\n"), 400, 0, NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n000000001\r\na"), 400, 0,
     NULL},
    {TEXT("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\nffffffff\r\n"), 413, 0,
     NULL},
    /* lines and characters */
    {TEXT("GET / HTTP/1.1\nHost: a\n\n"), 400, 0, NULL},
    {TEXT("GET / HTTP/1.1\r\nHost: a\r\r\n\r\n"), 400, 0, NULL},
    {TEXT("GET / HTTP/1.1\r\nHost: a\x01\r\n\r\n"), 400, 0, NULL},
    {TEXT("GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n"), 400, 0, NULL},
    {TEXT("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n"), 400, 0, NULL},
    {TEXT("GET / HTTP/1.1\r\n: a\r\n\r\n"), 400, 0, NULL},
    {TEXT("GET / HTTP/1.1\r\nHost a\r\n\r\n"), 400, 0, NULL},
    {TEXT("GET / HTTP/1.1\r\nHo(st: a\r\n\r\n"), 400, 0, NULL},
    {TEXT("GET / HTTP/1.1\r\n\r\n"), 400, 0, NULL},
    {TEXT("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), 400, 0, NULL},
    {TEXT("\r\n\r\nGET / HTTP/1.1\r\n"), 400, 0, NULL},
    {TEXT("GET  / HTTP/1.1\r\n"), 400, 0, NULL},
    {TEXT("GET / HTTP/1.1 \r\n"), 400, 0, NULL},
    {TEXT("GET /a b HTTP/1.1\r\n"), 400, 0, NULL},
    {TEXT("GET /\xff HTTP/1.1\r\n"), 400, 0, NULL},
    {TEXT("GET http://a/ HTTP/1.1\r\n"), 400, 0, NULL},
    {TEXT("GET * HTTP/1.1\r\n"), 400, 0, NULL},
    {TEXT("GET /\r\n"), 400, 0, NULL},
    {TEXT("GET / http/1.1\r\n"), 400, 0, NULL},
    {TEXT("GET / HTTP/2.0\r\n"), 505, 0, NULL},
    {TEXT("GET / HTTP/1.2\r\n"), 505, 0, NULL},
    {TEXT("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505, 0, NULL},
    {TEXT("PUT / HTTP/1.1\r\n"), 405, 0, NULL},
    {TEXT("TRACE / HTTP/1.1\r\n"), 405, 0, NULL},
    {TEXT("BREW / HTTP/1.1\r\n"), 501, 0, NULL},
    {TEXT("\x16\x03\x01\x02\x00\x01"), 400, 0, NULL}, /* TLS */
    {TEXT("GET / HTTP/1.1\r\n" HOST "Expect: 200-ok\r\n\r\n"), 417, 0, NULL},
};

static void each_sample_ends_as_it_must(void **state)
{
    (void)state;
    for (size_t i = 0; i < LL_COUNT(samples); i++) {
        const struct sample *sample = &samples[i];
        struct result result = parse(sample->text, sample->n, sample->n, sample->n);
        if (result.status != sample->status || result.n_requests != sample->n_requests)
            fail_msg("sample %zu: status %d, %u requests: %s", i, result.status, result.n_requests,
                     sample->text);
        if (sample->body != NULL)
            assert_int_equal(result.n_body,
                             strlen(sample->body) + (sample->n_requests == 2 ? 1 : 0));
    }
}

static void any_two_cuts_change_nothing(void **state)
{
    (void)state;
    for (size_t i = 0; i < LL_COUNT(samples); i++) {
        const struct sample *sample = &samples[i];
        struct result whole = parse(sample->text, sample->n, sample->n, sample->n);
        for (size_t first = 0; first <= sample->n; first++)
            for (size_t second = first; second <= (first == 0 ? 0 : sample->n); second++) {
                struct result cut = parse(sample->text, sample->n, first, second);
                if (memcmp(&cut, &whole, offsetof(struct result, hash)) != 0 ||
                    cut.hash != whole.hash)
                    fail_msg("sample %zu cut at %zu and %zu: status %d", i, first, second,
                             cut.status);
            }
    }
}

static void limits_hold_at_their_edges(void **state)
{
    static char text[HTTP_HEAD_BYTES_MAX * 2];
    (void)state;
    /* A head of exactly the limit, then one byte more. */
    for (int extra = 0; extra < 2; extra++) {
        int n = snprintf(text, sizeof(text), "GET / HTTP/1.1\r\nHost: a\r\nX: ");
        while (n < HTTP_HEAD_BYTES_MAX - 4 + extra)
            text[n++] = 'x';
        memcpy(text + n, "\r\n\r\n", 4);
        struct result result = parse(text, (size_t)n + 4, (size_t)n + 4, (size_t)n + 4);
        assert_int_equal(result.status, extra ? 431 : 0);
    }
    for (int extra = 0; extra < 2; extra++) {
        int n = snprintf(text, sizeof(text), "GET / HTTP/1.1\r\nHost: a\r\n");
        for (int i = 1; i < HTTP_HEADERS_MAX + extra; i++)
            n += snprintf(text + n, sizeof(text) - (size_t)n, "X: y\r\n");
        n += snprintf(text + n, sizeof(text) - (size_t)n, "\r\n");
        struct result result = parse(text, (size_t)n, (size_t)n, (size_t)n);
        assert_int_equal(result.status, extra ? 431 : 0);
    }
    int n = snprintf(text, sizeof(text), "GET /");
    while (n <= HTTP_LINE_BYTES_MAX)
        text[n++] = 'x';
    assert_int_equal(parse(text, (size_t)n, (size_t)n, (size_t)n).status, 414);
}

/* Random damage to a good request: it must not crash, hang, or depend on the cuts. */
static void damaged_requests_depend_on_no_cut(void **state)
{
    static const char alphabet[] = "\r\n :;,\t0123456789abcGETPOSTHTTP/1.\x00\xff\x7f";
    uint64_t seed = ll_test_seed();
    (void)state;
    for (int round = 0; round < 20000; round++) {
        const struct sample *sample = &samples[ll_splitmix64(&seed) % 9];
        char text[256];
        size_t n = sample->n;
        memcpy(text, sample->text, n);
        for (uint64_t k = ll_splitmix64(&seed) % 3 + 1; k > 0; k--)
            text[ll_splitmix64(&seed) % n] =
                alphabet[ll_splitmix64(&seed) % (sizeof(alphabet) - 1)];
        struct result whole = parse(text, n, n, n), single = parse(text, n, 0, 0);
        assert_int_equal(whole.status, single.status);
        assert_int_equal(whole.n_requests, single.n_requests);
        assert_true(whole.hash == single.hash);
    }
}

static void headers_are_found_without_case(void **state)
{
    static const char text[] =
        "GET /a/b?c HTTP/1.1\r\nHOST: h\r\nAuthoriZation:  Bearer  k \t\r\n\r\n";
    struct http_parser parser;
    size_t n_used, n;
    (void)state;
    http_parser_init(&parser, BODY_MAX);
    assert_int_equal(http_parser_feed(&parser, text, sizeof(text) - 1, &n_used), HTTP_HEAD_DONE);
    assert_string_equal(http_parser_header(&parser, "authorization", &n), "Bearer  k");
    assert_int_equal(n, 9);
    assert_null(http_parser_header(&parser, "x", NULL));
    assert_true(http_parser_path_is(&parser, "/a/b"));
    assert_false(http_parser_path_is(&parser, "/a/"));
    http_parser_free(&parser);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_sample_ends_as_it_must),
        cmocka_unit_test(any_two_cuts_change_nothing),
        cmocka_unit_test(limits_hold_at_their_edges),
        cmocka_unit_test(damaged_requests_depend_on_no_cut),
        cmocka_unit_test(headers_are_found_without_case),
    };
    return cmocka_run_group_tests_name("http/parse", tests, NULL, NULL);
}
