/* SPDX-License-Identifier: GPL-2.0-only */
/* How a connection begins, is found and announced; positions. */
#pragma once

enum { OUT_OF_BAND = 1, PEEK = 2, TRUNC = 0x20, ERROR_QUEUE = 0x2000 }; /* MSG_* */
enum { CONNECTION_RESET = -104 };

/* What a socket is to us. */
enum finding { FOUND, NOT_TRACED, DATAGRAMS, REFUSED };

/* A position's high half starts at 1, so that a step back never passes 0, which says "not known". */
INLINE uint64_t first_position(uint32_t sequence)
{
    return 1ULL << 32 | sequence;
}

/* The server's end has the address that was bound, which accept copied from the listener. */
INLINE uint8_t role_of_unix(uint64_t sk)
{
    bool own = READ(uint64_t, sk, unix_sock, addr) != 0;
    uint64_t peer = READ(uint64_t, sk, unix_sock, peer);
    bool peers = peer && READ(uint64_t, peer, unix_sock, addr) != 0;
    return own == peers ? ROLE_UNKNOWN : own ? ROLE_SERVER : ROLE_CLIENT;
}

/* Before its first chunk, of which the bytes have just moved. conn_id is the how-manieth socket of this
 * CPU, times the CPUs, plus this CPU: unique without atomics, and its low bits spread over the demand slots.
 * Made in memory of the CPU's, as it would take a third of the stack. NULL: the table is full. */
INLINE struct connection *connection_begin(uint64_t sk, uint8_t transport, uint32_t direction, uint32_t size,
                                           struct work *work, struct kernel_counters *counts)
{
    uint32_t in_now = direction == DIRECTION_IN ? size : 0, out_now = size - in_now;
    struct connection *fresh = &work->fresh;
    struct stream *in = &fresh->streams[DIRECTION_IN], *out = &fresh->streams[DIRECTION_OUT];
    __builtin_memset(fresh, 0, sizeof(*fresh));
    fresh->conn_id = (counts->connections + 1) * CPUS + bpf_get_smp_processor_id();
    fresh->transport = transport;
    fresh->inode = inode_number(sk);
    long failed;
    if (transport == TRANSPORT_TCP) {
        fresh->role = role_of_tcp(sk);
        fresh->late = moved_before(sk, in_now, out_now);
        work->sequence = sequence(sk, direction);
        in->next = first_position(sequence(sk, DIRECTION_IN) - in_now - fin_was_read(sk));
        out->next = first_position(sequence(sk, DIRECTION_OUT) - out_now);
        in->origin = in->next;
        out->origin = out->next;
        failed = connections.update(&sk, fresh);
    } else {
        fresh->role = role_of_unix(sk);
        in->next = out->next = first_position(0);
        failed = unix_connections.update(&sk, fresh);
    }
    if (failed) {
        counts->connections_refused++;
        return NULL;
    }
    counts->connections++;
    counts->unix_connections += transport == TRANSPORT_UNIX;
    return transport == TRANSPORT_TCP ? connections.lookup(&sk) : unix_connections.lookup(&sk);
}

/* Of TCP. An end that was missed leaves an entry to the next socket at this address. That shows in the position: only
 * when it is not the one that is expected, the sockets are compared. */
INLINE struct connection *connection_of_tcp(uint64_t sk, const struct call *call, uint32_t direction,
                                            struct work *work, struct kernel_counters *counts)
{
    struct connection *connection = connections.lookup(&sk);
    if (!connection)
        return NULL;
    work->sequence = sequence(sk, direction);
    if (work->sequence - call->size == (uint32_t)connection->streams[direction].next ||
        connection->inode == inode_number(sk))
        return connection;
    counts->ends_missed++;
    emit_close(connection, EVENT_CLOSE, 0);
    connections.delete(&sk);
    return NULL;
}

/* Of a Unix socket: the kernel numbers nothing there, so the sockets are compared each time. */
INLINE struct connection *connection_of_unix(uint64_t sk, struct kernel_counters *counts)
{
    struct connection *connection = unix_connections.lookup(&sk);
    if (!connection || connection->inode == inode_number(sk))
        return connection;
    counts->ends_missed++;
    emit_close(connection, EVENT_CLOSE, 0);
    unix_connections.delete(&sk);
    return NULL;
}

/* The connection that a call moved bytes on. Of one that ended nothing begins: a read of its end may come
 * after the kernel has let go of it. */
INLINE struct connection *connection_of(const struct call *call, uint32_t direction, enum finding *finding,
                                        struct work *work, struct kernel_counters *counts)
{
    uint64_t sk = call->sk;
    struct connection *connection = connection_of_tcp(sk, call, direction, work, counts);
    *finding = FOUND;
    if (connection)
        return connection;
    uint8_t transport = transport_of(sk);
    if (transport == TRANSPORT_NONE || !call->size) {
        *finding = NOT_TRACED;
        return transport == TRANSPORT_UNIX ? connection_of_unix(sk, counts) : NULL;
    }
    if (transport == TRANSPORT_UDP) {
        *finding = DATAGRAMS;
        return NULL;
    }
    if (transport == TRANSPORT_UNIX)
        connection = connection_of_unix(sk, counts);
    if (!connection)
        connection = connection_begin(sk, transport, direction, call->size, work, counts);
    if (!connection)
        *finding = REFUSED;
    return connection;
}

