from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from support import Recorded

from callboard.connections import Connections
from callboard.errors import Unavailable
from callboard.fleet.leases import _INDEX_DROP, _INDEX_TAKE_DUE, INDEX, Lease, Leases
from callboard.messages import new_id
from callboard.settings import Settings
from callboard_local import Deployment, ValkeyServer

pytestmark = pytest.mark.anyio

LONG_S = 60
SHORT_S = 0.05


@pytest.fixture
def redis_server(redis_deployment: Deployment) -> Deployment:
    return redis_deployment


@pytest.fixture
def leases(connections: Connections) -> Leases:
    return Leases(connections)


@pytest.fixture
def key() -> str:
    return f"callboard:lease:{new_id()}"


@pytest.fixture
async def own_leases(own_valkey: ValkeyServer, recorded: Recorded) -> AsyncIterator[Leases]:
    settings = Settings(redis_host=own_valkey.host, redis_port=own_valkey.port)
    async with Connections(settings, recorded.telemetry, attempt_timeout_s=0.5) as connections:
        yield Leases(connections)


async def take(leases: Leases, key: str, owner: str, ttl_s: float = LONG_S) -> Lease:
    lease = await leases.acquire(key, owner, ttl_s)
    assert lease is not None
    return lease


async def take_when_expired(leases: Leases, key: str, owner: str) -> Lease:
    async with asyncio.timeout(10):
        while True:
            lease = await leases.acquire(key, owner, LONG_S)
            if lease is not None:
                return lease


async def test_only_one_of_many_owners_gets_it(leases: Leases, key: str) -> None:
    answers = await asyncio.gather(*(leases.acquire(key, f"owner{i}", LONG_S) for i in range(20)))
    assert len([lease for lease in answers if lease is not None]) == 1


async def test_keys_do_not_hinder_each_other(leases: Leases, key: str) -> None:
    assert await leases.acquire(key + "{a}", "one", LONG_S)
    assert await leases.acquire(key + "{b}", "two", LONG_S)


async def test_a_lost_reply_is_asked_for_again(leases: Leases, key: str) -> None:
    first = await take(leases, key, "owner")
    again = await take(leases, key, "owner")
    assert (again.fence, again.taken_over) == (first.fence, first.taken_over)


async def test_a_lost_reply_does_not_lose_the_take_over(leases: Leases, key: str) -> None:
    await take(leases, key, "silent", SHORT_S)
    taken = await take_when_expired(leases, key, "next")
    again = await take(leases, key, "next")
    assert taken.taken_over
    assert again.taken_over
    assert again.fence == taken.fence


async def test_the_fence_grows_after_expiry(leases: Leases, key: str) -> None:
    silent = await take(leases, key, "silent", SHORT_S)
    successor = await take_when_expired(leases, key, "next")
    assert successor.fence > silent.fence
    assert successor.taken_over


async def test_the_fence_grows_after_release(leases: Leases, key: str) -> None:
    fences = []
    for turn in range(50):  # far more than one in a millisecond
        lease = await take(leases, key, f"owner{turn}")
        assert not lease.taken_over
        fences.append(lease.fence)
        await lease.release()
    assert fences == sorted(set(fences))


async def test_the_fence_grows_when_redis_forgot_everything(
    own_leases: Leases, key: str, own_valkey: ValkeyServer
) -> None:
    before = await take(own_leases, key, "owner")
    await own_valkey.restart()
    after = await take(own_leases, key, "other")
    assert after.fence > before.fence


async def test_the_same_owner_begins_a_new_tenure_after_its_own_expiry(leases: Leases, key: str, admin: Redis) -> None:
    lease = await take(leases, key, "owner")
    await admin.hset(key, "expires", "1")
    again = await take(leases, key, "owner")
    assert again.fence > lease.fence
    assert not again.taken_over


