/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/http/support_rig.h"

/* In the program it stands in main.c. */
bool server_is_hurried(void)
{
    return false;
}

int http_rig_open(struct http_rig *rig)
{
    static const char *const arguments[] = {LL_SOURCE_DIR "/tools/demo-model",
                                            "--device",
                                            "fake",
                                            "--fake-vocab",
                                            "4106",
                                            "--log-level",
                                            "warn",
                                            NULL};
    int code;

    *rig = (struct http_rig){.server = {.options = {.n_slots = 16,
                                                    .n_threads = 1,
                                                    .connections_max = 16,
                                                    .body_bytes_max = 1 << 20}}};
    if (ll_test_runtime_start(&rig->runtime, arguments) != 0)
        return -1;
    rig->server.options.socket = rig->runtime.socket;
    rig->server.loop = &rig->loop;
    rig->server.is_loopback = true;
    rig->loop.server = &rig->server;
    server_name_runtimes(&rig->server);
    rig->loop.link = rig->loop.at[0].link = link_open(&rig->server, &rig->server.runtime[0], &code);
    rig->loop.base = event_base_new();
    return rig->loop.link != NULL && rig->loop.base != NULL ? 0 : -1;
}

void http_rig_close(struct http_rig *rig)
{
    if (rig->loop.link != NULL)
        link_release(rig->loop.link);
    if (rig->loop.base != NULL)
        event_base_free(rig->loop.base);
    ll_test_runtime_stop(&rig->runtime);
}

void http_rig_turn(struct http_rig *rig)
{
    struct loop *loop = &rig->loop;
    struct ll_output out[16];
    int n;

    event_base_loop(loop->base, EVLOOP_ONCE | EVLOOP_NONBLOCK); /* one pass */
    while ((n = ll_client_poll(loop->link->client, out, 16)) > 0)
        for (int i = 0; i < n; i++)
            job_output(&out[i]);
    while (loop->dirty != NULL) {
        struct conn *list = loop->dirty;
        loop->dirty = NULL;
        while (list != NULL) {
            struct conn *conn = list;
            list = conn->next_dirty;
            conn_settle(conn);
        }
    }
}
