/* SPDX-License-Identifier: Apache-2.0 */
/* Makes a given number of calls of every kind that moves bytes on sockets, and keeps its own log of what moved.
 *
 *     witness CALLS SEED [KINDS] [PAYLOAD]
 *
 * KINDS: "tcp:read,write;unix" limits it (a transport alone: all of its kinds); "all" is the default.
 * PAYLOAD: "mixed" (HTTP, TLS and noise, by connection; the default) or "http": every direction of a TCP or Unix
 * connection begins with a whole HTTP header, by write and read, so that each further call sends a record.
 *
 * It says "ready" and waits for a line on its standard input, so that it can be selected first. At its end it
 * prints its log as JSON: by transport, direction and kind, the calls it made, the calls that moved bytes, the
 * chunks these are by the contract of bpf/events.h, and the bytes, all by its own return values. The seed fixes
 * its choices as far as they do not depend on what a call returned.
 *
 * A chunk is a call that moved bytes on a TCP, UDP or Unix stream socket; a datagram of sendmmsg and recvmmsg on
 * UDP is one of its own. Nothing is moved by MSG_PEEK, MSG_ERRQUEUE and MSG_OOB reads, nor on anything else. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/errqueue.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum transport { TCP, UDP, UNIX, TRANSPORTS };
enum kind {
    READ, READV, RECVFROM, RECVMSG, RECVMMSG, PREADV2, SPLICE_IN, SENDFILE_IN,
    WRITE, WRITEV, SENDTO, SENDMSG, SENDMMSG, PWRITEV2, SENDFILE, SPLICE_OUT,
    KINDS, RECEIVE_KINDS = WRITE
};
static const char *const TRANSPORT_NAMES[] = {"tcp", "udp", "unix"};
static const char HEADER[] = "POST /witness HTTP/1.1\r\nHost: witness\r\nContent-Length: 999999999\r\n\r\n";
static const char *const KIND_NAMES[] = {
    "read", "readv", "recvfrom", "recvmsg", "recvmmsg", "preadv2", "splice_in", "sendfile_in",
    "write", "writev", "sendto", "sendmsg", "sendmmsg", "pwritev2", "sendfile", "splice_out"};
enum style { HTTP, TLS, NOISE, STYLES };

enum {
    BUFFER = 1 << 20,
    CHANNELS = 36, /* of one world */
    VECTORS = 1024,
    MESSAGES = 8,
    MESSAGE_VECTORS = 4,
    QUEUED_MAX = 1 << 18, /* with more on its way an end rather receives */
    LIFE = 400,           /* calls on a connection, at most */
    ALARM_NS = 400000,
    FD_HIGH = 700,
};

struct entry {
    uint64_t calls, moved, chunks, bytes;
};
/* What a world tells at its end. */
struct log {
    struct entry entries[TRANSPORTS][KINDS];
    uint64_t calls, connections, others, eintr, again, resets, eofs, peeks, zerocopies, passed, urgent;
};

struct channel {
    enum transport transport;
    bool connected, zerocopy, blocking;
    enum style style;
    int family;
    int fds[2];
    uint64_t queued[2]; /* sent by this end and not read by the other, as far as is known */
    bool began[2];      /* this end has sent something */
    bool ended[2];      /* this end has read the end of file, or a reset */
    struct sockaddr_storage names[2];
    socklen_t name_size;
    int left; /* calls, until it is closed */
};

/* All that one thread of calls needs. Nothing is shared between worlds but the process's descriptors. */
struct world {
    uint64_t random, budget;
    struct log log;
    struct channel channels[CHANNELS];
    int used; /* of them */
    int listeners[3]; /* IPv4, IPv6, Unix */
    int carrier[2], stream_carrier[2];
    int pipe[2], second_pipe[2], file, null;
    int datagrams[2], packets[2], netlink, event;
    uint64_t piped; /* bytes in pipe */
    char *in;
};

static char *out[STYLES]; /* what is sent, by style; never written to after the start */
static bool enabled[TRANSPORTS][KINDS];
static enum kind choices[TRANSPORTS][2][KINDS]; /* by direction: 0 receive, 1 send */
static int choices_count[TRANSPORTS][2];
static bool only_http;

