/* SPDX-License-Identifier: Apache-2.0 */
/* Opens, finds, ages and closes connections; see connection.h. */
#include "connection.h"
#include "demand.h"
#include "pairing.h"
#include "tuples.h"

#define SWEEP_NS 1000000000ULL /* time-outs are seconds: look once a second */
#define INVALID_MAX 8          /* messages refused in a row before the connection counts as unknown */

static void recent_unlink(struct core *core, struct connection *c)
{
    if (c->older)
        c->older->newer = c->newer;
    else
        core->oldest = c->newer;
    if (c->newer)
        c->newer->older = c->older;
    else
        core->newest = c->older;
}

static void recent_append(struct core *core, struct connection *c)
{
    c->older = core->newest;
    c->newer = NULL;
    if (core->newest)
        core->newest->newer = c;
    else
        core->oldest = c;
    core->newest = c;
}

static void touch(struct core *core, struct connection *c, uint64_t ktime_ns)
{
    c->active_ns = ktime_ns;
    if (core->newest != c) {
        recent_unlink(core, c);
        recent_append(core, c);
    }
}

static void connection_free(struct core *core, struct connection *c)
{
    pairing_drop_all(core, c);
    stream_free(core, &c->streams[0]);
    stream_free(core, &c->streams[1]);
    tuple_remove(core, c);
    recent_unlink(core, c);
    table_remove(&core->connections, c->id);
    core->stats.connections--;
    core_allocate(core, c, sizeof(*c), 0);
}

void connections_free(struct core *core)
{
    while (core->oldest)
        connection_free(core, core->oldest);
    free(core->connections.slots);
    free(core->tuples.slots);
}

struct connection *connection_find(struct core *core, uint64_t conn_id)
{
    return table_get(&core->connections, conn_id);
}

void connection_open(struct core *core, const struct open_event *event)
{
    struct connection *c = connection_find(core, event->header.conn_id);
    if (c != NULL || event->header.conn_id == 0)
        return; /* announced again: nothing new */
    if (core->stats.connections >= core->config.connections_max && core->oldest) {
        core->stats.connections_evicted++;
        connection_free(core, core->oldest);
    }
    c = core_allocate(core, NULL, 0, sizeof(*c));
    if (c == NULL)
        return;
    c->id = event->header.conn_id;
    c->open = *event;
    c->active_ns = event->header.ktime_ns;
    if (event->role == ROLE_CLIENT)
        c->kind = KIND_CLIENT;
    else if (event->role == ROLE_SERVER)
        c->kind = KIND_SERVER;
    if (!table_put(&core->connections, c->id, c)) {
        core_allocate(core, c, sizeof(*c), 0);
        return;
    }
    core->stats.connections++;
    recent_append(core, c);
    tuple_insert(core, c);
    if (event->header.flags & (OPEN_LATE | OPEN_AGAIN))
        for (int i = 0; i < 2; i++) {
            c->streams[i].sync = SYNC_LOST;
            c->streams[i].lost_as = LEDGER_LATE;
        }
}

void connection_chunk(struct core *core, struct connection *c, const struct chunk_event *event)
{
    touch(core, c, event->header.ktime_ns);
    stream_chunk(core, c, event->header.direction & 1, event);
    if (c->invalid >= INVALID_MAX && !c->opaque) {
        /* What looked like a protocol of ours is none: stop copying it. */
        c->opaque = true;
        pairing_drop_all(core, c);
        for (int i = 0; i < 2; i++)
            stream_lose(core, c, (unsigned)i, LEDGER_UNKNOWN);
        demand_protocol(core, c, PROTOCOL_UNKNOWN);
    }
}

/* Nothing can answer any more. An answer of which only the body was lost from sight was complete, as far
 * as anyone can tell, when the connection was closed in order. */
static void finish_all(struct core *core, struct connection *c, enum outcome outcome, uint64_t ktime_ns)
{
    struct pending *p = c->first;
    if (p && p->responded && p->size_unknown && outcome == OUTCOME_CLOSED)
        pairing_finish(core, p, OUTCOME_ANSWERED, c->streams[c->kind == KIND_SERVER].last_ktime);
    pairing_finish_all(core, c, outcome, ktime_ns);
}

void connection_end(struct core *core, struct connection *c, const struct close_event *event)
{
    const struct event_header *h = &event->header;
    enum outcome outcome = h->flags & CHUNK_RESET ? OUTCOME_RESET : OUTCOME_CLOSED;
    /* The last chunks were refused by the ring: what still waits was answered, or not, in there. */
    for (unsigned i = 0; i < 2; i++)
        if (event->unsent_chunks[i] > c->streams[i].unsent) {
            c->streams[i].unsent = event->unsent_chunks[i];
            pairing_drop_all(core, c);
            stream_lose(core, c, i, LEDGER_LOST);
        }
    if (h->kind == EVENT_FIN) {
        unsigned direction = h->direction & 1;
        touch(core, c, h->ktime_ns);
        if (outcome == OUTCOME_CLOSED) /* a reset completes nothing (RFC 9112, 8) */
            stream_end(core, c, direction, h->ktime_ns);
        /* No answer can come any more; a client that half-closes still waits for one. */
        if (c->kind == 0 || sender_of(c, direction) == SENDER_SERVER || h->flags & CHUNK_RESET)
            finish_all(core, c, outcome, h->ktime_ns);
        return;
    }
    for (unsigned i = 0; i < 2 && outcome == OUTCOME_CLOSED; i++)
        stream_end(core, c, i, h->ktime_ns);
    finish_all(core, c, outcome, h->ktime_ns);
    connection_free(core, c);
}

void connections_sweep(struct core *core)
{
    if (core->now_ns < core->swept_ns + SWEEP_NS)
        return;
    core->swept_ns = core->now_ns;
    uint64_t request_ns = core->config.request_timeout_ns, idle_ns = core->config.idle_timeout_ns;
    for (struct connection *c = core->oldest, *newer; c; c = newer) {
        newer = c->newer;
        uint64_t quiet_ns = core->now_ns > c->active_ns ? core->now_ns - c->active_ns : 0;
        if (quiet_ns < request_ns && quiet_ns < idle_ns)
            return;
        if (c->first && quiet_ns >= request_ns && !c->first->responded)
            pairing_finish_all(core, c, OUTCOME_TIMEOUT, core->now_ns);
        if (quiet_ns >= idle_ns) {
            core->stats.connections_expired++;
            connection_free(core, c);
        }
    }
}
