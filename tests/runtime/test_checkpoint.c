/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_checkpoint.c - model directories, good and bad: each rule of the formats has a
 * file that breaks it, and the refusal names file, tensor, field or offset. */
#include "tests/runtime/checkpoint_fixture.h"

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

int main(void)
{
#define WITH_MAKER(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
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
    };
    return cmocka_run_group_tests_name("runtime/checkpoint", tests, NULL, NULL);
}
