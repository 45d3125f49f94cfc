from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator

import pytest
from msgspec import Raw
from redis.asyncio import Redis
from support import MakeSettings, Recorded, settings_on

from callboard.connections import Connections
from callboard.errors import DeadlineExceeded, KeyReused, OutcomeUnknown, Unavailable
from callboard.messages import Call, ErrorBody, new_id
from callboard.rpc import idempotency
from callboard.rpc.idempotency import (
    MAX_ANSWER_BYTES,
    Idempotency,
    StoredAnswer,
    _Ending,
    fingerprint_of,
    record_of,
)
from callboard.rpc.records import Claim
from callboard_local import Deployment, FaultProxy, ValkeyServer

pytestmark = pytest.mark.anyio
UNKNOWN = ErrorBody("ABORTED", OutcomeUnknown().message, details={"outcome": "unknown"})


@pytest.fixture
def redis_server(redis_deployment: Deployment) -> Deployment:
    return redis_deployment


@pytest.fixture
async def records(make_settings: MakeSettings, connections: Connections, recorded: Recorded) -> Idempotency:
    return Idempotency(make_settings(), connections, recorded.telemetry)


@pytest.fixture
async def brief(make_settings: MakeSettings, connections: Connections, recorded: Recorded) -> Idempotency:
    """Its leases last a tenth of a second and nobody renews them: an owner that died."""
    return Idempotency(make_settings(), connections, recorded.telemetry, lease_ttl_s=0.1)


@pytest.fixture
async def kept(make_settings: MakeSettings, connections: Connections, recorded: Recorded) -> AsyncIterator[Idempotency]:
    """As brief, with its keeper running: an owner that lives."""
    async with Idempotency(make_settings(), connections, recorded.telemetry, lease_ttl_s=1.5) as opened:
        yield opened


async def claim(
    records: Idempotency, record: str, fingerprint: str = "f", *, retry_safe: bool = False, within_s: float = 5
) -> Claim | StoredAnswer:
    return await records.claim(record, fingerprint, retry_safe=retry_safe, deadline=time.monotonic() + within_s)


async def said(records: Idempotency, record: str, fingerprint: str = "f") -> bytes:
    stored = await claim(records, record, fingerprint)
    assert isinstance(stored, StoredAnswer)
    return bytes(stored.data)  # type: ignore[arg-type]


async def owned(records: Idempotency, record: str) -> Claim:
    claimed = await claim(records, record)
    assert isinstance(claimed, Claim)
    return claimed


async def until_expired(admin: Redis, record: str) -> None:
    key = f"callboard:idem:{record}"
    while True:
        expires = int(await admin.hget(key, "expires") or 0)
        seconds, micros = await admin.time()
        if seconds * 1000 + micros // 1000 > expires:
            return
        await asyncio.sleep(0.01)


async def test_a_finished_call_is_replayed(records: Idempotency) -> None:
    record = new_id()
    await records.finish(await owned(records, record), StoredAnswer(True, data=Raw(b'"job1"')))
    stored = await claim(records, record)
    assert isinstance(stored, StoredAnswer)
    assert bytes(stored.data) == b'"job1"'  # type: ignore[arg-type]


async def test_a_failure_is_replayed_too(records: Idempotency) -> None:
    record = new_id()
    error = ErrorBody("NOT_FOUND", "gone", details={"a": 1})
    await records.finish(await owned(records, record), StoredAnswer(False, error=error))
    stored = await claim(records, record)
    assert isinstance(stored, StoredAnswer)
    assert stored.error == error


async def test_a_duplicate_waits_for_the_first_and_gets_its_answer(records: Idempotency) -> None:
    record = new_id()
    first = await owned(records, record)
    second = asyncio.create_task(claim(records, record))
    await asyncio.wait({second}, timeout=0.1)
    assert not second.done()
    await records.finish(first, StoredAnswer(True, data=Raw(b"1")))
    stored = await second
    assert isinstance(stored, StoredAnswer)


async def test_a_duplicate_waits_no_longer_than_its_own_deadline(records: Idempotency) -> None:
    record = new_id()
    await owned(records, record)
    with pytest.raises(DeadlineExceeded):
        await claim(records, record, within_s=0.05)


