/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_topology.c - which CPU does what, on machines we do not have. */
#include "tests/harness.h"

#include "base/err.h"
#include "ll/client.h"
#include "runtime/topology.h"

#include <sched.h>

/* n CPUs; CPU i + n / 2 is the second thread of i's core where threads_a_core is 2; two nodes. */
static struct ll_machine machine(int n, int threads_a_core)
{
    struct ll_machine m = {.n_nodes = 2};

    for (int i = 0; i < LL_CPUS_MAX; i++) {
        m.is_allowed[i] = i < n;
        m.sibling[i] = threads_a_core == 2 && i < n ? i % (n / 2) : i;
        m.node[i] = i < n ? m.sibling[i] * 2 / (n / threads_a_core) : -1;
    }
    return m;
}

static void cores_come_before_their_second_threads(void **state)
{
    (void)state;
    struct ll_machine m = machine(8, 2);
    struct ll_topology t;
    const int order[] = {0, 1, 2, 3, 4, 5, 6, 7};

    assert_int_equal(ll_topology_find(&t, &m, "", 0, LL_PIN_AUTO), 0);
    assert_int_equal(t.n_cpus, 8);
    assert_int_equal(t.n_cores, 4);
    assert_int_equal(t.n_threads, 4);
    assert_true(t.is_pinned && !t.yields);
    assert_memory_equal(t.cpu, order, sizeof(order));
    assert_int_equal(t.worker[0], 0);
    assert_int_equal(t.numa_node, 0);

    /* the list leaves out the first thread of core 2: its second leads it */
    const int left[] = {1, 3, 6, 5, 7};
    assert_int_equal(ll_topology_find(&t, &m, "1,3,5-7", 0, LL_PIN_AUTO), 0);
    assert_int_equal(t.n_cores, 3);
    assert_memory_equal(t.cpu, left, sizeof(left));
    assert_int_equal(t.numa_node, 0);
    assert_int_equal(ll_topology_find(&t, &m, "3", 0, LL_PIN_AUTO), 0);
    assert_int_equal(t.numa_node, 1);
}

static void one_or_two_cpus_are_not_pinned_unless_asked(void **state)
{
    (void)state;
    struct ll_topology t;

    for (int n = 1; n <= 3; n++) {
        struct ll_machine m = machine(n, 1);
        assert_int_equal(ll_topology_find(&t, &m, "", 0, LL_PIN_AUTO), 0);
        assert_int_equal(t.is_pinned, n == 3);
        assert_int_equal(t.yields, n < 3);
        assert_int_equal(t.worker[0], n == 3 ? 0 : -1);
        assert_int_equal(ll_topology_find(&t, &m, "", 0, LL_PIN_ALWAYS), 0);
        assert_true(t.is_pinned);
        assert_int_equal(ll_topology_find(&t, &m, "0", 0, LL_PIN_AUTO), 0);
        assert_true(t.is_pinned);
        assert_int_equal(ll_topology_find(&t, &m, "0", 0, LL_PIN_NEVER), 0);
        assert_false(t.is_pinned);
    }
}

static void a_cgroup_quota_counts_as_so_many_cpus(void **state)
{
    (void)state;
    struct ll_machine m = machine(64, 2);
    struct ll_topology t;

    m.quota_cpus = 2;
    assert_int_equal(ll_topology_find(&t, &m, "", 0, LL_PIN_AUTO), 0);
    assert_int_equal(t.n_threads, 2);
    assert_true(t.yields && !t.is_pinned);
    m.quota_cpus = 6;
    assert_int_equal(ll_topology_find(&t, &m, "", 0, LL_PIN_AUTO), 0);
    assert_int_equal(t.n_threads, 6);
    assert_true(t.is_pinned);
}

static void more_threads_than_cpus_share(void **state)
{
    (void)state;
    struct ll_machine m = machine(4, 1);
    struct ll_topology t;

    assert_int_equal(ll_topology_find(&t, &m, "", 6, LL_PIN_AUTO), 0);
    assert_int_equal(t.n_threads, 6);
    assert_int_equal(t.worker[3], 3);
    assert_int_equal(t.worker[4], -1);
}

static void bad_lists_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "x", "1-", "-1", "3-1", "1,,2", "1,", "1024", "0-99999999999", "1 2"};
    bool mask[LL_CPUS_MAX];
    struct ll_machine m = machine(4, 1);
    struct ll_topology t;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (ll_cpu_list_read(bad[i], mask) != LL_E_INVAL)
            fail_msg("\"%s\" was accepted", bad[i]);
    assert_int_equal(ll_cpu_list_read("0-1,1023", mask), 0);
    assert_true(mask[0] && mask[1] && !mask[2] && mask[1023]);
    assert_int_equal(ll_topology_find(&t, &m, "2-4", 0, LL_PIN_AUTO), LL_E_INVAL);
    assert_non_null(strstr(ll_err_text(), "--cpus: CPU 4 is not there"));
}

static void a_thread_goes_to_its_cpu(void **state)
{
    (void)state;
    struct ll_machine m;
    struct ll_topology t;
    cpu_set_t before, now;

    sched_getaffinity(0, sizeof(before), &before);
    ll_machine_read(&m);
    assert_int_equal(ll_topology_find(&t, &m, "", 0, LL_PIN_ALWAYS), 0);
    assert_int_equal(t.n_cpus, CPU_COUNT(&before));
    ll_topology_take_step_cpu(&t);
    sched_getaffinity(0, sizeof(now), &now);
    assert_int_equal(CPU_COUNT(&now), 1);
    assert_true(CPU_ISSET((size_t)t.cpu[0], &now));
    ll_topology_leave_step_cpu(&t);
    sched_getaffinity(0, sizeof(now), &now);
    if (t.n_cpus > 1) {
        assert_int_equal(CPU_COUNT(&now), t.n_cpus - 1);
        assert_false(CPU_ISSET((size_t)t.cpu[0], &now));
    }
    sched_setaffinity(0, sizeof(before), &before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cores_come_before_their_second_threads),
        cmocka_unit_test(one_or_two_cpus_are_not_pinned_unless_asked),
        cmocka_unit_test(a_cgroup_quota_counts_as_so_many_cpus),
        cmocka_unit_test(more_threads_than_cpus_share),
        cmocka_unit_test(bad_lists_are_refused),
        cmocka_unit_test(a_thread_goes_to_its_cpu),
    };
    return cmocka_run_group_tests_name("runtime/topology", tests, NULL, NULL);
}
