/* SPDX-License-Identifier: Apache-2.0 */
/* tests/http/stress_proxy.c - llring-http with several threads under load: streams whose every
 * token is known, clients that leave in the middle, large bodies on the worker thread, metrics read
 * meanwhile. No token lost or foreign, and both programs end with 0, which under a sanitizer says
 * that it found nothing. */
#include "tests/http/support_stream.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/rng.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define N_STREAMS  48
#define N_TOKENS   40
#define LARGE_BODY 100000 /* past BODY_BYTES_AWAY */

static struct ll_test_runtime runtime;
static struct test_proxy proxy;
static uint64_t seed;

void die(const char *what)
{
    fail_msg("%s: %s", what, ll_error_text());
    abort(); /* not reached */
}

static int begin(void **state)
{
    static const char *const runtime_arguments[] = {STREAM_RUNTIME, "--fake-step-us", "1000",
                                                    "--log-level",  "warn",           NULL};
    static const char *const proxy_arguments[] = {"--threads", "3", "--metrics-alias", "vllm",
                                                  NULL};

    (void)state;
    seed = ll_test_seed();
    stream_begin();
    if (ll_test_runtime_start(&runtime, runtime_arguments) != 0)
        return -1;
    return test_proxy_start(&proxy, &runtime, proxy_arguments);
}

static int end(void **state)
{
    (void)state;
    test_proxy_stop(&proxy);
    ll_test_runtime_stop(&runtime);
    return 0;
}

/* One request on a connection of its own, answered with 200. */
static void ask(const char *text, size_t n)
{
    char reply[4096];
    int fd = test_proxy_connect(&proxy);
    size_t n_sent = 0;
    ssize_t n_read;

    assert_true(fd >= 0);
    while (n_sent < n) {
        ssize_t n_now = send(fd, text + n_sent, n - n_sent, MSG_NOSIGNAL);
        assert_true(n_now > 0);
        n_sent += (size_t)n_now;
    }
    assert_true(recv(fd, reply, 12, MSG_WAITALL) == 12);
    assert_memory_equal(reply, "HTTP/1.1 200", 12);
    while ((n_read = recv(fd, reply, sizeof(reply), 0)) > 0)
        ;
    assert_int_equal(n_read, 0);
    close(fd);
}

static void ask_large(void)
{
    static char text[LARGE_BODY + 256];
    int n = snprintf(text, sizeof(text),
                     "POST /tokenize HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: "
                     "application/json\r\nContent-Length: %d\r\n\r\n{\"prompt\":\"",
                     LARGE_BODY + 13);

    memset(text + n, 'a', LARGE_BODY);
    memcpy(text + n + LARGE_BODY, "\"}", 2);
    ask(text, (size_t)n + LARGE_BODY + 2);
}

/* All at once; some are left after a few tokens. */
static void run_streams(struct stream *streams)
{
    static const char metrics[] = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    struct epoll_event events[N_STREAMS], event = {.events = EPOLLIN};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    uint32_t n_open = N_STREAMS, leaves_at[N_STREAMS];

    for (uint32_t i = 0; i < N_STREAMS; i++) {
        uint64_t random = ll_splitmix64(&seed);
        leaves_at[i] = i % 3 == 0 ? (uint32_t)(random % N_TOKENS) : UINT32_MAX;
        stream_expect(&streams[i], random >> 32, N_TOKENS);
        streams[i].fd = test_proxy_connect(&proxy);
        event.data.u32 = i;
        assert_true(streams[i].fd >= 0);
        assert_int_equal(epoll_ctl(epoll, EPOLL_CTL_ADD, streams[i].fd, &event), 0);
        stream_post(&streams[i], random >> 32);
    }
    ask(metrics, sizeof(metrics) - 1);
    ask_large();
    while (n_open > 0) {
        int n = epoll_wait(epoll, events, N_STREAMS, 60000);
        assert_true(n > 0);
        for (int k = 0; k < n; k++) {
            struct stream *stream = &streams[events[k].data.u32];
            stream_receive(stream, NULL, MSG_DONTWAIT);
            assert_int_equal(stream->n_wrong, 0);
            if (!stream->has_ended && stream->n_got < leaves_at[events[k].data.u32])
                continue;
            assert_true(!stream->has_ended || stream->n_got == N_TOKENS);
            close(stream->fd); /* epoll forgets it */
            n_open--;
        }
    }
    close(epoll);
}

static void load_on_all_threads_does_no_harm(void **state)
{
    static struct stream streams[N_STREAMS];
    uint64_t end_ns = ll_now_ns() + (uint64_t)(ll_test_seconds(2) * 1e9);

    (void)state;
    for (uint32_t i = 0; i < N_STREAMS; i++)
        streams[i].buffer = malloc(STREAM_BYTES);
    do
        run_streams(streams);
    while (ll_now_ns() < end_ns);
    for (uint32_t i = 0; i < N_STREAMS; i++) {
        free(streams[i].buffer);
        free(streams[i].wanted);
    }
    assert_int_equal(test_proxy_stop(&proxy), 0);
    assert_int_equal(ll_test_runtime_stop(&runtime), 0);
    runtime.pid = 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(load_on_all_threads_does_no_harm),
    };
    return cmocka_run_group_tests_name("http/stress_proxy", tests, begin, end);
}
