/* SPDX-License-Identifier: Apache-2.0 */
/* A fuzz target for parsers that read both directions: conversations, in windows as the engine gives them.
 *
 *   input   options (1 byte), seed of the pieces (2), then chunks as in tests/protocols/seeds.py: sender (1,
 *           with what became of the bytes before: enum how), length (4, big endian), bytes
 *
 * A conversation is fed twice, in chunks and in pieces of them, and requests wait for their answers as in
 * pairing.c. Beside the checks of ../core/checked.h: both tell the same; nothing ends that did not begin;
 * what is said to be needed is; places to go on from are inside; what finish() writes is well formed. The
 * cache of statements is small, so that they have to go. */
#pragma once
#include "checked.h"
#include "statements.h"

enum { WAITING_MAX = 64, EXACTS_MAX = 64, STATEMENTS_BYTES = 4096, REQUESTS_LOST = 31 };

enum options { QUERY_TEXTS = 3, FROM_START = 4, SERVER_SIDE = 8 };

enum how {
    FROM_SERVER = 1,
    AFTER_LOSS = 2, /* of what this side said before */
    ANYWAY = 4,     /* after a loss it is read even where resync() finds no start */
};

/* What steps told of one message, together. */
struct message {
    uint64_t body, shape, key, id;
    struct trace_context context;
    uint32_t hint, answers;
    int32_t status;
    uint8_t traits, transaction;
    bool failed, silent, unanswered, interim, voids;
    uint64_t exact; /* from here on compared by itself: a window that is shorter may not know it */
    uint32_t size;  /* of the attributes */
};

struct side {
    uint64_t state[STREAM_STATE_SIZE / 8];
    uint64_t skip;
    size_t kept, needed; /* bytes */
    struct message message;
    bool within, ends, lost;
    bool current; /* the message has its place in the queue: the last request, an answer to the first */
    uint64_t attributes[LIST_CAPACITY / 8];
    uint8_t bytes[WINDOW_LIMIT];
};

struct conversation {
    const struct protocol *protocol;
    struct parse_context context;
    struct side sides[2];
    uint32_t hints[WAITING_MAX]; /* of requests first..last, modulo */
    size_t first, last;
    bool responded; /* the first one's answer has begun */
    bool broken;    /* something was not seen */
    bool over;      /* it left the protocol */
    uint64_t digest, exacts[EXACTS_MAX];
    size_t told; /* since the chunk began */
};

