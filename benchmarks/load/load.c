// SPDX-License-Identifier: Apache-2.0
/* An open-loop HTTP/1.1 load generator: requests leave on a fixed schedule, whatever the server does.
 *
 *   load --port P --rate 10000 --seconds 10 --connections 50 [--pipeline N] [--close] [--records FILE]
 *
 * Request k is due at start + k / rate. Its latency runs from that moment, not from the moment it was
 * sent, so a server that stalls is charged for the requests that had to wait (no coordinated
 * omission). When every connection is busy the requests that are due wait, and count as late. With
 * --rate 0 the loop is closed: each connection sends again as soon as it has its answer.
 *
 * Each request has its own target, PREFIX followed by 16 hexadecimal digits, so that what a tracer
 * saw can be compared with what was asked, one by one. --records writes one `struct record` per request.
 *
 * With --pipeline N a connection sends N requests in one write and waits for N answers; the rate
 * still counts requests. With --close every request has its own connection.
 *
 * One thread, epoll, no allocation after the start in the open loop. Loopback only, by intent: the
 * address is fixed. The result is one JSON object on standard output.
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
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL
#define CONNECTIONS_MAX 20000
#define PIPELINE_MAX 256
#define REQUESTS_MAX (64 << 20) /* records of 40 bytes: 2.5 GiB at most */
#define EXTRA_MAX 4096          /* bytes of --header lines */
#define LINE_MAX_BYTES 256      /* of a header line; the rest of a longer line is not looked at */
#define LATE_NS 1000000         /* a request that leaves more than 1 ms after its time is late */

/* What --records holds, in host byte order. Times are CLOCK_MONOTONIC; done_ns is 0 without an answer. */
struct record {
    uint64_t id;
    int64_t intended_ns, sent_ns, done_ns;
    uint32_t status, connection;
};
_Static_assert(sizeof(struct record) == 40, "read by benchmarks/load/__init__.py");

enum parse_state { STATUS_LINE, HEADER_LINE, BODY, UNTIL_CLOSE, CHUNK_SIZE, CHUNK_DATA, TRAILER };

struct connection {
    int fd;
    bool closing;         /* the answer said Connection: close */
    uint32_t first, left; /* records of the batch under way: the next to be answered, how many are left */
    uint32_t out_at, out_size;
    char *out;            /* one batch of requests, until all of it is written */
    enum parse_state state;
    uint32_t line_size;
    char line[LINE_MAX_BYTES];
    uint32_t status;
    bool chunked, has_length;
    uint64_t body_left;
};

static struct {
    int port, connections, pipeline;
    double rate, seconds, drain_s;
    uint64_t requests, first_id;
    bool close_each;
    const char *prefix, *records, *host;
    char extra[EXTRA_MAX];
} option = {
    .connections = 50, .pipeline = 1, .rate = 1000, .seconds = 5, .drain_s = 3, .prefix = "/r/", .host = "localhost",
};

static struct connection *connections;
static uint32_t *idle, idle_head, idle_count; /* connections without a batch, oldest first: a ring */
static struct record *records;
static uint64_t records_capacity, issued, answered, failed;
static uint64_t bytes_sent, bytes_received, connections_opened;
static size_t request_max;
static int epoll_fd;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * NS_PER_S + t.tv_nsec;
}

static void die(const char *what, const char *value)
{
    fprintf(stderr, "load: %s: %s\n", what, value);
    exit(2);
}

static void idle_push(uint32_t index)
{
    idle[(idle_head + idle_count++) % (uint32_t)option.connections] = index;
}

static uint32_t idle_pop(void)
{
    uint32_t index = idle[idle_head];
    idle_head = (idle_head + 1) % (uint32_t)option.connections;
    idle_count--;
    return index;
}

/* Starts to connect; false when the kernel refuses at once. */
static bool open_connection(uint32_t index)
{
    struct connection *c = &connections[index];
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)option.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.u32 = index};
    int one = 1;

    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->state = STATUS_LINE;
    c->line_size = c->out_at = c->out_size = 0;
    c->closing = false;
    connections_opened++;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) != 0 && errno != EINPROGRESS) {
        close(c->fd);
        c->fd = -1;
        return false;
    }
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) != 0)
        die("epoll_ctl", strerror(errno));
    return true;
}

