/* SPDX-License-Identifier: Apache-2.0 */
/* SQL lexer with a bounded output; see sql.h.
 *
 *   SELECT * FROM a.t x JOIN "U" u ON ... WHERE x.i IN (1, 2) AND x.s = 'it''s'  -- why
 *   SELECT * FROM a.t x JOIN "U" u ON ... WHERE x.i IN (?) AND x.s = ?                    text
 *   SELECT a.t "U"                                                                        summary
 *
 * A byte of a literal must not get out, so whatever servers of one dialect may read differently is not safe:
 *
 *   'a\'...     unless it is known what the backslash is
 *   0x8F 0x5C ' the second byte of a character in GBK, Big5 or Shift JIS may be a backslash or a backtick
 *   $a$         in MySQL a name, or since 9.0 the beginning of a string
 *   / * ! ' * / in MySQL SQL or a comment, by version; without quotes and comments in it both read alike
 *
 * "..." is a string in MySQL here, and with sql_mode ANSI_QUOTES a name is hidden for nothing. A sign goes
 * with the number behind it, except directly behind a name, bracket or placeholder. */
#define _GNU_SOURCE
#include "sql.h"

/* --- bytes ------------------------------------------------------------------------------------------- */

enum class { OTHER, SPACE, LETTER, DIGIT, DOLLAR, QUOTE, DOUBLE_QUOTE, BACKTICK, DOT, SIGN, SLASH, STAR, HASH,
             OPEN, CLOSE, COMMA, SEMICOLON, QUESTION };

static const uint8_t classes[256] = {
    [' '] = SPACE, ['\t' ... '\r'] = SPACE, ['A' ... 'Z'] = LETTER, ['a' ... 'z'] = LETTER, ['_'] = LETTER,
    [0x80 ... 0xff] = LETTER, ['0' ... '9'] = DIGIT, ['$'] = DOLLAR, ['\''] = QUOTE, ['"'] = DOUBLE_QUOTE,
    ['`'] = BACKTICK, ['.'] = DOT, ['+'] = SIGN, ['-'] = SIGN, ['/'] = SLASH, ['*'] = STAR, ['#'] = HASH,
    ['('] = OPEN, [')'] = CLOSE, [','] = COMMA, [';'] = SEMICOLON, ['?'] = QUESTION,
};

static bool is_word(uint8_t c)
{
    return classes[c] >= LETTER && classes[c] <= DOLLAR;
}

/* --- words ------------------------------------------------------------------------------------------- */

enum word_role {
    PLAIN,
    /* operations, by what follows them */
    SELECT, WITH, INSERT, REPLACE, MERGE, UPDATE, DELETE,
    EXPLAIN,   /* another operation */
    DEFINE,    /* kind and name, and nothing else that counts */
    DROP,      /* kind and names */
    MAINTAIN,  /* a kind or none, and names */
    USE,       /* one name */
    LOAD,      /* one word, and a name behind INTO */
    COMMAND,   /* nothing, or an operation of its own */
    GRANT,     /* nothing */
    SET, VALUES, BEGIN,
    /* what leads to names, or away from them */
    FROM, JOIN, ON, INTO, USING, CLAUSE, UNION, DISTINCT, KIND, ROUTINE, ONLY,
    OPTION,    /* between an operation and its target */
    /* parts of expressions */
    IN, BOOLEAN, ABSENT, SECRET,
};

struct keyword {
    char text[14];
    uint8_t length, role;
};

#define WORD(text, role) {text, sizeof text - 1, role}

