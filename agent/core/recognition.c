/* SPDX-License-Identifier: Apache-2.0 */
/* Which protocol is it, who asks, and does a message begin here? See recognition.h. */
#include "recognition.h"
#include "demand.h"
#include "messages.h"
#include "../../bpf/classify.h"

/* What these bytes, with those that are kept, begin. A stream of which nothing was understood yet has its
 * place only at its own beginning. */
static enum verdict begins_as(const struct feed *f, const uint8_t *bytes, size_t n, uint8_t *id)
{
    const struct connection *c = f->c;
    uint8_t start[CLASSIFY_BYTES] = {0};
    uint32_t known = n < sizeof(start) ? (uint32_t)n : sizeof(start);
    memcpy(start, bytes, known);
    uint32_t size = kept_length(f->s) + f->event->size;
    bool first = f->s->sync != SYNC_LOST && c->streams[!f->direction].seen == 0;
    bool opens = first && c->kind && is_request(f);
    struct classified found = {.protocol = PROTOCOL_UNDECIDED};
    enum verdict verdict = classify(start, known, size, opens, &found);
    *id = found.protocol;
    return verdict;
}

/* Decides the protocol, and which direction carries requests, from the first bytes of a message. */
static bool decide(struct feed *f, const uint8_t *bytes, size_t n)
{
    struct connection *c = f->c;
    uint8_t id;
    enum verdict verdict = begins_as(f, bytes, n, &id);
    if (verdict < VERDICT_YES || id >= PROTOCOL_COUNT || protocols[id] == NULL)
        return false;
    if (c->kind == 0) {
        bool asks = protocols[id]->resync(bytes, n, 0, SENDER_CLIENT) == 0;
        bool answers = protocols[id]->resync(bytes, n, 0, SENDER_SERVER) == 0;
        if (asks == answers)
            return false;
        c->kind = asks == (f->direction == DIRECTION_IN) ? KIND_SERVER : KIND_CLIENT;
    }
    if (protocol_of(c) == NULL) {
        c->protocol_id = id;
        c->guessed = verdict == VERDICT_GUESS;
        if (f->event->header.protocol == PROTOCOL_UNDECIDED)
            demand_protocol(f->core, c, id);
        size_t size = protocols[id]->session_size;
        c->session = size ? core_allocate(f->core, NULL, 0, sizeof(*c->session) + size) : NULL;
        if (size && c->session == NULL)
            messages_decline(f, LEDGER_UNKNOWN);
        if (protocol_is_database(id) && c->kind == KIND_SERVER && !f->core->config.protocol.database_servers)
            messages_decline(f, c->guessed ? LEDGER_UNKNOWN : LEDGER_DECLINED);
    }
    return c->protocol_id == id && !c->opaque;
}

/* Do these bytes begin a frame that holds a message's beginning? */
static bool frame_starts(struct feed *f, const uint8_t *bytes, size_t n)
{
    const struct protocol *protocol = protocol_of(f->c);
    enum sender sender = sender_of(f->c, f->direction);
    struct compressed probe = {.protocol = protocol, .algorithm = compressed_of(f->c)->algorithm};
    struct frame frame;
    if (n < protocol->frame_header || !protocol->frame(bytes, &frame) || (sender == SENDER_CLIENT && !frame.begins))
        return false;
    struct inflated got = compression_read(f->core, &probe, f->direction, bytes, n, 0, 0);
    if (got.status == PARSE_OK && got.used < n)
        got = compression_read(f->core, &probe, f->direction, bytes + got.used, n - got.used, 0, 0);
    bool starts = got.status == PARSE_OK && got.size && protocol->resync(got.bytes, got.size, 0, sender) == 0;
    compression_reset(f->core, &probe, f->direction);
    return starts;
}

bool recognize_again(struct feed *f, const uint8_t *bytes, size_t n)
{
    struct connection *c = f->c;
    const struct protocol *protocol = protocol_of(c);
    if (compressed_of(c))
        return frame_starts(f, bytes, n);
    /* Of databases classify() knows how connections begin. */
    bool known = protocol && protocol_is_database(c->protocol_id) && c->kind;
    bool looks = known || decide(f, bytes, n);
    if (looks && protocol_of(c)->resync(bytes, n, 0, sender_of(c, f->direction)) == 0)
        return true;
    c->invalid += looks && !known && c->invalid < UINT8_MAX;
    return false;
}

bool recognize(struct feed *f, const uint8_t *bytes, size_t n)
{
    struct stream *s = f->s;
    uint8_t first[CLASSIFY_BYTES];
    size_t known = kept_length(s) < sizeof(first) ? kept_length(s) : sizeof(first);
    size_t more = sizeof(first) - known < n ? sizeof(first) - known : n;
    if (known)
        memcpy(first, s->kept->bytes, known);
    memcpy(first + known, bytes, more);
    if (decide(f, first, known + more))
        return true;
    uint8_t id;
    if (begins_as(f, first, known + more, &id) == VERDICT_MAYBE &&
        kept_add(f->core, s, f->event->tgid, f->event->header.ktime_ns, bytes, n)) {
        account(f, LEDGER_PARSED, n);
        return false;
    }
    enum ledger_class as = f->c->opaque ? s->lost_as : LEDGER_UNKNOWN;
    messages_disown(f, as);
    account(f, as, n);
    stream_lose(f->core, f->c, f->direction, as);
    return false;
}
