/* SPDX-License-Identifier: Apache-2.0 */
/* The table of address tuples; see tuples.h. It chains all connections whose tuples have one hash, among
 * them equal ones (of two network namespaces, or of a connection whose end has not been told yet). */
#include "tuples.h"

static uint64_t tuple_key(const uint8_t *from, uint16_t from_port, const uint8_t *to, uint16_t to_port)
{
    uint64_t a[2], b[2];
    memcpy(a, from, 16);
    memcpy(b, to, 16);
    uint64_t key = table_mix(a[1] + 0x9e3779b97f4a7c15ULL * from_port) ^ table_mix(a[0] + 1);
    return table_mix(key + b[1]) + table_mix(b[0] + 2) + 0xc2b2ae3d27d4eb4fULL * to_port;
}

static uint64_t own_key(const void *entry)
{
    const struct endpoints *o = &((const struct connection *)entry)->open;
    return tuple_key(o->local_address, o->local_port, o->remote_address, o->remote_port);
}

#define BY_TUPLE ((struct chain_of){offsetof(struct connection, tuple_next), own_key})

void tuple_insert(struct core *core, struct connection *c)
{
    chains_add(&core->tuples, c, BY_TUPLE); /* memory is short: this connection cannot be linked */
}

void tuple_remove(struct core *core, struct connection *c)
{
    chains_remove(&core->tuples, c, BY_TUPLE);
}

static bool is_loopback(const uint8_t *address)
{
    static const uint8_t one[16] = {[15] = 1}, mapped[13] = {[10] = 0xff, 0xff, 127};
    return memcmp(address, mapped, sizeof(mapped)) == 0 || memcmp(address, one, sizeof(one)) == 0;
}

/* Each network namespace has a loopback of its own, and packets of it never leave. Other addresses are
 * seen from several: through a veth, a bridge, a route between them; and Unix sockets through a volume. */
static bool may_meet(const struct connection *a, const struct connection *b)
{
    const struct endpoints *x = &a->open;
    return x->netns == b->open.netns || a->transport == TRANSPORT_UNIX ||
           !(is_loopback(x->local_address) || is_loopback(x->remote_address));
}

bool tuple_mirrors(const struct connection *a, const struct connection *b)
{
    const struct endpoints *x = &a->open, *y = &b->open;
    return a->transport == b->transport && may_meet(a, b) && x->local_port == y->remote_port &&
           x->remote_port == y->local_port &&
           memcmp(x->local_address, y->remote_address, 16) == 0 &&
           memcmp(x->remote_address, y->local_address, 16) == 0;
}

struct connection *tuple_partners(struct core *core, const struct connection *c)
{
    const struct endpoints *o = &c->open;
    return chains_first(&core->tuples,
                        tuple_key(o->remote_address, o->remote_port, o->local_address, o->local_port));
}
