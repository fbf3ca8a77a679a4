/* SPDX-License-Identifier: GPL-2.0-only */
/* From a descriptor to its connection; how a connection begins and is announced; positions. */
#pragma once

/* One system call that moved bytes, or found the end of them (size 0). */
struct call {
    uint32_t tid;
    uint32_t tgid;
    uint32_t fd;
    uint32_t size;
    uint64_t buffer; /* in the process's memory, of the bytes or of their vectors; 0: cannot be read */
    uint64_t count;  /* of vectors */
    bool vectored;
    bool reset; /* ECONNRESET */
};

/* A position's high half starts at 1, so that a step back never passes 0, which says "not known". */
INLINE uint64_t first_position(uint32_t sequence)
{
    return 1ULL << 32 | sequence;
}

/* conn_id is the how-manieth socket of this CPU, times the CPUs, plus this CPU: unique without atomics,
 * and its low bits spread over the demand slots. `fresh` is made in memory of the CPU's, as it would
 * take a third of the stack. Returns NULL when the table is full. */
INLINE struct connection *connection_begin(uint64_t sk, uint8_t role, bool late, struct work *work,
                                           struct kernel_counters *counts)
{
    struct connection *fresh = &work->fresh;
    __builtin_memset(fresh, 0, sizeof(*fresh));
    fresh->conn_id = (counts->connections + 1) * CPUS + bpf_get_smp_processor_id();
    fresh->role = role;
    fresh->late = late;
    if (connections.update(&sk, fresh) != 0) {
        counts->connections_refused++;
        return NULL;
    }
    counts->connections++;
    return connections.lookup(&sk);
}

/* Writes down what a descriptor leads to. */
INLINE void descriptor_remember(const struct traced_process *process, uint32_t tgid, uint32_t fd, uint64_t sk,
                                uint64_t conn_id)
{
    struct descriptor_key key = {tgid, fd};
    struct descriptor value = {sk, conn_id, process->generation, 0};
    descriptors.update(&key, &value);
}

INLINE void descriptor_forget(uint32_t tgid, uint32_t fd)
{
    struct descriptor_key key = {tgid, fd};
    descriptors.delete(&key);
}

/* The descriptor by way of the task's own table. in_now and out_now: the bytes that this very call moved.
 * Returns NULL for what is not ours, and with *refused set for a connection that found no room. */
INLINE struct connection *connection_walk(const struct traced_process *process, uint32_t tgid, uint32_t fd,
                                          uint32_t in_now, uint32_t out_now, uint64_t *sk_out, bool *refused,
                                          struct work *work, struct kernel_counters *counts)
{
    counts->walks++;
    uint64_t sk = socket_of(fd);
    *sk_out = sk;
    if (!sk || !is_tcp(sk)) {
        descriptor_remember(process, tgid, fd, 0, 0);
        return NULL;
    }
    struct connection *connection = connections.lookup(&sk);
    if (!connection) {
        connection = connection_begin(sk, ROLE_UNKNOWN, moved_before(sk, in_now, out_now), work, counts);
        if (!connection) {
            *refused = true;
            return NULL;
        }
        struct stream *in = &connection->streams[DIRECTION_IN], *out = &connection->streams[DIRECTION_OUT];
        in->next = first_position(sequence(sk, DIRECTION_IN) - in_now - fin_was_read(sk));
        out->next = first_position(sequence(sk, DIRECTION_OUT) - out_now);
    }
    descriptor_remember(process, tgid, fd, sk, connection->conn_id);
    return connection;
}

/* The connection that a call moved bytes on: from the cache where that holds, else by the walk. */
INLINE struct connection *connection_of(const struct traced_process *process, const struct call *call,
                                        uint32_t direction, uint64_t *sk_out, bool *refused,
                                        struct work *work, struct kernel_counters *counts)
{
    struct descriptor_key key = {call->tgid, call->fd};
    const struct descriptor *known = descriptors.lookup(&key);
    if (known && known->generation == process->generation) {
        if (!known->conn_id)
            return NULL;
        uint64_t sk = known->sk;
        struct connection *connection = connections.lookup(&sk);
        *sk_out = sk;
        if (connection && connection->conn_id == known->conn_id)
            return connection;
    }
    return connection_walk(process, call->tgid, call->fd, direction == DIRECTION_IN ? call->size : 0,
                           direction == DIRECTION_OUT ? call->size : 0, sk_out, refused, work, counts);
}

