"""What may come over a socket before anybody knows who is there, on the real server."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from support import Recorded
from websockets.asyncio.client import ClientConnection, connect
from websockets.frames import Frame, Opcode

from callboard import Service, hookimpl, method, protocols
from callboard.testing import Service as Running
from callboard.testing import serving
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio


class Echo(Service):
    namespace = "ECHO"

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    @method(effect="read")
    async def echo(self, value: Any) -> Any:
        return value

    @method(effect="read")
    async def hold(self) -> bool:
        return await self.may_end.wait()


class plugin:  # noqa: N801 - stands for a module
    @staticmethod
    @hookimpl
    def register_services() -> list[type[Service]]:
        return [Echo]


@pytest.fixture
async def service(valkey_server: ValkeyServer, recorded: Recorded) -> AsyncIterator[Running]:
    environ = {"LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(valkey_server.port)}
    async with serving(plugin, environ=environ, telemetry=recorded.telemetry) as running:
        yield running


TOKEN = b"Authorization: Bearer test\r\n"
HEAD = b"POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + TOKEN
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b'{"method": "ECHO.echo", "args": [1]}'
GOOD = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
UPGRADE = (
    b"GET /ws?uid=demo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" + TOKEN
)


@asynccontextmanager
async def connected(service: Running) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def response(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """The status and the JSON body of the next response."""
    async with asyncio.timeout(15):
        head = await reader.readuntil(b"\r\n\r\n")
        sizes = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        body = await reader.readexactly(int(sizes[0]))
    return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else body


async def ended(reader: asyncio.StreamReader) -> None:
    """Until the server says no more; a reset is one way to say it."""
    async with asyncio.timeout(15):
        try:
            assert await reader.read() == b""
        except ConnectionError:
            return


@pytest.mark.parametrize(
    "request_",
    {
        "no HTTP": b"\x16\x03\x01\x02\x00\x01",
        "another version": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "no Host": GOOD.replace(b"Host: x\r\n", b""),
        "two Hosts": GOOD.replace(b"Host: x", b"Host: x\r\nHost: y"),
        "a length and chunks": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "two lengths": GOOD.replace(TOKEN, TOKEN + b"Content-Length: 5\r\n"),
        "a list of lengths": HEAD + b"Content-Length: 36, 36\r\n\r\n" + BODY,
        "a signed length": HEAD + b"Content-Length: +36\r\n\r\n" + BODY,
        "an endless length": HEAD + b"Content-Length: 99999999999999999999\r\n\r\n" + BODY,
        "chunks that are not last": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "bare line feeds": GOOD.replace(b"\r\n", b"\n"),
        "a bare carriage return": GOOD.replace(b"Host: x\r\n", b"Host: x\r"),
        "a folded header": GOOD.replace(b"Host: x", b"X-A: b\r\n c\r\nHost: x"),
        "a space before the colon": GOOD.replace(b"Host: x", b"X-A : b\r\nHost: x"),
        "NUL in a header": GOOD.replace(b"Host: x", b"X-A: a\0b\r\nHost: x"),
        "no URL": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        "CONNECT": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        "a chunk without a size": CHUNKED + b"zz\r\n",
        "a chunk longer than its size": CHUNKED + b"1\r\nxyz\r\n",
        "a WebSocket's URL that is none": UPGRADE.replace(b"uid=demo", b"uid=\xff") + b"\r\n",
        "a WebSocket with a body": UPGRADE + b"Content-Length: 5\r\n\r\nhello",
    }.items(),
    ids=lambda case: case[0],
)
async def test_what_is_not_a_request_is_400(service: Running, request_: tuple[str, bytes]) -> None:
    async with connected(service) as (reader, writer):
        writer.write(request_[1])
        status, body = await response(reader)
        assert (status, body["ok"], body["error"]["code"]) == (400, False, "INVALID_ARGS")
        await ended(reader)
    assert await service.call("ECHO.echo", 1) == 1


@pytest.mark.parametrize(
    "request_",
    {
        "1 MB of a header": HEAD + b"X-A: " + b"a" * 1_000_000,
        "a header too large, at once": GOOD.replace(TOKEN, TOKEN + b"X-A: " + b"a" * 70_000 + b"\r\n"),
        "10,000 headers": GOOD.replace(TOKEN, TOKEN + b"X-A: a\r\n" * 10_000),
        "129 headers": GOOD.replace(TOKEN, TOKEN + b"X-A: a\r\n" * 125),
        "a URL too large": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        "nothing but line ends": b"\r\n" * 100_000,
        "a chunk's extension": CHUNKED + b"1;" + b"a" * 200_000,
        "a trailer": CHUNKED + b"1\r\n{\r\n0\r\nX-A: " + b"a" * 200_000,
        "a WebSocket's header": UPGRADE + b"X-A: " + b"a" * 20_000 + b"\r\n\r\n",
        "a WebSocket's 129 headers": UPGRADE + b"X-A: a\r\n" * 124 + b"\r\n",
    }.items(),
    ids=lambda case: case[0],
)
async def test_a_head_too_large_is_431(service: Running, request_: tuple[str, bytes]) -> None:
    async with connected(service) as (reader, writer):
        writer.write(request_[1])
        status, _ = await response(reader)
        assert status == 431
        await ended(reader)


async def test_a_head_at_the_limit_passes(service: Running) -> None:
    async with connected(service) as (reader, writer):
        writer.write(GOOD.replace(TOKEN, TOKEN + b"X-A: " + b"a" * 400 + b"\r\n" + b"X-B: b\r\n" * 120))
        assert (await response(reader))[0] == 200


async def test_a_trailer_is_no_header(service: Running) -> None:
    chunk = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
    async with connected(service) as (reader, writer):
        writer.write(CHUNKED.replace(TOKEN, b"") + chunk + TOKEN + b"\r\n")
        assert (await response(reader))[0] == 401
        writer.write(CHUNKED + chunk + TOKEN + b"\r\n")  # were it added to the head, there would be two
        assert (await response(reader))[0] == 200


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "HEAD_TIMEOUT_S", 0.3)
    monkeypatch.setattr(protocols, "BODY_TIMEOUT_S", 0.3)


async def test_who_sends_on_after_an_early_answer_speaks_to_nobody(service: Running) -> None:
    async with connected(service) as (reader, writer):
        writer.write(HEAD + b"Content-Length: 200000000\r\n\r\n" + b"x" * 100_000)
        assert (await response(reader))[0] == 413
        with suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"x" * 10_000)
                await writer.drain()
        await ended(reader)


async def test_who_stops_after_an_early_answer_is_let_go(service: Running, hurried: None) -> None:
    async with connected(service) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 200000000\r\n\r\n")
        assert (await response(reader))[0] == 200
        await ended(reader)


async def test_a_body_that_comes_after_its_answer_is_read_and_the_connection_kept(
    service: Running, hurried: None
) -> None:
    async with connected(service) as (reader, writer):
        head, body = GOOD.replace(TOKEN, b"")[: -len(BODY)], BODY
        for _ in range(3):
            writer.write(head)
            assert (await response(reader))[0] == 401
            writer.write(body)
            async with connected(service) as (silent, _):
                await ended(silent)  # a round of looking after connections
        writer.write(GOOD)
        assert (await response(reader))[0] == 200


@pytest.fixture
def soon_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callboard.server._KEEP_ALIVE_S", 1)


async def test_a_request_right_behind_a_late_body_has_its_time(soon_idle: None, service: Running) -> None:
    (echo,) = service.callboard.plugins.all[0].services
    async with connected(service) as (reader, writer), connected(service) as (idle, idle_writer):
        writer.write(GOOD.replace(TOKEN, b"")[: -len(BODY)])
        assert (await response(reader))[0] == 401
        writer.write(BODY + GOOD.replace(b"echo", b"hold").replace(b"[1]", b"[ ]"))
        idle_writer.write(GOOD)
        assert (await response(idle))[0] == 200
        await ended(idle)
        echo.may_end.set()  # type: ignore[attr-defined]
        assert (await response(reader))[1]["data"] is True


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_only_a_client_of_http_1_1_is_told_to_continue(service: Running, version: bytes) -> None:
    async with connected(service) as (reader, writer):
        writer.write(GOOD.replace(b"1.1", version).replace(TOKEN, TOKEN + b"Expect: 100-continue\r\n"))
        first = await reader.readline()
        assert (b" 100 " in first) is (version == b"1.1")


async def test_pipelined_requests_are_answered_in_order(service: Running) -> None:
    async with connected(service) as (reader, writer):
        writer.write(b"".join(GOOD.replace(b"[1]", b"[%d]" % n) for n in range(5)))
        assert [(await response(reader))[1]["data"] for _ in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "in pieces"])
@pytest.mark.parametrize("chunked", [True, False], ids=["chunks", "a length"])
async def test_another_protocol_that_is_offered_is_declined(service: Running, chunked: bool, at_once: bool) -> None:
    """As Java's client offers it with whatever it sends; the body is not taken for a request of its own."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    whole = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else GOOD
    head, _, body = whole.replace(TOKEN, offer + TOKEN).partition(b"\r\n\r\n")
    async with connected(service) as (reader, writer):
        for _ in range(2):
            pieces = (head + b"\r\n\r\n" + body + GOOD,) if at_once else (head[:-9], head[-9:] + b"\r\n\r\n", body)
            for piece in pieces:
                writer.write(piece)
                async with connected(service) as (other, other_writer):
                    other_writer.write(GOOD)
                    await response(other)
            assert (await response(reader))[1]["data"] == 1
            if at_once:
                assert (await response(reader))[1]["data"] == 1


