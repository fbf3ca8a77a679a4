/* SPDX-License-Identifier: Apache-2.0 */
/* Reads a BPF ring buffer in place; see ring.h. */
#include "ring.h"
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define BUSY (1U << 31)    /* BPF_RINGBUF_BUSY_BIT: reserved, not yet submitted */
#define DISCARD (1U << 30) /* BPF_RINGBUF_DISCARD_BIT */
#define RECORD_HEADER 8    /* BPF_RINGBUF_HDR_SZ: length, page offset */

int ring_map(struct ring *ring, int fd, uint32_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (size == 0 || (size & (size - 1)) != 0 || size % page != 0)
        return -EINVAL;
    *ring = (struct ring){.mask = size - 1, .producer_size = page + 2 * (size_t)size};
    ring->consumer_page = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ring->consumer_page == MAP_FAILED) {
        ring->consumer_page = NULL;
        return -errno;
    }
    ring->producer_pages = mmap(NULL, ring->producer_size, PROT_READ, MAP_SHARED, fd, (off_t)page);
    if (ring->producer_pages == MAP_FAILED) {
        int error = -errno;
        ring->producer_pages = NULL;
        ring_unmap(ring);
        return error;
    }
    ring->consumer = ring->consumer_page;
    ring->producer = ring->producer_pages;
    ring->data = (const uint8_t *)ring->producer_pages + page;
    ring->read = __atomic_load_n(ring->consumer, __ATOMIC_RELAXED);
    return 0;
}

void ring_unmap(struct ring *ring)
{
    if (ring->consumer_page)
        munmap(ring->consumer_page, (size_t)sysconf(_SC_PAGESIZE));
    if (ring->producer_pages)
        munmap(ring->producer_pages, ring->producer_size);
    *ring = (struct ring){0};
}

const uint8_t *ring_next(struct ring *ring, uint32_t *length)
{
    if (ring->data == NULL)
        return NULL;
    while (ring->read < __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE)) {
        const uint8_t *record = ring->data + (ring->read & ring->mask);
        uint32_t header = __atomic_load_n((const uint32_t *)record, __ATOMIC_ACQUIRE);
        if (header & BUSY)
            return NULL;
        uint32_t size = header & ~(BUSY | DISCARD);
        ring->read += ((uint64_t)size + RECORD_HEADER + 7) & ~7ULL;
        if (header & DISCARD)
            continue;
        *length = size;
        return record + RECORD_HEADER;
    }
    return NULL;
}

void ring_release(struct ring *ring)
{
    if (ring->consumer)
        __atomic_store_n(ring->consumer, ring->read, __ATOMIC_RELEASE);
}

uint64_t ring_waiting(const struct ring *ring)
{
    if (ring->data == NULL)
        return 0;
    return __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE) - ring->read;
}
