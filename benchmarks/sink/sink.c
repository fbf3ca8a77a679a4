// SPDX-License-Identifier: Apache-2.0
/* A counting OTLP/HTTP receiver: takes protobuf bodies, counts their spans or log records, and may keep them
 * in a file.
 *
 *   sink [--port P] [--record FILE]
 *
 *   POST /v1/traces /v1/metrics /v1/logs    200 and an empty body, which is a whole Export...Response
 *   GET  /stats                             the counts, as JSON
 *
 * It shares the machine with what is measured, so it does next to nothing: one thread, and for each
 * trace or log request a walk over three levels of length-delimited fields,
 *
 *   ExportTraceServiceRequest.resource_spans = 1 > ResourceSpans.scope_spans = 2 > ScopeSpans.spans = 2
 *   ExportLogsServiceRequest.resource_logs = 1 > ResourceLogs.scope_logs = 2 > ScopeLogs.log_records = 2
 *
 * (opentelemetry/proto/collector/trace/v1/trace_service.proto, opentelemetry/proto/trace/v1/trace.proto, and
 * the same of logs), that never looks inside a span or record. Bodies with Content-Encoding gzip are inflated first.
 *
 * --record appends to FILE, for each request, a `struct body_header` and the body as it came.
 * The first line on standard output is the port. SIGTERM ends it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#define HEAD_MAX (16 << 10)
#define BODY_MAX (64 << 20)     /* as received */
#define INFLATED_MAX (256 << 20) /* after gzip: a bound against a bomb */
#define CONNECTIONS_MAX 1024

enum signal_kind { TRACES = 1, METRICS = 2, LOGS = 3 };

/* Before each body in the file, in host byte order. time_ns: CLOCK_MONOTONIC when the body was whole. */
struct body_header {
    int64_t time_ns;
    uint32_t kind; /* enum signal_kind */
    uint32_t gzip;
    uint64_t size;
};
_Static_assert(sizeof(struct body_header) == 24, "read by benchmarks/sink/__init__.py");

struct connection {
    int fd;
    char *data; /* one request: head and body */
    size_t size, capacity;
};

static struct {
    uint64_t requests, trace_requests, metric_requests, log_requests, spans, log_records, bytes, refused;
    int64_t first_span_ns, last_span_ns;
} stats;

static struct connection connections[CONNECTIONS_MAX];
static int record_fd = -1;
static volatile sig_atomic_t ended;

static void on_signal(int number)
{
    (void)number;
    ended = 1;
}

static void die(const char *what, const char *value)
{
    fprintf(stderr, "sink: %s: %s\n", what, value);
    exit(2);
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static bool varint(const uint8_t **at, const uint8_t *end, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; shift < 64 && *at < end; shift += 7) {
        uint8_t byte = *(*at)++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return true;
    }
    return false;
}

/* Counts the messages found by following the field numbers of `path`, which ends with 0. */
static bool count_messages(const uint8_t *at, const uint8_t *end, const uint8_t *path, uint64_t *count)
{
    while (at < end) {
        uint64_t tag, value;
        if (!varint(&at, end, &tag))
            return false;
        switch (tag & 7) {
        case 0:
            if (!varint(&at, end, &value))
                return false;
            break;
        case 1:
        case 5: {
            size_t width = (tag & 7) == 1 ? 8 : 4;
            if ((size_t)(end - at) < width)
                return false;
            at += width;
            break;
        }
        case 2:
            if (!varint(&at, end, &value) || value > (uint64_t)(end - at))
                return false;
            if (tag >> 3 == path[0]) {
                if (path[1] == 0)
                    (*count)++;
                else if (!count_messages(at, at + value, path + 1, count))
                    return false;
            }
            at += value;
            break;
        default:
            return false;
        }
    }
    return true;
}

/* The inflated body in a buffer that the next call reuses, or NULL. */
static const uint8_t *inflated(const uint8_t *body, size_t size, size_t *out_size)
{
    static uint8_t *out;
    static size_t capacity;
    z_stream z = {.next_in = (Bytef *)(uintptr_t)body, .avail_in = (uInt)size};
    int status = Z_OK;

    if (inflateInit2(&z, 15 + 16) != Z_OK) /* 16: expect the gzip wrapper */
        return NULL;
    while (status == Z_OK) {
        if (z.total_out == capacity) {
            size_t larger = capacity ? capacity * 2 : 1 << 20;
            uint8_t *moved = larger > INFLATED_MAX ? NULL : realloc(out, larger);
            if (!moved)
                break;
            out = moved;
            capacity = larger;
        }
        z.next_out = out + z.total_out;
        z.avail_out = (uInt)(capacity - z.total_out);
        status = inflate(&z, Z_NO_FLUSH);
    }
    *out_size = z.total_out;
    inflateEnd(&z);
    return status == Z_STREAM_END ? out : NULL;
}