async def test_a_request_inside_the_body_of_an_offer_is_not_answered(service: Running) -> None:
    hidden = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    offer = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\nContent-Length: %d\r\n\r\n"
    async with connected(service) as (reader, writer):
        writer.write(offer % len(hidden) + hidden + GOOD.replace(b"[1]", b"[2]"))
        assert (await response(reader))[1]["status"] == "ok"
        assert (await response(reader))[1]["data"] == 2


async def test_a_websocket_does_not_begin_before_an_answer_that_is_due(service: Running) -> None:
    (echo,) = service.callboard.plugins.all[0].services
    async with connected(service) as (reader, writer):
        writer.write(GOOD.replace(b"echo", b"hold").replace(b"[1]", b"[ ]") + UPGRADE + b"\r\n")
        async with connected(service) as (other, other_writer):
            other_writer.write(GOOD)
            assert (await response(other))[0] == 200
        echo.may_end.set()  # type: ignore[attr-defined]
        assert (await response(reader))[1]["data"] is True
        await ended(reader)


async def test_what_follows_a_good_request_does_not_take_its_answer(service: Running) -> None:
    async with connected(service) as (reader, writer):
        writer.write(GOOD + b"\x00 no request\r\n\r\n")
        assert (await response(reader))[1]["data"] == 1
        await ended(reader)


