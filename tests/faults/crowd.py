"""Clients in numbers: one that never reads, and a process of many that read all and measure how late it comes.

python -m faults.crowd ws://127.0.0.1:8080/ws 1000 ann     # users ann0 … ann999; commands on stdin, answers on stdout
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from faults.fleet import TOKEN, Address
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect

HEADERS = {"Authorization": f"Bearer {TOKEN}"}
_CONNECTING_AT_A_TIME = 50


class Stalled:
    """A WebSocket whose client reads the handshake, and from then on nothing, or `bytes_per_s`."""

    def __init__(self, url: str, uid: str, *, bytes_per_s: int = 0) -> None:
        self.uid = uid
        self._url = urlsplit(url)
        self._bytes_per_s = bytes_per_s
        self._socket = socket.socket()
        self._trickling: asyncio.Task[None] | None = None
        self._read = bytearray()

    async def __aenter__(self) -> Self:
        self._socket.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, (self._url.hostname, self._url.port))
        lines = [
            f"GET {self._url.path}?uid={self.uid} HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==", "Sec-WebSocket-Version: 13",
            *(f"{name}: {value}" for name, value in HEADERS.items()), "", "",
        ]  # fmt: skip
        await loop.sock_sendall(self._socket, "\r\n".join(lines).encode())
        head = bytearray()
        async with asyncio.timeout(30):
            while not head.endswith(b"\r\n\r\n"):
                head += await loop.sock_recv(self._socket, 1)
        assert b" 101 " in head
        if self._bytes_per_s:
            self._trickling = asyncio.create_task(self._trickle())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stop_trickling()
        self._socket.close()

    async def fill(self, redis: Address) -> None:
        """Have more sent to it than the kernel holds for one that does not read."""
        async with Redis(host=redis.host, port=redis.port) as publisher:
            for n in range(10):
                await publisher.publish(f"user:{self.uid}", told(self.uid, n, "x" * 90_000))

    async def close_code(self, within_s: float) -> int:
        """Read all that came, to the end: the code of its close frame; 1006 for a reset, or an end without one."""
        await self._stop_trickling()
        async with asyncio.timeout(within_s):
            while await self._receive(1_000_000):
                pass
        return _code_in(self._read)

    async def _trickle(self) -> None:
        while await self._receive(self._bytes_per_s):
            await asyncio.sleep(1)

    async def _receive(self, size: int) -> bool:
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, size)
        except ConnectionResetError:
            self._read.clear()
            return False
        self._read += data
        return bool(data)

    async def _stop_trickling(self) -> None:
        if self._trickling is not None:
            self._trickling.cancel()
            await asyncio.wait({self._trickling})


def _code_in(frames: bytearray) -> int:
    """The code of the close frame among a server's frames."""
    while len(frames) >= 4:
        opcode, size, start = frames[0] & 15, frames[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(frames[2:start], "big")
        if opcode == 8:
            return int.from_bytes(frames[start : start + 2], "big")
        del frames[: start + size]
    return 1006


def told(uid: str, n: int, filling: str = "") -> str:
    """An event as a foreign publisher sends it."""
    payload = {"n": n, "at": time.time(), "filling": filling}
    return json.dumps({"id": f"{uid}-{n}-{time.time_ns()}", "type": "crowd.told", "uid": uid, "payload": payload})


class Crowd:
    """A process of `count` clients of the users {name}0, {name}1, …, each of whom reads whatever comes."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, count: int) -> None:
        self.users = [f"{name}{n}" for n in range(count)]
        self._process = process

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str, name: str, count: int) -> AsyncIterator[Crowd]:
        """All of them connected, and told their first sync."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "faults.crowd", url, str(count), name,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        crowd = cls(process, name, count)
        try:
            await crowd._answer()
            yield crowd
        finally:
            process.kill()
            await process.wait()

    async def seen(self) -> dict[str, Any]:
        """`received`, `lost` (numbers of a user that were passed over), `closed` sockets, so far; `p50_ms` and `p99_ms`
        since `measure_anew`."""
        return await self._ask("seen")

    async def measure_anew(self) -> None:
        await self._ask("anew")

    async def until_received(self, count: int, within_s: float = 60) -> dict[str, Any]:
        """`seen`, once that much was received; TimeoutError."""
        async with asyncio.timeout(within_s):
            while (seen := await self.seen())["received"] < count:
                await asyncio.sleep(0.2)
        return seen

    async def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return answer


class _Members:
    """The clients, in their own process."""

    def __init__(self, url: str) -> None:
        self.received = self.lost = self.closed = 0
        self.late_ms: list[float] = []
        self._url = url
        self._connecting = asyncio.Semaphore(_CONNECTING_AT_A_TIME)

    async def join(self, uid: str) -> asyncio.Task[None]:
        async with self._connecting:
            connection = await connect(
                f"{self._url}?uid={uid}", additional_headers=HEADERS, proxy=None, ping_interval=None, open_timeout=60
            )
            await connection.recv()  # its sync
        return asyncio.create_task(self._read(connection))

    def seen(self) -> dict[str, float]:
        late = sorted(self.late_ms) or [0.0]
        return {
            "received": self.received, "lost": self.lost, "closed": self.closed,
            "p50_ms": round(late[len(late) // 2], 1), "p99_ms": round(late[int(len(late) * 0.99)], 1),
        }  # fmt: skip

    async def _read(self, connection: ClientConnection) -> None:
        last = -1
        try:
            async for text in connection:
                event = json.loads(text)
                if event["type"] != "crowd.told":
                    continue
                payload = event["payload"]
                self.late_ms.append((time.time() - payload["at"]) * 1_000)
                self.received += 1
                self.lost += payload["n"] - last - 1
                last = payload["n"]
        finally:
            self.closed += 1


async def main(url: str, count: int, name: str) -> None:
    members = _Members(url)
    reading = await asyncio.gather(*(members.join(f"{name}{n}") for n in range(count)))
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while True:
        sys.stdout.write(json.dumps(members.seen()) + "\n")
        sys.stdout.flush()
        command = await commands.readline()
        if not command:
            break
        if command == b"anew\n":
            members.late_ms.clear()
    for task in reading:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
