/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/setup_impl.h"

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "client/text/chat.h"
#include "ll/text.h"
#include "runtime/model_shapes.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAKE_CONTEXT 8192u

int ll_setup_usage(struct ll_setup *setup, int rc)
{
    setup->is_usage = true;
    return rc;
}

/* ---- the model -------------------------------------------------------------------------------*/

static uint32_t fake_vocab(const struct ll_config *config)
{
    const char *at = strstr(config->fake, "vocab=");

    return at != NULL ? (uint32_t)strtoul(at + strlen("vocab="), NULL, 10) : 1000;
}

/* A shape for the device without a model: small numbers that go together. */
static void make_up_model(struct ll_checkpoint *out, const struct ll_config *config)
{
    out->shape = (struct ll_model_shape){
        .n_layers = 1,
        .n_embd = 64,
        .n_heads = 1,
        .n_kv_heads = 1,
        .head_dim = 64,
        .n_ff = 64,
        .n_vocab = fake_vocab(config),
        .context_max = FAKE_CONTEXT,
        .rms_eps = 1e-5f,
        .rope_theta = 10000,
    };
    if (config->max_model_len != 0)
        out->shape.context_max = config->max_model_len;
    out->dtype = LL_DTYPE_F32;
    out->bos = UINT32_MAX;
    if (config->fake_eos_id != UINT32_MAX) {
        out->n_eos = 1;
        out->eos[0] = config->fake_eos_id;
    }
    out->top_p = out->repetition_penalty = 1.0f;
    out->temperature = 1.0f;
}

/* --model-shape: the shape of a published model, no model. Random weights have no ids that end a
 * text and no defaults of sampling. */
static int make_shaped_model(struct ll_setup *setup)
{
    const struct ll_config *config = setup->config;
    struct ll_checkpoint *out = &setup->checkpoint;

    if (config->load_format != LL_LOAD_DUMMY)
        return ll_setup_usage(setup, LL_ERR(LL_E_INVAL,
                                            "--model-shape goes with --load-format dummy only: a "
                                            "shape alone has no weights"));
    int rc = ll_model_shape_find(config->model_shape, &out->shape);
    if (rc < 0)
        return ll_setup_usage(setup, rc);
    if (strcmp(config->model_shape, "llama-3.1-405b") == 0 && config->tensor_parallel_size < 8)
        return ll_setup_usage(
            setup,
            LL_ERR(LL_E_INVAL, "--model-shape llama-3.1-405b takes --tensor-parallel-size 8; "
                               "--tp-shard-only with it measures one of the eight ranks on one "
                               "GPU"));
    out->dtype = LL_DTYPE_BF16;
    out->bos = UINT32_MAX;
    out->top_p = out->repetition_penalty = 1.0f;
    out->temperature = 1.0f;
    return 0;
}

static int find_model(struct ll_setup *setup)
{
    const struct ll_config *config = setup->config;

    if (config->model[0] == 0)
        return ll_setup_usage(setup, LL_ERR(LL_E_INVAL,
                                            "no model: give a directory, as in \"llringd DIR\" "
                                            "(see llringd --help)"));
    int rc = ll_config_find_model(config->model, setup->directory, sizeof(setup->directory));
    if (rc == 0)
        rc = config->load_format == LL_LOAD_DUMMY
                 ? ll_checkpoint_open_config(&setup->checkpoint, setup->directory)
                 : ll_checkpoint_open(&setup->checkpoint, setup->directory);
    setup->has_checkpoint = rc == 0;
    return rc;
}

/* A model named beside the device without one lends its tokenizer and chat format, so that whatever
 * clients do with text can be tried against a device whose answers and pace are known. */
static int borrow_text(struct ll_setup *setup)
{
    struct ll_checkpoint *own = &setup->checkpoint, lender;
    int rc = ll_config_find_model(setup->config->model, setup->directory, sizeof(setup->directory));

    if (rc == 0)
        rc = ll_checkpoint_open_config(&lender, setup->directory);
    if (rc < 0)
        return rc;
    own->has_tokenizer_json = lender.has_tokenizer_json;
    own->has_tokenizer_model = lender.has_tokenizer_model;
    memcpy(own->chat_format, lender.chat_format, sizeof(own->chat_format));
    memcpy(own->template_sha256, lender.template_sha256, sizeof(own->template_sha256));
    ll_checkpoint_close(&lender);
    return 0;
}

/* Last part of the path, without slashes at its end. */
void ll_setup_name(const struct ll_config *config, const char *path, const char *directory,
                   char *out, size_t n_bytes)
{
    const char *name = config->served_model_name;
    char shown[sizeof(config->model)];

    if (name[0] == 0) {
        snprintf(shown, sizeof(shown), "%s", path);
        for (size_t n = strlen(shown); n > 1 && shown[n - 1] == '/'; n--)
            shown[n - 1] = 0;
        const char *slash = strrchr(shown, '/');
        /* A hub name is shown as it is. */
        name = slash != NULL && strcmp(directory, path) == 0 ? slash + 1 : shown;
    }
    snprintf(out, n_bytes, "%.*s", (int)n_bytes - 1, name);
}

