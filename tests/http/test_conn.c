/* SPDX-License-Identifier: Apache-2.0 */
/* tests/http/test_conn.c - a connection's requests cut at each byte: however the bytes arrive, the
 * replies are the same. Also that a client may leave at each byte. */
#include "tests/http/support_rig.h"

#include "base/bits.h"
#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#define WAIT_NS (20 * LL_NS_PER_S)

static struct http_rig rig;

static int begin(void **state)
{
    (void)state;
    return http_rig_open(&rig);
}

static int end(void **state)
{
    (void)state;
    http_rig_close(&rig);
    return 0;
}

static int connect_rig(void)
{
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(fcntl(pair[0], F_SETFL, O_NONBLOCK), 0);
    assert_int_equal(fcntl(pair[1], F_SETFL, O_NONBLOCK), 0);
    conn_open(&rig.loop, pair[0]);
    return pair[1];
}

static void send_piece(int fd, const char *text, size_t n)
{
    /* What was refused is closed; the rest of the request then has no reader. */
    if (n > 0 && send(fd, text, n, MSG_NOSIGNAL) != (ssize_t)n)
        assert_true(errno == EPIPE || errno == ECONNRESET);
    http_rig_turn(&rig);
}

/* Reads until n_replies have ended: the corpus' last request closes its connection. */
static void read_all(int fd, struct buffer *out)
{
    uint64_t deadline_ns = ll_now_ns() + WAIT_NS;
    char bytes[4096];

    for (;;) {
        ssize_t n = recv(fd, bytes, sizeof(bytes), 0);
        if (n == 0 || (n < 0 && errno == ECONNRESET))
            return;
        if (n > 0) {
            buffer_put(out, bytes, (size_t)n);
            continue;
        }
        assert_int_equal(errno, EAGAIN);
        assert_true(ll_now_ns() < deadline_ns);
        http_rig_turn(&rig);
    }
}

/* Ids, times and the sizes of HTTP chunks are no two times the same. */
static void normalise(struct buffer *out)
{
    static const char *const keys[] = {"cmpl-", "chatcmpl-", "resp_", "msg_", "req-"};
    static const char created[] = "\"created\":";
    size_t n = 0;
    bool is_line = false;

    for (size_t i = 0; i < out->n; i++) {
        size_t skip = 0;
        for (size_t k = 0; k < LL_COUNT(keys); k++) {
            size_t n_key = strlen(keys[k]);
            if (i >= n_key && memcmp(out->data + i - n_key, keys[k], n_key) == 0)
                while (i + skip < out->n && strchr("0123456789abcdef", out->data[i + skip]))
                    skip++;
        }
        size_t n_created = sizeof(created) - 1;
        if (i >= n_created && memcmp(out->data + i - n_created, created, n_created) == 0)
            while (out->data[i + skip] >= '0' && out->data[i + skip] <= '9')
                skip++;
        i += skip;
        out->data[n++] = out->data[i];
    }
    out->n = n;
    /* Chunk lines: hexadecimal digits alone between two line ends. */
    n = 0;
    for (size_t i = 0; i < out->n; i++) {
        size_t digits = 0;
        is_line = i >= 2 && memcmp(out->data + i - 2, "\r\n", 2) == 0;
        while (is_line && i + digits < out->n &&
               strchr("0123456789abcdef", out->data[i + digits]) != NULL &&
               out->data[i + digits] != '\0')
            digits++;
        if (digits > 0 && i + digits + 1 < out->n &&
            memcmp(out->data + i + digits, "\r\n", 2) == 0) {
            i += digits + 1; /* and the line end before it, which ended the last chunk */
            n -= n >= 2 ? 2 : n;
            continue;
        }
        out->data[n++] = out->data[i];
    }
    out->n = n;
}

static void ask(struct buffer *out, const char *text, size_t n, size_t cut)
{
    int fd = connect_rig();

    *out = (struct buffer){0};
    if (cut == 0)
        for (size_t i = 0; i < n; i++)
            send_piece(fd, text + i, 1);
    send_piece(fd, text, cut);
    if (cut > 0)
        send_piece(fd, text + cut, n - cut);
    read_all(fd, out);
    close(fd);
    http_rig_turn(&rig);
    assert_null(rig.loop.conns);
    normalise(out);
}

#define TEXT(text)  text, sizeof(text) - 1
#define HEAD(path)  path " HTTP/1.1\r\nHost: a\r\nX-Request-Id: r\r\n"
#define JSON        "Content-Type: application/json\r\n"
#define CLOSE       "Connection: close\r\n"
#define POST_(path) HEAD("POST " path) JSON CLOSE