/* Counts and keeps one body; the HTTP status to answer. */
static int take_body(enum signal_kind kind, bool gzip, const uint8_t *body, size_t size)
{
    static const uint8_t rows_path[] = {1, 2, 2, 0};
    const uint8_t *plain = body;
    size_t plain_size = size;
    int64_t now = now_ns();
    uint64_t rows = 0;

    if (gzip && !(plain = inflated(body, size, &plain_size)))
        return 400;
    if (kind != METRICS && !count_messages(plain, plain + plain_size, rows_path, &rows))
        return 400;
    if (kind == TRACES) {
        stats.trace_requests++;
        stats.spans += rows;
        if (rows) {
            stats.first_span_ns = stats.first_span_ns ? stats.first_span_ns : now;
            stats.last_span_ns = now;
        }
    } else if (kind == METRICS)
        stats.metric_requests++;
    else {
        stats.log_requests++;
        stats.log_records += rows;
    }
    stats.requests++;
    stats.bytes += size;
    if (record_fd >= 0) {
        struct body_header header = {now, kind, gzip, size};
        struct iovec parts[] = {{&header, sizeof header}, {(void *)(uintptr_t)body, size}};
        if (writev(record_fd, parts, 2) != (ssize_t)(sizeof header + size))
            die("cannot write the record", strerror(errno));
    }
    return 200;
}

static bool answer(int fd, int status, const char *type, const char *body)
{
    char out[1024];
    const char *reason = status == 200 ? "OK" : "Refused";
    int n = snprintf(out, sizeof out, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n%s", status,
                     reason, type, strlen(body), body);
    return send(fd, out, (size_t)n, MSG_NOSIGNAL) == n;
}

static bool answer_stats(int fd)
{
    char body[600];
    snprintf(body, sizeof body,
             "{\"requests\": %llu, \"trace_requests\": %llu, \"metric_requests\": %llu, \"log_requests\": %llu, "
             "\"spans\": %llu, \"log_records\": %llu, \"bytes\": %llu, \"refused\": %llu, "
             "\"first_span_ns\": %lld, \"last_span_ns\": %lld}\n",
             (unsigned long long)stats.requests, (unsigned long long)stats.trace_requests,
             (unsigned long long)stats.metric_requests, (unsigned long long)stats.log_requests,
             (unsigned long long)stats.spans, (unsigned long long)stats.log_records,
             (unsigned long long)stats.bytes, (unsigned long long)stats.refused,
             (long long)stats.first_span_ns, (long long)stats.last_span_ns);
    return answer(fd, 200, "application/json", body);
}

/* Value of a header in the head (which ends with NUL), or NULL. */
static const char *header(const char *head, const char *name)
{
    size_t size = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, size) == 0 && line[size] == ':')
            return line + size + 1 + strspn(line + size + 1, " \t");
    }
    return NULL;
}

static bool refuse(int fd, int status, const char *why)
{
    stats.refused++;
    answer(fd, status, "text/plain", why);
    return false; /* what follows on this connection cannot be trusted */
}

