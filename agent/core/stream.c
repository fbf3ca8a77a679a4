/* SPDX-License-Identifier: Apache-2.0 */
/* Events of one direction to messages: the only place where positions and holes are known.
 *
 * A chunk is three parts, in order: bytes that the core asked not to be copied, the captured head, a part
 * that the budget left out, the captured tail. Each part is fed on its own: feed_hole(), feed_bytes(). */
#include "connection.h"
#include "demand.h"
#include "insights.h"
#include "loss.h"
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
    bool overtakes; /* a request that begins here did not wait for the answers before it */
    bool parsed; /* some byte of the chunk was in a message */
    enum ledger_class as; /* else: what became of it */
    uint64_t ktime_ns; /* of a message that ends now: the event's, or earlier, if its end was not seen */
    uint64_t step_pos; /* first byte of the step being read */
    uint32_t need, tried; /* what the parser said of an incomplete step: see struct kept */
};

static void account(struct feed *f, enum ledger_class as, uint64_t bytes)
{
    f->ledger->bytes[as] += bytes;
    if (as == LEDGER_PARSED)
        f->parsed = true;
    else
        f->as = as;
}

static void count_gap(struct feed *f, enum gap_cause cause)
{
    f->ledger->gaps[f->c->protocol_id][cause]++;
}

static bool is_request(const struct feed *f)
{
    return sender_of(f->c, f->direction) == SENDER_CLIENT;
}

static bool is_answer(const struct feed *f)
{
    return f->c->kind && sender_of(f->c, f->direction) == SENDER_SERVER;
}

/* --- what is kept between records ------------------------------------------------------------------- */

static uint32_t kept_length(const struct stream *s)
{
    return s->kept ? s->kept->length : 0;
}

/* Room for `capacity` bytes; NULL when memory is short: nothing changed. */
static struct kept *kept_resize(struct core *core, struct stream *s, uint32_t capacity)
{
    size_t before = s->kept ? sizeof(*s->kept) + s->kept->capacity : 0;
    struct kept *kept = core_allocate(core, s->kept, before, sizeof(*kept) + capacity);
    if (kept) {
        kept->capacity = capacity;
        s->kept = kept;
    }
    return kept;
}

static void kept_drop(struct core *core, struct stream *s)
{
    if (s->kept == NULL)
        return;
    core->stats.buffered_bytes -= s->kept->length;
    core_allocate(core, s->kept, sizeof(*s->kept) + s->kept->capacity, 0);
    s->kept = NULL;
}

static bool is_zero(const uint64_t state[STREAM_STATE_SIZE / 8])
{
    uint64_t any = 0;
    for (int i = 0; i < STREAM_STATE_SIZE / 8; i++)
        any |= state[i];
    return any == 0;
}

/* The bytes were read; the parser's state stays, if it has one. */
static void kept_drop_bytes(struct core *core, struct stream *s)
{
    if (is_zero(s->kept->state)) {
        kept_drop(core, s);
        return;
    }
    core->stats.buffered_bytes -= s->kept->length;
    s->kept->length = s->kept->need = s->kept->tried = 0;
    kept_resize(core, s, 0);
}

/* False when memory is short. */
static bool keep_state(struct core *core, struct stream *s, const uint64_t state[STREAM_STATE_SIZE / 8])
{
    bool zero = is_zero(state);
    if (s->kept == NULL && (zero || kept_resize(core, s, 0) == NULL))
        return zero;
    memcpy(s->kept->state, state, STREAM_STATE_SIZE);
    if (zero && s->kept->length == 0)
        kept_drop(core, s);
    return true;
}

