/* SPDX-License-Identifier: Apache-2.0 */
/* The batch of findings; see findings.h.
 *
 * A finding often comes with each request of a kind, and the thousandth tells nothing new: each kind has a cap
 * of rows in a second, so that none crowds out another. The counts by process and kind have none. */
#include "findings.h"

#define ROWS_MAX 1024
#define ARENA_MAX (256 * 1024)
#define SECOND_NS 1000000000ULL

static bool in_rate(struct core *core, uint16_t kind)
{
    struct findings *f = &core->findings;
    if (core->now_ns - f->second_ns >= SECOND_NS) {
        f->second_ns = core->now_ns;
        memset(f->in_second, 0, sizeof f->in_second);
    }
    return f->in_second[kind] < core->config.findings_per_second_max;
}

void finding_add(struct core *core, const struct finding_row *finding, const struct builder *attributes)
{
    struct findings *f = &core->findings;
    process_of(core, finding->tgid)->ledger.findings[finding->finding]++;
    core->stats.findings++;
    core->stats.attributes_left_out += attributes->left_out;
    struct finding_buffer *b = &f->buffers[f->filling];
    if (b->rows == NULL)
        b->rows = core_allocate(core, NULL, 0, ROWS_MAX * sizeof(*b->rows));
    if (b->arena == NULL)
        b->arena = core_allocate(core, NULL, 0, ARENA_MAX);
    if (b->rows == NULL || b->arena == NULL || b->count == ROWS_MAX ||
        attributes->size > ARENA_MAX - b->size || !in_rate(core, finding->finding)) {
        core->stats.findings_left_out++;
        return;
    }
    struct finding_row *row = &b->rows[b->count++];
    *row = *finding;
    row->attributes_offset = b->size;
    row->attributes_size = attributes->size;
    if (attributes->size)
        memcpy(b->arena + b->size, attributes->data, attributes->size);
    b->size += attributes->size;
    f->in_second[finding->finding]++;
}

void core_take_findings(struct core *core, struct finding_batch *out)
{
    struct findings *f = &core->findings;
    const struct finding_buffer *full = &f->buffers[f->filling];
    *out = (struct finding_batch){full->rows, full->count, full->arena, full->size};
    f->filling = !f->filling;
    f->buffers[f->filling].count = f->buffers[f->filling].size = 0;
}

void findings_free(struct core *core)
{
    for (int i = 0; i < 2; i++) {
        free(core->findings.buffers[i].rows);
        free(core->findings.buffers[i].arena);
    }
}
