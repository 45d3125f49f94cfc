from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from msgspec import Raw
from support import MakeSettings, Recorded

from callboard import (
    ConfigurationError,
    Event,
    FailedPrecondition,
    NotFound,
    Service,
    Unavailable,
    method,
)
from callboard.connections import Connections
from callboard.context import Context, current_context
from callboard.credentials import Credential
from callboard.messages import Call, encode, new_id
from callboard.rpc.idempotency import Idempotency
from callboard.rpc.router import Answer, Invocation, Router
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio
ANYONE = Credential("service")


class Host:
    """Stands for the app's Host: the router's services look at `background` alone."""

    background: Context


class Sample(Service):
    namespace = "SAMPLE"

    def __init__(self) -> None:
        self.runs: list[Any] = []
        self.gate = threading.Event()
        self.started = threading.Event()

    @method(effect="read")
    async def echo(self, value: Any) -> Any:
        return value

    @method(aliases=("OLD.write",))
    async def write(self, value: int = 0) -> int:
        self.runs.append(value)
        return len(self.runs)

    @method(keyed=False)
    async def beat(self) -> int:
        return await self.write(0)

    @method
    async def slow_write(self, seconds: float) -> str:
        self.runs.append("began")
        await asyncio.sleep(seconds)
        self.runs.append("ended")
        return "done"

    @method(effect="read")
    async def slow_read(self) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.runs.append("cancelled")
            raise

    @method
    def blocked_write(self) -> str:
        self.runs.append("began")
        self.started.set()
        self.gate.wait(20)
        return "late"

    @method(effect="read")
    def blocked_read(self) -> str:
        self.started.set()
        self.gate.wait(20)
        return "late"

    @method(effect="read")
    def on_thread(self) -> str:
        return threading.current_thread().name

    @method
    async def fail(self, how: str) -> None:
        self.runs.append(how)
        raise {
            "not_found": NotFound("no such thing"),
            "unavailable": Unavailable("elsewhere"),
            "bug": KeyError("s3cret-argument"),
            "exit": SystemExit(3),
            "precondition": FailedPrecondition(details={"field": "x"}),
        }[how]

    @method(retry_safe=lambda arguments: arguments["by"] == 0)
    async def add(self, by: int) -> None:
        self.runs.append("add")
        raise Unavailable("elsewhere")

    @method(retry_safe=True)
    async def fail_passing(self) -> None:
        self.runs.append("fail_passing")
        raise Unavailable("elsewhere")

    @method
    def fail_on_thread(self) -> None:
        raise SystemExit(3)

    @method(effect="read")
    async def unencodable(self) -> object:
        return object()

    @method(effect="read", timeout_s=0.05)
    async def capped(self) -> None:
        await asyncio.sleep(60)

    @method(effect="read")
    async def who(self) -> list[Any]:
        context = self.context
        return [context.caller, context.user_id, context.session_id, context.trace_id, context.method]

    @method
    def publish_from_thread(self) -> None:
        self.context.publish_soon(Event(type="sample.event", uid="u", payload={}))

    @method
    async def publish(self, times: int) -> None:
        for n in range(times):
            await self.context.publish(Event(type="sample.event", uid="u", payload={"n": n}))

    @method(effect="read", aliases=("shout", "OLD.name"))
    async def call_out(self) -> str:
        return "!"

    def undeclared(self) -> str:
        return "secret"


class Rig:
    def __init__(self, router: Router, service: Sample, events: list[Event]) -> None:
        self.router = router
        self.service = service
        self.events = events

    async def __call__(self, name: str, *args: Any, credential: Credential = ANYONE, **fields: Any) -> Answer:
        kwargs = fields.pop("kwargs", {})
        call = Call(
            method=f"SAMPLE.{name}" if "." not in name else name, args=Raw(encode(args)), kwargs=Raw(encode(kwargs))
        )
        return await self.router.call(msgspec.structs.replace(call, **fields), credential)


def data(answer: Answer) -> Any:
    assert answer.reply.ok, answer.reply.error
    return json.loads(bytes(answer.reply.data))  # type: ignore[arg-type]


def code(answer: Answer) -> str:
    assert not answer.reply.ok
    return answer.reply.code


