/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/sim.c - runs seeds; see sim.h for what is simulated and what is promised.
 *
 *   sim --seeds 2000 --steps 2000    seeds 1 .. 2000
 *   sim --seed 77 --steps 2000       one seed again: what a failure prints
 *   sim --quiet                      honest clients, no faults: for speed
 *   sim --twice                      each seed twice; the trace hashes must agree
 *
 * Exit status 0: all promises kept; 1: one was broken; 2: wrong usage. */
#include "tests/sim/sim.h"

#include "base/err.h"
#include "base/log.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define SECONDS_A_SEED 60u

static struct sim_world world; /* large */
static char last_log[400];
static uint64_t n_steps_asked = 2000;
static int quiet = -1;

/* Lines of the runtime's log are kept, not printed: faults are wanted here. */
void __wrap_ll_log(enum ll_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void __wrap_ll_log(enum ll_log_level level, const char *format, ...)
{
    va_list args;

    (void)level;
    va_start(args, format);
    vsnprintf(last_log, sizeof(last_log), format, args);
    va_end(args);
}

/* ---- failures ---------------------------------------------------------------------------------*/

static void print_replay(const struct sim_world *w)
{
    fprintf(stderr, "replay: sim --seed %llu --steps %llu%s\n", (unsigned long long)w->seed,
            (unsigned long long)n_steps_asked, quiet == 1 ? " --quiet" : "");
}

/* Who is there and what is open. */
static void print_world(const struct sim_world *w)
{
    static const char *const kinds[] = {"honest", "buggy", "dying", "stalled", "hostile"};
    static const char *const places[] = {"out", "attached", "dead", "leaving"};

    const struct sim_knobs *k = &w->k;
    fprintf(stderr,
            "%u pages of 64, context %u, %u device slots, %u rows and %u tokens a step, depth %u, "
            "%u sequences, rings of 2^%u, stall %llu ms\n",
            k->n_pages, k->context_max, k->n_device_slots, k->n_rows_max, k->n_tokens_max, k->depth,
            k->n_sequences, k->log2_events, (unsigned long long)(k->stall_ns / LL_NS_PER_MS));
    for (uint32_t i = 0; i < w->k.n_clients; i++) {
        const struct sim_client *client = &w->client[i];
        fprintf(stderr, "client %u: %s, %s, incarnation %u, domain %u\n", i, kinds[client->kind],
                places[client->place], client->incarnation, i % w->k.n_domains);
        if (client->place == SIM_OUT)
            continue;
        fprintf(stderr,
                "  submitted %llu, doorbells %llu, read %llu of %llu events%s%s%s%s, bell %s\n",
                (unsigned long long)atomic_load(&client->hot->n_submitted),
                (unsigned long long)client->a.n_doorbells, (unsigned long long)client->reader.pos,
                (unsigned long long)client->a.events.prod, client->is_asleep ? ", asleep" : "",
                client->is_calm ? ", calm" : "", client->is_hoarder ? ", hoarder" : "",
                client->a.is_fenced ? ", fenced" : "",
                client->domain->d.is_swept_only ? "swept" : "believed");
        for (uint32_t s = 0; s < client->a.n_slots; s++) {
            const struct sim_request *r = &client->request[s];
            if (!r->is_open)
                continue;
            fprintf(stderr,
                    "  slot %u gen %u: shadow gen %u phase %u, phase %#x, prompt %u output %u/%u\n",
                    s, r->gen, client->a.shadow[s].gen, client->a.shadow[s].phase,
                    atomic_load(&client->a.rst[s].state), r->sent.n_prompt, r->choice[0].n_got,
                    r->max_tokens);
        }
    }
}

static void print_sequences(const struct sim_world *w)
{
    static const char *const states[] = {"free", "intake", "waiting", "running", "ending"};

    if (!w->is_open)
        return;
    fprintf(stderr, "%llu preemptions, %u of %u pages free\n",
            (unsigned long long)ll_stat_get(&w->stat->v.preemptions), w->engine.kv.n_free,
            w->engine.kv.n_pages);
    for (uint32_t i = 0; i < w->engine.pool.n; i++) {
        const struct ll_seq *seq = &w->engine.pool.seq[i];
        if (seq->state != LL_SEQ_FREE)
            fprintf(stderr,
                    "sequence %u: %s, client %u slot %u gen %u, tokens %u + %u of %u, at %u, "
                    "%u pages, %u rows in flight, %u events written, %u booked, %u taken%s%s%s\n",
                    i, states[seq->state], seq->client, seq->slot, seq->gen, seq->n_prompt,
                    seq->n_tokens - seq->n_prompt, seq->max_tokens, seq->pos_hi, seq->n_pages,
                    seq->n_in_flight, seq->n_written, seq->n_booked, seq->n_taken,
                    seq->is_preempted ? ", preempted" : "", seq->starved_ns ? ", starved" : "",
                    seq->end ? ", ended" : "");
    }
}

_Noreturn void sim_fail(const struct sim_world *w, const char *format, ...)
{
    va_list args;

    fflush(stdout);
    fprintf(stderr, "\nseed %llu, step %llu: ", (unsigned long long)w->seed,
            (unsigned long long)w->step);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
    if (last_log[0] != 0)
        fprintf(stderr, "last line of the log: %s\n", last_log);
    print_world(w);
    print_sequences(w);
    print_replay(w);
    _exit(1);
}

/* LL_ASSERT aborts, a wild pointer faults, an endless loop runs into the alarm. The handler is not
 * async-signal-safe; the program ends here in any case. */
static void die(int signal_number)
{
    fprintf(stderr, "\nseed %llu, step %llu: %s\n", (unsigned long long)world.seed,
            (unsigned long long)world.step,
            signal_number == SIGABRT   ? "an assertion of the runtime does not hold"
            : signal_number == SIGALRM ? "takes too long: an endless loop?"
                                       : strsignal(signal_number));
    print_replay(&world);
    _exit(1);
}

/* ---- options ----------------------------------------------------------------------------------*/

struct options {
    uint64_t first, n_seeds;
    bool is_twice, is_verbose;
};

static _Noreturn void usage(const char *what)
{
    if (what != NULL)
        fprintf(stderr, "sim: %s\n", what);
    fprintf(stderr, "usage: sim [--seed N] [--seeds N] [--steps N] [--quiet | --faulty] [--twice] "
                    "[--verbose]\n");
    exit(2);
}

static uint64_t number(int argc, char **argv, int i)
{
    char *end;

    if (i >= argc)
        usage("the last option wants a number");
    errno = 0;
    uint64_t value = strtoull(argv[i], &end, 0);
    if (errno != 0 || *end != 0 || end == argv[i] || argv[i][0] == '-')
        usage("an option wants a number from 0");
    return value;
}

static struct options parse(int argc, char **argv)
{
    struct options o = {.first = 1};

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seed") == 0)
            o.first = number(argc, argv, ++i);
        else if (strcmp(argv[i], "--seeds") == 0)
            o.n_seeds = number(argc, argv, ++i);
        else if (strcmp(argv[i], "--steps") == 0)
            n_steps_asked = number(argc, argv, ++i);
        else if (strcmp(argv[i], "--quiet") == 0)
            quiet = 1;
        else if (strcmp(argv[i], "--faulty") == 0)
            quiet = 0;
        else if (strcmp(argv[i], "--twice") == 0)
            o.is_twice = true;
        else if (strcmp(argv[i], "--verbose") == 0)
            o.is_verbose = true;
        else
            usage(argv[i]);
    }
    if (o.n_seeds == 0)
        o.n_seeds = 1;
    return o;
}

