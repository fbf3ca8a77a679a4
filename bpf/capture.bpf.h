/* SPDX-License-Identifier: GPL-2.0-only */
/* Copies of what a system call moved, out of the traced process's memory, into records of the ring. */
#pragma once

/* Most bytes from the head of a chunk that one record takes, so that the tail always has room. */
#define HEAD_MAX (PAYLOAD_CLASS_MAX - TAIL_BYTES)

/* Vectors that may lie before the first byte that is wanted; and turns of the copying loop in one program. What
 * lies behind the former is counted and not copied. */
enum { SEEK_STEPS = 8, TURNS_MAX = 96 };

/* struct msghdr from msg_iov on, and msg_len of struct mmsghdr. */
struct message_header {
    uint64_t vectors, count;
    uint64_t control, control_length;
    uint64_t flags;
    uint32_t length;
};
enum { MESSAGE_HEADER_AT = 16, MESSAGE_LENGTH_AT = 56, MESSAGE_STRIDE = 64 };

/* Steps into the next message of a sendmmsg or recvmmsg. A message takes as many of its vectors as it is long. */
INLINE bool next_message(struct work *work)
{
    struct message_header header = {};
    if (!work->messages_left)
        return false;
    work->messages_left--;
    if (bpf_probe_read_user(&header, sizeof(header), (void *)(work->next_message + MESSAGE_HEADER_AT)) != 0)
        return false;
    work->next_message += MESSAGE_STRIDE;
    work->next_vector = header.vectors;
    work->vectors_left = header.count;
    work->message_left = header.length;
    return true;
}

/* Steps into the next vector, which may be empty; false when there is none. One at a time: few calls have
 * more than two, and none has to fit into memory of ours. */
INLINE bool next_vector(struct work *work, const struct call *call)
{
    uint64_t vector[2] = {}; /* base, length */
    if (!work->vectors_left && !next_message(work))
        return false;
    if (work->vectors_left) {
        long failed;
        if (call->kernel_vectors)
            failed = bpf_probe_read_kernel(vector, sizeof(vector), (void *)work->next_vector);
        else
            failed = bpf_probe_read_user(vector, sizeof(vector), (void *)work->next_vector);
        if (failed)
            return false;
        work->vectors_left--;
        work->next_vector += sizeof(vector);
    }
    uint32_t length = vector[1] < work->message_left ? vector[1] : work->message_left;
    work->message_left -= length;
    work->vector_base = vector[0];
    work->vector_start = work->vector_end;
    work->vector_end += length;
    return true;
}

/* Stands at byte `at` of the chunk. False: it cannot be read, or lies behind the vectors looked at. */
INLINE bool seek(struct work *work, const struct call *call, uint32_t at)
{
    work->at = at;
    work->vectors_left = 0;
    work->messages_left = 0;
    work->vector_base = call->buffer;
    work->vector_start = 0;
    work->vector_end = call->size;
    if (!call->vectored || !call->buffer)
        return call->buffer != 0;
    work->vector_end = 0;
    work->next_message = work->next_vector = call->buffer;
    work->messages_left = call->messages;
    work->vectors_left = call->messages ? 0 : call->count;
    work->message_left = call->size;
#pragma clang loop unroll(disable)
    for (int i = 0; i < SEEK_STEPS; i++)
        if (!next_vector(work, call) || at < work->vector_end)
            break;
    return at < work->vector_end;
}

/* Copies the first of up to `wanted` bytes into the payload, as far as one vector and one record go:
 * enough to classify() by, and not copied again. (A message that begins with a few bytes in a vector of
 * their own is a MAYBE, which is captured.) Returns their number. */
INLINE uint32_t take_first(struct work *work, uint32_t wanted)
{
    uint32_t n = least(least(wanted, work->vector_end - work->at), HEAD_MAX);
    uint64_t length = BOUND(n, PAYLOAD_CLASS_MAX - 1);
    uint64_t from = work->vector_base + (work->at - work->vector_start);
    return bpf_probe_read_user(work->payload, length, (void *)from) == 0 ? n : 0;
}