/* Keeps what the parser could not read yet. False: the caps do not allow it. */
static bool keep(struct core *core, struct stream *s, uint32_t tgid, uint64_t ktime_ns, const uint8_t *bytes, size_t n)
{
    uint64_t wanted = (uint64_t)kept_length(s) + n;
    if (n == 0)
        return true;
    if (wanted > core->config.stream_bytes_max ||
        core->stats.buffered_bytes + n > core->config.buffer_bytes_max)
        return false;
    if (s->kept == NULL || wanted > s->kept->capacity) {
        uint32_t capacity = s->kept && s->kept->capacity ? s->kept->capacity : 512;
        while (capacity < wanted)
            capacity *= 2;
        if (kept_resize(core, s, capacity) == NULL)
            return false;
    }
    if (s->kept->length == 0) {
        s->kept->tgid = tgid;
        s->kept->ktime_ns = ktime_ns;
    }
    memcpy(s->kept->bytes + s->kept->length, bytes, n);
    s->kept->length += (uint32_t)n;
    core->stats.buffered_bytes += n;
    return true;
}

void stream_free(struct core *core, struct stream *s)
{
    kept_drop(core, s);
}

/* --- messages --------------------------------------------------------------------------------------- */

void stream_lose(struct core *core, struct connection *c, unsigned direction, enum ledger_class as)
{
    struct stream *s = &c->streams[direction];
    kept_drop(core, s);
    if (compressed_of(c))
        compression_reset(core, c->session->compressed, direction);
    if (s->whole)
        demand_mode(core, c, direction, DEMAND_DEFAULT);
    if (c->kind && sender_of(c, direction) == SENDER_CLIENT)
        c->requests_lost++;
    s->sync = SYNC_LOST;
    s->lost_as = (uint8_t)as;
    s->skip = 0;
    s->current = NULL;
    s->in_message = s->ends = s->goes_on = s->whole = false;
}

/* The bytes that are kept were counted as parsed when they came: count them as `as` instead. Where several
 * processes wrote one message, those of the first; who ended since has no row to correct. Bytes that were inflated
 * were understood, and are not those that were counted. */
static void kept_disown(struct feed *f, enum ledger_class as)
{
    if (compressed_of(f->c))
        return;
    struct process *owner = f->s->kept ? table_get(&f->core->processes, f->s->kept->tgid) : NULL;
    if (owner == NULL)
        owner = &f->core->others;
    uint64_t *parsed = &owner->ledger.bytes[LEDGER_PARSED], n = kept_length(f->s);
    n = n < *parsed ? n : *parsed;
    *parsed -= n;
    owner->ledger.bytes[as] += n;
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
    if (p && !is_request(f))
        pairing_finish(f->core, p, OUTCOME_ANSWERED, f->ktime_ns);
    else if (p && p->unanswered)
        pairing_finish(f->core, p, OUTCOME_ANSWERED, f->ktime_ns);
    else if (p)
        p->request_ended = true;
}

/* n bytes of those that nobody needs have come, or are known to be missing. */
static void pass_over(struct feed *f, uint64_t n)
{
    struct stream *s = f->s;
    if (s->skip == SKIP_TO_END) {
        if (s->current && !is_request(f))
            s->current->response_body += n;
        else if (s->current)
            s->current->request_body += n;
        return;
    }
    s->skip -= n;
    if (s->skip == 0 && s->ends)
        message_end(f);
}

/* The connection leaves its protocol (upgrade, tunnel, TLS): what follows is not ours. */
static void become_opaque(struct feed *f, enum ledger_class as)
{
    f->c->opaque = true;
    for (unsigned i = 0; i < 2; i++)
        stream_lose(f->core, f->c, i, as);
    demand_protocol(f->core, f->c, as == LEDGER_ENCRYPTED ? PROTOCOL_ENCRYPTED : PROTOCOL_UNKNOWN);
}

/* The connection is none of ours to read, though its protocol may be known. */
static void decline(struct feed *f, enum ledger_class as)
{
    f->c->opaque = true;
    for (unsigned i = 0; i < 2; i++)
        stream_lose(f->core, f->c, i, as);
    for (unsigned i = 0; i < 2; i++)
        demand_mode(f->core, f->c, i, DEMAND_NOTHING);
}

