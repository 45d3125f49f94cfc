"""A child process: started without a shell, tied to our life, watched until it ends."""

import collections
import concurrent.futures
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

logger = logging.getLogger("callboard_local")

_TETHER = str(Path(__file__).with_name("tether.py"))
_TAIL_LINES = 40


class StartError(RuntimeError):
    """A back end did not start; the message ends with the last lines that it printed."""


class Child:
    """One run of a program.

    The thread that spawns it also reads its output and reaps it. That is more than tidy: the kernel sends the
    parent-death signal when the spawning *thread* ends, so that thread has to live as long as the child.

    `ready` is the text that the program prints, within one line, once it can serve. `exited` resolves to the
    exit status (negative: the signal's number) as soon as the program has ended, whoever ended it.
    """

    def __init__(self, argv: Sequence[str], *, name: str, ready: str, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.exited: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._argv = list(argv)
        self._ready_text = ready
        self._ready: concurrent.futures.Future[str] = concurrent.futures.Future()
        self._env = dict(env) if env is not None else None
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._process: subprocess.Popen[str] | None = None
        self._expected = False
        for future in (self.exited, self._ready):
            future.set_running_or_notify_cancel()  # a waiter that is cancelled does not cancel them
        self._watcher = threading.Thread(target=self._run, name=f"{name} watcher", daemon=True)

    def start(self, timeout_s: float) -> str:
        """Spawn, wait until ready, return the readiness line. Blocks; raises `StartError`, leaving nothing behind."""
        self._watcher.start()
        try:
            return self._ready.result(timeout_s)
        except TimeoutError:
            self.stop(grace_s=0)
            raise StartError(f"{self.name} was not ready within {timeout_s:g} s\n{self.output}") from None
        except BaseException:
            self.stop(grace_s=0)
            raise

    @property
    def output(self) -> str:
        """The last lines it printed, both streams."""
        return "\n".join(self._tail)

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def alive(self) -> bool:
        return self._process is not None and not self.exited.done()

    def stop(self, grace_s: float = 5) -> None:
        """SIGTERM, then SIGKILL after `grace_s` seconds; returns when it is gone. Blocks. May be called again."""
        self._expected = True
        if self._watcher.ident is None:
            return
        if grace_s > 0:
            # A paused process sees no SIGTERM until it is continued.
            self._send(signal.SIGTERM)
            self._send(signal.SIGCONT)
            concurrent.futures.wait([self.exited], grace_s)
        if not self.exited.done():
            self._send(signal.SIGKILL)
        self._watcher.join()

    def kill(self) -> None:
        """SIGKILL; returns when it is gone. Blocks."""
        self.stop(grace_s=0)

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to it; `ProcessLookupError` when it has ended."""
        self._running().send_signal(signum)

    def _send(self, signum: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signum)  # does nothing once reaped

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self.exited.done():
            raise ProcessLookupError(f"{self.name} is not running")
        return self._process

    def _run(self) -> None:
        try:
            self._process = process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", _TETHER, str(os.getpid()), *self._argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=self._env,
                # Ctrl-C reaches the whole terminal group: a back end must outlive the service's own drain.
                start_new_session=True,
            )
        except OSError as error:
            self._ready.set_exception(StartError(f"{self.name} could not be spawned: {error}"))
            self.exited.set_result(-1)
            return
        if self._expected:  # stopped before it was spawned
            process.kill()
        with process:
            assert process.stdout is not None  # noqa: S101 - for the type checker: PIPE was asked for
            for line in process.stdout:
                self._tail.append(line.rstrip())
                if self._ready_text in line and not self._ready.done():
                    self._ready.set_result(line.strip())
        status = process.returncode
        self.exited.set_result(status)
        if not self._ready.done():
            self._ready.set_exception(
                StartError(f"{self.name} ended with status {status} before it was ready\n{self.output}")
            )
        elif not self._expected:
            logger.warning("%s ended unexpectedly with status %d", self.name, status)
