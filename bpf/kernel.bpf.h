/* SPDX-License-Identifier: GPL-2.0-only */
/* Reads of kernel structures, without kernel headers: each offset is named OFFSET(structure, field) where it
 * is used; the loader finds these names in the text, looks them up in this kernel's BTF and defines them. */
#pragma once

#define OFFSET(structure, field) OFFSET_##structure##__##field
#define INLINE static inline __attribute__((always_inline))

/* Field of a structure behind a plain address (from a map, or from another such read): it goes through
 * the helper, because the verifier only lets typed pointers be loaded from. Fault: zero. */
#define READ(type, base, structure, field)                                                             \
    ({                                                                                                 \
        type value_ = 0;                                                                               \
        bpf_probe_read_kernel(&value_, sizeof(value_), (void *)((base) + OFFSET(structure, field)));   \
        value_;                                                                                        \
    })

/* The same where the verifier knows the type (current task, what its fields lead to, its registers):
 * a plain load, without a call. */
#define LOAD(type, base, structure, field) (*(volatile type *)((base) + OFFSET(structure, field)))

enum { S_IFMT_ = 0xf000, S_IFSOCK_ = 0xc000, TCP_PROTOCOL = 6, STREAM_TYPE = 1, INET4 = 2, INET6 = 10 };
enum { RCV_SHUTDOWN_ = 1 };
enum tcp_state {
    STATE_ESTABLISHED = 1,
    STATE_FIN_WAIT1 = 4,
    STATE_FIN_WAIT2,
    STATE_TIME_WAIT,
    STATE_CLOSE,
    STATE_CLOSE_WAIT,
    STATE_LAST_ACK,
    STATE_LISTEN,
    STATE_CLOSING,
};

/* The task's saved registers: at the exit of a system call its arguments still stand there, so receives
 * need no hook at entry. Since Linux 5.15 (bpf_task_pt_regs). */
INLINE uint64_t saved_registers(void)
{
    return bpf_task_pt_regs(bpf_get_current_task_btf());
}

INLINE uint64_t argument(uint64_t registers, int n)
{
#if defined(__TARGET_ARCH_arm64)
    if (n == 0) /* regs[0] holds the result by now */
        return LOAD(uint64_t, registers, pt_regs, orig_x0);
    return *(volatile uint64_t *)(registers + OFFSET(pt_regs, regs) + 8 * n);
#else
    switch (n) {
    case 0:
        return LOAD(uint64_t, registers, pt_regs, di);
    case 1:
        return LOAD(uint64_t, registers, pt_regs, si);
    case 2:
        return LOAD(uint64_t, registers, pt_regs, dx);
    default:
        return LOAD(uint64_t, registers, pt_regs, r10);
    }
#endif
}

/* struct sock behind a descriptor of the current task, or 0. A file is a socket when its inode says so
 * and the socket points back: an O_PATH descriptor of a socket has the inode but no socket. */
INLINE uint64_t socket_of(uint32_t fd)
{
    uint64_t task = (uint64_t)bpf_get_current_task_btf();
    uint64_t files = LOAD(uint64_t, task, task_struct, files);
    uint64_t table = LOAD(uint64_t, files, files_struct, fdt);
    if (fd >= LOAD(uint32_t, table, fdtable, max_fds))
        return 0;
    uint64_t file = 0;
    bpf_probe_read_kernel(&file, sizeof(file), (void *)(LOAD(uint64_t, table, fdtable, fd) + 8ULL * fd));
    if (!file)
        return 0;
    uint64_t inode = READ(uint64_t, file, file, f_inode);
    if ((READ(uint16_t, inode, inode, i_mode) & S_IFMT_) != S_IFSOCK_)
        return 0;
    uint64_t socket = READ(uint64_t, file, file, private_data);
    if (!socket || READ(uint64_t, socket, socket, file) != file)
        return 0;
    return READ(uint64_t, socket, socket, sk);
}

INLINE bool is_tcp(uint64_t sk)
{
    uint16_t family = READ(uint16_t, sk, sock_common, skc_family);
    return (family == INET4 || family == INET6) && READ(uint16_t, sk, sock, sk_type) == STREAM_TYPE &&
           READ(uint16_t, sk, sock, sk_protocol) == TCP_PROTOCOL;
}

INLINE uint32_t network_namespace(uint64_t sk)
{
    uint64_t net = READ(uint64_t, sk, sock_common, skc_net);
    return READ(uint32_t, net + OFFSET(net, ns), ns_common, inum);
}

/* Sequence number behind the last byte that was read (IN) or queued (OUT). */
INLINE uint32_t sequence(uint64_t sk, uint32_t direction)
{
    if (direction == DIRECTION_IN)
        return READ(uint32_t, sk, tcp_sock, copied_seq);
    return READ(uint32_t, sk, tcp_sock, write_seq);
}

/* Has the reader passed the peer's FIN? copied_seq then counts it as a byte. */
INLINE bool fin_was_read(uint64_t sk)
{
    uint8_t state = READ(uint8_t, sk, sock_common, skc_state);
    return state >= STATE_TIME_WAIT && (READ(uint8_t, sk, sock, sk_shutdown) & RCV_SHUTDOWN_) &&
           sequence(sk, DIRECTION_IN) == READ(uint32_t, sk, tcp_sock, rcv_nxt);
}

/* Had bytes moved on this socket before those of the present call? What was received less what is still
 * unread; what is queued. The counts of the kernel take the peer's FIN, our SYN and our FIN for bytes. */
INLINE bool moved_before(uint64_t sk, uint32_t in_now, uint32_t out_now)
{
    int64_t in = READ(uint64_t, sk, tcp_sock, bytes_received) -
                 (READ(uint32_t, sk, tcp_sock, rcv_nxt) - sequence(sk, DIRECTION_IN)) - fin_was_read(sk);
    int64_t out = READ(uint64_t, sk, tcp_sock, bytes_acked) +
                  (sequence(sk, DIRECTION_OUT) - READ(uint32_t, sk, tcp_sock, snd_una));
    return in - in_now > 0 || out - out_now > 2;
}
