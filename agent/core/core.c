/* SPDX-License-Identifier: Apache-2.0 */
/* The way of an event through the core: ring, order of time, connection; and what Python calls.
 *
 * Events reach the ring when their call returns, but a send carries the time it was entered: a server's
 * answer on another CPU can stand in the ring before the request that caused it. So events are held
 * back for a few milliseconds and handled in the order of their times; everything behind this file sees
 * causes before effects. */
#include "connection.h"
#include "findings.h"
#include "insights.h"
#include "pairing.h"
#include "series.h"
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define WAITING_MAX 8192               /* events sorted together */
#define HOLD_MAX (WAITING_MAX / 2)        /* so that there is always room for new ones */
#define HOLD_BYTES_MAX (4 * 1024 * 1024) /* copied out of the ring while they wait */

/* --- making and unmaking ------------------------------------------------------------------------- */

static const char *const *copy_strings(struct core *core, const char *const *from, uint32_t count, char ***next)
{
    const char *const *start = (const char *const *)*next;
    for (uint32_t i = 0; i < count; i++)
        *(*next)++ = strdup(from[i]);
    (void)core;
    return start;
}

struct core *core_new(const struct core_config *config)
{
    struct core *core = calloc(1, sizeof(*core));
    if (core == NULL)
        return NULL;
    struct protocol_options *o = &core->config.protocol;
    core->config = *config;
    uint32_t strings = o->redact_count + o->method_count + o->request_header_count + o->response_header_count;
    core->strings = calloc(strings + 1, sizeof(*core->strings));
    core->scratch = malloc(ATTRIBUTES_MAX);
    core->waiting = calloc(WAITING_MAX, sizeof(*core->waiting));
    core->statements = statements_new(config->statement_bytes_max, config->id_seed);
    if (core->strings == NULL || core->statements == NULL || core->scratch == NULL || core->waiting == NULL) {
        core_free(core);
        return NULL;
    }
    char **next = core->strings;
    o->redact_keys = copy_strings(core, o->redact_keys, o->redact_count, &next);
    o->methods = copy_strings(core, o->methods, o->method_count, &next);
    o->request_headers = copy_strings(core, o->request_headers, o->request_header_count, &next);
    o->response_headers = copy_strings(core, o->response_headers, o->response_header_count, &next);
    core->stats.memory_bytes = ATTRIBUTES_MAX + WAITING_MAX * sizeof(*core->waiting) + sizeof(*core);
    core->random[0] = table_mix(config->id_seed[0]);
    core->random[1] = table_mix(config->id_seed[1]) | 1; /* an all-zero state would stay zero */
    core->sampler_limit = config->sampler_ratio >= 1   ? UINT64_MAX
                          : config->sampler_ratio <= 0 ? 0
                                                       : (uint64_t)(config->sampler_ratio * 18446744073709551616.0);
    return core;
}

static void free_values(struct core *core, struct table *t, bool threads)
{
    for (uint32_t i = 0; t->mask && i <= t->mask; i++) {
        if (t->slots[i].key == 0)
            continue;
        if (!threads)
            routes_free(((struct process *)t->slots[i].value)->routes);
        free(t->slots[i].value);
    }
    free(t->slots);
    (void)core;
}

void core_free(struct core *core)
{
    if (core == NULL)
        return;
    connections_free(core);
    statements_free(core->statements);
    series_free(core);
    findings_free(core);
    insights_free(core);
    free_values(core, &core->threads, true);
    free_values(core, &core->processes, false);
    for (int i = 0; i < 2; i++) {
        free(core->batches[i].rows);
        free(core->batches[i].arena);
        free(core->holds[i].data);
    }
    for (char **s = core->strings; s && *s; s++)
        free(*s);
    free(core->strings);
    free(core->scratch);
    core_allocate(core, core->inflated, INFLATED_AT_ONCE, 0);
    free(core->waiting);
    ring_unmap(&core->ring);
    if (core->demands)
        munmap(core->demands, DEMAND_SLOTS * sizeof(*core->demands));
    if (core->counters)
        munmap((void *)(uintptr_t)core->counters, core->cpus * sizeof(*core->counters));
    free(core);
}

int core_map_ring(struct core *core, int fd, uint32_t size)
{
    return ring_map(&core->ring, fd, size);
}

int core_map_demands(struct core *core, int fd)
{
    void *mapped = mmap(NULL, DEMAND_SLOTS * sizeof(struct demand), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED)
        return -errno;
    core->demands = mapped;
    return 0;
}

int core_map_counters(struct core *core, int fd, uint32_t cpus)
{
    void *mapped = mmap(NULL, cpus * sizeof(struct kernel_counters), PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED)
        return -errno;
    core->counters = mapped;
    core->cpus = cpus;
    return 0;
}

/* --- events --------------------------------------------------------------------------------------- */

/* Is the record as long as it says? Offsets and sizes are the kernel side's, but a wrong one must not
 * become a wild read. */
