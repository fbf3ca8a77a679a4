/* SPDX-License-Identifier: Apache-2.0 */
/* The low-cardinality route of a path, guessed: http.route where no framework tells it.
 *
 *   /users/42/orders              /users/{id}/orders     a digit and no letter: numbers, dates, addresses
 *   /o/ORD-10042/a3f9-11ec-be5f   /o/{id}/{id}           four digits or more; hexadecimal, eight or more
 *                                                        characters, with a digit: UUIDs, hashes, times
 *   /s/V1StGXR8_Z5jdHi6B-myT      /s/{id}                sixteen or more, digits in two places: tokens
 *   /mail/ann@example.com         /mail/{id}             an '@'
 *   /tag/caf%C3%A9                /tag/{id}              percent signs, bytes above 127, quotes: free text
 *   /<65 or more characters>      /{id}                  nobody names a route so
 *   /static/app.3f9a2b1c.js       /static/{file}.js      files that pages are made of, by extension
 *   /reports/2024.pdf             /reports/{id}.pdf      other extensions stay, the name goes by the rules
 *   /api/v2/oauth2/token          as it is               few digits among letters: versions, names
 *   /a;jsessionid=1/b/            /a/b                   path parameters and empty segments are left out
 *   /a/b/c/d/e/f/g/h/i/j          /a/b/c/d/e/f/g/h/.     eight segments, then a star where the dot stands
 *
 * A guess errs to the low side: a literal that looks like an id is one route too few. A process has at
 * most `max` routes; a path that would make one more gets none. Only hashes of the routes are kept: two
 * of 1,000 routes share their 64 bits once in 10^13 processes, and then count as one against the cap. */
#include "protocol.h"
#include <stdlib.h>

enum {
    PATH_SEGMENTS_MAX = 8,
    LITERAL_MAX = 64,
    EXTENSION_MAX = 5,
    HEX_MIN = 8,
    TOKEN_MIN = 16,
    DIGITS_MIN = 4,
};

struct routes {
    uint32_t max, count;
    uint32_t mask; /* slots - 1: twice as many slots as routes, so that a probe ends soon */
    uint64_t slots[];
};

struct routes *routes_new(uint32_t max)
{
    uint64_t slots = 4;
    while (slots < 2ull * max)
        slots *= 2;
    if (slots > 1ull << 24)
        return NULL;
    struct routes *routes = calloc(1, sizeof *routes + slots * sizeof routes->slots[0]);
    if (routes == NULL)
        return NULL;
    routes->max = max;
    routes->mask = (uint32_t)(slots - 1);
    return routes;
}

void routes_free(struct routes *routes)
{
    free(routes);
}

/* --- segments --------------------------------------------------------------------------------------- */

enum class { OTHER, PLAIN, DIGIT, LETTER, HEX_LETTER, AT };

static const uint8_t classes[256] = {
    ['0' ... '9'] = DIGIT,   ['a' ... 'f'] = HEX_LETTER, ['A' ... 'F'] = HEX_LETTER,
    ['g' ... 'z'] = LETTER,  ['G' ... 'Z'] = LETTER,     ['-'] = PLAIN,
    ['.'] = PLAIN,           ['_'] = PLAIN,              ['~'] = PLAIN,
    ['!'] = PLAIN,           ['$'] = PLAIN,              ['('] = PLAIN,
    [')'] = PLAIN,           ['*'] = PLAIN,              ['+'] = PLAIN,
    [','] = PLAIN,           ['='] = PLAIN,              [':'] = PLAIN,
    ['@'] = AT,
};

/* Is this segment one of many values rather than a name in the program? */
static bool is_value(const char *segment, uint32_t size)
{
    uint32_t digits = 0, digit_runs = 0, letters = 0, hex_letters = 0;
    bool in_digits = false, after_letter = true;
    if (size > LITERAL_MAX)
        return true;
    for (uint32_t i = 0; i < size; i++) {
        enum class c = classes[(uint8_t)segment[i]];
        if (c == OTHER || c == AT)
            return true;
        if (c == DIGIT) {
            digit_runs += !in_digits && after_letter;
            after_letter = false;
            digits++;
        } else if (c != PLAIN) {
            after_letter = true;
            letters += c == LETTER;
            hex_letters += c == HEX_LETTER;
        }
        in_digits = c == DIGIT;
    }
    if (digits == 0)
        return false;
    return letters + hex_letters == 0 || digits >= DIGITS_MIN || (letters == 0 && size >= HEX_MIN) ||
           (size >= TOKEN_MIN && digit_runs >= 2);
}