static const struct keyword keywords[26][13] = {
    ['A' - 'A'] = {WORD("ALTER", DEFINE), WORD("ANALYZE", MAINTAIN), WORD("AGGREGATE", KIND)},
    ['B' - 'A'] = {WORD("BEGIN", BEGIN)},
    ['C' - 'A'] = {WORD("CREATE", DEFINE), WORD("COMMIT", COMMAND), WORD("CALL", USE), WORD("COPY", USE),
                   WORD("CHECK", MAINTAIN), WORD("CLUSTER", MAINTAIN), WORD("CLOSE", COMMAND),
                   WORD("COMMENT", GRANT), WORD("CHECKPOINT", COMMAND), WORD("COLLATION", KIND),
                   WORD("CONCURRENTLY", OPTION)},
    ['D' - 'A'] = {WORD("DELETE", DELETE), WORD("DISTINCT", DISTINCT), WORD("DEFAULT", ABSENT),
                   WORD("DROP", DROP), WORD("DATABASE", KIND), WORD("DECLARE", COMMAND),
                   WORD("DELAYED", OPTION), WORD("DEALLOCATE", COMMAND), WORD("DESC", USE),
                   WORD("DESCRIBE", USE), WORD("DO", COMMAND),
                   WORD("DOMAIN", KIND), WORD("DISCARD", COMMAND)},
    ['E' - 'A'] = {WORD("EXISTS", OPTION), WORD("EXPLAIN", EXPLAIN), WORD("EXECUTE", COMMAND),
                   WORD("EXEC", USE), WORD("EXCEPT", UNION), WORD("END", COMMAND), WORD("EVENT", ROUTINE),
                   WORD("EXTENSION", KIND)},
    ['F' - 'A'] = {WORD("FROM", FROM), WORD("FOR", CLAUSE), WORD("FALSE", BOOLEAN), WORD("FETCH", COMMAND),
                   WORD("FUNCTION", ROUTINE), WORD("FULL", OPTION), WORD("FREEZE", OPTION),
                   WORD("FLUSH", COMMAND)},
    ['G' - 'A'] = {WORD("GROUP", CLAUSE), WORD("GRANT", GRANT), WORD("GLOBAL", OPTION)},
    ['H' - 'A'] = {WORD("HAVING", CLAUSE), WORD("HIGH_PRIORITY", OPTION)},
    ['I' - 'A'] = {WORD("IN", IN), WORD("INTO", INTO), WORD("INSERT", INSERT), WORD("IF", OPTION),
                   WORD("INDEX", KIND), WORD("INTERSECT", UNION), WORD("IGNORE", OPTION),
                   WORD("IDENTIFIED", SECRET)},
    ['J' - 'A'] = {WORD("JOIN", JOIN)},
    ['K' - 'A'] = {WORD("KILL", COMMAND)},
    ['L' - 'A'] = {WORD("LIMIT", CLAUSE), WORD("LATERAL", ONLY), WORD("LOCK", MAINTAIN),
                   WORD("LOCAL", OPTION),
                   WORD("LOAD", LOAD), WORD("LISTEN", USE), WORD("LANGUAGE", KIND),
                   WORD("LOW_PRIORITY", OPTION)},
    ['M' - 'A'] = {WORD("MERGE", MERGE), WORD("MAPPING", CLAUSE), WORD("MOVE", COMMAND)},
    ['N' - 'A'] = {WORD("NOT", OPTION), WORD("NULL", ABSENT), WORD("NOTIFY", USE)},
    ['O' - 'A'] = {WORD("ON", ON), WORD("ORDER", CLAUSE), WORD("OFFSET", CLAUSE), WORD("ONLY", ONLY),
                   WORD("OPTIMIZE", MAINTAIN)},
    ['P' - 'A'] = {WORD("PASSWORD", SECRET), WORD("PREPARE", COMMAND), WORD("PROCEDURE", ROUTINE),
                   WORD("PERSIST", OPTION), WORD("POLICY", KIND), WORD("PUBLICATION", KIND)},
    ['Q' - 'A'] = {WORD("QUICK", OPTION)},
    ['R' - 'A'] = {WORD("RETURNING", CLAUSE), WORD("ROLLBACK", COMMAND), WORD("REPLACE", REPLACE),
                   WORD("RELEASE", COMMAND), WORD("REVOKE", GRANT), WORD("REFRESH", DEFINE),
                   WORD("REINDEX", MAINTAIN), WORD("REPAIR", MAINTAIN), WORD("RESET", COMMAND),
                   WORD("ROLE", KIND), WORD("RULE", KIND), WORD("RENAME", DROP)},
    ['S' - 'A'] = {WORD("SELECT", SELECT), WORD("SET", SET), WORD("SHOW", USE), WORD("SAVEPOINT", COMMAND),
                   WORD("START", USE), WORD("SCHEMA", KIND), WORD("SEQUENCE", KIND), WORD("SESSION", OPTION),
                   WORD("SERVER", KIND), WORD("STRAIGHT_JOIN", JOIN), WORD("SUBSCRIPTION", KIND),
                   WORD("STATISTICS", KIND)},
    ['T' - 'A'] = {WORD("TRUE", BOOLEAN), WORD("TABLE", KIND), WORD("TRUNCATE", MAINTAIN),
                   WORD("TRIGGER", ROUTINE), WORD("TYPE", KIND), WORD("TABLES", KIND),
                   WORD("TABLESPACE", KIND)},
    ['U' - 'A'] = {WORD("UPDATE", UPDATE), WORD("UNION", UNION), WORD("USING", USING), WORD("USE", USE),
                   WORD("USER", KIND), WORD("UNLISTEN", USE), WORD("UNLOCK", MAINTAIN)},
    ['V' - 'A'] = {WORD("VALUES", VALUES), WORD("VALUE", VALUES), WORD("VIEW", KIND),
                   WORD("VACUUM", MAINTAIN), WORD("VERBOSE", OPTION)},
    ['W' - 'A'] = {WORD("WHERE", CLAUSE), WORD("WITH", WITH), WORD("WINDOW", CLAUSE)},
    ['X' - 'A'] = {WORD("XA", USE)},
};

