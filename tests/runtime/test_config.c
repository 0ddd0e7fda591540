/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_config.c - one table: flags, environment, file, defaults, their order, and a
 * clear sentence for each mistake. */
#include "tests/harness.h"

#include "base/bits.h"
#include "base/err.h"
#include "ll/client.h"
#include "runtime/config.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ(config, ...)                                                                          \
    read_args(config, (char *[]){(char *)(uintptr_t) "llringd", __VA_ARGS__, NULL})
#define ARG(text) ((char *)(uintptr_t)(text))

static int read_args(struct ll_config *config, char **argv)
{
    int argc = 0;

    while (argv[argc] != NULL)
        argc++;
    return ll_config_read(config, argc, argv);
}

static int setup(void **state)
{
    (void)state;
    unsetenv("XDG_RUNTIME_DIR");
    unsetenv("LLRING_THREADS");
    unsetenv("LLRING_MAX_MODEL_LEN");
    unsetenv("LLRING_SOCKET");
    return 0;
}

static void defaults_are_those_of_the_table(void **state)
{
    (void)state;
    struct ll_config c;

    assert_int_equal(READ(&c, ARG("--device=fake")), 0);
    assert_int_equal(c.device, LL_DEVICE_FAKE);
    assert_int_equal(c.max_waiting, 1024);
    assert_int_equal(c.max_arena_bytes, 64u << 20);
    assert_int_equal(c.max_arena_bytes_per_user, 1u << 30);
    assert_true(c.gpu_memory_utilization == 0.9f);
    assert_int_equal(c.fake_eos_id, UINT32_MAX);
    assert_string_equal(c.fake, "vocab=1000");
    assert_string_equal(c.socket, "/run/llring/llring.sock");
    assert_string_equal(c.admin_socket, "/run/llring/admin.sock");
}

static void names_and_values_come_in_every_usual_form(void **state)
{
    (void)state;
    struct ll_config c;

    assert_int_equal(READ(&c, ARG("/models/x"), ARG("--max_model_len=100"), ARG("--threads"),
                          ARG("3"), ARG("--kv-cache-memory-bytes"), ARG("1.5GiB"),
                          ARG("--Isolate=client")),
                     LL_E_INVAL); /* names are case-sensitive */
    assert_int_equal(READ(&c, ARG("/models/x"), ARG("--max_model_len=100"), ARG("--threads"),
                          ARG("3"), ARG("--kv-cache-memory-bytes"), ARG("1.5GiB"),
                          ARG("--isolate=client"), ARG("-tp"), ARG("1"), ARG("--deterministic"),
                          ARG("--no-enable_prefix-caching"), ARG("--dtype"), ARG("BFloat16"),
                          ARG("--fake-step-us=7"), ARG("--fake-step-us=9"), ARG("--fake-depth"),
                          ARG("1"), ARG("--socket"), ARG("/tmp/a/b.sock")),
                     0);
    assert_string_equal(c.model, "/models/x");
    assert_int_equal(c.max_model_len, 100);
    assert_int_equal(c.threads, 3);
    assert_int_equal(c.kv_cache_memory_bytes, 3ull << 29);
    assert_int_equal(c.isolate, LL_ISOLATE_CLIENT);
    assert_true(c.is_deterministic);
    assert_false(c.has_prefix_caching);
    assert_int_equal(c.dtype, LL_CONFIG_BFLOAT16);
    assert_string_equal(c.fake, "vocab=1000,step_us=9,depth=1");
    assert_string_equal(c.admin_socket, "/tmp/a/admin.sock");
    assert_int_equal(READ(&c, ARG("--"), ARG("--odd-name")), 0);
    assert_string_equal(c.model, "--odd-name");
    assert_int_equal(READ(&c, ARG("-h")), 0);
    assert_true(c.wants_help);
}

static void a_flag_wins_over_environment_over_file_over_default(void **state)
{
    (void)state;
    struct ll_config c;
    char path[] = "/tmp/llring-config-XXXXXX";
    int fd = mkstemp(path);
    const char text[] = "# a comment\n\n  max_model_len = 11 \nthreads=12\nisolate = client\n"
                        "served-model-name = my model\n";

    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    setenv("LLRING_THREADS", "22", 1);
    setenv("LLRING_MAX_MODEL_LEN", "21", 1);
    assert_int_equal(READ(&c, ARG("--max-model-len=31"), ARG("--config"), path), 0);
    assert_int_equal(c.max_model_len, 31);
    assert_int_equal(c.threads, 22);
    assert_int_equal(c.isolate, LL_ISOLATE_CLIENT);
    assert_string_equal(c.served_model_name, "my model");
    assert_int_equal(c.max_waiting, 1024);
    setenv("LLRING_THREADS", "", 1); /* empty is none */
    assert_int_equal(READ(&c, ARG("--config"), path), 0);
    assert_int_equal(c.threads, 12);
    unlink(path);
}

