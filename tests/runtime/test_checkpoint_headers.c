/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_checkpoint_headers.c - model directories whose tensor headers or indexes are
 * bad: each fault is refused with file, tensor and reason. */
#include "tests/runtime/checkpoint_fixture.h"

/* ---- bad headers ------------------------------------------------------------------------------*/

static void bad_header_is_refused_with_tensor_and_reason(void **state)
{
    static const char embed[] = "\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[32,16"
                                "],\"data_offsets\":[0,1024]}";
    static const struct {
        const char *to, *named;
    } cases[] = {
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[32,16],\"data_offsets\":"
         "[0,1022]}",
         "need 8192 bits"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[32,15],\"data_offsets\":"
         "[0,960]}",
         "hole"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[32,17],\"data_offsets\":"
         "[0,1088]}",
         "overlap"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[16,32],\"data_offsets\":"
         "[0,1024]}",
         "shape is [16, 32], config.json asks for [32, 16]"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[512],\"data_offsets\":"
         "[0,1024]}",
         "shape is [512]"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[4294967296,4294967296,2],"
         "\"data_offsets\":[0,1024]}",
         "2^64"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[0,18446744073709551615],"
         "\"data_offsets\":[0,1024]}",
         "need 0 bits"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[32,16],\"data_offsets\":"
         "[1024,0]}",
         "end before they begin"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[32,16],\"data_offsets\":"
         "[18446744073709550592,18446744073709551616]}",
         "above 2^64"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[32,16],\"data_offsets\":"
         "[18446744073709550591,18446744073709551615]}",
         "data_offsets begin at"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[32,16],\"data_offsets\":"
         "[0]}",
         "two numbers"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[32,16],\"data_offsets\":"
         "[0,512,1024]}",
         "two numbers"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF17\",\"shape\":[32,16],\"data_offsets\":"
         "[0,1024]}",
         "dtype"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[1,1,1,1,1,1,1,32,16],"
         "\"data_offsets\":[0,1024]}",
         "8 dimensions"},
        {"\"model.embed_tokens.weight\":{\"shape\":[32,16],\"data_offsets\":[0,1024]}",
         "dtype, shape or data_offsets is missing"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"dtype\":\"BF16\",\"shape\":[32,16],"
         "\"data_offsets\":[0,1024]}",
         "twice"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[32,16],\"data_offsets\":"
         "[0,1024],\"more\":1}",
         "none of dtype"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[-32,16],\"data_offsets\":"
         "[0,1024]}",
         "whole number"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[32.0,16],\"data_offsets\":"
         "[0,1024]}",
         "whole number"},
        {"\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[032,16],\"data_offsets\":"
         "[0,1024]}",
         "leading zero"},
        {"\"model.embed_tokens.weight\":7", "expected '{'"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *tensor =
            strcmp(cases[i].named, "hole") == 0 || strcmp(cases[i].named, "overlap") == 0
                ? "model.layers.0.input_layernorm.weight"
                : "model.";
        write_changed_header(*state, embed, cases[i].to);
        assert_refused(*state, LL_E_INVAL, "model.safetensors: tensor \"", cases[i].named);
        assert_non_null(strstr(ll_err_text(), tensor));
    }
}

static void broken_json_of_the_header_is_refused_with_its_offset(void **state)
{
    struct maker *maker = *state;
    static const struct {
        const char *header, *named;
    } cases[] = {
        {"", "start with '{'"},
        {" {}", "byte 8"},
        {"{}", "no tensor"},
        {"{\"__metadata__\":{\"a\":1}}", "byte 29 of the file: expected '\"'"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", "twice"},
        {"{\"a\" 1}", "byte 13 of the file: expected ':'"},
        {"{\"a\":{}", "missing"},
        {"{\"a", "inside a string"},
        {"{\"a\\q\":{}}", "unknown escape"},
        {"{\"\\ud800x\":{}}", "surrogate"},
        {"{\"\\u0000\":{}}", "hex digits"},
        {"{\"\x01\":{}}", "control character"},
        {"{\"\xc0\x80\":{}}", "invalid UTF-8"},
        {"{\"\xed\xa0\x80\":{}}", "invalid UTF-8"},
        {"{\"\xf5\x80\x80\x80\":{}}", "invalid UTF-8"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,],\"data_offsets\":[0,1]}}", "whole number"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},}", "expected '\"'"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}} x", "follows"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        write_header(maker, cases[i].header);
        assert_refused(maker, LL_E_INVAL, "model.safetensors", cases[i].named);
    }
}

