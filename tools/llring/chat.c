/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/chat.c - `llring chat`: a conversation in the terminal, or one question.
 *
 * The conversation lives here: every turn sends all of it, and the runtime's prefix cache makes
 * that cheap. An answer that was cancelled stays in it as far as it was shown. */
#include "base/err.h"
#include "tools/llring/answer.h"
#include "tools/llring/commands.h"
#include "tools/llring/terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define MAX_TOKENS_DEFAULT 1024

struct chat_options {
    struct connection_options connection;
    struct sampling sampling;
    const char *once, *system, *date, *tools;
    bool json, verbose;
};

#define AT(field) .offset = offsetof(struct chat_options, field)
static const struct option options[] = {
    {.name = "once",
     .kind = OPTION_TEXT,
     AT(once),
     .argument = "TEXT",
     .help = "answer TEXT and exit"},
    {.name = "system",
     .letter = 's',
     .kind = OPTION_TEXT,
     AT(system),
     .argument = "TEXT",
     .help = "the system prompt"},
    {.name = "tools",
     .kind = OPTION_TEXT,
     AT(tools),
     .argument = "FILE",
     .help = "JSON array of tools that the model may call"},
    {.name = "date",
     .kind = OPTION_TEXT,
     AT(date),
     .argument = "TEXT",
     .help = "date in the prompt, as \"26 Jul 2024\" (default: the format's)"},
    {.name = "verbose",
     .letter = 'v',
     .kind = OPTION_FLAG,
     AT(verbose),
     .help = "show counts and times after each answer"},
    {.name = "json",
     .kind = OPTION_FLAG,
     AT(json),
     .help = "with --once: one JSON object instead of text"},
    {.name = NULL},
};

struct conversation {
    struct ll_chat_message *messages; /* role is static, content is owned */
    uint32_t n, n_max;
    char *tools_json; /* NULL: none */
};

/* Copies content. 0 or -ENOMEM. */
static int add_message(struct conversation *c, const char *role, const char *content, size_t n)
{
    if (c->n == c->n_max) {
        uint32_t wanted = c->n_max == 0 ? 16 : c->n_max * 2;
        struct ll_chat_message *larger = realloc(c->messages, wanted * sizeof(*larger));
        if (larger == NULL)
            return LL_ERR(-ENOMEM, "no memory for another message");
        c->messages = larger;
        c->n_max = wanted;
    }
    char *copy = malloc(n + 1);
    if (copy == NULL)
        return LL_ERR(-ENOMEM, "no memory for a message of %zu bytes", n);
    memcpy(copy, content, n);
    copy[n] = '\0';
    c->messages[c->n++] = (struct ll_chat_message){.role = role, .content = copy, .n_content = n};
    return 0;
}

static void drop_messages(struct conversation *c, uint32_t n_kept)
{
    while (c->n > n_kept)
        free((char *)(uintptr_t)c->messages[--c->n].content);
}

/* Forgets all but the system prompt. */
static int restart(struct conversation *c, const struct chat_options *o)
{
    drop_messages(c, 0);
    return o->system != NULL ? add_message(c, "system", o->system, strlen(o->system)) : 0;
}

static int load_tools(const char *path, struct conversation *c)
{
    json_error_t error;
    json_t *tools = json_load_file(path, JSON_REJECT_DUPLICATES, &error);

    if (tools == NULL)
        return terminal_fail_file("--tools", path, error.line, error.text,
                                  "a file with a JSON array of tools");
    bool is_array = json_is_array(tools);
    if (is_array)
        c->tools_json = json_dumps(tools, JSON_COMPACT);
    json_decref(tools);
    if (!is_array)
        return terminal_fail("--tools %s: a JSON array of tools is wanted", path);
    return c->tools_json != NULL ? EXIT_OK : terminal_fail("no memory for %s", path);
}

