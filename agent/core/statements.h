/* SPDX-License-Identifier: Apache-2.0 */
/* Texts of SQL statements: each is read once and stored once, however many connections send or prepare it.
 *
 * What a span says of a statement (safe text, summary) is made by sql.c the first time its bytes come; a
 * statement that comes again, prepared or not, costs a hash and a comparison. All of it lies within
 * `bytes_max`; statements that no connection has prepared go first, in the order of their last use. */
#pragma once
#include "sql.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct statement_cache;

struct statement {
    uint32_t text_size, summary_size;
    uint32_t statements; /* in this text, separated by ';' */
    bool parameterized, cut;
    uint8_t traits;      /* enum trait */
    uint64_t shape, exact;
    const char *text, *summary; /* text_size 0: withheld */
};

/* So much of a text is read and compared; the rest of a longer one is not looked at. */
enum { SQL_MAX = 8192 };

struct statement_cache *statements_new(uint64_t bytes_max, const uint64_t seed[2]);
void statements_free(struct statement_cache *cache);

/* NULL: no memory within the cap, counted. Valid until the next call of this function, unless it is prepared. */
const struct statement *statement_of(struct statement_cache *cache, const struct sql_source *source);

/* What one connection has prepared: name or number -> statement. Zeroed memory is an empty one. Holds at most
 * PREPARED_MAX; above, the one that was prepared first is forgotten, and counted. */
enum { PREPARED_MAX = 1024 };
struct prepared {
    struct prepared_slot *slots;
    uint32_t used, capacity;
};

/* A key for names; numbers are keys themselves. Never 0. */
uint64_t statement_key(const struct statement_cache *cache, uint8_t kind, const uint8_t *name, size_t length);
/* Sets or replaces; statement NULL: the name is known, its text is not. */
void prepared_put(struct statement_cache *cache, struct prepared *all, uint64_t key, const struct statement *statement);
/* NULL: not known. */
const struct statement *prepared_get(const struct prepared *all, uint64_t key);
void prepared_remove(struct statement_cache *cache, struct prepared *all, uint64_t key);
void prepared_clear(struct statement_cache *cache, struct prepared *all);

struct statement_counts {
    uint64_t bytes;    /* now */
    uint64_t read;     /* texts that sql.c went through */
    uint64_t found;    /* texts that were there */
    uint64_t refused;  /* no room: a statement without text */
    uint64_t forgotten; /* prepared statements above PREPARED_MAX */
};
void statements_counts(const struct statement_cache *cache, struct statement_counts *out);
