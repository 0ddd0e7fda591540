/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_checkpoint.c - model directories, good and bad: each rule of the formats has a
 * file that breaks it, and the refusal names file, tensor, field or offset. */
#include "tests/runtime/checkpoint_maker.h"

#include "base/err.h"
#include "base/rng.h"
#include "ll/client.h"
#include "runtime/checkpoint.h"
#include "runtime/safetensors.h"
#include "runtime/sha256.h"

#include <errno.h>

static int setup(void **state)
{
    struct maker *maker = malloc(sizeof(*maker));

    maker_init(maker, "BF16");
    maker_write_single(maker);
    *state = maker;
    return 0;
}

static int teardown(void **state)
{
    maker_free(*state);
    free(*state);
    return 0;
}

static struct ll_checkpoint checkpoint; /* large: not on the stack */

static void assert_opens(const struct maker *maker)
{
    memset(&checkpoint, 0, sizeof(checkpoint));
    int rc = ll_checkpoint_open(&checkpoint, maker->directory);
    if (rc < 0)
        fail_msg("refused: %s", ll_err_text());
}

/* Refused with this code, and the text holds each of the words. */
static void assert_refused(const struct maker *maker, int code, const char *word1,
                           const char *word2)
{
    memset(&checkpoint, 0, sizeof(checkpoint));
    int rc = ll_checkpoint_open(&checkpoint, maker->directory);
    if (rc != code)
        fail_msg("answered %d, not %d: %s", rc, code, rc < 0 ? ll_err_text() : "opened");
    if (strstr(ll_err_text(), word1) == NULL || strstr(ll_err_text(), word2) == NULL)
        fail_msg("\"%s\" does not name \"%s\" and \"%s\"", ll_err_text(), word1, word2);
    assert_null(checkpoint.tensor); /* nothing left behind */
    assert_null(checkpoint.file);
}

/* The good config with one piece of its text replaced. */
static void write_config(const struct maker *maker, const char *from, const char *to)
{
    char text[4096];
    const char *at = strstr(MAKER_CONFIG, from);

    assert_non_null(at);
    snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - MAKER_CONFIG), MAKER_CONFIG, to,
             at + strlen(from));
    maker_write_text(maker, "config.json", text);
}

/* model.safetensors with this header in place of the right one. */
static void write_header(const struct maker *maker, const char *header)
{
    maker_write_file(maker, "model.safetensors", 0, header, strlen(header));
}

/* The right header with one piece of its text replaced. */
static void write_changed_header(const struct maker *maker, const char *from, const char *to)
{
    size_t n_header;
    char *header = maker_header(maker, 0, &n_header), *text = malloc(n_header + 4096);

    header[n_header] = '\0';
    const char *at = strstr(header, from);
    assert_non_null(at);
    sprintf(text, "%.*s%s%s", (int)(at - header), header, to, at + strlen(from));
    write_header(maker, text);
    free(text);
    free(header);
}

/* ---- good ones --------------------------------------------------------------------------------*/

static void good_directory_lists_every_tensor_and_its_place(void **state)
{
    struct maker *maker = *state;
    size_t n_header;
    char *header = maker_header(maker, 0, &n_header);

    free(header);
    assert_opens(maker);
    assert_int_equal(checkpoint.n_tensors, MAKER_TENSORS);
    assert_int_equal(checkpoint.n_files, 1);
    assert_int_equal(checkpoint.weights_bytes, maker->data_bytes[0]);
    assert_int_equal(checkpoint.file[0].size_bytes, 8 + n_header + maker->data_bytes[0]);
    assert_int_equal(checkpoint.dtype, LL_DTYPE_BF16);
    for (uint32_t i = 0; i < checkpoint.n_tensors; i++) {
        const struct ll_checkpoint_tensor *t = &checkpoint.tensor[i];
        const struct maker_tensor *m = maker_find(maker, t->name);
        assert_int_equal(t->offset, 8 + n_header + m->begin);
        assert_int_equal(t->tensor.size_bytes, m->n_bytes);
        assert_int_equal((uint64_t)t->tensor.rows * t->tensor.cols * 2, m->n_bytes);
    }
    const struct ll_checkpoint_tensor *down = &checkpoint.tensor[18];
    assert_string_equal(down->name, "model.layers.1.mlp.down_proj.weight");
    assert_int_equal(down->tensor.role, LL_TENSOR_DOWN);
    assert_int_equal(down->tensor.layer, 1);
    assert_int_equal(down->tensor.rows, 16);
    assert_int_equal(down->tensor.cols, 24);
    ll_checkpoint_close(&checkpoint);
}

