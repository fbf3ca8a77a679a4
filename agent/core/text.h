/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes of somebody else, looked at and never changed: what every parser does with words. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* As they came: not terminated, not checked. */
struct text {
    const uint8_t *bytes;
    size_t length;
};

#define TEXT(literal) ((struct text){(const uint8_t *)(literal), sizeof(literal) - 1})

static inline bool text_is_space(uint8_t c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* Without the spaces and tabs around it, and the line ends of an obsolete fold. */
static inline struct text text_trimmed(struct text t)
{
    while (t.length && text_is_space(t.bytes[0])) {
        t.bytes++;
        t.length--;
    }
    while (t.length && text_is_space(t.bytes[t.length - 1]))
        t.length--;
    return t;
}

/* Is it `literal` (lower case), in any case of ASCII letters? */
static inline bool text_is(struct text t, const char *literal)
{
    size_t i = 0;
    for (; i < t.length && literal[i]; i++) {
        uint8_t c = t.bytes[i];
        if ((c >= 'A' && c <= 'Z' ? c | 0x20 : c) != (uint8_t)literal[i])
            return false;
    }
    return i == t.length && literal[i] == '\0';
}

/* Bytes before the first `c`, or all; *rest gets what follows it, with bytes == NULL when there is no `c`. */
static inline struct text text_before(struct text t, char c, struct text *rest)
{
    const uint8_t *at = t.length ? memchr(t.bytes, c, t.length) : NULL;
    if (at == NULL) {
        *rest = (struct text){NULL, 0};
        return t;
    }
    size_t before = (size_t)(at - t.bytes);
    *rest = (struct text){at + 1, t.length - before - 1};
    return (struct text){t.bytes, before};
}
