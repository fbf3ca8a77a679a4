/* SPDX-License-Identifier: Apache-2.0 */
/* Attribute lists and the text in them; see builder.h for the contract, attributes.h for the layout.
 *
 * Almost every text is printable ASCII, so that is tested and copied eight bytes at a time; the rest
 * goes by the table of well-formed UTF-8 (Unicode 15, table 3-7), one U+FFFD for each maximal
 * ill-formed part, as a browser and Python's errors="replace" do it. */
#include "builder.h"
#include <string.h>

#define EACH_BYTE(n) (0x0101010101010101ull * (n))

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t padded(size_t size)
{
    return (size + 7) & ~(size_t)7;
}

/* --- text ------------------------------------------------------------------------------------------- */

/* Is any of these eight bytes not printable ASCII? (The tests for zero, for less than n and for equal to
 * n, on all bytes of a word: Warren, Hacker's Delight, 6-1.) */
static bool any_special(uint64_t word)
{
    uint64_t deleted = word ^ EACH_BYTE(0x7f);
    uint64_t below_space = (word - EACH_BYTE(0x20)) & ~word;
    uint64_t is_deleted = (deleted - EACH_BYTE(1)) & ~deleted;
    return ((word | below_space | is_deleted) & EACH_BYTE(0x80)) != 0;
}

/* Bytes of the character that `at` begins with; or, negative, how many of them one U+FFFD replaces:
 * a control character (C0, DEL, C1) or the longest part of an ill-formed sequence. */
static int character(const uint8_t *at, size_t left)
{
    uint8_t first = at[0], low = 0x80, high = 0xbf;
    int size = 0;
    if (first < 0x80)
        return first < 0x20 || first == 0x7f ? -1 : 1;
    if (first >= 0xc2 && first <= 0xdf)
        size = 2;
    else if (first >= 0xe0 && first <= 0xef)
        size = 3;
    else if (first >= 0xf0 && first <= 0xf4)
        size = 4;
    else
        return -1;
    if (first == 0xe0)
        low = 0xa0; /* shorter forms exist */
    else if (first == 0xed)
        high = 0x9f; /* surrogates */
    else if (first == 0xf0)
        low = 0x90;
    else if (first == 0xf4)
        high = 0x8f; /* above U+10FFFF */
    for (int i = 1; i < size; i++) {
        if ((size_t)i == left || at[i] < low || at[i] > high)
            return -i;
        low = 0x80;
        high = 0xbf;
    }
    return first == 0xc2 && at[1] < 0xa0 ? -2 : size;
}

static bool is_space(uint8_t c)
{
    return c == '\t' || c == '\n' || c == '\r';
}

/* text_clean(), and how many of `length` bytes found room. `lines`: tabs and line ends stay. */
static size_t clean(uint8_t *out, size_t max, const uint8_t *bytes, size_t length, bool lines, size_t *taken)
{
    static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
    size_t in = 0, size = 0;
    while (in < length) {
        uint64_t word;
        while (length - in >= sizeof word && max - size >= sizeof word) {
            memcpy(&word, bytes + in, sizeof word);
            if (any_special(word))
                break;
            memcpy(out + size, &word, sizeof word);
            in += sizeof word;
            size += sizeof word;
        }
        if (in == size && length - in < sizeof word && length >= sizeof word && length <= max) {
            /* the rest of a text that was plain so far: its last eight bytes, some of them again */
            memcpy(&word, bytes + length - sizeof word, sizeof word);
            if (!any_special(word)) {
                memcpy(out + length - sizeof word, &word, sizeof word);
                in = size = length;
            }
        }
        if (in == length)
            break;
        if (max > size && (bytes[in] - 0x20u < 0x5f || (lines && is_space(bytes[in])))) {
            out[size++] = bytes[in++];
            continue;
        }
        int n = character(bytes + in, length - in);
        size_t room = n > 0 ? (size_t)n : sizeof replacement - 1;
        if (max - size < room)
            break;
        memcpy(out + size, n > 0 ? bytes + in : (const uint8_t *)replacement, room);
        size += room;
        in += (size_t)(n > 0 ? n : -n);
    }
    *taken = in;
    return size;
}

size_t text_clean(char *out, size_t max, const void *bytes, size_t length)
{
    size_t taken;
    return clean((uint8_t *)out, max, bytes, length, false, &taken);
}

/* --- lists ------------------------------------------------------------------------------------------ */

/* Room for a value of `size` bytes at the end of the list, or NULL. */
static uint8_t *append(struct builder *b, unsigned key, enum attribute_type type, size_t size)
{
    struct attribute header = {.key = (uint16_t)key, .type = (uint16_t)type, .size = (uint32_t)size};
    if (b->capacity - b->size < sizeof header || padded(size) > b->capacity - b->size - sizeof header) {
        b->left_out++;
        return NULL;
    }
    uint8_t *value = b->data + b->size + sizeof header;
    b->last = b->size;
    b->size += (uint32_t)(sizeof header + padded(size));
    memcpy(value - sizeof header, &header, sizeof header);
    memset(value + size, 0, padded(size) - size);
    return value;
}

/* Writes at most `limit` bytes of clean text to offset `from`. False, and counted: the list has no room
 * for all of it. */
static bool clean_into_room(struct builder *b, size_t from, const void *bytes, size_t length, size_t limit,
                            bool lines, size_t *size)
{
    size_t room = b->capacity & ~(uint32_t)7, taken;
    room = room > from ? room - from : 0;
    *size = clean(b->data + from, least(limit, room), bytes, length, lines, &taken);
    if (taken == length || limit <= room)
        return true;
    b->left_out++;
    return false;
}

