/* SPDX-License-Identifier: GPL-2.0-only */
/* Every map: key, value, size, who writes, who reads. Sizes are constants of the configuration. */
#pragma once

#define NO_PREALLOC 1 /* BPF_F_NO_PREALLOC: memory follows use */
#define MMAPABLE 1024 /* BPF_F_MMAPABLE */

enum traced_flags {
    FOLLOW_CHILDREN = 1,
    BY_KPROBE = 2, /* seen by the kernel's own functions: it moves bytes without system calls (io_uring) */
};

/* tgid -> a process that was selected. Written by the keeper, by fork for the children, by listen on a
 * selected port. */
struct traced_process {
    uint32_t flags; /* enum traced_flags */
};
BPF_F_TABLE("hash", uint32_t, struct traced_process, traced, PROCESSES_MAX, NO_PREALLOC);

/* TCP port, host order -> 1: who begins to listen there is traced from then on. Written by the keeper. */
BPF_F_TABLE("hash", uint16_t, uint8_t, ports, 1024, NO_PREALLOC);

/* The file operations that all sockets share, 0 until it is learned. */
BPF_F_TABLE("array", int, uint64_t, socket_operations, 1, 0);

#if CAPTURE_SYSCALLS
/* tid -> ktime at which its present send began, 0 when told. */
BPF_F_TABLE("hash", uint32_t, uint64_t, threads, THREADS_MAX, NO_PREALLOC);
#endif

#if CAPTURE_KPROBES
/* tid -> the call that it is in: at its return the message header has moved on, and registers are others. */
struct move {
    uint64_t sk;
    uint64_t ktime_ns;
    uint64_t buffer;
    uint64_t count;
    uint8_t direction;
    uint8_t vectored;
    uint8_t padding[6];
};
BPF_F_TABLE("hash", uint32_t, struct move, moves, THREADS_MAX, NO_PREALLOC);
#endif

/* One direction of a connection. Written by the calls of that direction alone; `ended` by state changes
 * too, which come in interrupts: it is a byte of its own. */
struct stream {
    uint64_t next; /* expected position of the next byte; 0: not known yet */
    uint64_t bytes;           /* added atomically, as two threads may share a direction */
    uint64_t unsent_bytes;
    uint64_t quiet_bytes;     /* not yet told */
    uint32_t chunks;
    uint32_t unsent_chunks;
    uint32_t quiet_chunks;    /* not yet told */
    uint32_t allowance;       /* bytes of the present message that may still be copied */
    uint8_t had;              /* bytes in `first`; not 0: what came so far may begin a message */
    uint8_t ended;            /* EVENT_FIN was sent */
    uint8_t padding[2];
    uint32_t origin;          /* TCP: sequence number before the first of `bytes` */
    int32_t gap;              /* TCP: bytes told as gap so far */
    uint8_t first[CLASSIFY_BYTES]; /* of a message that comes a few bytes at a time, until it is known */
};

/* struct sock address -> its connection. One of TCP is removed when the kernel destroys the socket, or when
 * it connects again. Unix sockets have a table of their own: no tracepoint tells of their end, so an entry
 * may outlive its socket; `inode` tells by whom the address is used now, and the keeper takes away what
 * processes that were killed left behind. */
struct connection {
    uint64_t conn_id;
    uint64_t inode; /* of the socket: addresses are used again */
    struct stream streams[2]; /* by enum direction */
    uint32_t announced;       /* epoch + 1 of the last EVENT_OPEN, 0: none */
    uint8_t protocol;         /* enum protocol_id */
    uint8_t role;             /* enum role */
    uint8_t late;
    uint8_t reset;
    uint8_t transport;      /* enum transport */
    uint8_t fin_was_sent;   /* TCP */
    uint8_t turn;           /* enum direction of the last chunk, where messages are copied by turns */
    uint8_t padding;
    uint32_t shed_chunks;   /* of both directions */
    uint32_t asked;         /* of a database: bytes of requests copied, half of it forgotten with each turn */
    uint32_t padding_behind;
};
BPF_F_TABLE("hash", uint64_t, struct connection, connections, CONNECTIONS_MAX, NO_PREALLOC);
BPF_F_TABLE("hash", uint64_t, struct connection, unix_connections, UNIX_CONNECTIONS_MAX, NO_PREALLOC);

/* Shared with user space: events.h. */
BPF_F_TABLE("array", int, struct demand, demands, DEMAND_SLOTS, MMAPABLE);
BPF_F_TABLE("array", int, struct control, control, 1, MMAPABLE);
BPF_F_TABLE("array", int, struct kernel_counters, counters, CPUS, MMAPABLE);

