"""The plugin in a whole service: from a document written by another system to the event a consumer reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from google.cloud.firestore import DELETE_FIELD, GeoPoint

import callboard_workflow_listener
from callboard import Event, Unavailable
from callboard.testing import CallFailed, Subscription, running
from callboard_local import ValkeyServer

if TYPE_CHECKING:
    from .conftest import Jobs, Running

pytestmark = pytest.mark.anyio

INVOICE = {"invoiceReference": "INV-1", "totalAmountDueVATExcluded": 1250.0, "currency": "EUR", "note": "not watched"}
WATCHED = {name: value for name, value in INVOICE.items() if name != "note"}


def payloads(events: list[Event]) -> dict[str, Any]:
    return {event.type: event.payload for event in events}


async def eventually(reached: Any, within_s: float = 10) -> None:
    """Wait for what no event announces."""
    async with asyncio.timeout(within_s):
        while not reached():
            await asyncio.sleep(0.01)


async def next_events(heard: Subscription, count: int) -> list[Event]:
    return [await heard.next() for _ in range(count)]


async def test_the_first_snapshot_is_a_sync_of_every_job(replica: Running, heard: Subscription, jobs: Jobs) -> None:
    await jobs.put("a", INVOICE, {"extract": 1})
    await jobs.put("b", steps={"extract": 2})
    await replica.enter()
    events = await next_events(heard, 2)
    assert [(event.type, event.job_id, event.payload) for event in events] == [
        ("workflow.sync", "b", {"job_id": "b", "invoice": {}, "steps": {"extract": 2}}),
        ("workflow.sync", "a", {"job_id": "a", "invoice": WATCHED, "steps": {"extract": 1}}),
    ]
    assert all(event.as_of and event.fence and event.uid == replica.uid for event in events)


async def test_only_what_changed_is_sent(replica: Running, heard: Subscription, jobs: Jobs) -> None:
    await jobs.put("a", INVOICE, {"extract": 1, "book": 1})
    await replica.enter()
    await heard.next("workflow.sync")
    await jobs.update("a", document__initial_data__currency="CHF", document__initial_data__note="x", other=1)
    event = await heard.next()
    assert (event.type, event.job_id) == ("workflow.invoice_update", "a")
    assert event.payload == {"invoice_changes": {"currency": "CHF"}}
    await jobs.update("a", APBookeeper_step_status__extract=2)
    event = await heard.next()
    assert (event.type, event.job_id) == ("workflow.step_update", "a")
    assert event.payload == {"step_changes": {"APBookeeper_step_status": {"extract": 2}}}


async def test_both_kinds_of_change_in_one_write_are_two_events(
    replica: Running, heard: Subscription, jobs: Jobs
) -> None:
    await jobs.put("a", INVOICE, {"extract": 1})
    await replica.enter()
    await heard.next("workflow.sync")
    await jobs.update("a", document__initial_data__currency=DELETE_FIELD, APBookeeper_step_status__book=1)
    events = await next_events(heard, 2)
    assert payloads(events) == {
        "workflow.invoice_update": {"invoice_changes": {"currency": None}},
        "workflow.step_update": {"step_changes": {"APBookeeper_step_status": {"book": 1}}},
    }
    assert len({event.id for event in events}) == 2


async def test_a_new_job_and_a_deleted_one_are_synced(replica: Running, heard: Subscription, jobs: Jobs) -> None:
    await jobs.put("a", INVOICE)
    await replica.enter()
    await heard.next("workflow.sync")
    await jobs.put("b", {"sender": "Acme"}, {"extract": 1})
    event = await heard.next()
    assert event.payload == {"job_id": "b", "invoice": {"sender": "Acme"}, "steps": {"extract": 1}}
    await jobs.delete("b")
    event = await heard.next()
    assert (event.type, event.payload) == ("workflow.sync", {"job_id": "b", "invoice": {}, "steps": {}})


async def test_attaching_again_sends_syncs_and_no_flood_of_changes(
    replica: Running, heard: Subscription, jobs: Jobs
) -> None:
    for number in range(5):
        await jobs.put(f"j{number}", {"currency": "EUR"}, {"extract": number})
    await replica.enter()
    first = await next_events(heard, 5)
    await replica.service.callboard.listeners.restart(replica.uid)
    again = await next_events(heard, 5)
    await jobs.update("j0", document__initial_data__currency="CHF")
    change = await heard.next()
    assert {event.type for event in first + again} == {"workflow.sync"}
    assert [event.id for event in again] == [event.id for event in first]
    assert change.payload == {"invoice_changes": {"currency": "CHF"}}


async def test_malformed_documents_do_not_end_the_stream(replica: Running, heard: Subscription, jobs: Jobs) -> None:
    await jobs.put("good", INVOICE)
    await replica.enter()
    await heard.next("workflow.sync")
    await jobs.put("text", document="text", APBookeeper_step_status="text")
    await jobs.put("list", ["a", "list"], [1, 2])
    await jobs.put("odd", {"currency": GeoPoint(1, 2)}, {"text": "3", "yes": True, "count": 1})
    syncs = {event.job_id: event.payload for event in await next_events(heard, 3)}
    assert (
        syncs["text"]["invoice"] == syncs["list"]["invoice"] == syncs["text"]["steps"] == syncs["list"]["steps"] == {}
    )
    assert syncs["odd"]["invoice"] == {"currency": {"latitude": 1.0, "longitude": 2.0}}
    assert syncs["odd"]["steps"] == {"count": 1}
    await jobs.update("good", document__initial_data="text now")
    event = await heard.next()
    assert event.payload == {"invoice_changes": dict.fromkeys(WATCHED)}
    await jobs.update("odd", APBookeeper_step_status__count="text now")
    event = await heard.next()
    assert event.payload == {"step_changes": {"APBookeeper_step_status": {"count": None}}}


# -- watched jobs


async def test_with_watched_jobs_only_those_are_listened_to(replica: Running, heard: Subscription, jobs: Jobs) -> None:
    await jobs.put("a", {"currency": "EUR"})
    await jobs.put("b", {"currency": "EUR"})
    answer = await replica.call("WORKFLOW.watch_job", replica.uid, "a")
    assert answer == {"user_id": replica.uid, "watched": ["a"]}
    await replica.enter()
    assert (await heard.next()).payload["job_id"] == "a"
    await jobs.update("b", document__initial_data__currency="CHF")
    await jobs.update("a", document__initial_data__currency="USD")
    event = await heard.next()
    assert (event.job_id, event.payload) == ("a", {"invoice_changes": {"currency": "USD"}})


async def test_the_older_sub_document_of_a_watched_job_gives_the_same_event(
    replica: Running, heard: Subscription, jobs: Jobs
) -> None:
    await jobs.put("a", steps={"extract": 1})
    await jobs.put_older("a", {"currency": "EUR", "sender": "Acme", "note": "not watched"})
    await replica.call("WORKFLOW.watch_job", replica.uid, "a")
    await replica.enter()
    sync = await heard.next()
    assert sync.payload == {"job_id": "a", "invoice": {"currency": "EUR", "sender": "Acme"}, "steps": {"extract": 1}}
    await jobs.put_older("a", {"currency": "CHF", "sender": "Acme"})
    event = await heard.next()
    assert (event.type, event.job_id) == ("workflow.invoice_update", "a")
    assert event.payload == {"invoice_changes": {"currency": "CHF"}}
    await jobs.delete_older("a")
    event = await heard.next()
    assert event.payload == {"invoice_changes": {"currency": None, "sender": None}}


async def test_a_watched_job_may_come_and_go_and_no_two_syncs_look_the_same(
    replica: Running, heard: Subscription, jobs: Jobs
) -> None:
    await replica.call("WORKFLOW.watch_job", replica.uid, "a")
    await replica.enter()
    events = [await heard.next("workflow.sync")]
    for _ in range(2):
        await jobs.put("a", INVOICE)
        events.append(await heard.next())
        await jobs.delete("a")
        events.append(await heard.next())
    assert [(event.type, event.payload["invoice"]) for event in events] == [
        ("workflow.sync", invoice) for invoice in ({}, WATCHED, {}, WATCHED, {})
    ]
    assert len({event.id for event in events}) == 5
    times = [event.as_of or "" for event in events]
    assert times == sorted(times)
    assert len(set(times)) > 1


async def test_a_watched_job_is_watched_on_when_redis_lost_its_data(
    replica: Running, heard: Subscription, jobs: Jobs, own_valkey: ValkeyServer
) -> None:
    await replica.call("WORKFLOW.watch_job", replica.uid, "a")
    await replica.call("WORKFLOW.watch_job", replica.uid, "b")
    await replica.enter()
    await eventually(lambda: replica.uid in replica.workflow.listening)
    await next_events(heard, 2)
    await own_valkey.kill()
    await own_valkey.restart()

    async def watched() -> list[str]:
        try:
            await replica.enter()  # as a socket's heartbeat does: Redis has forgotten who is online, too
            status: dict[str, list[str]] = await replica.call("WORKFLOW.status", replica.uid)
        except (CallFailed, Unavailable):
            return []  # while Redis is away
        return status["watched"]

    async with asyncio.timeout(30):
        while await watched() != ["a", "b"]:
            await asyncio.sleep(0.05)
    await replica.call("WORKFLOW.unwatch_job", replica.uid, "a")
    await replica.call("WORKFLOW.unwatch_job", replica.uid, "b")
    assert await replica.workflow.watched.tend(replica.uid) == frozenset()


async def test_watching_and_unwatching_while_listening(replica: Running, heard: Subscription, jobs: Jobs) -> None:
    await jobs.put("a", {"currency": "EUR"})
    await jobs.put("b", {"currency": "EUR"})
    await replica.enter()
    assert {event.job_id for event in await next_events(heard, 2)} == {"a", "b"}
    await replica.call("LISTENERS.start_workflow_listener_for_job", replica.uid, "b")
    assert (await heard.next()).payload["job_id"] == "b"
    await eventually(lambda: len(replica.workflow.listening[replica.uid].tracker) == 1)
    await replica.call("LISTENERS.stop_workflow_listener_for_job", replica.uid, "b")
    again = await next_events(heard, 2)
    assert {(event.type, event.job_id) for event in again} == {("workflow.sync", "a"), ("workflow.sync", "b")}


async def test_a_job_watched_through_another_replica_reaches_the_one_that_listens(
    replicas: Any, replica: Running, heard: Subscription, jobs: Jobs
) -> None:
    await jobs.put("a", {"currency": "EUR"})
    await jobs.put("b", {"currency": "EUR"})
    await replica.enter()
    await next_events(heard, 2)
    other: Running = await replicas()
    await other.call("WORKFLOW.watch_job", replica.uid, "a")
    assert (await heard.next()).payload["job_id"] == "a"
    await jobs.update("b", document__initial_data__currency="CHF")
    await jobs.update("a", document__initial_data__currency="USD")
    assert (await heard.next()).job_id == "a"


async def test_the_methods_refuse_ids_that_are_none(replica: Running) -> None:
    for arguments in (("u/v", "a"), (replica.uid, "a/b"), (replica.uid, ""), (replica.uid, "..")):
        with pytest.raises(CallFailed) as refused:
            await replica.call("WORKFLOW.watch_job", *arguments)
        assert refused.value.code == "INVALID_ARGS"


# -- what operators see


async def test_status_and_health_tell_what_is_listened_to(replica: Running, heard: Subscription, jobs: Jobs) -> None:
    idle = await replica.call("WORKFLOW.status", replica.uid)
    assert idle == {
        "user_id": replica.uid, "enabled": True, "active": False, "mode": "collection", "watched": [],
        "cache_entries": 0,
    }  # fmt: skip
    await jobs.put("a", INVOICE)
    await replica.enter()
    await heard.next("workflow.sync")
    status = await replica.call("WORKFLOW.status", replica.uid)
    assert (status["active"], status["cache_entries"]) == (True, 1)
    user = replica.service.callboard.telemetry.user(replica.uid)
    report = {"status": "ok", "enabled": True, "active_count": 1, "cache_entries": 1}
    assert user != replica.uid
    assert await replica.workflow.health() == {**report, "users": [user]}
    assert await replica.workflow.debug() == {**report, "users": [replica.uid]}


async def test_the_status_is_the_same_on_a_replica_that_does_not_listen(
    replicas: Any, replica: Running, heard: Subscription, jobs: Jobs
) -> None:
    await jobs.put("a", INVOICE)
    await replica.enter()
    await heard.next("workflow.sync")
    others = [await replicas(), await replicas(WORKFLOW_LISTENER_ENABLED="false")]
    for other in others:
        status = await other.call("WORKFLOW.status", replica.uid)
        assert (status["active"], status["cache_entries"]) == (True, 0)
        assert not other.workflow.listening
    await replica.service.callboard.listeners.drain()
    await others[0].service.callboard.listeners.drain()
    assert not (await others[1].call("WORKFLOW.status", replica.uid))["active"]


async def test_the_cache_goes_when_the_user_does(replica: Running, heard: Subscription, jobs: Jobs) -> None:
    await jobs.put("a", INVOICE)
    await replica.enter()
    await heard.next("workflow.sync")
    assert (await replica.workflow.health())["cache_entries"] == 1
    replica.service.callboard.listeners._attendance._grace_s = 0.0  # how long the core waits is not the question here
    await replica.leave()
    await eventually(lambda: not replica.workflow.listening)
    assert (await replica.workflow.health())["cache_entries"] == 0


async def test_disabled_no_listener_runs_and_the_methods_answer(
    replicas: Any, replica: Running, jobs: Jobs, uid: str
) -> None:
    off: Running = await replicas(WORKFLOW_LISTENER_ENABLED="false")
    assert off.workflow.listeners() == []
    assert replica.workflow.listeners() != []  # the setting is what makes the difference
    await off.call("WORKFLOW.watch_job", uid, "a")
    status = await off.call("WORKFLOW.status", uid)
    assert (status["enabled"], status["mode"], status["watched"]) == (False, "off", ["a"])
    health = await off.workflow.health()
    assert (health["status"], health["enabled"], health["active_count"]) == ("disabled", False, 0)
    await off.call("WORKFLOW.unwatch_job", uid, "a")


async def test_without_a_firebase_there_is_nothing_to_listen_to(own_valkey: ValkeyServer) -> None:
    environ = {"LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(own_valkey.port)}
    async with running(callboard_workflow_listener, environ=environ) as service:
        workflow = service.callboard.plugins.all[0].services[0]
        assert workflow.listeners() == []
        assert (await workflow.health())["status"] == "not configured"
        assert (await service.call("WORKFLOW.status", "u1"))["mode"] == "off"


async def test_the_log_has_the_names_of_what_changed_and_no_values(
    replica: Running, heard: Subscription, jobs: Jobs
) -> None:
    await jobs.put("a", {"currency": "EUR"}, {"extract": 1})
    await replica.enter()
    await heard.next("workflow.sync")
    await jobs.update("a", document__initial_data__currency="secret", APBookeeper_step_status__extract=4711)
    await next_events(heard, 2)
    (invoice,) = replica.logged("workflow_invoice_changes")
    (steps,) = replica.logged("workflow_step_changes")
    assert (invoice["fields"], steps["fields"]) == (["currency"], ["extract"])
    user = replica.service.callboard.telemetry.user(replica.uid)
    assert invoice["uid"] == steps["uid"] == user != replica.uid
    assert replica.logged("workflow_listener_start")
    assert replica.logged("workflow_listener_attached")
    assert not replica.logged("workflow_listener_error")
    assert "secret" not in str([invoice, steps])


# -- the snapshot half


async def test_a_snapshot_reads_the_source_and_has_the_ids_of_the_stream(
    replica: Running, heard: Subscription, jobs: Jobs
) -> None:
    await jobs.put("a", INVOICE, {"extract": 1})
    await jobs.put("b", {"currency": "EUR"})
    await replica.enter()
    streamed = await next_events(heard, 2)
    read = await replica.service.callboard.listeners.snapshot(replica.uid)
    assert [(event.id, event.payload) for event in read] == [(event.id, event.payload) for event in streamed]
    assert all(event.as_of for event in read)


async def test_a_snapshot_of_watched_jobs_reads_both_documents(replica: Running, jobs: Jobs) -> None:
    await jobs.put("a", steps={"extract": 1})
    await jobs.put_older("a", {"currency": "EUR"})
    await jobs.put("b", INVOICE)
    await replica.call("WORKFLOW.watch_job", replica.uid, "a")
    await replica.call("WORKFLOW.watch_job", replica.uid, "missing")
    read = await replica.service.callboard.listeners.snapshot(replica.uid)
    assert [event.payload for event in read] == [
        {"job_id": "a", "invoice": {"currency": "EUR"}, "steps": {"extract": 1}},
        {"job_id": "missing", "invoice": {}, "steps": {}},
    ]


async def test_a_user_without_jobs_gets_no_event_and_then_the_first_job(
    replica: Running, heard: Subscription, jobs: Jobs
) -> None:
    assert await replica.service.callboard.listeners.snapshot(replica.uid) == []
    await replica.enter()
    await eventually(lambda: replica.uid in replica.workflow.listening)
    await jobs.put("a", INVOICE)
    assert (await heard.next()).payload["job_id"] == "a"


async def test_many_writes_at_once_are_all_told(replica: Running, heard: Subscription, jobs: Jobs) -> None:
    await jobs.put("a", {"currency": "EUR"})
    await replica.enter()
    await heard.next("workflow.sync")
    async with asyncio.TaskGroup() as writers:
        for number in range(20):
            writers.create_task(jobs.put(f"j{number}", {"currency": "EUR"}))
    syncs = await next_events(heard, 20)
    assert {event.job_id for event in syncs} == {f"j{number}" for number in range(20)}
