/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/bench_client.c - the library as an application meets it: attach, and from the call
 * of submit to its first output in hand, with a runtime process that only echoes. */
#include "tests/client/support_echo.h"

#include "base/clock.h"
#include "base/hist.h"

static void print(const char *name, const struct ll_hist *hist, bool is_json, bool is_last)
{
    double p50 = (double)ll_hist_quantile(hist, 0.5) / 1e3;
    double p99 = (double)ll_hist_quantile(hist, 0.99) / 1e3;
    double p999 = (double)ll_hist_quantile(hist, 0.999) / 1e3;

    if (is_json)
        printf("  \"%s\": {\"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f}%s\n", name, p50,
               p99, p999, is_last ? "" : ",");
    else
        printf("%-34s %10.2f %10.2f %10.2f us\n", name, p50, p99, p999);
}

/* Submit to first output; the rest is read before the next. */
static void round_trip(struct ll_client *client, struct ll_hist *hist, uint32_t n_prompt)
{
    static uint32_t prompt[ECHO_PROMPT];
    struct ll_request request = echo_request(prompt, 1);
    struct ll_output out[4];

    request.n_prompt = n_prompt;
    uint64_t start_ns = ll_now_ns();
    if (ll_client_submit(client, &request, NULL) != 0)
        abort();
    while (ll_client_poll(client, out, 1) == 0)
        ;
    ll_hist_add(hist, ll_now_ns() - start_ns);
    while (ll_client_n_open(client) > 0)
        ll_client_poll(client, out, 4);
}

int main(int argc, char **argv)
{
    bool is_json = argc > 1 && strcmp(argv[1], "--json") == 0;
    static struct ll_hist attach, detach, small, large;
    struct echo echo;

    echo_init(&echo);
    echo_start_process(&echo);
    atomic_store(&echo.knobs->never_sleeps, true);
    for (int i = 0; i < 300; i++) {
        uint64_t start_ns = ll_now_ns();
        struct ll_client *client = echo_open(&echo, 0);
        uint64_t open_ns = ll_now_ns();
        ll_client_close(client);
        ll_hist_add(&attach, open_ns - start_ns);
        ll_hist_add(&detach, ll_now_ns() - open_ns);
    }
    struct ll_client *client = echo_open(&echo, 0);
    for (int i = 0; i < 50000; i++)
        round_trip(client, &small, 64);
    for (int i = 0; i < 20000; i++)
        round_trip(client, &large, 2000);
    ll_client_close(client);

    if (is_json)
        printf("{\n");
    else
        printf("%-34s %10s %10s %10s\n", "", "p50", "p99", "p99.9");
    print("attach (32 slots, 1 MiB arena)", &attach, is_json, false);
    print("detach", &detach, is_json, false);
    print("submit to output, 64 ids", &small, is_json, false);
    print("submit to output, 2000 ids", &large, is_json, true);
    if (is_json)
        printf("}\n");
    echo_stop(&echo);
    echo_free(&echo);
    return 0;
}
