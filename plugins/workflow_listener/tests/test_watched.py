from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from callboard import FailedPrecondition, Unavailable
from callboard.connections import Connections
from callboard.settings import Settings, load
from callboard.telemetry import Telemetry
from callboard_local import ValkeyServer
from callboard_workflow_listener import watched as watched_module
from callboard_workflow_listener.watched import LIFETIME_S, MAX_WATCHED, WatchedJobs

pytestmark = pytest.mark.anyio


@pytest.fixture
async def connections(valkey_server: ValkeyServer) -> AsyncIterator[Connections]:
    async with connected(valkey_server) as opened:
        yield opened


def connected(server: ValkeyServer) -> Connections:
    settings = load(Settings, {"LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(server.port)})
    return Connections(settings, Telemetry(replica="test"))


def key_of(uid: str) -> str:
    return f"callboard:workflow:{{{uid}}}:watched"


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


async def test_a_set_that_redis_lost_is_written_back_and_one_that_was_emptied_is_not(
    connections: Connections, uid: str
) -> None:
    watched, elsewhere = WatchedJobs(connections), WatchedJobs(connections)
    for job_id in ("a", "b"):
        await watched.add(uid, job_id)
    await watched.tend(uid)
    await connections.commands.delete(key_of(uid))
    assert await elsewhere.tend(uid) == frozenset()
    assert await watched.tend(uid) == await watched.get(uid) == {"a", "b"}
    assert 0 < await connections.commands.ttl(key_of(uid)) <= LIFETIME_S

    for job_id in ("a", "b"):
        await elsewhere.remove(uid, job_id)
    assert await watched.tend(uid) == frozenset()
    await connections.commands.delete(key_of(uid))
    assert await watched.tend(uid) == frozenset()


async def test_what_was_seen_long_ago_is_not_written_back(
    connections: Connections, uid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = WatchedJobs(connections)
    for user in (uid, f"{uid}.other"):
        await watched.add(user, "a")
        await watched.tend(user)
    await connections.commands.delete(key_of(uid))
    monkeypatch.setattr(watched_module, "LIFETIME_S", -1)
    await watched.tend("nobody")
    monkeypatch.undo()
    assert await watched.tend(uid) == frozenset()


async def test_what_nobody_tends_ends(connections: Connections, uid: str) -> None:
    watched = WatchedJobs(connections)
    await watched.add(uid, "a")
    key = key_of(uid)
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
