/* SPDX-License-Identifier: Apache-2.0 */
/* Opens, finds, ages and closes connections; see connection.h. */
#include "connection.h"
#include "demand.h"
#include "insights.h"
#include "loss.h"
#include "pairing.h"
#include "tuples.h"

#define SWEEP_NS 1000000000ULL /* time-outs are seconds: look once a second */
#define INVALID_MAX 8          /* messages refused in a row before the connection counts as unknown */

static uint64_t own_id(const void *entry)
{
    return table_mix(((const struct connection *)entry)->id);
}

#define BY_ID ((struct chain_of){offsetof(struct connection, id_next), own_id})

/* The path takes what the structure has for padding. */
static size_t size_with(uint16_t path_size)
{
    size_t size = offsetof(struct connection, path) + path_size;
    return size < sizeof(struct connection) ? sizeof(struct connection) : size;
}

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

static void session_free(struct core *core, struct connection *c)
{
    const struct protocol *protocol = protocol_of(c);
    if (c->session == NULL)
        return;
    insights_forget(core, c);
    compression_free(core, c->session->compressed);
    if (protocol->session_end)
        protocol->session_end(c->session->shared, core->statements);
    core_allocate(core, c->session, sizeof(*c->session) + protocol->session_size, 0);
    c->session = NULL;
}

static void connection_free(struct core *core, struct connection *c)
{
    pairing_drop_all(core, c);
    stream_free(core, &c->streams[0]);
    stream_free(core, &c->streams[1]);
    session_free(core, c);
    tuple_remove(core, c);
    recent_unlink(core, c);
    chains_remove(&core->connections, c, BY_ID);
    core->stats.connections--;
    core_allocate(core, c, size_with(c->path_size), 0);
}

void connections_free(struct core *core)
{
    while (core->oldest)
        connection_free(core, core->oldest);
    free(core->connections.heads);
    free(core->tuples.heads);
}

struct connection *connection_find(struct core *core, uint64_t conn_id)
{
    struct connection *c = chains_first(&core->connections, table_mix(conn_id));
    while (c && c->id != conn_id)
        c = c->id_next;
    return c;
}

static void endpoints_copy(struct endpoints *to, const struct open_event *from)
{
    memcpy(to->local_address, from->local_address, sizeof(to->local_address));
    memcpy(to->remote_address, from->remote_address, sizeof(to->remote_address));
    to->local_port = from->local_port;
    to->remote_port = from->remote_port;
    to->netns = from->netns;
    to->tgid = from->tgid;
    to->peer_tgid = from->peer_tgid;
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
    uint16_t path_size = event->transport == TRANSPORT_UNIX ? event->path_size : 0;
    if (path_size > UNIX_PATH_MAX)
        path_size = UNIX_PATH_MAX;
    c = core_allocate(core, NULL, 0, size_with(path_size));
    if (c == NULL)
        return;
    c->id = event->header.conn_id;
    c->transport = event->transport;
    c->path_size = path_size;
    memcpy(c->path, event->path, path_size);
    endpoints_copy(&c->open, event);
    c->active_ns = event->header.ktime_ns;
    if (event->role == ROLE_CLIENT)
        c->kind = KIND_CLIENT;
    else if (event->role == ROLE_SERVER)
        c->kind = KIND_SERVER;
    if (!chains_add(&core->connections, c, BY_ID)) {
        core_allocate(core, c, size_with(path_size), 0);
        return;
    }
    core->stats.connections++;
    recent_append(core, c);
    tuple_insert(core, c);
    c->joined = event->header.flags & OPEN_AGAIN;
    c->assumed = c->late = event->header.flags & (OPEN_LATE | OPEN_AGAIN);
    if (c->assumed)
        for (int i = 0; i < 2; i++) {
            c->streams[i].sync = SYNC_LOST;
            c->streams[i].lost_as = LEDGER_LATE;
        }
}

void connection_chunk(struct core *core, struct connection *c, const struct chunk_event *event)
{
    uint64_t now = event->header.ktime_ns;
    if (c->assumed && c->first == NULL && now > c->active_ns &&
        now - c->active_ns >= core->config.request_timeout_ns) {
        c->assumed = c->unsure = c->batched = false; /* whatever was asked and not seen would have timed out */
        c->sits_out = SITS_OUT_NOT;
    }
    touch(core, c, now);
    c->open.tgid = event->tgid;
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
 * as anyone can tell, when the connection was closed in order (though not how it ended, where the outcome stands at
 * its end); was it when the connection was reset, with records lost before, nobody knows. */
static void finish_all(struct core *core, struct connection *c, enum outcome outcome, uint64_t ktime_ns)
{
    struct pending *p = c->first;
    if (p == NULL)
        return;
    struct stream *answers = &c->streams[answers_direction(c)];
    bool lost = answers->told || (answers->sync == SYNC_LOST && answers->lost_as == LEDGER_LOST);
    if (p->responded && lost) {
        p->size_unknown = true;
        loss_of_answers(core, c); /* behind p */
        if (outcome == OUTCOME_RESET)
            pairing_drop_all(core, c);
    }
    if (c->first && p->responded && p->size_unknown && outcome == OUTCOME_CLOSED) {
        if (protocol_of(c)->resync_end && !p->failed)
            pairing_drop(core, p);
        else
            pairing_finish(core, p, OUTCOME_ANSWERED, c->answered_ktime);
    }
    pairing_finish_all(core, c, outcome, ktime_ns);
}

/* Losses that no chunk came after. */
static void count_last_gaps(struct core *core, const struct connection *c)
{
    uint32_t *gaps = process_of(core, c->open.tgid)->ledger.gaps[c->protocol_id];
    for (int i = 0; i < 2; i++)
        if (c->streams[i].told && !c->opaque)
            gaps[c->streams[i].told & TOLD_UNSENT ? GAP_LOST : GAP_SHED]++;
}

void connection_end(struct core *core, struct connection *c, const struct close_event *event)
{
    const struct event_header *h = &event->header;
    enum outcome outcome = h->flags & CHUNK_RESET ? OUTCOME_RESET : OUTCOME_CLOSED;
    loss_told(core, c, event->unsent_chunks, event->shed_chunks, NULL);
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
    count_last_gaps(core, c);
    connection_free(core, c);
}

/* The end of a Unix socket whose process was killed is told by nobody. One that several processes use is
 * left alone, unless the one that ended was the last to use it. */
static void close_of_gone(struct core *core)
{
    uint64_t reported_ns = core->gone_ns;
    core->gone_ns = 0;
    for (struct connection *c = core->oldest, *newer; c; c = newer) {
        newer = c->newer;
        const struct process *process = table_get(&core->processes, c->open.tgid);
        if (c->transport != TRANSPORT_UNIX || process == NULL || !process->gone)
            continue;
        for (unsigned i = 0; i < 2; i++)
            stream_end(core, c, i, reported_ns);
        finish_all(core, c, OUTCOME_CLOSED, reported_ns);
        count_last_gaps(core, c);
        connection_free(core, c);
    }
    const struct table *t = &core->processes; /* another process may get the same id */
    for (uint32_t i = 0; t->mask && i <= t->mask; i++)
        if (t->slots[i].key)
            ((struct process *)t->slots[i].value)->gone = false;
}

void connections_sweep(struct core *core)
{
    if (core->now_ns < core->swept_ns + SWEEP_NS)
        return;
    core->swept_ns = core->now_ns;
    if (core->gone_ns && core->now_ns >= core->gone_ns + SWEEP_NS)
        close_of_gone(core);
    insights_sweep(core);
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
