/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target over the MySQL parser: both directions of a connection and the session that they share.
 *
 *   input   flags, then what is said in turn: sender and length (2 bytes), bytes
 *
 * Requests wait in a queue, whose first hint the parser gets back with an answer, as the engine does it. Beside
 * the checks of ../core/checked.h: it ends; no answer ends that did not begin, unless its beginning was lost; what
 * resync() and resync_end() find is inside. */
#include "checked.h"
#include "statements.h"

extern const struct protocol mysql_protocol;

enum { QUEUE = 64, SAID_MAX = 1 << 15 };

static const struct protocol_options options = {.query_text = QUERY_TEXT_PARAMETERIZED};
static const uint8_t address[16] = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1};
static uint64_t list_memory[LIST_CAPACITY / 8];

struct stream {
    uint64_t state[STREAM_STATE_SIZE / 8];
    uint8_t said[SAID_MAX]; /* and not read yet */
    size_t length;
    uint64_t skip;
    bool lost;
};

struct conversation {
    struct parse_context context;
    struct stream streams[2];
    uint32_t hints[QUEUE];
    unsigned waiting;
    bool opaque;
};

static void take(struct conversation *c, const struct step *step)
{
    c->opaque = step->opaque || step->encrypted;
    if (c->context.sender == SENDER_CLIENT && step->begins && !step->unanswered && c->waiting < QUEUE)
        c->hints[c->waiting++] = step->hint;
    else if (c->context.sender == SENDER_CLIENT && step->hint && c->waiting)
        c->hints[c->waiting - 1] |= step->hint;
    if (c->context.sender == SENDER_SERVER && step->ends && c->waiting)
        memmove(c->hints, c->hints + 1, --c->waiting * sizeof c->hints[0]);
}

/* Passes over what is skipped, then reads as many steps as there are; what is no protocol is lost. */
static void read_steps(struct conversation *c, struct stream *s)
{
    while (!c->opaque) {
        size_t passed = s->skip < s->length ? (size_t)s->skip : s->length;
        struct step step;
        struct builder attributes = {.data = (uint8_t *)list_memory, .capacity = LIST_CAPACITY};
        memmove(s->said, s->said + passed, s->length - passed);
        s->length -= passed;
        s->skip -= passed;
        if (s->length == 0)
            return;
        const uint8_t *window = guarded(s->said, s->length, s->length & 1);
        struct cursor in = cursor_over(window, s->length);
        c->context.hint = c->waiting ? c->hints[0] : 0;
        enum parse_status status = checked_parse(&mysql_protocol, &in, &c->context, s->state, &step, &attributes);
        if (status == PARSE_NEED_MORE)
            return;
        if (status == PARSE_INVALID) {
            memset(s->state, 0, sizeof s->state);
            s->length = c->waiting = 0;
            s->lost = true;
            return;
        }
        size_t consumed = (size_t)(in.at - in.start);
        take(c, &step);
        s->skip = step.skip;
        memmove(s->said, s->said + consumed, s->length - consumed);
        s->length -= consumed;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct conversation c;
    static uint64_t session[128];
    if (size < 1)
        return 0;
    struct statement_cache *statements = statements_new(1 << 16, (uint64_t[2]){1, 2});
    memset(&c, 0, sizeof c);
    memset(session, 0, sizeof session);
    CHECK(mysql_protocol.session_size <= sizeof session);
    c.context = (struct parse_context){
        .kind = data[0] & 1 ? KIND_SERVER : KIND_CLIENT, .from_start = data[0] & 2, .session = session,
        .statements = statements, .local_address = address, .remote_address = address, .remote_port = 3306,
        .options = &options,
    };
    for (data++, size--; size >= 2 && !c.opaque;) {
        struct stream *s = &c.streams[data[1] >> 7];
        bool lose = data[1] >> 6 & 1;
        size_t n = (size_t)(data[0] | (data[1] & 63) << 8);
        c.context.sender = data[1] >> 7 ? SENDER_SERVER : SENDER_CLIENT;
        data += 2, size -= 2;
        n = n < size ? n : size;
        n = n < SAID_MAX - s->length ? n : SAID_MAX - s->length;
        if (lose) {
            memset(s->state, 0, sizeof s->state);
            s->length = 0;
            s->skip = 0;
            s->lost = true;
            c.context.requests_lost += c.context.sender == SENDER_CLIENT;
        } else if (!s->lost || mysql_protocol.resync(data, n, 0, c.context.sender) == 0) {
            s->lost = false;
            memcpy(s->said + s->length, data, n);
            s->length += n;
            read_steps(&c, s);
        }
        if (n) {
            const uint8_t *window = guarded(data, n, false);
            CHECK(mysql_protocol.resync(window, n, n / 2, c.context.sender) <= n);
            CHECK(mysql_protocol.resync_end(window, n) <= n);
        }
        data += n, size -= n;
    }
    mysql_protocol.session_end(session, statements);
    statements_free(statements);
    return 0;
}
