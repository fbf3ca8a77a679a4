/* SPDX-License-Identifier: Apache-2.0 */
/* Parents and trace ids; see linking.h.
 *
 * Two links are certain. The two ends of one TCP connection on this host name the first byte of a
 * request by the same TCP sequence number, so the client's span of exactly this request is found, also
 * among pipelined ones. And a thread that has exactly one incoming request open while it sends
 * one out does so on behalf of it. With two candidates there is no link. */
#include "linking.h"
#include "tuples.h"

static bool is_before(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

/* The request that begins at this sequence number; NULL: none. They wait in the order of their positions, and are
 * asked for in that order: the search goes on where it ended. */
static struct pending *find_position(const struct connection *c, uint32_t start_pos)
{
    struct pending *p = c->first ? c->first->searched : NULL;
    if (p == NULL || is_before(start_pos, p->start_pos))
        p = c->first;
    while (p && is_before(p->start_pos, start_pos))
        p = p->next;
    if (p)
        c->first->searched = p;
    return p && p->start_pos == start_pos ? p : NULL;
}

/* The client's side of the request that this server just read. */
static struct pending *other_end(struct core *core, const struct pending *p)
{
    const struct connection *c = p->connection;
    struct pending *found = NULL;
    for (const struct connection *peer = tuple_partners(core, c); peer; peer = peer->tuple_next) {
        if (peer == c || peer->kind != KIND_CLIENT || !tuple_mirrors(peer, c))
            continue;
        struct pending *q = find_position(peer, p->start_pos);
        if (q == NULL || q->start_ktime > p->start_ktime)
            continue;
        if (found) {
            core->stats.links_ambiguous++;
            return NULL;
        }
        found = q;
    }
    return found;
}

static struct pending *on_thread(struct core *core, const struct pending *p)
{
    const struct thread *t = table_get(&core->threads, p->tid);
    if (t == NULL || t->open == 0)
        return NULL;
    if (t->open > 1) {
        core->stats.links_ambiguous++;
        return NULL;
    }
    return t->first;
}

static bool sampled(const struct core *core, const uint8_t *trace_id)
{
    /* The random part of the id, as the SDKs read it (TraceIdRatioBased). */
    uint64_t random = 0;
    for (int i = 8; i < 16; i++)
        random = random << 8 | trace_id[i];
    return core->sampler_limit == UINT64_MAX || random < core->sampler_limit;
}

void link_request(struct core *core, struct pending *p, const struct trace_context *context)
{
    bool server = p->connection->kind == KIND_SERVER;
    struct pending *parent = server ? other_end(core, p) : on_thread(core, p);
    uint64_t id = core_random(core);
    memcpy(p->span_id, &id, sizeof(id));
    /* What the application wrote on the wire decides the trace. Within one trace the nearer parent is
     * right: a proxy passes the header on unchanged, and its own spans lie between. */
    if (parent && (!context->valid || memcmp(parent->trace_id, context->trace_id, 16) == 0)) {
        memcpy(p->trace_id, parent->trace_id, sizeof(p->trace_id));
        memcpy(p->parent_id, parent->span_id, sizeof(p->parent_id));
        p->trace_flags = parent->trace_flags;
        p->link = server ? LINK_CONNECTION : LINK_THREAD;
        if (server)
            core->stats.links_connection++;
        else
            core->stats.links_thread++;
        return;
    }
    if (context->valid) {
        memcpy(p->trace_id, context->trace_id, sizeof(p->trace_id));
        memcpy(p->parent_id, context->span_id, sizeof(p->parent_id));
        p->trace_flags = context->flags;
        p->remote_parent = 1;
        p->link = LINK_TRACEPARENT;
        core->stats.links_traceparent++;
        if (!core->config.sampler_parent_based)
            p->trace_flags = (uint8_t)((p->trace_flags & ~1) | sampled(core, p->trace_id));
        return;
    }
    uint64_t high = core_random(core), low = core_random(core);
    memcpy(p->trace_id, &high, sizeof(high));
    memcpy(p->trace_id + 8, &low, sizeof(low));
    p->link = LINK_NONE;
    p->trace_flags = sampled(core, p->trace_id);
}

void link_open(struct core *core, struct pending *p)
{
    struct thread *t = table_get(&core->threads, p->tid);
    if (t == NULL) {
        t = core_allocate(core, NULL, 0, sizeof(*t));
        if (t == NULL)
            return;
        t->tid = p->tid;
        if (!table_put(&core->threads, p->tid, t)) {
            core_allocate(core, t, sizeof(*t), 0);
            return;
        }
    }
    p->thread_next = t->first;
    p->thread_at = &t->first;
    if (t->first)
        t->first->thread_at = &p->thread_next;
    t->first = p;
    t->open++;
    p->on_thread = true;
}

void link_close(struct core *core, struct pending *p)
{
    if (!p->on_thread)
        return;
    struct thread *t = table_get(&core->threads, p->tid);
    *p->thread_at = p->thread_next;
    if (p->thread_next)
        p->thread_next->thread_at = p->thread_at;
    p->on_thread = false;
    if (--t->open == 0) {
        table_remove(&core->threads, t->tid);
        table_shrink(&core->threads);
        core_allocate(core, t, sizeof(*t), 0);
    }
}