static void fail(const char *what)
{
    fprintf(stderr, "witness: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---------------------------------------------------------------- chance */

static uint64_t draw(struct world *w)
{
    uint64_t x = w->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    w->random = x;
    return x * 0x2545F4914F6CDD1DULL >> 16;
}

static uint32_t below(struct world *w, uint32_t n)
{
    return draw(w) % n;
}

static bool chance(struct world *w, uint32_t one_in)
{
    return below(w, one_in) == 0;
}

/* Small ones are as frequent as large ones. */
static uint32_t size_up_to(struct world *w, uint32_t bits)
{
    if (chance(w, 100))
        return 0;
    uint32_t top = 1u << below(w, bits + 1);
    return top + below(w, top);
}

static uint32_t some_size(struct world *w, const struct channel *c)
{
    if (c->transport == UDP)
        return chance(w, 50) ? below(w, 60000) : size_up_to(w, 12);
    return chance(w, 500) ? BUFFER : size_up_to(w, 14);
}

/* Cuts up to `size` bytes into vectors, some of them empty, and returns how many vectors these are. */
static int cut(struct world *w, struct iovec *vectors, int most, char *base, uint32_t size)
{
    int count = 1 + below(w, 4);
    if (chance(w, 4))
        count = 1 + below(w, 40);
    if (chance(w, 150))
        count = VECTORS;
    if (count > most)
        count = most;
    uint32_t at = 0, part = 2 * size / count + 1;
    for (int i = 0; i < count; i++) {
        uint32_t n = chance(w, 8) ? 0 : below(w, part + 1);
        if (n > size - at || i == count - 1)
            n = size - at;
        vectors[i] = (struct iovec){base + at, n};
        at += n;
    }
    return count;
}

/* ---------------------------------------------------------------- the log */

static void note(struct world *w, enum transport t, enum kind kind, uint64_t chunks, uint64_t bytes)
{
    struct entry *entry = &w->log.entries[t][kind];
    entry->calls++;
    w->log.calls++;
    if (!bytes)
        return;
    entry->moved++;
    entry->chunks += chunks;
    entry->bytes += bytes;
}

static void note_error(struct world *w)
{
    if (errno == EINTR)
        w->log.eintr++;
    else if (errno == EAGAIN)
        w->log.again++;
    else if (errno == ECONNRESET || errno == EPIPE)
        w->log.resets++;
}

/* ---------------------------------------------------------------- receiving */

static void empty_pipe(struct world *w)
{
    while (w->piped) {
        ssize_t n = read(w->pipe[0], w->in, BUFFER);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        w->piped -= n;
    }
    w->piped = 0;
}

static void received(struct world *w, struct channel *c, int end, enum kind kind, uint64_t chunks,
                     uint64_t bytes)
{
    note(w, c->transport, kind, chunks, bytes);
    uint64_t *queued = &c->queued[!end];
    *queued -= bytes < *queued ? bytes : *queued;
}

/* One receiving call on an end. Returns what it returned. */
static ssize_t receive(struct world *w, struct channel *c, int end, enum kind kind, bool wait_all)
{
    int fd = c->fds[end], flags = 0;
    uint32_t size = some_size(w, c);
    struct iovec vectors[VECTORS];
    bool stream = c->transport != UDP, moves = true;
    ssize_t n = -1;
    if (kind == RECVFROM || kind == RECVMSG || kind == RECVMMSG) {
        if (chance(w, 20)) {
            flags |= MSG_PEEK;
            moves = false;
        } else if (c->zerocopy && chance(w, 5)) {
            flags |= MSG_ERRQUEUE;
            moves = false;
        }
        if (chance(w, 25))
            flags |= MSG_TRUNC;
        if (chance(w, 5))
            flags |= MSG_DONTWAIT;
        if (wait_all || chance(w, 300))
            flags |= MSG_WAITALL;
        if (!moves)
            w->log.peeks++;
    }
    errno = 0;
    switch (kind) {
    case READ:
        n = read(fd, w->in, size);
        break;
    case READV:
        n = readv(fd, vectors, cut(w, vectors, VECTORS, w->in, size));
        break;
    case PREADV2: {
        int count = cut(w, vectors, VECTORS, w->in, size);
        n = preadv2(fd, vectors, count, -1, chance(w, 4) ? RWF_NOWAIT : 0);
        break;
    }
    case RECVFROM: {
        struct sockaddr_storage name;
        socklen_t name_size = sizeof(name);
        bool named = chance(w, 2);
        n = recvfrom(fd, w->in, size, flags, named ? (struct sockaddr *)&name : NULL,
                     named ? &name_size : NULL);
        break;
    }
    case RECVMSG: {
        char control[256];
        struct sockaddr_storage name;
        struct msghdr message = {.msg_iov = vectors, .msg_iovlen = cut(w, vectors, VECTORS, w->in, size)};
        if (chance(w, 2)) {
            message.msg_control = control;
            message.msg_controllen = sizeof(control);
            message.msg_name = &name;
            message.msg_namelen = sizeof(name);
        }
        n = recvmsg(fd, &message, flags);
        break;
    }
    case RECVMMSG: {
        struct mmsghdr messages[MESSAGES] = {};
        int count = 1 + below(w, MESSAGES);
        uint32_t part = BUFFER / MESSAGES;
        for (int i = 0; i < count; i++) {
            uint32_t each = some_size(w, c) & (part - 1);
            messages[i].msg_hdr.msg_iov = vectors + i * MESSAGE_VECTORS;
            messages[i].msg_hdr.msg_iovlen =
                cut(w, vectors + i * MESSAGE_VECTORS, MESSAGE_VECTORS, w->in + i * part, each);
        }
        if (c->blocking && !chance(w, 50))
            flags |= chance(w, 2) ? MSG_WAITFORONE : MSG_DONTWAIT;
        struct timespec timeout = {0, 1000};
        int got = recvmmsg(fd, messages, count, flags, chance(w, 4) ? &timeout : NULL);
        if (got < 0)
            note_error(w);
        uint64_t bytes = 0, datagrams = 0;
        for (int i = 0; i < got && moves; i++) {
            bytes += messages[i].msg_len;
            datagrams += messages[i].msg_len > 0;
        }
        received(w, c, end, kind, stream ? 1 : datagrams, bytes);
        if (stream && got > 0 && moves && messages[0].msg_len == 0 && !(flags & MSG_PEEK) && c->queued[!end] == 0)
            c->ended[end] = true;
        return got <= 0 ? got : (ssize_t)bytes;
    }
    case SPLICE_IN:
        if (w->piped > 32768 || chance(w, 8))
            empty_pipe(w);
        n = splice(fd, NULL, w->pipe[1], NULL, size & 65535, c->blocking && !chance(w, 4) ? 0 : SPLICE_F_NONBLOCK);
        if (n > 0)
            w->piped += n;
        break;
    case SENDFILE_IN: /* from a socket into a pipe: the kernel takes it for a splice */
        if (w->piped > 32768 || chance(w, 8))
            empty_pipe(w);
        n = sendfile(w->pipe[1], fd, NULL, size & 65535);
        if (n > 0)
            w->piped += n;
        break;
    default:
        break;
    }
    if (n < 0)
        note_error(w);
    if (moves && stream && ((n == 0 && size > 0) || (n < 0 && errno == ECONNRESET))) {
        w->log.eofs += n == 0;
        if (kind != READV && kind != PREADV2 && kind != RECVMSG && kind != SPLICE_IN && kind != SENDFILE_IN)
            c->ended[end] = true;
    }
    received(w, c, end, kind, 1, moves && n > 0 ? n : 0);
    return n;
}

/* ---------------------------------------------------------------- sending */

/* Puts bytes into the pipe by ways that are no socket's: write, vmsplice, tee. */
static void fill_pipe(struct world *w, const char *from, uint32_t size)
{
    if (size > 49152)
        size = 49152;
    if (w->piped || !size)
        return;
    ssize_t n;
    switch (below(w, 3)) {
    case 0:
        n = write(w->pipe[1], from, size);
        break;
    case 1: {
        struct iovec vector = {(char *)from, size};
        n = vmsplice(w->pipe[1], &vector, 1, SPLICE_F_NONBLOCK);
        break;
    }
    default:
        n = write(w->second_pipe[1], from, size);
        if (n > 0) {
            ssize_t copied = tee(w->second_pipe[0], w->pipe[1], n, SPLICE_F_NONBLOCK);
            while (read(w->second_pipe[0], w->in, n) < 0 && errno == EINTR)
                ;
            n = copied;
        }
    }
    w->log.others++;
    if (n > 0)
        w->piped += n;
}

static void address(struct msghdr *message, struct channel *c, int end)
{
    if (c->connected)
        return;
    message->msg_name = &c->names[!end];
    message->msg_namelen = c->name_size;
}

/* One sending call on an end. Returns what it returned. */
static ssize_t send_some(struct world *w, struct channel *c, int end, enum kind kind)
{
    int fd = c->fds[end], flags = MSG_NOSIGNAL;
    bool stream = c->transport != UDP;
    uint32_t size = some_size(w, c);
    if (c->transport == UDP && size > 60000)
        size = 60000;
    char *from = out[c->style] + (c->began[end] && chance(w, 2) ? 1 + below(w, 1000) : 0);
    if (size > BUFFER - 1024)
        size = BUFFER - 1024;
    struct iovec vectors[VECTORS];
    ssize_t n = -1;
    if (chance(w, 10))
        flags |= MSG_MORE;
    if (chance(w, 5))
        flags |= MSG_DONTWAIT;
    if (c->zerocopy && chance(w, 3)) {
        flags |= MSG_ZEROCOPY;
        w->log.zerocopies++;
    }
    errno = 0;
    switch (kind) {
    case WRITE:
        n = write(fd, from, size);
        break;
    case WRITEV:
        n = writev(fd, vectors, cut(w, vectors, VECTORS, from, size));
        break;
    case PWRITEV2: {
        int count = cut(w, vectors, VECTORS, from, size);
        n = pwritev2(fd, vectors, count, -1, chance(w, 4) ? RWF_NOWAIT : 0);
        break;
    }
    case SENDTO:
        n = sendto(fd, from, size, flags, c->connected ? NULL : (struct sockaddr *)&c->names[!end],
                   c->connected ? 0 : c->name_size);
        break;
    case SENDMSG: {
        struct msghdr message = {.msg_iov = vectors, .msg_iovlen = cut(w, vectors, VECTORS, from, size)};
        address(&message, c, end);
        n = sendmsg(fd, &message, flags);
        break;
    }
    case SENDMMSG: {
        struct mmsghdr messages[MESSAGES] = {};
        int count = 1 + below(w, MESSAGES);
        for (int i = 0; i < count; i++) {
            uint32_t each = some_size(w, c) & (BUFFER / MESSAGES - 1);
            struct msghdr *message = &messages[i].msg_hdr;
            message->msg_iov = vectors + i * MESSAGE_VECTORS;
            message->msg_iovlen = cut(w, message->msg_iov, MESSAGE_VECTORS, from, each);
            address(message, c, end);
        }
        int sent = sendmmsg(fd, messages, count, flags);
        if (sent < 0)
            note_error(w);
        uint64_t bytes = 0, datagrams = 0;
        for (int i = 0; i < sent; i++) {
            bytes += messages[i].msg_len;
            datagrams += messages[i].msg_len > 0;
        }
        note(w, c->transport, kind, stream ? 1 : datagrams, bytes);
        c->queued[end] += bytes;
        c->began[end] |= bytes > 0;
        return sent < 0 ? -1 : (ssize_t)bytes;
    }
    case SENDFILE: {
        off_t offset = from - out[c->style] + c->style * BUFFER;
        if (chance(w, 2) && lseek(w->file, offset, SEEK_SET) >= 0)
            n = sendfile(fd, w->file, NULL, size);
        else
            n = sendfile(fd, w->file, &offset, size);
        break;
    }
    case SPLICE_OUT:
        fill_pipe(w, from, size);
        if (!w->piped)
            return 0;
        n = splice(w->pipe[0], NULL, fd, NULL, 1 + below(w, 65536),
                   (chance(w, 2) ? SPLICE_F_MORE : 0) | (chance(w, 2) ? SPLICE_F_NONBLOCK : 0));
        if (n > 0)
            w->piped -= n;
        else
            empty_pipe(w); /* a datagram socket may have no use for it ever */
        break;
    default:
        break;
    }
    if (n < 0)
        note_error(w);
    note(w, c->transport, kind, 1, n > 0 ? n : 0);
    if (n > 0) {
        c->queued[end] += n;
        c->began[end] = true;
    }
    return n;
}

/* ---------------------------------------------------------------- connections */

static void option(int fd, int level, int name, int value)
{
    setsockopt(fd, level, name, &value, sizeof(value)); /* a wish: what is not granted changes nothing */
}

static void set_blocking(int fd, bool blocking)
{
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
}

static struct sockaddr_storage loopback(int family, socklen_t *size)
{
    struct sockaddr_storage name = {};
    if (family == AF_INET) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)&name;
        *v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        *size = sizeof(*v4);
    } else {
        struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&name;
        *v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
        *size = sizeof(*v6);
    }
    return name;
}