/* One call that moved bytes on a socket, or found the end of them (size 0). */
struct call {
    uint64_t sk;
    uint32_t direction; /* enum direction */
    uint32_t tid;
    uint32_t tgid;
    uint32_t size;
    uint32_t messages;  /* of sendmmsg and recvmmsg, with `buffer` their headers; else 0 */
    uint32_t summed;    /* of these messages, those that `size` counts */
    uint32_t datagrams; /* of these messages, those that were not empty */
    uint64_t buffer;   /* in the process's memory, of the bytes or of their vectors; 0: cannot be read */
    uint64_t count;    /* of vectors */
    uint64_t ktime_ns; /* 0: now, or the entry that `threads` holds */
    bool vectored;
    bool kernel_vectors; /* the vectors themselves lie in the kernel's memory */
    bool reset;          /* ECONNRESET */
    bool discarded;      /* MSG_TRUNC: TCP throws the bytes away, Unix sockets take no notice of it */
};

/* Where a call is taken apart: one per CPU, as the programs on system calls run with preemption off and
 * never inside each other. An array by CPU, as a per-CPU value may not pass 32 KiB. The state of the
 * copying loop lives here and not in registers for the verifier's sake: it takes a value loaded from a
 * map as unknown, and so each turn of the loop looks like the one before. */
enum { PATH_BYTES = 108, PATH_BYTES_ROUND = 128 }; /* of struct sockaddr_un; a power of two */

struct work {
    struct call call;
    uint64_t next_vector;   /* address of the next one */
    uint64_t vectors_left;
    uint64_t next_message;  /* address of the next header (sendmmsg, recvmmsg) */
    uint32_t messages_left;
    uint32_t message_left;  /* bytes of the present message that no vector has taken yet */
    uint64_t vector_base;   /* of the present vector */
    uint32_t vector_start;  /* its place in the chunk */
    uint32_t vector_end;
    uint32_t at;            /* the next byte to copy, in the chunk */
    uint32_t left;          /* bytes to copy of the head, then of the tail */
    uint32_t segment_start; /* first byte of this record, in the chunk */
    uint32_t filled;        /* payload bytes of this record */
    uint32_t taken;         /* bytes of the head that are in the payload already */
    uint32_t head;          /* bytes wanted of the beginning */
    uint32_t tail;          /* bytes wanted of the end */
    uint8_t in_tail;        /* the head is complete */
    uint8_t stuck;          /* the rest cannot be read */
    uint8_t runs;           /* of the program that copies */
    uint8_t flags;          /* enum chunk_flags, as far as they are known before anything is copied */
    uint8_t mode;           /* enum demand_mode */
    uint8_t awaited;        /* the core reads on in this chunk */
    uint8_t readable;
    uint8_t is_start;       /* of a message, or of a turn */
    uint8_t is_request;     /* of a database */
    uint8_t at_end;         /* the last bytes are looked at before anything is sent */
    uint8_t first_bytes;    /* of the payload: so many of the call's first are there, to know a message start by */
    uint32_t end_size;      /* bytes in `end` */
    uint32_t framing;       /* bytes copied whatever is left of the allowance */
    uint64_t pos;           /* of the chunk */
    uint64_t fill;          /* bytes that wait in the ring */
    uint32_t sequence;      /* TCP: behind the last byte that moved */
    uint32_t length;        /* of a message */
    uint8_t first[2 * CLASSIFY_BYTES];
    struct classified found; /* of these */
    uint8_t end[3 * END_BYTES] __attribute__((aligned(8))); /* the last of the call; three times: see `payload` */
    struct connection fresh;
    struct open_event open;
    uint8_t path[PATH_BYTES_ROUND]; /* directly behind, as in the record */
    struct chunk_event chunk;
    uint8_t payload[2 * PAYLOAD_CLASS_MAX]; /* twice: the verifier bounds start and length apart */
};
BPF_F_TABLE("array", int, struct work, works, CPUS, 0);

/* Made by the loader before it compiles: BCC 0.26 has no method for bpf_ringbuf_query, and reaches maps
 * of its own by methods only. A file descriptor in a load instruction is left as it is. */
#define EVENTS ((void *)bpf_pseudo_fd(1, EVENTS_FD))                 /* data ring, read by the pipeline */
#define PROCESS_EVENTS ((void *)bpf_pseudo_fd(1, PROCESS_EVENTS_FD)) /* read by the keeper */

/* Programs to jump to (tails.bpf.c). A jump does not cross types of programs: the loader loads them once for each
 * type, and puts the descriptor of that type's array in place of this one. */
enum tail { TAIL_CHUNK, TAIL_SEND, TAIL_MESSAGES, TAIL_AT_END, TAIL_PIPELINED, TAIL_ANSWERED };
#define TAILS bpf_pseudo_fd(1, TAILS_FD)