static inline enum word_role role_of(const uint8_t *word, size_t length)
{
    uint8_t first = (word[0] & 0xdf) - 'A';
    if (first >= 26 || length < 2)
        return PLAIN;
    for (const struct keyword *k = keywords[first]; k < keywords[first + 1] && k->length; k++) {
        if (k->length != length || (word[1] & 0xdf) != (uint8_t)k->text[1])
            continue;
        size_t i = 2;
        while (i < length && (word[i] & 0xdf) == (uint8_t)k->text[i])
            i++;
        if (i == length)
            return (enum word_role)k->role;
    }
    return PLAIN;
}

/* --- state ------------------------------------------------------------------------------------------- */

enum { LEVELS = 32 };

enum expect { NOTHING, A_NAME, A_KIND, KIND_OR_NAME };

/* What the summary knows inside one pair of parentheses; level 0 is the statement. */
struct level {
    uint8_t expect;
    bool start;   /* no operation yet */
    bool loose;   /* words may come before the operation: WITH a AS (...), EXPLAIN VERBOSE */
    bool query;   /* FROM names its tables */
    bool tables;  /* a comma leads to the next name */
    bool joined;  /* USING has columns */
    bool merging; /* USING has a table */
    bool into;    /* LOAD DATA ... INTO */
    bool options; /* words may come before the name: IF EXISTS, SESSION */
    bool listed;  /* parentheses may come before the name: VACUUM (FULL) t */
};

struct mark {
    size_t size;
    bool full;
    uint64_t hash;
};

/* A list whose elements are alike: IN (1, 2), or VALUES (1, 2), (3, 4). */
enum list_kind { NO_LIST, ITEMS, ROWS };

struct list {
    enum list_kind kind;
    uint32_t depth, count;
    bool alike, between; /* ROWS: behind the ')' of one */
    uint64_t element, kept;
    struct mark mark; /* behind the element that is kept */
};

struct reader {
    const uint8_t *bytes;
    size_t length, at;
    const struct sql_source *source;
    struct sql_text *out;
    bool mysql, keep;
    bool secret;     /* a word that comes with passwords was read */
    bool executable; /* inside of a comment that MySQL may run */

    char *text;
    size_t size, copied; /* bytes of text; how much of the source is in it or left out */
    bool full, gap;      /* gap: a comment was left out, and must not join what is around it */

    uint64_t hash;
    size_t last; /* end of the last token */
    bool last_string, last_escapes, last_value;
    enum word_role last_role;
    enum list_kind opens; /* of the '(' that comes next */
    struct list list;

    char *summary;
    size_t summary_size;
    bool summary_full;
    bool started, silent, routine, body, united;
    uint32_t depth;
    struct level levels[LEVELS];
};

/* --- text -------------------------------------------------------------------------------------------- */

static void put(struct reader *r, const void *from, size_t n)
{
    const uint8_t *bytes = from;
    if (n == 0 || r->full)
        return;
    if (r->gap && r->size && classes[(uint8_t)r->text[r->size - 1]] != SPACE && classes[bytes[0]] != SPACE &&
        r->size < SQL_TEXT_MAX)
        r->text[r->size++] = ' ';
    r->gap = false;
    if (n > SQL_TEXT_MAX - r->size) {
        r->full = true;
        n = SQL_TEXT_MAX - r->size;
        while (n && (bytes[n] & 0xc0) == 0x80)
            n--;
    }
    memcpy(r->text + r->size, bytes, n);
    r->size += n;
}

/* The source up to `at`, unless it is there already. */
static void copy_to(struct reader *r, size_t at)
{
    if (at > r->copied) {
        put(r, r->bytes + r->copied, at - r->copied);
        r->copied = at;
    }
}

static struct mark mark(struct reader *r)
{
    copy_to(r, r->last);
    return (struct mark){r->size, r->full, r->hash};
}

static void back_to(struct reader *r, const struct mark *to, size_t at)
{
    r->hash = to->hash;
    if (r->keep)
        return;
    r->size = to->size;
    r->full = to->full;
    r->gap = false;
    r->copied = at;
}

/* --- shape ------------------------------------------------------------------------------------------- */

#define LITERAL 0x9e3779b97f4a7c15

static uint64_t mixed(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) * 0xff51afd7ed558ccd;
    return hash ^ hash >> 32;
}

/* At least one byte; the loads overlap rather than loop over what remains. */
static inline uint64_t digest(const uint8_t *bytes, size_t length)
{
    uint64_t hash = length, value = 0;
    uint32_t head = 0, tail = 0;
    if (length >= 8) {
        for (size_t i = 0; i + 8 < length; i += 8) {
            memcpy(&value, bytes + i, 8);
            hash = mixed(hash, value);
        }
        memcpy(&value, bytes + length - 8, 8);
    } else if (length >= 4) {
        memcpy(&head, bytes, 4);
        memcpy(&tail, bytes + length - 4, 4);
        value = (uint64_t)head << 32 | tail;
    } else {
        value = bytes[0] | (uint64_t)bytes[length / 2] << 8 | (uint64_t)bytes[length - 1] << 16;
    }
    return mixed(hash, value);
}

