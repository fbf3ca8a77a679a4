/* SPDX-License-Identifier: Apache-2.0 */
/* Adds findings to a core as detectors do: commands on stdin, one JSON line on stdout for each that asks.
 *
 *   at NS                                     time goes on
 *   add N TGID FINDING KTIME BYTES            N findings with two span ids and a text of BYTES bytes
 *   drop TGID                                 the process is forgotten
 *   take                                      asks for the rows
 *   again                                     asks for the same rows, which live until the next take
 *   count TGID                                asks for the counters
 *
 * Its argument is findings_per_second_max. Built with sanitizers by tests/core/test_findings.py. */
#include "findings.h"
#include <inttypes.h>
#include <stdio.h>

static void add(struct core *core, unsigned n, uint32_t tgid, unsigned finding, uint64_t ktime, size_t bytes)
{
    static uint8_t space[300 * 1024];
    static char text[200 * 1024];
    static const char *const spans[] = {"00f067aa0ba902b7", "b7ad6b7169203331"};
    memset(text, 'x', sizeof text);
    while (n--) {
        struct builder list = {.data = space, .capacity = sizeof space};
        for (int i = 0; i < 2; i++)
            builder_texts(&list, KEY_FINDING_SPAN_IDS, spans[i], strlen(spans[i]), 16);
        builder_text(&list, KEY_URL_PATH, text, bytes, bytes);
        struct finding_row row = {
            .tgid = tgid, .finding = (uint16_t)finding, .ktime_ns = ktime, .severity = 13};
        memset(row.trace_id, 0xab, sizeof row.trace_id);
        memset(row.span_id, 0xcd, sizeof row.span_id);
        finding_add(core, &row, &list);
    }
}

static void print_rows(const struct finding_batch *batch)
{
    printf("[");
    for (uint32_t i = 0; i < batch->count; i++) {
        const struct finding_row *row = &batch->rows[i];
        printf("%s{\"tgid\": %u, \"finding\": \"%s\", \"ktime_ns\": %" PRIu64, i ? ", " : "", row->tgid,
               finding_name(row->finding), row->ktime_ns);
        printf(", \"severity\": %u, \"trace\": \"", row->severity);
        for (unsigned k = 0; k < sizeof row->trace_id; k++)
            printf("%02x", row->trace_id[k]);
        printf("\", \"list\": \"");
        for (uint32_t k = 0; k < row->attributes_size; k++)
            printf("%02x", batch->arena[row->attributes_offset + k]);
        printf("\"}");
    }
    printf("]\n");
}

static void print_counts(struct core *core, uint32_t tgid)
{
    struct core_stats stats;
    struct ledger_row rows[8];
    core_stats(core, &stats);
    printf("{\"findings\": %" PRIu64 ", \"left_out\": %" PRIu64 ", \"by_name\": {", stats.findings,
           stats.findings_left_out);
    const char *comma = "";
    for (uint32_t i = 0, n = core_ledger(core, rows, 8); i < n; i++)
        for (unsigned k = 0; k < FINDING_COUNT; k++)
            if (rows[i].tgid == tgid && rows[i].findings[k]) {
                printf("%s\"%s\": %" PRIu64, comma, finding_name(k), rows[i].findings[k]);
                comma = ", ";
            }
    printf("}}\n");
}

int main(int argc, char **argv)
{
    struct core_config config = {
        .connections_max = 16,
        .processes_max = 4,
        .findings_per_second_max = argc > 1 ? (uint32_t)atoi(argv[1]) : 0,
    };
    struct core *core = core_new(&config);
    struct finding_batch batch = {0};
    char line[200];
    while (fgets(line, sizeof line, stdin)) {
        unsigned n, finding;
        uint32_t tgid;
        uint64_t ktime;
        size_t bytes;
        if (sscanf(line, "at %" SCNu64, &ktime) == 1)
            core_feed(core, NULL, 0, ktime, false);
        else if (sscanf(line, "add %u %u %u %" SCNu64 " %zu", &n, &tgid, &finding, &ktime, &bytes) == 5)
            add(core, n, tgid, finding, ktime, bytes);
        else if (sscanf(line, "drop %u", &tgid) == 1)
            core_forget(core, &tgid, 1);
        else if (sscanf(line, "count %u", &tgid) == 1)
            print_counts(core, tgid);
        else {
            if (strncmp(line, "take", 4) == 0)
                core_take_findings(core, &batch);
            print_rows(&batch);
        }
    }
    core_free(core);
    return 0;
}
