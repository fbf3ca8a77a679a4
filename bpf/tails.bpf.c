// SPDX-License-Identifier: GPL-2.0-only
/* What the hooks on calls jump to, with the call in the CPU's `work`: sum up its messages, decide what is
 * wanted of it, send that.
 *
 * Programs of their own: compiled once for all hooks, and verified with nothing known of the way that led
 * there. In one program the copying loop was verified anew for each way to it, and passed the verifier's limit
 * of a million instructions at 30 vectors. */

/* The kernel allows 33 jumps: 8 for the 1024 messages (UIO_MAXIOV) of one call, one to decide (three where the end is
 * looked at, which is not done of messages), the rest to send. */
enum { MESSAGES_A_RUN = 128, RUNS_MAX = 23 };

/* The bytes of several messages are one chunk: the sum. Empty ones are none of UDP's datagrams. */
int tail_messages(void *ctx)
{
    int cpu = bpf_get_smp_processor_id();
    struct work *work = works.lookup(&cpu);
    if (!work)
        return 0;
    struct call *call = &work->call;
#pragma clang loop unroll(disable)
    for (uint32_t i = 0; i < MESSAGES_A_RUN; i++) {
        asm volatile("" ::: "memory"); /* see send_chunk() */
        if (call->summed >= call->messages)
            break;
        uint64_t header = call->buffer + call->summed * MESSAGE_STRIDE;
        bpf_probe_read_user(&work->length, sizeof(work->length), (void *)(header + MESSAGE_LENGTH_AT));
        call->size += work->length;
        call->datagrams += work->length != 0;
        call->summed++;
    }
    if (call->summed < call->messages)
        jump(ctx, TAIL_MESSAGES);
    asm volatile("" ::: "memory");
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
        jump(ctx, work->at_end ? TAIL_AT_END : TAIL_SEND);
    return 0;
}

/* Of what is not copied of a database's call, the end is looked at: in two steps, so that the verifier follows the loops of
 * the second once, and not for each way through the first. */
int tail_at_end(void *ctx)
{
    int cpu = bpf_get_smp_processor_id();
    struct work *work = works.lookup(&cpu);
    if (!work)
        return 0;
    take_end(work);
    jump(ctx, work->is_request ? TAIL_PIPELINED : TAIL_ANSWERED);
    return 0;
}

int tail_pipelined(void *ctx)
{
    int cpu = bpf_get_smp_processor_id();
    struct work *work = works.lookup(&cpu);
    if (!work)
        return 0;
    pipelined(work);
    jump(ctx, TAIL_SEND);
    return 0;
}

int tail_answered(void *ctx)
{
    int cpu = bpf_get_smp_processor_id();
    struct work *work = works.lookup(&cpu);
    if (!work)
        return 0;
    answered(work);
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
