/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/reload_check.h"

#include "base/bits.h"
#include "base/err.h"
#include "ll/client.h"
#include "runtime/jsonfile.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READ_BYTES ((size_t)1 << 20)

/* ---- the tokenizer's file ---------------------------------------------------------------------*/

static int hash_file(struct ll_tokenizer_print *out, int fd, const char *path)
{
    XXH3_state_t *hash = XXH3_createState();
    char *buffer = malloc(READ_BYTES);
    ssize_t n = -1;
    int rc = 0;

    if (hash == NULL || buffer == NULL) {
        rc = LL_ERR(-ENOMEM, "no memory to compare tokenizers");
        goto free_both;
    }
    XXH3_128bits_reset(hash);
    while ((n = read(fd, buffer, READ_BYTES)) > 0 || (n < 0 && errno == EINTR))
        if (n > 0)
            XXH3_128bits_update(hash, buffer, (size_t)n);
    if (n < 0) {
        rc = LL_ERRNO("read %s", path);
        goto free_both;
    }
    XXH128_hash_t value = XXH3_128bits_digest(hash);
    *out = (struct ll_tokenizer_print){value.low64, value.high64};
free_both:
    XXH3_freeState(hash);
    free(buffer);
    return rc;
}

int ll_tokenizer_print(struct ll_tokenizer_print *out, const char *directory)
{
    /* As the tokenizer image is built (client/text/image_build.c): the first one that is there. */
    static const char *const files[] = {"tokenizer.json", "tokenizer.model",
                                        "original/tokenizer.model"};
    char path[1200];

    *out = (struct ll_tokenizer_print){0, 0};
    for (size_t i = 0; i < LL_COUNT(files); i++) {
        snprintf(path, sizeof(path), "%s/%s", directory, files[i]);
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        if (fd < 0 && errno == ENOENT)
            continue;
        if (fd < 0)
            return LL_ERRNO("open %s", path);
        int rc = hash_file(out, fd, path);
        close(fd);
        return rc;
    }
    return 0;
}

/* ---- what must be equal -----------------------------------------------------------------------*/

static int differs(const char *directory, const char *what, double new_value, double value)
{
    return LL_ERR(LL_E_INVAL,
                  "%s: %s is %.10g, that of the model that serves is %.10g: a reload cannot change "
                  "that; stop llringd and start it with the new model",
                  ll_path_tail(directory), what, new_value, value);
}

static int check_shape(const struct ll_checkpoint *new, const struct ll_model_shape *old)
{
    const struct ll_model_shape *s = &new->shape;
    const struct {
        const char *what;
        double new_value, value;
    } fields[] = {
        {"num_hidden_layers", s->n_layers, old->n_layers},
        {"hidden_size", s->n_embd, old->n_embd},
        {"num_attention_heads", s->n_heads, old->n_heads},
        {"num_key_value_heads", s->n_kv_heads, old->n_kv_heads},
        {"head_dim", s->head_dim, old->head_dim},
        {"intermediate_size", s->n_ff, old->n_ff},
        {"vocab_size", s->n_vocab, old->n_vocab},
        {"tie_word_embeddings", s->is_tied, old->is_tied},
        {"rms_norm_eps", (double)s->rms_eps, (double)old->rms_eps},
        {"rope_theta", s->rope_theta, old->rope_theta},
        {"rope_scaling's type", s->rope, old->rope},
        {"rope_scaling's factor", s->rope_factor, old->rope_factor},
        {"rope_scaling's low_freq_factor", s->rope_low_freq, old->rope_low_freq},
        {"rope_scaling's high_freq_factor", s->rope_high_freq, old->rope_high_freq},
        {"rope_scaling's original_max_position_embeddings", s->rope_original_context,
         old->rope_original_context},
    };

    for (size_t i = 0; i < LL_COUNT(fields); i++)
        if (fields[i].new_value < fields[i].value || fields[i].new_value > fields[i].value)
            return differs(new->directory, fields[i].what, fields[i].new_value, fields[i].value);
    if (s->context_max < old->context_max)
        return LL_ERR(LL_E_INVAL,
                      "%s: max_position_embeddings is %u, clients were promised a context of %u: "
                      "stop llringd and start it with the new model",
                      ll_path_tail(new->directory), s->context_max, old->context_max);
    return 0;
}

