from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from callboard import FailedPrecondition, Unavailable
from callboard.connections import Connections
from callboard.settings import Settings, load
from callboard.telemetry import Telemetry
from callboard_local import ValkeyServer
from callboard_workflow_listener.watched import LIFETIME_S, MAX_WATCHED, WatchedJobs

pytestmark = pytest.mark.anyio


@pytest.fixture
async def connections(valkey_server: ValkeyServer) -> AsyncIterator[Connections]:
    async with connected(valkey_server) as opened:
        yield opened


def connected(server: ValkeyServer) -> Connections:
    settings = load(Settings, {"LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(server.port)})
    return Connections(settings, Telemetry(replica="test"))


async def test_jobs_are_watched_per_user_and_known_to_every_replica(connections: Connections, uid: str) -> None:
    here, there = WatchedJobs(connections), WatchedJobs(connections)
    await here.add(uid, "a")
    await here.add(uid, "a")
    await there.add(uid, "b/with slash?")
    assert await there.get(uid) == await here.tend(uid) == {"a", "b/with slash?"}
    assert await here.get("another") == frozenset()
    await there.remove(uid, "a")
    await there.remove(uid, "a")
    assert await here.get(uid) == {"b/with slash?"}


async def test_the_number_is_bounded(connections: Connections, uid: str) -> None:
    watched = WatchedJobs(connections)
    for number in range(MAX_WATCHED):
        await watched.add(uid, f"j{number}")
    with pytest.raises(FailedPrecondition):
        await watched.add(uid, "one more")
    await watched.add(uid, "j0")
    assert len(await watched.get(uid)) == MAX_WATCHED


async def test_what_nobody_tends_ends(connections: Connections, uid: str) -> None:
    watched = WatchedJobs(connections)
    await watched.add(uid, "a")
    key = f"callboard:workflow:{{{uid}}}:watched"
    assert 0 < await connections.commands.ttl(key) <= LIFETIME_S
    await connections.commands.expire(key, 5)
    await watched.tend(uid)
    assert await connections.commands.ttl(key) > 5


async def test_without_redis_it_is_unavailable(own_valkey: ValkeyServer, uid: str) -> None:
    async with connected(own_valkey) as connections:
        watched = WatchedJobs(connections)
        await watched.add(uid, "a")
        await own_valkey.kill()
        with pytest.raises(Unavailable):
            await watched.get(uid)