static void shards_are_found_through_the_index(void **state)
{
    struct maker *maker = *state;

    unlink(maker_path(maker, "model.safetensors"));
    maker_write_sharded(maker);
    assert_opens(maker);
    assert_int_equal(checkpoint.n_files, 3);
    for (uint32_t i = 0; i < checkpoint.n_tensors; i++) {
        const struct ll_checkpoint_tensor *t = &checkpoint.tensor[i];
        const struct maker_tensor *m = maker_find(maker, t->name);
        assert_non_null(strstr(checkpoint.file[t->file].path, maker_shard_name(m->file)));
    }
    ll_checkpoint_close(&checkpoint);
}

static void three_types_are_read(void **state)
{
    static const struct {
        const char *name;
        enum ll_dtype dtype;
    } types[] = {{"BF16", LL_DTYPE_BF16}, {"F16", LL_DTYPE_F16}, {"F32", LL_DTYPE_F32}};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct maker maker;
        maker_init(&maker, types[i].name);
        maker_write_single(&maker);
        assert_opens(&maker);
        assert_int_equal(checkpoint.dtype, types[i].dtype);
        ll_checkpoint_close(&checkpoint);
        maker_free(&maker);
    }
}

static void shape_comes_from_the_config(void **state)
{
    struct maker *maker = *state;

    assert_opens(maker);
    const struct ll_model_shape *s = &checkpoint.shape;
    assert_int_equal(s->n_layers, 2);
    assert_int_equal(s->n_embd, 16);
    assert_int_equal(s->n_heads, 4);
    assert_int_equal(s->n_kv_heads, 2);
    assert_int_equal(s->head_dim, 8);
    assert_int_equal(s->n_ff, 24);
    assert_int_equal(s->n_vocab, 32);
    assert_int_equal(s->context_max, 512);
    assert_false(s->is_tied);
    assert_int_equal(s->rope, LL_ROPE_PLAIN);
    assert_true(s->rope_theta == 500000.0 && s->rms_eps == 1e-5f);
    assert_int_equal(checkpoint.bos, 1);
    assert_int_equal(checkpoint.n_eos, 2);
    assert_int_equal(checkpoint.eos[1], 3);
    ll_checkpoint_close(&checkpoint);
}

static void absent_fields_have_the_meaning_that_llama_gives_them(void **state)
{
    struct maker *maker = *state;

    write_config(maker, "\"rope_theta\": 500000.0, ", "");
    assert_opens(maker);
    assert_true(checkpoint.shape.rope_theta == 10000.0);
    ll_checkpoint_close(&checkpoint);

    write_config(maker, ", \"bos_token_id\": 1, \"eos_token_id\": [2, 3]", "");
    assert_opens(maker);
    assert_int_equal(checkpoint.bos, UINT32_MAX);
    assert_int_equal(checkpoint.n_eos, 0);
    ll_checkpoint_close(&checkpoint);

    write_config(maker, "\"eos_token_id\": [2, 3]", "\"eos_token_id\": 7");
    assert_opens(maker);
    assert_int_equal(checkpoint.n_eos, 1);
    assert_int_equal(checkpoint.eos[0], 7);
    ll_checkpoint_close(&checkpoint);

    /* head_dim = hidden_size / heads = 4, kv heads = heads: K has 16 rows, as in the files; Q
     * has not. */
    write_config(maker, "\"num_key_value_heads\": 2, \"head_dim\": 8, ", "");
    assert_refused(maker, LL_E_INVAL, "self_attn.q_proj.weight", "[16, 16]");
    write_config(maker, "\"head_dim\": 8, ", "\"head_dim\": null, ");
    assert_refused(maker, LL_E_INVAL, "model.safetensors", "asks for");
}

