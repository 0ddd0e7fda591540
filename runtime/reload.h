/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/reload.h - other weights take over while clients are served (llring reload).
 *
 *   CHECKING  the directory is opened and compared with what serves (reload_check.h)
 *   READING   its weights are read into the set that does not serve, and sealed
 *   WAITING   the step thread withholds newcomers until what runs has ended, --reload-wait at most,
 *             and the sets change places (engine.h)
 *
 *   E1  one at a time; a second one is refused
 *   E2  a failure at any point, or a stop, leaves what serves as it is. What was read is forgotten
 *   E3  reading has a thread of its own, made at start and nicer than those that serve: nothing of
 *       it runs on the step thread, and its memory is the loader's staging buffers
 *   E4  the device has a second set only with --reserve-weights; without, every reload is refused
 *       with what it would take
 *
 * All calls are the control thread's. */
#ifndef RUNTIME_RELOAD_H
#define RUNTIME_RELOAD_H

#include "runtime/control.h"
#include "runtime/reader.h"
#include "runtime/setup.h"

enum ll_reload_state {
    LL_RELOAD_IDLE,
    LL_RELOAD_CHECKING,
    LL_RELOAD_READING,
    LL_RELOAD_WAITING,
};

struct ll_reload_order {
    const char *model; /* directory, or hub name of the local cache */
    uint32_t wait_s;   /* UINT32_MAX: --reload-wait */
    bool cuts;         /* after that end what still runs, instead of giving up */
};

/* Of the reload under way, else of the last one. */
struct ll_reload_report {
    enum ll_reload_state state;
    uint64_t id;  /* counts reloads; 0: there was none */
    uint32_t set; /* that serves */
    bool is_reserved;
    char model[1024];
    uint64_t bytes_done, bytes_total;
    uint64_t elapsed_ns, read_ns, waited_ns; /* of all of it, of reading, of withholding */
    uint32_t n_left;                         /* sequences cut, or for which it was given up */
    int code;                                /* 0, or why the last one failed, while IDLE */
    char error[512];
};

struct ll_reload; /* opaque */

struct ll_reload_options {
    struct ll_setup *setup; /* opened; model name and directory change with a reload */
    struct ll_control *control;
    struct ll_info_region *info;
    struct ll_stats *stats;
    const struct ll_reader_faults *faults; /* NULL but in tests */
};

/* -ENOMEM, ... Makes the thread where a set is reserved. */
int ll_reload_open(struct ll_reload **out, const struct ll_reload_options *options);
/* Stops what is under way. The loop has ended. false: the thread is stuck in a read (a network file
 * system that is gone, say): what it uses must not be freed. NULL is accepted. */
bool ll_reload_close(struct ll_reload *reload);

/* Begins one; its end comes to the log and the report. LL_E_UNSUPPORTED (E4), LL_E_BUSY (E1),
 * LL_E_DRAINING, LL_E_INVAL. */
int ll_reload_begin(struct ll_reload *reload, const struct ll_reload_order *order);
void ll_reload_report(const struct ll_reload *reload, struct ll_reload_report *out);
const char *ll_reload_state_name(enum ll_reload_state state);

#endif
