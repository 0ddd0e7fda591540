/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_tokenizer.c - text to ids: published vectors, every vocabulary entry, random
 * text there and back, merging against its plain definition, time on one-class texts, special
 * tokens, the demo model's prompts. */
#include "tests/client/tokenizers.h"

#include "client/text/json.h"
#include "client/text/split.h"
#include "client/text/tokenizer.h"
#include "tests/client/random_text.h"

#include <time.h>

static void assert_ids(const struct ll_tokenizer *tokenizer, const char *text, uint32_t flags,
                       const uint32_t *expected, int64_t n_expected)
{
    uint32_t ids[64];
    int64_t n = ll_encode(tokenizer, text, strlen(text), flags, ids, 64);

    if (n == n_expected && memcmp(ids, expected, (size_t)n * 4) == 0)
        return;
    for (int64_t k = 0; k < n; k++)
        printf(" %u", ids[k]);
    fail_msg("%s: other ids", text);
}

static void the_published_vectors_come_out(void **state)
{
    (void)state;
    NEED_LLAMA();
    static const struct {
        const char *text;
        uint32_t flags;
        uint32_t ids[16];
        int n;
    } cases[] = {
        {"This is a test sentence.", LL_ENCODE_BOS, {128000, 2028, 374, 264, 1296, 11914, 13}, 7},
        {"Hello world!", 0, {9906, 1917, 0}, 3},
        {"  two  spaces", 0, {220, 1403, 220, 12908}, 4},
        {"\n\n\n", 0, {1432}, 1},
        {"123456789", 0, {4513, 10961, 16474}, 3},
        {"it's IT'S", 0, {275, 596, 8871, 13575}, 4},
        {"na\xc3\xafve caf\xc3\xa9", 0, {3458, 38672, 588, 53050}, 4},
        {"\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e\xe3\x83\x86\xe3\x82\xb9\xe3\x83\x88",
         0,
         {102433, 102158, 57933, 71634},
         4},
        {"\xf0\x9f\x98\x80\xf0\x9f\x91\x8d\xf0\x9f\x8f\xbd",
         0,
         {76460, 222, 9468, 239, 235, 9468, 237, 121},
         8},
        {"\t\tif x:\n", 0, {197, 748, 865, 512}, 4},
        {"system", 0, {9125}, 1},
        {"user", 0, {882}, 1},
        {"assistant", 0, {78191}, 1},
        {"\n\n", 0, {271}, 1},
        {"ipython", 0, {23799, 4690}, 2},
        {"<|eot_id|>", 0, {27, 91, 68, 354, 851, 91, 29}, 7},
        {"<|eot_id|>", LL_ENCODE_SPECIAL, {128009}, 1},
        {"a<|eot_id|><|eot_id", LL_ENCODE_SPECIAL, {64, 128009, 27, 91, 68, 354, 851}, 7},
        {"", LL_ENCODE_BOS, {128000}, 1},
        {"", 0, {0}, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_ids(llama, cases[i].text, cases[i].flags, cases[i].ids, cases[i].n);
}

/* ---- vocabulary ---------------------------------------------------------------------------*/
static void encode_every_entry(const struct ll_tokenizer *tokenizer, uint32_t n_whole_expected)
{
    struct ll_merge_scratch scratch = {0};
    uint32_t n_pieces = 0, n_whole = 0;

    for (uint32_t id = 0; id < ll_tokenizer_n_vocab(tokenizer); id++) {
        uint32_t ids[LL_IMAGE_TOKEN_MAX];
        size_t n_bytes;
        const char *bytes = ll_tokenizer_bytes(tokenizer, id, &n_bytes);
        assert_non_null(bytes);
        if (ll_tokenizer_is_special(tokenizer, id)) {
            assert_int_equal(ll_tokenizer_special(tokenizer, bytes, n_bytes), id);
            assert_int_equal(ll_encode(tokenizer, bytes, n_bytes, LL_ENCODE_SPECIAL, ids, 1), 1);
            assert_int_equal(ids[0], id);
            continue;
        }
        int64_t n = ll_merge_piece(tokenizer, bytes, n_bytes, &scratch, ids, LL_IMAGE_TOKEN_MAX);
        n_whole += n != 1 || ids[0] != id;
        if (ll_split_piece(bytes, n_bytes) != n_bytes)
            continue;
        n_pieces++;
        if (ll_encode(tokenizer, bytes, n_bytes, 0, ids, 2) != 1 || ids[0] != id)
            fail_msg("id %u does not encode to itself", id);
    }
    free(scratch.block);
    printf("%u entries are one piece, %u need the whole-piece look-up\n", n_pieces, n_whole);
    assert_int_equal(n_whole, n_whole_expected);
    assert_true(n_pieces > ll_tokenizer_n_vocab(tokenizer) / 2);
}

static void every_entry_encodes_to_itself(void **state)
{
    (void)state;
    assert_int_equal(ll_tokenizer_n_vocab(demo), 4352);
    assert_int_equal(ll_tokenizer_bos(demo), 4096);
    encode_every_entry(demo, 0);
    NEED_LLAMA();
    assert_int_equal(ll_tokenizer_n_vocab(llama), 128256);
    assert_int_equal(ll_tokenizer_bos(llama), 128000);
    encode_every_entry(llama, 588); /* counted with another encoder */
}

static void unknown_ids_and_texts_are_answered(void **state)
{
    (void)state;
    size_t n_bytes = 7;

    assert_null(ll_tokenizer_bytes(demo, 4352, &n_bytes));
    assert_int_equal(n_bytes, 0);
    assert_null(ll_tokenizer_bytes(demo, UINT32_MAX, &n_bytes));
    assert_false(ll_tokenizer_is_special(demo, 4352));
    assert_false(ll_tokenizer_is_special(demo, 4095));
    assert_true(ll_tokenizer_is_special(demo, 4096));
    assert_int_equal(ll_tokenizer_special(demo, "<|eot_id|>", 10), 4105);
    assert_int_equal(ll_tokenizer_special(demo, "<|eot_id|>", 9), UINT32_MAX);
    assert_int_equal(ll_tokenizer_special(demo, "<|eot_id|>x", 11), UINT32_MAX);
    assert_int_equal(ll_tokenizer_special(demo, "", 0), UINT32_MAX);
    assert_int_equal(ll_tokenizer_special(demo, "hello", 5), UINT32_MAX);
    ll_tokenizer_free(NULL);
}

/* ---- there and back -----------------------------------------------------------------------*/
static void assert_round_trip(const struct ll_tokenizer *tokenizer, const char *text, size_t n_text,
                              uint32_t flags)
{
    uint32_t *ids = malloc((n_text + 1) * sizeof(*ids));
    int64_t n = ll_encode(tokenizer, text, n_text, flags, ids, n_text + 1);
    size_t at = 0;

    assert_true(n >= 0 && (uint64_t)n <= n_text);
    for (int64_t i = 0; i < n; i++) {
        size_t n_bytes;
        const char *bytes = ll_tokenizer_bytes(tokenizer, ids[i], &n_bytes);
        if (n_bytes > n_text - at || memcmp(bytes, text + at, n_bytes) != 0)
            fail_msg("other bytes at %zu", at);
        at += n_bytes;
    }
    assert_int_equal(at, n_text);
    free(ids);
}

static void random_texts_come_back(void **state)
{
    (void)state;
    uint64_t seed = ll_test_seed();

    for (int round = 0; round < 4000; round++) {
        char text[2048];
        size_t n = random_text(&seed, text, 65 + below(&seed, sizeof(text) - 65), round % 4 == 0);
        assert_round_trip(demo, text, n, round % 2 == 0 ? LL_ENCODE_SPECIAL : 0);
        if (llama != NULL)
            assert_round_trip(llama, text, n, round % 2 == 0 ? LL_ENCODE_SPECIAL : 0);
    }
}

static void broken_utf8_becomes_its_single_bytes(void **state)
{
    (void)state;
    const char *text = "a\xff\xe6\x97 \xc3";
    uint32_t ids[8];

    assert_int_equal(ll_encode(demo, text, 6, 0, ids, 8), 6);
    for (int i = 0; i < 6; i++) {
        size_t n_bytes;
        const char *bytes = ll_tokenizer_bytes(demo, ids[i], &n_bytes);
        assert_int_equal(n_bytes, 1);
        assert_int_equal(bytes[0], text[i]);
    }
}

static void a_short_array_gets_the_beginning_and_the_count(void **state)
{
    (void)state;
    const char *text =
        "The quick brown fox said: it's 12345 o'clock!!\n\n  Then 'twas gone"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    uint32_t all[256], some[257];
    int64_t n = ll_encode(demo, text, strlen(text), LL_ENCODE_BOS, all, 256);

    assert_true(n > 40 && n < 256);
    for (int64_t n_max = 0; n_max <= n; n_max++) {
        some[n_max] = 0xabcdef;
        assert_int_equal(ll_encode(demo, text, strlen(text), LL_ENCODE_BOS, some, (size_t)n_max),
                         n);
        assert_memory_equal(some, all, (size_t)n_max * 4);
        assert_int_equal(some[n_max], 0xabcdef);
    }
    assert_int_equal(ll_encode(demo, text, strlen(text), LL_ENCODE_BOS, NULL, 0), n);
}

/* ---- merging ------------------------------------------------------------------------------*/
/* The definition, without any of the image's tables: a list of merges in order of rank, and every
 * step looks at all neighbours. */
struct plain_merge {
    uint32_t left, right, rank, made;
};

struct plain {
    struct plain_merge *merges; /* sorted by left, right */
    size_t n;
    uint32_t byte_id[256];
};

static int compare_merges(const void *left, const void *right)
{
    const struct plain_merge *a = left, *b = right;

    if (a->left != b->left)
        return a->left < b->left ? -1 : 1;
    return (a->right > b->right) - (a->right < b->right);
}

struct entry {
    const char *bytes;
    size_t n;
    uint32_t id;
};

static int compare_entries(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    int order = memcmp(a->bytes, b->bytes, a->n < b->n ? a->n : b->n);

    return order != 0 ? order : (a->n > b->n) - (a->n < b->n);
}

/* All plain tokens by their bytes; *n how many. */
static struct entry *sorted_entries(const struct ll_tokenizer *tokenizer, uint32_t *n)
{
    struct entry *entries = malloc(ll_tokenizer_n_vocab(tokenizer) * sizeof(*entries));

    *n = 0;
    for (uint32_t id = 0; id < ll_tokenizer_n_vocab(tokenizer); id++) {
        struct entry entry = {.id = id};
        entry.bytes = ll_tokenizer_bytes(tokenizer, id, &entry.n);
        if (!ll_tokenizer_is_special(tokenizer, id))
            entries[(*n)++] = entry;
    }
    qsort(entries, *n, sizeof(*entries), compare_entries);
    return entries;
}

static uint32_t find_entry(const struct entry *entries, uint32_t n, const char *bytes,
                           size_t n_bytes)
{
    struct entry key = {bytes, n_bytes, 0};
    const struct entry *found = bsearch(&key, entries, n, sizeof(key), compare_entries);

    return found != NULL ? found->id : UINT32_MAX;
}

static void start_plain(struct plain *plain, const struct entry *entries, uint32_t n)
{
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        plain->byte_id[byte] = find_entry(entries, n, &c, 1);
        assert_int_not_equal(plain->byte_id[byte], UINT32_MAX);
    }
}

/* Llama 3's: every split of every token, ranked by its id. */
static struct plain plain_from_ids(const struct ll_tokenizer *tokenizer)
{
    uint32_t n;
    struct entry *entries = sorted_entries(tokenizer, &n);
    struct plain plain = {.merges = malloc(300000 * sizeof(struct plain_merge))};

    start_plain(&plain, entries, n);
    for (uint32_t i = 0; i < n; i++)
        for (size_t cut = 1; cut < entries[i].n; cut++) {
            uint32_t left = find_entry(entries, n, entries[i].bytes, cut);
            uint32_t right = find_entry(entries, n, entries[i].bytes + cut, entries[i].n - cut);
            if (left != UINT32_MAX && right != UINT32_MAX)
                plain.merges[plain.n++] =
                    (struct plain_merge){left, right, entries[i].id, entries[i].id};
        }
    free(entries);
    qsort(plain.merges, plain.n, sizeof(*plain.merges), compare_merges);
    return plain;
}

/* Byte-level text back to bytes, written anew: the 68 shifted bytes are those that are not
 * printable Latin-1. */
static size_t plain_bytes(const char *text, size_t n, char *out)
{
    size_t n_out = 0;

    for (size_t at = 0; at < n;) {
        uint32_t code = 0;
        at += (size_t)ll_utf8_decode(text + at, n - at, &code);
        int byte = (int)code;
        if (code >= 0x100) {
            uint32_t nth = code - 0x100;
            for (byte = 0; byte < 256; byte++) {
                bool is_shifted = byte < 33 || (byte > 126 && byte < 161) || byte == 173;
                if (is_shifted && nth-- == 0)
                    break;
            }
        }
        out[n_out++] = (char)byte;
    }
    return n_out;
}

/* The demo model's, from the merges list of its file. */
static struct plain plain_from_file(const struct ll_tokenizer *tokenizer, const char *path)
{
    uint32_t n;
    struct entry *entries = sorted_entries(tokenizer, &n);
    struct plain plain = {.merges = malloc(5000 * sizeof(struct plain_merge))};
    size_t n_text;
    char *text = read_file(path, &n_text);
    struct ll_json json;

    start_plain(&plain, entries, n);
    ll_json_init(&json, text, n_text, 0);
    while (ll_json_next(&json) != LL_JSON_KEY || !ll_json_is(&json, "merges"))
        assert_null(json.error);
    assert_int_equal(ll_json_next(&json), LL_JSON_ARRAY);
    while (ll_json_next(&json) == LL_JSON_ARRAY) {
        char level[256], bytes[256];
        uint32_t half[2];
        size_t done = 0;
        for (int i = 0; i < 2; i++) {
            assert_int_equal(ll_json_next(&json), LL_JSON_STRING);
            size_t n_half =
                plain_bytes(level, ll_json_string(&json, level, sizeof(level)), bytes + done);
            half[i] = find_entry(entries, n, bytes + done, n_half);
            done += n_half;
        }
        assert_int_equal(ll_json_next(&json), LL_JSON_ARRAY_END);
        plain.merges[plain.n] = (struct plain_merge){half[0], half[1], (uint32_t)plain.n,
                                                     find_entry(entries, n, bytes, done)};
        plain.n++;
    }
    free(text);
    free(entries);
    qsort(plain.merges, plain.n, sizeof(*plain.merges), compare_merges);
    return plain;
}

static size_t plain_merge(const struct plain *plain, const char *piece, size_t n, uint32_t *ids)
{
    for (size_t i = 0; i < n; i++)
        ids[i] = plain->byte_id[(uint8_t)piece[i]];
    for (;;) {
        const struct plain_merge *best = NULL;
        size_t place = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            struct plain_merge key = {.left = ids[i], .right = ids[i + 1]};
            const struct plain_merge *found =
                bsearch(&key, plain->merges, plain->n, sizeof(key), compare_merges);
            if (found != NULL && (best == NULL || found->rank < best->rank)) {
                best = found;
                place = i;
            }
        }
        if (best == NULL)
            return n;
        ids[place] = best->made;
        memmove(ids + place + 1, ids + place + 2, (n - place - 2) * sizeof(*ids));
        n--;
    }
}

