/* SPDX-License-Identifier: Apache-2.0 */
/* tests/shm/test_wire.c - the bytes of shm/wire.h and shm/stat.h, against tests/data/wire.golden.
 *
 * Each structure is zeroed, each named field is given a value of its own, and the result is dumped.
 * A field that moves, changes its width or its byte order changes the dump; so does one that is
 * new, since every byte of a structure must be covered. A change that is meant:
 *   LL_WIRE_REGENERATE=1 build/release/tests/shm/test_wire, look at the difference, commit both,
 * and raise LL_ABI_MINOR or LL_ABI_MAJOR. tests/shm/test_clang.sh runs this as built by clang. */
#include "tests/harness.h"

#include "base/bits.h"
#include "ll/client.h"
#include "shm/stat.h"
#include "shm/wire.h"

static FILE *out;
static uint64_t counter;

/* 0x..030201 + k in every byte: distinct for each field, and the bytes of one tell its order. */
static uint64_t next_value(void)
{
    return 0x0706050403020100ull + ++counter * 0x0101010101010101ull;
}

static void fill_bytes(void *field, size_t bytes)
{
    uint8_t *byte = field;

    counter++;
    for (size_t i = 0; i < bytes; i++)
        byte[i] = (uint8_t)(0x80u + counter + i);
}

static void dump(const char *name, const void *object, size_t bytes)
{
    const uint8_t *byte = object;
    bool was_skipped = false;

    fprintf(out, "%s %zu\n", name, bytes);
    for (size_t row = 0; row < bytes; row += 16) {
        size_t n = ll_min_u64(16, bytes - row);
        bool is_zero = true;
        for (size_t i = 0; i < n; i++)
            is_zero &= byte[row + i] == 0;
        if (is_zero) {
            if (!was_skipped)
                fprintf(out, "  *\n");
            was_skipped = true;
            continue;
        }
        was_skipped = false;
        fprintf(out, "  %05zx", row);
        for (size_t i = 0; i < n; i++)
            fprintf(out, " %02x", byte[row + i]);
        fprintf(out, "\n");
    }
}

static uint8_t covered[LL_INFO_BYTES];

static void cover(size_t offset, size_t bytes)
{
    memset(covered + offset, 1, bytes);
}

/* Fields that are integers, floats, anything else (arrays, unions, text), and those that stay 0. */
#define BEGIN(type)                                                                                \
    {                                                                                              \
        static struct type s;                                                                      \
        const char *name = #type;                                                                  \
        memset((void *)&s, 0, sizeof(s));                                                          \
        memset(covered, 0, sizeof(covered));                                                       \
        counter = 0
#define COVER(field) cover((size_t)((char *)&s.field - (char *)&s), sizeof(s.field))
#define N(field)     (COVER(field), (void)(s.field = next_value()))
#define F(field)     (COVER(field), (void)(s.field = (float)++counter))
#define A(field)     (COVER(field), fill_bytes((void *)&s.field, sizeof(s.field)))
#define Z(field)     COVER(field)
#define END()                                                                                      \
    dump(name, &s, sizeof(s));                                                                     \
    }

/* As END, for structures whose every byte has a name: no padding that the compiler chose. */
#define END_FULL()                                                                                 \
    for (size_t i = 0; i < sizeof(s); i++)                                                         \
        if (!covered[i])                                                                           \
            fail_msg("%s: byte %zu belongs to no field", name, i);                                 \
    END()

