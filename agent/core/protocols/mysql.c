/* SPDX-License-Identifier: Apache-2.0 */
/* The client/server protocol of MySQL and MariaDB, protocol version 10:
 * https://dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html
 * https://mariadb.com/kb/en/clientserver-protocol/
 *
 *   packet     length (3 bytes, least significant first), sequence number, payload; 0xffffff: continued
 *   connect    <- greeting   [-> SSLRequest, TLS]   -> HandshakeResponse41   <-> authentication   <- OK, ERR
 *   command    -> its number, arguments; the sequence number is 0
 *   answer     <- OK, or ERR, or column count, definitions, [EOF], rows, EOF (OK with 0xfe): a result set,
 *                 and another one behind it if SERVER_MORE_RESULTS_EXISTS
 *
 * A command is a request in one step, however much of it is read. Of an answer a step takes as many packets
 * as the window holds. Within it sequence numbers run on, which finds the seams after a loss: an answer
 * begins with the number that follows its request's. The hint of a request tells what its answer looks like,
 * that number, and which request it is, for what only counts once it has succeeded: a prepared statement,
 * another database.
 *
 * Where the greeting was not seen the capabilities are not known, and nothing depends on them that the
 * packets themselves do not tell: an EOF has 5 bytes, the OK that stands for it has at least 7.
 * Packets of compressed connections come in frames from the OK on that ends the connection phase; the engine unpacks
 * them. Replication is left alone. */
#include "../database.h"
#include "../http.h"
#include <stdio.h>

enum {
    PORT = 3306,
    HEADER = 4,
    PAYLOAD_MAX = 0xffffff,
    LOOK_MAX = 4096,       /* bytes of an OK, ERR or authentication packet that are read */
    ATTRIBUTES_LOOK = 512, /* bytes of query attributes that are read before a text */
};

/* https://dev.mysql.com/doc/dev/mysql-server/latest/group__group__cs__capabilities__flags.html */
enum capability {
    CLIENT_CONNECT_WITH_DB = 1 << 3,
    CLIENT_COMPRESS = 1 << 5,
    CLIENT_PROTOCOL_41 = 1 << 9,
    CLIENT_SSL = 1 << 11,
    CLIENT_SECURE_CONNECTION = 1 << 15,
    CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA = 1 << 21,
    CLIENT_DEPRECATE_EOF = 1 << 24,
    CLIENT_ZSTD_COMPRESSION_ALGORITHM = 1 << 26,
    CLIENT_QUERY_ATTRIBUTES = 1 << 27,
};

/* https://dev.mysql.com/doc/dev/mysql-server/latest/mysql__com_8h.html, SERVER_STATUS_flags_enum */
enum server_status {
    SERVER_STATUS_IN_TRANS = 1 << 0,
    SERVER_MORE_RESULTS_EXISTS = 1 << 3,
    SERVER_STATUS_CURSOR_EXISTS = 1 << 6,
    SERVER_STATUS_DB_DROPPED = 1 << 8,
    SERVER_STATUS_NO_BACKSLASH_ESCAPES = 1 << 9,
    SERVER_SESSION_STATE_CHANGED = 1 << 14,
};

enum { SESSION_TRACK_SCHEMA = 1, PROGRESS_REPORT = 0xffff, LAST_PREPARED = 0xffffffff };
enum { PARAMETER_TYPE_NULL = 6, PARAMETER_COUNT_MAX = 256 };
enum first_byte { FIRST_OK = 0, FIRST_MORE_DATA = 1, FIRST_DEFINITION = 3, FIRST_GREETING = 10,
                  FIRST_INFILE = 0xfb, FIRST_EOF = 0xfe,
                  FIRST_ERR = 0xff };

/* What is shared by both directions. */
struct mysql_session {
    struct prepared prepared; /* by statement id; before it is known, by the number of the request */
    uint32_t capabilities;    /* of the server, then of both */
    uint32_t last_prepared;   /* the newest statement id */
    uint16_t number;          /* of the last request */
    uint16_t prepare_number;  /* of the last COM_STMT_PREPARE */
    uint16_t switch_number;   /* of the request that changes the database */
    uint8_t prepare_lost;     /* parse_context.requests_lost at that of prepare_number */
    uint8_t database_lost;    /* and when the database was the current one */
    uint8_t infile_next;      /* sequence number of the client's next packet of data */
    uint8_t end_of_file;      /* enum end_of_file */
    uint8_t backslash;        /* enum sql_backslash, as the last status told */
    bool greeted : 1;         /* the greeting was seen */
    bool responded : 1;       /* the client's response to it was */
    bool established : 1;     /* commands follow */
    bool mariadb : 1;
    bool authenticates : 1;   /* what a client sends with another sequence number than 0 is of this */
    bool answering : 1;       /* an answer has begun and not ended */
    bool infile : 1;          /* the client sends a file */
    bool long_data : 1;       /* parameters were sent that the next COM_STMT_EXECUTE does not hold */
    bool last_known : 1;      /* last_prepared is the answer to prepare_number */
    bool switching : 1;       /* which database is the current one turns out with an answer */
    bool switch_exact : 1;    /* the request does nothing else */
    uint8_t database_size, next_size; /* 0: none, or not known */
    uint8_t database[DATABASE_NAME_MAX], next[DATABASE_NAME_MAX];
};

enum end_of_file { EOF_UNKNOWN, EOF_SENT, EOF_DEPRECATED };

/* What the next packet of an answer is. */
enum phase {
    PHASE_START,      /* the first of one */
    PHASE_MIDDLE,     /* of an answer whose beginning was lost */
    PHASE_RESULT,     /* the first of a further result */
    PHASE_COLUMNS,    /* a column definition */
    PHASE_ROWS_BEGIN, /* an EOF that ends the definitions, or a row */
    PHASE_ROWS,
    PHASE_PREPARED,   /* a definition of a parameter or column, or an EOF behind them */
    PHASE_AUTHENTICATION,
};

enum state_flag {
    CONTINUED = 1,       /* the last packet goes on with the next one */
    ANY_SEQUENCE = 2,    /* the client's packets counted too */
    UNCOUNTED = 4,       /* not every row was seen */
    HAS_ROWS = 8,
    HAS_AFFECTED = 16,
    HAS_DEFINITIONS = 32, /* in the middle: definitions were the last, an EOF ends them */
    IS_SILENT = 64,      /* of the request that is continued */
    IS_UNANSWERED = 128,
};

struct mysql_state {
    uint8_t phase; /* enum phase */
    uint8_t flags; /* enum state_flag */
    uint8_t next;  /* sequence number */
    uint8_t ends;  /* EOFs that follow definitions of a prepared statement */
    uint32_t definitions;
    uint64_t rows, affected;
};
_Static_assert(sizeof(struct mysql_state) <= STREAM_STATE_SIZE, "mysql_state");

