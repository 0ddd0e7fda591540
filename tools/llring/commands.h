/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/commands.h - the commands of llring, one a file. */
#ifndef TOOLS_LLRING_COMMANDS_H
#define TOOLS_LLRING_COMMANDS_H

#include "tools/common/options.h"

extern const struct command command_serve, command_chat, command_complete, command_batch,
    command_bench, command_status, command_reload, command_check;

#endif
