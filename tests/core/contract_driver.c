/* SPDX-License-Identifier: Apache-2.0 */
/* Runs parsers and their helpers over byte strings: jobs on stdin, one JSON line each on stdout.
 *
 *   job   uint32_t size, uint8_t command, fields little-endian (class Driver in tests/contract.py)
 *
 * Built with sanitizers by tests/contract.py; every window lies against a page that cannot be read.
 * `python -m tests.contract` builds it without sanitizers and prints nanoseconds per parse and per route. */
#include "checked.h"
#include "protocols.h"
#include "statements.h"
#include <inttypes.h>
#include <time.h>

#define PROTOCOL_EXTERN(identifier, name, database) extern const struct protocol name##_protocol;
PROTOCOLS(PROTOCOL_EXTERN)
#define PROTOCOL_POINTER(identifier, name, database) &name##_protocol,
static const struct protocol *const protocols[] = {PROTOCOLS(PROTOCOL_POINTER)};

#define ATTRIBUTE_NAME(identifier, key, metric) key,
static const char *const names[] = {"", ATTRIBUTES(ATTRIBUTE_NAME)};

static struct protocol_options options;
static struct statement_cache *statements;

/* --- reading jobs ----------------------------------------------------------------------------------- */

struct job {
    const uint8_t *at, *end;
};

static const uint8_t *take(struct job *job, size_t n)
{
    const uint8_t *at = job->at;
    CHECK((size_t)(job->end - job->at) >= n);
    job->at += n;
    return at;
}

static uint64_t number(struct job *job, size_t size)
{
    uint64_t n = 0;
    memcpy(&n, take(job, size), size);
    return n;
}

static const char *const *string_list(struct job *job, uint32_t *count)
{
    *count = (uint32_t)number(job, 4);
    const char **list = calloc(*count + 1, sizeof *list);
    for (uint32_t i = 0; i < *count; i++) {
        size_t size = number(job, 4);
        list[i] = strndup((const char *)take(job, size), size);
    }
    return list;
}

/* --- writing answers -------------------------------------------------------------------------------- */

static void print_text(const uint8_t *text, size_t length)
{
    putchar('"');
    for (size_t i = 0; i < length; i++) {
        if (text[i] == '"' || text[i] == '\\')
            putchar('\\');
        putchar(text[i]);
    }
    putchar('"');
}

static void print_hex(const uint8_t *bytes, size_t length)
{
    putchar('"');
    for (size_t i = 0; i < length; i++)
        printf("%02x", bytes[i]);
    putchar('"');
}

static void print_key(unsigned key)
{
    if (key < KEY_COUNT)
        printf("\"%s\": ", names[key]);
    else if (key < KEY_CAPTURED + options.request_header_count)
        printf("\"http.request.header.%s\": ", options.request_headers[key - KEY_CAPTURED]);
    else
        printf("\"http.response.header.%s\": ",
               options.response_headers[key - KEY_CAPTURED - options.request_header_count]);
}

static void print_list(const struct builder *b)
{
    check_list(b);
    putchar('{');
    for (uint32_t at = 0; at < b->size;) {
        struct attribute a;
        int64_t value;
        memcpy(&a, b->data + at, sizeof a);
        const uint8_t *bytes = b->data + at + sizeof a;
        printf(at ? ", " : "");
        print_key(a.key);
        if (a.type == ATTRIBUTE_TEXT) {
            print_text(bytes, a.size);
        } else if (a.type == ATTRIBUTE_INT) {
            memcpy(&value, bytes, sizeof value);
            printf("%" PRId64, value);
        } else {
            putchar('[');
            for (uint32_t k = 0, size; k < a.size; k += size) {
                memcpy(&size, bytes + k, sizeof size);
                printf(k ? ", " : "");
                k += (uint32_t)sizeof size;
                print_text(bytes + k, size);
            }
            putchar(']');
        }
        at += (uint32_t)sizeof a + ((a.size + 7) & ~7u);
    }
    putchar('}');
}

/* --- streams ---------------------------------------------------------------------------------------- */

