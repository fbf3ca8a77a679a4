/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target over the PostgreSQL parser: both directions of a conversation, one session, windows that grow.
 *
 *   input   seed of the pieces (2 bytes), then chunks: sender (1 byte, bit 0), length (2 bytes), bytes
 *
 * Hints are given back as the engine does, to the oldest unit first. Beside the checks of ../core/checked.h: it
 * ends, a resync is inside, a step begins within nothing that it cannot end. */
#include "checked.h"
#include "statements.h"

extern const struct protocol postgresql_protocol;

enum { UNITS = 64 };

static const struct protocol_options options = {.query_text = QUERY_TEXT_PARAMETERIZED};
static const uint8_t address[16] = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1};
static uint64_t list_memory[LIST_CAPACITY / 8];

struct side {
    uint64_t state[STREAM_STATE_SIZE / 8];
    uint64_t skip;
    uint8_t kept[WINDOW_LIMIT];
    size_t length;
    bool within, ended;
};

struct units {
    uint32_t hints[UNITS];
    size_t first, last; /* first: the oldest that waits */
};

static void take(struct side *side, struct units *units, enum sender sender, const struct step *step)
{
    side->skip = step->skip;
    if (sender == SENDER_CLIENT) {
        if (step->begins)
            units->hints[units->last++ % UNITS] = 0;
        if (units->last)
            units->hints[(units->last - 1) % UNITS] |= step->hint;
    } else if (step->ends && units->first < units->last) {
        units->first++;
    }
    side->within = (side->within || step->begins) && !step->ends;
    side->ended = step->opaque || step->encrypted;
}

/* What the engine does with the bytes of one direction. */
static void feed(struct side *side, struct units *units, struct parse_context *context, const uint8_t *data,
                 size_t size)
{
    size_t passed = side->skip < size ? (size_t)side->skip : size;
    side->skip -= passed;
    data += passed;
    size -= passed;
    if (side->length + size > sizeof side->kept)
        side->ended = true;
    if (side->ended)
        return;
    memcpy(side->kept + side->length, data, size);
    side->length += size;
    while (side->length && !side->ended) {
        struct builder attributes = {.data = (uint8_t *)list_memory, .capacity = LIST_CAPACITY};
        struct step step;
        struct cursor in = cursor_over(guarded(side->kept, side->length, side->length & 1), side->length);
        context->within = side->within;
        context->hint = units->first < units->last ? units->hints[units->first % UNITS] : 0;
        enum parse_status status =
            checked_parse(&postgresql_protocol, &in, context, side->state, &step, &attributes);
        if (status == PARSE_NEED_MORE)
            return;
        size_t used = (size_t)(in.at - in.start);
        if (status == PARSE_INVALID) { /* lost: a zero state, in the middle of whatever it was */
            memset(side->state, 0, sizeof side->state);
            used = side->length;
        } else {
            take(side, units, context->sender, &step);
            size_t more = side->skip < side->length - used ? (size_t)side->skip : side->length - used;
            side->skip -= more;
            used += more;
        }
        memmove(side->kept, side->kept + used, side->length - used);
        side->length -= used;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct side sides[2];
    if (size < 2 || size > WINDOW_LIMIT)
        return 0;
    struct units units = {0};
    struct statement_cache *statements = statements_new(1 << 16, (uint64_t[2]){1, 2});
    uint64_t session[128] = {0};
    CHECK(postgresql_protocol.session_size <= sizeof session);
    struct parse_context context = {.options = &options, .local_address = address, .remote_address = address,
                                    .local_port = 40000, .remote_port = 5432, .kind = KIND_CLIENT,
                                    .statements = statements, .session = session, .from_start = data[0] & 1};
    uint32_t seed = (uint32_t)(data[0] | data[1] << 8) | 1;
    for (int i = 0; i < 2; i++) {
        sides[i].length = 0;
        sides[i].skip = 0;
        sides[i].within = sides[i].ended = false;
        memset(sides[i].state, 0, sizeof sides[i].state);
    }
    size_t at = 2;
    while (at + 3 <= size) {
        enum sender sender = data[at] & 1 ? SENDER_SERVER : SENDER_CLIENT;
        size_t length = (size_t)(data[at + 1] << 8 | data[at + 2]);
        at += 3;
        length = length < size - at ? length : size - at;
        const uint8_t *window = guarded(data + at, length, false);
        CHECK(postgresql_protocol.resync(window, length, 0, sender) <= length);
        CHECK(postgresql_protocol.resync_end(window, length) <= length);
        while (length) {
            seed = seed * 1664525 + 1013904223;
            size_t piece = 1 + (seed >> 16) % ((seed >> 8) % 2 ? 16 : 4096);
            piece = piece < length ? piece : length;
            context.sender = sender;
            feed(&sides[sender], &units, &context, data + at, piece);
            at += piece;
            length -= piece;
        }
    }
    postgresql_protocol.session_end(session, statements);
    struct statement_counts counts;
    statements_counts(statements, &counts);
    statements_free(statements);
    CHECK(counts.bytes <= 1 << 16);
    return 0;
}