static void name_model(struct ll_setup *setup)
{
    const struct ll_config *config = setup->config;
    const char *path = config->model_shape[0] != 0 ? config->model_shape
                       : config->model[0] != 0     ? config->model
                                                   : "fake";

    ll_setup_name(config, path, setup->directory, setup->served_name, sizeof(setup->served_name));
}

int ll_setup_chat_format(const struct ll_config *config, const struct ll_checkpoint *checkpoint,
                         char *out, size_t n_bytes)
{
    const char *wish = config->chat_template, *format = "";

    if (wish[0] != 0 && strcmp(wish, "none") != 0) {
        if (ll_chat_format_find(wish) == LL_CHAT_NONE)
            return LL_ERR(LL_E_INVAL,
                          "--chat-template: \"%s\" is none of llama3.1, llama3.2, llama3.3, none "
                          "(a name, not a file: templates are programs and are not run here)",
                          wish);
        format = wish;
    } else if (wish[0] == 0) {
        if (checkpoint->chat_format[0] != 0 &&
            ll_chat_format_find(checkpoint->chat_format) != LL_CHAT_NONE)
            format = checkpoint->chat_format;
        if (format[0] == 0)
            format = ll_chat_format_name(ll_chat_format_by_template(checkpoint->template_sha256));
    }
    snprintf(out, n_bytes, "%s", format);
    return 0;
}

static int choose_chat_format(struct ll_setup *setup)
{
    int rc = ll_setup_chat_format(setup->config, &setup->checkpoint, setup->chat_format,
                                  sizeof(setup->chat_format));

    if (rc < 0)
        return ll_setup_usage(setup, rc);
    if (setup->chat_format[0] == 0 && setup->config->chat_template[0] == 0 && setup->has_checkpoint)
        ll_warn("this model's chat template is not known: chat is refused, completions work; "
                "--chat-template llama3.1 (or llama3.2) says what it speaks");
    return 0;
}

static int check_context(struct ll_setup *setup)
{
    struct ll_model_shape *shape = &setup->checkpoint.shape;
    uint32_t wanted = setup->config->max_model_len;

    if (wanted > shape->context_max)
        return ll_setup_usage(setup,
                              LL_ERR(LL_E_INVAL, "--max-model-len: %u is more than the model's %u",
                                     wanted, shape->context_max));
    if (wanted != 0)
        shape->context_max = wanted;
    if (shape->context_max < 2)
        return ll_setup_usage(
            setup,
            LL_ERR(LL_E_INVAL, "--max-model-len: a prompt and an output need at least 2 tokens"));
    for (uint32_t i = 0; i < setup->checkpoint.n_eos; i++)
        if (setup->checkpoint.eos[i] >= shape->n_vocab)
            return LL_ERR(LL_E_INVAL, "the model's end id %u is outside its vocabulary of %u",
                          setup->checkpoint.eos[i], shape->n_vocab);
    return 0;
}

void ll_setup_sampling(const struct ll_config *config, struct ll_checkpoint *checkpoint)
{
    if (config->generation_config == LL_GENERATION_AUTO)
        return;
    checkpoint->temperature = 1.0f;
    checkpoint->top_p = 1.0f;
    checkpoint->min_p = 0.0f;
    checkpoint->repetition_penalty = 1.0f;
    checkpoint->top_k = 0;
}

int ll_setup_model(struct ll_setup *setup, const struct ll_config *config)
{
    struct ll_machine machine;
    int rc = 0;

    memset(setup, 0, sizeof(*setup));
    setup->config = config;
    ll_machine_read(&machine);
    rc = ll_topology_find(&setup->topology, &machine, config->cpus, config->threads, config->pin);
    if (rc < 0)
        return ll_setup_usage(setup, rc);
    if (config->device == LL_DEVICE_FAKE)
        make_up_model(&setup->checkpoint, config);
    else if (config->model_shape[0] != 0)
        rc = make_shaped_model(setup);
    else
        rc = find_model(setup);
    bool has_own_text = config->device != LL_DEVICE_FAKE && config->model_shape[0] == 0;
    if (rc == 0 && !has_own_text && config->model[0] != 0)
        rc = borrow_text(setup);
    if (rc == 0)
        rc = check_context(setup);
    if (rc == 0)
        rc = choose_chat_format(setup);
    if (rc < 0)
        return rc;
    ll_setup_sampling(config, &setup->checkpoint);
    name_model(setup);
    return 0;
}

void ll_setup_close(struct ll_setup *setup)
{
    if (setup->device != NULL)
        setup->backend->close(setup->device);
    if (setup->has_checkpoint)
        ll_checkpoint_close(&setup->checkpoint);
    if (setup->module != NULL)
        dlclose(setup->module);
    memset(setup, 0, sizeof(*setup));
}
