"""One listener of one user, or of one of their threads, kept alive while this replica holds its lease.

Only what is published under a firm lease leaves the process, stamped with the lease's fence and the listener's name.
What cannot leave (the lease is not firm, Redis is away) is never lost silently: it makes a sync due, which is read and
published when the lease has been renewed, that is, when Redis has answered again. Deltas that come before that sync are
covered by it. A sync is due, too, when somebody has published one that was read beside the listener (`Listeners.sync`).
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from callboard.errors import CallError, Internal, Unavailable
from callboard.events.bus import Bus
from callboard.fleet.declared import Declared, code_of, log_failure, log_fields, read_snapshot
from callboard.fleet.leases import Lease
from callboard.fleet.tasks import heed_cancellation
from callboard.messages import Event, utc_now
from callboard.service import Thread, User
from callboard.telemetry import Telemetry

State: TypeAlias = Literal["starting", "listening", "muted", "backing_off", "stopping"]
HEALED_AFTER_S = 60.0
"""Listening this long without an error, a listener's next back-off is a short one again."""
_CLOSE_TIMEOUT_S = 5.0


class StreamEnded(Exception):
    """The stream of changes ended by itself."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a supervisor waits, in seconds. Back-off is full jitter between 0 and a growing bound."""

    snapshot_s: float = 30.0
    attach_s: float = 60.0
    backoff_min_s: float = 0.5
    backoff_max_s: float = 30.0
    starting: defaultdict[str, asyncio.Semaphore] = field(
        default_factory=lambda: defaultdict(lambda: asyncio.Semaphore(50))
    )
    """Snapshots being read at a time, by listener: a restart of many must not trample the source, nor one that hangs
    cost the others their turn."""

    def backoff_s(self, failures: int, *, permanent: bool) -> float:
        if permanent:
            return self.backoff_max_s * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing
        bound = min(self.backoff_max_s, self.backoff_min_s * 2.0 ** min(failures - 1, 16))
        return random.uniform(0, bound)  # noqa: S311


