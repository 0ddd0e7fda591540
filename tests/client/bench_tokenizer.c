/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/bench_tokenizer.c - MB/s of encoding and decoding, by kind of text.
 *
 *     bench_tokenizer [--json] [TOKENIZER]     default: Llama 3's if it is here, else the demo's
 *
 * Texts are made, not read: English-like words of common letters and lengths, program-like text,
 * other scripts, a mix, and what the merging likes least (no piece is in the vocabulary; one long
 * run). CPU time of one thread, best of several runs: another load on the machine shows less. */
#include "tests/harness.h"

#include "base/bits.h"
#include "base/err.h"
#include "base/rng.h"
#include "client/text/utf8.h"
#include "ll/text.h"

#include <time.h>

#define TEXT_BYTES (1u << 20)
#define N_RUNS     7

static uint64_t cpu_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static const char *const english[] = {
    "the ",
    "of ",
    "and ",
    "to ",
    "in ",
    "a ",
    "is ",
    "that ",
    "for ",
    "it ",
    "was ",
    "on ",
    "are ",
    "as ",
    "with ",
    "his ",
    "they ",
    "at ",
    "be ",
    "this ",
    "from ",
    "have ",
    "or ",
    "by ",
    "one ",
    "had ",
    "not ",
    "but ",
    "what ",
    "all ",
    "were ",
    "when ",
    "we ",
    "there ",
    "can ",
    "an ",
    "your ",
    "which ",
    "their ",
    "said ",
    "if ",
    "do ",
    "into ",
    "has ",
    "more ",
    "her ",
    "two ",
    "like ",
    "him ",
    "see ",
    "time ",
    "could ",
    "no ",
    "make ",
    "than ",
    "first ",
    "been ",
    "its ",
    "who ",
    "now ",
    "people ",
    "my ",
    "made ",
    "over ",
    "did ",
    "down ",
    "only ",
    "way ",
    "find ",
    "use ",
    "water ",
    "little ",
    "long ",
    "very ",
    "after ",
    "words ",
    "called ",
    "just ",
    "where ",
    "most ",
    "know ",
    "government ",
    "international ",
    "understanding ",
    "it's ",
    "don't ",
    "however, ",
    "example, ",
    "again. ",
    "before. The ",
    "1984 ",
    "thermodynamics ",
    "Zwicky ",
    "(see below) ",
    "\"Quite so,\" ",
    "end.\n\n",
};
static const char *const code[] = {
    "    ",       "        ",
    "if (",       "for (int i = 0; ",
    "return ",    "static ",
    "const ",     "void ",
    "n_bytes",    "struct ",
    "->",         ") {\n",
    "}\n",        ";\n",
    " = ",        " + 1",
    "NULL",       "0x7f",
    "buffer[i]",  "// ",
    "\n\n",       "uint32_t ",
    "&&",         "!= ",
    "sizeof(*p)", "\t\t",
    "\"%s\\n\"",  "self.",
    "def ",       "import numpy as np\n",
};

static size_t words(const char *const *list, size_t n_list, char *text, uint64_t *seed)
{
    size_t n = 0;

    for (;;) {
        const char *word = list[ll_splitmix64(seed) % n_list];
        if (n + strlen(word) > TEXT_BYTES)
            return n;
        memcpy(text + n, word, strlen(word));
        n += strlen(word);
    }
}

/* Words of the scripts of the world, with spaces, digits, accents and emoji. */
static size_t scripts(char *text, uint64_t *seed)
{
    static const uint32_t range[][2] = {
        {0x430, 0x44f}, {0x3041, 0x3093}, {0x4e00, 0x5fff}, {0xac00, 0xb000},
        {0x627, 0x64a}, {0x905, 0x939},   {0xe0, 0xff},     {0x1f600, 0x1f64f},
    };
    size_t n = 0;

    while (n + 64 < TEXT_BYTES) {
        const uint32_t *r = range[ll_splitmix64(seed) % LL_COUNT(range)];
        for (uint64_t k = 1 + ll_splitmix64(seed) % 8; k > 0; k--)
            n += (size_t)ll_utf8_encode(r[0] + (uint32_t)(ll_splitmix64(seed) % (r[1] - r[0])),
                                        text + n);
        text[n++] = ll_splitmix64(seed) % 8 == 0 ? '\n' : ' ';
    }
    return n;
}

static size_t mixed(char *text, uint64_t *seed)
{
    static char other[TEXT_BYTES];
    size_t n = words(english, LL_COUNT(english), text, seed) / 2;
    size_t n_other = words(code, LL_COUNT(code), other, seed) / 4;

    memcpy(text + n, other, n_other);
    n += n_other;
    n_other = scripts(other, seed) / 4;
    memcpy(text + n, other, n_other); /* may end inside a character: so do texts */
    return n + n_other;
}