/* Something that merges: tokens one after the other, runs of few bytes, periodic runs. */
static size_t random_piece(uint64_t *seed, const struct ll_tokenizer *tokenizer, char *piece,
                           size_t capacity)
{
    size_t wanted = 1 + below(seed, (uint32_t)capacity), n = 0;
    uint32_t kind = below(seed, 4), period = 1 + below(seed, 5);

    while (n < wanted) {
        size_t n_bytes;
        const char *bytes =
            ll_tokenizer_bytes(tokenizer, below(seed, ll_tokenizer_n_vocab(tokenizer)), &n_bytes);
        if (kind == 0)
            piece[n++] = (char)('a' + below(seed, 3));
        else if (kind == 1 && n >= period)
            piece[n] = piece[n - period], n++;
        else
            for (size_t i = 0; i < n_bytes && n < wanted; i++)
                piece[n++] = bytes[i];
    }
    return n;
}

static void compare_with_plain(const struct ll_tokenizer *tokenizer, const struct plain *plain,
                               uint64_t seed, int n_rounds)
{
    struct ll_merge_scratch scratch = {0};

    for (int round = 0; round < n_rounds; round++) {
        char piece[320];
        uint32_t expected[320], ids[320];
        size_t n = random_piece(&seed, tokenizer, piece, round % 4 == 0 ? 320 : 80);
        size_t n_expected = plain_merge(plain, piece, n, expected);
        int64_t n_ids = ll_merge_piece(tokenizer, piece, n, &scratch, ids, 320);
        if (n_ids != (int64_t)n_expected || memcmp(ids, expected, n_expected * 4) != 0)
            fail_msg("a piece of %zu bytes merges to other ids", n);
    }
    free(scratch.block);
}

