// SPDX-License-Identifier: GPL-2.0-only
/* What the hooks on calls jump to, with the call in the CPU's `work`: sum up its messages, decide what is
 * wanted of it, send that.
 *
 * Programs of their own: compiled once for all hooks, and verified with nothing known of the way that led
 * there. In one program the copying loop was verified anew for each way to it, and passed the verifier's limit
 * of a million instructions at 30 vectors. */

enum { MESSAGES_MAX = 1024 /* UIO_MAXIOV: of one sendmmsg or recvmmsg */, RUNS_MAX = 28 };

/* The bytes of several messages are one chunk: the sum. Empty ones are none of UDP's datagrams. */
int tail_messages(void *ctx)
{
    int cpu = bpf_get_smp_processor_id();
    struct work *work = works.lookup(&cpu);
    if (!work)
        return 0;
    uint64_t headers = work->call.buffer;
    uint32_t done = work->call.messages;
    work->call.vectored = true;
    work->call.size = work->call.datagrams = 0;
#pragma clang loop unroll(disable)
    for (uint32_t i = 0; i < MESSAGES_MAX; i++) {
        if (i >= done)
            break;
        bpf_probe_read_user(&work->length, sizeof(work->length),
                            (void *)(headers + i * MESSAGE_STRIDE + MESSAGE_LENGTH_AT));
        work->call.size += work->length;
        work->call.datagrams += work->length != 0;
    }
    jump(ctx, TAIL_CHUNK);
    return 0;
}

int tail_chunk(void *ctx)
{
    int cpu = bpf_get_smp_processor_id(), zero = 0;
    struct work *work = works.lookup(&cpu);
    struct control *shared = control.lookup(&zero);
    struct kernel_counters *counts = counters.lookup(&cpu);
    if (work && shared && counts && !shared->paused && chunk(work, shared, counts))
        jump(ctx, TAIL_SEND);
    return 0;
}

/* A writev of many vectors takes several runs; the kernel allows 33 jumps. When that is not enough, the rest is
 * what could not be read: the last run says so. */
int tail_send(void *ctx)
{
    int cpu = bpf_get_smp_processor_id();
    struct work *work = works.lookup(&cpu);
    struct kernel_counters *counts = counters.lookup(&cpu);
    if (!work || !counts || send(work, counts))
        return 0;
    work->stuck = ++work->runs == RUNS_MAX;
    jump(ctx, TAIL_SEND);
    return 0;
}