@pytest.fixture
async def rig(make_settings: MakeSettings, connections: Connections, recorded: Recorded) -> AsyncIterator[Rig]:
    async with other_replica(make_settings, connections, recorded) as made:
        yield made


@asynccontextmanager
async def other_replica(
    make_settings: MakeSettings, connections: Connections, recorded: Recorded
) -> AsyncIterator[Rig]:
    settings = make_settings(
        LISTENERS_NAMESPACE_CONCURRENCY="4", LISTENERS_NAMESPACE_THREADS="2", LISTENERS_MAX_TIMEOUT_MS="20000"
    )
    events: list[Event] = []

    async def publish(event: Event, *, specific: tuple[str, ...] = ()) -> None:
        events.append(event)

    async with Idempotency(settings, connections, recorded.telemetry) as idempotency:
        router = Router(settings, recorded.telemetry, idempotency, publish)
        service = Sample()
        service.host = Host()  # type: ignore[assignment]
        router.table.add(service, "sample")
        yield Rig(router, service, events)
        service.gate.set()
        await router.drain(10)
        router.table.close()


@pytest.fixture
def released(rig: Rig) -> Iterator[Rig]:
    """The rig, its blocked threads let go at the end."""
    yield rig
    rig.service.gate.set()


# -- look-up


async def test_a_method_answers(rig: Rig) -> None:
    answer = await rig("echo", {"a": [1]}, trace_id="t1")
    assert data(answer) == {"a": [1]}
    assert answer.reply.trace_id == "t1"


@pytest.mark.parametrize(
    "name",
    ["SAMPLE.undeclared", "SAMPLE.__init__", "SAMPLE.__class__", "SAMPLE._x", "SAMPLE.open", "SAMPLE.runs",
     "OTHER.echo", "SAMPLE.", ".echo", "echo", "SAMPLE.echo.x", "sample.echo", "SAMPLE.echo\n", ""],
)  # fmt: skip
async def test_only_declared_methods_are_found(rig: Rig, name: str) -> None:
    answer = await rig.router.call(Call(method=name), ANYONE)
    assert code(answer) == "METHOD_NOT_FOUND"


async def test_aliases(rig: Rig) -> None:
    assert [data(await rig(name)) for name in ("call_out", "shout", "OLD.name")] == ["!", "!", "!"]


async def test_a_credential_calls_what_its_patterns_name(rig: Rig) -> None:
    narrow = Credential("ci", ("SAMPLE.ec*",))
    assert data(await rig("echo", 1, credential=narrow)) == 1
    assert code(await rig("write", credential=narrow)) == "PERMISSION_DENIED"
    assert rig.service.runs == []


async def test_a_quarantined_namespace_is_unavailable(rig: Rig) -> None:
    rig.router.table.quarantine("BROKEN")
    answer = await rig("BROKEN.anything")
    assert code(answer) == "UNAVAILABLE"
    assert answer.reply.error.retry_after_ms  # type: ignore[union-attr]


async def test_a_clash_names_both_and_changes_nothing(rig: Rig) -> None:
    class Half(Service):
        namespace = "HALF"

        @method
        async def fresh(self) -> None: ...

        @method(aliases=("SAMPLE.echo",))
        async def taken(self) -> None: ...

    with pytest.raises(ConfigurationError, match=r"SAMPLE\.echo is declared by sample and by half"):
        rig.router.table.add(Half(), "half")
    assert rig.router.table.get("HALF.fresh") is None
    with pytest.raises(ConfigurationError, match="SAMPLE is declared by sample and by again"):
        rig.router.table.add(Sample(), "again")


@pytest.mark.parametrize("name", ["_private", "dunder__inside"])
async def test_private_names_are_refused_at_start(rig: Rig, name: str) -> None:
    async def function(self: Any) -> None: ...

    bad = type("Bad", (Service,), {"namespace": "BAD", name: method(function)})
    with pytest.raises(ConfigurationError, match=name):
        rig.router.table.add(bad(), "bad")


@pytest.mark.parametrize("namespace", ["", "lower", "A-B", "1A", "A\n"])
async def test_a_namespace_must_look_like_one(rig: Rig, namespace: str) -> None:
    bad = type("Bad", (Service,), {"namespace": namespace})
    with pytest.raises(ConfigurationError, match="must match"):
        rig.router.table.add(bad(), "bad")


# -- arguments and results


