from __future__ import annotations

import asyncio
import io
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from core.replicas import eventually
from redis.asyncio import Redis

from callboard.connections import Connections
from callboard.errors import Unavailable
from callboard.fleet.members import REPLICAS, Members
from callboard.settings import Settings
from callboard.telemetry import Telemetry
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio

BEAT_S = 0.2
NEVER_S = 3_600


@dataclass
class Known:
    members: Members
    telemetry: Telemetry
    stream: io.StringIO

    @property
    def ids(self) -> set[str]:
        return {row["id"] for row in self.members.status()}

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = map(json.loads, self.stream.getvalue().splitlines())
        return [line for line in lines if line["event"] == event]

    def die(self) -> None:
        assert self.members._task is not None
        self.members._task.cancel()


@asynccontextmanager
async def member(
    server: ValkeyServer,
    id: str,  # noqa: A002 - as in Members
    *,
    name: str = "",
    listeners: tuple[str, ...] = ("a.b",),
    beat_s: float = BEAT_S,
) -> AsyncIterator[Known]:
    settings = Settings(redis_host=server.host, redis_port=server.port, redis_cluster="false")
    stream = io.StringIO()
    telemetry = Telemetry(replica=name or id, stream=stream)
    async with Connections(settings, telemetry) as connections:
        members = Members(name or id, connections, telemetry, beat_s=beat_s, id=id)
        members.join(listeners)
        try:
            yield Known(members, telemetry, stream)
        finally:
            try:
                await members.leave()
            except Unavailable:
                assert not server.alive


async def entries(server: ValkeyServer) -> dict[str, float]:
    async with Redis(host=server.host, port=server.port) as client:
        found: list[Any] = await client.zrange(REPLICAS, 0, -1, withscores=True)
    return {json.loads(entry)["id"]: score for entry, score in found}


async def test_replicas_know_each_other_until_they_leave(own_valkey: ValkeyServer) -> None:
    async with member(own_valkey, "one") as one:
        assert one.ids == {"one"}  # from the start, whatever Redis does
        async with member(own_valkey, "two") as two:
            await eventually(lambda: one.ids == two.ids == {"one", "two"})
            assert one.telemetry.metrics.registry.get_sample_value("callboard_replicas") == 2
            one.members.changed.clear()
            await two.members.leave()
            assert two.ids == {"one"}
            assert await entries(own_valkey) == {"one": pytest.approx(time.time() * 1_000, abs=5_000)}
            await two.members.leave()  # once is enough
        await eventually(lambda: one.ids == {"one"})
        assert one.members.changed.is_set()


async def test_one_that_goes_silent_is_gone_after_the_beats_it_missed(own_valkey: ValkeyServer) -> None:
    async with member(own_valkey, "one") as one, member(own_valkey, "two") as two, member(own_valkey, "six") as six:
        await eventually(lambda: one.ids == six.ids == {"one", "two", "six"})
        two.die()
        await eventually(lambda: one.ids == six.ids == {"one", "six"})
        assert one.logged("task_failed") == []


async def test_one_that_says_it_left_is_gone_at_once_unless_it_beats_on(own_valkey: ValkeyServer) -> None:
    async with member(own_valkey, "one", beat_s=NEVER_S) as one, member(own_valkey, "two", beat_s=NEVER_S) as two:
        await eventually(lambda: one.members._scores and two.members._scores)  # each has said so once
        await one.members.beat()
        assert "two" in one.ids
        one.members.has_left("two")
        assert one.ids == {"one"}
        await one.members.beat()  # its entry is still there
        assert one.ids == {"one"}
        await two.members.beat()
        await one.members.beat()
        assert one.ids == {"one", "two"}
        for nobody in ("one", "three"):
            one.members.has_left(nobody)
        assert one.ids == {"one", "two"}


async def test_a_user_is_preferred_by_a_live_replica_that_declares_the_listener(own_valkey: ValkeyServer) -> None:
    async with (
        member(own_valkey, "one", listeners=("a.b", "a.old")) as one,
        member(own_valkey, "two", listeners=("a.b", "a.new")) as two,
    ):
        await eventually(lambda: one.ids == two.ids == {"one", "two"})
        users = [f"u{number}" for number in range(50)]
        assert {one.members.preferred(uid, "a.b") for uid in users} == {"one", "two"}
        for knows in (one.members, two.members):
            assert {knows.preferred(uid, "a.old") for uid in users} == {"one"}
            assert {knows.preferred(uid, "a.new") for uid in users} == {"two"}
            assert knows.preferred("ann", "a.unheard_of") is None
            assert sorted(knows.listeners()) == ["a.b", "a.new", "a.old"]
            assert [knows.preferred(uid, "a.b") for uid in users] == [
                one.members.preferred(uid, "a.b") for uid in users
            ]