/* The hint of a request: how it is answered, the first sequence number of the answer (0: any), its number. */
enum answer {
    ANSWER_NONE,
    ANSWER_RESULT,
    ANSWER_PREPARED,
    ANSWER_SIMPLE, /* OK, EOF or ERR */
    ANSWER_TEXT,   /* one packet of text */
    ANSWER_ROWS,   /* rows without a column count */
    ANSWER_AUTHENTICATION,
};
#define HINT(answer, number) ((uint32_t)(answer) | (uint32_t)(number) << 16)
#define HINT_FIRST(sequence) ((uint32_t)(uint8_t)(sequence) << 8)
#define HINT_ANSWER(hint) ((enum answer)((hint) & 0xff))

/* --- commands --------------------------------------------------------------------------------------- */

enum command_code {
    COM_QUIT = 0x01, COM_INIT_DB = 0x02, COM_QUERY = 0x03, COM_FIELD_LIST = 0x04, COM_CREATE_DB = 0x05,
    COM_DROP_DB = 0x06, COM_REFRESH = 0x07, COM_SHUTDOWN = 0x08, COM_STATISTICS = 0x09,
    COM_PROCESS_INFO = 0x0a, COM_PROCESS_KILL = 0x0c, COM_DEBUG = 0x0d, COM_PING = 0x0e,
    COM_CHANGE_USER = 0x11, COM_BINLOG_DUMP = 0x12, COM_TABLE_DUMP = 0x13, COM_REGISTER_SLAVE = 0x15,
    COM_STMT_PREPARE = 0x16, COM_STMT_EXECUTE = 0x17, COM_STMT_SEND_LONG_DATA = 0x18, COM_STMT_CLOSE = 0x19,
    COM_STMT_RESET = 0x1a, COM_SET_OPTION = 0x1b, COM_STMT_FETCH = 0x1c, COM_BINLOG_DUMP_GTID = 0x1e,
    COM_RESET_CONNECTION = 0x1f, COM_STMT_BULK_EXECUTE = 0xfa,
};

/* Commands that only keep a connection going are silent; those that report an error are told by the name that
 * SHOW PROCESSLIST and the general log have for them. */
struct command {
    uint32_t shortest, longest; /* payload, with the number; shortest 0: no command */
    enum answer answer;
    bool silent, opaque;
    const char *name;
};

static const struct command commands[256] = {
    [COM_QUIT] = {1, 1, ANSWER_NONE, true, false, NULL},
    [COM_INIT_DB] = {1, 1024, ANSWER_SIMPLE, false, false, NULL},
    [COM_QUERY] = {1, UINT32_MAX, ANSWER_RESULT, false, false, NULL},
    [COM_FIELD_LIST] = {2, 4096, ANSWER_ROWS, true, false, "Field List"},
    [COM_CREATE_DB] = {2, 1024, ANSWER_SIMPLE, true, false, "Create DB"},
    [COM_DROP_DB] = {2, 1024, ANSWER_SIMPLE, true, false, "Drop DB"},
    [COM_REFRESH] = {2, 2, ANSWER_SIMPLE, true, false, "Refresh"},
    [COM_SHUTDOWN] = {1, 2, ANSWER_SIMPLE, true, false, "Shutdown"},
    [COM_STATISTICS] = {1, 1, ANSWER_TEXT, true, false, "Statistics"},
    [COM_PROCESS_INFO] = {1, 1, ANSWER_RESULT, true, false, "Processlist"},
    [COM_PROCESS_KILL] = {5, 5, ANSWER_SIMPLE, true, false, "Kill"},
    [COM_DEBUG] = {1, 1, ANSWER_SIMPLE, true, false, "Debug"},
    [COM_PING] = {1, 1, ANSWER_SIMPLE, true, false, "Ping"},
    [COM_CHANGE_USER] = {3, 65536, ANSWER_AUTHENTICATION, true, false, "Change user"},
    [COM_BINLOG_DUMP] = {11, 1024, ANSWER_NONE, true, true, NULL},
    [COM_TABLE_DUMP] = {3, 1024, ANSWER_NONE, true, true, NULL},
    [COM_REGISTER_SLAVE] = {18, 4096, ANSWER_NONE, true, true, NULL},
    [COM_STMT_PREPARE] = {1, UINT32_MAX, ANSWER_PREPARED, true, false, NULL},
    [COM_STMT_EXECUTE] = {10, UINT32_MAX, ANSWER_RESULT, false, false, NULL},
    [COM_STMT_SEND_LONG_DATA] = {7, UINT32_MAX, ANSWER_NONE, true, false, NULL},
    [COM_STMT_CLOSE] = {5, 5, ANSWER_NONE, true, false, NULL},
    [COM_STMT_RESET] = {5, 5, ANSWER_SIMPLE, true, false, "Reset stmt"},
    [COM_SET_OPTION] = {3, 3, ANSWER_SIMPLE, true, false, "Set option"},
    [COM_STMT_FETCH] = {9, 9, ANSWER_ROWS, true, false, "Fetch"},
    [COM_BINLOG_DUMP_GTID] = {17, 65536, ANSWER_NONE, true, true, NULL},
    [COM_RESET_CONNECTION] = {1, 1, ANSWER_SIMPLE, true, false, "Reset connection"},
    [COM_STMT_BULK_EXECUTE] = {7, UINT32_MAX, ANSWER_RESULT, false, false, NULL},
};

static bool is_command(uint8_t code, uint32_t length)
{
    return commands[code].shortest && length >= commands[code].shortest && length <= commands[code].longest;
}

/* --- packets ---------------------------------------------------------------------------------------- */

struct packet {
    uint32_t length; /* of the payload */
    uint8_t sequence, first;
    struct text payload; /* as much of it as was asked for */
    uint64_t skip;       /* of the rest, what the window does not hold */
};

static uint32_t number_at(const uint8_t *bytes, size_t size)
{
    uint32_t n = 0;
    for (size_t i = 0; i < size; i++)
        n |= (uint32_t)bytes[i] << 8 * i;
    return n;
}

/* Header and first byte, without reading them. */
static bool packet_begins(struct cursor *in, struct packet *p)
{
    struct cursor ahead = *in;
    struct slice header = cursor_bytes(&ahead, HEADER);
    *p = (struct packet){0};
    if (ahead.status == PARSE_OK) {
        p->length = number_at(slice_bytes(in, header), 3);
        p->sequence = slice_bytes(in, header)[3];
        if (p->length)
            p->first = cursor_u8(&ahead);
    }
    in->status = ahead.status;
    in->need = ahead.need;
    return ahead.status == PARSE_OK;
}

/* Reads it, `wanted` bytes of the payload with it. */
static bool packet_read(struct cursor *in, uint32_t wanted, struct packet *p)
{
    const uint8_t *start = in->at;
    uint32_t known = p->length < wanted ? p->length : wanted;
    cursor_bytes(in, HEADER);
    struct slice payload = cursor_bytes(in, known);
    if (in->status != PARSE_OK) {
        in->at = start;
        return false;
    }
    p->payload = (struct text){slice_bytes(in, payload), payload.length};
    uint32_t rest = p->length - known;
    size_t there = cursor_left(in) < rest ? cursor_left(in) : rest;
    cursor_bytes(in, there);
    p->skip = rest - there;
    return true;
}

static uint64_t unsigned_of(struct cursor *in, size_t size)
{
    struct slice s = cursor_bytes(in, size);
    uint64_t n = 0;
    for (size_t i = 0; i < s.length; i++)
        n |= (uint64_t)slice_bytes(in, s)[i] << 8 * i;
    return n;
}

