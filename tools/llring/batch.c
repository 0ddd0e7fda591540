/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/batch.c - `llring batch IN OUT`: many prompts in one call, as many in flight as the
 * attachment has slots.
 *
 * A window of WINDOW lines is in memory at once. Results are written in the order of the input:
 * a finished one waits in the window for those before it. A line that cannot be read, or that the
 * runtime refuses, becomes an error record and the rest goes on. */
#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "tools/llring/answer.h"
#include "tools/llring/batch_line.h"
#include "tools/llring/commands.h"
#include "tools/llring/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SLOTS_DEFAULT      256
#define SLOTS_MIN          16
#define SLOTS_MAX          1024
#define WINDOW             4096 /* lines; a power of two */
#define MAX_TOKENS_DEFAULT 256
#define OUTPUTS_A_POLL     256
#define HANG_MAX_NS        (60 * LL_NS_PER_S) /* a long batch outlasts a machine that swaps */

struct batch_options {
    struct connection_options connection;
    struct sampling sampling;
    const char *system;
    uint32_t n_parallel;
};

#define AT(field) .offset = offsetof(struct batch_options, field)
static const struct option options[] = {
    {.name = "parallel",
     .letter = 'p',
     .kind = OPTION_U32,
     AT(n_parallel),
     .argument = "N",
     .min = 1,
     .max = SLOTS_MAX,
     .help = "requests in flight at once (default 256)"},
    {.name = "system",
     .letter = 's',
     .kind = OPTION_TEXT,
     AT(system),
     .argument = "TEXT",
     .help = "system prompt of lines with \"messages\" that have none"},
    {.name = NULL},
};

enum entry_state { ENTRY_EMPTY, ENTRY_READ, ENTRY_RUNNING, ENTRY_DONE };

struct entry {
    enum entry_state state;
    struct batch_line line;
    struct answer answer;
    uint64_t retry_ns; /* not before, after LL_E_BUSY */
    char *record;      /* ENTRY_DONE: what is written */
};

struct batch {
    const struct batch_options *options;
    struct connection *connection;
    FILE *in, *out;
    const char *in_name;
    struct entry *window;
    char *line;
    size_t line_bytes;
    uint64_t n_lines;     /* lines read, empty ones too */
    uint64_t first, next; /* entries in the window: [first, next) */
    uint64_t n_running, n_failed, n_written;
    bool is_input_over, is_lost;
    int lost_code;
    uint64_t hung_ns; /* since when the runtime shows no sign of life; 0: it does */
};

static struct entry *entry_at(struct batch *batch, uint64_t i)
{
    return &batch->window[i & (WINDOW - 1)];
}

