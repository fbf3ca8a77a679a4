/* SPDX-License-Identifier: Apache-2.0 */
/* Appends attributes to a bounded buffer; text becomes valid UTF-8 on the way.
 *
 * An append that does not fit is left out and counted: a span never carries half an attribute. */
#pragma once
#include "attributes.h"
#include <stdbool.h>
#include <stddef.h>

struct builder {
    uint8_t *data;
    uint32_t size, capacity;
    uint32_t left_out; /* appends that did not fit */
    uint32_t last;     /* offset of the newest attribute: builder_texts() may add to it */
};

/* `bytes` may be anything: control characters and invalid UTF-8 become U+FFFD, text longer than
 * `limit` bytes is cut at a character. */
void builder_text(struct builder *b, enum attribute_key key, const void *bytes, size_t length, size_t limit);
/* The same for text of several lines: tabs and line ends stay. */
void builder_lines(struct builder *b, enum attribute_key key, const void *bytes, size_t length, size_t limit);
void builder_int(struct builder *b, enum attribute_key key, int64_t value);
void builder_bool(struct builder *b, enum attribute_key key, bool value);
/* A list of texts with one element; a second call with the same key directly after the first adds to it. */
void builder_texts(struct builder *b, unsigned key, const void *bytes, size_t length, size_t limit);
/* An address of 16 bytes, in the text form of RFC 5952; IPv4-mapped as dotted quad. */
void builder_address(struct builder *b, enum attribute_key key, const uint8_t *address);

/* Copies at most `max` bytes of UTF-8 made from `length` bytes of anything; returns the length. */
size_t text_clean(char *out, size_t max, const void *bytes, size_t length);
/* RFC 5952 text of an address; `out` holds 46 bytes; returns the length. */
size_t address_text(char *out, const uint8_t *address);

/* First attribute with this key in a list, or NULL; the value follows the header directly. */
const struct attribute *attribute_find(const uint8_t *list, uint32_t size, unsigned key);
