/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/http/salt.h"

#include <string.h>

static uint64_t rotate(uint64_t x, int by)
{
    return x << by | x >> (64 - by);
}

static void mix(uint64_t v[4], int rounds)
{
    for (int i = 0; i < rounds; i++) {
        v[0] += v[1];
        v[1] = rotate(v[1], 13) ^ v[0];
        v[0] = rotate(v[0], 32);
        v[2] += v[3];
        v[3] = rotate(v[3], 16) ^ v[2];
        v[0] += v[3];
        v[3] = rotate(v[3], 21) ^ v[0];
        v[2] += v[1];
        v[1] = rotate(v[1], 17) ^ v[2];
        v[2] = rotate(v[2], 32);
    }
}

uint64_t siphash(const uint64_t key[2], const void *bytes, size_t n)
{
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575ull, key[1] ^ 0x646f72616e646f6dull,
                     key[0] ^ 0x6c7967656e657261ull, key[1] ^ 0x7465646279746573ull};
    const unsigned char *at = bytes;

    for (size_t left = n;; left -= 8, at += 8) { /* little-endian machines, as the wire is */
        uint64_t word = 0;
        size_t n_word = left < 8 ? left : 8;
        if (n_word > 0) /* bytes may be NULL then */
            memcpy(&word, at, n_word);
        if (left < 8)
            word |= (uint64_t)n << 56;
        v[3] ^= word;
        mix(v, 2);
        v[0] ^= word;
        if (left < 8)
            break;
    }
    v[2] ^= 0xff;
    mix(v, 4);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

void make_salt(const uint64_t secret[2], uint32_t tenant, const char *text, size_t n,
               uint64_t out[2])
{
    out[0] = out[1] = 0;
    if (tenant == 0 && n == 0)
        return;
    for (uint64_t i = 0; i < 2; i++) {
        /* A key a half and tenant, so that tenant and text cannot be moved into each other. */
        const uint64_t head[2] = {i, tenant};
        const uint64_t key[2] = {siphash(secret, head, sizeof(head)), secret[1] ^ i};
        out[i] = siphash(key, text, n);
    }
}
