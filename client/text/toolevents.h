/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/toolevents.h - what one feed of ll_toolcalls brings: events in order, neighbours of
 * one kind joined, and the text they point into. */
#ifndef CLIENT_TEXT_TOOLEVENTS_H
#define CLIENT_TEXT_TOOLEVENTS_H

#include "client/text/bytes.h"
#include "ll/text.h"

#include <stdint.h>

struct ll_tool_event {
    enum ll_tool_event_type type;
    uint32_t call;
    size_t at, n; /* in text */
};

struct ll_tool_events { /* zeroed is empty */
    struct ll_bytes text;
    struct ll_tool_event *list;
    size_t n, capacity, next;
};

/* Adds n_bytes of text; nothing when there are none. -ENOMEM. */
int ll_tool_events_add(struct ll_tool_events *events, enum ll_tool_event_type type, uint32_t call,
                       const char *text, size_t n_bytes);

/* 1 and the next event, whose text lives until the next add or clear; 0: no more. */
int ll_tool_events_next(struct ll_tool_events *events, struct ll_toolcalls_event *out);

void ll_tool_events_clear(struct ll_tool_events *events);
void ll_tool_events_free(struct ll_tool_events *events);

#endif
