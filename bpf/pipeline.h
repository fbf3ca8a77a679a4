/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Are these bytes, out of a long turn of a database's client, of a pipeline or of a large value? A pure function over
 * a copy of the bytes, like those of classify.h. */
#pragma once

enum pipeline_limits { PIPELINE_BYTES = 512 };

/* 0 if `a` is 0, else 1: without a jump, as each in the loop doubles what the verifier has to look at (Linux 6.1: "The
 * sequence of 8193 jumps is too complex"). The empty statement keeps clang from making one. */
static inline __attribute__((always_inline)) uint64_t pipeline_differs(uint64_t a)
{
    uint64_t minus = -a;
    asm volatile("" : "+r"(minus));
    return (a | minus) >> 63;
}

/* Is there the beginning of a command among PIPELINE_BYTES? Redis: an array of up to 99 bulk strings, behind the end of another
 * one. PostgreSQL: Execute of the unnamed portal. MySQL's commands cannot be told in the midst of others. */
static inline __attribute__((always_inline)) bool pipeline_goes_on(uint8_t protocol, const uint8_t *bytes)
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
    for (uint32_t i = 0; i < PIPELINE_BYTES; i++) {
        last = last << 8 | bytes[i];
        differs &= pipeline_differs((last & mask) ^ wanted) & pipeline_differs((last & other_mask) ^ other_wanted);
    }
    return !differs;
}
