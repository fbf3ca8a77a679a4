/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target over the Redis parser: conversations of both sides, in windows as the engine gives them.
 *
 *   input   options, seed of the pieces (4 bytes), then chunks as in tests/protocols/seeds: sender (1),
 *           length (4, big endian), bytes
 *
 * Beside the checks of ../core/checked.h: chunks that come in pieces make the messages that whole ones make;
 * a resync is inside; a finished span's attributes are well formed. */
#include "checked.h"

extern const struct protocol redis_protocol;

static const uint8_t here[16] = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1};

enum { WAITING_MAX = 4096 };

struct side {
    uint64_t state[STREAM_STATE_SIZE / 8];
    size_t kept; /* of bytes */
    uint64_t skip;
    uint8_t bytes[WINDOW_LIMIT];
};

/* What the engine would know of a connection, and a digest of what it was told. */
struct connection {
    struct side sides[2];
    uint64_t session[128];
    uint32_t waiting[WAITING_MAX];
    size_t first, last;
    uint64_t digest;
    bool over; /* refused, or left the protocol */
};

static struct connection connections[2];
static struct protocol_options options;
static uint64_t memory[2][LIST_CAPACITY / 8];

static void digest(struct connection *c, const void *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        c->digest = (c->digest ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3;
}

static void finish(const struct step *step, const struct builder *attributes)
{
    struct exchange exchange = {.kind = KIND_CLIENT, .outcome = (enum outcome)(step->skip % 4),
                                .failed = step->failed, .batch = step->hint % 3, .options = &options,
                                .attributes = attributes->data, .attributes_size = attributes->size};
    struct finished out = {0};
    struct builder more = {.data = (uint8_t *)memory[1], .capacity = LIST_CAPACITY};
    redis_protocol.finish(&exchange, &out, &more);
    CHECK(out.name_size <= sizeof out.name && utf8_without_controls((uint8_t *)out.name, out.name_size, false));
    check_list(&more);
}

static void take(struct connection *c, enum sender sender, const struct step *step,
                 const struct builder *list)
{
    bool facts[] = {sender, step->begins, step->ends && !step->begins, step->failed, step->opaque};
    if (step->begins) {
        digest(c, facts, sizeof facts);
        digest(c, list->data, list->size);
        digest(c, &step->hint, sizeof step->hint);
        digest(c, &step->exact, sizeof step->exact);
        finish(step, list);
    }
    if (sender == SENDER_CLIENT && step->begins && !step->unanswered && c->last < WAITING_MAX)
        c->waiting[c->last++] = step->hint;
    if (sender == SENDER_SERVER && step->ends && c->first < c->last)
        c->first++;
    c->over |= step->opaque;
}

static void feed(struct connection *c, enum sender sender, bool from_start, const uint8_t *bytes,
                 size_t length)
{
    struct side *s = &c->sides[sender];
    if (s->kept + length > sizeof s->bytes)
        c->over = true;
    if (c->over)
        return;
    memcpy(s->bytes + s->kept, bytes, length);
    s->kept += length;
    size_t at = 0;
    while (at < s->kept && !c->over) {
        uint64_t passed = s->kept - at < s->skip ? s->kept - at : s->skip;
        at += passed;
        s->skip -= passed;
        if (at == s->kept)
            break;
        struct cursor in = cursor_over(guarded(s->bytes + at, s->kept - at, at & 1), s->kept - at);
        struct parse_context context = {.sender = sender, .kind = KIND_CLIENT, .from_start = from_start,
                                        .hint = c->first < c->last ? c->waiting[c->first] : 0,
                                        .session = c->session, .local_address = here, .remote_address = here,
                                        .remote_port = 6379, .options = &options};
        struct builder list = {.data = (uint8_t *)memory[0], .capacity = LIST_CAPACITY};
        struct step step;
        enum parse_status status = checked_parse(&redis_protocol, &in, &context, s->state, &step, &list);
        if (status == PARSE_NEED_MORE)
            break;
        c->over = status == PARSE_INVALID;
        if (c->over)
            break;
        take(c, sender, &step, &list);
        at += (size_t)(in.at - in.start);
        s->skip = step.skip;
    }
    memmove(s->bytes, s->bytes + at, s->kept - at);
    s->kept -= at;
}

static void clear(struct connection *c)
{
    for (int i = 0; i < 2; i++)
        memset(&c->sides[i], 0, offsetof(struct side, bytes));
    memset(c->session, 0, sizeof c->session);
    c->first = c->last = c->digest = 0;
    c->over = false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4 || size > WINDOW_LIMIT)
        return 0;
    options.query_text = data[0] % 3;
    bool from_start = data[0] & 4;
    uint32_t seed = (uint32_t)(data[2] | data[3] << 8) | 1;
    CHECK(redis_protocol.session_size <= sizeof connections[0].session);
    clear(&connections[0]);
    clear(&connections[1]);
    for (size_t at = 4; at + 5 <= size;) {
        enum sender sender = data[at] & 1 ? SENDER_SERVER : SENDER_CLIENT;
        size_t length = (size_t)data[at + 3] << 8 | data[at + 4];
        at += 5;
        length = length < size - at ? length : size - at;
        feed(&connections[0], sender, from_start, data + at, length);
        for (size_t fed = 0, piece; fed < length; fed += piece) {
            seed = seed * 1664525 + 1013904223;
            piece = 1 + (seed >> 16) % ((seed >> 8) % 4 ? 8 : 4096);
            piece = piece < length - fed ? piece : length - fed;
            feed(&connections[1], sender, from_start, data + at + fed, piece);
        }
        CHECK(connections[0].digest == connections[1].digest && connections[0].over == connections[1].over);
        const uint8_t *window = guarded(data + at, length, false);
        size_t start = redis_protocol.resync(window, length, 0, sender);
        CHECK(start == 0 || start == length);
        at += length;
    }
    return 0;
}
