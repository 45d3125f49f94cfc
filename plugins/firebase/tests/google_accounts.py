"""Google as far as ID tokens go: keys, certificates, accounts, over TLS under Google's own names.

The library is pointed here as in a company's network: HTTPS_PROXY names this server, REQUESTS_CA_BUNDLE its authority.
Nothing of the library is replaced.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

PROJECT = "shop-of-ada"
CERTIFICATES = "/robot/v1/metadata/x509/securetoken@system.gserviceaccount.com"


@dataclass
class Key:
    """A key pair of Google's, with the certificate that it publishes."""

    id: str
    private: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    @property
    def certificate(self) -> str:
        return certificate_of(self.private, f"securetoken {self.id}").public_bytes(Encoding.PEM).decode()


@dataclass
class Google:
    """`published` are the certificates given out; `gate` holds every answer up; `asked` are the paths, as they come."""

    environ: dict[str, str] = field(default_factory=dict)
    signing: Key = field(default_factory=lambda: Key("k1"))
    published: list[Key] = field(default_factory=list)
    accounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    max_age_s: int = 0
    status: int = 200
    body: bytes | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.published.append(self.signing)
        self.gate.set()

    def token(self, uid: str = "ada", *, key: Key | None = None, header: Any = None, **claims: Any) -> str:
        """As Google signs them; a claim that is None is left out."""
        key = key or self.signing
        return jwt.encode(claims_of(uid, **claims), key.private, "RS256", headers={"kid": key.id, **(header or {})})

    def count(self, path: str) -> int:
        return sum(path in each for each in self.asked)

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        self.arrived.set()
        self.gate.wait(30)
        if self.body is not None or self.status != 200:
            return self.status, {}, self.body or b"{}"
        if path == CERTIFICATES:
            cached = {"Cache-Control": f"public, max-age={self.max_age_s}" if self.max_age_s else "no-store"}
            return 200, cached, json.dumps({key.id: key.certificate for key in self.published}).encode()
        if path == "/token":
            return 200, {}, b'{"access_token": "t", "expires_in": 3600, "token_type": "Bearer"}'
        if path.endswith("/accounts:lookup"):
            wanted = json.loads(body)["localId"]
            users = [{"localId": uid, **self.accounts[uid]} for uid in wanted if uid in self.accounts]
            return 200, {}, json.dumps({"users": users}).encode()
        return 404, {}, b"{}"


def claims_of(uid: str, **changed: Any) -> dict[str, Any]:
    now = int(time.time())
    good = {
        "iss": f"https://securetoken.google.com/{PROJECT}", "aud": PROJECT, "sub": uid, "user_id": uid,
        "iat": now - 1, "auth_time": now - 1, "exp": now + 3_600, "firebase": {"sign_in_provider": "password"},
    }  # fmt: skip
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def unsigned(header: dict[str, Any], claims: Any, signature: bytes = b"") -> str:
    """Any header and claims at all, as text."""
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def certificate_of(
    key: rsa.RSAPrivateKey, name: str, *, hosts: tuple[str, ...] = (), signer: tuple[str, Any] | None = None
) -> x509.Certificate:
    """Self-signed, or signed by `signer` (its name and key)."""
    issuer, signing_key = signer or (name, key)
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=not hosts, path_length=None), critical=True)
    )
    if hosts:
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
    return made.sign(signing_key, hashes.SHA256())


def pem(key: rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def service_account(folder: Path) -> str:
    """The path of a service account's JSON whose tokens come from the same server."""
    path = folder / "account.json"
    content = {
        "type": "service_account", "project_id": PROJECT, "client_email": f"s@{PROJECT}.iam.gserviceaccount.com",
        "private_key": pem(rsa.generate_private_key(65537, 2048)), "token_uri": "https://oauth2.googleapis.com/token",
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return str(path)


@contextmanager
def serving(folder: Path) -> Iterator[Google]:
    """Google on the loopback; `environ` leads a process there."""
    authority, own = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    hosts = tuple(f"{name}.googleapis.com" for name in ("www", "oauth2", "identitytoolkit", "iamcredentials"))
    (folder / "ca.pem").write_bytes(certificate_of(authority, "ca").public_bytes(Encoding.PEM))
    certificate = certificate_of(own, hosts[0], hosts=hosts, signer=("ca", authority))
    (folder / "google.pem").write_text(certificate.public_bytes(Encoding.PEM).decode() + pem(own))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "google.pem")
    google = Google()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_CONNECT(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            self.request = tls.wrap_socket(self.request, server_side=True)
            self.setup()
            self.close_connection = False

        def finish(self) -> None:
            super().finish()
            self.request.close()

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, answer = google.answer(self.path, body)
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815 - http.server's name

        def log_message(self, *_: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            return  # a client that left

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        google.environ = {
            "HTTPS_PROXY": f"http://127.0.0.1:{server.server_address[1]}",
            "REQUESTS_CA_BUNDLE": str(folder / "ca.pem"),
            "NO_PROXY": "",
        }
        try:
            yield google
        finally:
            google.gate.set()
            server.shutdown()
            thread.join()