static bool well_formed(const uint8_t *record, uint32_t length)
{
    const struct event_header *h = (const void *)record;
    if (length < sizeof(*h))
        return false;
    switch (h->kind) {
    case EVENT_OPEN:
        return length >= sizeof(struct open_event) &&
               ((const struct open_event *)(const void *)record)->path_size <= length - sizeof(struct open_event);
    case EVENT_FIN:
    case EVENT_CLOSE:
        return length >= sizeof(struct close_event);
    case EVENT_CHUNK: {
        const struct chunk_event *e = (const void *)record;
        return length >= sizeof(*e) && (uint64_t)e->head + e->tail <= length - sizeof(*e) &&
               (uint64_t)e->offset + e->head + e->tail <= e->size;
    }
    default:
        return false;
    }
}

static void handle(struct core *core, const uint8_t *record)
{
    const struct event_header *h = (const void *)record;
    if (h->ktime_ns < core->processed_ktime)
        core->stats.events_late++;
    else
        core->processed_ktime = h->ktime_ns;
    struct connection *c = connection_find(core, h->conn_id);
    if (c == NULL) {
        if (h->kind == EVENT_CHUNK) {
            /* Its announcement was lost or the connection was evicted: bytes of which nothing is known. */
            const struct chunk_event *e = (const void *)record;
            struct process *process = process_of(core, e->tgid);
            core->stats.events_unknown_connection++;
            core->stats.processes_refused += process == &core->others;
            process->ledger.bytes[LEDGER_LOST] += e->size;
            process->ledger.chunks[LEDGER_LOST] += !(h->flags & CHUNK_CONTINUED);
        }
        return;
    }
    if (h->kind == EVENT_CHUNK)
        connection_chunk(core, c, (const void *)record);
    else
        connection_end(core, c, (const void *)record);
}

/* Takes a record into the set to be sorted. An announcement has no place in the order: it is older than
 * everything that refers to it. */
static void wait_for(struct core *core, const uint8_t *record, uint32_t length)
{
    const struct event_header *h = (const void *)record;
    core->stats.events++;
    if (!well_formed(record, length)) {
        core->stats.events_malformed++;
        return;
    }
    if (h->kind == EVENT_OPEN) {
        connection_open(core, (const void *)record);
        return;
    }
    /* Insertion keeps equal times in the order of arrival, and arrivals are nearly sorted. */
    uint32_t i = core->waiting_count++;
    for (; i > 0 && core->waiting[i - 1].ktime_ns > h->ktime_ns; i--)
        core->waiting[i] = core->waiting[i - 1];
    core->waiting[i] = (struct waiting){h->ktime_ns, record, length};
}

static bool batch_full(const struct core *core)
{
    return core->batches[core->filling].count >= core->config.batch_spans_max;
}

static size_t held_size(uint32_t length)
{
    return 8 + (((size_t)length + 7) & ~(size_t)7);
}

/* Room for `size` bytes in a hold buffer; false when memory is short. */
static bool hold_reserve(struct hold *hold, size_t size)
{
    if (size <= hold->capacity)
        return true;
    size_t capacity = hold->capacity ? hold->capacity : 64 * 1024;
    while (capacity < size)
        capacity *= 2;
    uint8_t *grown = realloc(hold->data, capacity);
    if (grown == NULL)
        return false;
    hold->data = grown;
    hold->capacity = capacity;
    return true;
}

static void hold_copy(struct hold *hold, const struct waiting *w)
{
    memcpy(hold->data + hold->size, &w->length, sizeof(w->length));
    memcpy(hold->data + hold->size + 8, w->record, w->length);
    hold->size += held_size(w->length);
    hold->count++;
}

/* Handles what is due, in order, and copies the rest aside: what waits lies in the ring or in the caller's
 * memory, which is given back afterwards. When the rest is more than may be held, the oldest are
 * handled before their time: the order is kept, the wait is cut short. */
static void settle(struct core *core, bool drain)
{
    struct hold *next = &core->holds[!core->holding];
    uint64_t hold_ns = core->config.hold_ns;
    uint64_t due = drain ? UINT64_MAX : core->now_ns > hold_ns ? core->now_ns - hold_ns : 0;
    size_t rest = 0;
    uint32_t i;
    for (i = 0; i < core->waiting_count; i++)
        rest += held_size(core->waiting[i].length);
    for (i = 0; i < core->waiting_count; i++) {
        const struct waiting *w = &core->waiting[i];
        bool wait = w->ktime_ns > due || batch_full(core);
        if (wait && rest <= HOLD_BYTES_MAX && core->waiting_count - i <= HOLD_MAX && hold_reserve(next, rest))
            break;
        handle(core, w->record);
        rest -= held_size(w->length);
    }
    next->size = 0;
    next->count = 0;
    for (; i < core->waiting_count; i++)
        hold_copy(next, &core->waiting[i]);
    core->waiting_count = 0;
    core->holding = !core->holding;
}

