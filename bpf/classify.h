/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which protocol do these first bytes of a chunk belong to? Pure functions over a copy of the bytes:
 * compiled into the kernel programs and into the core, tested on the host. */
#pragma once

enum classify_limits { CLASSIFY_BYTES = 16 };

enum verdict {
    VERDICT_NO,    /* not the start of a message of this protocol */
    VERDICT_MAYBE, /* too few bytes to tell: valid so far */
    VERDICT_YES,
    VERDICT_GUESS, /* it is, if what answers is of the protocol too */
};

/* HTTP/1 message start (RFC 9112, 3 and 4): "HTTP/1." or METHOD SP target, where the method is capital
 * letters (and - or _), and the target begins with '/', '*' or 'h'; CONNECT takes any target.
 * `bytes` holds CLASSIFY_BYTES, of which the first n are valid. */
static inline __attribute__((always_inline)) enum verdict classify_http1(const uint8_t *bytes, uint32_t n,
                                                                          uint32_t size)
{
    (void)size;
    const char response[8] = "HTTP/1.";
    bool is_response = true;
#pragma unroll
    for (uint32_t i = 0; i < 7; i++)
        if (i < n && bytes[i] != (uint8_t)response[i])
            is_response = false;
    if (is_response)
        return n >= 7 ? VERDICT_YES : VERDICT_MAYBE;
    uint32_t space = 0;
#pragma unroll
    for (uint32_t i = 0; i < CLASSIFY_BYTES - 1; i++) {
        if (space)
            continue;
        if (i >= n)
            return VERDICT_MAYBE;
        uint8_t c = bytes[i];
        if (c == ' ') {
            if (i < 3)
                return VERDICT_NO;
            if (i + 1 >= n)
                return VERDICT_MAYBE;
            uint8_t t = bytes[i + 1];
            bool connect = i == 7 && bytes[0] == 'C' && bytes[1] == 'O' && bytes[6] == 'T';
            if (t == '/' || t == '*' || t == 'h' || t == 'H' || (connect && t > ' '))
                return VERDICT_YES;
            return VERDICT_NO;
        }
        if (!((c >= 'A' && c <= 'Z') || c == '-' || c == '_'))
            return VERDICT_NO;
    }
    return VERDICT_NO;
}

/* Lengths of four bytes, most significant first, and of three, least significant first. */
#define LENGTH_BE32(at) ((uint32_t)bytes[at] << 24 | (uint32_t)bytes[(at) + 1] << 16 | bytes[(at) + 2] << 8 | bytes[(at) + 3])
#define LENGTH_LE24(at) (bytes[at] | bytes[(at) + 1] << 8 | (uint32_t)bytes[(at) + 2] << 16)

static inline __attribute__((always_inline)) bool classify_is_word(uint8_t c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '(' || c == '/' || c == '*' || c == '-' || c == ' ' ||
           c == '\t' || c == '\r' || c == '\n';
}

/* PostgreSQL (protocol 3, "Message Formats"): a startup, TLS, GSS or cancel request; or, joined late, a Query that
 * is all of the call, a Parse or a Bind of an unnamed portal, of a plausible length. */
static inline __attribute__((always_inline)) enum verdict classify_postgresql(const uint8_t *bytes, uint32_t n,
                                                                               uint32_t size)
{
    if (n == 0)
        return VERDICT_MAYBE;
    if (bytes[0] == 0) {
        if ((n > 1 && bytes[1] != 0) || (n > 2 && bytes[2] > 39)) /* no startup is longer than 10,000 bytes */
            return VERDICT_NO;
        if (n < 8)
            return VERDICT_MAYBE;
        uint32_t length = LENGTH_BE32(0), code = LENGTH_BE32(4);
        bool asks = length == 8 && (code == 80877103 || code == 80877104);
        bool starts = length >= 9 && (code == 3 << 16 || code == (3 << 16 | 2));
        bool cancels = length >= 16 && code == 80877102;
        return length <= size && (asks || starts || cancels) ? VERDICT_YES : VERDICT_NO;
    }
    if (bytes[0] != 'Q' && bytes[0] != 'P' && bytes[0] != 'B')
        return VERDICT_NO;
    if (n < 8)
        return n > 1 && bytes[1] != 0 ? VERDICT_NO : VERDICT_MAYBE;
    uint32_t length = LENGTH_BE32(1);
    if (length < 6 || bytes[1] != 0 || length >= size)
        return VERDICT_NO;
    if (bytes[0] == 'Q')
        return length + 1 == size && classify_is_word(bytes[5]) && classify_is_word(bytes[6]) ? VERDICT_YES : VERDICT_NO;
    if (bytes[0] == 'B')
        return bytes[5] == 0 && (bytes[6] == 0 || bytes[6] > ' ') && bytes[6] < 0x7f ? VERDICT_YES : VERDICT_NO;
    return (bytes[5] == 0 ? classify_is_word(bytes[6]) : bytes[5] > ' ' && bytes[5] < 0x7f) ? VERDICT_YES : VERDICT_NO;
}

