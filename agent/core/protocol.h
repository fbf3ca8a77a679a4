/* SPDX-License-Identifier: Apache-2.0 */
/* The contract of a protocol: what a parser is given, what it answers.
 *
 * The engine (messages.c) hands a parser the bytes of one direction from a message boundary on. The parser
 * reads one step and says what follows: bytes to pass over that nobody needs, whether the message
 * began or ended with this step. It keeps nothing but `state`, and what both directions share in `session`;
 * it never sees a position, a hole or a socket. A protocol file includes this header and those that
 * protocols share (http.h, database.h, sql.h), and no other of ours. */
#pragma once
#include "attributes.h"
#include "builder.h"
#include "cursor.h"
#include "options.h"
#include "span.h"
#include "../../bpf/events.h"

struct statement_cache;

enum sender { SENDER_CLIENT, SENDER_SERVER };
enum pairing { PAIR_IN_ORDER, PAIR_BY_ID };

/* What lies between the bytes of a connection and its messages, once both sides have agreed on it. */
enum compression { COMPRESSION_NONE, COMPRESSION_ZLIB, COMPRESSION_ZSTD };

#define FRAME_HEADER_MAX 8

/* What the header of a compressed frame tells. */
struct frame {
    uint32_t size;     /* of its payload */
    uint32_t inflated; /* of what the payload holds; 0: it is not compressed */
    bool begins;       /* the first one of a message */
};

#define SKIP_TO_END UINT64_MAX /* the rest of this direction, until it is closed */

/* Read from a traceparent and tracestate header (https://www.w3.org/TR/trace-context/). */
struct trace_context {
    uint8_t valid; /* trace and span id are not zero, version is known */
    uint8_t flags;
    uint8_t trace_id[16];
    uint8_t span_id[8];
};

/* Properties of a request that findings are made of. */
enum trait {
    TRAIT_READS = 1,  /* changes nothing: to ask the same again is to ask twice */
    TRAIT_COSTLY = 2, /* its cost grows with the size of what is stored, not of what is asked for */
    TRAIT_BLOCKS = 4, /* it waits for something to happen: to take long is its purpose */
};

enum transaction { TRANSACTION_UNTOLD, TRANSACTION_NONE, TRANSACTION_OPEN, TRANSACTION_FAILED };

/* One step of a stream. Zeroed by the engine before each call.
 *
 * A message may take several steps, the first of which begins it. A step that begins a message ends the one
 * before it, if that is still open. Of a request each step may add to `hint` (by or), and what it appends to
 * attributes is added to the others; `silent` and `unanswered` count as the last step says. */
struct step {
    bool begins;   /* a message's head was read: attributes, hint, context, status are set */
    bool ends;     /* the message is complete once `skip` bytes have passed */
    bool interim;  /* a response that does not answer yet (HTTP 1xx): paired with nothing */
    bool opaque;   /* the connection leaves this protocol behind this message (upgrade, CONNECT) */
    bool encrypted; /* the same, and TLS follows */
    bool whole;    /* the framing runs through the coming bytes: capture all of them */
    bool goes_on;  /* the message certainly has more to it than what is read and skipped */
    bool failed;   /* the response reports an error */
    bool silent;   /* request: has its place in the order, but makes no span unless its answer reports an error */
    bool unanswered; /* request: nothing will answer it; its span ends with it */
    bool voids;    /* response: all that waits up to and with the request it answers was not carried out */
    uint32_t answers; /* response that begins: it answers the oldest request with one of these bits in its hint;
                       * those before it were answered by nothing. 0: the oldest */
    uint64_t skip; /* bytes that follow what was read and that nobody needs; SKIP_TO_END */
    uint64_t body; /* how many of the bytes read and skipped are body content */
    uint32_t hint; /* request: given back in parse_context.hint of the responses that answer it */
    uint64_t id;   /* PAIR_BY_ID */
    int32_t status; /* response: the protocol's code */
    uint64_t shape; /* request: hash of what it asks without its values; 0: not known */
    uint64_t exact; /* the same with its values */
    uint64_t key;   /* request: hash of the first key it is about; 0: none */
    uint8_t traits; /* request: enum trait */
    uint8_t compression; /* enum compression: of all that either side sends behind this message */
    uint8_t transaction; /* response: enum transaction, the state that it leaves the connection in */
    struct trace_context context;
    struct slice tracestate; /* into the window */
};

