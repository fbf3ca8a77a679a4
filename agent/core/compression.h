/* SPDX-License-Identifier: Apache-2.0 */
/* Compressed protocols: frames of a header and a payload, which is compressed as a rule. What they hold, one
 * after the other, is the stream that a parser reads.
 *
 * A frame is inflated as it comes, one buffer at a time, and no further than somebody reads: the rest of one
 * of which nobody needs the rest is passed over as it is sent. */
#pragma once
#include "protocol.h"

struct core;
struct inflater;

enum compression_limits {
    INFLATED_AT_ONCE = 16 * 1024,
    INFLATED_MAX = 2 * 1024 * 1024, /* in one turn of a side, so that a few bytes cannot keep the core busy */
};

/* Where one direction stands. */
struct frames {
    uint64_t pos;      /* of the frame's header */
    uint64_t ktime_ns; /* when its first byte came */
    uint32_t sent;     /* bytes of its payload that are still to come */
    uint32_t held;     /* bytes that these hold */
    uint32_t given;    /* bytes that it held so far */
    uint32_t in_turn;  /* inflated since the other side last sent something */
    uint8_t had;       /* bytes of the header */
    bool compressed;
    bool passes;       /* nobody needs the rest of it */
    uint8_t header[FRAME_HEADER_MAX];
    struct inflater *inflater; /* NULL: between frames, or of one that is not compressed */
};

struct compressed {
    const struct protocol *protocol;
    enum compression algorithm;
    struct frames frames[2]; /* by enum direction */
};

/* What some bytes hold. */
struct inflated {
    enum parse_status status; /* PARSE_INVALID: no frame, or a broken one */
    bool excessive;           /* PARSE_INVALID: a cap was reached */
    bool more;                /* there is more of it, even if no byte is left */
    size_t used;              /* of the bytes that were given */
    const uint8_t *bytes;     /* until the next call */
    size_t size;
    uint64_t passed;          /* so many instead, that nobody needs */
    uint64_t pos;             /* of `bytes`, to tell messages apart by: what a frame holds is counted from its header on */
    uint64_t ktime_ns;
};

/* NULL when memory is short. */
struct compressed *compression_new(struct core *core, const struct protocol *protocol, enum compression algorithm);
void compression_free(struct core *core, struct compressed *compressed);
/* Forgets the frame that has begun. */
void compression_reset(struct core *core, struct compressed *compressed, unsigned direction);
/* Reads on in `bytes`, which begin at `pos`; at most INFLATED_AT_ONCE bytes of what they hold. */
struct inflated compression_read(struct core *core, struct compressed *compressed, unsigned direction,
                                 const uint8_t *bytes, size_t n, uint64_t pos, uint64_t ktime_ns);
/* Nobody needs the next `unneeded` bytes that are held: if the frame holds no more, how many bytes are still
 * to come of it, to be passed over. Else 0. */
uint32_t compression_pass(struct compressed *compressed, unsigned direction, uint64_t unneeded);
/* n bytes were not seen. PARSE_INVALID: they were needed; else as many have passed as the frame still had. */
struct inflated compression_hole(struct core *core, struct compressed *compressed, unsigned direction, uint64_t n);