async def test_nobody_pipelines_without_end(service: Running) -> None:
    async with connected(service) as (reader, writer):
        writer.write(GOOD * 1_000)
        answered = 0
        while True:
            try:
                assert (await response(reader))[0] == 200
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            answered += 1
    assert answered <= protocols.MAX_PIPELINED + 1


@pytest.mark.parametrize(
    ("good", "rest"),
    {
        "half a head": (b"", HEAD[:40]),
        "half a head after a request": (GOOD, HEAD[:40]),
        "line ends after a request": (GOOD, b"\r\n"),
        "half a body": (b"", HEAD + b"Content-Length: 100\r\n\r\n{"),
        "no body": (b"", HEAD + b"Content-Length: 100\r\n\r\n"),
        "half a chunk": (b"", CHUNKED + b"100\r\n{"),
    }.values(),
    ids=["half a head", "half a second head", "line ends", "half a body", "no body", "half a chunk"],
)
async def test_who_is_too_slow_is_let_go(service: Running, hurried: None, good: bytes, rest: bytes) -> None:
    async with connected(service) as (reader, writer):
        if good:
            writer.write(good)
            assert (await response(reader))[0] == 200
        writer.write(rest)
        status, body = await response(reader)
        assert (status, body["error"]["code"]) == (408, "INVALID_ARGS")
        await ended(reader)