static int listener(int family)
{
    socklen_t size;
    struct sockaddr_storage name = {};
    if (family == AF_UNIX) {
        name.ss_family = AF_UNIX;
        size = sizeof(sa_family_t); /* the kernel chooses an abstract name */
    } else
        name = loopback(family, &size);
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&name, size) != 0 || listen(fd, 64) != 0) {
        if (fd < 0 && errno != EAFNOSUPPORT && errno != EPERM)
            fail("socket to listen on");
        if (fd >= 0 && family != AF_INET6)
            fail("bind or listen");
        if (fd >= 0)
            close(fd);
        return -1; /* a machine without IPv6 */
    }
    return fd;
}

static int connect_to(struct world *w, int family, int to)
{
    struct sockaddr_storage name = {};
    socklen_t size = sizeof(name);
    getsockname(to, (struct sockaddr *)&name, &size);
    int fd = socket(family, SOCK_STREAM, 0);
    if (fd < 0)
        fail("socket");
    bool twice = family != AF_UNIX && chance(w, 3);
    set_blocking(fd, !twice);
    int done;
    while ((done = connect(fd, (struct sockaddr *)&name, size)) != 0) {
        if (errno == EISCONN)
            break;
        if (errno != EINPROGRESS && errno != EINTR && errno != EALREADY)
            fail("connect");
        struct pollfd waits = {fd, POLLOUT, 0};
        poll(&waits, 1, 100);
    }
    return fd;
}

