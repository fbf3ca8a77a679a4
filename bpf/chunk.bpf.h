/* SPDX-License-Identifier: GPL-2.0-only */
/* One call that moved bytes: whose they are, what is wanted of them, what is sent, and the counts
 * that account for every one of them (struct kernel_counters). */
#pragma once

/* FRAMING_BYTES are copied of each chunk of a known protocol, whatever is left of the allowance: most
 * servers write the size of a chunk (RFC 9112, 7.1) at the beginning of a call, and with it the core keeps
 * in step through a body of any length. */
enum { CAPTURE_MAX = SEGMENTS_MAX * HEAD_MAX, FRAMING_BYTES = 256 };

/* What a database and its client say before it is the other's turn may be many messages. */
enum { TURN_ALLOWANCE = 4 * ALLOWANCE };

/* Chunk and bytes into exactly one account. A macro: it names the counter. */
#define COUNT(counts, account, bytes_now)                                                              \
    do {                                                                                               \
        (counts)->account##_chunks++;                                                                  \
        (counts)->account##_bytes += (bytes_now);                                                      \
    } while (0)

/* Pressure, first step: bodies are not copied any more when the ring is half full. The framing goes on by positions.
 * Of a chunk that begins a message so much is copied as a head may have: servers take no longer ones by default. */
INLINE uint32_t under_pressure(uint32_t head, uint64_t fill, bool is_start)
{
    return fill > EVENTS_BYTES / 2 ? least(head, is_start ? 8192 : FRAMING_BYTES) : head;
}

/* Second step: connections are left out as wholes, chosen by their number, so that what is kept is complete;
 * a ring that refuses at random spoils them all. The level goes up in small steps while the ring is three quarters
 * full, and down five times as slowly while it is less than half full: a connection changes sides seldom. (With
 * steps of a quarter, and 100 ms to go down, twice as much was left out as had to be.) */
enum { SHED_ALL = 256, SHED_MOST = 240, SHED_FIRST = 4, SHED_UP_NS = 2000000, SHED_DOWN_NS = 10000000 };

INLINE void shed_adapt(struct control *shared, uint64_t fill, uint64_t now_ns)
{
    uint32_t level = shared->shed_level;
    uint64_t since_ns = now_ns - shared->shed_changed_ktime;
    if (fill > EVENTS_BYTES / 4 * 3 && since_ns > SHED_UP_NS)
        level = least(level + most((SHED_ALL - level) / 16, SHED_FIRST), SHED_MOST);
    else if (level && fill < EVENTS_BYTES / 2 && since_ns > SHED_DOWN_NS)
        level -= least(level, most(level / 16, 2));
    else
        return;
    shared->shed_changed_ktime = now_ns;
    shared->shed_level = level;
}

/* The number's bits are mixed, by the golden ratio: neighbours are told apart. */
INLINE bool is_shed(const struct control *shared, uint64_t conn_id)
{
    return conn_id * 0x9e3779b97f4a7c15ULL >> 56 < shared->shed_level;
}

/* When the bytes moved: a request begins with the entry of its send, and has arrived with the exit of its
 * receive. */
INLINE uint64_t time_of(const struct call *call, uint32_t direction)
{
    if (call->ktime_ns)
        return call->ktime_ns;
    uint64_t ktime_ns = 0;
#if CAPTURE_SYSCALLS
    if (direction == DIRECTION_OUT) {
        uint32_t tid = call->tid;
        uint64_t *entered = threads.lookup(&tid);
        if (entered) {
            ktime_ns = *entered;
            *entered = 0; /* told: should a hook be missed, the next call must not get this time */
        }
    }
#endif
    return ktime_ns ? ktime_ns : bpf_ktime_get_ns();
}

/* A receive of nothing: the end of the file, a reset, or a call that asked for nothing. The last may come
 * when the peer has ended already and its bytes still wait: that is no end yet. */
INLINE void received_end(struct connection *connection, const struct call *call)
{
    if (call->reset)
        connection->reset = 1;
    else if (!(READ(uint8_t, call->sk, sock, sk_shutdown) & RCV_SHUTDOWN_) ||
             bytes_wait(call->sk, connection->transport))
        return;
    emit_fin(connection, DIRECTION_IN);
}

/* Are these `told` bytes all that was said, and said by the client? In one test: each more doubles the ways
 * that the verifier has to follow. */
INLINE bool opens(const struct connection *connection, uint32_t direction, uint64_t told)
{
    uint8_t asks = direction == DIRECTION_OUT ? ROLE_CLIENT : ROLE_SERVER;
    uint64_t said = connection->streams[direction].bytes + connection->streams[!direction].bytes;
    return !(connection->late | (connection->role ^ asks) | (said ^ told));
}

