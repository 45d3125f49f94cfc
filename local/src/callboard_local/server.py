"""What every embedded server has in common: start, stop, and the faults that tests inject."""

import asyncio
import random
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from .child import Child, StartError

HOST = "127.0.0.1"

_ADDRESS_IN_USE = "Address already in use"
_PORT_ATTEMPTS = 5

T = TypeVar("T")


class PortInUseError(StartError):
    """The port that a server was told to use is taken."""

    def __init__(self, name: str, port: int) -> None:
        super().__init__(f"{name} cannot listen on {HOST}:{port}: the port is taken by another process")
        self.name = name
        self.port = port


class ServerProcess(ABC):
    """A server in a child process, on the loopback; use it with `async with`, or with `with` outside a loop.

    `port` 0 picks a free one; it then stays the same over `restart()`. Starting raises `StartError`.
    """

    name: str
    start_timeout_s = 20.0

    def __init__(self, port: int) -> None:
        self.port = port
        self.host = HOST
        self._child: Child | None = None

    @abstractmethod
    def _launch(self, port: int) -> Child:
        """Start a child on this port and return it once it is ready. Blocks; raises `StartError`."""

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def alive(self) -> bool:
        """False before the start, after the stop, and when the process died."""
        return self._child is not None and self._child.alive

    async def exited(self) -> int:
        """Wait until the process has ended, for whatever reason; its exit status (negative: a signal)."""
        return await asyncio.wrap_future(self._running().exited)

    async def kill(self) -> None:
        """SIGKILL it, and return when it is gone."""
        await in_thread(self._running().kill)

    async def restart(self) -> None:
        """Stop it if it still runs, and start it again on the same port."""
        await in_thread(self._restart)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._running().send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT, after `pause()`."""
        self._running().send(signal.SIGCONT)

    def start(self) -> None:
        """Start it and wait until it is ready. Blocks."""
        if self.alive:
            raise RuntimeError(f"{self.name} is running already")
        self.stop()  # clears away what a run that died has left
        if self.port:
            self._child = self._launch(self.port)
        else:
            self._child = self._launch_somewhere()

    def stop(self) -> None:
        """Stop it, with SIGTERM and then SIGKILL. Blocks; does nothing when it is not running."""
        if self._child is not None:
            self._child.stop()

    def _start_child(self, child: Child, port: int) -> None:
        try:
            child.start(self.start_timeout_s)
        except StartError:
            if _ADDRESS_IN_USE in child.output:
                raise PortInUseError(self.name, port) from None
            raise

    def _launch_somewhere(self) -> Child:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = free_port()
            try:
                child = self._launch(port)
            except PortInUseError:
                if attempt == _PORT_ATTEMPTS:
                    raise
            else:
                self.port = port
                return child
        raise AssertionError("unreachable")

    def _restart(self) -> None:
        self.stop()
        self.start()

    def _running(self) -> Child:
        if self._child is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._child

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        try:
            await in_thread(self.start)
        except asyncio.CancelledError:
            await in_thread(self.stop)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await in_thread(self.stop)


async def in_thread(function: Callable[[], T]) -> T:
    """Run a blocking, bounded function on a thread; when cancelled, wait for its end before passing that on."""
    work = asyncio.get_running_loop().run_in_executor(None, function)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def free_port() -> int:
    """A port that is free now, below the ports the kernel hands to outgoing connections, and below 55536.

    Between two runs of one server nothing else then takes its port, and port + 10000 (a cluster's bus) exists.
    """
    for port in random.sample(range(20_000, 32_000), 50):
        if is_free(port):
            return port
    raise StartError("no free port found between 20000 and 32000")


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
