/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/toolnames.h - the names in a JSON array of tools: {"type": "function", "function":
 * {"name": N, ...}}, {"name": N, ...} or {"type": "code_interpreter"}. */
#ifndef CLIENT_TEXT_TOOLNAMES_H
#define CLIENT_TEXT_TOOLNAMES_H

#include "client/text/bytes.h"

#include <stdbool.h>
#include <stdint.h>

#define LL_TOOL_NAME_MAX 256u /* bytes */
#define LL_TOOLS_MAX     4096u
#define LL_TOOL_CODE     "code_interpreter"

struct ll_tool_names {
    struct ll_bytes text; /* each name with its final NUL */
    uint32_t n;
};

/* Fills a zeroed *out. LL_E_INVAL names "tools" and the byte; -ENOMEM. Free it in either case. */
int ll_tool_names_read(struct ll_tool_names *out, const char *json, size_t n_json);
void ll_tool_names_free(struct ll_tool_names *names);

bool ll_tool_names_has(const struct ll_tool_names *names, const char *name, size_t n_bytes);

#endif
