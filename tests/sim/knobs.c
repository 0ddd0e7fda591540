/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/knobs.c - limits, load and faults of a seed; small limits are drawn often. */
#include "tests/sim/sim.h"

static void draw_limits(struct sim_world *w)
{
    struct sim_knobs *k = &w->k;

    k->n_vocab = SIM_ONE_OF(w, 7, 20, 5000);
    k->eos_permille = SIM_ONE_OF(w, 0, 10, 200);
    k->context_max = SIM_ONE_OF(w, 64, 100, 192, 512);
    k->n_pages = SIM_ONE_OF(w, 3, 4, 6, 9, 20, 60);
    k->n_host_pages = SIM_ONE_OF(w, 0, 0, 2, 8, 40);
    k->n_device_slots = SIM_ONE_OF(w, 1, 2, 3, 8, 16);
    k->n_rows_max = sim_draw(w, 2) ? k->n_device_slots : 1 + sim_draw(w, k->n_device_slots);
    k->n_tokens_max = SIM_ONE_OF(w, 1, 7, 64, 300, 2000);
    k->depth = 1 + sim_draw(w, 2);
    k->n_clients = 1 + sim_draw(w, SIM_CLIENTS_MAX);
    k->n_domains = 1 + sim_draw(w, SIM_DOMAINS_MAX);
    k->n_slots = SIM_ONE_OF(w, 1, 2, 4, 16);
    k->n_sequences = SIM_ONE_OF(w, 1, 2, 5, 20, 50);
    k->n_sequences += k->n_device_slots - 1;
    k->n_waiting_max = sim_draw(w, 3) == 0 ? 1 + sim_draw(w, 8) : 0;
    k->tokens_waiting_max = sim_draw(w, 3) == 0 ? SIM_ONE_OF(w, 1, 64, 300) : 0;
    k->n_choices_max = SIM_ONE_OF(w, 1, 2, 4, SIM_CHOICES_MAX);
    /* Room for all terminal events and for a row: 64 events with logprobs, else a token. Mostly for
     * a request of several choices too. */
    k->has_logprobs = sim_draw(w, 3) == 0;
    uint32_t n_least = 2 * k->n_slots + (k->has_logprobs ? 128 : 2);
    if (k->n_choices_max > 1 && sim_draw(w, 8) > 0)
        n_least += LL_OUTLET_ROW_EVENTS_MAX + k->n_choices_max;
    k->log2_events = ll_log2_floor(ll_pow2_ceil(n_least)) + SIM_ONE_OF(w, 0, 0, 1, 4);
    k->stall_ns = SIM_ONE_OF(w, 5, 50, 1000) * LL_NS_PER_MS;
    k->step_timeout_ns = SIM_ONE_OF(w, 100, 5000) * LL_NS_PER_MS;
}

static void draw_time(struct sim_world *w)
{
    struct sim_knobs *k = &w->k;

    k->turn_ns = SIM_ONE_OF(w, 1, 10, 50) * LL_NS_PER_US;
    k->step_ns = k->turn_ns * SIM_ONE_OF(w, 0, 1, 1, 3, 20);
    k->token_ns = SIM_ONE_OF(w, 0, 0, 100, 2000);
    k->max_itl_ns = sim_draw(w, 3) == 0 ? k->turn_ns * SIM_ONE_OF(w, 1, 5, 100) : 0;
    k->copy_ns = k->turn_ns * SIM_ONE_OF(w, 0, 1, 5);
}

static void draw_load(struct sim_world *w)
{
    struct sim_knobs *k = &w->k;

    k->n_prompt_max = SIM_ONE_OF(w, 4, 70, 150, 400);
    k->n_output_max = SIM_ONE_OF(w, 2, 10, 80, 150);
    k->n_prefixes = SIM_ONE_OF(w, 0, 1, 1, 3);
    k->always_swaps = sim_draw(w, 2);
    /* Not drawn: the others' draws stay as they are. */
    if (k->always_swaps && w->seed % 4 != 0)
        k->n_grid = (uint32_t)ll_min_u64((1 + w->seed % 3) * LL_PAGE_TOKENS,
                                         ll_scheduler_grid(k->n_tokens_max, k->n_rows_max));
    k->has_prefix_cache = sim_draw(w, 4) > 0;
    k->has_deadlines = sim_draw(w, 4) == 0;
    k->has_priorities = sim_draw(w, 2) == 0;
    k->submit_chance = SIM_ONE_OF(w, 2, 20, 255);
    k->cancel_chance = SIM_ONE_OF(w, 0, 0, 2, 20);
    k->stop_chance = SIM_ONE_OF(w, 0, 0, 2);
}

static void draw_faults(struct sim_world *w)
{
    struct sim_knobs *k = &w->k;

    k->jump_chance = SIM_ONE_OF(w, 0, 0, 60, 400);
    k->death_chance = SIM_ONE_OF(w, 0, 50, 400);
    k->bye_chance = SIM_ONE_OF(w, 0, 20, 200);
    k->nan_chance = SIM_ONE_OF(w, 0, 0, 100);
    k->device_chance = SIM_ONE_OF(w, 0, 0, 0, 60);
    k->drain_chance = SIM_ONE_OF(w, 0, 0, 0, 60);
}

void sim_draw_knobs(struct sim_world *w, int quiet)
{
    w->k = (struct sim_knobs){.is_quiet = sim_draw(w, 5) == 0};
    if (quiet >= 0)
        w->k.is_quiet = quiet != 0;
    draw_limits(w);
    draw_time(w);
    draw_load(w);
    draw_faults(w);
    if (w->k.is_quiet) {
        struct sim_knobs *k = &w->k;
        k->cancel_chance = k->stop_chance = 0;
        k->jump_chance = k->death_chance = k->bye_chance = 0;
        k->nan_chance = k->device_chance = k->drain_chance = 0;
    }
}
