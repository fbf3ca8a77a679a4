/* SPDX-License-Identifier: GPL-2.0-only */
/* One call that moved bytes: whose they are, what is wanted of them, what is sent, and the counts
 * that account for every one of them (struct kernel_counters). */
#pragma once

/* FRAMING_BYTES are copied of each chunk of a known protocol, whatever is left of the allowance: most
 * servers write the size of a chunk (RFC 9112, 7.1) at the beginning of a call, and with it the core keeps
 * in step through a body of any length. */
enum { CAPTURE_MAX = SEGMENTS_MAX * HEAD_MAX, FRAMING_BYTES = 256 };

/* What a database and its client say before it is the other's turn may be many messages: a turn has an allowance. That
 * of requests grows while they are small (pipelined()), that of answers with what was copied of the requests. A call may
 * not take more than its part of the ring. */
enum {
    TURN_ALLOWANCE = 4 * ALLOWANCE,
    ANSWERS_TO_REQUESTS = 32,
    ASKED_MAX = 4 * 1024 * 1024,
    TURN_CALL_MAX = EVENTS_BYTES / 4 > CAPTURE_MAX ? EVENTS_BYTES / 4 : CAPTURE_MAX,
};

/* The verifier knows nothing of what lies in memory: ways that lead here, and differ in what they have put there, are one
 * from here on. It would follow each of them to the end, and a million instructions are its limit. */
#define FORGET() asm volatile("" ::: "memory")

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

/* The last bytes of the call, up to END_BYTES, at the end of work->end. Of several vectors the last is looked at: those
 * of a send are full. */
INLINE void take_end(struct work *work)
{
    const struct call *call = &work->call;
    work->end_size = 0;
    uint64_t vector[2] = {call->buffer, call->size}; /* base, length */
    if (call->vectored) {
        uint64_t at = call->buffer + (call->count - 1) * sizeof(vector);
        if (call->count > 1 && call->direction == DIRECTION_IN)
            return;
        long failed;
        if (call->kernel_vectors)
            failed = bpf_probe_read_kernel(vector, sizeof(vector), (void *)at);
        else
            failed = bpf_probe_read_user(vector, sizeof(vector), (void *)at);
        if (failed)
            return;
        if (vector[1] > call->size)
            vector[1] = call->size;
    }
    uint32_t n = vector[1] < END_BYTES ? vector[1] : END_BYTES;
    uint64_t into = BOUND(END_BYTES - n, END_BYTES - 1), length = BOUND(n, 2 * END_BYTES - 1);
    if (bpf_probe_read_user(work->end + into, length, (void *)(vector[0] + vector[1] - n)) == 0)
        work->end_size = n;
}

/* The call in `work` is of a turn of requests that has become long, or is long itself. What is said in many messages is
 * copied as far as it goes; a large value, a COPY or a file is not: no message begins with its calls, and none at their
 * ends. Where the copying has stopped, the core goes on with a call that begins a message, and with no other. */
INLINE void pipelined(struct work *work)
{
    const struct call *call = &work->call;
    uint64_t sk = call->sk;
    struct connection *connection = connections.lookup(&sk);
    if (!connection)
        connection = unix_connections.lookup(&sk);
    if (!connection)
        return;
    struct stream *stream = &connection->streams[call->direction & 1];
    uint8_t protocol = connection->protocol;
    uint32_t allowance = stream->allowance + work->head;
    work->is_start = classify_again(protocol, work->payload, work->first_bytes, call->size, true) == VERDICT_YES;
    FORGET();
    bool begins = work->is_start;
    bool small = (begins || allowance) && work->end_size == END_BYTES && ends_in_pipeline(protocol, work->end);
    if (small)
        allowance = call->size + TURN_ALLOWANCE;
    else if (begins)
        allowance = most(allowance, ALLOWANCE);
    uint32_t wanted = call->size - work->chunk.offset;
    uint32_t head = under_pressure(least(least(wanted, allowance), TURN_CALL_MAX), work->fill, begins || small);
    if (head < work->head)
        return;
    stream->allowance = head < wanted ? 0 : allowance - head;
    connection->asked = least(connection->asked + head - work->head, ASKED_MAX);
    work->left += head - work->head;
    work->head = head;
    work->tail = least(work->tail, wanted - head);
}

/* The call in `work` is of a long answer. An error that ends it is copied as a whole, if the record has room for it. */
INLINE void answered(struct work *work)
{
    uint32_t found = error_at_end(work->chunk.header.protocol, work->end);
    uint32_t filled = work->head ? (work->head - 1) % HEAD_MAX + 1 : 0; /* of the last record */
    uint32_t left = work->call.size - work->chunk.offset - work->head;
    if (found <= work->end_size && found <= left && found <= PAYLOAD_CLASS_MAX - filled)
        work->tail = most(work->tail, found);
}

