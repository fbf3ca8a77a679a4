/* SPDX-License-Identifier: Apache-2.0 */
/* The table of address tuples; see tuples.h. Equal tuples (of two network namespaces, or of a connection
 * whose end has not been told yet) stand in a chain, the newest first. */
#include "tuples.h"

static uint64_t tuple_key(const uint8_t *from, uint16_t from_port, const uint8_t *to, uint16_t to_port)
{
    uint64_t a[2], b[2];
    memcpy(a, from, 16);
    memcpy(b, to, 16);
    uint64_t key = table_mix(a[1] + 0x9e3779b97f4a7c15ULL * from_port) ^ table_mix(a[0] + 1);
    key = table_mix(key + b[1]) + table_mix(b[0] + 2) + 0xc2b2ae3d27d4eb4fULL * to_port;
    return key ? key : 1;
}

void tuple_insert(struct core *core, struct connection *c)
{
    const struct open_event *o = &c->open;
    c->tuple_key = tuple_key(o->local_address, o->local_port, o->remote_address, o->remote_port);
    c->tuple_next = table_get(&core->tuples, c->tuple_key);
    if (!table_put(&core->tuples, c->tuple_key, c))
        c->tuple_key = 0; /* memory is short: this connection cannot be linked */
}

void tuple_remove(struct core *core, struct connection *c)
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

static bool is_loopback(const uint8_t *address)
{
    static const uint8_t one[16] = {[15] = 1}, mapped[13] = {[10] = 0xff, 0xff, 127};
    return memcmp(address, mapped, sizeof(mapped)) == 0 || memcmp(address, one, sizeof(one)) == 0;
}

/* Each network namespace has a loopback of its own, and packets of it never leave. Other addresses are
 * seen from several: through a veth, a bridge, a route between them. */
static bool may_meet(const struct open_event *x, const struct open_event *y)
{
    return x->netns == y->netns || !(is_loopback(x->local_address) || is_loopback(x->remote_address));
}

bool tuple_mirrors(const struct connection *a, const struct connection *b)
{
    const struct open_event *x = &a->open, *y = &b->open;
    return may_meet(x, y) && x->local_port == y->remote_port && x->remote_port == y->local_port &&
           memcmp(x->local_address, y->remote_address, 16) == 0 &&
           memcmp(x->remote_address, y->local_address, 16) == 0;
}

struct connection *tuple_partners(struct core *core, const struct connection *c)
{
    const struct open_event *o = &c->open;
    return table_get(&core->tuples,
                     tuple_key(o->remote_address, o->remote_port, o->local_address, o->local_port));
}