struct setting {
    const struct protocol *protocol;
    struct parse_context context;
    bool use_seen;
};

static struct setting setting(struct job *job)
{
    struct setting s = {.context = {.options = &options}};
    uint64_t protocol = number(job, 1);
    CHECK(protocol < sizeof protocols / sizeof protocols[0]);
    s.protocol = protocols[protocol];
    s.context.sender = (enum sender)number(job, 1);
    s.context.kind = (enum span_kind)number(job, 1);
    s.use_seen = number(job, 1);
    s.context.from_start = true;
    s.context.statements = statements;
    s.context.session = s.protocol->session_size ? calloc(1, s.protocol->session_size) : NULL;
    s.context.local_port = (uint16_t)number(job, 2);
    s.context.remote_port = (uint16_t)number(job, 2);
    s.context.local_address = take(job, 16);
    s.context.remote_address = take(job, 16);
    return s;
}

static void setting_free(struct setting *s)
{
    if (s->protocol->session_end)
        s->protocol->session_end(s->context.session, statements);
    free(s->context.session);
}

static struct builder *list(void)
{
    static uint64_t data[LIST_CAPACITY / 8];
    static struct builder b;
    b = (struct builder){.data = (uint8_t *)data, .capacity = LIST_CAPACITY};
    return &b;
}

static void print_step(const struct step *step, const uint8_t *window, size_t length, size_t consumed,
                       const struct builder *b)
{
    printf("{\"consumed\": %zu, \"window\": %zu, \"begins\": %d, \"ends\": %d, \"interim\": %d, "
           "\"opaque\": %d, \"whole\": %d, \"failed\": %d, \"skip\": %" PRIu64 ", \"body\": %" PRIu64
           ", \"hint\": %u, \"status\": %d, ",
           consumed, length, step->begins, step->ends, step->interim, step->opaque, step->whole, step->failed,
           step->skip, step->body, step->hint, step->status);
    printf("\"encrypted\": %d, \"silent\": %d, \"unanswered\": %d, \"voids\": %d, \"answers\": %u, "
           "\"traits\": %u, \"transaction\": %u, \"compression\": %u, \"shape\": %" PRIu64 ", \"exact\": %" PRIu64 ", ",
           step->encrypted, step->silent, step->unanswered, step->voids, step->answers, step->traits,
           step->transaction, step->compression, step->shape, step->exact);
    printf("\"trace_id\": ");
    print_hex(step->context.trace_id, step->context.valid ? 16 : 0);
    printf(", \"parent_id\": ");
    print_hex(step->context.span_id, step->context.valid ? 8 : 0);
    printf(", \"flags\": %d, \"tracestate\": ", step->context.flags);
    print_hex(window + step->tracestate.offset, step->tracestate.length);
    printf(", \"attributes\": ");
    print_list(b);
    putchar('}');
}

/* What the engine does with a stream that arrives in pieces of the given sizes: a window grows until a
 * step is read, then moves on over what was read and what may be passed over. */