static void add_digest(struct conversation *c, const void *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        c->digest = (c->digest ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3;
}

static void check_finish(const struct conversation *c, const struct side *s)
{
    static uint64_t list[LIST_CAPACITY / 8];
    const struct message *m = &s->message;
    struct exchange exchange = {.kind = c->context.kind, .outcome = (enum outcome)(m->body % 4),
                                .responded = s == &c->sides[SENDER_SERVER], .failed = m->failed,
                                .hint = m->hint, .status = m->status, .batch = m->hint % 3,
                                .options = c->context.options,
                                .attributes = (const uint8_t *)s->attributes, .attributes_size = m->size};
    struct finished out = {0};
    struct builder more = {.data = (uint8_t *)list, .capacity = LIST_CAPACITY};
    c->protocol->finish(&exchange, &out, &more);
    CHECK(out.name_size <= sizeof out.name);
    CHECK(utf8_without_controls((uint8_t *)out.name, out.name_size, false));
    check_list(&more);
}

/* --- the queue of requests -------------------------------------------------------------------------- */

static void forget_first(struct conversation *c)
{
    c->first++;
    c->responded = c->sides[SENDER_SERVER].current = false;
    if (c->first == c->last)
        c->sides[SENDER_CLIENT].current = false;
}

static void take_request(struct conversation *c, struct side *s, const struct step *step)
{
    if (step->begins || (!s->current && step->hint)) {
        s->current = c->last - c->first < WAITING_MAX;
        if (s->current)
            c->hints[c->last++ % WAITING_MAX] = 0;
    }
    if (s->current)
        c->hints[(c->last - 1) % WAITING_MAX] |= step->hint;
}

static void take_answer(struct conversation *c, struct side *s, const struct step *step)
{
    while (step->answers && c->first < c->last && !(c->hints[c->first % WAITING_MAX] & step->answers))
        forget_first(c);
    s->current = c->first < c->last && !c->responded;
    if (s->current && step->voids)
        forget_first(c);
    c->responded |= s->current;
}

/* --- one side --------------------------------------------------------------------------------------- */

static void end_message(struct conversation *c, struct side *s)
{
    check_finish(c, s);
    add_digest(c, &s->message, offsetof(struct message, exact));
    add_digest(c, s->attributes, s->message.size);
    if (c->told < EXACTS_MAX)
        c->exacts[c->told++] = s->message.exact;
    if (s->current && s == &c->sides[SENDER_SERVER])
        forget_first(c);
    else if (s->current && s->message.unanswered)
        c->last--;
    s->within = s->ends = s->current = false;
}

static void take_step(struct conversation *c, struct side *s, const struct step *step,
                      const struct builder *list)
{
    bool asks = s == &c->sides[SENDER_CLIENT];
    struct message *m = &s->message;
    if (step->begins && s->within) {
        s->current &= asks;
        end_message(c, s);
    }
    CHECK(step->begins || s->within || c->broken || !(step->ends || step->body));
    s->skip = step->skip;
    c->over = step->opaque || step->encrypted;
    if (step->begins) {
        memset(m, 0, sizeof *m);
        m->interim = step->interim;
        m->voids = step->voids;
        m->answers = step->answers;
        m->id = step->id;
        m->context = step->context;
        s->within = true;
    }
    if (!s->within)
        return;
    if (asks)
        take_request(c, s, step);
    else if (step->begins && !step->interim)
        take_answer(c, s, step);
    m->body += step->body;
    m->hint |= step->hint;
    m->traits |= step->traits;
    m->failed |= step->failed;
    m->silent = step->silent;
    m->unanswered = step->unanswered;
    m->shape = step->shape ? step->shape : m->shape;
    m->exact = step->shape ? step->exact : m->exact;
    m->key = step->key ? step->key : m->key;
    m->status = step->status ? step->status : m->status;
    m->transaction = step->transaction ? step->transaction : m->transaction;
    if (list->size <= sizeof s->attributes - m->size) {
        memcpy((uint8_t *)s->attributes + m->size, list->data, list->size);
        m->size += list->size;
    }
    s->ends = step->ends;
}

static void lose(struct conversation *c, enum sender sender)
{
    struct side *s = &c->sides[sender];
    memset(s, 0, offsetof(struct side, attributes));
    s->lost = c->broken = true;
    if (sender == SENDER_CLIENT)
        c->context.requests_lost = (c->context.requests_lost + 1) & REQUESTS_LOST;
    else
        c->last = c->first + c->responded;
}

/* An answer that was lost from sight goes on, if the parser can find its end. */
static void find_again(struct conversation *c, enum sender sender)
{
    struct side *s = &c->sides[sender];
    s->lost = false;
    if (sender == SENDER_SERVER && c->responded && c->protocol->resync_end)
        s->within = s->current = true;
    else if (sender == SENDER_SERVER && c->responded)
        forget_first(c);
}

static void feed(struct conversation *c, enum sender sender, const uint8_t *bytes, size_t length)
{
    static uint64_t memory[LIST_CAPACITY / 8];
    struct side *s = &c->sides[sender];
    size_t at = 0;
    if (c->over || s->lost || length == 0)
        return;
    memcpy(s->bytes + s->kept, bytes, length);
    s->kept += length;
    while (!c->over) {
        size_t passed = s->skip < s->kept - at ? (size_t)s->skip : s->kept - at;
        at += passed;
        s->skip -= s->skip == SKIP_TO_END ? 0 : passed;
        if (s->ends && s->skip == 0)
            end_message(c, s);
        size_t window = s->kept - at;
        if (window == 0)
            break;
        struct cursor in = cursor_over(guarded(s->bytes + at, window, window & 1), window);
        struct builder list = {.data = (uint8_t *)memory, .capacity = LIST_CAPACITY};
        struct step step;
        c->context.sender = sender;
        c->context.within = s->within;
        c->context.hint = c->first < c->last ? c->hints[c->first % WAITING_MAX] : 0;
        enum parse_status status = checked_parse(c->protocol, &in, &c->context, s->state, &step, &list);
        if (status == PARSE_NEED_MORE) {
            s->needed = in.need > s->needed ? in.need : s->needed;
            break;
        }
        if (status == PARSE_INVALID) {
            c->first = c->last;
            c->responded = c->sides[SENDER_CLIENT].current = c->sides[SENDER_SERVER].current = false;
            lose(c, sender);
            return;
        }
        CHECK(s->needed <= window);
        s->needed = 0;
        take_step(c, s, &step, &list);
        at += (size_t)(in.at - in.start);
    }
    memmove(s->bytes, s->bytes + at, s->kept - at);
    s->kept -= at;
}

/* --- both ------------------------------------------------------------------------------------------- */

static void begin(struct conversation *c, const struct protocol *protocol,
                  const struct parse_context *context)
{
    c->protocol = protocol;
    c->context = *context;
    c->context.session = calloc(1, protocol->session_size); /* of its own: what writes behind it is seen */
    c->context.statements = statements_new(STATEMENTS_BYTES, (uint64_t[2]){1, 2});
    for (int i = 0; i < 2; i++)
        memset(&c->sides[i], 0, offsetof(struct side, attributes));
    c->first = c->last = c->digest = c->told = 0;
    c->responded = c->over = false;
    c->broken = !context->from_start;
}

static void end(struct conversation *c)
{
    struct statement_counts counts;
    if (c->protocol->session_end)
        c->protocol->session_end(c->context.session, c->context.statements);
    free(c->context.session);
    statements_counts(c->context.statements, &counts);
    CHECK(counts.bytes <= STATEMENTS_BYTES);
    statements_free(c->context.statements);
}

static void check_alike(struct conversation *whole, struct conversation *pieces, enum sender sender)
{
    CHECK(whole->told == pieces->told && whole->over == pieces->over);
    CHECK(whole->digest == pieces->digest);
    CHECK(whole->first == pieces->first && whole->last == pieces->last);
    CHECK(whole->sides[sender].lost == pieces->sides[sender].lost);
    for (size_t i = 0; i < whole->told; i++)
        CHECK(pieces->exacts[i] == whole->exacts[i] || pieces->exacts[i] == 0);
    whole->told = pieces->told = 0;
    whole->sides[sender].needed = pieces->sides[sender].needed = 0; /* the other side may change that */
}

/* Where in a chunk a side that lost its place finds it again, or `length`. `searches`: its resync() looks
 * behind the first byte too. */
static size_t place_in(const struct protocol *protocol, const uint8_t *chunk, size_t length,
                       enum sender sender, bool searches)
{
    const uint8_t *window = guarded(chunk, length, length & 1);
    size_t start = protocol->resync(window, length, 0, sender);
    CHECK(start <= length && (searches || start == 0 || start == length));
    CHECK(start == 0 || start == length || protocol->resync(window, length, start, sender) == start);
    size_t later = protocol->resync(window, length, length / 2, sender);
    CHECK(later >= length / 2 && later <= length);
    size_t last = protocol->resync_end ? protocol->resync_end(window, length) : length;
    CHECK(last <= length);
    return start == 0 ? 0 : sender == SENDER_SERVER ? last : length;
}

static int converse(const struct protocol *protocol, uint16_t port, bool searches, const uint8_t *data,
                    size_t size)
{
    static const uint8_t address[16] = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1};
    static struct conversation whole, pieces;
    if (size < 3 || size > WINDOW_LIMIT)
        return 0;
    struct protocol_options options = {.query_text = (data[0] & 3) % QUERY_TEXTS};
    struct parse_context context = {.kind = data[0] & SERVER_SIDE ? KIND_SERVER : KIND_CLIENT,
                                    .from_start = data[0] & FROM_START, .local_address = address,
                                    .remote_address = address, .local_port = 40000, .remote_port = port,
                                    .options = &options};
    uint32_t seed = (uint32_t)(data[1] | data[2] << 8) | 1;
    begin(&whole, protocol, &context);
    begin(&pieces, protocol, &context);
    for (size_t at = 3, length; size - at > 5; at += length) {
        const uint8_t *head = data + at;
        enum sender sender = head[0] & FROM_SERVER ? SENDER_SERVER : SENDER_CLIENT;
        length = (size_t)head[1] << 24 | (size_t)head[2] << 16 | (size_t)head[3] << 8 | head[4];
        at += 5;
        length = length < size - at ? length : size - at;
        size_t unread = 0;
        if (head[0] & AFTER_LOSS) {
            lose(&whole, sender);
            lose(&pieces, sender);
        }
        if (whole.sides[sender].lost) {
            size_t place = place_in(protocol, data + at, length, sender, searches);
            unread = head[0] & ANYWAY ? 0 : place;
        }
        if (whole.sides[sender].lost && unread < length) {
            find_again(&whole, sender);
            find_again(&pieces, sender);
        }
        feed(&whole, sender, data + at + unread, length - unread);
        for (size_t fed = unread, piece; fed < length; fed += piece) {
            seed = seed * 1664525 + 1013904223;
            piece = 1 + (seed >> 16) % ((seed >> 8) % 4 ? 8 : 4096);
            piece = piece < length - fed ? piece : length - fed;
            feed(&pieces, sender, data + at + fed, piece);
        }
        check_alike(&whole, &pieces, sender);
    }
    end(&whole);
    end(&pieces);
    return 0;
}
