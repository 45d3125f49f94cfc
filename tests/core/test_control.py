from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from core.replicas import eventually
from redis.asyncio import Redis

from callboard.connections import Connections
from callboard.events.bus import Bus
from callboard.fleet.control import ALL, Control, Told
from callboard.settings import Settings
from callboard.telemetry import Telemetry
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio


@dataclass
class End:
    control: Control
    bus: Bus
    stream: io.StringIO
    told: list[Told] = field(default_factory=list)

    def ignored(self) -> int:
        return sum(json.loads(line)["event"] == "control_ignored" for line in self.stream.getvalue().splitlines())


@asynccontextmanager
async def end(server: ValkeyServer, id: str) -> AsyncIterator[End]:  # noqa: A002
    settings = Settings(redis_host=server.host, redis_port=server.port, redis_cluster="false")
    stream = io.StringIO()
    telemetry = Telemetry(replica=id, stream=stream)
    async with Connections(settings, telemetry) as connections, Bus(settings, connections, telemetry, {}) as bus:
        opened = End(Control(id, bus, telemetry), bus, stream)
        opened.control.open(opened.told.append)
        await eventually(lambda: bus.probed_at is not None)  # and so the subscriptions stand
        yield opened


async def test_one_is_told_of_users_and_all_the_others_of_threads_and_of_who_left(own_valkey: ValkeyServer) -> None:
    async with end(own_valkey, "a") as a, end(own_valkey, "b") as b, end(own_valkey, "c") as c:
        await a.control.attend("b", {"shop.items": ["ann", "bob"], "shop.loud": ["ann"]})
        await a.control.let_go(["eve"])
        await a.control.left()
        await eventually(lambda: len(b.told) == 3 and len(c.told) == 2)
        assert b.told == [
            Told("a", users={"shop.items": ["ann", "bob"], "shop.loud": ["ann"]}),
            Told("a", threads=["eve"]),
            Told("a", left=True),
        ]
        assert c.told == b.told[1:]
        assert a.told == []

        b.control.close()
        await a.control.attend("b", {"shop.items": ["ann"]})
        await a.control.let_go(["bob"])
        await eventually(lambda: len(c.told) == 3)
        assert len(b.told) == 3


@pytest.mark.parametrize(
    "garbage", [b"", b"\xff", b"[]", b'{"by": 1}', b'{"by":"x","threads":["a b"]}', b'{"by":"x","users":{"l":["*"]}}']
)
async def test_what_is_no_message_is_ignored_and_said(own_valkey: ValkeyServer, garbage: bytes) -> None:
    async with (
        end(own_valkey, "a") as a,
        end(own_valkey, "b") as b,
        Redis(host=own_valkey.host, port=own_valkey.port) as client,
    ):
        await client.publish(ALL, garbage)
        await eventually(b.ignored)
        await client.publish(ALL, b'{"by":"x","left":true,"of_a_newer_release":1}')
        await eventually(lambda: b.told == [Told("x", left=True)])
        assert (a.ignored(), b.ignored()) == (1, 1)
