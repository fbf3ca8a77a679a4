// SPDX-License-Identifier: GPL-2.0-only
/* The system calls that move bytes, and those that end what no tracepoint of sockets tells of.
 *
 * Hooked one by one: a call that is not hooked costs 52 ns more in every process of the host while any
 * is, where one raw tracepoint on all of them costs 204. The receiving calls have a hook at their exit
 * only, their arguments are still in the task's registers; the sending ones have one at entry too, which
 * takes the time: the request began there. One program serves a family of calls and asks which it is:
 * a program for each call took 1.2 s more to compile and verify. Which
 * calls a program is attached to stands in agent/loader.py (TARGETS).
 *
 * Not hooked, as they cannot reach a socket: pread, pwrite, preadv, pwritev (ESPIPE), tee and vmsplice (pipes on
 * both sides), copy_file_range. */
#include <asm/unistd.h>

struct enter_arguments {
    uint64_t common;
    int64_t number;
    uint64_t arguments[6];
};
struct exit_arguments {
    uint64_t common;
    int64_t number;
    int64_t result;
};

enum { SHUT_READ = 0 };

/* struct msghdr, from msg_iov on */
INLINE void take_message(struct call *call, uint64_t message)
{
    uint64_t vectors_count[2] = {};
    bpf_probe_read_user(vectors_count, sizeof(vectors_count), (void *)(message + MESSAGE_HEADER_AT));
    call->buffer = vectors_count[0];
    call->count = vectors_count[1];
    call->vectored = true;
}

/* An array of struct mmsghdr, of which `size` were sent or received: tail_messages sums up their bytes. */
INLINE void take_messages(struct call *call)
{
    call->messages = call->size;
    call->size = 0;
    call->vectored = true;
}

/* What the caller did with a descriptor, to be filled in. NULL: it is no socket, or the caller a process that
 * was not selected, or that is seen by other hooks. In memory of the CPU's, for the verifier's sake: it
 * takes a value loaded from a map as unknown, and so the ways through the program below meet again. */
INLINE struct work *begin_call(int descriptor)
{
    uint64_t id = bpf_get_current_pid_tgid();
    const struct traced_process *process = traced_process(id >> 32);
    if (!process || process->flags & BY_KPROBE)
        return NULL;
    uint64_t sk = sock_of(argument(saved_registers(), descriptor));
    int cpu = bpf_get_smp_processor_id();
    struct work *work = sk ? works.lookup(&cpu) : NULL;
    if (!work)
        return NULL;
    __builtin_memset(&work->call, 0, sizeof(work->call));
    work->call.sk = sk;
    work->call.tid = id;
    work->call.tgid = id >> 32;
    return work;
}

/* Two jumps, not one to a place that is computed: the kernel makes a plain jump of one that is constant, and an
 * indirect one, which costs more by far, of any other. */
INLINE void jump_to_chunk(void *ctx, const struct call *call)
{
    if (call->messages)
        jump(ctx, TAIL_MESSAGES);
    asm volatile("" ::: "memory");
    jump(ctx, TAIL_CHUNK);
}

/* read readv preadv2 recvfrom recvmsg recvmmsg splice, sendfile64 into a pipe */
int exit_receive(struct exit_arguments *ctx)
{
    int64_t result = ctx->result;
    if (result < 0 && result != CONNECTION_RESET)
        return 0; /* EAGAIN above all: it costs no look-up */
    int number = ctx->number;
    struct work *work = begin_call(number == __NR_sendfile ? 1 : 0);
    if (!work)
        return 0;
    uint64_t registers = saved_registers();
    struct call *call = &work->call;
    call->buffer = argument(registers, 1);
    call->size = result > 0 ? result : 0;
    call->reset = result < 0;
    uint32_t flags = 0;
    switch (number) {
    case __NR_recvfrom:
        flags = argument(registers, 3);
        break;
    case __NR_recvmsg:
        flags = argument(registers, 2);
        take_message(call, call->buffer);
        break;
    case __NR_recvmmsg:
        flags = argument(registers, 3);
        take_messages(call);
        break;
    case __NR_readv:
    case __NR_preadv2:
        call->count = argument(registers, 2);
        call->vectored = true;
        break;
    case __NR_sendfile:
    case __NR_splice:
        call->buffer = 0; /* the bytes never pass through the process's memory */
        break;
    }
    if (flags & (PEEK | OUT_OF_BAND | ERROR_QUEUE))
        return 0; /* the stream did not move */
    call->discarded = flags & TRUNC;
    call->direction = DIRECTION_IN;
    jump_to_chunk(ctx, call);
    return 0;
}