/* MySQL: the greeting of a server (protocol 10, then its version); or, joined late, a command that is all of the call,
 * with sequence number 0: a query, a prepare, an execute, a ping. A client may read the header by itself. */
static inline __attribute__((always_inline)) enum verdict classify_mysql(const uint8_t *bytes, uint32_t n,
                                                                          uint32_t size)
{
    if (n < 5)
        return n == 4 && (bytes[3] != 0 || (bytes[0] | bytes[1] | bytes[2]) == 0) ? VERDICT_NO : VERDICT_MAYBE;
    uint32_t length = LENGTH_LE24(0);
    bool greets = bytes[4] == 0x0a;
    if (bytes[3] != 0 || (greets ? length < 33 || length > 512 || size > length + 4 : length + 4 != size))
        return VERDICT_NO;
    if (bytes[4] == 0x0e)
        return length == 1 ? VERDICT_YES : VERDICT_NO;
    if (n < 7)
        return VERDICT_MAYBE;
    if (greets)
        return bytes[5] >= '1' && bytes[5] <= '9' && (bytes[6] == '.' || (bytes[6] >= '0' && bytes[6] <= '9')) ? VERDICT_YES
                                                                                                              : VERDICT_NO;
    if (bytes[4] == 0x03 && bytes[5] == 0 && bytes[6] == 1) /* query attributes: none, in one set */
        return length > 4 ? VERDICT_YES : VERDICT_NO;
    if (bytes[4] == 0x03 || bytes[4] == 0x16)
        return classify_is_word(bytes[5]) && classify_is_word(bytes[6]) ? VERDICT_YES : VERDICT_NO;
    if (bytes[4] == 0x17 && n < 14)
        return VERDICT_MAYBE;
    bool once = bytes[10] == 1 && bytes[11] == 0 && bytes[12] == 0 && bytes[13] == 0; /* iterations: always 1 */
    return bytes[4] == 0x17 && once ? VERDICT_YES : VERDICT_NO;
}

/* Redis: a command as an array of bulk strings (RESP, "Sending commands to a Redis server"). */
static inline __attribute__((always_inline)) enum verdict classify_redis(const uint8_t *bytes, uint32_t n,
                                                                          uint32_t size)
{
    (void)size;
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        if (i >= n)
            return VERDICT_MAYBE;
        uint8_t c = bytes[i];
        if (i == 0 ? c != '*' : i == 1 && (c < '1' || c > '9'))
            return VERDICT_NO;
        if (i < 2)
            continue;
        if (c >= '0' && c <= '9')
            continue;
        if (c != '\r')
            return VERDICT_NO;
        if (i + 2 >= n)
            return i + 1 < n && bytes[i + 1] != '\n' ? VERDICT_NO : VERDICT_MAYBE;
        return bytes[i + 1] == '\n' && bytes[i + 2] == '$' ? VERDICT_YES : VERDICT_NO;
    }
    return VERDICT_NO;
}

/* A word, its first letter in the lowest byte; and in lower case what may be one: no other byte than a letter
 * becomes a letter by it. */
#define WORD4(a, b, c, d) ((uint64_t)(a) | (uint64_t)(b) << 8 | (uint64_t)(c) << 16 | (uint64_t)(d) << 24)
#define WORD6(a, b, c, d, e, f) (WORD4(a, b, c, d) | (uint64_t)(e) << 32 | (uint64_t)(f) << 40)
#define LOWER_CASE 0x2020202020202020ULL

/* Are these `length` letters the first word of a line? */
static inline __attribute__((always_inline)) enum verdict classify_word(const uint8_t *bytes, uint32_t n,
                                                                         uint64_t letters, uint64_t word,
                                                                         uint32_t length)
{
    uint64_t told = (1ULL << 8 * (n < length ? n : length)) - 1;
    if ((letters ^ word) & told)
        return VERDICT_NO;
    if (n <= length)
        return VERDICT_MAYBE;
    if (bytes[length] == '\r')
        return n == length + 1 ? VERDICT_MAYBE : bytes[length + 1] == '\n' ? VERDICT_GUESS : VERDICT_NO;
    return bytes[length] == '\n' || bytes[length] == ' ' ? VERDICT_GUESS : VERDICT_NO;
}

/* Redis: an inline command. Any line may be one, so only the words count that clients, health checks and
 * people begin a connection with; GET and its like are memcached's too. PING is also NATS's, clamd's, spamd's. */
