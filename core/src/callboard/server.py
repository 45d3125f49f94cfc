"""uvicorn, set up for this service: what `callboard serve` runs.

Beyond `uvicorn callboard.asgi:app` it is not ready from the very signal on, tells sockets to reconnect before uvicorn
closes them, bounds the whole stop, and leaves behind threads that never end.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from callboard.app import Callboard
from callboard.errors import ConfigurationError
from callboard.protocols import HttpProtocol, Peers, WebSocketProtocol
from callboard.telemetry import Telemetry, log_what_escapes, where_raised

_TCP_USER_TIMEOUT_MS = 20_000
_TCP_NOTSENT_LOWAT = 128 * 1024
"""What a peer does not read waits in its outbox, which is bounded, and not 4 MB of it in the kernel."""
_WS_PONG_TIMEOUT_S = 20.0
_KEEP_ALIVE_S = 75  # above the 60 s idle time-out of common load balancers, or they answer 502
_MAX_FRAME_BYTES = 64 * 1024
_MOST_CONNECTIONS = 100_000
_OWN_DESCRIPTORS = 512
_BARE = re.compile(r"[^\n(<'\"\[{=:]*")
_COROUTINE = re.compile(r"\bcoro=<([^\s(]+)")
_STACK = re.compile(r"((?:\n {2,}.*)+)\n([A-Za-z_][\w.]*)")


class Server(uvicorn.Server):
    """One uvicorn server around one Callboard. `own_process` is false where more lives in the process: in tests.

    The first SIGTERM or SIGINT stops it, inside the budget; a second SIGINT has it stop waiting for calls. With
    `own_process` no signal does more than that until the process ends.
    """

    server_state: Peers

    def __init__(self, callboard: Callboard, *, own_process: bool = True) -> None:
        super().__init__(
            uvicorn.Config(
                callboard.asgi,
                http=HttpProtocol,
                ws=WebSocketProtocol,
                ws_max_size=_MAX_FRAME_BYTES,
                ws_ping_interval=callboard.settings.ping_interval_s or None,
                ws_ping_timeout=_WS_PONG_TIMEOUT_S,
                ws_per_message_deflate=False,
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
            )
        )
        most = _most_connections(raise_limit=own_process)
        self.server_state = Peers(most)
        callboard.websockets.keep_within(most)
        self._callboard = callboard
        self._own_process = own_process
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._until is None:
            budget_s = self._callboard.settings.drain_timeout_s
            self._until = time.monotonic() + budget_s
            self._callboard.lifecycle.drain()
            self.should_exit = True  # first: a thread cannot always be had
            last_resort = threading.Timer(budget_s, _exit_now, args=(1,))
            last_resort.daemon = True
            last_resort.start()
        elif sig == signal.SIGINT:
            self._callboard.lifecycle.hurry()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn would restore the handlers and raise the signals again: the next Ctrl-C would interrupt whatever is
        # still being released, and a clean stop would exit with 143 instead of 0.
        if not self._own_process:
            with super().capture_signals():
                yield
            return
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self.handle_exit)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._own_process:
            # What is alive now stays alive: a full collection that walks all of it stops every call for 30 ms.
            gc.collect()
            gc.freeze()

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # ten ticks are a second
            self.server_state.tend(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # The listening sockets stay open meanwhile, so that the load balancer reads "not ready" and not "gone".
        await self._callboard.drain()
        self.config.timeout_graceful_shutdown = self._grace_s()
        await super().shutdown(sockets)

    def _grace_s(self) -> int:
        """What is left for requests that are no calls, and the closing of services: a part of it for the former."""
        if self._callboard.lifecycle.hurried.is_set():
            return 1
        budget_s = self._callboard.settings.drain_timeout_s
        left_s = budget_s if self._until is None else self._until - time.monotonic()
        return max(1, int(min(budget_s * 0.2, left_s * 0.5)))


def _most_connections(*, raise_limit: bool) -> int:
    """How many peers the process can hold, and still open files and connections of its own."""
    if sys.platform == "win32":
        return _MOST_CONNECTIONS
    import resource

    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if raise_limit and resource.RLIM_INFINITY not in (allowed, most):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        allowed = most
    if allowed == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return min(_MOST_CONNECTIONS, max(allowed // 2, allowed - _OWN_DESCRIPTORS))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; a peer that stops acknowledging is dropped by the kernel after 20 s.

    Raises ConfigurationError when the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without the protocol's number asyncio leaves Nagle's algorithm on, and keep-alive answers take 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _TCP_USER_TIMEOUT_MS)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _TCP_NOTSENT_LOWAT)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another with --port."
        ) from None
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def leave(code: int) -> None:
    """End the process; at once when a method's thread is still busy, since Python would wait for it for ever."""
    if any(not t.daemon and t is not threading.main_thread() for t in threading.enumerate()):
        _exit_now(code)
    sys.exit(code)


def _exit_now(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class LibraryLogs(logging.Handler):
    """Lines of libraries (uvicorn, grpc, redis) as records of our own log: `library`, without exceptions' texts."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__(logging.WARNING)
        self._log = telemetry.log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - the library's mistake, which must not stop what it was doing
            message = str(record.msg)
        fields: dict[str, Any] = {"logger": record.name}
        if record.name == "asyncio":
            # It shows callbacks with their arguments, and futures with their results.
            if coroutine := _COROUTINE.search(message):
                fields["task"] = coroutine[1]
            message = _BARE.match(message)[0].strip()  # type: ignore[index]  # it matches nothing at all, too
        message, traceback, stack = message.partition("Traceback (most recent call last):")
        if traceback and (seen := _STACK.match(stack)):  # as Starlette tells of a start or stop that failed
            fields |= {"error": seen[2], "frames": [line.strip() for line in seen[1].splitlines() if " File " in line]}
        if record.exc_info and record.exc_info[1]:
            fields |= where_raised(record.exc_info[1])
        self._log.log(record.levelno, "library", message=without_query(message) or "It failed.", **fields)

    @classmethod
    def install(cls, telemetry: Telemetry) -> None:
        """Make it the process's only handler: for entry points, never for an app inside someone else's process."""
        log_what_escapes(telemetry.log)
        logging.basicConfig(level=logging.WARNING, handlers=[cls(telemetry)], force=True)


class QueryStringFilter(logging.Filter):
    """uvicorn logs a WebSocket's whole URL; what follows the `?` may name a user."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):  # in place: uvicorn's formatter counts them
            record.args = tuple(without_query(arg) if isinstance(arg, str) else arg for arg in record.args)
        return True


def without_query(line: str) -> str:
    path, mark, rest = line.partition("?")
    return path + "?…" + (rest[rest.index('"') :] if '"' in rest else "") if mark and "/" in path else line