/* Gives the connection up. Requests of its batch that have no answer failed. */
static void drop_connection(uint32_t index)
{
    struct connection *c = &connections[index];
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->closing = false;
    if (c->left) {
        failed += c->left;
        c->left = 0;
        idle_push(index);
    }
}

static void write_out(uint32_t index)
{
    struct connection *c = &connections[index];
    while (c->out_at < c->out_size) {
        ssize_t n = send(c->fd, c->out + c->out_at, c->out_size - c->out_at, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            if (errno != EAGAIN && errno != ENOTCONN && errno != EINPROGRESS)
                drop_connection(index);
            return;
        }
        c->out_at += (uint32_t)n;
        bytes_sent += (uint64_t)n;
    }
}

/* The next `count` requests, all due at the same time, on an idle connection, in one write. */
static void send_batch(uint32_t count, int64_t due, int64_t now)
{
    uint32_t index = idle_pop();
    struct connection *c = &connections[index];

    if (issued + count > records_capacity) {
        records_capacity = records_capacity ? records_capacity * 2 : 1 << 16;
        records = realloc(records, records_capacity * sizeof *records);
        if (!records)
            die("out of memory for records", "use a shorter run");
    }
    c->first = (uint32_t)issued;
    c->left = count;
    if (c->fd < 0 && !open_connection(index))
        c->fd = -1; /* the batch still gets its records, then fails below */
    c->out_at = c->out_size = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct record *r = &records[issued];
        *r = (struct record){option.first_id + issued, due, now, 0, 0, index};
        issued++;
        c->out_size += (uint32_t)snprintf(
            c->out + c->out_size, request_max, "GET %s%016llx HTTP/1.1\r\nHost: %s\r\n%s%s\r\n", option.prefix,
            (unsigned long long)r->id, option.host, option.extra, option.close_each ? "Connection: close\r\n" : "");
    }
    if (c->fd < 0)
        drop_connection(index);
    else
        write_out(index);
}

/* One whole answer has been read. */
static void complete(struct connection *c, uint32_t index, int64_t now)
{
    if (c->left == 0) { /* the server answers more than it was asked: nothing to pair it with */
        c->closing = true;
        return;
    }
    records[c->first].status = c->status;
    records[c->first].done_ns = now;
    c->first++;
    c->left--;
    c->closing |= option.close_each; /* also when the server would keep the connection */
    answered++;
    c->state = STATUS_LINE;
    c->line_size = 0;
    if (c->left == 0)
        idle_push(index);
}

static bool contains_word(const char *text, const char *word)
{
    return strcasestr(text, word) != NULL;
}

/* The headers are over: how long is the body? */
static void end_of_headers(struct connection *c, uint32_t index, int64_t now)
{
    if (c->status >= 100 && c->status < 200) {
        c->state = STATUS_LINE;
        return;
    }
    if (c->status == 204 || c->status == 304)
        complete(c, index, now);
    else if (c->chunked)
        c->state = CHUNK_SIZE;
    else if (!c->has_length)
        c->state = UNTIL_CLOSE;
    else if (c->body_left == 0)
        complete(c, index, now);
    else
        c->state = BODY;
}

/* One line of the head or of the chunk framing, without its end. False: this is not HTTP. */
static bool take_line(struct connection *c, uint32_t index, int64_t now)
{
    char *line = c->line;
    line[c->line_size] = '\0';
    c->line_size = 0;
    switch (c->state) {
    case STATUS_LINE:
        if (strncmp(line, "HTTP/1.", 7) != 0 || strlen(line) < 12)
            return false;
        c->status = (uint32_t)atoi(line + 9);
        c->chunked = c->has_length = false;
        c->body_left = 0;
        c->closing = line[7] == '0';
        c->state = HEADER_LINE;
        return true;
    case HEADER_LINE:
        if (line[0] == '\0')
            end_of_headers(c, index, now);
        else if (strncasecmp(line, "content-length:", 15) == 0) {
            c->has_length = true;
            c->body_left = strtoull(line + 15, NULL, 10);
        } else if (strncasecmp(line, "transfer-encoding:", 18) == 0)
            c->chunked = contains_word(line + 18, "chunked");
        else if (strncasecmp(line, "connection:", 11) == 0)
            c->closing = contains_word(line + 11, "close");
        return true;
    case CHUNK_SIZE:
        c->body_left = strtoull(line, NULL, 16);
        if (c->body_left == 0)
            c->state = TRAILER;
        else {
            c->body_left += 2; /* the line end after the data */
            c->state = CHUNK_DATA;
        }
        return true;
    case TRAILER:
        if (line[0] == '\0')
            complete(c, index, now);
        return true;
    default:
        return false;
    }
}

