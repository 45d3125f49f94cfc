from __future__ import annotations

import os
import socket

from faults.soak.samples import connections_to


def test_connections_to_a_port_are_counted_from_the_client_s_side() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert connections_to(port, os.getpid()) == 0
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            assert connections_to(port, os.getpid()) == 1
            accepted.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""  # it is half-closed now, and still there
            assert connections_to(port, os.getpid()) == 1
        assert connections_to(port, os.getpid()) == 0  # though the kernel waits for the other side
        accepted.close()
