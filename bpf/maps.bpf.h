/* SPDX-License-Identifier: GPL-2.0-only */
/* Every map: key, value, size, who writes, who reads. Sizes are constants of the configuration. */
#pragma once

#define NO_PREALLOC 1 /* BPF_F_NO_PREALLOC: memory follows use */
#define MMAPABLE 1024 /* BPF_F_MMAPABLE */

enum traced_flags { FOLLOW_CHILDREN = 1 };

/* tgid -> a process that was selected. Written by the keeper, by fork for the children, by listen on a
 * selected port. `generation` dates the descriptors that are remembered: exec raises it. */
struct traced_process {
    uint32_t generation;
    uint32_t flags; /* enum traced_flags */
};
BPF_F_TABLE("hash", uint32_t, struct traced_process, traced, PROCESSES_MAX, NO_PREALLOC);

/* TCP port, host order -> 1: who begins to listen there is traced from then on. Written by the keeper. */
BPF_F_TABLE("hash", uint16_t, uint8_t, ports, 1024, NO_PREALLOC);

/* tid -> ktime at which its present send began, 0 when told. */
BPF_F_TABLE("hash", uint32_t, uint64_t, threads, THREADS_MAX, NO_PREALLOC);

/* What a descriptor leads to. A cache: an entry counts only while its generation is the process's and
 * its conn_id is the connection's; else the walk from the task says it anew. */
struct descriptor_key {
    uint32_t tgid;
    uint32_t fd;
};
struct descriptor {
    uint64_t sk;
    uint64_t conn_id; /* 0: not a TCP connection */
    uint32_t generation;
    uint32_t padding;
};
BPF_F_TABLE("lru_hash", struct descriptor_key, struct descriptor, descriptors, DESCRIPTORS_MAX, 0);

/* One direction of a connection. Written by the calls of that direction alone; `ended` by state changes
 * too, which come in interrupts: it is a byte of its own. */
struct stream {
    uint64_t next; /* expected position of the next byte; 0: not known yet */
    uint64_t bytes;
    uint64_t unsent_bytes;
    uint64_t quiet_bytes;     /* not yet told */
    uint32_t chunks;
    uint32_t unsent_chunks;
    uint32_t quiet_chunks;    /* not yet told */
    uint32_t allowance;       /* bytes of the present message that may still be copied */
    uint8_t had;              /* bytes in `first`; not 0: what came so far may begin a message */
    uint8_t ended;            /* EVENT_FIN was sent */
    uint8_t padding[6];
    uint8_t first[CLASSIFY_BYTES]; /* of a message that comes a few bytes at a time, until it is known */
};

/* struct sock address -> its connection. Removed when the kernel destroys the socket, nowhere else. */
struct connection {
    uint64_t conn_id;
    struct stream streams[2]; /* by enum direction */
    uint32_t announced;       /* epoch + 1 of the last EVENT_OPEN, 0: none */
    uint8_t protocol;         /* enum protocol_id */
    uint8_t role;             /* enum role */
    uint8_t late;
    uint8_t reset;
};
BPF_F_TABLE("hash", uint64_t, struct connection, connections, CONNECTIONS_MAX, NO_PREALLOC);

/* Shared with user space: events.h. */
BPF_F_TABLE("array", int, struct demand, demands, DEMAND_SLOTS, MMAPABLE);
BPF_F_TABLE("array", int, struct control, control, 1, MMAPABLE);
BPF_F_TABLE("array", int, struct kernel_counters, counters, CPUS, MMAPABLE);

/* Where a call is taken apart: one per CPU, as the programs on system calls run with preemption off and
 * never inside each other. An array by CPU, as a per-CPU value may not pass 32 KiB. The state of the
 * copying loop lives here and not in registers for the verifier's sake: it takes a value loaded from a
 * map as unknown, and so each turn of the loop looks like the one before. */
enum { VECTORS_MAX = 16 };

struct work {
    struct {
        uint64_t base, length;
    } vectors[VECTORS_MAX];
    uint32_t vectors_used;
    uint32_t vector;        /* the next one to enter */
    uint64_t vector_base;   /* of the present one */
    uint32_t vector_start;  /* its place in the chunk */
    uint32_t vector_end;
    uint32_t at;            /* the next byte to copy, in the chunk */
    uint32_t left;          /* bytes to copy of the head, then of the tail */
    uint32_t segment_start; /* first byte of this record, in the chunk */
    uint32_t filled;        /* payload bytes of this record */
    uint64_t fill;          /* bytes that wait in the ring */
    uint8_t first[2 * CLASSIFY_BYTES];
    struct connection fresh;
    struct open_event open;
    struct chunk_event chunk;
    uint8_t payload[2 * PAYLOAD_CLASS_MAX]; /* twice: the verifier bounds start and length apart */
};
BPF_F_TABLE("array", int, struct work, works, CPUS, 0);

/* Made by the loader before it compiles: BCC 0.26 has no method for bpf_ringbuf_query, and reaches maps
 * of its own by methods only. A file descriptor in a load instruction is left as it is. */
#define EVENTS ((void *)bpf_pseudo_fd(1, EVENTS_FD))                 /* data ring, read by the pipeline */
#define PROCESS_EVENTS ((void *)bpf_pseudo_fd(1, PROCESS_EVENTS_FD)) /* read by the keeper */