async def test_wrong_arguments_never_reach_the_method(rig: Rig) -> None:
    assert code(await rig("write", "1")) == "INVALID_ARGS"
    assert code(await rig("write", 1, 2)) == "INVALID_ARGS"
    assert code(await rig("write", kwargs={"other": 1})) == "INVALID_ARGS"
    assert rig.service.runs == []


async def test_errors_of_a_method(rig: Rig) -> None:
    answer = await rig("fail", "not_found")
    assert (code(answer), answer.reply.error.message) == ("NOT_FOUND", "no such thing")  # type: ignore[union-attr]
    answer = await rig("fail", "precondition")
    assert answer.reply.error.details == {"field": "x"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "args"), [("fail", ["bug"]), ("fail", ["exit"]), ("fail_on_thread", []), ("unencodable", [])]
)
async def test_any_other_exception_is_internal_with_a_log_id(
    rig: Rig, recorded: Recorded, name: str, args: list[str]
) -> None:
    answer = await rig(name, *args)
    assert code(answer) == "INTERNAL"
    body = encode(answer.reply).decode()
    assert "s3cret-argument" not in body + recorded.text
    assert "Traceback" not in body
    log_id = answer.reply.error.details["log_id"]  # type: ignore[union-attr,index]
    assert [line["method"] for line in recorded.lines("rpc_error") if line.get("log_id") == log_id] == [
        f"SAMPLE.{name}"
    ]


async def test_the_context_says_who_calls(rig: Rig) -> None:
    answer = await rig("who", user_id="u", session_id="s", trace_id="t")
    assert data(answer) == ["service", "u", "s", "t", "SAMPLE.who"]
    assert current_context.get(None) is None


async def test_sync_methods_run_on_the_namespaces_threads(rig: Rig) -> None:
    assert data(await rig("on_thread")).startswith("callboard-sample")


async def test_publishing_from_a_thread(rig: Rig) -> None:
    assert data(await rig("publish_from_thread")) is None
    assert [event.type for event in rig.events] == ["sample.event"]


# -- deadline


async def test_a_read_is_cancelled_at_its_deadline(rig: Rig) -> None:
    assert code(await rig("slow_read", timeout_ms=50)) == "DEADLINE_EXCEEDED"
    await rig.router.drain(5)
    assert rig.service.runs == ["cancelled"]


async def test_a_methods_own_cap_counts(rig: Rig) -> None:
    assert code(await rig("capped")) == "DEADLINE_EXCEEDED"


async def test_the_caller_does_not_wait_for_a_blocked_thread(released: Rig) -> None:
    started = time.monotonic()
    assert code(await released("blocked_read", timeout_ms=50)) == "DEADLINE_EXCEEDED"
    assert time.monotonic() - started < 10  # the thread is held for 20
    assert released.router.table.busy_threads() == 1


async def test_a_keyed_write_runs_on_and_the_retry_finds_its_answer(rig: Rig) -> None:
    key = new_id()
    first = await rig("slow_write", 0.3, idempotency_key=key, timeout_ms=50)
    assert code(first) == "DEADLINE_EXCEEDED"
    again = await rig("slow_write", 0.3, idempotency_key=key)
    assert (data(again), again.replayed) == ("done", True)
    assert rig.service.runs == ["began", "ended"]


async def test_a_thread_that_outlives_its_deadline_keeps_its_slot_and_stores_its_answer(rig: Rig) -> None:
    key = new_id()
    assert code(await rig("blocked_write", idempotency_key=key, timeout_ms=50)) == "DEADLINE_EXCEEDED"
    assert rig.router.table.busy_threads() == 1
    assert code(await rig("blocked_write", idempotency_key=key, timeout_ms=50)) == "DEADLINE_EXCEEDED"
    rig.service.gate.set()
    again = await rig("blocked_write", idempotency_key=key)
    assert (data(again), again.replayed, rig.service.runs) == ("late", True, ["began"])
    assert rig.router.table.busy_threads() == 0


# -- idempotency


async def test_a_retry_gets_the_first_answer_and_the_work_happens_once(rig: Rig) -> None:
    key = new_id()
    first = await rig("write", 7, idempotency_key=key, user_id="u", trace_id="one")
    again = await rig("write", 7, idempotency_key=key, user_id="u", trace_id="two")
    assert (data(first), first.replayed) == (1, False)
    assert (data(again), again.replayed, again.reply.trace_id) == (1, True, "two")
    assert rig.service.runs == [7]


