/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/job.c - the life of a job: submitted, held back, given up, failed, freed. */
#include "tools/http/job.h"

#include "base/bits.h"
#include "base/err.h"
#include "tools/http/balance.h"
#include "tools/http/salt.h"

#include <sys/random.h>

static void unlink_job(struct job *job)
{
    struct loop *loop = job->loop;

    if (job->prev != NULL)
        job->prev->next = job->next;
    else
        loop->jobs = job->next;
    if (job->next != NULL)
        job->next->prev = job->prev;
    if (job->is_waiting) {
        struct job **at = &loop->waiting;
        while (*at != job)
            at = &(*at)->next_waiting;
        *at = job->next_waiting;
    }
}

static bool is_over(const struct job *job)
{
    return job->n_ended == job->n_submitted && (job->conn == NULL);
}

void job_free_when_over(struct job *job)
{
    if (!is_over(job))
        return;
    unlink_job(job);
    job_free(job);
}

static int submit_to(struct link *link, struct job *job, struct part *part)
{
    const struct params *params = &job->params;
    struct ll_request request = LL_REQUEST_INIT;

    request.tag = (uint64_t)(uintptr_t)part;
    request.prompt = part->prompt.ids;
    request.n_prompt = part->prompt.n;
    /* Scoring alone (echo, max_tokens 0) runs one token, which is dropped. */
    request.max_tokens = params->has_max_tokens ? (uint32_t)ll_max_u64(params->max_tokens, 1) : 0;
    request.min_tokens = params->min_tokens;
    request.n = params->n;
    request.temperature = params->temperature;
    request.top_p = params->top_p;
    request.min_p = params->min_p;
    request.top_k = params->top_k;
    request.repetition_penalty = params->repetition_penalty;
    request.frequency_penalty = params->frequency_penalty;
    request.presence_penalty = params->presence_penalty;
    request.seed = params->seed;
    if (!params->has_seed)
        (void)!getrandom(&request.seed, sizeof(request.seed), 0);
    request.stop = params->stop_id;
    request.n_stop = params->n_stop_ids;
    /* One at least: what is then sent with each token is sure to come. */
    request.n_top = params->has_logprobs ? (uint32_t)ll_max_u64(params->n_top, 1) : 0;
    request.n_prompt_top = job->n_prompt_top;
    request.bias = params->bias;
    request.n_bias = params->n_bias;
    request.priority = params->priority;
    request.tenant = job->tenant;
    make_salt(job->loop->server->secret, job->tenant, params->cache_salt,
              params->cache_salt != NULL ? strlen(params->cache_salt) : 0, request.salt);
    if (params->ignores_eos)
        request.flags |= LL_REQUEST_IGNORE_EOS;
    if (part->prompt_logprob != NULL)
        request.flags |= LL_REQUEST_PROMPT_LOGPROBS;
    return ll_client_submit(link->client, &request, &part->id);
}

/* To the runtime of balance.h's choice; when that one cannot take it, to the next. */
static int submit_part(struct job *job, struct part *part)
{
    struct loop *loop = job->loop;
    uint32_t tried = 0;
    int rc = 0;

    for (;;) {
        struct link *link = balance_pick(loop, job, &part->prompt, tried);
        if (link == NULL)
            return rc < 0 ? rc : LL_ERR(LL_E_RUNTIME_LOST, "no runtime is there: try again");
        rc = submit_to(link, job, part);
        if (rc == 0) {
            part->link = link;
            balance_began(link);
            return 0;
        }
        bool may_try_next = rc == LL_E_AGAIN || rc == LL_E_RUNTIME_LOST || rc == LL_E_TIMEOUT ||
                            rc == LL_E_DRAINING || rc == LL_E_PROTOCOL;
        if (!may_try_next)
            return rc;
        tried |= 1u << (link->runtime - loop->server->runtime);
    }
}

/* Nobody waits for what is still under way. */
static void cancel(struct job *job)
{
    if (job->is_cancelled)
        return;
    job->is_cancelled = true;
    for (uint32_t i = 0; i < job->n_submitted; i++) {
        if (job->part[i].has_ended)
            continue;
        const struct part *part = &job->part[i];
        ll_client_hold(part->link->client, part->id, 0); /* its end must come through */
        ll_client_cancel(part->link->client, part->id);
    }
}