static void merging_is_what_its_definition_says(void **state)
{
    (void)state;
    uint64_t seed = ll_test_seed();
    struct plain plain = plain_from_file(demo, ll_test_source("tools/demo-model/tokenizer.json"));

    assert_int_equal(plain.n, 3840);
    compare_with_plain(demo, &plain, seed, 3000);
    free(plain.merges);
    NEED_LLAMA();
    plain = plain_from_ids(llama);
    assert_int_equal(plain.n, 280147); /* as many as Hugging Face's file has */
    compare_with_plain(llama, &plain, seed, 3000);
    free(plain.merges);
}

/* ---- time ---------------------------------------------------------------------------------*/
static void heap_steps_are_n_log_n(void **state)
{
    (void)state;
    static const char *const units[] = {"a", "ab", " ", "\xf0\x9f\x98\x80"};
    const struct ll_tokenizer *tokenizer = llama != NULL ? llama : demo;
    const size_t n = 1 << 20; /* log2 n = 20 */
    char *text = malloc(n);

    for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
        struct ll_merge_scratch scratch = {0};
        size_t period = strlen(units[u]);
        for (size_t i = 0; i < n; i++)
            text[i] = units[u][i % period];
        assert_true(ll_merge_piece(tokenizer, text, n, &scratch, NULL, 0) > 0);
        /* A byte enters the heap at most three times, each time through at most 11 levels. */
        assert_true(scratch.n_steps < 3 * 11 * n);
        assert_true(scratch.n_steps >= n);
        free(scratch.block);
    }
    free(text);
}

