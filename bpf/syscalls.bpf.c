// SPDX-License-Identifier: GPL-2.0-only
/* The system calls that make, use and end connections.
 *
 * Hooked one by one: a call that is not hooked costs 26 ns more in every process of the host while any
 * is, where one raw tracepoint on all of them costs 204. The receiving calls have a hook at their exit
 * only, their arguments are still in the task's registers; the sending ones have one at entry too, which
 * takes the time: the request began there. One program serves a family of calls and asks which it is:
 * a program for each call took 1.2 s more to compile and verify. Which
 * calls a program is attached to stands in agent/loader.py (TARGETS). */
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

enum { OUT_OF_BAND = 1, PEEK = 2, TRUNC = 0x20, ERROR_QUEUE = 0x2000 }; /* MSG_* */
enum { CONNECTION_RESET = -104, IN_PROGRESS = -115, CLOSE_RANGE_STEPS = 64 };

/* struct msghdr, from msg_iov on */
INLINE void take_message(struct call *call, uint64_t message)
{
    uint64_t vectors_count[2] = {};
    bpf_probe_read_user(vectors_count, sizeof(vectors_count), (void *)(message + 16));
    call->buffer = vectors_count[0];
    call->count = vectors_count[1];
    call->vectored = true;
}

/* Who makes the call; NULL: a process that was not selected. */
INLINE const struct traced_process *take_caller(struct call *call)
{
    uint64_t id = bpf_get_current_pid_tgid();
    call->tid = id;
    call->tgid = id >> 32;
    return traced_process(call->tgid);
}

/* read readv recvfrom recvmsg */
int exit_receive(struct exit_arguments *ctx)
{
    struct call call = {};
    int64_t result = ctx->result;
    if (result < 0 && result != CONNECTION_RESET)
        return 0; /* EAGAIN above all: it costs no look-up */
    const struct traced_process *process = take_caller(&call);
    if (!process)
        return 0;
    uint64_t registers = saved_registers();
    call.fd = argument(registers, 0);
    call.buffer = argument(registers, 1);
    uint32_t flags = 0;
    switch ((int)ctx->number) {
    case __NR_recvfrom:
        flags = argument(registers, 3);
        break;
    case __NR_recvmsg:
        flags = argument(registers, 2);
        take_message(&call, call.buffer);
        break;
    case __NR_readv:
        call.count = argument(registers, 2);
        call.vectored = true;
        break;
    }
    if (flags & (PEEK | OUT_OF_BAND | ERROR_QUEUE))
        return 0; /* the stream did not move */
    if (flags & TRUNC)
        call.buffer = 0; /* TCP throws the bytes away */
    call.size = result > 0 ? result : 0;
    call.reset = result < 0;
    chunk(process, &call, DIRECTION_IN);
    return 0;
}

/* Takes the time. write writev sendto sendmsg sendfile64 */
int enter_send(struct enter_arguments *ctx)
{
    uint64_t id = bpf_get_current_pid_tgid();
    if (!traced_process(id >> 32))
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
    struct call call = {};
    int64_t result = ctx->result;
    if (result <= 0)
        return 0;
    const struct traced_process *process = take_caller(&call);
    if (!process)
        return 0;
    uint64_t registers = saved_registers();
    call.fd = argument(registers, 0);
    call.buffer = argument(registers, 1);
    switch ((int)ctx->number) {
    case __NR_sendmsg:
        take_message(&call, call.buffer);
        break;
    case __NR_writev:
        call.count = argument(registers, 2);
        call.vectored = true;
        break;
    case __NR_sendfile:
        call.buffer = 0; /* the bytes never pass through the process's memory */
        break;
    }
    call.size = result;
    chunk(process, &call, DIRECTION_OUT);
    return 0;
}

/* accept accept4 */
int exit_accept(struct exit_arguments *ctx)
{
    if (ctx->result < 0)
        return 0;
    uint32_t tgid = current_tgid();
    const struct traced_process *process = traced_process(tgid);
    if (process)
        connection_new(process, tgid, ctx->result, ROLE_SERVER, true);
    return 0;
}

int exit_connect(struct exit_arguments *ctx)
{
    if (ctx->result != 0 && ctx->result != IN_PROGRESS)
        return 0;
    uint32_t tgid = current_tgid();
    const struct traced_process *process = traced_process(tgid);
    if (process)
        connection_new(process, tgid, argument(saved_registers(), 0), ROLE_CLIENT, ctx->result == 0);
    return 0;
}

/* At entry, while the number cannot be another file's yet. */
int enter_close(struct enter_arguments *ctx)
{
    uint32_t tgid = current_tgid();
    if (traced_process(tgid))
        descriptor_forget(tgid, ctx->arguments[0]);
    return 0;
}

int enter_close_range(struct enter_arguments *ctx)
{
    uint32_t tgid = current_tgid(), first = ctx->arguments[0], last = ctx->arguments[1];
    struct traced_process *process = traced_process(tgid);
    if (!process)
        return 0;
    if (last - first >= CLOSE_RANGE_STEPS) {
        process->generation++;
        return 0;
    }
    for (uint32_t i = 0; i < CLOSE_RANGE_STEPS; i++)
        if (i <= last - first)
            descriptor_forget(tgid, first + i);
    return 0;
}

/* The new number may have been another file's, which the call has closed. dup2 dup3 */
int exit_dup(struct exit_arguments *ctx)
{
    uint32_t tgid = current_tgid();
    if (ctx->result >= 0 && traced_process(tgid))
        descriptor_forget(tgid, ctx->result);
    return 0;
}
