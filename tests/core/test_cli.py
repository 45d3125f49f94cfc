from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import click
import pytest
from click.testing import CliRunner, Result
from redis.asyncio import Redis
from websockets.asyncio.client import connect

from callboard import Service, hookimpl, method
from callboard.cli import main
from callboard.plugins import Plugins
from callboard.testing import Service as Running
from callboard.testing import serving
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio


class Echo(Service):
    namespace = "ECHO"

    @method(effect="read")
    async def both(self, first: str, second: int = 0) -> list[object]:
        return [first, second, self.context.user_id]


class plugin:  # noqa: N801 - stands for a module
    @staticmethod
    @hookimpl
    def register_services() -> list[type[Service]]:
        return [Echo]


@pytest.fixture
async def service(valkey_server: ValkeyServer) -> AsyncIterator[Running]:
    environ = {"LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(valkey_server.port)}
    async with serving(plugin, environ=environ) as running:
        yield running


def invoke(*args: str, **environ: str) -> Result:
    return CliRunner().invoke(main, args, env=environ, catch_exceptions=False)


async def call(service: Running, *args: str, token: str = "test") -> Result:
    return await asyncio.to_thread(invoke, "call", "--url", service.url, "--token", token, *args)


async def test_call(service: Running) -> None:
    result = await call(service, "ECHO.both", "hello", "second=7", "--user", "demo")
    assert (result.exit_code, json.loads(result.output)["data"]) == (0, ["hello", 7, "demo"])


async def test_a_failed_call_shows_the_reply_and_exits_1(service: Running) -> None:
    result = await call(service, "ECHO.nothing")
    assert (result.exit_code, json.loads(result.output)["error"]["code"]) == (1, "METHOD_NOT_FOUND")


async def test_a_wrong_token_shows_the_refusal(service: Running) -> None:
    result = await call(service, "ECHO.both", "x", token="wrong")
    assert (result.exit_code, json.loads(result.output)["error"]["code"]) == (1, "PERMISSION_DENIED")


def test_nobody_there_is_a_clear_error() -> None:
    result = invoke("call", "--url", "http://127.0.0.1:9", "ECHO.both")
    assert result.exit_code == 2
    assert "no service answers at http://127.0.0.1:9" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>",  # a load balancer's, when no replica is up
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    ],
    ids=["502", "html", "list"],
)
async def test_what_is_no_reply_of_ours_is_a_clear_error(answer: str) -> None:
    result = await call_of_what_answers(answer)
    assert result.exit_code == 2
    assert f"is not this service (HTTP {answer.split()[1]})" in result.stderr


@pytest.mark.parametrize(
    "answer", ["-ERR unknown command\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"], ids=["redis", "cut off"]
)
async def test_what_is_no_answer_is_a_clear_error(answer: str) -> None:
    result = await call_of_what_answers(answer)
    assert result.exit_code == 2
    assert "no service answers at" in result.stderr


async def call_of_what_answers(answer: str) -> Result:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer.encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return await asyncio.to_thread(invoke, "call", "--url", f"http://127.0.0.1:{port}", "ECHO.both", "x")


def test_plugins_lists_what_is_installed() -> None:
    rows = json.loads(invoke("plugins", "--json").output)
    assert {row["name"] for row in rows} >= {"firebase_management", "firebase_realtime", "registry", "workflow"}
    methods = {name for row in rows for name in row["methods"]}
    assert {"REGISTRY.register_user", "WORKFLOW.watch_job"} <= methods
    assert "REGISTRY.register_user" in invoke("plugins").output


def test_commands_of_plugins_stand_beside_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def greet() -> None:
        """Say hello."""
        click.echo("hello from a plugin")

    class module:  # noqa: N801 - stands for a module
        __name__ = "callboard_greeting"

        @staticmethod
        @hookimpl
        def register_commands() -> list[click.Command]:
            return [greet]

    monkeypatch.setattr(Plugins, "discover", lambda plugins: plugins.use([module()]))
    assert invoke("greet").output == "hello from a plugin\n"
    assert "Say hello." in invoke("--help").output
    greet.name = "serve"
    result = invoke("--help")
    assert result.exit_code == 2
    assert "serve is declared by the core and by greeting" in result.stderr


