/* SPDX-License-Identifier: Apache-2.0 */
/* Spans of a batch -> the elements of OTLP's ScopeSpans.spans, as protobuf and as JSON: what Python may call.
 *
 * Two passes: measure() checks every row against the arena and says how long each span will be, so that
 * the caller can group rows, cut requests at a limit and allocate the exact size once; write() then fills
 * it without a check per byte. Growing a buffer instead would copy it, and protobuf puts lengths in front
 * of what they measure, so the first pass is made anyway.
 *
 * Nothing here allocates per call, and no Python object is touched: cffi lets go of the GIL. */
#pragma once
#include "agent/core/attributes.h"
#include "agent/core/span.h"
#include <stdint.h>

enum encoding { ENCODING_PROTOBUF, ENCODING_JSON };

/* The keys that attributes refer to by number, each encoded once for both formats. */
struct encoder;

/* n keys: ids (enum attribute_key) and NUL-terminated UTF-8, copied. An id may be any uint16_t.
 * NULL: no memory. */
struct encoder *encoder_new(const uint16_t *ids, const char *const *keys, uint32_t n);
void encoder_free(struct encoder *encoder);

/* Rows of a batch in the order they are to be written. */
struct spans {
    const struct span_row *rows;
    uint32_t rows_n;
    const uint32_t *order; /* n indices into rows */
    uint32_t n;
    const uint8_t *arena;
    uint64_t arena_size;
    int64_t clock_offset_ns; /* Unix ns = ktime ns + clock_offset_ns */
};

/* sizes[i]: bytes that span order[i] takes, 0 for a row that cannot be read: an offset outside the arena,
 * a key that the encoder does not know, a value that does not fit its type. Returns their sum. */
uint64_t spans_measure(const struct encoder *encoder, enum encoding encoding, const struct spans *spans,
                       uint64_t *sizes);

/* Writes the spans and returns the bytes written, never more than out_size: it stops before the first
 * span that does not fit. `sizes` are measure()'s for the same rows of the same memory, none of them 0.
 * Each JSON span ends with a comma. */
uint64_t spans_write(const struct encoder *encoder, enum encoding encoding, const struct spans *spans,
                     const uint64_t *sizes, uint8_t *out, uint64_t out_size);