/* What either side sends from now on is compressed. Neither had sent any of it before it could know that the other
 * agrees: what came already is not in order. */
static void become_compressed(struct feed *f, enum compression algorithm, bool more)
{
    struct connection *c = f->c;
    if (c->session == NULL || c->session->compressed)
        return;
    if (kept_length(&c->streams[!f->direction]))
        stream_lose(f->core, c, !f->direction, LEDGER_UNKNOWN);
    if (more)
        stream_lose(f->core, c, f->direction, LEDGER_UNKNOWN);
    c->session->compressed = compression_new(f->core, protocol_of(c), algorithm);
    if (c->session->compressed == NULL)
        decline(f, LEDGER_UNKNOWN);
}

/* A step of a request, the first of it or a further one. */
static void take_request_step(struct feed *f, const struct step *step, const uint8_t *window,
                              const struct builder *attributes)
{
    struct stream *s = f->s;
    bool was_silent = !step->begins && s->current && s->current->silent;
    if (step->begins) {
        loss_before_request(f->core, f->c);
        if (f->overtakes)
            loss_overtaken(f->c);
        if (s->current)
            s->current->request_ended = true;
    }
    if (s->current == NULL || step->begins) {
        /* What follows a request that was answered already is answered by itself. */
        struct step own = *step;
        own.silent |= !step->begins;
        if (step->begins || step->hint)
            s->current = pairing_request(f->core, f->c, f->event, s, &own, window, attributes);
    } else {
        pairing_request_more(f->core, s->current, step, attributes);
    }
    f->ledger->requests += !step->silent && (step->begins || was_silent);
}

static void take_response_step(struct feed *f, const struct step *step, const struct builder *attributes)
{
    struct stream *s = f->s;
    f->c->guessed = false;
    if (step->begins)
        s->current = step->interim ? NULL : pairing_response(f->core, f->c, s, step, attributes);
    else if (s->current)
        pairing_response_more(f->core, s->current, step, attributes);
    if (step->transaction)
        insights_transaction(f->core, f->c, step->transaction, f->ktime_ns);
}

/* One step of the parser was read: what does it begin, what does it end? */
static void take_step(struct feed *f, const struct step *step, const uint8_t *window, size_t consumed,
                      uint64_t step_ktime, const struct builder *attributes)
{
    struct core *core = f->core;
    struct connection *c = f->c;
    struct stream *s = f->s;
    enum sender sender = sender_of(c, f->direction);
    c->invalid = 0;
    if (step->begins) {
        s->in_message = true;
        s->message_ktime = step_ktime;
        s->message_pos = (uint32_t)f->step_pos;
    }
    if (sender == SENDER_CLIENT && (step->begins || s->in_message))
        take_request_step(f, step, window, attributes);
    else if (sender == SENDER_SERVER)
        take_response_step(f, step, attributes);
    if (s->current) {
        uint64_t *body = sender == SENDER_CLIENT ? &s->current->request_body : &s->current->response_body;
        if (step->skip != SKIP_TO_END)
            *body += step->body;
    }
    s->skip = step->skip;
    s->ends = step->ends;
    s->goes_on = step->goes_on;
    bool whole = step->whole && !step->ends && (uint32_t)f->step_pos - s->message_pos < WHOLE_MAX;
    if (whole != s->whole) {
        s->whole = whole;
        demand_mode(core, c, f->direction, whole ? DEMAND_WHOLE : DEMAND_DEFAULT);
    }
    if (step->skip >= DEMAND_SKIP_MIN && compressed_of(c) == NULL) {
        uint64_t at = f->step_pos + consumed; /* position of the first byte to pass over */
        demand_skip(core, c, f->direction, step->skip == SKIP_TO_END ? UINT64_MAX : at + step->skip);
    }
    if (step->ends && step->skip == 0)
        message_end(f);
    if (step->opaque || step->encrypted)
        become_opaque(f, step->encrypted ? LEDGER_ENCRYPTED : LEDGER_UNKNOWN);
}