async def test_a_retry_by_another_name_of_the_method_gets_the_first_answer(rig: Rig) -> None:
    key = new_id()
    answers = [await rig(name, 7, idempotency_key=key) for name in ("OLD.write", "write")]
    assert [(data(answer), answer.replayed) for answer in answers] == [(1, False), (1, True)]


async def test_concurrent_duplicates_run_once(rig: Rig) -> None:
    key = new_id()
    answers = await asyncio.gather(*(rig("slow_write", 0.1, idempotency_key=key) for _ in range(20)))
    assert [data(answer) for answer in answers] == ["done"] * 20
    assert rig.service.runs == ["began", "ended"]
    assert sum(not answer.replayed for answer in answers) == 1


async def test_without_a_key_a_write_runs_each_time(rig: Rig) -> None:
    await rig("write", 1)
    await rig("write", 1)
    assert rig.service.runs == [1, 1]


async def test_a_write_may_take_no_part_in_replays(rig: Rig) -> None:
    key = new_id()
    assert [data(await rig("beat", idempotency_key=key)) for _ in range(2)] == [1, 2]


async def test_a_reads_key_is_ignored(rig: Rig) -> None:
    key = new_id()
    assert data(await rig("echo", 1, idempotency_key=key)) == 1
    assert data(await rig("echo", 2, idempotency_key=key)) == 2


async def test_the_same_key_with_other_arguments_is_refused(rig: Rig) -> None:
    key = new_id()
    await rig("write", 1, idempotency_key=key)
    assert code(await rig("write", 2, idempotency_key=key)) == "IDEMPOTENCY_KEY_REUSED"
    assert rig.service.runs == [1]


async def test_users_and_credentials_do_not_share_keys(rig: Rig) -> None:
    key = new_id()
    await rig("write", 1, idempotency_key=key, user_id="a")
    await rig("write", 1, idempotency_key=key, user_id="b")
    await rig("write", 1, idempotency_key=key, user_id="a", credential=Credential("other"))
    assert len(rig.service.runs) == 3


@pytest.mark.parametrize("how", ["not_found", "bug", "unavailable"])
async def test_failures_of_a_method_that_began_are_stored(rig: Rig, how: str) -> None:
    key = new_id()
    first = await rig("fail", how, idempotency_key=key)
    again = await rig("fail", how, idempotency_key=key)
    assert (again.reply.error, again.replayed) == (first.reply.error, True)
    assert rig.service.runs == [how]


async def test_a_passing_failure_of_a_retry_safe_method_is_not_stored(rig: Rig) -> None:
    key = new_id()
    for _ in range(2):
        answer = await rig("fail_passing", idempotency_key=key)
        assert (code(answer), answer.replayed) == ("UNAVAILABLE", False)
    assert rig.service.runs == ["fail_passing"] * 2


async def test_the_arguments_may_decide_whether_a_method_is_retry_safe(rig: Rig) -> None:
    for by, replayed in ((0, False), (1, True)):
        key = new_id()
        assert (await rig("add", by, idempotency_key=key)).replayed is False
        assert (await rig("add", by, idempotency_key=key)).replayed is replayed
    assert rig.service.runs == ["add"] * 3


async def test_refusals_before_the_method_began_are_not_stored(rig: Rig) -> None:
    key = new_id()
    assert code(await rig("write", "x", idempotency_key=key)) == "INVALID_ARGS"
    assert data(await rig("write", 1, idempotency_key=key)) == 1


async def test_an_interrupted_write_is_stored_as_unknown(
    rig: Rig, make_settings: MakeSettings, connections: Connections, recorded: Recorded
) -> None:
    key = new_id()
    running = asyncio.create_task(rig("slow_write", 60, idempotency_key=key))
    while not rig.service.runs:
        await asyncio.sleep(0)
        await asyncio.wait({running}, timeout=0.01)
    await rig.router.drain(0)
    assert code(await running) == "ABORTED"
    assert code(await rig("slow_write", 60, idempotency_key=new_id())) == "UNAVAILABLE"  # none begins any more
    async with other_replica(make_settings, connections, recorded) as other:
        again = await other("slow_write", 60, idempotency_key=key)
    assert again.reply.error.details == {"outcome": "unknown"}  # type: ignore[union-attr]
    assert (rig.service.runs, other.service.runs) == (["began"], [])