static void dump_requests(void)
{
    BEGIN(ll_req_head);
    N(magic), N(abi_major), N(abi_minor), N(size_bytes), N(client_id), N(incarnation);
    N(n_slots), N(slot_bytes), N(off_hot), N(off_slots), N(off_bell), N(off_arena);
    N(arena_bytes), Z(reserved);
    END_FULL();
    BEGIN(ll_req_hot);
    N(wait_word), Z(reserved0), N(cons_pos), Z(reserved1), N(n_submitted), Z(reserved2);
    END_FULL();
    BEGIN(ll_req);
    N(state), N(cancel_gen), N(tag), N(prompt_off), N(n_prompt), N(max_tokens), N(min_tokens);
    N(deadline_ns), N(seed), N(flags), N(n), N(priority), N(n_top), N(n_prompt_top), Z(pad0);
    Z(pad1), F(temperature), F(top_p), F(min_p), F(repetition), F(frequency), F(presence);
    N(top_k), N(n_stop), A(stop), N(bias_off), N(n_bias), N(grammar_off), N(grammar_bytes);
    N(adapter), N(tenant), A(salt), N(draft_max), Z(pad2), N(taken), A(stop_choice), Z(pad3);
    END_FULL();
    BEGIN(ll_logit_bias);
    N(id), F(bias);
    END_FULL();
}

static void dump_responses(void)
{
    BEGIN(ll_rsp_head);
    N(magic), N(abi_major), N(abi_minor), N(size_bytes), N(client_id), N(incarnation);
    N(n_slots), N(log2_events), N(off_slots), N(off_events), Z(reserved0), N(client_state);
    N(client_reason), Z(reserved1), N(prod_pos), Z(reserved2);
    END_FULL();
    BEGIN(ll_rst);
    N(state), N(status), N(n_out), N(n_cached), N(t_seen_ns), N(t_first_ns), N(t_last_ns);
    Z(reserved);
    END_FULL();
#define EVENT_HEAD() N(seq), N(type), N(flags), N(n), N(choice), N(slot), N(gen), N(index), N(t_ns)
    BEGIN(ll_event);
    EVENT_HEAD(), A(u.raw);
    END_FULL();
    BEGIN(ll_event);
    EVENT_HEAD(), N(u.token.id), F(u.token.logprob);
    END();
    BEGIN(ll_event);
    EVENT_HEAD(), A(u.burst);
    END_FULL();
    BEGIN(ll_event);
    EVENT_HEAD(), N(u.top[0].id), F(u.top[0].logprob), N(u.top[4].id), F(u.top[4].logprob);
    END();
    BEGIN(ll_event);
    EVENT_HEAD(), A(u.prompt);
    END_FULL();
    BEGIN(ll_event);
    EVENT_HEAD(), N(u.choice_end.reason), N(u.choice_end.stop_id), N(u.choice_end.n_out);
    END();
    BEGIN(ll_event);
    EVENT_HEAD(), N(u.finish.reason), N(u.finish.stop_id), N(u.finish.n_prompt);
    N(u.finish.n_cached), N(u.finish.n_out), N(u.finish.ttft_us), N(u.finish.total_ns);
    END();
    BEGIN(ll_event);
    EVENT_HEAD(), N(u.error.code), N(u.error.retry_ms), A(u.error.text);
    END_FULL();
}

static void dump_info_and_bell(void)
{
    BEGIN(ll_info_region);
    N(magic), N(abi_major), N(abi_minor), N(size_bytes), N(epoch), N(pid), N(n_vocab);
    N(context_max), N(n_prompt_max), Z(reserved0), N(rt_sleeping), Z(reserved1);
    N(heartbeat_ns), Z(reserved2), N(rt_state), N(rt_reason), N(weights_epoch), Z(reserved7);
    Z(reserved3);
    A(name), A(chat_format), A(backend), A(dtype), N(bos), N(n_eos), A(eos), F(temperature);
    F(top_p), F(min_p), F(repetition_penalty), N(top_k), N(n_max), N(n_top_max), N(n_stop_max);
    N(n_bias_max), Z(reserved4), N(window_events), Z(reserved5), N(adapters_seq), N(n_adapters);
    Z(reserved6), Z(adapter), A(adapter[0]), A(adapter[LL_ADAPTERS_MAX - 1]);
    N(model_seq); /* came later */
    END_FULL();
    BEGIN(ll_adapter_entry);
    A(name), N(id), N(generation);
    END_FULL();
    BEGIN(ll_bell_head);
    N(magic), N(log2_words), Z(reserved0), N(ring_gen), Z(reserved1), N(tail_hint), Z(reserved2);
    END_FULL();
    fprintf(out, "word\n");
    for (uint32_t i = 0; i < 4; i++) {
        static const uint32_t part[4][4] = {
            {3, 0, 0, 0}, {0, 0x1ff, 0, 0}, {0, 0, 0x3ff, 0}, {0, 0, 0, 0x3ff}};
        fprintf(out, "  %08x\n",
                ll_word_pack((enum ll_op)part[i][0], part[i][1], part[i][2], part[i][3]));
    }
    fprintf(out, "  %08x\n", ll_word_pack(LL_OP_STOP, 0x155, 0x2aa, 0x155));
}

