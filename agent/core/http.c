/* SPDX-License-Identifier: Apache-2.0 */
/* HTTP semantics, RFC 9110, in the words of OpenTelemetry; see http.h.
 *
 *   attribute              server span, first of                       client span, first of
 *   server.address, .port  Forwarded host, X-Forwarded-Host,           authority, Host, peer address
 *                          authority of the target, Host
 *   url.scheme             Forwarded proto, X-Forwarded-Proto, target  (opt-in: not written)
 *   client.address         Forwarded for, X-Forwarded-For, peer
 *   url.full                                                           scheme://authority/path?query
 *
 * On a Unix socket the path that the server is bound to stands for its address where no host is named: the
 * peer's of a client, the local one of a server, whose own peers have no name. There is no port then.
 *
 * "Authority" is that of an absolute-form target, a CONNECT target or :authority. A host without a port
 * has the default port of its scheme, so that both sides of an exchange report the same. */
#include "http.h"
#include "exchange.h"

/* --- fields ----------------------------------------------------------------------------------------- */

void http_fields_clear(struct http_fields *fields)
{
    memset(fields, 0, offsetof(struct http_fields, captured)); /* the rest is read up to captured_count */
}

static void keep_first(struct text *kept, struct text name, const char *wanted, struct text value)
{
    if (kept->length == 0 && text_is(name, wanted))
        *kept = value;
}

void http_field(struct http_fields *fields, struct text name, struct text value, const char *const *names,
                uint32_t name_count)
{
    switch (name.length) {
    case 4:
        keep_first(&fields->host, name, "host", value);
        break;
    case 9:
        keep_first(&fields->forwarded, name, "forwarded", value);
        break;
    case 10:
        keep_first(&fields->user_agent, name, "user-agent", value);
        keep_first(&fields->tracestate, name, "tracestate", value);
        break;
    case 11:
        if (text_is(name, "traceparent")) {
            fields->traceparent = value;
            fields->traceparents++;
        }
        break;
    case 15:
        keep_first(&fields->forwarded_for, name, "x-forwarded-for", value);
        break;
    case 16:
        keep_first(&fields->forwarded_host, name, "x-forwarded-host", value);
        break;
    case 17:
        keep_first(&fields->forwarded_proto, name, "x-forwarded-proto", value);
        break;
    }
    for (uint32_t i = 0; i < name_count; i++)
        if (fields->captured_count < HTTP_CAPTURED_MAX && text_is(name, names[i])) {
            fields->captured[fields->captured_count].index = i;
            fields->captured[fields->captured_count++].value = value;
        }
}

/* A field value as one line: an obsolete fold (RFC 9112, 5.2) and a tab read as spaces. */
static struct text field_text(struct text value, uint8_t scratch[HTTP_FIELD_MAX])
{
    if (memchr(value.bytes, '\n', value.length) == NULL && memchr(value.bytes, '\t', value.length) == NULL)
        return value;
    size_t length = value.length < HTTP_FIELD_MAX ? value.length : HTTP_FIELD_MAX;
    for (size_t i = 0; i < length; i++) {
        uint8_t c = value.bytes[i];
        scratch[i] = c == '\r' || c == '\n' || c == '\t' ? ' ' : c;
    }
    return (struct text){scratch, length};
}

static void captured_attributes(const struct http_fields *fields, uint32_t name_count, unsigned first_key,
                                struct builder *b)
{
    uint8_t scratch[HTTP_FIELD_MAX];
    for (uint32_t name = 0; fields->captured_count && name < name_count; name++)
        for (uint32_t i = 0; i < fields->captured_count; i++)
            if (fields->captured[i].index == name) {
                struct text value = field_text(fields->captured[i].value, scratch);
                builder_texts(b, first_key + name, value.bytes, value.length, HTTP_FIELD_MAX);
            }
}

/* --- trace context ---------------------------------------------------------------------------------- */

