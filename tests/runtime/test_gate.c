/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_gate.c - rule R6: every field of struct ll_req at and past each of its edges.
 *
 * The table below is the whole wire struct; covers_every_byte_of_the_slot proves that no field is
 * missing from it. */
#include "tests/harness.h"

#include "base/bits.h"
#include "ll/client.h"
#include "runtime/gate.h"

#include <math.h>

#define N_VOCAB     1000u
#define CONTEXT     4096u
#define ARENA_BYTES 65536u

static const struct ll_gate_limits usual = {
    .n_vocab = N_VOCAB,
    .context_max = CONTEXT,
    .n_prompt_max = CONTEXT - 1,
    .n_pages_total = 1000,
    .arena_bytes = ARENA_BYTES,
    .n_max = 4,
    .n_ring_max = 6,
    .n_top_max = 20,
    .n_eos = 2,
    .eos = {7, 9},
};

static struct ll_req good(void)
{
    struct ll_req req = {.n_prompt = 10, .max_tokens = 20, .n = 1, .top_p = 1.0f, .repetition = 1};
    return req;
}

enum kind { U8, I8, U16, U32, U64, F32 };
static const uint32_t kind_bytes[] = {1, 1, 2, 4, 8, 4};

struct value {
    double v;
    int32_t code; /* 0: accepted */
};

/* Values past -1 of an unsigned field wrap to its largest: "huge". */
#define ANY                                                                                        \
    {                                                                                              \
        {0, 0}, {1, 0}, {-1, 0},                                                                   \
    }
#define ZERO(code)                                                                                 \
    {                                                                                              \
        {0, 0}, {1, code}, {2, code}, {-1, code},                                                  \
    }

struct field {
    const char *name; /* the refusal's text begins with it */
    uint32_t offset;
    enum kind kind;
    uint32_t n; /* array length */
    struct value value[12];
};

