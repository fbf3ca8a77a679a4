/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds-checked reads over one window of a stream: the only arithmetic on payload.
 *
 * Every read checks the end of the window. The first failure is kept in `status` and later reads do
 * nothing, so a parser reads straight down and checks once. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum parse_status {
    PARSE_OK,        /* one step read */
    PARSE_NEED_MORE, /* valid so far; call again with more bytes (cursor.need, when it is known) */
    PARSE_INVALID,   /* not this protocol, or bytes were lost: resync */
};

/* Bytes of the window the cursor started on; valid as long as the window. */
struct slice {
    uint32_t offset, length;
};

struct cursor {
    const uint8_t *start, *at, *end;
    enum parse_status status;
    size_t need; /* least window length that can make progress, 0 when not known */
    size_t seen; /* so many bytes of this window got PARSE_NEED_MORE before; 0 when not known: a parser
                  * that looks for an end need not look there again (bytes that come one by one) */
};

static inline struct cursor cursor_over(const uint8_t *data, size_t length)
{
    return (struct cursor){.start = data, .at = data, .end = data + length, .status = PARSE_OK};
}

static inline void cursor_fail(struct cursor *c, enum parse_status status)
{
    if (c->status == PARSE_OK)
        c->status = status;
}

static inline size_t cursor_left(const struct cursor *c)
{
    return (size_t)(c->end - c->at);
}

/* Next n bytes, or an empty slice once the cursor has failed. */
static inline struct slice cursor_bytes(struct cursor *c, size_t n)
{
    if (c->status == PARSE_OK && cursor_left(c) < n) {
        c->need = (size_t)(c->at - c->start) + n;
        c->status = PARSE_NEED_MORE;
    }
    if (c->status != PARSE_OK)
        return (struct slice){0, 0};
    struct slice s = {(uint32_t)(c->at - c->start), (uint32_t)n};
    c->at += n;
    return s;
}

static inline uint8_t cursor_u8(struct cursor *c)
{
    struct slice s = cursor_bytes(c, 1);
    return s.length ? c->start[s.offset] : 0;
}

/* Next byte without reading it; -1 at the window's end or after a failure. */
static inline int cursor_peek(const struct cursor *c)
{
    return c->status == PARSE_OK && c->at < c->end ? *c->at : -1;
}

/* Bytes up to LF, which is read and left out together with a CR directly before it (RFC 9112, 2.2: a
 * recipient may take a lone LF as the end of a line). More than `limit` bytes is invalid. */
static inline struct slice cursor_line(struct cursor *c, size_t limit)
{
    if (c->status != PARSE_OK)
        return (struct slice){0, 0};
    size_t left = cursor_left(c), scan = left < limit + 2 ? left : limit + 2;
    const uint8_t *lf = scan ? memchr(c->at, '\n', scan) : NULL;
    if (lf == NULL) {
        c->need = (size_t)(c->end - c->start) + 1;
        cursor_fail(c, left > limit + 1 ? PARSE_INVALID : PARSE_NEED_MORE);
        return (struct slice){0, 0};
    }
    struct slice line = cursor_bytes(c, (size_t)(lf - c->at));
    cursor_bytes(c, 1);
    if (line.length && c->start[line.offset + line.length - 1] == '\r')
        line.length--;
    if (line.length > limit)
        cursor_fail(c, PARSE_INVALID);
    return line;
}

static inline const uint8_t *slice_bytes(const struct cursor *c, struct slice s)
{
    return c->start + s.offset;
}
