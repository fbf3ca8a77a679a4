/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which protocol do these first bytes of a chunk belong to? Pure functions over a copy of the bytes:
 * compiled into the kernel programs and into the core, tested on the host. */
#pragma once

enum classify_limits { CLASSIFY_BYTES = 16 };

enum verdict {
    VERDICT_NO,    /* not the start of a message of this protocol */
    VERDICT_MAYBE, /* too few bytes to tell: valid so far */
    VERDICT_YES,
};

/* HTTP/1 message start (RFC 9112, 3 and 4): "HTTP/1." or METHOD SP target, where the method is capital
 * letters (and - or _), and the target begins with '/', '*' or 'h'; CONNECT takes any target.
 * `bytes` holds CLASSIFY_BYTES, of which the first n are valid. */
static inline __attribute__((always_inline)) enum verdict classify_http1(const uint8_t *bytes, uint32_t n)
{
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

/* TLS record (RFC 8446, 5.1) that opens a connection: handshake, version 3.0 to 3.4, length under
 * 2^14 + 256, ClientHello or ServerHello. */
static inline __attribute__((always_inline)) enum verdict classify_tls(const uint8_t *bytes, uint32_t n)
{
    if (n < 6)
        return n == 0 || (bytes[0] == 0x16 && (n < 2 || bytes[1] == 3)) ? VERDICT_MAYBE : VERDICT_NO;
    bool record = bytes[0] == 0x16 && bytes[1] == 3 && bytes[2] <= 4 && bytes[3] <= 0x41;
    return record && (bytes[5] == 1 || bytes[5] == 2) ? VERDICT_YES : VERDICT_NO;
}

/* Order matters: the first protocol that says yes has it. Returns VERDICT_YES with *protocol set. */
static inline __attribute__((always_inline)) enum verdict classify(const uint8_t *bytes, uint32_t n,
                                                                   uint8_t *protocol)
{
    enum verdict best = VERDICT_NO, verdict = classify_tls(bytes, n);
    if (verdict == VERDICT_YES) {
        *protocol = PROTOCOL_ENCRYPTED;
        return VERDICT_YES;
    }
    best = verdict;
#define CLASSIFY(identifier, name)                                                                     \
    verdict = classify_##name(bytes, n);                                                               \
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