#define AT(f) offsetof(struct ll_req, f)
#define I     LL_E_INVAL
#define U     LL_E_UNSUPPORTED
#define N     LL_E_NEVER_FITS
#define T     LL_E_TOO_LONG
static const struct field fields[] = {
    {"state", AT(state), U32, 1, ANY},           /* intake's */
    {"cancel_gen", AT(cancel_gen), U32, 1, ANY}, /* intake's */
    {"tag", AT(tag), U64, 1, ANY},
    {"prompt",
     AT(prompt_off),
     U32,
     1,
     {{0, 0},
      {1, I},
      {2, I},
      {3, I},
      {4, 0},
      {ARENA_BYTES - 40, 0},
      {ARENA_BYTES - 36, I},
      {ARENA_BYTES, I},
      {4294967292.0, I},
      {-1, I}}},
    /* n_prompt + max_tokens (20) <= context */
    {"",
     AT(n_prompt),
     U32,
     1,
     {{0, I},
      {1, 0},
      {CONTEXT - 20, 0},
      {CONTEXT - 19, T},
      {CONTEXT, T},
      {1073741824.0, T},
      {-1, T}}},
    {"prompt+output",
     AT(max_tokens),
     U32,
     1,
     {{0, 0}, {1, 0}, {CONTEXT - 10, 0}, {CONTEXT - 9, T}, {2147483648.0, T}, {-1, T}}},
    {"min_tokens", AT(min_tokens), U32, 1, {{0, 0}, {20, 0}, {21, I}, {-1, I}}},
    {"deadline_ns", AT(deadline_ns), U64, 1, ANY},
    {"seed", AT(seed), U64, 1, ANY},
    {"flags", AT(flags), U32, 1, {{0, 0}, {7, 0}, {8, I}, {2147483648.0, I}, {-1, I}}},
    {"n:", AT(n), U16, 1, {{0, I}, {1, 0}, {4, 0}, {5, N}, {128, N}, {129, I}, {-1, I}}},
    {"priority", AT(priority), I8, 1, {{-128, 0}, {-1, 0}, {0, 0}, {1, 0}, {127, 0}}},
    {"n_top", AT(n_top), U8, 1, {{0, 0}, {20, 0}, {21, I}, {-1, I}}},
    {"n_prompt_top", AT(n_prompt_top), U8, 1, {{0, 0}, {1, I}, {20, I}, {21, I}, {-1, I}}},
    {"reserved", AT(pad0), U8, 3, ZERO(I)},
    {"reserved", AT(pad1), U32, 1, ZERO(I)},
    {"temperature",
     AT(temperature),
     F32,
     1,
     {{-0.0, 0},
      {0, 0},
      {2, 0},
      {2.0001, I},
      {-0.0001, I},
      {NAN, I},
      {INFINITY, I},
      {-INFINITY, I},
      {3e38, I},
      {1e-38, 0}}},
    {"top_p",
     AT(top_p),
     F32,
     1,
     {{-0.0, I},
      {0, I},
      {1e-38, 0},
      {1, 0},
      {1.0001, I},
      {-1, I},
      {NAN, I},
      {INFINITY, I},
      {-INFINITY, I},
      {3e38, I}}},
    {"min_p",
     AT(min_p),
     F32,
     1,
     {{-0.0, 0},
      {0, 0},
      {1, 0},
      {1.0001, I},
      {-0.0001, I},
      {NAN, I},
      {INFINITY, I},
      {-INFINITY, I},
      {3e38, I}}},
    {"repetition",
     AT(repetition),
     F32,
     1,
     {{-0.0, I},
      {0, I},
      {1e-3, 0},
      {10, 0},
      {10.001, I},
      {-1, I},
      {NAN, I},
      {INFINITY, I},
      {-INFINITY, I},
      {3e38, I}}},
    {"frequency",
     AT(frequency),
     F32,
     1,
     {{-0.0, 0},
      {-2, 0},
      {2, 0},
      {2.001, I},
      {-2.001, I},
      {NAN, I},
      {INFINITY, I},
      {-INFINITY, I},
      {3e38, I}}},
    {"presence",
     AT(presence),
     F32,
     1,
     {{-0.0, 0},
      {-2, 0},
      {2, 0},
      {2.001, I},
      {-2.001, I},
      {NAN, I},
      {INFINITY, I},
      {-INFINITY, I},
      {3e38, I}}},
    {"top_k", AT(top_k), U32, 1, ANY},
    {"n_stop", AT(n_stop), U32, 1, {{0, 0}, {8, 0}, {9, I}, {2147483648.0, I}, {-1, I}}},
    {"stop", AT(stop), U32, 8, ANY}, /* beyond n_stop: not looked at; see the test of its own */
    {"bias",
     AT(bias_off),
     U32,
     1,
     {{0, 0},
      {1, I},
      {2, I},
      {3, I},
      {ARENA_BYTES, 0},
      {ARENA_BYTES + 4, I},
      {4294967292.0, I},
      {-1, I}}},
    {"n_bias", AT(n_bias), U32, 1, {{0, 0}, {1, 0}, {1024, 0}, {1025, I}, {-1, I}}},
    {"grammar", AT(grammar_off), U32, 1, ZERO(U)},
    {"grammar", AT(grammar_bytes), U32, 1, ZERO(U)},
    {"adapter", AT(adapter), U32, 1, ZERO(U)},
    {"tenant", AT(tenant), U32, 1, ANY},
    {"salt", AT(salt), U64, 2, ANY},
    {"draft_max", AT(draft_max), U32, 1, ZERO(U)},
    {"reserved", AT(pad2), U32, 5, ZERO(I)},
    {"taken", AT(taken), U32, 1, ZERO(I)},
    {"stop_choice", AT(stop_choice), U32, 4, ANY}, /* intake's */
    {"reserved", AT(pad3), U32, 11, ZERO(I)},
};

