"""Who runs whose listeners in a fleet of processes: shares, take-overs, hand-overs, and owners that come back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from faults.fleet import Fleet, Replica
from faults.page import LISTENER, Page
from redis.asyncio import Redis

from callboard.fleet.rendezvous import preferred
from callboard_local import ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = pytest.mark.anyio

LEASE_TTL_S = 15.0
SCAN_S = 5.0
LATE_S = 15.0
"""What a machine that others use may add."""
LONG_LIVED = {"LISTENERS_TTL_SECONDS": "900"}
LEASES = f"callboard:lease:listener:{LISTENER}:"


async def listening(replica: Replica) -> set[str]:
    """The users whose listener runs on it, and is well."""
    rows = (await replica.client.get("/debug")).json()["listeners"]
    return {row["uid"] for row in rows if row["state"] == "listening"}


async def places(replicas: Iterable[Replica]) -> dict[str, str]:
    """By user, the names of the replicas that run the listener: one, or none, unless it moves at this moment."""
    found: dict[str, str] = {}
    for replica in replicas:
        for uid in await listening(replica):
            found[uid] = f"{found[uid]} and {replica.name}" if uid in found else replica.name
    return found


async def until_placed(replicas: Sequence[Replica], uids: Sequence[str], within_s: float = 60) -> dict[str, str]:
    """`places`, once every user's listener runs where rendezvous hashing over these replicas says."""
    ids = {}
    for replica in replicas:
        [me] = [row for row in (await replica.client.get("/debug")).json()["members"] if row["is_me"]]
        ids[me["id"]] = replica.name
    right = {uid: ids[preferred(uid, ids) or ""] for uid in uids}
    found: dict[str, str] = {}
    try:
        async with asyncio.timeout(within_s):
            while found != right:
                found = await places(replicas)
                await asyncio.sleep(0.05)
    except TimeoutError:
        assert found == right
    return found


async def until_run(replicas: Sequence[Replica], uids: Sequence[str], within_s: float = 60) -> None:
    """Wait until every user's listener is run by one of them, whichever."""
    names = {replica.name for replica in replicas}
    async with asyncio.timeout(within_s):
        while (found := await places(replicas)).keys() != set(uids) or not names.issuperset(found.values()):
            await asyncio.sleep(0.05)


async def register(replicas: list[Replica], uids: list[str]) -> None:
    """Put them online, at one replica or another."""
    for start in range(0, len(uids), 50):
        some = uids[start : start + 50]
        calls = [
            replicas[number % len(replicas)].call("REGISTRY.register_user", uid, f"{uid}.tab")
            for number, uid in enumerate(some)
        ]
        assert all(reply["ok"] for reply in await asyncio.gather(*calls))


def shares(found: dict[str, str]) -> dict[str, int]:
    return {name: list(found.values()).count(name) for name in set(found.values())}


@asynccontextmanager
async def pages_at(replica: Replica, uids: Iterable[str], **options: Any) -> AsyncIterator[dict[str, Page]]:
    async with AsyncExitStack() as stack:
        pages = {uid: await stack.enter_async_context(Page(uid, lambda: replica.ws_url, **options)) for uid in uids}
        for page in pages.values():
            await page.until(lambda page: page.number is not None)
        yield pages


@asynccontextmanager
async def growing(fleet: Fleet, uids: Iterable[str], every_s: float = 0.1) -> AsyncIterator[None]:
    """The users' numbers grow for as long as this is entered."""
    uids, over = list(uids), asyncio.Event()

    async def grow() -> None:
        while not over.is_set():  # not cancelled: Python 3.11's `wait_for`, in redis-py, may keep that to itself
            for uid in uids:
                await fleet.grow(uid)
            await asyncio.sleep(every_s)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(grow())
        try:
            yield
        finally:
            over.set()


async def lost(fleet: Fleet, pages: dict[str, Page]) -> int:
    """Steps that pages never learn of, the source being quiet: none, once each has its last step."""

    async def missing(uid: str, page: Page) -> int:
        number = await fleet.grow(uid)
        try:
            await page.until(lambda page: page.number == number)
        except TimeoutError:
            return number - (page.number or 0)
        return 0

    return sum(await asyncio.gather(*(missing(uid, page) for uid, page in pages.items())))


