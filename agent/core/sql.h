/* SPDX-License-Identifier: Apache-2.0 */
/* SQL text as a span may show it: without literals and comments, its summary, and its shape.
 *
 * The text is that of the semantic conventions (Sanitization of db.query.text, Generating a summary of the
 * query). Nothing is parsed: a lexer replaces literals, and a few words are enough for the summary. */
#pragma once
#include "text.h"

enum sql_limits { SQL_TEXT_MAX = 4096, SQL_SUMMARY_MAX = 255 };

/* Lexical rules; MariaDB's are those of MySQL. */
enum sql_dialect { SQL_POSTGRESQL, SQL_MYSQL };

/* What a backslash in '...' is. The server tells: PostgreSQL by the parameter standard_conforming_strings,
 * MySQL by the status flag SERVER_STATUS_NO_BACKSLASH_ESCAPES. UNKNOWN: where it matters, no text. */
enum sql_backslash { SQL_BACKSLASH_UNKNOWN, SQL_BACKSLASH_ESCAPES, SQL_BACKSLASH_IS_LITERAL };

struct sql_source {
    const uint8_t *bytes;
    size_t length;
    bool complete; /* false: the statement goes on behind these bytes */
    enum sql_dialect dialect;
    enum sql_backslash backslash;
    bool keep_parameterized; /* literals stay when there are placeholders and no word of passwords */
};

struct sql_text {
    bool safe;           /* false: it can be read in two ways, or not at all; no text and no shape */
    bool cut;            /* the statement is longer than its text */
    bool parameterized;  /* has placeholders: $1 (PostgreSQL), ? (MySQL) */
    uint32_t statements; /* separated by ';' and not empty */
    uint32_t text_size, summary_size;
    uint64_t shape;          /* hash of the tokens: all literals alike, no spaces, letter case counts */
    struct text traceparent; /* value of traceparent='...' in the last comment with one; in the source */
};

/* Writes at most SQL_TEXT_MAX bytes to text and SQL_SUMMARY_MAX to summary; bytes >= 0x80 go through as they
 * are, cut between characters. The summary of what was certain stays when the text is not safe. */
void sql_read(const struct sql_source *source, char *text, char *summary, struct sql_text *out);