static void dump_messages(void)
{
    BEGIN(ll_msg_head);
    N(magic), N(type), N(size_bytes);
    END_FULL();
    BEGIN(ll_msg_hello);
    A(head), N(abi_major), N(abi_minor), N(features), N(n_slots), N(arena_bytes), N(pid_hint);
    N(reserved0), A(name), Z(reserved);
    END_FULL();
    BEGIN(ll_msg_offer);
    A(head), N(abi_major), N(abi_minor), N(features), N(epoch), N(client_id), N(incarnation);
    N(fd_mask), N(flags), N(info_bytes), N(req_bytes), N(rsp_bytes), N(tok_bytes), N(stat_bytes);
    N(bell_bytes), N(req_off_hot), N(req_off_slots), N(req_off_bell), N(req_off_arena);
    N(arena_bytes), N(n_slots), N(req_slot_bytes), N(bell_log2), N(rsp_off_slots);
    N(rsp_off_events), N(rsp_log2_events), N(rsp_slot_bytes), Z(reserved);
    END_FULL();
    BEGIN(ll_msg_mapped);
    A(head), N(epoch);
    END_FULL();
    BEGIN(ll_msg_ready);
    A(head), N(epoch);
    END_FULL();
    BEGIN(ll_msg_refuse);
    A(head), N(code), N(abi_min), N(abi_max), A(text);
    END_FULL();
    BEGIN(ll_msg_plain);
    A(head);
    END_FULL();
    BEGIN(ll_msg_drain);
    A(head), N(deadline_ns);
    END_FULL();
    fprintf(out, "descriptors %d %d %d %d %d %d %d %d of %d\n", LL_FD_INFO, LL_FD_REQ, LL_FD_RSP,
            LL_FD_KICK, LL_FD_WAKE, LL_FD_TOK, LL_FD_STAT, LL_FD_BELL, LL_FD_COUNT);
    fprintf(out, "messages %d %d %d %d %d %d %d %d %d\n", LL_MSG_HELLO, LL_MSG_OFFER, LL_MSG_MAPPED,
            LL_MSG_READY, LL_MSG_REFUSE, LL_MSG_SWEEP, LL_MSG_BYE, LL_MSG_KICK, LL_MSG_DRAIN);
    fprintf(out, "events %d %d %d %d %d %d %d %d\n", LL_EV_TOKEN, LL_EV_BURST, LL_EV_TOP,
            LL_EV_PROMPT, LL_EV_PROMPT_TOP, LL_EV_CHOICE, LL_EV_FINISH, LL_EV_ERROR);
}

static void dump_stat(void)
{
    BEGIN(ll_stat_entry);
    A(name), N(kind), N(offset), Z(reserved);
    END_FULL();
    fprintf(out, "ll_stat_region head");
#define AT(field) fprintf(out, " " #field " %zu", offsetof(struct ll_stat_region, field))
    AT(magic), AT(n_entries), AT(entry_bytes), AT(off_entries), AT(size_bytes);
    AT(hist_sub_bits), AT(hist_buckets), AT(start_ns), AT(entry);
    fprintf(out, "\nll_hist %zu: count %zu sum %zu max %zu bucket %zu\n", sizeof(struct ll_hist),
            offsetof(struct ll_hist, count), offsetof(struct ll_hist, sum),
            offsetof(struct ll_hist, max), offsetof(struct ll_hist, bucket));
}

