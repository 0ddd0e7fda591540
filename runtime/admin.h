/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/admin.h - admin.sock: one line in, JSON out, for whoever runs the runtime.
 *
 * A stream socket of mode 0600 in the control thread's loop. A peer sends one line, gets one JSON
 * object and a newline, and the connection ends. Lines: status; drain; adapters; help; and
 *
 *   reload                               how a reload goes, or went: the object "reload" of status
 *   reload [--reload-wait=SECONDS] [--cut] DIR
 *                                        begins one and answers likewise, or with its refusal
 *
 * Everything is made at start: at most LL_ADMIN_PEERS connections at a time (a further one takes
 * the oldest one's place), lines of at most 1,279 bytes, answers of at most 256 KiB. */
#ifndef RUNTIME_ADMIN_H
#define RUNTIME_ADMIN_H

#include "runtime/control.h"
#include "runtime/reload.h"

#define LL_ADMIN_PEERS    4
#define LL_ADMIN_PHASES   8
#define LL_ADMIN_ANSWER   (256u << 10)
#define LL_ADMIN_LINE_MAX 1280u /* a path and what goes with it */

/* How the start went, phase by phase. */
struct ll_admin_phase {
    const char *name; /* static */
    uint64_t ns;
};

struct ll_admin_options {
    const char *socket; /* path */
    struct ll_control *control;
    struct ll_reload *reload;
    const struct ll_info_region *info;
    const struct ll_stat_region *stat;
    const char *model;  /* directory; "" for the fake device */
    const char *device; /* caps.device */
    struct ll_admin_phase phase[LL_ADMIN_PHASES];
    uint32_t n_phases;
};

struct ll_admin; /* opaque */

/* Binds the socket (a stale one is replaced: the control socket's lock file says that nobody else
 * serves here) and registers it. The strings must outlive *out. */
int ll_admin_open(struct ll_admin **out, const struct ll_admin_options *options);
/* Unlinks the socket and frees. NULL is accepted. Before ll_control_destroy(). */
void ll_admin_close(struct ll_admin *admin);

#endif
