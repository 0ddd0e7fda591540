/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/http/parse.h"

#include <stdlib.h>
#include <strings.h>

enum {
    AT_LINE,       /* in the request line, or before it */
    AT_HEADER,     /* in a header line */
    AT_BODY,       /* Content-Length: `left` bytes */
    AT_CHUNK_SIZE, /* digits */
    AT_CHUNK_LF,   /* the LF behind the size */
    AT_CHUNK,      /* `left` bytes */
    AT_CHUNK_CR,   /* the CR LF behind the bytes */
    AT_CHUNK_END,
    AT_LAST_CR, /* the CR LF behind the last chunk: no trailers */
    AT_LAST_LF,
    AT_TOLD_HEAD, /* HEAD_DONE was told, the request has no body */
    AT_END,
    AT_BAD,
};

static enum http_progress bad(struct http_parser *parser, int status, const char *reason)
{
    parser->state = AT_BAD;
    parser->status = status;
    parser->reason = reason;
    return HTTP_BAD;
}

void http_parser_init(struct http_parser *parser, uint64_t body_bytes_max)
{
    *parser = (struct http_parser){.body_bytes_max = body_bytes_max};
}

void http_parser_free(struct http_parser *parser)
{
    buffer_free(&parser->head);
    buffer_free(&parser->body);
}

void http_parser_next(struct http_parser *parser)
{
    struct buffer head = parser->head;

    /* The head's memory is small and used again; a body's is not kept. */
    buffer_free(&parser->body);
    head.n = 0;
    *parser = (struct http_parser){.body_bytes_max = parser->body_bytes_max, .head = head};
}

bool http_parser_has_begun(const struct http_parser *parser)
{
    return parser->state != AT_LINE || parser->head.n > 0;
}

bool http_parser_in_head(const struct http_parser *parser)
{
    return parser->state <= AT_HEADER;
}

/* ---- the head ---------------------------------------------------------------------------------*/

