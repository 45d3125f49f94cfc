"""A Call in, an Answer out.

credential (gateway) → deadline → look-up → the credential's patterns → arguments → idempotency → bulkhead → method
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from msgspec import Raw

from callboard.context import Context, Publish, current_context
from callboard.credentials import Credential
from callboard.errors import CallError, Cancelled, DeadlineExceeded, Internal, OutcomeUnknown, Unavailable
from callboard.hookspecs import Interceptor, Next
from callboard.messages import Call, ErrorBody, Reply, encode, new_id
from callboard.rpc.bulkhead import EscapedFromMethod, Slot
from callboard.rpc.idempotency import Idempotency, StoredAnswer, fingerprint_of, record_of, stored_error
from callboard.rpc.records import Claim
from callboard.rpc.table import Endpoint, Table
from callboard.settings import Settings
from callboard.telemetry import Telemetry, where_raised

DEFAULT_TIMEOUT_MS = 120_000
_LAST_MOMENT_S = 5.0
T = TypeVar("T")


@dataclass(slots=True)
class Invocation:
    """A method about to run, as interceptors see it. `arguments` are bound and converted."""

    method: str
    namespace: str
    arguments: dict[str, Any]
    context: Context
    endpoint: Endpoint
    slot: Slot


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and whether it was stored by an earlier call with the same key."""

    reply: Reply
    replayed: bool = False


