/* SPDX-License-Identifier: Apache-2.0 */
/* Spans and findings -> OTLP (opentelemetry-proto 1.10: trace, logs, common), protobuf and JSON.
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
 *   ScopeLogs.log_records  12 <size>
 *     time            09 <8 bytes>                     attributes      32 ...
 *     severity_number 10 <varint>                      flags           45 <4 bytes>
 *     severity_text   1A <size> <text>                 trace_id        4A 10 <16 bytes>
 *     body            2A <size> 0A <size> <text>       span_id         52 08 <8 bytes>
 *     observed_time   59 <8 bytes>                     event_name      62 <size> <text>
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

static bool slice(const struct rows *rows, uint32_t offset, uint32_t size, struct text *out)
{
    out->at = rows->arena + offset;
    out->size = size;
    return offset <= rows->arena_size && size <= rows->arena_size - offset;
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

static bool any_bit(const uint8_t *id, size_t size)
{
    static const uint8_t none[16];
    return memcmp(id, none, size) != 0;
}

static bool has_parent(const struct span_row *row)
{
    return any_bit(row->parent_id, sizeof row->parent_id);
}

static uint64_t unix_ns(const struct rows *rows, uint64_t ktime_ns)
{
    return ktime_ns + (uint64_t)rows->clock_offset_ns;
}

/* What a row of a finding says. has_trace, has_span: which ids it names; a span without its trace is none. */
struct event {
    struct text severity, name, body, list;
    bool has_trace, has_span;
};

#define TEXT(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}

#define EVENT_PREFIX "ebpf_otlp_tracer.finding."

static const struct text event_names[FINDING_COUNT] = {
#define EVENT_NAME(identifier, name, sentence) [FINDING_##identifier] = TEXT(EVENT_PREFIX name),
    FINDINGS(EVENT_NAME)
#undef EVENT_NAME
};

static const struct text event_bodies[FINDING_COUNT] = {
#define EVENT_BODY(identifier, name, sentence) [FINDING_##identifier] = TEXT(sentence),
    FINDINGS(EVENT_BODY)
#undef EVENT_BODY
};

/* By SeverityNumber: https://opentelemetry.io/docs/specs/otel/logs/data-model/#displaying-severity */
static const struct text severities[] = {
    TEXT(""),      TEXT("TRACE"), TEXT("TRACE2"), TEXT("TRACE3"), TEXT("TRACE4"),
    TEXT("DEBUG"), TEXT("DEBUG2"), TEXT("DEBUG3"), TEXT("DEBUG4"),
    TEXT("INFO"),  TEXT("INFO2"), TEXT("INFO3"),  TEXT("INFO4"),
    TEXT("WARN"),  TEXT("WARN2"), TEXT("WARN3"),  TEXT("WARN4"),
    TEXT("ERROR"), TEXT("ERROR2"), TEXT("ERROR3"), TEXT("ERROR4"),
    TEXT("FATAL"), TEXT("FATAL2"), TEXT("FATAL3"), TEXT("FATAL4"),
};