static double encode_seconds(const struct ll_tokenizer *tokenizer, const char *text, size_t n)
{
    struct timespec start, end;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    assert_true(ll_encode(tokenizer, text, n, LL_ENCODE_SPECIAL, NULL, 0) > 0);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    return (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) * 1e-9;
}

/* Eight times the text may take at most 40 times the time: a quadratic step anywhere takes 64. */
static void one_class_texts_take_near_linear_time(void **state)
{
    (void)state;
    static const char *const units[] = {
        "a",
        " ",
        "\n",
        " \n",
        "0",
        "!",
        "'s",
        "  a",
        "\xe6\x97\xa5",
        "\x80",
        "\xf0\x9f",
        "<|",
        "<|reserved_special_token_",
    };
    const struct ll_tokenizer *tokenizer = llama != NULL ? llama : demo;
    const size_t n = 1 << 20;
    char *text = malloc(n);

    for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
        size_t period = strlen(units[u]);
        for (size_t i = 0; i < n; i++)
            text[i] = units[u][i % period];
        double small = 1e9, large = encode_seconds(tokenizer, text, n);
        for (int i = 0; i < 2; i++) {
            double seconds = encode_seconds(tokenizer, text, n / 8);
            small = seconds < small ? seconds : small;
        }
        if (large > 40 * small && large > 0.05)
            fail_msg("\"%s\" repeated: 1 MiB takes %.3f s, 128 KiB %.5f s", units[u], large, small);
        assert_round_trip(tokenizer, text, n / 8 + 1, 0);
    }
    free(text);
}

