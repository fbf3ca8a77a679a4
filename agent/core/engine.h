/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of the core: what its files share. Python sees core.h only. */
#pragma once
#include "core.h" /* first: brings the integer types that bpf/ leaves to its includer */
#include "../../bpf/events.h"
#include "../../bpf/protocols.h"
#include "chains.h"
#include "protocol.h"
#include "ring.h"
#include "statements.h"
#include "table.h"

#define ATTRIBUTES_MAX (256 * 1024) /* one message's attributes: heads go up to 64 KiB */

struct pending;
struct insights;
struct connection;

/* One process: what its bytes became, and the routes it has shown. */
struct process {
    struct ledger_row ledger;
    struct routes *routes;
    bool gone;   /* it ended */
    bool forget; /* by the next core_forget() */
};

/* Server requests that are open on one thread; the head of a list through pending.thread_next. */
struct thread {
    uint32_t tid, open;
    struct pending *first;
};

/* Finished spans, until Python takes them. */
struct batch {
    struct span_row *rows;
    uint32_t count, rows_capacity;
    uint8_t *arena;
    uint64_t size, capacity;
};

/* Findings, until Python takes them: of fixed size, made with the first one. */
struct finding_buffer {
    struct finding_row *rows;
    uint8_t *arena;
    uint32_t count, size;
};

struct findings {
    struct finding_buffer buffers[2];
    uint32_t filling;   /* which of the two */
    uint32_t in_second[FINDING_COUNT]; /* rows since second_ns */
    uint64_t second_ns;
};

struct series_table {
    struct series_row *rows;
    uint32_t count, capacity;
    uint8_t *arena;
    uint64_t size, arena_capacity;
    struct table index; /* hash of tgid, metric, attributes -> row number + 1 */
};

/* An event that waits to be put in order: `record` lies in the ring or in a hold buffer. */
struct waiting {
    uint64_t ktime_ns;
    const uint8_t *record;
    uint32_t length;
};

struct hold {
    uint8_t *data;
    size_t size, capacity;
    uint32_t count;
};

struct core {
    struct core_config config;
    char **strings; /* copies of what the configuration points to */
    struct ring ring;
    struct demand *demands;
    const struct kernel_counters *counters;
    uint32_t cpus;
    uint64_t now_ns, swept_ns;
    uint64_t requests_bytes; /* held by requests that wait: at most buffer_bytes_max, then they are dropped */
    uint64_t processed_ktime; /* latest event time that was processed */

    struct chains connections; /* by conn_id; at most connections_max, the longest idle one goes first */
    struct chains tuples;      /* the same ones by their address tuple */
    struct connection *oldest, *newest; /* by last activity */
    struct table threads;      /* tid -> struct thread, while a request is open on it: no more than those */
    struct table processes;    /* tgid -> struct process; at most processes_max, then `others` */
    struct process others;     /* all those that found no place: a row of the ledger with tgid 0 */
    uint64_t gone_ns;          /* when a process was last reported to have ended; 0: seen to */
    struct series_table series;

    struct batch batches[2];
    uint32_t filling; /* which of the two */
    struct findings findings;
    struct waiting *waiting;
    uint32_t waiting_count;
    struct hold holds[2];
    uint32_t holding;
    struct statement_cache *statements;
    struct insights *insights; /* NULL: no statement was seen yet */
    uint8_t *scratch; /* ATTRIBUTES_MAX */
    uint8_t *inflated; /* INFLATED_AT_ONCE; NULL: nothing compressed was met yet */
    uint64_t inflaters_bytes; /* at most buffer_bytes_max, and what the last one takes beyond */
    uint64_t random[2];
    uint64_t sampler_limit; /* a trace whose random part is below is kept */
    struct core_stats stats;
};

extern const struct protocol *const protocols[PROTOCOL_COUNT];

/* Makes the record of a process it meets for the first time. Never NULL: see `others`. */
struct process *process_of(struct core *core, uint32_t tgid);
void process_free(struct core *core, struct process *process);
/* 64 random bits, never zero. */
uint64_t core_random(struct core *core);
/* malloc, realloc and free that keep stats.memory_bytes. */
void *core_allocate(struct core *core, void *old, size_t old_size, size_t new_size);
