/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/checkpoint_fixture.h - a made model directory, opened or refused. For
 * test_checkpoint.c and test_checkpoint_headers.c. */
#ifndef TESTS_RUNTIME_CHECKPOINT_FIXTURE_H
#define TESTS_RUNTIME_CHECKPOINT_FIXTURE_H

#include "tests/runtime/checkpoint_maker.h"

#include "base/err.h"
#include "base/rng.h"
#include "ll/client.h"
#include "runtime/checkpoint.h"
#include "runtime/safetensors.h"
#include "runtime/sha256.h"

#include <errno.h>

static inline int setup(void **state)
{
    struct maker *maker = malloc(sizeof(*maker));

    maker_init(maker, "BF16");
    maker_write_single(maker);
    *state = maker;
    return 0;
}

static inline int teardown(void **state)
{
    maker_free(*state);
    free(*state);
    return 0;
}

static struct ll_checkpoint checkpoint; /* large: not on the stack */

static inline void assert_opens(const struct maker *maker)
{
    memset(&checkpoint, 0, sizeof(checkpoint));
    int rc = ll_checkpoint_open(&checkpoint, maker->directory);
    if (rc < 0)
        fail_msg("refused: %s", ll_err_text());
}

/* Refused with this code, and the text holds each of the words. */
static inline void assert_refused(const struct maker *maker, int code, const char *word1,
                                  const char *word2)
{
    memset(&checkpoint, 0, sizeof(checkpoint));
    int rc = ll_checkpoint_open(&checkpoint, maker->directory);
    if (rc != code)
        fail_msg("answered %d, not %d: %s", rc, code, rc < 0 ? ll_err_text() : "opened");
    if (strstr(ll_err_text(), word1) == NULL || strstr(ll_err_text(), word2) == NULL)
        fail_msg("\"%s\" does not name \"%s\" and \"%s\"", ll_err_text(), word1, word2);
    assert_null(checkpoint.tensor); /* nothing left behind */
    assert_null(checkpoint.file);
}

/* The good config with one piece of its text replaced. */
static inline void write_config(const struct maker *maker, const char *from, const char *to)
{
    char text[4096];
    const char *at = strstr(MAKER_CONFIG, from);

    assert_non_null(at);
    snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - MAKER_CONFIG), MAKER_CONFIG, to,
             at + strlen(from));
    maker_write_text(maker, "config.json", text);
}

/* model.safetensors with this header in place of the right one. */
static inline void write_header(const struct maker *maker, const char *header)
{
    maker_write_file(maker, "model.safetensors", 0, header, strlen(header));
}

/* The right header with one piece of its text replaced. */
static inline void write_changed_header(const struct maker *maker, const char *from, const char *to)
{
    size_t n_header;
    char *header = maker_header(maker, 0, &n_header), *text = malloc(n_header + 4096);

    header[n_header] = '\0';
    const char *at = strstr(header, from);
    assert_non_null(at);
    sprintf(text, "%.*s%s%s", (int)(at - header), header, to, at + strlen(from));
    write_header(maker, text);
    free(text);
    free(header);
}

#endif
