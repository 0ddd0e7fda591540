/* SPDX-License-Identifier: Apache-2.0 */
#include "shm/stat.h"

#include "base/bits.h"
#include "base/err.h"
#include "ll/client.h"

#include <string.h>

struct entry {
    const char *name;
    enum ll_stat_kind kind;
    size_t offset;
};

#define AT(field)  (offsetof(struct ll_stat_region, v) + offsetof(struct ll_stats, field))
#define COUNTER(n) {#n, LL_STAT_COUNTER, AT(n)},
#define GAUGE(n)   {#n, LL_STAT_GAUGE, AT(n)},
#define HIST(n)    {#n, LL_STAT_HIST, AT(n)},
static const struct entry entries[] = {
    LL_STAT_COUNTERS(COUNTER) LL_STAT_GAUGES(GAUGE) LL_STAT_CONTROL(COUNTER) LL_STAT_RELOAD(GAUGE)
        LL_STAT_HISTS(HIST) LL_STAT_GPU(GAUGE)}; /* last: may be left out */
static_assert(LL_COUNT(entries) == LL_STAT_N, "one entry a figure");

void ll_stat_init(struct ll_stat_region *region, uint64_t now_ns)
{
    for (size_t i = 0; i < LL_COUNT(entries); i++) {
        struct ll_stat_entry *out = &region->entry[i];
        strncpy(out->name, entries[i].name, sizeof(out->name) - 1);
        out->kind = (uint32_t)entries[i].kind;
        out->offset = (uint32_t)entries[i].offset;
    }
    region->n_entries = LL_STAT_N - LL_STAT_N_GPU;
    region->entry_bytes = sizeof(struct ll_stat_entry);
    region->off_entries = (uint32_t)offsetof(struct ll_stat_region, entry);
    region->size_bytes = sizeof(*region);
    region->hist_sub_bits = LL_HIST_SUB_BITS;
    region->hist_buckets = LL_HIST_BUCKETS;
    region->start_ns = now_ns;
    region->magic = LL_STAT_MAGIC;
}

void ll_stat_show_gpu(struct ll_stat_region *region)
{
    region->n_entries = LL_STAT_N;
}

int ll_stat_check(const struct ll_stat_region *region, uint64_t size_bytes)
{
    if (size_bytes < offsetof(struct ll_stat_region, entry) || region->magic != LL_STAT_MAGIC ||
        region->entry_bytes != sizeof(struct ll_stat_entry) ||
        region->hist_sub_bits != LL_HIST_SUB_BITS || region->hist_buckets != LL_HIST_BUCKETS ||
        !ll_span_fits(region->off_entries,
                      (uint64_t)region->n_entries * sizeof(struct ll_stat_entry), size_bytes) ||
        region->off_entries % 8 != 0)
        return LL_ERR(LL_E_PROTOCOL, "the statistics region does not describe itself soundly");

    const struct ll_stat_entry *list =
        (const struct ll_stat_entry *)((const char *)region + region->off_entries);
    for (uint32_t i = 0; i < region->n_entries; i++) {
        size_t bytes = list[i].kind == LL_STAT_HIST ? sizeof(struct ll_hist) : sizeof(uint64_t);
        if (list[i].kind < LL_STAT_COUNTER || list[i].kind > LL_STAT_HIST ||
            memchr(list[i].name, 0, sizeof(list[i].name)) == NULL || list[i].offset % 8 != 0 ||
            !ll_span_fits(list[i].offset, bytes, size_bytes))
            return LL_ERR(LL_E_PROTOCOL, "statistics entry %u points outside its region", i);
    }
    return 0;
}