static void covers_every_byte_of_the_slot(void **state)
{
    (void)state;
    uint8_t seen[sizeof(struct ll_req)] = {0};

    for (size_t i = 0; i < LL_COUNT(fields); i++)
        for (uint32_t k = 0; k < fields[i].n * kind_bytes[fields[i].kind]; k++)
            seen[fields[i].offset + k]++;
    for (size_t i = 0; i < sizeof(seen); i++)
        if (seen[i] != 1)
            fail_msg("byte %zu of struct ll_req is in %u fields of the table", i, seen[i]);
}

static void put(struct ll_req *req, const struct field *field, uint32_t at, double v)
{
    uint8_t *to = (uint8_t *)req + field->offset + at * kind_bytes[field->kind];
    uint64_t integer = v < 0 ? (uint64_t)(int64_t)v : field->kind == F32 ? 0 : (uint64_t)v;
    float real = (float)v;

    if (field->kind == F32)
        memcpy(to, &real, sizeof(real));
    else
        memcpy(to, &integer, kind_bytes[field->kind]); /* little-endian */
}

static void each_field_is_refused_past_its_edges_and_nowhere_else(void **state)
{
    (void)state;

    for (size_t i = 0; i < LL_COUNT(fields); i++)
        for (uint32_t at = 0; at < fields[i].n; at++)
            for (uint32_t k = 0; k < LL_COUNT(fields[i].value); k++) {
                const struct value *value = &fields[i].value[k];
                if (k > 0 && value->v == 0 && value->code == 0 && !signbit(value->v))
                    continue; /* the unused end of the array, or plain 0 once more */
                struct ll_req req = good();
                struct ll_seq seq = {.n_prompt = 12345};
                struct ll_refusal why = {.code = 1};
                put(&req, &fields[i], at, value->v);
                int rc = ll_gate_request(&usual, &req, &seq, &why);
                if (rc != value->code)
                    fail_msg("%s[%u] = %g: %d (%s), not %d", fields[i].name, at, value->v, rc,
                             why.text, value->code);
                if (rc == 0)
                    continue;
                assert_int_equal(why.code, rc);
                assert_int_equal(seq.n_prompt, 12345); /* nothing taken over */
                assert_true(strlen(why.text) > 5 && strlen(why.text) < sizeof(why.text));
                if (strncmp(why.text, fields[i].name, strlen(fields[i].name)) != 0)
                    fail_msg("'%s' does not name %s", why.text, fields[i].name);
            }
}

static void an_accepted_request_is_taken_over_whole(void **state)
{
    (void)state;
    struct ll_req req = good();
    struct ll_seq seq = {0};
    struct ll_refusal why;

    req.tag = 77, req.min_tokens = 3, req.deadline_ns = 5, req.seed = 6;
    req.flags = LL_REQ_PROMPT_LOGPROBS, req.n_top = 4, req.n_prompt_top = 5;
    req.temperature = 0.5f, req.top_p = 0.25f, req.min_p = 0.125f, req.repetition = 1.5f;
    req.frequency = -1.0f, req.presence = 2.0f, req.top_k = 40;
    req.n_stop = 3, req.stop[0] = 9, req.stop[1] = 999, req.stop[2] = 0;
    req.bias_off = 400, req.n_bias = 2, req.prompt_off = 8, req.tenant = 11;
    req.salt[0] = 12, req.salt[1] = 13;
    assert_int_equal(ll_gate_request(&usual, &req, &seq, &why), 0);
    assert_int_equal(seq.tag, 77);
    assert_int_equal(seq.n_prompt, 10);
    assert_int_equal(seq.max_tokens, 20);
    assert_int_equal(seq.flags, LL_REQ_PROMPT_LOGPROBS);
    assert_int_equal(seq.n_top, 4);
    assert_int_equal(seq.n_prompt_top, 5);
    assert_int_equal(seq.tenant, 11);
    assert_int_equal(seq.salt[0], 12);
    assert_int_equal(seq.salt[1], 13);
    assert_int_equal(seq.deadline_ns, 5);
    assert_int_equal(seq.seed, 6);
    assert_int_equal(seq.prompt_off, 8);
    assert_int_equal(seq.bias_off, 400);
    assert_int_equal(seq.n_bias, 2);
    assert_true(seq.sampling.temperature == 0.5f && seq.sampling.top_p == 0.25f);
    assert_true(seq.sampling.min_p == 0.125f && seq.sampling.repetition == 1.5f);
    assert_true(seq.sampling.frequency == -1.0f && seq.sampling.presence == 2.0f);
    assert_int_equal(seq.sampling.top_k, 40);
    assert_int_equal(seq.sampling.min_tokens, 3);
    /* eos 7 and 9, then the stop ids; 9 stands once */
    const uint32_t end[] = {7, 9, 999, 0};
    assert_int_equal(seq.sampling.n_end, LL_COUNT(end));
    assert_memory_equal(seq.sampling.end, end, sizeof(end));
}

