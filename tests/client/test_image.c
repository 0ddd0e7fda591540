/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_image.c - tokenizer files as hostile input, and damaged images: every fault is
 * named, none crashes. Run under ASan this is the fuzz of both borders. */
#include "tests/client/tokenizers.h"

#include "client/text/split.h"
#include "client/text/tokenizer.h"
#include "client/text/utf8.h"
#include "tests/client/random_text.h"

#include <sys/stat.h>
#include <unistd.h>

static char directory[] = "/tmp/llring-image-XXXXXX";
static char file[64];

static int make_directory(void **state)
{
    if (mkdtemp(directory) == NULL)
        return -1;
    snprintf(file, sizeof(file), "%s/tokenizer.json", directory);
    return open_tokenizers(state);
}

static int remove_directory(void **state)
{
    unlink(file);
    rmdir(directory);
    return close_tokenizers(state);
}

static void write_file(const char *path, const char *text, size_t n)
{
    unlink(path); /* some file systems flush a file that is truncated and rewritten */
    FILE *out = fopen(path, "wb");

    assert_non_null(out);
    assert_int_equal(fwrite(text, 1, n, out), n);
    assert_int_equal(fclose(out), 0);
}

/* ---- a small valid file ---------------------------------------------------------------------*/
/* 256 single bytes in the order of their ids, then three merged tokens and one that no merge
 * makes; two added tokens. */
static char *small_json(void)
{
    char *json = malloc(16384), *p = json;

    p += sprintf(p,
                 "{\"version\":\"1.0\",\"truncation\":null,\n"
                 "\"added_tokens\":[{\"id\":300,\"content\":\"<|bos|>\",\"single_word\":false,"
                 "\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true},"
                 "{\"id\":301,\"content\":\"<|bos|>+\",\"special\":false}],\n"
                 "\"normalizer\":null,\n"
                 "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
                 "\"pattern\":{\"Regex\":\"");
    for (const char *c = LL_SPLIT_REGEX; *c != '\0'; c++)
        p += sprintf(p, *c == '\\' ? "\\\\" : "%c", *c);
    p += sprintf(
        p, "\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\","
           "\"add_prefix_space\":false,\"use_regex\":false}]},\n"
           "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
           "{\"id\":\"<|bos|>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\"}}]},\n"
           "\"decoder\":{\"type\":\"ByteLevel\"},\n"
           "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
           "\"byte_fallback\":false,\"ignore_merges\":true,\n\"vocab\":{");
    for (uint32_t byte = 0, shifted = 0x100; byte < 256; byte++) {
        bool is_shifted = byte < 33 || (byte > 126 && byte < 161) || byte == 173;
        char text[4];
        int n = ll_utf8_encode(is_shifted ? shifted++ : byte, text);
        p += sprintf(p, "\"%s%.*s\":%u,", byte == '"' || byte == '\\' ? "\\" : "", n, text, byte);
    }
    sprintf(p, "\"ab\":256,\"abc\":257,\"cd\":258,\"xyz\":259},\n"
               "\"merges\":[\"a b\",[\"ab\",\"c\"],\"c d\"]}}");
    return json;
}

/* The text with its first `find` replaced; fails when it is not there. */
static char *replaced(const char *text, const char *find, const char *replace)
{
    const char *at = strstr(text, find);

    if (at == NULL)
        fail_msg("\"%s\" is not in the small file", find);
    char *out = malloc(strlen(text) + strlen(replace) + 1);
    sprintf(out, "%.*s%s%s", (int)(at - text), text, replace, at + strlen(find));
    return out;
}

static struct ll_tokenizer *build(const char *json)
{
    struct ll_tokenizer *tokenizer;

    write_file(file, json, strlen(json));
    if (ll_tokenizer_from_path(&tokenizer, file) < 0)
        fail_msg("%s", ll_err_text());
    return tokenizer;
}

