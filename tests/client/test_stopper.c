/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_stopper.c - stop strings: found in the same place however the text is cut, and
 * nothing held back that need not be. */
#include "tests/harness.h"

#include "base/err.h"
#include "base/rng.h"
#include "ll/text.h"

struct shown {
    char bytes[8192];
    size_t n;
    int hit;
};

static struct ll_stopper *new_stopper(const char *const *strings, uint32_t n)
{
    size_t n_bytes[LL_STOP_STRINGS_MAX] = {0};
    struct ll_stopper *stopper;

    for (uint32_t i = 0; i < n; i++)
        n_bytes[i] = strlen(strings[i]);
    assert_int_equal(ll_stopper_new(&stopper, strings, n_bytes, n), 0);
    return stopper;
}

static int feed(struct ll_stopper *stopper, struct shown *shown, const char *text, size_t n)
{
    const char *out;
    char *copy = malloc(n > 0 ? n : 1); /* gone right after: the answer may not point into it */

    memcpy(copy, text, n);
    int rc = ll_stopper_feed(stopper, copy, n, &out, &shown->hit);
    free(copy);
    assert_true(rc >= 0 && shown->n + (size_t)rc <= sizeof(shown->bytes));
    memcpy(shown->bytes + shown->n, out, (size_t)rc);
    shown->n += (size_t)rc;
    return rc;
}

static void finish(struct ll_stopper *stopper, struct shown *shown)
{
    const char *out;
    int rc = ll_stopper_finish(stopper, &out);

    assert_true(rc >= 0);
    memcpy(shown->bytes + shown->n, out, (size_t)rc);
    shown->n += (size_t)rc;
}

static void assert_shown(const struct shown *shown, const char *text, int hit)
{
    if (shown->n != strlen(text) || memcmp(shown->bytes, text, shown->n) != 0 || shown->hit != hit)
        fail_msg("shown \"%.*s\", hit %d; expected \"%s\", hit %d", (int)shown->n, shown->bytes,
                 shown->hit, text, hit);
}

static void only_what_may_become_a_stop_is_held(void **state)
{
    (void)state;
    const char *strings[] = {"\n\nUser:", "END", "NDX"};
    struct ll_stopper *stopper = new_stopper(strings, 3);
    struct shown shown = {.n = 0};

    assert_int_equal(feed(stopper, &shown, "hello\n", 6), 5);
    assert_int_equal(feed(stopper, &shown, "\n", 1), 0);
    assert_int_equal(feed(stopper, &shown, "\n", 1), 1); /* the first is none any more */
    assert_int_equal(feed(stopper, &shown, "", 0), 0);
    assert_int_equal(feed(stopper, &shown, "Us", 2), 0);
    assert_int_equal(feed(stopper, &shown, "E", 1), 4); /* "\n\nUs" is free, "E" may be END */
    assert_int_equal(feed(stopper, &shown, "N", 1), 0);
    assert_int_equal(feed(stopper, &shown, "X", 1), 3);
    assert_int_equal(feed(stopper, &shown, "EN", 2), 0);
    assert_shown(&shown, "hello\n\n\nUsENX", -1);
    assert_int_equal(feed(stopper, &shown, "D and more", 10), 0);
    assert_shown(&shown, "hello\n\n\nUsENX", 1);
    assert_int_equal(feed(stopper, &shown, "never", 5), 0); /* stopped stays stopped */
    finish(stopper, &shown);
    assert_shown(&shown, "hello\n\n\nUsENX", 1);

    ll_stopper_reset(stopper);
    shown.n = 0;
    assert_int_equal(feed(stopper, &shown, "xEN", 3), 1);
    finish(stopper, &shown);
    assert_shown(&shown, "xEN", -1);
    ll_stopper_free(stopper);
    ll_stopper_free(NULL);
}

static void no_strings_hold_nothing(void **state)
{
    (void)state;
    struct ll_stopper *stopper = new_stopper(NULL, 0);
    struct shown shown = {.n = 0};

    assert_int_equal(feed(stopper, &shown, "anything", 8), 8);
    finish(stopper, &shown);
    assert_shown(&shown, "anything", -1);
    ll_stopper_free(stopper);
}

static void of_stops_that_end_together_the_longest_counts(void **state)
{
    (void)state;
    const char *strings[] = {"b", "ab", "xab", "abc"};
    struct ll_stopper *stopper = new_stopper(strings, 4);
    struct shown shown = {.n = 0};

    feed(stopper, &shown, "-x", 2);
    feed(stopper, &shown, "a", 1);
    feed(stopper, &shown, "bc", 2);
    assert_shown(&shown, "-", 2);
    ll_stopper_free(stopper);
}

