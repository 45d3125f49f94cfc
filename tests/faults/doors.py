"""The doors of a fleet with every kind of credential: how one is shown, and what becomes of who shows it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from faults.fleet import Fleet, Replica
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from callboard_local import ValkeyServer

ORIGIN = "https://app.example"
ENVIRON = {
    "LISTENERS_SERVICE_TOKENS": "reader:reader-token:LEDGER.read,LEDGER.w*i;desk:desk-token:REGISTRY.*",
    "LISTENERS_ALLOWED_ORIGINS": ORIGIN,
    "LISTENERS_METRICS_TOKEN": "metrics-token",
}


@asynccontextmanager
async def fleet_of(valkey: ValkeyServer, count: int, **environ: str) -> AsyncIterator[Fleet]:
    async with Fleet(valkey, count=count, environ={**ENVIRON, **environ}) as fleet:
        yield fleet


class Everything:
    """All that is published on a Redis, as (channel, message), but for the replicas' own probes."""

    def __init__(self, valkey: ValkeyServer, password: str | None = None) -> None:
        self.heard: list[tuple[str, str]] = []
        self._valkey = valkey
        self._password = password

    async def __aenter__(self) -> Everything:
        self._redis = Redis(
            host=self._valkey.host, port=self._valkey.port, password=self._password, decode_responses=True
        )
        self._pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        await self._pubsub.psubscribe("*")
        await self._pubsub.get_message(timeout=5)
        self._task = asyncio.create_task(self._hear())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]
        await self._redis.aclose()

    async def _hear(self) -> None:
        async for message in self._pubsub.listen():
            if not message["channel"].startswith("callboard:"):
                self.heard.append((message["channel"], message["data"]))

    async def until(self, channel: str) -> None:
        async with asyncio.timeout(30):
            while not any(heard == channel for heard, _ in self.heard):
                await asyncio.sleep(0.01)


async def ticket_for(replica: Replica, uid: str, ttl_s: int = 60) -> str:
    reply = await replica.call("REGISTRY.issue_ticket", uid, ttl_s)
    return str(reply["data"]["ticket"])


def showing(ticket: object) -> str:
    return json.dumps({"type": "auth.ticket", "payload": {"ticket": ticket}})


async def outcome_of(
    url: str, first: str | None, headers: Sequence[tuple[str, str]] = ()
) -> tuple[int, str, list[dict[str, Any]]]:
    """How a socket that should not be let in ends: code (or HTTP status), reason, and what it was told before."""
    told: list[dict[str, Any]] = []
    try:
        socket = await connect(url, additional_headers=headers, proxy=None)
    except InvalidStatus as refusal:
        return refusal.response.status_code, "", []
    async with socket:
        with suppress(ConnectionClosed):
            if first is not None:
                await socket.send(first)
            async with asyncio.timeout(30):
                async for text in socket:
                    told.append(json.loads(text))  # noqa: PERF401 - what came before the end counts
        assert socket.close_code is not None
        return socket.close_code, socket.close_reason or "", told


@asynccontextmanager
async def opened(
    replica: Replica, uid: str, ticket: str, query: str = "", origin: str = ORIGIN
) -> AsyncIterator[ClientConnection]:
    url = f"{replica.ws_url}?uid={uid}{query}"
    async with connect(url, additional_headers=[("Origin", origin)], proxy=None) as socket:
        await socket.send(showing(ticket))
        assert json.loads(await asyncio.wait_for(socket.recv(), 30))["type"] == "count.sync"
        yield socket