/* --- tokens ------------------------------------------------------------------------------------------ */

static struct level *level(struct reader *r)
{
    return &r->levels[r->depth < LEVELS ? r->depth : LEVELS - 1];
}

/* Every token comes through here. `element` is what it counts for in a list. */
static void token(struct reader *r, size_t from, uint64_t value, uint64_t element)
{
    if (!r->started) {
        r->started = true;
        r->out->statements++;
    }
    if (r->last == 0)
        r->copied = from;
    if (r->list.kind) {
        r->list.element = mixed(r->list.element, element);
        if (r->list.between)
            r->list.kind = NO_LIST;
    }
    r->hash = mixed(r->hash, value);
    r->last = r->at;
    r->last_string = r->last_value = false;
    r->last_role = PLAIN;
    r->opens = NO_LIST;
}

static void end_of_name(struct reader *r)
{
    struct level *l = level(r);
    l->start &= l->loose;
    if (l->expect != A_KIND)
        l->expect = NOTHING;
}

static void literal(struct reader *r, size_t from)
{
    token(r, from, LITERAL, LITERAL);
    end_of_name(r);
    if (!r->keep || (r->at == r->length && !r->source->complete)) {
        copy_to(r, from);
        put(r, "?", 1);
        r->copied = r->at;
    }
}

static void placeholder(struct reader *r, size_t from)
{
    token(r, from, r->mysql ? LITERAL : digest(r->bytes + from, r->at - from), LITERAL);
    end_of_name(r);
    r->out->parameterized = true;
    r->last_value = true;
}

static void other(struct reader *r)
{
    size_t from = r->at++;
    uint8_t c = r->bytes[from];
    token(r, from, c, c == '?' ? LITERAL : c); /* as text, PostgreSQL's operator looks like a literal */
    r->last_value = c == ']';
    end_of_name(r);
}

/* --- summary ----------------------------------------------------------------------------------------- */

static void summarize(struct reader *r, size_t from, size_t to)
{
    size_t space = r->summary_size > 0;
    if (r->summary_full || r->summary_size + space + (to - from) > SQL_SUMMARY_MAX) {
        r->summary_full = true;
        return;
    }
    if (space)
        r->summary[r->summary_size++] = ' ';
    memcpy(r->summary + r->summary_size, r->bytes + from, to - from);
    r->summary_size += to - from;
}

/* End of a quoted name that begins at `from`; SIZE_MAX: none. */
static size_t quoted_end(const struct reader *r, size_t from)
{
    uint8_t quote = r->bytes[from];
    for (size_t at = from + 1; at < r->length; at += 2) {
        const uint8_t *end = memchr(r->bytes + at, quote, r->length - at);
        if (end == NULL)
            break;
        at = (size_t)(end - r->bytes);
        if (at + 1 == r->length || r->bytes[at + 1] != quote)
            return at + 1;
    }
    return SIZE_MAX;
}

static bool begins_name(const struct reader *r, size_t at)
{
    return at < r->length && (classes[r->bytes[at]] == LETTER || (r->mysql && r->bytes[at] == '$') ||
                              r->bytes[at] == (r->mysql ? '`' : '"'));
}

/* The whole of a.b."c" as one target; none when it may go on behind the bytes. */
static void target(struct reader *r, size_t from)
{
    size_t at = from;
    level(r)->expect = NOTHING;
    for (;; at++) {
        if (r->bytes[at] == (r->mysql ? '`' : '"'))
            at = quoted_end(r, at);
        else
            while (at < r->length && is_word(r->bytes[at]))
                at++;
        if (at == SIZE_MAX || (at == r->length && !r->source->complete))
            return;
        if (at == r->length || r->bytes[at] != '.' || !begins_name(r, at + 1))
            break;
    }
    summarize(r, from, at);
}

static void operation(struct reader *r, struct level *l, size_t from, enum word_role role)
{
    bool again = r->united && l->query;
    r->united = false;
    *l = (struct level){.query = role == SELECT || role == UPDATE || role == DELETE,
                        .merging = role == MERGE || role == DELETE};
    if (role == WITH || role == EXPLAIN)
        l->start = l->loose = true;
    if (role == WITH || (role == SELECT && again))
        return;
    summarize(r, from, r->at);
    switch (role) {
    case UPDATE: l->tables = true; /* fall through */
    case INSERT:
    case REPLACE:
    case MERGE:
    case USE:
    case SET: l->expect = A_NAME; l->options = true; break;
    case LOAD: l->expect = A_NAME; l->into = true; break;
    case DROP: l->tables = true; /* fall through */
    case DEFINE: l->expect = A_KIND; l->options = r->silent = true; break;
    case MAINTAIN: l->expect = KIND_OR_NAME; l->tables = l->options = l->listed = true; break;
    case GRANT: r->silent = true; break;
    default: break;
    }
}

