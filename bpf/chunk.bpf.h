/* SPDX-License-Identifier: GPL-2.0-only */
/* One system call that moved bytes: whose they are, what is wanted of them, what is sent, and the counts
 * that account for every one of them (struct kernel_counters). */
#pragma once

/* FRAMING_BYTES are copied of each chunk of a known protocol, whatever is left of the allowance: most
 * servers write the size of a chunk (RFC 9112, 7.1) at the beginning of a call, and with it the core keeps
 * in step through a body of any length. */
enum { CAPTURE_MAX = SEGMENTS_MAX * HEAD_MAX, FRAMING_BYTES = 256 };

/* Chunk and bytes into exactly one account. A macro: it names the counter. */
#define COUNT(counts, account, bytes_now)                                                              \
    do {                                                                                               \
        (counts)->account##_chunks++;                                                                  \
        (counts)->account##_bytes += (bytes_now);                                                      \
    } while (0)

/* What is copied under pressure: less of each chunk when the ring is half full, little but message starts
 * when it is three quarters full. The framing goes on by positions; what is lost is detail. */
INLINE uint32_t under_pressure(uint32_t head, uint64_t fill, bool is_start)
{
    if (fill > EVENTS_BYTES / 4 * 3)
        return least(head, is_start ? 1024 : FRAMING_BYTES);
    if (fill > EVENTS_BYTES / 2)
        return least(head, is_start ? 4096 : 1024);
    return head;
}

/* When the bytes moved: a request begins with the entry of its send, and has arrived with the exit of its
 * receive. */
INLINE uint64_t time_of(const struct call *call, uint32_t direction)
{
    uint64_t *entered = NULL;
    if (direction == DIRECTION_OUT) {
        uint32_t tid = call->tid;
        entered = threads.lookup(&tid);
    }
    uint64_t ktime_ns = entered ? *entered : 0;
    if (entered)
        *entered = 0; /* told: should a hook be missed, the next call must not get this time */
    return ktime_ns ? ktime_ns : bpf_ktime_get_ns();
}

/* A receive of nothing: the end of the file, a reset, or a call that asked for nothing. */
INLINE void received_end(struct connection *connection, uint64_t sk, const struct call *call)
{
    if (call->reset)
        connection->reset = 1;
    else if (!(READ(uint8_t, sk, sock, sk_shutdown) & RCV_SHUTDOWN_))
        return;
    emit_fin(connection, DIRECTION_IN);
}

/* The verdict over these bytes and those of the calls before, while they may begin a message: a client
 * may send its first request byte by byte. It falls after CLASSIFY_BYTES bytes at the latest. */
INLINE enum verdict classify_so_far(struct stream *stream, struct work *work, uint32_t taken, uint8_t *protocol)
{
    uint32_t had = stream->had;
    uint64_t at = BOUND(had, CLASSIFY_BYTES - 1);
    __builtin_memcpy(work->first, stream->first, CLASSIFY_BYTES);
    bpf_probe_read_kernel(work->first + at, CLASSIFY_BYTES, work->payload);
    uint32_t n = least(at + least(taken, CLASSIFY_BYTES), CLASSIFY_BYTES);
    enum verdict verdict = classify(work->first, n, protocol);
    stream->had = verdict == VERDICT_MAYBE ? n : 0;
    __builtin_memcpy(stream->first, work->first, CLASSIFY_BYTES);
    return verdict;
}

