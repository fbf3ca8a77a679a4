/* SPDX-License-Identifier: Apache-2.0 */
/* The queue of requests of a connection, and the making of a span row; see pairing.h. */
#include "pairing.h"
#include "insights.h"
#include "linking.h"
#include "loss.h"
#include "series.h"

#define FINISH_ROOM 4096          /* what finish() and the link may append */
#define TRACESTATE_MAX 512        /* W3C trace context, 3.3.1.1: at least 512 characters are passed on */
#define ARENA_FIRST (256 * 1024)

static uint32_t padded(uint32_t n)
{
    return (n + 7) & ~7U;
}

static struct pending *pending_new(struct core *core, struct connection *c, uint32_t tracestate,
                                   uint32_t attributes)
{
    struct pending *p = core_allocate(core, NULL, 0, sizeof(*p));
    if (p == NULL)
        return NULL;
    p->capacity = padded(tracestate) + attributes;
    p->data = p->capacity ? core_allocate(core, NULL, 0, p->capacity) : NULL;
    if (p->capacity && p->data == NULL) {
        core_allocate(core, p, sizeof(*p), 0);
        return NULL;
    }
    core->requests_bytes += sizeof(*p) + p->capacity;
    p->connection = c;
    if (c->last)
        c->last->next = p;
    else
        c->first = p;
    c->last = p;
    c->pending++;
    return p;
}

/* Appends to the attributes of the exchange. */
static void add_attributes(struct core *core, struct pending *p, const struct builder *attributes)
{
    if (attributes->size == 0)
        return;
    uint32_t used = padded(p->tracestate_size) + p->attributes_size;
    uint8_t *data = core_allocate(core, p->data, p->capacity, (size_t)used + attributes->size);
    if (data == NULL) {
        core->stats.attributes_left_out++;
        return;
    }
    p->data = data;
    core->requests_bytes += used + attributes->size - p->capacity;
    p->capacity = used + attributes->size;
    memcpy(p->data + used, attributes->data, attributes->size);
    p->attributes_size += attributes->size;
}

/* Takes the exchange out of every list that knows it. */
static void pending_free(struct core *core, struct pending *p)
{
    struct connection *c = p->connection;
    struct pending *searched = c->first->searched;
    for (struct pending **at = &c->first, *before = NULL; *at; before = *at, at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            if (c->last == p)
                c->last = before;
            break;
        }
    c->pending--;
    if (c->kind == KIND_CLIENT && c->first)
        c->first->searched = searched == p ? p->next : searched;
    if (p->next && p->next->batch_first == p->batch_first && p->next->batch_first != p->next)
        p->next->batch = p->batch;
    for (int i = 0; i < 2; i++)
        if (c->streams[i].current == p)
            c->streams[i].current = NULL;
    link_close(core, p);
    core->requests_bytes -= sizeof(*p) + p->capacity;
    core_allocate(core, p->data, p->capacity, 0);
    core_allocate(core, p, sizeof(*p), 0);
}

static void count_dropped(struct core *core, uint32_t tgid)
{
    process_of(core, tgid)->ledger.orphans++;
    core->stats.requests_dropped++;
}

/* Where the batch of the last request is counted; NULL: who asks now begins another. */
static struct pending *open_batch(const struct pending *last)
{
    return last && !last->followed && !last->responded && !last->unanswered ? last->batch_first : NULL;
}

void pairing_batch_unknown(struct connection *c)
{
    struct pending *first = open_batch(c->last);
    if (first)
        first->batch = (uint32_t)BATCH_UNKNOWN;
}

/* What a step says of the request as a whole. */
static void take_request(struct pending *p, const struct step *step)
{
    struct pending *first = p->followed ? p : p->batch_first;
    if (p->silent && !step->silent && first->batch != (uint32_t)BATCH_UNKNOWN)
        first->batch++;
    p->hint |= step->hint;
    p->silent = step->silent;
    p->unanswered = step->unanswered;
    p->traits |= step->traits;
    if (step->shape) {
        p->shape = step->shape;
        p->exact = step->exact;
    }
    if (step->key)
        p->key = step->key;
}

