"""A Call in, an Answer out.

    credential (gateway) → deadline → look-up → the credential's patterns → arguments → idempotency → bulkhead → method

The table is built once, at start; a call costs one look-up in it, and a client's text never reaches `getattr`.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from callboard.credentials import Credential
from callboard.errors import (
    CallError,
    Cancelled,
    ConfigurationError,
    DeadlineExceeded,
    Internal,
    MethodNotFound,
    OutcomeUnknown,
    PermissionDenied,
    Unavailable,
)
from callboard.hookspecs import Interceptor, Next
from callboard.messages import NAMESPACE, Call, ErrorBody, Reply, encode, new_id
from callboard.rpc.binding import Binding
from callboard.rpc.bulkhead import Bulkhead, EscapedFromMethod, Slot
from callboard.rpc.idempotency import Claim, Idempotency, StoredAnswer, fingerprint_of, record_of
from callboard.service import Context, Method, Publish, Service, current_context
from callboard.settings import Settings
from callboard.telemetry import Telemetry, where_raised

DEFAULT_TIMEOUT_MS = 120_000


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of the table: a method, ready to be called."""

    name: str
    namespace: str
    plugin: str
    function: Callable[..., Any]
    declared: Method
    binding: Binding
    bulkhead: Bulkhead
    on_thread: bool


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
    """The table of methods and the way through it."""

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        idempotency: Idempotency,
        publish: Publish,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._log = telemetry.log
        self._idempotency = idempotency
        self._publish = publish
        self._table: dict[str, Endpoint] = {}
        self._bulkheads: dict[str, Bulkhead] = {}
        self._quarantined: set[str] = set()
        self._running: set[asyncio.Task[Any]] = set()
        self._chain: Next = _execute
        for interceptor in reversed(interceptors):
            self._chain = partial(_step, interceptor, self._chain)
        self.in_flight = 0

    # -- the table

    def add(self, service: Service, plugin: str) -> None:
        """Put a service's methods into the table, all or none. A clash is a ConfigurationError naming both culprits."""
        namespace = getattr(service, "namespace", "")
        if not NAMESPACE.fullmatch(namespace):
            raise ConfigurationError(f"{plugin}: the namespace {namespace!r} must match {NAMESPACE.pattern}")
        if namespace in self._bulkheads:
            raise ConfigurationError(f"{namespace} is declared by {self._plugin_of(namespace)} and by {plugin}")
        bulkhead = Bulkhead(
            namespace, concurrency=self._settings.namespace_concurrency, threads=self._settings.namespace_threads
        )
        rows: dict[str, Endpoint] = {}
        for name, function, declared in service.methods():
            for full in (f"{namespace}.{name}", *(a if "." in a else f"{namespace}.{a}" for a in declared.aliases)):
                owner = rows.get(full) or self._table.get(full)
                if owner is not None:
                    raise ConfigurationError(f"{full} is declared by {owner.plugin} and by {plugin}")
                rows[full] = _endpoint(full, namespace, plugin, function, declared, bulkhead)
        self._table.update(rows)
        self._bulkheads[namespace] = bulkhead

    def _plugin_of(self, namespace: str) -> str:
        return next((e.plugin for e in self._table.values() if e.namespace == namespace), "another plugin")

    def quarantine(self, namespace: str) -> None:
        """Answer every call of this namespace with UNAVAILABLE."""
        self._quarantined.add(namespace)

    def methods_of(self, namespace: str) -> list[str]:
        return sorted(name for name, endpoint in self._table.items() if endpoint.namespace == namespace)

    def endpoints(self) -> dict[str, Endpoint]:
        return dict(self._table)

    # -- a call

    async def call(self, call: Call, credential: Credential, *, traceparent: str | None = None) -> Answer:
        """Run a call; never raises for what a caller or a method did wrong: the reply says it."""
        started = time.monotonic()
        timeout_ms = min(call.timeout_ms or DEFAULT_TIMEOUT_MS, self._settings.max_timeout_ms)
        deadline = started + timeout_ms / 1000
        trace_id = call.trace_id or new_id()
        namespace = call.method.partition(".")[0] if call.method in self._table else "unknown"
        log = self._log.bind(trace_id=trace_id, method=call.method[:200], namespace=namespace)
        log.debug("rpc_call", uid=self._telemetry.user(call.user_id))
        self.in_flight += 1
        try:
            endpoint = self._look_up(call.method, credential)
            data, replayed = await self._dispatch(endpoint, call, credential, trace_id, traceparent, deadline)
            answer = Answer(Reply.success(data, trace_id), replayed)
        except _Replayed as stored:
            answer = Answer(Reply(False, error=stored.error, trace_id=trace_id), replayed=True)
        except CallError as error:
            answer = Answer(Reply.failure(error, trace_id))
        finally:
            self.in_flight -= 1
        duration = time.monotonic() - started
        code = answer.reply.code
        known = call.method if call.method in self._table else "unknown"
        self._telemetry.metrics.rpc_duration.labels(namespace, known, code).observe(duration)
        fields: dict[str, Any] = {"uid": self._telemetry.user(call.user_id), "duration_ms": round(duration * 1000, 2)}
        if answer.replayed:
            fields["replayed"] = True
        if answer.reply.ok:
            log.info("rpc_ok", **fields)
        else:
            log.info("rpc_error", code=code, **fields)
        return answer

    def _look_up(self, method: str, credential: Credential) -> Endpoint:
        endpoint = self._table.get(method)
        namespace = endpoint.namespace if endpoint else method.partition(".")[0]
        if namespace in self._quarantined:
            raise Unavailable(f"The namespace {namespace} is out of service.", retry_after_ms=30_000)
        if endpoint is None:
            raise MethodNotFound
        if not credential.allows(method):
            raise PermissionDenied
        return endpoint

    async def _dispatch(
        self,
        endpoint: Endpoint,
        call: Call,
        credential: Credential,
        trace_id: str,
        traceparent: str | None,
        deadline: float,
    ) -> tuple[bytes, bool]:
        if endpoint.declared.timeout_s is not None:
            deadline = min(deadline, time.monotonic() + endpoint.declared.timeout_s)
        arguments = endpoint.binding.bind(call.args, call.kwargs)
        keyed = endpoint.declared.effect == "write" and call.idempotency_key is not None
        record = record_of(credential.name, call, endpoint.name) if keyed else None
        context = Context(
            self._publish, asyncio.get_running_loop(), method=endpoint.name, caller=credential.name,
            user_id=call.user_id, session_id=call.session_id, trace_id=trace_id, traceparent=traceparent,
            deadline=deadline, record=record,
        )  # fmt: skip
        if record is None:
            return await self._until(deadline, self._invoke(endpoint, arguments, context, deadline)), False
        claimed = await self._idempotency.claim(
            record, fingerprint_of(call), retry_safe=endpoint.declared.retry_safe, deadline=deadline
        )
        if isinstance(claimed, StoredAnswer):
            return _replay(claimed), True
        work = self._invoke_and_store(endpoint, arguments, context, deadline, claimed)
        return await self._until(deadline, work, runs_on=True), False

    async def _until(self, deadline: float, work: Any, *, runs_on: bool = False) -> bytes:
        """Await `work` until the deadline; then it is cancelled, or left to run on as an owned task."""
        task: asyncio.Task[bytes] = asyncio.create_task(work)
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

    async def _invoke_and_store(
        self, endpoint: Endpoint, arguments: dict[str, Any], context: Context, deadline: float, claim: Claim
    ) -> bytes:
        """A keyed write: its outcome is stored, whoever still waits for it."""
        try:
            slot = await endpoint.bulkhead.enter(on_thread=endpoint.on_thread, deadline=deadline)
        except (CallError, asyncio.CancelledError):
            await self._idempotency.forget(claim)
            raise
        try:
            async with asyncio.timeout(None if endpoint.on_thread else self._settings.max_timeout_ms / 1000):
                data = await self._run(endpoint, arguments, context, slot)
        except (TimeoutError, asyncio.CancelledError):
            unknown = OutcomeUnknown()
            await self._idempotency.finish(claim, _stored_error(unknown))
            raise unknown from None
        except CallError as error:
            passing = isinstance(error, Unavailable | Cancelled)
            if passing and endpoint.declared.retry_safe:
                await self._idempotency.forget(claim)
            else:
                await self._idempotency.finish(claim, _stored_error(error))
            raise
        await self._idempotency.finish(claim, StoredAnswer(True, data=Reply.success(data).data))
        return data

    async def _invoke(self, endpoint: Endpoint, arguments: dict[str, Any], context: Context, deadline: float) -> bytes:
        slot = await endpoint.bulkhead.enter(on_thread=endpoint.on_thread, deadline=deadline)
        return await self._run(endpoint, arguments, context, slot)

    async def _run(self, endpoint: Endpoint, arguments: dict[str, Any], context: Context, slot: Slot) -> bytes:
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
            raise self._internal(endpoint, context, error) from error
        finally:
            in_flight.dec()
            slot.leave()

    def _internal(self, endpoint: Endpoint, context: Context, error: BaseException) -> Internal:
        log_id = new_id()[:16]
        cause = error.__cause__ if isinstance(error, EscapedFromMethod) and error.__cause__ else error
        self._log.error(
            "rpc_error", log_id=log_id, trace_id=context.trace_id, method=endpoint.name, namespace=endpoint.namespace,
            code="INTERNAL", **where_raised(cause),
        )  # fmt: skip
        return Internal(details={"log_id": log_id})

    # -- the end

    async def drain(self, timeout_s: float) -> None:
        """Let calls in flight finish; then interrupt them: keyed writes are stored with an unknown outcome."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=timeout_s)
        for task in set(self._running):
            task.cancel()
        if self._running:
            await asyncio.wait(set(self._running), timeout=5)

    def busy_threads(self) -> int:
        return sum(bulkhead.busy_threads for bulkhead in self._bulkheads.values())

    def close(self) -> None:
        for bulkhead in self._bulkheads.values():
            bulkhead.close()


class _Replayed(Exception):
    """A stored failure, on its way to the caller as it was."""

    def __init__(self, error: ErrorBody) -> None:
        self.error = error


def _replay(stored: StoredAnswer) -> bytes:
    if not stored.kept:
        raise _Replayed(ErrorBody("FAILED_PRECONDITION", "The call is done; its answer was too large to be kept."))
    if isinstance(stored.error, ErrorBody):
        raise _Replayed(stored.error)
    return bytes(stored.data)  # type: ignore[arg-type]


def _stored_error(error: CallError) -> StoredAnswer:
    return StoredAnswer(False, error=Reply.failure(error).error)


def _endpoint(
    full: str, namespace: str, plugin: str, function: Callable[..., Any], declared: Method, bulkhead: Bulkhead
) -> Endpoint:
    name = full.partition(".")[2]
    if name.startswith("_") or "__" in name or not name.isidentifier():
        raise ConfigurationError(f"{plugin}: {full} cannot be a method: its name is private or not an identifier")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"{plugin}: {full} is a generator; a method returns one value")
    on_thread = not inspect.iscoroutinefunction(function)
    return Endpoint(full, namespace, plugin, function, declared, Binding(function), bulkhead, on_thread)


async def _execute(invocation: Invocation) -> Any:
    endpoint = invocation.endpoint
    bound = partial(_apply, endpoint, invocation.arguments)
    if endpoint.on_thread:
        return await endpoint.bulkhead.run_on_thread(invocation.slot, bound)
    return await bound()


def _apply(endpoint: Endpoint, arguments: dict[str, Any]) -> Any:
    return endpoint.binding.apply(endpoint.function, arguments)


async def _step(interceptor: Interceptor, following: Next, invocation: Invocation) -> Any:
    return await interceptor(invocation, following)
