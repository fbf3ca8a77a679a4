// SPDX-License-Identifier: Apache-2.0
/* PostgreSQL, protocol 3.0 and 3.2: https://www.postgresql.org/docs/current/protocol.html
 *
 *   StartupMessage   length (4, itself included), version (4), { name NUL value NUL }, NUL
 *   any other        type (1), length (4, itself included), body
 *
 *   client   Q | F | P B D E C S, or a part of it | d.. c, d.. f | p | H | X
 *   server   1 2 t T n (D.. | G | H d.. c) (C | s | I) V 3 Z | E ... Z | at any time N, S, A
 *
 * A unit is what one span is made of: a Query, a FunctionCall, or Parse, Bind, Describe, Execute, Close and
 * Sync as far as they come in this order, each at most once. A further one, a Flush or a Sync ends it. Only
 * those that execute make a span; the others do when they fail. The hint of a unit is what it consists of.
 *
 * The answer to a unit ends with ReadyForQuery if a Sync or a Query asks for it, and else with the answer to
 * its last message. After an error outside of a Query the server skips all up to the next Sync, which
 * ReadyForQuery answers: the units between were not carried out.
 *
 * Left alone: replication (CopyBothResponse too), what follows a CancelRequest, protocol 2. */
#include "../database.h"

enum unit {
    PARSE = 1 << 0, /* in the order of the messages of a unit */
    BIND = 1 << 1,
    DESCRIBE = 1 << 2,
    EXECUTE = 1 << 3,
    CLOSE = 1 << 4,
    SYNC = 1 << 5,
    QUERY = 1 << 6,
    FUNCTION = 1 << 7,
    STARTUP = 1 << 8,
    MANY = 1 << 9,    /* not certainly one statement: its rows may be told in several parts */
    UNTOLD = 1 << 10, /* the statement is not known */
    ORDERED = PARSE | BIND | DESCRIBE | EXECUTE | CLOSE | SYNC,
    EXECUTES = EXECUTE | QUERY | FUNCTION,
    UNTIL_READY = SYNC | QUERY | FUNCTION | STARTUP, /* answered up to ReadyForQuery */
};

enum postgresql_limits {
    PORT = 5432,
    HEADER = 5,
    BODY_MAX = 0x3fffffff - 4, /* the server allocates no more at once (MaxAllocSize) */
    LIKELY_MAX = 1 << 20,      /* of a body whose end is not in sight, to believe that it is one */
    SHORT_MAX = 300 * 1024,    /* of messages without user data: 65,535 parameters of 4 bytes */
    STARTUP_MAX = 10000,       /* MAX_STARTUP_PACKET_LENGTH */
    NAME_MAX = 256,            /* of statements and portals; the server tells 63 bytes apart */
    DATABASE_MAX = 63,         /* NAMEDATALEN - 1: the server reads no more either */
    TAG_MAX = 64,              /* COMPLETION_TAG_BUFSIZE */
    FIELDS_MAX = 256,          /* of an error or notice: severity and code stand in front */
    STATUS_MAX = 64,           /* of a ParameterStatus */
    CODE = 5,                  /* of SQLSTATE */
};

enum request_code { SSL_REQUEST = 80877103, GSSENC_REQUEST = 80877104, CANCEL_REQUEST = 80877102 };

struct session {
    struct prepared statements, portals;
    bool started;      /* the StartupMessage was read */
    bool sync_ignored; /* by a server that copies in: it answers the next Sync as if it were the last one */
    uint8_t backslash; /* enum sql_backslash, by the parameter standard_conforming_strings */
    uint8_t asked;     /* enum request_code, low byte, of which the one-byte answer is due */
    uint8_t database_size;
    uint8_t database[DATABASE_MAX];
};

struct client_state {
    uint32_t unit; /* that is open, as far as it came; 0: none */
    bool told;     /* its statement */
    bool unbroken; /* nothing was lost since the names were last looked after */
};

enum answer_flags {
    BEGUN = 1,
    COMPLETED = 2, /* CommandComplete, PortalSuspended, EmptyQueryResponse or FunctionCallResponse came */
    FAILED = 4,
    RETURNED = 8,
    AFFECTED = 16,
    SKIPPING = 32, /* the server waits for a Sync */
    STRAY = 64,    /* what comes up to ReadyForQuery answers nothing that was seen */
    MORE = 128,    /* something of the answer was read, since the last loss */
};

struct server_state {
    uint64_t returned, affected;
    uint64_t rows; /* DataRows since the last of what is COMPLETED */
    uint16_t flags;
    uint8_t warning[CODE]; /* SQLSTATE of the last one; zero: none */
};
_Static_assert(sizeof(struct client_state) <= STREAM_STATE_SIZE, "client_state");
_Static_assert(sizeof(struct server_state) <= STREAM_STATE_SIZE, "server_state");

