/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/job_make.c - a job from the body of a request: fields, prompts, one state a choice. */
#include "tools/http/job.h"

#include "base/bits.h"

#include <math.h>
#include <stdlib.h>

static void choice_free(struct choice *choice)
{
    ll_decoder_free(choice->decoder);
    ll_stopper_free(choice->stopper);
    ll_toolcalls_free(choice->machine);
    buffer_free(&choice->text);
    for (uint32_t i = 0; i < choice->n_calls; i++) {
        buffer_free(&choice->call[i].name);
        buffer_free(&choice->call[i].arguments);
    }
    free(choice->call);
    for (size_t i = 0; i < LL_COUNT(choice->logprobs); i++)
        buffer_free(&choice->logprobs[i]);
    buffer_free(&choice->ids);
}

void job_free(struct job *job)
{
    for (uint32_t p = 0; job->part != NULL && p < job->n_parts; p++) {
        struct part *part = &job->part[p];
        for (uint32_t k = 0; part->choice != NULL && k < job->params.n; k++)
            choice_free(&part->choice[k]);
        free(part->choice);
        free(part->prompt.ids);
        free(part->prompt_logprob);
        free(part->prompt_top);
        free(part->n_prompt_top);
    }
    free(job->part);
    free(job->tools_json);
    params_free(&job->params);
    responses_free(job->response);
    buffer_free(&job->head);
    buffer_free(&job->out);
    json_decref(job->root);
    link_release(job->link);
    free(job);
}

static int make_choice(struct choice *choice, const struct job *job)
{
    const struct params *params = &job->params;
    int rc = 0;

    if (job->link->tokenizer == NULL)
        return 0;
    if (params->uses_tools)
        rc = ll_toolcalls_new(&choice->machine, job->link->tokenizer, job->tools_json,
                              job->n_tools_json);
    if (rc == 0)
        rc = ll_decoder_new(&choice->decoder, job->link->tokenizer,
                            params->keeps_special ? LL_DECODE_SPECIAL : 0);
    if (rc == 0 && params->n_stops > 0)
        rc = ll_stopper_new(&choice->stopper, params->stop, params->n_stop_bytes, params->n_stops);
    return rc;
}

/* The answer begins with the prompt: as it was sent, or what its ids say. */
static int echo_prompt(struct choice *choice, const struct part *part)
{
    const struct prompt *prompt = &part->prompt;
    const char *text;
    int n = 0;

    if (prompt->text != NULL) {
        buffer_put(&choice->text, prompt->text, prompt->n_text);
    } else if (choice->decoder != NULL) {
        for (uint32_t i = 0; i < prompt->n && n >= 0; i++) {
            n = ll_decoder_feed(choice->decoder, prompt->ids[i], &text);
            buffer_put(&choice->text, text, n > 0 ? (size_t)n : 0);
        }
        if (n >= 0)
            n = ll_decoder_finish(choice->decoder, &text);
        buffer_put(&choice->text, text, n > 0 ? (size_t)n : 0);
        ll_decoder_reset(choice->decoder);
    }
    choice->n_characters = count_characters(choice->text.data, choice->text.n);
    return n < 0 ? n : 0;
}

static int make_part(struct part *part, struct job *job, uint32_t index, struct api_error *error)
{
    const struct params *params = &job->params;

    part->job = job;
    part->choice = calloc(params->n, sizeof(*part->choice));
    if (part->choice == NULL)
        return api_fail(error, 503, NULL, "no memory for the request");
    for (uint32_t k = 0; k < params->n; k++) {
        struct choice *choice = &part->choice[k];
        *choice = (struct choice){
            .job = job, .index = index * params->n + k, .stop_string = -1, .stop_id = UINT32_MAX};
        int rc = make_choice(choice, job);
        if (rc == 0 && params->echo)
            rc = echo_prompt(choice, part);
        if (rc < 0)
            return api_fail_code(error, rc, NULL);
    }
    bool wants_scores = params->has_prompt_logprobs || (params->echo && params->has_logprobs);
    if (!wants_scores)
        return 0;
    size_t n = part->prompt.n;
    part->prompt_logprob = calloc(n, sizeof(*part->prompt_logprob));
    part->n_prompt_top = calloc(n, sizeof(*part->n_prompt_top));
    part->prompt_top = calloc(n * ll_max_u64(job->n_prompt_top, 1), sizeof(*part->prompt_top));
    if (part->prompt_logprob == NULL || part->n_prompt_top == NULL || part->prompt_top == NULL)
        return api_fail(error, 503, NULL, "no memory for the prompt's logprobs");
    for (size_t i = 0; i < n; i++)
        part->prompt_logprob[i] = NAN;
    return 0;
}

