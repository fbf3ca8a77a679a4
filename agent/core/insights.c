/* SPDX-License-Identifier: Apache-2.0 */
/* Findings of database statements; see insights.h. */
#include "insights.h"
#include "findings.h"

#define SECOND_NS 1000000000ULL

enum insight_limits {
    REPEATS = 1024,       /* runs of equal statements that are followed at once */
    REPEAT_WAYS = 4,      /* places that one of them may take */
    REPEAT_SPANS = 8,     /* of a run, named in its finding */
    COSTLY_AGAIN_S = 60,  /* a costly command is told again after such a pause */
    HOT_KEYS = 64,        /* counters of the sketch */
    HOT_MIN = 1000,       /* operations of a window before any key is called hot */
    HOT_SHARE = 4,        /* a key is hot that got one in so many of them */
    HOT_WINDOW_S = 10,
    ABOUT_MAX = 768,      /* bytes of attributes that are kept of a transaction's last statement */
};

/* A run of equal statements: of one request, or, where that is not known, of one connection. */
struct repeat {
    uint64_t key; /* 0: free */
    uint64_t last_ktime;
    uint32_t count;
    bool told;
    uint8_t spans[REPEAT_SPANS][8];
};

/* Space-Saving (Metwally, Agrawal, El Abbadi 2005): the counts of the most frequent keys, each too high by at most a
 * HOT_KEYSth of the total. A key that is not here was asked for less often than the least of them. */
struct sketch {
    uint64_t keys[HOT_KEYS]; /* 0: free */
    uint32_t counts[HOT_KEYS];
    bool told[HOT_KEYS];
    uint32_t total;
    uint64_t window_ktime;
};

/* A transaction that was left open by the last answer. In the order of last use. */
struct idle {
    struct connection *connection;
    struct idle *older, *newer;
    uint64_t since_ktime;
    uint8_t trace_id[16], span_id[8];
    uint8_t trace_flags;
    bool told;
    uint32_t tgid, about_size;
    uint8_t about[ABOUT_MAX];
};

struct insights {
    struct repeat repeats[REPEATS];
    struct sketch sketch;
    struct idle *oldest, *newest;
};

static struct insights *insights_of(struct core *core)
{
    if (core->insights == NULL)
        core->insights = core_allocate(core, NULL, 0, sizeof(*core->insights));
    return core->insights;
}

/* --- telling ---------------------------------------------------------------------------------------- */

/* What a finding says of the statement it is about. */
static void about(struct builder *out, const uint8_t *list, uint32_t size)
{
    static const uint16_t keys[] = {KEY_DB_SYSTEM_NAME, KEY_DB_NAMESPACE,  KEY_DB_OPERATION_NAME, KEY_DB_QUERY_SUMMARY,
                                    KEY_DB_QUERY_TEXT,  KEY_SERVER_ADDRESS, KEY_SERVER_PORT,      KEY_NETWORK_PEER_PORT};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const struct attribute *a = attribute_find(list, size, keys[i]);
        int64_t number;
        if (a == NULL)
            continue;
        if (a->type == ATTRIBUTE_INT) {
            memcpy(&number, a + 1, sizeof number);
            builder_int(out, keys[i], number);
        } else {
            builder_lines(out, keys[i], a + 1, a->size, 512);
        }
    }
}

static void name_span(struct builder *out, const uint8_t id[8])
{
    char text[16];
    for (int i = 0; i < 8; i++) {
        text[2 * i] = "0123456789abcdef"[id[i] >> 4];
        text[2 * i + 1] = "0123456789abcdef"[id[i] & 15];
    }
    builder_texts(out, KEY_FINDING_SPAN_IDS, text, sizeof text, sizeof text);
}

static void tell(struct core *core, enum finding_id finding, const struct pending *p, uint64_t ktime_ns,
                 const struct builder *span, const struct repeat *run)
{
    uint64_t memory[256];
    struct builder out = {.data = (uint8_t *)memory, .capacity = sizeof memory};
    struct finding_row row = {.ktime_ns = ktime_ns, .tgid = p->tgid, .finding = (uint16_t)finding,
                              .severity = finding == FINDING_SLOW_STATEMENT || finding == FINDING_N_PLUS_ONE ? 13 : 9,
                              .trace_flags = p->trace_flags};
    memcpy(row.trace_id, p->trace_id, sizeof row.trace_id);
    memcpy(row.span_id, p->span_id, sizeof row.span_id);
    about(&out, span->data, span->size);
    if (finding == FINDING_SLOW_STATEMENT)
        builder_int(&out, KEY_FINDING_DURATION_MS, (int64_t)((ktime_ns - p->start_ktime) / 1000000));
    if (run) {
        builder_int(&out, KEY_FINDING_COUNT_OF, run->count);
        for (uint32_t i = 0; i < run->count && i < REPEAT_SPANS; i++)
            name_span(&out, run->spans[i]);
    }
    finding_add(core, &row, &out);
}