static void ignore_eos_leaves_only_the_stop_ids(void **state)
{
    (void)state;
    struct ll_req req = good();
    struct ll_seq seq = {0};
    struct ll_refusal why;

    req.flags = LL_REQ_IGNORE_EOS, req.n_stop = 1, req.stop[0] = 5;
    assert_int_equal(ll_gate_request(&usual, &req, &seq, &why), 0);
    assert_int_equal(seq.sampling.n_end, 1);
    assert_int_equal(seq.sampling.end[0], 5);
}

static void each_stop_id_is_checked_up_to_n_stop(void **state)
{
    (void)state;
    const uint32_t bad[] = {N_VOCAB, N_VOCAB + 1, INT32_MAX, UINT32_MAX};

    for (uint32_t i = 0; i < LL_STOP_MAX; i++)
        for (size_t k = 0; k < LL_COUNT(bad); k++) {
            struct ll_req req = good();
            struct ll_seq seq = {0};
            struct ll_refusal why;
            char name[16];
            req.stop[i] = bad[k];
            req.n_stop = i;
            assert_int_equal(ll_gate_request(&usual, &req, &seq, &why), 0);
            req.n_stop = i + 1;
            assert_int_equal(ll_gate_request(&usual, &req, &seq, &why), LL_E_INVAL);
            snprintf(name, sizeof(name), "stop[%u]", i);
            assert_memory_equal(why.text, name, strlen(name));
            req.stop[i] = N_VOCAB - 1;
            assert_int_equal(ll_gate_request(&usual, &req, &seq, &why), 0);
        }
}

static void minus_zero_becomes_zero_and_a_wide_top_k_is_off(void **state)
{
    (void)state;
    struct ll_req req = good();
    struct ll_seq seq = {0};
    struct ll_refusal why;

    req.temperature = req.min_p = req.frequency = req.presence = -0.0f;
    req.top_k = N_VOCAB;
    assert_int_equal(ll_gate_request(&usual, &req, &seq, &why), 0);
    assert_false(signbit(seq.sampling.temperature) || signbit(seq.sampling.min_p));
    assert_false(signbit(seq.sampling.frequency) || signbit(seq.sampling.presence));
    assert_int_equal(seq.sampling.top_k, 0);
}

static void max_tokens_0_takes_what_context_and_pool_allow(void **state)
{
    (void)state;
    struct ll_req req = good();
    struct ll_gate_limits limits = usual;
    struct ll_seq seq = {0};
    struct ll_refusal why;

    req.max_tokens = 0;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), 0);
    assert_int_equal(seq.max_tokens, CONTEXT - 10);
    limits.n_pages_total = 2; /* 128 tokens */
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), 0);
    assert_int_equal(seq.max_tokens, 128 - 10);
    req.min_tokens = 128 - 10;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), 0);
    req.min_tokens++;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), LL_E_INVAL);
    req.min_tokens = 0;
    req.n_prompt = 127;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), 0);
    assert_int_equal(seq.max_tokens, 1);
    req.n_prompt = 128;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), LL_E_NEVER_FITS);
    req.n_prompt = CONTEXT - 1;
    limits.n_pages_total = 1000;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), 0);
    assert_int_equal(seq.max_tokens, 1);
}

