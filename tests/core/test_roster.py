"""Many listeners on one replica. What one of them does is in test_listeners."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Self

import pytest
from core.replicas import ITEMS, Replica, eventually, fall_silent, min_renewed, replica
from redis.asyncio import Redis

from callboard.fleet import roster
from callboard.fleet.declared import Instance
from callboard.fleet.leases import Lease, Unknown
from callboard.fleet.supervisor import Supervisor
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio

PER_USER = 2
"""Listeners that the service of these tests has."""


async def enter(one: Replica, uids: Iterable[str]) -> None:
    """Put users online; returns when all their listeners are well and begun."""
    uids = list(uids)
    for start in range(0, len(uids), 40):
        await asyncio.gather(*(one.presence.register(uid, f"{uid}.tab") for uid in uids[start : start + 40]))
    count = len(uids) * PER_USER
    await eventually(lambda: one.listeners.active_count() == count)
    await eventually(lambda: {entry["state"] for entry in one.listeners.status()} == {"listening"})


def supervisors(one: Replica) -> list[Supervisor]:
    return [running.supervisor for running in one.listeners._roster.running.values()]


def fences(one: Replica) -> dict[tuple[str, str], int]:
    return {(entry["uid"], entry["listener"]): entry["fence"] for entry in one.listeners.status()}


async def reads(client: Redis) -> int:
    """How often the server has read from a socket: what comes in one piece is read in few."""
    return int((await client.info("stats"))["total_reads_processed"])


async def test_thousands_are_renewed_by_few_requests_and_taken_over_together(own_valkey: ValkeyServer) -> None:
    uids = [f"u{number}" for number in range(400)]
    total = len(uids) * PER_USER
    async with (
        replica(own_valkey, lease_ttl_s=6) as one,
        Redis(host=own_valkey.host, port=own_valkey.port) as client,
    ):
        await enter(one, uids)
        before, renewed_before = fences(one), min_renewed(one)
        fall_silent(one)
        sent = await reads(client)
        await one.listeners._renew()
        assert min_renewed(one) > renewed_before
        assert await reads(client) - sent < total / 5
        sent = await reads(client)
        assert all(await asyncio.gather(*(each.lease.renew() for each in supervisors(one))))  # each by itself
        assert await reads(client) - sent >= total

        async with replica(own_valkey, name="two", lease_ttl_s=6) as two:
            await eventually(lambda: two.listeners.active_count() == total)
            after = fences(two)
            assert after.keys() == before.keys()
            assert all(after[each] > before[each] for each in before)
            await eventually(lambda: len(two.logged("listener_taken_over")) == total)
            await eventually(lambda: {entry["state"] for entry in one.listeners.status()} == {"muted"})
            await one.listeners._renew()
            await eventually(lambda: not one.listeners.status())  # all are lost, and end
            assert fences(two) == after


@pytest.mark.parametrize("together", [True, False])
async def test_hundreds_are_released_by_few_requests(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    uids = [f"u{number}" for number in range(150)]
    total = len(uids) * PER_USER
    async with (
        replica(own_valkey, lease_ttl_s=60) as one,
        Redis(host=own_valkey.host, port=own_valkey.port) as client,
    ):
        await enter(one, uids)
        fall_silent(one)
        if not together:  # the control: one by one
            monkeypatch.setattr(roster, "_AT_A_TIME", 1)
        sent = await reads(client)
        await one.listeners.drain()
        assert (await reads(client) - sent < total / 5) is together
        assert one.listeners.status() == []
        assert await held(client) == 0


async def test_a_lease_that_is_being_taken_at_the_drain_is_released(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replica(own_valkey) as one, Redis(host=own_valkey.host, port=own_valkey.port) as client:
        taken, drained = asyncio.Event(), asyncio.Event()
        acquire_many = one.listeners._leases.acquire_many

        async def slow(wanted: Sequence[tuple[str, str]], ttl_s: float) -> list[Lease | Unknown | None]:
            answers = await acquire_many(wanted, ttl_s)
            taken.set()
            await drained.wait()
            return answers

        monkeypatch.setattr(one.listeners._leases, "acquire_many", slow)
        await one.presence.register("ann", "tab")
        await taken.wait()
        assert await held(client) == PER_USER
        draining = asyncio.create_task(one.listeners.drain())
        await eventually(lambda: all(loop.done() for loop in one.listeners._loops))
        drained.set()
        await draining
        assert await held(client) == 0
        assert one.listeners.status() == []


async def test_who_is_told_to_end_twice_closes_its_stream_before_the_lease_goes(own_valkey: ValkeyServer) -> None:
    source_closes = asyncio.Event()
    async with replica(own_valkey, lease_ttl_s=60) as one, Redis(host=own_valkey.host, port=own_valkey.port) as client:
        await enter(one, ["ann"])
        source = one.shop.items_source
        await eventually(lambda: source.feeds)
        source.close_waits = source_closes
        one.listeners._roster.close()  # or they would be taken again
        for _ in range(2):
            one.listeners._roster.stop(one.listeners._roster.running)
            await eventually(lambda: len(one.listeners.status()) == 1)
            for _ in range(20):  # time enough to be over, if it were to be
                await client.ping()
        assert await client.hexists(Instance("ann", ITEMS).lease_key, "owner")
        assert source.closed == 0
        source_closes.set()
        await eventually(lambda: not one.listeners.status())
        assert source.closed == 1
        await eventually(lambda: not one.listeners._roster._tasks())
        assert not await client.hexists(Instance("ann", ITEMS).lease_key, "owner")


async def held(client: Redis) -> int:
    return sum([await client.hexists(key, "owner") async for key in client.scan_iter("callboard:lease:*", count=1_000)])


async def test_some_are_lost_and_the_others_of_the_same_request_stay(own_valkey: ValkeyServer) -> None:
    async with (
        replica(own_valkey, lease_ttl_s=60) as one,
        Redis(host=own_valkey.host, port=own_valkey.port) as client,
    ):
        await enter(one, [f"u{number}" for number in range(30)])
        before = fences(one)
        lost = [each for each in supervisors(one) if each.user.uid.endswith("7")]
        await client.delete(*(each.lease.key for each in lost))
        await one.listeners._renew()
        await eventually(lambda: len(one.logged("listener_lost")) == len(lost))
        await eventually(lambda: one.listeners.active_count() == len(before))  # nobody else wanted them: taken again
        after = fences(one)
        changed = {each for each in before if after[each] != before[each]}
        assert changed == {(each.user.uid, each.declared.name) for each in lost}
        assert all(after[each] > before[each] for each in changed)


async def test_a_lease_that_redis_lost_is_taken_anew_at_once(own_valkey: ValkeyServer) -> None:
    async with (
        replica(own_valkey, lease_ttl_s=60, scan_interval_s=3_600) as one,
        Redis(host=own_valkey.host, port=own_valkey.port) as client,
    ):
        await enter(one, [f"u{number}" for number in range(30)])
        before = fences(one)
        await client.delete(*(each.lease.key for each in supervisors(one)))
        await one.listeners._renew()
        await eventually(lambda: len(one.logged("listener_lost")) == len(before))
        await eventually(lambda: one.listeners.active_count() == len(before))
        after = fences(one)
        assert all(after[each] > before[each] for each in before)


async def test_a_key_that_is_no_lease_costs_no_other_lease_its_renewal(own_valkey: ValkeyServer) -> None:
    async with (
        replica(own_valkey, lease_ttl_s=60) as one,
        Redis(host=own_valkey.host, port=own_valkey.port) as client,
    ):
        await enter(one, [f"u{number}" for number in range(15)])
        fall_silent(one)
        spoilt = supervisors(one)[7]
        await client.set(spoilt.lease.key, "no lease")
        asked_at = time.monotonic()
        await one.listeners._renew()
        late = [each for each in supervisors(one) if each.renewed_at < asked_at]
        assert late == [spoilt]
        [told] = one.logged("task_failed")
        assert (told["task"], told["listener"], told["refused"]) == ("listeners: renew", spoilt.declared.name, 1)


async def test_a_key_that_is_no_lease_costs_its_own_listener_alone(own_valkey: ValkeyServer) -> None:
    uids = [f"u{number}" for number in range(15)]
    key = Instance("u7", ITEMS).lease_key
    async with (
        replica(own_valkey, lease_ttl_s=1.5) as one,
        Redis(host=own_valkey.host, port=own_valkey.port) as client,
    ):
        await client.set(key, "no lease")
        await asyncio.gather(*(one.presence.register(uid, f"{uid}.tab") for uid in uids))
        await eventually(lambda: one.listeners.active_count() == len(uids) * PER_USER - 1)
        assert not one.listeners.is_active("u7", ITEMS)
        await client.delete(key)
        await eventually(lambda: one.listeners.is_active("u7", ITEMS))  # found at a scan

        await client.set(key, "no lease")  # while it runs: not renewed, it is mute; a restart finds that it has none
        await eventually(lambda: [each["state"] for each in one.listeners.status()].count("muted") == 1)
        await one.listeners.restart("u7", "items")
        await eventually(lambda: not one.listeners.is_active("u7", ITEMS))
        assert [line["code"] for line in one.logged("listener_error")] == ["INTERNAL"]
        assert not one.logged("task_died")
        assert one.listeners.active_count() == len(uids) * PER_USER - 1
        await client.delete(key)
        await eventually(lambda: one.listeners.is_active("u7", ITEMS))


class Stalling:
    """A TCP proxy before Valkey. What names `key` gets no answer, nor does what follows it on that connection."""

    host = "127.0.0.1"

    def __init__(self, server: ValkeyServer) -> None:
        self.key: str | None = None
        self.stalled = 0
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._proxy = await asyncio.start_server(self._serve, self.host, 0)
        self.port: int = self._proxy.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._proxy.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(self._server.host, self._server.port)
        for way in (self._pass(reader, there_writer, watched=True), self._pass(there_reader, writer, watched=False)):
            task = asyncio.create_task(way)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, watched: bool) -> None:
        try:
            stalls = False
            while data := await reader.read(2**20):
                if watched and self.key is not None and self.key.encode() in data:
                    stalls = True
                    self.stalled += 1
                if not stalls:
                    writer.write(data)
        finally:
            writer.close()


@pytest.mark.parametrize("together", [True, False])
async def test_a_request_that_is_not_answered_holds_up_no_other(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    monkeypatch.setattr(roster, "_AT_A_TIME", 5)
    if not together:  # the control: each request waits for the one before
        monkeypatch.setattr(roster, "_SLOW_S", None)
    async with Stalling(own_valkey) as proxy, replica(proxy, lease_ttl_s=3) as one:
        await enter(one, [f"u{number}" for number in range(15)])
        fall_silent(one)
        first = min(supervisors(one), key=lambda each: each.renewed_at)
        proxy.key = first.lease.key
        asked_at = time.monotonic()
        await one.listeners._renew()
        late = [each for each in supervisors(one) if each.renewed_at < asked_at]
        assert proxy.stalled
        assert first in late
        assert len(late) == (5 if together else 15 * PER_USER)

        proxy.key = None
        await one.listeners._renew()
        assert min_renewed(one) > asked_at