static void print_verbose(const struct answer *answer)
{
    double seconds = (double)(answer->total_ns - answer->ttft_ns) / 1e9;

    fprintf(stderr, "%s%u prompt tokens (%u cached), first token after %.1f ms, %u tokens",
            terminal_style(stderr, STYLE_DIM), answer->n_prompt, answer->n_cached,
            (double)answer->ttft_ns / 1e6, answer->n_out);
    if (answer->n_out > 1 && seconds > 0)
        fprintf(stderr, ", %.1f tokens/s", (answer->n_out - 1) / seconds);
    fprintf(stderr, "%s\n", terminal_style(stderr, STYLE_PLAIN));
}

/* Sends the conversation and streams the answer, which becomes its last message. EXIT_OK, or
 * EXIT_FAILED after printing why; *is_lost: no further turn can work. */
static int take_turn(const struct chat_options *o, struct connection *connection,
                     struct conversation *c, bool *is_lost)
{
    struct ll_chat chat = {
        .struct_bytes = sizeof(chat),
        .format = ll_chat_format_find(connection->info.chat_format),
        .messages = c->messages,
        .n_messages = c->n,
        .tools_json = c->tools_json,
        .n_tools_json = c->tools_json != NULL ? strlen(c->tools_json) : 0,
        .date = o->date,
    };
    struct ll_request request = LL_REQUEST_INIT;
    struct answer answer;
    uint32_t *ids = NULL;
    int rc = connection_encode_chat(connection, &chat, &ids, &request.n_prompt);

    if (rc < 0)
        return terminal_fail_code(rc, NULL);
    request.prompt = ids;
    sampling_apply(&o->sampling, &connection->info, MAX_TOKENS_DEFAULT, &request);
    rc = answer_start(&answer, connection, &request, &o->sampling.stop);
    free(ids);
    if (rc < 0)
        return terminal_fail_code(rc, NULL);

    answer_wait(&answer, o->json ? NULL : stdout);
    const struct answer_text *text = &answer.choice[0].text;
    if (o->json) {
        json_t *object = answer_json(&answer);
        json_dumpf(object, stdout, JSON_REAL_PRECISION(9));
        json_decref(object);
    }
    if (o->json || text->n > 0 || answer.error == 0)
        putchar('\n');
    fflush(stdout);
    *is_lost = answer.error == LL_E_RUNTIME_LOST || answer.error == LL_E_PROTOCOL;
    if (answer.error < 0)
        rc = terminal_fail_code(answer.error, answer.error_text);
    else if (add_message(c, "assistant", text->n > 0 ? text->bytes : "", text->n) < 0)
        rc = terminal_fail_code(-ENOMEM, NULL);
    if (answer.error == LL_E_TOO_LONG)
        fprintf(stderr, "/clear starts a new conversation.\n");
    if (o->verbose && answer.error == 0)
        print_verbose(&answer);
    answer_free(&answer);
    return rc;
}

/* ---- the terminal side
 * ----------------------------------------------------------------------------*/

struct input {
    char *line; /* getline's */
    size_t line_bytes;
    char *text; /* the message, without its line end; owned */
    size_t n;
};

enum input_result { INPUT_TEXT, INPUT_END, INPUT_INTERRUPTED };

static int append_line(struct input *input, const char *line, size_t n)
{
    char *larger = realloc(input->text, input->n + n + 2);

    if (larger == NULL)
        return LL_ERR(-ENOMEM, "no memory for the message");
    input->text = larger;
    if (input->n > 0)
        input->text[input->n++] = '\n';
    memcpy(input->text + input->n, line, n);
    input->n += n;
    input->text[input->n] = '\0';
    return 0;
}

static enum input_result read_line(struct input *input, const char *prompt, ssize_t *n)
{
    if (isatty(STDIN_FILENO) == 1)
        printf("%s%s%s", terminal_style(stdout, STYLE_BOLD), prompt,
               terminal_style(stdout, STYLE_PLAIN));
    fflush(stdout);
    if (isatty(STDIN_FILENO) == 1 && !interrupts_wait_input())
        return INPUT_INTERRUPTED;
    errno = 0;
    *n = getline(&input->line, &input->line_bytes, stdin);
    if (*n < 0 && errno == EINTR) {
        clearerr(stdin);
        return INPUT_INTERRUPTED;
    }
    if (*n < 0)
        return INPUT_END;
    if (*n > 0 && input->line[*n - 1] == '\n')
        input->line[--*n] = '\0';
    return INPUT_TEXT;
}

