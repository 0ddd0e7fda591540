/* SPDX-License-Identifier: Apache-2.0 */
#include "client/handle.h"

#include "base/bits.h"
#include "base/err.h"

#include <stdlib.h>
#include <string.h>

/* A string of a region, ended whatever the runtime wrote. */
static const char *copy_text(char *out, const char *text, size_t n_bytes)
{
    memcpy(out, text, n_bytes);
    out[n_bytes - 1] = 0;
    return out;
}

static int load_stats(struct ll_client *client)
{
    const struct ll_stat_region *region = client->stat_region.base;
    int rc = ll_stat_check(region, client->stat_region.size_bytes);

    if (rc < 0)
        return rc;
    uint32_t n = region->n_entries, at = region->off_entries;
    uint64_t size_bytes = client->stat_region.size_bytes,
             n_bytes = n * sizeof(struct ll_stat_entry);
    if (n > 4096 || !ll_span_fits(at, n_bytes, size_bytes))
        return LL_ERR(LL_E_PROTOCOL, "the statistics region has %u entries", n);
    client->stat_entry = malloc(n_bytes + sizeof(struct ll_stat_entry));
    if (client->stat_entry == NULL)
        return LL_ERR(-ENOMEM, "no memory for %u statistics", n);
    /* Copied, then checked again: the runtime could change its table after ll_stat_check(). */
    memcpy(client->stat_entry, (const uint8_t *)region + at, n_bytes);
    for (uint32_t i = 0; i < n; i++) {
        struct ll_stat_entry *entry = &client->stat_entry[i];
        size_t bytes = entry->kind == LL_STAT_HIST ? sizeof(struct ll_hist) : sizeof(uint64_t);
        entry->name[sizeof(entry->name) - 1] = 0;
        if (entry->offset % 8 != 0 || !ll_span_fits(entry->offset, bytes, size_bytes))
            return LL_ERR(LL_E_PROTOCOL, "statistics entry %u points outside its region", i);
    }
    client->n_stats = n;
    return 0;
}

/* What a reload changes, as it was between two changes. */
static int load_model(const struct ll_client *client, struct ll_client_info *facts, char *name)
{
    const struct ll_info_region *info = client->info;

    for (int attempt = 0; attempt < 1000; attempt++) {
        /* Acquire, pairs with the release that ends a change (runtime/engine_switch.c): the model
         * after the count. */
        uint32_t before = atomic_load_explicit(&info->model_seq, memory_order_acquire);
        if (before % 2 != 0) {
            ll_cpu_relax();
            continue;
        }
        facts->weights_epoch = info->weights_epoch;
        facts->temperature = info->temperature;
        facts->top_p = info->top_p;
        facts->min_p = info->min_p;
        facts->repetition_penalty = info->repetition_penalty;
        facts->top_k = info->top_k;
        copy_text(name, info->name, sizeof(info->name));
        /* Acquire fence, pairs with the writer's release fence after it made the count odd: the
         * model before the second look. */
        atomic_thread_fence(memory_order_acquire);
        if (atomic_load_explicit(&info->model_seq, memory_order_relaxed) == before)
            return 0;
    }
    return LL_ERR(LL_E_PROTOCOL, "the runtime does not end a change of what it serves");
}

/* Copies and checks what the runtime says about itself; once, at attach. */
int ll_client_info_load(struct ll_client *client, uint64_t tok_bytes)
{
    const struct ll_info_region *info = client->info;
    struct ll_client_info *facts = &client->facts;

    *facts = (struct ll_client_info){
        .struct_bytes = sizeof(*facts),
        .n_vocab = info->n_vocab,
        .context_max = info->context_max,
        .n_prompt_max = info->n_prompt_max,
        .n_slots = client->n_slots,
        .arena_bytes = client->arena.n_bytes,
        .n_max = info->n_max,
        .n_top_max = info->n_top_max,
        .bos = info->bos,
        .n_eos = info->n_eos,
        .model = client->name,
        .chat_format = copy_text(client->chat_format, info->chat_format, sizeof(info->chat_format)),
        .backend = copy_text(client->backend, info->backend, sizeof(info->backend)),
        .dtype = copy_text(client->dtype, info->dtype, sizeof(info->dtype)),
        .epoch = info->epoch,
        .tokenizer = client->tok_region.base,
        .tokenizer_bytes = tok_bytes,
    };
    memcpy(facts->eos, info->eos, sizeof(facts->eos));
    int rc = load_model(client, facts, client->name);
    if (rc < 0)
        return rc;
    if (facts->n_vocab == 0 || facts->n_prompt_max == 0 ||
        facts->n_prompt_max > facts->context_max || facts->n_max == 0 ||
        facts->n_max > LL_CHOICES_MAX || facts->n_top_max > LL_TOP_MAX || facts->n_eos > LL_EOS_MAX)
        return LL_ERR(LL_E_PROTOCOL,
                      "the runtime publishes limits that make no sense: vocabulary %u, context %u, "
                      "prompt %u, n %u, top %u, eos %u",
                      facts->n_vocab, facts->context_max, facts->n_prompt_max, facts->n_max,
                      facts->n_top_max, facts->n_eos);
    return load_stats(client);
}