static void assert_ids(const struct ll_tokenizer *tokenizer, const char *text, uint32_t flags,
                       const uint32_t *expected, int64_t n_expected)
{
    uint32_t ids[64];
    int64_t n = ll_encode(tokenizer, text, strlen(text), flags, ids, 64);

    if (n != n_expected || memcmp(ids, expected, (size_t)n * 4) != 0)
        fail_msg("%s: other ids", text);
}

static void a_small_file_works(void **state)
{
    (void)state;
    char *json = small_json();
    struct ll_tokenizer *small = build(json);
    size_t n_bytes;

    assert_int_equal(ll_tokenizer_n_vocab(small), 302);
    assert_int_equal(ll_tokenizer_bos(small), 300);
    assert_null(ll_tokenizer_bytes(small, 299, &n_bytes));   /* a hole */
    assert_ids(small, "abcd", 0, (uint32_t[]){257, 'd'}, 2); /* rank, not length: ab, then abc */
    assert_ids(small, "bcd", 0, (uint32_t[]){'b', 258}, 2);
    assert_ids(small, "xyz", 0, (uint32_t[]){259}, 1); /* only as a whole piece */
    assert_ids(small, "xyzx", 0, (uint32_t[]){'x', 'y', 'z', 'x'}, 4);
    assert_ids(small, "\"\\ \xc2\xad\n", 0, (uint32_t[]){'"', '\\', ' ', 0xc2, 0xad, '\n'}, 6);
    assert_ids(small, "a", LL_ENCODE_BOS, (uint32_t[]){300, 'a'}, 2);
    assert_ids(small, "<|bos|>+<|bos|>", LL_ENCODE_SPECIAL, (uint32_t[]){301, 300}, 2);
    assert_true(ll_tokenizer_is_special(small, 300));
    assert_false(ll_tokenizer_is_special(small, 301)); /* recognised, but shown */
    ll_tokenizer_free(small);
    free(json);
}

static void whole_pieces_count_only_with_ignore_merges(void **state)
{
    (void)state;
    char *json = small_json();
    char *without = replaced(json, "\"ignore_merges\":true", "\"ignore_merges\":false");
    struct ll_tokenizer *small = build(without);

    assert_ids(small, "xyz", 0, (uint32_t[]){'x', 'y', 'z'}, 3);
    assert_ids(small, "abc", 0, (uint32_t[]){257}, 1);
    ll_tokenizer_free(small);
    free(without);
    free(json);
}

static void merges_as_strings_and_as_pairs_give_one_image(void **state)
{
    (void)state;
    char *json = small_json();
    char *pairs = replaced(json, "[\"a b\",[\"ab\",\"c\"],\"c d\"]",
                           "[[\"\\u0061\",\"b\"],\"ab c\",[\"c\",\"d\"]]");
    void *first, *second;
    size_t n_first, n_second;

    write_file(file, json, strlen(json));
    assert_int_equal(ll_tokenizer_image_build(file, &first, &n_first), 0);
    write_file(file, pairs, strlen(pairs));
    assert_int_equal(ll_tokenizer_image_build(directory, &second, &n_second), 0);
    assert_int_equal(n_first, n_second);
    assert_memory_equal(first, second, n_first);
    free(first);
    free(second);
    free(pairs);
    free(json);
}

