/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of a batch -> the elements of OTLP's ScopeSpans.spans or ScopeLogs.log_records, protobuf or JSON: what
 * Python may call.
 *
 * Two passes: measure() checks every row against the arena and says how long its element will be, so that
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

enum row_kind { ROW_SPAN, ROW_FINDING };

/* Rows of a batch in the order they are to be written. */
struct rows {
    enum row_kind kind;
    const void *rows; /* struct span_row or struct finding_row */
    uint32_t rows_n;
    const uint32_t *order; /* n indices into rows */
    uint32_t n;
    const uint8_t *arena;
    uint64_t arena_size;
    int64_t clock_offset_ns;   /* Unix ns = ktime ns + clock_offset_ns */
    uint64_t observed_unix_ns; /* of findings */
};

/* sizes[i]: bytes that row order[i] takes, 0 for one that cannot be read: an offset outside the arena, a
 * key that the encoder does not know, a value that does not fit its type, a finding that there is not.
 * Returns their sum. */
uint64_t rows_measure(const struct encoder *encoder, enum encoding encoding, const struct rows *rows,
                      uint64_t *sizes);

/* Writes the rows and returns the bytes written, never more than out_size: it stops before the first
 * that does not fit. `sizes` are measure()'s for the same rows of the same memory, none of them 0.
 * Each JSON element ends with a comma. */
uint64_t rows_write(const struct encoder *encoder, enum encoding encoding, const struct rows *rows,
                    const uint64_t *sizes, uint8_t *out, uint64_t out_size);
