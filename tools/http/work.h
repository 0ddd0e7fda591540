/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/work.h - what is done with a request's body: on the event thread when it is small, by
 * a worker thread when it is large, so that one client's 16 MiB do not stop the streams of others.
 *
 *   W1  run() touches the work and the link's constant parts only.
 *   W2  The queue is bounded; a full one is answered with 503. */
#ifndef TOOLS_HTTP_WORK_H
#define TOOLS_HTTP_WORK_H

#include "tools/http/job.h"

struct work {
    struct work *next;
    struct loop *loop;
    uint64_t serial; /* of the connection */
    struct link *link;
    struct buffer body;
    uint32_t tenant;
    void (*run)(struct work *work);
    /* the result: a job, a reply, or an error */
    struct job *job;
    struct buffer reply;
    struct api_error error; /* status 0: none */
};

void work_free(struct work *work);

/* One worker thread for the whole process. */
int workers_start(void);
void workers_stop(void);
/* False: the queue is full (W2); the work is still the caller's. */
bool workers_take(struct work *work);

/* endpoints.c: the run functions. */
void work_chat(struct work *work);
void work_completion(struct work *work);
void work_responses(struct work *work);
void work_tokenize(struct work *work);
void work_detokenize(struct work *work);

/* route.c: work that is done, and its connection (NULL: gone). Frees the work. */
void route_work_done(struct conn *conn, struct work *work);

#endif
