/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/endpoints.c - what each POST endpoint makes of its body. Any thread (W1). */
#include "tools/http/work.h"

#include "base/bits.h"

static const char *served_name(const struct work *work)
{
    const struct option_texts *names = &work->loop->server->options.served_names;

    return names->n > 0 ? names->text[0] : link_model(work->link)->name;
}

/* "model" may be left out; another model's name is a mistake worth telling. */
static int check_model(const json_t *root, struct work *work)
{
    const json_t *model = json_object_get(root, "model");
    const struct option_texts *names = &work->loop->server->options.served_names;
    const char *name = json_string_value(model);

    if (model == NULL || json_is_null(model))
        return 0;
    if (name == NULL)
        return api_fail(&work->error, 400, "model", "`model` must be a string");
    for (uint32_t i = 0; i < names->n; i++)
        if (strcmp(names->text[i], name) == 0)
            return 0;
    /* Names from before a reload go on working: their users learn nothing but a pause. */
    for (const struct link_model *m = link_model(work->link); names->n == 0 && m != NULL;
         m = m->older)
        if (strcmp(name, m->name) == 0)
            return 0;
    return api_fail(&work->error, 404, "model",
                    "The model `%.100s` does not exist. This server has `%.100s`.", name,
                    served_name(work));
}

static json_t *open_body(struct work *work)
{
    json_t *root = body_parse(work->body.data, work->body.n, &work->error);

    if (root != NULL && check_model(root, work) < 0) {
        json_decref(root);
        root = NULL;
    }
    return root;
}

static void make_job(struct work *work, enum api api)
{
    json_t *root = open_body(work);

    if (root != NULL)
        work->job = job_new(root, api, work->link, work->tenant, &work->error);
}

void work_chat(struct work *work)
{
    make_job(work, API_CHAT);
}

void work_completion(struct work *work)
{
    make_job(work, API_COMPLETIONS);
}

void work_responses(struct work *work)
{
    make_job(work, API_RESPONSES);
}

/* ---- /tokenize, /detokenize -------------------------------------------------------------------*/

static void write_tokens(struct work *work, const struct prompt *prompt, bool wants_texts)
{
    struct buffer *out = &work->reply;

    buffer_printf(out, "{\"count\":%u,\"max_model_len\":%u,\"tokens\":[", prompt->n,
                  work->link->info.context_max);
    for (uint32_t i = 0; i < prompt->n; i++)
        buffer_printf(out, "%s%u", i > 0 ? "," : "", prompt->ids[i]);
    buffer_text(out, "],\"token_strs\":");
    for (uint32_t i = 0; wants_texts && i < prompt->n; i++) {
        size_t n = 0;
        const char *text = ll_tokenizer_bytes(work->link->tokenizer, prompt->ids[i], &n);
        buffer_put(out, i == 0 ? "[" : ",", 1);
        buffer_json_string(out, text != NULL ? text : "", n);
    }
    if (wants_texts)
        buffer_text(out, prompt->n == 0 ? "[]}" : "]}");
    else
        buffer_text(out, "null}");
}

void work_tokenize(struct work *work)
{
    json_t *root = open_body(work);
    const json_t *text = json_object_get(root, "prompt");
    const json_t *tools = json_object_get(root, "tools");
    bool adds_special = !json_is_false(json_object_get(root, "add_special_tokens"));
    struct prompt prompt = {0};
    int rc = root == NULL ? -1 : 0;

    if (rc == 0 && json_object_get(root, "messages") != NULL)
        rc = prompt_from_chat(root, json_is_array(tools) ? tools : NULL, work->link, &prompt,
                              &work->error);
    else if (rc == 0 && json_is_string(text))
        rc = prompt_from_text(json_string_value(text), json_string_length(text), adds_special,
                              work->link, &prompt, &work->error);
    else if (rc == 0)
        rc = api_fail(&work->error, 400, "prompt",
                      "send `prompt`, a string, or `messages`, an array of messages");
    if (rc == 0)
        write_tokens(work, &prompt, json_is_true(json_object_get(root, "return_token_strs")));
    free_prompt(&prompt);
    json_decref(root);
}

static int decode(struct work *work, const json_t *tokens, struct buffer *text)
{
    struct ll_decoder *decoder;
    const char *bytes;
    int n = work->link->tokenizer == NULL
                ? api_fail(&work->error, 400, NULL, "this model has no tokenizer")
                : ll_decoder_new(&decoder, work->link->tokenizer, LL_DECODE_SPECIAL);

    if (n < 0)
        return work->error.status != 0 ? -1 : api_fail_code(&work->error, n, NULL);
    for (size_t i = 0; i < json_array_size(tokens); i++) {
        json_t *id = json_array_get(tokens, i);
        bool is_id = json_is_integer(id) && json_integer_value(id) >= 0 &&
                     json_integer_value(id) < work->link->info.n_vocab;
        n = is_id ? ll_decoder_feed(decoder, (uint32_t)json_integer_value(id), &bytes) : -1;
        if (n < 0) {
            ll_decoder_free(decoder);
            return api_fail(&work->error, 400, "tokens",
                            "`tokens` holds something at %zu that is no token id of this model", i);
        }
        buffer_put(text, bytes, (size_t)n);
    }
    n = ll_decoder_finish(decoder, &bytes);
    buffer_put(text, bytes, n > 0 ? (size_t)n : 0);
    ll_decoder_free(decoder);
    return 0;
}

void work_detokenize(struct work *work)
{
    json_t *root = open_body(work);
    const json_t *tokens = json_object_get(root, "tokens");
    struct buffer text = {0};
    int rc = root == NULL ? -1 : 0;

    if (rc == 0 && !json_is_array(tokens))
        rc = api_fail(&work->error, 400, "tokens", "`tokens` must be an array of token ids");
    if (rc == 0)
        rc = decode(work, tokens, &text);
    if (rc == 0) {
        buffer_text(&work->reply, "{\"prompt\":");
        buffer_json_string(&work->reply, text.data, text.n);
        buffer_put(&work->reply, "}", 1);
    }
    buffer_free(&text);
    json_decref(root);
}