static void stream(struct setting *s, uint64_t state[STREAM_STATE_SIZE / 8], const uint32_t *hints,
                   uint32_t hint_count, const uint32_t *pieces, uint32_t piece_count, const uint8_t *data,
                   size_t length, bool print)
{
    size_t at = 0, seen = 0, arrived = 0, calls = 0, needed = 0;
    uint64_t skip = 0;
    uint32_t answered = 0, piece = 0, steps = 0;
    bool within = false;
    const char *end = "need";
    for (;;) {
        size_t passed = skip < arrived - at ? (size_t)skip : arrived - at;
        at += passed;
        skip -= skip == SKIP_TO_END ? 0 : passed;
        enum parse_status status = PARSE_NEED_MORE;
        if (skip == 0 && at < arrived) {
            size_t window_length = arrived - at;
            uint8_t *window = guarded(data + at, window_length, calls++ % 2);
            struct cursor in = cursor_over(window, window_length);
            struct builder *b = list();
            struct step step;
            in.seen = s->use_seen ? seen : 0;
            s->context.hint = answered < hint_count ? hints[answered] : 0;
            s->context.within = within;
            status = checked_parse(s->protocol, &in, &s->context, state, &step, b);
            needed = in.need > needed ? in.need : needed;
            if (status == PARSE_OK) {
                CHECK(needed <= window_length); /* what was needed is the least */
                needed = 0;
                size_t consumed = (size_t)(in.at - in.start);
                if (print) {
                    printf(steps ? ", " : "");
                    print_step(&step, window, window_length, consumed, b);
                }
                steps++;
                if (!step.interim) { /* a hint is of the oldest request until its answer is complete */
                    answered += (step.begins && within) + step.ends;
                    within = (step.begins || within) && !step.ends;
                }
                at += consumed;
                skip = step.skip;
                seen = 0;
                if (step.opaque || step.encrypted) {
                    end = "opaque";
                    break;
                }
                continue;
            }
            seen = window_length;
            if (status == PARSE_INVALID) {
                end = "invalid";
                break;
            }
        }
        if (piece == piece_count)
            break;
        arrived += pieces[piece++];
        CHECK(arrived <= length);
    }
    if (skip == SKIP_TO_END)
        end = "until close";
    else if (strcmp(end, "need") == 0 && at == arrived && skip == 0)
        end = "between";
    if (print)
        printf("], \"end\": \"%s\", \"left\": %zu}\n", end, length - at);
}

static void stream_job(struct job *job)
{
    struct setting s = setting(job);
    uint32_t hint_count = (uint32_t)number(job, 4);
    uint32_t *hints = calloc(hint_count + 1, 4);
    memcpy(hints, take(job, 4 * hint_count), 4 * hint_count);
    uint32_t piece_count = (uint32_t)number(job, 4);
    uint32_t *pieces = calloc(piece_count + 1, 4);
    memcpy(pieces, take(job, 4 * piece_count), 4 * piece_count);
    uint64_t states[2][STREAM_STATE_SIZE / 8] = {0};
    enum sender sender = s.context.sender;
    for (uint64_t before = number(job, 4); before; before--) { /* what both sides had said */
        s.context.sender = (enum sender)number(job, 1);
        uint32_t hint = (uint32_t)number(job, 4), size = (uint32_t)number(job, 4);
        stream(&s, states[s.context.sender], &hint, 1, &size, 1, take(job, size), size, false);
    }
    s.context.sender = sender;
    printf("{\"steps\": [");
    stream(&s, states[sender], hints, hint_count, pieces, piece_count, job->at, (size_t)(job->end - job->at), true);
    setting_free(&s);
    free(hints);
    free(pieces);
}

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Copies of the input with a few bytes changed, taken out or put in, cut at random places: nothing but
 * that the checks hold and that it ends. */
static void garbage_job(struct job *job)
{
    struct setting s = setting(job);
    uint64_t seed = number(job, 8) * 2 + 1;
    uint32_t rounds = (uint32_t)number(job, 4);
    size_t length = (size_t)(job->end - job->at);
    uint8_t *data = malloc(2 * length + 64);
    static const char spice[] = "\r\n \t:;,=/?#@[]0129afAFHGPT\xff\x80";
    for (uint32_t round = 0; round < rounds; round++) {
        size_t size = length;
        memcpy(data, job->at, length);
        for (uint64_t n = random_next(&seed) % 6; n && size; n--) {
            size_t at = random_next(&seed) % size, count = 1 + random_next(&seed) % 8;
            switch (random_next(&seed) % 4) {
            case 0:
                data[at] = (uint8_t)random_next(&seed);
                break;
            case 1:
                data[at] = (uint8_t)spice[random_next(&seed) % (sizeof spice - 1)];
                break;
            case 2:
                count = count < size - at ? count : size - at;
                memmove(data + at, data + at + count, size - at - count);
                size -= count;
                break;
            default:
                memmove(data + at + count, data + at, size - at);
                memset(data + at, spice[random_next(&seed) % (sizeof spice - 1)], count);
                size += count;
            }
        }
        uint32_t hint = (uint32_t)(random_next(&seed) % 4), pieces[4], count = 0;
        for (size_t left = size; left; left -= pieces[count - 1])
            pieces[count] = count == 3 ? (uint32_t)left : (uint32_t)(1 + random_next(&seed) % left), count++;
        s.use_seen = random_next(&seed) % 2;
        s.context.kind = random_next(&seed) % 2 ? KIND_SERVER : KIND_CLIENT;
        uint64_t state[STREAM_STATE_SIZE / 8] = {0};
        stream(&s, state, &hint, 1, pieces, count, data, size, false);
        size_t from = size ? random_next(&seed) % size : 0;
        uint8_t *window = guarded(data, size, round % 2);
        size_t start = s.protocol->resync(window, size, from, s.context.sender);
        CHECK(start >= from && start <= size);
        if (s.protocol->resync_end)
            CHECK(s.protocol->resync_end(window, size) <= size);
    }
    free(data);
    setting_free(&s);
    printf("{\"rounds\": %u}\n", rounds);
}