async def test_who_says_nothing_is_let_go(service: Running, hurried: None) -> None:
    async with connected(service) as (reader, _):
        await ended(reader)


async def test_a_long_call_and_an_idle_connection_are_left_alone(service: Running, hurried: None) -> None:
    (echo,) = service.callboard.plugins.all[0].services
    async with connected(service) as (reader, writer), connected(service) as (idle, idle_writer):
        idle_writer.write(GOOD)
        assert (await response(idle))[0] == 200
        writer.write(GOOD.replace(b"echo", b"hold").replace(b"[1]", b"[ ]"))
        for _ in range(2):  # each time a whole round of looking after connections, and one more
            async with connected(service) as (silent, _):
                await ended(silent)
        echo.may_end.set()  # type: ignore[attr-defined]
        assert (await response(reader))[1]["data"] is True
        idle_writer.write(GOOD)
        assert (await response(idle))[0] == 200


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("callboard.server._most_connections", lambda raise_limit: 4)
    return 4


async def test_beyond_the_most_connections_who_shows_nothing_goes_first(few: int, service: Running) -> None:
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(connected(service)) for _ in range(few)]
        (first, _), (second, second_writer) = peers[:2]
        second_writer.write(GOOD)
        assert (await response(second))[0] == 200
        newest, newest_writer = await stack.enter_async_context(connected(service))
        await ended(first)  # which had waited for longest
        newest_writer.write(GOOD)
        assert (await response(newest))[0] == 200
        second_writer.write(GOOD)
        assert (await response(second))[0] == 200


async def test_beyond_the_most_connections_idle_ones_go_before_the_newcomer(few: int, service: Running) -> None:
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(connected(service)) for _ in range(few)]
        for reader, writer in peers:
            writer.write(GOOD)
            assert (await response(reader))[0] == 200
        newest, newest_writer = await stack.enter_async_context(connected(service))
        newest_writer.write(GOOD)
        assert (await response(newest))[0] == 200
        await ended(peers[0][0])


async def test_who_comes_at_once_drops_no_more_than_it_takes(
    monkeypatch: pytest.MonkeyPatch, valkey_server: ValkeyServer, recorded: Recorded
) -> None:
    monkeypatch.setattr("callboard.server._most_connections", lambda raise_limit: 100)
    environ = {"LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(valkey_server.port)}
    async with serving(plugin, environ=environ, telemetry=recorded.telemetry) as service, AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(connected(service)) for _ in range(100)]
        host, port = service.url.removeprefix("http://").split(":")
        newcomers = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(3)]
        for newcomer in newcomers:
            reader, writer = await asyncio.open_connection(sock=newcomer)
            writer.write(GOOD)
            assert (await response(reader))[0] == 200
            writer.close()
        dropped = 0
        for reader, writer in peers:
            writer.write(GOOD)
            try:
                assert (await response(reader))[0] == 200
            except (asyncio.IncompleteReadError, ConnectionError):
                dropped += 1
    assert dropped == 4  # two at a time


async def test_websockets_leave_room_for_health_checks(few: int, service: Running) -> None:
    url = service.url.replace("http", "ws") + "/ws?uid=demo"
    async with AsyncExitStack() as stack:
        screens = [
            await stack.enter_async_context(connect(url, additional_headers={"Authorization": "Bearer test"}))
            for _ in range(few)
        ]
        assert await closed(screens[-1]) == 3011
        reader, writer = await stack.enter_async_context(connected(service))
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await response(reader))[0] == 200


# -- WebSockets


