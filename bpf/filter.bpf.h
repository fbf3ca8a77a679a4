/* SPDX-License-Identifier: GPL-2.0-only */
/* Which processes are traced. Nothing is traced that was not selected. */
#pragma once

INLINE uint32_t current_tgid(void)
{
    return bpf_get_current_pid_tgid() >> 32;
}

/* All that a process pays that was not selected. */
INLINE struct traced_process *traced_process(uint32_t tgid)
{
    return traced.lookup(&tgid);
}