static void resync_job(struct job *job)
{
    struct setting s = setting(job);
    size_t from = number(job, 4), length = (size_t)(job->end - job->at);
    const uint8_t *window = guarded(job->at, length, false);
    printf("{\"start\": %zu}\n", s.protocol->resync(window, length, from, s.context.sender));
    setting_free(&s);
}

/* Request and response (may be empty) are parsed, then finished. */
static void finish_job(struct job *job)
{
    struct setting s = setting(job);
    struct exchange exchange = {.kind = s.context.kind, .options = &options};
    exchange.routes = routes_new(options.routes_max);
    exchange.outcome = (enum outcome)number(job, 1);
    exchange.request_body = (int64_t)number(job, 8);
    exchange.response_body = (int64_t)number(job, 8);
    size_t sizes[2] = {number(job, 4), number(job, 4)};
    static uint64_t data[LIST_CAPACITY / 8];
    struct builder all = {.data = (uint8_t *)data, .capacity = LIST_CAPACITY};
    for (int i = 0; i < 2; i++) {
        uint64_t state[STREAM_STATE_SIZE / 8] = {0};
        struct builder *b = list();
        struct step step;
        struct cursor in = cursor_over(guarded(take(job, sizes[i]), sizes[i], false), sizes[i]);
        s.context.sender = i ? SENDER_SERVER : SENDER_CLIENT;
        if (sizes[i] == 0)
            continue;
        CHECK(checked_parse(s.protocol, &in, &s.context, state, &step, b) == PARSE_OK);
        memcpy(all.data + all.size, b->data, b->size);
        all.size += b->size;
        if (i == 0)
            exchange.hint = s.context.hint = step.hint;
        else
            exchange.responded = true, exchange.status = step.status, exchange.failed = step.failed;
    }
    exchange.attributes = all.data;
    exchange.attributes_size = all.size;
    struct finished out = {.value_metric = METRIC_COUNT};
    struct builder *b = list();
    s.protocol->finish(&exchange, &out, b);
    CHECK(out.name_size <= sizeof out.name);
    printf("{\"name\": ");
    print_text((const uint8_t *)out.name, out.name_size);
    printf(", \"status\": %d, \"metric\": %d, \"value_metric\": %d, \"value\": %g, \"attributes\": ", out.status,
           out.metric, out.value_metric, out.value);
    memcpy(all.data + all.size, b->data, b->size);
    all.size += b->size;
    print_list(&all);
    printf("}\n");
    setting_free(&s);
    routes_free(exchange.routes);
}

/* --- helpers ---------------------------------------------------------------------------------------- */

static void text_job(struct job *job)
{
    size_t max = number(job, 4), length = (size_t)(job->end - job->at);
    char *out = malloc(max);
    size_t size = text_clean(out, max, guarded(job->at, length, false), length);
    CHECK(size <= max && utf8_without_controls((uint8_t *)out, size, false));
    printf("{\"text\": ");
    print_text((uint8_t *)out, size);
    printf("}\n");
    free(out);
}

