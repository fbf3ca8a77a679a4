/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the last END_BYTES bytes of a call tell of a database's conversation, where not all of the call is copied. Pure
 * functions over a copy of the bytes, like those of classify.h. */
#pragma once

enum ends_limits { END_BYTES = 512 };

/* Clang takes the value for another one from here on. It would make jumps of arithmetic, and count a loop by a value of
 * which the verifier does not know when it ends. */
#define KEEP(value) asm volatile("" : "+r"(value))

/* 0 if `a` is 0, else 1: without a jump, as each in a loop doubles what the verifier has to look at (Linux 6.1: "The
 * sequence of 8193 jumps is too complex"). */
static inline __attribute__((always_inline)) uint64_t is_not_zero(uint64_t a)
{
    uint64_t minus = -a;
    KEEP(minus);
    uint64_t one = (a | minus) >> 63;
    KEEP(one);
    return one;
}

/* Of a client: is there the beginning of a command? Then the call is of a pipeline, and not of a large value. Redis: an array
 * of up to 99 bulk strings, behind the end of another one. PostgreSQL: Execute of the unnamed portal. MySQL's commands
 * cannot be told in the midst of others. */
static inline __attribute__((always_inline)) bool ends_in_pipeline(uint8_t protocol, const uint8_t *end)
{
    /* of one digit and of two: CRLF * digits CRLF $ */
    uint64_t mask = 0x00ffffff00ffffff, wanted = 0x000d0a2a000d0a24;
    uint64_t other_mask = 0xffffff0000ffffff, other_wanted = 0x0d0a2a00000d0a24;
    if (protocol == PROTOCOL_POSTGRESQL) {
        mask = other_mask = ~0ULL;
        wanted = other_wanted = 0x4500000009000000; /* E, length 9, no name, half of how many rows */
    } else if (protocol != PROTOCOL_REDIS) {
        return false;
    }
    uint64_t last = 0, differs = 1;
#pragma clang loop unroll(disable)
    for (uint32_t i = 0; i < END_BYTES; i++) {
        last = last << 8 | end[i];
        differs &= is_not_zero((last & mask) ^ wanted) & is_not_zero((last & other_mask) ^ other_wanted);
    }
    return !differs;
}

/* Not 0 if one of the bytes is FF, eight at a time: no text in UTF-8 has it. */
static inline __attribute__((always_inline)) uint64_t has_ff(const uint8_t *end)
{
    const uint64_t *words = __builtin_assume_aligned(end, sizeof(uint64_t));
    uint64_t found = 0;
#pragma clang loop unroll(disable)
    for (uint64_t i = 0; i < END_BYTES / sizeof(*words); i++) {
        KEEP(i);
        found |= (~words[i] - 0x0101010101010101) & words[i] & 0x8080808080808080;
    }
    return found;
}

/* Of a server: how many of the last bytes are an error that ends with them, or 0. Behind rows it is longer than what is
 * copied of each call, and its code stands at its beginning. PostgreSQL: ErrorResponse, and a ReadyForQuery that came
 * with it. MySQL: ERR_Packet with an SQLSTATE. Where a message of their length would have to begin there is no doubt; a
 * text that holds such a beginning again makes it more. */
static inline __attribute__((always_inline)) uint32_t error_at_end(uint8_t protocol, const uint8_t *end)
{
    enum { READY_SIZE = 6 };
    /* Without jumps, again. All ones for the protocol, and where there is a ReadyForQuery. */
    uint64_t postgresql = is_not_zero(protocol ^ PROTOCOL_POSTGRESQL) - 1;
    uint64_t mysql = is_not_zero(protocol ^ PROTOCOL_MYSQL) - 1;
    const uint8_t *ready = end + END_BYTES - READY_SIZE;
    uint64_t other = (ready[0] ^ 'Z') | ready[1] | ready[2] | ready[3] | (ready[4] ^ (READY_SIZE - 1));
    uint64_t is_ready = postgresql & (is_not_zero(other) - 1);
    /* Rows seldom end with 0, as the last field does and the list of fields, or have an FF. Where they do not, no error is
     * searched for: that would take longer than all else that is done about the call. */
    uint64_t zeros = ((ready[-1] | ready[-2]) & is_ready) | ((ready[4] | ready[5]) & ~is_ready);
    if (!((mysql & -is_not_zero(has_ff(end))) | (postgresql & (is_not_zero(zeros) - 1))))
        return 0;
    /* Eight bytes that end with the last one which is fixed. PostgreSQL: E, length of itself and the fields, in four
     * bytes. MySQL: length of what is behind the sequence id, in three bytes, that id, FF, code, # of the SQLSTATE. */
    uint64_t mask = 0xffffff00ff0000ff ^ (postgresql & (0xffffff00ff0000ff ^ 0x000000ffffffffff));
    uint64_t fixed = 0x00000000ff000023 ^ (postgresql & (0x00000000ff000023 ^ 0x0000004500000000));
    uint64_t begins = 8 - (3 & postgresql), longest = END_BYTES + 3 - (READY_SIZE & is_ready), last = 0, found = 0;
#pragma clang loop unroll(disable)
    for (uint64_t i = 0; i < END_BYTES; i++) {
        KEEP(i);
        uint64_t length = longest - i;
        uint64_t reversed = (length & 0xff) << 56 | length >> 8 << 48;
        uint64_t wanted = fixed | (length & postgresql) | (reversed & ~postgresql);
        last = last << 8 | end[i];
        found |= (begins + END_BYTES - 1 - i) & (is_not_zero((last & mask) ^ wanted) - 1);
    }
    return found;
}
