/* SPDX-License-Identifier: Apache-2.0 */
/* Events of one direction to messages: the only place where positions and holes are known.
 *
 * A chunk is three parts, in order: bytes that the core asked not to be copied, the captured head, a part
 * that the budget left out, the captured tail. Each part is fed on its own: feed_hole(), feed_bytes(). */
#include "connection.h"
#include "demand.h"
#include "pairing.h"
#include "../../bpf/classify.h"

#define DEMAND_SKIP_MIN 8192 /* shorter bodies arrive before the kernel side could read the demand */
/* So much of a message is captured whole, where the framing runs through its body. What is longer is
 * followed by the first bytes of each call (FRAMING_BYTES, bpf/chunk.bpf.h), or not at all: copying a
 * download of any length would slow it down. */
#define WHOLE_MAX (1024 * 1024)

/* What one event means for the stream it belongs to, while it is worked through. */
struct feed {
    struct core *core;
    struct connection *c;
    struct stream *s;
    const struct chunk_event *event;
    struct ledger_row *ledger;
    unsigned direction;
    bool parsed; /* some byte of the chunk was in a message */
    enum ledger_class as; /* else: what became of it */
};

static void account(struct feed *f, enum ledger_class as, uint64_t bytes)
{
    f->ledger->bytes[as] += bytes;
    if (as == LEDGER_PARSED)
        f->parsed = true;
    else
        f->as = as;
}

static void buffer_drop(struct core *core, struct stream *s)
{
    core->stats.buffered_bytes -= s->length;
    core_allocate(core, s->buffer, s->capacity, 0);
    s->buffer = NULL;
    s->length = s->capacity = s->need = s->tried = 0;
}

void stream_free(struct core *core, struct stream *s)
{
    buffer_drop(core, s);
}

void stream_lose(struct core *core, struct connection *c, unsigned direction, enum ledger_class as)
{
    struct stream *s = &c->streams[direction];
    buffer_drop(core, s);
    if (s->whole)
        demand_mode(core, c, direction, DEMAND_DEFAULT);
    s->sync = SYNC_LOST;
    s->lost_as = (uint8_t)as;
    s->skip = 0;
    s->current = NULL;
    s->in_message = s->ends = s->whole = false;
    memset(s->state, 0, sizeof(s->state));
}

/* The bytes that the buffer held were counted as parsed when they came: count them as `as` instead. */
static void buffer_disown(struct feed *f, enum ledger_class as)
{
    f->ledger->bytes[LEDGER_PARSED] -= f->s->length;
    f->ledger->bytes[as] += f->s->length;
}

/* The message is complete: `skip` has passed. */
static void message_end(struct feed *f)
{
    struct stream *s = f->s;
    struct pending *p = s->current;
    if (s->whole) {
        s->whole = false;
        demand_mode(f->core, f->c, f->direction, DEMAND_DEFAULT);
    }
    s->in_message = s->ends = false;
    s->current = NULL;
    if (p && sender_of(f->c, f->direction) == SENDER_SERVER)
        pairing_finish(f->core, p, OUTCOME_ANSWERED, f->event->header.ktime_ns);
    else if (p)
        p->request_ended = true;
}

/* n bytes of those that nobody needs have come, or are known to be missing. */
static void pass_over(struct feed *f, uint64_t n)
{
    struct stream *s = f->s;
    if (s->skip == SKIP_TO_END) {
        if (s->current && sender_of(f->c, f->direction) == SENDER_SERVER)
            s->current->response_body += n;
        else if (s->current)
            s->current->request_body += n;
        return;
    }
    s->skip -= n;
    if (s->skip == 0 && s->ends)
        message_end(f);
}

/* The connection leaves its protocol (upgrade, tunnel): what follows is not ours. */
static void become_opaque(struct feed *f)
{
    f->c->opaque = true;
    for (unsigned i = 0; i < 2; i++)
        stream_lose(f->core, f->c, i, LEDGER_UNKNOWN);
    demand_protocol(f->core, f->c, PROTOCOL_UNKNOWN);
}

