/* SPDX-License-Identifier: Apache-2.0 */
/* Events of one direction to messages: the only place where positions and holes are known.
 *
 * A chunk is three parts, in order: bytes that the core asked not to be copied, the captured head, a part
 * that the budget left out, the captured tail. Each part is fed on its own: feed_hole(), feed_bytes(). */
#include "demand.h"
#include "loss.h"
#include "messages.h"
#include "pairing.h"
#include "recognition.h"

void stream_free(struct core *core, struct stream *s)
{
    kept_drop(core, s);
}

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

/* Bytes that were not understood may hold the answer to anything that waits, or ask for another one. */
static void hidden(struct feed *f)
{
    if (is_answer(f) && f->c->first)
        loss_of_answers(f->core, f->c);
    else if (f->c->kind && is_request(f) && protocol_of(f->c) && !f->rest_is_its)
        loss_of_place(f->c);
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
    f->rest_is_its = is_request(f) && all_of_one && waits;
    if (f->rest_is_its)
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

/* Frames: what they hold to the parser. How many of these bytes were read. */
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
            messages_refuse(f);
        used += got.used;
        more = got.more;
        if (got.passed)
            messages_pass_over(f, got.passed);
        if (got.size)
            messages_read(f, got.bytes, got.size, got.pos, got.ktime_ns);
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
        if (at_start && recognize_again(f, bytes, n))
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
    if (undecided && !recognize(f, bytes, n))
        return;
    account(f, LEDGER_PARSED, n);
    size_t used = compressed_of(c) ? read_frames(f, bytes, n, base)
                                : messages_read(f, bytes, n, base, f->event->header.ktime_ns);
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
        messages_pass_over(f, passed.passed);
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
    messages_disown(f, as);
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
    messages_disown(f, LEDGER_LOST);
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
