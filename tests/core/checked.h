/* SPDX-License-Identifier: Apache-2.0 */
/* A parser's step with everything checked that the contract (protocol.h) promises: used by the contract
 * tests and by the fuzz targets. A broken promise aborts with the line that found it. */
#pragma once
#include "protocol.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHECK(what)                                                                                    \
    do {                                                                                               \
        if (!(what)) {                                                                                 \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #what);                         \
            abort();                                                                                   \
        }                                                                                              \
    } while (0)

enum { WINDOW_LIMIT = 1 << 20, LIST_CAPACITY = 1 << 16 };

/* A copy of `bytes` that ends (or begins: `low`) directly at a page that cannot be read. */
static inline uint8_t *guarded(const uint8_t *bytes, size_t length, bool low)
{
    static uint8_t *area;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    CHECK(length <= WINDOW_LIMIT);
    if (area == NULL) {
        area = mmap(NULL, WINDOW_LIMIT + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                    0);
        CHECK(area != MAP_FAILED);
        CHECK(mprotect(area, page, PROT_NONE) == 0);
        CHECK(mprotect(area + page + WINDOW_LIMIT, page, PROT_NONE) == 0);
    }
    uint8_t *at = area + page + (low ? 0 : WINDOW_LIMIT - length);
    memcpy(at, bytes, length);
    return at;
}

static inline bool utf8_without_controls(const uint8_t *text, size_t length, bool lines)
{
    for (size_t i = 0; i < length;) {
        uint8_t c = text[i];
        if (lines && (c == '\t' || c == '\n' || c == '\r'))
            c = ' ';
        size_t n = c < 0x80 ? 1 : c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
        if (c < 0x20 || c == 0x7f || (c >= 0x80 && c < 0xc2) || c > 0xf4 || i + n > length)
            return false;
        if ((c == 0xe0 && text[i + 1] < 0xa0) || (c == 0xed && text[i + 1] > 0x9f) ||
            (c == 0xf0 && text[i + 1] < 0x90) || (c == 0xf4 && text[i + 1] > 0x8f) ||
            (c == 0xc2 && text[i + 1] < 0xa0))
            return false;
        for (size_t k = 1; k < n; k++)
            if ((text[i + k] & 0xc0) != 0x80)
                return false;
        i += n;
    }
    return true;
}

static inline void check_list(const struct builder *b)
{
    CHECK(b->size <= b->capacity && b->size % 8 == 0);
    for (uint32_t at = 0; at < b->size;) {
        struct attribute a;
        CHECK(b->size - at >= sizeof a);
        memcpy(&a, b->data + at, sizeof a);
        const uint8_t *value = b->data + at + sizeof a;
        CHECK(a.size <= b->size - at - sizeof a);
        if (a.type == ATTRIBUTE_TEXT)
            CHECK(utf8_without_controls(value, a.size, a.key == KEY_DB_QUERY_TEXT));
        else if (a.type == ATTRIBUTE_TEXTS)
            for (uint32_t k = 0, size; k < a.size; k += size) {
                CHECK(a.size - k >= sizeof size);
                memcpy(&size, value + k, sizeof size);
                k += (uint32_t)sizeof size;
                CHECK(size <= a.size - k && utf8_without_controls(value + k, size, false));
            }
        else
            CHECK((a.type == ATTRIBUTE_INT || a.type == ATTRIBUTE_BOOL || a.type == ATTRIBUTE_DOUBLE) &&
                  a.size == 8);
        for (uint32_t k = a.size; k % 8; k++)
            CHECK(value[k] == 0);
        at += (uint32_t)sizeof a + ((a.size + 7) & ~7u);
    }
}

static inline enum parse_status checked_parse(const struct protocol *protocol, struct cursor *in,
                                              const struct parse_context *context, void *state,
                                              struct step *step, struct builder *attributes)
{
    uint8_t before[STREAM_STATE_SIZE];
    const uint8_t *start = in->start, *end = in->end;
    size_t length = (size_t)(end - start);
    static uint8_t session[1024];
    CHECK(protocol->session_size <= sizeof session);
    memcpy(before, state, sizeof before);
    if (protocol->session_size)
        memcpy(session, context->session, protocol->session_size);
    memset(step, 0, sizeof *step);
    attributes->size = attributes->left_out = attributes->last = 0;
    enum parse_status status = protocol->parse(in, context, state, step, attributes);
    CHECK(in->start == start && in->end == end && in->at >= start && in->at <= end);
    check_list(attributes);
    switch (status) {
    case PARSE_OK:
        CHECK(in->at > start);
        CHECK(!step->interim || (step->begins && step->ends));
        CHECK(!step->ends || !step->whole);
        CHECK(step->skip == SKIP_TO_END || step->skip < SKIP_TO_END / 2 + 3);
        CHECK(step->body <= step->skip);
        CHECK(step->tracestate.length == 0 || (step->begins && step->context.valid));
        CHECK((uint64_t)step->tracestate.offset + step->tracestate.length <= (uint64_t)(in->at - start));
        break;
    case PARSE_NEED_MORE:
        CHECK(memcmp(before, state, sizeof before) == 0);
        CHECK(protocol->session_size == 0 || memcmp(session, context->session, protocol->session_size) == 0);
        CHECK(in->need == 0 || in->need > length);
        break;
    case PARSE_INVALID:
        break;
    default:
        CHECK(!"a status of the contract");
    }
    return status;
}