static void rope_is_read_in_its_three_spellings(void **state)
{
    struct maker *maker = *state;
    static const char *const spellings[] = {
        "\"rope_scaling\": {\"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, "
        "\"original_max_position_embeddings\": 8192, \"rope_type\": \"llama3\"}, \"hidden_act\"",
        "\"rope_scaling\": {\"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4, "
        "\"original_max_position_embeddings\": 8192, \"type\": \"llama3\"}, \"hidden_act\"",
        "\"rope_parameters\": {\"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": "
        "4.0, \"original_max_position_embeddings\": 8192, \"rope_type\": \"llama3\", "
        "\"rope_theta\": 500000.0}, \"dtype\": \"bfloat16\", \"hidden_act\"",
    };

    for (size_t i = 0; i < 3; i++) {
        write_config(maker, "\"hidden_act\"", spellings[i]);
        assert_opens(maker);
        assert_int_equal(checkpoint.shape.rope, LL_ROPE_LLAMA3);
        assert_true(checkpoint.shape.rope_factor == 8 && checkpoint.shape.rope_low_freq == 1 &&
                    checkpoint.shape.rope_high_freq == 4);
        assert_int_equal(checkpoint.shape.rope_original_context, 8192);
        assert_true(checkpoint.shape.rope_theta == 500000.0);
        ll_checkpoint_close(&checkpoint);
    }
    write_config(maker, "\"hidden_act\"", "\"rope_scaling\": null, \"hidden_act\"");
    assert_opens(maker);
    assert_int_equal(checkpoint.shape.rope, LL_ROPE_PLAIN);
    ll_checkpoint_close(&checkpoint);
}

static void generation_config_overrides_ids_and_gives_sampling(void **state)
{
    struct maker *maker = *state;

    assert_opens(maker);
    assert_true(checkpoint.temperature == 1.0f && checkpoint.top_p == 1.0f &&
                checkpoint.min_p == 0.0f && checkpoint.repetition_penalty == 1.0f);
    ll_checkpoint_close(&checkpoint);

    maker_write_text(maker, "generation_config.json",
                     "{\"bos_token_id\": 5, \"eos_token_id\": [4, 5, 6], \"do_sample\": true, "
                     "\"temperature\": 0.6, \"top_p\": 0.9, \"top_k\": 40}");
    assert_opens(maker);
    assert_int_equal(checkpoint.bos, 5);
    assert_int_equal(checkpoint.n_eos, 3);
    assert_int_equal(checkpoint.eos[2], 6);
    assert_true(checkpoint.temperature == 0.6f && checkpoint.top_p == 0.9f);
    assert_int_equal(checkpoint.top_k, 40);
    ll_checkpoint_close(&checkpoint);

    maker_write_text(maker, "generation_config.json", "{\"top_k\": -1}");
    assert_opens(maker);
    assert_int_equal(checkpoint.top_k, 0);
    assert_int_equal(checkpoint.n_eos, 2); /* of config.json */
    ll_checkpoint_close(&checkpoint);

    maker_write_text(maker, "generation_config.json", "{\"temperature\": -1}");
    assert_refused(maker, LL_E_INVAL, "generation_config.json", "temperature");
    maker_write_text(maker, "generation_config.json", "{\"eos_token_id\": [1, 32]}");
    assert_refused(maker, LL_E_INVAL, "generation_config.json", "eos_token_id[1]");
}

