/* SPDX-License-Identifier: Apache-2.0 */
/* Spans -> OTLP (opentelemetry-proto 1.10, trace.proto and common.proto), protobuf and JSON.
 *
 *   ScopeSpans.spans  12 <size>                      Span.attributes  4A <size>
 *     trace_id        0A 10 <16 bytes>                 KeyValue.key     0A <size> <key>    made once per key
 *     span_id         12 08 <8 bytes>                  KeyValue.value   12 <size>
 *     trace_state     1A <size> <text>                   string_value     0A <size> <text>
 *     parent_span_id  22 08 <8 bytes>                    bool_value       10 <0|1>
 *     name            2A <size> <text>                   int_value        18 <varint>
 *     kind            30 <varint>                        double_value     21 <8 bytes>
 *     start, end      39, 41 <8 bytes>                   array_value      2A <size>
 *     attributes      4A ...                               values           0A <size> <AnyValue>
 *     status          7A 02 18 02                    flags           85 01 <4 bytes>
 *
 * Fields are in the order of their numbers, so the bytes equal protobuf's own deterministic output.
 * JSON: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding (ids in hex, enums as numbers,
 * 64-bit integers as strings). */
#include "encode.h"
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FLAGS_HAS_IS_REMOTE 0x100u
#define FLAGS_IS_REMOTE 0x200u

struct key {
    uint32_t protobuf, protobuf_size; /* 0A <size> <key> */
    uint32_t json, json_size;         /* {"key":"...","value": */
};

struct encoder {
    uint32_t slots; /* ids are below; a slot without a key has protobuf_size 0 */
    struct key *keys;
    uint8_t *text;
};

/* ---- what both formats read ---------------------------------------------------------------------- */

struct text {
    const uint8_t *at;
    uint64_t size;
};

/* One attribute of a list, checked: value.at .. value.at + value.size is inside the arena. */
struct item {
    const struct key *key;
    uint16_t type;
    struct text value;
};

static bool slice(const struct spans *spans, uint32_t offset, uint32_t size, struct text *out)
{
    out->at = spans->arena + offset;
    out->size = size;
    return offset <= spans->arena_size && size <= spans->arena_size - offset;
}

/* Takes the next element off a list of texts. False: the list is broken. */
static bool next_text(struct text *list, struct text *out)
{
    uint32_t size;
    if (list->size < sizeof size)
        return false;
    memcpy(&size, list->at, sizeof size);
    if (size > list->size - sizeof size)
        return false;
    *out = (struct text){list->at + sizeof size, size};
    list->at += sizeof size + size;
    list->size -= sizeof size + size;
    return true;
}

/* Takes the next attribute off a list. False: the list is broken. */
static bool next_item(const struct encoder *encoder, struct text *list, struct item *out)
{
    struct attribute head;
    if (list->size < sizeof head)
        return false;
    memcpy(&head, list->at, sizeof head);
    uint64_t padded = ((uint64_t)head.size + 7) & ~(uint64_t)7;
    if (padded > list->size - sizeof head || head.key >= encoder->slots)
        return false;
    out->key = &encoder->keys[head.key];
    out->type = head.type;
    out->value = (struct text){list->at + sizeof head, head.size};
    list->at += sizeof head + padded;
    list->size -= sizeof head + padded;
    return out->key->protobuf_size != 0;
}

static uint64_t read_u64(struct text value)
{
    uint64_t v;
    memcpy(&v, value.at, sizeof v);
    return v;
}

static uint32_t flags_of(const struct span_row *row)
{
    return row->trace_flags | FLAGS_HAS_IS_REMOTE | (row->remote_parent ? FLAGS_IS_REMOTE : 0);
}

static bool has_parent(const struct span_row *row)
{
    static const uint8_t none[sizeof row->parent_id];
    return memcmp(row->parent_id, none, sizeof none) != 0;
}

/* ---- protobuf ------------------------------------------------------------------------------------ */

#define BROKEN UINT64_MAX

