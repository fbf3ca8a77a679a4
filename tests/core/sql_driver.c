/* SPDX-License-Identifier: Apache-2.0 */
/* Runs sql_read() over statements: jobs on stdin, one answer each on stdout (class Sql in test_sql.py).
 *
 *   job     uint32_t size, uint8_t complete, dialect, backslash, keep, the statement
 *   answer  struct answer, the text, the summary
 *
 * `python -m tests.core.test_sql` builds it without sanitizers and prints nanoseconds per statement. */
#include "checked.h"
#include "sql.h"
#include <time.h>

struct answer {
    uint32_t safe, cut, parameterized, statements, text_size, summary_size, traceparent_at, traceparent_size;
    uint64_t shape;
};

static void run(const uint8_t *job, size_t size)
{
    struct sql_source source = {.bytes = guarded(job + 4, size - 4, false), .length = size - 4,
                                .complete = job[0], .dialect = job[1], .backslash = job[2],
                                .keep_parameterized = job[3]};
    char *text = malloc(SQL_TEXT_MAX), *summary = malloc(SQL_SUMMARY_MAX);
    struct sql_text out;
    sql_read(&source, text, summary, &out);
    CHECK(out.text_size <= SQL_TEXT_MAX && out.summary_size <= SQL_SUMMARY_MAX);
    CHECK(out.safe || (out.text_size == 0 && out.shape == 0));
    CHECK(out.traceparent.bytes >= source.bytes);
    CHECK(out.traceparent.bytes + out.traceparent.length <= source.bytes + source.length);
    struct answer answer = {out.safe, out.cut, out.parameterized, out.statements, out.text_size,
                            out.summary_size, (uint32_t)(out.traceparent.bytes - source.bytes),
                            (uint32_t)out.traceparent.length, out.shape};
    fwrite(&answer, sizeof answer, 1, stdout);
    fwrite(text, 1, out.text_size, stdout);
    fwrite(summary, 1, out.summary_size, stdout);
    fflush(stdout);
    free(text);
    free(summary);
}

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* The least of several runs: the one that was disturbed least. */
static void measure(const char *label, const char *statement, enum sql_dialect dialect)
{
    static char text[SQL_TEXT_MAX], summary[SQL_SUMMARY_MAX];
    struct sql_source source = {.bytes = (const uint8_t *)statement, .length = strlen(statement),
                                .complete = true, .dialect = dialect};
    struct sql_text out;
    double best = 1e18;
    for (int run = 0; run < 15; run++) {
        double start = now_ns();
        for (int i = 0; i < 5000; i++)
            sql_read(&source, text, summary, &out);
        double ns = (now_ns() - start) / 5000;
        best = ns < best ? ns : best;
    }
    printf("%-36s %5zu bytes %8.1f ns   %.*s\n", label, source.length, best, (int)out.summary_size, summary);
}

static void bench(void)
{
    static char rows[4096], blob[4096];
    measure("pgbench, update", "UPDATE pgbench_accounts SET abalance = abalance + -2817 WHERE aid = 81723;",
            SQL_POSTGRESQL);
    measure("pgbench, insert",
            "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (3, 1, 81723, -2817, "
            "CURRENT_TIMESTAMP);", SQL_POSTGRESQL);
    measure("pgbench, extended query", "SELECT abalance FROM pgbench_accounts WHERE aid = $1;",
            SQL_POSTGRESQL);
    measure("100 bytes",
            "SELECT id, name, email FROM accounts WHERE status = 'active' AND created_at > '2026-01-01' "
            "LIMIT 100", SQL_POSTGRESQL);
    measure("ORM, PostgreSQL",
            "SELECT \"auth_user\".\"id\", \"auth_user\".\"password\", \"auth_user\".\"last_login\", "
            "\"auth_user\".\"username\", \"auth_user\".\"first_name\", \"auth_user\".\"email\" FROM "
            "\"auth_user\" INNER JOIN \"shop_order\" ON (\"auth_user\".\"id\" = \"shop_order\".\"user_id\") "
            "WHERE (\"auth_user\".\"is_active\" AND \"shop_order\".\"id\" = 42) LIMIT 21", SQL_POSTGRESQL);
    measure("ORM, MySQL",
            "SELECT `orders`.`id` AS `id`, `orders`.`state` AS `state`, `orders`.`total` AS `total`, "
            "`customers`.`name` AS `name` FROM `orders` LEFT OUTER JOIN `customers` ON `customers`.`id` = "
            "`orders`.`customer_id` WHERE `orders`.`state` IN ('new', 'paid', 'sent') AND "
            "`orders`.`total` > 99.5 ORDER BY `orders`.`id` DESC LIMIT 25", SQL_MYSQL);
    size_t at = (size_t)sprintf(rows, "INSERT INTO measurements (at, name, value) VALUES ");
    while (at < sizeof rows - 64)
        at += (size_t)sprintf(rows + at, "('2026-11-21 10:%02zu:00', 'sensor-%zu', %zu.5), ", at % 60, at,
                              at);
    strcpy(rows + at - 2, "");
    measure("INSERT of many rows", rows, SQL_MYSQL);
    at = (size_t)sprintf(blob, "INSERT INTO documents (body) VALUES ('");
    memset(blob + at, 'x', sizeof blob - 4 - at);
    strcpy(blob + sizeof blob - 4, "')");
    measure("INSERT of one long string", blob, SQL_POSTGRESQL);
}

int main(int argc, char **argv)
{
    uint32_t size;
    if (argc > 1 && strcmp(argv[1], "bench") == 0) {
        bench();
        return 0;
    }
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        uint8_t *job = malloc(size);
        CHECK(size >= 4 && fread(job, 1, size, stdin) == size);
        run(job, size);
        free(job);
    }
    return 0;
}
