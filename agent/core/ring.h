/* SPDX-License-Identifier: Apache-2.0 */
/* The consumer's side of a BPF ring buffer (Documentation/bpf/ringbuf.rst of the kernel).
 *
 * Our own and not libbpf's, because libbpf gives every record back to the kernel as soon as its
 * callback returns: here a batch of records stays in place until it has been put in the order of time. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ring {
    const uint8_t *data; /* mapped twice in a row: no record wraps */
    uint64_t *consumer;  /* shared with the kernel */
    const uint64_t *producer;
    uint64_t mask, read; /* read: position of the next record; ahead of *consumer within a batch */
    void *consumer_page, *producer_pages;
    size_t producer_size;
};

/* Maps the ring behind a descriptor; 0 or -errno. */
int ring_map(struct ring *ring, int fd, uint32_t size);
void ring_unmap(struct ring *ring);

/* Next record, or NULL when there is none that is finished. It stays valid until ring_release(). */
const uint8_t *ring_next(struct ring *ring, uint32_t *length);
/* Gives all records read so far back to the kernel. */
void ring_release(struct ring *ring);
uint64_t ring_waiting(const struct ring *ring);
