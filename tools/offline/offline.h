/* SPDX-License-Identifier: Apache-2.0 */
/* tools/offline/offline.h - the commands of llring that work on model directories, without a
 * runtime. */
#ifndef TOOLS_OFFLINE_OFFLINE_H
#define TOOLS_OFFLINE_OFFLINE_H

#include "tools/common/options.h"

extern const struct command command_inspect, command_quantize;

#endif