/* The chunk's way, once per call: skip what nobody wants, know the protocol, copy up to the allowance. */
INLINE void chunk(const struct traced_process *process, const struct call *call, uint32_t direction)
{
    int cpu = bpf_get_smp_processor_id(), zero = 0;
    const struct control *shared = control.lookup(&zero);
    struct kernel_counters *counts = counters.lookup(&cpu);
    struct work *work = works.lookup(&cpu);
    if (!shared || !counts || !work || shared->paused)
        return;
    uint32_t size = call->size;
    bool refused = false;
    uint64_t sk = 0;
    struct connection *connection = connection_of(process, call, direction, &sk, &refused, work, counts);
    if (!connection) {
        if (!refused || !size)
            return;
        counts->chunks++;
        counts->bytes += size;
        COUNT(counts, unsent, size);
        return;
    }
    if (!size) {
        received_end(connection, sk, call);
        return;
    }
    struct stream *stream = &connection->streams[direction];
    uint8_t flags = 0;
    uint64_t pos = stream_advance(connection, sk, direction, size, &flags, counts);
    counts->chunks++;
    counts->bytes += size;
    stream->chunks++;
    stream->bytes += size;

    /* What the core has asked for. */
    int slot = connection->conn_id % DEMAND_SLOTS;
    const struct demand *demand = demands.lookup(&slot);
    uint8_t mode = DEMAND_DEFAULT;
    uint32_t offset = 0;
    bool quiet = false;
    if (demand && demand->conn_id == connection->conn_id) {
        uint64_t skip_to = demand->skip_to[direction];
        mode = demand->mode[direction];
        if (demand->protocol)
            connection->protocol = demand->protocol;
        quiet = pos + size < skip_to || mode == DEMAND_NOTHING;
        if (pos < skip_to)
            offset = least(skip_to - pos < size ? skip_to - pos : size, size);
    }
    uint8_t protocol = connection->protocol;
    if (protocol == PROTOCOL_ENCRYPTED) {
        COUNT(counts, encrypted, size);
        return;
    }
    if (protocol == PROTOCOL_UNKNOWN || (quiet && protocol == PROTOCOL_UNDECIDED)) {
        COUNT(counts, unknown, size);
        return;
    }
    if (quiet) {
        COUNT(counts, quiet, size);
        stream->quiet_chunks++;
        stream->quiet_bytes += size;
        return;
    }

    /* Does a message begin here? */
    enum verdict verdict = VERDICT_NO;
    bool readable = seek(work, call, offset);
    uint32_t taken = 0;
    if (readable && offset < size) {
        uint8_t looks_like = PROTOCOL_UNDECIDED;
        uint32_t wanted = CLASSIFY_BYTES;
        if (protocol != PROTOCOL_UNDECIDED)
            wanted = most(stream->allowance, FRAMING_BYTES);
        taken = take_first(work, least(wanted, size - offset));
        if (taken && protocol == PROTOCOL_UNDECIDED)
            verdict = classify_so_far(stream, work, taken, &looks_like);
        else if (taken)
            verdict = classify(work->payload, least(taken, CLASSIFY_BYTES), &looks_like);
        if (verdict == VERDICT_YES && protocol == PROTOCOL_UNDECIDED) {
            connection->protocol = protocol = looks_like;
            if (protocol == PROTOCOL_ENCRYPTED) {
                COUNT(counts, encrypted, size);
                return;
            }
        }
        if (verdict == VERDICT_YES && looks_like != protocol)
            verdict = VERDICT_NO; /* TLS, say, inside a body */
    }
    bool is_start = verdict != VERDICT_NO;
    if (protocol == PROTOCOL_UNDECIDED && !is_start) {
        /* Counted, and looked at again next time: a message may begin there. */
        COUNT(counts, unknown, size);
        return;
    }
    if (is_start)
        stream->allowance = ALLOWANCE;

    uint32_t head = least(size - offset, CAPTURE_MAX);
    if (mode != DEMAND_WHOLE)
        head = least(head, most(stream->allowance, FRAMING_BYTES));
    work->fill = ring_fill();
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
    event->quiet_bytes = stream->quiet_bytes;
    uint32_t sent = 0;
    if (announce(connection, sk, call, ktime_ns, shared->epoch, work, counts))
        sent = send_chunk(work, call, least(taken, head), head, tail, counts);
    if (sent) { /* the first record, which carries these */
        stream->quiet_chunks = 0;
        stream->quiet_bytes = 0;
    }
    /* A chunk whose first record came is a chunk that came, maybe not whole: the core counts it so too. */
    if (sent)
        counts->sent_chunks++;
    else
        counts->unsent_chunks++;
    counts->sent_bytes += sent;
    if (sent == size)
        return;
    counts->unsent_bytes += size - sent;
    stream->unsent_chunks++;
    stream->unsent_bytes += size - sent;
}
