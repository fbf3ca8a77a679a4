/* SPDX-License-Identifier: Apache-2.0 */
/* The cache of statements and the tables of what is prepared; see statements.h. */
#include "statements.h"
#include "protocol.h"
#include "table.h"
#include <stdlib.h>
#include <string.h>

/* A statement as it is kept: behind the structure its summary, its safe text, and the bytes it was made of. */
struct entry {
    struct statement statement; /* first: parsers hold a pointer to it */
    struct entry *next;         /* of the same bucket */
    struct entry *older, *newer; /* by last use */
    uint64_t hash;
    uint32_t references; /* of tables of prepared statements */
    uint32_t raw_size;
    uint8_t reading; /* the rules by which they were read */
    char bytes[];
};

enum { BUCKETS = 1024 };

struct statement_cache {
    struct entry *buckets[BUCKETS];
    struct entry *oldest, *newest;
    uint64_t seed, bytes_max;
    struct statement_counts counts;
};

struct prepared_slot {
    uint64_t key;
    struct entry *entry; /* NULL: prepared, but its text is not known */
};

static uint64_t hash_of(const struct statement_cache *cache, uint64_t hash, const uint8_t *bytes, size_t length)
{
    uint64_t word;
    hash ^= cache->seed;
    for (; length >= sizeof word; bytes += sizeof word, length -= sizeof word) {
        memcpy(&word, bytes, sizeof word);
        hash = table_mix(hash ^ word) + 0x9e3779b97f4a7c15ULL;
    }
    word = length;
    memcpy((char *)&word + 1, bytes, length); /* at most 7 bytes, behind their number */
    return table_mix(hash ^ word);
}

static size_t size_of(const struct entry *e)
{
    return sizeof(*e) + e->raw_size + e->statement.text_size + e->statement.summary_size;
}

static const char *raw_of(const struct entry *e)
{
    return e->bytes + e->statement.summary_size + e->statement.text_size;
}

static void use_unlink(struct statement_cache *cache, struct entry *e)
{
    *(e->older ? &e->older->newer : &cache->oldest) = e->newer;
    *(e->newer ? &e->newer->older : &cache->newest) = e->older;
}

static void use_append(struct statement_cache *cache, struct entry *e)
{
    e->older = cache->newest;
    e->newer = NULL;
    *(e->older ? &e->older->newer : &cache->oldest) = e;
    cache->newest = e;
}

static void entry_free(struct statement_cache *cache, struct entry *e)
{
    struct entry **at = &cache->buckets[e->hash % BUCKETS];
    while (*at != e)
        at = &(*at)->next;
    *at = e->next;
    use_unlink(cache, e);
    cache->counts.bytes -= size_of(e);
    free(e);
}

/* Makes room for `size` bytes by forgetting what nobody has prepared. Those that are in use are moved out of the
 * way, so that a look for room is short the next time. */
static bool make_room(struct statement_cache *cache, size_t size)
{
    enum { LOOKS_MAX = 64 };
    for (int looks = 0; cache->counts.bytes + size > cache->bytes_max && cache->oldest; looks++) {
        struct entry *e = cache->oldest;
        if (looks == LOOKS_MAX)
            return false;
        if (e->references == 0) {
            entry_free(cache, e);
        } else {
            use_unlink(cache, e);
            use_append(cache, e);
        }
    }
    return cache->counts.bytes + size <= cache->bytes_max;
}

struct statement_cache *statements_new(uint64_t bytes_max, const uint64_t seed[2])
{
    struct statement_cache *cache = calloc(1, sizeof(*cache));
    if (cache) {
        cache->bytes_max = bytes_max;
        cache->seed = table_mix(seed[0]) ^ seed[1];
    }
    return cache;
}

void statements_free(struct statement_cache *cache)
{
    while (cache && cache->oldest)
        entry_free(cache, cache->oldest);
    free(cache);
}

/* Does it read only? By its first operation; a statement that calls functions may still write, as a SELECT may. */
static uint8_t traits_of(const struct sql_text *sql, const char *summary)
{
    static const char *const reads[] = {"SELECT", "SHOW", "VALUES", "TABLE", "DESCRIBE", "EXPLAIN"};
    for (size_t i = 0; sql->statements == 1 && i < sizeof reads / sizeof *reads; i++) {
        size_t n = strlen(reads[i]), k = 0;
        while (k < n && k < sql->summary_size && (summary[k] & ~0x20) == reads[i][k])
            k++;
        if (k == n && (sql->summary_size == n || summary[n] == ' '))
            return TRAIT_READS;
    }
    return 0;
}

