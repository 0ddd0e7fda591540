/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_server.c - llringd as a program: start, serve, admin socket, stop; what it
 * says when it cannot; and what it must never do: open a network socket, allocate once ready, leave
 * prompts in a core dump. */
#include "tests/harness.h"

#include "base/bits.h"
#include "base/clock.h"
#include "ll/client.h"
#include "runtime/allocations.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- tools -----------------------------------------------------------------------------------*/

static void start(struct ll_test_runtime *runtime, const char *const *arguments)
{
    assert_int_equal(ll_test_runtime_start(runtime, arguments), 0);
}

static struct ll_client *attach(const struct ll_test_runtime *runtime)
{
    struct ll_client_options options = {.struct_bytes = sizeof(options), .socket = runtime->socket};
    struct ll_client *client = NULL;

    if (ll_client_open(&client, &options) < 0)
        fail_msg("%s", ll_error_text());
    return client;
}

static void submit(struct ll_client *client, uint32_t n_prompt, uint32_t max_tokens)
{
    struct ll_request request = LL_REQUEST_INIT;
    uint32_t prompt[256];

    for (uint32_t i = 0; i < n_prompt; i++)
        prompt[i] = i % 100;
    request.prompt = prompt;
    request.n_prompt = n_prompt;
    request.max_tokens = max_tokens;
    if (ll_client_submit(client, &request, NULL) < 0)
        fail_msg("%s", ll_error_text());
}

/* Reads until everything has ended; how many finished well. *code: of the last ERROR. */
static uint32_t finish(struct ll_client *client, int *code)
{
    struct ll_output out[64];
    uint32_t n_finished = 0;

    while (ll_client_n_open(client) > 0) {
        int n = ll_client_wait(client, out, LL_COUNT(out), 10000000000ll);
        if (n == 0)
            fail_msg("nothing came for 10 s");
        for (int i = 0; i < n; i++) {
            n_finished += out[i].type == LL_OUTPUT_FINISH;
            if (out[i].type == LL_OUTPUT_ERROR && code != NULL)
                *code = out[i].u.error.code;
        }
        if (n < 0)
            break;
    }
    return n_finished;
}

static uint64_t stat_of(struct ll_client *client, const char *name)
{
    struct ll_stat stats[128];
    int n = ll_client_stats(client, stats, LL_COUNT(stats));

    for (int i = 0; i < n; i++)
        if (strcmp(stats[i].name, name) == 0)
            return stats[i].value;
    fail_msg("no statistic %s", name);
    return 0;
}

static int admin_connect(const struct ll_test_runtime *runtime)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const struct timeval patience = {.tv_sec = 20};

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/admin.sock", runtime->directory);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        fail_msg("admin.sock: %s", strerror(errno));
    return fd;
}

/* Sends a line, unless it is NULL, gives the answer back; the caller frees it. */
static json_t *admin_ask(const struct ll_test_runtime *runtime, const char *line)
{
    static char answer[300000];
    size_t n_answer = 0;
    ssize_t n;
    int fd = admin_connect(runtime);

    if (line != NULL)
        assert_int_equal(write(fd, line, strlen(line)), (ssize_t)strlen(line));
    while ((n = read(fd, answer + n_answer, sizeof(answer) - n_answer)) > 0)
        n_answer += (size_t)n;
    close(fd);
    json_error_t error;
    json_t *json = json_loadb(answer, n_answer, 0, &error);
    if (json == NULL)
        fail_msg("\"%s\" is answered with %.*s: %s", line != NULL ? line : "", (int)n_answer,
                 answer, error.text);
    return json;
}