async def test_a_drain_refuses_who_waits_for_a_running_duplicate(
    rig: Rig, make_settings: MakeSettings, connections: Connections, recorded: Recorded
) -> None:
    key = new_id()
    async with other_replica(make_settings, connections, recorded) as other:
        running = asyncio.create_task(other("blocked_write", idempotency_key=key))
        await asyncio.to_thread(other.service.started.wait)
        waiting = asyncio.create_task(rig("blocked_write", idempotency_key=key))
        while not rig.router.in_flight:
            await asyncio.wait({waiting}, timeout=0.01)
        await rig.router.drain(0)
        assert code(await waiting) == "UNAVAILABLE"
        other.service.gate.set()
        assert data(await running) == "late"
    assert rig.service.runs == []


async def test_events_of_a_keyed_call_have_stable_ids(rig: Rig) -> None:
    key = new_id()
    await rig("publish", 2, idempotency_key=key)
    ids = [event.id for event in rig.events]
    assert len(set(ids)) == 2
    await rig("publish", 2)
    assert [event.id for event in rig.events[2:]] == ["", ""]  # the bus makes random ones


async def test_without_redis_a_keyed_write_is_refused_and_a_plain_one_runs(
    own_valkey: ValkeyServer, make_settings: MakeSettings, recorded: Recorded
) -> None:
    settings = make_settings(LISTENERS_REDIS_PORT=str(own_valkey.port))

    async def publish(event: Event, *, specific: tuple[str, ...] = ()) -> None: ...

    async with Connections(settings, recorded.telemetry) as connections:
        router = Router(settings, recorded.telemetry, Idempotency(settings, connections, recorded.telemetry), publish)
        service = Sample()
        router.table.add(service, "sample")
        rig = Rig(router, service, [])
        await own_valkey.kill()
        answer = await rig("write", 1, idempotency_key=new_id())
        assert code(answer) == "UNAVAILABLE"
        assert answer.reply.error.retry_after_ms  # type: ignore[union-attr]
        assert service.runs == []
        assert data(await rig("write", 1)) == 1
        router.table.close()


async def test_a_refusal_of_redis_is_an_answer(
    own_valkey: ValkeyServer, make_settings: MakeSettings, recorded: Recorded
) -> None:
    settings = make_settings(LISTENERS_REDIS_PORT=str(own_valkey.port))
    async with (
        Connections(settings, recorded.telemetry) as connections,
        other_replica(lambda **_: settings, connections, recorded) as rig,
    ):
        await connections.commands.config_set("min-replicas-to-write", 1)
        refused = await rig("write", 1, idempotency_key=new_id())
        assert (code(refused), rig.service.runs) == ("UNAVAILABLE", [])
        await connections.commands.config_set("min-replicas-to-write", 0)

        key = new_id()
        running = asyncio.create_task(rig("blocked_write", idempotency_key=key))
        await asyncio.to_thread(rig.service.started.wait)
        await connections.commands.config_set("min-replicas-to-write", 1)
        rig.service.gate.set()
        assert data(await running) == "late"  # it is done, and said so; Redis will hear of it later
        await connections.commands.config_set("min-replicas-to-write", 0)


# -- bulkhead


async def test_a_full_namespace_refuses_and_releases_the_lease(released: Rig) -> None:
    blocked = [asyncio.create_task(released("blocked_read")) for _ in range(4)]  # 2 run, 2 wait
    while released.router.table.busy_threads() < 2 or released.router.in_flight < 4:
        await asyncio.wait(blocked, timeout=0.01)
    key = new_id()
    answer = await released("blocked_write", idempotency_key=key)
    assert code(answer) == "RESOURCE_EXHAUSTED"
    assert data(await released("echo", 1)) == 1  # async methods have slots of their own
    released.service.gate.set()
    await asyncio.gather(*blocked)
    assert data(await released("blocked_write", idempotency_key=key)) == "late"