static void each_fault_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *find, *replace;
        int code;
        const char *words;
    } cases[] = {
        {"\"truncation\":null", "\"truncation\":nul", LL_E_INVAL, "byte 30: expected a value"},
        {"{\"version\"", "{\"model\":1,\"version\"", LL_E_INVAL, "\"model\" stands twice"},
        {"}}", "}", LL_E_INVAL, "tokenizer.json: byte"},
        {"\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}", LL_E_UNSUPPORTED,
         "normalizer: byte 230: must be null as in Llama 3, found {\"type\":\"NFC\"}"},
        {"\"decoder\":{\"type\":\"ByteLevel\"}", "\"decoder\":{\"type\":\"Metaspace\"}",
         LL_E_UNSUPPORTED, "decoder: "},
        {"\"decoder\":{\"type\":\"ByteLevel\"},", "", LL_E_UNSUPPORTED, "found absent"},
        {"\"type\":\"BPE\"", "\"type\":\"Unigram\"", LL_E_UNSUPPORTED, "model.type"},
        {"\"dropout\":null", "\"dropout\":0.1", LL_E_UNSUPPORTED, "model.dropout"},
        {"\"unk_token\":null", "\"unk_token\":\"<unk>\"", LL_E_UNSUPPORTED, "model.unk_token"},
        {"\"byte_fallback\":false", "\"byte_fallback\":true", LL_E_UNSUPPORTED, "byte_fallback"},
        {"\"model\":{", "\"model\":[],\"x\":{", LL_E_INVAL, "model: byte"},
        {"'re|", "'re|'x|", LL_E_UNSUPPORTED, "pre_tokenizer.pattern.Regex"},
        {"Isolated", "Removed", LL_E_UNSUPPORTED, "behavior Isolated"},
        {"\"invert\":false", "\"invert\":true", LL_E_UNSUPPORTED, "invert false"},
        {"\"use_regex\":false", "\"use_regex\":true", LL_E_UNSUPPORTED, "use_regex false"},
        {"\"type\":\"Split\"", "\"type\":\"Digits\"", LL_E_UNSUPPORTED, "exactly Split"},
        {"{\"type\":\"Split\"", "{\"type\":\"Digits\"},{\"type\":\"Split\"", LL_E_UNSUPPORTED,
         "exactly Split"},
        {"\"pre_tokenizer\":{", "\"pre_tokenizer\":null,\"x\":{", LL_E_UNSUPPORTED, "found absent"},
        {"\"vocab\":{", "\"vocab\":[],\"x\":{", LL_E_INVAL, "model.vocab"},
        {"\"vocab\":{", "\"x\":{", LL_E_INVAL, "model.vocab"},
        {"\"ab\":256", "\"ab\":257", LL_E_INVAL, "id 257: another token has the same id"},
        {"\"ab\":256", "\"ab\":-1", LL_E_INVAL, "expected an id from 0 to 1048575"},
        {"\"ab\":256", "\"ab\":1048576", LL_E_INVAL, "expected an id"},
        {"\"ab\":256", "\"ab\":2.5", LL_E_INVAL, "expected an id"},
        {"\"ab\":256", "\"ab\":\"256\"", LL_E_INVAL, "expected an id"},
        {"\"ab\":256", "\"a b\":256", LL_E_INVAL, "outside the byte-level alphabet"},
        {"\"ab\":256", "\"a\\u0144\":256", LL_E_INVAL, "outside the byte-level alphabet"},
        {"\"ab\":256", "\"\\u00ad\":256", LL_E_INVAL, "outside the byte-level alphabet"},
        {"\"ab\":256", "\"\":256", LL_E_INVAL, "id 256: a token without bytes"},
        {"\"A\":65,", "", LL_E_UNSUPPORTED, "no token for the single byte 0x41"},
        {"\"merges\":[", "\"merges\":null,\"x\":[", LL_E_INVAL, "model.merges"},
        {"\"a b\"", "\"ab\"", LL_E_INVAL, "a merge is a pair"},
        {"\"a b\"", "\"a b c\"", LL_E_INVAL, "outside the byte-level alphabet"},
        {"\"a b\"", "\" b\"", LL_E_INVAL, "a merge is a pair"},
        {"\"a b\"", "\"a \"", LL_E_INVAL, "a merge is a pair"},
        {"\"a b\"", "7", LL_E_INVAL, "a merge is a pair"},
        {"\"a b\"", "[\"a\"]", LL_E_INVAL, "a merge is a pair"},
        {"\"a b\"", "[\"a\",\"b\",\"c\"]", LL_E_INVAL, "a merge is a pair"},
        {"\"a b\"", "[\"a\",1]", LL_E_INVAL, "a merge is a pair"},
        {"\"a b\"", "\"abx y\"", LL_E_INVAL, "half of this merge is not in model.vocab"},
        {"\"a b\"", "\"a x\"", LL_E_INVAL, "what this merge makes is not in model.vocab"},
        {"\"a b\",", "\"a b\",[\"a\",\"b\"],", LL_E_INVAL, "model.merges[1] repeats"},
        {"\"id\":300", "\"id\":256", LL_E_INVAL, "belongs to another text in model.vocab"},
        {"\"id\":301", "\"id\":300", LL_E_INVAL, "another added token has the same id"},
        {"\"id\":300", "\"id\":4294967296", LL_E_INVAL, "added_tokens.id"},
        {"\"id\":300", "\"ix\":300", LL_E_INVAL, "added_tokens: byte"},
        {"\"content\":\"<|bos|>+\"", "\"content\":\"<|bos|>\"", LL_E_INVAL,
         "ids 300 and 301 have the same text"},
        {"\"content\":\"<|bos|>+\"", "\"content\":\"\"", LL_E_INVAL, "without bytes"},
        {"\"content\":\"<|bos|>+\"", "\"content\":3", LL_E_INVAL, "string content"},
        {"\"lstrip\":false", "\"lstrip\":true", LL_E_UNSUPPORTED, "lstrip must be false"},
        {"\"added_tokens\":[", "\"added_tokens\":{},\"x\":[", LL_E_INVAL, "added_tokens"},
        {"{\"id\":\"<|bos|>\"", "{\"id\":\"<|none|>\"", LL_E_INVAL, "not among added_tokens"},
        {"{\"Sequence\":{\"id\":\"A\"}}",
         "{\"Sequence\":{\"id\":\"A\"}},{\"SpecialToken\":{\"id\":\"<|bos|>\"}}", LL_E_UNSUPPORTED,
         "begin-of-text"},
        {"TemplateProcessing", "RobertaProcessing", LL_E_UNSUPPORTED, "RobertaProcessing"},
        {"\"single\":[", "\"single\":3,\"x\":[", LL_E_INVAL, "post_processor.single"},
    };
    char *json = small_json();

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *broken = replaced(json, cases[i].find, cases[i].replace);
        void *image;
        size_t n_bytes;
        write_file(file, broken, strlen(broken));
        int rc = ll_tokenizer_image_build(file, &image, &n_bytes);
        if (rc != cases[i].code || strstr(ll_err_text(), cases[i].words) == NULL ||
            strncmp(ll_err_text(), file, strlen(file)) != 0)
            fail_msg("%s -> %s: %d, \"%s\"; expected %d, \"%s\"", cases[i].find, cases[i].replace,
                     rc, rc < 0 ? ll_err_text() : "built", cases[i].code, cases[i].words);
        free(broken);
    }
    free(json);
}