/* Both ends say what is spoken here, in a call that sends the whole header and calls that read all of it. */
static void say_http(struct world *w, struct channel *c)
{
    for (int end = 0; end < 2; end++) {
        ssize_t n = write(c->fds[end], HEADER, sizeof(HEADER) - 1);
        if (n != sizeof(HEADER) - 1)
            fail("the header did not fit into a new connection");
        note(w, c->transport, WRITE, 1, n);
        c->began[end] = true;
        for (ssize_t got = 0; got < n;) {
            struct pollfd waits = {c->fds[!end], POLLIN, 0};
            poll(&waits, 1, 100);
            ssize_t part = read(c->fds[!end], w->in, n - got);
            note(w, c->transport, READ, 1, part > 0 ? part : 0);
            got += part > 0 ? part : 0;
        }
    }
}

static void open_channel(struct world *w, struct channel *c, enum transport transport)
{
    memset(c, 0, sizeof(*c));
    c->transport = transport;
    c->connected = true;
    c->style = only_http ? HTTP : below(w, STYLES);
    c->left = 1 + below(w, LIFE);
    int which = w->listeners[1] >= 0 ? below(w, 2) : 0;
    c->family = which ? AF_INET6 : AF_INET;
    w->log.connections++;
    if (transport == UDP) {
        c->connected = !chance(w, 3);
        for (int end = 0; end < 2; end++) {
            c->names[end] = loopback(c->family, &c->name_size);
            c->fds[end] = socket(c->family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
            if (c->fds[end] < 0 || bind(c->fds[end], (struct sockaddr *)&c->names[end], c->name_size) != 0)
                fail("UDP socket");
            socklen_t size = sizeof(c->names[end]);
            getsockname(c->fds[end], (struct sockaddr *)&c->names[end], &size);
        }
        for (int end = 0; end < 2 && c->connected; end++)
            if (connect(c->fds[end], (struct sockaddr *)&c->names[!end], c->name_size) != 0)
                fail("connect of a UDP socket");
    } else if (transport == UNIX && chance(w, 2)) {
        c->family = AF_UNIX;
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, c->fds) != 0)
            fail("socketpair");
    } else {
        if (transport == UNIX) {
            c->family = AF_UNIX;
            which = 2;
        }
        c->fds[0] = connect_to(w, c->family, w->listeners[which]);
        struct sockaddr_storage name;
        socklen_t size = sizeof(name);
        do
            c->fds[1] = chance(w, 2) ? accept(w->listeners[which], NULL, NULL)
                                     : accept4(w->listeners[which], (struct sockaddr *)&name, &size, SOCK_CLOEXEC);
        while (c->fds[1] < 0 && errno == EINTR);
        if (c->fds[1] < 0)
            fail("accept");
    }
    c->blocking = transport != UDP && chance(w, 10);
    c->zerocopy = transport != UNIX && chance(w, 5);
    if (only_http && transport != UDP)
        say_http(w, c);
    for (int end = 0; end < 2; end++) {
        set_blocking(c->fds[end], c->blocking);
        if (chance(w, 6))
            option(c->fds[end], SOL_SOCKET, SO_SNDBUF, 4608);
        if (chance(w, 8))
            option(c->fds[end], SOL_SOCKET, SO_RCVBUF, 4608);
        if (c->zerocopy)
            option(c->fds[end], SOL_SOCKET, SO_ZEROCOPY, 1);
        if (transport == TCP && chance(w, 2))
            option(c->fds[end], IPPROTO_TCP, TCP_NODELAY, 1);
    }
}