static void limits_are_kept_at_the_edge(void **state)
{
    (void)state;
    static char big[LL_STOP_BYTES_MAX + 1];
    const char *strings[LL_STOP_STRINGS_MAX + 1];
    size_t n_bytes[LL_STOP_STRINGS_MAX + 1];
    struct ll_stopper *stopper;

    memset(big, 'a', sizeof(big));
    for (uint32_t i = 0; i <= LL_STOP_STRINGS_MAX; i++) {
        strings[i] = big;
        n_bytes[i] = LL_STOP_BYTES_MAX;
    }
    assert_int_equal(ll_stopper_new(&stopper, strings, n_bytes, LL_STOP_STRINGS_MAX + 1),
                     LL_E_INVAL);
    assert_int_equal(ll_stopper_new(&stopper, strings, n_bytes, LL_STOP_STRINGS_MAX), 0);
    struct shown shown = {.n = 0};
    for (int i = 0; i < LL_STOP_BYTES_MAX - 1; i++)
        assert_int_equal(feed(stopper, &shown, "a", 1), 0);
    assert_int_equal(feed(stopper, &shown, "b", 1), LL_STOP_BYTES_MAX);
    assert_int_equal(feed(stopper, &shown, big, LL_STOP_BYTES_MAX), 0);
    assert_int_equal(shown.hit, 0);
    ll_stopper_free(stopper);

    n_bytes[3] = 0;
    assert_int_equal(ll_stopper_new(&stopper, strings, n_bytes, 4), LL_E_INVAL);
    assert_non_null(strstr(ll_err_text(), "stop string 3"));
    n_bytes[3] = LL_STOP_BYTES_MAX + 1;
    assert_int_equal(ll_stopper_new(&stopper, strings, n_bytes, 4), LL_E_INVAL);
    const char *broken[] = {"\xe6\x97"};
    n_bytes[0] = 2;
    assert_int_equal(ll_stopper_new(&stopper, broken, n_bytes, 1), LL_E_INVAL);
    assert_non_null(strstr(ll_err_text(), "UTF-8"));
}

/* From the definition: how much of text may be shown, and which string ends first. */
static size_t plain_scan(const char *const *strings, uint32_t n, const char *text, size_t n_text,
                         int *hit)
{
    *hit = -1;
    for (size_t end = 1; end <= n_text; end++) {
        size_t longest = 0;
        for (uint32_t i = 0; i < n; i++) {
            size_t length = strlen(strings[i]);
            if (length <= end && length > longest &&
                memcmp(text + end - length, strings[i], length) == 0) {
                longest = length;
                *hit = (int)i;
            }
        }
        if (longest > 0)
            return end - longest;
    }
    for (size_t start = 0; start < n_text; start++)
        for (uint32_t i = 0; i < n; i++)
            if (n_text - start < strlen(strings[i]) &&
                memcmp(text + start, strings[i], n_text - start) == 0)
                return start;
    return n_text;
}

static void every_cut_shows_the_same_and_as_early_as_can_be(void **state)
{
    (void)state;
    uint64_t seed = ll_test_seed();
    int n_hits = 0;

    for (int round = 0; round < 20000; round++) {
        char pool[6][24], text[64];
        const char *strings[6];
        uint32_t n = (uint32_t)(ll_splitmix64(&seed) % 7);
        size_t n_text = ll_splitmix64(&seed) % sizeof(text);
        uint32_t letters = 2 + (uint32_t)(ll_splitmix64(&seed) % 2);

        for (uint32_t i = 0; i < n; i++) {
            size_t length = 1 + ll_splitmix64(&seed) % (round % 2 == 0 ? 20 : 6);
            for (size_t k = 0; k < length; k++)
                pool[i][k] = (char)('a' + ll_splitmix64(&seed) % letters);
            pool[i][length] = '\0';
            strings[i] = pool[i];
        }
        for (size_t k = 0; k < n_text; k++)
            text[k] = (char)('a' + ll_splitmix64(&seed) % letters);

        struct ll_stopper *stopper = new_stopper(strings, n);
        struct shown shown = {.n = 0, .hit = -1};
        for (size_t at = 0; at < n_text;) {
            size_t step = 1 + ll_splitmix64(&seed) % 9;
            step = step < n_text - at ? step : n_text - at;
            feed(stopper, &shown, text + at, step);
            at += step;
            int hit;
            size_t expected = plain_scan(strings, n, text, at, &hit);
            assert_int_equal(shown.n, expected);
            assert_memory_equal(shown.bytes, text, shown.n);
            /* Two equal strings end together: either index will do. */
            assert_true(shown.hit == hit ||
                        (hit >= 0 && strcmp(strings[shown.hit], strings[hit]) == 0));
        }
        finish(stopper, &shown);
        if (shown.hit < 0)
            assert_int_equal(shown.n, n_text);
        n_hits += shown.hit >= 0;
        ll_stopper_free(stopper);
    }
    assert_true(n_hits > 5000 && n_hits < 19000);
}

/* Text of whole characters comes out in whole characters. */
static void characters_are_never_cut(void **state)
{
    (void)state;
    const char *strings[] = {"\xc3\xa9\xc3\xa9", "\xf0\x9f\x98\x80!"};
    struct ll_stopper *stopper = new_stopper(strings, 2);
    struct shown shown = {.n = 0};

    assert_int_equal(feed(stopper, &shown, "a\xc3\xa8", 3), 3); /* shares its first byte */
    assert_int_equal(feed(stopper, &shown, "\xc3\xa9", 2), 0);
    assert_int_equal(feed(stopper, &shown, "\xc3\xa8", 2), 4);
    assert_int_equal(feed(stopper, &shown, "\xf0\x9f\x98\x81", 4), 4);
    assert_int_equal(feed(stopper, &shown, "\xf0\x9f\x98\x80", 4), 0);
    assert_int_equal(feed(stopper, &shown, "!", 1), 0);
    assert_int_equal(shown.hit, 1);
    ll_stopper_free(stopper);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_what_may_become_a_stop_is_held),
        cmocka_unit_test(no_strings_hold_nothing),
        cmocka_unit_test(of_stops_that_end_together_the_longest_counts),
        cmocka_unit_test(limits_are_kept_at_the_edge),
        cmocka_unit_test(every_cut_shows_the_same_and_as_early_as_can_be),
        cmocka_unit_test(characters_are_never_cut),
    };
    return cmocka_run_group_tests_name("stopper", tests, NULL, NULL);
}
