/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The ordered list of protocols: makes the enum, the order of classification and the parser table. */
#pragma once

/* X(identifier, name): a parser agent/core/protocols/<name>.c, a classifier classify_<name>() */
#define PROTOCOLS(X) X(HTTP1, http1)

enum protocol_id {
    PROTOCOL_UNDECIDED = 0,
    PROTOCOL_ENCRYPTED = 1, /* TLS records */
    PROTOCOL_UNKNOWN = 2,   /* decided: none of ours */
    PROTOCOL_BUILT_IN = 3,
    PROTOCOL_BEFORE_FIRST = PROTOCOL_BUILT_IN - 1,
#define PROTOCOL_ENUM(identifier, name) PROTOCOL_##identifier,
    PROTOCOLS(PROTOCOL_ENUM)
#undef PROTOCOL_ENUM
    PROTOCOL_COUNT,
};