/* Protocol::LengthEncodedInteger */
static uint64_t length_encoded(struct cursor *in)
{
    uint8_t first = cursor_u8(in);
    if (first < 0xfb)
        return first;
    if (first == 0xfb || first == 0xff)
        cursor_fail(in, PARSE_INVALID);
    return unsigned_of(in, first == 0xfc ? 2 : first == 0xfd ? 3 : 8);
}

static struct text bytes_of(struct cursor *in, uint64_t length)
{
    struct slice s = cursor_bytes(in, length < SIZE_MAX / 2 ? (size_t)length : SIZE_MAX / 2);
    return (struct text){slice_bytes(in, s), s.length};
}

static struct text length_encoded_text(struct cursor *in)
{
    return bytes_of(in, length_encoded(in));
}

/* Protocol::NullTerminatedString */
static struct text terminated_text(struct cursor *in)
{
    const uint8_t *end = cursor_left(in) ? memchr(in->at, 0, cursor_left(in)) : NULL;
    if (end == NULL)
        cursor_fail(in, PARSE_INVALID);
    struct text t = bytes_of(in, end ? (uint64_t)(end - in->at) : 0);
    cursor_bytes(in, 1);
    return t;
}

/* --- which database is the current one -------------------------------------------------------------- */

static void set_database(struct mysql_session *session, const struct parse_context *context, struct text name)
{
    session->database_lost = context->requests_lost;
    session->database_size = (uint8_t)(name.length < DATABASE_NAME_MAX ? name.length : DATABASE_NAME_MAX);
    if (session->database_size)
        memcpy(session->database, name.bytes, session->database_size);
    session->switching = false;
}

/* The request with this number changes it, once it has succeeded. `name` empty: to what is not known. */
static void switch_database(struct mysql_session *session, struct text name, bool exact)
{
    if (session->switching) /* how the one before it went will not be known */
        session->database_size = 0;
    session->switching = true;
    session->switch_exact = exact;
    session->switch_number = session->number;
    session->next_size = (uint8_t)(name.length < DATABASE_NAME_MAX ? name.length : DATABASE_NAME_MAX);
    if (session->next_size)
        memcpy(session->next, name.bytes, session->next_size);
}

/* The request that the hint is of was answered. */
static void switched(struct mysql_session *session, const struct parse_context *context, bool failed)
{
    if (!session->switching || session->switch_number != context->hint >> 16)
        return;
    if (!failed)
        set_database(session, context, (struct text){session->next, session->next_size});
    else if (session->switch_exact)
        session->switching = false;
    else
        set_database(session, context, TEXT(""));
}

/* Empty where a request was not seen since, which may have changed it. */
static struct text current_database(const struct mysql_session *session, const struct parse_context *context)
{
    bool known = !session->switching && session->database_lost == context->requests_lost;
    return known ? (struct text){session->database, session->database_size} : TEXT("");
}

/* Where `needle` begins, or NULL. */
static const uint8_t *found_in(struct text t, struct text needle)
{
    for (size_t i = 0; i + needle.length <= t.length; i++)
        if (memcmp(t.bytes + i, needle.bytes, needle.length) == 0)
            return t.bytes + i;
    return NULL;
}

/* Without spaces and comments before it. */
static struct text without_comments(struct text t)
{
    for (;;) {
        const uint8_t *end = NULL;
        size_t mark = 1;
        t = text_trimmed(t);
        if (t.length >= 4 && memcmp(t.bytes, "/*", 2) == 0 && t.bytes[2] != '!') {
            end = found_in((struct text){t.bytes + 2, t.length - 2}, TEXT("*/"));
            mark = 2;
        } else if (t.length && (t.bytes[0] == '#' || (t.length >= 3 && memcmp(t.bytes, "-- ", 3) == 0))) {
            end = memchr(t.bytes, '\n', t.length);
        }
        if (end == NULL)
            return t;
        t.length -= (size_t)(end - t.bytes) + mark;
        t.bytes = end + mark;
    }
}

static bool is_name(uint8_t c)
{
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c >= 0x80;
    return letter || (c >= '0' && c <= '9') || c == '_' || c == '$';
}

static bool begins_with_use(struct text t)
{
    return t.length > 3 && text_is((struct text){t.bytes, 3}, "use") && !is_name(t.bytes[3]);
}

/* USE name [;] and nothing else; the name may be quoted. Empty: it is not. */
static struct text name_of_use(struct text t)
{
    if (!begins_with_use(t))
        return TEXT("");
    t = text_trimmed((struct text){t.bytes + 3, t.length - 3});
    while (t.length && t.bytes[t.length - 1] == ';')
        t = text_trimmed((struct text){t.bytes, t.length - 1});
    if (t.length > 2 && t.bytes[0] == '`' && t.bytes[t.length - 1] == '`') {
        t = (struct text){t.bytes + 1, t.length - 2};
        return memchr(t.bytes, '`', t.length) ? TEXT("") : t;
    }
    for (size_t i = 0; i < t.length; i++)
        if (!is_name(t.bytes[i]))
            return TEXT("");
    return t;
}

/* Is the word USE anywhere in it? */
static bool mentions_use(struct text t)
{
    for (size_t i = 0; i + 3 < t.length; i++)
        if ((i == 0 || !is_name(t.bytes[i - 1])) && begins_with_use((struct text){t.bytes + i, t.length - i}))
            return true;
    return false;
}

/* --- requests --------------------------------------------------------------------------------------- */

static struct text system_of(const struct mysql_session *session)
{
    return session->mariadb ? TEXT("mariadb") : TEXT("mysql");
}

static void describe(const struct mysql_session *session, struct text database,
                     const struct parse_context *context, struct builder *b)
{
    database_attributes(system_of(session), database, PORT, context, b);
}

static void describe_operation(const struct mysql_session *session, const char *name, struct text database,
                               const struct parse_context *context, struct builder *b)
{
    describe(session, database, context, b);
    builder_text(b, KEY_DB_OPERATION_NAME, name, strlen(name), 64);
}

/* Bytes of a binary value
 * (https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_binary_resultset.html) */
static struct text binary_value(struct cursor *in, uint8_t type)
{
    switch (type) {
    case PARAMETER_TYPE_NULL:
        return TEXT("");
    case 1: /* TINY */
        return bytes_of(in, 1);
    case 2:  /* SHORT */
    case 13: /* YEAR */
        return bytes_of(in, 2);
    case 3: /* LONG */
    case 4: /* FLOAT */
    case 9: /* INT24 */
        return bytes_of(in, 4);
    case 5: /* DOUBLE */
    case 8: /* LONGLONG */
        return bytes_of(in, 8);
    default: /* dates and times have a length of one byte, which reads the same */
        return length_encoded_text(in);
    }
}

/* Query attributes before the text of a COM_QUERY
 * (https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_query.html). One of them may be the
 * trace context of the client: MySQL's own telemetry sends it so. */