/* --- messages --------------------------------------------------------------------------------------- */

struct message {
    uint8_t type;
    uint32_t body;    /* bytes */
    struct text head; /* the first ones, as many as are read of this type */
};

/* Least lengths of bodies, plus one; 0: there is no such message. */
static const uint8_t least_body[2][128] = {
    [SENDER_CLIENT] = {['B'] = 9, ['C'] = 3, ['D'] = 3, ['E'] = 6, ['F'] = 11, ['H'] = 1, ['P'] = 5,
                       ['Q'] = 2, ['S'] = 1, ['X'] = 1, ['c'] = 1, ['d'] = 1, ['f'] = 2, ['p'] = 1},
    [SENDER_SERVER] = {['1'] = 1, ['2'] = 1, ['3'] = 1, ['A'] = 7, ['C'] = 2, ['D'] = 3, ['E'] = 2, ['G'] = 4,
                       ['H'] = 4, ['I'] = 1, ['K'] = 9, ['N'] = 2, ['R'] = 5, ['S'] = 3, ['T'] = 3, ['V'] = 5,
                       ['W'] = 4, ['Z'] = 2, ['c'] = 1, ['d'] = 1, ['n'] = 1, ['s'] = 1,
                       ['t'] = 3, ['v'] = 9},
};
/* Bodies of no more than the least, and of any length. */
static const char fixed_body[2][10] = {[SENDER_CLIENT] = "HSXc", [SENDER_SERVER] = "123IZcns"};
static const char long_body[2][8] = {[SENDER_CLIENT] = "BFPQdf", [SENDER_SERVER] = "ADENTVd"};

static bool is_digit(uint8_t c)
{
    return c >= '0' && c <= '9';
}

static bool is_upper(uint8_t c)
{
    return c >= 'A' && c <= 'Z';
}

static uint32_t be16(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 8 | bytes[1];
}

