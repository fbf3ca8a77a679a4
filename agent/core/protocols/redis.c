/* SPDX-License-Identifier: Apache-2.0 */
/* RESP 2 and 3, as Redis and Valkey speak them:
 * https://redis.io/docs/latest/develop/reference/protocol-spec/
 * (what commands mean: ../redis_commands.c)
 *
 *   command   *2 CRLF  $3 CRLF GET CRLF  $1 CRLF k CRLF       or inline: GET k CRLF
 *   reply     +OK CRLF   -ERR text CRLF   :1 CRLF   $5 CRLF hello CRLF   *2 CRLF :1 CRLF :2 CRLF
 *             $-1 CRLF   *-1 CRLF
 *   RESP 3    _ CRLF   #t CRLF   ,1.5 CRLF   (12 CRLF   !5 CRLF E abc CRLF   =7 CRLF txt:abc CRLF
 *             %1 CRLF key value   ~1 CRLF element   |1 CRLF key value (before a reply)   >2 CRLF push
 *
 * Each command is a request. A step is the head of a command, or as much of a reply as has come. Of what is
 * in several replies (SUBSCRIBE: one for each channel) the first begins the answer and the last ends it.
 * Steps that begin nothing are what the server sends unasked: pushes, messages of channels, the feed of
 * MONITOR. Elements of aggregates are counted, however deep they lie: no nesting is kept.
 *
 * Which database is selected is told with the answer: only then is it known whether a SELECT before it
 * succeeded. Requests carry the number of the last SELECT before them in their hint. If an answer to one, or
 * anything that may be one, was not seen, the database is not known until the next. */
#include "../database.h"
#include "../redis_commands.h"

enum {
    PORT = 6379,
    TEXT_LINE_MAX = 512, /* of a simple string or error; the rest of a longer one is passed over */
    INLINE_MAX = 4096,   /* Redis takes 64 KiB, in this form from people */
    INLINE_WORDS = 64,   /* that are looked at */
    ARGUMENT_MAX = 256,  /* a longer one is passed over, and all that follow are not looked at */
    HEAD_MAX = 4096,     /* so are arguments that begin behind so many bytes */
    WORD_MAX = 12,       /* "punsubscribe" */
    NUMBER_MAX = 0xffff, /* of a database or of channels that a hint holds; what is not less is not known */
    SELECTS = 1 << 11,   /* numbers of SELECTs, modulo */
    ELEMENTS_MAX = INT32_MAX,
};
#define LEFT_MAX (1ULL << 48) /* elements of a reply */

enum replies { REPLIES_ALL, REPLIES_SKIP_NEXT, REPLIES_OFF }; /* CLIENT REPLY */

/* Of subscriptions: channels and patterns are counted together, shard channels apart. */
enum subscription { TO_CHANNELS, TO_PATTERNS, TO_SHARDS, SUBSCRIPTIONS };

struct session {
    uint32_t database;
    uint16_t selects;  /* how often a database was selected, if only perhaps: modulo SELECTS */
    uint16_t selected; /* when `database` was the outcome */
    uint8_t replies;   /* enum replies */
    bool begun;
    bool resp3;
    bool monitors;
    bool listens;      /* RESP 2: arrays may be messages of channels */
    bool counts;       /* subscriptions, since their first */
    uint32_t subscribed[SUBSCRIPTIONS];
};

struct request_state {
    uint32_t left; /* arguments of the command that is being read */
    bool placed;   /* nothing was missed since the connection began, or since a step that allowed for it */
    bool silent, unanswered;
};
_Static_assert(sizeof(struct request_state) <= STREAM_STATE_SIZE, "request_state");

struct reply_state {
    uint64_t left;          /* elements of the reply that is being read */
    uint32_t confirmations; /* replies still to come that belong to the answer */
    uint8_t confirms;       /* enum redis_kind that they confirm */
    bool in_line;           /* behind the first TEXT_LINE_MAX bytes of a line */
    bool answers;           /* an answer is open */
    bool aside;             /* the reply is no part of it */
    bool counts;            /* nothing was missed since subscriptions are counted */
};
_Static_assert(sizeof(struct reply_state) <= STREAM_STATE_SIZE, "reply_state");

/* --- hints ------------------------------------------------------------------------------------------ */