/* May a statement, or a part of it in parentheses, begin with this? */
static bool is_operation(const struct reader *r, const struct level *l, enum word_role role)
{
    if (r->depth > 0)
        return role >= SELECT && role <= DELETE && role != REPLACE;
    return role >= SELECT && role <= (l->loose ? DELETE : BEGIN);
}

static void expected(struct reader *r, struct level *l, size_t from, enum word_role role)
{
    bool kind = role == KIND || role == ROUTINE;
    if (kind && l->expect != A_NAME) {
        r->routine = role == ROUTINE;
        summarize(r, from, r->at);
        l->expect = A_NAME;
    } else if (l->expect == A_KIND) {
        if (role == CLAUSE || role == ABSENT)
            l->expect = NOTHING;
    } else if (!(role == ONLY || role == INTO || (l->options && (role == OPTION || role == MAINTAIN)))) {
        target(r, from);
        l->options = false;
    }
}

static void word_in_summary(struct reader *r, size_t from, enum word_role role)
{
    struct level *l = level(r);
    bool start = l->start;
    l->start &= l->loose;
    if (r->depth >= LEVELS)
        return;
    bool leads_away = role == SELECT || role == WITH || role == VALUES || role == CLAUSE || role == FROM ||
                      role == ON || role == ABSENT || role == USING;
    if (l->expect && !(leads_away && l->expect != A_KIND)) {
        expected(r, l, from, role);
        return;
    }
    l->expect = NOTHING;
    if (r->silent) {
        r->body |= r->routine && role == BEGIN;
        return;
    }
    if ((start && is_operation(r, l, role)) || role == SELECT) {
        operation(r, l, from, role);
        return;
    }
    switch (role) {
    case FROM:
        if (l->query && r->last_role != DISTINCT) {
            l->expect = A_NAME;
            l->tables = true;
        }
        break;
    case JOIN:
        if (l->tables) {
            l->expect = A_NAME;
            l->joined = true;
        }
        break;
    case USING:
        if (l->merging && !l->joined) {
            l->expect = A_NAME;
            l->query = l->tables = true;
        }
        break;
    case INTO: l->expect = l->into ? KIND_OR_NAME : NOTHING; break;
    case UNION: r->united = true; l->tables = false; break;
    case CLAUSE:
    case SET:
    case VALUES: l->tables = false; break;
    default: break;
    }
}

/* --- words, names and values ------------------------------------------------------------------------- */

static void not_safe(struct reader *r)
{
    r->out->safe = false;
    r->at = r->length;
}

/* Puts r->at behind the string whose quote is at `at`; false: not safe. */
static bool skip_string(struct reader *r, size_t at, enum sql_backslash backslash)
{
    uint8_t quote = r->bytes[at++];
    for (;;) {
        const uint8_t *found = at < r->length ? memchr(r->bytes + at, quote, r->length - at) : NULL;
        if (found == NULL) {
            r->at = r->length;
            return !r->source->complete;
        }
        size_t end = (size_t)(found - r->bytes), slashes = end;
        if (backslash != SQL_BACKSLASH_IS_LITERAL) {
            while (slashes > at && r->bytes[slashes - 1] == '\\')
                slashes--;
            bool escaped = (end - slashes) % 2, wide = slashes > at && r->bytes[slashes - 1] >= 0x80;
            if (slashes < end && (wide || (escaped && backslash == SQL_BACKSLASH_UNKNOWN)))
                return false;
            if (escaped) {
                at = end + 1;
                continue;
            }
        }
        if (end + 1 < r->length && r->bytes[end + 1] == quote) {
            at = end + 2;
            continue;
        }
        r->at = end + 1;
        return true;
    }
}

/* A literal from `from` whose quote is at `at`. */
static void string(struct reader *r, size_t from, size_t at, bool escapes)
{
    enum sql_backslash backslash = r->source->backslash;
    /* What follows an E'' may be its continuation, and 1E'' is a number and one of them, or is not. */
    bool doubtful = (r->last_string && r->last_escapes) || (from == at && at && is_word(r->bytes[at - 1]));
    if (!r->mysql && escapes)
        backslash = SQL_BACKSLASH_ESCAPES;
    else if (!r->mysql && doubtful && backslash == SQL_BACKSLASH_IS_LITERAL)
        backslash = SQL_BACKSLASH_UNKNOWN;
    if (!skip_string(r, at, backslash)) {
        not_safe(r);
        return;
    }
    escapes |= r->last_string && r->last_escapes;
    literal(r, from);
    r->last_string = true;
    r->last_escapes = escapes;
}

static bool is_utf8(const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length;) {
        uint8_t c = bytes[i++];
        size_t more = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : c >= 0xe0 && c < 0xf0 ? 2
                                                             : c >= 0xf0 && c < 0xf5   ? 3
                                                                                       : SIZE_MAX;
        if (more > length - i)
            return false;
        while (more--)
            if ((bytes[i++] & 0xc0) != 0x80)
                return false;
    }
    return true;
}

