/* SPDX-License-Identifier: Apache-2.0 */
/* Requests to responses, and an answered request to a span row. */
#pragma once
#include "connection.h"

enum { BATCH_UNKNOWN = -1 };

/* A request from its head to its answer's last byte. */
struct pending {
    struct pending *next;
    struct connection *connection;
    union {
        struct { /* of a server: list of struct thread, and where that points to this one */
            struct pending *thread_next, **thread_at;
        };
        struct pending *searched; /* of a client's first that waits: see find_position() */
    };
    uint64_t start_ktime;
    uint8_t trace_id[16], span_id[8], parent_id[8];
    uint8_t trace_flags, link, remote_parent;
    bool on_thread, request_ended, responded, size_unknown;
    bool silent, failed, unanswered; /* as struct step has them */
    bool followed;      /* an answer began since it was asked: what is asked next is of another batch */
    bool alone;         /* nothing else waited when its answer was last lost from sight */
    bool accompanied;   /* another request was dropped or lost while it was the oldest, or the newest */
    uint8_t traits;
    uint32_t batch;     /* requests sent before any of them was answered: of those that wait, with the first;
                         * BATCH_UNKNOWN: one of them has no place in the queue */
    struct pending *batch_first; /* names the batch; to be followed from the last request, unless `followed` */
    uint64_t shape, exact, key;
    uint32_t start_pos; /* on TCP the sequence number */
    uint32_t tgid, tid, hint;
    int32_t status;
    uint64_t request_body, response_body;
    uint32_t tracestate_size; /* behind the attributes of the request */
    uint32_t attributes_size;
    uint32_t capacity; /* of data */
    uint8_t *data;     /* tracestate (padded to 8), then attributes */
};

struct pending *pairing_request(struct core *core, struct connection *c, const struct chunk_event *event,
                                const struct stream *s, const struct step *step, const uint8_t *window,
                                const struct builder *attributes);
/* A further step of the request. */
void pairing_request_more(struct core *core, struct pending *p, const struct step *step,
                          const struct builder *attributes);
/* A request was sent now that is not in the queue: how many there are in this batch is not known. */
void pairing_batch_unknown(struct connection *c);
/* The exchange that a response head answers, or NULL: none. */
struct pending *pairing_response(struct core *core, struct connection *c, const struct stream *s,
                                 const struct step *step, const struct builder *attributes);
/* A further step of the response. */
void pairing_response_more(struct core *core, struct pending *p, const struct step *step,
                           const struct builder *attributes);
/* Makes the span, unless the exchange is silent, and frees the exchange. */
void pairing_finish(struct core *core, struct pending *p, enum outcome outcome, uint64_t end_ktime);
/* Frees without a span: how it ended is not known. */
void pairing_drop(struct core *core, struct pending *p);
/* Frees all without a span: which answer belongs to which request is not known any more. */
void pairing_drop_all(struct core *core, struct connection *c);
/* The same for those of which no answer was seen to begin. */
void pairing_drop_unanswered(struct core *core, struct connection *c);
/* All that wait become spans that were never (fully) answered. */
void pairing_finish_all(struct core *core, struct connection *c, enum outcome outcome, uint64_t ktime_ns);