/* What an answer needs to know of its request. */
struct due {
    enum redis_kind kind; /* 0: nothing is due */
    uint32_t selects;     /* session.selects when it was sent, with itself */
    uint32_t value;       /* of SELECT: the database, of SUBSCRIBE: how many channels */
};

static uint32_t hint_of(struct due due)
{
    return (uint32_t)due.kind | due.selects << 5 | due.value << 16;
}

static struct due due_of(uint32_t hint)
{
    return (struct due){(enum redis_kind)(hint & 31), hint >> 5 & (SELECTS - 1), hint >> 16};
}

/* --- lines ------------------------------------------------------------------------------------------ */

static void crlf(struct cursor *in)
{
    uint8_t cr = cursor_u8(in);
    if (in->status == PARSE_OK && cr != '\r')
        cursor_fail(in, PARSE_INVALID);
    uint8_t lf = cursor_u8(in);
    if (in->status == PARSE_OK && lf != '\n')
        cursor_fail(in, PARSE_INVALID);
}

/* What is behind `at` is another step's, which will find out what is wrong with it. */
static void step_back(struct cursor *in, const uint8_t *at)
{
    in->status = PARSE_OK;
    in->at = at;
    in->need = 0;
}

/* Digits CRLF, at most `max`; -1: the null of RESP 2. */
static int64_t count_line(struct cursor *in, int64_t max)
{
    int64_t n = 0;
    bool null = cursor_peek(in) == '-';
    if (null)
        cursor_u8(in);
    int c = cursor_peek(in);
    if (c >= 0 && (c < '0' || c > '9'))
        cursor_fail(in, PARSE_INVALID);
    for (; c >= '0' && c <= '9' && in->status == PARSE_OK; c = cursor_peek(in)) {
        n = n * 10 + (cursor_u8(in) - '0');
        if (n > max || (null && n != 1))
            cursor_fail(in, PARSE_INVALID);
    }
    crlf(in);
    return null ? -1 : n;
}

/* Up to CRLF, or the first TEXT_LINE_MAX bytes: then *goes_on. */
static struct text short_line(struct cursor *in, bool *goes_on)
{
    size_t left = cursor_left(in), scan = left < TEXT_LINE_MAX ? left : TEXT_LINE_MAX;
    const uint8_t *lf = in->status == PARSE_OK ? memchr(in->at, '\n', scan) : NULL;
    *goes_on = in->status == PARSE_OK && lf == NULL && left >= TEXT_LINE_MAX;
    if (lf == NULL) {
        struct slice part = cursor_bytes(in, *goes_on ? TEXT_LINE_MAX : left + 1);
        return (struct text){slice_bytes(in, part), part.length};
    }
    struct slice line = cursor_bytes(in, (size_t)(lf - in->at) + 1);
    if (line.length < 2 || lf[-1] != '\r')
        cursor_fail(in, PARSE_INVALID);
    return (struct text){slice_bytes(in, line), in->status == PARSE_OK ? line.length - 2 : 0};
}

/* A line of these characters alone: a number, a bool, a null. */
static void plain_line(struct cursor *in, const char *characters)
{
    for (int c = cursor_peek(in), n = 0; c >= 0 && c != '\r'; c = cursor_peek(in), n++) {
        if (n == TEXT_LINE_MAX || strchr(characters, c) == NULL || c == 0)
            cursor_fail(in, PARSE_INVALID);
        cursor_u8(in);
    }
    crlf(in);
}

/* The bytes of a bulk string and CRLF, if all are here; else they are to be passed over. What passes unseen
 * cannot be checked, so none of it is: the type of what follows tells. */
static uint64_t bulk(struct cursor *in, uint64_t length)
{
    if (in->status != PARSE_OK || cursor_left(in) < length + 2)
        return length + 2;
    cursor_bytes(in, length + 2);
    return 0;
}

/* --- requests --------------------------------------------------------------------------------------- */

/* $length CRLF; a request has no nulls. */
static uint64_t argument_length(struct cursor *in)
{
    if (cursor_u8(in) != '$')
        cursor_fail(in, PARSE_INVALID);
    int64_t length = count_line(in, ELEMENTS_MAX);
    if (length < 0)
        cursor_fail(in, PARSE_INVALID);
    return (uint64_t)length;
}

static struct text argument(struct cursor *in, uint64_t length)
{
    struct slice bytes = cursor_bytes(in, length);
    crlf(in);
    return (struct text){slice_bytes(in, bytes), bytes.length};
}