static void a_long_token_is_refused(void **state)
{
    (void)state;
    char *json = small_json(), text[5000] = "\"";

    memset(text + 1, 'q', 4097);
    strcpy(text + 4098, "\":256");
    char *broken = replaced(json, "\"ab\":256", text);
    struct ll_tokenizer *tokenizer;
    write_file(file, broken, strlen(broken));
    assert_int_equal(ll_tokenizer_from_path(&tokenizer, file), LL_E_INVAL);
    assert_non_null(strstr(ll_err_text(), "longer than 4096"));
    free(broken);
    free(json);
}

static void what_is_no_tokenizer_file_is_said(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t n;
        int code;
        const char *words;
    } cases[] = {
        {"", 0, LL_E_INVAL, "empty file"},
        {"IQ== 0\nIg== 1\n", 14, LL_E_UNSUPPORTED, "2 ranks up to 1; Llama 3 has 128000"},
        {"IQ== 0\nIg== 0\n", 14, LL_E_INVAL, "line 2: another token has the same id"},
        {"IQ= 0\n", 6, LL_E_INVAL, "line 1: not of the form"},
        {"IR== 0\n", 7, LL_E_INVAL, "line 1: not of the form"}, /* bits behind the end */
        {"IQ==\n", 5, LL_E_INVAL, "line 1: not of the form"},
        {"IQ== \n", 6, LL_E_INVAL, "line 1: not of the form"},
        {"IQ== 1x\n", 8, LL_E_INVAL, "line 1: not of the form"},
        {"IQ== 0\n\n", 8, LL_E_INVAL, "line 2: not of the form"},
        {"IQ== 99999999999\n", 17, LL_E_INVAL, "line 1: not of the form"},
        {"IQ== 1048576\n", 13, LL_E_INVAL, "line 1: the id is 1048576 or more"},
        {"\n\x0e\n\x05<unk>", 10, LL_E_UNSUPPORTED, "SentencePiece"},
        {"[1]", 3, LL_E_INVAL, "line 1: not of the form"},
        {"  {", 3, LL_E_INVAL, "ends too early"},
    };
    struct ll_tokenizer *tokenizer;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        write_file(file, cases[i].text, cases[i].n);
        int rc = ll_tokenizer_from_path(&tokenizer, file);
        if (rc != cases[i].code || strstr(ll_err_text(), cases[i].words) == NULL)
            fail_msg("case %zu: %d, \"%s\"", i, rc, ll_err_text());
    }
    unlink(file);
    assert_int_equal(ll_tokenizer_from_path(&tokenizer, file), -ENOENT);
    assert_int_equal(ll_tokenizer_from_path(&tokenizer, directory), -ENOENT);
    assert_non_null(strstr(ll_err_text(), "holds neither tokenizer.json nor tokenizer.model"));
    assert_int_equal(mkfifo(file, 0600), 0);
    assert_int_equal(ll_tokenizer_from_path(&tokenizer, directory), LL_E_INVAL);
    assert_non_null(strstr(ll_err_text(), "not a regular file"));
    unlink(file);
}

