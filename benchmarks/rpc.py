"""`POST /rpc` on an echo method, everything on, beside servers that only parse and echo."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import uvloop

from benchmarks import load
from callboard_local import ValkeyServer
from callboard_local.server import free_port

CONTENDERS = ("raw ASGI", "Starlette", "callboard")
TOKEN = "bench"
BODY = json.dumps(
    {
        "method": "BENCH.echo",
        "args": [{"job_id": "job456", "status": "completed", "file_name": "invoice-2025-001.pdf", "n": 12}],
        "kwargs": {"times": 3},
        "user_id": "user123",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "timeout_ms": 30000,
    },
    separators=(",", ":"),
).encode()


@contextmanager
def serving(name: str, valkey_port: int) -> Iterator[tuple[int, int]]:
    """A contender in a process of its own, on CPU 0: its port and process id."""
    port = free_port()
    environ = {
        **os.environ,
        "LISTENERS_SERVICE_TOKEN": TOKEN,
        "LISTENERS_REDIS_HOST": "127.0.0.1",
        "LISTENERS_REDIS_PORT": str(valkey_port),
    }
    command = [sys.executable, "-m", "benchmarks.servers", name, str(port), "0"]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, env=environ, stdout=log, stderr=log) as process:
        try:
            asyncio.run(_answering(port))
            yield port, process.pid
        finally:
            process.terminate()


async def _answering(port: int) -> None:
    message = load.request(port, BODY, token=TOKEN)
    until = time.monotonic() + 20
    while True:
        try:
            await load.run(port, message, connections=1, seconds=0)
        except (OSError, RuntimeError):
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.05)
        else:
            return


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(*, rounds: int = 5, seconds: float = 3, connections: int = 32) -> list[dict[str, float | str]]:
    """Medians over the rounds: calls/s, CPU µs a call, p50 and p99 in ms."""
    os.sched_setaffinity(0, set(range(os.cpu_count() or 1)) - {0} or {0})
    found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in CONTENDERS}
    with ValkeyServer() as valkey:
        for _ in range(rounds):
            for name in CONTENDERS:
                with serving(name, valkey.port) as (port, pid):
                    message = load.request(port, BODY, token=TOKEN)
                    uvloop.run(load.run(port, message, connections=connections, seconds=0.5))
                    before = _cpu_seconds(pid)
                    result = uvloop.run(load.run(port, message, connections=connections, seconds=seconds))
                    cpu = (_cpu_seconds(pid) - before) / len(result.times) * 1e6
                    found[name].append(
                        (result.per_second, cpu, result.percentile(0.5) * 1e3, result.percentile(0.99) * 1e3)
                    )
    rows = []
    for name, runs in found.items():
        rate, cpu, p50, p99 = (median(column) for column in zip(*runs, strict=True))
        rows.append({"server": name, "calls/s": round(rate), "CPU µs": round(cpu, 1), "p50 ms": p50, "p99 ms": p99})
    return rows


def report(rows: list[dict[str, float | str]]) -> str:
    base = {str(row["server"]): row for row in rows}
    lines = [
        "| server | calls/s | CPU µs a call | p50 ms | p99 ms | calls/s ÷ Starlette |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = float(row["calls/s"]) / float(base["Starlette"]["calls/s"])
        lines.append(
            f"| {row['server']} | {row['calls/s']} | {row['CPU µs']} | {row['p50 ms']:.2f} | {row['p99 ms']:.2f} "
            f"| {ratio:.2f} |"
        )
    return "\n".join(lines)