/* Runs llringd and gives its exit status; standard error goes to text. */
static int run(const char *const *arguments, char *text, size_t n_text)
{
    const char *argv[32] = {LL_BUILD_DIR "/llringd"};
    int ends[2], status, argc = 1;
    size_t used = 0;
    ssize_t n;

    for (; arguments[argc - 1] != NULL; argc++)
        argv[argc] = arguments[argc - 1];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(ends[1]);
    while ((n = read(ends[0], text + used, n_text - 1 - used)) > 0)
        used += (size_t)n;
    text[used] = 0;
    close(ends[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void expect_exit(int status, const char *words, const char *const *arguments)
{
    char text[4096];
    int got = run(arguments, text, sizeof(text));

    if (got != status || strstr(text, words) == NULL)
        fail_msg("exit %d, \"%s\"; not exit %d, \"...%s...\"", got, text, status, words);
}

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* ---- serving ---------------------------------------------------------------------------------*/

static void it_serves_and_stops_cleanly(void **state)
{
    (void)state;
    struct ll_test_runtime runtime;

    start(&runtime, ARGS("--device", "fake"));
    struct ll_client *client = attach(&runtime);
    for (uint32_t i = 0; i < 30; i++)
        submit(client, 10 + i, 20);
    assert_int_equal(finish(client, NULL), 30);
    assert_int_equal(stat_of(client, "requests_finished"), 30);
    assert_int_equal(stat_of(client, "output_tokens"), 600);
    ll_client_close(client);
    assert_int_equal(ll_test_runtime_stop(&runtime), 0);
    assert_int_equal(access(runtime.socket, F_OK), -1);
}

static void nothing_is_allocated_once_it_is_ready(void **state)
{
    (void)state;
    struct ll_test_runtime runtime;

    if (!ll_allocations_are_counted())
        skip();
    start(&runtime, ARGS("--device", "fake"));
    struct ll_client *first = attach(&runtime), *second = attach(&runtime);
    for (uint32_t round = 0; round < 5; round++) {
        for (uint32_t i = 0; i < 30; i++) {
            submit(first, 200, 20);
            submit(second, 1 + i, 5);
        }
        assert_int_equal(finish(first, NULL) + finish(second, NULL), 60);
        json_decref(admin_ask(&runtime, "status\n"));
    }
    ll_client_close(second);
    assert_int_equal(stat_of(first, "allocations_after_ready"), 0);
    ll_client_close(first);
    assert_int_equal(ll_test_runtime_stop(&runtime), 0);
}

/* Is the socket with this inode in a table of /proc/PID/net? */
static bool is_in_table(pid_t pid, const char *table, unsigned long inode)
{
    char path[64], line[1024], word[32];
    bool is_found = false;

    snprintf(path, sizeof(path), "/proc/%d/net/%s", (int)pid, table);
    snprintf(word, sizeof(word), "%lu", inode);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return false;
    while (fgets(line, sizeof(line), file) != NULL)
        for (char *save, *at = strtok_r(line, " \n", &save); at != NULL;
             at = strtok_r(NULL, " \n", &save))
            is_found |= strcmp(at, word) == 0;
    fclose(file);
    return is_found;
}

static void every_socket_is_a_unix_socket(void **state)
{
    (void)state;
    struct ll_test_runtime runtime;
    char path[64];
    uint32_t n_sockets = 0;

    start(&runtime, ARGS("--device", "fake"));
    struct ll_client *client = attach(&runtime);
    submit(client, 10, 5);
    finish(client, NULL);
    snprintf(path, sizeof(path), "/proc/%d/fd", runtime.pid);
    DIR *directory = opendir(path);
    if (directory == NULL) { /* not ours to look at: PR_SET_DUMPABLE */
        ll_client_close(client);
        ll_test_runtime_stop(&runtime);
        skip();
    }
    struct dirent *entry;
    while ((entry = readdir(directory)) != NULL) {
        char link[600], target[128];
        unsigned long inode;
        snprintf(link, sizeof(link), "%s/%s", path, entry->d_name);
        ssize_t n = readlink(link, target, sizeof(target) - 1);
        target[n > 0 ? n : 0] = 0;
        if (sscanf(target, "socket:[%lu]", &inode) != 1)
            continue;
        n_sockets++;
        if (!is_in_table(runtime.pid, "unix", inode))
            fail_msg("descriptor %s is a socket that is not of the Unix kind", entry->d_name);
    }
    closedir(directory);
    assert_true(n_sockets >= 3); /* control, admin, one client */
    ll_client_close(client);
    assert_int_equal(ll_test_runtime_stop(&runtime), 0);
}

static void sockets_and_memory_are_private(void **state)
{
    (void)state;
    struct ll_test_runtime runtime;
    struct stat st;
    char path[160], line[256];
    bool has_core_limit = false;

    start(&runtime, ARGS("--device", "fake"));
    assert_int_equal(stat(runtime.socket, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0660);
    snprintf(path, sizeof(path), "%s/admin.sock", runtime.directory);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    snprintf(path, sizeof(path), "/proc/%d/limits", runtime.pid);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof(line), file) != NULL)
        has_core_limit |= sscanf(line, "Max core file size %*[0] %*[0]") == 0 &&
                          strncmp(line, "Max core file size        0 ", 28) == 0;
    fclose(file);
    assert_true(has_core_limit);
    assert_int_equal(ll_test_runtime_stop(&runtime), 0);
}

/* ---- the admin socket ------------------------------------------------------------------------*/

static void status_tells_everything(void **state)
{
    (void)state;
    struct ll_test_runtime runtime;

    start(&runtime, ARGS("--device", "fake", "--served-model-name", "a \"quoted\" name"));
    struct ll_client *client = attach(&runtime);
    submit(client, 10, 5);
    finish(client, NULL);
    json_t *json = admin_ask(&runtime, "status\n"), *stats = json_object_get(json, "stats");
    assert_string_equal(json_string_value(json_object_get(json, "state")), "ready");
    assert_string_equal(json_string_value(json_object_get(json, "model")), "a \"quoted\" name");
    assert_string_equal(json_string_value(json_object_get(json, "backend")), "fake");
    assert_int_equal(json_integer_value(json_object_get(json, "pid")), runtime.pid);
    assert_int_equal(json_integer_value(json_object_get(json, "context_max")), 8192);
    assert_int_equal(json_integer_value(json_object_get(stats, "requests_finished")), 1);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(stats, "output_length"), "max")), 5);
    assert_int_equal(json_array_size(json_object_get(json, "start")), 5);
    json_t *clients = json_object_get(json, "clients");
    assert_int_equal(json_array_size(clients), 1);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(clients, 0), "pid")),
                     getpid());
    json_decref(json);
    ll_client_close(client);
    assert_int_equal(ll_test_runtime_stop(&runtime), 0);
}