static uint64_t varint_size(uint64_t v)
{
    return (70u - (unsigned)__builtin_clzll(v | 1)) / 7u;
}

static uint64_t field_size(uint64_t size) /* tag of one byte, length, bytes */
{
    return 1 + varint_size(size) + size;
}

static uint64_t texts_size(struct text list)
{
    uint64_t size = 0;
    struct text text;
    while (list.size) {
        if (!next_text(&list, &text))
            return BROKEN;
        size += field_size(field_size(text.size));
    }
    return size;
}

/* Bytes of the AnyValue, or BROKEN. */
static uint64_t value_size(const struct item *item)
{
    uint64_t size;
    switch (item->type) {
    case ATTRIBUTE_TEXT:
        return field_size(item->value.size);
    case ATTRIBUTE_INT:
        return item->value.size == 8 ? 1 + varint_size(read_u64(item->value)) : BROKEN;
    case ATTRIBUTE_DOUBLE:
        return item->value.size == 8 ? 1 + 8 : BROKEN;
    case ATTRIBUTE_BOOL:
        return item->value.size == 8 ? 1 + 1 : BROKEN;
    case ATTRIBUTE_TEXTS:
        size = texts_size(item->value);
        return size == BROKEN ? BROKEN : field_size(size);
    default:
        return BROKEN;
    }
}

/* Bytes inside the span's length prefix, or BROKEN. */
static uint64_t protobuf_size(const struct encoder *encoder, const struct spans *spans, const struct span_row *row)
{
    struct text name, state, list;
    if (!slice(spans, row->name_offset, row->name_size, &name) ||
        !slice(spans, row->tracestate_offset, row->tracestate_size, &state) ||
        !slice(spans, row->attributes_offset, row->attributes_size, &list))
        return BROKEN;
    uint64_t size = 18 + 10 + 2 + 9 + 9 + 6; /* ids, kind, times, flags */
    size += has_parent(row) ? 10 : 0;
    size += state.size ? field_size(state.size) : 0;
    size += name.size ? field_size(name.size) : 0;
    size += row->status ? 4 : 0;
    while (list.size) {
        struct item item;
        if (!next_item(encoder, &list, &item))
            return BROKEN;
        uint64_t value = value_size(&item);
        if (value == BROKEN)
            return BROKEN;
        size += field_size(item.key->protobuf_size + field_size(value));
    }
    return size;
}