/* Cuts trailing white space off line[0 .. n) and says whether it then ended in three quotes,
 * which are cut off too. */
static bool cut_quotes(char *line, ssize_t *n)
{
    ssize_t length = *n;

    while (length > 0 && strchr(" \t\r", line[length - 1]) != NULL)
        length--;
    if (length < 3 || memcmp(line + length - 3, "\"\"\"", 3) != 0)
        return false;
    *n = length - 3;
    line[*n] = '\0';
    return true;
}

/* One message: a line, or what stands between two """. */
static enum input_result read_message(struct input *input)
{
    ssize_t n;
    enum input_result result = read_line(input, "> ", &n);

    free(input->text);
    input->text = NULL;
    input->n = 0;
    if (result != INPUT_TEXT)
        return result;
    if (strncmp(input->line, "\"\"\"", 3) != 0)
        return append_line(input, input->line, (size_t)n) == 0 ? INPUT_TEXT : INPUT_END;

    memmove(input->line, input->line + 3, (size_t)n - 3 + 1);
    n -= 3;
    bool is_closed = cut_quotes(input->line, &n);
    if (n > 0 && append_line(input, input->line, (size_t)n) < 0)
        return INPUT_END;
    while (!is_closed) {
        result = read_line(input, ". ", &n);
        if (result != INPUT_TEXT)
            return result;
        is_closed = cut_quotes(input->line, &n);
        if ((n > 0 || !is_closed) && append_line(input, input->line, (size_t)n) < 0)
            return INPUT_END;
    }
    return input->text != NULL || append_line(input, "", 0) == 0 ? INPUT_TEXT : INPUT_END;
}

static void print_help(void)
{
    printf("/bye    leave (so does Ctrl-D)\n"
           "/clear  forget the conversation\n"
           "/help   this\n"
           "\"\"\"     begins and ends a message of several lines\n"
           "Ctrl-C  ends an answer early\n");
}

enum slash { SLASH_NONE, SLASH_DONE, SLASH_BYE };

/* Lines that begin with / are for us, but a path ("/etc/passwd is what?") is a message. */
static enum slash obey_slash(const struct chat_options *o, struct conversation *c, const char *line)
{
    static const char *const names[] = {"/bye", "/clear", "/help"};
    size_t n = strcspn(line, " \t");
    char word[16];

    if (line[0] != '/' || n >= sizeof(word) || memchr(line + 1, '/', n > 0 ? n - 1 : 0) != NULL)
        return SLASH_NONE;
    memcpy(word, line, n);
    word[n] = '\0';
    if (strcmp(word, "/bye") == 0 || strcmp(word, "/exit") == 0 || strcmp(word, "/quit") == 0)
        return SLASH_BYE;
    if (strcmp(word, "/clear") == 0) {
        if (restart(c, o) == 0)
            printf("The conversation is forgotten.\n");
        return SLASH_DONE;
    }
    if (strcmp(word, "/help") == 0 || strcmp(word, "/?") == 0) {
        print_help();
        return SLASH_DONE;
    }
    const char *nearest = options_nearest(word, names, sizeof(names) / sizeof(names[0]));
    printf("Unknown command %s%s%s. /help lists them.\n", word,
           nearest != NULL ? "; did you mean " : "", nearest != NULL ? nearest : "");
    return SLASH_DONE;
}

static int converse(const struct chat_options *o, struct connection *connection,
                    struct conversation *c)
{
    struct input input = {0};
    bool is_lost = false, was_interrupted = false;
    int rc = EXIT_OK;