static enum kind pick(struct world *w, const struct channel *c, int sends)
{
    return choices[c->transport][sends][below(w, choices_count[c->transport][sends])];
}

/* Receives until nothing is left, or the end; a bounded number of calls. */
static void drain(struct world *w, struct channel *c, int end)
{
    set_blocking(c->fds[end], false);
    for (int i = 0; i < 60 && !c->ended[end] && c->queued[!end]; i++)
        receive(w, c, end, pick(w, c, 0), false);
}

static void close_one(struct world *w, int fd)
{
    if (chance(w, 8))
        syscall(SYS_close_range, fd, fd, 0);
    else
        close(fd);
}

static void close_channel(struct world *w, struct channel *c)
{
    int first = below(w, 2);
    switch (below(w, 4)) {
    case 0: /* in order: half close, what is left, reads at the end of the file, an answer on the open half */
        if (c->transport != UDP) {
            shutdown(c->fds[first], SHUT_WR);
            drain(w, c, !first);
            for (int i = 0; i < 3; i++)
                receive(w, c, !first, pick(w, c, 0), false);
            set_blocking(c->fds[!first], false);
            send_some(w, c, !first, pick(w, c, 1));
            drain(w, c, first);
        }
        break;
    case 1: /* a reset, and calls on what is left of the connection */
        if (c->transport == TCP) {
            struct linger linger = {1, 0};
            setsockopt(c->fds[first], SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
        }
        close_one(w, c->fds[first]);
        c->fds[first] = -1;
        set_blocking(c->fds[!first], false);
        for (int i = 0; i < 3; i++) {
            receive(w, c, !first, pick(w, c, 0), false);
            send_some(w, c, !first, pick(w, c, 1));
        }
        break;
    case 2:
        drain(w, c, first);
        break;
    default:
        break; /* with bytes unread: the kernel resets */
    }
    for (int end = 0; end < 2; end++)
        if (c->fds[end] >= 0)
            close_one(w, c->fds[end]);
}

/* ---------------------------------------------------------------- descriptors */

static void again(int result, const char *what)
{
    if (result < 0)
        fail(what);
}

/* Sends a descriptor through a Unix socket and takes it out again under another number. */
static int pass(struct world *w, int fd)
{
    bool counted = enabled[UNIX][SENDMSG] && enabled[UNIX][RECVMSG] && chance(w, 2);
    int *carrier = counted ? w->stream_carrier : w->carrier;
    char byte = 'x';
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {};
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(int));
    ssize_t n;
    while ((n = sendmsg(carrier[0], &message, 0)) < 0 && errno == EINTR)
        ;
    again(n, "sendmsg of a descriptor");
    if (counted)
        note(w, UNIX, SENDMSG, 1, n);
    close_one(w, fd);
    int sink = chance(w, 2) ? open("/dev/null", O_WRONLY | O_CLOEXEC) : -1; /* may take the number */
    message.msg_controllen = sizeof(control);
    while ((n = recvmsg(carrier[1], &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR)
        ;
    again(n, "recvmsg of a descriptor");
    if (counted)
        note(w, UNIX, RECVMSG, 1, n);
    header = CMSG_FIRSTHDR(&message);
    if (!header)
        fail("no descriptor came");
    memcpy(&fd, CMSG_DATA(header), sizeof(int));
    if (sink >= 0) {
        w->log.others++;
        if (write(sink, "x", 1) != 1)
            fail("/dev/null");
        close(sink);
    }
    w->log.passed++;
    return fd;
}

static struct channel *any_channel(struct world *w)
{
    return &w->channels[below(w, w->used)];
}

static void shuffle_descriptors(struct world *w)
{
    struct channel *a = any_channel(w), *b = any_channel(w);
    int *first = &a->fds[below(w, 2)], *second = &b->fds[below(w, 2)], number;
    switch (below(w, 5)) {
    case 0: /* two sockets change their numbers */
        if (first == second)
            return;
        again(number = fcntl(*first, F_DUPFD_CLOEXEC, 0), "F_DUPFD");
        again(dup2(*second, *first), "dup2");
        again(dup3(number, *second, O_CLOEXEC), "dup3");
        close(number);
        number = *first;
        *first = *second;
        *second = number;
        break;
    case 1: /* a socket takes the number of what is none, and was used */
        again(number = open("/dev/null", O_WRONLY | O_CLOEXEC), "/dev/null");
        if (write(number, "x", 1) != 1)
            fail("/dev/null");
        w->log.others++;
        again(dup2(*first, number), "dup2");
        close_one(w, *first);
        *first = number;
        break;
    case 2: /* what is no socket takes a socket's number, for a moment */
        again(number = dup(*first), "dup");
        again(dup2(w->null, *first), "dup2");
        if (write(*first, "x", 1) != 1)
            fail("/dev/null");
        w->log.others++;
        again(dup2(number, *first), "dup2");
        close(number);
        break;
    case 3:
        *first = pass(w, *first);
        break;
    default:
        again(number = fcntl(*first, F_DUPFD_CLOEXEC, below(w, FD_HIGH)), "F_DUPFD");
        close_one(w, *first);
        *first = number;
    }
}

/* ---------------------------------------------------------------- what is not to be counted */

static void use(ssize_t n)
{
    (void)n; /* whatever it returned: nobody may count it */
}

static void ask_netlink(struct world *w)
{
    struct {
        struct nlmsghdr header;
        struct rtgenmsg body;
    } request = {{sizeof(request), RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {AF_UNSPEC}};
    use(send(w->netlink, &request, sizeof(request), MSG_DONTWAIT));
    struct iovec vector = {w->in, 65536};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    use(recv(w->netlink, w->in, 65536, MSG_DONTWAIT));
    use(recvmsg(w->netlink, &message, MSG_DONTWAIT));
    w->log.others += 3;
}

static void open_others(struct world *w)
{
    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, w->datagrams) != 0 ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, w->packets) != 0 ||
        (w->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) < 0 ||
        (w->netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)) < 0)
        fail("descriptors that are not counted");
}