/* False: the row is broken. */
static bool read_event(const struct rows *rows, const struct finding_row *row, struct event *out)
{
    if (row->finding >= FINDING_COUNT || row->severity >= sizeof severities / sizeof *severities)
        return false;
    out->severity = severities[row->severity];
    out->name = event_names[row->finding];
    out->body = event_bodies[row->finding];
    out->has_trace = any_bit(row->trace_id, sizeof row->trace_id);
    out->has_span = out->has_trace && any_bit(row->span_id, sizeof row->span_id);
    return slice(rows, row->attributes_offset, row->attributes_size, &out->list);
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

/* Bytes of the attributes' fields, or BROKEN. */
static uint64_t attributes_size(const struct encoder *encoder, struct text list)
{
    uint64_t size = 0;
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

/* Bytes inside the length prefix, or BROKEN. */
static uint64_t protobuf_span_size(const struct encoder *encoder, const struct rows *rows,
                                   const struct span_row *row)
{
    struct text name, state, list;
    if (!slice(rows, row->name_offset, row->name_size, &name) ||
        !slice(rows, row->tracestate_offset, row->tracestate_size, &state) ||
        !slice(rows, row->attributes_offset, row->attributes_size, &list))
        return BROKEN;
    uint64_t attributes = attributes_size(encoder, list);
    if (attributes == BROKEN)
        return BROKEN;
    uint64_t size = 18 + 10 + 2 + 9 + 9 + 6 + attributes; /* ids, kind, times, flags */
    size += has_parent(row) ? 10 : 0;
    size += state.size ? field_size(state.size) : 0;
    size += name.size ? field_size(name.size) : 0;
    size += row->status ? 4 : 0;
    return size;
}

static uint64_t protobuf_log_size(const struct encoder *encoder, const struct rows *rows,
                                  const struct finding_row *row)
{
    struct event event;
    if (!read_event(rows, row, &event))
        return BROKEN;
    uint64_t attributes = attributes_size(encoder, event.list);
    if (attributes == BROKEN)
        return BROKEN;
    uint64_t size = 9 + 9 + attributes; /* times */
    size += row->severity ? 2 + field_size(event.severity.size) : 0;
    size += field_size(field_size(event.body.size)) + field_size(event.name.size);
    size += row->trace_flags ? 5 : 0;
    size += (event.has_trace ? 18 : 0) + (event.has_span ? 10 : 0);
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

static uint8_t *put_u32(uint8_t *out, uint32_t v)
{
    return put_bytes(out, &v, sizeof v);
}

static uint8_t *put_attributes(uint8_t *out, uint8_t tag, const struct encoder *encoder, struct text list)
{
    struct item item;
    while (list.size && next_item(encoder, &list, &item)) {
        uint64_t value = value_size(&item);
        out = put_head(out, tag, item.key->protobuf_size + field_size(value));
        out = put_bytes(out, encoder->text + item.key->protobuf, item.key->protobuf_size);
        out = put_head(out, 0x12, value);
        out = put_value(out, &item);
    }
    return out;
}

static void protobuf_span(const struct encoder *encoder, const struct rows *rows, const struct span_row *row,
                          uint64_t body_size, uint8_t *out)
{
    struct text name, state, list;
    slice(rows, row->name_offset, row->name_size, &name);
    slice(rows, row->tracestate_offset, row->tracestate_size, &state);
    slice(rows, row->attributes_offset, row->attributes_size, &list);
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
    out = put_u64(out, 0x39, unix_ns(rows, row->start_ktime_ns));
    out = put_u64(out, 0x41, unix_ns(rows, row->end_ktime_ns));
    out = put_attributes(out, 0x4A, encoder, list);
    if (row->status) {
        out = put_head(out, 0x7A, 2);
        out = put_head(out, 0x18, row->status & 0x7F);
    }
    out = put_bytes(out, "\x85\x01", 2);
    put_u32(out, flags_of(row));
}

static void protobuf_log(const struct encoder *encoder, const struct rows *rows,
                         const struct finding_row *row, uint64_t body_size, uint8_t *out)
{
    struct event event;
    read_event(rows, row, &event);
    out = put_head(out, 0x12, body_size);
    out = put_u64(out, 0x09, unix_ns(rows, row->ktime_ns));
    if (row->severity) {
        out = put_head(out, 0x10, row->severity);
        out = put_field(out, 0x1A, event.severity);
    }
    out = put_head(out, 0x2A, field_size(event.body.size));
    out = put_field(out, 0x0A, event.body);
    out = put_attributes(out, 0x32, encoder, event.list);
    if (row->trace_flags) {
        *out++ = 0x45;
        out = put_u32(out, row->trace_flags);
    }
    if (event.has_trace)
        out = put_field(out, 0x4A, (struct text){row->trace_id, sizeof row->trace_id});
    if (event.has_span)
        out = put_field(out, 0x52, (struct text){row->span_id, sizeof row->span_id});
    out = put_u64(out, 0x59, rows->observed_unix_ns);
    put_field(out, 0x62, event.name);
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

static bool json_attributes(struct sink *sink, const struct encoder *encoder, struct text list)
{
    PUT(sink, "\"attributes\":[");
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
    return true;
}

/* False: the row is broken. */
static bool json_span(const struct encoder *encoder, const struct rows *rows, const struct span_row *row,
                      struct sink *sink)
{
    struct text name, state, list;
    if (!slice(rows, row->name_offset, row->name_size, &name) ||
        !slice(rows, row->tracestate_offset, row->tracestate_size, &state) ||
        !slice(rows, row->attributes_offset, row->attributes_size, &list))
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
    put_decimal(sink, unix_ns(rows, row->start_ktime_ns), false);
    PUT(sink, "\",\"endTimeUnixNano\":\"");
    put_decimal(sink, unix_ns(rows, row->end_ktime_ns), false);
    PUT(sink, "\",");
    if (!json_attributes(sink, encoder, list))
        return false;
    if (row->status) {
        PUT(sink, ",\"status\":{\"code\":");
        put_decimal(sink, row->status, false);
        PUT(sink, "}");
    }
    PUT(sink, "},");
    return true;
}

/* False: the row is broken. */
static bool json_log(const struct encoder *encoder, const struct rows *rows, const struct finding_row *row,
                     struct sink *sink)
{
    struct event event;
    if (!read_event(rows, row, &event))
        return false;
    PUT(sink, "{\"timeUnixNano\":\"");
    put_decimal(sink, unix_ns(rows, row->ktime_ns), false);
    PUT(sink, "\",\"observedTimeUnixNano\":\"");
    put_decimal(sink, rows->observed_unix_ns, false);
    if (row->severity) {
        PUT(sink, "\",\"severityNumber\":");
        put_decimal(sink, row->severity, false);
        PUT(sink, ",\"severityText\":\"");
        put(sink, event.severity.at, event.severity.size);
    }
    PUT(sink, "\",\"body\":{\"stringValue\":");
    put_string(sink, event.body);
    PUT(sink, "},");
    if (!json_attributes(sink, encoder, event.list))
        return false;
    if (row->trace_flags) {
        PUT(sink, ",\"flags\":");
        put_decimal(sink, row->trace_flags, false);
    }
    if (event.has_trace) {
        PUT(sink, ",\"traceId\":\"");
        put_hex(sink, row->trace_id, sizeof row->trace_id);
        PUT(sink, "\"");
    }
    if (event.has_span) {
        PUT(sink, ",\"spanId\":\"");
        put_hex(sink, row->span_id, sizeof row->span_id);
        PUT(sink, "\"");
    }
    PUT(sink, ",\"eventName\":");
    put_string(sink, event.name);
    PUT(sink, "},");
    return true;
}

/* ---- what Python calls --------------------------------------------------------------------------- */

static const struct span_row *span_at(const struct rows *rows, uint32_t i)
{
    return (const struct span_row *)rows->rows + rows->order[i];
}

static const struct finding_row *finding_at(const struct rows *rows, uint32_t i)
{
    return (const struct finding_row *)rows->rows + rows->order[i];
}

static bool json_row(const struct encoder *encoder, const struct rows *rows, uint32_t i, struct sink *sink)
{
    return rows->kind == ROW_SPAN ? json_span(encoder, rows, span_at(rows, i), sink)
                                  : json_log(encoder, rows, finding_at(rows, i), sink);
}

static uint64_t protobuf_size(const struct encoder *encoder, const struct rows *rows, uint32_t i)
{
    return rows->kind == ROW_SPAN ? protobuf_span_size(encoder, rows, span_at(rows, i))
                                  : protobuf_log_size(encoder, rows, finding_at(rows, i));
}

uint64_t rows_measure(const struct encoder *encoder, enum encoding encoding, const struct rows *rows,
                      uint64_t *sizes)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < rows->n; i++) {
        sizes[i] = 0;
        if (rows->order[i] < rows->rows_n) {
            struct sink counted = {NULL, 0};
            uint64_t body;
            if (encoding == ENCODING_JSON)
                sizes[i] = json_row(encoder, rows, i, &counted) ? counted.size : 0;
            else if ((body = protobuf_size(encoder, rows, i)) != BROKEN)
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

uint64_t rows_write(const struct encoder *encoder, enum encoding encoding, const struct rows *rows,
                    const uint64_t *sizes, uint8_t *out, uint64_t out_size)
{
    uint64_t written = 0;
    for (uint32_t i = 0; i < rows->n && sizes[i] <= out_size - written; i++) {
        struct sink sink = {out + written, 0};
        if (encoding == ENCODING_JSON)
            json_row(encoder, rows, i, &sink);
        else if (rows->kind == ROW_SPAN)
            protobuf_span(encoder, rows, span_at(rows, i), body_size(sizes[i]), out + written);
        else
            protobuf_log(encoder, rows, finding_at(rows, i), body_size(sizes[i]), out + written);
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
