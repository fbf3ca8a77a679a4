/* SPDX-License-Identifier: Apache-2.0 */
/* What protocols may be told. */
#pragma once
#include <stdint.h>

/* Which text of a database operation is told. */
enum query_text {
    QUERY_TEXT_OFF,
    QUERY_TEXT_SANITIZED,     /* every literal is replaced */
    QUERY_TEXT_PARAMETERIZED, /* the same, but text with placeholders keeps what is no parameter */
};

/* Options that protocols read; made once from the configuration (agent/config.py). */
struct protocol_options {
    uint8_t route_heuristic; /* 0: http.route is never set */
    uint32_t routes_max;     /* distinct routes per process; above: no http.route */
    uint8_t database_servers; /* spans of the server's side too, where the database is traced */
    uint8_t query_text;       /* enum query_text */
    uint32_t redact_count;
    const char *const *redact_keys; /* query keys, case-sensitive, whose values become REDACTED */
    uint32_t method_count;
    const char *const *methods; /* known HTTP methods, case-sensitive */
    uint32_t request_header_count;
    const char *const *request_headers; /* lower case; key id KEY_CAPTURED + index */
    uint32_t response_header_count;
    const char *const *response_headers; /* key id KEY_CAPTURED + request_header_count + index */
};
