/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/check.c - `llring check MODEL --golden FILE`: does the whole path compute what a
 * reference computed?
 *
 * Each case goes through chat rendering, tokenizer, rings, runtime and sampler. The model is asked
 * with the golden prompt ids, so that a text fault and a model fault are told apart. After a greedy
 * token that differs it is asked anew with the golden ids up to there: each difference counts once.
 * Comparing is in check_case.c. */
#include "base/clock.h"
#include "base/err.h"
#include "tools/llring/check_case.h"
#include "tools/llring/commands.h"
#include "tools/llring/process.h"
#include "tools/llring/terminal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_WAIT_S 600 /* big weights from a slow disk */

/* What may differ, by the type that the runtime computes in. */
struct tolerance {
    const char *dtype;
    double greedy_min;  /* share of greedy tokens that are equal */
    double logprob_max; /* largest difference; 0: reported only */
};
static const struct tolerance tolerances[] = {
    {"float32", 1.0, 1e-3},
    {"fp8", 0.95,
     0},             /* 8-bit weights: the bundled model of 5.8 M feels them more than large ones */
    {NULL, 0.99, 0}, /* bfloat16 */
};

struct check_options {
    struct connection_options connection;
    const char *golden, *dtype;
    uint32_t n_cases;
    bool json, verbose;
};

#define AT(field) .offset = offsetof(struct check_options, field)
static const struct option options[] = {
    {.name = "golden",
     .letter = 'g',
     .kind = OPTION_TEXT,
     AT(golden),
     .argument = "FILE",
     .help = "the cases: as tests/data/golden.json"},
    {.name = "dtype",
     .kind = OPTION_TEXT,
     AT(dtype),
     .argument = "TYPE",
     .help = "type to compute in, as llringd --dtype (default auto)"},
    {.name = "cases",
     .kind = OPTION_U32,
     AT(n_cases),
     .argument = "N",
     .help = "only the first N; 0: all"},
    {.name = "verbose",
     .letter = 'v',
     .kind = OPTION_FLAG,
     AT(verbose),
     .help = "one line for each case"},
    {.name = "json", .kind = OPTION_FLAG, AT(json), .help = "one JSON object"},
    {.name = NULL},
};

/* ---- a runtime of our own
 * -----------------------------------------------------------------------*/

struct runtime {
    pid_t pid; /* 0: not ours */
    char directory[64];
    char socket[96];
};

#define ARGUMENTS_MAX 64

/* llringd on model with a socket in a fresh directory; waits until it is there. */
static int start_runtime(struct runtime *out, const char *dtype, char **operands, int n_operands)
{
    const char *arguments[ARGUMENTS_MAX];
    int n = 0;
    uint64_t deadline_ns = ll_now_ns() + START_WAIT_S * LL_NS_PER_S;

    if (n_operands + 8 > ARGUMENTS_MAX)
        return options_usage_error("check", "too many arguments for llringd");
    snprintf(out->directory, sizeof(out->directory), "/tmp/llring-check-XXXXXX");
    if (mkdtemp(out->directory) == NULL) {
        out->directory[0] = '\0';
        return terminal_fail("no directory for a socket in /tmp: %s", strerror(errno));
    }
    snprintf(out->socket, sizeof(out->socket), "%s/llring.sock", out->directory);
    arguments[n++] = operands[0];
    arguments[n++] = "--socket";
    arguments[n++] = out->socket;
    arguments[n++] = "--log-level";
    arguments[n++] = "warn";
    if (dtype != NULL) {
        arguments[n++] = "--dtype";
        arguments[n++] = dtype;
    }
    for (int i = 1; i < n_operands; i++)
        arguments[n++] = operands[i];
    out->pid = process_start("llringd", arguments, n, 1);
    if (out->pid < 0) {
        out->pid = 0;
        return EXIT_FAILED;
    }
    /* The socket appears when the runtime is ready. */
    while (access(out->socket, F_OK) != 0) {
        int status;
        if (waitpid(out->pid, &status, WNOHANG) == out->pid) {
            out->pid = 0;
            if (WIFSIGNALED(status))
                return terminal_fail("llringd did not start: signal %d (%s) ended it",
                                     WTERMSIG(status), strsignal(WTERMSIG(status)));
            if (WEXITSTATUS(status) == 127)
                return terminal_fail("llringd was not found: it belongs beside llring, or into "
                                     "PATH");
            return terminal_fail("llringd did not start; what it said is above");
        }
        if (interrupts_count() > 0 || ll_now_ns() > deadline_ns)
            return terminal_fail("llringd was not ready in time");
        usleep(5000);
    }
    return EXIT_OK;
}