/* ---- damage -------------------------------------------------------------------------------*/
/* Everything a client does with a tokenizer; results do not matter, memory does. */
static void use(const struct ll_tokenizer *tokenizer, uint64_t *seed)
{
    char text[400];
    uint32_t ids[512];
    struct ll_decoder *decoder;
    const char *out;
    size_t n = random_text(seed, text, sizeof(text), true), n_bytes;

    memset(text, 'a' + (int)below(seed, 3), below(seed, 120)); /* long enough for the heap */
    int64_t n_ids = ll_encode(tokenizer, text, n, LL_ENCODE_SPECIAL | LL_ENCODE_BOS, ids, 512);
    assert_true(n_ids >= 0 && (size_t)n_ids <= n + 1);
    ll_encode(tokenizer, "<|eot_id|><|bos|>+<|b", 21, LL_ENCODE_SPECIAL, ids + 400, 100);
    if (ll_decoder_new(&decoder, tokenizer, LL_DECODE_SPECIAL) < 0)
        return;
    for (int64_t i = 0; i < n_ids && i < 400; i++)
        ll_decoder_feed(decoder, ids[i], &out);
    for (int i = 0; i < 50; i++) {
        uint32_t id = below(seed, ll_tokenizer_n_vocab(tokenizer));
        ll_decoder_feed(decoder, id, &out);
        const char *bytes = ll_tokenizer_bytes(tokenizer, id, &n_bytes);
        if (bytes != NULL)
            ll_tokenizer_special(tokenizer, bytes, n_bytes);
    }
    ll_decoder_finish(decoder, &out);
    ll_decoder_free(decoder);
}

static void damage(uint64_t *seed, char *bytes, size_t n)
{
    size_t where = below(seed, 2) == 0 && n > 128 ? 128 : n; /* half of it in the header */

    for (uint32_t k = 1 + below(seed, 4); k > 0; k--) {
        size_t at = ll_splitmix64(seed) % where;
        static const uint32_t values[] = {0, 1, 0x7fffffff, 0xffffffff, 0x80000000, 256};
        if (below(seed, 2) == 0 || at + 4 > n)
            bytes[at] = (char)ll_splitmix64(seed);
        else
            memcpy(bytes + (at & ~(size_t)3), &values[below(seed, 6)], 4);
    }
}