/* Takes the time. write writev pwritev2 sendto sendmsg sendmmsg sendfile64 splice */
int enter_send(struct enter_arguments *ctx)
{
    uint64_t id = bpf_get_current_pid_tgid();
    const struct traced_process *process = traced_process(id >> 32);
    if (!process || process->flags & BY_KPROBE)
        return 0;
    uint32_t tid = id;
    uint64_t now = bpf_ktime_get_ns();
    uint64_t *entered = threads.lookup(&tid);
    if (entered) {
        *entered = now;
        return 0;
    }
    if (threads.update(&tid, &now) != 0) {
        struct kernel_counters *counts = this_cpu_counters();
        if (counts)
            counts->threads_refused++;
    }
    return 0;
}

/* The same calls. A reset is not looked for here: it shows as a state change of the socket. */
int exit_send(struct exit_arguments *ctx)
{
    int64_t result = ctx->result;
    int number = ctx->number;
    if (result <= 0)
        return 0;
    struct work *work = begin_call(number == __NR_splice ? 2 : 0);
    if (!work)
        return 0;
    uint64_t registers = saved_registers();
    struct call *call = &work->call;
    call->buffer = argument(registers, 1);
    call->size = result;
    switch (number) {
    case __NR_sendmsg:
        take_message(call, call->buffer);
        break;
    case __NR_sendmmsg:
        take_messages(call);
        break;
    case __NR_writev:
    case __NR_pwritev2:
        call->count = argument(registers, 2);
        call->vectored = true;
        break;
    case __NR_sendfile:
    case __NR_splice:
        call->buffer = 0; /* the bytes never pass through the process's memory */
        break;
    }
    call->direction = DIRECTION_OUT;
    jump_to_chunk(ctx, call);
    return 0;
}

/* The connection of a Unix socket of the caller; NULL: it is none, or nothing moved on it. */
INLINE struct connection *unix_connection(uint64_t file, uint64_t *sk)
{
    uint64_t socket = socket_of_file(file);
    *sk = socket ? READ(uint64_t, socket, socket, sk) : 0;
    return *sk ? unix_connections.lookup(sk) : NULL;
}

/* At entry, while the descriptor still leads to its file. */
int enter_close(struct enter_arguments *ctx)
{
    uint64_t sk;
    if (!traced_process(current_tgid()))
        return 0;
    uint64_t file = file_of(ctx->arguments[0]);
    struct connection *connection = unix_connection(file, &sk);
    if (!connection || !last_reference(file))
        return 0;
    emit_close(connection, EVENT_CLOSE, 0);
    unix_connections.delete(&sk);
    return 0;
}

int enter_shutdown(struct enter_arguments *ctx)
{
    uint64_t sk;
    if (ctx->arguments[1] == SHUT_READ || !traced_process(current_tgid()))
        return 0;
    struct connection *connection = unix_connection(file_of(ctx->arguments[0]), &sk);
    if (connection)
        emit_fin(connection, DIRECTION_OUT);
    return 0;
}

/* A process that has a ring of io_uring moves bytes without system calls: the keeper is told. */
int exit_io_uring_setup(struct exit_arguments *ctx)
{
    uint32_t tgid = current_tgid();
    if (ctx->result >= 0 && traced_process(tgid))
        tell(EVENT_IO_URING, tgid, 0, true);
    return 0;
}