static void other_commands_answer_clearly(void **state)
{
    (void)state;
    struct ll_test_runtime runtime;
    char line[1500];

    start(&runtime, ARGS("--device", "fake"));
    json_t *json = admin_ask(&runtime, "reload /tmp\n");
    assert_int_equal(json_integer_value(json_object_get(json, "error")), LL_E_UNSUPPORTED);
    assert_non_null(strstr(json_string_value(json_object_get(json, "message")), "GB are free"));
    json_decref(json);
    json = admin_ask(&runtime, "reload\n");
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(json, "reload"), "state")), "idle");
    json_decref(json);
    json = admin_ask(&runtime, "adapters\r\n");
    assert_int_equal(json_array_size(json_object_get(json, "adapters")), 0);
    json_decref(json);
    json = admin_ask(&runtime, "make tea\n");
    assert_int_equal(json_integer_value(json_object_get(json, "error")), LL_E_INVAL);
    json_decref(json);
    memset(line, 'x', sizeof(line)); /* longer than a line may be, and without an end */
    line[sizeof(line) - 1] = 0;
    json = admin_ask(&runtime, line);
    assert_int_equal(json_integer_value(json_object_get(json, "error")), LL_E_INVAL);
    json_decref(json);

    int silent[8]; /* more than there are places: the oldest give way */
    for (size_t i = 0; i < LL_COUNT(silent); i++)
        silent[i] = admin_connect(&runtime);
    json_decref(admin_ask(&runtime, "status\n"));
    for (size_t i = 0; i < LL_COUNT(silent); i++)
        close(silent[i]);
    json_decref(admin_ask(&runtime, "status\n"));
    assert_int_equal(ll_test_runtime_stop(&runtime), 0);
}

static rlim_t lowest_free(pid_t pid)
{
    char path[64];
    struct stat st;

    for (rlim_t fd = 0;; fd++) {
        snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, (int)fd);
        if (lstat(path, &st) < 0)
            return fd;
    }
}

/* The limit becomes the lowest number that is free: no call that wants one succeeds. Again until it
 * stays so: what is open only for a moment, as while it starts, would be free afterwards. */
static void take_descriptors(pid_t pid, struct rlimit *before)
{
    struct rlimit now;

    assert_int_equal(prlimit(pid, RLIMIT_NOFILE, NULL, before), 0);
    now = *before;
    do {
        now.rlim_cur = lowest_free(pid);
        assert_int_equal(prlimit(pid, RLIMIT_NOFILE, &now, NULL), 0);
        usleep(100000);
    } while (lowest_free(pid) < now.rlim_cur);
}