/* The verdict over these bytes and those of the calls before, while they may begin a message: a client
 * may send its first request byte by byte. It falls after CLASSIFY_BYTES bytes at the latest. */
INLINE enum verdict classify_so_far(struct connection *connection, uint32_t direction, struct work *work,
                                    uint32_t taken, uint32_t size)
{
    struct stream *stream = &connection->streams[direction];
    uint32_t had = stream->had;
    uint64_t at = BOUND(had, CLASSIFY_BYTES - 1);
    __builtin_memcpy(work->first, stream->first, CLASSIFY_BYTES);
    bpf_probe_read_kernel(work->first + at, CLASSIFY_BYTES, work->payload);
    uint32_t n = least(at + least(taken, CLASSIFY_BYTES), CLASSIFY_BYTES);
    bool all = opens(connection, direction, had + size);
    enum verdict verdict = classify(work->first, n, had + size, all, &work->found);
    stream->had = verdict == VERDICT_MAYBE ? n : 0;
    __builtin_memcpy(stream->first, work->first, CLASSIFY_BYTES);
    return verdict;
}

/* The ring refused the chunk behind its first `sent` bytes. A chunk whose first record came is a chunk that
 * came, maybe not whole: the core counts it so too. The first record carries what was quiet before it. */
INLINE void chunk_unsent(struct work *work, struct kernel_counters *counts, uint32_t sent)
{
    uint64_t sk = work->call.sk;
    uint32_t missing = work->call.size - sent;
    counts->sent_bytes += sent;
    counts->unsent_bytes += missing;
    if (sent)
        counts->sent_chunks++;
    else
        counts->unsent_chunks++;
    struct connection *connection = connections.lookup(&sk);
    if (!connection)
        connection = unix_connections.lookup(&sk);
    if (!connection)
        return;
    struct stream *stream = &connection->streams[work->call.direction & 1];
    /* Two threads may share a direction, and the core relies on totals that never fall. */
    __sync_fetch_and_add(&stream->unsent_chunks, 1);
    stream->unsent_bytes += missing;
    if (sent)
        return;
    stream->quiet_chunks += work->chunk.quiet_chunks;
    stream->quiet_bytes += work->chunk.quiet_bytes;
}

/* The way of the call in `work`: skip what nobody wants, know the protocol, copy up to the allowance. True: a
 * record is to be sent. */
