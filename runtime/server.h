/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/server.h - llringd from start to stop: what is made, in which order, by which thread.
 *
 *   main thread     options, model, device, weights, regions; then it is the control thread
 *   step thread     the engine: made when all is there, ended before anything is taken apart
 *   child process   builds the tokenizer image while the weights load (tokimage.h)
 *
 *   V1  the control socket is bound only when READY; its lock is taken before anything is loaded
 *   V2  no network socket is ever opened; no prompt reaches a log or a core dump
 *   V3  SIGTERM while loading stops at the next piece; once READY it drains
 *   V4  whatever was made is taken apart in the reverse order, also after a failure in between */
#ifndef RUNTIME_SERVER_H
#define RUNTIME_SERVER_H

#include "runtime/config.h"

/* Exit status: 0 stopped as asked, 1 failure (told on standard error), 2 options that do not go
 * together, 3 the device failed after READY: another start may help. */
int ll_server_run(const struct ll_config *config);

#endif