/* truncate_prompt_tokens, then the context's length. */
static int check_length(struct job *job, struct part *part, struct api_error *error)
{
    const struct params *params = &job->params;
    const struct ll_client_info *info = &job->link->info;
    uint64_t n_new = ll_max_u64(params->max_tokens, 1);
    struct prompt *prompt = &part->prompt;

    if (params->truncate != 0) {
        uint64_t keep = (uint64_t)params->truncate;
        if (params->truncate < 0)
            keep = info->context_max > n_new ? info->context_max - n_new : 1;
        if (keep < prompt->n) {
            if (!params->truncates_right)
                memmove(prompt->ids, prompt->ids + (prompt->n - keep), keep * sizeof(uint32_t));
            prompt->n = (uint32_t)keep;
            prompt->text = NULL; /* what is echoed is what was used */
        }
    }
    if (prompt->n + n_new > info->context_max || prompt->n > info->n_prompt_max)
        return api_fail(error, 400,
                        job->api == API_CHAT        ? "messages"
                        : job->api == API_RESPONSES ? "input"
                                                    : "prompt",
                        "This model's maximum context length is %u tokens. However, you requested "
                        "%llu tokens (%u in the prompt, %llu for the completion). Shorten one.",
                        info->context_max, (unsigned long long)(prompt->n + n_new), prompt->n,
                        (unsigned long long)n_new);
    return 0;
}

static int read_prompts(struct job *job, struct api_error *error)
{
    struct prompt single, *prompts = &single;
    uint32_t n = 1;
    int rc;

    if (job->api != API_COMPLETIONS)
        rc = prompt_from_chat(job->root, job->params.tools, job->link, &single, error);
    else
        rc =
            prompts_from_field(job->root, job->params.adds_special, job->link, &prompts, &n, error);
    if (rc < 0)
        return rc;
    job->part = calloc(n, sizeof(*job->part));
    if (job->part == NULL) {
        if (prompts == &single)
            free(single.ids);
        else
            prompts_free(prompts, n);
        return api_fail(error, 503, NULL, "no memory for the request");
    }
    job->n_parts = n;
    for (uint32_t i = 0; i < n; i++)
        job->part[i].prompt = prompts[i];
    if (prompts != &single)
        free(prompts);
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        rc = check_length(job, &job->part[i], error);
        if (rc == 0)
            rc = make_part(&job->part[i], job, i, error);
    }
    return rc;
}

static int dump_tools(struct job *job, struct api_error *error)
{
    if (!job->params.uses_tools)
        return 0;
    job->tools_json = json_dumps(job->params.tools, JSON_COMPACT);
    if (job->tools_json == NULL)
        return api_fail(error, 503, NULL, "no memory for the tools");
    job->n_tools_json = strlen(job->tools_json);
    return 0;
}

static int begin_response(struct job *job, struct api_error *error)
{
    job->response = calloc(1, sizeof(*job->response));
    if (job->response == NULL)
        return api_fail(error, 503, NULL, "no memory for the request");
    return responses_read(job->root, job->response, error);
}

struct job *job_new(json_t *root, enum api api, struct link *link, uint32_t tenant,
                    struct api_error *error)
{
    static const struct reply_words *const words[] = {&reply_chat, &reply_completion,
                                                      &reply_responses};
    static const char *const prefix[] = {"chatcmpl-", "cmpl-", "resp_"};
    struct job *job = calloc(1, sizeof(*job));

    if (job == NULL) {
        json_decref(root);
        api_fail(error, 503, NULL, "no memory for the request");
        return NULL;
    }
    job->root = root;
    job->api = api;
    job->words = words[api];
    job->link = link_hold(link);
    job->model = link_model(link);
    job->tenant = tenant;
    if (api == API_RESPONSES && begin_response(job, error) < 0)
        goto fail;
    if (fields_read(root, api, link, &job->params, error) < 0)
        goto fail;
    job->n_prompt_top = job->params.n_prompt_top;
    if (job->params.echo && job->params.has_logprobs)
        job->n_prompt_top = (uint32_t)ll_max_u64(job->n_prompt_top, job->params.n_top);
    if (dump_tools(job, error) < 0 || read_prompts(job, error) < 0)
        goto fail;
    make_id(job->id, sizeof(job->id), prefix[api]);
    job->created = (int64_t)time(NULL);
    return job;
fail:
    job_free(job);
    return NULL;
}
