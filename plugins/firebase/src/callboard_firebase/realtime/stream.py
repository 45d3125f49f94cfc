"""The stream of one watch: kept open, reopened with back-off, judged when it ends.

Ends that are nobody's fault (closed, broken, silent, 5xx, `cancel` without a reason …) reconnect, and the `put /` that
the database then sends is compared with what is known. While the database is away, one stream at a time asks for all.
A refusal of the token brings a new one; one that is refused too, twice, ends the watch, and so does whatever asking
again cannot change (PermissionDenied, InvalidArgs …).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from google.auth.exceptions import GoogleAuthError

from callboard.errors import (
    CallError,
    FailedPrecondition,
    InvalidArgs,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from callboard_firebase.errors import translate
from callboard_firebase.outage import Outage
from callboard_firebase.realtime.bodies import Bodies
from callboard_firebase.realtime.connection import Connections
from callboard_firebase.realtime.errors import Refusal, error_for
from callboard_firebase.realtime.options import RealtimeOptions
from callboard_firebase.realtime.sse import EventReader, EventTooLargeError, ServerEvent
from callboard_firebase.realtime.stats import Counters
from callboard_firebase.realtime.step import MalformedEventError, step
from callboard_firebase.realtime.tokens import Tokens
from callboard_firebase.realtime.watch import NodeWatch

_log = logging.getLogger("callboard_firebase.realtime")

# Asking the same again gets the same answer.
_PERMANENT = (FailedPrecondition, InvalidArgs, NotFound, PermissionDenied, Unauthenticated)
_FRESH_REFUSALS = 2


@dataclass(frozen=True, slots=True)
class Shared:
    """What the streams of a database have in common."""

    connections: Connections
    tokens: Tokens
    options: RealtimeOptions
    bodies: Bodies
    counters: Counters
    outage: Outage


@dataclass(frozen=True, slots=True)
class _End:
    """How a connection ended. `failure`: the watch ends with it; `away`: the server could not be reached."""

    reason: str
    failure: CallError | None = None
    refused: str | None = None
    away: bool = False
    saturate: bool = False


class NodeStream:
    """Runs as one task (`run`) for one watch."""

    def __init__(self, url: httpx.URL, watch: NodeWatch, shared: Shared) -> None:
        self._url = url
        self.watch = watch
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._backoff = shared.options.backoff()
        self._tree: Any = None
        self._current = False
        self._refused: str | None = None
        self._refusals = 0
        self._closed = False

    def close(self) -> None:
        """The task that runs it is about to be cancelled."""
        self._closed = True

    async def run(self) -> None:
        """Until the watch ends with an error, or the task is cancelled."""
        counters = self._shared.counters
        counters.streams += 1
        try:
            # A cancellation that a library keeps to itself must not make this run for ever.
            while not self._closed:
                end = self._judge(await self._converse())
                counters.last_end = end.reason
                if end.failure is not None:
                    _log.error("realtime stream refused (%s): its watch ends", end.reason)
                    self.watch.fail(end.failure)
                    return
                counters.reconnects += 1
                await self._wait(end)
        finally:
            self._shared.outage.resign(self)
            counters.streams -= 1

    async def _wait(self, end: _End) -> None:
        if end.saturate:
            self._backoff.saturate()
        cap_s = self._shared.options.unavailable_cap_s if end.away else None
        delay = self._backoff.delay(cap_s)
        not_before = self._loop.time() + delay
        _log.info("realtime stream ended (%s); reopening in %.2f s or later", end.reason, delay)
        self._shared.counters.backing_off += 1
        try:
            if end.away:
                await self._shared.outage.wait(self, cap_s)
            else:
                self._shared.outage.resign(self)
            await asyncio.sleep(not_before - self._loop.time())
        finally:
            self._shared.counters.backing_off -= 1

    # -- one connection

    async def _converse(self) -> _End:
        """From the token to the end."""
        token: str | None = None
        try:
            token = await self._shared.tokens.get(self._refused)
            async with self._shared.connections.open(self._url, token) as response:
                # It is there again, even if this node is long in coming: nobody is to wait for that.
                self._shared.outage.answered(self)
                return await self._read(response, token)
        except (httpx.HTTPError, OSError) as error:
            silent = isinstance(error, httpx.ReadTimeout)
            return _End("silent" if silent else type(error).__name__, away=not silent)
        except Refusal as refused:
            return _refusal(refused, token)
        except GoogleAuthError as error:
            failure = translate(error)
            if isinstance(failure, Unavailable):
                return _End("no token", away=True)
            return _End("no token", failure, refused=self._refused or "")
        except EventTooLargeError:
            return _End("too large", FailedPrecondition("An event is larger than this service reads: watch less."))
        except MalformedEventError as error:
            return _End(f"malformed: {error}")
        except Unavailable:
            return _End("unavailable", away=True)
        finally:
            if self._current:
                self._current = False
                self._shared.counters.connected -= 1

    async def _read(self, response: httpx.Response, token: str) -> _End:
        counters = self._shared.counters
        reader = EventReader(self._shared.options.max_body_bytes)
        async for chunk in response.aiter_raw():
            counters.heard_at = self._loop.time()
            for event in reader.feed(chunk):
                if event.name in ("put", "patch"):
                    await self._change(event)
                    # One chunk can hold hundreds: others have their turn in between.
                    await asyncio.sleep(0)
                elif event.name == "cancel":
                    return _cancelled(event)
                elif event.name == "auth_revoked":
                    return _End("auth_revoked", refused=token)
        return _End("closed")

    async def _change(self, event: ServerEvent) -> None:
        counters = self._shared.counters
        after = await self._shared.bodies.run(len(event.data), partial(step, self._tree, event.name, event.data))
        if not (self._current or after.whole):
            raise MalformedEventError("a change before the state that it changes")
        self._tree = after.tree
        counters.last_event_at = self._loop.time()
        self.watch.update(after.children, after.touched)
        if not self._current:
            self._current = True
            counters.connected += 1
            self._backoff.reset()
            self._refused, self._refusals = None, 0

    # -- judging

    def _judge(self, end: _End) -> _End:
        """Count refusals of the token: the first may be one that has grown old, those that follow were fresh."""
        if end.refused is None:
            return end
        self._refused = end.refused
        self._refusals += 1
        if self._refusals <= _FRESH_REFUSALS:
            return _End(end.reason, refused=end.refused)
        failure = end.failure or Unauthenticated("Firebase does not accept this service's credentials.")
        return _End(end.reason, failure)


def _refusal(refused: Refusal, token: str | None) -> _End:
    reason = f"HTTP {refused.status}"
    if refused.of_the_token:
        return _End(reason, error_for(refused), refused=token)
    failure = error_for(refused)
    return _End(
        reason,
        failure if isinstance(failure, _PERMANENT) else None,
        away=refused.status >= 500,
        saturate=isinstance(failure, ResourceExhausted),
    )


def _cancelled(event: ServerEvent) -> _End:
    """The database takes the right to read away, or says why else it ends the stream; without a reason, ask again."""
    if b"permission" in event.data.lower():
        return _End("cancel", PermissionDenied("Firebase does not allow this service to do that."))
    return _End("cancel")