def fences(page: Page) -> list[int]:
    return [event["fence"] for event in page.events if event.get("listener") == LISTENER and "fence" in event]


def synced_anew(since: int) -> Callable[[Page], bool]:
    """Whether a listener of a later fence has published its sync."""

    def synced(page: Page) -> bool:
        return any(event["type"] == "count.sync" and event.get("fence", 0) > since for event in page.events)

    return synced


async def owned_by_another(fleet: Fleet, page_at: Replica, uids: list[str]) -> tuple[Replica, list[str]]:
    """A replica that is not `page_at`, and those of the users whose listeners it runs."""
    others = [replica for replica in fleet.replicas if replica is not page_at]
    found = await until_placed(fleet.replicas, uids)
    owner = max(others, key=lambda replica: list(found.values()).count(replica.name))
    return owner, [uid for uid in uids if found[uid] == owner.name]


@pytest.mark.fault(row=14)
async def test_a_killed_owner_is_followed_with_a_sync(own_valkey: ValkeyServer, fault: Fault) -> None:
    uids = [f"user-{number}" for number in range(12)]
    async with Fleet(own_valkey, count=3) as fleet, pages_at(fleet.replicas[0], uids) as pages:
        owner, owned = await owned_by_another(fleet, fleet.replicas[0], uids)
        async with growing(fleet, uids):
            for uid in uids:
                await pages[uid].until(lambda page: len(fences(page)) > 3)
            before = {uid: max(fences(pages[uid])) for uid in uids}
            await owner.kill()
            killed_at = time.monotonic()
            took: list[float] = []
            for uid in owned:
                await pages[uid].until(synced_anew(before[uid]), within_s=LEASE_TTL_S + SCAN_S + LATE_S)
                took.append(time.monotonic() - killed_at)
        missing = await lost(fleet, pages)
        duplicates = sum(page.duplicates for page in pages.values())
        fault.figure(
            takeover_s=round(max(took), 1), promised_s=LEASE_TTL_S + SCAN_S, users=len(owned), lost=missing,
            dups=duplicates,
        )  # fmt: skip
        assert missing == 0
        assert [page.breaches for page in pages.values() if page.breaches] == []
        left = [uid for uid in uids if uid not in owned]
        assert {uid: max(fences(pages[uid])) for uid in left} == {uid: before[uid] for uid in left}  # only its own move


@pytest.mark.fault(row=14, control=True)
async def test_without_the_scan_nobody_follows_a_killed_owner(own_valkey: ValkeyServer, fault: Fault) -> None:
    uids = [f"user-{number}" for number in range(6)]
    async with Fleet(own_valkey, count=2, environ={"LEDGER_WITHOUT": "scan"}) as fleet, AsyncExitStack() as stack:
        pages = await stack.enter_async_context(pages_at(fleet.replicas[0], uids))
        redis = await stack.enter_async_context(Redis(host=own_valkey.host, port=own_valkey.port))
        owner, owned = await owned_by_another(fleet, fleet.replicas[0], uids)
        before = {uid: max(fences(pages[uid]), default=0) for uid in owned}
        await owner.kill()
        expired = [int(await redis.hget(f"{LEASES}{{{uid}}}", "expires") or 0) for uid in owned]
        async with asyncio.timeout(60):
            while (await redis.time())[0] < max(expired) / 1_000 + 1.5 * SCAN_S:
                await fleet.grow(owned[0])
                await asyncio.sleep(0.2)
        missing = await fleet.number(owned[0]) - (pages[owned[0]].number or 0)
        fault.figure(taken_over=sum(synced_anew(before[uid])(pages[uid]) for uid in owned), lost=missing)
        assert not any(synced_anew(before[uid])(pages[uid]) for uid in owned)
        assert missing > 5


