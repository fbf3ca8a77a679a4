/* SPDX-License-Identifier: Apache-2.0 */
/* A hash table from a non-zero 64-bit key to a pointer: open addressing, linear probing, deletion by
 * shifting back, so that there are no tombstones and a table that is emptied is as fast as a new one. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

enum { TABLE_MIN = 64 };

struct table_slot {
    uint64_t key; /* 0: free */
    void *value;
};

struct table {
    struct table_slot *slots;
    uint32_t mask; /* slots - 1, a power of two minus one; 0: nothing allocated yet */
    uint32_t used;
};

/* Finaliser of MurmurHash3 (public domain): every bit of the key reaches every bit of the result. */
static inline uint64_t table_mix(uint64_t key)
{
    key ^= key >> 33;
    key *= 0xff51afd7ed558ccdULL;
    key ^= key >> 33;
    key *= 0xc4ceb9fe1a85ec53ULL;
    return key ^ (key >> 33);
}

static inline void *table_get(const struct table *t, uint64_t key)
{
    if (t->mask == 0)
        return NULL;
    for (uint32_t i = (uint32_t)table_mix(key) & t->mask;; i = (i + 1) & t->mask) {
        if (t->slots[i].key == key)
            return t->slots[i].value;
        if (t->slots[i].key == 0)
            return NULL;
    }
}

static inline void table_place(struct table *t, uint64_t key, void *value)
{
    uint32_t i = (uint32_t)table_mix(key) & t->mask;
    while (t->slots[i].key != 0 && t->slots[i].key != key)
        i = (i + 1) & t->mask;
    t->used += t->slots[i].key == 0;
    t->slots[i] = (struct table_slot){key, value};
}

/* False when memory is short: nothing changed. */
static inline bool table_resize(struct table *t, uint32_t size)
{
    struct table resized = {calloc(size, sizeof(*resized.slots)), size - 1, 0};
    if (resized.slots == NULL)
        return false;
    for (uint32_t i = 0; t->mask && i <= t->mask; i++)
        if (t->slots[i].key)
            table_place(&resized, t->slots[i].key, t->slots[i].value);
    free(t->slots);
    *t = resized;
    return true;
}

/* Sets or replaces. False when memory is short: nothing changed. */
static inline bool table_put(struct table *t, uint64_t key, void *value)
{
    if ((t->mask == 0 || t->used >= t->mask - t->mask / 4) && !table_resize(t, t->mask ? (t->mask + 1) * 2 : TABLE_MIN))
        return false;
    table_place(t, key, value);
    return true;
}

/* Gives memory back when little is used. To be called where no slot is being looked at. */
static inline void table_shrink(struct table *t)
{
    if (t->mask >= TABLE_MIN && t->used < t->mask / 8)
        table_resize(t, (t->mask + 1) / 2);
}

static inline void table_remove(struct table *t, uint64_t key)
{
    if (t->mask == 0)
        return;
    uint32_t i = (uint32_t)table_mix(key) & t->mask;
    while (t->slots[i].key != key) {
        if (t->slots[i].key == 0)
            return;
        i = (i + 1) & t->mask;
    }
    t->used--;
    for (uint32_t j = i;;) {
        t->slots[i].key = 0;
        for (;;) {
            j = (j + 1) & t->mask;
            if (t->slots[j].key == 0)
                return;
            uint32_t home = (uint32_t)table_mix(t->slots[j].key) & t->mask;
            /* The entry at j may move to i only if i lies between its home and j. */
            if (((j - home) & t->mask) >= ((j - i) & t->mask))
                break;
        }
        t->slots[i] = t->slots[j];
        i = j;
    }
}

static inline size_t table_bytes(const struct table *t)
{
    return t->mask ? ((size_t)t->mask + 1) * sizeof(*t->slots) : 0;
}