/* Offset of ".ext" in the last segment, or `size`: letters and digits behind a dot, a letter first. */
static uint32_t extension(const char *segment, uint32_t size)
{
    uint32_t dot = size;
    while (dot > 0 && size - dot <= EXTENSION_MAX && segment[dot - 1] != '.') {
        if (classes[(uint8_t)segment[dot - 1]] < DIGIT)
            return size;
        dot--;
    }
    bool found = dot > 1 && dot < size && segment[dot - 1] == '.' && classes[(uint8_t)segment[dot]] != DIGIT;
    return found ? dot - 1 : size;
}

/* Files that pages are made of: which one it was says nothing about the program. */
static bool is_asset(const char *extension, uint32_t size)
{
    static const char assets[][EXTENSION_MAX + 2] = {
        ".js",  ".css", ".map",  ".mjs", ".png",  ".jpg",   ".jpeg", ".gif", ".svg", ".webp",
        ".ico", ".ttf", ".woff", ".otf", ".avif", ".woff2", ".mp4",  ".mp3", ".wasm",
    };
    for (uint32_t i = 0; i < sizeof assets / sizeof assets[0]; i++)
        if (strlen(assets[i]) == size && memcmp(assets[i], extension, size) == 0)
            return true;
    return false;
}

/* --- routes ----------------------------------------------------------------------------------------- */

struct route {
    char *out;
    uint32_t size, max;
};

static bool put(struct route *r, const char *bytes, uint32_t size)
{
    if (r->max - r->size < size)
        return false;
    memcpy(r->out + r->size, bytes, size);
    r->size += size;
    return true;
}

static bool put_segment(struct route *r, const char *segment, uint32_t size, bool last)
{
    bool mail = memchr(segment, '@', size) != NULL; /* its domain is no extension */
    uint32_t stem = last && !mail ? extension(segment, size) : size;
    bool ok = put(r, "/", 1);
    if (stem < size && is_asset(segment + stem, size - stem))
        ok = ok && put(r, "{file}", 6);
    else if (is_value(segment, stem))
        ok = ok && put(r, "{id}", 4);
    else
        ok = ok && put(r, segment, stem);
    return ok && put(r, segment + stem, size - stem);
}

/* Multiplies and folds eight bytes at a time; never 0, which marks a free slot. */
static uint64_t hash(const char *bytes, uint32_t size)
{
    uint64_t h = size * 0x9e3779b97f4a7c15ull, word;
    for (; size >= sizeof word; bytes += sizeof word, size -= (uint32_t)sizeof word) {
        memcpy(&word, bytes, sizeof word);
        h = (h ^ word) * 0x9fb21c651e98df25ull;
        h ^= h >> 32;
    }
    word = 0;
    memcpy(&word, bytes, size);
    h = (h ^ word) * 0x9fb21c651e98df25ull;
    h ^= h >> 29;
    return h ? h : 1;
}

/* Is it known, or is there room for it? */
static bool admit(struct routes *routes, uint64_t h)
{
    uint64_t at = h & routes->mask;
    for (; routes->slots[at]; at = (at + 1) & routes->mask)
        if (routes->slots[at] == h)
            return true;
    if (routes->count == routes->max)
        return false;
    routes->slots[at] = h;
    routes->count++;
    return true;
}

uint32_t routes_match(struct routes *routes, const char *path, uint32_t size, char *out, uint32_t max)
{
    static const char star[] = {'/', '*'};
    if (max < sizeof star)
        return 0;
    struct route r = {out, 0, max - (uint32_t)sizeof star}; /* there is always room for the star */
    uint32_t segments = 0;
    for (uint32_t at = 0, end; at < size; at = end + 1) {
        const char *slash = memchr(path + at, '/', size - at);
        uint32_t length = 0, before = r.size;
        end = slash ? (uint32_t)(slash - path) : size;
        while (at + length < end && path[at + length] != ';')
            length++;
        if (length == 0)
            continue;
        if (segments++ == PATH_SEGMENTS_MAX || !put_segment(&r, path + at, length, end == size)) {
            r.size = before;
            r.max = max;
            put(&r, star, sizeof star);
            break;
        }
    }
    if (r.size == 0)
        put(&r, "/", 1);
    return admit(routes, hash(out, r.size)) ? r.size : 0;
}
