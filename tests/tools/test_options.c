/* SPDX-License-Identifier: Apache-2.0 */
/* tests/tools/test_options.c - the option table: O1..O3 of tools/common/options.h. */
#include "tests/harness.h"
#include "tools/common/options.h"

#include <unistd.h>

struct values {
    bool verbose, has_count;
    const char *name;
    uint32_t count;
    uint64_t seed;
    float share;
    struct option_texts stop;
};

#define AT(field) .offset = offsetof(struct values, field)
static const struct option table[] = {
    {.name = "verbose", .letter = 'v', .kind = OPTION_FLAG, AT(verbose), .help = "h"},
    {.name = "name", .letter = 'n', .kind = OPTION_TEXT, AT(name), .argument = "X", .help = "h"},
    {.name = "max-count",
     .kind = OPTION_U32,
     AT(count),
     .argument = "N",
     .min = 1,
     .max = 9,
     .given = offsetof(struct values, has_count),
     .help = "h"},
    {.name = "seed", .kind = OPTION_U64, AT(seed), .argument = "N", .help = "h"},
    {.name = "share",
     .kind = OPTION_F32,
     AT(share),
     .argument = "F",
     .min = 0,
     .max = 1,
     .help = "h"},
    {.name = "stop", .kind = OPTION_TEXTS, AT(stop), .argument = "X", .help = "h"},
    {.name = NULL},
};
static const struct command command = {.name = "test",
                                       .operands = "FILE",
                                       .summary = "s",
                                       .groups = {{"Options", table, 0}},
                                       .n_operands_max = 2};
static const struct command passing = {.name = "pass",
                                       .operands = "FILE",
                                       .summary = "s",
                                       .groups = {{"Options", table, 0}},
                                       .n_operands_max = -1,
                                       .passes_unknown = true};

static char *argv[16];
static int n_operands;
static char said[1024]; /* what the last parse printed to standard error */

static int parse_with(const struct command *with, struct values *values, const char *const *list)
{
    int argc = 1, saved = dup(STDERR_FILENO);
    FILE *capture = tmpfile();

    argv[0] = (char *)(uintptr_t) "test";
    for (; *list != NULL; list++)
        argv[argc++] = (char *)(uintptr_t)*list;
    fflush(stderr);
    dup2(fileno(capture), STDERR_FILENO);
    *values = (struct values){0};
    int rc = options_parse(with, argc, argv, values, &n_operands);
    fflush(stderr);
    dup2(saved, STDERR_FILENO);
    close(saved);
    rewind(capture);
    said[fread(said, 1, sizeof(said) - 1, capture)] = '\0';
    fclose(capture);
    return rc;
}

#define PARSE(values, ...) parse_with(&command, values, (const char *[]){__VA_ARGS__, NULL})

static void long_and_short_forms_mean_the_same(void **state)
{
    struct values v;

    (void)state;
    assert_int_equal(PARSE(&v, "--name", "a", "-v"), OPTIONS_GO_ON);
    assert_string_equal(v.name, "a");
    assert_true(v.verbose);
    assert_int_equal(PARSE(&v, "--name=b", "--verbose"), OPTIONS_GO_ON);
    assert_string_equal(v.name, "b");
    assert_int_equal(PARSE(&v, "-nc"), OPTIONS_GO_ON);
    assert_string_equal(v.name, "c");
    assert_int_equal(PARSE(&v, "-vn", "d"), OPTIONS_GO_ON);
    assert_string_equal(v.name, "d");
    assert_int_equal(PARSE(&v, "--max_count=3", "--ver"), OPTIONS_GO_ON);
    assert_int_equal(v.count, 3);
    assert_true(v.verbose && v.has_count);
    assert_int_equal(PARSE(&v, "--name="), OPTIONS_GO_ON);
    assert_string_equal(v.name, "");
}

static void operands_are_collected_in_order_and_counted(void **state)
{
    struct values v;

    (void)state;
    assert_int_equal(PARSE(&v, "one", "-v", "two"), OPTIONS_GO_ON);
    assert_int_equal(n_operands, 2);
    assert_string_equal(argv[1], "one");
    assert_string_equal(argv[2], "two");
    assert_int_equal(PARSE(&v, "--", "--name", "-v"), OPTIONS_GO_ON);
    assert_int_equal(n_operands, 2);
    assert_string_equal(argv[1], "--name");
    assert_false(v.verbose);
    assert_int_equal(PARSE(&v, "-"), OPTIONS_GO_ON);
    assert_int_equal(n_operands, 1);
    assert_int_equal(PARSE(&v, "1", "2", "3"), 2);
    assert_non_null(strstr(said, "unexpected argument \"3\""));
}