/* Position of the first of `size` bytes that this call has just moved, by the kernel's own count where it
 * keeps one.
 *
 * Ahead of what was expected: calls that are not hooked moved the bytes between. Behind: another thread's
 * bytes were taken for such a gap a moment ago; they were none. Either way the kernel's count is right
 * for the bytes that follow; and when the socket ends the sum is set right (count_last_gap). */
INLINE uint64_t stream_advance(struct connection *connection, const struct work *work, uint32_t direction,
                               uint8_t *flags, struct kernel_counters *counts)
{
    uint32_t size = work->call.size;
    struct stream *stream = &connection->streams[direction];
    uint64_t pos = stream->next;
    if (connection->transport != TRANSPORT_TCP) {
        stream->next = pos + size;
        return pos;
    }
    int32_t ahead = work->sequence - size - (uint32_t)pos;
    if (ahead && direction == DIRECTION_IN)
        ahead -= fin_was_read(work->call.sk); /* with the last bytes: it is none of them */
    if (ahead) {
        pos += ahead;
        counts->gap_bytes += ahead;
        __sync_fetch_and_add(&stream->gap, ahead);
        if (ahead < 0) {
            *flags |= CHUNK_OVERLAP;
            counts->overlaps++;
        }
    }
    stream->next = pos + size;
    return pos;
}

INLINE void copy_address(uint8_t *address, uint64_t sk, uint16_t family, uint64_t v4, uint64_t v6)
{
    if (family == INET6) {
        bpf_probe_read_kernel(address, 16, (void *)(sk + v6));
        return;
    }
    address[10] = address[11] = 0xff;
    bpf_probe_read_kernel(address + 12, 4, (void *)(sk + v4));
}

INLINE void tell_tuple(struct open_event *open, uint64_t sk)
{
    uint16_t family = READ(uint16_t, sk, sock_common, skc_family);
    copy_address(open->local_address, sk, family, OFFSET(sock_common, skc_rcv_saddr),
                 OFFSET(sock_common, skc_v6_rcv_saddr));
    copy_address(open->remote_address, sk, family, OFFSET(sock_common, skc_daddr),
                 OFFSET(sock_common, skc_v6_daddr));
    /* inet_sport, not skc_num: that is 0 once both ends have closed, with bytes left to read */
    open->local_port = __builtin_bswap16(READ(uint16_t, sk, inet_sock, inet_sport));
    open->remote_port = __builtin_bswap16(READ(uint16_t, sk, sock_common, skc_dport));
}

/* Numbers in place of addresses: where the sockets lie in the kernel's memory is nobody's business. */
INLINE void tell_unix(struct open_event *open, uint64_t sk, struct work *work)
{
    uint64_t peer = READ(uint64_t, sk, unix_sock, peer);
    uint64_t here = sk * UNIX_SECRET, there = peer * UNIX_SECRET;
    __builtin_memcpy(open->local_address + 8, &here, 8);
    __builtin_memcpy(open->remote_address + 8, &there, 8);
    uint64_t pid = READ(uint64_t, sk, sock, sk_peer_pid);
    if (pid)
        open->peer_tgid = READ(uint32_t, pid + OFFSET(pid, numbers), upid, nr);
    uint64_t address = READ(uint64_t, sk, unix_sock, addr);
    if (!address && peer)
        address = READ(uint64_t, peer, unix_sock, addr);
    int32_t length = address ? READ(int32_t, address, unix_address, len) - 2 : 0; /* without sun_family */
    if (length <= 0 || length > PATH_BYTES)
        return;
    uint64_t bytes = BOUND(length, 2 * PATH_BYTES_ROUND - 1);
    if (bytes > PATH_BYTES_ROUND)
        return;
    if (bpf_probe_read_kernel(work->path, bytes, (void *)(address + OFFSET(unix_address, name) + 2)) == 0)
        open->path_size = bytes;
}

/* EVENT_OPEN, before the first chunk that is sent, and once more for each pipeline that starts. False: the
 * ring is full, and the chunk must not be sent either. */
INLINE bool announce(struct connection *connection, const struct call *call, uint64_t ktime_ns,
                     uint32_t epoch, struct work *work, struct kernel_counters *counts)
{
    if (connection->announced == epoch + 1)
        return true;
    uint64_t sk = call->sk;
    struct open_event *open = &work->open;
    __builtin_memset(open, 0, sizeof(*open));
    fill_header(&open->header, EVENT_OPEN, connection, 0, call->tid, ktime_ns);
    open->header.flags = (connection->late ? OPEN_LATE : 0) | (connection->announced ? OPEN_AGAIN : 0);
    open->tgid = call->tgid;
    open->netns = network_namespace(sk);
    open->role = connection->role;
    open->transport = connection->transport;
    if (connection->transport == TRANSPORT_UNIX)
        tell_unix(open, sk, work);
    else
        tell_tuple(open, sk);
    uint64_t bytes = BOUND(sizeof(*open) + open->path_size, 255);
    if (bpf_ringbuf_output(EVENTS, open, bytes, RB_NO_WAKEUP) != 0) {
        counts->unsent_events++;
        return false;
    }
    connection->announced = epoch + 1;
    return true;
}