async def test_without_redis_the_last_known_count_and_an_empty_one_is_filled_again(own_valkey: ValkeyServer) -> None:
    async with member(own_valkey, "one") as one, member(own_valkey, "two") as two:
        await eventually(lambda: one.ids == two.ids == {"one", "two"})
        await own_valkey.kill()
        with pytest.raises(Unavailable):
            await one.members.beat()
        assert one.ids == {"one", "two"}
        await own_valkey.restart()
        async with asyncio.timeout(20):
            while set(await entries(own_valkey)) != {"one", "two"}:
                await asyncio.sleep(0.01)
        await eventually(lambda: one.ids == two.ids == {"one", "two"})
        assert one.logged("task_failed") == []


async def test_whoever_beats_first_on_a_redis_that_lost_everything_is_not_alone(own_valkey: ValkeyServer) -> None:
    async with (
        member(own_valkey, "one", beat_s=NEVER_S) as one,
        member(own_valkey, "two", beat_s=NEVER_S) as two,
        Redis(host=own_valkey.host, port=own_valkey.port) as client,
    ):
        await eventually(lambda: one.members._scores and two.members._scores)  # each has said so once
        await one.members.beat()
        one.members._unsure_until = -math.inf  # as when the first beats are long over
        one.members.changed.clear()
        await client.delete(REPLICAS)
        for _ in range(2):
            await one.members.beat()
            assert one.ids == {"one", "two"}
        assert not one.members.changed.is_set()

        one.members._unsure_until = -math.inf  # as after one more beat: the other has not come back
        await one.members.beat()
        assert one.ids == {"one"}
        two.members.hurry()
        async with asyncio.timeout(20):
            while set(await entries(own_valkey)) != {"one", "two"}:
                await asyncio.sleep(0.01)
        await one.members.beat()
        assert one.ids == {"one", "two"}


async def test_the_clock_of_a_replica_does_not_matter(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = time.time() * 1_000
    for step_s in (-7_200, 7_200):
        monkeypatch.setattr("time.time", lambda: now_ms / 1_000 + step_s)  # noqa: B023 - called in this turn
        async with member(own_valkey, "one") as one, member(own_valkey, "two") as two:
            await eventually(lambda: one.ids == two.ids == {"one", "two"})
            assert all(abs(score - now_ms) < 60_000 for score in (await entries(own_valkey)).values())


@pytest.mark.parametrize("lives", [True, False])
async def test_a_name_that_was_given_twice_is_told_of(own_valkey: ValkeyServer, lives: bool) -> None:
    async with member(own_valkey, "one", name="same") as one:
        if not lives:  # the control: a predecessor that was killed, and whose entry is not over
            one.die()
        async with member(own_valkey, "two", name="same") as two, member(own_valkey, "six") as six:
            if lives:
                await eventually(lambda: one.logged("replica_name_shared") and two.logged("replica_name_shared"))
                assert [row["id"] for row in one.members.status() if row["shares_my_name"]] == ["two"]
                assert "LISTENERS_REPLICA" in one.logged("replica_name_shared")[0]["reason"]
                assert one.ids == {"one", "two", "six"}
            await eventually(lambda: six.ids == ({"one", "two", "six"} if lives else {"two", "six"}))
            for _ in range(3):
                await two.members.beat()
            assert len(two.logged("replica_name_shared")) == lives
            assert six.logged("replica_name_shared") == []
        if lives:
            await eventually(lambda: one.ids == {"one"})
            await one.members.beat()
            assert not any(row["shares_my_name"] for row in one.members.status())


async def test_an_entry_of_another_release_is_left_alone(own_valkey: ValkeyServer) -> None:
    async with Redis(host=own_valkey.host, port=own_valkey.port) as client, member(own_valkey, "one") as one:
        later = time.time() * 1_000 + 60_000
        await client.zadd(
            REPLICAS,
            {
                b"not JSON": later,
                b"\xff": later,
                b'{"id":"\xff"}': later,
                b'{"id":"new","name":"n","more":1}': later,
                b'{"no":1}': later,
            },
        )
        await eventually(lambda: one.ids == {"one", "new"})  # more fields are of a newer one
        assert one.members.preferred("ann", "a.b") == "one"
        assert one.logged("task_failed") == []
