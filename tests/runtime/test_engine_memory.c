/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_engine_memory.c - G1: after it was opened the engine allocates nothing. */
#include "tests/runtime/rig.h"
#include "tests/runtime/count_alloc.h"

static struct rig rig; /* large */

static void a_busy_engine_allocates_nothing(void **state)
{
    (void)state;
    uint64_t random = 5;

    if (!HAS_ALLOC_COUNT)
        skip();
    rig_open(&rig, &(struct rig_config){.n_clients = 2, .n_pages = 20, .eos_permille = 2});
    uint64_t n_before = n_allocations;
    for (int round = 0; round < 2000; round++) {
        uint64_t r = ll_splitmix64(&random);
        struct rig_spec spec = {.n_prompt = 1 + r % 300,
                                .max_tokens = 1 + r / 512 % 400,
                                .seed = r,
                                .n_top = r >> 30 & 3,
                                .flags = r >> 40 & 1 ? LL_REQ_PROMPT_LOGPROBS : 0};
        rig_submit(&rig, r >> 50 & 1, &spec);
        if (round % 7 == 0 && rig.client[0].request[r % 32].is_open)
            rig_cancel(&rig, 0, r % 32);
        rig_turn(&rig);
        rig_read(&rig, 0, UINT32_MAX);
        rig_read(&rig, 1, UINT32_MAX);
    }
    rig_finish(&rig, 100000);
    assert_int_equal(n_allocations - n_before, 0);
    assert_true(RIG_STAT(&rig, preemptions) > 0);
    /* And the counter counts. */
    void *volatile memory = malloc(1);
    free(memory);
    assert_int_equal(n_allocations - n_before, 1);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_busy_engine_allocates_nothing),
    };
    return cmocka_run_group_tests_name("runtime/engine, memory", tests, NULL, NULL);
}