async def test_a_held_lease_has_no_redis_ttl_and_a_released_one_has(leases: Leases, key: str, admin: Redis) -> None:
    lease = await take(leases, key, "owner")
    assert await admin.pttl(key) == -1
    await lease.release()
    assert await admin.pttl(key) > 0
    assert await admin.hkeys(key) == [b"fence"]
    await take(leases, key, "other")
    assert await admin.pttl(key) == -1


async def test_renewing_keeps_it(leases: Leases, key: str, admin: Redis) -> None:
    lease = await take(leases, key, "owner")
    await admin.hset(key, "expires", "9999999999999")
    assert await lease.renew()
    expires = await admin.hget(key, "expires")
    assert int(expires or 0) < 9_999_999_999_999
    assert (await take(leases, key, "owner")).fence == lease.fence


async def test_renewing_an_expired_lease_does_not_revive_it(leases: Leases, key: str, admin: Redis) -> None:
    lease = await take(leases, key, "owner")
    await admin.hset(key, "expires", "1")
    assert not await lease.renew()
    assert not lease.is_firm()


async def test_renewing_a_lease_that_was_taken_over_leaves_it_alone(leases: Leases, key: str) -> None:
    silent = await take(leases, key, "silent", SHORT_S)
    successor = await take_when_expired(leases, key, "next")
    assert not await silent.renew()
    assert await successor.renew()


async def test_an_owner_is_told_of_nudges_once_when_it_renews(leases: Leases, key: str, admin: Redis) -> None:
    await leases.nudge([key])
    assert await admin.exists(key) == 0, "of a lease that nobody holds, nothing stays"
    lease = await take(leases, key, "owner")
    assert await lease.renew()
    assert not lease.nudged

    await leases.nudge([key])
    await leases.nudge([key])
    assert not lease.nudged
    assert await lease.renew()
    assert lease.nudged
    lease.nudged = False
    assert await lease.renew()
    assert not lease.nudged

    await leases.nudge([key])
    await lease.release()
    successor = await take(leases, key, "next")
    assert await successor.renew()
    assert not successor.nudged, "it begins with the state as it is then"


async def test_releasing_what_is_anothers_leaves_it_alone(leases: Leases, key: str) -> None:
    silent = await take(leases, key, "silent", SHORT_S)
    successor = await take_when_expired(leases, key, "next")
    await silent.release()
    assert await leases.acquire(key, "third", LONG_S) is None
    assert await successor.renew()


async def test_everyone_can_read_whose_it_is(leases: Leases, key: str, admin: Redis) -> None:
    assert await leases.owner(key) is None
    lease = await take(leases, key, "owner")
    assert await leases.owner(key) == "owner"
    await admin.hset(key, "expires", "1")
    assert await leases.owner(key) is None  # it expired: nobody's, though the name still stands there
    successor = await take(leases, key, "next")
    assert await leases.owner(key) == "next"
    await lease.release()
    assert await leases.owner(key) == "next"
    await successor.release()
    assert await leases.owner(key) is None


async def test_a_lease_is_firm_until_two_thirds_of_its_time_have_passed(leases: Leases, key: str) -> None:
    firm, not_firm = await take(leases, key, "owner", LONG_S), await take(leases, key, "owner", 0.0001)
    assert firm.is_firm()
    assert not not_firm.is_firm()
    await firm.release()
    assert not firm.is_firm()


async def test_a_slow_renewal_counts_from_its_beginning(own_leases: Leases, key: str, own_valkey: ValkeyServer) -> None:
    lease = await take(own_leases, key, "owner", 0.6)
    await own_leases._connections.commands.hset(key, "expires", str(2**45))  # this test is about our own clock
    own_valkey.pause()
    renewing = asyncio.create_task(lease.renew())
    await asyncio.sleep(0)
    until = time.monotonic() + lease.ttl_s * 2 / 3
    while time.monotonic() < until:  # time itself is waited for
        await asyncio.sleep(0.01)
    own_valkey.resume()
    assert await renewing
    assert not lease.is_firm()
    assert await lease.renew()
    assert lease.is_firm()


