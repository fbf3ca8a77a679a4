/* SPDX-License-Identifier: Apache-2.0 */
/* HTTP/1.0 and 1.1, message syntax: https://www.rfc-editor.org/rfc/rfc9112
 * (what messages mean: ../http.c)
 *
 *   request    GET /a?b HTTP/1.1 CRLF            response   HTTP/1.1 200 OK CRLF
 *              Host: example.com CRLF                       Transfer-Encoding: chunked CRLF
 *              Content-Length: 5 CRLF                       CRLF
 *              CRLF                                         5;extension CRLF  hello CRLF
 *              hello                                        0 CRLF  Trailer: field CRLF  CRLF
 *
 * Steps: a head with its body's length; in a chunked body each chunk-size line with the length of its
 * data; the last chunk with its trailers. An empty line before a request is a step that begins nothing.
 * The length of a body is found by RFC 9112, 6.3, in the order given there.
 *
 * As robust as servers are (a lone LF ends a line, obsolete folds, no reason phrase, spaces behind a
 * chunk size), but what makes two recipients disagree on the framing is invalid: conflicting lengths, a
 * request whose last transfer coding is not chunked, a space before a colon in a request. HTTP/0.9 and
 * the HTTP/2 preface are invalid too: neither has our version. */
#include "../http.h"

enum {
    HEAD_MAX = 64 * 1024,   /* start line and header fields; nginx and Node take 32 and 16 KiB by default */
    CHUNK_LINE_MAX = 4096,  /* with extensions, which RFC 9112, 7.1.1 wants limited */
    EARLY_LOOK = 256,       /* bytes of a start line that are checked before all of it is there */
    VERSION_SIZE = 8,       /* "HTTP/1.1" */
    STATUS_AT = 9,          /* "HTTP/1.1 " */
};

struct http1_state {
    uint8_t in_chunks; /* a chunk-size line is next */
};
_Static_assert(sizeof(struct http1_state) <= STREAM_STATE_SIZE, "http1_state");

/* --- lines ------------------------------------------------------------------------------------------ */

static struct text text_of(const struct cursor *in, struct slice s)
{
    return (struct text){slice_bytes(in, s), s.length};
}

/* RFC 9110, 5.6.2 */
static const bool token[256] = {
    ['0' ... '9'] = 1, ['A' ... 'Z'] = 1, ['a' ... 'z'] = 1, ['!'] = 1, ['#'] = 1, ['$'] = 1,
    ['%'] = 1,         ['&'] = 1,         ['\''] = 1,        ['*'] = 1, ['+'] = 1, ['-'] = 1,
    ['.'] = 1,         ['^'] = 1,         ['_'] = 1,         ['`'] = 1, ['|'] = 1, ['~'] = 1,
};

/* A line of the head, of which no more than HEAD_MAX bytes are read. */
static struct slice head_line(struct cursor *in)
{
    size_t read = (size_t)(in->at - in->start);
    return cursor_line(in, read < HEAD_MAX ? HEAD_MAX - read : 0);
}

/* False, with `need` set: no empty line ends in the window, so that no head or trailer does. Bytes that
 * were seen before are not looked at again. */
static bool has_empty_line(struct cursor *in)
{
    const uint8_t *start = in->start, *at = start + (in->seen > 3 ? in->seen - 3 : 0);
    size_t missing = 2; /* at least two line ends */
    while (at < in->end && (at = memchr(at, '\n', (size_t)(in->end - at))) != NULL) {
        size_t left = (size_t)(in->end - ++at);
        if (left >= 1 && (at[0] == '\n' || (left >= 2 && at[0] == '\r' && at[1] == '\n')))
            return true;
        if (left == 0 || (left == 1 && at[0] == '\r'))
            missing = 1;
    }
    in->need = (size_t)(in->end - start) + missing;
    return false;
}

/* Asked behind a first line: did an earlier call check that line, and has no empty line come since? Then
 * there is nothing to read, which keeps a head that comes byte by byte linear. */
static bool still_incomplete(struct cursor *in)
{
    bool checked = (size_t)(in->at - in->start) <= in->seen;
    return checked && (size_t)(in->end - in->start) <= HEAD_MAX && !has_empty_line(in);
}

/* name ":" OWS value OWS; a line that begins with a space goes on with the value (obs-fold).
 * False: the empty line was read, or the cursor failed. */
