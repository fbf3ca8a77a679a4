/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The ordered list of protocols: makes the enum, the order of classification and the parser table. */
#pragma once

/* X(identifier, name, database): a parser agent/core/protocols/<name>.c, a classifier classify_<name>().
 * Of a database the kernel side copies what a turn begins with, and no framing out of the middle of answers:
 * the lengths stand in front, the outcome stands at the end. */
#define PROTOCOLS(X)             \
    X(HTTP1, http1, 0)           \
    X(POSTGRESQL, postgresql, 1) \
    X(MYSQL, mysql, 1)           \
    X(REDIS, redis, 1)

enum protocol_id {
    PROTOCOL_UNDECIDED = 0,
    PROTOCOL_ENCRYPTED = 1, /* TLS records */
    PROTOCOL_UNKNOWN = 2,   /* decided: none of ours */
    PROTOCOL_BUILT_IN = 3,
    PROTOCOL_BEFORE_FIRST = PROTOCOL_BUILT_IN - 1,
#define PROTOCOL_ENUM(identifier, name, database) PROTOCOL_##identifier,
    PROTOCOLS(PROTOCOL_ENUM)
#undef PROTOCOL_ENUM
    PROTOCOL_COUNT,
#define PROTOCOL_DATABASE(identifier, name, database) | ((database) << PROTOCOL_##identifier)
    PROTOCOL_DATABASES = 0 PROTOCOLS(PROTOCOL_DATABASE), /* bit by protocol */
#undef PROTOCOL_DATABASE
};

#define protocol_is_database(id) ((PROTOCOL_DATABASES >> (id)) & 1)