async def test_without_redis_nothing_is_granted_and_nothing_is_lost(
    own_leases: Leases, key: str, own_valkey: ValkeyServer
) -> None:
    lease = await take(own_leases, key, "owner")
    await own_valkey.kill()
    with pytest.raises(Unavailable):
        await own_leases.acquire(key, "other", LONG_S)
    with pytest.raises(Unavailable):
        await lease.renew()
    assert lease.is_firm()  # its time has not passed: the owner may go on
    with pytest.raises(Unavailable):
        await lease.release()
    assert not lease.is_firm()


async def test_a_server_that_lost_its_scripts_is_taught_them(leases: Leases, key: str, admin: Redis) -> None:
    lease = await take(leases, key, "owner")
    await admin.script_flush()
    assert await lease.renew()


# -- many at once ------------------------------------------------------------------------------------------------------


async def test_many_are_taken_and_renewed_at_once(leases: Leases, admin: Any) -> None:
    """Free, released, expired and another's keys in one request; then lost and held leases, renewed and released."""
    names = [f"callboard:lease:{{{number}}}" for number in range(12)]
    held, expired, released = names[:3], names[3:6], names[6:9]
    others = {key: await take(leases, key, "other") for key in (*held, *expired, *released)}
    for key in expired:
        await admin.hset(key, "expires", "1")
    for key in released:
        await others[key].release()

    answers = await leases.acquire_many([(key, f"ours:{key}") for key in names], LONG_S)
    assert answers[:3] == [None] * 3
    taken = [lease for lease in answers if isinstance(lease, Lease)]
    assert [lease.key for lease in taken] == names[3:]
    assert [lease.owner for lease in taken] == [f"ours:{key}" for key in names[3:]]
    assert [lease.taken_over for lease in taken] == [True] * 3 + [False] * 6
    assert all(lease.is_firm() for lease in taken)
    assert all(lease.fence > others[lease.key].fence for lease in taken if lease.key in others)
    assert {key.decode() for key in await admin.zrange(INDEX, 0, -1)} == set(names)
    again = await leases.acquire_many([(lease.key, lease.owner) for lease in taken], LONG_S)
    assert [isinstance(lease, Lease) and lease.fence for lease in again] == [lease.fence for lease in taken]

    gone, stolen = taken[1], taken[4]
    await admin.delete(gone.key)
    await admin.hset(stolen.key, "owner", "other")
    await admin.hset(taken[0].key, "expires", "9999999999999")
    assert await leases.renew_many(taken) == [lease not in (gone, stolen) for lease in taken]
    assert [lease.is_firm() for lease in taken] == [lease not in (gone, stolen) for lease in taken]
    assert int(await admin.hget(taken[0].key, "expires")) < 9_999_999_999_999
    assert not await admin.exists(gone.key)
    assert await leases.owner(stolen.key) == "other"

    assert await leases.release_many(taken) == [lease is not stolen for lease in taken]
    assert not any(lease.is_firm() for lease in taken)
    assert await leases.owner(stolen.key) == "other"
    assert [await leases.owner(lease.key) for lease in taken if lease is not stolen] == [None] * (len(taken) - 1)
    assert await admin.hkeys(taken[0].key) == [b"fence"]
    assert await leases.release_many(taken) == [lease is not stolen for lease in taken]


async def take_many(leases: Leases, count: int = 300, ttl_s: float = LONG_S) -> list[Lease]:
    answers = await leases.acquire_many([(f"{{{number}}}lease", "owner") for number in range(count)], ttl_s)
    taken = [lease for lease in answers if isinstance(lease, Lease)]
    assert len(taken) == count
    return taken


async def reads(leases: Leases) -> int:
    """How often the server has read from a socket: what comes in one piece is read in few."""
    return int((await leases._connections.commands.info("stats"))["total_reads_processed"])


async def test_many_cost_few_requests(own_leases: Leases) -> None:
    taken = await take_many(own_leases)
    await own_leases.renew_many(taken)  # the script is known from here on
    before = await reads(own_leases)
    assert await own_leases.renew_many(taken) == [True] * len(taken)
    assert await reads(own_leases) - before < len(taken) / 10
    before = await reads(own_leases)
    await asyncio.gather(*(lease.renew() for lease in taken))  # the control: each by itself
    assert await reads(own_leases) - before >= len(taken)