async def test_a_call_whose_lease_was_lost_while_it_waited_for_a_slot_does_not_begin(
    released: Rig, connections: Connections
) -> None:
    blocked = [asyncio.create_task(released("blocked_read")) for _ in range(2)]
    while released.router.table.busy_threads() < 2:
        await asyncio.wait(blocked, timeout=0.01)
    waiting = asyncio.create_task(released("blocked_write", idempotency_key=new_id()))
    held = released.router._idempotency._held
    while not held:
        await asyncio.wait({waiting}, timeout=0.01)
    (claim,) = held.values()
    claim.renewed_at -= 60  # as if the process had been stopped for a minute
    await connections.commands.hset(f"callboard:idem:{claim.record}", "owner", "another")
    released.service.gate.set()
    assert code(await waiting) == "UNAVAILABLE"
    await asyncio.gather(*blocked)
    assert released.service.runs == []
    endpoint = released.router.table.get("SAMPLE.blocked_write")
    assert endpoint is not None
    assert endpoint.bulkhead.in_flight == 0


async def test_a_call_whose_lease_redis_breaks_gives_its_slot_back(released: Rig, connections: Connections) -> None:
    blocked = [asyncio.create_task(released("blocked_read")) for _ in range(2)]
    while released.router.table.busy_threads() < 2:
        await asyncio.wait(blocked, timeout=0.01)
    waiting = asyncio.create_task(released("blocked_write", idempotency_key=new_id()))
    held = released.router._idempotency._held
    while not held:
        await asyncio.wait({waiting}, timeout=0.01)
    (claim,) = held.values()
    claim.renewed_at -= 60
    await connections.commands.set(f"callboard:idem:{claim.record}", "no record", ex=60)
    released.service.gate.set()
    assert code(await waiting) == "INTERNAL"
    await asyncio.gather(*blocked)
    assert released.service.runs == []
    endpoint = released.router.table.get("SAMPLE.blocked_write")
    assert endpoint is not None
    assert endpoint.bulkhead.in_flight == 0


async def test_waiting_for_a_slot_counts_against_the_deadline(released: Rig) -> None:
    blocked = [asyncio.create_task(released("blocked_read")) for _ in range(2)]
    while released.router.table.busy_threads() < 2:
        await asyncio.wait(blocked, timeout=0.01)
    assert code(await released("blocked_read", timeout_ms=50)) == "DEADLINE_EXCEEDED"
    released.service.gate.set()
    await asyncio.gather(*blocked)


# -- interceptors, log, metrics


async def test_interceptors_run_in_order_around_the_method(
    make_settings: MakeSettings, connections: Connections, recorded: Recorded
) -> None:
    seen: list[str] = []

    def interceptor(name: str) -> Any:
        async def intercept(invocation: Invocation, following: Any) -> Any:
            seen.append(f"{name} {invocation.method} {invocation.arguments}")
            result = await following(invocation)
            return f"{name}({result})"

        return intercept

    async def publish(event: Event, *, specific: tuple[str, ...] = ()) -> None: ...

    settings = make_settings()
    records = Idempotency(settings, connections, recorded.telemetry)
    router = Router(settings, recorded.telemetry, records, publish, [interceptor("outer"), interceptor("inner")])
    router.table.add(Sample(), "sample")
    answer = await Rig(router, Sample(), [])("echo", "x")
    assert data(answer) == "outer(inner(x))"
    assert seen == ["outer SAMPLE.echo {'value': 'x'}", "inner SAMPLE.echo {'value': 'x'}"]
    router.table.close()


async def test_log_lines_say_what_and_never_with_what(rig: Rig, recorded: Recorded) -> None:
    await rig("echo", "s3cret", user_id="u", trace_id="t")
    (called,), (done,) = recorded.lines("rpc_call"), recorded.lines("rpc_ok")
    for line in (called, done):
        assert (line["method"], line["namespace"], line["trace_id"]) == ("SAMPLE.echo", "SAMPLE", "t")
    assert done["duration_ms"] >= 0
    assert "s3cret" not in recorded.text


async def test_unknown_methods_do_not_make_metric_labels(rig: Rig, recorded: Recorded) -> None:
    await rig("echo", 1)
    await rig("NO.such")
    count = "callboard_rpc_duration_seconds_count"
    assert recorded.metric(count, namespace="SAMPLE", method="SAMPLE.echo", code="OK") == 1
    assert recorded.metric(count, namespace="unknown", method="unknown", code="METHOD_NOT_FOUND") == 1
