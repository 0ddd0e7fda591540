/* SPDX-License-Identifier: Apache-2.0 */
/* tests/e2e/test_terminal.c - llring on a (pseudo) terminal: prompt, colour, Ctrl-C. What it does
 * in a pipe is in test_text.sh and test_cli.sh. */
#include "tests/harness.h"
#include "base/clock.h"
#include "ll/client.h"

#include <errno.h>
#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#define CTRL_C "\003"
#define CTRL_D "\004"

static struct ll_test_runtime runtime;

struct terminal {
    pid_t pid;
    int fd;
    char seen[1 << 16]; /* everything printed so far */
    size_t n, n_taken;  /* expect() has looked at [0, n_taken) */
};

static void start(struct terminal *t, const char *no_colour, const char *const *arguments)
{
    const char *argv[16] = {LL_BUILD_DIR "/llring"};
    int argc = 1;

    for (; *arguments != NULL; arguments++)
        argv[argc++] = *arguments;
    *t = (struct terminal){0};
    t->pid = forkpty(&t->fd, NULL, NULL, NULL);
    if (t->pid == 0) {
        setenv("LLRING_SOCKET", runtime.socket, 1);
        setenv("TERM", "xterm", 1);
        unsetenv("NO_COLOR");
        if (no_colour != NULL)
            setenv("NO_COLOR", no_colour, 1);
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    assert_true(t->pid > 0);
}

/* Reads what there is; false when the program has ended. */
static bool read_some(struct terminal *t)
{
    struct pollfd pollfd = {.fd = t->fd, .events = POLLIN};

    if (poll(&pollfd, 1, 100) <= 0)
        return true;
    ssize_t n = read(t->fd, t->seen + t->n, sizeof(t->seen) - 1 - t->n);
    if (n <= 0)
        return false;
    t->n += (size_t)n;
    t->seen[t->n] = '\0';
    assert_true(t->n < sizeof(t->seen) - 1);
    return true;
}

/* Waits until text is printed after what the last call waited for. */
static void expect(struct terminal *t, const char *text)
{
    uint64_t deadline_ns = ll_now_ns() + 20 * LL_NS_PER_S;

    for (;;) {
        char *at = strstr(t->seen + t->n_taken, text);
        if (at != NULL) {
            t->n_taken = (size_t)(at - t->seen) + strlen(text);
            return;
        }
        if (!read_some(t) || ll_now_ns() > deadline_ns)
            fail_msg("no \"%s\" after:\n%s", text, t->seen + t->n_taken);
    }
}

static void type(struct terminal *t, const char *text)
{
    assert_int_equal(write(t->fd, text, strlen(text)), strlen(text));
}

static int end(struct terminal *t)
{
    int status;

    while (read_some(t))
        continue;
    assert_int_equal(waitpid(t->pid, &status, 0), t->pid);
    close(t->fd);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static uint64_t n_cancelled(void)
{
    struct ll_client_options options = {.struct_bytes = sizeof(options), .socket = runtime.socket};
    struct ll_client *client;
    struct ll_stat stats[256];
    uint64_t value = 0;

    assert_int_equal(ll_client_open(&client, &options), 0);
    int n = ll_client_stats(client, stats, 256);
    for (int i = 0; i < n && i < 256; i++)
        if (strcmp(stats[i].name, "requests_cancelled") == 0)
            value = stats[i].value;
    ll_client_close(client);
    return value;
}

/* ---- tests
 * ----------------------------------------------------------------------------------------*/

static void a_chat_shows_a_prompt_and_leaves_on_request(void **state)
{
    static const char *const arguments[] = {"chat", "--greedy", NULL};
    struct terminal t;

    (void)state;
    start(&t, NULL, arguments);
    expect(&t, "/bye leaves");
    expect(&t, "\033[1m> ");
    type(&t, "What is the opposite of hot?\n");
    expect(&t, "cold");
    expect(&t, "> ");
    type(&t, "\"\"\"What sound\n");
    expect(&t, ". ");
    type(&t, "does a bee make?\"\"\"\n");
    expect(&t, "> ");
    type(&t, "/bye\n");
    assert_int_equal(end(&t), 0);

    start(&t, NULL, arguments);
    expect(&t, "> ");
    type(&t, CTRL_D);
    assert_int_equal(end(&t), 0);
}

static void ctrl_c_ends_the_answer_and_not_the_chat(void **state)
{
    static const char *const arguments[] = {"chat",         "--min-tokens", "3000",
                                            "--max-tokens", "3000",         NULL};
    uint64_t n_before = n_cancelled();
    struct terminal t;

    (void)state;
    start(&t, NULL, arguments);
    for (int i = 0; i < 2; i++) {
        expect(&t, "> ");
        type(&t, "Tell me a story about a dog.\n");
        expect(&t, "dog.\r\n"); /* the echo */
        expect(&t, " ");        /* and a first word */
        type(&t, CTRL_C);
    }
    expect(&t, "> ");
    assert_int_equal(n_cancelled(), n_before + 2);
    /* At the prompt once is a question, twice an answer. */
    type(&t, CTRL_C);
    expect(&t, "/bye leaves");
    expect(&t, "> ");
    type(&t, CTRL_C);
    assert_int_equal(end(&t), 130);
}

static void ctrl_c_ends_a_completion(void **state)
{
    static const char *const arguments[] = {"complete", "One day", "--ignore-eos",
                                            "-n",       "4000",    NULL};
    struct terminal t;

    (void)state;
    start(&t, NULL, arguments);
    expect(&t, " ");
    type(&t, CTRL_C);
    assert_int_equal(end(&t), 130);
}

static void no_color_means_no_escape_codes(void **state)
{
    static const char *const chat[] = {"chat", "--greedy", NULL}, *const wrong[] = {"status",
                                                                                    "--socket",
                                                                                    "/none", NULL};
    struct terminal t;

    (void)state;
    start(&t, "1", chat);
    expect(&t, "> ");
    type(&t, "What is the opposite of hot?\n");
    expect(&t, "cold");
    expect(&t, "> ");
    type(&t, "/bye\n");
    assert_int_equal(end(&t), 0);
    assert_null(strchr(t.seen, '\033'));

    start(&t, NULL, wrong);
    assert_int_equal(end(&t), 1);
    assert_non_null(strstr(t.seen, "\033[31mllring:"));
    start(&t, "1", wrong);
    assert_int_equal(end(&t), 1);
    assert_null(strchr(t.seen, '\033'));
}

static int setup(void **state)
{
    static char model[512];
    const char *arguments[] = {model, "--log-level", "warn", NULL};

    (void)state;
    snprintf(model, sizeof(model), "%s", ll_test_source("tools/demo-model"));
    return ll_test_runtime_start(&runtime, arguments) < 0 ? -1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    return ll_test_runtime_stop(&runtime);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chat_shows_a_prompt_and_leaves_on_request),
        cmocka_unit_test(ctrl_c_ends_the_answer_and_not_the_chat),
        cmocka_unit_test(ctrl_c_ends_a_completion),
        cmocka_unit_test(no_color_means_no_escape_codes),
    };
    return cmocka_run_group_tests_name("e2e/terminal", tests, setup, teardown);
}
