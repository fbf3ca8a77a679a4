/* SPDX-License-Identifier: Apache-2.0 */
/* Every attribute that a span, a finding or a series may carry: its key (semantic conventions 1.44.0), written
 * here and nowhere else, and how a list of attributes lies in memory. */
#pragma once
#include <stdint.h>

enum attribute_type {
    ATTRIBUTE_TEXT = 1,   /* UTF-8, always valid: the core replaces what is not */
    ATTRIBUTE_INT = 2,    /* int64_t */
    ATTRIBUTE_DOUBLE = 3, /* double */
    ATTRIBUTE_BOOL = 4,   /* int64_t, 0 or 1 */
    ATTRIBUTE_TEXTS = 5,  /* a list of texts, each uint32_t length and bytes, unaligned */
};

/* X(identifier, key, metric): metric says whether series are told apart by it */
#define ATTRIBUTES(X)                                                                                  \
    X(HTTP_REQUEST_METHOD, "http.request.method", 1)                                                   \
    X(HTTP_REQUEST_METHOD_ORIGINAL, "http.request.method_original", 0)                                 \
    X(HTTP_RESPONSE_STATUS_CODE, "http.response.status_code", 1)                                       \
    X(HTTP_ROUTE, "http.route", 1)                                                                     \
    X(HTTP_REQUEST_BODY_SIZE, "http.request.body.size", 0)                                             \
    X(HTTP_RESPONSE_BODY_SIZE, "http.response.body.size", 0)                                           \
    X(URL_SCHEME, "url.scheme", 1)                                                                     \
    X(URL_PATH, "url.path", 0)                                                                         \
    X(URL_QUERY, "url.query", 0)                                                                       \
    X(URL_FULL, "url.full", 0)                                                                         \
    X(USER_AGENT_ORIGINAL, "user_agent.original", 0)                                                   \
    X(ERROR_TYPE, "error.type", 1)                                                                     \
    X(NETWORK_PROTOCOL_NAME, "network.protocol.name", 1)                                               \
    X(NETWORK_PROTOCOL_VERSION, "network.protocol.version", 1)                                         \
    X(NETWORK_TRANSPORT, "network.transport", 0)                                                       \
    X(NETWORK_LOCAL_ADDRESS, "network.local.address", 0)                                               \
    X(NETWORK_PEER_ADDRESS, "network.peer.address", 0)                                                 \
    X(NETWORK_PEER_PORT, "network.peer.port", 0)                                                       \
    X(CLIENT_ADDRESS, "client.address", 0)                                                             \
    X(CLIENT_PORT, "client.port", 0)                                                                   \
    X(SERVER_ADDRESS, "server.address", 2)                                                             \
    X(SERVER_PORT, "server.port", 2)                                                                   \
    X(DB_SYSTEM_NAME, "db.system.name", 1)                                                             \
    X(DB_NAMESPACE, "db.namespace", 1)                                                                 \
    X(DB_OPERATION_NAME, "db.operation.name", 1)                                                       \
    X(DB_OPERATION_BATCH_SIZE, "db.operation.batch.size", 0)                                           \
    X(DB_COLLECTION_NAME, "db.collection.name", 1)                                                     \
    X(DB_STORED_PROCEDURE_NAME, "db.stored_procedure.name", 1)                                         \
    X(DB_QUERY_TEXT, "db.query.text", 0)                                                               \
    X(DB_QUERY_SUMMARY, "db.query.summary", 1)                                                         \
    X(DB_RESPONSE_STATUS_CODE, "db.response.status_code", 1)                                           \
    X(DB_RESPONSE_RETURNED_ROWS, "db.response.returned_rows", 0)                                       \
    X(DB_RESPONSE_AFFECTED_ROWS, "ebpf_otlp_tracer.db.affected_rows", 0)                               \
    X(LINK_METHOD, "ebpf_otlp_tracer.parent.method", 0)                                                \
    X(SLOW, "ebpf_otlp_tracer.slow", 0)                                                                \
    X(FINDING_COUNT_OF, "ebpf_otlp_tracer.finding.count", 0)                                           \
    X(FINDING_DURATION_MS, "ebpf_otlp_tracer.finding.duration_ms", 0)                                  \
    X(FINDING_SPAN_IDS, "ebpf_otlp_tracer.finding.span_ids", 0)

enum attribute_key {
    KEY_NONE = 0,
#define ATTRIBUTE_ENUM(identifier, key, metric) KEY_##identifier,
    ATTRIBUTES(ATTRIBUTE_ENUM)
#undef ATTRIBUTE_ENUM
    KEY_COUNT,
    KEY_CAPTURED = 1024, /* the first captured header: "http.request.header.<name>" and so on */
};

/* `metric` above */
enum attribute_metric {
    METRIC_NEVER = 0,
    METRIC_ALWAYS = 1,
    METRIC_CLIENT = 2, /* on spans of kind client only */
};

/* A list of attributes is these, one behind the other, each padded to a multiple of 8 bytes. */
struct attribute {
    uint16_t key;  /* enum attribute_key */
    uint16_t type; /* enum attribute_type */
    uint32_t size; /* bytes of value that follow, without the padding */
};
_Static_assert(sizeof(struct attribute) == 8, "attribute");