static void address_job(struct job *job)
{
    char *out = malloc(46);
    size_t size = address_text(out, take(job, 16));
    printf("{\"text\": ");
    print_text((uint8_t *)out, size);
    printf("}\n");
    free(out);
}

/* Appends into a list of exactly `capacity` bytes: kind (t, s, i), key, limit, bytes. */
static void builder_job(struct job *job)
{
    uint32_t capacity = (uint32_t)number(job, 4);
    struct builder b = {.data = malloc(capacity), .capacity = capacity};
    memset(b.data, 0xaa, capacity);
    while (job->at < job->end) {
        uint8_t kind = *take(job, 1);
        unsigned key = (unsigned)number(job, 2);
        size_t limit = number(job, 4), size = number(job, 4);
        const uint8_t *bytes = take(job, size);
        int64_t value;
        if (kind == 't') {
            builder_text(&b, key, bytes, size, limit);
        } else if (kind == 's') {
            builder_texts(&b, key, bytes, size, limit);
        } else {
            memcpy(&value, bytes, sizeof value);
            builder_int(&b, key, value);
        }
        check_list(&b);
    }
    printf("{\"size\": %u, \"left_out\": %u, \"attributes\": ", b.size, b.left_out);
    print_list(&b);
    printf("}\n");
    free(b.data);
}

static void line_job(struct job *job)
{
    size_t limit = number(job, 4), length = (size_t)(job->end - job->at);
    struct cursor in = cursor_over(guarded(job->at, length, false), length);
    struct slice line = cursor_line(&in, limit);
    printf("{\"status\": %d, \"need\": %zu, \"at\": %zu, \"line\": ", in.status, in.need,
           (size_t)(in.at - in.start));
    print_hex(slice_bytes(&in, line), line.length);
    printf("}\n");
}

static void routes_job(struct job *job)
{
    struct routes *routes = routes_new((uint32_t)number(job, 4));
    uint32_t max = (uint32_t)number(job, 4);
    char *out = malloc(max);
    for (bool first = true; job->at < job->end; first = false) {
        size_t size = number(job, 4);
        uint8_t *path = guarded(take(job, size), size, false);
        uint32_t length = routes_match(routes, (char *)path, (uint32_t)size, out, max);
        CHECK(length <= max);
        printf(first ? "[" : ", ");
        print_text((uint8_t *)out, length);
    }
    printf("]\n");
    free(out);
    routes_free(routes);
}

static void options_job(struct job *job)
{
    options.route_heuristic = (uint8_t)number(job, 1);
    options.routes_max = (uint32_t)number(job, 4);
    options.redact_keys = string_list(job, &options.redact_count);
    options.methods = string_list(job, &options.method_count);
    options.request_headers = string_list(job, &options.request_header_count);
    options.response_headers = string_list(job, &options.response_header_count);
    printf("{}\n");
}

/* --- bench ------------------------------------------------------------------------------------------ */

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* The least of several runs: the one that was disturbed least. */
#define NANOSECONDS(label, expression)                                                                 \
    do {                                                                                               \
        double best = 1e18;                                                                            \
        for (int run = 0; run < 15; run++) {                                                           \
            double start = now_ns();                                                                   \
            for (int i = 0; i < 20000; i++)                                                            \
                expression;                                                                            \
            double ns = (now_ns() - start) / 20000;                                                    \
            best = ns < best ? ns : best;                                                              \
        }                                                                                              \
        printf("%-44s %7.1f ns\n", label, best);                                                       \
    } while (0)

static void parse_once(struct parse_context *context, const char *message, size_t length)
{
    static uint64_t data[LIST_CAPACITY / 8];
    uint64_t state[STREAM_STATE_SIZE / 8] = {0};
    struct builder b = {.data = (uint8_t *)data, .capacity = LIST_CAPACITY};
    struct step step = {0};
    struct cursor in = cursor_over((const uint8_t *)message, length);
    CHECK(protocols[0]->parse(&in, context, state, &step, &b) == PARSE_OK);
}

