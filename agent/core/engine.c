/* SPDX-License-Identifier: Apache-2.0 */
/* What every file of the core stands on: counted memory, random ids, the table of processes. */
#include "engine.h"

void *core_allocate(struct core *core, void *old, size_t old_size, size_t new_size)
{
    if (new_size == 0) {
        free(old);
        core->stats.memory_bytes -= old ? old_size : 0;
        return NULL;
    }
    void *memory = old ? realloc(old, new_size) : calloc(1, new_size);
    if (memory)
        core->stats.memory_bytes += new_size - (old ? old_size : 0);
    return memory;
}

/* xoroshiro128+ (public domain, Blackman and Vigna): ids must not collide, secrecy is not asked. */
uint64_t core_random(struct core *core)
{
    uint64_t a = core->random[0], b = core->random[1], result = a + b;
    b ^= a;
    core->random[0] = (a << 24 | a >> 40) ^ b ^ b << 16;
    core->random[1] = b << 37 | b >> 27;
    return result ? result : 1;
}

struct process *process_of(struct core *core, uint32_t tgid)
{
    struct process *p = table_get(&core->processes, tgid);
    if (p)
        return p;
    bool room = tgid && core->processes.used < core->config.processes_max;
    p = room ? core_allocate(core, NULL, 0, sizeof(*p)) : NULL;
    if (p == NULL)
        return &core->others;
    p->ledger.tgid = tgid;
    p->routes = core->config.protocol.route_heuristic ? routes_new(core->config.protocol.routes_max) : NULL;
    if (!table_put(&core->processes, tgid, p)) {
        routes_free(p->routes);
        core_allocate(core, p, sizeof(*p), 0);
        return &core->others;
    }
    return p;
}

void process_free(struct core *core, struct process *p)
{
    table_remove(&core->processes, p->ledger.tgid);
    table_shrink(&core->processes);
    routes_free(p->routes);
    core_allocate(core, p, sizeof(*p), 0);
}