static void query_attributes(struct cursor *in, struct step *step)
{
    uint64_t count = length_encoded(in), sets = length_encoded(in);
    if (count > PARAMETER_COUNT_MAX || sets != 1) {
        cursor_fail(in, PARSE_INVALID);
        return;
    }
    if (count == 0)
        return;
    struct text null_bitmap = bytes_of(in, (count + 7) / 8);
    if (cursor_u8(in) != 1)
        cursor_fail(in, PARSE_INVALID);
    struct cursor types = *in;
    for (uint64_t i = 0; i < count; i++) {
        cursor_bytes(in, 2);
        length_encoded_text(in);
    }
    for (uint64_t i = 0; i < count && in->status == PARSE_OK; i++) {
        uint8_t type = (uint8_t)unsigned_of(&types, 2);
        struct text name = length_encoded_text(&types);
        bool null = null_bitmap.bytes[i / 8] >> i % 8 & 1;
        struct text value = binary_value(in, null ? PARAMETER_TYPE_NULL : type);
        if (in->status == PARSE_OK && name.length == 11 && text_is(name, "traceparent"))
            http_traceparent(value, &step->context);
    }
}

static const struct statement *statement_of_text(const struct mysql_session *session,
                                                 const struct parse_context *context, struct text sql,
                                                 bool complete)
{
    enum sql_backslash backslash = (enum sql_backslash)session->backslash;
    return database_sql(context, sql.bytes, sql.length, complete, SQL_MYSQL, backslash);
}

static void query(struct mysql_session *session, const struct parse_context *context, const struct packet *p,
                  struct step *step, struct builder *b)
{
    struct cursor in = cursor_over(p->payload.bytes + 1, p->payload.length - 1);
    bool known = session->greeted && session->responded;
    /* No statement begins with a control character below the tabulator. */
    bool attributes = known ? session->capabilities & CLIENT_QUERY_ATTRIBUTES
                            : cursor_peek(&in) >= 0 && cursor_peek(&in) < '\t';
    if (attributes)
        query_attributes(&in, step);
    describe(session, current_database(session, context), context, b);
    if (in.status != PARSE_OK)
        return;
    struct text sql = {in.at, cursor_left(&in)};
    bool complete = p->payload.length == p->length;
    const struct statement *statement = statement_of_text(session, context, sql, complete);
    database_statement(statement, context, step, b);
    struct text bare = without_comments(sql), name = name_of_use(bare);
    if (complete && name.length)
        switch_database(session, name, true);
    else if (begins_with_use(bare) || ((statement == NULL || statement->statements > 1) && mentions_use(sql)))
        switch_database(session, TEXT(""), false);
}

static void init_db(struct mysql_session *session, const struct parse_context *context,
                    const struct packet *p, struct builder *b)
{
    char summary[4 + DATABASE_NAME_MAX] = "USE ";
    struct text name = {p->payload.bytes + 1, p->payload.length - 1};
    size_t size = name.length < DATABASE_NAME_MAX ? name.length : DATABASE_NAME_MAX;
    memcpy(summary + 4, name.bytes, size);
    describe(session, current_database(session, context), context, b);
    builder_text(b, KEY_DB_QUERY_SUMMARY, summary, 4 + size, sizeof summary);
    switch_database(session, name, true);
}

/* Until its id is known, a statement has the number of the request that prepares it. */
static uint64_t prepare_key(uint16_t number)
{
    return 1ULL << 32 | number;
}

static void prepare(struct mysql_session *session, const struct parse_context *context,
                    const struct packet *p, struct step *step, struct builder *b)
{
    bool complete = p->payload.length == p->length;
    struct text sql = {p->payload.bytes + 1, p->payload.length - 1};
    const struct statement *statement = statement_of_text(session, context, sql, complete);
    session->prepare_number = session->number;
    session->last_known = false;
    session->prepare_lost = context->requests_lost;
    prepared_put(context->statements, &session->prepared, prepare_key(session->number), statement);
    describe(session, current_database(session, context), context, b);
    database_statement(statement, context, step, b);
}

static const struct statement *statement_of_id(const struct mysql_session *session,
                                               const struct parse_context *context, uint32_t id)
{
    const struct statement *statement;
    if (id != LAST_PREPARED)
        return prepared_get(&session->prepared, id);
    if (session->prepare_lost != context->requests_lost)
        return NULL;
    statement = prepared_get(&session->prepared, prepare_key(session->prepare_number));
    if (statement == NULL && session->last_known)
        statement = prepared_get(&session->prepared, session->last_prepared);
    return statement;
}

static void execute(struct mysql_session *session, const struct parse_context *context,
                    const struct packet *p, struct step *step, struct builder *b)
{
    const struct statement *statement = statement_of_id(session, context, number_at(p->payload.bytes + 1, 4));
    describe(session, current_database(session, context), context, b);
    database_statement(statement, context, step, b);
    bool complete = p->payload.length == p->length && !session->long_data;
    struct text values = {p->payload.bytes + 5, p->payload.length - 5};
    if (step->exact && complete)
        step->exact ^= statement_key(context->statements, p->first, values.bytes, values.length);
    else
        step->exact = 0;
    session->long_data = false;
}

/* COM_CHANGE_USER: user, authentication response, database, and what is passed over */
static struct text changed_database(const struct packet *p)
{
    struct cursor in = cursor_over(p->payload.bytes + 1, p->payload.length - 1);
    terminated_text(&in);
    bytes_of(&in, cursor_u8(&in));
    struct text database = terminated_text(&in);
    return in.status == PARSE_OK ? database : TEXT("");
}

/* So much of a command is read. */
static uint32_t wanted_of(uint8_t code)
{
    switch (code) {
    case COM_QUERY:
        return 1 + ATTRIBUTES_LOOK + SQL_MAX;
    case COM_STMT_PREPARE:
    case COM_STMT_EXECUTE:
    case COM_STMT_BULK_EXECUTE:
        return 1 + SQL_MAX;
    case COM_STMT_SEND_LONG_DATA:
        return 5;
    default:
        return LOOK_MAX;
    }
}

/* Where both offer zlib and zstd, zlib is used
 * (https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_compression.html). */
static enum compression agreed_compression(const struct mysql_session *session)
{
    uint32_t both = session->greeted && session->responded ? session->capabilities : 0;
    if (both & CLIENT_COMPRESS)
        return COMPRESSION_ZLIB;
    return both & CLIENT_ZSTD_COMPRESSION_ALGORITHM ? COMPRESSION_ZSTD : COMPRESSION_NONE;
}

