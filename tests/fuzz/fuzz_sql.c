/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target over the SQL lexer.
 *
 *   input   complete, dialect and side of the guard (1 byte), then the statement
 *
 * Beside the sizes: what is safe while it is unknown what a backslash is reads alike when it is known; a text
 * has no literals any more, that is, read again it stays as it is; a string behind a safe statement is seen
 * as a string; and the shape does not depend on what is kept. */
#define _GNU_SOURCE
#include "checked.h"
#include "sql.h"

static char text[SQL_TEXT_MAX], summary[SQL_SUMMARY_MAX];

static struct sql_text read_sql(struct sql_source source, const void *bytes, size_t length, bool low)
{
    struct sql_text out;
    source.bytes = guarded(bytes, length, low);
    source.length = length;
    sql_read(&source, text, summary, &out);
    CHECK(out.text_size <= SQL_TEXT_MAX && out.summary_size <= SQL_SUMMARY_MAX);
    CHECK(out.safe || (out.text_size == 0 && out.shape == 0));
    CHECK(out.cut || source.complete);
    CHECK(out.traceparent.bytes >= source.bytes);
    CHECK(out.traceparent.bytes + out.traceparent.length <= source.bytes + length);
    return out;
}

static void check_same(struct sql_source source, const uint8_t *bytes, size_t length, const char *first,
                       const struct sql_text *expected)
{
    struct sql_text out = read_sql(source, bytes, length, true);
    CHECK(out.safe && out.shape == expected->shape && out.statements == expected->statements);
    CHECK(out.text_size == expected->text_size && memcmp(text, first, out.text_size) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char first[SQL_TEXT_MAX];
    static uint8_t more[WINDOW_LIMIT];
    if (size < 1 || size > WINDOW_LIMIT / 2)
        return 0;
    struct sql_source source = {.complete = data[0] & 1, .dialect = data[0] & 2 ? SQL_MYSQL : SQL_POSTGRESQL};
    data++;
    size--;
    struct sql_text out = read_sql(source, data, size, data[-1] & 4);
    memcpy(first, text, out.text_size);

    source.keep_parameterized = true;
    struct sql_text kept = read_sql(source, data, size, false);
    CHECK(kept.safe == out.safe && kept.shape == out.shape && kept.parameterized == out.parameterized);
    source.keep_parameterized = false;
    if (!out.safe)
        return 0;

    source.backslash = SQL_BACKSLASH_ESCAPES;
    check_same(source, data, size, first, &out);
    source.backslash = SQL_BACKSLASH_IS_LITERAL;
    check_same(source, data, size, first, &out);
    source.backslash = SQL_BACKSLASH_UNKNOWN;
    if (!source.complete || out.cut)
        return 0;

    /* Without the comment behind it, a double minus of MySQL can be the beginning of one. */
    if (source.dialect == SQL_POSTGRESQL || memmem(first, out.text_size, "--", 2) == NULL) {
        struct sql_text again = read_sql(source, first, out.text_size, false);
        CHECK(again.safe && again.text_size == out.text_size && memcmp(text, first, out.text_size) == 0);
    }

    for (size_t i = 0; i < size; i++)
        more[i] = data[i] == 1 ? 2 : data[i];
    memcpy(more + size, "\n'\1\1'", 5);
    out = read_sql(source, more, size + 5, false);
    CHECK(out.safe && memchr(text, 1, out.text_size) == NULL && memchr(summary, 1, out.summary_size) == NULL);
    source.complete = false;
    for (size_t cut = size; cut < size + 5; cut++) {
        out = read_sql(source, more, cut, false);
        CHECK(memchr(text, 1, out.text_size) == NULL && memchr(summary, 1, out.summary_size) == NULL);
    }
    return 0;
}
