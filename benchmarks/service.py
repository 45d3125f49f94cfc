"""The real service in a process of its own, with users online."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from benchmarks.processes import Cost
from callboard_local.server import free_port

TOKEN = "bench"
_AT_A_TIME = 32
_TRIES = 10


class Service:
    """`callboard serve`, as its clients see it."""

    def __init__(self, port: int, pid: int, client: httpx.AsyncClient) -> None:
        self.port = port
        self.pid = pid
        self._client = client

    @property
    def cost(self) -> Cost:
        return Cost.of(self.pid)

    async def call(self, method: str, **kwargs: Any) -> Any:
        """RuntimeError for an error in the reply; while the service is busy it is asked again, as a consumer would."""
        for _ in range(_TRIES):
            reply = (await self._client.post("/rpc", json={"method": method, "kwargs": kwargs})).json()
            if reply["ok"]:
                return reply["data"]
            if (wait_ms := reply["error"].get("retry_after_ms")) is None:
                break
            await asyncio.sleep(wait_ms / 1000)
        raise RuntimeError(f"{method}: {reply['error']}")

    async def enter(self, uids: Iterable[str]) -> None:
        """Put users online; returns when each has a session. RuntimeError: the service has not taken one."""
        waiting = iter(uids)

        async def register() -> None:
            for uid in waiting:
                await self.call("REGISTRY.register_user", user_id=uid, session_id=f"{uid}.s")

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(_AT_A_TIME):
                    tasks.create_task(register())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def listening(self, count: int, within_s: float = 240) -> None:
        """Wait until so many listeners are well; RuntimeError when they never are, all at once."""
        until = time.monotonic() + within_s
        while (active := (await self._client.get("/healthz")).json()["listeners_count"]) < count:
            if time.monotonic() > until:
                raise RuntimeError(f"{active} of {count} listeners are well after {within_s:.0f} s")
            await asyncio.sleep(0.2)


@asynccontextmanager
async def serving(environ: Mapping[str, str]) -> AsyncIterator[Service]:
    """`environ` names the back ends, and what else is to be set."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "callboard", "serve", "--port", str(port),
        env={
            **os.environ,
            "LISTENERS_SERVICE_TOKEN": TOKEN,
            "LISTENERS_ALLOW_EMULATORS": "true",
            **environ,
        },
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    headers = {"Authorization": f"Bearer {TOKEN}"}
    base = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=60) as client:
            while not await _ready(client):
                if process.returncode is not None:
                    raise RuntimeError("the service did not start")
                await asyncio.sleep(0.05)
            yield Service(port, process.pid, client)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz?strict=1")).status_code == 200
    except httpx.TransportError:
        return False