/* Are requests sent in this direction? Of a connection whose role is not known none are, and no turn is long. */
INLINE bool asks(const struct connection *connection, uint32_t direction)
{
    return connection->role == (direction == DIRECTION_OUT ? ROLE_CLIENT : ROLE_SERVER);
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

/* How much of the call in `work` is copied? True: a record is to be sent. */
INLINE bool plan(struct connection *connection, struct work *work, struct control *shared, struct kernel_counters *counts)
{
    const struct call *call = &work->call;
    struct chunk_event *event = &work->chunk;
    uint32_t direction = call->direction & 1;
    struct stream *stream = &connection->streams[direction];
    uint32_t wanted = call->size - event->offset;
    bool database = protocol_is_database(connection->protocol), requests = database && asks(connection, direction);

    uint32_t head = least(wanted, database ? TURN_CALL_MAX : CAPTURE_MAX);
    if (work->mode != DEMAND_WHOLE)
        head = least(head, most(stream->allowance, work->framing));
    head = under_pressure(head, work->fill, work->is_start);
    uint32_t left = wanted - head;
    bool is_long = requests ? left || stream->allowance < TURN_ALLOWANCE - ALLOWANCE : left > TAIL_BYTES;
    work->is_request = requests;
    work->at_end = database && is_long && work->readable && !call->messages;
    uint32_t tail = least(TAIL_BYTES, left);
    if (!work->readable) {
        head = tail = 0;
        if (wanted)
            work->flags |= CHUNK_UNREADABLE;
    }
    stream->allowance -= least(head, stream->allowance);
    if (requests)
        connection->asked = least(connection->asked + head, ASKED_MAX);

    uint64_t ktime_ns = time_of(call, direction);
    fill_header(&event->header, EVENT_CHUNK, connection, direction, call->tid, ktime_ns);
    event->header.flags = work->flags;
    event->tgid = call->tgid;
    event->quiet_chunks = stream->quiet_chunks;
    event->unsent_chunks[DIRECTION_IN] = connection->streams[DIRECTION_IN].unsent_chunks;
    event->unsent_chunks[DIRECTION_OUT] = connection->streams[DIRECTION_OUT].unsent_chunks;
    event->shed_chunks = connection->shed_chunks;
    event->quiet_bytes = stream->quiet_bytes;
    work->first_bytes = least(work->taken, CLASSIFY_BYTES);
    work->taken = least(work->taken, head);
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

/* Does a message begin here? In a database's protocol: is it the other side's turn? False: the call is accounted for,
 * and no record of it wanted. */
INLINE bool look(struct connection *connection, struct work *work, struct kernel_counters *counts)
{
    const struct call *call = &work->call;
    uint32_t direction = call->direction & 1, size = call->size, offset = work->chunk.offset;
    struct stream *stream = &connection->streams[direction];
    uint8_t protocol = connection->protocol;
    bool database = protocol_is_database(protocol);
    bool turned = database && connection->turn != direction;
    connection->turn = direction;
    work->framing = database && !work->awaited ? 0 : FRAMING_BYTES;
    if (turned && asks(connection, direction)) {
        connection->asked /= 2;
        stream->allowance = TURN_ALLOWANCE;
    } else if (turned) {
        stream->allowance = TURN_ALLOWANCE + ANSWERS_TO_REQUESTS * connection->asked;
    }
    enum verdict verdict = VERDICT_NO;
    bool readable = seek(work, call, offset) && !(call->discarded && connection->transport == TRANSPORT_TCP);
    uint32_t taken = 0;
    if (readable && offset < size) {
        uint32_t wanted = CLASSIFY_BYTES;
        if (protocol != PROTOCOL_UNDECIDED)
            wanted = most(wanted, most(stream->allowance, work->framing));
        taken = take_first(work, least(wanted, size - offset));
        if (taken && protocol == PROTOCOL_UNDECIDED)
            verdict = classify_so_far(connection, direction, work, taken, size);
        else if (taken)
            verdict = classify_again(protocol, work->payload, least(taken, CLASSIFY_BYTES), size, false);
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
    if (is_start && !database)
        stream->allowance = protocol_is_database(protocol) ? TURN_ALLOWANCE : ALLOWANCE;
    work->readable = readable;
    work->taken = taken;
    work->is_start = is_start;
    return true;
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

    work->chunk.pos = pos;
    work->chunk.offset = offset;
    work->flags = flags;
    work->mode = mode;
    work->awaited = awaited;
    FORGET();
    if (!look(connection, work, counts))
        return false;
    FORGET();
    return plan(connection, work, shared, counts);
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