class Supervisor:
    """Runs one listener. `await run()` ends when the lease is lost or cannot be had, or when it is cancelled.

    It leaves the release of the lease to whoever runs it.
    """

    def __init__(
        self,
        declared: Declared,
        user: User,
        lease: Lease,
        thread: Thread | None = None,
        *,
        acquire: Callable[[], Awaitable[Lease | None]],
        renew_soon: Callable[[Supervisor], None],
        bus: Bus,
        telemetry: Telemetry,
        patience: Patience,
    ) -> None:
        self.declared = declared
        self.user = user
        self.thread = thread
        self.lease = lease
        self.since = utc_now()
        self.restarts = 0
        self.last_event_at: str | None = None
        self.last_event = -math.inf
        self.renewed_at = time.monotonic()
        self.last_error: str | None = None
        self.refused = 0
        """Events that cannot be sent: over 256 KiB, or no JSON. Consumers lack them until a sync that can be."""
        self.told_to_end = False
        """Once: what is told again has no time to close its stream."""
        self._acquire = acquire
        self._renew_soon = renew_soon
        self._bus = bus
        self._telemetry = telemetry
        self._patience = patience
        self._phase: Literal["starting", "listening", "backing_off", "stopping"] = "starting"
        self._failures = 0
        self._attached_at = math.inf
        self._sync_due = False
        self._unsent = False
        self._wake: asyncio.Future[None] | None = None
        self._scope: asyncio.Timeout | None = None
        self._lost = False

    # -- what the fleet asks and tells --------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        if self._phase == "listening" and (self._sync_due or not self.lease.is_firm()):
            return "muted"
        return self._phase

    @property
    def healthy(self) -> bool:
        """Whether its lease deserves to be renewed: a listener that fails lets another replica have a try."""
        return self._phase in ("starting", "listening")

    def renewed(self, lease: Lease, held: bool, asked_at: float) -> None:
        """Redis has answered to a renewal: publish what is due, because it is there; or stop, for the lease is lost."""
        self.renewed_at = asked_at
        if held:
            self._sync_due |= lease.nudged
            lease.nudged = False
            self._wake_up()
        elif lease is self.lease:
            self._lost = True
            self._interrupt()

    def restart(self, user: User | None = None, thread: Thread | None = None) -> None:
        """Begin again with a fresh instance, without a back-off."""
        self.user = user or self.user
        self.thread = thread or self.thread
        self._failures = 0
        self._interrupt()

    def sync_soon(self) -> None:
        """Publish a sync, in order with the deltas, which wait for it."""
        self._sync_due = True
        self._wake_up()

    def _wake_up(self) -> None:
        if self._sync_due and self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _interrupt(self) -> None:
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    # -- the task ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        try:
            if self.lease.taken_over:
                self._log("listener_taken_over", fence=self.lease.fence)
            while not self._lost and await self._hold():
                try:
                    async with asyncio.timeout(None) as self._scope:
                        await self._attempt()
                except TimeoutError:  # of this scope alone: lose() or restart()
                    continue
                finally:
                    self._scope = None
            if self._lost:
                self._log("listener_lost", fence=self.lease.fence)
        finally:
            self._phase = "stopping"

    async def _hold(self) -> bool:
        if self.lease.is_firm():
            return True
        try:
            lease = await self._acquire()
        except Unavailable:
            return False  # the fleet tries again when it finds the user online, which takes Redis too
        except Exception as error:  # noqa: BLE001 - a key that is no lease, say: the fleet tries again
            self.report(error, level="error")
            return False
        if lease is not None:
            self.lease = lease
        heed_cancellation()
        return lease is not None

    async def _attempt(self) -> None:
        """Listen until something fails, then wait out the back-off."""
        self._attached_at = math.inf
        try:
            await self._listen()
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            await asyncio.sleep(self._failed(StreamEnded()))  # the listener cancelled itself
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this listener's alone
            await asyncio.sleep(self._failed(error))

    def _failed(self, error: Exception) -> float:
        if time.monotonic() - self._attached_at > HEALED_AFTER_S:
            self._failures = 0
        self._phase = "backing_off"
        self._failures += 1
        self.restarts += 1
        self._telemetry.metrics.listener_restarts.labels(self.declared.name).inc()
        delay_s = self._patience.backoff_s(self._failures, permanent=is_permanent(error))
        self.report(error, retry_in_s=round(delay_s, 3))
        return delay_s

    def report(self, error: Exception, **fields: Any) -> None:
        self.last_error = code_of(error)
        log_failure(self._telemetry, self.declared, self.user.uid, error, thread=self.thread, **fields)

    def _log(self, event: str, **fields: Any) -> None:
        about = log_fields(self._telemetry, self.declared, self.user.uid, self.thread)
        self._telemetry.log.info(event, **about, **fields)

    # -- one attempt ---------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        self._phase = "starting"
        self._log(self.declared.log_name("start"), fence=self.lease.fence)
        listener = self.declared.make(self.thread)
        self._wake = asyncio.get_running_loop().create_future()
        stream: AsyncIterator[Event] = aiter(listener.changes(self.user))
        following = _following(stream)
        try:
            if self.declared.spec.begins_with_sync:
                self._sync_due = False
                async with asyncio.timeout(self._patience.attach_s):
                    await asyncio.wait({following})
            else:
                await self._sync(listener)
                self._attached()
            while True:
                either: set[asyncio.Future[Any]] = {following, self._wake}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if self._wake.done():
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._sync(listener)
                if following.done():
                    event = following.result()
                    following = _following(stream)
                    await self._emit(event)
                    if self._phase == "starting":
                        self._attached()
        finally:
            self._wake = None
            failure = sys.exception()
            problem = await _close(stream, following)
            if problem is not None and problem is not failure:
                self.report(problem)

    def _attached(self) -> None:
        self._phase = "listening"
        self._attached_at = time.monotonic()
        self._log(self.declared.log_name("attached"))

    async def _sync(self, listener: Any) -> None:
        # Cleared before the read: what is dropped from here on is not covered by it and makes another sync due.
        self._sync_due = False
        async with self._patience.starting[self.declared.name]:
            events = await read_snapshot(listener, self.user, self._patience.snapshot_s)
        for event in events:
            await self._emit(event)
        heed_cancellation()

    async def _emit(self, event: Event) -> None:
        if self._sync_due or not self.lease.is_firm():
            self._sync_due = True
            return
        event.fence = self.lease.fence
        try:
            await self._bus.publish(event, specific=self.declared.address(event, self.thread))
        except Unavailable as error:
            self._sync_due = True
            self.report(error)
            if not self._unsent:  # once, until something has been sent: what fails again waits for the next turn
                self._unsent = True
                self._renew_soon(self)
        except Exception as error:  # noqa: BLE001 - this event cannot be sent; the next one may
            self.refused += 1
            self.report(error, level="error", refused=self.refused)
        else:
            self._unsent = False
            self.last_event, self.last_event_at = time.monotonic(), utc_now()
        heed_cancellation()


def is_permanent(error: Exception) -> bool:
    """Whether the same attempt is likely to fail again: PERMISSION_DENIED and its like."""
    return isinstance(error, CallError) and not error.retryable and not isinstance(error, Internal)


def _following(stream: AsyncIterator[Event]) -> asyncio.Task[Event]:
    async def following() -> Event:
        try:
            event = await anext(stream)
        except StopAsyncIteration:
            raise StreamEnded from None
        if not event.timestamp:
            event.timestamp = utc_now()
        return event

    return asyncio.create_task(following(), name="a listener's next change")


async def _close(stream: AsyncIterator[Event], following: asyncio.Task[Event]) -> Exception | None:
    """Let the stream clean up, within bounds, and return what went wrong with that."""
    following.cancel()
    await asyncio.wait({following}, timeout=_CLOSE_TIMEOUT_S)
    if not following.done():
        return TimeoutError()
    if not following.cancelled() and isinstance(error := following.exception(), Exception):
        return error
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await getattr(stream, "aclose", _nothing)()
    except Exception as error:  # noqa: BLE001 - the caller reports it
        return error
    return None


async def _nothing() -> None:
    """Stands for the `aclose` of an iterator that has none."""