static void close_others(struct world *w)
{
    for (int i = 0; i < 2; i++) {
        close(w->datagrams[i]);
        close(w->packets[i]);
    }
    close(w->event);
    close(w->netlink);
}

static void other_call(struct world *w)
{
    uint64_t one = 1;
    uint32_t size = size_up_to(w, 10);
    struct iovec vectors[2] = {{w->in, size}, {w->in + size, 16}};
    struct mmsghdr messages[2] = {{.msg_hdr = {.msg_iov = vectors, .msg_iovlen = 2}},
                                  {.msg_hdr = {.msg_iov = vectors, .msg_iovlen = 1}}};
    int *pair = chance(w, 2) ? w->datagrams : w->packets;
    w->log.others++;
    switch (below(w, 16)) {
    case 0:
        use(write(pair[0], w->in, size));
        use(read(pair[1], w->in, 4096));
        break;
    case 1:
        use(sendmmsg(pair[1], messages, 2, MSG_NOSIGNAL));
        use(recvmmsg(pair[0], messages, 2, MSG_DONTWAIT, NULL));
        break;
    case 2:
        use(sendmsg(pair[0], &messages[0].msg_hdr, MSG_NOSIGNAL));
        use(recvmsg(pair[1], &messages[0].msg_hdr, 0));
        break;
    case 3:
        use(write(w->event, &one, sizeof(one)));
        use(read(w->event, &one, sizeof(one)));
        break;
    case 4:
        use(preadv2(w->file, vectors, 2, 0, 0));
        break;
    case 5:
        use(pread(w->file, w->in, size, 100));
        break;
    case 6:
        use(lseek(w->file, 0, SEEK_SET));
        use(read(w->file, w->in, size));
        break;
    case 7:
        use(write(w->null, w->in, size));
        use(pwritev2(w->null, vectors, 2, -1, 0));
        break;
    case 8:
        if (!w->piped) {
            use(sendfile(w->null, w->file, &(off_t){0}, size)); /* file to /dev/null */
            use(splice(w->file, &(loff_t){0}, w->second_pipe[1], NULL, size & 4095, SPLICE_F_NONBLOCK));
            use(read(w->second_pipe[0], w->in, BUFFER));
        }
        break;
    case 9:
        use(write(w->second_pipe[1], w->in, 64));
        use(readv(w->second_pipe[0], vectors, 2));
        use(read(w->second_pipe[0], w->in, 64));
        break;
    case 10:
        ask_netlink(w);
        break;
    case 11:
        use(recv(pair[0], w->in, 4096, MSG_PEEK | MSG_DONTWAIT));
        use(read(pair[0], w->in, 4096));
        break;
    case 12:
        use(read(w->listeners[0], w->in, 16)); /* ENOTCONN */
        break;
    case 13:
        use(pread(w->event, w->in, 8, 0)); /* ESPIPE */
        break;
    default:
        if (chance(w, 4)) { /* their numbers are to become other descriptors' */
            close_others(w);
            open_others(w);
        }
    }
}

/* ---------------------------------------------------------------- urgent data */

/* Three bytes, an urgent one, three bytes, on a new connection, where nothing else is on its way. The urgent
 * one is sent, and read apart; the reads step over it. On TCP it has a sequence number: exactly one byte of
 * gap, once the bytes behind it were read. */
static void urgent(struct world *w, struct channel *c)
{
    if (c->transport == UDP || !enabled[c->transport][SENDTO] || !enabled[c->transport][RECVFROM])
        return;
    enum transport transport = c->transport;
    close_channel(w, c);
    open_channel(w, c, transport);
    option(c->fds[0], IPPROTO_TCP, TCP_NODELAY, 1);
    static const char *const PARTS[] = {"abc", "!", "def"};
    for (int i = 0; i < 3; i++) {
        ssize_t n = sendto(c->fds[0], PARTS[i], strlen(PARTS[i]), MSG_NOSIGNAL | (i == 1 ? MSG_OOB : 0), NULL, 0);
        if (n != (ssize_t)strlen(PARTS[i]))
            fail("7 bytes did not fit into a new connection");
        note(w, transport, SENDTO, 1, n);
    }
    c->began[0] = true;
    int waits_for = 6;
    bool apart = false;
    for (int turn = 0; turn < 5000 && waits_for; turn++) {
        struct pollfd waits = {c->fds[1], apart ? POLLIN : POLLPRI, 0};
        poll(&waits, 1, 1);
        char byte;
        if (!apart) {
            apart = recv(c->fds[1], &byte, 1, MSG_OOB | MSG_DONTWAIT) == 1;
            continue;
        }
        ssize_t n = recv(c->fds[1], w->in, BUFFER, MSG_DONTWAIT);
        received(w, c, 1, RECVFROM, 1, n > 0 ? n : 0);
        waits_for -= n > 0 ? n : 0;
    }
    if (waits_for)
        fail("urgent data did not come within 5 s");
    w->log.urgent += transport == TCP;
}

/* ---------------------------------------------------------------- a world */

