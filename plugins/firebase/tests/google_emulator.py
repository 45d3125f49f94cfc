"""Google's own Firestore emulator, which judges the engine beside the embedded server."""

from __future__ import annotations

import itertools
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_JAR = "cloud-firestore-emulator/cloud-firestore-emulator.jar"
_ROOTS = ("/usr/lib/google-cloud-sdk", "/usr/share/google-cloud-sdk", "/opt", str(Path.home() / "google-cloud-sdk"))
_MAIN = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"


@contextmanager
def google_emulator() -> Iterator[str]:
    """Run it; yields `host:port`."""
    jars = itertools.chain.from_iterable(Path(root).glob(f"**/{_JAR}") for root in _ROOTS)
    jar = next(jars, None)
    if jar is None:
        raise FileNotFoundError("Google's Firestore emulator is not installed: make test-all installs it")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ["java", "-Xmx512m", "-cp", str(jar), _MAIN, "start", "--host=127.0.0.1", f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_listening(process, port)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, timeout_s: float = 30) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the emulator ended with status {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("the emulator did not start")
