"""The listening socket."""

from __future__ import annotations

import socket

from server.run import bind


def test_accepted_connections_send_at_once():
    """Without TCP_NODELAY a small answer waits for the acknowledgement of the one before: 40 ms."""
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