INLINE bool chunk(struct work *work, struct control *shared, struct kernel_counters *counts)
{
    const struct call *call = &work->call;
    uint32_t direction = call->direction & 1;
    uint32_t size = call->size;
    enum finding finding;
    struct connection *connection = connection_of(call, direction, &finding, work, counts);
    if (!size) {
        if (connection && direction == DIRECTION_IN)
            received_end(connection, call);
        return false;
    }
    if (finding == NOT_TRACED)
        return false;
    counts->bytes += size;
    if (finding == DATAGRAMS) {
        /* No protocol of ours is spoken over UDP yet: datagrams are counted. */
        uint32_t datagrams = call->messages ? call->datagrams : 1;
        counts->chunks += datagrams;
        counts->unknown_chunks += datagrams;
        counts->unknown_bytes += size;
        return false;
    }
    counts->chunks++;
    if (!connection) {
        COUNT(counts, unsent, size);
        return false;
    }
    struct stream *stream = &connection->streams[direction];
    uint8_t flags = 0;
    uint64_t pos = stream_advance(connection, work, direction, &flags, counts);
    stream->chunks++;
    __sync_fetch_and_add(&stream->bytes, size);

    /* What the core has asked for. */
    int slot = connection->conn_id % DEMAND_SLOTS;
    const struct demand *demand = demands.lookup(&slot);
    uint8_t mode = DEMAND_DEFAULT;
    uint32_t offset = 0;
    bool quiet = false, awaited = false; /* the core reads on in this chunk */
    if (demand && demand->conn_id == connection->conn_id) {
        uint64_t skip_to = demand->skip_to[direction];
        mode = demand->mode[direction];
        if (demand->protocol)
            connection->protocol = demand->protocol;
        quiet = pos + size < skip_to || mode == DEMAND_NOTHING;
        awaited = pos <= skip_to && skip_to < pos + size;
        if (pos < skip_to)
            offset = least(skip_to - pos < size ? skip_to - pos : size, size);
    }
    uint8_t protocol = connection->protocol;
    if (protocol == PROTOCOL_ENCRYPTED) {
        COUNT(counts, encrypted, size);
        return false;
    }
    if (protocol == PROTOCOL_UNKNOWN || (quiet && protocol == PROTOCOL_UNDECIDED)) {
        COUNT(counts, unknown, size);
        return false;
    }
    if (quiet) {
        COUNT(counts, quiet, size);
        stream->quiet_chunks++;
        stream->quiet_bytes += size;
        return false;
    }
    work->fill = ring_fill();
    if (SHED && (work->fill > EVENTS_BYTES / 4 * 3 || shared->shed_level)) {
        shed_adapt(shared, work->fill, bpf_ktime_get_ns());
        if (is_shed(shared, connection->conn_id)) {
            COUNT(counts, shed, size);
            __sync_fetch_and_add(&connection->shed_chunks, 1);
            stream->had = 0;
            return false;
        }
    }

    /* Does a message begin here? In a database's protocol: is it the other side's turn? */
    bool database = protocol_is_database(protocol);
    bool turned = database && connection->turn != direction;
    uint32_t framing = database && !awaited ? 0 : FRAMING_BYTES;
    connection->turn = direction;
    if (turned)
        stream->allowance = TURN_ALLOWANCE;
    enum verdict verdict = VERDICT_NO;
    bool readable = seek(work, call, offset) && !(call->discarded && connection->transport == TRANSPORT_TCP);
    uint32_t taken = 0;
    if (readable && offset < size) {
        uint32_t wanted = CLASSIFY_BYTES;
        if (protocol != PROTOCOL_UNDECIDED)
            wanted = most(stream->allowance, framing);
        taken = take_first(work, least(wanted, size - offset));
        if (taken && protocol == PROTOCOL_UNDECIDED)
            verdict = classify_so_far(connection, direction, work, taken, size);
        else if (taken)
            verdict = classify_again(protocol, work->payload, least(taken, CLASSIFY_BYTES), size);
        if (verdict >= VERDICT_YES && protocol == PROTOCOL_UNDECIDED) {
            connection->protocol = protocol = work->found.protocol;
            if (protocol == PROTOCOL_ENCRYPTED) {
                COUNT(counts, encrypted, size);
                return false;
            }
        }
    }
    bool is_start = verdict != VERDICT_NO || turned;
    if (protocol == PROTOCOL_UNDECIDED && !is_start) {
        /* Counted, and looked at again next time: a message may begin there. */
        COUNT(counts, unknown, size);
        return false;
    }
    if (is_start)
        stream->allowance = protocol_is_database(protocol) ? TURN_ALLOWANCE : ALLOWANCE;

    uint32_t head = least(size - offset, CAPTURE_MAX);
    if (mode != DEMAND_WHOLE)
        head = least(head, most(stream->allowance, framing));
    head = under_pressure(head, work->fill, is_start);
    uint32_t tail = least(TAIL_BYTES, size - offset - head);
    if (!readable) {
        head = tail = 0;
        if (offset < size)
            flags |= CHUNK_UNREADABLE;
    }
    stream->allowance -= least(head, stream->allowance);

    struct chunk_event *event = &work->chunk;
    uint64_t ktime_ns = time_of(call, direction);
    fill_header(&event->header, EVENT_CHUNK, connection, direction, call->tid, ktime_ns);
    event->header.flags = flags;
    event->pos = pos;
    event->tgid = call->tgid;
    event->offset = offset;
    event->quiet_chunks = stream->quiet_chunks;
    event->unsent_chunks[DIRECTION_IN] = connection->streams[DIRECTION_IN].unsent_chunks;
    event->unsent_chunks[DIRECTION_OUT] = connection->streams[DIRECTION_OUT].unsent_chunks;
    event->shed_chunks = connection->shed_chunks;
    event->quiet_bytes = stream->quiet_bytes;
    work->taken = least(taken, head);
    work->head = head;
    work->tail = tail;
    begin_sending(work);
    stream->quiet_chunks = 0;
    stream->quiet_bytes = 0;
    if (announce(connection, call, ktime_ns, shared->epoch, work, counts))
        return true;
    chunk_unsent(work, counts, 0);
    return false;
}

/* Sends what chunk() has decided to send. False: there is more to do. */
INLINE bool send(struct work *work, struct kernel_counters *counts)
{
    enum progress progress = send_chunk(work, counts);
    if (progress == RING_FULL) {
        chunk_unsent(work, counts, work->segment_start);
    } else if (progress == SENT) {
        counts->sent_chunks++;
        counts->sent_bytes += work->call.size;
    }
    return progress != SENDING;
}