static void quoted_name(struct reader *r, size_t from, size_t at)
{
    size_t end = quoted_end(r, at);
    bool wide_before = at > 0 && r->bytes[at - 1] >= 0x80;
    if ((end == SIZE_MAX && r->source->complete) ||
        (r->mysql && (wide_before || (end != SIZE_MAX && !is_utf8(r->bytes + at, end - at))))) {
        not_safe(r);
        return;
    }
    r->at = end == SIZE_MAX ? r->length : end;
    uint64_t value = digest(r->bytes + from, r->at - from);
    bool follows_dot = from && r->bytes[from - 1] == '.';
    token(r, from, value, value);
    r->last_value = true;
    struct level *l = level(r);
    l->start &= l->loose;
    if ((l->expect == A_NAME || l->expect == KIND_OR_NAME) && !follows_dot && r->depth < LEVELS && from == at)
        target(r, from);
}

static void word(struct reader *r)
{
    size_t from = r->at;
    while (r->at < r->length && is_word(r->bytes[r->at]))
        r->at++;
    size_t length = r->at - from;
    uint8_t next = r->at < r->length ? r->bytes[r->at] : 0, letter = r->bytes[from] | 0x20;
    if (length == 1 && next == '\'' &&
        (letter == 'x' || letter == 'b' || letter == 'n' || (letter == 'e' && !r->mysql))) {
        string(r, from, r->at, letter == 'e');
        return;
    }
    if (length == 1 && letter == 'u' && next == '&' && !r->mysql && r->at + 1 < r->length) {
        if (r->bytes[r->at + 1] == '\'') {
            string(r, from, r->at + 1, false);
            return;
        }
        if (r->bytes[r->at + 1] == '"') {
            quoted_name(r, from, r->at + 1);
            return;
        }
    }
    bool part = next == '.' || (from && r->bytes[from - 1] == '.');
    bool cut = r->at == r->length && !r->source->complete;
    enum word_role role = part || cut ? PLAIN : role_of(r->bytes + from, length);
    if (role == BOOLEAN) {
        literal(r, from);
        return;
    }
    uint64_t value = digest(r->bytes + from, length);
    bool distinct = r->last_role == DISTINCT;
    token(r, from, value, role == ABSENT && r->list.kind == ROWS ? LITERAL : value);
    r->last_role = distinct ? DISTINCT : PLAIN;
    if (!(from && r->bytes[from - 1] == '.'))
        word_in_summary(r, from, role);
    r->last_role = role;
    r->last_value = true;
    r->secret |= role == SECRET;
    r->opens = role == IN ? ITEMS : role == VALUES ? ROWS : NO_LIST;
}

/* From `from`, where a sign may stand; everything that is written together belongs to it. */
static void number(struct reader *r, size_t from)
{
    bool hex = r->bytes[r->at] == '0' && r->at + 1 < r->length && (r->bytes[r->at + 1] | 0x20) == 'x';
    for (; r->at < r->length; r->at++) {
        uint8_t c = r->bytes[r->at], class = classes[c];
        bool exponent = class == SIGN && !hex && (r->bytes[r->at - 1] | 0x20) == 'e' &&
                        r->at + 1 < r->length && classes[r->bytes[r->at + 1]] == DIGIT;
        if (!(class == DIGIT || class == LETTER || class == DOT || exponent || (class == DOLLAR && r->mysql)))
            break;
    }
    literal(r, from);
}

static bool begins_number(const struct reader *r, size_t at)
{
    if (at < r->length && r->bytes[at] == '.')
        at++;
    return at < r->length && classes[r->bytes[at]] == DIGIT;
}

/* End of $tag$ at `from`, or 0. */
static size_t tag_end(const struct reader *r, size_t from)
{
    size_t at = from + 1;
    if (at < r->length && classes[r->bytes[at]] == DIGIT)
        return 0;
    while (at < r->length && (classes[r->bytes[at]] == LETTER || classes[r->bytes[at]] == DIGIT))
        at++;
    return at < r->length && r->bytes[at] == '$' ? at + 1 : 0;
}

static void dollar(struct reader *r)
{
    size_t from = r->at, tag = tag_end(r, from);
    if (r->mysql) {
        if (tag)
            not_safe(r);
        else
            word(r);
    } else if (tag) {
        const uint8_t *end = memmem(r->bytes + tag, r->length - tag, r->bytes + from, tag - from);
        if (end == NULL && r->source->complete) {
            not_safe(r);
            return;
        }
        r->at = end ? (size_t)(end - r->bytes) + tag - from : r->length;
        literal(r, from);
    } else if (begins_number(r, from + 1) && r->bytes[from + 1] != '.') {
        for (r->at++; r->at < r->length && classes[r->bytes[r->at]] == DIGIT;)
            r->at++;
        placeholder(r, from);
    } else {
        other(r);
    }
}

/* --- comments ---------------------------------------------------------------------------------------- */

