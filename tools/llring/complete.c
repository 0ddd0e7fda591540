/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/complete.c - `llring complete`: continues a text or a list of token ids. */
#include "base/bits.h"
#include "base/err.h"
#include "tools/llring/answer.h"
#include "tools/llring/commands.h"
#include "tools/llring/terminal.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TOKENS_DEFAULT 256
#define TOP_NONE           UINT32_MAX

struct complete_options {
    struct connection_options connection;
    struct sampling sampling;
    const char *ids;
    uint32_t n_top; /* valid when has_logprobs */
    bool has_logprobs, prompt_logprobs;
    bool special, no_bos, json;
};

#define AT(field) .offset = offsetof(struct complete_options, field)
static const struct option options[] = {
    {.name = "ids",
     .kind = OPTION_TEXT,
     AT(ids),
     .argument = "1,2,3",
     .help = "token ids instead of text"},
    {.name = "logprobs",
     .kind = OPTION_U32,
     AT(n_top),
     .min = 0,
     .max = 20,
     .argument = "N",
     .given = offsetof(struct complete_options, has_logprobs),
     .help = "show each token's log-probability and the N likeliest"},
    {.name = "prompt-logprobs",
     .kind = OPTION_FLAG,
     AT(prompt_logprobs),
     .help = "show the log-probabilities of the prompt too"},
    {.name = "special",
     .kind = OPTION_FLAG,
     AT(special),
     .help = "\"<|eot_id|>\" and the like in the prompt are special tokens"},
    {.name = "no-bos",
     .kind = OPTION_FLAG,
     AT(no_bos),
     .help = "no begin-of-text token before the prompt"},
    {.name = "n",
     .kind = OPTION_U32,
     AT(sampling.n),
     .min = 1,
     .max = 128,
     .argument = "N",
     .help = "that many answers; with --temperature 0 they are all the same"},
    {.name = "json", .kind = OPTION_FLAG, AT(json), .help = "one JSON object instead of text"},
    {.name = NULL},
};

struct prompt {
    uint32_t *ids;
    uint32_t n;
};

/* "1, 2, 3" or "1 2 3". */
static int read_ids(const char *text, struct prompt *out)
{
    size_t n_max = strlen(text) / 2 + 1;
    uint32_t *ids = calloc(n_max, sizeof(*ids));
    uint32_t n = 0;

    if (ids == NULL)
        return terminal_fail("no memory for %zu ids", n_max);
    for (const char *at = text; *at != '\0';) {
        char *end;
        errno = 0;
        unsigned long long id = strtoull(at, &end, 10);
        bool is_id = end != at && errno == 0 && id <= UINT32_MAX && strchr("+-", *at) == NULL &&
                     strchr(", \n", *end) != NULL && n < n_max;
        if (!is_id) {
            free(ids);
            return options_usage_error("complete", "--ids: \"%.20s\" is no token id", at);
        }
        ids[n++] = (uint32_t)id;
        at = end + strspn(end, ", \n");
    }
    *out = (struct prompt){ids, n};
    return EXIT_OK;
}

/* All of standard input; NULL after printing why. */
static char *read_input(size_t *n_bytes)
{
    size_t n = 0, capacity = 1 << 16;
    char *text = malloc(capacity);

    while (text != NULL) {
        n += fread(text + n, 1, capacity - n, stdin);
        if (n < capacity)
            break;
        capacity *= 2;
        char *larger = realloc(text, capacity);
        if (larger == NULL)
            free(text);
        text = larger;
    }
    if (text == NULL)
        terminal_fail("no memory for the prompt on standard input");
    *n_bytes = n;
    return text;
}

static int read_prompt(const struct complete_options *o, struct connection *connection,
                       const char *operand, struct prompt *out)
{
    if (o->ids != NULL)
        return read_ids(o->ids, out);
    if (!connection_has_text(connection))
        return EXIT_FAILED;
    char *input = NULL;
    size_t n_bytes = 0;
    if (operand == NULL || strcmp(operand, "-") == 0) {
        input = read_input(&n_bytes);
        if (input == NULL)
            return EXIT_FAILED;
    } else {
        n_bytes = strlen(operand);
    }
    uint32_t flags = (o->special ? LL_ENCODE_SPECIAL : 0) | (o->no_bos ? 0 : LL_ENCODE_BOS);
    int rc = connection_encode(connection, input != NULL ? input : operand, n_bytes, flags,
                               &out->ids, &out->n);
    free(input);
    return rc < 0 ? terminal_fail_code(rc, NULL) : EXIT_OK;
}

static void print_token_text(const struct answer *answer, uint32_t id)
{
    size_t n = 0;
    const char *bytes = answer->connection->tokenizer != NULL
                            ? ll_tokenizer_bytes(answer->connection->tokenizer, id, &n)
                            : NULL;

    putchar('"');
    for (size_t i = 0; i < n && bytes != NULL; i++) {
        if (bytes[i] == '\n')
            fputs("\\n", stdout);
        else if ((unsigned char)bytes[i] < 0x20)
            printf("\\x%02x", (unsigned char)bytes[i]);
        else
            putchar(bytes[i]);
    }
    putchar('"');
}