/* Whether the server will answer, by CLIENT REPLY; changes that. */
static bool is_answered(const struct redis_request *r, struct session *session)
{
    bool answered = session->replies == REPLIES_ALL;
    if (session->replies == REPLIES_SKIP_NEXT)
        session->replies = REPLIES_ALL;
    bool sets = r->kind == REDIS_CLIENT && text_is(r->first, "reply");
    if (r->kind == REDIS_RESET || (sets && text_is(r->second, "on"))) {
        session->replies = REPLIES_ALL;
        return true;
    }
    if (sets && text_is(r->second, "off"))
        session->replies = REPLIES_OFF;
    else if (sets && text_is(r->second, "skip") && session->replies != REPLIES_OFF)
        session->replies = REPLIES_SKIP_NEXT;
    else
        return answered && !(r->kind == REDIS_REPLCONF && text_is(r->first, "ack"));
    return false;
}

/* A number of a database; NUMBER_MAX: none that is kept. */
static uint32_t database_number(struct text t)
{
    uint32_t n = 0;
    for (size_t i = 0; i < t.length; i++) {
        if (t.bytes[i] < '0' || t.bytes[i] > '9' || n >= NUMBER_MAX / 10)
            return NUMBER_MAX;
        n = n * 10 + (t.bytes[i] - '0');
    }
    return t.length ? n : NUMBER_MAX;
}

static void next_select(struct session *session)
{
    session->selects = (session->selects + 1) & (SELECTS - 1);
}

/* The head of a command was read. */
static void asked(struct redis_request *r, const struct parse_context *context, struct request_state *state,
                  struct step *step, struct builder *attributes)
{
    struct session *session = context->session;
    struct due due = {.kind = r->kind};
    if (!state->placed && (session->begun || !context->from_start))
        next_select(session);
    state->placed = session->begun = true;
    if (r->kind == REDIS_SELECT || r->kind == REDIS_RESET) {
        next_select(session);
        due.value = r->kind == REDIS_SELECT ? database_number(r->first) : 0;
    } else if (r->kind == REDIS_SUBSCRIBE || r->kind == REDIS_UNSUBSCRIBE) {
        due.value = r->count - 1 < NUMBER_MAX ? r->count - 1 : NUMBER_MAX;
    }
    due.selects = session->selects;
    step->begins = true;
    step->unanswered = state->unanswered = !is_answered(r, session);
    step->silent = state->silent = r->kind == REDIS_REPLCONF && step->unanswered;
    step->hint = hint_of(due);
    database_attributes(TEXT("redis"), TEXT(""), PORT, context, attributes);
    redis_told(r, step, attributes);
}

/* Takes a word off the line, without quotes around all of it. Between quotes spaces are part of a word. */
static bool next_word(struct text *line, struct text *word)
{
    *line = text_trimmed(*line);
    const uint8_t *bytes = line->bytes;
    size_t at = 0;
    uint8_t quote = 0;
    for (; at < line->length && (quote || !text_is_space(bytes[at])); at++) {
        if (bytes[at] == '\\' && quote == '"' && at + 1 < line->length)
            at++;
        else if (bytes[at] == quote)
            quote = 0;
        else if (quote == 0 && (bytes[at] == '"' || bytes[at] == '\''))
            quote = bytes[at];
    }
    bool quoted = at > 1 && (bytes[0] == '"' || bytes[0] == '\'') && bytes[at - 1] == bytes[0];
    *word = (struct text){bytes + quoted, at - 2 * quoted};
    *line = (struct text){bytes + at, line->length - at};
    return at > 0;
}

/* A command is a line of words, as people type it. Empty lines are no command. */
static enum parse_status inline_command(struct cursor *in, const struct parse_context *context,
                                        struct request_state *state, struct step *step,
                                        struct builder *attributes)
{
    int first = cursor_peek(in);
    if (!(first >= 'a' && first <= 'z') && !(first >= 'A' && first <= 'Z') && !text_is_space((uint8_t)first))
        return PARSE_INVALID;
    struct slice slice = cursor_line(in, INLINE_MAX);
    if (in->status != PARSE_OK)
        return in->status;
    struct text line = {slice_bytes(in, slice), slice.length}, words[INLINE_WORDS], word;
    uint32_t count = 0;
    for (; next_word(&line, &word); count++)
        if (count < INLINE_WORDS)
            words[count] = word;
    if (count == 0)
        return PARSE_OK;
    struct redis_request r;
    redis_request(&r, count, context->options);
    while (r.read < count && r.read < INLINE_WORDS)
        redis_argument(&r, words[r.read]);
    if (r.read < count)
        redis_unread(&r);
    asked(&r, context, state, step, attributes);
    step->ends = true;
    return PARSE_OK;
}