static const struct sample {
    const char *text;
    size_t n;
    const char *wanted; /* is in the reply */
} samples[] = {
    {TEXT(HEAD("GET /health") CLOSE "\r\n"), "HTTP/1.1 200"},
    {TEXT(HEAD("GET /version") "\r\n" HEAD("GET /health") CLOSE "\r\n"), "\"version\""},
    {TEXT(HEAD("GET /v1/models") CLOSE "\r\n"), "demo-model"},
    {TEXT(HEAD("HEAD /version") CLOSE "\r\n"), "HTTP/1.1 200"},
    {TEXT(HEAD("OPTIONS /v1/models") CLOSE "\r\n"), "HTTP/1.1 204"},
    {TEXT(HEAD("GET /nothing") CLOSE "\r\n"), "HTTP/1.1 404"},
    {TEXT(HEAD("DELETE /version") CLOSE "\r\n"), "HTTP/1.1 405"},
    {TEXT("GET /health HTTP/1.0\r\n\r\n"), "HTTP/1.1 200"},
    {TEXT(POST_("/tokenize") "Content-Length: 18\r\n\r\n{\"prompt\":\"Hello\"}"), "\"count\":2"},
    {TEXT(POST_("/tokenize") "Transfer-Encoding: chunked\r\n\r\n"
                             "6\r\n{\"prom\r\nc\r\npt\":\"Hello\"}\r\n0\r\n\r\n"),
     "\"count\":2"},
    {TEXT(POST_("/detokenize") "Expect: 100-continue\r\nContent-Length: 16\r\n\r\n"
                               "{\"tokens\":[5,6]}"),
     "\"prompt\":\"&'\""},
    {TEXT(POST_("/v1/completions") "Content-Length: 51\r\n\r\n"
                                   "{\"prompt\":[1,2,3],\"max_tokens\":4,\"seed\":5,\"n\":1   }"),
     "\"completion_tokens\":4"},
    {TEXT(POST_(
         "/v1/completions") "Content-Length: 56\r\n\r\n"
                            "{\"prompt\":[1,2,3],\"max_tokens\":4,\"seed\":5,\"stream\":true}"),
     "data: [DONE]"},
    {TEXT(HEAD("POST /v1/completions") JSON
          "Content-Length: 57\r\n\r\n"
          "{\"prompt\":[1,2,3],\"max_tokens\":1,\"seed\":5,\"stream\":true} " HEAD("GET /version")
              CLOSE "\r\n"),
     "\"version\""},
    {TEXT(POST_("/tokenize") "Content-Length: 3\r\n\r\n{x}"), "no valid JSON"},
    {TEXT(POST_("/tokenize") "Content-Length: 9999999\r\n\r\n"), "HTTP/1.1 413"},
    {TEXT("POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"), "HTTP/1.1 415"},
    {TEXT("GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
     "HTTP/1.1 400"},
    {TEXT("GET /health HTTP/1.1\nHost: a\n\n"), "HTTP/1.1 400"},
};

static void every_cut_gives_the_same_replies(void **state)
{
    struct buffer whole, cut;

    (void)state;
    for (size_t i = 0; i < LL_COUNT(samples); i++) {
        const struct sample *sample = &samples[i];
        ask(&whole, sample->text, sample->n, sample->n);
        if (memmem(whole.data, whole.n, sample->wanted, strlen(sample->wanted)) == NULL)
            fail_msg("sample %zu: no \"%s\" in %.*s", i, sample->wanted, (int)whole.n, whole.data);
        for (size_t at = 0; at < sample->n; at++) {
            ask(&cut, sample->text, sample->n, at);
            if (cut.n != whole.n || memcmp(cut.data, whole.data, cut.n) != 0)
                fail_msg("sample %zu cut at %zu:\n%.*s\ninstead of\n%.*s", i, at, (int)cut.n,
                         cut.data, (int)whole.n, whole.data);
            buffer_free(&cut);
        }
        buffer_free(&whole);
    }
}

/* Gone after each byte: nothing of it stays, the runtime is asked for no more than was whole. */
static void a_client_may_leave_at_every_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < LL_COUNT(samples); i++)
        for (size_t at = 0; at < samples[i].n; at++) {
            int fd = connect_rig();
            send_piece(fd, samples[i].text, at);
            close(fd);
            uint64_t deadline_ns = ll_now_ns() + WAIT_NS;
            while (rig.loop.conns != NULL || rig.loop.jobs != NULL) {
                http_rig_turn(&rig);
                assert_true(ll_now_ns() < deadline_ns);
            }
        }
    assert_int_equal(ll_client_n_open(rig.loop.link->client), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_cut_gives_the_same_replies),
        cmocka_unit_test(a_client_may_leave_at_every_byte),
    };
    return cmocka_run_group_tests_name("http/conn", tests, begin, end);
}