/* A response of which the end was not seen is complete when something else follows it. */
static void finish_unseen(struct feed *f, struct stream *answers)
{
    struct pending *p = f->c->first;
    if (p && p->responded && answers->sync == SYNC_LOST)
        pairing_finish(f->core, p, OUTCOME_ANSWERED, answers->last_ktime);
}

/* One step of the parser was read: what does it begin, what does it end? */
static void take_step(struct feed *f, const struct step *step, const uint8_t *window, size_t consumed,
                      const struct builder *attributes)
{
    struct core *core = f->core;
    struct connection *c = f->c;
    struct stream *s = f->s;
    enum sender sender = sender_of(c, f->direction);
    c->invalid = 0;
    if (step->begins) {
        if (sender == SENDER_CLIENT)
            finish_unseen(f, &c->streams[!f->direction]);
        s->in_message = true;
        s->current = NULL;
        if (sender == SENDER_CLIENT)
            s->current = pairing_request(core, c, f->event, s, step, window, attributes);
        else if (!step->interim)
            s->current = pairing_response(core, c, s, step, attributes);
        f->ledger->requests += sender == SENDER_CLIENT;
    }
    if (s->current) {
        uint64_t *body = sender == SENDER_CLIENT ? &s->current->request_body : &s->current->response_body;
        if (step->skip != SKIP_TO_END)
            *body += step->body;
    }
    s->skip = step->skip;
    s->ends = step->ends;
    bool whole = step->whole && !step->ends && s->step_pos - s->message_pos < WHOLE_MAX;
    if (whole != s->whole) {
        s->whole = whole;
        demand_mode(core, c, f->direction, whole ? DEMAND_WHOLE : DEMAND_DEFAULT);
    }
    if (step->skip >= DEMAND_SKIP_MIN) {
        uint64_t at = s->step_pos + consumed; /* position of the first byte to pass over */
        demand_skip(core, c, f->direction, step->skip == SKIP_TO_END ? UINT64_MAX : at + step->skip);
    }
    if (step->ends && step->skip == 0)
        message_end(f);
    if (step->opaque)
        become_opaque(f);
}

/* Not a message: look for the next start. What was held back is not ours. */
static void refuse(struct feed *f)
{
    f->core->stats.messages_invalid++;
    f->ledger->gaps++;
    f->c->invalid++;
    buffer_disown(f, LEDGER_UNKNOWN);
    pairing_drop_all(f->core, f->c);
    stream_lose(f->core, f->c, f->direction, LEDGER_UNKNOWN);
}

/* Keeps what the parser could not read yet. False: the caps do not allow it. */
static bool keep(struct core *core, struct stream *s, const uint8_t *bytes, size_t n)
{
    if (n == 0)
        return true;
    uint64_t wanted = (uint64_t)s->length + n;
    if (wanted > core->config.stream_bytes_max ||
        core->stats.buffered_bytes + n > core->config.buffer_bytes_max)
        return false;
    if (wanted > s->capacity) {
        size_t capacity = s->capacity ? s->capacity : 512;
        while (capacity < wanted)
            capacity *= 2;
        uint8_t *grown = core_allocate(core, s->buffer, s->capacity, capacity);
        if (grown == NULL)
            return false;
        s->buffer = grown;
        s->capacity = (uint32_t)capacity;
    }
    memcpy(s->buffer + s->length, bytes, n);
    s->length += (uint32_t)n;
    core->stats.buffered_bytes += n;
    return true;
}

/* Reads as many steps as the window holds. Returns the bytes used, skips included; fewer than `length`
 * when the rest is an incomplete step. `base` is the position of window[0]. */
