// SPDX-License-Identifier: GPL-2.0-only
/* Processes begin and end: children of a traced process are traced from their first instruction, and the
 * keeper is told of each program that starts. Raw tracepoints: they give the tasks themselves, from which
 * a thread can be told from a process. */

/* args: parent task, child task */
int raw_sched_process_fork(struct bpf_raw_tracepoint_args *ctx)
{
    uint32_t parent = current_tgid();
    const struct traced_process *process = traced_process(parent);
    if (!process || !(process->flags & FOLLOW_CHILDREN))
        return 0;
    uint64_t child = ctx->args[1];
    uint32_t tgid = READ(uint32_t, child, task_struct, tgid);
    if (tgid != READ(uint32_t, child, task_struct, pid))
        return 0; /* a thread */
    struct traced_process selected = *process;
    tell(EVENT_FORK, tgid, parent, traced.update(&tgid, &selected) == 0);
    return 0;
}

int raw_sched_process_exec(struct bpf_raw_tracepoint_args *ctx)
{
    uint32_t tgid = current_tgid();
    tell(EVENT_EXEC, tgid, 0, traced_process(tgid) != NULL);
    return 0;
}

/* Of each thread; the process ends with its last one, which need not be the first. */
int raw_sched_process_exit(struct bpf_raw_tracepoint_args *ctx)
{
    uint64_t id = bpf_get_current_pid_tgid();
    uint32_t tid = id, tgid = id >> 32;
#if CAPTURE_SYSCALLS
    threads.delete(&tid);
#endif
#if CAPTURE_KPROBES
    moves.delete(&tid);
#endif
    if (!traced_process(tgid))
        return 0;
    uint64_t task = (uint64_t)bpf_get_current_task_btf();
    uint64_t signal = LOAD(uint64_t, task, task_struct, signal);
    if (LOAD(uint32_t, signal, signal_struct, live) != 0)
        return 0;
    traced.delete(&tgid);
    tell(EVENT_EXIT, tgid, 0, true);
    return 0;
}