static void comment(struct reader *r, size_t from, size_t end)
{
    static const char key[] = "traceparent='";
    if (r->last > 0)
        copy_to(r, from);
    r->copied = r->at = end;
    r->gap = true;
    const uint8_t *at = r->bytes + from, *stop = r->bytes + (end < r->length ? end : r->length), *value;
    while ((at = memmem(at, (size_t)(stop - at), key, sizeof key - 1)) != NULL) {
        bool whole = !is_word(at[-1]); /* a comment has two bytes, or '#', before it */
        at += sizeof key - 1;
        value = memchr(at, '\'', (size_t)(stop - at));
        if (whole && value != NULL)
            r->out->traceparent = (struct text){at, (size_t)(value - at)};
    }
}

static void line_comment(struct reader *r)
{
    size_t end = r->at;
    while (end < r->length && r->bytes[end] != '\n' && (r->mysql || r->bytes[end] != '\r'))
        end++;
    comment(r, r->at, end);
}

/* End of a block comment that begins at `at`, or SIZE_MAX; *plain: read as SQL it would end there too. */
static size_t block_end(const struct reader *r, size_t at, bool *plain)
{
    uint32_t depth = 0;
    *plain = true;
    while (at + 1 < r->length) {
        uint8_t c = r->bytes[at], next = r->bytes[at + 1];
        if (c == '/' && next == '*' && (depth == 0 || !r->mysql)) {
            depth++;
            at += 2;
        } else if (c == '*' && next == '/') {
            at += 2;
            if (--depth == 0)
                return at;
        } else {
            *plain &= !(c == '\'' || c == '"' || c == '`' || c == '#' || c == '\\' || c == '$' ||
                        (c == '-' && next == '-') || (c == '/' && next == '*'));
            at++;
        }
    }
    return SIZE_MAX;
}

static void block_comment(struct reader *r)
{
    bool plain;
    size_t from = r->at, code = from + 2, end = block_end(r, from, &plain);
    if (end == SIZE_MAX && r->source->complete) {
        not_safe(r);
        return;
    }
    if (r->mysql && code < r->length && r->bytes[code] == 'M')
        code++;
    if (!r->mysql || code >= r->length || r->bytes[code] != '!') {
        comment(r, from, end == SIZE_MAX ? r->length : end);
        return;
    }
    if (!plain || end == SIZE_MAX || r->executable) {
        not_safe(r);
        return;
    }
    code++;
    for (int digits = 0; digits < 6 && classes[r->bytes[code]] == DIGIT; digits++)
        code++;
    comment(r, from, code);
    r->executable = true;
}

/* --- punctuation ------------------------------------------------------------------------------------- */

static void open_parenthesis(struct reader *r)
{
    struct level *l = level(r);
    enum list_kind opens = r->opens;
    bool next_row = r->list.kind == ROWS && r->list.between && r->last_role == VALUES;
    bool inherits = l->expect == A_NAME && l->query;
    if (next_row)
        r->list.between = false;
    if (!l->listed)
        l->expect = NOTHING;
    size_t from = r->at++;
    token(r, from, '(', '(');
    if (++r->depth < LEVELS)
        r->levels[r->depth] = (struct level){.expect = inherits ? A_NAME : NOTHING, .start = true,
                                             .query = inherits, .tables = inherits};
    if (next_row)
        r->list.element = 0;
    else if (opens)
        r->list = (struct list){.kind = opens, .depth = r->depth, .alike = true};
}

static void end_of_item(struct reader *r)
{
    struct list *list = &r->list;
    if (list->count++ == 0) {
        list->mark = mark(r);
        list->kept = list->element;
    } else {
        list->alike &= list->element == list->kept;
    }
    list->element = 0;
}

static void close_parenthesis(struct reader *r)
{
    struct list *list = &r->list;
    bool ends = list->kind && !list->between && list->depth == r->depth;
    if (ends && list->kind == ITEMS) {
        end_of_item(r);
        if (list->alike && list->count > 1)
            back_to(r, &list->mark, r->at);
        list->kind = NO_LIST;
        ends = false;
    }
    uint64_t row = list->element;
    size_t from = r->at++;
    token(r, from, ')', ')');
    r->last_value = true;
    end_of_name(r);
    if (r->depth > 0)
        r->depth--;
    if (!ends)
        return;
    if (list->count > 0 && row == list->kept) {
        copy_to(r, r->at);
        back_to(r, &list->mark, r->at);
    } else {
        list->mark = mark(r);
        list->kept = row;
        list->count++;
    }
    list->between = true;
}

static void comma(struct reader *r)
{
    struct list *list = &r->list;
    struct level *l = level(r);
    bool between = list->kind == ROWS && list->between;
    if (list->kind == ITEMS && list->depth == r->depth)
        end_of_item(r);
    uint64_t element = list->element;
    size_t from = r->at++;
    token(r, from, ',', ',');
    if (list->kind == ITEMS && list->depth == r->depth)
        list->element = element;
    end_of_name(r);
    if (between) {
        list->kind = ROWS;
        r->last_role = VALUES; /* a '(' that comes next is that of a row */
    } else if (l->tables && r->depth < LEVELS) {
        l->expect = A_NAME;
        l->options = false;
    }
}

