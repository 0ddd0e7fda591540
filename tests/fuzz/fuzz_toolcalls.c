/* SPDX-License-Identifier: Apache-2.0 */
/* tests/fuzz/fuzz_toolcalls.c - a model's output, byte 0x01 standing for <|python_tag|>: byte by
 * byte and token by token it gives the same events; arguments are JSON unless the call broke off.
 */
#include "tests/fuzz/fuzz.h"

#include "client/text/json.h"
#include "ll/text.h"

static const char tools[] = "[{\"name\":\"f\"},{\"function\":{\"name\":\"gg\"}}]";
static const char tools_code[] = "[{\"name\":\"f\"},{\"type\":\"code_interpreter\"}]";
static struct ll_tokenizer *tokenizer;
static uint32_t byte_ids[256], tag;

static void open_tokenizer(void)
{
    FUZZ_CHECK(ll_tokenizer_from_path(&tokenizer, LL_SOURCE_DIR "/tools/demo-model") == 0);
    tag = ll_tokenizer_special(tokenizer, "<|python_tag|>", 14);
    for (uint32_t id = 0; id < ll_tokenizer_n_vocab(tokenizer); id++) {
        size_t n;
        const char *bytes = ll_tokenizer_bytes(tokenizer, id, &n);
        if (bytes != NULL && n == 1)
            byte_ids[(uint8_t)bytes[0]] = id;
    }
}

struct result {
    char *text; /* type, call and bytes of each event; pieces of one kind joined */
    size_t n, n_max;
    uint32_t type, call;
};

static void drain(struct ll_toolcalls *calls, struct result *result)
{
    struct ll_toolcalls_event event;

    while (ll_toolcalls_next(calls, &event) == 1) {
        FUZZ_CHECK(result->n + event.n_text + 16 < result->n_max);
        if (event.type != result->type || event.index != result->call)
            result->n +=
                (size_t)sprintf(result->text + result->n, "\n%u.%u ", event.type, event.index);
        result->type = event.type;
        result->call = event.index;
        memcpy(result->text + result->n, event.text, event.n_text);
        result->n += event.n_text;
    }
}

static struct result run(const uint8_t *data, size_t n_data, bool has_code, bool is_whole)
{
    struct ll_toolcalls *calls;
    struct result result = {.n_max = 24 * n_data + 256};
    uint32_t *ids = malloc((n_data + 1) * sizeof(*ids));

    result.text = malloc(result.n_max);
    FUZZ_CHECK(ll_toolcalls_new(&calls, tokenizer, has_code ? tools_code : tools,
                                has_code ? sizeof(tools_code) - 1 : sizeof(tools) - 1) == 0);
    for (size_t at = 0; at < n_data;) {
        size_t n = 0, n_ids = 1;
        while (at + n < n_data && data[at + n] != 1 && (is_whole || n == 0))
            n++;
        if (n == 0)
            ids[0] = tag, n = 1;
        else if (is_whole)
            n_ids = (size_t)ll_encode(tokenizer, (const char *)data + at, n, 0, ids, n_data + 1);
        else
            ids[0] = byte_ids[data[at]];
        for (size_t i = 0; i < n_ids; i++) {
            FUZZ_CHECK(ll_toolcalls_feed(calls, ids[i]) == 0);
            drain(calls, &result);
        }
        at += n;
    }
    FUZZ_CHECK(ll_toolcalls_finish(calls) == 0);
    drain(calls, &result);
    ll_toolcalls_free(calls);
    free(ids);
    return result;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_data)
{
    if (tokenizer == NULL)
        open_tokenizer();
    if (n_data == 0)
        return -1;
    bool has_code = data[0] & 1;
    struct result whole = run(data + 1, n_data - 1, has_code, true);
    struct result bytes = run(data + 1, n_data - 1, has_code, false);
    FUZZ_CHECK(whole.n == bytes.n && memcmp(whole.text, bytes.text, whole.n) == 0);
    free(whole.text);
    free(bytes.text);
    return 0;
}