static char *read_golden(void)
{
    FILE *file = fopen(ll_test_source("tests/data/wire.golden"), "r");
    char *text = calloc(1, 1 << 20);

    if (file != NULL) {
        text[fread(text, 1, (1 << 20) - 1, file)] = 0;
        fclose(file);
    }
    return text;
}

static void every_structure_has_the_bytes_of_the_golden_file(void **state)
{
    (void)state;
    char *text = NULL;
    size_t bytes;

    out = open_memstream(&text, &bytes);
    fprintf(out,
            "llring wire %d.%d: name, size, bytes with every field set (tests/shm/"
            "test_wire.c)\n",
            LL_ABI_MAJOR, LL_ABI_MINOR);
    dump_requests();
    dump_responses();
    dump_info_and_bell();
    dump_messages();
    dump_stat();
    fclose(out);

    if (getenv("LL_WIRE_REGENERATE") != NULL) {
        FILE *file = fopen(ll_test_source("tests/data/wire.golden"), "w");
        assert_non_null(file);
        assert_int_equal(fwrite(text, 1, bytes, file), bytes);
        assert_int_equal(fclose(file), 0);
    }
    char *golden = read_golden(), *a = text, *b = golden;
    for (int line = 1; *a != 0 || *b != 0; line++) {
        size_t n_a = strcspn(a, "\n"), n_b = strcspn(b, "\n");
        if (n_a != n_b || memcmp(a, b, n_a) != 0)
            fail_msg("tests/data/wire.golden:%d:\n  is  %.*s\n  was %.*s", line, (int)n_a, a,
                     (int)n_b, b);
        a += n_a + (a[n_a] != 0);
        b += n_b + (b[n_b] != 0);
    }
    free(golden);
    free(text);
}

static void a_generation_has_24_bits_and_is_never_0(void **state)
{
    (void)state;
    assert_int_equal(ll_gen_next(0), 1);
    assert_int_equal(ll_gen_next(0xfffffe), 0xffffff);
    assert_int_equal(ll_gen_next(0xffffff), 1);
    assert_int_equal(ll_gen_next(UINT32_MAX), 1); /* a scribble stays in range */
    /* Events carry 16 bits: they tell apart what can be in flight at once in one slot. */
    for (uint32_t gen = 0xfffff0, i = 0; i < 100; i++, gen = ll_gen_next(gen)) {
        assert_true(gen > 0 && gen < 1u << 24);
        assert_int_not_equal((uint16_t)gen, (uint16_t)ll_gen_next(gen));
        assert_int_equal((gen << 8 | LL_SLOT_SUBMITTED) >> 8, gen);
    }
}

/* ---- STAT describes itself: what a reader relies on */

static struct ll_stat_region stat_region;

static int setup_stat(void **state)
{
    memset((void *)&stat_region, 0, sizeof(stat_region));
    ll_stat_init(&stat_region, 77);
    ll_stat_show_gpu(&stat_region);
    *state = &stat_region;
    return 0;
}