static bool take_bytes(struct connection *c, uint32_t index, const char *data, size_t size, int64_t now)
{
    size_t at = 0;
    while (at < size) {
        if (c->state == UNTIL_CLOSE)
            return true;
        if (c->state == BODY || c->state == CHUNK_DATA) {
            size_t n = size - at < c->body_left ? size - at : (size_t)c->body_left;
            at += n;
            c->body_left -= n;
            if (c->body_left == 0) {
                if (c->state == BODY)
                    complete(c, index, now);
                else
                    c->state = CHUNK_SIZE;
            }
            continue;
        }
        char byte = data[at++];
        if (byte == '\n') {
            if (!take_line(c, index, now))
                return false;
        } else if (byte != '\r' && c->line_size < LINE_MAX_BYTES - 1)
            c->line[c->line_size++] = byte;
    }
    return true;
}

static void read_answers(uint32_t index, bool peer_closed)
{
    static char buffer[256 << 10];
    struct connection *c = &connections[index];
    for (;;) {
        ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            if (n == 0 && c->state == UNTIL_CLOSE)
                complete(c, index, now_ns());
            drop_connection(index);
            return;
        }
        bytes_received += (uint64_t)n;
        if (!take_bytes(c, index, buffer, (size_t)n, now_ns())) {
            drop_connection(index);
            return;
        }
        if (c->closing && c->left == 0 && c->state == STATUS_LINE) {
            drop_connection(index);
            return;
        }
        /* Edge-triggered: a short read emptied the socket, but an end of stream is seen only by reading on. */
        if ((size_t)n < sizeof buffer && !peer_closed)
            return;
    }
}

