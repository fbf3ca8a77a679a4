/* SPDX-License-Identifier: Apache-2.0 */
/* Writes demands into the array that the kernel programs read; see demand.h. */
#include "demand.h"

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