static void wait_for_held(struct core *core)
{
    struct hold *hold = &core->holds[core->holding];
    uint64_t events = core->stats.events, malformed = core->stats.events_malformed;
    for (size_t at = 0; at < hold->size;) {
        uint32_t length;
        memcpy(&length, hold->data + at, sizeof(length));
        wait_for(core, hold->data + at + 8, length);
        at += held_size(length);
    }
    core->stats.events = events; /* counted when they came */
    core->stats.events_malformed = malformed;
}

int64_t core_poll(struct core *core, uint64_t now_ns, bool drain)
{
    uint64_t before = core->stats.events;
    core->now_ns = now_ns;
    for (bool more = true; more && !batch_full(core);) {
        uint32_t length;
        const uint8_t *record;
        wait_for_held(core);
        while (core->waiting_count < WAITING_MAX && (record = ring_next(&core->ring, &length)))
            wait_for(core, record, length);
        more = core->waiting_count == WAITING_MAX;
        settle(core, drain);
        ring_release(&core->ring);
    }
    connections_sweep(core);
    return (int64_t)(core->stats.events - before);
}

int64_t core_feed(struct core *core, const uint8_t *records, size_t size, uint64_t now_ns, bool drain)
{
    uint64_t before = core->stats.events;
    core->now_ns = now_ns;
    for (size_t at = 0;;) {
        wait_for_held(core);
        while (at < size && core->waiting_count < WAITING_MAX) {
            uint32_t length;
            if (size - at < 8)
                return -1;
            memcpy(&length, records + at, sizeof(length));
            if (length > size - at - 8)
                return -1;
            wait_for(core, records + at + 8, length);
            at += 8 + ((length + 7) & ~7UL);
        }
        settle(core, drain);
        if (at >= size || batch_full(core))
            break;
    }
    connections_sweep(core);
    return (int64_t)(core->stats.events - before);
}

/* --- what Python reads ----------------------------------------------------------------------------- */

uint64_t core_waiting_bytes(const struct core *core)
{
    return ring_waiting(&core->ring);
}

uint64_t core_held(const struct core *core)
{
    return core->holds[core->holding].count ? core->config.hold_ns : 0;
}

void core_take_spans(struct core *core, struct span_batch *out)
{
    struct batch *full = &core->batches[core->filling];
    *out = (struct span_batch){full->rows, full->count, full->arena, full->size};
    core->filling = !core->filling;
    core->batches[core->filling].count = 0;
    core->batches[core->filling].size = 0;
}

void core_series(struct core *core, struct series_batch *out)
{
    *out = (struct series_batch){core->series.rows, core->series.count, core->series.arena, core->series.size};
}

uint32_t core_ledger(struct core *core, struct ledger_row *out, uint32_t max)
{
    uint32_t count = 0;
    const struct table *t = &core->processes;
    for (uint32_t i = 0; t->mask && i <= t->mask && count < max; i++)
        if (t->slots[i].key)
            out[count++] = ((const struct process *)t->slots[i].value)->ledger;
    if (core->stats.processes_refused && count < max)
        out[count++] = core->others.ledger;
    return count;
}

void core_kernel_counters(const struct core *core, struct kernel_counters *out)
{
    uint64_t *sum = (uint64_t *)out;
    memset(out, 0, sizeof(*out));
    for (uint32_t cpu = 0; core->counters && cpu < core->cpus; cpu++) {
        const uint64_t *from = (const uint64_t *)&core->counters[cpu];
        for (size_t i = 0; i < sizeof(*out) / sizeof(*sum); i++)
            sum[i] += __atomic_load_n(&from[i], __ATOMIC_RELAXED);
    }
}

void core_process_gone(struct core *core, uint32_t tgid)
{
    struct process *p = table_get(&core->processes, tgid);
    if (p == NULL)
        return;
    p->gone = true;
    core->gone_ns = core->now_ns ? core->now_ns : 1;
}

void core_forget(struct core *core, const uint32_t *tgids, uint32_t count)
{
    bool any = false;
    for (uint32_t i = 0; i < count; i++) {
        struct process *p = table_get(&core->processes, tgids[i]);
        if (p)
            p->forget = any = true;
    }
    if (!any)
        return;
    series_forget(core);
    for (uint32_t i = 0; i < count; i++) {
        struct process *p = table_get(&core->processes, tgids[i]);
        if (p)
            process_free(core, p);
    }
}

void core_stats(const struct core *core, struct core_stats *out)
{
    struct statement_counts statements;
    statements_counts(core->statements, &statements);
    *out = core->stats;
    out->statements_read = statements.read;
    out->statements_found = statements.found;
    out->statements_refused = statements.refused;
    out->statements_forgotten = statements.forgotten;
    out->memory_bytes += statements.bytes + chains_bytes(&core->connections) + chains_bytes(&core->tuples) +
                         table_bytes(&core->threads) + table_bytes(&core->processes) +
                         table_bytes(&core->series.index) + core->holds[0].capacity + core->holds[1].capacity;
}