static size_t read_steps(struct feed *f, const uint8_t *window, size_t length, uint64_t base,
                         uint64_t first_ktime)
{
    struct core *core = f->core;
    struct stream *s = f->s;
    struct connection *c = f->c;
    size_t used = 0;
    while (used < length && s->sync == SYNC_OK && !c->opaque) {
        if (s->skip) {
            uint64_t n = length - used < s->skip ? length - used : s->skip;
            used += n;
            pass_over(f, n);
            continue;
        }
        if (!s->in_message) {
            s->message_ktime = used == 0 ? first_ktime : f->event->header.ktime_ns;
            s->message_pos = base + used;
        }
        s->step_pos = base + used;
        struct step step = {0};
        struct builder attributes = {.data = core->scratch, .capacity = ATTRIBUTES_MAX};
        struct cursor in = cursor_over(window + used, length - used);
        in.seen = used == 0 ? s->tried : 0;
        struct parse_context context = {
            .sender = sender_of(c, f->direction),
            .kind = c->kind,
            .hint = c->first ? c->first->hint : 0,
            .local_address = c->open.local_address,
            .remote_address = c->open.remote_address,
            .local_port = c->open.local_port,
            .remote_port = c->open.remote_port,
            .options = &core->config.protocol,
        };
        enum parse_status status = c->protocol->parse(&in, &context, s->state, &step, &attributes);
        size_t consumed = (size_t)(in.at - in.start);
        core->stats.attributes_left_out += attributes.left_out;
        if (status == PARSE_NEED_MORE) {
            s->need = (uint32_t)(in.need < UINT32_MAX ? in.need : 0);
            s->tried = (uint32_t)(length - used);
            return used;
        }
        s->tried = 0;
        if (status != PARSE_OK || consumed == 0) {
            refuse(f);
            return used;
        }
        take_step(f, &step, window + used, consumed, &attributes);
        used += consumed;
    }
    return used;
}

/* Decides the protocol, and which direction carries requests, from the first bytes of a message. */
static bool decide(struct feed *f, const uint8_t *bytes, size_t n)
{
    struct connection *c = f->c;
    uint8_t first[CLASSIFY_BYTES] = {0}, id = PROTOCOL_UNDECIDED;
    memcpy(first, bytes, n < sizeof(first) ? n : sizeof(first));
    enum verdict verdict = classify(first, n < sizeof(first) ? (uint32_t)n : sizeof(first), &id);
    if (verdict != VERDICT_YES || id >= PROTOCOL_COUNT || protocols[id] == NULL)
        return false;
    if (c->kind == 0) {
        bool asks = protocols[id]->resync(bytes, n, 0, SENDER_CLIENT) == 0;
        bool answers = protocols[id]->resync(bytes, n, 0, SENDER_SERVER) == 0;
        if (asks == answers)
            return false;
        c->kind = asks == (f->direction == DIRECTION_IN) ? KIND_SERVER : KIND_CLIENT;
    }
    if (c->protocol == NULL) {
        c->protocol = protocols[id];
        c->protocol_id = id;
        if (f->event->header.protocol == PROTOCOL_UNDECIDED)
            demand_protocol(f->core, c, id);
    }
    return c->protocol_id == id;
}

/* Bytes while nothing is known: may they be the start of a message? */
static enum verdict could_start(const uint8_t *bytes, size_t n)
{
    uint8_t first[CLASSIFY_BYTES] = {0}, id;
    memcpy(first, bytes, n < sizeof(first) ? n : sizeof(first));
    return classify(first, n < sizeof(first) ? (uint32_t)n : sizeof(first), &id);
}

/* Bytes of an answering stream that were not understood may hold the answer to anything that waits,
 * but for one whose head was read already. */
static void answers_hidden(struct feed *f)
{
    struct connection *c = f->c;
    if (c->first == NULL || c->kind == 0 || sender_of(c, f->direction) != SENDER_SERVER)
        return;
    if (c->first->responded)
        pairing_drop_after(f->core, c->first);
    else
        pairing_drop_all(f->core, c);
}

