"""An honest caller in a process of its own, so that what it measures is the replica and not the attacker beside it.

python -m faults.prober PORT TOKEN      calls ECHO until its input ends; prints what it saw
"""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from faults.fleet import TOKEN, Replica
from msgspec import Struct
from msgspec.json import decode

_TESTS = Path(__file__).parents[1]


class Probed(Struct):
    """What the caller saw; times in seconds."""

    calls: int = 0
    failed: int = 0
    p99_s: float = 0.0
    max_s: float = 0.0


@asynccontextmanager
async def honest_calls(replica: Replica) -> AsyncIterator[Probed]:
    """Calls to the replica all the while; the figures are there at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "faults.prober", str(replica.port), TOKEN, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, cwd=_TESTS,
    )  # fmt: skip
    probed = Probed()
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"calling\n"
        yield probed
        told = decode((await process.communicate(b""))[0], type=Probed)
        for name in Probed.__struct_fields__:
            setattr(probed, name, getattr(told, name))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def main(port: int, token: str) -> None:
    ended = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    times: list[float] = []
    failed = 0
    sys.stdout.write("calling\n")
    sys.stdout.flush()
    while not times or not ended.wait(0.005):
        began = time.monotonic()
        connection.request("POST", "/rpc", json.dumps({"method": "ECHO.echo", "args": [len(times)]}), headers)
        answer = connection.getresponse()
        failed += json.loads(answer.read()).get("data") != len(times)
        times.append(time.monotonic() - began)
    times.sort()
    figures = {"calls": len(times), "failed": failed, "p99_s": times[int(len(times) * 0.99)], "max_s": times[-1]}
    sys.stdout.write(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
