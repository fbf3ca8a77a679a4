/* SPDX-License-Identifier: GPL-2.0-only */
/* From a descriptor to the kernel's socket, and what a socket says of itself. */
#pragma once

enum { S_IFMT_ = 0xf000, S_IFSOCK_ = 0xc000, UNIX = 1, INET4 = 2, INET6 = 10 };
enum { STREAM_TYPE = 1, DATAGRAM_TYPE = 2, TCP_PROTOCOL = 6, UDP_PROTOCOL = 17 };
enum { RCV_SHUTDOWN_ = 1 };
enum { DONE = 1 << 1 }; /* SOCK_DONE: the FIN has arrived */
enum tcp_state {
    STATE_ESTABLISHED = 1,
    STATE_SYN_SENT,
    STATE_FIN_WAIT1 = 4,
    STATE_FIN_WAIT2,
    STATE_TIME_WAIT,
    STATE_CLOSE,
    STATE_CLOSE_WAIT,
    STATE_LAST_ACK,
    STATE_LISTEN,
    STATE_CLOSING,
};

/* f_op and private_data of a file, which stand near each other on newer kernels: one read then. */
INLINE void file_kind(uint64_t file, uint64_t *operations, uint64_t *private_data)
{
#if OFFSET(file, private_data) > OFFSET(file, f_op) && OFFSET(file, private_data) - OFFSET(file, f_op) < 64
    uint64_t part[(OFFSET(file, private_data) - OFFSET(file, f_op)) / 8 + 1] = {};
    bpf_probe_read_kernel(part, sizeof(part), (void *)(file + OFFSET(file, f_op)));
    *operations = part[0];
    *private_data = part[(OFFSET(file, private_data) - OFFSET(file, f_op)) / 8];
#else
    *operations = READ(uint64_t, file, file, f_op);
    *private_data = READ(uint64_t, file, file, private_data);
#endif
}

/* struct file behind a descriptor of the current task, or 0. */
INLINE uint64_t file_of(uint32_t fd)
{
    uint64_t task = (uint64_t)bpf_get_current_task_btf();
    uint64_t files = LOAD(uint64_t, task, task_struct, files);
    uint64_t table = LOAD(uint64_t, files, files_struct, fdt);
    if (fd >= LOAD(uint32_t, table, fdtable, max_fds))
        return 0;
    uint64_t file = 0;
    bpf_probe_read_kernel(&file, sizeof(file), (void *)(LOAD(uint64_t, table, fdtable, fd) + 8ULL * fd));
    return file;
}

/* struct socket of a file, or 0. All sockets share one table of file operations; no symbol names it, so its
 * address is learned from the first file that is a socket beyond doubt: its inode says so and the socket
 * points back. (An O_PATH descriptor of a socket has the inode but other operations.) */
INLINE uint64_t socket_of_file(uint64_t file)
{
    int zero = 0;
    uint64_t operations, socket;
    uint64_t *known = socket_operations.lookup(&zero);
    if (!file || !known)
        return 0;
    file_kind(file, &operations, &socket);
    if (*known)
        return operations == *known ? socket : 0;
    uint64_t inode = READ(uint64_t, file, file, f_inode);
    if ((READ(uint16_t, inode, inode, i_mode) & S_IFMT_) != S_IFSOCK_ || !socket ||
        READ(uint64_t, socket, socket, file) != file)
        return 0;
    *known = operations;
    return socket;
}

/* struct sock behind a descriptor of the current task, or 0. Four reads and no memory of ours: no call that
 * closes, duplicates, passes or shares descriptors can make it wrong. */
INLINE uint64_t sock_of(uint32_t fd)
{
    uint64_t socket = socket_of_file(file_of(fd));
    return socket ? READ(uint64_t, socket, socket, sk) : 0;
}

/* Is the descriptor the last that refers to its file? */
INLINE bool last_reference(uint64_t file)
{
#if HAS_file__f_ref
    return READ(uint64_t, file, file, f_ref) == 0; /* since Linux 6.13 it counts from -1 */
#elif HAS_file__f_count
    return READ(uint64_t, file, file, f_count) == 1;
#endif
}

enum { TRANSPORT_NONE = 255 };

/* enum transport of a socket, or TRANSPORT_NONE: it is not traced. */
INLINE uint8_t transport_of(uint64_t sk)
{
    uint16_t family = READ(uint16_t, sk, sock_common, skc_family);
    uint16_t type = READ(uint16_t, sk, sock, sk_type), protocol = READ(uint16_t, sk, sock, sk_protocol);
    if (family == UNIX)
        return type == STREAM_TYPE ? TRANSPORT_UNIX : TRANSPORT_NONE;
    if (family != INET4 && family != INET6)
        return TRANSPORT_NONE;
    if (type == STREAM_TYPE && protocol == TCP_PROTOCOL)
        return TRANSPORT_TCP;
    return type == DATAGRAM_TYPE && protocol == UDP_PROTOCOL ? TRANSPORT_UDP : TRANSPORT_NONE;
}

/* Inode number of a socket: with its address it names a socket for good, as addresses are used again. */
INLINE uint64_t inode_number(uint64_t sk)
{
    uint64_t socket = READ(uint64_t, sk, sock, sk_socket);
    return socket ? READ(uint64_t, socket + OFFSET(socket_alloc, vfs_inode), inode, i_ino) : 0;
}

/* Who asked, by what the socket shows. One that accept returned has its listener's backlog; one that
 * connect gave a port has that port in a bucket that no bind may share. A client that chose its port itself, and
 * what a listener of backlog 0 accepted, show nothing: then the first message tells. */
INLINE uint8_t role_of_tcp(uint64_t sk)
{
    if (READ(uint32_t, sk, sock, sk_max_ack_backlog))
        return ROLE_SERVER;
    uint64_t bucket = READ(uint64_t, sk, inet_connection_sock, icsk_bind_hash);
    return bucket && READ(int8_t, bucket, inet_bind_bucket, fastreuse) < 0 ? ROLE_CLIENT : ROLE_UNKNOWN;
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
    return READ(uint64_t, sk, sock_common, skc_flags) & DONE &&
           sequence(sk, DIRECTION_IN) == READ(uint32_t, sk, tcp_sock, rcv_nxt);
}

/* Can something be read before the peer's FIN? TCP counts that as a byte, whether or not it was read. */
INLINE bool bytes_wait(uint64_t sk, uint8_t transport)
{
    if (transport == TRANSPORT_UNIX)
        return READ(uint32_t, sk + OFFSET(sock, sk_receive_queue), sk_buff_head, qlen) != 0;
    return READ(uint32_t, sk, tcp_sock, rcv_nxt) - sequence(sk, DIRECTION_IN) > 1;
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