/* Characters of a token, RFC 9110. */
static bool is_token(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           (c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

static enum http_progress take_method(struct http_parser *parser, const char *name, size_t n)
{
    static const struct {
        const char *name;
        int method; /* -1: known to HTTP, not to us */
    } methods[] = {{"GET", HTTP_GET},
                   {"HEAD", HTTP_HEAD},
                   {"POST", HTTP_POST},
                   {"DELETE", HTTP_DELETE},
                   {"OPTIONS", HTTP_OPTIONS},
                   {"PUT", -1},
                   {"PATCH", -1},
                   {"TRACE", -1},
                   {"CONNECT", -1}};

    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++)
        if (strlen(methods[i].name) == n && memcmp(methods[i].name, name, n) == 0) {
            if (methods[i].method < 0)
                return bad(parser, 405, "this method is not allowed");
            parser->method = (enum http_method)methods[i].method;
            return HTTP_MORE;
        }
    return bad(parser, 501, "this method is not known");
}

/* The request line in head[0 .. n). */
static enum http_progress take_line(struct http_parser *parser, uint32_t n)
{
    const char *line = parser->head.data;
    const char *space = memchr(line, ' ', n);
    const char *target, *second, *end = line + n;

    if (space == NULL || space == line)
        return bad(parser, 400, "the request line is not \"METHOD TARGET HTTP/1.1\"");
    for (const char *c = line; c < space; c++)
        if (!is_token((unsigned char)*c))
            return bad(parser, 400, "the request's method has a character that no method has");
    target = space + 1;
    second = memchr(target, ' ', (size_t)(end - target));
    if (second == NULL || second == target)
        return bad(parser, 400, "the request line is not \"METHOD TARGET HTTP/1.1\"");
    size_t n_version = (size_t)(end - second - 1);
    if (n_version != 8 || memcmp(second + 1, "HTTP/", 5) != 0 || second[7] != '.')
        return bad(parser, 400, "the request line does not end in HTTP/1.1");
    if (second[6] != '1' || (second[8] != '1' && second[8] != '0'))
        return bad(parser, 505, "only HTTP/1.1 and HTTP/1.0 are spoken here");
    parser->is_1_0 = second[8] == '0';
    parser->keeps_alive = !parser->is_1_0;
    for (const char *c = target; c < second; c++)
        if ((unsigned char)*c < 0x21 || (unsigned char)*c > 0x7e || *c == '#')
            return bad(parser, 400, "the request's target has a character that must be escaped");
    bool is_asterisk = second - target == 1 && *target == '*' && space - line == 7;
    if (*target != '/' && !is_asterisk)
        return bad(parser, 400, "the request's target must be a path that begins with \"/\"");

    const char *mark = memchr(target, '?', (size_t)(second - target));
    const char *path_end = mark != NULL ? mark : second;
    parser->path = (struct http_span){(uint32_t)(target - line), (uint32_t)(path_end - target)};
    if (mark != NULL)
        parser->query =
            (struct http_span){(uint32_t)(mark + 1 - line), (uint32_t)(second - mark - 1)};
    return take_method(parser, line, (size_t)(space - line));
}

/* One header line in head[from .. from + n). */
static enum http_progress take_header(struct http_parser *parser, uint32_t from, uint32_t n)
{
    char *line = parser->head.data + from;
    const char *colon = memchr(line, ':', n);

    if (line[0] == ' ' || line[0] == '\t')
        return bad(parser, 400, "folded header lines are not accepted");
    if (colon == NULL || colon == line)
        return bad(parser, 400, "a header line is not \"Name: value\"");
    if (parser->n_headers == HTTP_HEADERS_MAX)
        return bad(parser, 431, "too many headers: at most 64 are accepted");
    uint32_t n_name = (uint32_t)(colon - line);
    for (uint32_t i = 0; i < n_name; i++)
        if (!is_token((unsigned char)line[i]))
            return bad(parser, 400, "a header's name has a character that no name has");
    uint32_t begin = n_name + 1, end = n;
    while (begin < end && (line[begin] == ' ' || line[begin] == '\t'))
        begin++;
    while (end > begin && (line[end - 1] == ' ' || line[end - 1] == '\t'))
        end--;
    line[end] = '\0'; /* at most the CR that ends the line */
    parser->header[parser->n_headers++] =
        (struct http_header){.name = {from, n_name}, .value = {from + begin, end - begin}};
    return HTTP_MORE;
}

static bool name_is(const struct http_parser *parser, const struct http_header *header,
                    const char *name)
{
    return header->name.n == strlen(name) &&
           strncasecmp(parser->head.data + header->name.offset, name, header->name.n) == 0;
}

const char *http_parser_header(const struct http_parser *parser, const char *name, size_t *n)
{
    for (uint32_t i = 0; i < parser->n_headers; i++)
        if (name_is(parser, &parser->header[i], name)) {
            if (n != NULL)
                *n = parser->header[i].value.n;
            return parser->head.data + parser->header[i].value.offset;
        }
    return NULL;
}

bool http_parser_path_is(const struct http_parser *parser, const char *path)
{
    return strlen(path) == parser->path.n &&
           memcmp(parser->head.data + parser->path.offset, path, parser->path.n) == 0;
}

/* "close" or "keep-alive" among the words of a Connection header. */
static void take_connection(struct http_parser *parser, const char *value)
{
    while (*value != '\0') {
        size_t n = strcspn(value, ", \t");
        if (n == 5 && strncasecmp(value, "close", 5) == 0)
            parser->keeps_alive = false;
        if (n == 10 && strncasecmp(value, "keep-alive", 10) == 0 && parser->is_1_0)
            parser->keeps_alive = true;
        value += n;
        value += strspn(value, ", \t");
    }
}

static enum http_progress take_length(struct http_parser *parser, const char *value, size_t n)
{
    if (n == 0 || n > 19 || strspn(value, "0123456789") != n)
        return bad(parser, 400, "Content-Length must be digits only");
    parser->left = strtoull(value, NULL, 10);
    if (parser->left > parser->body_bytes_max)
        return bad(parser, 413, "the body is larger than this server accepts");
    return HTTP_MORE;
}

/* What the headers mean together; P2. */
static enum http_progress take_framing(struct http_parser *parser)
{
    uint32_t n_host = 0, n_length = 0, n_coding = 0;

    for (uint32_t i = 0; i < parser->n_headers; i++) {
        const struct http_header *header = &parser->header[i];
        const char *value = parser->head.data + header->value.offset;
        if (name_is(parser, header, "host")) {
            n_host++;
        } else if (name_is(parser, header, "content-length")) {
            n_length++;
            if (take_length(parser, value, header->value.n) == HTTP_BAD)
                return HTTP_BAD;
        } else if (name_is(parser, header, "transfer-encoding")) {
            n_coding++;
            if (header->value.n != 7 || strcasecmp(value, "chunked") != 0)
                return bad(parser, 400, "Transfer-Encoding must be \"chunked\" and nothing else");
        } else if (name_is(parser, header, "connection")) {
            take_connection(parser, value);
        } else if (name_is(parser, header, "expect")) {
            if (strcasecmp(value, "100-continue") != 0)
                return bad(parser, 417, "only \"Expect: 100-continue\" can be met");
            parser->expects_continue = !parser->is_1_0;
        }
    }
    if (n_host > 1 || (n_host == 0 && !parser->is_1_0))
        return bad(parser, 400, "a request needs one Host header");
    if (n_length > 1)
        return bad(parser, 400, "Content-Length is there more than once");
    if (n_coding > 1 || (n_coding == 1 && n_length == 1))
        return bad(parser, 400, "the body's length is given in more than one way");
    if (n_coding == 1 && parser->is_1_0)
        return bad(parser, 400, "HTTP/1.0 has no Transfer-Encoding");
    parser->is_chunked = n_coding == 1;
    if (parser->is_chunked)
        parser->state = AT_CHUNK_SIZE;
    else
        parser->state = parser->left > 0 ? AT_BODY : AT_TOLD_HEAD;
    return HTTP_HEAD_DONE;
}

/* The line that the LF just taken has ended. */
static enum http_progress end_of_line(struct http_parser *parser)
{
    uint32_t from = parser->line_from, n = (uint32_t)parser->head.n - from - 2;

    parser->line_from = (uint32_t)parser->head.n;
    if (parser->state == AT_LINE) {
        if (n == 0 && from == 0) { /* one empty line before a request: RFC 9112, 2.2 */
            return HTTP_MORE;
        }
        if (n == 0)
            return bad(parser, 400, "an empty line where a request should begin");
        if (from > 0) { /* drop that empty line: offsets count from the request line */
            memmove(parser->head.data, parser->head.data + from, n + 2);
            parser->head.n = n + 2;
            parser->line_from = n + 2;
        }
        parser->state = AT_HEADER;
        return take_line(parser, n);
    }
    return n == 0 ? take_framing(parser) : take_header(parser, from, n);
}

static enum http_progress take_head_byte(struct http_parser *parser, unsigned char c)
{
    bool was_cr =
        parser->head.n > parser->line_from && parser->head.data[parser->head.n - 1] == '\r';

    if ((c == '\n') != was_cr)
        return bad(parser, 400, "lines must end in CR LF");
    if ((c < 0x20 && c != '\r' && c != '\n' && c != '\t') || c == 0x7f)
        return bad(parser, 400, "a control character in the head of the request");
    if (parser->head.n >= HTTP_HEAD_BYTES_MAX)
        return bad(parser, 431, "the headers are larger than 16 KiB");
    if (parser->state == AT_LINE && parser->head.n >= HTTP_LINE_BYTES_MAX)
        return bad(parser, 414, "the request line is longer than 8 KiB");
    buffer_put(&parser->head, &c, 1);
    if (parser->head.has_failed)
        return bad(parser, 503, "no memory for the request");
    return c == '\n' ? end_of_line(parser) : HTTP_MORE;
}

/* ---- the body ---------------------------------------------------------------------------------*/

static int hex_digit(unsigned char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static enum http_progress take_chunk_size(struct http_parser *parser, unsigned char c)
{
    int digit = hex_digit(c);

    if (c == '\r' && parser->n_digits > 0) {
        parser->state = AT_CHUNK_LF;
        return HTTP_MORE;
    }
    if (digit < 0)
        return bad(parser, 400, "a chunk's size must be hexadecimal digits and CR LF");
    if (++parser->n_digits > 8)
        return bad(parser, 400, "a chunk's size has more than 8 digits");
    parser->left = parser->left * 16 + (uint64_t)digit;
    if (parser->left + parser->body.n > parser->body_bytes_max)
        return bad(parser, 413, "the body is larger than this server accepts");
    return HTTP_MORE;
}

/* The one byte that the state asks for. */
static enum http_progress take_mark(struct http_parser *parser, unsigned char c)
{
    bool wants_cr = parser->state == AT_CHUNK_CR || parser->state == AT_LAST_CR;

    if (c != (wants_cr ? '\r' : '\n'))
        return bad(parser, 400,
                   parser->state == AT_LAST_CR ? "trailers are not accepted"
                                               : "a chunk does not end in CR LF");
    switch (parser->state) {
    case AT_CHUNK_LF:
        parser->state = parser->left > 0 ? AT_CHUNK : AT_LAST_CR;
        break;
    case AT_CHUNK_CR:
        parser->state = AT_CHUNK_END;
        break;
    case AT_CHUNK_END:
        parser->state = AT_CHUNK_SIZE;
        parser->n_digits = 0;
        break;
    case AT_LAST_CR:
        parser->state = AT_LAST_LF;
        break;
    default:
        parser->state = AT_END;
        return HTTP_DONE;
    }
    return HTTP_MORE;
}

static enum http_progress take_body(struct http_parser *parser, const char *bytes, size_t n,
                                    size_t *n_used)
{
    size_t n_taken = n < parser->left ? n : (size_t)parser->left;

    buffer_put(&parser->body, bytes, n_taken);
    if (parser->body.has_failed)
        return bad(parser, 503, "no memory for the request's body");
    *n_used += n_taken;
    parser->left -= n_taken;
    if (parser->left > 0)
        return HTTP_MORE;
    parser->state = parser->state == AT_CHUNK ? AT_CHUNK_CR : AT_END;
    return parser->state == AT_END ? HTTP_DONE : HTTP_MORE;
}

enum http_progress http_parser_feed(struct http_parser *parser, const char *bytes, size_t n,
                                    size_t *n_used)
{
    enum http_progress progress = HTTP_MORE;

    *n_used = 0;
    if (parser->state == AT_TOLD_HEAD) {
        parser->state = AT_END;
        return HTTP_DONE;
    }
    if (parser->state == AT_END)
        return HTTP_DONE;
    if (parser->state == AT_BAD)
        return HTTP_BAD;
    while (*n_used < n && progress == HTTP_MORE) {
        unsigned char c = (unsigned char)bytes[*n_used];
        if (parser->state == AT_BODY || parser->state == AT_CHUNK) {
            progress = take_body(parser, bytes + *n_used, n - *n_used, n_used);
            continue;
        }
        *n_used += 1;
        if (parser->state <= AT_HEADER)
            progress = take_head_byte(parser, c);
        else if (parser->state == AT_CHUNK_SIZE)
            progress = take_chunk_size(parser, c);
        else
            progress = take_mark(parser, c);
    }
    return progress;
}

const char *http_reason(int status)
{
    static const struct {
        int status;
        const char *reason;
    } reasons[] = {{200, "OK"},
                   {204, "No Content"},
                   {400, "Bad Request"},
                   {401, "Unauthorized"},
                   {403, "Forbidden"},
                   {404, "Not Found"},
                   {405, "Method Not Allowed"},
                   {408, "Request Timeout"},
                   {413, "Content Too Large"},
                   {414, "URI Too Long"},
                   {415, "Unsupported Media Type"},
                   {417, "Expectation Failed"},
                   {429, "Too Many Requests"},
                   {431, "Request Header Fields Too Large"},
                   {500, "Internal Server Error"},
                   {501, "Not Implemented"},
                   {503, "Service Unavailable"},
                   {505, "HTTP Version Not Supported"}};

    for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++)
        if (reasons[i].status == status)
            return reasons[i].reason;
    return "Error";
}
