/* SPDX-License-Identifier: Apache-2.0 */
/* tests/fuzz/fuzz_http.c - what comes over a connection: the first byte says where it is cut, the
 * rest is one request after another. Whole, in single bytes and cut once: the same requests with
 * the same words, or the same refusal. */
#include "tests/fuzz/fuzz.h"

#include "tools/http/parse.h"

#define BODY_MAX 512

struct result {
    int status;
    uint32_t n_done, n_heads;
    uint64_t hash;
};

static void mix(struct result *result, const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        result->hash = (result->hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3ull;
    result->hash = (result->hash ^ n) * 0x100000001b3ull;
}

/* What the parser promises of a request: spans in the head, no control characters, limits. */
static void check_request(const struct http_parser *parser, struct result *result)
{
    FUZZ_CHECK(parser->head.n <= HTTP_HEAD_BYTES_MAX && parser->body.n <= BODY_MAX);
    FUZZ_CHECK(parser->n_headers <= HTTP_HEADERS_MAX);
    FUZZ_CHECK(parser->path.n > 0 && parser->path.offset + parser->path.n <= parser->head.n);
    mix(result, &parser->method, sizeof(parser->method));
    mix(result, parser->head.data + parser->path.offset, parser->path.n);
    mix(result, parser->head.data + parser->query.offset, parser->query.n);
    for (uint32_t i = 0; i < parser->n_headers; i++) {
        const struct http_header *header = &parser->header[i];
        const char *name = parser->head.data + header->name.offset;
        const char *value = parser->head.data + header->value.offset;
        FUZZ_CHECK(header->name.n > 0 && header->name.offset + header->name.n <= parser->head.n);
        FUZZ_CHECK(header->value.offset + header->value.n <= parser->head.n);
        FUZZ_CHECK(memchr(name, ' ', header->name.n) == NULL);
        FUZZ_CHECK(memchr(value, '\0', header->value.n) == NULL);
        FUZZ_CHECK(memchr(value, '\n', header->value.n) == NULL);
        mix(result, name, header->name.n);
        mix(result, value, header->value.n);
    }
    mix(result, parser->body.data, parser->body.n);
}

/* False once the parser has refused. */
static bool feed(struct http_parser *parser, const char *bytes, size_t n, struct result *result)
{
    bool again = false; /* the head is there: a request without a body is done at once */

    while (n > 0 || again) {
        size_t n_used;
        enum http_progress progress = http_parser_feed(parser, bytes, n, &n_used);
        FUZZ_CHECK(n_used <= n);
        FUZZ_CHECK(n_used > 0 || progress != HTTP_MORE || n == 0);
        bytes += n_used;
        n -= n_used;
        again = progress == HTTP_HEAD_DONE;
        result->n_heads += again;
        if (progress == HTTP_BAD) {
            FUZZ_CHECK(parser->status >= 400 && parser->status <= 599 && parser->reason != NULL);
            result->status = parser->status;
            return false;
        }
        if (progress == HTTP_DONE) {
            check_request(parser, result);
            result->n_done++;
            http_parser_next(parser);
        }
    }
    return true;
}

/* cut 0: single bytes. */
static struct result parse(const char *text, size_t n, size_t cut)
{
    struct http_parser parser;
    struct result result = {.hash = 0xcbf29ce484222325ull};

    http_parser_init(&parser, BODY_MAX);
    if (cut == 0) {
        for (size_t i = 0; i < n && feed(&parser, text + i, 1, &result); i++)
            ;
    } else if (feed(&parser, text, cut, &result)) {
        feed(&parser, text + cut, n - cut, &result);
    }
    http_parser_free(&parser);
    return result;
}

static void check_same(const struct result *a, const struct result *b)
{
    FUZZ_CHECK(a->status == b->status && a->n_done == b->n_done && a->n_heads == b->n_heads);
    FUZZ_CHECK(a->hash == b->hash);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_data)
{
    if (n_data < 2)
        return -1;
    const char *text = (const char *)data + 1;
    size_t n = n_data - 1, cut = data[0] % n + 1;
    struct result whole = parse(text, n, n), single = parse(text, n, 0),
                  twice = parse(text, n, cut);

    check_same(&whole, &single);
    check_same(&whole, &twice);
    return 0;
}