static enum parse_status command(struct cursor *in, const struct parse_context *context, struct packet *p,
                                 struct mysql_state *state, struct step *step, struct builder *b)
{
    struct mysql_session *session = context->session;
    const struct command *command = &commands[p->first];
    if (!is_command(p->first, p->length))
        return PARSE_INVALID;
    if (!session->established && agreed_compression(session)) /* frames, and the OK before them was not seen */
        return PARSE_INVALID;
    if (!packet_read(in, wanted_of(p->first), p))
        return in->status;
    step->skip = p->skip;
    step->opaque = command->opaque;
    if (command->opaque)
        return PARSE_OK;
    session->established = true;
    session->authenticates = session->infile = session->answering = false;
    session->number++;
    step->begins = true;
    step->ends = p->length < PAYLOAD_MAX;
    step->silent = command->silent;
    step->unanswered = command->answer == ANSWER_NONE;
    step->hint = HINT(command->answer, session->number) | (step->ends ? HINT_FIRST(1) : 0);
    switch (p->first) {
    case COM_QUERY:
        query(session, context, p, step, b);
        break;
    case COM_INIT_DB:
        init_db(session, context, p, b);
        break;
    case COM_STMT_PREPARE:
        prepare(session, context, p, step, b);
        break;
    case COM_STMT_BULK_EXECUTE:
        session->mariadb = true;
        /* fall through */
    case COM_STMT_EXECUTE:
        execute(session, context, p, step, b);
        break;
    case COM_STMT_SEND_LONG_DATA:
        session->long_data = true;
        break;
    case COM_STMT_CLOSE:
        prepared_remove(context->statements, &session->prepared, number_at(p->payload.bytes + 1, 4));
        break;
    case COM_CHANGE_USER:
        session->authenticates = true;
        describe_operation(session, command->name, changed_database(p), context, b);
        switch_database(session, changed_database(p), true);
        prepared_clear(context->statements, &session->prepared);
        break;
    case COM_RESET_CONNECTION:
        prepared_clear(context->statements, &session->prepared);
        /* fall through */
    default:
        if (command->name)
            describe_operation(session, command->name, current_database(session, context), context, b);
    }
    step->goes_on = !step->ends;
    if (!step->ends)
        *state = (struct mysql_state){.next = 1, .flags = CONTINUED};
    if (!step->ends && step->silent)
        state->flags |= IS_SILENT;
    if (!step->ends && step->unanswered)
        state->flags |= IS_UNANSWERED;
    return PARSE_OK;
}

/* A packet of the command that the one before was too short for. */
static enum parse_status command_more(struct cursor *in, struct packet *p, struct mysql_state *state,
                                      struct step *step)
{
    if (p->sequence != state->next)
        return PARSE_INVALID;
    if (!packet_read(in, 0, p))
        return in->status;
    step->skip = p->skip;
    step->silent = state->flags & IS_SILENT;
    step->unanswered = state->flags & IS_UNANSWERED;
    step->ends = p->length < PAYLOAD_MAX;
    step->goes_on = !step->ends;
    state->next++;
    if (step->ends) {
        step->hint = HINT_FIRST(state->next);
        *state = (struct mysql_state){0};
    }
    return PARSE_OK;
}

/* HandshakeResponse41, or the SSLRequest that is its first 32 bytes
 * (https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_connection_phase_packets.html) */
static enum parse_status handshake_response(struct cursor *in, const struct parse_context *context,
                                            struct packet *p, struct step *step, struct builder *b)
{
    struct mysql_session *session = context->session;
    if (p->length < 32)
        return PARSE_INVALID;
    if (!packet_read(in, LOOK_MAX, p))
        return in->status;
    uint32_t client = number_at(p->payload.bytes, 4);
    step->skip = p->skip;
    step->encrypted = p->length == 32 && client & CLIENT_SSL;
    step->opaque = !(client & CLIENT_PROTOCOL_41);
    if (step->encrypted || step->opaque)
        return PARSE_OK;
    struct cursor fields = cursor_over(p->payload.bytes + 32, p->payload.length - 32);
    struct text database = TEXT("");
    terminated_text(&fields);
    if (client & CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA)
        length_encoded_text(&fields);
    else if (client & CLIENT_SECURE_CONNECTION)
        bytes_of(&fields, cursor_u8(&fields));
    else
        terminated_text(&fields);
    if (client & CLIENT_CONNECT_WITH_DB)
        database = terminated_text(&fields);
    if (fields.status != PARSE_OK)
        database = TEXT("");
    if (session->greeted) {
        session->capabilities &= client;
        session->end_of_file = session->capabilities & CLIENT_DEPRECATE_EOF ? EOF_DEPRECATED : EOF_SENT;
    }
    session->responded = session->authenticates = true;
    session->number++;
    switch_database(session, database, true);
    step->begins = step->ends = step->silent = true;
    step->hint = HINT(ANSWER_AUTHENTICATION, session->number) | HINT_FIRST(p->sequence + 1);
    describe_operation(session, "Connect", database, context, b);
    return PARSE_OK;
}

static enum parse_status request(struct cursor *in, const struct parse_context *context,
                                 struct mysql_state *state, struct step *step, struct builder *b)
{
    struct mysql_session *session = context->session;
    struct packet p;
    if (!packet_begins(in, &p))
        return in->status;
    if (state->flags & CONTINUED)
        return command_more(in, &p, state, step);
    bool data = session->infile && p.sequence == session->infile_next;
    if (!data && p.sequence == 0)
        return p.length ? command(in, context, &p, state, step, b) : PARSE_INVALID;
    if (!data && !session->authenticates) {
        bool connects = context->from_start && !session->established && p.sequence == 1;
        return connects ? handshake_response(in, context, &p, step, b) : PARSE_INVALID;
    }
    if (!packet_read(in, 0, &p))
        return in->status;
    step->skip = p.skip;
    if (data) {
        session->infile_next++;
        session->infile = p.length > 0;
    }
    return PARSE_OK;
}

/* --- answers ---------------------------------------------------------------------------------------- */

/* An answer while one call reads it. */
struct reading {
    const struct parse_context *context;
    struct mysql_session *session;
    struct mysql_state *state;
    struct step *step;
    struct builder *attributes;
};

static bool is_end_of_file(const struct packet *p)
{
    return p->first == FIRST_EOF && p->length == 5;
}

/* An OK packet with the header of an EOF (CLIENT_DEPRECATE_EOF). */
static bool is_end_of_rows(const struct packet *p)
{
    return p->first == FIRST_EOF && p->length >= 7 && p->length < PAYLOAD_MAX;
}

static void answer_ends(struct reading *r, bool failed)
{
    struct mysql_state *state = r->state;
    bool asked_for = state->phase != PHASE_MIDDLE || r->session->answering; /* as far as is known */
    if (!(state->flags & UNCOUNTED) && !failed) {
        if (state->flags & HAS_ROWS)
            builder_int(r->attributes, KEY_DB_RESPONSE_RETURNED_ROWS, (int64_t)state->rows);
        if (state->flags & HAS_AFFECTED)
            builder_int(r->attributes, KEY_DB_RESPONSE_AFFECTED_ROWS, (int64_t)state->affected);
    }
    if (state->phase != PHASE_MIDDLE)
        switched(r->session, r->context, failed);
    *state = (struct mysql_state){0};
    r->session->answering = false;
    r->step->ends = asked_for;
    r->step->failed = asked_for && failed;
}

static void status_told(struct mysql_session *session, uint32_t status)
{
    bool literal = status & SERVER_STATUS_NO_BACKSLASH_ESCAPES;
    session->backslash = literal ? SQL_BACKSLASH_IS_LITERAL : SQL_BACKSLASH_ESCAPES;
}

