/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of URLs and of the headers that carry hosts, and how secrets in them are hidden. */
#pragma once
#include "protocol.h"

/* Bytes of somebody else, as they came: not terminated, not checked. */
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

/* Request target of RFC 9112, 3.2, or any URL: what the form leaves out stays empty. */
struct url {
    struct text scheme, authority, path, query;
    bool has_query;
};
/* origin-form "/a?b" and absolute-form "http://u@h:1/a?b#c" (the fragment is left out); "*" is a path.
 * False: neither of them. */
bool url_split(struct text target, struct url *url);

/* host[:port], [v6][:port], user@host: the host without user and brackets, the port or 0. An address with
 * several colons and no brackets is an address without port. False: no host. */
bool url_authority(struct text authority, struct text *host, uint16_t *port);

/* Value of a parameter in the first element of a Forwarded header, the one next to the client
 * (RFC 7239, 4), without quotes; empty when there is none. */
struct text forwarded_parameter(struct text header, const char *name);

/* The query with the values of options->redact_keys replaced by REDACTED: at most max bytes to out. */
size_t url_redact_query(char *out, size_t max, struct text query, const struct protocol_options *options);