static uint32_t be32(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

/* The type and length of a message, if there is such a one. */
static bool header_of(const uint8_t *bytes, enum sender sender, struct message *out)
{
    uint32_t length = be32(bytes + 1), least = bytes[0] < 128 ? least_body[sender][bytes[0]] : 0;
    out->type = bytes[0];
    out->body = length - 4;
    if (least == 0 || length < 4 || out->body + 1 < least || out->body > BODY_MAX)
        return false;
    if (strchr(fixed_body[sender], out->type))
        return out->body + 1 == least;
    if (sender == SENDER_SERVER && out->type == 'C')
        return out->body <= TAG_MAX;
    return out->body <= SHORT_MAX || strchr(long_body[sender], out->type);
}

/* So much of a body is read, at most: the rest of a longer one is passed over. */
static uint32_t head_wanted(const struct message *m, enum sender sender)
{
    uint32_t most = 0;
    if (sender == SENDER_CLIENT)
        most = m->type == 'Q'   ? SQL_MAX + 1
               : m->type == 'P' ? NAME_MAX + SQL_MAX + 1
               : m->type == 'B' ? 2 * NAME_MAX
               : m->type == 'D' || m->type == 'E' || m->type == 'C' ? NAME_MAX : 0;
    else
        most = m->type == 'C'   ? TAG_MAX
               : m->type == 'Z' ? 1
               : m->type == 'S' ? STATUS_MAX
               : m->type == 'E' || m->type == 'N' ? FIELDS_MAX : 0;
    return m->body < most ? m->body : most;
}

/* The next message up to its head. False: it is not there, or none; the cursor has failed. */
static bool next_message(struct cursor *in, enum sender sender, struct message *out)
{
    struct slice header = cursor_bytes(in, HEADER);
    if (in->status == PARSE_OK && !header_of(slice_bytes(in, header), sender, out))
        cursor_fail(in, PARSE_INVALID);
    if (in->status != PARSE_OK)
        return false;
    struct slice head = cursor_bytes(in, head_wanted(out, sender));
    out->head = (struct text){slice_bytes(in, head), head.length};
    return in->status == PARSE_OK;
}

/* The rest of the body, as far as it is there; what is not, is to be passed over. */
static struct text rest_of(struct cursor *in, const struct message *m, struct step *step)
{
    size_t rest = m->body - m->head.length, here = rest < cursor_left(in) ? rest : cursor_left(in);
    step->skip = rest - here;
    struct slice bytes = cursor_bytes(in, here);
    return (struct text){slice_bytes(in, bytes), bytes.length};
}

/* The message from `before` on is not of this step: what was read before it is, if anything was. */
static enum parse_status leave(struct cursor *in, const uint8_t *before)
{
    if (before > in->start) {
        in->at = before;
        in->need = 0;
        in->status = PARSE_OK;
    }
    return in->status;
}

/* A string up to its NUL; without one bytes == NULL. *t gets what follows. */
static struct text string(struct text *t)
{
    struct text rest, value = text_before(*t, '\0', &rest);
    if (rest.bytes == NULL)
        return rest;
    *t = rest;
    return value;
}

/* --- startup ---------------------------------------------------------------------------------------- */

/* parse_bool() of the server takes prefixes too; a client that asks for no replication says nothing of it. */
static bool replicates(struct text value)
{
    return !(text_is(value, "false") || text_is(value, "off") || text_is(value, "no") || text_is(value, "0"));
}

/* The parameters: name and value in turns, up to an empty name. */
static bool parameters(struct text t, struct session *session, struct step *step)
{
    struct text user = TEXT(""), database = TEXT("");
    for (;;) {
        struct text name = string(&t);
        if (name.bytes == NULL)
            return false;
        if (name.length == 0)
            break;
        struct text value = string(&t);
        if (value.bytes == NULL)
            return false;
        if (text_is(name, "user"))
            user = value;
        else if (text_is(name, "database"))
            database = value;
        else if (text_is(name, "replication"))
            step->opaque |= replicates(value);
    }
    if (database.length == 0)
        database = user;
    session->database_size = (uint8_t)(database.length < DATABASE_MAX ? database.length : DATABASE_MAX);
    memcpy(session->database, database.bytes, session->database_size);
    return t.length == 0;
}

static void place(const struct session *session, const struct parse_context *context, struct builder *b)
{
    struct text name = {session->database, session->database_size};
    database_attributes(TEXT("postgresql"), name, PORT, context, b);
}

/* StartupMessage, SSLRequest, GSSENCRequest, CancelRequest */
static enum parse_status startup(struct cursor *in, const struct parse_context *context,
                                 struct session *session, struct step *step, struct builder *attributes)
{
    struct slice head = cursor_bytes(in, 8);
    if (in->status != PARSE_OK)
        return in->status;
    uint32_t length = be32(slice_bytes(in, head)), code = be32(slice_bytes(in, head) + 4);
    if (length < 8 || length > STARTUP_MAX)
        return PARSE_INVALID;
    if (code == CANCEL_REQUEST) {
        step->opaque = true;
        return PARSE_OK;
    }
    if (code == SSL_REQUEST || code == GSSENC_REQUEST) {
        session->asked = (uint8_t)code;
        return length == 8 ? PARSE_OK : PARSE_INVALID;
    }
    if (code >> 16 != 3)
        return PARSE_INVALID;
    struct slice body = cursor_bytes(in, length - 8);
    if (in->status != PARSE_OK)
        return in->status;
    if (!parameters((struct text){slice_bytes(in, body), body.length}, session, step))
        return PARSE_INVALID;
    session->started = true;
    session->asked = 0;
    if (step->opaque)
        return PARSE_OK;
    step->begins = step->ends = step->silent = true;
    step->hint = STARTUP;
    place(session, context, attributes);
    return PARSE_OK;
}

/* One byte answers SSLRequest and GSSENCRequest; servers that know neither send an ErrorResponse. */
static enum parse_status encryption(struct cursor *in, struct session *session, struct step *step)
{
    uint8_t yes = session->asked == (uint8_t)SSL_REQUEST ? 'S' : 'G', answer = cursor_u8(in);
    session->asked = 0;
    step->encrypted = answer == yes;
    return answer == yes || answer == 'N' ? PARSE_OK : PARSE_INVALID;
}

/* --- requests --------------------------------------------------------------------------------------- */

static uint64_t key_of(const struct parse_context *context, struct text name)
{
    return statement_key(context->statements, 0, name.bytes, name.length);
}

static struct text next_word(struct text *t)
{
    struct text word = text_trimmed(*t);
    size_t n = 0;
    while (n < word.length && !text_is_space(word.bytes[n]) && word.bytes[n] != ';')
        n++;
    *t = (struct text){word.bytes + n, word.length - n};
    word.length = n;
    return word;
}

/* Statements that change what names stand for. A name that is quoted or not in lower case may be any. */
static void forget(struct text sql, const struct parse_context *context, struct session *session)
{
    struct text verb = next_word(&sql), name = next_word(&sql);
    bool discards = text_is(verb, "discard"), deallocates = text_is(verb, "deallocate");
    if (deallocates && text_is(name, "prepare"))
        name = next_word(&sql);
    if (!discards && !deallocates && !text_is(verb, "prepare"))
        return;
    bool plain = name.length > 0;
    for (size_t i = 0; i < name.length; i++)
        plain &= (name.bytes[i] >= 'a' && name.bytes[i] <= 'z') || name.bytes[i] == '_' ||
                 (i && is_digit(name.bytes[i]));
    if (discards || !plain || text_is(name, "all"))
        prepared_clear(context->statements, &session->statements);
    else
        prepared_remove(context->statements, &session->statements, key_of(context, name));
}

/* The first that is known of the statement of a unit is told; later messages may know its values. */
static void tell(const struct statement *statement, uint64_t exact, const struct parse_context *context,
                 struct client_state *state, struct step *step, struct builder *attributes)
{
    if (statement == NULL)
        return;
    if (!state->told)
        database_statement(statement, context, step, attributes);
    state->told = true;
    step->shape = statement->shape;
    step->exact = exact;
}

/* Text of a Query or Parse, up to its NUL or the end of the head. */
static const struct statement *statement_in(struct text sql, const struct parse_context *context,
                                            struct session *session)
{
    struct text rest, text = text_before(sql, '\0', &rest);
    bool complete = rest.bytes != NULL && text.length <= SQL_MAX;
    if (text.length > SQL_MAX)
        text.length = SQL_MAX;
    forget(text, context, session);
    return database_sql(context, text.bytes, text.length, complete, SQL_POSTGRESQL,
                        (enum sql_backslash)session->backslash);
}

static void query(const struct message *m, const struct parse_context *context, struct session *session,
                  struct client_state *state, struct step *step, struct builder *attributes)
{
    const struct statement *statement = statement_in(m->head, context, session);
    if (statement == NULL || statement->statements != 1 || m->head.length < m->body)
        step->hint |= MANY;
    tell(statement, statement ? statement->exact : 0, context, state, step, attributes);
    uint64_t unnamed = key_of(context, TEXT(""));
    prepared_remove(context->statements, &session->statements, unnamed);
    prepared_remove(context->statements, &session->portals, unnamed);
}

/* Parse: name, query, types of parameters */
static void prepare(const struct message *m, const struct parse_context *context, struct session *session,
                  struct client_state *state, struct step *step, struct builder *attributes)
{
    struct text sql = m->head, name = string(&sql);
    if (name.bytes == NULL)
        return;
    const struct statement *statement = statement_in(sql, context, session);
    tell(statement, statement ? statement->exact : 0, context, state, step, attributes);
    prepared_put(context->statements, &session->statements, key_of(context, name), statement);
}

/* Bind: portal, statement, formats and values of parameters; `rest`: of the body, behind its head */
static void bind_portal(const struct message *m, struct text rest, const struct parse_context *context,
                        struct session *session, struct client_state *state, struct step *step,
                        struct builder *attributes)
{
    struct text values = m->head, portal = string(&values), name = string(&values);
    if (portal.bytes == NULL)
        return;
    bool whole = m->head.length + rest.length == m->body;
    const struct statement *statement =
        name.bytes ? prepared_get(&session->statements, key_of(context, name)) : NULL;
    values.length += rest.length; /* which follows directly */
    uint64_t exact = 0;
    if (statement && whole)
        exact = statement->exact ^ statement_key(context->statements, 0, values.bytes, values.length);
    tell(statement, exact, context, state, step, attributes);
    prepared_put(context->statements, &session->portals, key_of(context, portal), statement);
}

static void execute(const struct message *m, const struct parse_context *context, struct session *session,
                    struct client_state *state, struct step *step, struct builder *attributes)
{
    struct text rest = m->head, portal = string(&rest);
    if (!state->told && portal.bytes)
        tell(prepared_get(&session->portals, key_of(context, portal)), 0, context, state, step, attributes);
    if (!state->told)
        step->hint |= UNTOLD;
}

/* Close: 'S' and the name of a statement, or 'P' and that of a portal */
static void close_named(const struct message *m, const struct parse_context *context, struct session *session)
{
    struct text rest = {m->head.bytes + 1, m->head.length - 1}, name = string(&rest);
    struct prepared *all = m->head.bytes[0] == 'S' ? &session->statements : &session->portals;
    if (name.bytes)
        prepared_remove(context->statements, all, key_of(context, name));
}

/* What was lost may have given the unnamed statement and the portals another meaning. A statement with a name
 * keeps it: to change that takes a Close and a Parse, and clients rather take new names. */
static void after_loss(const struct parse_context *context, struct session *session,
                       struct client_state *state)
{
    if (state->unbroken)
        return;
    prepared_remove(context->statements, &session->statements, key_of(context, TEXT("")));
    prepared_clear(context->statements, &session->portals);
    state->unbroken = true;
}

static uint32_t bit_of(uint8_t type)
{
    switch (type) {
    case 'P': return PARSE;
    case 'B': return BIND;
    case 'D': return DESCRIBE;
    case 'E': return EXECUTE;
    case 'C': return CLOSE;
    case 'S': return SYNC;
    case 'Q': return QUERY;
    case 'F': return FUNCTION;
    default: return 0; /* copied data, passwords, Flush, Terminate */
    }
}

static enum parse_status requests(struct cursor *in, const struct parse_context *context,
                                  struct session *session, struct client_state *state, struct step *step,
                                  struct builder *attributes)
{
    struct message m;
    while (!step->ends && step->skip == 0) {
        const uint8_t *before = in->at;
        if (!next_message(in, SENDER_CLIENT, &m))
            return leave(in, before);
        after_loss(context, session, state);
        uint32_t bit = bit_of(m.type);
        bool ignored = m.type == 'S' && session->sync_ignored;
        if (ignored)
            bit = 0;
        bool begins = bit && (bit > SYNC || state->unit == 0 || bit <= state->unit);
        if (begins && before > in->start)
            return leave(in, before);
        if (begins) {
            *state = (struct client_state){.unbroken = true};
            step->begins = true;
            place(session, context, attributes);
        }
        state->unit |= bit;
        step->hint |= bit;
        step->silent = !(state->unit & EXECUTES);
        struct text rest = rest_of(in, &m, step);
        switch (m.type) {
        case 'Q': query(&m, context, session, state, step, attributes); break;
        case 'P': prepare(&m, context, session, state, step, attributes); break;
        case 'B': bind_portal(&m, rest, context, session, state, step, attributes); break;
        case 'E': execute(&m, context, session, state, step, attributes); break;
        case 'C': close_named(&m, context, session); break;
        case 'S': session->sync_ignored = false; break;
        }
        if (bit >= SYNC || ((ignored || m.type == 'H') && state->unit)) {
            step->ends = true;
            *state = (struct client_state){.unbroken = true};
        }
        if (cursor_left(in) == 0)
            break;
    }
    return PARSE_OK;
}

/* --- answers ---------------------------------------------------------------------------------------- */

/* Of which messages of a request may this be an answer, or a part of one? */
static uint32_t answered_by(uint8_t type)
{
    switch (type) {
    case '1': return PARSE;
    case '2': return BIND;
    case '3': return CLOSE;
    case 't': case 'n': return DESCRIBE;
    case 'T': return DESCRIBE | QUERY;
    case 's': return EXECUTE;
    case 'D': case 'C': case 'I': case 'G': case 'H': case 'd': case 'c': return EXECUTE | QUERY;
    case 'V': return FUNCTION;
    case 'R': case 'K': case 'v': return STARTUP;
    case 'Z': return UNTIL_READY;
    case 'E': return ORDERED | UNTIL_READY;
    default: return 0; /* S, A and N come at any time, W leaves the protocol */
    }
}

/* What is answered first, and last. */
static uint32_t first_of(uint32_t unit)
{
    unit &= ORDERED | UNTIL_READY;
    return unit & -unit;
}

static uint32_t last_of(uint32_t unit)
{
    if (unit & UNTIL_READY)
        return unit & UNTIL_READY;
    uint32_t last = unit & ORDERED;
    while (last & (last - 1))
        last &= last - 1;
    return last;
}

/* Is `type` the end of an answer to `unit`? */
static bool is_last(uint8_t type, uint32_t unit)
{
    static const char parts[] = "tDGHdc"; /* of answers, never their end */
    if (unit & UNTIL_READY)
        return type == 'Z';
    return answered_by(type) & last_of(unit) && !strchr(parts, type);
}

struct fields {
    bool fatal; /* the server closes the connection: FATAL, PANIC */
    struct text code; /* SQLSTATE; empty: not there, or none */
};

/* https://www.postgresql.org/docs/current/protocol-error-fields.html; S is localized, V came with 9.6. */
static struct fields fields_of(struct text t)
{
    struct fields out = {.code = TEXT("")};
    while (t.length && t.bytes[0]) {
        uint8_t type = t.bytes[0];
        t.bytes++, t.length--;
        struct text value = string(&t);
        if (value.bytes == NULL)
            break;
        if (type == 'V' || type == 'S')
            out.fatal |= text_is(value, "fatal") || text_is(value, "panic");
        bool code = type == 'C' && value.length == CODE;
        for (size_t i = 0; i < value.length && code; i++)
            code = is_digit(value.bytes[i]) || is_upper(value.bytes[i]);
        if (code)
            out.code = value;
    }
    return out;
}

static bool is_code(struct text code, const char *literal)
{
    return code.length == CODE && memcmp(code.bytes, literal, CODE) == 0;
}

static void failure(struct text code, struct server_state *state, struct step *step,
                    struct builder *attributes)
{
    state->flags |= FAILED;
    step->failed = true;
    if (code.length)
        database_status(code, true, attributes);
    else
        builder_text(attributes, KEY_ERROR_TYPE, "_OTHER", 6, 6);
}

/* CommandComplete: "SELECT 5", "INSERT 0 1", "CREATE TABLE". Rows that a SELECT counts and nobody was sent
 * went into a new table; after a loss nobody knows what was sent, and then there were many. */
static void complete(struct text tag, uint32_t unit, struct server_state *state, struct builder *attributes)
{
    static const char *const counted[] = {"insert", "update", "delete", "merge", "move", "copy"};
    struct text rest, number = TEXT("");
    tag = text_before(tag, '\0', &rest);
    struct text verb = next_word(&tag), words = verb;
    uint64_t rows = 0;
    for (struct text word = next_word(&tag); word.length; word = next_word(&tag)) {
        number = word;
        if (word.bytes[0] > '9')
            words.length = (size_t)(word.bytes + word.length - verb.bytes);
    }
    if (unit & UNTOLD)
        builder_text(attributes, KEY_DB_OPERATION_NAME, words.bytes, words.length, TAG_MAX);
    for (size_t i = 0; i < number.length; i++) {
        uint64_t digit = (uint64_t)number.bytes[i] - '0';
        if (digit > 9 || rows > (INT64_MAX - digit) / 10)
            return;
        rows = rows * 10 + digit;
    }
    if (number.length == 0)
        return;
    bool sent = rows == 0 || state->rows || !(state->flags & BEGUN);
    bool reads = text_is(verb, "select") || text_is(verb, "fetch");
    bool writes = reads && !sent;
    for (size_t i = 0; i < sizeof counted / sizeof *counted; i++)
        writes |= text_is(verb, counted[i]);
    uint64_t *sum = writes ? &state->affected : reads ? &state->returned : NULL;
    if (sum == NULL || *sum > INT64_MAX - rows)
        return;
    *sum += rows;
    state->flags |= writes ? AFFECTED : RETURNED;
}

static void finish_answer(uint32_t unit, struct server_state *state, struct step *step,
                          struct builder *attributes)
{
    uint16_t flags = state->flags;
    if (!(flags & (COMPLETED | FAILED)) && unit & EXECUTES) {
        failure(TEXT(""), state, step, attributes); /* by resync_end(): an ErrorResponse of unknown code */
    } else if (!(flags & FAILED)) {
        if (state->warning[0])
            database_status((struct text){state->warning, CODE}, false, attributes);
        bool all = flags & BEGUN || !(unit & MANY);
        if (flags & RETURNED && all)
            builder_int(attributes, KEY_DB_RESPONSE_RETURNED_ROWS, (int64_t)state->returned);
        if (flags & AFFECTED && all)
            builder_int(attributes, KEY_DB_RESPONSE_AFFECTED_ROWS, (int64_t)state->affected);
    }
    step->ends = true;
    *state = (struct server_state){0};
}

static void error(struct text head, uint32_t unit, const struct parse_context *context,
                  struct session *session, struct server_state *state, struct step *step,
                  struct builder *attributes)
{
    struct fields fields = fields_of(head);
    failure(fields.code, state, step, attributes);
    /* The name stands for what it stood for before, and we have put another statement there. */
    if (is_code(fields.code, "42P05"))
        prepared_clear(context->statements, &session->statements);
    if (is_code(fields.code, "42P03"))
        prepared_clear(context->statements, &session->portals);
    if (!fields.fatal && unit & UNTIL_READY && !(unit & STARTUP))
        return;
    bool skips = !fields.fatal && !(unit & STARTUP);
    step->ends = true;
    *state = (struct server_state){.flags = skips ? SKIPPING : 0};
}

/* ParameterStatus: name and value */
static void parameter(struct text head, struct session *session)
{
    struct text name = string(&head), value = string(&head);
    if (name.bytes == NULL || !text_is(name, "standard_conforming_strings"))
        return;
    session->backslash = text_is(value, "on")    ? SQL_BACKSLASH_IS_LITERAL
                         : text_is(value, "off") ? SQL_BACKSLASH_ESCAPES : SQL_BACKSLASH_UNKNOWN;
}

static void warn(struct text head, struct server_state *state)
{
    struct fields fields = fields_of(head);
    if (fields.code.length && memcmp(fields.code.bytes, "01", 2) == 0)
        memcpy(state->warning, fields.code.bytes, CODE);
}

/* A ReadyForQuery that ends no answer to a unit: that of a Sync alone, or of all that was skipped. */
static void ready(uint32_t unit, struct server_state *state, struct step *step)
{
    step->begins = step->ends = true;
    if (unit && first_of(unit) != SYNC) {
        step->answers = state->flags & SKIPPING ? SYNC : SYNC | QUERY | FUNCTION;
        step->voids = true;
    }
    *state = (struct server_state){0};
}

/* How a message relates to what waits for an answer. */
static enum transaction transaction_of(const struct message *ready)
{
    switch (ready->head.bytes[0]) {
    case 'I': return TRANSACTION_NONE;
    case 'T': return TRANSACTION_OPEN;
    case 'E': return TRANSACTION_FAILED;
    default: return TRANSACTION_UNTOLD;
    }
}

enum relation { ASIDE, BEGINS, GOES_ON, READY, CONTRADICTS };

static enum relation relation_of(const struct message *m, const struct parse_context *context,
                                 const struct server_state *state)
{
    uint32_t bits = answered_by(m->type), unit = context->hint;
    bool within = context->within || state->flags & BEGUN;
    if (bits == 0)
        return ASIDE;
    if (m->type == 'Z' && transaction_of(m) == TRANSACTION_UNTOLD)
        return CONTRADICTS;
    if (unit == 0 || state->flags & STRAY)
        return m->type != 'Z' ? ASIDE : unit == 0 ? READY : CONTRADICTS;
    if (state->flags & SKIPPING)
        return m->type == 'Z' ? READY : m->type == 'E' ? ASIDE : CONTRADICTS;
    if (within) {
        bool outcome = state->flags & (COMPLETED | FAILED) || strchr("CEIVs", m->type);
        bool lacks = is_last(m->type, unit) && unit & EXECUTES && !outcome && state->flags & MORE;
        return bits & unit && !lacks ? GOES_ON : CONTRADICTS;
    }
    if (m->type == 'Z')
        return READY;
    return bits & first_of(unit) ? BEGINS : CONTRADICTS;
}

static enum parse_status responses(struct cursor *in, const struct parse_context *context,
                                   struct session *session, struct server_state *state, struct step *step,
                                   struct builder *attributes)
{
    uint32_t unit = context->hint;
    struct message m;
    while (!step->ends && step->skip == 0) {
        const uint8_t *before = in->at;
        if (!next_message(in, SENDER_SERVER, &m))
            return leave(in, before);
        enum relation at = relation_of(&m, context, state);
        if (at == CONTRADICTS)
            cursor_fail(in, PARSE_INVALID);
        if (at == CONTRADICTS || ((at == BEGINS || at == READY) && before > in->start))
            return leave(in, before);
        if (m.type == 'Z') {
            step->transaction = transaction_of(&m);
            if (at == GOES_ON)
                finish_answer(unit, state, step, attributes);
            else if (at == READY)
                ready(unit, state, step);
            return PARSE_OK;
        }
        rest_of(in, &m, step);
        if (at == BEGINS) {
            step->begins = true;
            state->flags |= BEGUN;
        }
        if (context->within || state->flags & BEGUN)
            state->flags |= MORE;
        if (at == ASIDE) {
            if (m.type == 'N' && unit)
                warn(m.head, state);
            if (unit == 0 && answered_by(m.type))
                state->flags = STRAY;
            if (m.type == 'S')
                parameter(m.head, session);
            step->opaque = m.type == 'W';
        } else if (m.type == 'E') {
            error(m.head, unit, context, session, state, step, attributes);
        } else if (m.type == 'C') {
            complete(m.head, unit, state, attributes);
            state->flags |= COMPLETED;
            state->rows = 0;
        } else if (m.type == 's') { /* it does not tell how many: as many as were seen */
            state->returned = state->rows;
            state->flags |= COMPLETED | (state->flags & BEGUN ? RETURNED : 0);
        } else if (m.type == 'I' || m.type == 'V') {
            state->flags |= COMPLETED;
        } else if (m.type == 'D') {
            state->rows++;
        } else if (m.type == 'G' && unit & EXECUTE && unit & SYNC) {
            session->sync_ignored = true;
        }
        if (at != ASIDE && !step->ends && is_last(m.type, unit))
            finish_answer(unit, state, step, attributes);
        if (cursor_left(in) == 0 || step->opaque)
            break;
    }
    return PARSE_OK;
}

static enum parse_status postgresql_parse(struct cursor *in, const struct parse_context *context, void *state,
                                          struct step *step, struct builder *attributes)
{
    struct session *session = context->session;
    if (context->sender == SENDER_SERVER && session->asked)
        return encryption(in, session, step);
    if (context->sender == SENDER_SERVER)
        return responses(in, context, session, state, step, attributes);
    if (cursor_peek(in) == 0 && !session->started) /* no message has this type */
        return startup(in, context, session, step, attributes);
    return requests(in, context, session, state, step, attributes);
}

static void session_end(void *memory, struct statement_cache *statements)
{
    struct session *session = memory;
    prepared_clear(statements, &session->statements);
    prepared_clear(statements, &session->portals);
}

/* --- finding a start again -------------------------------------------------------------------------- */

/* Formats of what user data rarely looks like: rows, command tags, states. `body`: as far as it is there. */
static bool well_formed(const struct message *m, struct text body, enum sender sender)
{
    bool whole = body.length == m->body;
    if (body.length == 0)
        return true;
    uint8_t first = body.bytes[0], last = body.bytes[body.length - 1];
    if (sender == SENDER_CLIENT)
        return m->type == 'Q'                     ? !whole || last == '\0'
               : m->type == 'D' || m->type == 'C' ? (first == 'S' || first == 'P') && (!whole || last == '\0')
                                                  : true;
    if (m->type == 'E' || m->type == 'N')
        return first == 'S' && (!whole || last == '\0');
    if (m->type == 'Z')
        return first == 'I' || first == 'T' || first == 'E';
    if (m->type == 'C') {
        for (size_t i = 0; i + 1 < body.length; i++)
            if (!is_upper(body.bytes[i]) && !is_digit(body.bytes[i]) && body.bytes[i] != ' ')
                return false;
        return is_upper(first) && (!whole || last == '\0');
    }
    if (m->type == 'R') /* AuthenticationSASLFinal has the highest number */
        return body.length >= 4 && be32(body.bytes) <= 12;
    if (m->type == 'G' || m->type == 'H' || m->type == 'W')
        return first <= 1 && (body.length < 3 || m->body == 3 + 2 * be16(body.bytes + 1));
    if (body.length < 2)
        return true;
    uint32_t count = be16(body.bytes);
    if (m->type == 't')
        return m->body == 2 + 4 * count;
    if (m->type == 'T') /* of each column a name and 18 bytes */
        return m->body >= 2 + 19 * count;
    size_t at = 2;
    if (m->type == 'D') {
        for (; count && at + 4 <= body.length; count--) {
            uint32_t size = be32(body.bytes + at);
            at += 4 + (size == UINT32_MAX ? 0 : (size_t)size);
            if (at > m->body)
                return false;
        }
        return !whole || at == m->body;
    }
    return true;
}

/* From `from` on: messages, of which the last may go on behind the end. */
static bool is_chain(const uint8_t *data, size_t length, size_t from, enum sender sender)
{
    while (from < length) {
        struct message m;
        if (length - from < HEADER)
            return data[from] < 128 && least_body[sender][data[from]];
        size_t left = length - from - HEADER;
        if (!header_of(data + from, sender, &m))
            return false;
        if (!well_formed(&m, (struct text){data + from + HEADER, m.body < left ? m.body : left}, sender))
            return false;
        if (m.body >= left)
            return m.body <= LIKELY_MAX;
        from += HEADER + m.body;
    }
    return true;
}

/* A client may begin with a packet that has no type. A ReadyForQuery tells of an answer neither what it was
 * nor whose: the server is understood again from the next message on that does. Nor does it begin with
 * what comes in the midst of a login. */
static size_t postgresql_resync(const uint8_t *data, size_t length, size_t from, enum sender sender)
{
    size_t left = length - from;
    if (left < HEADER || (sender == SENDER_SERVER && strchr("KZv", data[from])))
        return length;
    if (sender == SENDER_CLIENT && data[from] == 0) {
        uint32_t code = left >= 8 ? be32(data + from + 4) : 0;
        bool known = code >> 16 == 3 || (code >= CANCEL_REQUEST && code <= GSSENC_REQUEST);
        return known && be32(data + from) <= STARTUP_MAX ? from : length;
    }
    return is_chain(data, length, from, sender) ? from : length;
}

/* What ends an answer, exactly at the end: CommandComplete or its like, ErrorResponse, CloseComplete, ReadyForQuery. A
 * ReadyForQuery without them, where they would have been in sight, follows an ErrorResponse (whose last field
 * and whose list of fields end with NUL). */
static size_t postgresql_resync_end(const uint8_t *data, size_t length)
{
    enum { READY_SIZE = HEADER + 1, SIGHT = 48 };
    for (size_t start = 0; start + HEADER <= length; start++) {
        bool completes = false;
        size_t at = start;
        struct message m;
        while (at + HEADER <= length && strchr("CEsI3Z", data[at]) &&
               header_of(data + at, SENDER_SERVER, &m) && m.body <= length - at - HEADER &&
               well_formed(&m, (struct text){data + at + HEADER, m.body}, SENDER_SERVER)) {
            completes |= m.type != '3' && m.type != 'Z';
            at += HEADER + m.body;
        }
        if (at == length && completes && data[start] != 'Z')
            return start;
    }
    if (length < SIGHT)
        return length;
    size_t ready = length - READY_SIZE;
    struct message m = {0};
    bool is_ready = data[ready] == 'Z' && header_of(data + ready, SENDER_SERVER, &m) &&
                    well_formed(&m, (struct text){data + ready + HEADER, 1}, SENDER_SERVER);
    return is_ready && data[ready - 1] == '\0' && data[ready - 2] == '\0' ? ready : length;
}

const struct protocol postgresql_protocol = {
    .name = "postgresql",
    .pairing = PAIR_IN_ORDER,
    .parse = postgresql_parse,
    .resync = postgresql_resync,
    .resync_end = postgresql_resync_end,
    .session_size = sizeof(struct session),
    .session_end = session_end,
    .batches = true,
    .finish = database_finish,
    .window_max = NAME_MAX + SQL_MAX + HEADER + 1,
};
