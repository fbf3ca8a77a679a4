// SPDX-License-Identifier: Apache-2.0
/* What system calls cost this process: a loop over a few of them, timed in slices, whenever it is asked.
 *
 *   calls        then lines on its standard input, each the length of a measurement in milliseconds
 *
 * For each line it prints a JSON object: nanoseconds per call, the median over slices of about a millisecond. The
 * calls take turns slice by slice, so that a drift of the machine meets all of them; a slice that was
 * interrupted is one of many and does not move the median. One process measures both arms: its memory lies the
 * same in both. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { SLICE_CALLS = 2048, SLICES_MAX = 65536 };

static int zero, null, pipes[2], pair[2], tcp[2]; /* tcp[0] receives */
static char bytes[SLICE_CALLS];

static void fail(const char *what)
{
    fprintf(stderr, "calls: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void expect(bool good, const char *what)
{
    if (!good)
        fail(what);
}

static void fill(int fd)
{
    for (size_t at = 0; at < sizeof(bytes);) {
        ssize_t n = write(fd, bytes + at, sizeof(bytes) - at);
        expect(n > 0, "write of the bytes to be read");
        at += n;
    }
}

static void before_pipe(void)
{
    fill(pipes[1]);
}

static void before_tcp(void)
{
    fill(tcp[1]);
}

static long call_getpid(void)
{
    return syscall(SYS_getpid); /* nobody hooks it */
}

static long call_read_zero(void)
{
    return read(zero, bytes, 1);
}

static long call_read_pipe(void)
{
    return read(pipes[0], bytes, 1);
}

static long call_write_null(void)
{
    return write(null, bytes, 1);
}

static long call_socketpair(void)
{
    return send(pair[0], bytes, 1, 0) + recv(pair[1], bytes, 1, 0) - 1;
}

static long call_read_tcp(void)
{
    return read(tcp[0], bytes, 1);
}

static const struct {
    const char *name;
    long (*call)(void);
    void (*before)(void); /* each slice; not timed */
} CALLS[] = {
    {"getpid", call_getpid, NULL},
    {"read /dev/zero", call_read_zero, NULL},
    {"read pipe", call_read_pipe, before_pipe},
    {"write /dev/null", call_write_null, NULL},
    {"send + recv socketpair", call_socketpair, NULL},
    {"read TCP", call_read_tcp, before_tcp},
};
enum { COUNT = sizeof(CALLS) / sizeof(CALLS[0]) };

static double slices[COUNT][SLICES_MAX];

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(uint64_t length_ns)
{
    uint64_t end = now_ns() + length_ns;
    int rounds = 0;
    while ((now_ns() < end || rounds < 3) && rounds < SLICES_MAX) {
        for (int each = 0; each < COUNT; each++) {
            if (CALLS[each].before)
                CALLS[each].before();
            uint64_t begin = now_ns();
            for (int i = 0; i < SLICE_CALLS; i++)
                if (CALLS[each].call() <= 0)
                    fail(CALLS[each].name);
            slices[each][rounds] = (double)(now_ns() - begin) / SLICE_CALLS;
        }
        rounds++;
    }
    printf("{");
    for (int each = 0; each < COUNT; each++) {
        qsort(slices[each], rounds, sizeof(double), compare);
        printf("%s\"%s\": %.3f", each ? ", " : "", CALLS[each].name, slices[each][rounds / 2]);
    }
    printf("}\n");
    fflush(stdout);
}

static void connect_tcp(void)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(name);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    expect(listener >= 0 && bind(listener, (struct sockaddr *)&name, size) == 0 && listen(listener, 1) == 0, "listen");
    expect(getsockname(listener, (struct sockaddr *)&name, &size) == 0, "getsockname");
    tcp[1] = socket(AF_INET, SOCK_STREAM, 0);
    expect(tcp[1] >= 0 && connect(tcp[1], (struct sockaddr *)&name, size) == 0, "connect");
    tcp[0] = accept(listener, NULL, NULL);
    expect(tcp[0] >= 0, "accept");
    close(listener);
}

int main(void)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    expect((zero = open("/dev/zero", O_RDONLY)) >= 0, "/dev/zero");
    expect((null = open("/dev/null", O_WRONLY)) >= 0, "/dev/null");
    expect(pipe(pipes) == 0, "pipe");
    expect(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    connect_tcp();
    char line[64];
    while (fgets(line, sizeof(line), stdin))
        measure(strtoull(line, NULL, 10) * 1000000);
    return 0;
}