/* ---- special tokens and the demo model ------------------------------------------------------*/
static void specials_are_seen_only_when_asked_for(void **state)
{
    (void)state;
    uint32_t ids[64];

    assert_ids(demo, "<|eot_id|><|start_header_id|>", LL_ENCODE_SPECIAL, (uint32_t[]){4105, 4102},
               2);
    assert_ids(demo, "", LL_ENCODE_BOS, (uint32_t[]){4096}, 1);
    assert_ids(demo, "<|eot_id|>", LL_ENCODE_SPECIAL | LL_ENCODE_BOS, (uint32_t[]){4096, 4105}, 2);
    int64_t n = ll_encode(demo, "<|eot_id|>", 10, 0, ids, 64);
    assert_true(n > 1);
    for (int64_t i = 0; i < n; i++)
        assert_false(ll_tokenizer_is_special(demo, ids[i]));
    /* Almost one, one inside another's beginning, one with its end missing. */
    n = ll_encode(demo, "<|eot_id|", 9, LL_ENCODE_SPECIAL, ids, 64);
    for (int64_t i = 0; i < n; i++)
        assert_false(ll_tokenizer_is_special(demo, ids[i]));
    n = ll_encode(demo, "<|eot_<|eot_id|>", 16, LL_ENCODE_SPECIAL, ids, 64);
    assert_int_equal(ids[n - 1], 4105);
    n = ll_encode(demo, "<|reserved_special_token_12|>", 29, LL_ENCODE_SPECIAL, ids, 64);
    assert_int_equal(n, 1);
    assert_int_equal(ll_tokenizer_special(demo, "<|reserved_special_token_12|>", 29), ids[0]);
}