/* Sends the record that is filled. False: the ring refuses it. */
INLINE bool send_record(struct work *work, struct kernel_counters *counts)
{
    struct chunk_event *chunk = &work->chunk;
    uint64_t bytes = BOUND(sizeof(*chunk) + work->filled, 2 * PAYLOAD_CLASS_MAX - 1);
    if (bpf_ringbuf_output(EVENTS, chunk, bytes, wakeup_flag(work->fill, bytes)) != 0)
        return false;
    counts->captured_bytes += work->filled;
    chunk->header.flags |= CHUNK_CONTINUED;
    chunk->offset = 0;
    chunk->quiet_chunks = 0;
    chunk->quiet_bytes = 0;
    work->fill += bytes + RECORD_HEADER;
    return true;
}

/* Copies the next bytes that are wanted into the record: from one vector, as far as the record goes. False:
 * they cannot be read. */
INLINE bool copy_part(struct work *work, const struct call *call, struct kernel_counters *counts)
{
    if (work->at >= work->vector_end)
        return next_vector(work, call);
    uint32_t room = PAYLOAD_CLASS_MAX - work->filled; /* the tail has room of its own */
    if (!work->in_tail)
        room = HEAD_MAX - least(work->filled, HEAD_MAX);
    uint32_t n = least(least(work->left, work->vector_end - work->at), room);
    uint64_t into = BOUND(work->filled, PAYLOAD_CLASS_MAX - 1);
    uint64_t length = BOUND(n, PAYLOAD_CLASS_MAX - 1);
    uint64_t from = work->vector_base + (work->at - work->vector_start);
    if (bpf_probe_read_user(work->payload + into, length, (void *)from) != 0) {
        counts->faults++;
        work->chunk.header.flags |= CHUNK_UNREADABLE;
        return false;
    }
    work->filled += length;
    work->at += length;
    work->left -= length;
    return true;
}

/* How far the sending of a chunk has come. */
enum progress { SENDING, SENT, RING_FULL };

/* Before the first turn: work->taken bytes of the head are in the payload already. */
INLINE void begin_sending(struct work *work)
{
    work->pos = work->chunk.pos;
    work->filled = work->taken;
    work->at += work->taken;
    work->left = work->head - work->taken;
    work->in_tail = 0;
    work->stuck = 0;
    work->runs = 0;
    work->segment_start = 0;
}

/* Sends one chunk: work->head bytes, cut into records, then the last work->tail bytes. Each turn enters one vector, or
 * copies from one up to the nearest end (of the vector, the range, the record), and sends the record when that is
 * complete; so the turns are bounded. All that a turn needs to know lies in `work`: the verifier takes it for the
 * same as the turn before, and another program can go on with it. */
INLINE enum progress send_chunk(struct work *work, struct kernel_counters *counts)
{
    const struct call *call = &work->call;
    struct chunk_event *chunk = &work->chunk;
#pragma clang loop unroll(disable)
    for (int turn = 0; turn < TURNS_MAX; turn++) {
        /* Keeps the loads below at the head of the loop. Clang copied one to its end, which then fell into
         * the head without a jump, and Linux 6.1 said: "back-edge from insn 2262 to 2263". */
        asm volatile("" ::: "memory");
        if (work->left && !copy_part(work, call, counts))
            work->stuck = 1;
        if (work->left && !work->stuck && (work->in_tail || work->filled < HEAD_MAX))
            continue;
        if (!work->in_tail)
            chunk->head = work->filled;
        if (!work->left && work->tail && !work->in_tail) {
            work->in_tail = 1;
            work->left = work->tail;
            work->at = call->size - work->tail;
            continue;
        }
        if (work->stuck && work->in_tail)
            work->filled = chunk->head; /* a part of the tail is no tail */
        bool last = work->stuck || !work->left;
        chunk->tail = work->filled - chunk->head;
        chunk->pos = work->pos + work->segment_start;
        chunk->size = (last ? call->size : work->at) - work->segment_start;
        if (!send_record(work, counts))
            return RING_FULL;
        if (last)
            return SENT;
        work->segment_start = work->at;
        work->filled = 0;
    }
    return SENDING;
}
