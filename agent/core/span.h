/* SPDX-License-Identifier: Apache-2.0 */
/* The columns that leave the core: a span or finding is one row and one list of attributes in its arena. */
#pragma once
#include "../../bpf/protocols.h"
#include <stdint.h>

enum span_kind { KIND_SERVER = 2, KIND_CLIENT = 3 }; /* numbers of OTLP's Span.SpanKind */
enum span_status { STATUS_UNSET = 0, STATUS_ERROR = 2 };

/* How the parent was found, in order of trust. */
enum link_method {
    LINK_NONE = 0,        /* a root */
    LINK_TRACEPARENT = 1, /* read off the wire */
    LINK_CONNECTION = 2,  /* the other end of the same connection, on this host */
    LINK_THREAD = 3,      /* the one request open on the thread that sent this one */
};

struct span_row {
    uint8_t trace_id[16];
    uint8_t span_id[8];
    uint8_t parent_id[8]; /* zero: a root */
    uint64_t start_ktime_ns;
    uint64_t end_ktime_ns;
    uint64_t conn_id;
    uint32_t tgid;
    uint32_t tid;
    uint32_t attributes_offset; /* into the arena, a multiple of 8 */
    uint32_t attributes_size;
    uint32_t name_offset; /* UTF-8 in the arena */
    uint32_t name_size;
    uint32_t tracestate_offset; /* as received; size 0: none */
    uint32_t tracestate_size;
    uint8_t kind;        /* enum span_kind */
    uint8_t status;      /* enum span_status */
    uint8_t link;        /* enum link_method */
    uint8_t protocol;    /* enum protocol_id */
    uint8_t trace_flags; /* W3C: bit 0 sampled */
    uint8_t remote_parent; /* 1: the parent came off the wire */
    uint16_t padding;
    uint32_t series; /* row of the series this span counts in; UINT32_MAX: none */
    uint32_t padding2;
};
_Static_assert(sizeof(struct span_row) == 104, "span_row");

/* Something worth telling, as a log record (OTLP LogRecord with an event name).
 * X(identifier, name, sentence): the event is ebpf_otlp_tracer.finding.<name>, the sentence its body. */
#define FINDINGS(X)                                                                                    \
    X(SLOW_STATEMENT, "slow_statement", "A statement was slow.")                                       \
    X(N_PLUS_ONE, "n_plus_one", "One request ran the same statement again and again.")                 \
    X(DUPLICATE_READS, "duplicate_reads", "One request read the same data more than once.")            \
    X(IDLE_IN_TRANSACTION, "idle_in_transaction", "A transaction was left open without work in it.")   \
    X(COSTLY_COMMAND, "costly_command", "A command ran whose cost grows with the data behind it.")     \
    X(HOT_KEY, "hot_key", "One key got a large share of the commands.")

enum finding_id {
#define FINDING_ENUM(identifier, name, sentence) FINDING_##identifier,
    FINDINGS(FINDING_ENUM)
#undef FINDING_ENUM
    FINDING_COUNT,
};

struct finding_row {
    uint8_t trace_id[16]; /* zero: no span context */
    uint8_t span_id[8];   /* zero: of the trace as a whole */
    uint64_t ktime_ns;
    uint32_t tgid;
    uint16_t finding;    /* enum finding_id */
    uint8_t severity;    /* OTLP's SeverityNumber, 1 to 24; 0: none */
    uint8_t trace_flags; /* W3C: bit 0 sampled */
    uint32_t attributes_offset; /* into the arena, a multiple of 8 */
    uint32_t attributes_size;
};
_Static_assert(sizeof(struct finding_row) == 48, "finding_row");

/* Histograms, one per set of attributes; durations in seconds. */
enum series_limits { SERIES_BUCKETS = 16 };

enum metric_id {
    METRIC_HTTP_SERVER_DURATION,
    METRIC_HTTP_CLIENT_DURATION,
    METRIC_DB_CLIENT_DURATION,
    METRIC_DB_RETURNED_ROWS,
    METRIC_COUNT,
};

struct series_row {
    uint32_t tgid;
    uint16_t metric;   /* enum metric_id */
    uint16_t overflow; /* 1: the table was full, this one stands for all the others of its metric */
    uint32_t attributes_offset; /* into the series arena */
    uint32_t attributes_size;
    uint64_t start_ktime_ns; /* of the first span counted */
    uint64_t count;
    double sum, min, max; /* in the unit of the metric */
    uint64_t buckets[SERIES_BUCKETS]; /* n bounds, n + 1 counts, the rest is zero */
};
_Static_assert(sizeof(struct series_row) == 184, "series_row");

/* What became of the bytes and chunks of one process: the completeness ledger.
 * Over all processes, with the kernel's own quiet, unknown, encrypted and unsent counts, the sum is
 * what the kernel counted. */
enum ledger_class {
    LEDGER_PARSED,    /* in a message, or a body passed over by its known length */
    LEDGER_TRUNCATED, /* not copied (budget), and the message could not be followed across it */
    LEDGER_LOST,      /* the ring refused them, or a call that is not hooked moved them */
    LEDGER_UNKNOWN,   /* no protocol of ours, or invalid */
    LEDGER_LATE,      /* before the first message boundary of a connection joined in the middle */
    LEDGER_ENCRYPTED, /* TLS */
    LEDGER_DECLINED,  /* of a protocol or a side that is switched off */
    LEDGER_SHED,      /* left out under pressure: the kernel side's count, never a row's */
    LEDGER_CLASSES,
};

/* Why a stream has a hole that cost it its place: what the parser had to do without. */
enum gap_cause {
    GAP_LOST,      /* the ring refused records */
    GAP_UNHOOKED,  /* bytes are missing that no count of the kernel side explains: a call that is not hooked */
    GAP_SHED,      /* left out under pressure */
    GAP_TRUNCATED, /* not copied: the budget */
    GAP_INVALID,   /* the parser refused what came */
    GAP_OVERLAP,   /* two threads moved bytes at once: the order is not known */
    GAP_CAUSES,
};

struct ledger_row {
    uint32_t tgid; /* 0: all processes that have no row of their own */
    uint32_t padding;
    uint32_t gaps[PROTOCOL_COUNT][GAP_CAUSES]; /* by enum protocol_id */
    uint64_t chunks[LEDGER_CLASSES];
    uint64_t bytes[LEDGER_CLASSES];
    uint64_t spans;
    uint64_t requests; /* messages that asked */
    uint64_t orphans;  /* responses without a request, requests whose answer was never seen */
    uint64_t findings[FINDING_COUNT]; /* by enum finding_id, those without a row of their own too */
};
_Static_assert(sizeof(struct ledger_row) == 160 + PROTOCOL_COUNT * GAP_CAUSES * 4 + FINDING_COUNT * 8,
               "ledger_row");