/* Lower-case hexadecimal only, as the specification asks. False: it is not, or all of it is zero. */
static bool hex_bytes(uint8_t *out, const uint8_t *digits, size_t count)
{
    uint8_t any = 0;
    for (size_t i = 0; i < 2 * count; i++) {
        uint8_t c = digits[i], value;
        if (c >= '0' && c <= '9')
            value = (uint8_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            value = (uint8_t)(c - 'a' + 10);
        else
            return false;
        out[i / 2] = (uint8_t)(i % 2 ? out[i / 2] << 4 | value : value);
        any |= value;
    }
    return any != 0;
}

/* version "-" trace-id "-" parent-id "-" trace-flags; a later version may go on behind another "-" */
void http_traceparent(struct text value, struct trace_context *context)
{
    enum { TRACE_ID = 3, PARENT_ID = 36, FLAGS = 53, LENGTH = 55 };
    struct trace_context read = {.valid = 1};
    const uint8_t *t = value.bytes;
    uint8_t version = 0;
    memset(context, 0, sizeof *context);
    if (value.length < LENGTH || t[TRACE_ID - 1] != '-' || t[PARENT_ID - 1] != '-' || t[FLAGS - 1] != '-')
        return;
    bool zero = !hex_bytes(&version, t, 1);
    if (zero && memcmp(t, "00", 2) != 0)
        return;
    if (version == 0xff || (value.length > LENGTH && (version == 0 || t[LENGTH] != '-')))
        return;
    if (!hex_bytes(&read.flags, t + FLAGS, 1) && memcmp(t + FLAGS, "00", 2) != 0)
        return;
    if (hex_bytes(read.trace_id, t + TRACE_ID, 16) && hex_bytes(read.span_id, t + PARENT_ID, 8))
        *context = read;
}

/* --- request ---------------------------------------------------------------------------------------- */

enum http_hint http_hint(struct text method)
{
    if (method.length == 4 && memcmp(method.bytes, "HEAD", 4) == 0)
        return HTTP_HINT_HEAD;
    if (method.length == 7 && memcmp(method.bytes, "CONNECT", 7) == 0)
        return HTTP_HINT_CONNECT;
    return HTTP_HINT_OTHER;
}

static void add_text(struct builder *b, enum attribute_key key, struct text t, size_t limit)
{
    builder_text(b, key, t.bytes, t.length, limit);
}

static void method_attributes(struct text method, const struct protocol_options *options, struct builder *b)
{
    for (uint32_t i = 0; i < options->method_count; i++) {
        const char *known = options->methods[i];
        if ((uint8_t)known[0] == method.bytes[0] &&
            strncmp(known, (const char *)method.bytes, method.length) == 0 && known[method.length] == '\0') {
            add_text(b, KEY_HTTP_REQUEST_METHOD, method, HTTP_METHOD_MAX);
            return;
        }
    }
    add_text(b, KEY_HTTP_REQUEST_METHOD, TEXT("_OTHER"), HTTP_METHOD_MAX);
    add_text(b, KEY_HTTP_REQUEST_METHOD_ORIGINAL, method, HTTP_METHOD_MAX);
}

static struct text first_element(struct text list)
{
    struct text rest;
    return text_trimmed(text_before(list, ',', &rest));
}

/* "http" or "https" in lower case, else empty: it tells series apart, so others may not choose it. */
static struct text known_scheme(struct text scheme)
{
    if (text_is(scheme, "http"))
        return TEXT("http");
    if (text_is(scheme, "https"))
        return TEXT("https");
    return TEXT("");
}

static struct text first_of(struct text a, struct text b)
{
    return a.length ? a : b;
}

static void server_attributes(struct text authority, struct text scheme, const struct parse_context *context,
                              struct builder *b)
{
    struct text host;
    uint16_t port;
    char address[ADDRESS_MAX];
    bool local = context->transport == TRANSPORT_UNIX;
    if (!url_authority(authority, &host, &port)) {
        struct text path = socket_path(context, address);
        if (path.length)
            add_text(b, KEY_SERVER_ADDRESS, path, HTTP_HOST_MAX);
        return;
    }
    if (port == 0 && !local)
        port = text_is(scheme, "http") ? 80 : text_is(scheme, "https") ? 443 : 0;
    add_text(b, KEY_SERVER_ADDRESS, host, HTTP_HOST_MAX);
    if (port)
        builder_int(b, KEY_SERVER_PORT, port);
}

/* A node of RFC 7239, 6, or an element of X-Forwarded-For, when it names an address. */
static bool forwarded_address(struct text node, struct text *address)
{
    uint16_t port;
    if (node.length == 0 || node.bytes[0] == '_' || text_is(node, "unknown"))
        return false;
    return url_authority(node, address, &port);
}

/* Path and query with secrets hidden, behind `size` bytes of `out`. */
static size_t write_target(char *out, size_t size, const struct url *url,
                           const struct protocol_options *options)
{
    size_t length = url->path.length < HTTP_PATH_MAX ? url->path.length : HTTP_PATH_MAX;
    memcpy(out + size, url->path.bytes, length);
    size += length;
    if (url->has_query) {
        out[size++] = '?';
        size += url_redact_query(out + size, HTTP_QUERY_MAX, url->query, options);
    }
    return size;
}

/* scheme "://" authority path "?" query: the target URI of RFC 9110, 7.1. A CONNECT and an OPTIONS *
 * request have neither path nor query (RFC 9112, 3.3). */
static void full_url(struct text scheme, struct text authority, const struct url *url,
                     const struct protocol_options *options, struct builder *b)
{
    char out[HTTP_URL_MAX + 1];
    struct text rest, user = text_before(authority, '@', &rest);
    size_t size = scheme.length < HTTP_SCHEME_MAX ? scheme.length : HTTP_SCHEME_MAX;
    memcpy(out, scheme.bytes, size);
    memcpy(out + size, "://", 3);
    size += 3;
    if (rest.bytes != NULL) { /* up to the last '@' */
        memcpy(out + size, "REDACTED:REDACTED@", 18);
        size += 18;
        while (rest.bytes != NULL) {
            authority = rest;
            user = text_before(authority, '@', &rest);
        }
        authority = user;
    }
    size_t length = authority.length < HTTP_FIELD_MAX / 2 ? authority.length : HTTP_FIELD_MAX / 2;
    memcpy(out + size, authority.bytes, length);
    size += length;
    if (url->path.length == 0 || url->path.bytes[0] == '/')
        size = write_target(out, size, url, options);
    builder_text(b, KEY_URL_FULL, out, size, HTTP_URL_MAX);
}

static void client_side(const struct http_request *request, const struct http_fields *fields,
                        struct text peer, const struct parse_context *context, struct builder *b)
{
    struct text host, authority = first_of(request->url.authority, fields->host);
    struct text scheme = first_of(request->url.scheme, TEXT("http"));
    char literal[64];
    uint16_t port;
    bool named = url_authority(authority, &host, &port);
    if (!named && context->transport != TRANSPORT_UNIX) { /* HTTP/1.0, and nothing else to go by */
        bool bracket = memchr(peer.bytes, ':', peer.length) != NULL;
        size_t size = 0;
        if (bracket)
            literal[size++] = '[';
        memcpy(literal + size, peer.bytes, peer.length);
        size += peer.length;
        if (bracket)
            literal[size++] = ']';
        literal[size++] = ':';
        unsigned divisor = 10000, number = context->remote_port;
        while (divisor > 1 && number < divisor)
            divisor /= 10;
        for (; divisor; divisor /= 10)
            literal[size++] = (char)('0' + number / divisor % 10);
        authority = (struct text){(const uint8_t *)literal, size};
        named = true;
    }
    server_attributes(authority, scheme, context, b);
    if (named) /* a socket's path is no authority (RFC 3986, 3.2) */
        full_url(scheme, authority, &request->url, context->options, b);
}

static void server_side(const struct http_request *request, const struct http_fields *fields,
                        struct text peer, const struct parse_context *context, struct builder *b)
{
    const struct url *url = &request->url;
    bool forwarded = fields->forwarded.length > 0;
    struct text proto = TEXT(""), host = TEXT(""), node = TEXT(""), client;
    if (forwarded) {
        proto = known_scheme(forwarded_parameter(fields->forwarded, "proto"));
        host = forwarded_parameter(fields->forwarded, "host");
        node = forwarded_parameter(fields->forwarded, "for");
    }
    struct text scheme = first_of(proto, known_scheme(first_element(fields->forwarded_proto)));
    scheme = first_of(first_of(scheme, known_scheme(url->scheme)), TEXT("http"));
    add_text(b, KEY_URL_SCHEME, scheme, scheme.length);
    if (url->path.length || url->scheme.length)
        add_text(b, KEY_URL_PATH, url->path.length ? url->path : TEXT("/"), HTTP_PATH_MAX);
    if (url->has_query) {
        char query[HTTP_QUERY_MAX];
        builder_text(b, KEY_URL_QUERY, query,
                     url_redact_query(query, sizeof query, url->query, context->options), sizeof query);
    }
    host = first_of(host, first_element(fields->forwarded_host));
    server_attributes(first_of(first_of(host, url->authority), fields->host), scheme, context, b);
    if (forwarded_address(node, &client) ||
        forwarded_address(first_element(fields->forwarded_for), &client))
        add_text(b, KEY_CLIENT_ADDRESS, client, HTTP_HOST_MAX);
    else if (peer.length)
        add_text(b, KEY_CLIENT_ADDRESS, peer, HTTP_HOST_MAX);
    if (fields->user_agent.length) {
        uint8_t scratch[HTTP_FIELD_MAX];
        add_text(b, KEY_USER_AGENT_ORIGINAL, field_text(fields->user_agent, scratch), HTTP_FIELD_MAX);
    }
}

static void network_attributes(struct text peer, const struct parse_context *context, struct builder *b)
{
    char address[ADDRESS_MAX];
    if (context->transport != TRANSPORT_UNIX) {
        add_text(b, KEY_NETWORK_PEER_ADDRESS, peer, peer.length);
        builder_int(b, KEY_NETWORK_PEER_PORT, context->remote_port);
        return;
    }
    add_text(b, KEY_NETWORK_TRANSPORT, TEXT("unix"), 4);
    struct text path = socket_path(context, address);
    if (path.length)
        add_text(b, context->kind == KIND_CLIENT ? KEY_NETWORK_PEER_ADDRESS : KEY_NETWORK_LOCAL_ADDRESS, path,
                 path.length);
}

void http_request_attributes(const struct http_request *request, const struct http_fields *fields,
                             const struct parse_context *context, struct builder *b)
{
    const struct protocol_options *options = context->options;
    char address[ADDRESS_MAX];
    struct text peer = peer_address(context, address);
    method_attributes(request->method, options, b);
    if (context->kind == KIND_CLIENT)
        client_side(request, fields, peer, context, b);
    else
        server_side(request, fields, peer, context, b);
    add_text(b, KEY_NETWORK_PROTOCOL_VERSION, request->version, request->version.length);
    network_attributes(peer, context, b);
    captured_attributes(fields, options->request_header_count, KEY_CAPTURED, b);
}

/* --- response, and both together -------------------------------------------------------------------- */

void http_response_attributes(int32_t status, const struct http_fields *fields,
                              const struct parse_context *context, struct builder *b)
{
    builder_int(b, KEY_HTTP_RESPONSE_STATUS_CODE, status);
    captured_attributes(fields, context->options->response_header_count,
                        KEY_CAPTURED + context->options->request_header_count, b);
}

/* Why the exchange failed, or empty: a status code as text, or what became of the connection. */
static struct text error_type(const struct exchange *exchange, char digits[3])
{
    if (exchange->responded && exchange->status >= (exchange->kind == KIND_SERVER ? 500 : 400)) {
        for (int i = 2, n = exchange->status; i >= 0; i--, n /= 10)
            digits[i] = (char)('0' + n % 10);
        return (struct text){(const uint8_t *)digits, 3};
    }
    return outcome_text(exchange->outcome);
}

/* A path that the server does not know (404) is anybody's invention: it gets no route, so that a scanner
 * cannot use up the routes of the process. */
static size_t route(const struct exchange *exchange, char out[HTTP_ROUTE_MAX])
{
    if (exchange->kind != KIND_SERVER || !exchange->options->route_heuristic || exchange->routes == NULL ||
        (exchange->responded && exchange->status == 404))
        return 0;
    struct text path = exchange_text(exchange, KEY_URL_PATH);
    if (path.length == 0 || path.bytes[0] != '/')
        return 0;
    return routes_match(exchange->routes, (const char *)path.bytes, (uint32_t)path.length, out,
                        HTTP_ROUTE_MAX);
}

void http_finish(const struct exchange *exchange, struct finished *out, struct builder *attributes)
{
    struct text method = exchange_text(exchange, KEY_HTTP_REQUEST_METHOD);
    char route_text[HTTP_ROUTE_MAX], digits[3];
    size_t route_size = route(exchange, route_text);
    if (text_is(method, "_other"))
        method = TEXT("HTTP");
    if (method.length > HTTP_METHOD_MAX)
        method.length = HTTP_METHOD_MAX;
    memcpy(out->name, method.bytes, method.length);
    out->name_size = (uint32_t)method.length;
    if (route_size) {
        builder_text(attributes, KEY_HTTP_ROUTE, route_text, route_size, HTTP_ROUTE_MAX);
        out->name[out->name_size++] = ' ';
        memcpy(out->name + out->name_size, route_text, route_size);
        out->name_size += (uint32_t)route_size;
    }
    struct text error = error_type(exchange, digits);
    out->status = error.length ? STATUS_ERROR : STATUS_UNSET;
    if (error.length)
        add_text(attributes, KEY_ERROR_TYPE, error, error.length);
    out->metric = exchange->kind == KIND_SERVER ? METRIC_HTTP_SERVER_DURATION : METRIC_HTTP_CLIENT_DURATION;
    if (exchange->request_body >= 0)
        builder_int(attributes, KEY_HTTP_REQUEST_BODY_SIZE, exchange->request_body);
    if (exchange->response_body >= 0)
        builder_int(attributes, KEY_HTTP_RESPONSE_BODY_SIZE, exchange->response_body);
}
