/* SPDX-License-Identifier: Apache-2.0 */
/* One direction of a connection: bytes in order, holes, and where its parser stands.
 *
 * A hole (bytes that nobody copied, or that were lost) is either passed over, because the message said
 * that nobody needs these bytes, or it ends the synchronisation: the stream then waits for a call
 * whose first bytes begin a message. */
#pragma once
#include "protocol.h"

struct core;
struct connection;
struct pending;
struct chunk_event;
struct kept;

enum sync {
    SYNC_NEW,  /* no byte yet */
    SYNC_OK,   /* the parser stands at a known place */
    SYNC_LOST, /* waiting for a message start */
};

/* Why bytes are missing before the next record of a stream, as any record of the connection has told. */
enum told { TOLD_NOTHING = 0, TOLD_UNSENT = 1, TOLD_SHED = 2 };

struct stream {
    uint64_t seen;   /* position behind the last byte that came or is known to be missing; 0: none did */
    uint64_t skip;   /* bytes still to pass over; SKIP_TO_END */
    uint64_t message_ktime;  /* first byte of the message being read */
    struct pending *current; /* the exchange this message belongs to; NULL: none */
    struct kept *kept;
    uint32_t message_pos; /* low half of its first byte's position: on TCP the sequence number */
    uint32_t unsent;  /* chunks the ring refused, as far as records have told */
    uint8_t sync;     /* enum sync */
    uint8_t lost_as;  /* enum ledger_class of bytes that come while SYNC_LOST */
    uint8_t told;     /* enum told */
    bool in_message;  /* a head was read, the end was not */
    bool ends;        /* the message is complete when `skip` is 0 */
    bool goes_on;     /* the message does not end when `skip` is 0 */
    bool whole;       /* the kernel side was asked for all bytes */
    bool ended;       /* FIN */
};

/* A record of this direction: bytes, holes, messages, in this order. */
void stream_chunk(struct core *core, struct connection *c, unsigned direction,
                  const struct chunk_event *event);
/* Nothing more comes: a message that lasts until the end is complete. */
void stream_end(struct core *core, struct connection *c, unsigned direction, uint64_t ktime_ns);
void stream_free(struct core *core, struct stream *s);
/* Forgets the message in progress and waits for a start. */
void stream_lose(struct core *core, struct connection *c, unsigned direction, enum ledger_class as);

/* Within a body that ends where its head says, or with the connection: what is missing may be all body. */
static inline bool stream_in_body(const struct stream *s)
{
    return s->sync == SYNC_OK && s->in_message && s->ends && s->skip;
}
