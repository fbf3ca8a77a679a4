/* SPDX-License-Identifier: Apache-2.0 */
/* What a stream keeps from one record to the next: the parser's state, unless it is zero, and the bytes of
 * an incomplete step. An idle stream keeps nothing. */
#pragma once
#include "engine.h"
#include "stream.h"

struct kept {
    uint64_t state[STREAM_STATE_SIZE / 8];
    uint64_t ktime_ns;         /* of the first of the bytes */
    uint32_t length, capacity; /* of bytes */
    uint32_t need;  /* the parser said: not before the window is this long */
    uint32_t tried; /* length of the window it said that of */
    uint32_t tgid;  /* in whose ledger the bytes count as parsed */
    uint8_t bytes[];
};

static inline uint32_t kept_length(const struct stream *s)
{
    return s->kept ? s->kept->length : 0;
}

/* Bytes that the parser could not read yet, behind those that are kept. False: the caps do not allow it. */
bool kept_add(struct core *core, struct stream *s, uint32_t tgid, uint64_t ktime_ns, const uint8_t *bytes, size_t n);
/* False when memory is short. */
bool kept_put_state(struct core *core, struct stream *s, const uint64_t state[STREAM_STATE_SIZE / 8]);
/* The first `used` bytes were read; what is kept behind them came at ktime_ns. */
void kept_take(struct core *core, struct stream *s, size_t used, uint64_t ktime_ns);
void kept_drop(struct core *core, struct stream *s);
