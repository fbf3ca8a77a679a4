/* SPDX-License-Identifier: Apache-2.0 */
/* An HTTP server that reads and writes through io_uring, without a system call of its own for either: what a
 * tracer of system calls cannot see. Prints its port, serves one connection after another until it is killed.
 * `server vectors` takes READV and WRITEV instead of RECV and SEND. */
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static struct {
    int fd;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
} ring;

static int ring_open(void)
{
    struct io_uring_params p = {0};
    ring.fd = (int)syscall(SYS_io_uring_setup, 4, &p);
    if (ring.fd < 0)
        return -1;
    size_t size = p.sq_off.array + p.sq_entries * sizeof(unsigned);
    size_t cq_size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    int flags = MAP_SHARED | MAP_POPULATE, prot = PROT_READ | PROT_WRITE;
    char *sq = mmap(NULL, size, prot, flags, ring.fd, IORING_OFF_SQ_RING);
    char *cq = mmap(NULL, cq_size, prot, flags, ring.fd, IORING_OFF_CQ_RING);
    ring.sqes = mmap(NULL, p.sq_entries * sizeof(*ring.sqes), prot, flags, ring.fd, IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || ring.sqes == MAP_FAILED)
        return -1;
    ring.sq_tail = (unsigned *)(sq + p.sq_off.tail);
    ring.sq_mask = (unsigned *)(sq + p.sq_off.ring_mask);
    ring.sq_array = (unsigned *)(sq + p.sq_off.array);
    ring.cq_head = (unsigned *)(cq + p.cq_off.head);
    ring.cq_tail = (unsigned *)(cq + p.cq_off.tail);
    ring.cq_mask = (unsigned *)(cq + p.cq_off.ring_mask);
    ring.cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
    return 0;
}

/* One operation, and its result. */
static int run(int opcode, int fd, const void *address, unsigned length)
{
    unsigned tail = *ring.sq_tail, index = tail & *ring.sq_mask;
    struct io_uring_sqe *sqe = &ring.sqes[index];
    memset(sqe, 0, sizeof(*sqe));
    sqe->opcode = (unsigned char)opcode;
    sqe->fd = fd;
    sqe->addr = (unsigned long)address;
    sqe->len = length;
    ring.sq_array[index] = index;
    __atomic_store_n(ring.sq_tail, tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
        return -1;
    unsigned head = *ring.cq_head;
    while (__atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE) == head)
        syscall(SYS_io_uring_enter, ring.fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    int result = ring.cqes[head & *ring.cq_mask].res;
    __atomic_store_n(ring.cq_head, head + 1, __ATOMIC_RELEASE);
    return result;
}

int main(int argc, char **argv)
{
    int vectors = argc > 1 && strcmp(argv[1], "vectors") == 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&address, sizeof(address)) != 0 || listen(listener, 8) != 0 || ring_open() != 0) {
        perror("server");
        return 1;
    }
    getsockname(listener, (void *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    static char request[65536];
    static char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    const size_t head = sizeof(answer) - 6; /* the body in a vector of its own */
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        struct iovec in = {request, sizeof(request)}, out[2] = {{answer, head}, {answer + head, 5}};
        for (;;) {
            int got = vectors ? run(IORING_OP_READV, connection, &in, 1)
                              : run(IORING_OP_RECV, connection, request, sizeof(request));
            if (got <= 0)
                break;
            int sent = vectors ? run(IORING_OP_WRITEV, connection, out, 2)
                               : run(IORING_OP_SEND, connection, answer, sizeof(answer) - 1);
            if (sent != (int)sizeof(answer) - 1)
                break;
        }
        close(connection);
    }
}
