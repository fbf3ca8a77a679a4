/* SPDX-License-Identifier: Apache-2.0 */
/* What Python may call: events in, columns out. One thread at a time per core.
 *
 * Everything that a call returns belongs to the core and lives until the next call of the same kind. */
#pragma once
#include "attributes.h"
#include "options.h"
#include "span.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct core;

struct core_config {
    uint32_t connections_max;
    uint32_t pending_max;      /* requests waiting on one connection */
    uint32_t stream_bytes_max; /* held back by one direction */
    uint64_t buffer_bytes_max; /* held back by all; and, counted apart, by all requests that wait */
    uint32_t processes_max;    /* with a ledger, series and routes of their own */
    uint32_t batch_spans_max;
    uint32_t series_max;
    uint64_t statement_bytes_max; /* texts of statements, and who prepared them */
    uint32_t findings_per_second_max; /* of a kind, with a row; more are only counted */
    /* What is told as findings; 0: none of it. */
    uint64_t slow_statement_ns, idle_in_transaction_ns;
    uint32_t n_plus_one_min, duplicate_reads_min; /* so many in a run */
    uint8_t costly_commands, hot_keys;
    uint64_t hold_ns;          /* events wait this long to be sorted by time */
    uint64_t request_timeout_ns;
    uint64_t idle_timeout_ns;
    uint64_t id_seed[2]; /* random: trace and span ids come from a generator seeded with it */
    double sampler_ratio; /* share of root traces kept */
    uint8_t sampler_parent_based; /* follow the sampled flag of a parent off the wire */
    struct protocol_options protocol;
};

/* Copies the configuration and the strings it points to. NULL when memory is short. */
struct core *core_new(const struct core_config *config);
void core_free(struct core *core);

/* Maps the kernel's ring (size bytes, a power of two) and arrays by descriptor. 0, or -errno.
 * The descriptors may be closed afterwards, and bpf(2) is not needed again. */
int core_map_ring(struct core *core, int fd, uint32_t size);
int core_map_demands(struct core *core, int fd);
int core_map_counters(struct core *core, int fd, uint32_t cpus);

/* Reads the ring until it is empty or the batch is full, and moves time forward to now_ns.
 * `drain`: nothing is held back for sorting (at the end). Returns the number of events read.
 * Does not block and does not need the GIL. */
int64_t core_poll(struct core *core, uint64_t now_ns, bool drain);

/* The same for records that lie in memory in the ring's own format without headers: each a uint32_t
 * length, then the record, padded to 8 (recorded events, tests). -1: malformed. */
int64_t core_feed(struct core *core, const uint8_t *records, size_t size, uint64_t now_ns, bool drain);

/* Bytes waiting in the ring, and how long (ns) until held-back events are due; 0: none is held. */
uint64_t core_waiting_bytes(const struct core *core);
uint64_t core_held(const struct core *core);

/* Finished spans; the next poll fills the other buffer. */
struct span_batch {
    const struct span_row *rows;
    uint32_t count;
    const uint8_t *arena;
    uint64_t arena_size;
};
void core_take_spans(struct core *core, struct span_batch *out);

/* Findings, in the same way. */
struct finding_batch {
    const struct finding_row *rows;
    uint32_t count;
    const uint8_t *arena;
    uint64_t arena_size;
};
void core_take_findings(struct core *core, struct finding_batch *out);

/* All series, cumulative. */
struct series_batch {
    const struct series_row *rows;
    uint32_t count;
    const uint8_t *arena;
    uint64_t arena_size;
};
void core_series(struct core *core, struct series_batch *out);

/* The ledger by process; returns the number of rows written, at most max. Cumulative. A row of tgid 0
 * stands for all processes above processes_max. */
uint32_t core_ledger(struct core *core, struct ledger_row *out, uint32_t max);

/* The kernel side's counters, summed over CPUs, as struct kernel_counters of bpf/events.h. */
struct kernel_counters;
void core_kernel_counters(const struct core *core, struct kernel_counters *out);

/* A process ended. Nobody tells of the end of its Unix sockets: requests that wait on those that no other
 * process has used since are closed by the next polls, when its last events are through. */
void core_process_gone(struct core *core, uint32_t tgid);
/* Drops series, routes and ledgers of processes that ended, after they were exported a last time. */
void core_forget(struct core *core, const uint32_t *tgids, uint32_t count);

/* The core's own counters. Each is exported by name (agent/self_metrics.py). */
struct core_stats {
    uint64_t events;               /* records read */
    uint64_t events_malformed;     /* records with impossible sizes: dropped */
    uint64_t events_late;          /* came after later events had been processed */
    uint64_t events_unknown_connection; /* chunk without an open: its record was lost */
    uint64_t connections;          /* now */
    uint64_t connections_evicted;  /* table full */
    uint64_t connections_expired;  /* idle */
    uint64_t processes_refused;    /* records of processes above processes_max: counted together */
    uint64_t buffered_bytes;       /* now */
    uint64_t buffers_refused;      /* a stream wanted more than its cap or than is left */
    uint64_t messages_invalid;     /* the parser refused */
    uint64_t resyncs;
    uint64_t responses_unmatched;
    uint64_t requests_unanswered;  /* closed, reset or timed out: still a span */
    uint64_t requests_dropped;     /* pending_max reached, or lost track after a gap: no span */
    uint64_t requests_void;        /* the server passed over them after an error: no span */
    uint64_t statements_read;      /* SQL texts that were read; the others were there already */
    uint64_t statements_found;
    uint64_t statements_refused;   /* no room for their text: a span without it */
    uint64_t statements_forgotten; /* prepared statements above what one connection may have */
    uint64_t spans;                /* handed out */
    uint64_t spans_unsampled;
    uint64_t spans_refused;        /* batch arena or rows full, nobody took them */
    uint64_t attributes_left_out;
    uint64_t links_connection, links_thread, links_traceparent;
    uint64_t links_ambiguous;      /* two or more candidates: no link */
    uint64_t series_overflow;      /* spans counted in the overflow series */
    uint64_t findings;             /* found; the ledger has them by process and kind */
    uint64_t findings_left_out;    /* of these, without a row: findings_per_second_max, or the batch was full */
    uint64_t memory_bytes;         /* allocated by the core, now */
};
void core_stats(const struct core *core, struct core_stats *out);

/* Key of an attribute id, and names of bounds and metrics, for the stages that export. */
const char *attribute_name(unsigned key);
const char *protocol_name(unsigned protocol);
const char *finding_name(unsigned finding);
const char *finding_sentence(unsigned finding);
uint32_t metric_bounds(enum metric_id metric, const double **bounds);

/* sandbox.c: from now on this process may not open files for writing, run programs, trace, load BPF,
 * or change the file system; refused calls get EPERM. Needs no_new_privs. 0, or -errno. */
int sandbox_enter(void);
