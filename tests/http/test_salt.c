/* SPDX-License-Identifier: Apache-2.0 */
/* tests/http/test_salt.c - SipHash against its authors' vectors; salts that must and must not
 * differ. */
#include "tests/harness.h"

#include "tools/http/salt.h"

static void siphash_gives_the_authors_numbers(void **state)
{
    /* Key 00 01 .. 0f, message 00 01 .. n-1: from the SipHash paper and its reference code. */
    const uint64_t key[2] = {0x0706050403020100ull, 0x0f0e0d0c0b0a0908ull};
    unsigned char text[15];
    (void)state;
    for (unsigned char i = 0; i < sizeof(text); i++)
        text[i] = i;
    assert_true(siphash(key, text, 0) == 0x726fdb47dd0e0e31ull);
    assert_true(siphash(key, text, 15) == 0xa129ca6149be45e5ull);
}

static void salts_differ_by_tenant_and_text_and_secret(void **state)
{
    const uint64_t secret[2] = {1, 2}, other[2] = {1, 3};
    uint64_t salt[6][2];
    (void)state;
    make_salt(secret, 0, NULL, 0, salt[0]);
    assert_true(salt[0][0] == 0 && salt[0][1] == 0);
    make_salt(secret, 1, NULL, 0, salt[1]);
    make_salt(secret, 2, NULL, 0, salt[2]);
    make_salt(secret, 1, "a", 1, salt[3]);
    make_salt(secret, 0, "a", 1, salt[4]);
    make_salt(other, 1, "a", 1, salt[5]);
    for (int i = 0; i < 6; i++)
        for (int k = 0; k < i; k++) {
            assert_true(salt[i][0] != salt[k][0]);
            assert_true(salt[i][1] != salt[k][1]);
        }
    make_salt(secret, 1, "a", 1, salt[0]);
    assert_memory_equal(salt[0], salt[3], sizeof(salt[0]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(siphash_gives_the_authors_numbers),
        cmocka_unit_test(salts_differ_by_tenant_and_text_and_secret),
    };
    return cmocka_run_group_tests_name("http/salt", tests, NULL, NULL);
}