async def stop_and_wake(
    fleet: Fleet, valkey: ValkeyServer, fault: Fault, consumers: dict[str, Page]
) -> dict[str, Page]:
    """Stop an owner for twice its lease while the source grows, and wake it; `consumers` read Redis directly.

    Returns the pages at another replica.
    """
    async with AsyncExitStack() as stack:
        uids = list(consumers)
        pages = await stack.enter_async_context(pages_at(fleet.replicas[0], uids))
        owner, owned = await owned_by_another(fleet, fleet.replicas[0], uids)
        redis = await stack.enter_async_context(Redis(host=valkey.host, port=valkey.port))
        channels = await stack.enter_async_context(redis.pubsub(ignore_subscribe_messages=True))
        await channels.subscribe(*(f"user:{uid}" for uid in uids))
        newest: dict[str, int] = {}
        stale = 0

        async def read() -> None:
            nonlocal stale
            async for message in channels.listen():
                event = json.loads(message["data"])
                if event.get("listener") == LISTENER and "fence" in event:
                    stale += event["fence"] < newest.get(event["uid"], 0)
                    newest[event["uid"]] = max(newest.get(event["uid"], 0), event["fence"])
                consumers[event["uid"]].take(event)

        reading = asyncio.create_task(read())
        stack.callback(reading.cancel)
        for uid in uids:
            await redis.publish(f"user:{uid}", json.dumps({"id": f"first-{uid}", "uid": uid, "type": "count.sync",
                "listener": LISTENER, "payload": {"n": await fleet.number(uid)}}))  # fmt: skip
        async with growing(fleet, uids):
            for uid in uids:
                await pages[uid].until(lambda page: len(fences(page)) > 3)
            before = {uid: max(fences(pages[uid])) for uid in owned}
            owner.pause()
            await asyncio.sleep(2 * LEASE_TTL_S)  # the fault itself
            for uid in owned:
                await pages[uid].until(synced_anew(before[uid]))
            owner.resume()
            async with asyncio.timeout(30):  # it has looked at its leases, and lost them; or it is heard
                while not stale and owner.log.read_text().count('"listener_lost"') < len(owned):
                    await asyncio.sleep(0.1)
            newest_then = {uid: pages[uid].number or 0 for uid in uids}
            for uid in uids:
                await pages[uid].until(lambda page: (page.number or 0) > newest_then[page.uid] + 3)
        fault.figure(stale_published=stale)
        if not stale:
            fault.figure(lost=await lost(fleet, pages))
        return pages


@pytest.mark.fault(row=15)
async def test_an_owner_that_wakes_up_is_not_heard(own_valkey: ValkeyServer, fault: Fault) -> None:
    consumers = {f"user-{number}": Page(f"user-{number}", str) for number in range(6)}
    async with Fleet(own_valkey, count=3) as fleet:
        pages = await stop_and_wake(fleet, own_valkey, fault, consumers)
        fault.figure(stale_accepted=sum("stale" in breach for page in pages.values() for breach in page.breaches))
        for page in (*pages.values(), *consumers.values()):
            assert page.breaches == []
        assert fault.figures["stale_published"] == fault.figures["lost"] == 0


@pytest.mark.fault(row=15, control=True)
@pytest.mark.parametrize("without", ["mute", "mute,fences"])
async def test_an_owner_that_wakes_up_and_is_not_mute_is_heard_by_who_ignores_fences(
    own_valkey: ValkeyServer, fault: Fault, without: str
) -> None:
    consumers = {f"user-{number}": Page(f"user-{number}", str, heeds_fences=False) for number in range(6)}
    async with Fleet(own_valkey, count=3, environ={"LEDGER_WITHOUT": without}) as fleet:
        pages = await stop_and_wake(fleet, own_valkey, fault, consumers)
        at_gateway = sum("stale" in breach for page in pages.values() for breach in page.breaches)
        direct = sum("stale" in breach for page in consumers.values() for breach in page.breaches)
        fault.figure(stale_accepted=direct, stale_through_the_gateway=at_gateway)
        assert direct > 0
        assert (at_gateway > 0) is ("fences" in without)