static void add_text(struct builder *b, enum attribute_key key, const void *bytes, size_t length, size_t limit,
                     bool lines)
{
    size_t size;
    if (b->capacity - b->size < sizeof(struct attribute)) {
        b->left_out++;
        return;
    }
    if (clean_into_room(b, b->size + sizeof(struct attribute), bytes, length, limit, lines, &size))
        append(b, key, ATTRIBUTE_TEXT, size);
}

void builder_text(struct builder *b, enum attribute_key key, const void *bytes, size_t length, size_t limit)
{
    add_text(b, key, bytes, length, limit, false);
}

void builder_lines(struct builder *b, enum attribute_key key, const void *bytes, size_t length, size_t limit)
{
    add_text(b, key, bytes, length, limit, true);
}

void builder_int(struct builder *b, enum attribute_key key, int64_t value)
{
    uint8_t *at = append(b, key, ATTRIBUTE_INT, sizeof value);
    if (at != NULL)
        memcpy(at, &value, sizeof value);
}

void builder_bool(struct builder *b, enum attribute_key key, bool value)
{
    int64_t number = value;
    uint8_t *at = append(b, key, ATTRIBUTE_BOOL, sizeof number);
    if (at != NULL)
        memcpy(at, &number, sizeof number);
}

void builder_texts(struct builder *b, unsigned key, const void *bytes, size_t length, size_t limit)
{
    struct attribute header = {.key = (uint16_t)key, .type = ATTRIBUTE_TEXTS, .size = 0}, last;
    uint32_t start = b->size;
    if (b->size >= sizeof last && b->last <= b->size - sizeof last) {
        memcpy(&last, b->data + b->last, sizeof last);
        if (last.key == header.key && last.type == header.type &&
            b->last + sizeof last + padded(last.size) == b->size) {
            header = last;
            start = b->last;
        }
    }
    size_t element = start + sizeof header + header.size, size;
    uint32_t text;
    if (element + sizeof text > b->capacity) {
        b->left_out++;
        return;
    }
    if (!clean_into_room(b, element + sizeof text, bytes, length, limit, false, &size))
        goto restore;
    text = (uint32_t)size;
    if (start + sizeof header + padded(header.size + sizeof text + size) > b->capacity) {
        b->left_out++;
        goto restore;
    }
    memcpy(b->data + element, &text, sizeof text);
    header.size += (uint32_t)(sizeof text + size);
    memcpy(b->data + start, &header, sizeof header);
    b->last = start;
    b->size = (uint32_t)(start + sizeof header + padded(header.size));
    memset(b->data + start + sizeof header + header.size, 0, padded(header.size) - header.size);
    return;
restore: /* the padding behind the elements that were there may have been written over */
    if (start < b->size)
        memset(b->data + element, 0, b->size - element);
}

/* --- addresses -------------------------------------------------------------------------------------- */

static size_t decimal(char *out, unsigned n)
{
    size_t size = 0;
    if (n >= 100)
        out[size++] = (char)('0' + n / 100);
    if (n >= 10)
        out[size++] = (char)('0' + n / 10 % 10);
    out[size++] = (char)('0' + n % 10);
    return size;
}

static size_t hexadecimal(char *out, unsigned n)
{
    size_t size = 0;
    for (int shift = 12; shift >= 0; shift -= 4)
        if (n >> shift || shift == 0)
            out[size++] = "0123456789abcdef"[n >> shift & 15];
    return size;
}

size_t address_text(char *out, const uint8_t *address)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    size_t size = 0;
    if (memcmp(address, mapped, sizeof mapped) == 0) {
        for (int i = 12; i < 16; i++) {
            size += decimal(out + size, address[i]);
            if (i < 15)
                out[size++] = '.';
        }
        return size;
    }
    /* RFC 5952, 4.2: "::" stands for the longest run of two or more zero groups, the first of equals */
    unsigned group[8], run = 0, run_length = 1;
    for (int i = 0; i < 8; i++)
        group[i] = (unsigned)address[2 * i] << 8 | address[2 * i + 1];
    for (unsigned i = 0; i < 8; i++) {
        unsigned end = i;
        while (end < 8 && group[end] == 0)
            end++;
        if (end - i > run_length) {
            run = i;
            run_length = end - i;
        }
    }
    for (unsigned i = 0; i < 8; i++) {
        if (run_length > 1 && i == run) {
            out[size++] = ':';
            if (run + run_length == 8)
                out[size++] = ':';
            i += run_length - 1;
            continue;
        }
        if (i > 0)
            out[size++] = ':';
        size += hexadecimal(out + size, group[i]);
    }
    return size;
}

void builder_address(struct builder *b, enum attribute_key key, const uint8_t *address)
{
    char text[46];
    size_t size = address_text(text, address);
    builder_text(b, key, text, size, sizeof text);
}

const struct attribute *attribute_find(const uint8_t *list, uint32_t size, unsigned key)
{
    struct attribute header;
    for (size_t at = 0; at + sizeof header <= size; at += sizeof header + padded(header.size)) {
        memcpy(&header, list + at, sizeof header);
        if (header.size > size - at - sizeof header)
            return NULL;
        if (header.key == key)
            return (const struct attribute *)(const void *)(list + at);
    }
    return NULL;
}