static bool field_line(struct cursor *in, enum sender sender, struct text *name, struct text *value)
{
    struct slice line = head_line(in);
    if (in->status != PARSE_OK || line.length == 0)
        return false;
    struct text t = text_of(in, line);
    size_t colon = 0;
    while (colon < t.length && token[t.bytes[colon]])
        colon++;
    name->bytes = t.bytes;
    name->length = colon;
    /* RFC 9112, 5.1: a server refuses a space here, a proxy takes it out of a response */
    while (sender == SENDER_SERVER && colon < t.length && (t.bytes[colon] == ' ' || t.bytes[colon] == '\t'))
        colon++;
    if (name->length == 0 || colon == t.length || t.bytes[colon] != ':') {
        cursor_fail(in, PARSE_INVALID);
        return false;
    }
    for (int next = cursor_peek(in); next == ' ' || next == '\t'; next = cursor_peek(in)) {
        struct slice fold = head_line(in);
        if (in->status != PARSE_OK)
            return false;
        t.length = fold.offset + fold.length - line.offset;
    }
    *value = text_trimmed((struct text){t.bytes + colon + 1, t.length - colon - 1});
    return true;
}

/* --- start lines ------------------------------------------------------------------------------------ */

struct request_line {
    struct text method, target, version; /* "GET", "/a?b", "1.1" */
};

/* Does `t`, or all of it that is there, spell `pattern`? In a pattern '0' stands for any digit. */
static bool spells(struct text t, const char *pattern, size_t length, bool complete)
{
    if (t.length > length || (complete && t.length != length))
        return false;
    for (size_t i = 0; i < t.length; i++)
        if (pattern[i] == '0' ? t.bytes[i] < '0' || t.bytes[i] > '9' : t.bytes[i] != (uint8_t)pattern[i])
            return false;
    return true;
}

/* method SP request-target SP HTTP-version. If the line is not complete: may it become one?
 * A target holds no controls and no spaces; bytes above 127 are let through, as some clients send them. */
static bool request_line(struct text line, bool complete, struct request_line *out)
{
    size_t method = 0;
    while (method < line.length && method <= HTTP_METHOD_MAX && token[line.bytes[method]])
        method++;
    if (method > HTTP_METHOD_MAX || (method == line.length && complete))
        return false;
    if (method == line.length)
        return true;
    if (method == 0 || line.bytes[method] != ' ')
        return false;
    size_t end = method + 1;
    while (end < line.length && line.bytes[end] > ' ' && line.bytes[end] != 0x7f)
        end++;
    if (end == line.length)
        return !complete;
    out->method = (struct text){line.bytes, method};
    out->target = (struct text){line.bytes + method + 1, end - method - 1};
    struct text version = {line.bytes + end + 1, line.length - end - 1};
    if (line.bytes[end] != ' ' || out->target.length == 0)
        return false;
    if (!complete && version.length == VERSION_SIZE + 1 && version.bytes[VERSION_SIZE] == '\r')
        version.length--;
    if (!spells(version, "HTTP/1.0", VERSION_SIZE, complete))
        return false;
    if (complete)
        out->version = (struct text){version.bytes + 5, 3};
    return true;
}

/* HTTP-version SP status-code [ SP [ reason-phrase ] ] */
static bool status_line(struct text line, bool complete, int32_t *status)
{
    enum { SIZE = STATUS_AT + 3 };
    struct text head = {line.bytes, line.length < SIZE ? line.length : SIZE};
    if (!spells(head, "HTTP/1.0 000", SIZE, complete))
        return false;
    if (line.length > SIZE && line.bytes[SIZE] != ' ' && (complete || line.bytes[SIZE] != '\r'))
        return false;
    *status = 0;
    for (size_t i = STATUS_AT; i < head.length; i++)
        *status = *status * 10 + (head.bytes[i] - '0');
    return !complete || *status >= 100;
}

/* The start line, unless what is there of it cannot be one: noise is told from its first bytes on. */
static struct text start_line(struct cursor *in, enum sender sender)
{
    struct slice line = head_line(in);
    if (in->status == PARSE_NEED_MORE) {
        size_t left = cursor_left(in);
        struct text early = {in->at, left < EARLY_LOOK ? left : EARLY_LOOK};
        struct request_line request;
        int32_t status;
        bool may_be = sender == SENDER_CLIENT ? request_line(early, false, &request)
                                              : status_line(early, false, &status);
        if (!may_be)
            in->status = PARSE_INVALID;
        else
            has_empty_line(in); /* for `need` */
    }
    return text_of(in, line);
}