static void the_stat_table_names_each_figure_once_and_where_it_is(void **state)
{
    struct ll_stat_region *region = *state;
    const char *base = (const char *)region;

    assert_int_equal(ll_stat_check(region, sizeof(*region)), 0);
    assert_int_equal(region->n_entries, LL_STAT_N);
    assert_int_equal(region->start_ns, 77);
    for (uint32_t i = 0; i < region->n_entries; i++) {
        const struct ll_stat_entry *entry = &region->entry[i];
        uint64_t end = entry->offset + (entry->kind == LL_STAT_HIST ? sizeof(struct ll_hist) : 8);
        assert_true(entry->name[0] != 0);
        assert_int_equal(entry->offset % 8, 0);
        assert_true(entry->offset >= offsetof(struct ll_stat_region, v));
        for (uint32_t k = 0; k < i; k++) {
            const struct ll_stat_entry *other = &region->entry[k];
            assert_string_not_equal(entry->name, other->name);
            assert_true(other->offset >= end || entry->offset > other->offset);
        }
    }
#define IS(field)                                                                                  \
    ll_stat_set(&region->v.field, 4711);                                                           \
    for (uint32_t i = 0; i < LL_STAT_N; i++)                                                       \
        if (strcmp(region->entry[i].name, #field) == 0)                                            \
            assert_int_equal(*(const uint64_t *)(base + region->entry[i].offset), 4711);
    LL_STAT_COUNTERS(IS)
    LL_STAT_GAUGES(IS)
    LL_STAT_CONTROL(IS)
    LL_STAT_GPU(IS)
}

static void the_gpus_figures_are_in_the_table_only_when_shown(void **state)
{
    struct ll_stat_region *region = *state;

    ll_stat_init(region, 77);
    assert_int_equal(region->n_entries, LL_STAT_N - LL_STAT_N_GPU);
    for (uint32_t i = 0; i < region->n_entries; i++)
        assert_true(strncmp(region->entry[i].name, "gpu_", 4) != 0);
    ll_stat_show_gpu(region);
    assert_string_equal(region->entry[LL_STAT_N - 1].name, "gpu_temperature_celsius");
    assert_int_equal(ll_stat_check(region, sizeof(*region)), 0);
}

/* Two threads write: the group of the second lies 2 lines away from all else. */
static void the_control_threads_figures_share_no_line(void **state)
{
    (void)state;
    size_t first = offsetof(struct ll_stats, attaches);
    size_t last = offsetof(struct ll_stats, gpu_temperature_celsius);

    assert_true(first - offsetof(struct ll_stats, ready_ns) >= 128);
    assert_true(offsetof(struct ll_stats, queue_ns) - last >= 128);
}

static void a_stat_table_that_points_outside_is_refused(void **state)
{
    struct ll_stat_region *region = *state;
    const size_t bytes = sizeof(*region);

#define REFUSED(change)                                                                            \
    setup_stat(state);                                                                             \
    change;                                                                                        \
    assert_int_equal(ll_stat_check(region, bytes), LL_E_PROTOCOL)
    REFUSED(region->magic++);
    REFUSED(region->entry_bytes = 0);
    REFUSED(region->hist_buckets--);
    REFUSED(region->hist_sub_bits++);
    REFUSED(region->n_entries = UINT32_MAX);
    REFUSED(region->off_entries = (uint32_t)bytes - 8);
    REFUSED(region->off_entries += 4);
    REFUSED(region->entry[3].offset = (uint32_t)bytes);
    REFUSED(region->entry[3].offset += 4);
    REFUSED(region->entry[LL_STAT_N - LL_STAT_N_GPU - 1].offset += 8); /* the last histogram */
    REFUSED(region->entry[3].kind = 0);
    REFUSED(region->entry[3].kind = 4);
    REFUSED(memset(region->entry[3].name, 'x', sizeof(region->entry[3].name)));
    setup_stat(state);
    assert_int_equal(ll_stat_check(region, bytes - 1), LL_E_PROTOCOL);
    assert_int_equal(ll_stat_check(region, 8), LL_E_PROTOCOL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_structure_has_the_bytes_of_the_golden_file),
        cmocka_unit_test(a_generation_has_24_bits_and_is_never_0),
        cmocka_unit_test_setup(the_stat_table_names_each_figure_once_and_where_it_is, setup_stat),
        cmocka_unit_test(the_control_threads_figures_share_no_line),
        cmocka_unit_test_setup(the_gpus_figures_are_in_the_table_only_when_shown, setup_stat),
        cmocka_unit_test_setup(a_stat_table_that_points_outside_is_refused, setup_stat),
    };
    return cmocka_run_group_tests_name("shm/wire", tests, NULL, NULL);
}