/* Not a message: look for the next start. What was held back is not ours. */
static void refuse(struct feed *f)
{
    f->core->stats.messages_invalid++;
    count_gap(f, GAP_INVALID);
    f->c->invalid++;
    kept_disown(f, LEDGER_UNKNOWN);
    loss_of_requests(f->core, f->c, false);
    pairing_drop_all(f->core, f->c);
    stream_lose(f->core, f->c, f->direction, LEDGER_UNKNOWN);
}

/* The guess was wrong: nobody has spoken that protocol. */
static void withdraw(struct feed *f)
{
    kept_disown(f, LEDGER_UNKNOWN);
    pairing_drop_all(f->core, f->c);
    become_opaque(f, LEDGER_UNKNOWN);
}

/* Reads as many steps as the window holds. Returns the bytes used, skips included; fewer than `length`
 * when the rest is an incomplete step. `base` is the position of window[0]. */
static size_t read_steps(struct feed *f, const uint8_t *window, size_t length, uint64_t base,
                         uint64_t first_ktime)
{
    struct core *core = f->core;
    struct stream *s = f->s;
    struct connection *c = f->c;
    const struct protocol *protocol = protocol_of(c);
    size_t used = 0;
    while (used < length && s->sync == SYNC_OK && !c->opaque) {
        if (s->skip) {
            uint64_t n = length - used < s->skip ? length - used : s->skip;
            used += n;
            pass_over(f, n);
            continue;
        }
        uint64_t step_ktime = used == 0 ? first_ktime : f->event->header.ktime_ns;
        f->step_pos = base + used;
        uint64_t state[STREAM_STATE_SIZE / 8] = {0};
        if (s->kept)
            memcpy(state, s->kept->state, sizeof(state));
        struct step step = {0};
        struct builder attributes = {.data = core->scratch, .capacity = ATTRIBUTES_MAX};
        struct cursor in = cursor_over(window + used, length - used);
        in.seen = used == 0 ? f->tried : 0;
        struct parse_context context = {
            .sender = sender_of(c, f->direction),
            .kind = c->kind,
            .hint = c->first ? c->first->hint : 0,
            .local_address = c->open.local_address,
            .remote_address = c->open.remote_address,
            .local_port = c->open.local_port,
            .remote_port = c->open.remote_port,
            .transport = c->transport,
            .path = c->path,
            .path_size = c->path_size,
            .options = &core->config.protocol,
            .requests_lost = c->requests_lost,
            .within = s->in_message,
            .from_start = !c->late,
            .session = c->session ? c->session->shared : NULL,
            .statements = core->statements,
        };
        enum parse_status status = protocol->parse(&in, &context, state, &step, &attributes);
        size_t consumed = (size_t)(in.at - in.start);
        core->stats.attributes_left_out += attributes.left_out;
        if (status == PARSE_NEED_MORE) {
            f->need = (uint32_t)(in.need < UINT32_MAX ? in.need : 0);
            f->tried = (uint32_t)(length - used);
            return used;
        }
        f->tried = 0;
        if (status == PARSE_INVALID && c->guessed) {
            withdraw(f);
            return used;
        }
        if (status != PARSE_OK || consumed == 0 || !keep_state(core, s, state)) {
            refuse(f);
            return used;
        }
        take_step(f, &step, window + used, consumed, step_ktime, &attributes);
        used += consumed;
        if (step.compression)
            become_compressed(f, (enum compression)step.compression, used < length);
    }
    return used;
}

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
            decline(f, LEDGER_UNKNOWN);
        if (protocol_is_database(id) && c->kind == KIND_SERVER && !f->core->config.protocol.database_servers)
            decline(f, c->guessed ? LEDGER_UNKNOWN : LEDGER_DECLINED);
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