/* A new connection, from accept or connect. What is in the table under this address is an earlier socket:
 * its end was missed, or it was seen in a process that took it before this call returned. */
INLINE void connection_new(const struct traced_process *process, uint32_t tgid, uint32_t fd, uint8_t role,
                           bool established)
{
    int cpu = bpf_get_smp_processor_id();
    struct work *work = works.lookup(&cpu);
    struct kernel_counters *counts = counters.lookup(&cpu);
    if (!work || !counts)
        return;
    counts->walks++;
    uint64_t sk = socket_of(fd);
    if (!sk || !is_tcp(sk)) {
        descriptor_remember(process, tgid, fd, 0, 0);
        return;
    }
    /* The second call of a non-blocking connect tells the outcome of the first. */
    struct connection *connection = connections.lookup(&sk);
    bool again = connection && role == ROLE_CLIENT && established && connection->role == ROLE_CLIENT &&
                 !connection->streams[DIRECTION_IN].chunks && !connection->streams[DIRECTION_OUT].chunks;
    if (!again)
        connection = connection_begin(sk, role, false, work, counts);
    if (!connection) {
        descriptor_forget(tgid, fd); /* each call will walk, and be counted as not sent */
        return;
    }
    /* Before the handshake is done there is no first byte to expect from the peer. */
    if (established)
        connection->streams[DIRECTION_IN].next = first_position(sequence(sk, DIRECTION_IN));
    connection->streams[DIRECTION_OUT].next = first_position(sequence(sk, DIRECTION_OUT));
    descriptor_remember(process, tgid, fd, sk, connection->conn_id);
}

/* Position of the first of `size` bytes that this call has just moved, by the kernel's own count.
 *
 * Ahead of what was expected: calls that are not hooked moved the bytes between. Behind: another thread's
 * bytes were taken for such a gap a moment ago; they were none. Either way the kernel's count is right
 * for the bytes that follow. */
INLINE uint64_t stream_advance(struct connection *connection, uint64_t sk, uint32_t direction, uint32_t size,
                               uint8_t *flags, struct kernel_counters *counts)
{
    struct stream *stream = &connection->streams[direction];
    uint32_t start = sequence(sk, direction) - size;
    uint64_t pos = stream->next;
    if (!pos) {
        pos = first_position(start);
        if (direction == DIRECTION_IN)
            pos -= fin_was_read(sk);
    }
    int32_t ahead = start - (uint32_t)pos;
    if (ahead && direction == DIRECTION_IN)
        ahead -= fin_was_read(sk); /* with the last bytes: it is none of them */
    if (ahead) {
        pos += ahead;
        counts->gap_bytes += ahead;
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

/* EVENT_OPEN, before the first chunk that is sent, and once more for each pipeline that starts. False: the
 * ring is full, and the chunk must not be sent either. */
INLINE bool announce(struct connection *connection, uint64_t sk, const struct call *call, uint64_t ktime_ns,
                     uint32_t epoch, struct work *work, struct kernel_counters *counts)
{
    if (connection->announced == epoch + 1)
        return true;
    struct open_event *open = &work->open;
    __builtin_memset(open, 0, sizeof(*open));
    fill_header(&open->header, EVENT_OPEN, connection, 0, call->tid, ktime_ns);
    open->header.flags = (connection->late ? OPEN_LATE : 0) | (connection->announced ? OPEN_AGAIN : 0);
    open->tgid = call->tgid;
    open->netns = network_namespace(sk);
    open->role = connection->role;
    uint16_t family = READ(uint16_t, sk, sock_common, skc_family);
    copy_address(open->local_address, sk, family, OFFSET(sock_common, skc_rcv_saddr),
                 OFFSET(sock_common, skc_v6_rcv_saddr));
    copy_address(open->remote_address, sk, family, OFFSET(sock_common, skc_daddr),
                 OFFSET(sock_common, skc_v6_daddr));
    /* inet_sport, not skc_num: that is 0 once both ends have closed, with bytes left to read */
    open->local_port = __builtin_bswap16(READ(uint16_t, sk, inet_sock, inet_sport));
    open->remote_port = __builtin_bswap16(READ(uint16_t, sk, sock_common, skc_dport));
    if (bpf_ringbuf_output(EVENTS, open, sizeof(*open), RB_NO_WAKEUP) != 0) {
        counts->unsent_events++;
        return false;
    }
    connection->announced = epoch + 1;
    return true;
}