static void names_are_unique_short_and_known(void **state)
{
    struct maker *maker = *state;
    char longest[300], named[64];
    static const char *const unknown[] = {
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.00.mlp.up_proj.weight",
        "model.layers..mlp.up_proj.weight",
        "model.layers.0.mlp.up_proj.bias",
        "model.layers.0.input_layernorm.weight_scale",
        "model.layers.99999999999999999999999999.mlp.up_proj.weight",
        "foo"};

    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
        snprintf(longest, sizeof(longest), "\"%s\":", unknown[i]);
        write_changed_header(maker, "\"model.layers.1.mlp.up_proj.weight\":", longest);
        snprintf(named, sizeof(named), "\"%s\"", unknown[i]);
        assert_refused(maker, LL_E_INVAL, named, "no part of a Llama");
    }
    /* The same name once written with an escape. */
    write_changed_header(maker, "\"model.layers.1.mlp.up_proj.weight\":",
                         "\"model.layers.1.mlp.gate_proj\\u002eweight\":");
    assert_refused(maker, LL_E_INVAL, "\"model.layers.1.mlp.gate_proj.weight\"", "there twice");

    memset(longest, 'n', sizeof(longest));
    strcpy(longest + 1 + 128, "\":");
    longest[0] = '"';
    write_changed_header(maker, "\"model.norm.weight\":", longest);
    assert_refused(maker, LL_E_INVAL, "model.safetensors", "longer than 127");

    /* Hostile bytes of a name do not reach the terminal. */
    write_changed_header(maker, "\"model.norm.weight\":", "\"\\u001b[31m\":");
    assert_refused(maker, LL_E_INVAL, "\"?[31m\"", "no part");
}

static void missing_tensors_are_named_and_counted(void **state)
{
    struct maker *maker = *state;

    maker_find(maker, "model.layers.1.self_attn.v_proj.weight")->file = -1;
    maker_find(maker, "model.norm.weight")->file = -1;
    maker_layout(maker);
    maker_write_single(maker);
    assert_refused(maker, LL_E_INVAL, "model.layers.1.self_attn.v_proj.weight", "2 of 21");

    maker_find(maker, "model.layers.1.self_attn.v_proj.weight")->file = 0;
    maker_find(maker, "model.norm.weight")->file = 0;
    maker_find(maker, "lm_head.weight")->file = -1;
    maker_layout(maker);
    maker_write_single(maker);
    assert_refused(maker, LL_E_INVAL, "lm_head.weight", "tie_word_embeddings");
}

static void other_types_are_unsupported_and_named(void **state)
{
    struct maker *maker = *state;
    struct maker_tensor *norm = maker_find(maker, "model.norm.weight");

    strcpy(norm->dtype, "F8_E4M3");
    norm->n_bytes = 16;
    maker_layout(maker);
    maker_write_single(maker);
    assert_refused(maker, LL_E_UNSUPPORTED, "model.norm.weight", "F8_E4M3");
}

static void four_and_six_bit_types_have_whole_bytes(void **state)
{
    static const char good[] = "{\"a\":{\"dtype\":\"F6_E2M3\",\"shape\":[4],\"data_offsets\":[0,3]}"
                               ",\"b\":{\"dtype\":\"F4\",\"shape\":[],\"data_offsets\":[3,3]}}";
    static const char even[] =
        "{\"a\":{\"dtype\":\"F6_E2M3\",\"shape\":[4],\"data_offsets\":[0,3]},"
        "\"z\":{\"dtype\":\"I64\",\"shape\":[0,7],\"data_offsets\":[3,3]},"
        "\"s\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[3,7]}}";
    struct ll_safetensors header;

    (void)state;
    assert_int_equal(ll_safetensors_parse(&header, "f", good, sizeof(good) - 1, 8 + 1000),
                     LL_E_INVAL);
    assert_non_null(strstr(ll_err_text(), "\"b\""));
    /* Rank 0 and no elements are part of the format. */
    assert_int_equal(
        ll_safetensors_parse(&header, "f", even, sizeof(even) - 1, 8 + sizeof(even) - 1 + 7), 0);
    assert_int_equal(header.n_entries, 3);
    assert_string_equal(header.entry[1].name, "z");
    assert_string_equal(header.entry[2].name, "s");
    assert_int_equal(header.entry[2].size_bytes, 4);
    ll_safetensors_free(&header);
}

