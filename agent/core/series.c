/* SPDX-License-Identifier: Apache-2.0 */
/* The table of histograms; see series.h. */
#include "series.h"

/* http.server.request.duration and http.client.request.duration: the stable buckets. */
static const double http_bounds[] = {.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10};
/* db.client.operation.duration, db.client.response.returned_rows */
static const double db_bounds[] = {.001, .005, .01, .05, .1, .5, 1, 5, 10};
static const double row_bounds[] = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000};

#define BOUNDS(table) {table, sizeof(table) / sizeof(*table)}
static const struct {
    const double *bounds;
    uint32_t count;
} metric_table[METRIC_COUNT] = {
    [METRIC_HTTP_SERVER_DURATION] = BOUNDS(http_bounds),
    [METRIC_HTTP_CLIENT_DURATION] = BOUNDS(http_bounds),
    [METRIC_DB_CLIENT_DURATION] = BOUNDS(db_bounds),
    [METRIC_DB_RETURNED_ROWS] = BOUNDS(row_bounds),
};

static const uint8_t metric_use[KEY_COUNT] = {
#define METRIC_USE(identifier, key, metric) [KEY_##identifier] = metric,
    ATTRIBUTES(METRIC_USE)
#undef METRIC_USE
};

uint32_t metric_bounds(enum metric_id metric, const double **bounds)
{
    if (metric >= METRIC_COUNT)
        return 0;
    *bounds = metric_table[metric].bounds;
    return metric_table[metric].count;
}

static uint64_t hash_bytes(uint64_t hash, const uint8_t *bytes, uint32_t size)
{
    for (uint32_t i = 0; i + 8 <= size; i += 8) { /* lists are padded to 8 */
        uint64_t word;
        memcpy(&word, bytes + i, 8);
        hash = table_mix(hash ^ word) + 0x9e3779b97f4a7c15ULL;
    }
    return hash ? hash : 1;
}

static bool series_grow(struct core *core, struct series_table *t, uint32_t size)
{
    if (t->count == t->capacity) {
        uint32_t capacity = t->capacity ? t->capacity * 2 : 64;
        struct series_row *rows = core_allocate(core, t->rows, (size_t)t->capacity * sizeof(*rows),
                                                (size_t)capacity * sizeof(*rows));
        if (rows == NULL)
            return false;
        t->rows = rows;
        t->capacity = capacity;
    }
    if (t->size + size > t->arena_capacity) {
        uint64_t capacity = t->arena_capacity ? t->arena_capacity * 2 : 16384;
        while (capacity < t->size + size)
            capacity *= 2;
        uint8_t *arena = core_allocate(core, t->arena, t->arena_capacity, capacity);
        if (arena == NULL)
            return false;
        t->arena = arena;
        t->arena_capacity = capacity;
    }
    return true;
}

/* Row of this key, made when it is new and `limit` allows; NULL otherwise. */
static struct series_row *series_row(struct core *core, uint32_t tgid, enum metric_id metric,
                                     const uint8_t *list, uint32_t size, uint32_t limit, uint64_t start_ktime)
{
    struct series_table *t = &core->series;
    uint64_t hash = hash_bytes(table_mix((uint64_t)tgid << 8 | metric), list, size);
    for (;; hash = hash + 1 ? hash + 1 : 1) { /* equal hashes of unequal keys stand one further */
        uintptr_t number = (uintptr_t)table_get(&t->index, hash);
        if (number == 0)
            break;
        struct series_row *row = &t->rows[number - 1];
        if (row->tgid == tgid && row->metric == metric && row->attributes_size == size &&
            (size == 0 || memcmp(t->arena + row->attributes_offset, list, size) == 0))
            return row;
    }
    if (t->count >= limit || !series_grow(core, t, size))
        return NULL;
    if (!table_put(&t->index, hash, (void *)(uintptr_t)(t->count + 1)))
        return NULL;
    struct series_row *row = &t->rows[t->count++];
    *row = (struct series_row){
        .tgid = tgid,
        .metric = (uint16_t)metric,
        .attributes_offset = (uint32_t)t->size,
        .attributes_size = size,
        .start_ktime_ns = start_ktime,
    };
    if (size)
        memcpy(t->arena + t->size, list, size);
    t->size += size;
    return row;
}

uint32_t series_add(struct core *core, uint32_t tgid, enum metric_id metric, enum span_kind kind,
                    const uint8_t *attributes, uint32_t size, uint64_t start_ktime, double value)
{
    uint8_t list[4096];
    uint32_t used = 0;
    for (uint32_t at = 0; at + sizeof(struct attribute) <= size;) {
        struct attribute a;
        memcpy(&a, attributes + at, sizeof(a));
        uint32_t whole = (uint32_t)sizeof(a) + ((a.size + 7) & ~7U);
        uint8_t use = a.key < KEY_COUNT ? metric_use[a.key] : METRIC_NEVER;
        if (use == METRIC_ALWAYS || (use == METRIC_CLIENT && kind == KIND_CLIENT)) {
            if (used + whole > sizeof(list))
                return UINT32_MAX;
            memcpy(list + used, attributes + at, whole);
            used += whole;
        }
        at += whole;
    }
    struct series_row *row = series_row(core, tgid, metric, list, used, core->config.series_max, start_ktime);
    if (row == NULL) {
        /* One more row per process and metric stands for all that found no place. */
        core->stats.series_overflow++;
        row = series_row(core, tgid, metric, NULL, 0, core->config.series_max * 2, start_ktime);
        if (row == NULL)
            return UINT32_MAX;
        row->overflow = 1;
    }
    const double *bounds;
    uint32_t n = metric_bounds(metric, &bounds), bucket = 0;
    while (bucket < n && value > bounds[bucket]) /* buckets include their upper bound */
        bucket++;
    row->buckets[bucket]++;
    row->min = row->count == 0 || value < row->min ? value : row->min;
    row->max = row->count == 0 || value > row->max ? value : row->max;
    row->sum += value;
    row->count++;
    return (uint32_t)(row - core->series.rows);
}

void series_forget(struct core *core)
{
    struct series_table old = core->series;
    core->series = (struct series_table){0};
    for (uint32_t i = 0; i < old.count; i++) {
        const struct series_row *from = &old.rows[i];
        struct process *process = table_get(&core->processes, from->tgid);
        if (process == NULL || process->forget)
            continue;
        struct series_row *to = series_row(core, from->tgid, from->metric, old.arena + from->attributes_offset,
                                           from->attributes_size, UINT32_MAX, from->start_ktime_ns);
        if (to == NULL)
            continue;
        uint32_t offset = to->attributes_offset;
        *to = *from;
        to->attributes_offset = offset;
    }
    core_allocate(core, old.rows, (size_t)old.capacity * sizeof(*old.rows), 0);
    core_allocate(core, old.arena, old.arena_capacity, 0);
    free(old.index.slots);
}

void series_free(struct core *core)
{
    core_allocate(core, core->series.rows, (size_t)core->series.capacity * sizeof(struct series_row), 0);
    core_allocate(core, core->series.arena, core->series.arena_capacity, 0);
    free(core->series.index.slots);
    core->series = (struct series_table){0};
}