/* --- runs of equal statements ----------------------------------------------------------------------- */

/* The run that this statement belongs to, with it counted. A run ends when nothing of it comes for `gap_ns`. */
static struct repeat *repeat(struct insights *in, uint64_t key, const struct pending *p, uint64_t gap_ns)
{
    struct repeat *set = &in->repeats[key % (REPEATS / REPEAT_WAYS) * REPEAT_WAYS], *r = &set[0];
    for (int i = 0; i < REPEAT_WAYS; i++) {
        if (set[i].key == key) {
            r = &set[i];
            break;
        }
        if (set[i].last_ktime < r->last_ktime)
            r = &set[i];
    }
    if (r->key != key || p->start_ktime > r->last_ktime + gap_ns)
        *r = (struct repeat){.key = key};
    if (r->count < REPEAT_SPANS)
        memcpy(r->spans[r->count], p->span_id, 8);
    r->count++;
    if (p->start_ktime > r->last_ktime)
        r->last_ktime = p->start_ktime;
    return r;
}

/* On whose behalf: of the request that is the parent, else of whoever uses this connection. */
static uint64_t behalf(const struct pending *p)
{
    uint64_t parent;
    memcpy(&parent, p->parent_id, sizeof parent);
    return table_mix(parent ? parent : p->connection->id) | 1;
}

static void look_for_run(struct core *core, enum finding_id finding, uint64_t key, uint32_t least, uint64_t gap_ns,
                         const struct pending *p, uint64_t ktime_ns, const struct builder *span)
{
    struct insights *in = insights_of(core);
    struct repeat *run = in ? repeat(in, table_mix(key + (uint64_t)finding) | 1, p, gap_ns) : NULL;
    if (run == NULL || run->told || run->count < least)
        return;
    run->told = true;
    tell(core, finding, p, ktime_ns, span, run);
}

/* --- hot keys --------------------------------------------------------------------------------------- */

static void look_for_hot_key(struct core *core, const struct pending *p, uint64_t ktime_ns, const struct builder *span)
{
    struct insights *in = insights_of(core);
    struct sketch *s = in ? &in->sketch : NULL;
    if (s == NULL)
        return;
    if (ktime_ns > s->window_ktime + HOT_WINDOW_S * SECOND_NS) /* an end that was not seen may lie before it */
        *s = (struct sketch){.window_ktime = ktime_ns};
    const struct endpoints *at = &p->connection->open;
    uint64_t server;
    memcpy(&server, at->remote_address + 8, sizeof server);
    uint64_t key = table_mix(p->key ^ table_mix(server ^ at->remote_port)) | 1;
    unsigned found = 0;
    while (found < HOT_KEYS && s->keys[found] != key)
        found++;
    if (found == HOT_KEYS) {
        found = 0;
        for (unsigned i = 1; i < HOT_KEYS; i++)
            if (s->counts[i] < s->counts[found])
                found = i;
        s->keys[found] = key;
        s->told[found] = false;
    }
    s->total++;
    s->counts[found]++;
    if (s->told[found] || s->total < HOT_MIN || s->counts[found] < s->total / HOT_SHARE)
        return;
    s->told[found] = true;
    tell(core, FINDING_HOT_KEY, p, ktime_ns, span, NULL);
}

/* --- transactions ----------------------------------------------------------------------------------- */

static void idle_unlink(struct insights *in, struct idle *idle)
{
    *(idle->older ? &idle->older->newer : &in->oldest) = idle->newer;
    *(idle->newer ? &idle->newer->older : &in->newest) = idle->older;
}

static void idle_append(struct insights *in, struct idle *idle)
{
    idle->older = in->newest;
    idle->newer = NULL;
    *(idle->older ? &idle->older->newer : &in->oldest) = idle;
    in->newest = idle;
}

static struct idle *idle_of(const struct connection *c)
{
    return c->session ? c->session->idle : NULL;
}