static void print_logprobs(const struct answer *answer, const struct answer_choice *choice)
{
    printf("\n%8s %10s  token\n", "id", "logprob");
    for (uint32_t i = 0; i < choice->n_tokens; i++) {
        const struct answer_token *token = &choice->token[i];
        printf("%8u %10.4f  ", token->id, (double)token->logprob);
        print_token_text(answer, token->id);
        for (uint32_t k = 0; k < token->n_top; k++) {
            const struct ll_top_pair *pair = &choice->top[token->first_top + k];
            printf("%s%u ", k == 0 ? "  top: " : ", ", pair->id);
            print_token_text(answer, pair->id);
            printf(" %.4f", (double)pair->logprob);
        }
        putchar('\n');
    }
}

static void print_text(const struct complete_options *o, const struct prompt *prompt,
                       const struct answer *answer)
{
    for (uint32_t i = 0; i < answer->n_choices; i++) {
        const struct answer_choice *choice = &answer->choice[i];
        if (answer->n_choices > 1)
            printf("--- %u\n%s", i + 1, choice->text.bytes != NULL ? choice->text.bytes : "");
        if (choice->decoder == NULL)
            for (uint32_t k = 0; k < choice->n_tokens; k++)
                printf("%s%u", k == 0 ? "" : " ", choice->token[k].id);
        putchar('\n');
        if (o->has_logprobs)
            print_logprobs(answer, choice);
    }
    if (!o->prompt_logprobs)
        return;
    printf("\nprompt:\n%8s %10s  token\n", "id", "logprob");
    for (uint32_t i = 0; i < answer->n_prompt_logprobs && i < prompt->n; i++) {
        printf("%8u %10.4f  ", prompt->ids[i], (double)answer->prompt_logprob[i]);
        print_token_text(answer, prompt->ids[i]);
        putchar('\n');
    }
}

static int complete(const struct complete_options *o, struct connection *connection,
                    const struct prompt *prompt)
{
    struct ll_request request = LL_REQUEST_INIT;
    struct answer answer;

    request.prompt = prompt->ids;
    request.n_prompt = prompt->n;
    sampling_apply(&o->sampling, &connection->info, MAX_TOKENS_DEFAULT, &request);
    request.n_top = o->has_logprobs ? o->n_top : 0;
    if (o->prompt_logprobs)
        request.flags |= LL_REQUEST_PROMPT_LOGPROBS;
    int rc = answer_start(&answer, connection, &request, &o->sampling.stop);
    if (rc < 0)
        return terminal_fail_code(rc, NULL);
    answer.shows_logprobs = o->has_logprobs;
    answer_wait(&answer, o->json || answer.n_choices > 1 ? NULL : stdout);

    if (o->json) {
        json_t *object = answer_json(&answer);
        json_dumpf(object, stdout, JSON_REAL_PRECISION(9));
        putchar('\n');
        json_decref(object);
    } else if (answer.error == 0) {
        print_text(o, prompt, &answer);
    } else if (answer.choice[0].text.n > 0) {
        putchar('\n');
    }
    rc = answer.error < 0 ? terminal_fail_code(answer.error, answer.error_text) : EXIT_OK;
    if (rc == EXIT_OK && interrupts_count() > 0)
        rc = 128 + interrupts_last();
    answer_free(&answer);
    return rc;
}

static int run(const struct command *command, int argc, char **argv)
{
    struct complete_options o = {.sampling = SAMPLING_INIT};
    struct connection connection;
    struct prompt prompt = {0};
    int n_operands;
    int rc = options_parse(command, argc, argv, &o, &n_operands);

    if (rc != OPTIONS_GO_ON)
        return rc;
    if (o.ids != NULL && n_operands > 0)
        return options_usage_error("complete", "give a text or --ids, not both");
    interrupts_catch();
    rc = connection_open(&connection, &o.connection, 0);
    if (rc != EXIT_OK)
        return rc;
    rc = read_prompt(&o, &connection, n_operands > 0 ? argv[1] : NULL, &prompt);
    if (rc == EXIT_OK)
        rc = complete(&o, &connection, &prompt);
    free(prompt.ids);
    connection_close(&connection);
    return rc;
}

const struct command command_complete = {
    .name = "complete",
    .summary = "continue a text, or a list of token ids",
    .operands = "[TEXT]",
    .groups = {{"Options", options, 0},
               SAMPLING_GROUP(struct complete_options, sampling),
               CONNECTION_GROUP(struct complete_options, connection)},
    .details = "Without TEXT, or with -, the prompt is read from standard input.\n\n"
               "  llring complete \"Once upon a time\" --max-tokens 64\n"
               "  llring complete --ids 1,2,3 --json\n",
    .n_operands_max = 1,
    .run = run,
};