async def test_a_restarted_server_loses_what_it_has_forgotten_and_nothing_else(
    own_leases: Leases, own_valkey: ValkeyServer
) -> None:
    taken = await take_many(own_leases)
    assert await own_leases.renew_many(taken) == [True] * len(taken)
    await own_valkey.restart()  # its scripts are gone too
    kept = taken[::3]
    for lease in kept:  # as a server with a disk would have it
        fields = {"owner": lease.owner, "expires": 2**45, "fence": lease.fence}
        await own_leases._connections.commands.hset(lease.key, mapping=fields)  # type: ignore[arg-type]
    assert await own_leases.renew_many(taken) == [lease in kept for lease in taken]
    assert [lease.is_firm() for lease in taken] == [lease in kept for lease in taken]
    again = await own_leases.acquire_many([(lease.key, "next") for lease in taken], LONG_S)
    for old, new in zip(taken, again, strict=True):
        if old in kept:
            assert new is None
        else:
            assert isinstance(new, Lease)
            assert new.fence > old.fence


async def test_many_that_wait_for_a_hung_server_are_not_firm_for_having_been_answered(
    own_leases: Leases, own_valkey: ValkeyServer
) -> None:
    taken = await take_many(own_leases, ttl_s=0.6)
    for lease in taken:
        await own_leases._connections.commands.hset(lease.key, "expires", str(2**45))  # this is about our own clock
    own_valkey.pause()
    renewing = asyncio.create_task(own_leases.renew_many(taken))
    await asyncio.sleep(0)
    until = time.monotonic() + 0.6 * 2 / 3
    while time.monotonic() < until:  # time itself is waited for
        await asyncio.sleep(0.01)
    own_valkey.resume()
    assert await renewing == [True] * len(taken)
    assert not any(lease.is_firm() for lease in taken)
    assert await own_leases.renew_many(taken) == [True] * len(taken)
    assert all(lease.is_firm() for lease in taken)


async def test_what_is_released_while_it_is_renewed_stays_released(
    own_leases: Leases, own_valkey: ValkeyServer
) -> None:
    released, kept = await take(own_leases, "{a}key", "owner"), await take(own_leases, "{b}key", "owner")
    assert await own_leases.renew_many([released, kept]) == [True, True]  # the script is known from here on
    own_valkey.pause()
    renewing = asyncio.create_task(own_leases.renew_many([released, kept]))
    await asyncio.sleep(0)
    releasing = asyncio.create_task(released.release())
    await asyncio.sleep(0)
    own_valkey.resume()
    assert await renewing == [True, True]  # it was asked first
    await releasing
    assert not released.is_firm()
    assert kept.is_firm()
    assert await own_leases.owner("{a}key") is None


async def test_many_of_which_a_hung_server_says_nothing(own_leases: Leases, own_valkey: ValkeyServer) -> None:
    taken = await take_many(own_leases)
    renewed_at = [lease._renewed_at for lease in taken]
    own_valkey.pause()
    try:
        unknown = await own_leases.renew_many(taken)
        none = await own_leases.acquire_many([("{a}key", "owner"), ("{b}key", "owner")], LONG_S)
    finally:
        own_valkey.resume()
    assert {type(answer) for answer in (*unknown, *none)} == {Unavailable}
    assert [lease._renewed_at for lease in taken] == renewed_at  # neither extended nor lost
    assert await own_leases.renew_many(taken) == [True] * len(taken)


class Swept:
    """Leases whose index is swept."""

    def __init__(self, leases: Leases, admin: Redis) -> None:
        self.leases = leases
        self.redis: Any = admin

    async def let_expire(self, *keys: str) -> None:
        for key in keys:
            await self.redis.hset(key, "expires", "1")

    async def make_due(self) -> None:
        for key in await self.redis.zrange(INDEX, 0, -1):
            await self.redis.zadd(INDEX, {key: 1})

    async def indexed(self) -> set[str]:
        return {key.decode() for key in await self.redis.zrange(INDEX, 0, -1)}