static void result_ends(struct reading *r, uint32_t status)
{
    status_told(r->session, status);
    r->step->transaction = status & SERVER_STATUS_IN_TRANS ? TRANSACTION_OPEN : TRANSACTION_NONE;
    if (status & SERVER_STATUS_DB_DROPPED)
        set_database(r->session, r->context, TEXT(""));
    if (status & SERVER_STATUS_CURSOR_EXISTS)
        r->state->flags |= UNCOUNTED;
    if (!(status & SERVER_MORE_RESULTS_EXISTS)) {
        answer_ends(r, false);
        return;
    }
    if (r->state->phase == PHASE_MIDDLE)
        r->state->flags |= UNCOUNTED;
    if (r->state->phase != PHASE_MIDDLE || r->session->answering) /* else nobody asked for it still */
        r->state->phase = PHASE_RESULT;
}

/* What changed in the session
 * (https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_ok_packet.html) */
static void session_changes(struct reading *r, struct cursor *in)
{
    length_encoded_text(in); /* for people */
    struct text all = length_encoded_text(in);
    if (in->status != PARSE_OK)
        return;
    struct cursor changes = cursor_over(all.bytes, all.length);
    while (cursor_left(&changes) && changes.status == PARSE_OK) {
        uint8_t type = cursor_u8(&changes);
        struct text data = length_encoded_text(&changes);
        struct cursor fields = cursor_over(data.bytes, data.length);
        struct text name = length_encoded_text(&fields);
        if (type == SESSION_TRACK_SCHEMA && changes.status == PARSE_OK && fields.status == PARSE_OK)
            set_database(r->session, r->context, name);
    }
}

/* OK packet, of either header */
static enum parse_status ok(struct reading *r, const struct packet *p)
{
    struct cursor in = cursor_over(p->payload.bytes + 1, p->payload.length - 1);
    uint64_t affected = length_encoded(&in);
    length_encoded(&in); /* last insert id */
    uint32_t status = (uint32_t)unsigned_of(&in, 2);
    cursor_bytes(&in, 2); /* warnings */
    if (in.status != PARSE_OK)
        return PARSE_INVALID;
    if (status & SERVER_SESSION_STATE_CHANGED)
        session_changes(r, &in);
    if (p->first == FIRST_OK && r->state->phase != PHASE_MIDDLE) {
        r->state->flags |= HAS_AFFECTED;
        r->state->affected += affected;
    }
    result_ends(r, status);
    return PARSE_OK;
}

/* https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_err_packet.html */
static enum parse_status error(struct reading *r, const struct packet *p)
{
    char text[8];
    if (p->length < 3)
        return PARSE_INVALID;
    uint32_t code = number_at(p->payload.bytes + 1, 2);
    int size = snprintf(text, sizeof text, "%u", code);
    database_status((struct text){(const uint8_t *)text, (size_t)size}, true, r->attributes);
    r->step->status = (int32_t)code;
    answer_ends(r, true);
    return PARSE_OK;
}

/* MariaDB tells of the progress of a long command as of an error
 * (https://mariadb.com/kb/en/err_packet/): the answer is still to come. */
static bool is_progress(const struct packet *p)
{
    return p->first == FIRST_ERR && p->length >= 3 && number_at(p->payload.bytes + 1, 2) == PROGRESS_REPORT;
}

/* The packet behind the definitions that only clients without CLIENT_DEPRECATE_EOF get, or the last one. */
static enum parse_status end_of_file(struct reading *r, const struct packet *p, bool of_rows)
{
    uint32_t status = number_at(p->payload.bytes + 3, 2);
    r->session->end_of_file = EOF_SENT;
    if (of_rows || status & SERVER_STATUS_CURSOR_EXISTS) /* whose rows are fetched */
        result_ends(r, status);
    else
        r->state->phase = PHASE_ROWS;
    return PARSE_OK;
}

/* COM_STMT_PREPARE_OK
 * (https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_stmt_prepare.html) */
static enum parse_status prepared(struct reading *r, const struct packet *p)
{
    struct mysql_session *session = r->session;
    uint16_t number = (uint16_t)(r->context->hint >> 16);
    if (p->length < 12)
        return PARSE_INVALID;
    const uint8_t *fields = p->payload.bytes;
    uint32_t id = number_at(fields + 1, 4);
    uint32_t columns = number_at(fields + 5, 2), parameters = number_at(fields + 7, 2);
    const struct statement *statement = prepared_get(&session->prepared, prepare_key(number));
    prepared_put(r->context->statements, &session->prepared, id, statement);
    prepared_remove(r->context->statements, &session->prepared, prepare_key(number));
    if (number == session->prepare_number) {
        session->last_prepared = id;
        session->last_known = true;
    }
    bool metadata = p->length == 12 || fields[12];
    r->state->phase = PHASE_PREPARED;
    r->state->definitions = metadata ? columns + parameters : 0;
    if (metadata && session->end_of_file == EOF_SENT)
        r->state->ends = (columns > 0) + (parameters > 0);
    if (r->state->definitions == 0)
        answer_ends(r, false);
    return PARSE_OK;
}

static enum parse_status prepared_more(struct reading *r, const struct packet *p)
{
    struct mysql_state *state = r->state;
    bool end = is_end_of_file(p);
    if (end && r->session->end_of_file != EOF_SENT) { /* that of the parameters told it */
        r->session->end_of_file = EOF_SENT;
        state->ends = 2;
    }
    if (end ? state->ends == 0 : p->first != FIRST_DEFINITION || state->definitions == 0)
        return PARSE_INVALID;
    if (end)
        state->ends--;
    else
        state->definitions--;
    if (state->definitions == 0 && state->ends == 0)
        answer_ends(r, false);
    return PARSE_OK;
}

/* The first packet of a result
 * (https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_query_response.html) */
static enum parse_status result(struct reading *r, const struct packet *p)
{
    struct mysql_state *state = r->state;
    if (p->first == FIRST_OK)
        return ok(r, p);
    if (p->first == FIRST_INFILE) {
        r->session->infile = true;
        r->session->infile_next = (uint8_t)(p->sequence + 1);
        state->phase = PHASE_RESULT;
        state->flags |= ANY_SEQUENCE;
        return PARSE_OK;
    }
    struct cursor in = cursor_over(p->payload.bytes, p->payload.length);
    uint64_t columns = length_encoded(&in);
    bool definitions = true;
    if (cursor_left(&in)) /* cached or optional metadata */
        definitions = cursor_u8(&in);
    if (in.status != PARSE_OK || cursor_left(&in) || p->skip || columns == 0 || columns > UINT16_MAX)
        return PARSE_INVALID;
    state->flags |= HAS_ROWS;
    state->definitions = definitions ? (uint32_t)columns : 0;
    state->phase = definitions ? PHASE_COLUMNS : PHASE_ROWS_BEGIN;
    return PARSE_OK;
}

static enum parse_status column(struct reading *r, const struct packet *p)
{
    if (p->first != FIRST_DEFINITION) /* the length of "def", its catalog */
        return PARSE_INVALID;
    if (--r->state->definitions == 0)
        r->state->phase = PHASE_ROWS_BEGIN;
    return PARSE_OK;
}

