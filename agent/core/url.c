/* SPDX-License-Identifier: Apache-2.0 */
/* URLs by RFC 3986 as far as spans need them; see url.h.
 *
 *   http://user:secret@example.com:8080/a/b?key=value&sig=secret#part
 *   scheme   authority                 path query                fragment
 *
 *   Forwarded: for="[2001:db8::17]:4711";proto=https;host=example.com, for=10.0.0.1
 *
 * Nothing is decoded: what is reported is what went over the wire, and a key that somebody spelled with
 * percent signs is not one that a signing library writes. */
#include "url.h"

static const struct text nothing = {(const uint8_t *)"", 0};

static bool is_scheme(struct text t)
{
    for (size_t i = 0; i < t.length; i++) {
        uint8_t c = t.bytes[i], letter = c | 0x20;
        bool later = (c >= '0' && c <= '9') || c == '+' || c == '-' || c == '.';
        if (!(letter >= 'a' && letter <= 'z') && !(i > 0 && later))
            return false;
    }
    return t.length > 0;
}

bool url_split(struct text target, struct url *url)
{
    struct text rest;
    *url = (struct url){nothing, nothing, nothing, nothing, false};
    target = text_before(target, '#', &rest);
    if (target.length == 0)
        return false;
    if (target.bytes[0] != '/' && !(target.length == 1 && target.bytes[0] == '*')) {
        url->scheme = text_before(target, ':', &rest);
        if (rest.bytes == NULL || rest.length < 2 || memcmp(rest.bytes, "//", 2) != 0 ||
            !is_scheme(url->scheme))
            return false;
        target = (struct text){rest.bytes + 2, rest.length - 2};
        size_t end = 0;
        while (end < target.length && target.bytes[end] != '/' && target.bytes[end] != '?')
            end++;
        url->authority = (struct text){target.bytes, end};
        target = (struct text){target.bytes + end, target.length - end};
    }
    url->path = text_before(target, '?', &rest);
    url->has_query = rest.bytes != NULL;
    if (url->has_query)
        url->query = rest;
    return true;
}

/* 1 to 65535, or 0. */
static uint16_t port_number(struct text t)
{
    uint32_t port = 0;
    for (size_t i = 0; i < t.length; i++) {
        if (t.bytes[i] < '0' || t.bytes[i] > '9' || i == 5)
            return 0;
        port = port * 10 + (t.bytes[i] - '0');
    }
    return port <= UINT16_MAX ? (uint16_t)port : 0;
}

bool url_authority(struct text authority, struct text *host, uint16_t *port)
{
    struct text rest = text_trimmed(authority), after;
    *port = 0;
    do { /* user information ends at the last '@' */
        authority = rest;
        text_before(authority, '@', &rest);
    } while (rest.bytes != NULL);
    if (authority.length && authority.bytes[0] == '[') {
        *host = text_before((struct text){authority.bytes + 1, authority.length - 1}, ']', &rest);
        if (rest.length > 1 && rest.bytes[0] == ':')
            *port = port_number((struct text){rest.bytes + 1, rest.length - 1});
        return host->length > 0;
    }
    *host = text_before(authority, ':', &rest);
    if (rest.bytes == NULL)
        return host->length > 0;
    text_before(rest, ':', &after);
    if (after.bytes != NULL)
        *host = authority; /* a bare IPv6 address: its last group is no port */
    else
        *port = port_number(rest);
    return host->length > 0;
}

struct text forwarded_parameter(struct text header, const char *name)
{
    size_t at = 0;
    while (at < header.length) {
        size_t start = at, equals = SIZE_MAX;
        bool quoted = false;
        for (; at < header.length; at++) {
            uint8_t c = header.bytes[at];
            if (c == '"')
                quoted = !quoted;
            else if (quoted)
                continue;
            else if (c == '=' && equals == SIZE_MAX)
                equals = at;
            else if (c == ';' || c == ',')
                break;
        }
        if (equals != SIZE_MAX &&
            text_is(text_trimmed((struct text){header.bytes + start, equals - start}), name)) {
            struct text value =
                text_trimmed((struct text){header.bytes + equals + 1, at - equals - 1});
            if (value.length >= 2 && value.bytes[0] == '"' && value.bytes[value.length - 1] == '"')
                value = (struct text){value.bytes + 1, value.length - 2};
            return value;
        }
        if (at < header.length && header.bytes[at] == ',')
            break;
        at++;
    }
    return nothing;
}

static bool is_secret(struct text key, const struct protocol_options *options)
{
    for (uint32_t i = 0; key.length && i < options->redact_count; i++) {
        const char *secret = options->redact_keys[i];
        if ((uint8_t)secret[0] == key.bytes[0] && strncmp(secret, (const char *)key.bytes, key.length) == 0 &&
            secret[key.length] == '\0')
            return true;
    }
    return false;
}

static size_t put(char *out, size_t max, size_t size, struct text t)
{
    size_t n = t.length < max - size ? t.length : max - size;
    memcpy(out + size, t.bytes, n);
    return size + n;
}

size_t url_redact_query(char *out, size_t max, struct text query, const struct protocol_options *options)
{
    if (options->redact_count == 0)
        return put(out, max, 0, query);
    size_t size = 0;
    do {
        struct text rest, value, pair = text_before(query, '&', &rest), key = text_before(pair, '=', &value);
        if (value.bytes != NULL && is_secret(key, options)) {
            size = put(out, max, size, (struct text){pair.bytes, key.length + 1});
            size = put(out, max, size, TEXT("REDACTED"));
        } else {
            size = put(out, max, size, pair);
        }
        if (rest.bytes != NULL)
            size = put(out, max, size, TEXT("&"));
        query = rest;
    } while (query.bytes != NULL && size < max);
    return size;
}
