/* SPDX-License-Identifier: Apache-2.0 */
/* tests/http/support_stream.h - a request to the fake device, over HTTP or through libllclient,
 * whose every token is known.
 *
 * The runtime: llringd tools/demo-model --device fake STREAM_RUNTIME. Only ids of one printable
 * character are drawn there, so that each token is one event of a stream, and a lost, doubled,
 * foreign or reordered one shows. */
#ifndef TESTS_HTTP_SUPPORT_STREAM_H
#define TESTS_HTTP_SUPPORT_STREAM_H

#include "tests/http/support_proxy.h"

#include "base/hist.h"
#include "ll/client.h"

#define STREAM_VOCAB 94 /* the printable characters are the demo model's first ids */
#define STREAM_RUNTIME                                                                             \
    LL_SOURCE_DIR "/tools/demo-model", "--device", "fake", "--fake-vocab", "94", "--fake-verify",  \
        "0"
#define STREAM_BYTES 16384 /* of buffer */

struct stream {
    int fd;                                    /* over HTTP */
    uint64_t id;                               /* through libllclient */
    uint32_t *wanted;                          /* [n_wanted] */
    uint32_t n_wanted, n_got, n_wrong, n_warm; /* warm: the first tokens whose gaps do not count */
    uint64_t last_ns;
    bool has_ended;
    /* over HTTP */
    bool has_status, is_done; /* done: [DONE] was read */
    char *buffer;             /* [STREAM_BYTES] */
    uint32_t n_tail;          /* bytes in it */
};

/* Ends the program with a message. Stands in the program. */
_Noreturn void die(const char *what);

/* Once, before all else. */
void stream_begin(void);
/* What a request of n tokens with this seed must yield. */
void stream_expect(struct stream *stream, uint64_t seed, uint32_t n);
/* Sends it: tag of its outputs is the stream. */
void stream_submit(struct ll_client *client, struct stream *stream, uint64_t seed);
/* The same over HTTP, in one packet, as clients do. */
void stream_post(struct stream *stream, uint64_t seed);
/* A token that libllclient gave. gap may be NULL. */
void stream_take(struct stream *stream, struct ll_hist *gap, uint32_t id, uint64_t now_ns);
/* Reads what is there on the connection: how many tokens came. */
uint32_t stream_receive(struct stream *stream, struct ll_hist *gap, int flags);

#endif