/* In a stream that lost its place: do these bytes, the first of a call, begin a message? */
static bool starts_again(struct feed *f, const uint8_t *bytes, size_t n)
{
    struct connection *c = f->c;
    const struct protocol *protocol = protocol_of(c);
    if (compressed_of(c))
        return frame_starts(f, bytes, n);
    bool known = protocol && protocol_is_database(c->protocol_id) && c->kind; /* what classify() knows are beginnings of connections */
    bool looks = known || decide(f, bytes, n);
    if (looks && protocol_of(c)->resync(bytes, n, 0, sender_of(c, f->direction)) == 0)
        return true;
    c->invalid += looks && !known && c->invalid < UINT8_MAX;
    return false;
}

/* The stream has its place again, `bytes` are the first that are understood. Within an answer that it lost it
 * goes on with it, if nothing else can have been answered in what was not seen. */
static void found_again(struct feed *f)
{
    struct stream *s = f->s;
    struct pending *p = f->c->first;
    bool goes_on = p && p->responded && p->alone && protocol_of(f->c)->resync_end;
    if (is_answer(f) && goes_on) {
        s->current = p;
        s->in_message = true;
    } else if (is_answer(f)) {
        loss_finish_unseen(f->core, f->c);
    }
    s->sync = SYNC_OK;
    f->core->stats.resyncs += s->lost_as != LEDGER_LATE;
}

/* Bytes while nothing is known: may they be the start of a message? */
static enum verdict could_start(const struct feed *f, const uint8_t *bytes, size_t n)
{
    uint8_t id;
    return begins_as(f, bytes, n, &id);
}

/* Bytes of an answering stream that were not understood may hold the answer to anything that waits. */
static void hidden(struct feed *f)
{
    if (is_answer(f) && f->c->first)
        loss_of_answers(f->core, f->c);
}

/* What is kept of an incomplete step is `n` bytes more: is it complete now? */
static void read_kept(struct feed *f, const uint8_t *bytes, size_t n, uint64_t base)
{
    struct core *core = f->core;
    struct stream *s = f->s;
    uint64_t first_ktime = s->kept->ktime_ns;
    base -= s->kept->length;
    if (!keep(core, s, f->event->tgid, f->event->header.ktime_ns, bytes, n)) {
        core->stats.buffers_refused++;
        refuse(f);
        return;
    }
    if (s->kept->length < s->kept->need)
        return;
    f->need = 0;
    f->tried = s->kept->tried;
    size_t used = read_steps(f, s->kept->bytes, s->kept->length, base, first_ktime);
    if (s->sync != SYNC_OK || s->kept == NULL) /* refused, or left the protocol: nothing is kept */
        return;
    if (used == s->kept->length) {
        kept_drop_bytes(core, s);
        return;
    }
    s->kept->need = f->need;
    s->kept->tried = f->tried;
    if (used) {
        memmove(s->kept->bytes, s->kept->bytes + used, s->kept->length - used);
        s->kept->length -= (uint32_t)used;
        core->stats.buffered_bytes -= used;
        s->kept->ktime_ns = f->event->header.ktime_ns;
    }
}

/* Which protocol? Asked of the first bytes, those that were kept with them. False: not known yet, or none. */
static bool decide_so_far(struct feed *f, const uint8_t *bytes, size_t n)
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
    if (could_start(f, first, known + more) == VERDICT_MAYBE &&
        keep(f->core, s, f->event->tgid, f->event->header.ktime_ns, bytes, n)) {
        account(f, LEDGER_PARSED, n);
        return false;
    }
    enum ledger_class as = f->c->opaque ? s->lost_as : LEDGER_UNKNOWN;
    kept_disown(f, as);
    account(f, as, n);
    stream_lose(f->core, f->c, f->direction, as);
    return false;
}