static int stop_runtime(struct runtime *runtime)
{
    int rc = runtime->pid > 0 ? process_stop(runtime->pid) : EXIT_OK;

    if (runtime->directory[0] != '\0') {
        unlink(runtime->socket); /* left behind only if it was killed */
        rmdir(runtime->directory);
    }
    return rc == EXIT_OK ? EXIT_OK : terminal_fail("llringd ended with status %d", rc);
}

/* ---- results
 * --------------------------------------------------------------------------------------*/

static const struct tolerance *find_tolerance(const char *dtype)
{
    const struct tolerance *at = tolerances;

    while (at->dtype != NULL && strcmp(at->dtype, dtype) != 0)
        at++;
    return at;
}

static double share(uint32_t part, uint32_t all)
{
    return all > 0 ? (double)part / all : 1.0;
}

static bool is_within(const struct check_sums *sums, const struct tolerance *tolerance)
{
    double largest = sums->greedy_diff;

    if (sums->prompt_diff > largest)
        largest = sums->prompt_diff;
    if (sums->top_diff > largest)
        largest = sums->top_diff;
    return sums->n_prompts_equal == sums->n_cases && sums->n_texts_equal == sums->n_cases &&
           sums->n_failed == 0 &&
           share(sums->n_tokens_equal, sums->n_tokens) >= tolerance->greedy_min &&
           (tolerance->logprob_max == 0 || largest <= tolerance->logprob_max);
}

static void print_sums(const struct connection *connection, const struct check_sums *sums,
                       const struct tolerance *tolerance, double seconds, bool json)
{
    const struct ll_client_info *info = &connection->info;
    bool is_good = is_within(sums, tolerance);

    if (json) {
        json_t *object = json_pack(
            "{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, "
            "s:b}",
            "model", info->model, "backend", info->backend, "dtype", info->dtype, "cases",
            (int)sums->n_cases, "failed", (int)sums->n_failed, "prompt_texts_equal",
            (int)sums->n_texts_equal, "prompt_ids_equal", (int)sums->n_prompts_equal,
            "cases_greedy_equal", (int)sums->n_cases_equal, "greedy_tokens", (int)sums->n_tokens,
            "greedy_tokens_equal", (int)sums->n_tokens_equal, "top_ids_equal",
            (int)sums->n_top_equal, "greedy_logprob_diff", sums->greedy_diff, "prompt_logprob_diff",
            sums->prompt_diff, "top_logprob_diff", sums->top_diff, "tolerance_greedy_share",
            tolerance->greedy_min, "tolerance_logprob_diff", tolerance->logprob_max, "seconds",
            seconds, "pass", is_good);
        json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
        putchar('\n');
        json_decref(object);
        return;
    }
    printf("%s (%s, %s), %u cases in %.1f s\n", info->model, info->backend, info->dtype,
           sums->n_cases, seconds);
    printf("  prompt text equal        %u/%u\n", sums->n_texts_equal, sums->n_cases);
    printf("  prompt ids equal         %u/%u\n", sums->n_prompts_equal, sums->n_cases);
    printf("  greedy answers equal     %u/%u\n", sums->n_cases_equal, sums->n_cases);
    printf("  greedy tokens equal      %u/%u (%.2f %%; at least %g %%)\n", sums->n_tokens_equal,
           sums->n_tokens, 100 * share(sums->n_tokens_equal, sums->n_tokens),
           100 * tolerance->greedy_min);
    printf("  top-20 ids equal         %u/%u\n", sums->n_top_equal, sums->n_top);
    printf("  largest logprob difference: greedy %.2g, prompt %.2g, top-20 %.2g", sums->greedy_diff,
           sums->prompt_diff, sums->top_diff);
    if (tolerance->logprob_max > 0)
        printf(" (at most %g)", tolerance->logprob_max);
    printf("\n%s%s%s\n", terminal_style(stdout, is_good ? STYLE_BOLD : STYLE_RED),
           is_good ? "pass" : "FAIL", terminal_style(stdout, STYLE_PLAIN));
}

