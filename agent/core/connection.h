/* SPDX-License-Identifier: Apache-2.0 */
/* The table of connections: each two streams, a protocol, and the requests that wait on it. */
#pragma once
#include "compression.h"
#include "engine.h"
#include "stream.h"

enum { UNIX_PATH_MAX = 108 }; /* sizeof(sockaddr_un.sun_path) */

/* What is kept of an open_event. */
struct endpoints {
    uint8_t local_address[16];
    uint8_t remote_address[16];
    uint16_t local_port;
    uint16_t remote_port;
    uint32_t netns;
    uint32_t tgid; /* of the process that used the connection last */
    uint32_t peer_tgid;
};

/* After a loss among several requests the rest of them is not paired. */
enum sits_out {
    SITS_OUT_NOT,
    SITS_OUT,          /* no answer was seen since */
    SITS_OUT_ANSWERED, /* one was: who asks now, with nothing due, asks anew */
};

/* What is kept of connections of databases. */
struct session {
    struct compressed *compressed; /* NULL: bytes are messages */
    struct idle *idle;             /* a transaction was left open (insights.c) */
    uint64_t shared[];             /* protocol.session_size bytes, of both directions */
};

/* Most connections are idle most of the time: what only a message in progress needs is in struct kept. */
struct connection {
    uint64_t id;
    struct connection *id_next, *tuple_next; /* in core.connections, core.tuples */
    struct connection *older, *newer;        /* by last activity */
    struct pending *first, *last; /* requests in the order they were sent, not yet spans */
    uint64_t active_ns;           /* time of the last event */
    uint64_t answered_ktime;      /* last chunk of the answering direction */
    uint64_t unmatched_ktime; /* first byte of the last answer that was matched with no request */
    struct session *session;  /* NULL: the protocol has none */
    struct stream streams[2];     /* by enum direction */
    struct endpoints open;
    uint32_t pending;
    uint32_t shed;       /* chunks left out under pressure, as far as records have told */
    uint8_t protocol_id; /* PROTOCOL_UNDECIDED: not known yet */
    uint8_t kind;        /* enum span_kind, once the direction of requests is known; 0 before */
    uint8_t invalid;     /* messages refused since the last good one */
    uint8_t transport;   /* enum transport */
    bool opaque : 1;     /* left its protocol for good */
    bool late : 1;       /* bytes had been moved before the first that was seen */
    bool joined : 1;     /* announced to an earlier pipeline: its totals are not known yet */
    bool pipelined : 1;  /* has asked while it was answered (loss.c) */
    bool batched : 1;    /* several requests wait, or did when the last one was asked */
    bool waits : 1;      /* was seen to wait for the answers to all of several requests before it asked again */
    bool guessed : 1;    /* its protocol is, and no answer was read in it yet: nothing is told */
    bool assumed : 1;    /* something was not seen: pairs rest on the client's waiting for its answers */
    uint8_t sits_out : 2; /* enum sits_out: requests have no place in the order, though the client waits */
    bool unsure : 1;     /* answers may come to requests that were not seen: no request is paired */
    uint8_t requests_lost : 5; /* how often the place in the requests was lost; begins again after 31 */
    uint16_t path_size;
    uint8_t path[]; /* of a Unix socket; behind the structure, which has no padding then */
};

/* Adds or renews the connection that the event announces. */
void connection_open(struct core *core, const struct open_event *event);
struct connection *connection_find(struct core *core, uint64_t conn_id);
void connection_chunk(struct core *core, struct connection *c, const struct chunk_event *event);
/* EVENT_FIN and EVENT_CLOSE; the latter frees the connection. */
void connection_end(struct core *core, struct connection *c, const struct close_event *event);
/* Request time-outs, idle connections, those of processes that ended; cheap when there is nothing to do. */
void connections_sweep(struct core *core);
void connections_free(struct core *core);

/* NULL: undecided. */
static inline const struct protocol *protocol_of(const struct connection *c)
{
    return protocols[c->protocol_id];
}

/* NULL: bytes are messages. */
static inline struct compressed *compressed_of(const struct connection *c)
{
    return c->session ? c->session->compressed : NULL;
}

/* Which stream carries requests. */
static inline enum sender sender_of(const struct connection *c, unsigned direction)
{
    return (c->kind == KIND_SERVER) == (direction == DIRECTION_IN) ? SENDER_CLIENT : SENDER_SERVER;
}

/* The direction of answers; of no meaning before the kind is known. */
static inline unsigned answers_direction(const struct connection *c)
{
    return c->kind == KIND_SERVER ? DIRECTION_OUT : DIRECTION_IN;
}