/* These bytes to the parser, behind those that are kept. How many of them were read, or are kept. */
static size_t read_bytes(struct feed *f, const uint8_t *bytes, size_t n, uint64_t base, uint64_t ktime_ns)
{
    struct core *core = f->core;
    struct stream *s = f->s;
    if (kept_length(s)) {
        read_kept(f, bytes, n, base);
        return n;
    }
    f->tried = 0;
    size_t used = read_steps(f, bytes, n, base, ktime_ns);
    if (s->sync != SYNC_OK || used == n)
        return used;
    if (keep(core, s, f->event->tgid, ktime_ns, bytes + used, n - used)) {
        s->kept->need = f->need;
        s->kept->tried = f->tried;
        return n;
    }
    core->stats.buffers_refused++;
    refuse(f);
    return used;
}

/* n bytes that the parser cannot have. */
enum hole {
    HOLE_INSIDE,      /* of a chunk that came: not copied */
    HOLE_TOLD,        /* before it: records told of the loss when it was new, and loss.c drew its conclusions */
    HOLE_UNEXPLAINED, /* before it: moved by calls that are not hooked, nobody knows when */
};

/* What a hole that is not passed over means for the exchanges. */
static void conclude(struct feed *f, enum hole hole)
{
    struct connection *c = f->c;
    struct pending *p = f->s->current;
    c->assumed = true;
    if (c->kind == 0)
        return;
    /* Within the body of one answer the exchange is still known, only where it ends is not. */
    if (p && p->responded && !is_request(f)) {
        p->size_unknown = true;
        p->alone = p->next == NULL && !p->accompanied;
    }
    /* What one call moves behind a part of the only request that waits is the rest of that, if the client is one
     * that waits for its answer. */
    bool all_of_one = hole == HOLE_INSIDE && f->s->goes_on && p && p == c->first && p == c->last;
    bool waits = !c->pipelined && !c->batched && !c->waits;
    if (is_request(f) && all_of_one && waits)
        return;
    if (is_request(f))
        loss_of_requests(f->core, c, hole == HOLE_TOLD);
    else if (hole != HOLE_TOLD || c->pipelined)
        loss_of_answers(f->core, c);
}

/* What is missing from here on is needed: the stream loses its place. */
static void lose_place(struct feed *f, enum hole hole, enum gap_cause cause, enum ledger_class as)
{
    count_gap(f, cause);
    conclude(f, hole);
    stream_lose(f->core, f->c, f->direction, as);
}

/* The same of compressed frames: what they hold to the parser. */
static size_t read_frames(struct feed *f, const uint8_t *bytes, size_t n, uint64_t base)
{
    struct connection *c = f->c;
    struct stream *s = f->s;
    struct compressed *compressed = compressed_of(c);
    size_t used = 0;
    bool more = false;
    while ((used < n || more) && s->sync == SYNC_OK && !c->opaque) {
        struct inflated got = compression_read(f->core, compressed, f->direction, bytes + used, n - used,
                                               base + used, f->event->header.ktime_ns);
        if (got.status != PARSE_OK && got.excessive)
            lose_place(f, HOLE_INSIDE, GAP_TRUNCATED, LEDGER_TRUNCATED);
        else if (got.status != PARSE_OK)
            refuse(f);
        used += got.used;
        more = got.more;
        if (got.passed)
            pass_over(f, got.passed);
        if (got.size)
            read_bytes(f, got.bytes, got.size, got.pos, got.ktime_ns);
        if (s->sync != SYNC_OK || s->skip == 0 || kept_length(s))
            continue;
        uint32_t left = compression_pass(compressed, f->direction, s->skip);
        if (left >= DEMAND_SKIP_MIN)
            demand_skip(f->core, c, f->direction, base + used + left);
    }
    return used;
}