static void wait_for_events(int64_t timeout_ns)
{
    struct epoll_event events[256];
    struct timespec timeout = {timeout_ns / NS_PER_S, timeout_ns % NS_PER_S};
    int n = epoll_pwait2(epoll_fd, events, 256, &timeout, NULL);
    for (int i = 0; i < n; i++) {
        uint32_t index = events[i].data.u32, what = events[i].events;
        if (connections[index].fd >= 0 && (what & EPOLLOUT))
            write_out(index);
        if (connections[index].fd >= 0 && (what & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
            read_answers(index, what & (EPOLLRDHUP | EPOLLHUP | EPOLLERR));
    }
}

/* Every connection open before the first request is due, so that connecting costs no latency. */
static void open_all(void)
{
    for (uint32_t i = 0; i < (uint32_t)option.connections; i++) {
        int error = 0;
        socklen_t size = sizeof error;
        connections[i].fd = -1;
        idle_push(i);
        if (option.close_each)
            continue;
        if (!open_connection(i))
            die("cannot connect", strerror(errno));
        struct timespec pause = {0, 100000};
        struct tcp_info info = {0};
        for (int tries = 0; tries < 20000 && info.tcpi_state != TCP_ESTABLISHED; tries++) {
            size = sizeof error;
            getsockopt(connections[i].fd, SOL_SOCKET, SO_ERROR, &error, &size);
            if (error)
                die("cannot connect to 127.0.0.1", strerror(error));
            size = sizeof info;
            getsockopt(connections[i].fd, IPPROTO_TCP, TCP_INFO, &info, &size);
            if (info.tcpi_state != TCP_ESTABLISHED)
                nanosleep(&pause, NULL);
        }
        if (info.tcpi_state != TCP_ESTABLISHED)
            die("cannot connect to 127.0.0.1", "no answer within 2 s");
    }
}

static int compare_i64(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Sorted values -> {"mean":..,"p50":..,...} in microseconds. */
static void print_distribution(const char *name, int64_t *values, uint64_t n)
{
    static const double points[] = {50, 90, 99, 99.9};
    double sum = 0;
    qsort(values, n, sizeof *values, compare_i64);
    for (uint64_t i = 0; i < n; i++)
        sum += (double)values[i];
    printf(", \"%s\": {\"mean\": %.2f", name, n ? sum / (double)n / 1e3 : 0.0);
    for (size_t p = 0; p < sizeof points / sizeof *points; p++)
        printf(", \"p%g\": %.2f", points[p], n ? (double)values[(uint64_t)((double)(n - 1) * points[p] / 100)] / 1e3 : 0.0);
    printf(", \"max\": %.2f}", n ? (double)values[n - 1] / 1e3 : 0.0);
}

static void report(int64_t start)
{
    uint64_t statuses[1000] = {0}, late = 0, n = 0;
    int64_t last = start, *latency = calloc(issued + 1, sizeof *latency), *lateness = calloc(issued + 1, sizeof *lateness);
    struct rusage usage;
    bool first = true;

    for (uint64_t i = 0; i < issued; i++) {
        struct record *r = &records[i];
        lateness[i] = r->sent_ns - r->intended_ns;
        late += lateness[i] > LATE_NS;
        if (!r->done_ns)
            continue;
        latency[n++] = r->done_ns - r->intended_ns;
        statuses[r->status < 1000 ? r->status : 999]++;
        last = r->done_ns > last ? r->done_ns : last;
    }
    getrusage(RUSAGE_SELF, &usage);
    double wall = (double)(last - start) / 1e9;
    uint64_t due = option.rate > 0 ? option.requests : issued;
    printf("{\"loop\": \"%s\", \"offered_per_s\": %.3f, \"achieved_per_s\": %.3f", option.rate > 0 ? "open" : "closed",
           option.rate, wall > 0 ? (double)answered / wall : 0.0);
    printf(", \"requests\": %llu, \"sent\": %llu, \"answered\": %llu, \"failed\": %llu, \"unsent\": %llu",
           (unsigned long long)due, (unsigned long long)issued, (unsigned long long)answered,
           (unsigned long long)(issued - answered), (unsigned long long)(due - issued));
    printf(", \"first_id\": %llu, \"start_ns\": %lld, \"end_ns\": %lld", (unsigned long long)option.first_id,
           (long long)start, (long long)last);
    printf(", \"connections\": %llu, \"bytes_sent\": %llu, \"bytes_received\": %llu, \"late\": %llu",
           (unsigned long long)connections_opened, (unsigned long long)bytes_sent, (unsigned long long)bytes_received,
           (unsigned long long)late);
    printf(", \"cpu_s\": %.4f", (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                                    (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    print_distribution("latency_us", latency, n);
    print_distribution("lateness_us", lateness, issued);
    printf(", \"statuses\": {");
    for (int s = 0; s < 1000; s++)
        if (statuses[s]) {
            printf("%s\"%d\": %llu", first ? "" : ", ", s, (unsigned long long)statuses[s]);
            first = false;
        }
    printf("}}\n");
    free(latency);
    free(lateness);
}

static void write_records(void)
{
    FILE *file = fopen(option.records, "wb");
    if (!file || fwrite(records, sizeof *records, issued, file) != issued || fclose(file) != 0)
        die("cannot write the records", option.records);
}

static void run(void)
{
    const int64_t start = now_ns() + 1000000, end = start + (int64_t)(option.seconds * 1e9);
    const int64_t deadline = end + (int64_t)(option.drain_s * 1e9);
    const bool open_loop = option.rate > 0;

    for (;;) {
        int64_t now = now_ns(), due = start;
        for (;;) {
            uint64_t left = option.requests - issued;
            uint32_t batch = left < (uint64_t)option.pipeline ? (uint32_t)left : (uint32_t)option.pipeline;
            due = open_loop ? start + (int64_t)((double)issued * 1e9 / option.rate) : start;
            if (batch == 0 || idle_count == 0 || due > now || (!open_loop && now >= end))
                break;
            send_batch(batch, open_loop ? due : now, now);
            if (open_loop)
                now = now_ns();
        }
        bool more = issued < option.requests && (open_loop || now < end);
        if ((!more && answered + failed == issued) || now > deadline)
            break;
        int64_t wait = (more && idle_count ? due : deadline) - now;
        wait_for_events(wait > 0 ? (wait < NS_PER_S / 10 ? wait : NS_PER_S / 10) : 0);
    }
    report(start);
    if (option.records)
        write_records();
}

static void usage(int code)
{
    fprintf(code ? stderr : stdout,
            "usage: load --port P [--rate REQUESTS_PER_S | --rate 0] [--seconds S] [--requests N]\n"
            "            [--connections N] [--pipeline N] [--close] [--prefix /r/] [--host NAME]\n"
            "            [--header 'Name: value']... [--first-id N] [--records FILE] [--drain S]\n");
    exit(code);
}

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", 1, 0, 'p'},     {"rate", 1, 0, 'r'},     {"seconds", 1, 0, 's'},  {"connections", 1, 0, 'c'},
        {"pipeline", 1, 0, 'n'}, {"prefix", 1, 0, 'x'},   {"close", 0, 0, 'k'},    {"records", 1, 0, 'i'},
        {"requests", 1, 0, 'q'}, {"first-id", 1, 0, 'f'}, {"header", 1, 0, 'H'},   {"host", 1, 0, 'o'},
        {"drain", 1, 0, 'd'},    {"help", 0, 0, 'h'},     {0, 0, 0, 0}};
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;)
        switch (c) {
        case 'p': option.port = atoi(optarg); break;
        case 'r': option.rate = atof(optarg); break;
        case 's': option.seconds = atof(optarg); break;
        case 'c': option.connections = atoi(optarg); break;
        case 'n': option.pipeline = atoi(optarg); break;
        case 'x': option.prefix = optarg; break;
        case 'k': option.close_each = true; break;
        case 'i': option.records = optarg; break;
        case 'q': option.requests = strtoull(optarg, NULL, 0); break;
        case 'f': option.first_id = strtoull(optarg, NULL, 0); break;
        case 'o': option.host = optarg; break;
        case 'd': option.drain_s = atof(optarg); break;
        case 'H': {
            size_t used = strlen(option.extra), left = EXTRA_MAX - used;
            if ((size_t)snprintf(option.extra + used, left, "%s\r\n", optarg) >= left)
                die("too many bytes of --header", optarg);
            break;
        }
        case 'h': usage(0); break;
        default: usage(2);
        }
    if (option.port < 1 || option.port > 65535)
        die("--port must be 1 to 65535", "give the port of the server");
    if (option.connections < 1 || option.connections > CONNECTIONS_MAX)
        die("--connections out of range", "1 to 20000");
    if (option.pipeline < 1 || option.pipeline > PIPELINE_MAX)
        die("--pipeline out of range", "1 to 256");
    if (option.close_each && option.pipeline > 1)
        die("--close and --pipeline", "choose one");
    if (option.rate < 0 || option.seconds <= 0 || option.seconds > 86400)
        die("--rate or --seconds out of range", "rate >= 0, 0 < seconds <= 86400");
    if (option.requests && option.rate > 0)
        option.seconds = (double)option.requests / option.rate;
    else if (!option.requests)
        option.requests = option.rate > 0 ? (uint64_t)(option.rate * option.seconds) : REQUESTS_MAX;
    if (option.requests > REQUESTS_MAX)
        die("too many requests for one run", "at most 64 Mi");
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1UL); /* the default of 50 us would be half an interval at 10,000 requests/s */
    struct rlimit files = {option.connections + 64, option.connections + 64}, now;
    if (getrlimit(RLIMIT_NOFILE, &now) == 0 && now.rlim_cur < files.rlim_cur) {
        files.rlim_max = now.rlim_max > files.rlim_cur ? now.rlim_max : files.rlim_cur;
        if (setrlimit(RLIMIT_NOFILE, &files) != 0)
            die("too many --connections for the limit of open files", strerror(errno));
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    request_max = strlen(option.prefix) + strlen(option.extra) + strlen(option.host) + 128;
    connections = calloc((size_t)option.connections, sizeof *connections);
    idle = calloc((size_t)option.connections, sizeof *idle);
    char *out = calloc((size_t)option.connections * (size_t)option.pipeline, request_max);
    if (epoll_fd < 0 || !connections || !idle || !out)
        die("cannot start", strerror(errno));
    for (int i = 0; i < option.connections; i++)
        connections[i].out = out + (size_t)i * (size_t)option.pipeline * request_max;
    if (option.rate > 0) {
        records_capacity = option.requests;
        records = calloc(records_capacity + 1, sizeof *records);
        if (!records)
            die("out of memory for records", "use a shorter run");
    }
    open_all();
    run();
    return 0;
}
