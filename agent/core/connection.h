/* SPDX-License-Identifier: Apache-2.0 */
/* The table of connections: each two streams, a protocol, and the requests that wait on it. */
#pragma once
#include "engine.h"
#include "stream.h"

struct connection {
    uint64_t id;
    struct open_event open; /* tuple, role, namespace */
    const struct protocol *protocol; /* NULL: undecided */
    uint8_t protocol_id;
    uint8_t kind;    /* enum span_kind, once the direction of requests is known; 0 before */
    bool opaque;     /* left its protocol for good */
    uint8_t invalid; /* messages refused since the last good one */
    struct stream streams[2]; /* by enum direction */
    struct pending *first, *last; /* requests in the order they were sent, not yet spans */
    uint32_t pending;
    uint64_t active_ns; /* time of the last event */
    struct connection *older, *newer;
    struct connection *tuple_next;
    uint64_t tuple_key;
};

/* Adds or renews the connection that the event announces. */
void connection_open(struct core *core, const struct open_event *event);
struct connection *connection_find(struct core *core, uint64_t conn_id);
void connection_chunk(struct core *core, struct connection *c, const struct chunk_event *event);
/* EVENT_FIN and EVENT_CLOSE; the latter frees the connection. */
void connection_end(struct core *core, struct connection *c, const struct close_event *event);
/* Request time-outs and idle connections; cheap when there is nothing to do. */
void connections_sweep(struct core *core);
void connections_free(struct core *core);

/* Which stream carries requests. */
static inline enum sender sender_of(const struct connection *c, unsigned direction)
{
    return (c->kind == KIND_SERVER) == (direction == DIRECTION_IN) ? SENDER_CLIENT : SENDER_SERVER;
}