static void header_length_is_checked_before_it_is_believed(void **state)
{
    struct maker *maker = *state;
    static const uint8_t huge[16] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, '{', '}'};
    static const uint8_t longer[16] = {9, 0, 0, 0, 0, 0, 0, 0, '{', '}'};

    maker_write(maker, "model.safetensors", huge, sizeof(huge));
    assert_refused(maker, LL_E_INVAL, "header length 18446744073709551615", "byte 0");
    maker_write(maker, "model.safetensors", longer, sizeof(longer));
    assert_refused(maker, LL_E_INVAL, "header length 9", "only 16 bytes");
}

static void file_cut_anywhere_is_refused(void **state)
{
    struct maker *maker = *state;
    size_t n_header;
    char *header = maker_header(maker, 0, &n_header);
    const char *path = maker_path(maker, "model.safetensors");
    off_t whole = (off_t)(8 + n_header + maker->data_bytes[0]);

    free(header);
    for (off_t size = whole - 1; size >= 0; size -= size > 3000 ? 509 : 7) {
        assert_int_equal(truncate(path, size), 0);
        assert_refused(maker, LL_E_INVAL, "model.safetensors", "byte");
    }
    maker_write_single(maker);
    assert_int_equal(truncate(path, whole + 1), 0);
    assert_refused(maker, LL_E_INVAL, "model.safetensors", "longer than it should be");
}

/* Every flipped byte of the header: refused, or what it describes is still exactly the file. */
static void flipped_header_bytes_never_go_unnoticed(void **state)
{
    struct maker *maker = *state;
    size_t n_header;
    char *header = maker_header(maker, 0, &n_header);
    uint64_t rng = ll_test_seed(), file_bytes = 8 + n_header + maker->data_bytes[0];
    uint32_t n_accepted = 0;

    for (size_t i = 0; i < n_header; i++)
        for (int turn = 0; turn < 12; turn++) {
            struct ll_safetensors out;
            char was = header[i];
            header[i] ^= (char)(turn < 8 ? 1u << turn : ll_splitmix64(&rng) % 255 + 1);
            if (ll_safetensors_parse(&out, "f", header, n_header, file_bytes) == 0) {
                uint64_t at = 8 + n_header;
                for (uint32_t k = 0; k < out.n_entries; k++) {
                    assert_int_equal(out.entry[k].offset, at);
                    at += out.entry[k].size_bytes;
                }
                assert_int_equal(at, file_bytes);
                n_accepted++;
                ll_safetensors_free(&out);
            }
            header[i] = was;
        }
    assert_true(n_accepted > 0); /* flips in names are other names */
    free(header);
}

static void random_damage_never_crashes(void **state)
{
    struct maker *maker = *state;
    size_t n_header;
    char *header = maker_header(maker, 0, &n_header), *damaged = malloc(n_header);
    uint64_t rng = ll_test_seed();

    for (int turn = 0; turn < 20000; turn++) {
        struct ll_safetensors out;
        size_t n = n_header;
        memcpy(damaged, header, n);
        for (int k = (int)(ll_splitmix64(&rng) % 6); k >= 0; k--) {
            size_t a = ll_splitmix64(&rng) % n, b = ll_splitmix64(&rng) % n, length = a % 40;
            if (length > n - a || length > n - b)
                continue;
            if (k % 2 == 0)
                memmove(damaged + a, damaged + b, length); /* a piece twice */
            else
                damaged[a] = "{}[]\",:\\u0129-. "[ll_splitmix64(&rng) % 16];
        }
        if (ll_splitmix64(&rng) % 4 == 0)
            n = ll_splitmix64(&rng) % n;
        char *exact = malloc(n + 1); /* of the exact size: the sanitizer sees one byte too far */
        exact = realloc(exact, n == 0 ? 1 : n);
        memcpy(exact, damaged, n);
        if (ll_safetensors_parse(&out, "f", exact, n, 8 + n + maker->data_bytes[0]) == 0)
            ll_safetensors_free(&out);
        free(exact);
    }
    free(damaged);
    free(header);
}