static uint8_t *put_varint(uint8_t *out, uint64_t v)
{
    while (v >= 0x80) {
        *out++ = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    *out++ = (uint8_t)v;
    return out;
}

static uint8_t *put_head(uint8_t *out, uint8_t tag, uint64_t size)
{
    *out++ = tag;
    return put_varint(out, size);
}

static uint8_t *put_bytes(uint8_t *out, const void *bytes, uint64_t size)
{
    memcpy(out, bytes, size);
    return out + size;
}

static uint8_t *put_field(uint8_t *out, uint8_t tag, struct text text)
{
    return put_bytes(put_head(out, tag, text.size), text.at, text.size);
}

static uint8_t *put_u64(uint8_t *out, uint8_t tag, uint64_t v)
{
    *out++ = tag;
    return put_bytes(out, &v, sizeof v); /* little endian, as everything that BPF runs on here */
}

static uint8_t *put_value(uint8_t *out, const struct item *item)
{
    switch (item->type) {
    case ATTRIBUTE_TEXT:
        return put_field(out, 0x0A, item->value);
    case ATTRIBUTE_INT:
        return put_head(out, 0x18, read_u64(item->value));
    case ATTRIBUTE_DOUBLE:
        return put_u64(out, 0x21, read_u64(item->value));
    case ATTRIBUTE_BOOL:
        return put_head(out, 0x10, read_u64(item->value) != 0);
    default: /* ATTRIBUTE_TEXTS, for the row was measured */
        out = put_head(out, 0x2A, texts_size(item->value));
        for (struct text list = item->value, text; list.size && next_text(&list, &text);) {
            out = put_head(out, 0x0A, field_size(text.size));
            out = put_field(out, 0x0A, text);
        }
        return out;
    }
}

static void protobuf_write(const struct encoder *encoder, const struct spans *spans, const struct span_row *row,
                           uint64_t body_size, uint8_t *out)
{
    struct text name, state, list;
    slice(spans, row->name_offset, row->name_size, &name);
    slice(spans, row->tracestate_offset, row->tracestate_size, &state);
    slice(spans, row->attributes_offset, row->attributes_size, &list);
    out = put_head(out, 0x12, body_size);
    out = put_field(out, 0x0A, (struct text){row->trace_id, sizeof row->trace_id});
    out = put_field(out, 0x12, (struct text){row->span_id, sizeof row->span_id});
    if (state.size)
        out = put_field(out, 0x1A, state);
    if (has_parent(row))
        out = put_field(out, 0x22, (struct text){row->parent_id, sizeof row->parent_id});
    if (name.size)
        out = put_field(out, 0x2A, name);
    out = put_head(out, 0x30, row->kind & 0x7F);
    out = put_u64(out, 0x39, row->start_ktime_ns + (uint64_t)spans->clock_offset_ns);
    out = put_u64(out, 0x41, row->end_ktime_ns + (uint64_t)spans->clock_offset_ns);
    struct item item;
    while (list.size && next_item(encoder, &list, &item)) {
        uint64_t value = value_size(&item);
        out = put_head(out, 0x4A, item.key->protobuf_size + field_size(value));
        out = put_bytes(out, encoder->text + item.key->protobuf, item.key->protobuf_size);
        out = put_head(out, 0x12, value);
        out = put_value(out, &item);
    }
    if (row->status) {
        out = put_head(out, 0x7A, 2);
        out = put_head(out, 0x18, row->status & 0x7F);
    }
    uint32_t flags = flags_of(row);
    out = put_bytes(out, "\x85\x01", 2);
    put_bytes(out, &flags, sizeof flags);
}

/* ---- JSON ---------------------------------------------------------------------------------------- */

/* Where JSON goes; without `out` it is only counted, so that both passes are one piece of code. */
struct sink {
    uint8_t *out;
    uint64_t size;
};

static void put(struct sink *sink, const void *bytes, uint64_t size)
{
    if (sink->out)
        memcpy(sink->out + sink->size, bytes, size);
    sink->size += size;
}

#define PUT(sink, literal) put(sink, "" literal, sizeof literal - 1)

/* What follows the backslash in place of a byte that may not stand in a string; u: \u00XX; 0: nothing. */
static char escape_of(uint8_t byte)
{
    return byte < 0x20 ? "uuuuuuuubtnufruuuuuuuuuuuuuuuuuu"[byte] : byte == '"' || byte == '\\' ? (char)byte : 0;
}

static void put_string(struct sink *sink, struct text text)
{
    const uint8_t *at = text.at, *end = at + text.size, *plain = at;
    PUT(sink, "\"");
    for (; at < end; at++) {
        char escape = escape_of(*at);
        if (!escape)
            continue;
        put(sink, plain, (uint64_t)(at - plain));
        plain = at + 1;
        char out[7];
        int size = escape == 'u' ? snprintf(out, sizeof out, "\\u%04x", *at) : 2;
        if (escape != 'u')
            out[0] = '\\', out[1] = escape;
        put(sink, out, (uint64_t)size);
    }
    put(sink, plain, (uint64_t)(at - plain));
    PUT(sink, "\"");
}

static void put_decimal(struct sink *sink, uint64_t v, bool negative)
{
    char digits[21], *at = digits + sizeof digits;
    do
        *--at = (char)('0' + v % 10);
    while (v /= 10);
    if (negative)
        *--at = '-';
    put(sink, at, (uint64_t)(digits + sizeof digits - at));
}

static void put_hex(struct sink *sink, const uint8_t *bytes, unsigned size)
{
    static const char HEX[] = "0123456789abcdef";
    char out[2 * 16];
    for (unsigned i = 0; i < size; i++) {
        out[2 * i] = HEX[bytes[i] >> 4];
        out[2 * i + 1] = HEX[bytes[i] & 15];
    }
    put(sink, out, 2 * size);
}

static void put_double(struct sink *sink, double v)
{
    char out[32];
    if (isnan(v))
        PUT(sink, "\"NaN\"");
    else if (isinf(v))
        put(sink, v > 0 ? "\"Infinity\"" : "\"-Infinity\"", v > 0 ? 10 : 11);
    else { /* 17 digits read back as the same number; the agent never sets a locale with another point */
        int size = snprintf(out, sizeof out, "%.17g", v);
        put(sink, out, (uint64_t)size);
        if (strcspn(out, ".e") == (size_t)size)
            PUT(sink, ".0"); /* else -0 would be read as the integer 0 */
    }
}

static bool json_value(struct sink *sink, const struct item *item)
{
    uint64_t v = 0;
    double number;
    if (item->type == ATTRIBUTE_INT || item->type == ATTRIBUTE_DOUBLE || item->type == ATTRIBUTE_BOOL) {
        if (item->value.size != 8)
            return false;
        v = read_u64(item->value);
    }
    switch (item->type) {
    case ATTRIBUTE_TEXT:
        PUT(sink, "{\"stringValue\":");
        put_string(sink, item->value);
        break;
    case ATTRIBUTE_INT:
        PUT(sink, "{\"intValue\":\"");
        put_decimal(sink, (int64_t)v < 0 ? -v : v, (int64_t)v < 0);
        PUT(sink, "\"");
        break;
    case ATTRIBUTE_DOUBLE:
        memcpy(&number, &v, sizeof number);
        PUT(sink, "{\"doubleValue\":");
        put_double(sink, number);
        break;
    case ATTRIBUTE_BOOL:
        PUT(sink, "{\"boolValue\":");
        put(sink, v ? "true" : "false", v ? 4 : 5);
        break;
    case ATTRIBUTE_TEXTS:
        PUT(sink, "{\"arrayValue\":{\"values\":[");
        for (struct text list = item->value, text; list.size;) {
            if (!next_text(&list, &text))
                return false;
            PUT(sink, "{\"stringValue\":");
            put_string(sink, text);
            put(sink, "},", list.size ? 2 : 1);
        }
        PUT(sink, "]}");
        break;
    default:
        return false;
    }
    PUT(sink, "}");
    return true;
}

/* False: the row is broken. */
static bool json_span(const struct encoder *encoder, const struct spans *spans, const struct span_row *row,
                      struct sink *sink)
{
    struct text name, state, list;
    if (!slice(spans, row->name_offset, row->name_size, &name) ||
        !slice(spans, row->tracestate_offset, row->tracestate_size, &state) ||
        !slice(spans, row->attributes_offset, row->attributes_size, &list))
        return false;
    PUT(sink, "{\"traceId\":\"");
    put_hex(sink, row->trace_id, sizeof row->trace_id);
    PUT(sink, "\",\"spanId\":\"");
    put_hex(sink, row->span_id, sizeof row->span_id);
    if (has_parent(row)) {
        PUT(sink, "\",\"parentSpanId\":\"");
        put_hex(sink, row->parent_id, sizeof row->parent_id);
    }
    PUT(sink, "\",");
    if (state.size) {
        PUT(sink, "\"traceState\":");
        put_string(sink, state);
        PUT(sink, ",");
    }
    PUT(sink, "\"flags\":");
    put_decimal(sink, flags_of(row), false);
    PUT(sink, ",\"name\":");
    put_string(sink, name);
    PUT(sink, ",\"kind\":");
    put_decimal(sink, row->kind, false);
    PUT(sink, ",\"startTimeUnixNano\":\"");
    put_decimal(sink, row->start_ktime_ns + (uint64_t)spans->clock_offset_ns, false);
    PUT(sink, "\",\"endTimeUnixNano\":\"");
    put_decimal(sink, row->end_ktime_ns + (uint64_t)spans->clock_offset_ns, false);
    PUT(sink, "\",\"attributes\":[");
    while (list.size) {
        struct item item;
        if (!next_item(encoder, &list, &item))
            return false;
        put(sink, encoder->text + item.key->json, item.key->json_size);
        if (!json_value(sink, &item))
            return false;
        put(sink, "},", list.size ? 2 : 1);
    }
    PUT(sink, "]");
    if (row->status) {
        PUT(sink, ",\"status\":{\"code\":");
        put_decimal(sink, row->status, false);
        PUT(sink, "}");
    }
    PUT(sink, "},");
    return true;
}

/* ---- what Python calls --------------------------------------------------------------------------- */

uint64_t spans_measure(const struct encoder *encoder, enum encoding encoding, const struct spans *spans,
                       uint64_t *sizes)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < spans->n; i++) {
        sizes[i] = 0;
        if (spans->order[i] < spans->rows_n) {
            const struct span_row *row = &spans->rows[spans->order[i]];
            struct sink counted = {NULL, 0};
            uint64_t body;
            if (encoding == ENCODING_JSON)
                sizes[i] = json_span(encoder, spans, row, &counted) ? counted.size : 0;
            else if ((body = protobuf_size(encoder, spans, row)) != BROKEN)
                sizes[i] = field_size(body);
        }
        sum += sizes[i];
    }
    return sum;
}