/* ---- a run ------------------------------------------------------------------------------------*/

static void add_counts(struct sim_counts *total, const struct sim_counts *n)
{
    uint64_t *to = (uint64_t *)(void *)total;
    const uint64_t *from = (const uint64_t *)(const void *)n;

    static_assert(sizeof(*n) % sizeof(uint64_t) == 0, "counts are all u64");
    for (size_t i = 0; i < sizeof(*n) / sizeof(uint64_t); i++)
        to[i] += from[i];
}

static double user_seconds(void)
{
    struct rusage usage_now;

    getrusage(RUSAGE_SELF, &usage_now);
    return (double)usage_now.ru_utime.tv_sec + 1e-6 * (double)usage_now.ru_utime.tv_usec;
}

int main(int argc, char **argv)
{
    struct options o = parse(argc, argv);
    struct sim_counts total = {0};
    uint64_t n_steps = 0, hash = 0;
    double begin = user_seconds();

    signal(SIGABRT, die);
    signal(SIGSEGV, die);
    signal(SIGBUS, die);
    signal(SIGFPE, die);
    signal(SIGALRM, die);
    for (uint64_t seed = o.first; seed < o.first + o.n_seeds; seed++) {
        last_log[0] = 0;
        alarm(SECONDS_A_SEED);
        sim_run(&world, seed, n_steps_asked, quiet);
        uint64_t first_hash = world.hash;
        n_steps += world.step;
        add_counts(&total, &world.n);
        hash = hash * 31 + first_hash;
        if (o.is_verbose)
            printf("seed %llu: %llu steps, hash %016llx\n", (unsigned long long)seed,
                   (unsigned long long)world.step, (unsigned long long)first_hash);
        if (!o.is_twice)
            continue;
        sim_run(&world, seed, n_steps_asked, quiet);
        n_steps += world.step;
        if (world.hash != first_hash)
            sim_fail(&world, "hash %016llx, then %016llx", (unsigned long long)first_hash,
                     (unsigned long long)world.hash);
    }
    double seconds = user_seconds() - begin;
    printf("%llu seeds, %llu steps, %.0f steps/s of user time, hash %016llx\n",
           (unsigned long long)o.n_seeds, (unsigned long long)n_steps,
           (double)n_steps / (seconds > 0 ? seconds : 1e-9), (unsigned long long)hash);
    printf("requests %llu: finished %llu cancelled %llu expired %llu stalled %llu failed %llu "
           "refused %llu busy %llu\n",
           (unsigned long long)total.submitted, (unsigned long long)total.finished,
           (unsigned long long)total.cancelled, (unsigned long long)total.expired,
           (unsigned long long)total.stalled, (unsigned long long)total.failed,
           (unsigned long long)total.refused, (unsigned long long)total.busy);
    printf("tokens %llu, choices %llu, preemptions %llu (%llu swapped), from cache %llu, shared "
           "%llu, wakes %llu; deaths %llu fenced %llu "
           "device failures %llu restarts %llu clock jumps %llu\n",
           (unsigned long long)total.tokens, (unsigned long long)total.choices,
           (unsigned long long)total.preemptions, (unsigned long long)total.swapped,
           (unsigned long long)total.cached, (unsigned long long)total.shared,
           (unsigned long long)total.wakes, (unsigned long long)total.deaths,
           (unsigned long long)total.fenced, (unsigned long long)total.failures,
           (unsigned long long)total.restarts, (unsigned long long)total.jumps);
    return 0;
}
