/* SPDX-License-Identifier: GPL-2.0-only */
/* Copies of what a system call moved, out of the traced process's memory, into records of the ring. */
#pragma once

/* Most bytes from the head of a chunk that one record takes, so that the tail always has room. */
#define HEAD_MAX (PAYLOAD_CLASS_MAX - TAIL_BYTES)

/* A bound that the verifier can see. Clang drops a mask that it knows to be idle (the value was compared
 * before, in another register), and Linux 6.18 then refuses the copy: "R2 min value is negative, either use
 * unsigned or 'var &= const'". The empty statement hides the value from clang. */
#define BOUND(value, mask)                                                                             \
    ({                                                                                                 \
        uint64_t bounded_ = (value);                                                                   \
        asm volatile("" : "+r"(bounded_));                                                             \
        bounded_ & (mask);                                                                             \
    })

INLINE uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

INLINE uint32_t most(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* Steps into the next vector; false when there is none. */
INLINE bool next_vector(struct work *work)
{
    uint32_t i = work->vector;
    if (i >= work->vectors_used || i >= VECTORS_MAX)
        return false;
    work->vector = i + 1;
    work->vector_base = work->vectors[i].base;
    work->vector_start = work->vector_end;
    work->vector_end = work->vector_start + (uint32_t)work->vectors[i].length;
    return true;
}

/* Stands at byte `at` of the chunk. False: it cannot be read, or lies behind the vectors looked at. */
INLINE bool seek(struct work *work, const struct call *call, uint32_t at)
{
    work->at = at;
    if (!call->vectored) {
        work->vectors_used = 0;
        work->vector_base = call->buffer;
        work->vector_start = 0;
        work->vector_end = call->size;
        return call->buffer != 0;
    }
    uint64_t used = call->count < VECTORS_MAX ? call->count : VECTORS_MAX;
    uint64_t bytes = BOUND(used * sizeof(work->vectors[0]), sizeof(work->vectors) * 2 - 1);
    if (bytes > sizeof(work->vectors) || bpf_probe_read_user(work->vectors, bytes, (void *)call->buffer) != 0)
        return false;
    work->vectors_used = used;
    work->vector = 0;
    work->vector_end = 0;
#pragma clang loop unroll(disable)
    for (int i = 0; i < VECTORS_MAX; i++)
        if (!next_vector(work) || at < work->vector_end)
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

/* Sends one chunk: `head` bytes, of which `taken` are in the payload already, cut into records, then the
 * last `tail` bytes. Each turn enters at most one vector, copies from it up to the nearest end (of the
 * vector, the range, the record), and sends the record when that is complete; so the turns are bounded.
 * Returns the bytes of the chunk whose records reached the ring: call->size, if all of them did. */
INLINE uint32_t send_chunk(struct work *work, const struct call *call, uint32_t taken, uint32_t head,
                           uint32_t tail, struct kernel_counters *counts)
{
    struct chunk_event *chunk = &work->chunk;
    uint64_t pos = chunk->pos;
    bool in_tail = false;
    work->filled = taken;
    work->at += taken;
    work->left = head - taken;
    work->segment_start = 0;
#pragma clang loop unroll(disable)
    for (int turn = 0; turn < VECTORS_MAX + SEGMENTS_MAX + 2; turn++) {
        /* Keeps the loads below at the head of the loop. Clang copied one to its end, which then fell into
         * the head without a jump, and Linux 6.1 said: "back-edge from insn 2262 to 2263". */
        asm volatile("" ::: "memory");
        bool stuck = false;
        if (work->left) {
            stuck = work->at >= work->vector_end && !next_vector(work);
            uint32_t n = least(work->left, work->at < work->vector_end ? work->vector_end - work->at : 0);
            if (!in_tail)
                n = least(n, HEAD_MAX - least(work->filled, HEAD_MAX));
            uint64_t into = BOUND(work->filled, PAYLOAD_CLASS_MAX - 1);
            uint64_t length = BOUND(n, PAYLOAD_CLASS_MAX - 1);
            uint64_t from = work->vector_base + (work->at - work->vector_start);
            if (bpf_probe_read_user(work->payload + into, length, (void *)from) != 0) {
                counts->faults++;
                chunk->header.flags |= CHUNK_UNREADABLE;
                stuck = true;
                n = 0;
            }
            work->filled += n;
            work->at += n;
            work->left -= n;
        }
        if (!in_tail) {
            chunk->head = work->filled;
            if (!work->left && tail) {
                in_tail = true;
                work->left = tail;
                work->at = call->size - tail;
                continue;
            }
        }
        bool last = stuck || !work->left;
        if (!last && (in_tail || work->filled < HEAD_MAX))
            continue;
        if (stuck && in_tail)
            work->filled = chunk->head; /* a part of the tail is no tail */
        chunk->tail = work->filled - chunk->head;
        chunk->pos = pos + work->segment_start;
        chunk->size = (last ? call->size : work->at) - work->segment_start;
        uint64_t bytes = BOUND(sizeof(*chunk) + work->filled, 2 * PAYLOAD_CLASS_MAX - 1);
        if (bpf_ringbuf_output(EVENTS, chunk, bytes, wakeup_flag(work->fill, bytes)) != 0)
            return work->segment_start;
        counts->captured_bytes += work->filled;
        if (last)
            return call->size;
        chunk->header.flags |= CHUNK_CONTINUED;
        chunk->offset = 0;
        chunk->quiet_chunks = chunk->unsent_chunks = 0;
        chunk->quiet_bytes = 0;
        work->fill += bytes + RECORD_HEADER;
        work->segment_start = work->at;
        work->filled = 0;
    }
    return work->segment_start;
}
