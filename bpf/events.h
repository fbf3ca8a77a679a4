/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Every record that crosses from the kernel programs to user space, and the arrays both sides map.
 *
 * Read by BCC (kernel programs), by the C core and, through cffi, by Python. The includer brings the
 * fixed-width integer types. All times are ktime (CLOCK_MONOTONIC) in ns; sizes and positions are bytes.
 *
 * A stream position is 64 bits wide. On TCP its low 32 bits are the sequence number of that byte (taken
 * from tcp_sock.copied_seq and write_seq). Both ends of a connection therefore name the same byte by the
 * same low 32 bits, and bytes moved by a call that is not hooked show as a gap. Unix and UDP sockets have no
 * such number: their positions are the kernel side's own count, from 1 << 32 at the first call it saw. */
#pragma once

enum event_kind {
    /* data ring, read by the pipeline */
    EVENT_OPEN = 1,  /* struct open_event: always before the first chunk of its connection */
    EVENT_CHUNK = 2, /* struct chunk_event */
    EVENT_FIN = 3,   /* struct close_event: `direction` ended (FIN sent, or end of file read) */
    EVENT_CLOSE = 4, /* struct close_event: the socket is gone, with the kernel's own totals */
    /* process ring, read by the keeper */
    EVENT_EXEC = 16, /* struct process_event */
    EVENT_FORK = 17,
    EVENT_EXIT = 18,
    EVENT_LISTEN = 19,
    EVENT_IO_URING = 20, /* it made a ring of io_uring */
};

enum direction {
    DIRECTION_IN = 0,  /* received by the traced process */
    DIRECTION_OUT = 1, /* sent by it */
};

enum role { ROLE_UNKNOWN = 0, ROLE_CLIENT = 1, ROLE_SERVER = 2 };
enum transport { TRANSPORT_TCP = 0, TRANSPORT_UDP = 1, TRANSPORT_UNIX = 2 };

enum limits {
    PAYLOAD_CLASS_MAX = 16384, /* most bytes that one record carries */
    SEGMENTS_MAX = 4,          /* records that one call may be cut into, of a database's more */
    DEMAND_SLOTS = 65536,      /* entries of the demand array; slot = conn_id % DEMAND_SLOTS */
};

enum chunk_flags {
    CHUNK_CONTINUED = 1,  /* a further record of the same call: not another chunk */
    CHUNK_UNREADABLE = 2, /* size is right, bytes could not be read (sendfile, MSG_TRUNC, fault) */
    CHUNK_OVERLAP = 4,    /* two threads moved bytes in this direction at once: pos is a guess */
    CHUNK_RESET = 8,      /* EVENT_CLOSE and EVENT_FIN: the connection was reset, not closed */
};

enum open_flags {
    OPEN_LATE = 1,  /* bytes had been moved before the first chunk that was seen */
    OPEN_AGAIN = 2, /* announced to an earlier pipeline already */
};

struct event_header {
    uint8_t kind;      /* enum event_kind */
    uint8_t flags;     /* enum chunk_flags or open_flags */
    uint8_t direction; /* enum direction */
    uint8_t protocol;  /* enum protocol_id, what the kernel side made of the connection so far */
    uint32_t tid;
    uint64_t ktime_ns; /* sends: entry of the call; receives: its exit */
    uint64_t conn_id;  /* unique while the programs are loaded; 0 is never used */
};
_Static_assert(sizeof(struct event_header) == 24, "event_header");

/* A connection, before its first chunk. Addresses are network order, IPv4 as ::ffff:a.b.c.d.
 * A Unix socket has no such addresses: the first 8 bytes of each are 0, the last 8 a number that stands for
 * the socket itself, and for its peer; so the two ends mirror each other as those of TCP do. */
struct open_event {
    struct event_header header;
    uint32_t tgid;
    uint32_t netns; /* inode number of the network namespace */
    uint8_t local_address[16];
    uint8_t remote_address[16];
    uint16_t local_port; /* host order */
    uint16_t remote_port;
    uint8_t role;      /* enum role, by how the socket got its local address */
    uint8_t transport; /* enum transport */
    uint16_t path_size;
    uint32_t peer_tgid; /* Unix: who connected, or listened, by the host's numbers; 0: unknown */
    uint32_t padding;
    uint8_t path[]; /* Unix: path_size bytes of the address that was bound; its first is 0 if it is abstract */
};
_Static_assert(sizeof(struct open_event) == 80, "open_event");

/* One read or write (or a part of one, CHUNK_CONTINUED), as seen at the socket.
 * payload holds `head` bytes from position pos + offset, then the last `tail` bytes of the chunk;
 * offset + head + tail <= size. */