/* A record's one line; the entry is done with it. */
static int finish_entry(struct batch *batch, struct entry *entry, json_t *object, bool has_failed)
{
    json_t *record = json_object();

    json_object_set(record, "id", entry->line.id);
    json_object_update(record, object);
    json_decref(object);
    entry->record = json_dumps(record, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(record);
    batch_line_free(&entry->line);
    answer_free(&entry->answer);
    entry->state = ENTRY_DONE;
    batch->n_failed += has_failed;
    return entry->record != NULL ? 0 : LL_ERR(-ENOMEM, "no memory for a result");
}

static int fail_entry(struct batch *batch, struct entry *entry, int code, const char *text)
{
    json_t *error = answer_error_json(code, text);

    terminal_progress_done();
    fprintf(stderr, "%s:%llu: %s\n", batch->in_name, (unsigned long long)entry->line.number,
            json_string_value(json_object_get(error, "message")));
    json_object_set_new(error, "line", json_integer((json_int_t)entry->line.number));
    return finish_entry(batch, entry, json_pack("{s:o}", "error", error), true);
}

/* Reads one more line into the window. 1 when one came, 0 at the end. */
static int read_entry(struct batch *batch)
{
    ssize_t n;

    do {
        errno = 0;
        n = getline(&batch->line, &batch->line_bytes, batch->in);
        if (n < 0 && errno != 0 && errno != EINTR)
            return LL_ERRNO("read %s", batch->in_name);
        if (n < 0) {
            batch->is_input_over = true;
            return 0;
        }
        batch->n_lines++;
    } while (batch->line[strspn(batch->line, " \t\r\n")] == '\0');

    struct entry *entry = entry_at(batch, batch->next++);
    *entry = (struct entry){.state = ENTRY_READ};
    int rc = batch_line_read(&entry->line, batch->connection, batch->line, (size_t)n,
                             batch->n_lines, &batch->options->sampling, batch->options->system);
    if (rc < 0)
        rc = fail_entry(batch, entry, rc, ll_error_text());
    return rc < 0 ? rc : 1;
}

/* 1 when the request is on its way or has failed, 0 when there is no room for it now. */
static int submit_entry(struct batch *batch, struct entry *entry, uint64_t index)
{
    struct ll_request request = LL_REQUEST_INIT;

    request.tag = index;
    request.prompt = entry->line.ids;
    request.n_prompt = entry->line.n_ids;
    sampling_apply(&entry->line.sampling, &batch->connection->info, MAX_TOKENS_DEFAULT, &request);
    request.n_top = entry->line.n_top;
    int rc = answer_start(&entry->answer, batch->connection, &request, &entry->line.sampling.stop);
    if (rc == LL_E_AGAIN)
        return 0;
    if (rc < 0)
        return rc;
    entry->answer.shows_logprobs = entry->line.has_logprobs;
    if (entry->answer.is_done) {
        rc = fail_entry(batch, entry, entry->answer.error, entry->answer.error_text);
        return rc < 0 ? rc : 1;
    }
    entry->state = ENTRY_RUNNING;
    batch->n_running++;
    return 1;
}

/* Keeps the attachment full: entries that wait in the window, then new lines. */
static int fill(struct batch *batch)
{
    uint64_t now_ns = ll_now_ns();

    for (uint64_t i = batch->first; batch->n_running < batch->options->n_parallel; i++) {
        if (i == batch->next) {
            if (batch->is_input_over || batch->next - batch->first == WINDOW)
                return 0;
            int rc = read_entry(batch);
            if (rc <= 0)
                return rc;
        }
        struct entry *entry = entry_at(batch, i);
        if (entry->state != ENTRY_READ || entry->retry_ns > now_ns)
            continue;
        int rc = submit_entry(batch, entry, i);
        if (rc <= 0)
            return rc;
    }
    return 0;
}

static int end_answer(struct batch *batch, struct entry *entry)
{
    struct answer *answer = &entry->answer;

    batch->n_running--;
    if (answer->error == LL_E_BUSY && !batch->is_lost) {
        uint32_t retry_ms = answer->retry_ms > 0 ? answer->retry_ms : 100;
        answer_free(answer);
        entry->state = ENTRY_READ;
        entry->retry_ns = ll_now_ns() + retry_ms * LL_NS_PER_MS;
        return 0;
    }
    if (answer->error < 0)
        return fail_entry(batch, entry, answer->error, answer->error_text);
    return finish_entry(batch, entry, answer_json(answer), false);
}

static int take_outputs(struct batch *batch)
{
    struct ll_output output[OUTPUTS_A_POLL];
    /* Short while something waits to be sent again, else as long as Ctrl-C may take. */
    int n = ll_client_wait(batch->connection->client, output, OUTPUTS_A_POLL,
                           20 * (int64_t)LL_NS_PER_MS);

    uint64_t now_ns = ll_now_ns();
    if (n == LL_E_TIMEOUT && batch->hung_ns == 0)
        batch->hung_ns = now_ns;
    if (n == -EINTR)
        return 0;
    if (n == LL_E_TIMEOUT && now_ns - batch->hung_ns < HANG_MAX_NS) {
        usleep(20000); /* it came back at once */
        return 0;
    }
    batch->hung_ns = 0;
    if (n < 0) {
        batch->is_lost = true;
        batch->lost_code = n;
        return 0;
    }
    for (int i = 0; i < n; i++) {
        struct entry *entry = entry_at(batch, output[i].tag);
        if (entry->state != ENTRY_RUNNING || entry->answer.id != output[i].id)
            continue;
        int rc = answer_feed(&entry->answer, &output[i]);
        if (rc == 0 && entry->answer.is_done)
            rc = end_answer(batch, entry);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int write_record(struct batch *batch, struct entry *entry)
{
    fputs(entry->record, batch->out);
    fputc('\n', batch->out);
    free(entry->record);
    *entry = (struct entry){0};
    batch->n_written++;
    return ferror(batch->out) ? LL_ERR(-EIO, "the results cannot be written: is the disk full?")
                              : 0;
}

/* Writes what is done at the front of the window. */
static int write_done(struct batch *batch)
{
    int rc = 0;

    while (rc == 0 && batch->first < batch->next &&
           entry_at(batch, batch->first)->state == ENTRY_DONE)
        rc = write_record(batch, entry_at(batch, batch->first++));
    return rc;
}

/* At an early end: what is done behind something unfinished is not lost. */
static int write_rest(struct batch *batch)
{
    int rc = 0;

    for (uint64_t i = batch->first; i < batch->next && rc == 0; i++)
        if (entry_at(batch, i)->state == ENTRY_DONE)
            rc = write_record(batch, entry_at(batch, i));
    return rc;
}

static void free_window(struct batch *batch)
{
    for (uint64_t i = batch->first; i < batch->next; i++) {
        struct entry *entry = entry_at(batch, i);
        batch_line_free(&entry->line);
        answer_free(&entry->answer);
        free(entry->record);
    }
    free(batch->window);
    free(batch->line);
}

static int run_batch(struct batch *batch)
{
    uint64_t start_ns = ll_now_ns();
    int rc = 0;

    while (rc == 0 && !batch->is_lost && interrupts_count() == 0) {
        rc = fill(batch);
        if (rc == 0)
            rc = write_done(batch);
        if (batch->is_input_over && batch->first == batch->next)
            break;
        if (rc == 0 && batch->first < batch->next)
            rc = take_outputs(batch);
        terminal_progress("%llu done, %llu running, %llu failed", (unsigned long long)batch->first,
                          (unsigned long long)batch->n_running,
                          (unsigned long long)batch->n_failed);
    }
    terminal_progress_done();
    if (rc == 0)
        rc = write_rest(batch);
    if (fflush(batch->out) != 0 && rc == 0)
        rc = LL_ERR(-EIO, "the results cannot be written: is the disk full?");
    double seconds = (double)(ll_now_ns() - start_ns) / 1e9;
    fprintf(stderr, "%llu prompts, %llu failed, %.1f s\n", (unsigned long long)batch->n_written,
            (unsigned long long)batch->n_failed, seconds);
    if (rc < 0)
        return terminal_fail_code(rc, NULL);
    if (batch->is_lost)
        return terminal_fail_code(batch->lost_code, NULL);
    if (interrupts_count() > 0)
        return 128 + interrupts_last();
    return batch->n_failed > 0 ? EXIT_FAILED : EXIT_OK;
}

/* ---- files ------------------------------------------------------------------------------------*/

static FILE *open_input(const char *path)
{
    FILE *in = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");

    if (in == NULL)
        terminal_fail("%s: %s: give a file with one JSON object a line", path, strerror(errno));
    return in;
}

/* Not over the input: that would lose it before it is read. */
static FILE *open_output(const char *path, FILE *in)
{
    struct stat in_stat, out_stat;

    if (strcmp(path, "-") == 0)
        return stdout;
    if (fstat(fileno(in), &in_stat) == 0 && stat(path, &out_stat) == 0 &&
        in_stat.st_dev == out_stat.st_dev && in_stat.st_ino == out_stat.st_ino) {
        terminal_fail("%s is the input too: name another file for the results", path);
        return NULL;
    }
    FILE *out = fopen(path, "we");
    if (out == NULL)
        terminal_fail("%s: %s: the results cannot be written there", path, strerror(errno));
    return out;
}

static int run(const struct command *command, int argc, char **argv)
{
    struct batch_options o = {.sampling = SAMPLING_INIT, .n_parallel = SLOTS_DEFAULT};
    struct batch batch = {.options = &o};
    struct connection connection;
    int n_operands;
    int rc = options_parse(command, argc, argv, &o, &n_operands);

    if (rc != OPTIONS_GO_ON)
        return rc;
    if (n_operands == 1)
        return options_usage_error("batch", "OUT is missing: llring batch IN OUT");
    batch.in_name = strcmp(argv[1], "-") == 0 ? "standard input" : argv[1];
    batch.in = open_input(argv[1]);
    if (batch.in == NULL)
        return EXIT_FAILED;
    interrupts_catch();
    uint32_t n_slots = o.n_parallel < SLOTS_MIN ? SLOTS_MIN : o.n_parallel;
    rc = connection_open(&connection, &o.connection, n_slots);
    if (rc != EXIT_OK)
        goto close_in;
    batch.connection = &connection;
    /* Opened last: a failure before this leaves what the file held. */
    batch.out = open_output(argv[2], batch.in);
    batch.window = calloc(WINDOW, sizeof(*batch.window));
    if (batch.out == NULL)
        rc = EXIT_FAILED;
    else if (batch.window == NULL)
        rc = terminal_fail("no memory for %d lines", WINDOW);
    else
        rc = run_batch(&batch);
    free_window(&batch);
    if (batch.out != NULL && batch.out != stdout && fclose(batch.out) != 0 && rc == EXIT_OK)
        rc = terminal_fail("%s: %s", argv[2], strerror(errno));
    connection_close(&connection);
close_in:
    if (batch.in != stdin)
        fclose(batch.in);
    return rc;
}

const struct command command_batch = {
    .name = "batch",
    .summary = "answer a file of prompts",
    .operands = "IN.jsonl OUT.jsonl",
    .groups = {{"Options", options, 0},
               SAMPLING_GROUP(struct batch_options, sampling),
               CONNECTION_GROUP(struct batch_options, connection)},
    .details =
        "Each line of IN is one JSON object with one of\n"
        "  \"prompt\": \"text\"                              continued as it is\n"
        "  \"messages\": [{\"role\": ..., \"content\": ...}]   a conversation (\"tools\" as well)\n"
        "  \"prompt_ids\": [1, 2, 3]                       token ids\n"
        "and, if wanted, \"id\" (any string or number; else the line number), max_tokens, n, "
        "seed,\n"
        "temperature, top_p, top_k, min_p, repetition_penalty, frequency_penalty, "
        "presence_penalty,\n"
        "min_tokens, stop, stop_token_ids, logit_bias, ignore_eos, logprobs (number of "
        "likeliest).\n"
        "Options of the command line hold where a line says nothing else.\n\n"
        "OUT has one line for each, in the same order:\n"
        "  {\"id\", \"text\", \"ids\", \"finish_reason\", \"usage\", \"timing\"}  (n > 1: "
        "\"choices\")\n"
        "  {\"id\", \"error\": {\"code\", \"name\", \"message\", \"line\"}}\n"
        "Exit code 1 if any line failed. - is standard input or output.\n",
    .n_operands_min = 1,
    .n_operands_max = 2,
    .run = run,
};