@pytest.mark.timeout(300)
@pytest.mark.fault(row=14)
async def test_a_thousand_users_are_shared_evenly_whoever_comes_and_goes(
    own_valkey: ValkeyServer, fault: Fault
) -> None:
    uids = [f"user-{number}" for number in range(1_000)]
    async with Fleet(own_valkey, count=3, environ=LONG_LIVED) as fleet:
        await register(fleet.replicas, uids)
        three = await until_placed(fleet.replicas, uids)
        even = 1_000 / 3
        fault.figure(share_min=min(shares(three).values()), share_max=max(shares(three).values()))
        assert all(abs(share - even) < even / 4 for share in shares(three).values())

        began = time.monotonic()
        fourth = await fleet.start_one()
        four = await until_placed(fleet.replicas, uids)
        moved = {uid: name for uid, name in four.items() if name != three[uid]}
        fault.figure(joined_s=round(time.monotonic() - began, 1), moved_by_a_join=len(moved))
        assert set(moved.values()) == {"r4"}
        assert all(abs(share - 250) < 250 / 4 for share in shares(four).values())

        began = time.monotonic()
        assert await fleet.replicas[0].stop() == 0
        drained = await until_placed(fleet.replicas[1:], uids)
        fault.figure(drained_s=round(time.monotonic() - began, 1))
        assert all(drained[uid] == name for uid, name in four.items() if name != "r1")

        began = time.monotonic()
        await fourth.kill()
        killed = await until_placed(fleet.replicas[1:3], uids)
        fault.figure(killed_s=round(time.monotonic() - began, 1))
        assert all(killed[uid] == name for uid, name in drained.items() if name != "r4")
        assert time.monotonic() - began < LEASE_TTL_S + SCAN_S + LATE_S


@pytest.mark.timeout(180)
@pytest.mark.parametrize("killed", ["giver", "taker"])
async def test_a_kill_in_the_middle_of_a_hand_over_loses_nobody(
    own_valkey: ValkeyServer, killed: str, fault: Fault
) -> None:
    uids = [f"user-{number}" for number in range(400)]
    watched = uids[:20]
    async with Fleet(own_valkey, count=2, environ=LONG_LIVED) as fleet, pages_at(fleet.replicas[0], watched) as pages:
        await register(fleet.replicas, uids)
        await until_placed(fleet.replicas, uids)
        third = await fleet.start_one()
        async with asyncio.timeout(60):
            while not await listening(third):
                await asyncio.sleep(0.01)
        gone = third if killed == "taker" else fleet.replicas[1]
        async with growing(fleet, watched):
            await gone.kill()
            began = time.monotonic()
            await until_run([each for each in fleet.replicas if each is not gone], uids)
            fault.figure(recovered_s=round(time.monotonic() - began, 1))
        assert await lost(fleet, pages) == 0
        assert [page.breaches for page in pages.values() if page.breaches] == []


async def test_an_empty_redis_is_filled_again_and_every_user_has_an_owner(
    own_valkey: ValkeyServer, fault: Fault
) -> None:
    uids = [f"user-{number}" for number in range(20)]
    environ = {"LISTENERS_TTL_SECONDS": "9", "LISTENERS_HEARTBEAT_INTERVAL": "3"}
    async with Fleet(own_valkey, count=3, environ=environ) as fleet, pages_at(fleet.replicas[0], uids) as pages:
        await until_placed(fleet.replicas, uids)
        async with growing(fleet, uids):
            fence = {uid: max(fences(page), default=0) for uid, page in pages.items()}
            await own_valkey.kill()
            await own_valkey.restart()
            began = time.monotonic()
            for uid, page in pages.items():
                # The listener's sync itself may be covered by the one that the socket reads after the gap.
                await page.until(lambda page, since=fence[uid]: max(fences(page), default=0) > since, within_s=60)  # type: ignore[misc]
            fault.figure(recovered_s=round(time.monotonic() - began, 1))
        assert await lost(fleet, pages) == 0
        assert [page.breaches for page in pages.values() if page.breaches] == []
        await until_run(fleet.replicas, uids)


async def test_two_replicas_of_one_name_are_told_of_and_share_the_work(own_valkey: ValkeyServer) -> None:
    uids = [f"user-{number}" for number in range(40)]
    async with Fleet(own_valkey, count=1, environ=LONG_LIVED) as fleet:
        one = fleet.replicas[0]
        two = await fleet.start_one(LISTENERS_REPLICA="r1")
        async with asyncio.timeout(60):
            while not all('"replica_name_shared"' in each.log.read_text() for each in (one, two)):
                await asyncio.sleep(0.1)
        members = (await one.client.get("/debug")).json()["members"]
        assert [(row["replica"], row["is_me"], row["shares_my_name"]) for row in members] in (
            [("r1", True, False), ("r1", False, True)],
            [("r1", False, True), ("r1", True, False)],
        )
        await register([one, two], uids)
        found = await until_placed([one, two], uids)
        assert len(set(found.values())) == 2