static enum parse_status command(struct cursor *in, const struct parse_context *context,
                                 struct request_state *state, struct step *step, struct builder *attributes)
{
    cursor_u8(in);
    int64_t count = count_line(in, ELEMENTS_MAX);
    if (in->status != PARSE_OK || count <= 0) /* Redis passes over an empty one without an answer */
        return in->status;
    struct redis_request r;
    bool passed = false;
    redis_request(&r, (uint32_t)count, context->options);
    while (!passed && r.read < r.count && (size_t)(in->at - in->start) < HEAD_MAX) {
        uint64_t length = argument_length(in);
        if (in->status == PARSE_OK && length > ARGUMENT_MAX) {
            if (r.read == 0)
                return PARSE_INVALID;
            passed = true;
            step->skip = length + 2;
            continue;
        }
        struct text value = argument(in, length);
        if (in->status != PARSE_OK)
            return in->status;
        redis_argument(&r, value);
    }
    state->left = r.count - r.read - passed;
    if (r.read < r.count)
        redis_unread(&r);
    asked(&r, context, state, step, attributes);
    step->ends = state->left == 0;
    step->whole = !step->ends;
    return PARSE_OK;
}

/* Arguments that nobody looks at. */
static enum parse_status more_arguments(struct cursor *in, struct request_state *state, struct step *step)
{
    uint32_t left = state->left;
    while (left && step->skip == 0) {
        const uint8_t *start = in->at;
        uint64_t skip = bulk(in, argument_length(in));
        if (in->status != PARSE_OK && left < state->left) {
            step_back(in, start);
            break;
        }
        if (in->status != PARSE_OK)
            return in->status;
        step->skip = skip;
        left--;
    }
    state->left = left;
    step->silent = state->silent;
    step->unanswered = state->unanswered;
    step->ends = left == 0;
    step->whole = left > 0;
    return PARSE_OK;
}

static enum parse_status request(struct cursor *in, const struct parse_context *context,
                                 struct request_state *state, struct step *step, struct builder *attributes)
{
    if (state->left)
        return more_arguments(in, state, step);
    return cursor_peek(in) == '*' ? command(in, context, state, step, attributes)
                                  : inline_command(in, context, state, step, attributes);
}

/* --- elements of replies ---------------------------------------------------------------------------- */

/* What a reply, or an element of one, begins with. */
struct head {
    uint8_t type;
    bool goes_on;       /* its line does */
    bool bulk;          /* `length` bytes and CRLF follow */
    uint64_t length;
    uint64_t elements;  /* that follow */
    struct text line;   /* of a simple string or error */
};

static struct head head_of(struct cursor *in)
{
    struct head head = {.type = cursor_u8(in)};
    int64_t n = 0;
    if (in->status != PARSE_OK)
        return head;
    switch (head.type) {
    case '+':
    case '-':
        head.line = short_line(in, &head.goes_on);
        break;
    case ':':
    case '(':
        plain_line(in, "0123456789-+");
        break;
    case ',':
        plain_line(in, "0123456789-+.eEinfaN");
        break;
    case '#':
        plain_line(in, "tf");
        break;
    case '_':
        crlf(in);
        break;
    case '$':
    case '=':
    case '!':
        n = count_line(in, ELEMENTS_MAX);
        head.bulk = n >= 0;
        head.length = (uint64_t)n;
        break;
    case '*':
    case '~':
    case '>':
        n = count_line(in, ELEMENTS_MAX);
        head.elements = n > 0 ? (uint64_t)n : 0;
        break;
    case '%':
    case '|':
        n = count_line(in, ELEMENTS_MAX);
        head.elements = n > 0 ? 2 * (uint64_t)n : 0;
        break;
    default:
        cursor_fail(in, PARSE_INVALID);
    }
    if (n < 0 && head.type != '$' && head.type != '*')
        cursor_fail(in, PARSE_INVALID);
    return head;
}