static int check_all(const struct check_options *o, struct connection *connection,
                     const json_t *golden)
{
    struct check_sums sums = {0};
    uint64_t start_ns = ll_now_ns();
    size_t n = json_array_size(golden);

    if (o->n_cases > 0 && o->n_cases < n)
        n = o->n_cases;
    for (size_t i = 0; i < n; i++) {
        struct check_result result;
        int rc = check_case(connection, json_array_get(golden, i), &result);
        if (interrupts_count() > 0)
            return 128 + interrupts_last();
        if (rc < 0) {
            terminal_progress_done();
            fprintf(stderr, "case %zu: %s\n", i, ll_error_text());
            if (rc == LL_E_RUNTIME_LOST || rc == LL_E_PROTOCOL)
                return terminal_fail_code(rc, NULL);
        }
        check_add(&sums, &result);
        terminal_progress("case %zu of %zu", i + 1, n);
        bool is_odd = result.has_failed || !result.is_text_equal || !result.is_prompt_equal ||
                      result.n_tokens_equal != result.n_tokens;
        if (!o->json && (o->verbose || is_odd)) {
            terminal_progress_done();
            check_print(i, &result);
        }
    }
    terminal_progress_done();
    const struct tolerance *tolerance = find_tolerance(connection->info.dtype);
    print_sums(connection, &sums, tolerance, (double)(ll_now_ns() - start_ns) / 1e9, o->json);
    return is_within(&sums, tolerance) ? EXIT_OK : EXIT_FAILED;
}

static json_t *load_golden(const char *path)
{
    json_error_t error;
    json_t *golden = json_load_file(path, JSON_REJECT_DUPLICATES, &error);

    if (golden == NULL) {
        terminal_fail_file("--golden", path, error.line, error.text,
                           "a file like tests/data/golden.json");
        return NULL;
    }
    if (!json_is_array(golden) || json_array_size(golden) == 0) {
        terminal_fail("--golden %s: an array of cases is wanted, as in tests/data/golden.json",
                      path);
        json_decref(golden);
        return NULL;
    }
    return golden;
}

static int run(const struct command *command, int argc, char **argv)
{
    struct check_options o = {0};
    struct runtime runtime = {0};
    struct connection connection;
    int n_operands;
    int rc = options_parse(command, argc, argv, &o, &n_operands);

    if (rc != OPTIONS_GO_ON)
        return rc;
    if (o.golden == NULL)
        return options_usage_error("check", "--golden FILE is missing");
    if ((o.connection.socket == NULL) == (n_operands == 0))
        return options_usage_error("check", "give a MODEL to start, or the --socket of a runtime");
    json_t *golden = load_golden(o.golden);
    if (golden == NULL)
        return EXIT_FAILED;
    interrupts_catch();
    rc = EXIT_OK;
    if (o.connection.socket == NULL) {
        rc = start_runtime(&runtime, o.dtype, argv + 1, n_operands);
        o.connection.socket = runtime.socket;
    }
    if (rc == EXIT_OK)
        rc = connection_open(&connection, &o.connection, 0);
    if (rc == EXIT_OK) {
        rc = connection_has_text(&connection) ? check_all(&o, &connection, golden) : EXIT_FAILED;
        connection_close(&connection);
    }
    int stop_rc = stop_runtime(&runtime);
    json_decref(golden);
    return rc != EXIT_OK ? rc : stop_rc;
}

const struct command command_check = {
    .name = "check",
    .summary = "compare a model with a reference's results",
    .operands = "MODEL [-- llringd options]",
    .groups = {{"Options", options, 0}, CONNECTION_GROUP(struct check_options, connection)},
    .details =
        "Starts its own llringd on MODEL, unless --socket names a runtime. For each case: prompt\n"
        "text and ids from the messages, greedy tokens, their logprobs, those of the prompt, and\n"
        "the 20 likeliest first tokens.\n\n"
        "Passes when every prompt is equal and\n"
        "  float32       every greedy token is equal and no logprob differs by more than 1e-3\n"
        "  other types   at least 99 % of the greedy tokens are equal\n"
        "else the exit code is 1.\n\n"
        "  llring check tools/demo-model --golden tests/data/golden.json --dtype float32\n",
    .n_operands_max = -1,
    .run = run,
};