struct chunk_event {
    struct event_header header;
    uint64_t pos;  /* stream position of the chunk's first byte */
    uint32_t size; /* bytes moved */
    uint32_t tgid;
    uint32_t offset;
    uint16_t head;
    uint16_t tail;
    uint32_t quiet_chunks; /* chunks of this direction passed over on demand since its last record */
    uint32_t unsent_chunks[2]; /* chunks the ring refused, or cut, by direction, so far: with both, a loss
                                * shows in the next record of either direction, not only of its own */
    uint32_t shed_chunks;  /* chunks left out under pressure, of both directions, so far */
    uint64_t quiet_bytes;  /* of quiet_chunks: they stand directly before pos, if nothing was lost */
    uint8_t payload[];
};
_Static_assert(sizeof(struct chunk_event) == 72, "chunk_event");

/* The end of one direction (EVENT_FIN) or of the connection (EVENT_CLOSE).
 * The totals are the kernel's count since it first saw the socket, [DIRECTION_IN], [DIRECTION_OUT]. */
struct close_event {
    struct event_header header;
    uint64_t bytes[2];
    uint32_t chunks[2];
    uint64_t unsent_bytes[2]; /* refused by the ring */
    uint32_t unsent_chunks[2];
    uint32_t quiet_chunks[2]; /* not yet told by a chunk event */
    uint64_t quiet_bytes[2];
    uint32_t shed_chunks;
    uint32_t padding;
};
_Static_assert(sizeof(struct close_event) == 104, "close_event");

/* A process began, ended, or started to listen. comm is NUL-terminated. */
struct process_event {
    uint8_t kind; /* enum event_kind */
    uint8_t traced; /* in the filter already (a child, or a port that is selected) */
    uint16_t port;  /* EVENT_LISTEN, host order */
    uint32_t tgid;
    uint32_t parent_tgid; /* EVENT_FORK */
    uint32_t netns;       /* EVENT_LISTEN */
    uint64_t ktime_ns;
    char comm[16];
};
_Static_assert(sizeof(struct process_event) == 40, "process_event");

enum demand_mode {
    DEMAND_DEFAULT = 0, /* each message start may capture up to the configured allowance */
    DEMAND_WHOLE = 1,   /* capture all bytes: the framing runs through the body */
    DEMAND_NOTHING = 2, /* count only, send no records (unknown or encrypted for good) */
};

/* What the core asks for, by connection: an mmapable array, written by the pipeline, read by the
 * kernel side, valid while conn_id is the connection's. Bytes before skip_to are not copied, and a
 * chunk that ends at or before skip_to - 1 sends no record: it is counted as quiet. */
struct demand {
    uint64_t conn_id;
    uint64_t skip_to[2]; /* absolute stream position, by direction */
    uint8_t mode[2];     /* enum demand_mode, by direction */
    uint8_t protocol;    /* enum protocol_id once the core has decided; 0: undecided */
    uint8_t padding[5];
};
_Static_assert(sizeof(struct demand) == 32, "demand");

/* An mmapable array of one, written by the keeper, but for the last two. */
struct control {
    uint32_t epoch; /* goes up when a pipeline starts: connections are announced again */
    uint32_t paused;
    uint32_t padding;
    uint32_t shed_level;        /* so many 256ths of the connections are left out now */
    uint64_t shed_changed_ktime; /* when the kernel side last changed that */
};

/* An mmapable array with one entry per possible CPU, written by the kernel side only.
 *
 * chunks == sent_chunks + quiet_chunks + unknown_chunks + encrypted_chunks + unsent_chunks + shed_chunks,
 * the same for bytes, at any quiet moment. */
struct kernel_counters {
    uint64_t chunks, bytes;                     /* calls that moved bytes on sockets of traced processes */
    uint64_t sent_chunks, sent_bytes;           /* reached the ring; a chunk counts by its first record */
    uint64_t quiet_chunks, quiet_bytes;         /* passed over on demand of the core */
    uint64_t unknown_chunks, unknown_bytes;     /* no known protocol: counted, no record */
    uint64_t encrypted_chunks, encrypted_bytes; /* TLS records: counted, no record */
    uint64_t unsent_chunks, unsent_bytes;       /* the ring was full */
    uint64_t shed_chunks, shed_bytes;           /* left out under pressure, by whole connections */
    uint64_t unsent_events;                     /* open, fin and close records the ring refused */
    uint64_t captured_bytes;                    /* payload copied into the ring */
    uint64_t gap_bytes;                         /* moved by calls that are not hooked (sequence gap) */
    uint64_t overlaps;                          /* CHUNK_OVERLAP */
    uint64_t connections;                       /* sockets first seen */
    uint64_t unix_connections;                  /* of these, Unix sockets */
    uint64_t connections_refused;               /* connection table full */
    uint64_t ends_missed;                       /* sockets whose end showed by the next one at their address */
    uint64_t threads_refused;                   /* thread table full: a send has its exit time */
    uint64_t faults;                            /* user memory that could not be read */
    uint64_t process_events_lost;               /* process ring full */
    uint64_t padding[7];
};
_Static_assert(sizeof(struct kernel_counters) == 256, "kernel_counters");