static void an_unknown_option_names_the_nearest(void **state)
{
    struct values v;

    (void)state;
    assert_int_equal(PARSE(&v, "--vebrose"), 2);
    assert_non_null(strstr(said, "unknown option --vebrose; did you mean --verbose?"));
    assert_int_equal(PARSE(&v, "--max-cuont", "3"), 2);
    assert_non_null(strstr(said, "did you mean --max-count?"));
    assert_int_equal(PARSE(&v, "--entirely-else"), 2);
    assert_null(strstr(said, "did you mean"));
    assert_int_equal(PARSE(&v, "-x"), 2);
    assert_non_null(strstr(said, "unknown option -x"));
    assert_non_null(strstr(said, "llring test --help"));
}

static void a_beginning_that_fits_two_options_is_refused(void **state)
{
    struct values v;

    (void)state;
    assert_int_equal(PARSE(&v, "--s", "1"), 2);
    assert_non_null(strstr(said, "several options"));
    assert_int_equal(PARSE(&v, "--se", "1"), OPTIONS_GO_ON);
    assert_int_equal(v.seed, 1);
}

static void numbers_outside_their_range_are_refused(void **state)
{
    static const char *const bad[] = {"0", "10", "-1", "1x", "", "4294967297", "1.5", "x"};
    struct values v;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(PARSE(&v, "--max-count", bad[i]), 2);
        assert_non_null(strstr(said, "--max-count takes a number from 1 to 9"));
    }
    assert_int_equal(PARSE(&v, "--seed=18446744073709551615"), OPTIONS_GO_ON);
    assert_true(v.seed == UINT64_MAX);
    assert_int_equal(PARSE(&v, "--seed=18446744073709551616"), 2);
    assert_int_equal(PARSE(&v, "--seed=-1"), 2);
    assert_int_equal(PARSE(&v, "--share=nan"), 2);
    assert_int_equal(PARSE(&v, "--share=inf"), 2);
    assert_int_equal(PARSE(&v, "--share=1.01"), 2);
    assert_int_equal(PARSE(&v, "--share=0.5"), OPTIONS_GO_ON);
    assert_true(v.share == 0.5f);
}

static void missing_and_superfluous_values_are_refused(void **state)
{
    struct values v;

    (void)state;
    assert_int_equal(PARSE(&v, "--name"), 2);
    assert_non_null(strstr(said, "--name needs a value"));
    assert_int_equal(PARSE(&v, "-n"), 2);
    assert_int_equal(PARSE(&v, "--verbose=yes"), 2);
    assert_non_null(strstr(said, "takes no value"));
}

static void a_repeated_text_is_kept_up_to_its_limit(void **state)
{
    char *many[64];
    struct values v;
    int n = 1;

    (void)state;
    assert_int_equal(PARSE(&v, "--stop", "a", "--stop=b"), OPTIONS_GO_ON);
    assert_int_equal(v.stop.n, 2);
    assert_string_equal(v.stop.text[1], "b");
    v = (struct values){0};
    many[0] = (char *)(uintptr_t) "test";
    for (int i = 0; i <= OPTION_TEXTS_MAX; i++)
        many[n++] = (char *)(uintptr_t) "--stop=x";
    assert_int_equal(options_parse(&command, n, many, &v, &n_operands), 2);
    assert_int_equal(v.stop.n, OPTION_TEXTS_MAX);
}

static void what_is_not_ours_is_passed_on_untouched(void **state)
{
    static const char *const list[] = {"model", "--socket", "x", "--verb", "-q", "--a-b=1", NULL};
    struct values v;

    (void)state;
    assert_int_equal(parse_with(&passing, &v, list), OPTIONS_GO_ON);
    assert_int_equal(n_operands, 6);
    for (int i = 0; i < 6; i++)
        assert_string_equal(argv[1 + i], list[i]);
    assert_false(v.verbose); /* --verb is not --verbose here */
}

static void nearest_is_found_by_edits_and_beginnings(void **state)
{
    static const char *const names[] = {"serve", "chat", "complete"};

    (void)state;
    assert_string_equal(options_nearest("sreve", names, 3), "serve");
    assert_string_equal(options_nearest("comp", names, 3), "complete");
    assert_string_equal(options_nearest("cht", names, 3), "chat");
    assert_null(options_nearest("zzzzzz", names, 3));
    assert_null(options_nearest("", names, 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(long_and_short_forms_mean_the_same),
        cmocka_unit_test(operands_are_collected_in_order_and_counted),
        cmocka_unit_test(an_unknown_option_names_the_nearest),
        cmocka_unit_test(a_beginning_that_fits_two_options_is_refused),
        cmocka_unit_test(numbers_outside_their_range_are_refused),
        cmocka_unit_test(missing_and_superfluous_values_are_refused),
        cmocka_unit_test(a_repeated_text_is_kept_up_to_its_limit),
        cmocka_unit_test(what_is_not_ours_is_passed_on_untouched),
        cmocka_unit_test(nearest_is_found_by_edits_and_beginnings),
    };
    return cmocka_run_group_tests_name("tools/options", tests, NULL, NULL);
}
