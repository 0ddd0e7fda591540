/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/trace_load.c - workloads: made from a seed, read, written. */
#include "tests/sim/trace.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct trace_request *add(struct trace_load *load)
{
    if (load->n == load->capacity) {
        load->capacity = load->capacity * 2 + 1024;
        load->request = realloc(load->request, load->capacity * sizeof(*load->request));
        if (load->request == NULL)
            abort();
    }
    struct trace_request *r = &load->request[load->n++];
    *r = (struct trace_request){.seed = load->n};
    return r;
}

static uint32_t class_of(struct trace_load *load, const char *name)
{
    for (uint32_t i = 0; i < load->n_classes; i++)
        if (strcmp(load->class_name[i], name) == 0)
            return i;
    if (load->n_classes == TRACE_CLASSES_MAX)
        return TRACE_CLASSES_MAX;
    snprintf(load->class_name[load->n_classes], sizeof(load->class_name[0]), "%s", name);
    return load->n_classes++;
}

/* ---- made -------------------------------------------------------------------------------------*/

static double unit(uint64_t *random)
{
    return (double)((ll_splitmix64(random) >> 11) + 1) * 0x1p-53;
}

/* Log-uniform: as many from 128 to 256 as from 4K to 8K. */
static uint32_t log_uniform(uint64_t *random, double low, double high)
{
    return (uint32_t)(low * pow(high / low, unit(random)));
}

/* Prompts of 128 to 8K tokens, short answers and long ones; three classes by prompt length. */
static void make_mixed(struct trace_load *load, struct trace_request *r, uint64_t *random)
{
    r->n_prompt = log_uniform(random, 128, 8192);
    r->n_output = log_uniform(random, 32, 512);
    r->class_id = class_of(load, r->n_prompt < 512    ? "to-512"
                                 : r->n_prompt < 2048 ? "to-2K"
                                                      : "to-8K");
    r->tenant = (uint32_t)(unit(random) * 4) % 4;
}

/* A system prompt of 2,048 tokens before a question. */
static void make_shared(struct trace_load *load, struct trace_request *r, uint64_t *random)
{
    r->prefix = 1;
    r->n_shared = 2048;
    r->n_prompt = 2048 + log_uniform(random, 32, 512);
    r->n_output = log_uniform(random, 32, 256);
    r->class_id = class_of(load, "shared");
}

/* Eight tenants; number 0 offers 100 times what each of the others does. */
static void make_fair(struct trace_load *load, struct trace_request *r, uint64_t *random)
{
    double which = unit(random) * 107;

    r->tenant = which < 100 ? 0 : (uint32_t)(which - 100) % 7 + 1;
    r->n_prompt = log_uniform(random, 128, 512);
    r->n_output = log_uniform(random, 64, 128);
    r->class_id = class_of(load, r->tenant == 0 ? "greedy" : "others");
}

static const struct mix {
    const char *name;
    void (*make)(struct trace_load *load, struct trace_request *r, uint64_t *random);
    uint32_t n_tenants;
} mixes[] = {{"mixed", make_mixed, 4}, {"shared", make_shared, 1}, {"fair", make_fair, 8}};

static const struct mix *find_mix(const char *name)
{
    for (size_t i = 0; i < LL_COUNT(mixes); i++)
        if (strcmp(mixes[i].name, name) == 0)
            return &mixes[i];
    return NULL;
}

bool trace_is_mix(const char *mix)
{
    return find_mix(mix) != NULL;
}

void trace_generate(struct trace_load *load, const char *name, double requests_s, double seconds,
                    uint64_t seed)
{
    const struct mix *mix = find_mix(name);
    double at_s = 0;

    *load = (struct trace_load){.end_ns = (uint64_t)(seconds * 1e9), .n_tenants = mix->n_tenants};
    while ((at_s += -log(unit(&seed)) / requests_s) < seconds) {
        struct trace_request *r = add(load);
        r->arrival_ns = (uint64_t)(at_s * 1e9);
        mix->make(load, r, &seed);
    }
}