/* ---- bad indexes ------------------------------------------------------------------------------*/

static void write_index(const struct maker *maker, const char *text)
{
    maker_write_text(maker, "model.safetensors.index.json", text);
}

static void bad_index_is_refused(void **state)
{
    static const struct {
        const char *text, *named;
    } cases[] = {
        {"{}", "weight_map is missing"},
        {"{\"weight_map\": []}", "weight_map"},
        {"{\"weight_map\": {}}", "0 files"},
        {"{\"weight_map\": {\"a\": \"x\", \"a\": \"x\"}}", "duplicate"},
        {"{\"weight_map\": {\"a\": 1}}", "\"a\""},
        {"{\"weight_map\": {\"a\": \"../model.safetensors\"}}", "../model.safetensors"},
        {"{\"weight_map\": {\"a\": \"/etc/passwd.safetensors\"}}", "/etc/passwd"},
        {"{\"weight_map\": {\"a\": \"x/model.safetensors\"}}", "x/model.safetensors"},
        {"{\"weight_map\": {\"a\": \"model..safetensors\"}}", "model..safetensors"},
        {"{\"weight_map\": {\"a\": \".safetensors\"}}", ".safetensors"},
        {"{\"weight_map\": {\"a\": \"pytorch_model.bin\"}}", "pytorch_model.bin"},
        {"{\"weight_map\": {\"a\": \"model-1.safetensors\"}", "line 1"},
    };
    struct maker *maker = *state;

    unlink(maker_path(maker, "model.safetensors"));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        write_index(maker, cases[i].text);
        assert_refused(maker, LL_E_INVAL, "index.json", cases[i].named);
    }
    write_index(maker, "{\"weight_map\": {\"a\": \"model-00009.safetensors\"}}");
    assert_refused(maker, -ENOENT, "model-00009.safetensors", "named in model.safetensors.index");
}

static void tensor_must_lie_in_the_shard_that_the_index_names(void **state)
{
    struct maker *maker = *state;
    struct maker_tensor *tensor = maker_find(maker, "model.layers.1.mlp.up_proj.weight");

    unlink(maker_path(maker, "model.safetensors"));
    maker_write_sharded(maker);
    int right = tensor->file;

    /* Missing from its shard. */
    tensor->file = -1;
    maker_layout(maker);
    size_t n_header;
    char *header = maker_header(maker, right, &n_header);
    maker_write_file(maker, maker_shard_name(right), right, header, n_header);
    free(header);
    assert_refused(maker, LL_E_INVAL, tensor->name, maker_shard_name(right));

    /* In another one. */
    int wrong = (right + 1) % 3;
    tensor->file = wrong;
    maker_layout(maker);
    header = maker_header(maker, wrong, &n_header);
    maker_write_file(maker, maker_shard_name(wrong), wrong, header, n_header);
    free(header);
    assert_refused(maker, LL_E_INVAL, tensor->name, "index.json puts it in");

    unlink(maker_path(maker, maker_shard_name(2)));
    assert_true(ll_checkpoint_open(&checkpoint, maker->directory) < 0);
}

int main(void)
{
#define WITH_MAKER(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_MAKER(bad_header_is_refused_with_tensor_and_reason),
        WITH_MAKER(broken_json_of_the_header_is_refused_with_its_offset),
        WITH_MAKER(names_are_unique_short_and_known),
        WITH_MAKER(missing_tensors_are_named_and_counted),
        WITH_MAKER(other_types_are_unsupported_and_named),
        cmocka_unit_test(four_and_six_bit_types_have_whole_bytes),
        WITH_MAKER(header_length_is_checked_before_it_is_believed),
        WITH_MAKER(file_cut_anywhere_is_refused),
        WITH_MAKER(flipped_header_bytes_never_go_unnoticed),
        WITH_MAKER(random_damage_never_crashes),
        WITH_MAKER(bad_index_is_refused),
        WITH_MAKER(tensor_must_lie_in_the_shard_that_the_index_names),
    };
    return cmocka_run_group_tests_name("runtime/checkpoint headers", tests, NULL, NULL);
}
