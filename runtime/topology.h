/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/topology.h - which CPU does what.
 *
 * Of the CPUs this process may use (affinity, --cpus, the cgroup's quota) one thread of each core
 * comes first. The first is the step thread's, and its NUMA node is where memory is bound.
 *
 *   W1  threads are tied to CPUs only where there are some to spare (3 or more) or where the user
 *       named them: on one or two CPUs a pinned spinning thread starves everybody
 *   W2  with 1 or 2 CPUs the step loop yields between empty polls */
#ifndef RUNTIME_TOPOLOGY_H
#define RUNTIME_TOPOLOGY_H

#include <stdbool.h>
#include <stdint.h>

#define LL_CPUS_MAX 1024

enum ll_pin { LL_PIN_AUTO = 0, LL_PIN_ALWAYS = 1, LL_PIN_NEVER = 2 };

struct ll_topology {
    uint32_t n_cpus, n_cores; /* usable */
    int cpu[LL_CPUS_MAX];     /* [n_cpus] first threads of cores, then their siblings */
    uint32_t n_threads;       /* workers, the step thread included */
    int worker[LL_CPUS_MAX];  /* [n_threads] CPU of each, worker[0] the step thread's; -1: any */
    int numa_node;            /* -1: there is one only, or it is not known */
    bool is_pinned, yields;
};

/* "0-3,8,10-11" into mask[cpu]; LL_E_INVAL names what is wrong. */
int ll_cpu_list_read(const char *list, bool mask[LL_CPUS_MAX]);

/* What a machine looks like: tests hand in others. */
struct ll_machine {
    bool is_allowed[LL_CPUS_MAX];
    int sibling[LL_CPUS_MAX]; /* lowest CPU of the same core */
    int node[LL_CPUS_MAX];    /* NUMA node, -1 unknown */
    uint32_t n_nodes;
    uint32_t quota_cpus; /* of the cgroup, rounded up; 0: none */
};
void ll_machine_read(struct ll_machine *out);

/* cpus: "" for any; n_threads 0: one a core. LL_E_INVAL: a CPU that this process may not use. */
int ll_topology_find(struct ll_topology *out, const struct ll_machine *machine, const char *cpus,
                     uint32_t n_threads, enum ll_pin pin);

/* Ties the calling thread to the step thread's CPU, or keeps it off it, where is_pinned. */
void ll_topology_take_step_cpu(const struct ll_topology *topology);
void ll_topology_leave_step_cpu(const struct ll_topology *topology);

#endif