static void prepare(struct world *w, uint64_t seed, uint64_t budget, int file)
{
    memset(w, 0, sizeof(*w));
    w->random = seed * 0x9E3779B97F4A7C15ULL + 1;
    for (int i = 0; i < 8; i++)
        draw(w);
    w->budget = budget;
    w->in = mmap(NULL, BUFFER + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (w->in == MAP_FAILED)
        fail("memory");
    memset(w->in, 'i', BUFFER);
    static const int FAMILIES[] = {AF_INET, AF_INET6, AF_UNIX};
    for (int i = 0; i < 3; i++)
        w->listeners[i] = listener(FAMILIES[i]);
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", file); /* a file position of its own */
    if ((w->file = open(path, O_RDONLY | O_CLOEXEC)) < 0 || (w->null = open("/dev/null", O_WRONLY | O_CLOEXEC)) < 0 ||
        pipe2(w->pipe, O_NONBLOCK | O_CLOEXEC) != 0 || pipe2(w->second_pipe, O_NONBLOCK | O_CLOEXEC) != 0 ||
        socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, w->carrier) != 0 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, w->stream_carrier) != 0)
        fail("descriptors of a world");
    open_others(w);
    static const int SHARES[TRANSPORTS] = {18, 8, 10};
    for (int t = 0; t < TRANSPORTS; t++)
        for (int i = 0; i < SHARES[t] && choices_count[t][0] && choices_count[t][1]; i++)
            open_channel(w, &w->channels[w->used++], t);
}

/* Another process's share, or its end. */
static void close_world(struct world *w)
{
    for (int i = 0; i < w->used; i++)
        for (int end = 0; end < 2; end++)
            close(w->channels[i].fds[end]);
    for (int i = 0; i < 3; i++)
        if (w->listeners[i] >= 0)
            close(w->listeners[i]);
    for (int i = 0; i < 2; i++) {
        close(w->pipe[i]);
        close(w->second_pipe[i]);
        close(w->carrier[i]);
        close(w->stream_carrier[i]);
    }
    close_others(w);
    close(w->file);
    close(w->null);
    munmap(w->in, BUFFER + 4096);
}

static void on_alarm(int number)
{
    (void)number;
}

/* Signals for this very thread, as long as it lives: its calls are interrupted, each in some of its runs. */
static timer_t interrupt_myself(void)
{
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM};
    event._sigev_un._tid = gettid();
    timer_t timer;
    struct itimerspec every = {{0, ALARM_NS}, {0, ALARM_NS}};
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 || timer_settime(timer, 0, &every, NULL) != 0)
        fail("timer");
    return timer;
}

static void step(struct world *w)
{
    if (chance(w, 25)) {
        other_call(w);
        return;
    }
    if (chance(w, 150)) {
        shuffle_descriptors(w);
        return;
    }
    struct channel *c = any_channel(w);
    if (c->left-- <= 0) {
        enum transport transport = c->transport;
        close_channel(w, c);
        open_channel(w, c, transport);
        return;
    }
    if (chance(w, 1000)) {
        urgent(w, c);
        return;
    }
    int end = below(w, 2);
    uint64_t waiting = c->queued[!end];
    bool sends;
    if (waiting > QUEUED_MAX || c->queued[end] > QUEUED_MAX)
        sends = chance(w, 40);
    else if (waiting)
        sends = chance(w, 3);
    else
        sends = !chance(w, 12) || (c->blocking && !chance(w, 50));
    if (sends) {
        if (send_some(w, c, end, pick(w, c, 1)) < 0 && (errno == EPIPE || errno == ECONNRESET))
            c->left = c->left < 5 ? c->left : 5;
        return;
    }
    receive(w, c, end, pick(w, c, 0), c->blocking && chance(w, 40));
    if (c->ended[end])
        c->left = c->left < 5 ? c->left : 5;
}

static void run(struct world *w)
{
    timer_t timer = interrupt_myself();
    while (w->log.calls < w->budget)
        step(w);
    timer_delete(timer);
    close_world(w);
}

static void *run_thread(void *world)
{
    run(world);
    return NULL;
}

/* ---------------------------------------------------------------- the whole */

static void add(struct log *sum, const struct log *more)
{
    uint64_t *into = (uint64_t *)sum;
    const uint64_t *from = (const uint64_t *)more;
    for (size_t i = 0; i < sizeof(*sum) / sizeof(*into); i++)
        into[i] += from[i];
}

static void print_log(const struct log *log, double seconds)
{
    struct entry all = {};
    printf("{\"log\": {");
    for (int t = 0; t < TRANSPORTS; t++) {
        printf("%s\"%s\": {", t ? ", " : "", TRANSPORT_NAMES[t]);
        for (int kind = 0; kind < KINDS; kind++) {
            const struct entry *e = &log->entries[t][kind];
            if (kind == 0 || kind == RECEIVE_KINDS)
                printf("%s\"%s\": {", kind ? "}, " : "", kind ? "out" : "in");
            printf("%s\"%s\": {\"calls\": %lu, \"moved\": %lu, \"chunks\": %lu, \"bytes\": %lu}",
                   kind == 0 || kind == RECEIVE_KINDS ? "" : ", ", KIND_NAMES[kind], e->calls, e->moved, e->chunks,
                   e->bytes);
            all.chunks += e->chunks;
            all.bytes += e->bytes;
        }
        printf("}}");
    }
    printf("}, \"chunks\": %lu, \"bytes\": %lu, \"calls\": %lu, \"connections\": %lu, \"others\": %lu, \"eintr\": %lu, "
           "\"again\": %lu, \"resets\": %lu, \"eofs\": %lu, \"peeks\": %lu, \"zerocopies\": %lu, \"passed\": %lu, "
           "\"urgent\": %lu, \"seconds\": %.3f}\n",
           all.chunks, all.bytes, log->calls, log->connections, log->others, log->eintr, log->again, log->resets,
           log->eofs, log->peeks, log->zerocopies, log->passed, log->urgent, seconds);
}