static void what_the_whole_empty_pool_cannot_hold_never_fits(void **state)
{
    (void)state;
    struct ll_req req = good();
    struct ll_gate_limits limits = usual;
    struct ll_seq seq = {0};
    struct ll_refusal why;

    limits.n_pages_total = 10; /* 640 tokens */
    req.n_prompt = 600, req.max_tokens = 40;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), 0);
    req.max_tokens = 41;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), LL_E_NEVER_FITS);
    assert_string_equal(why.text, "pages: needs 11, has 10");
    limits.n_pages_total = 0;
    req.max_tokens = 0;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), LL_E_NEVER_FITS);
}

static void a_prompt_longer_than_its_own_limit_is_too_long(void **state)
{
    (void)state;
    struct ll_req req = good();
    struct ll_gate_limits limits = usual;
    struct ll_seq seq = {0};
    struct ll_refusal why;

    limits.n_prompt_max = 100;
    req.n_prompt = 100;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), 0);
    req.n_prompt = 101;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), LL_E_TOO_LONG);
    assert_string_equal(why.text, "n_prompt: at most 100");
}

static void abilities_of_the_runtime_open_their_fields(void **state)
{
    (void)state;
    struct ll_gate_limits limits = usual;
    struct ll_req req = good();
    struct ll_seq seq = {0};
    struct ll_refusal why;

    limits.has_draft = limits.has_grammar = true;
    limits.n_adapters = 2;
    req.n = 4, req.priority = -5, req.draft_max = 3, req.adapter = 2;
    req.grammar_off = ARENA_BYTES - 8, req.grammar_bytes = 8;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), 0);
    assert_int_equal(seq.priority, -5);
    assert_int_equal(seq.adapter, 2);
    req.adapter = 3;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), LL_E_INVAL);
    req.adapter = 2, req.grammar_bytes = 9;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), LL_E_INVAL);
    req.grammar_bytes = UINT32_MAX;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), LL_E_INVAL);
    req.grammar_bytes = 8, req.grammar_off = ARENA_BYTES - 9;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), LL_E_INVAL);
}

static void the_longest_refusals_still_fit_31_bytes(void **state)
{
    (void)state;
    struct ll_gate_limits limits = usual;
    struct ll_seq seq = {0};
    struct ll_refusal why;
    struct ll_req req = good();

    limits.context_max = 16777216, limits.n_prompt_max = 16777215;
    limits.arena_bytes = LL_ARENA_BYTES_MAX, limits.n_pages_total = 99999;
    req.n_prompt = 10000000;
    req.max_tokens = 16777216 - 10000000;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), LL_E_NEVER_FITS);
    assert_string_equal(why.text, "pages: needs 262144, has 99999");
    req.max_tokens++;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), LL_E_TOO_LONG);
    assert_string_equal(why.text, "prompt+output: at most 16777216");
    req = good();
    limits.n_max = limits.n_ring_max = req.n = LL_CHOICES_MAX;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), 0);
    limits.n_ring_max = LL_CHOICES_MAX - 1;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), LL_E_NEVER_FITS);
    assert_string_equal(why.text, "n: 128, ring has room for 127");
    limits.n_max = LL_CHOICES_MAX - 1;
    assert_int_equal(ll_gate_request(&limits, &req, &seq, &why), LL_E_NEVER_FITS);
    assert_string_equal(why.text, "n: 128 sequences, has 127");
}

static void prompt_ids_are_checked_piece_by_piece(void **state)
{
    (void)state;
    uint32_t token[8] = {0, 1, N_VOCAB - 1, N_VOCAB, 4, 5, UINT32_MAX, 7};
    struct ll_seq seq = {.token = token, .n_prompt = 8};
    struct ll_refusal why;

    assert_int_equal(ll_gate_prompt(&usual, &seq, 0, 3, &why), 0);
    assert_int_equal(ll_gate_prompt(&usual, &seq, 0, 4, &why), LL_E_INVAL);
    assert_string_equal(why.text, "prompt[3]: below 1000");
    assert_int_equal(ll_gate_prompt(&usual, &seq, 4, 6, &why), 0);
    assert_int_equal(ll_gate_prompt(&usual, &seq, 4, 8, &why), LL_E_INVAL);
    assert_string_equal(why.text, "prompt[6]: below 1000");
}

