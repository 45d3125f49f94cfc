"""`python -m benchmarks [rpc | listening]`: run them and print their tables."""

from __future__ import annotations

import asyncio
import platform
import sys

from benchmarks import listening, rpc


def main(names: list[str]) -> None:
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}\n")
    if not names or "rpc" in names:
        print("POST /rpc, 32 connections, server on one core\n\n" + rpc.report(rpc.measure()) + "\n")
    if not names or "listening" in names:
        figures = asyncio.run(listening.measure())
        print("Firestore write to WebSocket frame\n\n" + ", ".join(f"{k}: {v:.4g}" for k, v in figures.items()))


main(sys.argv[1:])