struct pending *pairing_request(struct core *core, struct connection *c, const struct chunk_event *event,
                                const struct stream *s, const struct step *step, const uint8_t *window,
                                const struct builder *attributes)
{
    if (s->message_ktime < c->unmatched_ktime) {
        /* Its record came later than events are held, behind its own answer, which was matched with nothing.
         * To wait for another one would shift all that follow. */
        count_dropped(core, event->tgid);
        return NULL;
    }
    bool room = c->pending < core->config.pending_max && core->requests_bytes < core->config.buffer_bytes_max;
    uint32_t tracestate = step->tracestate.length <= TRACESTATE_MAX ? step->tracestate.length : 0;
    struct pending *batch = open_batch(c->last);
    struct pending *p = room && !c->unsure && !c->sits_out ? pending_new(core, c, tracestate, attributes->size) : NULL;
    if (p == NULL) {
        /* Those before it keep their place. Behind it no answer can be told apart, if there are others. */
        loss_of_place(c);
        count_dropped(core, event->tgid);
        return NULL;
    }
    p->start_ktime = s->message_ktime;
    p->start_pos = s->message_pos;
    p->tgid = event->tgid;
    p->tid = event->header.tid;
    p->tracestate_size = tracestate;
    if (tracestate)
        memcpy(p->data, window + step->tracestate.offset, tracestate);
    p->attributes_size = attributes->size;
    if (attributes->size)
        memcpy(p->data + padded(tracestate), attributes->data, attributes->size);
    p->silent = true;
    p->batch_first = batch ? batch : p;
    take_request(p, step);
    link_request(core, p, &step->context);
    if (c->kind == KIND_SERVER)
        link_open(core, p);
    return p;
}

void pairing_request_more(struct core *core, struct pending *p, const struct step *step,
                          const struct builder *attributes)
{
    take_request(p, step);
    add_attributes(core, p, attributes);
}

/* The oldest request that the answer may be to. */
static struct pending *answered_by(const struct connection *c, const struct step *step)
{
    struct pending *p = c->first;
    while (step->answers && p && !(p->hint & step->answers))
        p = p->next;
    return p;
}

/* Nothing will answer it: what made no span anyway is forgotten, of the others the client hears, if at all, by the
 * failure before them. */
static void make_void(struct core *core, struct pending *p)
{
    core->stats.requests_void += !p->silent;
    pending_free(core, p);
}

struct pending *pairing_response(struct core *core, struct connection *c, const struct stream *s,
                                 const struct step *step, const struct builder *attributes)
{
    struct pending *p = answered_by(c, step);
    /* An answer that began before its request answers something that was not seen. */
    if (p == NULL || p->responded || p->start_ktime > s->message_ktime) {
        core->stats.responses_unmatched++;
        c->unmatched_ktime = s->message_ktime;
        return NULL;
    }
    c->last->followed = true; /* before any goes: the last may name a batch by one of them */
    while (c->first != p)
        make_void(core, c->first);
    if (step->voids) {
        make_void(core, p);
        return NULL;
    }
    p->responded = true;
    pairing_response_more(core, p, step, attributes);
    return p;
}

void pairing_response_more(struct core *core, struct pending *p, const struct step *step,
                           const struct builder *attributes)
{
    add_attributes(core, p, attributes);
    if (step->begins || step->status)
        p->status = step->status;
    p->failed |= step->failed;
}

/* Room for one more row and `bytes` in the arena; false when memory is short. */
static bool batch_reserve(struct core *core, struct batch *b, uint64_t bytes)
{
    if (b->count == b->rows_capacity) {
        uint32_t capacity = b->rows_capacity ? b->rows_capacity * 2 : 256;
        struct span_row *rows = core_allocate(core, b->rows, (size_t)b->rows_capacity * sizeof(*rows),
                                              (size_t)capacity * sizeof(*rows));
        if (rows == NULL)
            return false;
        b->rows = rows;
        b->rows_capacity = capacity;
    }
    if (b->size + bytes > b->capacity) {
        uint64_t capacity = b->capacity ? b->capacity : ARENA_FIRST;
        while (capacity < b->size + bytes)
            capacity *= 2;
        if (capacity > UINT32_MAX)
            return false;
        uint8_t *arena = core_allocate(core, b->arena, b->capacity, capacity);
        if (arena == NULL)
            return false;
        b->arena = arena;
        b->capacity = capacity;
    }
    return true;
}