class Router:
    """The way of a call through the table of methods."""

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        idempotency: Idempotency,
        publish: Publish,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        self.table = Table(settings)
        self.in_flight = 0
        self._max_timeout_s = settings.max_timeout_ms / 1000
        self._telemetry = telemetry
        self._log = telemetry.log
        self._idempotency = idempotency
        self._publish = publish
        self._running: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._chain: Next = _execute
        for interceptor in reversed(interceptors):
            self._chain = partial(_step, interceptor, self._chain)

    async def call(self, call: Call, credential: Credential, *, traceparent: str | None = None) -> Answer:
        """Run a call; never raises for what a caller, a method or Redis did wrong: the reply says it."""
        started = time.monotonic()
        endpoint = self.table.get(call.method)
        namespace, method = (endpoint.namespace, endpoint.name) if endpoint else ("unknown", "unknown")
        trace_id = call.trace_id or new_id()
        log = self._log.bind(trace_id=trace_id, method=call.method[:200], namespace=namespace)
        log.debug("rpc_call", uid=self._telemetry.user(call.user_id))
        self.in_flight += 1
        self._idle.clear()
        try:
            answer = await self._answer(call, credential, trace_id, traceparent, started)
        except CallError as error:
            answer = Answer(Reply.failure(error, trace_id))
        except Exception as error:  # noqa: BLE001 - ours or Redis's: a call has an answer all the same
            answer = Answer(Reply.failure(self._internal(method, namespace, trace_id, error), trace_id))
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()
        duration = time.monotonic() - started
        code = answer.reply.code
        self._telemetry.metrics.rpc_duration.labels(namespace, method, code).observe(duration)
        fields: dict[str, Any] = {"uid": self._telemetry.user(call.user_id), "duration_ms": round(duration * 1000, 2)}
        if answer.replayed:
            fields["replayed"] = True
        if answer.reply.ok:
            log.info("rpc_ok", **fields)
        else:
            log.info("rpc_error", code=code, **fields)
        return answer

    async def _answer(
        self, call: Call, credential: Credential, trace_id: str, traceparent: str | None, started: float
    ) -> Answer:
        timeout_s = min((call.timeout_ms or DEFAULT_TIMEOUT_MS) / 1000, self._max_timeout_s)
        endpoint = self.table.look_up(call.method, credential)
        declared = endpoint.declared
        deadline = started + (timeout_s if declared.timeout_s is None else min(timeout_s, declared.timeout_s))
        arguments = endpoint.binding.bind(call.args, call.kwargs)
        keyed = declared.effect == "write" and declared.keyed and call.idempotency_key is not None
        record = record_of(credential.name, call, endpoint.canonical) if keyed else None
        context = Context(
            self._publish, asyncio.get_running_loop(), method=endpoint.name, caller=credential.name,
            user_id=call.user_id, session_id=call.session_id, trace_id=trace_id, traceparent=traceparent,
            deadline=deadline, record=record,
        )  # fmt: skip
        if record is None:
            work = self._run(endpoint, arguments, context, deadline)
            return Answer(Reply.success(await self._await_until(deadline, work), trace_id))
        retry_safe = declared.is_retry_safe(arguments)
        claimed = await self._idempotency.claim(record, fingerprint_of(call), retry_safe=retry_safe, deadline=deadline)
        if isinstance(claimed, StoredAnswer):
            return Answer(_replay(claimed, trace_id), replayed=True)
        keyed_work = self._run_keyed(endpoint, arguments, context, deadline, claimed, retry_safe=retry_safe)
        return await self._await_until(deadline, keyed_work, runs_on=True)

    async def _await_until(self, deadline: float, work: Coroutine[Any, Any, T], *, runs_on: bool = False) -> T:
        """Await `work` until the deadline; then it is cancelled, or left to run on as a task of the router's."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            await asyncio.wait({task}, timeout=max(0.0, deadline - time.monotonic()))
        except asyncio.CancelledError:
            if not runs_on:
                task.cancel()
            raise
        if not task.done():
            if not runs_on:
                task.cancel()
            raise DeadlineExceeded
        if task.cancelled():
            raise Cancelled
        return task.result()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # looked at: its caller may have left at the deadline

    async def _run_keyed(
        self, endpoint: Endpoint, arguments: dict[str, Any], context: Context, deadline: float, claim: Claim,
        *, retry_safe: bool,
    ) -> Answer:  # fmt: skip
        """A keyed write: its outcome is stored, whoever still waits for it."""
        slot = None
        try:
            slot = await endpoint.bulkhead.enter(on_thread=endpoint.on_thread, deadline=deadline)
            await self._idempotency.begin(claim)
        except BaseException:
            if slot is not None:
                slot.leave()
            await self._idempotency.forget(claim)
            raise
        try:
            # A thread cannot be stopped: however late it ends, its answer is stored.
            async with asyncio.timeout(None if endpoint.on_thread else self._max_timeout_s):
                data = await self._run_in(slot, endpoint, arguments, context)
        except (TimeoutError, asyncio.CancelledError):
            return await self._conclude(claim, stored_error(OutcomeUnknown()), context)
        except CallError as error:
            if isinstance(error, Unavailable | Cancelled) and retry_safe:
                await self._idempotency.forget(claim)
                raise
            return await self._conclude(claim, stored_error(error), context)
        return await self._conclude(claim, StoredAnswer(True, data=Raw(data)), context)

    async def _conclude(self, claim: Claim, outcome: StoredAnswer, context: Context) -> Answer:
        stands = await self._idempotency.finish(claim, outcome)
        return Answer(_replay(stands, context.trace_id), replayed=stands is not outcome)

    async def _run(self, endpoint: Endpoint, arguments: dict[str, Any], context: Context, deadline: float) -> bytes:
        slot = await endpoint.bulkhead.enter(on_thread=endpoint.on_thread, deadline=deadline)
        return await self._run_in(slot, endpoint, arguments, context)

    async def _run_in(self, slot: Slot, endpoint: Endpoint, arguments: dict[str, Any], context: Context) -> bytes:
        """The method between its interceptors, its result encoded; whatever it raises becomes a CallError."""
        current_context.set(context)
        in_flight = self._telemetry.metrics.rpc_in_flight.labels(endpoint.namespace)
        in_flight.inc()
        try:
            return encode(
                await self._chain(Invocation(endpoint.name, endpoint.namespace, arguments, context, endpoint, slot))
            )
        except (CallError, asyncio.CancelledError):
            raise
        except BaseException as error:  # SystemExit and its like must not end the service
            raise self._internal(endpoint.name, endpoint.namespace, context.trace_id, error) from error
        finally:
            in_flight.dec()
            slot.leave()

    def _internal(self, method: str, namespace: str, trace_id: str | None, error: BaseException) -> Internal:
        log_id = new_id()[:16]
        cause = error.__cause__ if isinstance(error, EscapedFromMethod) and error.__cause__ else error
        self._log.error(
            "rpc_error", log_id=log_id, trace_id=trace_id, method=method, namespace=namespace, code="INTERNAL",
            **where_raised(cause),
        )  # fmt: skip
        return Internal(details={"log_id": log_id})

    async def drain(self, timeout_s: float) -> None:
        """Let calls finish; then interrupt them: keyed writes are stored with an unknown outcome, and none begins."""
        until = time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            self._log.warning("service_drain", interrupted_calls=self.in_flight)
        if self._running:  # keyed writes whose callers left at their deadline
            await asyncio.wait(set(self._running), timeout=max(0.0, until - time.monotonic()))
        self._idempotency.stop_claiming()
        for task in set(self._running):
            task.cancel()
        if self._running:
            await asyncio.wait(set(self._running), timeout=_LAST_MOMENT_S)
        try:
            async with asyncio.timeout(_LAST_MOMENT_S):
                await self._idle.wait()
        except TimeoutError:
            self._log.error("service_drain", abandoned_calls=self.in_flight)


def _replay(stored: StoredAnswer, trace_id: str | None) -> Reply:
    if not stored.kept:
        error = ErrorBody("FAILED_PRECONDITION", "The call is done; its answer was too large to be kept.")
        return Reply(False, error=error, trace_id=trace_id)
    return Reply(stored.ok, data=stored.data, error=stored.error, trace_id=trace_id)


async def _execute(invocation: Invocation) -> Any:
    """The end of the chain: the method itself."""
    endpoint = invocation.endpoint
    if endpoint.on_thread:
        call = partial(endpoint.apply, invocation.arguments)
        return await endpoint.bulkhead.run_on_thread(invocation.slot, call)
    return await endpoint.apply(invocation.arguments)


async def _step(interceptor: Interceptor, following: Next, invocation: Invocation) -> Any:
    return await interceptor(invocation, following)
