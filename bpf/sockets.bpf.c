// SPDX-License-Identifier: GPL-2.0-only
/* What happens to sockets without a system call of their process, and who begins to listen.
 *
 * Raw tracepoints, though the perf kind would do: these fire in interrupts, and the kernel skips a perf
 * program that would run inside another one (bpf_prog_active); an end of a connection would be lost. */

enum { GAP_MAX = 1 << 30 };

/* Of one that is on the way from FIN to its end, TCP_CLOSE is no surprise. */
INLINE bool closes_in_order(int state)
{
    return state == STATE_FIN_WAIT2 || state == STATE_TIME_WAIT || state == STATE_LAST_ACK ||
           state == STATE_CLOSING;
}

/* A selected port is traced from before its first connection. Not when the first process of the system
 * listens for others (socket activation): everything would be its child. */
INLINE void began_to_listen(uint64_t sk)
{
    struct process_event event = {.kind = EVENT_LISTEN, .tgid = current_tgid()};
    event.port = READ(uint16_t, sk, sock_common, skc_num);
    event.netns = network_namespace(sk);
    uint16_t port = event.port;
    if (!traced_process(event.tgid) && ports.lookup(&port) && event.tgid != 1) {
        struct traced_process selected = {FOLLOW_CHILDREN};
        traced.update(&event.tgid, &selected);
    }
    event.traced = traced_process(event.tgid) != NULL;
    emit_process(&event);
}

/* The socket is gone, or another connection's from now on. */
INLINE void ended(uint64_t sk, const struct connection *connection)
{
    emit_close(connection, EVENT_CLOSE, 0);
    connections.delete(&sk);
}

/* args: sk, old state, new state */
int raw_inet_sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
    uint64_t sk = ctx->args[0];
    int from = ctx->args[1], to = ctx->args[2];
    if (to == STATE_LISTEN) {
        if (transport_of(sk) == TRANSPORT_TCP)
            began_to_listen(sk);
        return 0;
    }
    if (to != STATE_FIN_WAIT1 && to != STATE_LAST_ACK && to != STATE_CLOSE && to != STATE_SYN_SENT)
        return 0;
    struct connection *connection = connections.lookup(&sk);
    if (!connection)
        return 0;
    if (to == STATE_SYN_SENT) { /* it was taken apart (connect with AF_UNSPEC) and connects again */
        ended(sk, connection);
        return 0;
    }
    if (to == STATE_CLOSE && (!closes_in_order(from) || READ(uint32_t, sk, sock, sk_err)))
        connection->reset = 1;
    /* A close behind a shutdown enters the same state again. Should the connection have begun between, its numbers count
     * the FIN already. */
    if (to != STATE_CLOSE && from != to)
        connection->fin_was_sent = 1;
    emit_fin(connection, DIRECTION_OUT);
    /* What has arrived can still be read; if so the end comes with the read, or with the socket's. */
    if (to == STATE_CLOSE && !bytes_wait(sk, TRANSPORT_TCP))
        emit_fin(connection, DIRECTION_IN);
    return 0;
}

/* At the end the kernel's numbers say what moved in all: what no call accounts for was a gap. So are bytes that
 * moved after the last call that was seen, and what two threads at once made of the sum before is undone. A
 * reset sets the numbers anew: then nobody can tell. */
INLINE void count_last_gap(const struct stream *stream, uint32_t end)
{
    struct kernel_counters *counts = this_cpu_counters();
    int32_t rest = end - stream->origin - (uint32_t)stream->bytes - stream->gap;
    if (counts && rest > -GAP_MAX && rest < GAP_MAX)
        __sync_fetch_and_add(&counts->gap_bytes, (int64_t)rest);
}

/* args: sk. However a connection ends, this comes last. */
int raw_tcp_destroy_sock(struct bpf_raw_tracepoint_args *ctx)
{
    uint64_t sk = ctx->args[0];
    struct connection *connection = connections.lookup(&sk);
    if (!connection)
        return 0;
    if (!connection->reset) {
        /* Our FIN is counted as a byte, and so is the peer's that was read. */
        uint32_t in = sequence(sk, DIRECTION_IN) - fin_was_read(sk);
        uint32_t out = sequence(sk, DIRECTION_OUT) - connection->fin_was_sent;
        count_last_gap(&connection->streams[DIRECTION_IN], in);
        count_last_gap(&connection->streams[DIRECTION_OUT], out);
    }
    ended(sk, connection);
    return 0;
}