/* Where the parser stands: constant for a call. */
struct parse_context {
    enum sender sender;
    enum span_kind kind;     /* the side that is observed: attributes differ */
    uint32_t hint;           /* response: of the oldest request not yet answered; 0: none is known */
    uint8_t requests_lost;   /* how often the place in the requests was lost so far; begins again after 31 */
    bool within;             /* a message of this direction has begun and not ended, so far as the engine knows */
    bool from_start;         /* both directions were seen from their first byte on */
    void *session;           /* session_size bytes that both directions share, zero at first */
    struct statement_cache *statements;
    const uint8_t *local_address, *remote_address; /* 16 bytes, IPv4 as ::ffff:a.b.c.d */
    uint16_t local_port, remote_port;
    const struct protocol_options *options;
    uint8_t transport; /* enum transport of bpf/events.h; ports and addresses are those of TCP and UDP */
    uint16_t path_size;
    const uint8_t *path; /* TRANSPORT_UNIX: the address that the server is bound to, as the kernel has it */
};

/* How an exchange ended. */
enum outcome {
    OUTCOME_ANSWERED,
    OUTCOME_CLOSED,  /* the connection was closed before the answer was complete */
    OUTCOME_RESET,   /* it was reset */
    OUTCOME_TIMEOUT, /* nothing came for the configured time */
};

/* A request with what is known of its response, when the span is made. */
struct exchange {
    enum span_kind kind;
    enum outcome outcome;
    bool responded;          /* a response head was read */
    bool failed;             /* the response reported an error */
    uint32_t batch;          /* how many requests were sent before any of them was answered, this one with them; 0: not known */
    uint32_t hint;           /* of the request */
    int32_t status;          /* of the response */
    int64_t request_body;    /* bytes; -1: not known */
    int64_t response_body;
    const struct protocol_options *options;
    const uint8_t *attributes; /* what the parser wrote for request and response, request first */
    uint32_t attributes_size;
    struct routes *routes;     /* of this process */
};

/* What `finish` decides beside attributes. */
struct finished {
    enum span_status status;
    enum metric_id metric;       /* of the duration; METRIC_COUNT: none */
    enum metric_id value_metric; /* of `value`; METRIC_COUNT: none */
    double value;
    uint32_t name_size;
    char name[256]; /* UTF-8, not terminated */
};

#define STREAM_STATE_SIZE 32

struct protocol {
    const char *name;
    enum pairing pairing;
    /* Reads one step. On PARSE_OK the cursor stands behind what was read, which is at least one byte.
     * On PARSE_NEED_MORE nothing counts as read and `state` is unchanged.
     * `state` is STREAM_STATE_SIZE bytes, zero at the start of a stream and after a resync.
     * What it appends to `attributes` belongs to the message and is dropped unless PARSE_OK. */
    enum parse_status (*parse)(struct cursor *in, const struct parse_context *context, void *state,
                               struct step *step, struct builder *attributes);
    /* Offset of the first byte at or after `from` that may begin a message, or `length`. */
    size_t (*resync)(const uint8_t *data, size_t length, size_t from, enum sender sender);
    /* Offset from which complete parts of an answer run exactly to the end of `data`, which is the end of a call
     * and may begin anywhere in an answer; or `length`. NULL: answers cannot be told from behind. */
    size_t (*resync_end)(const uint8_t *data, size_t length);
    size_t session_size;
    void (*session_end)(void *session, struct statement_cache *statements); /* NULL: nothing to give back */
    /* Reads `frame_header` bytes (at most FRAME_HEADER_MAX). False: no such header. NULL: no step sets `compression`. */
    bool (*frame)(const uint8_t *header, struct frame *frame);
    uint8_t frame_header;
    bool batches; /* clients send several requests and wait for all the answers, as a rule */
    /* Name, status and the attributes that need both sides. Appends to `attributes`. */
    void (*finish)(const struct exchange *exchange, struct finished *out, struct builder *attributes);
    size_t window_max; /* a message head longer than this is invalid */
    /* Bytes that end a call end an answer too, of which the framing was lost from sight. NULL: none do. */
    const char *terminator;
};

/* routes.c: the low-cardinality route of a path, by the documented heuristic.
 * Writes to `out` (at most `max` bytes) and returns the length; 0: no route (the cap was reached).
 * `path` is UTF-8 without query. */
struct routes;
struct routes *routes_new(uint32_t max);
void routes_free(struct routes *routes);
uint32_t routes_match(struct routes *routes, const char *path, uint32_t size, char *out, uint32_t max);