/* The special token cuts the text: what stands before it is tokenized without seeing it. */
static void text_beside_a_special_is_cut_there(void **state)
{
    (void)state;
    uint32_t ids[16], before[16];
    int64_t n_before = ll_encode(demo, "hello  ", 7, 0, before, 16);
    int64_t n = ll_encode(demo, "hello  <|eot_id|>  x", 20, LL_ENCODE_SPECIAL, ids, 16);

    assert_true(n > n_before);
    assert_memory_equal(ids, before, (size_t)n_before * 4);
    assert_int_equal(ids[n_before], 4105);
}

/* golden.json: the rendered prompts of 40 conversations and their ids, made with the model. */
static void the_demo_models_prompts_have_their_ids(void **state)
{
    (void)state;
    size_t n_text;
    char *text = read_file(ll_test_source("tests/data/golden.json"), &n_text), *prompt = NULL;
    size_t n_prompt = 0;
    int n_cases = 0, n_same = 0;
    struct ll_json json;
    enum ll_json_token token;

    ll_json_init(&json, text, n_text, 0);
    while ((token = ll_json_next(&json)) > LL_JSON_END) {
        if (token != LL_JSON_KEY || json.depth != 2)
            continue;
        if (ll_json_is(&json, "prompt")) {
            assert_int_equal(ll_json_next(&json), LL_JSON_STRING);
            free(prompt);
            prompt = malloc(json.n_span);
            n_prompt = ll_json_string(&json, prompt, json.n_span);
        } else if (ll_json_is(&json, "prompt_ids")) {
            uint32_t *ids = malloc((n_prompt + 1) * sizeof(*ids));
            int64_t n = ll_encode(demo, prompt, n_prompt, LL_ENCODE_SPECIAL, ids, n_prompt + 1);
            int64_t id, i = 0, n_equal = 0;
            assert_int_equal(ll_json_next(&json), LL_JSON_ARRAY);
            for (; ll_json_next(&json) == LL_JSON_NUMBER; i++)
                if (ll_json_int(&json, &id) && i < n && ids[i] == id)
                    n_equal++;
            n_cases++;
            n_same += n_equal == n && i == n;
            free(ids);
        }
    }
    assert_int_equal(token, LL_JSON_END);
    free(prompt);
    free(text);
    assert_int_equal(n_cases, 40);
    assert_int_equal(n_same, 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_published_vectors_come_out),
        cmocka_unit_test(every_entry_encodes_to_itself),
        cmocka_unit_test(unknown_ids_and_texts_are_answered),
        cmocka_unit_test(random_texts_come_back),
        cmocka_unit_test(broken_utf8_becomes_its_single_bytes),
        cmocka_unit_test(a_short_array_gets_the_beginning_and_the_count),
        cmocka_unit_test(merging_is_what_its_definition_says),
        cmocka_unit_test(heap_steps_are_n_log_n),
        cmocka_unit_test(one_class_texts_take_near_linear_time),
        cmocka_unit_test(specials_are_seen_only_when_asked_for),
        cmocka_unit_test(text_beside_a_special_is_cut_there),
        cmocka_unit_test(the_demo_models_prompts_have_their_ids),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, open_tokenizers, close_tokenizers);
}