/* As many elements as are here. False: the cursor failed on the first of them. */
static bool elements(struct cursor *in, struct reply_state *state, struct step *step, bool any_read)
{
    while (state->left && !state->in_line && step->skip == 0) {
        const uint8_t *start = in->at;
        struct head head = head_of(in);
        uint64_t skip = head.bulk ? bulk(in, head.length) : 0;
        uint64_t left = state->left - (head.type != '|') + head.elements;
        if (in->status == PARSE_OK && (left > LEFT_MAX || head.type == '>'))
            cursor_fail(in, PARSE_INVALID);
        if (in->status != PARSE_OK && any_read) {
            step_back(in, start);
            return true;
        }
        if (in->status != PARSE_OK)
            return false;
        step->skip = skip;
        state->left = left;
        state->in_line = head.goes_on;
        any_read = true;
    }
    return true;
}

/* --- answers ---------------------------------------------------------------------------------------- */

/* What this step read of the reply is all that is here of it. */
static void read_so_far(struct reply_state *state, struct step *step)
{
    bool complete = state->left == 0 && !state->in_line;
    step->whole = !complete;
    if (!complete)
        return;
    if (!state->aside && state->answers && state->confirmations == 0) {
        step->ends = true;
        state->answers = false;
    }
    state->aside = false;
}

/* Letters and digits in capitals at the beginning of an error: its code. The texts of scripts have none. */
static struct text error_code(struct text line)
{
    struct text rest, code = text_before(line, ' ', &rest);
    for (size_t i = 0; i < code.length; i++) {
        uint8_t c = code.bytes[i];
        if (!(c >= 'A' && c <= 'Z') && (i == 0 || !((c >= '0' && c <= '9') || c == '_')))
            return TEXT("");
    }
    return code.length <= DATABASE_CODE_MAX ? code : TEXT("");
}

static void failed(struct text line, struct step *step, struct builder *attributes)
{
    struct text code = error_code(line);
    step->failed = true;
    if (code.length)
        database_status(code, true, attributes);
    else
        builder_text(attributes, KEY_ERROR_TYPE, "_OTHER", 6, 6);
}

/* Which database the answer comes from, after what it says of a SELECT. */
static void told_database(struct due due, struct text said, bool error, struct session *session,
                          struct builder *attributes)
{
    if (due.kind == REDIS_SELECT || due.kind == REDIS_RESET) {
        bool before = ((session->selected + 1) & (SELECTS - 1)) == due.selects;
        const char *success = due.kind == REDIS_SELECT ? "ok" : "reset";
        bool carried_out = text_is(said, success) && due.value != NUMBER_MAX;
        if (carried_out)
            session->database = due.value;
        if (carried_out || (error && before))
            session->selected = (uint16_t)due.selects;
    }
    if (due.kind == 0 || session->selected != due.selects)
        return;
    char digits[10];
    size_t size = sizeof digits;
    uint32_t n = session->database;
    do
        digits[--size] = (char)('0' + n % 10);
    while ((n /= 10) != 0);
    builder_text(attributes, KEY_DB_NAMESPACE, digits + size, sizeof digits - size, sizeof digits);
}

/* What a reply changes for those that follow. */
static void take_effect(struct due due, const struct head *head, struct session *session, struct step *step)
{
    bool error = head->type == '-' || head->type == '!', ok = text_is(head->line, "ok");
    if (due.kind == REDIS_HELLO && !error)
        session->resp3 = head->type == '%';
    if (due.kind == REDIS_MONITOR && ok)
        session->monitors = true;
    if (due.kind == REDIS_RESET && text_is(head->line, "reset")) {
        session->resp3 = session->monitors = session->listens = false;
        memset(session->subscribed, 0, sizeof session->subscribed);
    }
    if (due.kind == REDIS_PLAIN && !error)
        session->listens = false; /* no such command is carried out while it does */
    if (text_is(head->line, "queued") || (due.kind == REDIS_MULTI && ok))
        step->transaction = TRANSACTION_OPEN;
    else if (due.kind == REDIS_EXEC || due.kind == REDIS_RESET)
        step->transaction = TRANSACTION_NONE;
}

/* The words that messages of channels, and what confirms subscriptions, begin with. */
struct pushed {
    bool message;
    enum redis_kind confirms; /* 0: nothing */
    enum subscription to;
};

