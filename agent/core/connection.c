/* SPDX-License-Identifier: Apache-2.0 */
/* Opens, finds, ages and closes connections; see connection.h. */
#include "connection.h"
#include "pairing.h"

#define SWEEP_NS 1000000000ULL /* time-outs are seconds: look once a second */
#define INVALID_MAX 8          /* messages refused in a row before the connection counts as unknown */

static uint64_t tuple_key(const uint8_t *from, uint16_t from_port, const uint8_t *to, uint16_t to_port)
{
    uint64_t a[2], b[2];
    memcpy(a, from, 16);
    memcpy(b, to, 16);
    uint64_t key = table_mix(a[1] + 0x9e3779b97f4a7c15ULL * from_port) ^ table_mix(a[0] + 1);
    key = table_mix(key + b[1]) + table_mix(b[0] + 2) + 0xc2b2ae3d27d4eb4fULL * to_port;
    return key ? key : 1;
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

static void tuple_insert(struct core *core, struct connection *c)
{
    const struct open_event *o = &c->open;
    c->tuple_key = tuple_key(o->local_address, o->local_port, o->remote_address, o->remote_port);
    c->tuple_next = table_get(&core->tuples, c->tuple_key);
    if (!table_put(&core->tuples, c->tuple_key, c))
        c->tuple_key = 0; /* memory is short: this connection cannot be linked */
}

static void tuple_remove(struct core *core, struct connection *c)
{
    if (c->tuple_key == 0)
        return;
    struct connection *at = table_get(&core->tuples, c->tuple_key);
    if (at == c) {
        if (c->tuple_next)
            table_put(&core->tuples, c->tuple_key, c->tuple_next);
        else
            table_remove(&core->tuples, c->tuple_key);
    }
    for (; at && at != c; at = at->tuple_next)
        if (at->tuple_next == c) {
            at->tuple_next = c->tuple_next;
            break;
        }
    c->tuple_key = 0;
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
        stream_end(core, c, direction, h->ktime_ns);
        /* No answer can come any more; a client that half-closes still waits for one. */
        if (c->kind == 0 || sender_of(c, direction) == SENDER_SERVER || h->flags & CHUNK_RESET)
            pairing_finish_all(core, c, outcome, h->ktime_ns);
        return;
    }
    for (unsigned i = 0; i < 2; i++)
        stream_end(core, c, i, h->ktime_ns);
    pairing_finish_all(core, c, outcome, h->ktime_ns);
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

bool tuple_mirrors(const struct connection *a, const struct connection *b)
{
    const struct open_event *x = &a->open, *y = &b->open;
    return x->local_port == y->remote_port && x->remote_port == y->local_port &&
           memcmp(x->local_address, y->remote_address, 16) == 0 &&
           memcmp(x->remote_address, y->local_address, 16) == 0;
}

struct connection *connection_mirrors(struct core *core, const struct connection *c)
{
    const struct open_event *o = &c->open;
    return table_get(&core->tuples,
                     tuple_key(o->remote_address, o->remote_port, o->local_address, o->local_port));
}

/* The slot of a connection, taken over from whoever had it before: a demand is advice, and a
 * connection that lost its slot is captured by the default. */
static struct demand *demand_of(struct core *core, const struct connection *c)
{
    if (core->demands == NULL)
        return NULL;
    struct demand *d = &core->demands[c->id % DEMAND_SLOTS];
    if (d->conn_id != c->id) {
        __atomic_store_n(&d->conn_id, 0, __ATOMIC_RELEASE);
        d->skip_to[0] = d->skip_to[1] = 0;
        d->mode[0] = d->mode[1] = DEMAND_DEFAULT;
        d->protocol = PROTOCOL_UNDECIDED;
        __atomic_store_n(&d->conn_id, c->id, __ATOMIC_RELEASE);
    }
    return d;
}

void demand_skip(struct core *core, const struct connection *c, unsigned direction, uint64_t skip_to)
{
    struct demand *d = demand_of(core, c);
    if (d)
        __atomic_store_n(&d->skip_to[direction], skip_to, __ATOMIC_RELEASE);
}

void demand_mode(struct core *core, const struct connection *c, unsigned direction, enum demand_mode mode)
{
    struct demand *d = demand_of(core, c);
    if (d)
        __atomic_store_n(&d->mode[direction], (uint8_t)mode, __ATOMIC_RELEASE);
}

void demand_protocol(struct core *core, const struct connection *c, uint8_t protocol)
{
    struct demand *d = demand_of(core, c);
    if (d == NULL)
        return;
    __atomic_store_n(&d->protocol, protocol, __ATOMIC_RELEASE);
    if (protocol == PROTOCOL_UNKNOWN)
        for (unsigned i = 0; i < 2; i++)
            demand_mode(core, c, i, DEMAND_NOTHING);
}