/* Answers the first request in the buffer once it is whole. False: close the connection. */
static bool take_request(struct connection *c, bool *progress)
{
    char *end = memmem(c->data, c->size, "\r\n\r\n", 4);
    *progress = false;
    if (!end)
        return c->size < HEAD_MAX || refuse(c->fd, 431, "request head over 16 KiB\n");
    size_t head_size = (size_t)(end + 4 - c->data);
    char saved = end[2];
    end[2] = '\0'; /* keeps the line end of the last header, so that header() finds every line */

    const char *length = header(c->data, "content-length"), *encoding = header(c->data, "content-encoding");
    const char *type = header(c->data, "content-type"), *expect = header(c->data, "expect");
    unsigned long long body_size = length ? strtoull(length, NULL, 10) : 0;
    bool gzip = encoding && strncasecmp(encoding, "gzip", 4) == 0;
    bool protobuf = type && strncasecmp(type, "application/x-protobuf", 22) == 0;
    bool closing = header(c->data, "connection") && strncasecmp(header(c->data, "connection"), "close", 5) == 0;
    enum signal_kind kind = !strncmp(c->data, "POST /v1/traces ", 16)    ? TRACES
                            : !strncmp(c->data, "POST /v1/metrics ", 17) ? METRICS
                            : !strncmp(c->data, "POST /v1/logs ", 14)    ? LOGS
                                                                         : 0;
    bool is_stats = strncmp(c->data, "GET /stats ", 11) == 0, chunked = header(c->data, "transfer-encoding") != NULL;
    bool waits = expect && strncasecmp(expect, "100-continue", 12) == 0;
    end[2] = saved;

    if (is_stats) {
        if (!answer_stats(c->fd))
            return false;
    } else if (!kind)
        return refuse(c->fd, 404, "POST /v1/traces, /v1/metrics, /v1/logs or GET /stats\n");
    else if (chunked || !length)
        return refuse(c->fd, 411, "a Content-Length is needed\n");
    else if (!protobuf)
        return refuse(c->fd, 415, "only application/x-protobuf is counted\n");
    else if (body_size > BODY_MAX)
        return refuse(c->fd, 413, "body over 64 MiB\n");
    else {
        if (c->size < head_size + body_size) {
            if (waits && c->size == head_size)
                return send(c->fd, "HTTP/1.1 100 Continue\r\n\r\n", 25, MSG_NOSIGNAL) == 25;
            return true;
        }
        int status = take_body(kind, gzip, (const uint8_t *)c->data + head_size, (size_t)body_size);
        if (status != 200)
            return refuse(c->fd, status, "not a whole protobuf message\n");
        if (!answer(c->fd, 200, "application/x-protobuf", ""))
            return false;
    }
    size_t used = head_size + (is_stats ? 0 : (size_t)body_size);
    memmove(c->data, c->data + used, c->size - used);
    c->size -= used;
    *progress = true;
    return !closing;
}

static bool read_some(struct connection *c)
{
    if (c->capacity - c->size < 64 << 10) {
        size_t larger = c->capacity ? c->capacity * 2 : 256 << 10;
        char *moved = realloc(c->data, larger);
        if (!moved)
            return false;
        c->data = moved;
        c->capacity = larger;
    }
    ssize_t n = recv(c->fd, c->data + c->size, c->capacity - c->size, 0);
    if (n <= 0)
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    c->size += (size_t)n;
    for (bool progress = true; progress && c->size;)
        if (!take_request(c, &progress))
            return false;
    return true;
}

static void close_connection(struct connection *c)
{
    close(c->fd);
    free(c->data);
    *c = (struct connection){.fd = -1};
}

static void accept_one(int epoll_fd, int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
    if (fd < 0)
        return;
    for (uint32_t i = 0; i < CONNECTIONS_MAX; i++)
        if (connections[i].fd < 0) {
            struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            connections[i] = (struct connection){.fd = fd};
            epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
            return;
        }
    close(fd); /* at the cap */
}

static int listen_on(int port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 128) != 0)
        die("cannot listen on 127.0.0.1", strerror(errno));
    getsockname(fd, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv)
{
    static const struct option names[] = {{"port", 1, 0, 'p'}, {"record", 1, 0, 'r'}, {0, 0, 0, 0}};
    struct sigaction end = {.sa_handler = on_signal};
    int port = 0;

    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;)
        switch (c) {
        case 'p':
            port = atoi(optarg);
            break;
        case 'r':
            record_fd = open(optarg, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
            if (record_fd < 0)
                die("cannot open", optarg);
            break;
        default:
            die("usage", "sink [--port P] [--record FILE]");
        }
    sigaction(SIGTERM, &end, NULL);
    sigaction(SIGINT, &end, NULL);
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        connections[i].fd = -1;
    int listener = listen_on(port), epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = UINT32_MAX}, events[64];
    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event) != 0)
        die("epoll", strerror(errno));
    while (!ended) {
        int n = epoll_wait(epoll_fd, events, 64, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.u32 == UINT32_MAX)
                accept_one(epoll_fd, listener);
            else if (!read_some(&connections[events[i].data.u32]))
                close_connection(&connections[events[i].data.u32]);
        }
    }
    return 0;
}