static struct pushed pushed_of(struct text word)
{
    static const struct {
        const char *word;
        struct pushed pushed;
    } words[] = {
        {"message", {true, 0, TO_CHANNELS}},
        {"pmessage", {true, 0, TO_PATTERNS}},
        {"smessage", {true, 0, TO_SHARDS}},
        {"subscribe", {false, REDIS_SUBSCRIBE, TO_CHANNELS}},
        {"psubscribe", {false, REDIS_SUBSCRIBE, TO_PATTERNS}},
        {"ssubscribe", {false, REDIS_SUBSCRIBE, TO_SHARDS}},
        {"unsubscribe", {false, REDIS_UNSUBSCRIBE, TO_CHANNELS}},
        {"punsubscribe", {false, REDIS_UNSUBSCRIBE, TO_PATTERNS}},
        {"sunsubscribe", {false, REDIS_UNSUBSCRIBE, TO_SHARDS}},
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (text_is(word, words[i].word))
            return words[i].pushed;
    return (struct pushed){0};
}

/* The first element, if it is a word; else nothing is read. */
static struct text first_word(struct cursor *in)
{
    const uint8_t *start = in->at;
    int type = cursor_peek(in);
    if (type < 0)
        cursor_u8(in);
    if (type != '$')
        return TEXT("");
    cursor_u8(in);
    int64_t length = count_line(in, ELEMENTS_MAX);
    if (in->status == PARSE_OK && length > 0 && length <= WORD_MAX)
        return argument(in, (uint64_t)length);
    if (in->status == PARSE_OK)
        in->at = start;
    return TEXT("");
}

/* The channel, and how many subscriptions there are now. -1: of a channel longer than ARGUMENT_MAX nothing
 * is read. */
static int64_t subscriptions(struct cursor *in)
{
    const uint8_t *start = in->at;
    struct head channel = head_of(in);
    if (in->status == PARSE_OK && channel.bulk && channel.length > ARGUMENT_MAX) {
        in->at = start;
        return -1;
    }
    if (channel.bulk)
        argument(in, channel.length);
    else if (in->status == PARSE_OK && channel.type != '$' && channel.type != '_')
        cursor_fail(in, PARSE_INVALID);
    uint8_t type = cursor_u8(in);
    if (in->status == PARSE_OK && type != ':')
        cursor_fail(in, PARSE_INVALID);
    return count_line(in, UINT32_MAX);
}

/* Counts what was confirmed. */
static void count_subscriptions(struct pushed pushed, int64_t now, bool from_start, struct session *session,
                                struct reply_state *state)
{
    uint32_t *count = session->subscribed, total = (uint32_t)now;
    if (!session->counts)
        state->counts = from_start;
    session->counts = true;
    if (now < 0) {
        state->counts = false;
        return;
    }
    uint32_t others = 0; /* that are counted together with these */
    if (pushed.to != TO_SHARDS)
        others = count[pushed.to == TO_CHANNELS ? TO_PATTERNS : TO_CHANNELS];
    count[pushed.to] = total > others ? total - others : 0;
    session->listens = total > 0 || count[TO_CHANNELS] + count[TO_PATTERNS] + count[TO_SHARDS] > 0;
}

/* A push of RESP 3, or an array that may be the same in RESP 2. Its first word tells, and whether that is
 * due. */
static enum parse_status push(struct cursor *in, const struct parse_context *context, struct due due,
                              const struct head *head, struct reply_state *state, struct step *step,
                              struct builder *attributes, bool *is_reply)
{
    struct session *session = context->session;
    struct text word = first_word(in);
    if (in->status != PARSE_OK)
        return in->status;
    struct pushed pushed = pushed_of(word);
    state->left = head->elements - (word.length > 0);
    if (head->type == '*' && !pushed.message && !pushed.confirms) {
        *is_reply = true;
        return PARSE_OK;
    }
    int64_t now = 0;
    uint32_t before = session->subscribed[pushed.to];
    if (pushed.confirms && state->left == 2) {
        now = subscriptions(in);
        if (in->status != PARSE_OK)
            return in->status;
        state->left = now < 0 ? 2 : 0;
    }
    session->resp3 |= head->type == '>';
    session->listens |= pushed.message;
    enum redis_kind awaited = state->answers ? (enum redis_kind)state->confirms : due.kind;
    state->aside = pushed.confirms == 0 || pushed.confirms != awaited;
    if (!state->aside && !state->answers) {
        uint32_t all = state->counts && before ? before : 1; /* an UNSUBSCRIBE without channels is from all */
        step->begins = state->answers = true;
        state->confirms = (uint8_t)pushed.confirms;
        state->confirmations = due.value ? due.value : all;
        told_database(due, TEXT(""), false, session, attributes);
    }
    if (!state->aside)
        state->confirmations--;
    if (pushed.confirms)
        count_subscriptions(pushed, now, context->from_start, session, state);
    return PARSE_OK;
}

/* May an array be something that was not asked for? What only wants to listen gets no other arrays. */
static bool may_be_pushed(struct due due, const struct session *session, const struct reply_state *state)
{
    bool lists = due.kind == REDIS_PLAIN || due.kind == REDIS_EXEC || due.kind == REDIS_HELLO ||
                 due.kind == REDIS_CLIENT || due.kind == REDIS_REPLCONF;
    return state->answers || (!session->resp3 && (session->listens || !lists));
}

/* Time [database address] "command" ...: what MONITOR feeds. */
static bool is_feed(const struct head *head, struct due due, const struct session *session)
{
    struct text t = head->line;
    bool digit = head->type == '+' && t.length > 0 && t.bytes[0] >= '0' && t.bytes[0] <= '9';
    return digit && (session->monitors || due.kind == 0);
}

/* The replication stream follows its answer, which has a form of its own. */
static enum parse_status replication(struct cursor *in, struct step *step)
{
    bool goes_on, keeps_alive = cursor_peek(in) == '\n'; /* what a server sends that is not ready */
    if (keeps_alive) {
        cursor_u8(in);
        return PARSE_OK;
    }
    short_line(in, &goes_on);
    step->begins = step->ends = step->opaque = in->status == PARSE_OK;
    return in->status;
}

/* An answer to what is due, its head was read. */
static enum parse_status answer(struct cursor *in, const struct parse_context *context, struct due due,
                                struct head *head, struct reply_state *state, struct step *step,
                                struct builder *attributes)
{
    struct session *session = context->session;
    bool error = head->type == '-' || head->type == '!';
    struct text line = head->line;
    if (head->type == '!') {
        struct slice bytes = cursor_bytes(in, head->length < TEXT_LINE_MAX ? head->length : TEXT_LINE_MAX);
        line = (struct text){slice_bytes(in, bytes), bytes.length};
        head->length -= bytes.length;
        if (in->status != PARSE_OK)
            return in->status;
    }
    if (state->answers) /* confirmations are due, and this is none */
        return PARSE_INVALID;
    step->begins = state->answers = true;
    if (error)
        failed(line, step, attributes);
    told_database(due, line, error, session, attributes);
    take_effect(due, head, session, step);
    return PARSE_OK;
}

static enum parse_status reply(struct cursor *in, const struct parse_context *context,
                               struct reply_state *state, struct step *step, struct builder *attributes)
{
    struct session *session = context->session;
    struct due due = due_of(context->hint);
    int type = cursor_peek(in);
    if (due.kind == REDIS_REPLICATE && type != '-' && !state->answers)
        return replication(in, step);
    struct head head = head_of(in);
    bool is_reply = true;
    bool looks = head.type == '>' || (head.type == '*' && (head.elements == 3 || head.elements == 4) &&
                                      may_be_pushed(due, session, state));
    if (in->status != PARSE_OK)
        return in->status;
    state->left = head.elements;
    state->in_line = head.goes_on;
    enum parse_status status = PARSE_OK;
    if (looks && head.elements) {
        is_reply = false;
        status = push(in, context, due, &head, state, step, attributes, &is_reply);
    } else if (head.type == '|' || head.type == '>' || is_feed(&head, due, session)) {
        state->aside = true;
        is_reply = false;
    }
    if (status == PARSE_OK && is_reply)
        status = answer(in, context, due, &head, state, step, attributes);
    if (status != PARSE_OK)
        return status;
    if (head.bulk)
        step->skip = bulk(in, head.length);
    else
        elements(in, state, step, true);
    return in->status;
}

/* The rest of a line of which the first bytes were enough. */
static void rest_of_line(struct cursor *in, struct reply_state *state)
{
    const uint8_t *lf = memchr(in->at, '\n', cursor_left(in));
    cursor_bytes(in, lf ? (size_t)(lf - in->at) + 1 : cursor_left(in));
    state->in_line = lf == NULL;
}

static enum parse_status replies(struct cursor *in, const struct parse_context *context,
                                 struct reply_state *state, struct step *step, struct builder *attributes)
{
    enum parse_status status = PARSE_OK;
    if (state->in_line)
        rest_of_line(in, state);
    else if (state->left)
        status = elements(in, state, step, false) ? PARSE_OK : in->status;
    else
        status = reply(in, context, state, step, attributes);
    if (status == PARSE_OK && !step->opaque)
        read_so_far(state, step);
    return status;
}

static enum parse_status redis_parse(struct cursor *in, const struct parse_context *context, void *state,
                                     struct step *step, struct builder *attributes)
{
    /* on copies, for PARSE_NEED_MORE must leave no trace */
    union {
        struct request_state request;
        struct reply_state reply;
    } now;
    struct session *session = context->session, next = *session;
    struct parse_context with = *context;
    with.session = &next;
    memcpy(&now, state, sizeof now);
    enum parse_status status = context->sender == SENDER_CLIENT
                                   ? request(in, &with, &now.request, step, attributes)
                                   : replies(in, &with, &now.reply, step, attributes);
    if (status == PARSE_OK) {
        memcpy(state, &now, sizeof now);
        *session = next;
    }
    return status;
}

/* --- finding a start again -------------------------------------------------------------------------- */

/* Commands from the beginning of the window to its end, the first of them one that is known: lists of words
 * look alike. So does what confirms a subscription, but for its last element. */
static bool are_commands(struct cursor in)
{
    for (bool first = true; in.at < in.end && in.status == PARSE_OK; first = false) {
        if (cursor_u8(&in) != '*')
            return false;
        int64_t count = count_line(&in, ELEMENTS_MAX);
        bool confirms = false;
        if (in.status == PARSE_OK && count < 1)
            return false;
        for (int64_t i = 0; i < count && in.status == PARSE_OK; i++) {
            uint64_t length = argument_length(&in), there = cursor_left(&in);
            if (in.status != PARSE_OK)
                break;
            struct text part = {in.at, length < there ? length : there};
            if (i == 0 && (length == 0 || !redis_is_name(part, part.length == length, first)))
                return false;
            if (i == 0)
                confirms = first && count == 3 && (part.length < length || pushed_of(part).confirms);
            argument(&in, length);
            confirms = confirms && i < 2;
        }
        if (confirms)
            return false;
    }
    return in.status != PARSE_INVALID;
}

/* Replies in the same way. A line of text that begins like one is not enough. */
static bool are_replies(struct cursor in)
{
    while (in.at < in.end && in.status == PARSE_OK) {
        struct reply_state state = {0};
        struct step step = {0};
        uint8_t second = cursor_left(&in) > 1 ? in.at[1] : 'A';
        bool capital = second >= 'A' && second <= 'Z';
        bool letter = capital || (second >= 'a' && second <= 'z') || (second >= '0' && second <= '9');
        if ((*in.at == '-' && !capital) || (*in.at == '+' && !letter))
            return false;
        struct head head = head_of(&in);
        if (in.status != PARSE_OK || head.goes_on)
            break;
        if (head.bulk)
            argument(&in, head.length);
        for (state.left = head.elements; state.left && step.skip == 0 && !state.in_line;)
            if (!elements(&in, &state, &step, false))
                break;
        if (step.skip || state.in_line)
            break;
    }
    return in.status != PARSE_INVALID;
}

/* Only at `from`, which is the beginning of a call: in the middle of one anything may be the text of a
 * value. */
static size_t redis_resync(const uint8_t *data, size_t length, size_t from, enum sender sender)
{
    struct cursor in = cursor_over(data + from, length - from);
    if (from >= length)
        return length;
    bool fits = sender == SENDER_CLIENT ? are_commands(in) : are_replies(in) && !are_commands(in);
    return fits ? from : length;
}

const struct protocol redis_protocol = {
    .name = "redis",
    .pairing = PAIR_IN_ORDER,
    .parse = redis_parse,
    .resync = redis_resync,
    .session_size = sizeof(struct session),
    .batches = true,
    .finish = database_finish,
    .window_max = HEAD_MAX + ARGUMENT_MAX + 64,
};
