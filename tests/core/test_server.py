from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import threading
import traceback
from contextlib import suppress
from functools import partial

import pytest
import uvloop
from support import Recorded
from uvicorn.logging import AccessFormatter

from callboard.app import Callboard
from callboard.errors import ConfigurationError
from callboard.server import LibraryLogs, QueryStringFilter, Server, _most_connections, listen, without_query
from callboard.settings import Settings, load


def test_a_taken_port_is_a_clear_error() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}.*--port"):
            listen("127.0.0.1", port)


def test_a_stalled_peer_is_dropped_by_the_kernel() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000


def test_a_process_holds_as_many_peers_as_its_descriptors_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1_024, 20_000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: limits.append(given))
    assert _most_connections(raise_limit=False) == 512
    assert _most_connections(raise_limit=True) == 20_000 - 512
    assert limits[-1] == (20_000, 20_000)


def test_a_signal_is_heeded_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch, recorded: Recorded) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    settings = load(Settings, {"LISTENERS_SERVICE_TOKEN": "t0ken", "LISTENERS_REDIS_HOST": "127.0.0.1"})
    server = Server(Callboard(settings, [], environ={}, telemetry=recorded.telemetry), own_process=False)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        server.handle_exit(signal.SIGTERM, None)
    assert (server.should_exit, server._callboard.lifecycle.state) == (True, "draining")


@pytest.mark.parametrize("ours", [True, False])
def test_what_a_peer_does_not_read_does_not_wait_in_the_kernel(ours: bool) -> None:
    """`ours` false: the control, a listening socket as Python makes it."""
    with listen("127.0.0.1", 0) if ours else socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(True)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            accepted.setblocking(False)
            taken = 0
            with suppress(BlockingIOError):
                while True:
                    taken += accepted.send(b"x" * 65_536)
    assert (taken < 1_000_000) is ours


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            '127.0.0.1:5 - "WebSocket /ws?uid=demo&ticket=s3cret" [accepted]',
            '127.0.0.1:5 - "WebSocket /ws?…" [accepted]',
        ),
        ("is it ready?", "is it ready?"),
        ("GET /healthz", "GET /healthz"),
    ],
)
def test_query_strings_are_not_logged(line: str, shown: str) -> None:
    assert without_query(line) == shown


def test_uvicorns_own_lines_lose_their_query_strings_and_keep_their_form() -> None:
    args = ("127.0.0.1:5", "GET", "/ws?uid=demo&ticket=s3cret", "1.1", 200)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', args, None)
    assert QueryStringFilter().filter(record)
    assert AccessFormatter("%(message)s").format(record) == '127.0.0.1:5 - "GET /ws?… HTTP/1.1" 200'


def test_lines_of_libraries_become_records_without_tracebacks(recorded: Recorded) -> None:
    handler = LibraryLogs(recorded.telemetry)
    try:
        raise ValueError("s3cret")
    except ValueError as error:
        caught = (type(error), error, error.__traceback__)
    handler.handle(
        logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "Exception in ASGI application", (), caught)
    )
    (line,) = recorded.lines("library")
    assert (line["logger"], line["error"], line["level"]) == ("uvicorn.error", "ValueError", "error")
    assert "s3cret" not in recorded.text


def test_a_librarys_line_that_cannot_be_put_together_stops_nothing(recorded: Recorded) -> None:
    LibraryLogs(recorded.telemetry).handle(
        logging.LogRecord("redis", logging.WARNING, "", 0, "node %d of %s", ("s3cret",), None)
    )
    (line,) = recorded.lines("library")
    assert line["message"] == "node %d of %s"
    assert "s3cret" not in recorded.text


def test_a_line_of_the_loops_shows_neither_arguments_nor_results(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("asyncio"), "handlers", [LibraryLogs(recorded.telemetry)])

    def fail(text: str) -> None:
        raise ValueError(text)

    async def fail_soon(text: str) -> None:
        fail(text)

    async def provoke() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(fail, "s3cret")
        loop.call_soon(partial(fail, text="s3cret"))
        done = loop.create_future()
        done.set_result("s3cret")
        loop.call_exception_handler({"message": "Told by hand", "future": done, "more": "s3cret"})
        await asyncio.wait({asyncio.create_task(fail_soon("s3cret"))})
        gc.collect()

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(provoke())
    assert "s3cret" not in recorded.text
    lines = recorded.lines("library")
    assert [line["message"] for line in lines].count("Told by hand") == 2
    failed = [line for line in lines if line.get("error") == "ValueError"]
    assert len(failed) == 6
    assert all(line["frames"][-1].endswith(" fail") for line in failed)
    tasks = [line["task"].rpartition(".")[2] for line in failed if "task" in line]
    assert tasks == ["fail_soon", "fail_soon"]


def test_a_traceback_in_a_librarys_line_loses_its_texts(recorded: Recorded) -> None:
    secret = "\n".join(["s3cret", "  s3cret", "s3cret"])
    try:
        raise ValueError(secret)
    except ValueError:
        told = traceback.format_exc()
    for text in (told, told.replace("\n", "\n | "), f"It ended. {told}"):
        LibraryLogs(recorded.telemetry).handle(
            logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, text, None, None)
        )
    assert "s3cret" not in recorded.text
    one, _, other = recorded.lines("library")
    assert (one["message"], other["message"]) == ("It failed.", "It ended. ")
    assert one["error"] == other["error"] == "ValueError"
    assert __name__.rpartition(".")[2] in one["frames"][-1]
