// SPDX-License-Identifier: Apache-2.0
/* Opens very many connections to the server beside it (server.c), by lines on its standard input:
 *
 *   client PORT FIRST
 *   open N            N more connections, one request and its answer on each; they stay open
 *   short RATE N      N connections of one request each, RATE each second; 0: as fast as it goes
 *   close             closes those that are open
 *
 * After each it prints a JSON object. Requests are numbered from FIRST on, and name their number in their path,
 * /r/<16 hex digits>. Connections come from many loopback addresses: one has no more than 28,000 ports. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { DESCRIPTORS = 1 << 20, TOGETHER = 32, SOURCES = 32 };

static int port, opened[DESCRIPTORS], count_open;
static uint64_t number, first, source;

static void fail(const char *what)
{
    fprintf(stderr, "client: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* A connection with its request sent. */
static int ask(bool last)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0)
        fail("socket");
    /* 127.0.0.2 and on. The port is chosen when both ends are known: the same one serves many. */
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + source++ % SOURCES)};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on)) != 0 ||
        bind(fd, (struct sockaddr *)&from, sizeof(from)) != 0)
        fail("bind");
    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0)
        fail("connect");
    char request[160];
    int size = snprintf(request, sizeof(request), "GET /r/%016lx HTTP/1.1\r\nHost: scale\r\n%s\r\n", number++,
                        last ? "Connection: close\r\n" : "");
    if (send(fd, request, size, MSG_NOSIGNAL) != size)
        fail("send");
    return fd;
}

/* Reads one answer; of the last one on a connection its end too, and closes. */
static void take(int fd, bool last)
{
    char text[512];
    size_t have = 0;
    for (;;) {
        ssize_t n = recv(fd, text + have, sizeof(text) - 1 - have, 0);
        if (n < 0)
            fail("recv");
        if (n == 0)
            break;
        have += n;
        text[have] = 0;
        if (!last && strstr(text, "\r\n\r\nok\n"))
            break;
    }
    if (!strstr(text, "\r\n\r\nok\n")) {
        fprintf(stderr, "client: an answer of %zu bytes is not whole: %.*s\n", have, (int)have, text);
        exit(1);
    }
    if (last)
        close(fd);
}

static void some(int count, bool last)
{
    int fds[TOGETHER];
    for (int i = 0; i < count; i++)
        fds[i] = ask(last);
    for (int i = 0; i < count; i++) {
        take(fds[i], last);
        if (!last)
            opened[count_open++] = fds[i];
    }
}

/* At most TOGETHER at once, when they are due. */
static void many(uint64_t total, double rate, bool last)
{
    double begin = now_s();
    for (uint64_t done = 0; done < total;) {
        uint64_t due = rate > 0 ? (uint64_t)((now_s() - begin) * rate) : total;
        due = due < total ? due : total;
        if (due == done) {
            double wait_s = begin + (done + 1) / rate - now_s();
            struct timespec wait = {0, wait_s > 0 ? (long)(wait_s * 1e9) % 1000000000 : 0};
            nanosleep(&wait, NULL);
            continue;
        }
        int count = due - done < TOGETHER ? due - done : TOGETHER;
        some(count, last);
        done += count;
    }
    printf("{\"answered\": %lu, \"open\": %d, \"requests\": %lu, \"seconds\": %.6f}\n", total, count_open, number - first,
           now_s() - begin);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc != 3 || (port = atoi(argv[1])) <= 0) {
        fprintf(stderr, "usage: client PORT FIRST\n");
        return 2;
    }
    number = first = source = strtoull(argv[2], NULL, 10);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    struct rlimit most;
    getrlimit(RLIMIT_NOFILE, &most);
    most.rlim_cur = most.rlim_max;
    setrlimit(RLIMIT_NOFILE, &most);
    char line[128];
    while (fgets(line, sizeof(line), stdin)) {
        unsigned long total;
        double rate;
        if (sscanf(line, "open %lu", &total) == 1 && total + count_open < DESCRIPTORS - 100) {
            many(total, 0, false);
        } else if (sscanf(line, "short %lf %lu", &rate, &total) == 2) {
            many(total, rate, true);
        } else if (strcmp(line, "close\n") == 0) {
            while (count_open)
                close(opened[--count_open]);
            many(0, 0, true);
        } else {
            fprintf(stderr, "client: what is this: %s", line);
            return 2;
        }
    }
    return 0;
}