const struct statement *statement_of(struct statement_cache *cache, const struct sql_source *given)
{
    char text[SQL_TEXT_MAX], summary[SQL_SUMMARY_MAX];
    struct sql_source source = *given;
    struct sql_text read;
    if (source.length > SQL_MAX) {
        source.length = SQL_MAX;
        source.complete = false;
    }
    uint8_t reading = (uint8_t)(source.dialect << 4 | source.backslash << 2 | source.complete << 1 |
                                source.keep_parameterized);
    uint64_t hash = hash_of(cache, reading, source.bytes, source.length);
    for (struct entry *e = cache->buckets[hash % BUCKETS]; e; e = e->next) {
        if (e->hash != hash || e->raw_size != source.length || e->reading != reading ||
            memcmp(raw_of(e), source.bytes, source.length) != 0)
            continue;
        use_unlink(cache, e);
        use_append(cache, e);
        cache->counts.found++;
        return &e->statement;
    }
    cache->counts.read++;
    sql_read(&source, text, summary, &read);
    uint32_t text_size = read.safe ? read.text_size : 0;
    size_t size = sizeof(struct entry) + source.length + text_size + read.summary_size;
    struct entry *e = make_room(cache, size) ? malloc(size) : NULL;
    if (e == NULL) {
        cache->counts.refused++;
        return NULL;
    }
    *e = (struct entry){
        .statement = {.text_size = text_size, .summary_size = read.summary_size, .statements = read.statements,
                      .parameterized = read.parameterized, .cut = read.cut, .traits = traits_of(&read, summary),
                      .shape = read.shape, .exact = hash, .text = e->bytes + read.summary_size, .summary = e->bytes},
        .hash = hash,
        .raw_size = (uint32_t)source.length,
        .reading = reading,
        .next = cache->buckets[hash % BUCKETS],
    };
    memcpy(e->bytes, summary, read.summary_size);
    memcpy(e->bytes + read.summary_size, text, text_size);
    memcpy(e->bytes + read.summary_size + text_size, source.bytes, source.length);
    cache->buckets[hash % BUCKETS] = e;
    use_append(cache, e);
    cache->counts.bytes += size;
    return &e->statement;
}

/* --- what a connection has prepared ----------------------------------------------------------------- */

uint64_t statement_key(const struct statement_cache *cache, uint8_t kind, const uint8_t *name, size_t length)
{
    uint64_t key = hash_of(cache, kind, name, length);
    return key ? key : 1;
}

static struct prepared_slot *slot_of(const struct prepared *all, uint64_t key)
{
    for (uint32_t i = 0; i < all->used; i++)
        if (all->slots[i].key == key)
            return &all->slots[i];
    return NULL;
}

static void reference(struct entry *e, int by)
{
    if (e)
        e->references += (uint32_t)by;
}

static void slot_free(struct statement_cache *cache, struct prepared *all, struct prepared_slot *slot)
{
    reference(slot->entry, -1);
    memmove(slot, slot + 1, (size_t)(all->slots + all->used - slot - 1) * sizeof(*slot));
    all->used--;
    if (all->used)
        return;
    cache->counts.bytes -= all->capacity * sizeof(*slot);
    free(all->slots);
    *all = (struct prepared){0};
}

/* Room for one more; false when memory is short. */
static bool grow(struct statement_cache *cache, struct prepared *all)
{
    if (all->used < all->capacity)
        return true;
    uint32_t capacity = all->capacity ? all->capacity * 2 : 2;
    size_t more = (capacity - all->capacity) * sizeof(*all->slots);
    if (!make_room(cache, more))
        return false;
    struct prepared_slot *slots = realloc(all->slots, capacity * sizeof(*slots));
    if (slots == NULL)
        return false;
    cache->counts.bytes += more;
    all->slots = slots;
    all->capacity = capacity;
    return true;
}

void prepared_put(struct statement_cache *cache, struct prepared *all, uint64_t key, const struct statement *statement)
{
    struct entry *e = (struct entry *)(uintptr_t)statement;
    struct prepared_slot *slot = slot_of(all, key);
    reference(e, 1); /* before room is made */
    if (slot) {
        reference(slot->entry, -1);
        slot->entry = e;
        return;
    }
    if (all->used == PREPARED_MAX) {
        cache->counts.forgotten++;
        slot_free(cache, all, &all->slots[0]);
    }
    if (!grow(cache, all)) {
        cache->counts.refused++;
        reference(e, -1);
        return;
    }
    all->slots[all->used++] = (struct prepared_slot){key, e};
}

const struct statement *prepared_get(const struct prepared *all, uint64_t key)
{
    const struct prepared_slot *slot = slot_of(all, key);
    return slot && slot->entry ? &slot->entry->statement : NULL;
}

void prepared_remove(struct statement_cache *cache, struct prepared *all, uint64_t key)
{
    struct prepared_slot *slot = slot_of(all, key);
    if (slot)
        slot_free(cache, all, slot);
}

void prepared_clear(struct statement_cache *cache, struct prepared *all)
{
    while (all->used)
        slot_free(cache, all, &all->slots[all->used - 1]);
}

void statements_counts(const struct statement_cache *cache, struct statement_counts *out)
{
    *out = cache->counts;
}
