"""Certificates, as Python's own TLS judges them."""

import socket
import ssl
import threading
from pathlib import Path

import pytest

from callboard_local import Authority
from callboard_local.certificates import Certificate


def judged(authority: Path, issued: Certificate, host: str) -> str:
    """What a client says of a server with this certificate: empty when it trusts it."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(issued.certificate, issued.key)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            serving.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    server = threading.Thread(target=serve)
    server.start()
    try:
        ssl.create_default_context(cafile=authority).wrap_socket(ours, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        ours.close()
        server.join()
    return ""


@pytest.mark.parametrize(
    ("options", "host", "verdict"),
    [
        ({}, "127.0.0.1", ""),
        ({}, "127.0.0.2", "IP address mismatch"),
        ({"host": "DNS:valkey.internal"}, "valkey.internal", ""),
        ({"expired": True}, "127.0.0.1", "certificate has expired"),
    ],
)
def test_certificates(tmp_path: Path, options: dict[str, object], host: str, verdict: str) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("server", **options)  # type: ignore[arg-type]
    assert verdict in judged(authority.certificate, issued, host)
    assert bool(judged(authority.certificate, issued, host)) is bool(verdict)
    other = Authority(tmp_path, "other")
    assert judged(other.certificate, issued, host)