void pairing_finish(struct core *core, struct pending *p, enum outcome outcome, uint64_t end_ktime)
{
    struct connection *c = p->connection;
    if (p->silent && !p->failed) {
        pending_free(core, p);
        return;
    }
    if (c->guessed) {
        pairing_drop(core, p);
        return;
    }
    struct process *process = process_of(core, p->tgid);
    struct batch *batch = &core->batches[core->filling];
    uint32_t state = padded(p->tracestate_size);
    core->stats.requests_unanswered += outcome != OUTCOME_ANSWERED;
    if (!batch_reserve(core, batch, (uint64_t)state + p->attributes_size + FINISH_ROOM + 256)) {
        core->stats.spans_refused++;
        pending_free(core, p);
        return;
    }
    uint8_t *list = batch->arena + batch->size + state;
    memcpy(batch->arena + batch->size, p->data, p->tracestate_size);
    memcpy(list, p->data + state, p->attributes_size);

    struct exchange exchange = {
        .kind = c->kind,
        .outcome = outcome,
        .responded = p->responded,
        .failed = p->failed,
        .batch = p->batch == (uint32_t)BATCH_UNKNOWN ? 0 : p->batch,
        .hint = p->hint,
        .status = p->status,
        .request_body = p->request_ended ? (int64_t)p->request_body : -1,
        .response_body = p->responded && !p->size_unknown && outcome == OUTCOME_ANSWERED ? (int64_t)p->response_body : -1,
        .options = &core->config.protocol,
        .attributes = list,
        .attributes_size = p->attributes_size,
        .routes = process->routes,
    };
    struct builder out = {.data = list, .size = p->attributes_size, .capacity = p->attributes_size + FINISH_ROOM};
    struct finished finished = {.metric = METRIC_COUNT, .value_metric = METRIC_COUNT};
    protocol_of(c)->finish(&exchange, &finished, &out);
    static const char *const methods[] = {NULL, "traceparent", "connection", "thread"};
    if (methods[p->link])
        builder_text(&out, KEY_LINK_METHOD, methods[p->link], strlen(methods[p->link]), 64);
    if (end_ktime < p->start_ktime)
        end_ktime = p->start_ktime;
    if (protocol_is_database(c->protocol_id))
        insights_statement(core, p, end_ktime, &out);
    core->stats.attributes_left_out += out.left_out;
    uint32_t series = UINT32_MAX;
    if (finished.metric < METRIC_COUNT)
        series = series_add(core, p->tgid, finished.metric, c->kind, list, out.size, p->start_ktime,
                            (double)(end_ktime - p->start_ktime) / 1e9);
    if (finished.value_metric < METRIC_COUNT)
        series_add(core, p->tgid, finished.value_metric, c->kind, list, out.size, p->start_ktime, finished.value);
    if (!(p->trace_flags & 1)) {
        core->stats.spans_unsampled++;
        pending_free(core, p);
        return;
    }
    struct span_row *row = &batch->rows[batch->count++];
    *row = (struct span_row){
        .start_ktime_ns = p->start_ktime,
        .end_ktime_ns = end_ktime,
        .conn_id = c->id,
        .tgid = p->tgid,
        .tid = p->tid,
        .tracestate_offset = (uint32_t)batch->size,
        .tracestate_size = p->tracestate_size,
        .attributes_offset = (uint32_t)(batch->size + state),
        .attributes_size = out.size,
        .name_offset = (uint32_t)(batch->size + state + out.size),
        .name_size = finished.name_size,
        .kind = c->kind,
        .status = (uint8_t)finished.status,
        .link = p->link,
        .protocol = c->protocol_id,
        .trace_flags = p->trace_flags,
        .remote_parent = p->remote_parent,
        .series = series,
    };
    memcpy(row->trace_id, p->trace_id, sizeof(row->trace_id));
    memcpy(row->span_id, p->span_id, sizeof(row->span_id));
    memcpy(row->parent_id, p->parent_id, sizeof(row->parent_id));
    memcpy(list + out.size, finished.name, finished.name_size);
    batch->size += state + out.size + padded(finished.name_size);
    core->stats.spans++;
    process->ledger.spans++;
    pending_free(core, p);
}

void pairing_drop(struct core *core, struct pending *p)
{
    if (!p->silent)
        count_dropped(core, p->tgid);
    pending_free(core, p);
}

void pairing_drop_all(struct core *core, struct connection *c)
{
    while (c->first)
        pairing_drop(core, c->first);
}

void pairing_drop_unanswered(struct core *core, struct connection *c)
{
    struct pending *answered = c->first && c->first->responded ? c->first : NULL;
    if (answered && answered->next)
        answered->accompanied = true;
    while (answered ? answered->next : c->first)
        pairing_drop(core, answered ? answered->next : c->first);
}

void pairing_finish_all(struct core *core, struct connection *c, enum outcome outcome, uint64_t ktime_ns)
{
    while (c->first)
        pairing_finish(core, c->first, outcome, ktime_ns);
}