int ll_client_info(struct ll_client *client, struct ll_client_info *out)
{
    struct ll_client_info facts = client->facts;

    if (ll_client_is_forked(client))
        return ll_client_check(client);
    if (out->struct_bytes < offsetof(struct ll_client_info, context_max))
        return LL_ERR(LL_E_INVAL, "struct_bytes: %u, must be sizeof(struct ll_client_info)",
                      out->struct_bytes);
    facts.struct_bytes = out->struct_bytes;
    if (client->info->weights_epoch != facts.weights_epoch) { /* reloaded since */
        int rc = load_model(client, &client->facts, client->name);
        if (rc < 0)
            return rc;
        facts = client->facts;
        facts.struct_bytes = out->struct_bytes;
    }
    memcpy(out, &facts, ll_min_u64(out->struct_bytes, sizeof(facts)));
    return 0;
}

/* Copies entry i of the adapter table as it was between two changes; false: it keeps changing. */
static bool read_adapter(const struct ll_info_region *info, uint32_t i,
                         struct ll_adapter_entry *out)
{
    for (int attempt = 0; attempt < 1000; attempt++) {
        /* Acquire, pairs with the writer's release that ends a change: the entry after the count.
         */
        uint32_t before = atomic_load_explicit(&info->adapters_seq, memory_order_acquire);
        if (before % 2 != 0) {
            ll_cpu_relax();
            continue;
        }
        memcpy(out, &info->adapter[i], sizeof(*out));
        /* Acquire fence, pairs with the writer's release fence after it made the count odd: the
         * entry before the second look. */
        atomic_thread_fence(memory_order_acquire);
        if (atomic_load_explicit(&info->adapters_seq, memory_order_relaxed) == before)
            return true;
    }
    return false;
}

int ll_client_adapter(const struct ll_client *client, const char *name)
{
    int rc = ll_client_check(client);

    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < LL_ADAPTERS_MAX; i++) {
        struct ll_adapter_entry entry;
        if (!read_adapter(client->info, i, &entry))
            break;
        entry.name[sizeof(entry.name) - 1] = 0;
        if (entry.id != 0 && entry.id <= LL_ADAPTERS_MAX && strcmp(entry.name, name) == 0)
            return (int)entry.id;
    }
    return LL_ERR(LL_E_INVAL, "adapter \"%s\": this runtime has none of that name", name);
}

int ll_client_stats(const struct ll_client *client, struct ll_stat *out, int n_max)
{
    if (ll_client_is_forked(client))
        return ll_client_check(client);
    for (uint32_t i = 0; i < client->n_stats && (int)i < n_max; i++) {
        const struct ll_stat_entry *entry = &client->stat_entry[i];
        const uint8_t *at = (const uint8_t *)client->stat_region.base + entry->offset;
        out[i] = (struct ll_stat){.name = entry->name};
        if (entry->kind != LL_STAT_HIST) {
            out[i].value = ll_stat_get((const _Atomic uint64_t *)at);
            continue;
        }
        const struct ll_hist *hist = (const struct ll_hist *)at;
        out[i].is_histogram = 1;
        out[i].value = ll_stat_get(&hist->count);
        out[i].p50 = ll_hist_quantile(hist, 0.50);
        out[i].p90 = ll_hist_quantile(hist, 0.90);
        out[i].p99 = ll_hist_quantile(hist, 0.99);
        out[i].max = ll_stat_get(&hist->max);
        out[i].sum = ll_stat_get(&hist->sum);
    }
    return (int)client->n_stats;
}