static inline __attribute__((always_inline)) enum verdict classify_redis_inline(const uint8_t *bytes,
                                                                                 uint32_t n)
{
    uint64_t letters = WORD6(bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]) | LOWER_CASE;
    enum verdict best = VERDICT_NO, verdict;
#define CLASSIFY_WORD(word, length)                                                                    \
    verdict = classify_word(bytes, n, letters, word, length);                                          \
    if (verdict != VERDICT_NO)                                                                         \
        best = verdict;
    CLASSIFY_WORD(WORD4('p', 'i', 'n', 'g'), 4)
    CLASSIFY_WORD(WORD4('a', 'u', 't', 'h'), 4)
    CLASSIFY_WORD(WORD4('i', 'n', 'f', 'o'), 4)
    CLASSIFY_WORD(WORD4('e', 'c', 'h', 'o'), 4)
    CLASSIFY_WORD(WORD6('h', 'e', 'l', 'l', 'o', 0), 5)
    CLASSIFY_WORD(WORD6('s', 'e', 'l', 'e', 'c', 't'), 6)
#undef CLASSIFY_WORD
    return best;
}

/* TLS record (RFC 8446, 5.1) that opens a connection: handshake, version 3.0 to 3.4, length under
 * 2^14 + 256, ClientHello or ServerHello. */
static inline __attribute__((always_inline)) enum verdict classify_tls(const uint8_t *bytes, uint32_t n)
{
    if (n < 6)
        return n == 0 || (bytes[0] == 0x16 && (n < 2 || bytes[1] == 3)) ? VERDICT_MAYBE : VERDICT_NO;
    bool record = bytes[0] == 0x16 && bytes[1] == 3 && bytes[2] <= 4 && bytes[3] <= 0x41;
    return record && (bytes[5] == 1 || bytes[5] == 2) ? VERDICT_YES : VERDICT_NO;
}

/* Order matters: the first protocol that says yes has it. */
static inline __attribute__((always_inline)) enum verdict classify_certain(const uint8_t *bytes, uint32_t n,
                                                                            uint32_t size, uint8_t *protocol)
{
    enum verdict best = VERDICT_NO, verdict = classify_tls(bytes, n);
    if (verdict == VERDICT_YES) {
        *protocol = PROTOCOL_ENCRYPTED;
        return VERDICT_YES;
    }
    best = verdict;
#define CLASSIFY(identifier, name, database)                                                                     \
    verdict = classify_##name(bytes, n, size);                                                               \
    if (verdict == VERDICT_YES) {                                                                      \
        *protocol = PROTOCOL_##identifier;                                                             \
        return VERDICT_YES;                                                                            \
    }                                                                                                  \
    if (verdict == VERDICT_MAYBE)                                                                      \
        best = VERDICT_MAYBE;
    PROTOCOLS(CLASSIFY)
#undef CLASSIFY
    return best;
}

/* What is found, step by step. In memory that the verifier knows nothing of it forgets how each was found; else
 * it follows each way to the end of the program. */
struct classified {
    volatile uint8_t known, opens, guess, verdict;
    uint8_t protocol;
};

/* Returns VERDICT_YES or VERDICT_GUESS with `protocol` set. `size`: how many bytes the call moved, of which
 * these are the first, with what had come before of the same message. `opens`: they are the first bytes of the
 * connection, in either direction, and the client's. The guess goes first: there AUTH /x is not of HTTP. */
static inline __attribute__((always_inline)) enum verdict classify(const uint8_t *bytes, uint32_t n,
                                                                   uint32_t size, bool opens,
                                                                   struct classified *found)
{
    found->known = (uint8_t)n;
    found->opens = opens;
    found->guess = found->opens ? classify_redis_inline(bytes, found->known) : VERDICT_NO;
    found->verdict = classify_certain(bytes, found->known, size, &found->protocol);
    if (found->guess == VERDICT_GUESS)
        found->protocol = PROTOCOL_REDIS;
    if (found->guess > found->verdict)
        found->verdict = found->guess;
    return found->verdict;
}

/* May a message of this protocol begin here? Databases, which are copied by turns, are asked apart, in long turns. */
static inline __attribute__((always_inline)) enum verdict classify_again(uint8_t protocol, const uint8_t *bytes,
                                                                         uint32_t n, uint32_t size, bool databases)
{
#define CLASSIFY_AGAIN(identifier, name, database)                                                     \
    if (databases == (bool)(database) && protocol == PROTOCOL_##identifier)                            \
        return classify_##name(bytes, n, size);
    PROTOCOLS(CLASSIFY_AGAIN)
#undef CLASSIFY_AGAIN
    return VERDICT_NO;
}