/* --- framing, RFC 9112, 6 --------------------------------------------------------------------------- */

struct framing {
    bool coded;          /* there is a Transfer-Encoding */
    bool chunked;        /* and chunked is the last coding of all */
    bool sized;          /* there is a Content-Length */
    bool sizes_conflict; /* or one that is no number */
    uint64_t size;
};

static void transfer_encoding(struct framing *f, struct text value)
{
    f->coded = true;
    do {
        struct text coding = text_trimmed(text_before(value, ',', &value));
        if (coding.length)
            f->chunked = text_is(coding, "chunked");
    } while (value.bytes != NULL);
}

/* 1*DIGIT, at most 2^63 - 1 */
static bool decimal_size(struct text t, uint64_t *size)
{
    *size = 0;
    for (size_t i = 0; i < t.length; i++) {
        uint64_t digit = (uint64_t)t.bytes[i] - '0';
        if (digit > 9 || *size > (INT64_MAX - digit) / 10)
            return false;
        *size = *size * 10 + digit;
    }
    return t.length > 0;
}

/* A list of equal numbers is that number (RFC 9110, 8.6). */
static void content_length(struct framing *f, struct text value)
{
    do {
        uint64_t size;
        struct text number = text_trimmed(text_before(value, ',', &value));
        if (!decimal_size(number, &size) || (f->sized && size != f->size))
            f->sizes_conflict = true;
        f->sized = true;
        f->size = size;
    } while (value.bytes != NULL);
}

/* Field lines up to and with the empty one. */
static void header(struct cursor *in, const struct parse_context *context, struct framing *framing,
                   struct http_fields *fields)
{
    const struct protocol_options *options = context->options;
    bool request = context->sender == SENDER_CLIENT;
    const char *const *names = request ? options->request_headers : options->response_headers;
    uint32_t count = request ? options->request_header_count : options->response_header_count;
    struct text name, value;
    memset(framing, 0, sizeof *framing);
    http_fields_clear(fields);
    while (field_line(in, context->sender, &name, &value)) {
        if (name.length == 14 && text_is(name, "content-length"))
            content_length(framing, value);
        else if (name.length == 17 && text_is(name, "transfer-encoding"))
            transfer_encoding(framing, value);
        if (request || count)
            http_field(fields, name, value, names, count);
    }
    if (in->status == PARSE_NEED_MORE)
        has_empty_line(in);
}

/* --- messages --------------------------------------------------------------------------------------- */

/* The body that `framing` announces; a message without any has none in a request, and in a response one
 * that ends with the connection. False: recipients would disagree on where it ends. */
static bool body(const struct framing *framing, enum sender sender, struct http1_state *state,
                 struct step *step)
{
    if (framing->chunked) {
        state->in_chunks = 1;
        step->whole = true;
        return true;
    }
    if (framing->coded ? sender == SENDER_CLIENT : framing->sizes_conflict)
        return false;
    step->ends = true;
    if (!framing->coded && framing->sized)
        step->skip = step->body = framing->size;
    else if (sender == SENDER_SERVER)
        step->skip = step->body = SKIP_TO_END;
    return true;
}

/* RFC 9112, 2.2: empty lines before a request line are passed over. They are a step of their own, for a
 * request starts at the time of its own first byte; and a lone one behind a body waits for nothing. */
static bool empty_lines(struct cursor *in)
{
    const uint8_t *start = in->at;
    for (;;) {
        size_t left = cursor_left(in);
        if (left >= 1 && in->at[0] == '\n')
            cursor_bytes(in, 1);
        else if (left >= 2 && in->at[0] == '\r' && in->at[1] == '\n')
            cursor_bytes(in, 2);
        else
            break;
    }
    return in->at > start;
}

