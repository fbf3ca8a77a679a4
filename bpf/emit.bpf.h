/* SPDX-License-Identifier: GPL-2.0-only */
/* Records into the rings: only the used bytes, no needless wake-up, and a count of what was refused.
 *
 * bpf_ringbuf_output of exact sizes, from memory of ours, not reserved records of fixed classes. Those were
 * measured 10% cheaper per event for one plain buffer; but bytes of several vectors cannot be put together
 * in one without twice the room (the verifier bounds start and length apart), a class wastes up to three
 * quarters of its room in the ring, and five of them are five code paths to compile and verify. */
#pragma once

enum { RB_NO_WAKEUP = 1, RB_FORCE_WAKEUP = 2, RB_AVAIL_DATA = 0, RECORD_HEADER = 8 };

INLINE uint64_t ring_fill(void)
{
    return bpf_ringbuf_query(EVENTS, RB_AVAIL_DATA);
}

/* Wakes the reader when the fill passes a multiple of WAKE_BYTES, not for each record above it: one that
 * is at work already need not be woken. Its time-out covers two CPUs that race past the mark. */
INLINE uint64_t wakeup_flag(uint64_t fill, uint32_t size)
{
    return fill >> WAKE_SHIFT != (fill + size + RECORD_HEADER) >> WAKE_SHIFT ? RB_FORCE_WAKEUP : RB_NO_WAKEUP;
}

/* Goes on in another program, and does not come back. */
INLINE void jump(void *ctx, enum tail to)
{
    bpf_tail_call_(TAILS, ctx, to);
}

INLINE struct kernel_counters *this_cpu_counters(void)
{
    int cpu = bpf_get_smp_processor_id();
    return counters.lookup(&cpu);
}

INLINE void fill_header(struct event_header *header, uint8_t kind, const struct connection *connection,
                        uint32_t direction, uint32_t tid, uint64_t ktime_ns)
{
    header->kind = kind;
    header->flags = 0;
    header->direction = direction;
    header->protocol = connection->protocol;
    header->tid = tid;
    header->ktime_ns = ktime_ns;
    header->conn_id = connection->conn_id;
}

/* EVENT_FIN or EVENT_CLOSE, of a connection that the core was told of. Runs in interrupts too, inside the
 * programs on system calls: its memory is the stack, its counter atomic. */
INLINE void emit_close(const struct connection *connection, uint8_t kind, uint32_t direction)
{
    if (!connection->announced)
        return;
    struct close_event event = {};
    uint32_t tid = bpf_get_current_pid_tgid(); /* whoever runs */
    fill_header(&event.header, kind, connection, direction, tid, bpf_ktime_get_ns());
    event.header.flags = connection->reset ? CHUNK_RESET : 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const struct stream *stream = &connection->streams[i];
        event.bytes[i] = stream->bytes;
        event.chunks[i] = stream->chunks;
        event.unsent_bytes[i] = stream->unsent_bytes;
        event.unsent_chunks[i] = stream->unsent_chunks;
        event.quiet_chunks[i] = stream->quiet_chunks;
        event.quiet_bytes[i] = stream->quiet_bytes;
    }
    event.shed_chunks = connection->shed_chunks;
    if (bpf_ringbuf_output(EVENTS, &event, sizeof(event), RB_NO_WAKEUP) == 0)
        return;
    struct kernel_counters *counts = this_cpu_counters();
    if (counts)
        __sync_fetch_and_add(&counts->unsent_events, 1);
}

/* A direction ends once. */
INLINE void emit_fin(struct connection *connection, uint32_t direction)
{
    if (connection->streams[direction].ended)
        return;
    connection->streams[direction].ended = 1;
    emit_close(connection, EVENT_FIN, direction);
}

/* To the keeper, which is woken at once: these are few. */
INLINE void emit_process(struct process_event *event)
{
    event->ktime_ns = bpf_ktime_get_ns();
    bpf_get_current_comm(event->comm, sizeof(event->comm));
    if (bpf_ringbuf_output(PROCESS_EVENTS, event, sizeof(*event), RB_FORCE_WAKEUP) == 0)
        return;
    struct kernel_counters *counts = this_cpu_counters();
    if (counts)
        __sync_fetch_and_add(&counts->process_events_lost, 1);
}

INLINE void tell(uint8_t kind, uint32_t tgid, uint32_t parent_tgid, bool is_traced)
{
    struct process_event event = {.kind = kind, .traced = is_traced, .tgid = tgid, .parent_tgid = parent_tgid};
    emit_process(&event);
}