static void expect(int code, const char *text, int rc)
{
    if (rc != code || strstr(ll_err_text(), text) == NULL)
        fail_msg("%d \"%s\", not %d \"...%s...\"", rc, ll_err_text(), code, text);
}

static void each_mistake_gets_one_clear_sentence(void **state)
{
    (void)state;
    struct ll_config c;

    expect(LL_E_INVAL, "unknown option --max-model-length; did you mean --max-model-len?",
           READ(&c, ARG("--max-model-length=5")));
    expect(LL_E_INVAL, "did you mean --threads?", READ(&c, ARG("--thread"), ARG("5")));
    expect(LL_E_INVAL, "see llringd --help", READ(&c, ARG("--zzzzzzzzzzzz")));
    expect(LL_E_INVAL, "unknown option -x;", READ(&c, ARG("-x")));
    expect(LL_E_INVAL, "--threads needs a value", READ(&c, ARG("--threads")));
    expect(LL_E_INVAL, "--threads: \"-1\" is not allowed; threads takes 0 to 1024",
           READ(&c, ARG("--threads"), ARG("-1")));
    expect(LL_E_INVAL, "\"4x\"", READ(&c, ARG("--threads=4x")));
    expect(LL_E_INVAL, "\"\"", READ(&c, ARG("--threads=")));
    expect(LL_E_INVAL, "1 to 512", READ(&c, ARG("--max-clients=513")));
    expect(LL_E_INVAL, "\"99999999999999999999\"",
           READ(&c, ARG("--max-waiting-tokens=99999999999999999999")));
    expect(LL_E_INVAL, "is none of auto|cpu|cuda|fake", READ(&c, ARG("--device=tpu")));
    expect(LL_E_INVAL, "1 to 8", READ(&c, ARG("--tensor-parallel-size=9")));
    expect(LL_E_INVAL, "0.01 to 1", READ(&c, ARG("--gpu-memory-utilization=nan")));
    expect(LL_E_INVAL, "\"5Q\"", READ(&c, ARG("--kv-cache-memory-bytes=5Q")));
    expect(LL_E_INVAL, "\"1e400\"", READ(&c, ARG("--kv-cache-memory-bytes=1e400")));
    expect(LL_E_INVAL, "takes no value", READ(&c, ARG("--no-deterministic=yes")));
    expect(LL_E_INVAL, "is no switch", READ(&c, ARG("--no-threads")));
    expect(LL_E_INVAL, "neither yes nor no", READ(&c, ARG("--deterministic=maybe")));
    expect(LL_E_INVAL, "one model at a time", READ(&c, ARG("a"), ARG("b")));
    expect(-ENOENT, "/nowhere/f", READ(&c, ARG("--config=/nowhere/f")));
    expect(LL_E_INVAL, "must differ",
           READ(&c, ARG("--socket=/tmp/x"), ARG("--admin-socket=/tmp/x")));
    char path[200];
    memset(path, 'a', sizeof(path) - 1);
    path[sizeof(path) - 1] = 0;
    expect(LL_E_INVAL, "--socket: longer than 100 bytes", READ(&c, ARG("--socket"), path));
    path[100] = 0; /* fits itself, but nothing fits beside it */
    path[99] = '/';
    expect(LL_E_INVAL, "--admin-socket", READ(&c, ARG("--socket"), path));
    setenv("LLRING_THREADS", "many", 1);
    expect(LL_E_INVAL, "LLRING_THREADS: \"many\"", READ(&c, ARG("x")));
    unsetenv("LLRING_THREADS");
}

static void a_mistake_in_the_file_names_the_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"threads = 2\nthread = 1\n", ":2: unknown option \"thread\""},
        {"\n\nthreads\n", ":3: \"threads\" is not of the form"},
        {"threads = x\n", ":1: \"x\" is not allowed"},
        {"config = y\n", ":1: a configuration file cannot"},
    };
    struct ll_config c;

    for (size_t i = 0; i < LL_COUNT(cases); i++) {
        char path[] = "/tmp/llring-config-XXXXXX";
        int fd = mkstemp(path);
        assert_int_equal(write(fd, cases[i].text, strlen(cases[i].text)),
                         (ssize_t)strlen(cases[i].text));
        close(fd);
        expect(LL_E_INVAL, cases[i].expected, READ(&c, ARG("--config"), path));
        unlink(path);
    }
}

