/* SPDX-License-Identifier: Apache-2.0 */
/* Windows of a stream to steps of its parser, and those to messages; see messages.h. */
#include "messages.h"
#include "demand.h"
#include "insights.h"
#include "loss.h"
#include "pairing.h"

/* So much of a message is captured whole, where the framing runs through its body. What is longer is
 * followed by the first bytes of each call (FRAMING_BYTES, bpf/chunk.bpf.h), or not at all: copying a
 * download of any length would slow it down. */
#define WHOLE_MAX (1024 * 1024)

/* Where several processes wrote one message, its first bytes' is corrected; who ended since has no row. Bytes that
 * were inflated were understood, and are not those that were counted. */
void messages_disown(struct feed *f, enum ledger_class as)
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

void messages_pass_over(struct feed *f, uint64_t n)
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

/* Nothing of the connection is read any more. */
static void give_up(struct feed *f, enum ledger_class as)
{
    f->c->opaque = true;
    for (unsigned i = 0; i < 2; i++)
        stream_lose(f->core, f->c, i, as);
}

/* The connection leaves its protocol (upgrade, tunnel, TLS): what follows is not ours. */
static void become_opaque(struct feed *f, enum ledger_class as)
{
    give_up(f, as);
    demand_protocol(f->core, f->c, as == LEDGER_ENCRYPTED ? PROTOCOL_ENCRYPTED : PROTOCOL_UNKNOWN);
}

void messages_decline(struct feed *f, enum ledger_class as)
{
    give_up(f, as);
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
        messages_decline(f, LEDGER_UNKNOWN);
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

void messages_refuse(struct feed *f)
{
    f->core->stats.messages_invalid++;
    count_gap(f, GAP_INVALID);
    f->c->invalid++;
    messages_disown(f, LEDGER_UNKNOWN);
    loss_of_requests(f->core, f->c, false);
    pairing_drop_all(f->core, f->c);
    stream_lose(f->core, f->c, f->direction, LEDGER_UNKNOWN);
}

/* The guess was wrong: nobody has spoken that protocol. */
static void withdraw(struct feed *f)
{
    messages_disown(f, LEDGER_UNKNOWN);
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
            messages_pass_over(f, n);
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
        if (status != PARSE_OK || consumed == 0 || !kept_put_state(core, s, state)) {
            messages_refuse(f);
            return used;
        }
        take_step(f, &step, window + used, consumed, step_ktime, &attributes);
        used += consumed;
        if (step.compression)
            become_compressed(f, (enum compression)step.compression, used < length);
    }
    return used;
}

/* What is kept of an incomplete step is `n` bytes more: is it complete now? */
static void read_kept(struct feed *f, const uint8_t *bytes, size_t n, uint64_t base)
{
    struct core *core = f->core;
    struct stream *s = f->s;
    uint64_t first_ktime = s->kept->ktime_ns;
    base -= s->kept->length;
    if (!kept_add(core, s, f->event->tgid, f->event->header.ktime_ns, bytes, n)) {
        core->stats.buffers_refused++;
        messages_refuse(f);
        return;
    }
    if (s->kept->length < s->kept->need)
        return;
    f->need = 0;
    f->tried = s->kept->tried;
    size_t used = read_steps(f, s->kept->bytes, s->kept->length, base, first_ktime);
    if (s->sync != SYNC_OK || s->kept == NULL) /* refused, or left the protocol: nothing is kept */
        return;
    if (used < s->kept->length) {
        s->kept->need = f->need;
        s->kept->tried = f->tried;
    }
    kept_take(core, s, used, f->event->header.ktime_ns);
}

size_t messages_read(struct feed *f, const uint8_t *bytes, size_t n, uint64_t base, uint64_t ktime_ns)
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
    if (kept_add(core, s, f->event->tgid, ktime_ns, bytes + used, n - used)) {
        s->kept->need = f->need;
        s->kept->tried = f->tried;
        return n;
    }
    core->stats.buffers_refused++;
    messages_refuse(f);
    return used;
}