@pytest.fixture
async def screen(service: Running) -> AsyncIterator[ClientConnection]:
    url = service.url.replace("http", "ws") + "/ws?uid=demo"
    async with connect(url, additional_headers={"Authorization": "Bearer test"}, ping_interval=None) as socket:
        yield socket


async def closed(screen: ClientConnection) -> int:
    async with asyncio.timeout(15):
        await screen.wait_closed()
    assert screen.close_code is not None
    return screen.close_code


def frame(opcode: Opcode, data: bytes, *, fin: bool = True, mask: bool = True) -> bytes:
    return bytes(Frame(opcode, data, fin).serialize(mask=mask))


@pytest.mark.parametrize(
    ("frames", "code"),
    {
        "a flood of pings": (frame(Opcode.PING, b"x") * 5_000, 3501),
        "a flood of empty fragments": (
            frame(Opcode.TEXT, b"", fin=False) + frame(Opcode.CONT, b"", fin=False) * 5_000, 3501,
        ),
        "over 64 KiB": (frame(Opcode.TEXT, b"x" * 65_537), 1009),
        "over 64 KiB, in fragments": (
            frame(Opcode.TEXT, b"x" * 40_000, fin=False) + frame(Opcode.CONT, b"x" * 40_000), 1009,
        ),
        "no UTF-8": (frame(Opcode.TEXT, b"\xff\xfe"), 1007),
        "no UTF-8, in fragments": (frame(Opcode.TEXT, b"\xe2", fin=False) + frame(Opcode.CONT, b"\x82x"), 1007),
        "unmasked": (frame(Opcode.TEXT, b"{}", mask=False), 1002),
        "compressed": (bytes([0xC1, 0x80]) + bytes(4), 1002),
        "an unknown opcode": (bytes([0x83, 0x80]) + bytes(4), 1002),
        "a fragmented ping": (bytes([0x09, 0x80]) + bytes(4), 1002),
        "a continuation of nothing": (frame(Opcode.CONT, b"x"), 1002),
        "binary": (frame(Opcode.BINARY, b"{}"), 3501),
    }.values(),
    ids=[
        "pings", "fragments", "large", "large fragments", "utf-8", "utf-8 in fragments", "unmasked", "compressed",
        "opcode", "fragmented ping", "continuation", "binary",
    ],
)  # fmt: skip
async def test_frames_that_make_no_sense_end_the_socket(
    service: Running, screen: ClientConnection, recorded: Recorded, frames: bytes, code: int
) -> None:
    screen.transport.write(frames)
    assert await closed(screen) == code
    assert [line for line in recorded.lines() if line["level"] == "error"] == []
    assert await service.call("ECHO.echo", 1) == 1


async def test_fragments_and_pings_of_an_honest_client_pass(screen: ClientConnection) -> None:
    ping = json.dumps({"type": "ping", "padding": "é" * 100}).encode()
    pieces = [ping[at : at + 7] for at in range(0, len(ping), 7)]
    for number, piece in enumerate(pieces):
        opcode = Opcode.CONT if number else Opcode.TEXT
        screen.transport.write(frame(opcode, piece, fin=number == len(pieces) - 1) + frame(Opcode.PING, b"p"))
    async with asyncio.timeout(15):
        assert json.loads(await screen.recv()) == {"type": "pong"}
        await (await screen.ping())


async def test_pings_that_are_not_read_are_not_answered_without_end(
    service: Running, screen: ClientConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocols, "MAX_FRAMES_PER_S", 10**9)  # the other bound
    screen.transport.pause_reading()
    (connection,) = service.callboard.websockets._open
    server_side = connection._socket._transport
    flood = frame(Opcode.PING, os.urandom(125)) * 500
    async with asyncio.timeout(30):
        for _ in range(200):
            screen.transport.write(flood)
            while screen.transport.get_write_buffer_size():
                await asyncio.sleep(0.001)
    assert server_side.get_write_buffer_size() < 1_000_000
    screen.transport.abort()
