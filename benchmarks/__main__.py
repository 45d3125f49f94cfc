"""`python -m benchmarks [NAME …]`: run them, or all, and print their tables."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import Callable

from benchmarks import latency, listeners, listening, outages, rpc, streams
from benchmarks.tables import across, down


def _rpc() -> str:
    # It pins processes to CPUs, this one too; the others need both.
    usable = os.sched_getaffinity(0)
    try:
        return "POST /rpc, 32 connections, server on one core\n\n" + rpc.report(rpc.measure())
    finally:
        os.sched_setaffinity(0, usable)


def _listening() -> str:
    figures = asyncio.run(listening.measure())
    return "Firestore write to WebSocket frame\n\n" + ", ".join(f"{k}: {v:.4g}" for k, v in figures.items())


def _listeners() -> str:
    rows = asyncio.run(listeners.compare())
    return "Listeners in one process, 100 streams on a connection (pairs: p50 / p99)\n\n" + down(rows, "contender")


def _streams() -> str:
    rows = asyncio.run(streams.compare())
    return "Realtime Database streams in one process (pairs: p50 / p99)\n\n" + down(rows, "contender")


def _latency() -> str:
    rows = asyncio.run(latency.compare())
    return "Write at the source to event on Redis\n\n" + across(rows)


def _outages() -> str:
    rows = asyncio.run(outages.compare())
    return "A server killed under 50 writes a second\n\n" + across(rows)


BENCHMARKS: dict[str, Callable[[], str]] = {
    "rpc": _rpc,
    "listening": _listening,
    "listeners": _listeners,
    "streams": _streams,
    "latency": _latency,
    "outages": _outages,
}


def main(names: list[str]) -> None:
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    cores = os.cpu_count()
    print(
        f"{platform.processor() or platform.machine()}, {cores} cores, load {load}, Python {platform.python_version()}"
    )
    if unknown := set(names) - BENCHMARKS.keys():
        sys.exit(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        print(f"\n{BENCHMARKS[name]()}", flush=True)


main(sys.argv[1:])