void trace_again(struct trace_load *load)
{
    for (uint32_t i = 0; i < load->n; i++) {
        struct trace_request *r = &load->request[i];
        r->submit_ns = r->first_ns = r->last_ns = r->end_ns = 0;
        r->n_got = r->n_cached = r->n_in_window = r->n_prompt_in_window = r->n_busy = 0;
        r->code = 0;
        r->is_sent = r->has_ended = false;
    }
}

/* ---- files ------------------------------------------------------------------------------------*/

static int complain(const char *path, uint32_t line, const char *what)
{
    fprintf(stderr, "trace: %s, line %u: %s\n", path, line, what);
    return -1;
}

static int read_line(struct trace_load *load, const char *path, uint32_t number, const char *text)
{
    unsigned long long arrival_us, deadline_ms;
    char name[16];
    int end = 0;
    struct trace_request *r = add(load);

    if (sscanf(text, "%llu %15s %u %d %u %u %u %u %llu %n", &arrival_us, name, &r->tenant,
               &r->priority, &r->n_prompt, &r->prefix, &r->n_shared, &r->n_output, &deadline_ms,
               &end) != 9 ||
        text[end] != 0)
        return complain(path, number,
                        "want arrival_us class tenant priority n_prompt prefix n_shared n_output "
                        "deadline_ms");
    if (r->tenant >= TRACE_TENANTS_MAX)
        return complain(path, number, "tenant: 0 to 15");
    if (r->priority < -128 || r->priority > 127)
        return complain(path, number, "priority: -128 to 127");
    if (r->n_prompt == 0 || r->n_output == 0 || r->n_shared > r->n_prompt)
        return complain(path, number, "lengths: prompt and output at least 1, shared <= prompt");
    r->class_id = class_of(load, name);
    if (r->class_id == TRACE_CLASSES_MAX)
        return complain(path, number, "more than 8 classes");
    if (load->n > 1 && arrival_us * 1000 < r[-1].arrival_ns)
        return complain(path, number, "arrivals must not go back");
    r->arrival_ns = arrival_us * 1000;
    r->deadline_ns = deadline_ms == 0 ? 0 : r->arrival_ns + deadline_ms * LL_NS_PER_MS;
    load->n_tenants = (uint32_t)ll_max_u64(load->n_tenants, r->tenant + 1);
    load->end_ns = r->arrival_ns;
    return 0;
}

int trace_read(struct trace_load *load, const char *path)
{
    char line[256];
    uint32_t number = 0;
    int rc = 0;

    *load = (struct trace_load){0};
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        fprintf(stderr, "trace: %s: %s\n", path, strerror(errno));
        return -1;
    }
    while (rc == 0 && fgets(line, sizeof(line), file) != NULL) {
        number++;
        line[strcspn(line, "#\n")] = 0;
        if (line[strspn(line, " \t")] != 0)
            rc = read_line(load, path, number, line);
    }
    fclose(file);
    if (rc == 0 && load->n == 0)
        rc = complain(path, number, "no request in it");
    return rc;
}

void trace_write(const struct trace_load *load)
{
    printf("# arrival_us class tenant priority n_prompt prefix n_shared n_output deadline_ms\n");
    for (uint32_t i = 0; i < load->n; i++) {
        const struct trace_request *r = &load->request[i];
        printf("%llu %s %u %d %u %u %u %u %llu\n", (unsigned long long)r->arrival_ns / 1000,
               load->class_name[r->class_id], r->tenant, r->priority, r->n_prompt, r->prefix,
               r->n_shared, r->n_output,
               (unsigned long long)(r->deadline_ns == 0
                                        ? 0
                                        : (r->deadline_ns - r->arrival_ns) / LL_NS_PER_MS));
    }
}

void trace_free(struct trace_load *load)
{
    free(load->request);
    *load = (struct trace_load){0};
}
