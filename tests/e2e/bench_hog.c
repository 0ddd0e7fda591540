/* SPDX-License-Identifier: Apache-2.0 */
/* tests/e2e/bench_hog.c - a bad neighbour: walks through memory past every cache, one line after
 * the other, and computes on it, on each CPU given, until it is killed. For tools/dev/bench-serve.
 *
 * Usage: bench_hog CPU... */
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

#define HOG_BYTES ((size_t)256 << 20)

static void hog(int cpu)
{
    cpu_set_t set;
    uint64_t x = (uint64_t)cpu;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set) != 0)
        perror("bench_hog: affinity");
    uint64_t *memory =
        mmap(NULL, HOG_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        exit(1);
    for (;;)
        for (size_t i = 0; i < HOG_BYTES / sizeof(*memory); i += 8)
            memory[i] = x = (x ^ memory[i]) * 0x9e3779b97f4a7c15u + i;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            hog(atoi(argv[i]));
        }
    pause();
    return 0;
}