async def test_of_a_hundred_at_once_one_runs(records: Idempotency) -> None:
    record = new_id()
    tasks = [asyncio.create_task(claim(records, record)) for _ in range(100)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    first = next(iter(done)).result()
    assert isinstance(first, Claim)
    await records.finish(first, StoredAnswer(True, data=Raw(b"1")))
    results = await asyncio.gather(*tasks)
    assert sum(isinstance(result, Claim) for result in results) == 1


@pytest.mark.parametrize("finished", [True, False])
async def test_the_same_key_with_other_arguments_is_refused(records: Idempotency, finished: bool) -> None:
    record = new_id()
    first = await owned(records, record)
    if finished:
        await records.finish(first, StoredAnswer(True, data=Raw(b"1")))
    with pytest.raises(KeyReused):
        await claim(records, record, "other")


async def test_a_call_that_never_began_is_forgotten(records: Idempotency) -> None:
    record = new_id()
    await records.forget(await owned(records, record))
    await owned(records, record)


async def test_a_dead_owner_leaves_an_unknown_outcome(brief: Idempotency, admin: Redis) -> None:
    record = new_id()
    await owned(brief, record)
    await until_expired(admin, record)
    with pytest.raises(OutcomeUnknown):
        await claim(brief, record)
    assert await admin.pttl(f"callboard:idem:{record}") > 0


async def test_what_was_told_of_a_dead_owner_stays_so_when_it_wakes_up(
    brief: Idempotency, records: Idempotency, admin: Redis, recorded: Recorded
) -> None:
    record = new_id()
    paused = await owned(brief, record)
    await brief.begin(paused)
    await until_expired(admin, record)
    with pytest.raises(OutcomeUnknown):
        await claim(records, record)
    await brief._renew([paused])  # its keeper wakes up first
    assert recorded.metric("callboard_idempotency_total", outcome="lease_lost") == 1
    stands = await brief.finish(paused, StoredAnswer(True, data=Raw(b'"mine"')))
    assert (stands.ok, stands.error) == (False, UNKNOWN)
    stored = await claim(records, record)
    assert isinstance(stored, StoredAnswer)
    assert stored.error == UNKNOWN


async def test_an_owner_that_wakes_up_before_anybody_asked_stores_its_answer(
    brief: Idempotency, records: Idempotency, admin: Redis
) -> None:
    record = new_id()
    paused = await owned(brief, record)
    await until_expired(admin, record)
    answer = StoredAnswer(True, data=Raw(b'"mine"'))
    assert await brief.finish(paused, answer) is answer
    assert await said(records, record) == b'"mine"'


async def test_a_dead_owners_retry_safe_call_runs_again_and_its_answer_is_everyones(
    brief: Idempotency, records: Idempotency, admin: Redis
) -> None:
    record = new_id()
    paused = await owned(brief, record)
    await until_expired(admin, record)
    again = await claim(records, record, retry_safe=True)
    assert isinstance(again, Claim)
    woken = asyncio.create_task(brief.finish(paused, StoredAnswer(True, data=Raw(b'"paused"'))))
    await asyncio.wait({woken}, timeout=0.1)
    assert not woken.done()  # what will be told of this key is the other's to say
    await records.finish(again, StoredAnswer(True, data=Raw(b'"again"')))
    assert bytes((await woken).data) == b'"again"'  # type: ignore[arg-type]
    assert await said(records, record) == b'"again"'


async def test_of_two_owners_whose_leases_both_lapsed_the_first_to_end_is_heard(
    brief: Idempotency, admin: Redis
) -> None:
    record = new_id()
    first = await owned(brief, record)
    await until_expired(admin, record)
    second = await claim(brief, record, retry_safe=True)
    assert isinstance(second, Claim)
    await until_expired(admin, record)
    await brief.finish(first, StoredAnswer(True, data=Raw(b'"first"')))
    stands = await brief.finish(second, StoredAnswer(True, data=Raw(b'"second"')))
    assert bytes(stands.data) == b'"first"'  # type: ignore[arg-type]


async def test_whoever_waits_for_anothers_answer_is_let_go_when_the_service_stops(
    brief: Idempotency, records: Idempotency, admin: Redis
) -> None:
    record = new_id()
    paused = await owned(brief, record)
    await until_expired(admin, record)
    assert isinstance(await claim(records, record, retry_safe=True), Claim)
    woken = asyncio.create_task(brief.finish(paused, StoredAnswer(True, data=Raw(b"1"))))
    await asyncio.wait({woken}, timeout=0.1)
    brief.stop_claiming()
    with pytest.raises(OutcomeUnknown):
        await woken


@pytest.mark.parametrize("told", [True, False])
async def test_a_call_that_waited_longer_than_its_lease_begins_only_if_nobody_was_told(
    brief: Idempotency, records: Idempotency, admin: Redis, told: bool
) -> None:
    record = new_id()
    waited = await owned(brief, record)
    await until_expired(admin, record)
    if not told:
        await brief.begin(waited)
        with pytest.raises(DeadlineExceeded):
            await claim(records, record, within_s=0)
        return
    with pytest.raises(OutcomeUnknown):
        await claim(records, record)
    with pytest.raises(Unavailable):
        await brief.begin(waited)
    await brief.forget(waited)
    assert isinstance(await claim(records, record), StoredAnswer)  # as it was told


async def test_a_record_that_redis_lost_in_the_middle_is_made_anew(
    records: Idempotency, admin: Redis, recorded: Recorded
) -> None:
    kept, ended, given_up = new_id(), new_id(), new_id()
    claims = [await owned(records, record) for record in (kept, ended, given_up)]
    for begun in claims[:2]:
        await records.begin(begun)
    await admin.delete(*(f"callboard:idem:{record}" for record in (kept, ended, given_up)))

    await records._renew([claims[0], claims[2]])
    with pytest.raises(DeadlineExceeded):
        await claim(records, kept, within_s=0)
    await records.finish(claims[1], StoredAnswer(True, data=Raw(b"1")))
    assert await said(records, ended) == b"1"
    assert isinstance(await claim(records, given_up), Claim)
    assert recorded.metric("callboard_idempotency_total", outcome="restored") == 2
    assert recorded.metric("callboard_idempotency_total", outcome="lease_lost") == 1  # the one that was given up


async def test_a_lost_record_that_other_arguments_took_is_left_alone(records: Idempotency, admin: Redis) -> None:
    record = new_id()
    lost = await owned(records, record)
    await admin.delete(f"callboard:idem:{record}")
    other = await claim(records, record, "other")
    assert isinstance(other, Claim)
    answer = StoredAnswer(True, data=Raw(b"1"))
    assert await records.finish(lost, answer) is answer
    await records.finish(other, StoredAnswer(True, data=Raw(b"2")))
    assert await said(records, record, "other") == b"2"


async def test_a_living_owner_keeps_its_lease(kept: Idempotency, admin: Redis) -> None:
    record = new_id()
    await owned(kept, record)
    first = int(await admin.hget(f"callboard:idem:{record}", "expires") or 0)
    with pytest.raises(DeadlineExceeded):  # it outlives its lease: never unknown, never run again
        await claim(kept, record, within_s=3.5)
    assert int(await admin.hget(f"callboard:idem:{record}", "expires") or 0) > first


async def test_a_running_record_has_no_redis_ttl_and_a_finished_one_has(records: Idempotency, admin: Redis) -> None:
    record = new_id()
    first = await owned(records, record)
    assert await admin.pttl(f"callboard:idem:{record}") == -1
    await records.finish(first, StoredAnswer(True, data=Raw(b"1")))
    assert 0 < await admin.pttl(f"callboard:idem:{record}") <= 900_000


async def test_the_sweep_settles_what_dead_owners_left(brief: Idempotency, admin: Redis) -> None:
    record, living = new_id(), new_id()
    await owned(brief, record)
    await until_expired(admin, record)
    await owned(brief, living)
    while await admin.zscore("callboard:idem-running", record) is not None:
        await brief._records.sweep()
    assert await admin.pttl(f"callboard:idem:{record}") > 0


async def test_a_repeated_claim_and_finish_are_harmless(records: Idempotency, connections: Connections) -> None:
    """A lost reply makes the client send a script twice."""
    record = new_id()
    mine = Claim(record, "me", "f")
    for _ in range(2):
        assert await records._records.claim(mine, retry_safe=False) == ("claimed", None)
    await records.finish(mine, StoredAnswer(True, data=Raw(b"1")))
    await records.finish(mine, StoredAnswer(True, data=Raw(b"2")))
    stored = await claim(records, record)
    assert isinstance(stored, StoredAnswer)
    assert bytes(stored.data) == b"1"  # type: ignore[arg-type]


async def test_a_huge_answer_is_not_kept(records: Idempotency) -> None:
    record = new_id()
    answer = StoredAnswer(True, data=Raw(b'"' + b"x" * MAX_ANSWER_BYTES + b'"'))
    await records.finish(await owned(records, record), answer)
    stored = await claim(records, record)
    assert isinstance(stored, StoredAnswer)
    assert not stored.kept


async def test_the_scripts_travel_once(own_valkey: ValkeyServer, recorded: Recorded) -> None:
    settings = settings_on(own_valkey)
    async with Connections(settings, recorded.telemetry) as connections:
        records = Idempotency(settings, connections, recorded.telemetry)
        for _ in range(20):
            first = await owned(records, new_id())
            await records._renew([first])
            await records.finish(first, StoredAnswer(True, data=Raw(b"1")))
            await records.forget(await owned(records, new_id()))
        stats = await connections.commands.info("commandstats")
    assert stats["cmdstat_eval"]["calls"] == 4  # to claim, to renew, to finish, to forget
    assert stats["cmdstat_evalsha"]["calls"] == 5 * 20


async def test_without_redis_nothing_is_claimed(own_valkey: ValkeyServer, recorded: Recorded) -> None:
    settings = settings_on(own_valkey)
    async with Connections(settings, recorded.telemetry) as connections:
        records = Idempotency(settings, connections, recorded.telemetry)
        await owned(records, new_id())  # negative control: with it, it is
        await own_valkey.kill()
        with pytest.raises(Unavailable):
            await claim(records, new_id())


async def test_an_answer_that_redis_could_not_take_is_stored_when_it_is_back(
    own_valkey: ValkeyServer, recorded: Recorded
) -> None:
    settings = settings_on(own_valkey)
    async with (
        Connections(settings, recorded.telemetry) as connections,
        Idempotency(settings, connections, recorded.telemetry, lease_ttl_s=0.6) as records,
    ):
        finished, forgotten = new_id(), new_id()
        first, never_began = await owned(records, finished), await owned(records, forgotten)
        own_valkey.pause()
        try:
            await records.finish(first, StoredAnswer(True, data=Raw(b"1")))
            await records.forget(never_began)
        finally:
            own_valkey.resume()
        async with asyncio.timeout(10):
            # Whoever asked in between was told "unknown", or still is: the answer that its caller has had wins.
            while not (isinstance(stored := await _claimed_or_unknown(records, finished), StoredAnswer) and stored.ok):
                await asyncio.sleep(0.02)
            while not isinstance(await _claimed_or_unknown(records, forgotten), Claim):
                await asyncio.sleep(0.02)


async def _claimed_or_unknown(records: Idempotency, record: str) -> Claim | StoredAnswer | None:
    """None while its end has not reached Redis: running, or unknown."""
    try:
        return await claim(records, record, within_s=0)
    except (OutcomeUnknown, DeadlineExceeded, Unavailable):
        return None


async def test_a_claim_waits_for_redis_until_its_deadline(own_valkey: ValkeyServer, recorded: Recorded) -> None:
    settings = settings_on(own_valkey)
    async with Connections(settings, recorded.telemetry, attempt_timeout_s=3_600, call_limit_s=3_600) as connections:
        records = Idempotency(settings, connections, recorded.telemetry)
        own_valkey.pause()
        with pytest.raises(DeadlineExceeded):
            await claim(records, new_id(), within_s=0.2)
        own_valkey.resume()


async def test_a_claim_that_redis_executes_late_does_not_block_the_key(
    own_valkey: ValkeyServer, recorded: Recorded
) -> None:
    settings = settings_on(own_valkey)
    async with (
        Connections(settings, recorded.telemetry, attempt_timeout_s=0.2) as connections,
        Idempotency(settings, connections, recorded.telemetry, lease_ttl_s=1.2) as records,
    ):
        record = new_id()
        await claim(records, new_id())  # its connection stays open and takes the next request
        own_valkey.pause()
        with pytest.raises(Unavailable):
            await claim(records, record)
        own_valkey.resume()
        async with asyncio.timeout(10):
            while records._delayed:
                await asyncio.sleep(0.02)
        assert not await connections.commands.exists(f"callboard:idem:{record}")
        await owned(records, record)


async def test_what_a_long_outage_refuses_does_not_pile_up(
    own_valkey: ValkeyServer, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "_MAX_DELAYED", 30)
    settings = settings_on(own_valkey)
    async with (
        Connections(settings, recorded.telemetry) as connections,
        Idempotency(settings, connections, recorded.telemetry, lease_ttl_s=1.2) as records,
    ):
        record = new_id()
        first = await owned(records, record)
        await own_valkey.kill()
        for _ in range(100):
            with pytest.raises(Unavailable):
                await claim(records, new_id())
        assert len(records._delayed) == 30
        await records.finish(first, StoredAnswer(True, data=Raw(b"1")))
        assert first.owner in records._delayed  # an answer always finds its place
        await own_valkey.restart()
        async with asyncio.timeout(20):
            while records._delayed:
                await asyncio.sleep(0.02)
        assert await said(records, record) == b"1"


async def test_a_lease_is_kept_however_much_there_is_to_tell(own_valkey: ValkeyServer, recorded: Recorded) -> None:
    async with FaultProxy(own_valkey.host, own_valkey.port) as proxy:
        settings = settings_on(proxy)
        async with (
            Connections(settings, recorded.telemetry) as connections,
            Idempotency(settings, connections, recorded.telemetry, lease_ttl_s=2.0) as records,
        ):
            record = new_id()
            first = await owned(records, record)
            await records.begin(first)
            proxy.delay_s = 0.05
            for _ in range(1_000):  # fifty turns of 100 ms
                never_began = Claim(new_id(), new_id(), "f")
                records._delayed[never_began.owner] = _Ending(never_began)
            duplicate = asyncio.create_task(claim(records, record, within_s=60))
            async with asyncio.timeout(50):
                while records._delayed:
                    await asyncio.wait({duplicate}, timeout=0.02)
            assert not duplicate.done()  # neither told that the outcome is unknown nor let in
            await records.finish(first, StoredAnswer(True, data=Raw(b"1")))
            assert bytes((await duplicate).data) == b"1"  # type: ignore[union-attr,arg-type]


async def test_an_end_that_redis_refuses_for_good_holds_up_no_other(
    records: Idempotency, admin: Redis, recorded: Recorded
) -> None:
    broken, whole = new_id(), new_id()
    for record in (broken, whole):
        given_up = await owned(records, record)
        records._delayed[given_up.owner] = _Ending(given_up)
    await admin.set(f"callboard:idem:{broken}", "no record", ex=60)
    await records._end_delayed()
    assert not records._delayed
    assert not records._held
    assert isinstance(await claim(records, whole), Claim)
    assert len(recorded.lines("task_failed")) == 1


async def test_what_never_began_is_given_up_when_the_service_stops(
    make_settings: MakeSettings, connections: Connections, recorded: Recorded, records: Idempotency
) -> None:
    begun, waiting = new_id(), new_id()
    async with Idempotency(make_settings(), connections, recorded.telemetry) as stopping:
        await stopping.begin(await owned(stopping, begun))
        await owned(stopping, waiting)
    assert isinstance(await claim(records, waiting), Claim)
    with pytest.raises(DeadlineExceeded):
        await claim(records, begun, within_s=0)


async def test_a_lease_that_its_own_end_has_closed_is_not_lost(
    records: Idempotency, connections: Connections, recorded: Recorded
) -> None:
    first = await owned(records, new_id())
    await records.begin(first)
    records._delayed[first.owner] = _Ending(first, b"{}")
    await records._records.finish(first, b"{}")  # whose reply is still on its way
    await records._renew([first])
    assert recorded.metric("callboard_idempotency_total", outcome="lease_lost") == 0
    await records._end_delayed()
    assert recorded.metric("callboard_idempotency_total", outcome="stored") == 1


async def test_without_memory_nothing_is_claimed_and_what_cannot_be_stored_holds_up_nothing(
    own_valkey: ValkeyServer, recorded: Recorded
) -> None:
    settings = settings_on(own_valkey)
    async with (
        Connections(settings, recorded.telemetry) as connections,
        Idempotency(settings, connections, recorded.telemetry) as records,
    ):
        done, running, given_up, refused = new_id(), new_id(), new_id(), new_id()
        await records.finish(await owned(records, done), StoredAnswer(True, data=Raw(b"1")))
        in_mid_call, never_began = await owned(records, running), await owned(records, given_up)
        await connections.commands.config_set("maxmemory", 1)
        with pytest.raises(Unavailable):
            await claim(records, refused)
        assert not await connections.commands.exists(f"callboard:idem:{refused}")
        assert await said(records, done) == b"1"  # a replay needs no memory
        await records.finish(in_mid_call, StoredAnswer(True, data=Raw(b"2")))
        records._delayed[never_began.owner] = _Ending(never_began)
        while await connections.commands.exists(f"callboard:idem:{given_up}"):
            await asyncio.sleep(0.02)
        assert in_mid_call.owner in records._delayed
        await connections.commands.config_set("maxmemory", 0)
        while records._delayed:
            await asyncio.sleep(0.02)
        assert await said(records, running) == b"2"


async def test_the_end_of_a_lost_claim_leaves_the_next_one_alone(records: Idempotency, admin: Redis) -> None:
    record = new_id()
    first = await owned(records, record)
    await admin.delete(f"callboard:idem:{record}")  # a failover that forgot it
    second = await owned(records, record)
    late = asyncio.create_task(records.finish(first, StoredAnswer(True, data=Raw(b"1"))))
    while list(records._held.values()) != [second]:
        await asyncio.wait({late}, timeout=0.01)
    assert await admin.zscore("callboard:idem-running", record) is not None
    with pytest.raises(DeadlineExceeded):
        await claim(records, record, within_s=0)
    await records.finish(second, StoredAnswer(True, data=Raw(b"2")))
    assert bytes((await late).data) == b"2"  # type: ignore[arg-type]


async def test_replays_leave_the_index_with_the_next_sweep(brief: Idempotency, admin: Redis) -> None:
    record = new_id()
    await brief.finish(await owned(brief, record), StoredAnswer(True, data=Raw(b"1")))
    await claim(brief, record)
    while await admin.zscore("callboard:idem-running", record) is not None:
        await brief._records.sweep(batch=1)


async def test_evictions_are_told_by_a_metric(own_valkey: ValkeyServer, recorded: Recorded) -> None:
    settings = settings_on(own_valkey)
    name = "callboard_redis_evicted_keys"
    async with (
        Connections(settings, recorded.telemetry) as connections,
        Idempotency(settings, connections, recorded.telemetry, lease_ttl_s=0.3),
    ):
        assert math.isnan(recorded.metric(name))
        while recorded.metric(name) != 0:
            await asyncio.sleep(0.02)
        for number in range(20):
            await connections.commands.set(f"{number}", "x" * 100_000, ex=60)
        await connections.commands.config_set("maxmemory-policy", "volatile-lru")
        await connections.commands.config_set("maxmemory", "1mb")
        while not recorded.metric(name) > 0:
            await asyncio.sleep(0.02)


async def test_a_stop_without_redis_says_what_is_lost(own_valkey: ValkeyServer, recorded: Recorded) -> None:
    settings = settings_on(own_valkey)
    async with (
        Connections(settings, recorded.telemetry) as connections,
        Idempotency(settings, connections, recorded.telemetry) as records,
    ):
        first = await owned(records, new_id())
        await own_valkey.kill()
        await records.finish(first, StoredAnswer(True, data=Raw(b"1")))
    assert recorded.lines("idempotency_lost")[0]["answers"] == 1


def test_the_scope_is_caller_user_method_and_key() -> None:
    call = Call(method="A.b", user_id="u", idempotency_key="k")
    base = record_of("service", call, "A.b")
    assert base == record_of("service", call, "A.b")
    assert base != record_of("other", call, "A.b")
    assert base != record_of("service", Call(method="A.b", user_id="v", idempotency_key="k"), "A.b")
    assert base != record_of("service", Call(method="A.b", user_id="u", idempotency_key="l"), "A.b")
    assert base != record_of("service", call, "A.c")


def test_the_fingerprint_does_not_depend_on_spelling() -> None:
    one = Call(method="A.b", args=Raw(b'[{"a":1, "b" : 2}]'))
    other = Call(method="A.b", args=Raw(b'[ {"b":2,"a":1} ]'))
    assert fingerprint_of(one) == fingerprint_of(other)
    assert fingerprint_of(one) != fingerprint_of(Call(method="A.b", args=Raw(b'[{"a":1,"b":3}]')))
