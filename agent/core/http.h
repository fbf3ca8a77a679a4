/* SPDX-License-Identifier: Apache-2.0 */
/* What a span says of an HTTP request and response, whatever version carried them (RFC 9110).
 *
 * Parsers of HTTP/1, 2 and 3 collect fields and the request's control data here; the attributes, the
 * trace context, and the name and status of the span come out by the semantic conventions 1.44.0:
 * https://github.com/open-telemetry/semantic-conventions/blob/v1.44.0/docs/http/http-spans.md */
#pragma once
#include "protocol.h"
#include "url.h"

enum http_limits {
    HTTP_METHOD_MAX = 32,    /* UPDATEREDIRECTREF, the longest registered, has 17 */
    HTTP_PATH_MAX = 8192,    /* bytes of text kept; what servers take for a request line */
    HTTP_QUERY_MAX = 8192,
    HTTP_SCHEME_MAX = 32,
    HTTP_URL_MAX = HTTP_PATH_MAX + HTTP_QUERY_MAX + 1024,
    HTTP_HOST_MAX = 255,     /* RFC 1035, 2.3.4 */
    HTTP_FIELD_MAX = 1024,   /* user agent, captured headers */
    HTTP_ROUTE_MAX = 223,    /* with a method and a space it is a span name */
    HTTP_CAPTURED_MAX = 64,  /* captured field lines of one message; more are passed over */
};

/* Values of step.hint: what a response to this request may contain. */
enum http_hint {
    HTTP_HINT_UNKNOWN = 0, /* no request: as its own header says */
    HTTP_HINT_OTHER,
    HTTP_HINT_HEAD,    /* no content, whatever its header says */
    HTTP_HINT_CONNECT, /* 2xx: a tunnel follows, no content */
};

/* Field lines that spans are made of; the first one of a name counts, where one can. */
struct http_fields {
    struct text host, user_agent, forwarded, forwarded_for, forwarded_host, forwarded_proto;
    struct text traceparent, tracestate;
    uint32_t traceparents; /* field lines of that name */
    uint32_t captured_count;
    struct {
        uint32_t index; /* in the list of options */
        struct text value;
    } captured[HTTP_CAPTURED_MAX];
};

void http_fields_clear(struct http_fields *fields);
/* Keeps the field if it is one of the above. `names`: the captured ones. */
void http_field(struct http_fields *fields, struct text name, struct text value, const char *const *names,
                uint32_t name_count);

struct http_request {
    struct text method, version; /* "GET", "1.1" */
    struct url url;              /* scheme and authority empty: from the fields and the connection */
};

enum http_hint http_hint(struct text method);
void http_request_attributes(const struct http_request *request, const struct http_fields *fields,
                             const struct parse_context *context, struct builder *b);
void http_response_attributes(int32_t status, const struct http_fields *fields,
                              const struct parse_context *context, struct builder *b);

/* https://www.w3.org/TR/trace-context/#traceparent-header; context->valid says whether it is one. */
void http_traceparent(struct text value, struct trace_context *context);

/* protocol.finish of every version. */
void http_finish(const struct exchange *exchange, struct finished *out, struct builder *attributes);
