/* SPDX-License-Identifier: Apache-2.0 */
/* tests/fuzz/fuzz_chat.c - a conversation: fields separated by zero bytes. The first is the tools
 * ("-": none), then come role and content, or "call" and the arguments, in turn. Whatever is
 * accepted has the same ids as its text where no field holds a marker, and JSON stays JSON. */
#include "tests/fuzz/fuzz.h"

#include "client/text/json.h"
#include "ll/text.h"

#define MESSAGES_MAX 8

static struct ll_tokenizer *tokenizer;

static void check_ids(const struct ll_chat *chat, bool has_marker)
{
    int64_t n_text = ll_chat_render(chat, NULL, 0);
    int64_t n = ll_chat_encode(tokenizer, chat, NULL, 0);

    FUZZ_CHECK((n_text < 0) == (n < 0) && (n_text >= 0 || n_text == n));
    if (n < 0)
        return;
    char *text = malloc((size_t)n_text + 1);
    uint32_t *ids = malloc(2 * ((size_t)n_text + 1) * sizeof(*ids)), *whole = ids + n_text + 1;
    FUZZ_CHECK(n <= n_text);
    FUZZ_CHECK(ll_chat_render(chat, text, (size_t)n_text) == n_text);
    FUZZ_CHECK(ll_chat_encode(tokenizer, chat, ids, (size_t)n) == n);
    if (!has_marker) {
        FUZZ_CHECK(
            ll_encode(tokenizer, text, (size_t)n_text, LL_ENCODE_SPECIAL, whole, (size_t)n) == n);
        FUZZ_CHECK(memcmp(ids, whole, (size_t)n * sizeof(*ids)) == 0);
    }
    free(ids);
    free(text);
}

/* The next field, ended by a zero byte or the end. */
static const char *next_field(const char **at, const char *end, size_t *n)
{
    const char *field = *at, *stop = memchr(field, '\0', (size_t)(end - field));

    *n = (size_t)((stop != NULL ? stop : end) - field);
    *at = stop != NULL ? stop + 1 : end;
    return field;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_data)
{
    struct ll_chat_message messages[MESSAGES_MAX];
    const char *at = (const char *)data, *end = at + n_data;
    char roles[MESSAGES_MAX][16];
    size_t n;

    if (tokenizer == NULL)
        FUZZ_CHECK(ll_tokenizer_from_path(&tokenizer, LL_SOURCE_DIR "/tools/demo-model") == 0);
    if (n_data == 0)
        return -1;
    struct ll_chat chat = {.struct_bytes = sizeof(chat), .messages = messages};
    chat.format = data[0] % 2 == 0 ? LL_CHAT_LLAMA3_1 : LL_CHAT_LLAMA3_2;
    chat.flags = data[0] / 2 % 4;
    chat.date = "26 Jul 2024";
    at++;
    const char *tools = next_field(&at, end, &n);
    if (n != 1 || tools[0] != '-') {
        chat.tools_json = tools;
        chat.n_tools_json = n;
    }
    while (at < end && chat.n_messages < MESSAGES_MAX) {
        struct ll_chat_message *m = &messages[chat.n_messages];
        char *role = roles[chat.n_messages++];
        const char *field = next_field(&at, end, &n);
        memset(m, 0, sizeof(*m));
        snprintf(role, sizeof(roles[0]), "%.*s", (int)(n < 15 ? n : 15), field);
        m->role = role;
        field = next_field(&at, end, &n);
        if (strcmp(role, "call") == 0) {
            m->role = "assistant";
            m->tool_name = "f";
            m->tool_arguments = field;
            m->n_tool_arguments = n;
        } else {
            m->content = field;
            m->n_content = n;
        }
    }
    check_ids(&chat,
              memmem(data, n_data, "<", 1) != NULL || memmem(data, n_data, "\\u", 2) != NULL);
    return 0;
}