/* A head of 64 KiB that comes byte by byte, the way the engine parses it. */
static void trickle(struct parse_context *context, bool use_seen)
{
    static uint64_t data[LIST_CAPACITY / 8];
    static char head[65536];
    double start = now_ns();
    memset(head, 'x', sizeof head);
    memcpy(head, "GET / HTTP/1.1\r\n", 16);
    for (size_t at = 16; at + 80 < sizeof head; at += 80)
        memcpy(head + at, "\r\nName: ", 8);
    memcpy(head + sizeof head - 4, "\r\n\r\n", 4);
    memcpy(head + 16, "Name: ", 6);
    enum parse_status status = PARSE_NEED_MORE;
    size_t length = 1;
    for (; status == PARSE_NEED_MORE && length <= sizeof head; length++) {
        uint64_t state[STREAM_STATE_SIZE / 8] = {0};
        struct builder b = {.data = (uint8_t *)data, .capacity = LIST_CAPACITY};
        struct step step = {0};
        struct cursor in = cursor_over((const uint8_t *)head, length);
        in.seen = use_seen ? length - 1 : 0;
        status = protocols[0]->parse(&in, context, state, &step, &b);
    }
    CHECK(status == PARSE_OK && length == sizeof head + 1);
    printf("64 KiB byte by byte, %-23s %7.1f ns per byte\n", use_seen ? "" : "without cursor.seen",
           (now_ns() - start) / sizeof head);
}

/* All that is in a window, the way the engine reads it: nanoseconds per step. */
static void window(const char *label, const struct protocol *protocol, enum sender sender, const char *message,
                   size_t count, uint32_t hint)
{
    static uint64_t data[LIST_CAPACITY / 8], session[128];
    static char bytes[65536];
    static const uint8_t peer[16] = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1};
    struct parse_context context = {.sender = sender, .kind = KIND_CLIENT, .local_address = peer,
                                    .remote_address = peer, .remote_port = 6379, .options = &options,
                                    .from_start = true, .hint = hint, .session = session};
    size_t size = strlen(message), steps = 0;
    CHECK(size * count <= sizeof bytes && protocol->session_size <= sizeof session);
    for (size_t i = 0; i < count; i++)
        memcpy(bytes + i * size, message, size);
    double best = 1e18;
    for (int run = 0; run < 200; run++) {
        uint64_t state[STREAM_STATE_SIZE / 8] = {0};
        double start = now_ns();
        steps = 0;
        for (size_t at = 0; at < size * count; steps++) {
            struct builder b = {.data = (uint8_t *)data, .capacity = LIST_CAPACITY};
            struct step step = {0};
            struct cursor in = cursor_over((const uint8_t *)bytes + at, size * count - at);
            CHECK(protocol->parse(&in, &context, state, &step, &b) == PARSE_OK);
            at += (size_t)(in.at - in.start) + step.skip;
        }
        double ns = (now_ns() - start) / (double)steps;
        best = ns < best ? ns : best;
    }
    CHECK(steps == count);
    printf("%-44s %7.1f ns\n", label, best);
}