void insights_forget(struct core *core, struct connection *c)
{
    struct idle *idle = idle_of(c);
    if (idle == NULL)
        return;
    idle_unlink(core->insights, idle);
    core_allocate(core, idle, sizeof(*idle), 0);
    c->session->idle = NULL;
}

void insights_transaction(struct core *core, struct connection *c, enum transaction state, uint64_t ktime_ns)
{
    if (state == TRANSACTION_NONE)
        insights_forget(core, c);
    if (state < TRANSACTION_OPEN || c->kind != KIND_CLIENT || core->config.idle_in_transaction_ns == 0)
        return;
    struct insights *in = insights_of(core);
    struct idle *idle = idle_of(c);
    if (in && idle)
        idle_unlink(in, idle);
    else if (in && c->session)
        idle = c->session->idle = core_allocate(core, NULL, 0, sizeof(*idle));
    if (idle == NULL)
        return;
    idle->connection = c;
    idle->since_ktime = ktime_ns;
    idle_append(in, idle);
}

void insights_sweep(struct core *core)
{
    uint64_t limit_ns = core->config.idle_in_transaction_ns;
    for (struct idle *i = core->insights ? core->insights->oldest : NULL; i; i = i->newer) {
        if (core->now_ns < i->since_ktime + limit_ns)
            return;
        if (i->told || i->connection->first)
            continue;
        i->told = true; /* once for a transaction, however often it is left alone */
        struct builder out = {.data = i->about, .size = i->about_size, .capacity = sizeof i->about};
        struct finding_row row = {.ktime_ns = core->now_ns, .tgid = i->tgid, .severity = 13,
                                  .finding = FINDING_IDLE_IN_TRANSACTION, .trace_flags = i->trace_flags};
        memcpy(row.trace_id, i->trace_id, sizeof row.trace_id);
        memcpy(row.span_id, i->span_id, sizeof row.span_id);
        builder_int(&out, KEY_FINDING_DURATION_MS, (int64_t)((core->now_ns - i->since_ktime) / 1000000));
        finding_add(core, &row, &out);
    }
}

/* --- each statement --------------------------------------------------------------------------------- */

void insights_statement(struct core *core, const struct pending *p, uint64_t end_ktime, struct builder *attributes)
{
    const struct connection *c = p->connection;
    const struct core_config *config = &core->config;
    bool reads = p->traits & TRAIT_READS && p->batch < 2; /* several at once cost one round trip */
    if (c->kind != KIND_CLIENT)
        return;
    if (config->slow_statement_ns && !(p->traits & TRAIT_BLOCKS) &&
        end_ktime - p->start_ktime >= config->slow_statement_ns) {
        builder_bool(attributes, KEY_SLOW, true);
        tell(core, FINDING_SLOW_STATEMENT, p, end_ktime, attributes, NULL);
    }
    if (reads && p->shape && config->n_plus_one_min)
        look_for_run(core, FINDING_N_PLUS_ONE, p->shape ^ behalf(p), config->n_plus_one_min, SECOND_NS, p, end_ktime,
                     attributes);
    if (reads && p->exact && config->duplicate_reads_min)
        look_for_run(core, FINDING_DUPLICATE_READS, p->exact ^ behalf(p), config->duplicate_reads_min, SECOND_NS, p,
                     end_ktime, attributes);
    if (p->traits & TRAIT_COSTLY && config->costly_commands)
        look_for_run(core, FINDING_COSTLY_COMMAND, p->shape ^ p->tgid, 1, COSTLY_AGAIN_S * SECOND_NS, p, end_ktime,
                     attributes);
    if (p->key && config->hot_keys)
        look_for_hot_key(core, p, end_ktime, attributes);
    struct idle *idle = idle_of(c);
    if (idle == NULL)
        return;
    struct builder kept = {.data = idle->about, .capacity = ABOUT_MAX - 64}; /* room for the duration */
    about(&kept, attributes->data, attributes->size);
    idle->about_size = kept.size;
    idle->tgid = p->tgid;
    idle->trace_flags = p->trace_flags;
    memcpy(idle->trace_id, p->trace_id, sizeof idle->trace_id);
    memcpy(idle->span_id, p->span_id, sizeof idle->span_id);
}

void insights_free(struct core *core)
{
    if (core->insights)
        core_allocate(core, core->insights, sizeof(*core->insights), 0);
}