/* One wrong number in each table and in each field of the header that is a limit. */
static void each_broken_table_is_refused(void **state)
{
    (void)state;
    char *json = small_json();
    void *image;
    size_t n_bytes;

    write_file(file, json, strlen(json));
    assert_int_equal(ll_tokenizer_image_build(file, &image, &n_bytes), 0);
    for (int fault = 0;; fault++) {
        char *copy = malloc(n_bytes);
        memcpy(copy, image, n_bytes);
        struct ll_image *header = (struct ll_image *)(void *)copy;
        uint32_t *token = (uint32_t *)(void *)(copy + header->token_at);
        uint32_t *merged = (uint32_t *)(void *)(copy + header->merged_at);
        uint64_t *merge = (uint64_t *)(void *)(copy + header->merge_at);
        struct ll_image_piece *piece = (void *)(copy + header->piece_at);
        struct ll_image_special *special = (void *)(copy + header->special_at);
        bool is_last = false;

        switch (fault) {
        case 0:
            piece[3].id = header->n_vocab;
            break;
        case 1:
            for (uint32_t i = 0; i < header->n_piece_slots; i++)
                piece[i].id = 0;
            break;
        case 2:
            merge[0] = header->n_ranks + 1;
            break;
        case 3:
            merge[0] = 1ull << 24; /* no rank */
            break;
        case 4:
            for (uint32_t i = 0; i < header->n_merge_slots; i++)
                merge[i] = 1;
            break;
        case 5:
            merged[2] = header->n_vocab;
            break;
        case 6:
            token[7] = token[8] + 1;
            break;
        case 7:
            token[header->n_vocab] = header->text_bytes + 1;
            break;
        case 8:
            token[0] = 1;
            break;
        case 9:
            header->token_bytes_max = header->piece_bytes_max = 3; /* <|bos|> is longer */
            break;
        case 10:
            special[1].id = header->n_vocab;
            break;
        case 11:
            special[1].id = special[0].id;
            break;
        case 12:
            special[0].is_special = 2;
            break;
        case 13:
            special[0].id = 299; /* has no text */
            break;
        case 14:
            header->bos = header->n_vocab;
            break;
        case 15:
            header->byte_id[255] = header->n_vocab;
            break;
        case 16:
            header->n_piece_slots--;
            break;
        case 17:
            header->n_merge_slots = 0;
            break;
        case 18:
            header->n_ranks = 1u << 30;
            break;
        case 19:
            header->special_at = UINT64_MAX - 7;
            break;
        case 20:
            header->text_at = n_bytes;
            break;
        case 21:
            header->token_at += 2;
            break;
        case 22:
            header->flags |= 2;
            break;
        case 23:
            header->n_vocab = 0;
            break;
        case 24:
            header->version++;
            break;
        default:
            is_last = true;
        }
        int rc = ll_tokenizer_image_check(copy, n_bytes);
        free(copy);
        if (is_last) {
            assert_int_equal(fault, 25);
            assert_int_equal(rc, 0);
            break;
        }
        if (rc != LL_E_PROTOCOL)
            fail_msg("fault %d was not seen", fault);
    }
    free(image);
    free(json);
}

static void damaged_images_never_crash(void **state)
{
    (void)state;
    char *json = small_json();
    void *image;
    size_t n_bytes;
    uint64_t seed = ll_test_seed();
    int n_accepted = 0, n_refused = 0;

    write_file(file, json, strlen(json));
    assert_int_equal(ll_tokenizer_image_build(file, &image, &n_bytes), 0);
    for (int round = 0; round < 30000; round++) {
        size_t n = below(&seed, 8) == 0 ? below(&seed, (uint32_t)n_bytes) : n_bytes;
        char *copy = malloc(n + (n == 0)); /* exact: ASan sees one byte too far */
        struct ll_tokenizer *tokenizer;
        memcpy(copy, image, n);
        if (n > 0)
            damage(&seed, copy, n);
        if (n >= sizeof(struct ll_image) && below(&seed, 2) == 0)
            memcpy(copy, image, 24); /* magic, version and size right: deeper checks get work */
        int rc = ll_tokenizer_from_image(&tokenizer, copy, n);
        if (rc == 0) {
            use(tokenizer, &seed);
            ll_tokenizer_free(tokenizer);
            n_accepted++;
        } else {
            assert_int_equal(rc, LL_E_PROTOCOL);
            n_refused++;
        }
        free(copy);
    }
    printf("%d damaged images were safe to use, %d refused\n", n_accepted, n_refused);
    assert_true(n_accepted > 1000 && n_refused > 1000);
    free(image);
    free(json);
}

