/* SPDX-License-Identifier: Apache-2.0 */
/* The cache of statements and tables of what is prepared: commands on stdin, one line on stdout for each.
 *
 *   sql N               the statement of number N, as a query: its summary
 *   put TABLE KEY N     prepares it; put TABLE KEY -1: prepared, its text is not known
 *   get TABLE KEY       summary of what is prepared, or "none"
 *   remove TABLE KEY, clear TABLE
 *   counts              bytes, read, found, refused, forgotten
 *
 * Its argument is bytes_max. Built with sanitizers by tests/core/test_statements.py. */
#include "checked.h"
#include "statements.h"
#include <inttypes.h>

enum { TABLES = 8 };

static struct statement_cache *cache;

/* A statement's text takes a room that depends on its number. */
static const struct statement *statement(unsigned n)
{
    char sql[400];
    int length = snprintf(sql, sizeof sql, "SELECT %-*u FROM table_%u", 10 + (int)(n * 37 % 300), n, n);
    struct sql_source source = {.bytes = guarded((uint8_t *)sql, (size_t)length, false), .length = (size_t)length,
                                .complete = true, .dialect = SQL_POSTGRESQL,
                                .backslash = SQL_BACKSLASH_IS_LITERAL};
    return statement_of(cache, &source);
}

static void print(const struct statement *s)
{
    if (s == NULL)
        printf("none\n");
    else
        printf("%.*s\n", (int)s->summary_size, s->summary);
}

int main(int argc, char **argv)
{
    struct prepared tables[TABLES] = {0};
    char command[16];
    cache = statements_new(argc > 1 ? strtoull(argv[1], NULL, 10) : 0, (uint64_t[2]){7, 9});
    while (scanf("%15s", command) == 1) {
        unsigned table = 0, key = 0;
        int n = 0;
        switch (command[0]) {
        case 's':
            CHECK(scanf("%d", &n) == 1);
            print(statement((unsigned)n));
            break;
        case 'p':
            CHECK(scanf("%u %u %d", &table, &key, &n) == 3 && table < TABLES);
            prepared_put(cache, &tables[table], key, n < 0 ? NULL : statement((unsigned)n));
            printf("put\n");
            break;
        case 'g':
            CHECK(scanf("%u %u", &table, &key) == 2 && table < TABLES);
            print(prepared_get(&tables[table], key));
            break;
        case 'r':
            CHECK(scanf("%u %u", &table, &key) == 2 && table < TABLES);
            prepared_remove(cache, &tables[table], key);
            printf("removed\n");
            break;
        case 'c': {
            struct statement_counts c;
            if (command[1] == 'l') {
                CHECK(scanf("%u", &table) == 1 && table < TABLES);
                prepared_clear(cache, &tables[table]);
                printf("cleared\n");
                break;
            }
            statements_counts(cache, &c);
            printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", c.bytes, c.read, c.found, c.refused,
                   c.forgotten);
            break;
        }
        default:
            CHECK(!"a command");
        }
    }
    for (unsigned i = 0; i < TABLES; i++)
        prepared_clear(cache, &tables[i]);
    statements_free(cache);
    return 0;
}
