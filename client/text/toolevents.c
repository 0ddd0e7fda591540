/* SPDX-License-Identifier: Apache-2.0 */
#include "client/text/toolevents.h"

int ll_tool_events_add(struct ll_tool_events *events, enum ll_tool_event_type type, uint32_t call,
                       const char *text, size_t n_bytes)
{
    struct ll_tool_event *last = events->n > 0 ? &events->list[events->n - 1] : NULL;
    size_t at = events->text.n;

    if (n_bytes == 0)
        return 0;
    int rc = ll_bytes_append(&events->text, text, n_bytes);
    if (rc < 0)
        return rc;
    if (last != NULL && last->type == type && last->call == call) {
        last->n += n_bytes;
        return 0;
    }
    if (events->n == events->capacity) {
        size_t wanted = events->capacity == 0 ? 16 : 2 * events->capacity;
        struct ll_tool_event *grown = realloc(events->list, wanted * sizeof(*grown));
        if (grown == NULL)
            return LL_ERR(-ENOMEM, "no memory for %zu events of tool calls", wanted);
        events->list = grown;
        events->capacity = wanted;
    }
    events->list[events->n++] = (struct ll_tool_event){type, call, at, n_bytes};
    return 0;
}

int ll_tool_events_next(struct ll_tool_events *events, struct ll_toolcalls_event *out)
{
    if (events->next == events->n)
        return 0;
    const struct ll_tool_event *from = &events->list[events->next++];
    *out = (struct ll_toolcalls_event){.type = from->type,
                                       .index = from->call,
                                       .text = events->text.at + from->at,
                                       .n_text = from->n};
    return 1;
}

void ll_tool_events_clear(struct ll_tool_events *events)
{
    events->text.n = events->n = events->next = 0;
}

void ll_tool_events_free(struct ll_tool_events *events)
{
    free(events->text.at);
    free(events->list);
    *events = (struct ll_tool_events){0};
}
