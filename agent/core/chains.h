/* SPDX-License-Identifier: Apache-2.0 */
/* A hash table whose entries carry the link themselves: an entry costs one bucket of 8 bytes here and no
 * slot, which is what 50,000 idle connections ask for. It doubles when there are more entries than buckets
 * and halves when there are eight times fewer, so that what a rush of connections took is given back. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

enum { CHAINS_MIN = 64 };

struct chains {
    void **heads;
    uint32_t mask; /* buckets - 1, a power of two minus one; 0: nothing allocated yet */
    uint32_t used;
};

/* What the table needs to know of its entries. Constants: the calls below are inlined. */
struct chain_of {
    size_t next; /* offset of the link */
    uint64_t (*hash)(const void *entry);
};

static inline void **chain_next(void *entry, struct chain_of of)
{
    return (void **)((char *)entry + of.next);
}

/* The first of those that may have this hash; walk on by their link. */
static inline void *chains_first(const struct chains *t, uint64_t hash)
{
    return t->heads ? t->heads[(uint32_t)hash & t->mask] : NULL;
}

/* Without memory the table stays as it is, and its chains grow longer. */
static inline void chains_resize(struct chains *t, uint32_t buckets, struct chain_of of)
{
    void **heads = calloc(buckets, sizeof(*heads));
    if (heads == NULL)
        return;
    for (uint32_t i = 0; t->heads && i <= t->mask; i++)
        for (void *entry = t->heads[i], *next; entry; entry = next) {
            void **head = &heads[(uint32_t)of.hash(entry) & (buckets - 1)];
            next = *chain_next(entry, of);
            *chain_next(entry, of) = *head;
            *head = entry;
        }
    free(t->heads);
    t->heads = heads;
    t->mask = buckets - 1;
}

/* False when memory is short: nothing changed. */
static inline bool chains_add(struct chains *t, void *entry, struct chain_of of)
{
    if (t->heads == NULL || t->used > t->mask)
        chains_resize(t, t->heads ? (t->mask + 1) * 2 : CHAINS_MIN, of);
    if (t->heads == NULL)
        return false;
    void **head = &t->heads[(uint32_t)of.hash(entry) & t->mask];
    *chain_next(entry, of) = *head;
    *head = entry;
    t->used++;
    return true;
}

static inline void chains_remove(struct chains *t, void *entry, struct chain_of of)
{
    if (t->heads == NULL)
        return;
    void **at = &t->heads[(uint32_t)of.hash(entry) & t->mask];
    while (*at && *at != entry)
        at = chain_next(*at, of);
    if (*at == NULL)
        return;
    *at = *chain_next(entry, of);
    if (--t->used < t->mask / 8 && t->mask >= CHAINS_MIN)
        chains_resize(t, (t->mask + 1) / 2, of);
}

static inline size_t chains_bytes(const struct chains *t)
{
    return t->heads ? ((size_t)t->mask + 1) * sizeof(*t->heads) : 0;
}