static void feed_bytes(struct feed *f, const uint8_t *bytes, size_t n, bool at_start)
{
    struct core *core = f->core;
    struct connection *c = f->c;
    struct stream *s = f->s;
    if (n == 0)
        return;
    uint64_t base = s->seen;
    s->seen += n;
    if (c->opaque) {
        account(f, LEDGER_UNKNOWN, n);
        return;
    }
    bool undecided = c->protocol == NULL || c->kind == 0;
    if (s->sync == SYNC_LOST) {
        bool looks = at_start && decide(f, bytes, n);
        if (!looks || c->protocol->resync(bytes, n, 0, sender_of(c, f->direction)) != 0) {
            c->invalid += looks && c->invalid < UINT8_MAX;
            account(f, s->lost_as, n);
            answers_hidden(f);
            return;
        }
        finish_unseen(f, s);
        if (sender_of(c, f->direction) == SENDER_CLIENT)
            finish_unseen(f, &c->streams[!f->direction]);
        s->sync = SYNC_OK;
        core->stats.resyncs += s->lost_as != LEDGER_LATE;
        undecided = false;
    } else if (s->sync == SYNC_NEW) {
        s->sync = SYNC_OK;
    }
    if (undecided) {
        uint8_t first[CLASSIFY_BYTES];
        size_t known = s->length < sizeof(first) ? s->length : sizeof(first);
        size_t more = sizeof(first) - known < n ? sizeof(first) - known : n;
        memcpy(first, s->buffer ? s->buffer : bytes, s->buffer ? known : 0);
        memcpy(first + (s->buffer ? known : 0), bytes, more);
        size_t have = (s->buffer ? known : 0) + more;
        if (!decide(f, first, have)) {
            if (could_start(first, have) == VERDICT_MAYBE && keep(core, s, bytes, n)) {
                account(f, LEDGER_PARSED, n);
                if (s->length == n)
                    s->message_ktime = f->event->header.ktime_ns;
                return;
            }
            buffer_disown(f, LEDGER_UNKNOWN);
            account(f, LEDGER_UNKNOWN, n);
            stream_lose(core, c, f->direction, LEDGER_UNKNOWN);
            return;
        }
    }
    account(f, LEDGER_PARSED, n);
    if (s->length == 0) {
        size_t used = read_steps(f, bytes, n, base, f->event->header.ktime_ns);
        if (s->sync == SYNC_OK && used < n) {
            if (!s->in_message)
                s->message_ktime = f->event->header.ktime_ns;
            if (keep(core, s, bytes + used, n - used))
                return;
            core->stats.buffers_refused++;
            refuse(f);
        }
        if (s->sync != SYNC_OK) {
            f->ledger->bytes[LEDGER_PARSED] -= n - used;
            f->ledger->bytes[s->lost_as] += n - used;
        }
        return;
    }
    uint64_t first_ktime = s->message_ktime;
    base -= s->length;
    if (!keep(core, s, bytes, n)) {
        core->stats.buffers_refused++;
        refuse(f);
        return;
    }
    if (s->length < s->need)
        return;
    s->need = 0;
    size_t used = read_steps(f, s->buffer, s->length, base, first_ktime);
    if (s->sync != SYNC_OK || s->buffer == NULL) /* refused, or left the protocol: the buffer is gone */
        return;
    if (used == s->length) {
        buffer_drop(core, s);
    } else if (used) {
        memmove(s->buffer, s->buffer + used, s->length - used);
        s->length -= (uint32_t)used;
        core->stats.buffered_bytes -= used;
        if (!s->in_message)
            s->message_ktime = f->event->header.ktime_ns;
    }
}

/* n bytes that nobody copied. `lost`: they never came, and are in no chunk that did. */
static void feed_hole(struct feed *f, uint64_t n, bool lost)
{
    struct connection *c = f->c;
    struct stream *s = f->s;
    if (n == 0)
        return;
    s->seen += n;
    enum ledger_class as = lost ? LEDGER_LOST : LEDGER_TRUNCATED;
    if (c->opaque || s->sync == SYNC_LOST) {
        if (!lost)
            account(f, c->opaque ? LEDGER_UNKNOWN : s->lost_as, n);
        answers_hidden(f);
        return;
    }
    if (s->sync == SYNC_OK && s->skip >= n && s->length == 0) {
        if (!lost)
            account(f, LEDGER_PARSED, n);
        pass_over(f, n);
        return;
    }
    if (!lost) {
        /* The part that was still to be passed over is in order. */
        uint64_t skipped = s->length == 0 && s->skip < n ? s->skip : 0;
        account(f, LEDGER_PARSED, skipped);
        account(f, LEDGER_TRUNCATED, n - skipped);
    }
    buffer_disown(f, as);
    f->ledger->gaps++;
    /* Within the body of one answer the exchange is still known, only where it ends is not. */
    bool in_answer = !lost && s->in_message && !s->ends && s->current && s->current->responded;
    if (in_answer) {
        s->current->size_unknown = true;
        pairing_drop_after(f->core, s->current);
    } else {
        pairing_drop_all(f->core, c);
    }
    stream_lose(f->core, c, f->direction, as);
}

