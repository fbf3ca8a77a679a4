/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the last END_BYTES bytes of a call tell of a database's conversation, where not all of the call is copied. Pure
 * functions over a copy of the bytes, like those of classify.h. */
#pragma once

enum ends_limits { END_BYTES = 512 };

/* 0 if `a` is 0, else 1: without a jump, as each in a loop doubles what the verifier has to look at (Linux 6.1: "The
 * sequence of 8193 jumps is too complex"). The empty statement keeps clang from making one. */
static inline __attribute__((always_inline)) uint64_t is_not_zero(uint64_t a)
{
    uint64_t minus = -a;
    asm volatile("" : "+r"(minus));
    return (a | minus) >> 63;
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

/* Of a server: how many of the last bytes are an error that ends with them, or 0. Behind rows it is longer than what is
 * copied of each call, and its code stands at its beginning. PostgreSQL: ErrorResponse, and a ReadyForQuery that came
 * with it. MySQL: ERR_Packet with an SQLSTATE. Where a message of their length would have to begin there is no doubt. */
static inline __attribute__((always_inline)) uint32_t error_at_end(uint8_t protocol, const uint8_t *end)
{
    enum { READY_SIZE = 6 };
    /* The bytes up to the last one that is fixed, 8 at most, and where among them the length's 16 bits belong. */
    uint64_t mask = 0x000000ffffffffff, fixed = 0x0000004500000000; /* E, length: of itself and the fields */
    uint64_t low = 0, high = 8, begins = 5, ready = 0;
    if (protocol == PROTOCOL_MYSQL) {
        mask = 0xffffff00ff0000ff, fixed = 0x00000000ff000023; /* length, sequence id, FF, code, # of an SQLSTATE */
        low = 56, high = 48, begins = 8;
    } else if (protocol != PROTOCOL_POSTGRESQL) {
        return 0;
    } else {
        const uint8_t *last = end + END_BYTES - READY_SIZE;
        ready = last[0] == 'Z' && !(last[1] | last[2] | last[3]) && last[4] == READY_SIZE - 1 ? READY_SIZE : 0;
    }
    uint64_t last = 0, found = 0;
#pragma clang loop unroll(disable)
    for (uint32_t i = 0; i < END_BYTES; i++) {
        uint64_t rest = END_BYTES - 1 - i, length = rest - ready + 4;
        last = last << 8 | end[i];
        uint64_t wanted = fixed | (length & 0xff) << low | length >> 8 << high;
        found += (begins + rest) * (1 - (is_not_zero(found) | is_not_zero((last & mask) ^ wanted)));
    }
    return found;
}
