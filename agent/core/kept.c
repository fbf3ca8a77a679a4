/* SPDX-License-Identifier: Apache-2.0 */
/* Keeps incomplete steps, within the caps of one stream and of all; see kept.h. */
#include "kept.h"

/* Room for `capacity` bytes; NULL when memory is short: nothing changed. */
static struct kept *kept_resize(struct core *core, struct stream *s, uint32_t capacity)
{
    size_t before = s->kept ? sizeof(*s->kept) + s->kept->capacity : 0;
    struct kept *kept = core_allocate(core, s->kept, before, sizeof(*kept) + capacity);
    if (kept) {
        kept->capacity = capacity;
        s->kept = kept;
    }
    return kept;
}

void kept_drop(struct core *core, struct stream *s)
{
    if (s->kept == NULL)
        return;
    core->stats.buffered_bytes -= s->kept->length;
    core_allocate(core, s->kept, sizeof(*s->kept) + s->kept->capacity, 0);
    s->kept = NULL;
}

static bool is_zero(const uint64_t state[STREAM_STATE_SIZE / 8])
{
    uint64_t any = 0;
    for (int i = 0; i < STREAM_STATE_SIZE / 8; i++)
        any |= state[i];
    return any == 0;
}

/* The bytes were read; the parser's state stays, if it has one. */
static void kept_drop_bytes(struct core *core, struct stream *s)
{
    if (is_zero(s->kept->state)) {
        kept_drop(core, s);
        return;
    }
    core->stats.buffered_bytes -= s->kept->length;
    s->kept->length = s->kept->need = s->kept->tried = 0;
    kept_resize(core, s, 0);
}

bool kept_put_state(struct core *core, struct stream *s, const uint64_t state[STREAM_STATE_SIZE / 8])
{
    bool zero = is_zero(state);
    if (s->kept == NULL && (zero || kept_resize(core, s, 0) == NULL))
        return zero;
    memcpy(s->kept->state, state, STREAM_STATE_SIZE);
    if (zero && s->kept->length == 0)
        kept_drop(core, s);
    return true;
}

bool kept_add(struct core *core, struct stream *s, uint32_t tgid, uint64_t ktime_ns, const uint8_t *bytes, size_t n)
{
    uint64_t wanted = (uint64_t)kept_length(s) + n;
    if (n == 0)
        return true;
    if (wanted > core->config.stream_bytes_max ||
        core->stats.buffered_bytes + n > core->config.buffer_bytes_max)
        return false;
    if (s->kept == NULL || wanted > s->kept->capacity) {
        uint32_t capacity = s->kept && s->kept->capacity ? s->kept->capacity : 512;
        while (capacity < wanted)
            capacity *= 2;
        if (kept_resize(core, s, capacity) == NULL)
            return false;
    }
    if (s->kept->length == 0) {
        s->kept->tgid = tgid;
        s->kept->ktime_ns = ktime_ns;
    }
    memcpy(s->kept->bytes + s->kept->length, bytes, n);
    s->kept->length += (uint32_t)n;
    core->stats.buffered_bytes += n;
    return true;
}

void kept_take(struct core *core, struct stream *s, size_t used, uint64_t ktime_ns)
{
    if (used == s->kept->length) {
        kept_drop_bytes(core, s);
    } else if (used) {
        memmove(s->kept->bytes, s->kept->bytes + used, s->kept->length - used);
        s->kept->length -= (uint32_t)used;
        core->stats.buffered_bytes -= used;
        s->kept->ktime_ns = ktime_ns;
    }
}
