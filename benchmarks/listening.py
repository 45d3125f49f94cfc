"""From a Firestore write to the WebSocket frame: the time a user waits for what changed elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

import httpx
from google.cloud.firestore import AsyncClient
from websockets.asyncio.client import connect

from callboard_local.server import free_port


@asynccontextmanager
async def dev_service() -> AsyncIterator[int]:
    """`callboard dev` in a process of its own: its port."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "callboard", "dev", "--port", str(port), stdout=subprocess.DEVNULL
    )
    try:
        async with httpx.AsyncClient() as client:
            while True:
                try:
                    if (await client.get(f"http://127.0.0.1:{port}/readyz?strict=1")).status_code == 200:
                        break
                except httpx.TransportError:
                    await asyncio.sleep(0.02)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def measure(writes: int = 500, *, pause_s: float = 0.02) -> dict[str, float]:
    """Milliseconds from before the write is sent to after its frame has arrived, and from its commit's answer."""
    async with dev_service() as port:
        os.environ["FIRESTORE_EMULATOR_HOST"] = f"127.0.0.1:{port + 2}"
        firestore = AsyncClient(project="demo")
        job = firestore.document("clients/demo/task_manager/job456")
        headers = {"Authorization": "Bearer dev"}
        sent: dict[int, float] = {}
        times: list[float] = []
        async with connect(f"ws://127.0.0.1:{port}/ws?uid=demo", additional_headers=headers) as socket:

            async def read() -> None:
                while len(times) < writes:
                    event = json.loads(await socket.recv())
                    changes = event["payload"].get("step_changes", {}).get("APBookeeper_step_status", {})
                    if (n := changes.get("bench")) in sent:
                        times.append((time.perf_counter() - sent[n]) * 1000)

            while json.loads(await socket.recv())["type"] != "workflow.sync":
                pass
            reader = asyncio.create_task(read())
            for n in range(1, writes + 1):
                sent[n] = time.perf_counter()
                await job.update({"APBookeeper_step_status.bench": n})
                await asyncio.sleep(pause_s)
            await asyncio.wait_for(reader, 30)
        firestore.close()  # type: ignore[no-untyped-call]
    times.sort()
    return {"writes": writes, "p50 ms": median(times), "p99 ms": times[int(len(times) * 0.99)], "max ms": times[-1]}