static void without_descriptors_the_admin_socket_says_so(void **state)
{
    (void)state;
    struct ll_test_runtime runtime;
    struct rlimit before;

    start(&runtime, ARGS("--device", "fake"));
    take_descriptors(runtime.pid, &before);
    for (int i = 0; i < 3; i++) { /* and keeps one for the next who asks */
        json_t *json = admin_ask(&runtime, NULL);
        assert_int_equal(json_integer_value(json_object_get(json, "error")), -EMFILE);
        assert_non_null(strstr(json_string_value(json_object_get(json, "message")), "LimitNOFILE"));
        json_decref(json);
    }
    assert_int_equal(prlimit(runtime.pid, RLIMIT_NOFILE, &before, NULL), 0);
    json_t *json = admin_ask(&runtime, "status\n");
    assert_string_equal(json_string_value(json_object_get(json, "state")), "ready");
    json_decref(json);
    assert_int_equal(ll_test_runtime_stop(&runtime), 0);
}

static void drain_finishes_what_runs_and_ends_the_process(void **state)
{
    (void)state;
    struct ll_test_runtime runtime;
    char command[128];
    int status;

    start(&runtime, ARGS("--device", "fake", "--fake-step-us", "5000"));
    struct ll_client *client = attach(&runtime);
    submit(client, 10, 50); /* a quarter of a second */
    while (stat_of(client, "requests_accepted") == 0)
        usleep(1000);
    json_t *json = admin_ask(&runtime, "drain\n");
    assert_string_equal(json_string_value(json_object_get(json, "state")), "draining");
    json_decref(json);
    assert_int_equal(finish(client, NULL), 1);
    assert_int_equal(waitpid(runtime.pid, &status, 0), runtime.pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ll_client_close(client);
    snprintf(command, sizeof(command), "rm -rf '%s'", runtime.directory);
    assert_int_equal(system(command), 0);
}

/* ---- when it cannot --------------------------------------------------------------------------*/

static void wrong_usage_exits_2_with_one_sentence(void **state)
{
    (void)state;
    expect_exit(2, "did you mean --device?", ARGS("--devise", "cpu"));
    expect_exit(2, "no model: give a directory", ARGS("--socket", "/tmp/llring-none/x.sock"));
    char model[512];

    snprintf(model, sizeof(model), "%s", ll_test_source("tools/demo-model"));
    expect_exit(2, "--max-model-len: 999999 is more than the model's 16384",
                ARGS(model, "--max-model-len", "999999"));
    expect_exit(2, "--cpus: \"x\" is no CPU list",
                ARGS("--device", "fake", "--cpus", "x", "--socket", "/tmp/llring-none/x.sock"));
    expect_exit(2, "must be at least --max-num-seqs",
                ARGS("--device", "fake", "--max-num-batched-tokens", "10", "--socket",
                     "/tmp/llring-none/x.sock"));
    expect_exit(2, "--chat-template: \"x.jinja\" is none of",
                ARGS("--device", "fake", "--chat-template", "x.jinja"));
}

static void a_missing_model_exits_1_and_says_what_to_do(void **state)
{
    (void)state;
    expect_exit(1, "no model directory \"nowhere\"", ARGS("nowhere"));
    expect_exit(1, "nothing is downloaded", ARGS("someone/some-model"));
    expect_exit(1, "config.json", ARGS("/tmp"));
}

static void two_runtimes_do_not_share_a_socket(void **state)
{
    (void)state;
    struct ll_test_runtime runtime;
    char pid[16];

    start(&runtime, ARGS("--device", "fake"));
    snprintf(pid, sizeof(pid), "%d", runtime.pid);
    expect_exit(1, pid, ARGS("--device", "fake", "--socket", runtime.socket));
    struct ll_client *client = attach(&runtime); /* the first one still serves */
    submit(client, 10, 5);
    assert_int_equal(finish(client, NULL), 1);
    ll_client_close(client);
    assert_int_equal(ll_test_runtime_stop(&runtime), 0);
}

static void a_failing_device_tells_its_clients_and_exits_3(void **state)
{
    (void)state;
    struct ll_test_runtime runtime;
    int code = 0;

    start(&runtime, ARGS("--device", "fake", "--fake-fail-at", "10"));
    struct ll_client *client = attach(&runtime);
    submit(client, 10, 50);
    assert_int_equal(finish(client, &code), 0);
    assert_true(code == LL_E_BACKEND || code == LL_E_RUNTIME_LOST);
    ll_client_close(client);
    assert_int_equal(ll_test_runtime_stop(&runtime), 3);
}

/* From the moment the lock is taken (before anything is loaded) SIGTERM ends it cleanly. */
static void sigterm_while_it_starts_is_a_clean_end(void **state)
{
    (void)state;
    char directory[] = "/tmp/llring-test-XXXXXX", lock[64], path[64], model[512], command[64];

    snprintf(model, sizeof(model), "%s", ll_test_source("tools/demo-model"));
    for (uint32_t wait_us = 0; wait_us < 100000; wait_us = wait_us * 2 + 1000) {
        int status, n_waits = 0;
        assert_non_null(mkdtemp(directory));
        snprintf(path, sizeof(path), "%s/s.sock", directory);
        snprintf(lock, sizeof(lock), "%s/s.sock.lock", directory);
        pid_t pid = fork();
        if (pid == 0) {
            execl(LL_BUILD_DIR "/llringd", "llringd", model, "--device", "cpu", "--socket", path,
                  "--log-level", "error", NULL);
            _exit(127);
        }
        while (access(lock, F_OK) < 0 && ++n_waits < 10000)
            usleep(1000);
        usleep(wait_us);
        kill(pid, SIGTERM);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
        assert_int_equal(access(path, F_OK), -1);
        snprintf(command, sizeof(command), "rm -rf '%s'", directory);
        assert_int_equal(system(command), 0);
        memcpy(directory + strlen(directory) - 6, "XXXXXX", 6);
    }
}

/* ---- a real model ----------------------------------------------------------------------------*/

static void the_demo_model_is_served_with_its_tokenizer(void **state)
{
    (void)state;
    struct ll_test_runtime runtime;
    struct ll_client_info info = {.struct_bytes = sizeof(info)};
    char model[512];

    snprintf(model, sizeof(model), "%s", ll_test_source("tools/demo-model"));
    start(&runtime, ARGS(model, "--device", "cpu"));
    struct ll_client *client = attach(&runtime);
    assert_int_equal(ll_client_info(client, &info), 0);
    assert_string_equal(info.model, "demo-model");
    assert_string_equal(info.chat_format, "llama3.1");
    assert_string_equal(info.backend, "cpu");
    assert_string_equal(info.dtype, "bfloat16");
    assert_true(info.n_eos > 0 && info.tokenizer != NULL);
    submit(client, 50, 10);
    assert_int_equal(finish(client, NULL), 1);
    if (ll_allocations_are_counted())
        assert_int_equal(stat_of(client, "allocations_after_ready"), 0);
    ll_client_close(client);
    assert_int_equal(ll_test_runtime_stop(&runtime), 0);
}

/* A copy of the demo model by links, with one file of our own. */
static void make_model(char *directory, size_t n_bytes, const char *file, const char *text)
{
    char command[900], path[600];

    snprintf(directory, n_bytes, "/tmp/llring-model-XXXXXX");
    assert_non_null(mkdtemp(directory));
    snprintf(command, sizeof(command), "ln -s '%s'/* '%s'/ && rm '%s/%s'",
             ll_test_source("tools/demo-model"), directory, directory, file);
    assert_int_equal(system(command), 0);
    snprintf(path, sizeof(path), "%s/%s", directory, file);
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    fputs(text, out);
    fclose(out);
}

static void a_broken_tokenizer_is_refused_by_name(void **state)
{
    (void)state;
    char directory[64], command[128], socket_path[100];

    make_model(directory, sizeof(directory), "tokenizer.json", "{\"model\": [1, 2");
    snprintf(socket_path, sizeof(socket_path), "%s/s.sock", directory);
    expect_exit(1, "tokenizer.json", ARGS(directory, "--device", "cpu", "--socket", socket_path));
    snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_serves_and_stops_cleanly),
        cmocka_unit_test(nothing_is_allocated_once_it_is_ready),
        cmocka_unit_test(every_socket_is_a_unix_socket),
        cmocka_unit_test(sockets_and_memory_are_private),
        cmocka_unit_test(status_tells_everything),
        cmocka_unit_test(other_commands_answer_clearly),
        cmocka_unit_test(without_descriptors_the_admin_socket_says_so),
        cmocka_unit_test(drain_finishes_what_runs_and_ends_the_process),
        cmocka_unit_test(wrong_usage_exits_2_with_one_sentence),
        cmocka_unit_test(a_missing_model_exits_1_and_says_what_to_do),
        cmocka_unit_test(two_runtimes_do_not_share_a_socket),
        cmocka_unit_test(a_failing_device_tells_its_clients_and_exits_3),
        cmocka_unit_test(sigterm_while_it_starts_is_a_clean_end),
        cmocka_unit_test(the_demo_model_is_served_with_its_tokenizer),
        cmocka_unit_test(a_broken_tokenizer_is_refused_by_name),
    };
    return cmocka_run_group_tests_name("runtime/server", tests, NULL, NULL);
}