@pytest.fixture
def swept(leases: Leases, admin: Redis) -> Swept:
    return Swept(leases, admin)


async def test_sweeping_buries_expired_leases_alone(swept: Swept) -> None:
    leases = swept.leases
    held, expired = (
        await take(leases, "callboard:{a}held", "owner"),
        await take(leases, "callboard:{b}expired", "owner"),
    )
    await (await take(leases, "callboard:{c}released", "owner")).release()
    assert await leases.sweep() == 0  # nothing is due before a TTL has passed
    await swept.let_expire("callboard:{b}expired")
    await swept.make_due()
    assert await swept.redis.pttl("callboard:{b}expired") == -1
    assert await leases.sweep() == 1
    assert await swept.redis.pttl("callboard:{b}expired") > 0
    assert await swept.indexed() == {"callboard:{a}held"}
    assert await held.renew()
    assert not await expired.renew()
    successor = await take(leases, "callboard:{b}expired", "next")
    assert successor.fence > expired.fence
    assert await swept.indexed() == {"callboard:{a}held", "callboard:{b}expired"}


async def test_a_key_that_is_no_lease_leaves_the_index_and_keeps_no_other_in_it(swept: Swept) -> None:
    await take(swept.leases, "callboard:{a}expired", "owner")
    await swept.let_expire("callboard:{a}expired")
    await swept.redis.zadd(INDEX, {"callboard:{b}foreign": 0})
    await swept.redis.set("callboard:{b}foreign", "no lease")
    await swept.make_due()
    await swept.leases.sweep()
    assert await swept.redis.pttl("callboard:{a}expired") > 0
    assert await swept.indexed() == set()
    assert await swept.redis.strlen("callboard:{b}foreign") == len("no lease")


async def test_there_is_no_lease_without_an_entry_for_the_sweep(swept: Swept) -> None:
    await swept.redis.set(INDEX, "not an index")
    with pytest.raises(ResponseError):
        await swept.leases.acquire("callboard:key", "owner", LONG_S)
    assert await swept.leases.owner("callboard:key") is None
    await swept.redis.delete(INDEX)
    await take(swept.leases, "callboard:key", "owner")
    assert await swept.leases.acquire("callboard:key", "other", LONG_S) is None
    assert await swept.indexed() == {"callboard:key"}


async def test_many_are_swept_by_several_replicas_at_once_and_each_is_buried_once(swept: Swept) -> None:
    keys = [f"callboard:lease-{number}" for number in range(450)]  # more than two batches
    for key in keys:
        await take(swept.leases, key, "owner")
    await swept.let_expire(*keys[:-1])
    await swept.make_due()
    buried = await asyncio.gather(*(swept.leases.sweep() for _ in range(4)))
    assert sum(buried) == len(keys) - 1
    assert await swept.indexed() == {keys[-1]}
    await swept.let_expire(keys[-1])
    assert await swept.leases.sweep() == 0  # looked at a moment ago


async def test_a_lease_that_is_taken_during_a_sweep_stays_in_the_index(swept: Swept) -> None:
    """A sweep that found a tombstone must not drop the entry that the next tenure has made meanwhile."""
    await (await take(swept.leases, "callboard:key", "owner")).release()
    await swept.make_due()
    again, due = await swept.leases._run(_INDEX_TAKE_DUE, INDEX, 10, 1_000)
    assert due == [b"callboard:key"]
    lease = await take(swept.leases, "callboard:key", "next")
    await swept.leases._run(_INDEX_DROP, INDEX, again, *due)
    assert await swept.indexed() == {"callboard:key"}

    await lease.release()
    await swept.make_due()
    again, due = await swept.leases._run(_INDEX_TAKE_DUE, INDEX, 10, 1_000)
    await swept.leases._run(_INDEX_DROP, INDEX, again, *due)  # the control: nothing came between
    assert await swept.indexed() == set()