static enum parse_status row(struct reading *r, const struct packet *p)
{
    bool begins = r->state->phase == PHASE_ROWS_BEGIN;
    if (is_end_of_file(p))
        return end_of_file(r, p, !begins);
    if (is_end_of_rows(p))
        return ok(r, p);
    if (p->first == FIRST_EOF && p->length < PAYLOAD_MAX)
        return PARSE_INVALID;
    r->state->phase = PHASE_ROWS;
    r->state->rows++;
    return PARSE_OK;
}

/* Rows and definitions look alike from behind; only the end is certain. */
static enum parse_status middle(struct reading *r, const struct packet *p)
{
    struct mysql_state *state = r->state;
    bool behind_definitions = state->flags & HAS_DEFINITIONS;
    state->flags &= (uint8_t)~HAS_DEFINITIONS;
    if (p->payload.length >= 4 && memcmp(p->payload.bytes, "\3def", 4) == 0)
        state->flags |= HAS_DEFINITIONS;
    if (is_end_of_file(p) && behind_definitions && !(p->payload.bytes[3] & SERVER_STATUS_CURSOR_EXISTS))
        return PARSE_OK;
    if (is_end_of_file(p))
        return end_of_file(r, p, true);
    return is_end_of_rows(p) ? ok(r, p) : PARSE_OK;
}

static enum parse_status authentication(struct reading *r, const struct packet *p)
{
    struct mysql_session *session = r->session;
    r->state->phase = PHASE_AUTHENTICATION;
    r->state->flags |= ANY_SEQUENCE;
    if (p->first == FIRST_OK) {
        bool connects = !session->established;
        session->authenticates = false;
        session->established = true;
        if (connects)
            r->step->compression = (uint8_t)agreed_compression(session);
        r->state->flags |= UNCOUNTED;
        return ok(r, p);
    }
    return p->first == FIRST_EOF || p->first == FIRST_MORE_DATA ? PARSE_OK : PARSE_INVALID;
}

/* The first packet of an answer. */
static enum parse_status answer(struct reading *r, const struct packet *p)
{
    switch (HINT_ANSWER(r->context->hint)) {
    case ANSWER_RESULT:
        return result(r, p);
    case ANSWER_PREPARED:
        return p->first == FIRST_OK ? prepared(r, p) : PARSE_INVALID;
    case ANSWER_SIMPLE:
        r->state->flags |= UNCOUNTED;
        if (is_end_of_file(p))
            return end_of_file(r, p, true);
        return p->first == FIRST_OK || is_end_of_rows(p) ? ok(r, p) : PARSE_INVALID;
    case ANSWER_TEXT:
        answer_ends(r, false);
        return PARSE_OK;
    case ANSWER_ROWS:
        r->state->flags |= UNCOUNTED;
        r->state->phase = PHASE_ROWS;
        return row(r, p);
    case ANSWER_AUTHENTICATION:
        return authentication(r, p);
    default:
        return PARSE_INVALID;
    }
}

static bool is_greeting(const struct packet *p)
{
    return p->sequence == 0 && p->first == FIRST_GREETING && p->length > 32;
}

/* Protocol::HandshakeV10 */
static enum parse_status greeting(struct cursor *in, struct mysql_session *session, struct packet *p,
                                  struct step *step)
{
    if (!packet_read(in, LOOK_MAX, p))
        return in->status;
    struct cursor fields = cursor_over(p->payload.bytes + 1, p->payload.length - 1);
    struct text version = terminated_text(&fields);
    cursor_bytes(&fields, 4 + 8 + 1); /* thread id, authentication data, filler */
    uint32_t capabilities = (uint32_t)unsigned_of(&fields, 2);
    cursor_bytes(&fields, 1); /* character set */
    status_told(session, (uint32_t)unsigned_of(&fields, 2));
    capabilities |= (uint32_t)unsigned_of(&fields, 2) << 16;
    if (fields.status != PARSE_OK || version.length == 0)
        return PARSE_INVALID;
    step->skip = p->skip;
    session->greeted = true;
    session->capabilities = capabilities;
    session->mariadb = found_in(version, TEXT("MariaDB")) ||
                       found_in(version, TEXT("5.5.5-")) == version.bytes; /* as replicas of MySQL want it */
    return PARSE_OK;
}

/* Does the packet begin the answer to the oldest request that waits? */
static bool begins_answer(const struct parse_context *context, const struct mysql_state *state,
                          const struct packet *p)
{
    const struct mysql_session *session = context->session;
    uint8_t first = (uint8_t)(context->hint >> 8);
    if (state->phase > PHASE_MIDDLE || context->hint == 0 || session->answering)
        return false;
    if (state->phase == PHASE_MIDDLE && p->sequence == state->next)
        return false;
    return first == 0 || p->sequence == first;
}

/* Is it where the one before it ended? */
static bool follows(const struct parse_context *context, const struct mysql_state *state,
                    const struct packet *p)
{
    const struct mysql_session *session = context->session;
    bool stray = is_end_of_file(p) && session->end_of_file == EOF_UNKNOWN; /* behind the last definition */
    if (state->phase == PHASE_START && p->sequence == 0) /* what nobody asked for */
        return p->first == FIRST_ERR;
    if (state->phase == PHASE_START)
        return context->hint == 0 || session->answering || stray;
    if (state->phase == PHASE_MIDDLE && context->hint == 0 && p->sequence == 1)
        return true;
    return state->flags & ANY_SEQUENCE || p->sequence == state->next;
}

/* So much of a packet is read: where only its first bytes count, no more. */
static uint32_t wanted_in(const struct mysql_state *state, const struct packet *p, bool begins)
{
    bool tells = p->first == FIRST_ERR || (p->first == FIRST_EOF && p->length < PAYLOAD_MAX);
    if (state->flags & CONTINUED)
        return 0;
    bool heads = begins || state->phase == PHASE_RESULT || state->phase == PHASE_AUTHENTICATION;
    return tells || heads ? LOOK_MAX : 4;
}

static enum parse_status interpret(struct reading *r, const struct packet *p, bool begins)
{
    struct mysql_state *state = r->state;
    if (state->phase == PHASE_START && !begins)
        state->phase = PHASE_MIDDLE;
    if (is_progress(p)) {
        if (begins)
            state->phase = PHASE_RESULT;
        return PARSE_OK;
    }
    bool text = begins && HINT_ANSWER(r->context->hint) == ANSWER_TEXT;
    if (p->first == FIRST_ERR && !text)
        return error(r, p);
    if (begins)
        return answer(r, p);
    switch (state->phase) {
    case PHASE_RESULT:
        return result(r, p);
    case PHASE_COLUMNS:
        return column(r, p);
    case PHASE_ROWS_BEGIN:
    case PHASE_ROWS:
        return row(r, p);
    case PHASE_PREPARED:
        return prepared_more(r, p);
    case PHASE_AUTHENTICATION:
        return authentication(r, p);
    default:
        return middle(r, p);
    }
}

/* May the next packet be of the same step? Not if it is the client's turn, nor if nobody asked for this. */
static bool goes_on(const struct mysql_session *session, const struct mysql_state *state,
                    const struct step *step)
{
    bool unasked = state->phase <= PHASE_MIDDLE && !session->answering;
    return step->skip == 0 && !step->ends && !unasked && !(state->flags & ANY_SEQUENCE);
}

