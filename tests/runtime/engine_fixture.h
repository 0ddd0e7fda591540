/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/engine_fixture.h - one rig and many requests. For test_engine.c and
 * test_engine_faults.c. */
#ifndef TESTS_RUNTIME_ENGINE_FIXTURE_H
#define TESTS_RUNTIME_ENGINE_FIXTURE_H

#include "tests/runtime/rig.h"

#include <pthread.h>

static struct rig rig; /* large */

static inline void submit_many(uint32_t n, uint32_t n_prompt, uint32_t max_tokens)
{
    for (uint32_t i = 0; i < n; i++) {
        struct rig_spec spec = {
            .n_prompt = n_prompt + i * 7 % 50, .max_tokens = max_tokens + i % 5, .seed = 1000 + i};
        assert_true(rig_submit(&rig, i % rig.c.n_clients, &spec) >= 0);
    }
}

#endif
