"""Row 26: what an attacker does with bare sockets, all at once with honest calls on the same replica."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import uvicorn
from faults.fleet import TOKEN, Cost, Replica
from faults.prober import honest_calls
from faults.victim import complaints, victim
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from websockets.frames import Frame, Opcode

from callboard.protocols import HEAD_TIMEOUT_S
from callboard_local.fault_figures import Fault

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

MIB = 2**20
MAX_GROWTH_MIB = 128
TIMES = 20
TOKEN_LINE = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
HEAD = b"POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + TOKEN_LINE
BODY = b'{"method": "ECHO.echo", "args": [1]}'
GOOD = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
UPGRADE = (
    b"GET /ws?uid=demo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" + TOKEN_LINE + b"\r\n"
)


async def attack(port: int, parts: Iterable[bytes], *, within_s: float = 60) -> tuple[str, int]:
    """Send the parts for as long as the server takes them; how it ended, and how many bytes it took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent, heard = 0, b""
    answered = asyncio.Event()

    async def listen() -> None:
        nonlocal heard
        while data := await reader.read(65_536):
            heard += data if len(heard) < MIB else b""
            answered.set()

    listening = asyncio.create_task(listen())
    try:
        async with asyncio.timeout(within_s):
            for part in parts:
                if listening.done():
                    break
                writer.write(part)
                await writer.drain()
                sent += len(part)
                if part.startswith(b"GET /ws"):
                    await answered.wait()
            with suppress(ConnectionError):
                await listening
    except ConnectionError:
        pass
    except TimeoutError:
        return "open", sent
    finally:
        listening.cancel()
        await asyncio.wait({listening})
        if not listening.cancelled():
            listening.exception()
        writer.transport.abort()
    return ending(heard), sent


def ending(heard: bytes) -> str:
    if not heard:
        return "closed"
    status = heard.split(b" ", 2)[1].decode()
    if status != "101":
        return status
    frames, at = heard.partition(b"\r\n\r\n")[2], 0
    while at + 2 <= len(frames):
        opcode, size = frames[at] & 15, frames[at + 1]
        at += 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(frames[at : at + width]), at + width
        if opcode == Opcode.CLOSE:
            return str(int.from_bytes(frames[at : at + 2]))
        at += size
    return "closed"


@asynccontextmanager
async def peak_of(replica: Replica) -> AsyncIterator[list[Cost]]:
    """What the process cost, looked at all the while."""
    costs = [replica.cost]

    async def look() -> None:
        while True:
            await asyncio.sleep(0.02)
            costs.append(replica.cost)

    task = asyncio.create_task(look())
    try:
        yield costs
    finally:
        task.cancel()
        await asyncio.wait({task})