static void chat_format_and_template_hash_are_read(void **state)
{
    struct maker *maker = *state;

    assert_opens(maker);
    assert_string_equal(checkpoint.chat_format, "");
    assert_string_equal(checkpoint.template_sha256, "");
    assert_false(checkpoint.has_tokenizer_json);
    ll_checkpoint_close(&checkpoint);

    maker_write_text(maker, "tokenizer.json", "{}");
    maker_write_text(maker, "tokenizer_config.json",
                     "{\"chat_format\": \"llama3.1\", \"chat_template\": \"abc\"}");
    assert_opens(maker);
    assert_string_equal(checkpoint.chat_format, "llama3.1");
    assert_string_equal(checkpoint.template_sha256,
                        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_true(checkpoint.has_tokenizer_json);
    ll_checkpoint_close(&checkpoint);

    maker_write_text(maker, "tokenizer_config.json",
                     "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"x\"}, "
                     "{\"name\": \"default\", \"template\": \"abc\"}]}");
    assert_opens(maker);
    assert_int_equal(strncmp(checkpoint.template_sha256, "ba7816bf", 8), 0);
    ll_checkpoint_close(&checkpoint);

    maker_write_text(maker, "chat_template.jinja", "");
    assert_opens(maker);
    assert_int_equal(strncmp(checkpoint.template_sha256, "e3b0c442", 8), 0);
    ll_checkpoint_close(&checkpoint);

    maker_write_text(maker, "tokenizer_config.json",
                     "{\"chat_format\": \"a name that is much longer than any we know\"}");
    assert_refused(maker, LL_E_INVAL, "tokenizer_config.json", "chat_format");
}

static void sha256_agrees_with_published_digests(void **state)
{
    char hex[LL_SHA256_HEX_BYTES];
    char *million = malloc(1000000);

    (void)state;
    ll_sha256_hex(hex, "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56);
    assert_string_equal(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    memset(million, 'a', 1000000);
    ll_sha256_hex(hex, million, 1000000);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(million);
}

static void rotation_tables_and_a_tied_head_are_ignored(void **state)
{
    struct maker *maker = *state;

    maker_add(maker, "model.layers.0.self_attn.rotary_emb.inv_freq", "F32", 0, 4);
    maker_layout(maker);
    maker_write_single(maker);
    assert_opens(maker);
    assert_int_equal(checkpoint.n_tensors, MAKER_TENSORS);
    ll_checkpoint_close(&checkpoint);

    write_config(maker, "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    assert_opens(maker);
    assert_int_equal(checkpoint.n_tensors, MAKER_TENSORS - 1);
    assert_true(checkpoint.shape.is_tied);
    ll_checkpoint_close(&checkpoint);
}

static void demo_model_opens(void **state)
{
    (void)state;
    memset(&checkpoint, 0, sizeof(checkpoint));
    if (ll_checkpoint_open(&checkpoint, ll_test_source("tools/demo-model")) < 0)
        fail_msg("%s", ll_err_text());
    assert_int_equal(checkpoint.n_tensors, 6 * 9 + 2); /* tied: no head */
    assert_int_equal(checkpoint.shape.rope, LL_ROPE_LLAMA3);
    assert_int_equal(checkpoint.shape.n_vocab, 4352);
    assert_int_equal(checkpoint.n_eos, 3);
    assert_int_equal(checkpoint.bos, 4096);
    assert_true(checkpoint.temperature == 0.6f && checkpoint.top_p == 0.9f);
    assert_true(checkpoint.has_tokenizer_json);
    ll_checkpoint_close(&checkpoint);
}

/* ---- bad configs ------------------------------------------------------------------------------*/

static void bad_config_is_refused_with_its_field(void **state)
{
    static const struct {
        const char *from, *to;
        int code;
        const char *named;
    } cases[] = {
        {"LlamaForCausalLM", "MistralForCausalLM", LL_E_UNSUPPORTED, "MistralForCausalLM"},
        {"[\"LlamaForCausalLM\"]", "[]", LL_E_INVAL, "architectures"},
        {"[\"LlamaForCausalLM\"]", "7", LL_E_INVAL, "architectures"},
        {"\"hidden_size\": 16, ", "", LL_E_INVAL, "hidden_size is missing"},
        {"\"hidden_size\": 16", "\"hidden_size\": 0", LL_E_INVAL, "hidden_size is 0"},
        {"\"hidden_size\": 16", "\"hidden_size\": -16", LL_E_INVAL, "hidden_size is -16"},
        {"\"hidden_size\": 16", "\"hidden_size\": 16.0", LL_E_INVAL, "hidden_size"},
        {"\"hidden_size\": 16", "\"hidden_size\": \"16\"", LL_E_INVAL, "hidden_size"},
        {"\"hidden_size\": 16", "\"hidden_size\": 4294967312", LL_E_INVAL, "hidden_size"},
        {"\"hidden_size\": 16", "\"hidden_size\": 99999999999999999999", LL_E_INVAL, "line 1"},
        {"\"hidden_size\": 16", "\"hidden_size\": 16, \"hidden_size\": 16", LL_E_INVAL,
         "duplicate"},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 4000000000", LL_E_INVAL,
         "num_hidden_layers"},
        {"\"num_attention_heads\": 4", "\"num_attention_heads\": 3", LL_E_INVAL,
         "num_key_value_heads 2 does not divide"},
        {"\"num_key_value_heads\": 2", "\"num_key_value_heads\": 0", LL_E_INVAL,
         "num_key_value_heads"},
        {"\"head_dim\": 8", "\"head_dim\": 7", LL_E_INVAL, "head_dim is 7"},
        {"\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 8",
         "\"num_attention_heads\": 6, \"num_key_value_heads\": 2", LL_E_INVAL, "head_dim"},
        {"\"intermediate_size\": 24", "\"intermediate_size\": []", LL_E_INVAL,
         "intermediate_size is an array"},
        {"\"vocab_size\": 32", "\"vocab_size\": 5000000", LL_E_INVAL, "vocab_size"},
        {"\"max_position_embeddings\": 512", "\"max_position_embeddings\": 0", LL_E_INVAL,
         "max_position_embeddings"},
        {"1e-05", "0", LL_E_INVAL, "rms_norm_eps"},
        {"1e-05", "1e999", LL_E_INVAL, "config.json"},
        {"500000.0", "0.5", LL_E_INVAL, "rope_theta"},
        {"\"silu\"", "\"gelu\"", LL_E_UNSUPPORTED, "gelu"},
        {"\"tie_word_embeddings\": false", "\"tie_word_embeddings\": 0", LL_E_INVAL,
         "tie_word_embeddings"},
        {"\"bos_token_id\": 1", "\"bos_token_id\": 32", LL_E_INVAL, "bos_token_id"},
        {"[2, 3]", "[2, 3.5]", LL_E_INVAL, "eos_token_id[1]"},
        {"[2, 3]", "[1,2,3,4,5,6,7,8,9]", LL_E_INVAL, "eos_token_id lists 9"},
        {"[2, 3]", "true", LL_E_INVAL, "eos_token_id is true"},
        {"[2, 3]", "2, \"attention_bias\": true", LL_E_UNSUPPORTED, "attention_bias"},
        {"[2, 3]", "2, \"mlp_bias\": true", LL_E_UNSUPPORTED, "mlp_bias"},
        {"[2, 3]", "2, \"torch_dtype\": \"float8_e4m3fn\"", LL_E_UNSUPPORTED, "float8_e4m3fn"},
        {"[2, 3]", "2, \"quantization_config\": {\"quant_method\": \"gptq\"}", LL_E_UNSUPPORTED,
         "gptq"},
        {"[2, 3]", "2, \"compression_config\": {\"quant_method\": \"x\"}", LL_E_UNSUPPORTED,
         "compression_config"},
        {"[2, 3]", "2, \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4}",
         LL_E_UNSUPPORTED, "yarn"},
        {"[2, 3]", "2, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 4}", LL_E_UNSUPPORTED,
         "linear"},
        {"[2, 3]", "2, \"rope_scaling\": {\"factor\": 4}", LL_E_INVAL, "rope_scaling.rope_type"},
        {"[2, 3]", "2, \"rope_scaling\": 8", LL_E_INVAL, "rope_scaling is an integer"},
        {"[2, 3]",
         "2, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
         "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 8192}",
         LL_E_INVAL, "rope_scaling.high_freq_factor"},
        {"[2, 3]",
         "2, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 0, \"low_freq_factor\": 1, "
         "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 8192}",
         LL_E_INVAL, "rope_scaling.factor"},
        {"[2, 3]",
         "2, \"rope_parameters\": {\"rope_type\": \"llama3\", \"factor\": 8, "
         "\"low_freq_factor\": 1, \"high_freq_factor\": 4}",
         LL_E_INVAL, "rope_parameters.original_max_position_embeddings is missing"},
        {"{\"arch", "[\"arch", LL_E_INVAL, "config.json"},
        {"\"LlamaForCausalLM\"", "\"\xff\"", LL_E_INVAL, "config.json"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        write_config(*state, cases[i].from, cases[i].to);
        assert_refused(*state, cases[i].code, "config.json", cases[i].named);
    }
}

static void missing_files_are_named(void **state)
{
    struct maker *maker = *state;

    unlink(maker_path(maker, "model.safetensors"));
    assert_refused(maker, -ENOENT, "model.safetensors", "index.json");
    unlink(maker_path(maker, "config.json"));
    assert_refused(maker, -ENOENT, "not a model directory", "config.json");
    mkdir(maker_path(maker, "config.json"), 0700);
    assert_refused(maker, LL_E_INVAL, "config.json", "not a regular file");
    rmdir(maker_path(maker, "config.json"));
    mkfifo(maker_path(maker, "config.json"), 0600); /* must not hang */
    assert_refused(maker, LL_E_INVAL, "config.json", "not a regular file");
}

static void quantised_and_oversized_side_files_are_refused(void **state)
{
    struct maker *maker = *state;
    char *big = malloc((1u << 20) + 2);

    maker_write_text(maker, "hf_quant_config.json", "{}");
    assert_refused(maker, LL_E_INVAL, "hf_quant_config.json", "quantization is missing");
    unlink(maker_path(maker, "hf_quant_config.json"));
    memset(big, ' ', (1u << 20) + 1);
    maker_write(maker, "config.json", big, (1u << 20) + 1);
    assert_refused(maker, LL_E_INVAL, "config.json", "1048577 bytes");
    free(big);
}

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

#define WITH_MAKER(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_MAKER(good_directory_lists_every_tensor_and_its_place),
        WITH_MAKER(shards_are_found_through_the_index),
        cmocka_unit_test(three_types_are_read),
        WITH_MAKER(shape_comes_from_the_config),
        WITH_MAKER(absent_fields_have_the_meaning_that_llama_gives_them),
        WITH_MAKER(rope_is_read_in_its_three_spellings),
        WITH_MAKER(generation_config_overrides_ids_and_gives_sampling),
        WITH_MAKER(chat_format_and_template_hash_are_read),
        cmocka_unit_test(sha256_agrees_with_published_digests),
        WITH_MAKER(rotation_tables_and_a_tied_head_are_ignored),
        cmocka_unit_test(demo_model_opens),
        WITH_MAKER(bad_config_is_refused_with_its_field),
        WITH_MAKER(missing_files_are_named),
        WITH_MAKER(quantised_and_oversized_side_files_are_refused),
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
    return cmocka_run_group_tests_name("runtime/checkpoint", tests, NULL, NULL);
}
