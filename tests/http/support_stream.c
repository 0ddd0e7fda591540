/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/http/support_stream.h"

#include "base/clock.h"
#include "kernels/fake/fake.h"
#include "ll/text.h"

#include <errno.h>
#include <sys/socket.h>

#define N_PROMPT 16

static char character[STREAM_VOCAB]; /* of each id */

void stream_begin(void)
{
    struct ll_tokenizer *tokenizer;

    if (ll_tokenizer_from_path(&tokenizer, LL_SOURCE_DIR "/tools/demo-model") < 0)
        die("tokenizer");
    for (uint32_t id = 0; id < STREAM_VOCAB; id++) {
        size_t n = 0;
        const char *bytes = ll_tokenizer_bytes(tokenizer, id, &n);
        if (n != 1 || bytes[0] < 0x21 || bytes[0] > 0x7e)
            die("the first ids are no longer the printable characters");
        character[id] = bytes[0];
    }
    ll_tokenizer_free(tokenizer);
}

/* ---- requests ---------------------------------------------------------------------------------*/

static void make_prompt(uint32_t prompt[N_PROMPT], uint64_t seed)
{
    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = (uint32_t)((seed * 31 + i * 7) % STREAM_VOCAB);
}

void stream_expect(struct stream *stream, uint64_t seed, uint32_t n)
{
    const struct ll_fake_rules rules = {.n_vocab = STREAM_VOCAB};
    const struct ll_sampling sampling = {.top_p = 1};
    uint32_t prompt[N_PROMPT];

    make_prompt(prompt, seed);
    free(stream->wanted);
    stream->wanted = malloc(n * sizeof(*stream->wanted));
    stream->n_wanted = n;
    if (stream->wanted == NULL ||
        ll_fake_continue(&rules, prompt, N_PROMPT, seed, 0, &sampling, n, stream->wanted) != n)
        die("no memory");
    stream->n_got = stream->n_wrong = stream->n_tail = 0;
    stream->last_ns = 0;
    stream->has_ended = stream->has_status = stream->is_done = false;
}

void stream_submit(struct ll_client *client, struct stream *stream, uint64_t seed)
{
    struct ll_request request = LL_REQUEST_INIT;
    uint32_t prompt[N_PROMPT];

    make_prompt(prompt, seed);
    request.prompt = prompt;
    request.n_prompt = N_PROMPT;
    request.max_tokens = stream->n_wanted;
    request.seed = seed;
    request.temperature = 1;
    request.tag = (uint64_t)(uintptr_t)stream;
    request.flags = LL_REQUEST_IGNORE_EOS;
    if (ll_client_submit(client, &request, &stream->id) < 0)
        die("submit");
}

void stream_post(struct stream *stream, uint64_t seed)
{
    char body[512], text[1024];
    uint32_t prompt[N_PROMPT];
    int n;

    make_prompt(prompt, seed);
    n = snprintf(body, sizeof(body),
                 "{\"max_tokens\":%u,\"seed\":%llu,\"temperature\":1,\"stream\":true,"
                 "\"ignore_eos\":true,\"prompt\":[",
                 stream->n_wanted, (unsigned long long)seed);
    for (uint32_t i = 0; i < N_PROMPT; i++)
        n += snprintf(body + n, sizeof(body) - (size_t)n, i > 0 ? ",%u" : "%u", prompt[i]);
    n += snprintf(body + n, sizeof(body) - (size_t)n, "]}");
    n = snprintf(text, sizeof(text),
                 "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                 "Content-Length: %d\r\n\r\n%s",
                 n, body);
    if (send(stream->fd, text, (size_t)n, MSG_NOSIGNAL) != n)
        die("send of a request");
}

/* ---- what comes back --------------------------------------------------------------------------*/

static void count_token(struct stream *stream, struct ll_hist *gap, char c, uint64_t now_ns)
{
    if (stream->n_got >= stream->n_wanted || c != character[stream->wanted[stream->n_got]])
        stream->n_wrong++;
    stream->n_got++;
    if (gap != NULL && stream->n_got > stream->n_warm && stream->n_got > 1)
        ll_hist_add(gap, now_ns - stream->last_ns);
    stream->last_ns = now_ns;
}

void stream_take(struct stream *stream, struct ll_hist *gap, uint32_t id, uint64_t now_ns)
{
    count_token(stream, gap, id < STREAM_VOCAB ? character[id] : '\0', now_ns);
}

/* One event of the stream, without its "data: ". */
static void take_event(struct stream *stream, struct ll_hist *gap, const char *text, size_t n,
                       uint64_t now_ns)
{
    static const char key[] = "\"text\":\"";
    const char *at = memmem(text, n, key, sizeof(key) - 1);

    if (n == 6 && memcmp(text, "[DONE]", 6) == 0) {
        stream->is_done = true;
        return;
    }
    if (at == NULL) {
        stream->n_wrong++;
        return;
    }
    at += sizeof(key) - 1;
    if (*at == '"') /* the last: its reason, no text */
        return;
    at += *at == '\\';
    count_token(stream, gap, *at, now_ns);
    if (at[1] != '"')
        stream->n_wrong++;
}

uint32_t stream_receive(struct stream *stream, struct ll_hist *gap, int flags)
{
    uint32_t before = stream->n_got;
    ssize_t n =
        recv(stream->fd, stream->buffer + stream->n_tail, STREAM_BYTES - stream->n_tail, flags);
    uint64_t now_ns = ll_now_ns();
    char *at = stream->buffer, *end = at + stream->n_tail + (n > 0 ? n : 0), *stop;

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0)
        die("the proxy closed a stream");
    if (!stream->has_status) {
        if (end - at < 12 || memcmp(at, "HTTP/1.1 200", 12) != 0) {
            fprintf(stderr, "%.*s\n", (int)(end - at), at);
            die("a request was refused");
        }
        stream->has_status = true;
    }
    while ((stop = memmem(at, (size_t)(end - at), "\n\n", 2)) != NULL) {
        char *data = memmem(at, (size_t)(stop - at), "data: ", 6);
        if (data == NULL)
            die("an event without data");
        take_event(stream, gap, data + 6, (size_t)(stop - data) - 6, now_ns);
        at = stop + 2;
    }
    /* The last HTTP chunk: the next reply on the connection begins behind it. */
    stream->has_ended = stream->is_done && end - at >= 5 && memcmp(end - 5, "0\r\n\r\n", 5) == 0;
    stream->n_tail = stream->has_ended ? 0 : (uint32_t)(end - at);
    if (stream->n_tail == STREAM_BYTES)
        die("an event without end");
    memmove(stream->buffer, at, stream->n_tail);
    return stream->n_got - before;
}
