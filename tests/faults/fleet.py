"""Replicas in processes of their own: `callboard serve` with the plugins LEDGER and REGISTRY, on one Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import httpx
from faults.ledger import GROWN
from redis.asyncio import Redis

from callboard_local import ValkeyServer
from callboard_local.child import Child
from callboard_local.server import free_port, in_thread

TOKEN = "fleet-token"
_TESTS = Path(__file__).parents[1]
_START_TIMEOUT_S = 30.0


class Address(Protocol):
    """A server, or what stands before it."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


@dataclass(frozen=True)
class Cost:
    """A process at one moment: CPU seconds used so far, resident bytes, threads, open file descriptors."""

    cpu_s: float
    rss: int
    threads: int
    fds: int

    @classmethod
    def of(cls, pid: int) -> Cost:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return cls(
            cpu_s=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
            rss=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
            threads=int(fields[17]),
            fds=len(os.listdir(f"/proc/{pid}/fd")),
        )


class Replica:
    """One process. `log` is the file its log lines go to, over restarts."""

    def __init__(self, name: str, environ: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self.port = free_port()
        self._environ = {"LISTENERS_REPLICA": name, **environ}
        self._child: Child | None = None
        self.client = httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60,
            limits=httpx.Limits(max_connections=None),
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.alive

    @property
    def cost(self) -> Cost:
        return Cost.of(self.pid)

    async def start(self) -> None:
        """Spawn it, and wait until it is ready."""
        # The shell is replaced: signals reach the service itself.
        command = ["/bin/sh", "-c", 'echo spawned; exec "$@" >>"$0" 2>&1', str(self.log)]
        command += [sys.executable, "-m", "callboard", "serve", "--port", str(self.port)]
        self._child = Child(command, name=self.name, ready="spawned", env=self._environ)
        await in_thread(lambda: self._running.start(_START_TIMEOUT_S))
        async with asyncio.timeout(_START_TIMEOUT_S):
            while not await self.is_ready():
                assert self.alive, f"{self.name} did not start:\n{self.log.read_text()[-2000:]}"
                await asyncio.sleep(0.05)

    async def is_ready(self, *, strict: bool = False) -> bool:
        try:
            return (await self.client.get("/readyz", params={"strict": int(strict)}, timeout=2)).status_code == 200
        except httpx.TransportError:
            return False

    async def call(
        self,
        method: str,
        *args: Any,
        user: str | None = None,
        key: str | None = None,
        timeout_ms: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The reply, an error's too; httpx.TransportError when there is none."""
        fields = {"user_id": user, "idempotency_key": key, "timeout_ms": timeout_ms}
        call = {"method": method, "args": args, "kwargs": kwargs, **{k: v for k, v in fields.items() if v is not None}}
        reply: dict[str, Any] = (await self.client.post("/rpc", json=call)).json()
        return reply

    def signal(self, signum: signal.Signals) -> None:
        self._running.send(signum)

    def pause(self) -> None:
        """SIGSTOP."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        await in_thread(self._running.kill)

    async def stop(self, within_s: float = 60) -> int:
        """SIGTERM; its exit status, or -9 when it had to be killed."""
        await in_thread(lambda: self._running.stop(within_s))
        return self._running.exited.result()

    async def restart(self) -> None:
        """Start it anew on the same port; it is killed first when it still runs."""
        if self.alive:
            await self.kill()
        await self.start()

    async def close(self) -> None:
        if self.alive:
            await self.kill()
        await self.client.aclose()

    @property
    def _running(self) -> Child:
        assert self._child is not None, f"{self.name} was never started"
        return self._child


class Fleet:
    """`async with Fleet(valkey, count=3) as fleet`: replicas r1, r2, … on one Redis, and `truth`, out of faults' reach.

    `redis` is one address for all, or one (a proxy, say) for each replica.
    """

    def __init__(
        self, *redis: Address, count: int | None = None, environ: Mapping[str, str] | None = None, token: str = TOKEN
    ) -> None:
        self.replicas: list[Replica] = []
        self._redis = redis
        self._count = count or len(redis)
        self._environ = dict(environ or {})
        self._token = token
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="callboard-fleet-")))
            install(self.folder, "ledger")
            truth = await self._stack.enter_async_context(ValkeyServer())
            self._truth_url = truth.url
            self.truth = await self._stack.enter_async_context(Redis.from_url(truth.url, decode_responses=True))
            await asyncio.gather(*(self.start_one() for _ in range(self._count)))
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def start_one(self, **environ: str) -> Replica:
        """Another replica, ready; variables by keyword win."""
        number = len(self.replicas)
        redis = self._redis[number % len(self._redis)]
        replica = Replica(
            f"r{number + 1}",
            {
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(_TESTS), str(self.folder)]),
                "LISTENERS_SERVICE_TOKEN": self._token,
                "LISTENERS_PLUGINS": "ledger,registry",
                "LISTENERS_REDIS_HOST": redis.host,
                "LISTENERS_REDIS_PORT": str(redis.port),
                "LEDGER_TRUTH": self._truth_url,
                **self._environ,
                **environ,
            },
            self.folder / f"r{number + 1}.log",
        )
        self.replicas.append(replica)
        self._stack.push_async_callback(replica.close)
        await replica.start()
        return replica

    async def executions(self, name: str) -> int:
        """How often a write of LEDGER with this name ran."""
        return int(await self.truth.llen(f"ran:{name}"))

    async def grow(self, uid: str) -> int:
        """The user's number in the source, one higher than before."""
        number = int(await self.truth.incr(f"number:{uid}"))
        await self.truth.publish(GROWN, f"{uid} {number}")
        return number

    async def number(self, uid: str) -> int:
        """The user's number in the source."""
        return int(await self.truth.get(f"number:{uid}") or 0)


def install(folder: Path, plugin: str) -> None:
    """Have a plugin of this folder's found as an installed one is: by an entry point on the path."""
    about = folder / f"{plugin}-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {plugin}\nVersion: 0\n")
    (about / "entry_points.txt").write_text(f"[callboard.plugins]\n{plugin} = faults.{plugin}\n")