static void a_foreign_id_is_found_wherever_it_is_in_a_long_prompt(void **state)
{
    (void)state;
    static const uint32_t foreign[] = {N_VOCAB,          N_VOCAB + 1,       0x7fffffff, 0x80000000,
                                       0x80000000 + 999, 0x80000000 + 1000, UINT32_MAX};
    static uint32_t token[1000];
    struct ll_seq seq = {.token = token, .n_prompt = 1000};
    struct ll_refusal why;
    char text[64];

    for (uint32_t i = 0; i < 1000; i++)
        token[i] = i % N_VOCAB;
    assert_int_equal(ll_gate_prompt(&usual, &seq, 0, 1000, &why), 0);
    for (uint32_t i = 0; i < 1000; i++) {
        token[i] = foreign[i % LL_COUNT(foreign)];
        assert_int_equal(ll_gate_prompt(&usual, &seq, 3, 1000, &why), i < 3 ? 0 : LL_E_INVAL);
        snprintf(text, sizeof(text), "prompt[%u]: below 1000", i);
        if (i >= 3)
            assert_string_equal(why.text, text);
        token[i] = N_VOCAB - 1;
    }
}

static void biases_are_checked_id_and_value(void **state)
{
    (void)state;
    const struct {
        struct ll_bias bias;
        int code;
    } cases[] = {
        {{0, -100}, 0},      {{N_VOCAB - 1, 100}, 0}, {{N_VOCAB, 0}, I}, {{UINT32_MAX, 0}, I},
        {{1, 100.001f}, I},  {{1, -100.001f}, I},     {{1, NAN}, I},     {{1, INFINITY}, I},
        {{1, -INFINITY}, I}, {{1, -0.0f}, 0},         {{1, 3.4e38f}, I},
    };
    struct ll_bias bias[2];
    struct ll_seq seq = {.bias = bias, .n_bias = 2};
    struct ll_refusal why;

    for (size_t i = 0; i < LL_COUNT(cases); i++) {
        bias[0] = (struct ll_bias){5, 1.0f};
        bias[1] = cases[i].bias;
        assert_int_equal(ll_gate_bias(&usual, &seq, &why), cases[i].code);
        if (cases[i].code < 0)
            assert_memory_equal(why.text, "bias[1]", 7);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(covers_every_byte_of_the_slot),
        cmocka_unit_test(each_field_is_refused_past_its_edges_and_nowhere_else),
        cmocka_unit_test(an_accepted_request_is_taken_over_whole),
        cmocka_unit_test(ignore_eos_leaves_only_the_stop_ids),
        cmocka_unit_test(each_stop_id_is_checked_up_to_n_stop),
        cmocka_unit_test(minus_zero_becomes_zero_and_a_wide_top_k_is_off),
        cmocka_unit_test(max_tokens_0_takes_what_context_and_pool_allow),
        cmocka_unit_test(what_the_whole_empty_pool_cannot_hold_never_fits),
        cmocka_unit_test(a_prompt_longer_than_its_own_limit_is_too_long),
        cmocka_unit_test(abilities_of_the_runtime_open_their_fields),
        cmocka_unit_test(the_longest_refusals_still_fit_31_bytes),
        cmocka_unit_test(prompt_ids_are_checked_piece_by_piece),
        cmocka_unit_test(a_foreign_id_is_found_wherever_it_is_in_a_long_prompt),
        cmocka_unit_test(biases_are_checked_id_and_value),
    };
    return cmocka_run_group_tests_name("runtime/gate", tests, NULL, NULL);
}