void job_fail(struct job *job, int status, const char *message, const char *param,
              uint32_t retry_ms)
{
    struct conn *conn = job->conn;

    if (job->has_failed)
        return;
    job->has_failed = true;
    cancel(job);
    if (conn == NULL)
        return;
    job->conn = NULL;
    conn->job = NULL;
    ll_hist_bump(&job->loop->figures.finished_abort, 1);
    if (!job->has_begun) {
        conn_reply_error(conn, status, message, param, retry_ms);
        return;
    }
    job->words->fail(job, status, message, param);
    conn_stream_put(conn, job->out.data, job->out.n);
    job->out.n = 0;
    conn_stream_end(conn);
}

static void wait_for_slots(struct job *job)
{
    struct job **at = &job->loop->waiting;

    if (job->is_waiting)
        return;
    while (*at != NULL)
        at = &(*at)->next_waiting;
    job->next_waiting = NULL;
    *at = job;
    job->is_waiting = true;
}

/* Submits what finds room. */
static void submit(struct job *job)
{
    while (job->n_submitted < job->n_parts && !job->has_failed) {
        int rc = submit_part(job, &job->part[job->n_submitted]);
        if (rc == LL_E_AGAIN && job->n_submitted > 0) {
            wait_for_slots(job);
            return;
        }
        if (rc < 0) {
            bool is_full = rc == LL_E_AGAIN;
            job_fail(job, is_full ? 429 : ll_error_http_status(rc),
                     is_full ? "as many requests as this server takes are under way: try again "
                               "in a second"
                             : ll_error_text(),
                     NULL, is_full || ll_error_http_status(rc) == 503 ? 1000 : 0);
            return;
        }
        job->n_submitted++;
    }
}

void job_start(struct job *job, struct loop *loop, struct conn *conn)
{
    job->loop = loop;
    job->conn = conn;
    conn->job = job;
    conn->state = CONN_BUSY;
    job->begin_ns = conn->request_ns;
    job->next = loop->jobs;
    if (loop->jobs != NULL)
        loop->jobs->prev = job;
    loop->jobs = job;
    submit(job);
    job_free_when_over(job);
}

void jobs_resume(struct loop *loop)
{
    struct job *list = loop->waiting;

    loop->waiting = NULL;
    while (list != NULL) {
        struct job *job = list;
        list = job->next_waiting;
        job->is_waiting = false;
        if (job->conn != NULL)
            submit(job);
        job_free_when_over(job);
    }
}

void jobs_fail_waiting(struct loop *loop, int code, const char *text)
{
    while (loop->waiting != NULL) {
        struct job *job = loop->waiting;
        loop->waiting = job->next_waiting;
        job->is_waiting = false;
        job_fail(job, ll_error_http_status(code), text, NULL, 1000);
        job_free_when_over(job);
    }
}

void job_abandon(struct job *job)
{
    job->conn = NULL;
    ll_hist_bump(&job->loop->figures.gone, 1);
    cancel(job);
    job->has_failed = true;
    job_free_when_over(job);
}

/* ---- streaming --------------------------------------------------------------------------------*/

static void hold(struct job *job, bool is_held)
{
    if (job->is_held == is_held)
        return;
    job->is_held = is_held;
    for (uint32_t i = 0; i < job->n_submitted; i++)
        if (!job->part[i].has_ended)
            ll_client_hold(job->part[i].link->client, job->part[i].id, is_held);
}

void job_flush(struct job *job)
{
    if (job->out.n > 0) {
        if (!job->has_begun) {
            job->has_begun = true;
            ll_hist_bump(&job->loop->figures.streams, 1);
            conn_stream_begin(job->conn, "text/event-stream; charset=utf-8");
        }
        conn_stream_put(job->conn, job->out.data, job->out.n);
        job->out.n = 0;
    }
    size_t n_unsent = conn_unsent(job->conn);
    if (n_unsent > OUT_BYTES_HOLD)
        hold(job, true);
    else if (n_unsent < OUT_BYTES_RELEASE)
        hold(job, false);
}
