/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzz target over the core: any order of events with any bytes, holes and lies about sizes.
 *
 * The input is a list of operations. Two connections are the mirror image of each other, so that linking
 * is in the game. Totals of what was lost go up as they should, and also down and anywhere. What must hold:
 * no finding of the sanitizers, rows that stay inside their arena, and a ledger in which nothing was moved
 * out of a class it was never in. */
#include "../../agent/core/core.h"
#include "../../bpf/events.h"
#include "../../bpf/protocols.h"
#include <stdlib.h>
#include <string.h>

static uint8_t records[1 << 20];
static size_t used;

static void push(const void *record, uint32_t length)
{
    uint32_t padded = (length + 7) & ~7U;
    if (used + 8 + padded > sizeof(records))
        return;
    memcpy(records + used, &length, 4);
    memset(records + used + 4, 0, 4);
    memcpy(records + used + 8, record, length);
    used += 8 + padded;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const methods[] = {"GET", "HEAD", "POST", "CONNECT"};
    static const char *const redact[] = {"sig"};
    struct core_config config = {
        .connections_max = 8, .pending_max = 16, .stream_bytes_max = 4096, .buffer_bytes_max = 16384,
        .batch_spans_max = 64, .series_max = 4, .hold_ns = 10, .request_timeout_ns = 1000,
        .idle_timeout_ns = 100000, .processes_max = 2, .id_seed = {1, 2}, .sampler_ratio = 1,
        .sampler_parent_based = 1, .statement_bytes_max = 8192, .findings_per_second_max = 5,
        .slow_statement_ns = 3, .idle_in_transaction_ns = 500, .n_plus_one_min = 2, .duplicate_reads_min = 2,
        .costly_commands = 1, .hot_keys = 1,
        .protocol = {.route_heuristic = 1, .routes_max = 8, .redact_count = 1, .redact_keys = redact,
                     .method_count = 4, .methods = methods, .database_servers = 1,
                     .query_text = QUERY_TEXT_PARAMETERIZED},
    };
    struct core *core = core_new(&config);
    uint64_t now = 1000, pos[4][2] = {{0}};
    uint32_t unsent[4][2] = {{0}}, shed[4] = {0};
    used = 0;
    while (size >= 4) {
        uint8_t op = data[0], flags = data[1];
        unsigned conn = (op >> 4) & 3, direction = (op >> 6) & 1;
        uint32_t n = data[2] | (uint32_t)(data[3] & 15) << 8;
        data += 4, size -= 4;
        now += flags & 7;
        struct event_header header = {.direction = (uint8_t)direction, .tid = 1 + (conn & 1), .ktime_ns = now - (flags >> 6),
                                      .conn_id = conn + 1, .protocol = flags & 8 ? PROTOCOL_HTTP1 : 0};
        switch (op & 7) {
        case 0: {
            static uint8_t record[sizeof(struct open_event) + 4096];
            struct open_event *e = (struct open_event *)record;
            uint32_t path = n < size ? n : (uint32_t)size;
            *e = (struct open_event){.header = header, .tgid = 7 + (flags >> 6), .netns = 1, .peer_tgid = n,
                                     .role = flags & 16 ? conn % 3 : 0, .transport = (uint8_t)(flags >> 5),
                                     .path_size = (uint16_t)(flags & 4 ? path : n * 16),
                                     .local_port = conn & 1 ? 80 : 4000, .remote_port = conn & 1 ? 4000 : 80};
            e->header.kind = EVENT_OPEN;
            e->header.flags = flags & 3;
            memcpy(e->path, data, path);
            push(e, (uint32_t)sizeof(*e) + path);
            break;
        }
        case 1: {
            struct close_event e = {.header = header, .unsent_chunks = {unsent[conn][0], unsent[conn][1]},
                                    .shed_chunks = shed[conn]};
            e.header.kind = flags & 16 ? EVENT_CLOSE : EVENT_FIN;
            e.header.flags = flags & CHUNK_RESET;
            push(&e, sizeof(e));
            break;
        }
        case 2: { /* a record that lies: any bytes */
            if (n > size)
                n = (uint32_t)size;
            push(data, n);
            data += n, size -= n;
            break;
        }
        case 3: /* a hole: told of, or not, or totals that jump */
            if (flags & 32) {
                uint32_t *total = flags & 64 ? &shed[conn] : &unsent[conn][direction];
                *total += flags & 128 ? n << 21 : n & 3;
            }
            if (!(flags & 16))
                pos[conn][direction] += n;
            if ((flags & 15) == 15)
                core_process_gone(core, 7 + (n & 3));
            break;
        default: {
            static uint8_t record[sizeof(struct chunk_event) + 4096];
            struct chunk_event *e = (struct chunk_event *)record;
            uint32_t captured = n < size ? n : (uint32_t)size;
            uint32_t tail = flags & 32 && captured > 4 ? 4 : 0;
            *e = (struct chunk_event){.header = header, .pos = pos[conn][direction], .tgid = 7 + (op & 3), .tail = (uint16_t)tail,
                                      .size = captured + (flags & 64 ? n : 0), .head = (uint16_t)(captured - tail),
                                      .quiet_bytes = flags & 128 ? n : 0,
                                      .unsent_chunks = {unsent[conn][0], unsent[conn][1]},
                                      .shed_chunks = shed[conn]};
            e->header.kind = EVENT_CHUNK;
            e->header.flags = (flags & 16 ? CHUNK_CONTINUED : 0) | (op == 0xff ? CHUNK_OVERLAP : 0);
            memcpy(e->payload, data, captured);
            data += captured, size -= captured;
            pos[conn][direction] += e->size;
            push(e, (uint32_t)sizeof(*e) + captured);
        }
        }
        if ((op & 8) && used) {
            core_feed(core, records, used, now, false);
            used = 0;
            struct finding_batch findings;
            struct span_batch batch;
            core_take_findings(core, &findings);
            for (uint32_t i = 0; i < findings.count; i++)
                if ((uint64_t)findings.rows[i].attributes_offset + findings.rows[i].attributes_size > findings.arena_size)
                    abort();
            core_take_spans(core, &batch);
            for (uint32_t i = 0; i < batch.count; i++) {
                const struct span_row *r = &batch.rows[i];
                if ((uint64_t)r->attributes_offset + r->attributes_size > batch.arena_size ||
                    (uint64_t)r->name_offset + r->name_size > batch.arena_size || r->end_ktime_ns < r->start_ktime_ns)
                    abort();
            }
        }
    }
    core_feed(core, records, used, now + 1, true);
    struct ledger_row rows[16];
    uint32_t count = core_ledger(core, rows, 16);
    for (uint32_t i = 0; i < count; i++)
        for (int k = 0; k < LEDGER_CLASSES; k++)
            if (rows[i].bytes[k] > UINT64_MAX / 2) /* moved out of a class it was never in */
                abort();
    core_forget(core, (uint32_t[]){7, 8, 7}, 3);
    core_free(core);
    return 0;
}