/* As many packets as there are, to the end of an answer. */
static enum parse_status response(struct cursor *in, const struct parse_context *context,
                                  struct mysql_state *state, struct step *step, struct builder *b)
{
    struct mysql_session *session = context->session;
    struct reading r = {context, session, state, step, b};
    const uint8_t *start = in->at;
    do {
        struct packet p;
        const struct mysql_state before = *state;
        const uint8_t *at = in->at;
        bool again = at > start;
        bool there = packet_begins(in, &p);
        bool connects = context->from_start && !session->greeted && !session->established;
        if (there && connects && is_greeting(&p) && state->phase == PHASE_START && !again)
            return greeting(in, session, &p, step);
        bool continued = state->flags & CONTINUED;
        bool begins = there && !continued && p.length && begins_answer(context, state, &p);
        if (begins && again)
            return PARSE_OK;
        bool empty = there && !continued && p.length == 0; /* only the end of a long one is */
        if (empty || (there && !begins && !follows(context, state, &p)))
            return again ? PARSE_OK : PARSE_INVALID;
        if (!there || !packet_read(in, wanted_in(state, &p, begins), &p)) {
            if (!again)
                return in->status;
            in->status = PARSE_OK;
            in->need = 0;
            return PARSE_OK;
        }
        if (begins)
            *state = (struct mysql_state){0};
        step->begins |= begins;
        step->skip = p.skip;
        session->answering |= begins;
        state->next = (uint8_t)(p.sequence + 1);
        state->flags &= (uint8_t)~(CONTINUED | (begins || continued ? 0 : ANY_SEQUENCE));
        enum parse_status status = continued ? PARSE_OK : interpret(&r, &p, begins);
        if (status != PARSE_OK && again) { /* what came before it was in order */
            *state = before;
            in->at = at;
            step->skip = 0;
            return PARSE_OK;
        }
        if (status != PARSE_OK)
            return status;
        if (p.length == PAYLOAD_MAX)
            state->flags |= CONTINUED;
    } while (goes_on(session, state, step));
    return PARSE_OK;
}

static enum parse_status parse(struct cursor *in, const struct parse_context *context, void *state,
                               struct step *step, struct builder *attributes)
{
    return context->sender == SENDER_CLIENT ? request(in, context, state, step, attributes)
                                            : response(in, context, state, step, attributes);
}

/* --- finding the place again ------------------------------------------------------------------------ */

/* Packets in a row, from the first on. */
struct chain {
    unsigned complete;
    bool to_the_end; /* the last one ends where the window does */
    struct packet first, last;
};

static bool continues(enum sender sender, const struct packet *before, const struct packet *p)
{
    if (sender == SENDER_CLIENT)
        return p->sequence == 0 && is_command(p->first, p->length);
    if (before == NULL)
        return p->length && (p->sequence || p->first == FIRST_ERR || is_greeting(p));
    return p->length && p->sequence == (uint8_t)(before->sequence + 1);
}

/* At most `most` of them. False: something else is among them. */
static bool chain_of(const uint8_t *data, size_t length, enum sender sender, unsigned most,
                     struct chain *chain)
{
    struct cursor in = cursor_over(data, length);
    *chain = (struct chain){0};
    while (cursor_left(&in) && chain->complete < most) {
        struct packet p;
        if (!packet_begins(&in, &p))
            return true;
        if (!continues(sender, chain->complete ? &chain->last : NULL, &p))
            return false;
        if (chain->complete == 0)
            chain->first = p;
        if (!packet_read(&in, p.length, &p))
            return true;
        chain->last = p;
        chain->complete++;
    }
    chain->to_the_end = chain->complete > 0 && cursor_left(&in) == 0;
    return true;
}

/* Does the packet that is cut off begin as long ones do: a statement, an execution (once), a greeting? */
static bool is_long(const uint8_t *data, size_t length, enum sender sender, const struct packet *p)
{
    enum { TEXT_AT = HEADER + 3, TEXT_END = HEADER + 8, ITERATIONS_AT = HEADER + 6 };
    if (length < ITERATIONS_AT + 4)
        return false;
    if (sender == SENDER_SERVER)
        return is_greeting(p) && data[HEADER + 1] > '0' && data[HEADER + 1] <= '9';
    if (p->first == COM_STMT_EXECUTE)
        return number_at(data + ITERATIONS_AT, 4) == 1;
    if (p->first != COM_QUERY && p->first != COM_STMT_PREPARE)
        return false;
    for (size_t i = TEXT_AT; i < TEXT_END; i++)
        if (data[i] >= 0x7f || (data[i] < ' ' && !text_is_space(data[i])))
            return false;
    return true;
}

static size_t resync(const uint8_t *data, size_t length, size_t from, enum sender sender)
{
    enum { PACKETS_MAX = 64, ENOUGH_OF_ANSWER = 3 };
    unsigned enough = sender == SENDER_CLIENT ? 1 : ENOUGH_OF_ANSWER;
    for (; from < length; from++) {
        struct chain chain;
        if (!chain_of(data + from, length - from, sender, PACKETS_MAX, &chain))
            continue;
        if (chain.to_the_end || chain.complete >= enough)
            return from;
        if (is_long(data + from, length - from, sender, &chain.first))
            return from;
    }
    return length;
}

/* EOF, OK in its place, or ERR; or the last two packets of a procedure: EOF, OK. */
static size_t resync_end(const uint8_t *data, size_t length)
{
    enum { MESSAGE_AT = HEADER + 3, STATUS_AT = HEADER + 3, OK_MIN = 7 };
    for (size_t at = 0; at < length; at++) {
        struct chain chain;
        if (!chain_of(data + at, length - at, SENDER_SERVER, 2, &chain) || !chain.to_the_end)
            continue;
        const struct packet *p = &chain.first, *last = &chain.last;
        bool one = chain.complete == 1;
        bool more = is_end_of_file(p) && data[at + STATUS_AT] & SERVER_MORE_RESULTS_EXISTS;
        if (one && (is_end_of_file(p) || is_end_of_rows(p)) && !more)
            return at;
        if (one && p->first == FIRST_ERR && p->length > 9 && data[at + MESSAGE_AT] == '#')
            return at;
        if (!one && more && last->first == FIRST_OK && last->length >= OK_MIN)
            return at;
    }
    return length;
}

/* https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_compression_packet.html */
static bool frame(const uint8_t *header, struct frame *frame)
{
    *frame = (struct frame){.size = number_at(header, 3), .begins = header[3] == 0, .inflated = number_at(header + 4, 3)};
    return frame->size > 0;
}

static void session_end(void *memory, struct statement_cache *statements)
{
    struct mysql_session *session = memory;
    prepared_clear(statements, &session->prepared);
}

const struct protocol mysql_protocol = {
    .name = "mysql",
    .pairing = PAIR_IN_ORDER,
    .parse = parse,
    .resync = resync,
    .resync_end = resync_end,
    .session_size = sizeof(struct mysql_session),
    .session_end = session_end,
    .frame = frame,
    .frame_header = 7,
    .batches = true,
    .finish = database_finish,
    .window_max = 1 + HEADER + ATTRIBUTES_LOOK + SQL_MAX,
};
