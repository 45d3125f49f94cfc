"""Certificates for servers of tests: an authority of one's own, and what it signs, made by the `openssl` command."""

import subprocess
from pathlib import Path
from typing import NamedTuple

from .child import StartError

_DAYS = 2


class Certificate(NamedTuple):
    """Two PEM files."""

    certificate: Path
    key: Path


class Authority:
    """An authority whose files lie in `directory`, which exists; `certificate` is what to trust. Blocks."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._name = name
        self.certificate = directory / f"{name}.pem"
        self._openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", str(_DAYS), "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip

    def issue(self, name: str, *, host: str = "IP:127.0.0.1", expired: bool = False) -> Certificate:
        """A server's certificate in `{name}.pem`, for one host (`IP:…` or `DNS:…`)."""
        self._openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-addext", f"subjectAltName={host}",
            "-keyout", f"{name}.key", "-out", f"{name}.csr",
        )  # fmt: skip
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", self.certificate.name, "-CAkey", f"{self._name}.key",
            "-CAcreateserial", "-days", str(-1 if expired else _DAYS), "-copy_extensions", "copyall",
            "-out", f"{name}.pem",
        )  # fmt: skip
        return Certificate(self._directory / f"{name}.pem", self._directory / f"{name}.key")

    def valkey_args(self, issued: Certificate, port: int) -> list[str]:
        """What makes a server, `ValkeyServer(binary=…, args=…)`, speak TLS on this port too."""
        return [
            "--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(self.certificate),
            "--tls-cert-file", str(issued.certificate), "--tls-key-file", str(issued.key),
        ]  # fmt: skip

    def _openssl(self, *arguments: str) -> None:
        command = ["openssl", *arguments]
        try:
            subprocess.run(command, cwd=self._directory, check=True, capture_output=True, text=True)  # noqa: S603
        except FileNotFoundError:
            raise StartError("certificates are made by the command openssl: install the package openssl") from None
        except subprocess.CalledProcessError as error:
            raise StartError(f"openssl could not make a certificate\n{error.stderr}") from None