static enum parse_status request(struct cursor *in, const struct parse_context *context,
                                 struct http1_state *state, struct step *step, struct builder *attributes)
{
    struct request_line line;
    struct http_request message;
    struct framing framing;
    struct http_fields fields;
    if (empty_lines(in))
        return PARSE_OK;
    if (cursor_left(in) == 1 && cursor_peek(in) == '\r') {
        cursor_bytes(in, 2);
        return in->status;
    }
    struct text text = start_line(in, SENDER_CLIENT);
    if (in->status != PARSE_OK)
        return in->status;
    if (still_incomplete(in))
        return PARSE_NEED_MORE;
    if (!request_line(text, true, &line))
        return PARSE_INVALID;
    message.method = line.method;
    message.version = line.version;
    enum http_hint hint = http_hint(line.method);
    if (hint == HTTP_HINT_CONNECT)
        message.url = (struct url){TEXT(""), line.target, TEXT(""), TEXT(""), false};
    else if (!url_split(line.target, &message.url))
        return PARSE_INVALID;
    header(in, context, &framing, &fields);
    if (in->status != PARSE_OK)
        return in->status;
    if (!body(&framing, SENDER_CLIENT, state, step))
        return PARSE_INVALID;
    step->begins = true;
    step->hint = hint;
    if (fields.traceparents == 1)
        http_traceparent(fields.traceparent, &step->context);
    if (step->context.valid && fields.tracestate.length)
        step->tracestate = (struct slice){(uint32_t)(fields.tracestate.bytes - in->start),
                                          (uint32_t)fields.tracestate.length};
    http_request_attributes(&message, &fields, context, attributes);
    return PARSE_OK;
}

static enum parse_status response(struct cursor *in, const struct parse_context *context,
                                  struct http1_state *state, struct step *step, struct builder *attributes)
{
    struct framing framing;
    struct http_fields fields;
    int32_t status;
    struct text text = start_line(in, SENDER_SERVER);
    if (in->status != PARSE_OK)
        return in->status;
    if (still_incomplete(in))
        return PARSE_NEED_MORE;
    if (!status_line(text, true, &status))
        return PARSE_INVALID;
    header(in, context, &framing, &fields);
    if (in->status != PARSE_OK)
        return in->status;
    bool tunnel = status == 101 || (context->hint == HTTP_HINT_CONNECT && status / 100 == 2);
    if (tunnel || context->hint == HTTP_HINT_HEAD || status / 100 == 1 || status == 204 || status == 304)
        step->ends = true; /* whatever the header says */
    else if (!body(&framing, SENDER_SERVER, state, step))
        return PARSE_INVALID;
    step->begins = true;
    step->status = status;
    step->failed = status >= 400;
    step->opaque = tunnel;
    step->interim = status / 100 == 1 && !tunnel;
    if (!step->interim)
        http_response_attributes(status, &fields, context, attributes);
    return PARSE_OK;
}

/* chunk-size [ chunk-ext ] CRLF; the data and its CRLF are passed over, not read. Behind size 0 come
 * the trailer fields and an empty line. */
static enum parse_status chunk(struct cursor *in, enum sender sender, struct http1_state *state,
                               struct step *step)
{
    struct slice line = cursor_line(in, CHUNK_LINE_MAX);
    struct text t = text_of(in, line), name, value;
    if (in->status == PARSE_NEED_MORE) /* may what is there become one? */
        t = (struct text){in->at, cursor_left(in)};
    uint64_t size = 0;
    size_t digits = 0;
    for (; digits < t.length; digits++) {
        uint8_t c = t.bytes[digits], letter = c | 0x20;
        if (!((c >= '0' && c <= '9') || (letter >= 'a' && letter <= 'f')))
            break;
        if (size > INT64_MAX >> 4)
            return PARSE_INVALID;
        size = size << 4 | (c <= '9' ? c - '0' : letter - 'a' + 10);
    }
    if (in->status == PARSE_NEED_MORE) {
        bool may_be = digits == t.length || (digits && memchr(" \t;\r", t.bytes[digits], 4) != NULL);
        return may_be ? PARSE_NEED_MORE : PARSE_INVALID;
    }
    struct text extension = text_trimmed((struct text){t.bytes + digits, t.length - digits});
    if (in->status != PARSE_OK || digits == 0 || (extension.length && extension.bytes[0] != ';'))
        return PARSE_INVALID;
    if (size > 0) {
        step->skip = size + 2;
        step->body = size;
        step->whole = true;
        return PARSE_OK;
    }
    if (still_incomplete(in))
        return PARSE_NEED_MORE;
    while (field_line(in, sender, &name, &value))
        ;
    if (in->status == PARSE_NEED_MORE)
        has_empty_line(in);
    if (in->status == PARSE_OK) {
        step->ends = true;
        state->in_chunks = 0;
    }
    return in->status;
}