static int check_weights(const struct ll_setup *setup, const struct ll_checkpoint *new)
{
    bool is_fp8 = setup->checkpoint.dtype == LL_DTYPE_E4M3 || setup->quantize_fp8;
    bool gets_fp8 = new->dtype == LL_DTYPE_E4M3 || setup->quantize_fp8;
    uint64_t reserved = ll_setup_weights_bytes(setup, &setup->checkpoint);
    uint64_t needed = ll_setup_weights_bytes(setup, new);

    if (new->activation_bound < setup->checkpoint.activation_bound ||
        new->activation_bound > setup->checkpoint.activation_bound)
        return differs(new->directory, "activation_scale_ub", (double)new->activation_bound,
                       (double)setup->checkpoint.activation_bound);
    if (is_fp8 != gets_fp8)
        return LL_ERR(LL_E_INVAL,
                      "%s: its linear layers are %s, those of the model that serves are %s: the "
                      "second set was reserved for these; stop llringd and start it with the new "
                      "model",
                      ll_path_tail(new->directory), gets_fp8 ? "FP8" : "not FP8",
                      is_fp8 ? "FP8" : "not");
    if (needed > reserved + reserved / 64) /* scales come in several forms */
        return LL_ERR(
            -ENOMEM,
            "%s: its weights need %llu bytes of memory, and %llu are reserved for a second "
            "set: stop llringd and start it with the new model",
            ll_path_tail(new->directory), (unsigned long long)needed, (unsigned long long)reserved);
    return 0;
}

static int check_ids(const struct ll_checkpoint *own, const struct ll_checkpoint *old)
{
    if (old->bos == own->bos && old->n_eos == own->n_eos &&
        memcmp(own->eos, old->eos, own->n_eos * sizeof(own->eos[0])) == 0)
        return 0;
    return LL_ERR(LL_E_INVAL,
                  "%s: its begin or end ids (bos_token_id, eos_token_id of generation_config.json "
                  "or config.json) are not those that connected clients know: stop llringd and "
                  "start it with the new model",
                  ll_path_tail(own->directory));
}

static int check_text(const struct ll_setup *setup, const struct ll_checkpoint *new,
                      const struct ll_tokenizer_print *print)
{
    struct ll_tokenizer_print own;
    char format[sizeof(setup->chat_format)];
    int rc = ll_tokenizer_print(&own, new->directory);

    if (rc == 0)
        rc = ll_setup_chat_format(setup->config, new, format, sizeof(format));
    if (rc < 0)
        return rc;
    if (own.lo != print->lo || own.hi != print->hi)
        return LL_ERR(LL_E_INVAL,
                      "%s: its tokenizer file is %s the one that connected clients use: stop "
                      "llringd and start it with the new model",
                      ll_path_tail(new->directory),
                      (own.lo | own.hi) == 0 ? "missing, not" : "not");
    if (strcmp(format, setup->chat_format) != 0)
        return LL_ERR(LL_E_INVAL,
                      "%s: its chat format is %s, connected clients use %s: stop llringd and start "
                      "it with the new model, or with --chat-template if it speaks that one",
                      ll_path_tail(new->directory), format[0] != 0 ? format : "none that is known",
                      setup->chat_format[0] != 0 ? setup->chat_format : "none");
    return 0;
}

int ll_reload_check(struct ll_checkpoint *out, const struct ll_setup *setup,
                    const struct ll_tokenizer_print *print, const char *directory)
{
    struct ll_checkpoint *new = calloc(1, sizeof(*new)); /* large */

    if (new == NULL)
        return LL_ERR(-ENOMEM, "no memory to open %s", directory);
    int rc = ll_checkpoint_open(new, directory);
    if (rc < 0) {
        free(new);
        return rc;
    }
    if (setup->has_checkpoint) { /* the fake device takes any */
        rc = check_shape(new, &setup->checkpoint.shape);
        if (rc == 0)
            rc = check_weights(setup, new);
        if (rc == 0)
            rc = check_ids(new, &setup->checkpoint);
        if (rc == 0)
            rc = check_text(setup, new, print);
    }
    if (rc == 0) {
        ll_setup_sampling(setup->config, new);
        *out = *new;
    } else {
        ll_checkpoint_close(new);
    }
    free(new);
    return rc;
}
