# SPDX-License-Identifier: Apache-2.0
"""The 23 scenarios that other tracers test their transport layer with, and the tests of ours that show each.

The list is from Pixie (data_stream, socket_trace_bpf, conn_tracker), Datadog (monitor) and DeepFlow (pcaps).
Each name below must be a test; what does not apply says why.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CORE, STREAM = "core/test_damage.py", "core/test_stream.py"
CAPTURE, CALLS = "bpf/test_capture.py", "bpf/test_calls.py"
SOCKETS, UNIX, NETWORK, MODEL = (f"bpf/test_{name}.py" for name in ("sockets", "unix", "network", "model"))
EXTREMES, END_TO_END = "end_to_end/test_extremes.py", "end_to_end/test_transport.py"
LIFECYCLE = "end_to_end/test_lifecycle.py"

SCENARIOS: dict[int, tuple[str, list[tuple[str, str]]]] = {
    1: (
        "an event lost in the middle: resync at the next message, the loss is told",
        [
            (CORE, "test_a_lost_event_costs_its_neighbours_at_most_and_is_told"),
            (CAPTURE, "test_a_full_ring_loses_no_count"),
            (LIFECYCLE, "test_over_the_limit_the_reported_loss_is_the_true_loss"),
        ],
    ),
    2: (
        "stuck for a while, then the rest comes",
        [(CORE, "test_stuck_for_a_while_then_the_rest_comes")],
    ),
    3: (
        "stuck for too long: given up",
        [
            (CORE, "test_stuck_for_too_long_and_what_comes_then_is_given_to_no_one_else"),
            (CORE, "test_a_connection_that_is_idle_for_too_long_is_forgotten_with_what_it_held"),
        ],
    ),
    4: ("head and middle missing", [(CORE, "test_head_and_middle_of_a_message_missing")]),
    5: (
        "late events, and missing ones",
        [
            (CORE, "test_an_event_that_comes_late_into_the_ring_is_put_in_its_place"),
            (CORE, "test_late_events_and_lost_ones_together"),
        ],
    ),
    6: (
        "random loss and disorder never crash and never pair wrongly",
        [
            (CORE, "test_loss_disorder_and_doubles_never_pair_wrongly"),
            (STREAM, "test_random_cuts_give_every_span_once_and_the_ledger_is_exact"),
        ],
    ),
    7: (
        "a protocol is decided once",
        [
            (CORE, "test_what_was_known_to_be_http_stays_http"),
            (CAPTURE, "test_tls_is_counted_as_encrypted"),
            (CAPTURE, "test_after_the_allowance_chunks_come_with_their_framing_and_tail_only"),
        ],
    ),
    8: ("a spike of 50 MB, with and without TLS", [(EXTREMES, "test_a_spike_of_50_megabytes_is_whole")]),
    9: ("a resync makes no double", [(CORE, "test_after_a_loss_no_exchange_comes_twice")]),
    10: (
        "every call, vectored or not: success, part, EAGAIN; several messages; sendfile",
        [
            (CAPTURE, "test_each_call_is_one_chunk_with_its_bytes"),
            (CAPTURE, "test_partial_writes_and_eagain_count_what_moved"),
            (CALLS, "test_several_messages_with_several_vectors_are_one_chunk"),
            (CALLS, "test_a_sendmmsg_that_ends_in_the_middle_of_a_message"),
            (CALLS, "test_preadv2_and_pwritev2_without_a_position_are_read_and_write"),
            (CALLS, "test_calls_that_would_block_count_nothing"),
            (CALLS, "test_sendfile_to_a_socket_with_and_without_a_position"),
            (CALLS, "test_a_send_that_a_signal_interrupts_counts_what_it_had_moved"),
            (MODEL, "test_random_calls"),
            (END_TO_END, "test_a_file_sent_by_sendfile_has_its_size_and_is_not_copied"),
        ],
    ),
    11: (
        "files, pipes and netlink are not traced (Unix streams are, since they carry HTTP; datagrams not)",
        [
            (CAPTURE, "test_what_is_no_connection_is_not_counted"),
            (SOCKETS, "test_multipath_tcp_netlink_raw_and_packet_sockets_are_nothing"),
            (UNIX, "test_datagrams_and_packets_are_not_traced"),
            (EXTREMES, "test_files_pipes_and_netlink_are_no_business_of_the_agent"),
        ],
    ),
    12: (
        "accept without room for an address",
        [(SOCKETS, "test_accept_without_an_address_still_knows_the_peer")],
    ),
    13: (
        "the local address of who connects",
        [
            (CAPTURE, "test_open_event_tells_both_ends"),
            (CAPTURE, "test_ipv6_and_mapped_addresses"),
            (SOCKETS, "test_a_connection_in_progress_whichever_end_speaks_first"),
        ],
    ),
    14: (
        "UDP by every call, and without waiting",
        [
            (SOCKETS, "test_datagrams_are_counted_exactly"),
            (SOCKETS, "test_connected_datagrams_are_counted_exactly"),
            (SOCKETS, "test_several_datagrams_in_one_call_are_as_many_chunks"),
        ],
    ),
    15: (
        "a number used again; an end that was not seen; a killed process; a pid used again",
        [
            (SOCKETS, "test_a_number_used_again_is_another_connection"),
            (UNIX, "test_an_address_used_again_is_another_connection"),
            (UNIX, "test_a_killed_process_ends_the_other_side"),
            (EXTREMES, "test_a_server_killed_in_mid_answer_is_an_error_of_both"),
            ("agent/test_discovery.py", "test_a_pid_that_is_used_again_is_another_process"),
            ("agent/test_pipeline.py", "test_tgid_used_again_is_not_forgotten"),
        ],
    ),
    16: (
        "connections older than the agent (ends from the socket itself, not from /proc)",
        [
            (CAPTURE, "test_sockets_older_than_the_agent"),
            (SOCKETS, "test_a_role_is_right_or_unknown"),
            (END_TO_END, "test_a_connection_older_than_the_agent_is_traced_from_its_next_request"),
        ],
    ),
    17: ("a message of 10 MB", [(EXTREMES, "test_ten_megabytes_in_one_message_each_way")]),
    18: (
        "a reset right behind the response; the end by FIN",
        [
            (SOCKETS, "test_a_reset_behind_the_response_takes_nothing_back"),
            (END_TO_END, "test_reset_right_after_the_response_loses_nothing"),
            (END_TO_END, "test_a_connection_that_ends_in_mid_message"),
        ],
    ),
    19: (
        "kept alive or not, with translated addresses or not: a hundred requests once each, both ends seen",
        [
            (EXTREMES, "test_a_hundred_requests_each_once_at_each_end"),
            (NETWORK, "test_addresses_translated_on_the_way"),
        ],
    ),
    20: (
        "a stream that starts with a response",
        [
            (CORE, "test_a_stream_that_starts_with_an_answer_then_goes_on"),
            (CORE, "test_a_stream_that_starts_in_the_middle_of_an_answer_then_goes_on"),
        ],
    ),
    21: (
        "thousands of requests that nobody answers; slow answers and a short patience",
        [
            (CORE, "test_thousands_of_requests_that_nobody_answers_push_out_no_good_one"),
            (CORE, "test_a_slow_answer_and_a_short_patience"),
            (EXTREMES, "test_a_thousand_silent_requests_displace_no_good_one"),
        ],
    ),
    22: (
        "nothing stays behind: of connections, of processes, of a killed agent",
        [
            (SOCKETS, "test_nothing_is_remembered_of_connections_that_ended"),
            (UNIX, "test_a_killed_process_ends_the_other_side"),
            (EXTREMES, "test_nothing_of_a_killed_agent_stays_in_the_kernel"),
            (LIFECYCLE, "test_a_killed_keeper_takes_everything_with_it_and_disturbs_nobody"),
            (CAPTURE, "test_closing_the_kernel_side_detaches_all"),
        ],
    ),
    # Of tracers that read packets. This agent reads calls, and has nothing to put together again: that
    # the network's doings change nothing can still be shown. IP fragments are below TCP and never seen.
    23: (
        "packets out of order, sent again, windows of zero, half-open ends, ports used again: no harm",
        [
            (NETWORK, "test_packets_lost_doubled_and_out_of_order_change_nothing"),
            (NETWORK, "test_a_window_of_zero_only_delays"),
            (NETWORK, "test_a_peer_that_falls_silent_is_a_reset"),
            (NETWORK, "test_a_port_used_again_is_another_connection"),
        ],
    ),
}


@functools.cache
def names_in(file: str) -> set[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_no_scenario_is_left_out() -> None:
    assert list(SCENARIOS) == list(range(1, 24))


@pytest.mark.parametrize("number", SCENARIOS)
def test_each_scenario_has_the_tests_that_it_names(number: int) -> None:
    _, named = SCENARIOS[number]
    assert named
    missing = [f"{file}::{name}" for file, name in named if name not in names_in(file)]
    assert missing == []