/* Whether the call ends as an answer ends whose framing was lost from sight. */
static bool terminates(const struct connection *c, const struct chunk_event *e)
{
    const char *terminator = c->protocol ? c->protocol->terminator : NULL;
    size_t n = terminator ? strlen(terminator) : 0;
    uint32_t captured = (uint32_t)e->head + e->tail;
    bool to_the_end = e->offset + captured == e->size || e->tail >= n;
    return n && to_the_end && captured >= n && memcmp(e->payload + captured - n, terminator, n) == 0;
}

void stream_chunk(struct core *core, struct connection *c, unsigned direction, const struct chunk_event *e)
{
    struct process *process = process_of(core, e->tgid);
    static struct process nobody; /* memory is short: counted together, shown by no one */
    struct stream *s = &c->streams[direction];
    struct feed f = {core, c, s, e, &(process ? process : &nobody)->ledger, direction, false, LEDGER_LATE};

    if (s->sync == SYNC_NEW || (s->sync == SYNC_LOST && s->seen == 0))
        s->seen = e->pos - (e->unsent_chunks[direction] ? e->quiet_bytes + 1 : 0); /* the first seen may not be the first */
    if (e->pos > s->seen) {
        uint64_t gap = e->pos - s->seen, quiet = e->quiet_bytes < gap ? e->quiet_bytes : gap;
        if (gap > quiet)
            feed_hole(&f, gap - quiet, true);
        feed_hole(&f, quiet, true); /* counted by the kernel side */
    } else if (e->pos < s->seen) {
        f.ledger->gaps++;
        pairing_drop_all(core, c);
        stream_lose(core, c, direction, LEDGER_LOST);
        s->seen = e->pos;
    }
    s->unsent = e->unsent_chunks[direction];
    f.as = s->sync == SYNC_LOST ? s->lost_as : LEDGER_UNKNOWN;
    f.parsed = false;
    bool at_start = !(e->header.flags & CHUNK_CONTINUED) && e->offset == 0;
    uint32_t middle = e->size - e->offset - e->head - e->tail;
    feed_hole(&f, e->offset, false);
    feed_bytes(&f, e->payload, e->head, at_start);
    feed_hole(&f, middle, false);
    feed_bytes(&f, e->payload + e->head, e->tail, false);
    s->last_ktime = e->header.ktime_ns;
    bool answers = c->kind && sender_of(c, direction) == SENDER_SERVER;
    if (answers && s->sync == SYNC_LOST && terminates(c, e))
        finish_unseen(&f, s);
    if (!(e->header.flags & CHUNK_CONTINUED))
        f.ledger->chunks[f.parsed ? LEDGER_PARSED : f.as]++;
}

void stream_end(struct core *core, struct connection *c, unsigned direction, uint64_t ktime_ns)
{
    struct stream *s = &c->streams[direction];
    if (s->ended)
        return;
    s->ended = true;
    struct pending *p = s->current;
    if (p == NULL || c->kind == 0)
        return;
    bool until_end = s->sync == SYNC_OK && s->ends && s->skip == SKIP_TO_END;
    if (!until_end)
        return;
    s->current = NULL;
    s->in_message = s->ends = false;
    s->skip = 0;
    if (sender_of(c, direction) == SENDER_SERVER)
        pairing_finish(core, p, OUTCOME_ANSWERED, s->last_ktime ? s->last_ktime : ktime_ns);
    else
        p->request_ended = true;
}