static void damaged_files_never_crash(void **state)
{
    (void)state;
    char *json = small_json();
    size_t n_json = strlen(json);
    uint64_t seed = ll_test_seed();
    int n_built = 0;
    static const char alphabet[] = "{}[]\",:\\u0dtfn1-.eE \n\x80\xc3\xc4";

    for (int round = 0; round < 3000; round++) {
        char *copy = malloc(n_json);
        size_t n = below(&seed, 8) == 0 ? below(&seed, (uint32_t)n_json) : n_json;
        struct ll_tokenizer *tokenizer;
        memcpy(copy, json, n_json);
        for (uint32_t k = 1 + below(&seed, 3); k > 0; k--) {
            size_t at = ll_splitmix64(&seed) % n_json;
            if (below(&seed, 4) == 0) /* another piece of the same file */
                memmove(copy + at, copy + ll_splitmix64(&seed) % n_json / 2,
                        (n_json - at) / 2 < 20 ? (n_json - at) / 2 : 20);
            else
                copy[at] = alphabet[below(&seed, sizeof(alphabet) - 1)];
        }
        write_file(file, copy, n);
        if (ll_tokenizer_from_path(&tokenizer, file) == 0) {
            use(tokenizer, &seed);
            ll_tokenizer_free(tokenizer);
            n_built++;
        }
        free(copy);
    }
    printf("%d damaged files were still tokenizers\n", n_built);
    assert_true(n_built > 10);
    free(json);
}

static void an_image_can_lie_anywhere_and_be_shared(void **state)
{
    (void)state;
    void *image;
    size_t n_bytes;
    struct ll_tokenizer *first, *second;

    assert_int_equal(ll_tokenizer_image_build(ll_test_source("tools/demo-model"), &image, &n_bytes),
                     0);
    char *moved = malloc(n_bytes);
    memcpy(moved, image, n_bytes);
    assert_int_equal(ll_tokenizer_image_check(image, n_bytes), 0);
    assert_int_equal(ll_tokenizer_from_image(&first, image, n_bytes), 0);
    assert_int_equal(ll_tokenizer_from_image(&second, moved, n_bytes), 0);
    uint32_t a[64], b[64];
    const char *text = "Hello there, it's 12:34 o'clock!\n\n  bye";
    int64_t n = ll_encode(first, text, strlen(text), 0, a, 64);
    assert_int_equal(ll_encode(second, text, strlen(text), 0, b, 64), n);
    assert_memory_equal(a, b, (size_t)n * 4);
    assert_int_equal(ll_encode(demo, text, strlen(text), 0, b, 64), n);
    assert_memory_equal(a, b, (size_t)n * 4);
    assert_int_equal(ll_tokenizer_from_image(&first, moved + 1, n_bytes - 1), LL_E_PROTOCOL);
    ll_tokenizer_free(first);
    ll_tokenizer_free(second);
    free(moved);
    free(image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_small_file_works),
        cmocka_unit_test(whole_pieces_count_only_with_ignore_merges),
        cmocka_unit_test(merges_as_strings_and_as_pairs_give_one_image),
        cmocka_unit_test(each_fault_is_named),
        cmocka_unit_test(a_long_token_is_refused),
        cmocka_unit_test(what_is_no_tokenizer_file_is_said),
        cmocka_unit_test(each_broken_table_is_refused),
        cmocka_unit_test(damaged_images_never_crash),
        cmocka_unit_test(damaged_files_never_crash),
        cmocka_unit_test(an_image_can_lie_anywhere_and_be_shared),
    };
    return cmocka_run_group_tests_name("image", tests, make_directory, remove_directory);
}