static int index_of(const char *name, const char *const *names, int count)
{
    for (int i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0)
            return i;
    fprintf(stderr, "witness: there is no %s; there are:", name);
    for (int i = 0; i < count; i++)
        fprintf(stderr, " %s", names[i]);
    fprintf(stderr, "\n");
    exit(2);
}

static void choose_kinds(char *text)
{
    bool all = strcmp(text, "all") == 0;
    for (int t = 0; t < TRANSPORTS; t++)
        for (int kind = 0; kind < KINDS; kind++)
            enabled[t][kind] = all;
    char *rest = NULL, *inner = NULL;
    for (char *part = all ? NULL : strtok_r(text, ";", &rest); part; part = strtok_r(NULL, ";", &rest)) {
        char *colon = strchr(part, ':');
        if (colon)
            *colon = 0;
        int t = index_of(part, TRANSPORT_NAMES, TRANSPORTS);
        for (int kind = 0; kind < KINDS && !colon; kind++)
            enabled[t][kind] = true;
        for (char *name = colon ? strtok_r(colon + 1, ",", &inner) : NULL; name; name = strtok_r(NULL, ",", &inner))
            enabled[t][index_of(name, KIND_NAMES, KINDS)] = true;
    }
    int usable = 0;
    for (int t = 0; t < TRANSPORTS; t++) {
        for (int kind = 0; kind < KINDS; kind++)
            if (enabled[t][kind]) {
                int sends = kind >= RECEIVE_KINDS;
                choices[t][sends][choices_count[t][sends]++] = kind;
            }
        usable += choices_count[t][0] && choices_count[t][1];
    }
    if (!usable) {
        fprintf(stderr, "witness: no transport has a kind for each direction in %s; name one, as in tcp:read,write\n",
                text);
        exit(2);
    }
}

static int prepare_payload(void)
{
    static const char *const BEGINS[STYLES] = {
        HEADER, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "\x01\x02no protocol at all\xff\xfe"};
    int file = memfd_create("witness", MFD_CLOEXEC);
    if (file < 0)
        fail("memfd_create");
    for (int style = 0; style < STYLES; style++) {
        out[style] = malloc(BUFFER);
        if (!out[style])
            fail("memory");
        memset(out[style], '.', BUFFER);
        size_t size = style == TLS ? 11 : strlen(BEGINS[style]);
        memcpy(out[style], BEGINS[style], size);
        if (write(file, out[style], BUFFER) != BUFFER)
            fail("write of the file to send");
    }
    return file;
}

int main(int argc, char **argv)
{
    if (argc < 3 || argc > 5) {
        fprintf(stderr, "usage: witness CALLS SEED [KINDS] [mixed|http]\n");
        return 2;
    }
    uint64_t calls = strtoull(argv[1], NULL, 10), seed = strtoull(argv[2], NULL, 10);
    choose_kinds(argc > 3 ? argv[3] : strdup("all"));
    only_http = argc > 4 && strcmp(argv[4], "http") == 0;
    for (int t = 0; t < TRANSPORTS && only_http; t++)
        if (t != UDP && choices_count[t][0] && !(enabled[t][READ] && enabled[t][WRITE])) {
            fprintf(stderr, "witness: payload http begins with write and read; add both to the kinds of %s\n",
                    TRANSPORT_NAMES[t]);
            return 2;
        }
    signal(SIGPIPE, SIG_IGN);
    struct sigaction action = {.sa_handler = on_alarm}; /* without SA_RESTART: calls return with what they have */
    sigaction(SIGALRM, &action, NULL);
    struct rlimit many = {4096, 4096};
    setrlimit(RLIMIT_NOFILE, &many);
    int file = prepare_payload();

    char line[64];
    printf("ready\n");
    fflush(stdout);
    if (!fgets(line, sizeof(line), stdin))
        return 0;
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);

    /* All worlds are made here: the child inherits its connections, the thread finds its made. */
    static struct world mine, threads, childs;
    prepare(&mine, seed, calls - calls / 4 - calls / 4, file);
    prepare(&threads, seed + 1, calls / 4, file);
    prepare(&childs, seed + 2, calls / 4, file);
    int report[2];
    if (pipe(report) != 0)
        fail("pipe");
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        close_world(&mine);
        close_world(&threads);
        run(&childs);
        ssize_t n = write(report[1], &childs.log, sizeof(childs.log));
        _exit(n == sizeof(childs.log) ? 0 : 1);
    }
    close(report[1]);
    close_world(&childs);
    struct log sum = {}, told;
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_thread, &threads) != 0)
        fail("thread");
    run(&mine);
    pthread_join(thread, NULL);
    size_t have = 0;
    for (ssize_t n; have < sizeof(told); have += n)
        if ((n = read(report[0], (char *)&told + have, sizeof(told) - have)) <= 0)
            fail("the child's log did not come");
    int status;
    if (waitpid(child, &status, 0) < 0 || status != 0)
        fail("the child ended badly");
    add(&sum, &mine.log);
    add(&sum, &threads.log);
    add(&sum, &told);
    /* What the parent made for the child while preparing is in the child's log: it was there before the fork. */
    clock_gettime(CLOCK_MONOTONIC, &end);
    print_log(&sum, (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) / 1e9);
    return 0;
}
