/* SPDX-License-Identifier: Apache-2.0 */
/* An HTTP server and client in one static program, for roots and containers in which nothing else is.
 *
 *     peer serve ADDRESS PORT [fork]             prints its port; `fork`: a child for each connection
 *     peer ask ADDRESS PORT [SOURCE [SEQUENCE]]  one connection; a request per path on standard input
 *     peer get ADDRESS PORT PATH...              the same with paths as arguments; waits for the server
 *
 * PEER_INPUT in the environment names a file (a pipe) to read instead of standard input.
 *
 * A client prints a line per answer: its status and the path. A request for /hold... is answered when the
 * server has read a line of standard input; it prints `held` before. SOURCE is the port to connect from,
 * SEQUENCE its first TCP sequence number (a kernel draws them from the addresses and a clock: two
 * connections with the same are rare, and a test of what tells them apart needs them). */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static socklen_t address_of(const char *host, const char *port, struct sockaddr_storage *out)
{
    struct sockaddr_in *v4 = (void *)out;
    struct sockaddr_in6 *v6 = (void *)out;
    memset(out, 0, sizeof(*out));
    if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(atoi(port));
        return sizeof(*v4);
    }
    if (inet_pton(AF_INET6, host, &v6->sin6_addr) != 1)
        fail(host);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(atoi(port));
    return sizeof(*v6);
}

/* One message head into `head`, with what follows in the stream left alone. False: the stream ended. */
static int read_head(int fd, char *head, size_t size)
{
    size_t filled = 0;
    while (filled < size - 1) {
        ssize_t got = read(fd, head + filled, size - 1 - filled);
        if (got <= 0)
            return 0;
        filled += got;
        head[filled] = 0;
        if (strstr(head, "\r\n\r\n"))
            return 1; /* no bodies, and one message at a time: nothing lies behind */
    }
    return 0;
}

static void answer(int fd)
{
    static const char ok[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    char head[4096], line[16];
    while (read_head(fd, head, sizeof(head))) {
        if (strncmp(head, "GET /hold", 9) == 0) {
            puts("held");
            if (!fgets(line, sizeof(line), stdin))
                return;
        }
        if (write(fd, ok, sizeof(ok) - 1) < 0)
            return;
    }
}

static int serve(const char *host, const char *port, int forks)
{
    struct sockaddr_storage address;
    socklen_t size = address_of(host, port, &address);
    int on = 1, listener = socket(address.ss_family, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(listener, (void *)&address, size) || listen(listener, 16))
        fail("listen");
    getsockname(listener, (void *)&address, &size);
    printf("%d\n", ntohs(((struct sockaddr_in *)&address)->sin_port)); /* sin6_port stands there too */
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            fail("accept");
        if (!forks || fork() == 0) {
            answer(fd);
            if (forks)
                return 0;
        }
        close(fd);
    }
}

static void begin_at(int fd, unsigned sequence)
{
    int on = 1, off = 0, queue = TCP_SEND_QUEUE;
    if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on)) ||
        setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &queue, sizeof(queue)) ||
        setsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &sequence, sizeof(sequence)) ||
        setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &off, sizeof(off)))
        fail("TCP_REPAIR");
}

static int connected(const char *host, const char *port, const char *source, const char *sequence)
{
    struct sockaddr_storage address, own;
    socklen_t size = address_of(host, port, &address);
    int fd = socket(address.ss_family, SOCK_STREAM, 0), on = 1;
    if (source) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        address_of(address.ss_family == AF_INET ? "0.0.0.0" : "::", source, &own);
        if (bind(fd, (void *)&own, size))
            fail("bind");
    }
    if (sequence)
        begin_at(fd, strtoul(sequence, NULL, 0));
    if (connect(fd, (void *)&address, size) == 0)
        return fd;
    close(fd);
    return -1;
}

static void request(int fd, const char *path)
{
    char head[4096];
    int size = snprintf(head, sizeof(head), "GET %s HTTP/1.1\r\nHost: peer\r\n\r\n", path);
    if (write(fd, head, size) != size || !read_head(fd, head, sizeof(head)))
        fail(path);
    printf("%.3s %s\n", head + strlen("HTTP/1.1 "), path);
}

int main(int argc, char **argv)
{
    setlinebuf(stdout);
    const char *input = getenv("PEER_INPUT");
    if (input && !freopen(input, "r", stdin))
        fail(input);
    /* Under another name it is taken for an interpreter, and named by what stands behind its script. */
    if (argc > 1 && strchr(argv[1], '.'))
        argv++, argc--;
    if (argc >= 4 && strcmp(argv[1], "serve") == 0)
        return serve(argv[2], argv[3], argc > 4);
    if (argc >= 4 && strcmp(argv[1], "ask") == 0) {
        char path[1024];
        int fd = -1;
        while (fgets(path, sizeof(path), stdin)) {
            path[strcspn(path, "\n")] = 0;
            if (fd < 0 && (fd = connected(argv[2], argv[3], argc > 4 ? argv[4] : NULL,
                                          argc > 5 ? argv[5] : NULL)) < 0)
                fail("connect");
            request(fd, path);
        }
        return 0;
    }
    if (argc >= 5 && strcmp(argv[1], "get") == 0) {
        int fd;
        while ((fd = connected(argv[2], argv[3], NULL, NULL)) < 0)
            usleep(10000); /* until the server listens; who started us ends us when it never does */
        for (int i = 4; i < argc; i++)
            request(fd, argv[i]);
        return 0;
    }
    fprintf(stderr, "usage: see peer.c\n");
    return 2;
}
