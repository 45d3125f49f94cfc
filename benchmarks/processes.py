"""What a process costs, read from /proc, and processes that are asked in JSON lines."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Handler = Callable[..., Awaitable[Any]]
_MAX_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Cost:
    """A process at one moment: CPU seconds used so far, resident bytes, threads."""

    cpu_s: float
    rss: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Cost:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return cls(
            cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
            rss=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
            threads=int(fields[17]),
        )


class Peer:
    """A process of ours that answers commands: `await peer.ask("listen", count=10)`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @property
    def cost(self) -> Cost:
        return Cost.of(self.pid)

    async def ask(self, command: str, **arguments: Any) -> Any:
        """The answer; RuntimeError when the process ends instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([command, arguments]).encode() + b"\n")
        answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeError("a process of the benchmark ended")
        return json.loads(answer)


@asynccontextmanager
async def peer(module: str, *arguments: str, environ: Mapping[str, str] | None = None) -> AsyncIterator[Peer]:
    """`python -m module arguments` for the length of the block; killed at its end, whatever it does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=_MAX_LINE_BYTES, env={**os.environ, **(environ or {})},
    )  # fmt: skip
    try:
        yield Peer(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def serve(handlers: dict[str, Handler]) -> None:
    """The peer's side: answer commands from the standard input until it ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command, arguments = json.loads(line)
        print(json.dumps(await handlers[command](**arguments)), flush=True)


def percentile(times: list[float], share: float) -> float:
    """Of times in any order; `share` between 0 and 1."""
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]