def repeated(part: bytes, total: int) -> Iterable[bytes]:
    return (part for _ in range(total // len(part)))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def frame(opcode: Opcode, data: bytes = b"", *, fin: bool = True, mask: bool = True) -> bytes:
    return bytes(Frame(opcode, data, fin).serialize(mask=mask))


LONG = HEAD + b"Content-Length: 200000000\r\n\r\n"
DEFLATING = UPGRADE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
OPENED = frame(Opcode.TEXT, fin=False)
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BLOCK = b"x" * 65_536
ATTACKS: dict[str, tuple[Callable[[], Iterable[bytes]], set[str]]] = {
    # Name: what is sent, and the ends that are right; "closed" is a reset that overtook the word.
    "200 MB by its length": (lambda: [LONG, *repeated(BLOCK, 200_000_000)], {"413"}),
    "200 MB in chunks": (lambda: [CHUNKED, *repeated(chunk(BLOCK), 200_000_000)], {"413"}),
    "200 MB without a token": (
        lambda: [LONG.replace(TOKEN_LINE, b""), *repeated(BLOCK, 200_000_000)],
        {"401"},
    ),
    "1 MB header": (lambda: [HEAD + b"X-A: ", *repeated(b"a" * 4_096, 1_000_000)], {"431"}),
    "200 MB header": (lambda: [HEAD + b"X-A: ", *repeated(BLOCK, 200_000_000)], {"431"}),
    "10,000 headers": (lambda: [HEAD, *repeated(b"X-A: a\r\n" * 100, 80_000)], {"431"}),
    "a chunk's endless extension": (lambda: [CHUNKED + b"1;", *repeated(BLOCK, 20_000_000)], {"431"}),
    "endless trailers": (
        lambda: [CHUNKED + chunk(b"{") + b"0\r\n", *repeated(b"X-A: a\r\n" * 1_000, 20_000_000)],
        {"431", "400"},
    ),
    "endless line ends": (lambda: repeated(b"\r\n" * 32_768, 20_000_000), {"431"}),
    "length and chunks": (
        lambda: [HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
        {"400"},
    ),
    "two lengths": (lambda: [HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd"], {"400"}),
    "bare line feeds": (lambda: [GOOD.replace(b"\r\n", b"\n")], {"400"}),
    "a folded header": (lambda: [GOOD.replace(b"Host: x", b"X-A: b\r\n c\r\nHost: x")], {"400"}),
    "two tokens": (lambda: [GOOD.replace(TOKEN_LINE, TOKEN_LINE * 2 + b"Connection: close\r\n")], {"403"}),
    "no Host": (lambda: [GOOD.replace(b"Host: x\r\n", b"")], {"400"}),
    "a request smuggled in a body": (lambda: [HEAD + b"Content-Length: 0\r\n\r\nGET /debug HTTP/1.1\r\n\r\n"], {"400"}),
    "100,000 requests in a pipeline": (lambda: repeated(GOOD * 100, 100_000 * len(GOOD)), {"200"}),
    "a frame over 64 KiB": (lambda: [UPGRADE, frame(Opcode.TEXT, b"x" * 65_537)], {"1009"}),
    "a frame that says it has 2^62 bytes": (
        lambda: [UPGRADE, b"\x81\xff" + (2**62).to_bytes(8) + bytes(4), *repeated(BLOCK, 20_000_000)],
        {"1009", "closed"},
    ),
    "fragments over 64 KiB": (
        lambda: [
            UPGRADE,
            frame(Opcode.TEXT, b"x" * 999, fin=False),
            *repeated(frame(Opcode.CONT, b"x" * 999, fin=False), MIB),
        ],
        {"1009", "closed"},
    ),
    "a frame that is no UTF-8": (lambda: [UPGRADE, frame(Opcode.TEXT, b"\xff")], {"1007"}),
    "an unmasked frame": (lambda: [UPGRADE, frame(Opcode.TEXT, b"{}", mask=False)], {"1002"}),
    "a compressed frame": (lambda: [DEFLATING, b"\xc1\x80" + bytes(4)], {"1002"}),
    "a flood of pings": (
        lambda: [UPGRADE, *repeated(frame(Opcode.PING, os.urandom(125)) * 500, 20_000_000)],
        {"3501", "closed"},
    ),
    "a flood of empty fragments": (
        lambda: [UPGRADE, OPENED, *repeated(frame(Opcode.CONT, fin=False) * 1_000, 5_000_000)],
        {"3501", "closed"},
    ),
    "a flood of frames": (lambda: [UPGRADE, *repeated(frame(Opcode.TEXT, b"{}") * 500, 5_000_000)], {"3501", "closed"}),
}


@pytest.mark.fault(row=26)
async def test_attacks_end_in_a_refusal_and_honest_calls_go_on(fault: Fault) -> None:
    """Each attack over and over, ten connections at a time, beside honest calls."""
    async with victim() as replica:
        async with honest_calls(replica) as alone:
            await asyncio.sleep(2)  # how long to measure, nothing to wait for
        wrong: list[str] = []
        took: Counter[str] = Counter()
        slots = asyncio.Semaphore(10)

        async def one(name: str) -> None:
            parts, right = ATTACKS[name]
            async with slots:
                end, sent = await attack(replica.port, parts())
            took[name] += sent
            if end not in right and not (end == "closed" and sent > MIB // 2):
                wrong.append(f"{name}: {end}")

        before = replica.cost
        async with peak_of(replica) as costs, honest_calls(replica) as honest:
            await asyncio.gather(*(one(name) for name in ATTACKS for _ in range(TIMES)))
        peak = max(cost.rss for cost in costs) - before.rss
        fault.figure(
            attacks=len(ATTACKS) * TIMES, wrong=len(wrong), taken_mib=took.total() / MIB,
            most_taken_mib=max(took.values()) / TIMES / MIB, peak_rss_grown_mib=peak / MIB, honest_calls=honest.calls,
            honest_p99_alone_s=alone.p99_s, honest_p99_s=honest.p99_s, honest_max_s=honest.max_s,
        )  # fmt: skip
        assert wrong == []
        assert (honest.failed, alone.failed) == (0, 0)
        assert peak < MAX_GROWTH_MIB * MIB
        assert complaints(replica) == []


SLOW = {
    "half a head": HEAD[:50],
    "nothing": b"",
    "half a body": HEAD + b"Content-Length: 100\r\n\r\n{",
    "a body of no bytes": HEAD + b"Content-Length: 100\r\n\r\n",
}


@pytest.mark.fault(row=26)
async def test_500_slow_connections_are_let_go(fault: Fault) -> None:
    """They say half of what they should, a byte a second more, and no end; honest calls do not wait for them."""
    async with victim() as replica, AsyncExitStack() as stack:
        before = replica.cost
        slow: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        for number in range(500):
            reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
            stack.callback(writer.transport.abort)
            # The heads of `/rpc` bodies come whole: those have thirty seconds, the others ten.
            writer.write(list(SLOW.values())[0 if number % 10 else number // 10 % len(SLOW)])
            slow.append((reader, writer))
        began = time.monotonic()
        held = replica.cost

        async def drip() -> None:
            while True:
                await asyncio.sleep(1)
                for _, writer in slow:
                    if not writer.transport.is_closing():
                        writer.write(b"a")

        dripping = asyncio.create_task(drip())
        gone: list[float] = []

        async def until_let_go(reader: asyncio.StreamReader) -> None:
            with suppress(ConnectionError):
                await reader.read()
            gone.append(time.monotonic() - began)

        try:
            async with honest_calls(replica) as honest, asyncio.timeout(120):
                await asyncio.gather(*(until_let_go(reader) for reader, _ in slow))
        finally:
            dripping.cancel()
            await asyncio.wait({dripping})
        fault.figure(
            connections=len(slow), let_go=len(gone), first_s=min(gone), last_s=max(gone),
            descriptors_held=held.fds - before.fds, rss_grown_mib=(replica.cost.rss - before.rss) / MIB,
            honest_p99_s=honest.p99_s, honest_max_s=honest.max_s,
        )  # fmt: skip
        assert len(gone) == 500
        assert honest.failed == 0
        assert complaints(replica) == []


@pytest.mark.fault(row=26, control=True)
async def test_uvicorn_alone_takes_all_of_it(fault: Fault) -> None:
    """The same server without our protocols, around an application that reads what it is sent. All of it bounded."""

    async def sink(request: Request) -> Response:
        return Response(str(len(await request.body())))

    app = Starlette(routes=[Route("/rpc", sink, methods=["POST"])])
    config = uvicorn.Config(
        app, port=0, http="httptools", log_level="critical", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        close = HEAD + b"Connection: close\r\n"
        large, _ = await attack(
            port, [close + b"Content-Length: 20000000\r\n\r\n", *repeated(BLOCK, 20_000_000), b"x" * 20_000_000]
        )
        header, _ = await attack(port, [close + b"Content-Length: 0\r\nX-A: ", *repeated(BLOCK, MIB), b"\r\n\r\n"])
        hostless, _ = await attack(port, [close.replace(b"Host: x\r\n", b"") + b"Content-Length: 0\r\n\r\n"])
        slow = await asyncio.gather(
            *(attack(port, [part], within_s=HEAD_TIMEOUT_S + 5) for part in SLOW.values() for _ in range(10))
        )
    finally:
        server.should_exit = True
        await serving
    still_open = sum(end == "open" for end, _ in slow)
    fault.figure(accepted_20_mb=large == "200", accepted_1_mb_header=header == "200", slow_still_open=still_open)
    assert (large, header, hostless) == ("200", "200", "200")
    assert still_open == len(SLOW) * 10
