// SPDX-License-Identifier: GPL-2.0-only
/* The same bytes, seen where every way of moving them comes together: the kernel's own functions. For what
 * makes no system calls (io_uring), and for kernels without their tracepoints. Needs kprobes.
 *
 * At entry the message says where the bytes are; at return the result says how many moved. What is needed of
 * the former is kept by thread (struct move): the message moves on meanwhile. Which functions a program is
 * attached to stands in agent/loader.py (TARGETS); names and parameters are not stable, so that one that is
 * missing is left out, and the self-test at start must find its bytes. */
#include <linux/version.h>

/* Where the bytes of struct msghdr.msg_iter lie. Other kinds hold pages of the kernel's (sendfile, splice). */
INLINE void take_iterator(struct move *move, uint64_t message)
{
    uint64_t iterator = message + OFFSET(msghdr, msg_iter);
    uint8_t type = READ(uint8_t, iterator, iov_iter, iter_type);
    uint64_t base = READ(uint64_t, iterator, iov_iter, kvec); /* in one union with the others */
    if (type == ENUM(iter_type, ITER_UBUF)) {
        move->buffer = base + READ(uint64_t, iterator, iov_iter, iov_offset);
    } else if (type == ENUM(iter_type, ITER_IOVEC) && !READ(uint64_t, iterator, iov_iter, iov_offset)) {
        move->buffer = base;
        move->count = READ(uint64_t, iterator, iov_iter, nr_segs);
        move->vectored = 1;
    }
}

/* Begins a call of a process that is seen this way; message 0: its bytes cannot be read. */
INLINE void begin_move(uint64_t sk, uint64_t message, uint32_t direction, uint32_t flags)
{
    uint64_t id = bpf_get_current_pid_tgid();
    const struct traced_process *process = traced_process(id >> 32);
    if (!process || !(KPROBES_FOR_ALL || process->flags & BY_KPROBE))
        return;
    uint32_t tid = id;
    if (direction == DIRECTION_IN && flags & (PEEK | OUT_OF_BAND | ERROR_QUEUE)) {
        moves.delete(&tid);
        return; /* the stream does not move */
    }
    struct move move = {.sk = sk, .direction = direction};
    if (message && !(direction == DIRECTION_IN && flags & TRUNC))
        take_iterator(&move, message);
    if (direction == DIRECTION_OUT)
        move.ktime_ns = bpf_ktime_get_ns();
    if (moves.update(&tid, &move) != 0) {
        struct kernel_counters *counts = this_cpu_counters();
        if (counts)
            counts->threads_refused++;
    }
}

/* tcp_sendmsg udp_sendmsg udpv6_sendmsg (sk, message, size) */
int kprobe_send(void *ctx)
{
    begin_move(parameter(ctx, 0), parameter(ctx, 1), DIRECTION_OUT, 0);
    return 0;
}

/* unix_stream_sendmsg (socket, message, size) */
int kprobe_send_socket(void *ctx)
{
    begin_move(READ(uint64_t, parameter(ctx, 0), socket, sk), parameter(ctx, 1), DIRECTION_OUT, 0);
    return 0;
}

/* Before 6.5, for sendfile and splice. tcp_sendpage (sk, page, ...) */
int kprobe_send_pages(void *ctx)
{
    begin_move(parameter(ctx, 0), 0, DIRECTION_OUT, 0);
    return 0;
}

/* unix_stream_sendpage (socket, page, ...) */
int kprobe_send_pages_socket(void *ctx)
{
    begin_move(READ(uint64_t, parameter(ctx, 0), socket, sk), 0, DIRECTION_OUT, 0);
    return 0;
}

/* tcp_recvmsg udp_recvmsg udpv6_recvmsg (sk, message, size, flags, ...); before 5.19 "nonblock" stood before
 * the flags. */
int kprobe_receive(void *ctx)
{
    int flags = LINUX_VERSION_CODE < KERNEL_VERSION(5, 19, 0) ? 4 : 3;
    begin_move(parameter(ctx, 0), parameter(ctx, 1), DIRECTION_IN, parameter(ctx, flags));
    return 0;
}

/* unix_stream_recvmsg (socket, message, size, flags) */
int kprobe_receive_socket(void *ctx)
{
    begin_move(READ(uint64_t, parameter(ctx, 0), socket, sk), parameter(ctx, 1), DIRECTION_IN, parameter(ctx, 3));
    return 0;
}

/* tcp_splice_read unix_stream_splice_read (socket, position, pipe, length, flags) */
int kprobe_splice(void *ctx)
{
    begin_move(READ(uint64_t, parameter(ctx, 0), socket, sk), 0, DIRECTION_IN, 0);
    return 0;
}

/* The return of all of them. */
int kretprobe_moved(void *ctx)
{
    uint64_t id = bpf_get_current_pid_tgid();
    uint32_t tid = id;
    struct move *move = moves.lookup(&tid);
    int cpu = bpf_get_smp_processor_id();
    struct work *work = works.lookup(&cpu);
    if (!move || !move->sk || !work)
        return 0;
    int64_t result = (int32_t)returned(ctx);
    struct call *call = &work->call;
    __builtin_memset(call, 0, sizeof(*call));
    call->sk = move->sk;
    call->tid = tid;
    call->tgid = id >> 32;
    call->buffer = move->buffer;
    call->count = move->count;
    call->vectored = call->kernel_vectors = move->vectored;
    call->ktime_ns = move->ktime_ns;
    call->size = result > 0 ? result : 0;
    call->reset = result == CONNECTION_RESET;
    call->direction = move->direction;
    move->sk = 0;
    if (result > 0 || (call->direction == DIRECTION_IN && (result == 0 || call->reset)))
        jump(ctx, TAIL_CHUNK);
    return 0;
}

/* (socket): the last descriptor of a Unix socket is gone. */
int kprobe_unix_release(void *ctx)
{
    uint64_t sk = READ(uint64_t, parameter(ctx, 0), socket, sk);
    struct connection *connection = unix_connections.lookup(&sk);
    if (!connection)
        return 0;
    emit_close(connection, EVENT_CLOSE, 0);
    unix_connections.delete(&sk);
    return 0;
}
