/* SPDX-License-Identifier: Apache-2.0 */
/* One event on its way through a stream: what stream.c, recognition.c and messages.c share. */
#pragma once
#include "connection.h"
#include "kept.h"

/* What one event means for the stream it belongs to, while it is worked through. */
struct feed {
    struct core *core;
    struct connection *c;
    struct stream *s;
    const struct chunk_event *event;
    struct ledger_row *ledger;
    unsigned direction;
    bool overtakes; /* a request that begins here did not wait for the answers before it */
    bool rest_is_its; /* what is left of the chunk is of the request that was cut off in it */
    bool parsed; /* some byte of the chunk was in a message */
    enum ledger_class as; /* else: what became of it */
    uint64_t ktime_ns; /* of a message that ends now: the event's, or earlier, if its end was not seen */
    uint64_t step_pos; /* first byte of the step being read */
    uint32_t need, tried; /* what the parser said of an incomplete step: see struct kept */
};

static inline void account(struct feed *f, enum ledger_class as, uint64_t bytes)
{
    f->ledger->bytes[as] += bytes;
    if (as == LEDGER_PARSED)
        f->parsed = true;
    else
        f->as = as;
}

static inline void count_gap(struct feed *f, enum gap_cause cause)
{
    f->ledger->gaps[f->c->protocol_id][cause]++;
}

static inline bool is_request(const struct feed *f)
{
    return sender_of(f->c, f->direction) == SENDER_CLIENT;
}

static inline bool is_answer(const struct feed *f)
{
    return f->c->kind && sender_of(f->c, f->direction) == SENDER_SERVER;
}