static int bench(void)
{
    static const char *const methods[] = {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS",
                                          "PATCH", "POST", "PUT", "QUERY", "TRACE"};
    static const char *const secrets[] = {"X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token",
                                          "AWSAccessKeyId", "Signature", "sig", "X-Goog-Signature"};
    static const uint8_t peer[16] = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1};
    options = (struct protocol_options){.route_heuristic = 1, .routes_max = 500, .redact_count = 7,
                                        .redact_keys = secrets, .method_count = 10, .methods = methods};
    struct parse_context context = {.sender = SENDER_CLIENT, .kind = KIND_SERVER, .local_address = peer,
                                    .remote_address = peer, .local_port = 80, .remote_port = 41234,
                                    .options = &options};
    char *curl = "GET /users/42?verbose=1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: curl/7.88.1\r\n"
                 "Accept: */*\r\n\r\n";
    static char browser[8192];
    size_t cookie = 0;
    strcpy(browser, "GET /shop/items/1234/reviews?page=2&sort=newest HTTP/1.1\r\nHost: www.example.com\r\n"
                    "Connection: keep-alive\r\nCache-Control: max-age=0\r\nUpgrade-Insecure-Requests: 1\r\n"
                    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
                    "Chrome/129.0.0.0 Safari/537.36\r\nAccept: text/html,application/xhtml+xml\r\n"
                    "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n"
                    "Referer: https://www.example.com/shop\r\nAccept-Encoding: gzip, deflate, br\r\n"
                    "Accept-Language: en-GB,en;q=0.9\r\n"
                    "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nCookie: ");
    for (cookie = strlen(browser); cookie < 3000; cookie++)
        browser[cookie] = "abcdefghij=klmnop; "[cookie % 19];
    strcpy(browser + cookie, "\r\n\r\n");
    char *answer = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sat, 21 Nov 2026 10:00:00 GMT\r\n"
                   "Content-Type: text/html\r\nContent-Length: 615\r\nConnection: keep-alive\r\n\r\n";
    NANOSECONDS("request as curl sends it, server", parse_once(&context, curl, strlen(curl)));
    NANOSECONDS("request with 2 KiB of cookies, server", parse_once(&context, browser, strlen(browser)));
    trickle(&context, true);
    trickle(&context, false);
    context.kind = KIND_CLIENT;
    NANOSECONDS("request as curl sends it, client", parse_once(&context, curl, strlen(curl)));
    context.sender = SENDER_SERVER;
    NANOSECONDS("response of nginx", parse_once(&context, answer, strlen(answer)));
    struct routes *routes = routes_new(500);
    char out[256];
    NANOSECONDS("route of /users/42", routes_match(routes, "/users/42", 9, out, sizeof out));
    char *path = "/api/v2/accounts/5e9f8f8f-8f8f-4c8f-8f8f-8f8f8f8f8f8f/orders/10042/items";
    NANOSECONDS("route of 76 bytes with a UUID and an id",
                routes_match(routes, path, (uint32_t)strlen(path), out, sizeof out));
    routes_free(routes);
    options.query_text = QUERY_TEXT_PARAMETERIZED;
    window("PING in a pipeline of 1000", &redis_protocol, SENDER_CLIENT, "*1\r\n$4\r\nPING\r\n", 1000, 0);
    window("SET in a pipeline of 1000", &redis_protocol, SENDER_CLIENT,
           "*3\r\n$3\r\nSET\r\n$8\r\nuser:123\r\n$5\r\nvalue\r\n", 1000, 0);
    window("OK to a pipeline of 1000", &redis_protocol, SENDER_SERVER, "+OK\r\n", 1000, 1);
    options.query_text = QUERY_TEXT_OFF;
    window("SET in a pipeline of 1000, without text", &redis_protocol, SENDER_CLIENT,
           "*3\r\n$3\r\nSET\r\n$8\r\nuser:123\r\n$5\r\nvalue\r\n", 1000, 0);
    return 0;
}

int main(int argc, char **argv)
{
    uint32_t size;
    if (argc > 1 && strcmp(argv[1], "bench") == 0)
        return bench();
    options.query_text = QUERY_TEXT_PARAMETERIZED;
    statements = statements_new(1 << 20, (uint64_t[2]){1, 2});
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        uint8_t *bytes = malloc(size);
        CHECK(fread(bytes, 1, size, stdin) == size && size > 0);
        struct job job = {bytes + 1, bytes + size};
        switch (bytes[0]) {
        case 'O': options_job(&job); break;
        case 'S': stream_job(&job); break;
        case 'G': garbage_job(&job); break;
        case 'R': resync_job(&job); break;
        case 'F': finish_job(&job); break;
        case 'T': text_job(&job); break;
        case 'A': address_job(&job); break;
        case 'B': builder_job(&job); break;
        case 'L': line_job(&job); break;
        case 'M': routes_job(&job); break;
        default: CHECK(!"a command");
        }
        free(bytes);
        fflush(stdout);
    }
    return 0;
}
