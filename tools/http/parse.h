/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/parse.h - reads one HTTP/1.1 request after another from a stream of bytes, strictly.
 *
 *   P1  The result is the same for every way in which the bytes are cut into feeds.
 *   P2  One framing only: Content-Length once and digits, or Transfer-Encoding "chunked" once,
 * never both. What another program in front of us might read differently is refused: bare LF or CR,
 *       control characters, folded lines, a space before the colon, chunk extensions, trailers.
 *   P3  Nothing grows past the limits; a body's memory grows with the bytes that came, not with the
 *       length that was announced.
 *   P4  After an error the parser takes no more bytes: the connection ends. */
#ifndef TOOLS_HTTP_PARSE_H
#define TOOLS_HTTP_PARSE_H

#include "tools/http/buffer.h"

#define HTTP_LINE_BYTES_MAX 8192  /* request line */
#define HTTP_HEAD_BYTES_MAX 16384 /* request line and headers */
#define HTTP_HEADERS_MAX    64
#define HTTP_BODY_BYTES_MAX (16u << 20) /* --max-body-bytes at start */

enum http_method { HTTP_GET, HTTP_HEAD, HTTP_POST, HTTP_DELETE, HTTP_OPTIONS };

struct http_span {
    uint32_t offset, n; /* in head.data */
};

struct http_header {
    struct http_span name, value;
};

enum http_progress {
    HTTP_MORE,      /* feed more */
    HTTP_HEAD_DONE, /* once a request: the headers are there, the body is not; feed on */
    HTTP_DONE,      /* a whole request; http_parser_next() before the next feed */
    HTTP_BAD,       /* status and reason say why (P4) */
};

struct http_parser {
    uint64_t body_bytes_max;
    uint32_t state;
    struct buffer head, body;
    /* of the request being read */
    enum http_method method;
    struct http_span path, query; /* of the target, as sent; no leading '?' */
    struct http_header header[HTTP_HEADERS_MAX];
    uint32_t n_headers;
    bool is_1_0, keeps_alive, expects_continue, is_chunked;
    uint64_t left;      /* bytes of the body or of the chunk still to come */
    uint32_t n_digits;  /* of a chunk's size */
    uint32_t line_from; /* where the line being read begins in head */
    /* why HTTP_BAD */
    int status;
    const char *reason;
};

void http_parser_init(struct http_parser *parser, uint64_t body_bytes_max);
void http_parser_free(struct http_parser *parser);
/* Takes bytes until something is to be told; *n_used of them were taken. */
enum http_progress http_parser_feed(struct http_parser *parser, const char *bytes, size_t n,
                                    size_t *n_used);
/* Forgets the request that is done. */
void http_parser_next(struct http_parser *parser);
/* Have bytes of a request come? (An idle connection may be closed without an answer.) */
bool http_parser_has_begun(const struct http_parser *parser);
bool http_parser_in_head(const struct http_parser *parser);

/* Value of a header (name in lower case), NUL-terminated in head; NULL: not there. */
const char *http_parser_header(const struct http_parser *parser, const char *name, size_t *n);
bool http_parser_path_is(const struct http_parser *parser, const char *path);

/* Reason phrase of a status. */
const char *http_reason(int status);

#endif
