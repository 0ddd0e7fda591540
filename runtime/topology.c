/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/topology.h"

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"

#include <ctype.h>
#include <numa.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int ll_cpu_list_read(const char *list, bool mask[LL_CPUS_MAX])
{
    memset(mask, 0, LL_CPUS_MAX * sizeof(mask[0]));
    for (const char *at = list;;) {
        char *end;
        if (!isdigit((unsigned char)*at))
            return LL_ERR(LL_E_INVAL, "\"%s\" is no CPU list; write it like 0-3,8", list);
        unsigned long first = strtoul(at, &end, 10), last = first;
        if (*end == '-') {
            at = end + 1;
            if (!isdigit((unsigned char)*at))
                return LL_ERR(LL_E_INVAL, "\"%s\" is no CPU list; write it like 0-3,8", list);
            last = strtoul(at, &end, 10);
        }
        if (first > last || last >= LL_CPUS_MAX)
            return LL_ERR(LL_E_INVAL, "\"%s\": CPUs go upwards from 0 to %d", list,
                          LL_CPUS_MAX - 1);
        for (unsigned long cpu = first; cpu <= last; cpu++)
            mask[cpu] = true;
        if (*end == 0)
            return 0;
        if (*end != ',')
            return LL_ERR(LL_E_INVAL, "\"%s\" is no CPU list; write it like 0-3,8", list);
        at = end + 1;
    }
}

/* Lowest CPU of a core, from the kernel; the CPU itself where that is silent. */
static int read_sibling(int cpu)
{
    char path[96];
    int first = cpu;

    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
             cpu);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return cpu;
    if (fscanf(file, "%d", &first) != 1 || first < 0 || first >= LL_CPUS_MAX)
        first = cpu;
    fclose(file);
    return first;
}

/* cpu.max of the own cgroup (version 2) as seen inside a container. */
static uint32_t read_quota(void)
{
    unsigned long long quota, period;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");

    if (file == NULL)
        return 0;
    int n = fscanf(file, "%llu %llu", &quota, &period); /* "max 100000": none */
    fclose(file);
    return n == 2 && period > 0 && quota > 0
               ? (uint32_t)ll_min_u64(ll_div_ceil(quota, period), LL_CPUS_MAX)
               : 0;
}

void ll_machine_read(struct ll_machine *out)
{
    cpu_set_t *set = CPU_ALLOC(LL_CPUS_MAX);
    size_t n_bytes = CPU_ALLOC_SIZE(LL_CPUS_MAX);
    bool has_numa = numa_available() >= 0;

    memset(out, 0, sizeof(*out));
    CPU_ZERO_S(n_bytes, set);
    if (sched_getaffinity(0, n_bytes, set) < 0)
        CPU_SET_S(0, n_bytes, set);
    out->n_nodes = has_numa ? (uint32_t)numa_max_node() + 1 : 1;
    out->quota_cpus = read_quota();
    for (int cpu = 0; cpu < LL_CPUS_MAX; cpu++) {
        out->is_allowed[cpu] = CPU_ISSET_S((size_t)cpu, n_bytes, set);
        out->sibling[cpu] = out->is_allowed[cpu] ? read_sibling(cpu) : cpu;
        out->node[cpu] = has_numa && out->is_allowed[cpu] ? numa_node_of_cpu(cpu) : -1;
    }
    CPU_FREE(set);
}

/* Those of the machine that the list leaves, first threads of cores first; a core whose first
 * thread is left out is led by its lowest one. */
static void order_cpus(struct ll_topology *out, const struct ll_machine *machine, const bool *mask)
{
    bool is_led[LL_CPUS_MAX] = {false}, is_first[LL_CPUS_MAX] = {false};

    for (int cpu = 0; cpu < LL_CPUS_MAX; cpu++)
        if (mask[cpu] && !is_led[machine->sibling[cpu]]) {
            is_led[machine->sibling[cpu]] = true;
            is_first[cpu] = true;
            out->cpu[out->n_cpus++] = cpu;
        }
    out->n_cores = out->n_cpus;
    for (int cpu = 0; cpu < LL_CPUS_MAX; cpu++)
        if (mask[cpu] && !is_first[cpu])
            out->cpu[out->n_cpus++] = cpu;
}

int ll_topology_find(struct ll_topology *out, const struct ll_machine *machine, const char *cpus,
                     uint32_t n_threads, enum ll_pin pin)
{
    bool mask[LL_CPUS_MAX];

    memset(out, 0, sizeof(*out));
    memcpy(mask, machine->is_allowed, sizeof(mask));
    if (cpus[0] != 0) {
        int rc = ll_cpu_list_read(cpus, mask);
        if (rc < 0)
            return ll_err_prefix(rc, "--cpus");
        for (int cpu = 0; cpu < LL_CPUS_MAX; cpu++)
            if (mask[cpu] && !machine->is_allowed[cpu])
                return LL_ERR(LL_E_INVAL,
                              "--cpus: CPU %d is not there, or this process may not use it", cpu);
    }
    order_cpus(out, machine, mask);

    uint32_t usable = out->n_cpus, cores = out->n_cores;
    if (machine->quota_cpus > 0) {
        usable = (uint32_t)ll_min_u64(usable, machine->quota_cpus);
        cores = (uint32_t)ll_min_u64(cores, machine->quota_cpus);
    }
    out->yields = usable <= 2;
    out->is_pinned = pin == LL_PIN_ALWAYS || (pin == LL_PIN_AUTO && (usable > 2 || cpus[0] != 0));
    out->n_threads = n_threads > 0 ? n_threads : cores;
    for (uint32_t i = 0; i < out->n_threads; i++)
        out->worker[i] = out->is_pinned && i < out->n_cpus ? out->cpu[i] : -1;
    out->numa_node = machine->n_nodes > 1 && out->is_pinned ? machine->node[out->cpu[0]] : -1;
    return 0;
}

/* Pinning is a wish: where it is refused (a cpuset changed meanwhile) work goes on, and says so. */
static void set_affinity(const struct ll_topology *topology, bool is_step)
{
    cpu_set_t *set = CPU_ALLOC(LL_CPUS_MAX);
    size_t n_bytes = CPU_ALLOC_SIZE(LL_CPUS_MAX);

    CPU_ZERO_S(n_bytes, set);
    for (uint32_t i = 0; i < topology->n_cpus; i++)
        if ((i == 0) == is_step)
            CPU_SET_S((size_t)topology->cpu[i], n_bytes, set);
    if (sched_setaffinity(0, n_bytes, set) < 0)
        ll_warn("could not tie the %s thread to its CPU: %s", is_step ? "step" : "control",
                strerror(errno));
    CPU_FREE(set);
}

void ll_topology_take_step_cpu(const struct ll_topology *topology)
{
    if (topology->is_pinned)
        set_affinity(topology, true);
}

void ll_topology_leave_step_cpu(const struct ll_topology *topology)
{
    if (topology->is_pinned && topology->n_cpus > 1)
        set_affinity(topology, false);
}