def test_serve_refuses_to_start_without_a_token() -> None:
    result = invoke("serve", "--port", "0", LISTENERS_SERVICE_TOKEN="", USE_LOCAL_REDIS="true")
    assert result.exit_code == 2
    assert "LISTENERS_SERVICE_TOKEN is not set" in result.stderr


def test_dev_names_the_back_end_whose_port_is_taken() -> None:
    with port_after_a_free_one() as taken:
        arguments = [sys.executable, "-m", "callboard", "dev", "--port", str(taken - 1)]
        process = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 2
    assert f"Valkey cannot listen on 127.0.0.1:{taken}" in process.stderr
    assert "--port" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(("command", "port"), [("serve", "65536"), ("dev", "65532"), ("dev", "-1")])
def test_a_port_that_cannot_be_is_refused(command: str, port: str) -> None:
    result = invoke(command, "--port", port)
    assert result.exit_code == 2
    assert "is not in the range" in result.stderr


@contextmanager
def port_after_a_free_one() -> Iterator[int]:
    """A port that this process listens on; nobody does on the one before."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port: int = taken.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port - 1)).close()
            except OSError:
                continue
            yield port
            return


async def test_serve_starts_stops_and_leaves_with_0(valkey_server: ValkeyServer) -> None:
    """A whole process: ready, then SIGTERM."""
    environ = {
        "LISTENERS_SERVICE_TOKEN": "t0ken",
        "LISTENERS_REDIS_HOST": "127.0.0.1",
        "LISTENERS_REDIS_PORT": str(valkey_server.port),
        "LISTENERS_PLUGINS": "registry",
        "PATH": "",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "callboard", "serve", "--port", "0", "--host", "127.0.0.1",
        env=environ, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    events = []
    async for line in process.stdout:
        events.append(json.loads(line)["event"])
        if events[-1] == "service_ready":
            process.terminate()
    assert await process.wait() == 0
    assert events[0] == "service_start"
    assert events[-2:] == ["service_drain", "service_stop"]


@pytest.mark.parametrize("signals", [[signal.SIGINT] * 3, [signal.SIGTERM] * 3, [signal.SIGTERM, signal.SIGINT]])
async def test_more_signals_stop_it_no_less_cleanly(own_valkey: ValkeyServer, signals: list[signal.Signals]) -> None:
    environ = {
        "LISTENERS_SERVICE_TOKEN": "t0ken",
        "LISTENERS_REDIS_HOST": "127.0.0.1",
        "LISTENERS_REDIS_PORT": str(own_valkey.port),
        "LISTENERS_PLUGINS": "registry",
        "PATH": "",
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "callboard", "serve", "--port", str(port), "--host", "127.0.0.1",
        env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    while json.loads(await process.stdout.readline())["event"] != "service_ready":
        pass
    url, headers = f"ws://127.0.0.1:{port}/ws?uid=ann", {"Authorization": "Bearer t0ken"}
    async with connect(url, additional_headers=headers, proxy=None) as client:
        await client.send('{"type":"ping"}')
        await client.recv()
        for signum in signals:
            process.send_signal(signum)
            await client.wait_closed()  # the first was heeded, and what comes now falls into the release
    assert client.close_code == 3001
    logged = [json.loads(line)["event"] async for line in process.stdout]
    assert (await process.wait(), await process.stderr.read()) == (0, b"")
    assert logged[-1] == "service_stop"
    async with Redis(port=own_valkey.port) as redis:
        assert await redis.keys() == [b"callboard:presence:user:{ann}"]  # what she may see, for her return