/* at_start: they are the first of a call; at_end: they are the last of one. */
static void feed_bytes(struct feed *f, const uint8_t *bytes, size_t n, bool at_start, bool at_end)
{
    struct connection *c = f->c;
    struct stream *s = f->s;
    if (n == 0)
        return;
    uint64_t base = s->seen;
    s->seen += n;
    if (c->opaque) {
        account(f, s->lost_as, n);
        return;
    }
    bool undecided = protocol_of(c) == NULL || c->kind == 0;
    if (s->sync == SYNC_LOST) {
        size_t unread = n;
        if (at_start && starts_again(f, bytes, n))
            unread = 0;
        else if (at_end && is_answer(f) && protocol_of(c) && protocol_of(c)->resync_end && compressed_of(c) == NULL)
            unread = protocol_of(c)->resync_end(bytes, n);
        account(f, s->lost_as, unread);
        if (unread)
            hidden(f);
        if (unread == n)
            return;
        found_again(f);
        bytes += unread;
        base += unread;
        n -= unread;
        undecided = false;
    } else if (s->sync == SYNC_NEW) {
        s->sync = SYNC_OK;
    }
    if (undecided && !decide_so_far(f, bytes, n))
        return;
    account(f, LEDGER_PARSED, n);
    size_t used = compressed_of(c) ? read_frames(f, bytes, n, base)
                                : read_bytes(f, bytes, n, base, f->event->header.ktime_ns);
    if (s->sync != SYNC_OK) {
        f->ledger->bytes[LEDGER_PARSED] -= n - used;
        f->ledger->bytes[s->lost_as] += n - used;
    }
}

/* The part of a hole that was still to be passed over is in order: how much of it. */
static uint64_t pass_hole(struct feed *f, uint64_t n)
{
    struct stream *s = f->s;
    if (kept_length(s) || s->skip == 0)
        return 0;
    struct inflated passed = {.used = n < s->skip ? n : s->skip};
    passed.passed = passed.used;
    if (compressed_of(f->c))
        passed = compression_hole(f->core, compressed_of(f->c), f->direction, n);
    if (passed.passed)
        pass_over(f, passed.passed);
    return passed.used;
}

static void feed_hole(struct feed *f, uint64_t n, enum hole hole, enum gap_cause cause)
{
    struct connection *c = f->c;
    struct stream *s = f->s;
    bool inside = hole == HOLE_INSIDE;
    if (n == 0)
        return;
    s->seen += n;
    if (c->opaque || s->sync == SYNC_LOST) {
        if (inside)
            account(f, s->lost_as, n);
        if (hole != HOLE_TOLD)
            hidden(f);
        return;
    }
    uint64_t passed = pass_hole(f, n);
    if (inside && passed)
        account(f, LEDGER_PARSED, passed);
    n -= passed;
    if (n == 0)
        return;
    enum ledger_class as = inside ? LEDGER_TRUNCATED : LEDGER_LOST;
    if (inside)
        account(f, as, n);
    kept_disown(f, as);
    lose_place(f, hole, cause, as);
}

/* n bytes before the chunk that are in no record. Those that were passed over on demand stand last. */
static void missing(struct feed *f, uint64_t n)
{
    uint64_t quiet = f->event->quiet_bytes < n ? f->event->quiet_bytes : n;
    uint8_t told = f->s->told;
    enum gap_cause cause = told & TOLD_UNSENT ? GAP_LOST : told ? GAP_SHED : GAP_UNHOOKED;
    f->ktime_ns = f->c->answered_ktime; /* not later than this was seen of what ends in there */
    feed_hole(f, n - quiet, told ? HOLE_TOLD : HOLE_UNEXPLAINED, cause);
    feed_hole(f, quiet, told ? HOLE_TOLD : HOLE_UNEXPLAINED, told ? cause : GAP_TRUNCATED);
    f->ktime_ns = f->event->header.ktime_ns;
}