static void semicolon(struct reader *r)
{
    size_t from = r->at++;
    bool separates = r->depth == 0 && !r->body, started = r->started;
    token(r, from, ';', ';');
    if (!separates)
        return;
    if (!started)
        r->out->statements--;
    r->started = r->silent = r->routine = r->united = false;
    r->levels[0] = (struct level){.start = true};
}

static void signed_number(struct reader *r)
{
    size_t from = r->at;
    uint8_t next = from + 1 < r->length ? r->bytes[from + 1] : 0;
    if (r->bytes[from] == '-' && next == '-' &&
        (!r->mysql || from + 2 >= r->length || r->bytes[from + 2] <= ' ' || r->bytes[from + 2] == 0x7f)) {
        line_comment(r);
    } else if (begins_number(r, from + 1) && !(r->last_value && r->last == from)) {
        r->at++;
        number(r, from);
    } else {
        other(r);
    }
}

static void slash(struct reader *r)
{
    if (r->at + 1 < r->length && r->bytes[r->at + 1] == '*')
        block_comment(r);
    else
        other(r);
}

static void star(struct reader *r)
{
    if (r->executable && r->at + 1 < r->length && r->bytes[r->at + 1] == '/') {
        r->executable = false;
        comment(r, r->at, r->at + 2);
    } else {
        other(r);
    }
}

/* --- the whole --------------------------------------------------------------------------------------- */

static void read_tokens(struct reader *r)
{
    while (r->at < r->length) {
        enum class class = classes[r->bytes[r->at]];
        if (class == SPACE) { /* most of a statement is words and spaces: a jump table would guess wrong */
            r->at++;
            continue;
        }
        if (class == LETTER) {
            word(r);
            continue;
        }
        switch (class) {
        case DIGIT: number(r, r->at); break;
        case DOLLAR: dollar(r); break;
        case QUOTE: string(r, r->at, r->at, false); break;
        case DOUBLE_QUOTE:
            if (r->mysql)
                string(r, r->at, r->at, false);
            else
                quoted_name(r, r->at, r->at);
            break;
        case BACKTICK:
            if (r->mysql)
                quoted_name(r, r->at, r->at);
            else
                other(r);
            break;
        case DOT:
            if (begins_number(r, r->at) && !(r->last_value && r->last == r->at))
                number(r, r->at);
            else
                other(r);
            break;
        case SIGN: signed_number(r); break;
        case SLASH: slash(r); break;
        case STAR: star(r); break;
        case HASH:
            if (r->mysql)
                line_comment(r);
            else
                other(r);
            break;
        case OPEN: open_parenthesis(r); break;
        case CLOSE: close_parenthesis(r); break;
        case COMMA: comma(r); break;
        case SEMICOLON: semicolon(r); break;
        case QUESTION:
            if (r->mysql)
                placeholder(r, r->at++);
            else
                other(r);
            break;
        default: other(r); break;
        }
    }
}

/* Without spaces at the end, and without the part of a character before a cut. */
static size_t trimmed(const char *text, size_t size, bool cut)
{
    size_t last = size;
    while (cut && last > 0 && size - last < 3 && ((uint8_t)text[last - 1] & 0xc0) == 0x80)
        last--;
    uint8_t lead = cut && last > 0 ? (uint8_t)text[last - 1] : 0;
    size_t needs = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : lead >= 0xc0 ? 1 : 0;
    if (needs > size - last)
        size = last - 1;
    while (size > 0 && classes[(uint8_t)text[size - 1]] == SPACE)
        size--;
    return size;
}

static bool read_once(const struct sql_source *source, bool keep, char *text, char *summary,
                      struct sql_text *out)
{
    struct reader r;
    memset(&r, 0, offsetof(struct reader, levels));
    r.bytes = source->bytes;
    r.length = source->length;
    r.source = source;
    r.out = out;
    r.mysql = source->dialect == SQL_MYSQL;
    r.keep = keep;
    r.text = text;
    r.summary = summary;
    r.levels[0] = (struct level){.start = true};
    *out = (struct sql_text){.safe = true, .traceparent = {source->bytes, 0}};
    read_tokens(&r);
    copy_to(&r, r.length);
    if (!source->complete && r.list.kind && r.list.count > 0 && r.list.alike)
        back_to(&r, &r.list.mark, r.length);
    out->cut = !source->complete || r.full;
    out->summary_size = (uint32_t)r.summary_size;
    if (out->safe) {
        out->text_size = (uint32_t)trimmed(text, r.size, !source->complete);
        out->shape = r.hash;
    }
    return !keep || (out->safe && out->parameterized && !r.secret);
}

void sql_read(const struct sql_source *source, char *text, char *summary, struct sql_text *out)
{
    if (!read_once(source, source->keep_parameterized, text, summary, out))
        read_once(source, false, text, summary, out);
}