/* The size inside a length prefix, from the size with tag and prefix. */
static uint64_t body_size(uint64_t size)
{
    for (uint64_t prefix = 1; prefix <= 10; prefix++)
        if (size > 1 + prefix && varint_size(size - 1 - prefix) == prefix)
            return size - 1 - prefix;
    return 0;
}

uint64_t spans_write(const struct encoder *encoder, enum encoding encoding, const struct spans *spans,
                     const uint64_t *sizes, uint8_t *out, uint64_t out_size)
{
    uint64_t written = 0;
    for (uint32_t i = 0; i < spans->n && sizes[i] <= out_size - written; i++) {
        const struct span_row *row = &spans->rows[spans->order[i]];
        struct sink sink = {out + written, 0};
        if (encoding == ENCODING_JSON)
            json_span(encoder, spans, row, &sink);
        else
            protobuf_write(encoder, spans, row, body_size(sizes[i]), out + written);
        written += sizes[i];
    }
    return written;
}

void encoder_free(struct encoder *encoder)
{
    if (encoder) {
        free(encoder->keys);
        free(encoder->text);
        free(encoder);
    }
}

struct encoder *encoder_new(const uint16_t *ids, const char *const *keys, uint32_t n)
{
    struct encoder *encoder = calloc(1, sizeof *encoder);
    if (!encoder)
        return NULL;
    uint64_t room = 0;
    for (uint32_t i = 0; i < n; i++) {
        encoder->slots = ids[i] >= encoder->slots ? ids[i] + 1u : encoder->slots;
        room += 32 + 7 * strlen(keys[i]); /* protobuf: 1 a byte; JSON: at most 6 a byte, and 19 around it */
    }
    encoder->keys = calloc(encoder->slots ? encoder->slots : 1, sizeof *encoder->keys);
    encoder->text = room < UINT32_MAX ? malloc(room ? room : 1) : NULL;
    if (!encoder->keys || !encoder->text) {
        encoder_free(encoder);
        return NULL;
    }
    uint8_t *at = encoder->text;
    for (uint32_t i = 0; i < n; i++) {
        struct text text = {(const uint8_t *)keys[i], strlen(keys[i])};
        struct key *key = &encoder->keys[ids[i]];
        key->protobuf = (uint32_t)(at - encoder->text);
        uint8_t *end = put_field(at, 0x0A, text);
        key->protobuf_size = (uint32_t)(end - at);
        struct sink sink = {end, 0};
        PUT(&sink, "{\"key\":");
        put_string(&sink, text);
        PUT(&sink, ",\"value\":");
        key->json = (uint32_t)(end - encoder->text);
        key->json_size = (uint32_t)sink.size;
        at = end + sink.size;
    }
    return encoder;
}
