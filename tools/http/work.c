/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/http/work.h"

#include "base/err.h"

#include <stdlib.h>

#define QUEUE_MAX 64

static struct {
    pthread_mutex_t lock;
    pthread_cond_t news;
    struct work *first, **last;
    uint32_t n;
    bool is_stopping;
    pthread_t thread;
} queue = {.lock = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER};

void work_free(struct work *work)
{
    buffer_free(&work->body);
    buffer_free(&work->reply);
    link_release(work->link);
    free(work);
}

static struct work *next_work(void)
{
    pthread_mutex_lock(&queue.lock);
    while (queue.first == NULL && !queue.is_stopping)
        pthread_cond_wait(&queue.news, &queue.lock);
    struct work *work = queue.first;
    if (work != NULL) {
        queue.first = work->next;
        if (queue.first == NULL)
            queue.last = &queue.first;
        queue.n--;
    }
    pthread_mutex_unlock(&queue.lock);
    return work;
}

static void *run(void *nothing)
{
    struct work *work;

    while ((work = next_work()) != NULL) {
        work->run(work);
        loop_post(work->loop, work);
    }
    return nothing;
}

int workers_start(void)
{
    queue.last = &queue.first;
    queue.is_stopping = false;
    int rc = pthread_create(&queue.thread, NULL, run, NULL);
    return rc != 0 ? ll_err_set_errno(rc, "the worker thread could not be started") : 0;
}

void workers_stop(void)
{
    pthread_mutex_lock(&queue.lock);
    queue.is_stopping = true;
    pthread_cond_signal(&queue.news);
    pthread_mutex_unlock(&queue.lock);
    pthread_join(queue.thread, NULL);
}

bool workers_take(struct work *work)
{
    pthread_mutex_lock(&queue.lock);
    bool has_room = queue.n < QUEUE_MAX;
    if (has_room) {
        work->next = NULL;
        *queue.last = work;
        queue.last = &work->next;
        queue.n++;
        pthread_cond_signal(&queue.news);
    }
    pthread_mutex_unlock(&queue.lock);
    return has_room;
}
