"""A supervised child: readiness, bounded stops, and a life that is not longer than its parent's."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from callboard_local.child import Child, StartError

READY = "ready to serve"
SERVE = f"print('hello'); print({READY!r}, 7, flush=True); import time; time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SERVE}"


def child_of(program: str) -> Child:
    return Child([sys.executable, "-c", program], name="it", ready=READY)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within ten seconds"
        time.sleep(0.01)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_start_returns_the_line_that_says_ready() -> None:
    child = child_of(SERVE)
    assert child.start(timeout_s=10) == f"{READY} 7"
    assert child.alive
    assert child.output == f"hello\n{READY} 7"
    child.stop()
    assert not child.alive
    assert child.exited.result() == -signal.SIGTERM


def test_a_program_that_ends_early_tells_what_it_printed() -> None:
    with pytest.raises(StartError, match=r"it ended with status 3 before it was ready\nno such luck"):
        child_of("import sys; print('no such luck'); sys.exit(3)").start(timeout_s=10)


def test_a_program_that_is_never_ready_is_killed() -> None:
    child = child_of("print('thinking', flush=True); import time; time.sleep(60)")
    with pytest.raises(StartError, match=r"not ready within 0\.5 s"):
        child.start(timeout_s=0.5)
    assert not child.alive


def test_a_program_that_does_not_exist() -> None:
    with pytest.raises(StartError, match="No such file"):
        Child(["/no/such/program"], name="it", ready=READY).start(timeout_s=10)


def test_a_stubborn_program_is_killed_after_its_grace() -> None:
    child = child_of(STUBBORN)
    child.start(timeout_s=10)
    child.stop(grace_s=0.2)
    assert child.exited.result() == -signal.SIGKILL


def test_a_paused_program_still_ends_in_order() -> None:
    child = child_of(SERVE)
    child.start(timeout_s=10)
    child.send(signal.SIGSTOP)
    child.stop()
    assert child.exited.result() == -signal.SIGTERM


def test_stopping_twice_is_harmless_and_signals_to_the_dead_are_not() -> None:
    child = child_of(SERVE)
    child.start(timeout_s=10)
    child.stop()
    child.stop()
    with pytest.raises(ProcessLookupError):
        child.send(signal.SIGTERM)


def test_an_unexpected_death_is_seen_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "callboard_local")
    child = child_of(SERVE)
    child.start(timeout_s=10)
    os.kill(child.pid, signal.SIGKILL)
    assert child.exited.result(10) == -signal.SIGKILL
    child.stop()
    assert caplog.messages == ["it ended unexpectedly with status -9"]


def test_a_stop_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    child = child_of(SERVE)
    child.start(timeout_s=10)
    child.stop()
    assert caplog.messages == []


@pytest.mark.anyio
async def test_a_cancelled_wait_for_the_end_leaves_it_to_others() -> None:
    child = child_of(SERVE)
    child.start(timeout_s=10)
    wait = asyncio.wrap_future(child.exited)
    wait.cancel()
    await asyncio.to_thread(child.stop)
    assert child.exited.result() == -signal.SIGTERM


def test_it_outlives_the_thread_that_started_it() -> None:
    """The kernel ties a child to the thread that spawned it, not to the process."""
    child = child_of(SERVE)
    starter = threading.Thread(target=child.start, args=(10,))
    starter.start()
    starter.join()
    with pytest.raises(TimeoutError):
        child.exited.result(timeout=0.3)
    child.stop()


def test_without_a_lasting_thread_it_would_not() -> None:
    from callboard_local import tether

    spawned: list[subprocess.Popen[str]] = []

    def spawn() -> None:
        command = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), sys.executable, "-c", SERVE]
        spawned.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert spawned[0].stdout is not None
        while READY not in spawned[0].stdout.readline():
            pass

    starter = threading.Thread(target=spawn)
    starter.start()
    starter.join()
    with spawned[0] as process:
        assert process.wait(10) == -signal.SIGKILL


PARENT = """
import sys, time
from callboard_local import {server}
server = {server}()
server.start()
print(server.port, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    "server",
    ["ValkeyServer", "FirestoreProcess", pytest.param("GoogleFirestoreProcess", marks=pytest.mark.emulator)],
)
def test_a_server_dies_with_its_killed_parent(server: str) -> None:
    command: list[Any] = [sys.executable, "-c", PARENT.format(server=server)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        assert accepts(port)
        parent.kill()
        wait_until(lambda: not accepts(port))