    if (isatty(STDIN_FILENO) == 1)
        printf("%s%s. /help lists commands, /bye leaves.%s\n", terminal_style(stdout, STYLE_DIM),
               connection->info.model, terminal_style(stdout, STYLE_PLAIN));
    while (!is_lost) {
        enum input_result result = read_message(&input);
        if (result == INPUT_END) {
            if (isatty(STDIN_FILENO) == 1)
                putchar('\n');
            break;
        }
        if (result == INPUT_INTERRUPTED) {
            if (was_interrupted || interrupts_last() == SIGTERM) {
                rc = 128 + interrupts_last();
                break;
            }
            printf("\nCtrl-C again, Ctrl-D or /bye leaves.\n");
            was_interrupted = true;
            interrupts_reset();
            continue;
        }
        was_interrupted = false;
        enum slash slash = obey_slash(o, c, input.text);
        if (slash == SLASH_BYE)
            break;
        if (slash == SLASH_DONE || input.text[strspn(input.text, " \t\n")] == '\0')
            continue;
        uint32_t n_before = c->n;
        if (add_message(c, "user", input.text, input.n) < 0)
            rc = terminal_fail_code(-ENOMEM, NULL);
        else
            rc = take_turn(o, connection, c, &is_lost);
        if (rc != EXIT_OK)
            drop_messages(c, n_before); /* what was refused is no part of the conversation */
        if (interrupts_last() == SIGTERM && interrupts_count() > 0) {
            rc = 128 + SIGTERM;
            break;
        }
        interrupts_reset();
    }
    free(input.line);
    free(input.text);
    return rc;
}

static int answer_once(const struct chat_options *o, struct connection *connection,
                       struct conversation *c)
{
    bool is_lost;

    if (add_message(c, "user", o->once, strlen(o->once)) < 0)
        return terminal_fail_code(-ENOMEM, NULL);
    int rc = take_turn(o, connection, c, &is_lost);
    return rc == EXIT_OK && interrupts_count() > 0 ? 128 + interrupts_last() : rc;
}

static int run(const struct command *command, int argc, char **argv)
{
    struct chat_options o = {.sampling = SAMPLING_INIT};
    struct connection connection;
    struct conversation c = {0};
    int n_operands;
    int rc = options_parse(command, argc, argv, &o, &n_operands);

    if (rc != OPTIONS_GO_ON)
        return rc;
    if (o.json && o.once == NULL)
        return options_usage_error("chat", "--json needs --once");
    if (o.tools != NULL && load_tools(o.tools, &c) != EXIT_OK)
        return EXIT_FAILED;
    interrupts_catch();
    rc = connection_open(&connection, &o.connection, 0);
    if (rc != EXIT_OK) {
        free(c.tools_json);
        return rc;
    }
    if (!connection_has_text(&connection))
        rc = EXIT_FAILED;
    else if (ll_chat_format_find(connection.info.chat_format) == LL_CHAT_NONE)
        rc = terminal_fail("model %s has no known chat format: start the runtime with "
                           "--chat-template llama3.1 (or llama3.2), or use \"llring complete\"",
                           connection.info.model);
    else if (restart(&c, &o) < 0)
        rc = terminal_fail_code(-ENOMEM, NULL);
    else
        rc = o.once != NULL ? answer_once(&o, &connection, &c) : converse(&o, &connection, &c);
    drop_messages(&c, 0);
    free(c.messages);
    free(c.tools_json);
    connection_close(&connection);
    return rc;
}

const struct command command_chat = {
    .name = "chat",
    .summary = "talk to the model",
    .operands = "",
    .groups = {{"Options", options, 0},
               SAMPLING_GROUP(struct chat_options, sampling),
               CONNECTION_GROUP(struct chat_options, connection)},
    .details =
        "Without --once it reads messages from the terminal (or a pipe), one a line;\n"
        "\"\"\" begins and ends a message of several lines. /bye leaves, /clear forgets the\n"
        "conversation, Ctrl-C ends an answer early.\n\n"
        "  llring chat --once \"What is the capital of France?\"\n",
    .n_operands_max = 0,
    .run = run,
};
