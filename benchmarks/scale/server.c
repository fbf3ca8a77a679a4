// SPDX-License-Identifier: Apache-2.0
/* An HTTP/1.1 server that holds very many connections: epoll, nothing kept per connection.
 *
 *   server WORKERS
 *
 * WORKERS processes, as one may not open descriptors enough, each with its own share of the connections
 * (SO_REUSEPORT). It prints the port of 127.0.0.1 that it listens on. It answers its own client (client.c) only, whose
 * requests come whole: a request with "Connection: close" is answered and its connection closed. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 512, BACKLOG = 4096, WORKERS_MAX = 64 };

static const char KEEP[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
static const char CLOSE[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";

static void fail(const char *what)
{
    fprintf(stderr, "server: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void accept_all(int listener, int epoll)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0)
            fail("epoll_ctl");
    }
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
        fail("accept");
}

static void answer(int fd)
{
    char request[2048];
    ssize_t n = recv(fd, request, sizeof(request) - 1, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        close(fd);
        return;
    }
    request[n] = 0;
    if (n < 4 || memcmp(request + n - 4, "\r\n\r\n", 4) != 0) {
        fprintf(stderr, "server: a request did not come whole (%zd bytes); use its own client\n", n);
        exit(1);
    }
    bool last = strstr(request, "\r\nConnection: close\r\n") != NULL;
    const char *text = last ? CLOSE : KEEP;
    if (send(fd, text, strlen(text), MSG_NOSIGNAL) < 0 && errno != EPIPE && errno != ECONNRESET)
        fail("send");
    if (last)
        close(fd);
}

static int listen_on(struct sockaddr_in *name)
{
    socklen_t size = sizeof(*name);
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) != 0 ||
        bind(listener, (struct sockaddr *)name, size) != 0 || listen(listener, BACKLOG) != 0)
        fail("listen");
    getsockname(listener, (struct sockaddr *)name, &size);
    return listener;
}

static void serve(int listener)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) != 0)
        fail("epoll");
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++)
            if (events[i].data.fd == listener)
                accept_all(listener, epoll);
            else
                answer(events[i].data.fd);
    }
}

int main(int argc, char **argv)
{
    int workers = argc == 2 ? atoi(argv[1]) : 0, listeners[WORKERS_MAX];
    if (workers < 1 || workers > WORKERS_MAX) {
        fprintf(stderr, "usage: server WORKERS (1 to %d)\n", WORKERS_MAX);
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    struct rlimit many;
    getrlimit(RLIMIT_NOFILE, &many);
    many.rlim_cur = many.rlim_max; /* no more without CAP_SYS_RESOURCE, which a container may lack */
    setrlimit(RLIMIT_NOFILE, &many);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < workers; i++) /* all before the first connection: it is given to one of them */
        listeners[i] = listen_on(&name);
    for (int i = 1; i < workers; i++) {
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGTERM);
            listeners[0] = listeners[i];
            workers = 0;
            break;
        }
        close(listeners[i]);
        listeners[i] = -1;
    }
    if (workers) {
        printf("%d\n", ntohs(name.sin_port));
        fflush(stdout);
    }
    serve(listeners[0]);
}