static void what_is_printed_reads_back_the_same(void **state)
{
    (void)state;
    struct ll_config a, b;
    char path[] = "/tmp/llring-config-XXXXXX";

    assert_int_equal(READ(&a, ARG("m"), ARG("--threads=5"), ARG("--device=fake"),
                          ARG("--fake-eos-permille=3"), ARG("--kv-cache-memory-bytes=4G"),
                          ARG("--deterministic"), ARG("--spin-us=9"),
                          ARG("--gpu-memory-utilization=0.77")),
                     0);
    FILE *file = fdopen(mkstemp(path), "w");
    ll_config_print(&a, file);
    fclose(file);
    assert_int_equal(READ(&b, ARG("--config"), path), 0);
    memset(b.file, 0, sizeof(b.file));
    assert_memory_equal(&a, &b, sizeof(a));
    unlink(path);
}

static void help_names_every_option_with_its_default(void **state)
{
    (void)state;
    size_t n, n_bytes;
    char *text;
    const struct ll_option *list = ll_config_options(&n);
    FILE *file = open_memstream(&text, &n_bytes);

    ll_config_help(file);
    fclose(file);
    for (size_t i = 0; i < n; i++) {
        if (strstr(text, list[i].name) == NULL)
            fail_msg("--help does not name %s", list[i].name);
        assert_true(list[i].help != NULL && list[i].help[0] != 0);
    }
    for (const char *line = text; *line != 0; line += strcspn(line, "\n") + 1)
        assert_true(strcspn(line, "\n") <= 100);
    size_t at = 0;
    for (const char *c = text; *c != 0; c++) { /* the breaks of lines are not the point */
        bool is_blank = *c == ' ' || *c == '\n';
        if (!is_blank || (at > 0 && text[at - 1] != ' '))
            text[at++] = is_blank ? ' ' : *c;
    }
    text[at] = 0;
    assert_non_null(strstr(text, "--max-waiting N "));
    assert_non_null(strstr(text, "(1 to 65536 requests; default 1024)"));
    assert_non_null(strstr(text, "(64K to 64M bytes; default 64M)"));
    free(text);
}

static void a_hub_name_is_found_in_the_local_cache(void **state)
{
    (void)state;
    char root[] = "/tmp/llring-hub-XXXXXX", path[256], command[128], found[1024];

    assert_non_null(mkdtemp(root));
    setenv("HF_HUB_CACHE", root, 1);
    expect(-ENOENT, "nothing is downloaded", ll_config_find_model("org/m", found, sizeof(found)));
    expect(-ENOENT, "no model directory", ll_config_find_model("no-such", found, sizeof(found)));
    expect(-ENOTDIR, "is a file: give the model's directory",
           ll_config_find_model("/dev/null", found, sizeof(found)));
    snprintf(path, sizeof(path), "%s/models--org--m", root);
    mkdir(path, 0700);
    strcat(path, "/refs");
    mkdir(path, 0700);
    strcat(path, "/main");
    FILE *file = fopen(path, "w");
    fputs("0123abcd", file);
    fclose(file);
    expect(-ENOENT, "org/m", ll_config_find_model("org/m", found, sizeof(found)));
    snprintf(path, sizeof(path), "%s/models--org--m/snapshots", root);
    mkdir(path, 0700);
    strcat(path, "/0123abcd");
    mkdir(path, 0700);
    assert_int_equal(ll_config_find_model("org/m", found, sizeof(found)), 0);
    assert_string_equal(found, path);
    assert_int_equal(ll_config_find_model(root, found, sizeof(found)), 0);
    assert_string_equal(found, root);
    unsetenv("HF_HUB_CACHE");
    snprintf(command, sizeof(command), "rm -rf %s", root);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(defaults_are_those_of_the_table, setup),
        cmocka_unit_test_setup(names_and_values_come_in_every_usual_form, setup),
        cmocka_unit_test_setup(a_flag_wins_over_environment_over_file_over_default, setup),
        cmocka_unit_test_setup(each_mistake_gets_one_clear_sentence, setup),
        cmocka_unit_test_setup(a_mistake_in_the_file_names_the_line, setup),
        cmocka_unit_test_setup(what_is_printed_reads_back_the_same, setup),
        cmocka_unit_test_setup(help_names_every_option_with_its_default, setup),
        cmocka_unit_test_setup(a_hub_name_is_found_in_the_local_cache, setup),
    };
    return cmocka_run_group_tests_name("runtime/config", tests, NULL, NULL);
}