/* Two threads moved bytes at once: in which order is not known, nor which requests wait now. */
static void overlap(struct feed *f)
{
    struct connection *c = f->c;
    f->s->seen = f->event->pos;
    if (c->opaque)
        return;
    count_gap(f, GAP_OVERLAP);
    kept_disown(f, LEDGER_LOST);
    c->pipelined |= c->kind && is_request(f); /* and two requests at once are not those of a client that waits */
    loss_of_requests(f->core, c, false);
    pairing_drop_all(f->core, c);
    stream_lose(f->core, c, f->direction, LEDGER_LOST);
}

/* Is the chunk where the one before it ended? False: its place is a guess. */
static bool arrive(struct feed *f)
{
    struct stream *s = f->s;
    const struct chunk_event *e = f->event;
    bool in_place = true;
    if (s->seen == 0) { /* the first that came: what was lost before it has no size */
        s->seen = e->pos;
        if (s->told && s->sync == SYNC_NEW) {
            count_gap(f, s->told & TOLD_UNSENT ? GAP_LOST : GAP_SHED);
            f->c->late = true; /* its first bytes are as unknown as those of one that was joined */
            conclude(f, HOLE_TOLD);
            stream_lose(f->core, f->c, f->direction, LEDGER_LOST);
        }
    }
    bool guessed = (e->header.flags & (CHUNK_OVERLAP | CHUNK_CONTINUED)) == CHUNK_OVERLAP;
    if (guessed || e->pos < s->seen) {
        overlap(f);
        in_place = false;
    } else if (e->pos > s->seen) {
        missing(f, e->pos - s->seen);
    }
    s->told = TOLD_NOTHING;
    return in_place;
}

/* Whether the call ends as an answer ends whose framing was lost from sight. */
static bool terminates(const struct connection *c, const struct chunk_event *e)
{
    const char *terminator = protocol_of(c) ? protocol_of(c)->terminator : NULL;
    size_t n = terminator ? strlen(terminator) : 0;
    uint32_t captured = (uint32_t)e->head + e->tail;
    bool to_the_end = e->offset + captured == e->size || e->tail >= n;
    return n && to_the_end && captured >= n && memcmp(e->payload + captured - n, terminator, n) == 0;
}

void stream_chunk(struct core *core, struct connection *c, unsigned direction, const struct chunk_event *e)
{
    struct process *process = process_of(core, e->tgid);
    struct stream *s = &c->streams[direction];
    struct feed f = {.core = core, .c = c, .s = s, .event = e, .ledger = &process->ledger,
                     .direction = direction, .ktime_ns = e->header.ktime_ns};
    core->stats.processes_refused += process == &core->others;
    f.overtakes = loss_told(core, c, e->unsent_chunks, e->shed_chunks, e);
    bool in_place = arrive(&f);
    f.as = s->sync == SYNC_LOST ? s->lost_as : LEDGER_UNKNOWN;
    f.parsed = false;
    bool at_start = in_place && !(e->header.flags & CHUNK_CONTINUED) && e->offset == 0;
    uint32_t middle = e->size - e->offset - e->head - e->tail;
    feed_hole(&f, e->offset, HOLE_INSIDE, GAP_TRUNCATED);
    bool to_the_end = middle == 0 && e->tail == 0;
    feed_bytes(&f, e->payload, e->head, at_start, to_the_end);
    feed_hole(&f, middle, HOLE_INSIDE, GAP_TRUNCATED);
    feed_bytes(&f, e->payload + e->head, e->tail, false, true);
    if (is_answer(&f)) {
        c->answered_ktime = e->header.ktime_ns;
        if (c->sits_out)
            c->sits_out = SITS_OUT_ANSWERED;
        if (s->sync == SYNC_LOST && terminates(c, e))
            loss_finish_unseen(core, c);
    }
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
    p->size_unknown |= s->told && sender_of(c, direction) == SENDER_SERVER;
    if (sender_of(c, direction) == SENDER_SERVER)
        pairing_finish(core, p, OUTCOME_ANSWERED, c->answered_ktime ? c->answered_ktime : ktime_ns);
    else
        p->request_ended = true;
}