static enum parse_status http1_parse(struct cursor *in, const struct parse_context *context, void *state,
                                     struct step *step, struct builder *attributes)
{
    struct http1_state *at = state;
    if (at->in_chunks)
        return chunk(in, context->sender, at, step);
    if (context->sender == SENDER_CLIENT)
        return request(in, context, at, step, attributes);
    return response(in, context, at, step, attributes);
}

/* --- finding a start again -------------------------------------------------------------------------- */

static bool is_method_byte(uint8_t c)
{
    return (c >= 'A' && c <= 'Z') || c == '-' || c == '_';
}

/* Does a line end at `at`, and a field line or an empty one follow, as far as the window tells?
 * A request line that is quoted in a body, a log or a page rarely stands so. */
static bool header_follows(const uint8_t *data, size_t length, size_t at)
{
    if (at < length && data[at] == '\r')
        at++;
    if (at < length && data[at] != '\n')
        return false;
    at++;
    if (at < length && (data[at] == '\r' || data[at] == '\n'))
        return true;
    while (at < length && token[data[at]])
        at++;
    return at >= length || data[at] == ':';
}

/* Start of the request line whose version is at `version`, or `length`. Upper-case methods only: that is
 * what all of them are, and what tells the method from the body it may follow without a line end. */
static size_t request_before(const uint8_t *data, size_t length, size_t from, size_t version)
{
    size_t space = version - 1, at = space;
    while (at > from && data[at - 1] > ' ' && data[at - 1] != 0x7f)
        at--;
    if (at == space || at <= from || data[at - 1] != ' ')
        return length;
    uint8_t first = data[at];
    size_t end = --at;
    while (at > from && end - at <= HTTP_METHOD_MAX && is_method_byte(data[at - 1]))
        at--;
    bool connect = end - at == 7 && memcmp(data + at, "CONNECT", 7) == 0;
    bool target = first == '/' || first == '*' || (first | 0x20) == 'h' || connect;
    return target && end - at >= 3 && end - at <= HTTP_METHOD_MAX ? at : length;
}

/* A complete start line anywhere; else the last line, if it may become one. */
static size_t http1_resync(const uint8_t *data, size_t length, size_t from, enum sender sender)
{
    for (size_t at = from; at < length; at++) {
        const uint8_t *h = memchr(data + at, 'H', length - at);
        if (h == NULL)
            break;
        at = (size_t)(h - data);
        struct text t = {h, length - at < VERSION_SIZE ? length - at : VERSION_SIZE};
        int32_t status;
        if (sender == SENDER_SERVER) {
            struct text line = {h, length - at < EARLY_LOOK ? length - at : EARLY_LOOK};
            const uint8_t *lf = memchr(h, '\n', line.length);
            if (status_line(line, false, &status) &&
                (lf == NULL || header_follows(data, length, (size_t)(lf - data))))
                return at;
        } else if (at > from && data[at - 1] == ' ' && spells(t, "HTTP/1.0", VERSION_SIZE, true) &&
                   header_follows(data, length, at + VERSION_SIZE)) {
            size_t start = request_before(data, length, from, at);
            if (start < length)
                return start;
        }
    }
    if (sender == SENDER_SERVER || from >= length)
        return length;
    size_t last = length;
    while (last > from && data[last - 1] != '\n')
        last--;
    struct text line = {data + last, length - last};
    struct request_line request;
    bool at_start = last == 0 || data[last - 1] == '\n';
    bool upper = line.length && is_method_byte(line.bytes[0]);
    return at_start && upper && request_line(line, false, &request) ? last : length;
}

const struct protocol http1_protocol = {
    .name = "http1",
    .pairing = PAIR_IN_ORDER,
    .parse = http1_parse,
    .resync = http1_resync,
    .finish = http_finish,
    .window_max = HEAD_MAX,
    .terminator = "\r\n0\r\n\r\n", /* last chunk, no trailers (RFC 9112, 7.1) */
};