/* Letters in random order: 40 at a time, which no vocabulary has. */
static size_t letters(char *text, uint64_t *seed)
{
    for (size_t i = 0; i < TEXT_BYTES; i++)
        text[i] = i % 40 == 39 ? ' ' : (char)('a' + ll_splitmix64(seed) % 26);
    return TEXT_BYTES;
}

static size_t one_run(char *text, uint64_t *seed)
{
    (void)seed;
    memset(text, 'a', TEXT_BYTES);
    return TEXT_BYTES;
}

static size_t english_text(char *text, uint64_t *seed)
{
    return words(english, LL_COUNT(english), text, seed);
}

static size_t code_text(char *text, uint64_t *seed)
{
    return words(code, LL_COUNT(code), text, seed);
}

static const struct {
    const char *name;
    size_t (*make)(char *text, uint64_t *seed);
} texts[] = {
    {"english", english_text}, {"code", code_text},         {"scripts", scripts},
    {"mixed", mixed},          {"random letters", letters}, {"one run of a", one_run},
};

static uint64_t decode_ns(struct ll_decoder *decoder, const uint32_t *ids, int64_t n)
{
    uint64_t start = cpu_ns(), n_bytes = 0;
    const char *text;

    for (int64_t i = 0; i < n; i++)
        n_bytes += (uint64_t)ll_decoder_feed(decoder, ids[i], &text);
    n_bytes += (uint64_t)ll_decoder_finish(decoder, &text);
    uint64_t end = cpu_ns();
    return n_bytes > 0 ? end - start : 0;
}

int main(int argc, char **argv)
{
    static char text[TEXT_BYTES + 64];
    bool as_json = false;
    const char *path = ll_test_shared("llama3/tokenizer.model");
    struct ll_tokenizer *tokenizer;
    struct ll_decoder *decoder;

    if (path == NULL)
        path = ll_test_source("tools/demo-model");
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0)
            as_json = true;
        else
            path = argv[i];
    }
    uint64_t start = cpu_ns();
    if (ll_tokenizer_from_path(&tokenizer, path) < 0 ||
        ll_decoder_new(&decoder, tokenizer, LL_DECODE_SPECIAL) < 0) {
        fprintf(stderr, "%s\n", ll_err_text());
        return 1;
    }
    double build_ms = (double)(cpu_ns() - start) / 1e6;
    uint32_t *ids = malloc((TEXT_BYTES + 1) * sizeof(*ids));

    if (as_json)
        printf("{\"n_vocab\": %u, \"build_ms\": %.1f, \"texts\": [",
               ll_tokenizer_n_vocab(tokenizer), build_ms);
    else
        printf("%u ids, built in %.0f ms\n%-16s %10s %12s %12s %12s\n",
               ll_tokenizer_n_vocab(tokenizer), build_ms, "text, 1 MiB", "bytes/id", "encode MB/s",
               "ns an id", "decode MB/s");
    for (size_t t = 0; t < LL_COUNT(texts); t++) {
        uint64_t seed = 1, encode = UINT64_MAX, decode = UINT64_MAX;
        size_t n = texts[t].make(text, &seed);
        int64_t n_ids = 0;
        for (int run = 0; run < N_RUNS; run++) {
            start = cpu_ns();
            n_ids = ll_encode(tokenizer, text, n, 0, ids, TEXT_BYTES + 1);
            encode = ll_min_u64(encode, cpu_ns() - start);
            decode = ll_min_u64(decode, decode_ns(decoder, ids, n_ids));
        }
        double per_id = (double)encode / (double)n_ids, ratio = (double)n / (double)n_ids;
        double encode_mb = (double)n * 1e3 / (double)encode;
        double decode_mb = (double)n * 1e3 / (double)decode;
        if (as_json)
            printf("%s{\"text\": \"%s\", \"bytes\": %zu, \"ids\": %lld, \"encode_mb_s\": %.2f, "
                   "\"encode_ns_id\": %.1f, \"decode_mb_s\": %.2f}",
                   t > 0 ? ", " : "", texts[t].name, n, (long long)n_ids, encode_mb, per_id,
                   decode_mb);
        else
            printf("%-16s %10.2f %12.1f %12.1f %12.1f\n", texts[t].name, ratio, encode_mb, per_id,
                   decode_mb);
    }
    if (as_json)
        printf("]}\n");
    free(ids);
    ll_decoder_free(decoder);
    ll_tokenizer_free(tokenizer);
    return 0;
}
