"""redis-py's own pub/sub client, in a process of its own, since what a fault does to it may take its whole loop.

python -m faults.stock HOST PORT SECONDS USER_TIMEOUT_MS [fill]     # `ready`; a line on stdin begins; then a JSON line

With `fill` it begins by writing more than the kernel takes: a server that does not read then lets TCP_USER_TIMEOUT run.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from typing import Any

from faults.ear import Pulse
from redis.asyncio import Redis
from redis.exceptions import RedisError

_FILLING = b"*1\r\n$4\r\nPING\r\n" * 1_000_000


async def main(host: str, port: str, seconds: str, user_timeout_ms: str, *fill: str) -> None:
    options = {
        socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3,
        socket.TCP_USER_TIMEOUT: int(user_timeout_ms),
    }  # fmt: skip
    client = Redis(host=host, port=int(port), socket_keepalive=True, socket_keepalive_options=options)
    pubsub: Any = client.pubsub()
    await pubsub.subscribe("user:u")
    await pubsub.get_message(timeout=5)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    if fill:
        pubsub.connection._writer.write(_FILLING)
    rounds: list[dict[str, float]] = []
    errors: list[str] = []
    began = time.monotonic()
    async with Pulse() as pulse:
        while time.monotonic() - began < float(seconds):
            calls, beats, until = 0, pulse.beats, time.monotonic() + 1
            while time.monotonic() < until:
                calls += 1
                try:
                    await pubsub.get_message(timeout=0.2)
                except (RedisError, OSError) as error:
                    errors.append(type(error).__name__)
            rounds.append({"calls": calls, "beats": pulse.beats - beats})
    report = {"rounds": rounds, "errors": errors, "is_connected": pubsub.connection.is_connected}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
