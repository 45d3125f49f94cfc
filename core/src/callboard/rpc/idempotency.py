"""A retry gets the first call's answer, and the work happens once (CONTRACT, Idempotency).

`claim` gives the right to run a call, or the answer of the one that ran; `begin` makes sure of it right before the
method runs; `finish` and `forget` end a claim. Between them a keeper renews the leases of long calls. What could not
be told to Redis is told again, by another, until it is answered.

One key, one answer: the record's. A replica that was paused beyond its lease may find, when it is done, that others
were told "unknown", or ran the call again; then its own caller is told the same as they.

The promise ends where Redis forgets: a finished record that is evicted or lost in a failover lets a retry run again.
What moves money relies on a durable record of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import Raw

from callboard.clients import urgent
from callboard.connections import Connections
from callboard.errors import CallError, DeadlineExceeded, KeyReused, OutcomeUnknown, Unavailable
from callboard.messages import Call, ErrorBody, Reply, encode_canonical, new_id
from callboard.rpc.records import Claim, Claimed, Ended, Records
from callboard.settings import Settings
from callboard.telemetry import Telemetry, where_raised

LEASE_TTL_S = 30.0
MAX_ANSWER_BYTES = 256 * 1024
_POLL_FIRST_S, _POLL_LAST_S = 0.02, 0.25
_LAST_LOOK_S = 0.1
"""A look that begins at the deadline may take this long: the answer may be there by then."""
_TELL_AGAIN_S = 0.5
_AT_ONCE = 20
_MAX_DELAYED = 10_000
"""A claim that fails while so many ends wait is not given up again. Those that Redis may have got, one to a connection,
are among the first to fail; what is refused later has hardly left this process."""
_LAST_ENDS_S = 5.0


class StoredAnswer(msgspec.Struct, omit_defaults=True):
    """An outcome as kept: the reply without its trace id. `kept` is false for one that was too large."""

    ok: bool
    data: Raw | msgspec.UnsetType = msgspec.UNSET
    error: ErrorBody | msgspec.UnsetType = msgspec.UNSET
    kept: bool = True


_answer_decoder = msgspec.json.Decoder(StoredAnswer)


def stored_error(error: CallError) -> StoredAnswer:
    return StoredAnswer(False, error=Reply.failure(error).error)


@dataclass(slots=True)
class _Ending:
    """How a claim is to end. `answer` of None: the call never began, and the record is forgotten."""

    claim: Claim
    answer: bytes | None = None
    told: bool = False
    """Its caller has the answer already: Redis was away."""
    times: int = 1
    """How often Redis must have answered: a claim whose reply never came may still be on its way, and arrive later."""


def record_of(caller: str, call: Call, method: str) -> str:
    """The record's name: credential's name, user, method and key, as one digest."""
    parts = (caller, call.user_id or "", method, call.idempotency_key or "")
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def fingerprint_of(call: Call) -> str:
    """SHA-256 of args and kwargs in canonical JSON (keys sorted, no white space)."""
    values = (msgspec.json.decode(call.args), msgspec.json.decode(call.kwargs))
    return hashlib.sha256(encode_canonical(values)).hexdigest()


class Idempotency:
    """The keyed calls of this replica. An async context manager: it keeps leases alive and sweeps dead ones.

    What is still held when it closes and never began is given up: nobody will begin it.
    """

    def __init__(
        self, settings: Settings, connections: Connections, telemetry: Telemetry, *, lease_ttl_s: float = LEASE_TTL_S
    ) -> None:
        self._records = Records(
            connections, lease_ttl_s=lease_ttl_s, record_ttl_s=settings.idempotency_ttl_s,
            unknown_answer=msgspec.json.encode(stored_error(OutcomeUnknown())),
        )  # fmt: skip
        self._log = telemetry.log
        self._outcomes = telemetry.metrics.idempotency
        self._evicted_keys = telemetry.metrics.redis_evicted_keys
        self._lease_ttl_s = lease_ttl_s
        self._held: dict[str, Claim] = {}
        self._delayed: dict[str, _Ending] = {}
        self._untold = asyncio.Event()
        self._sweep_at = 0.0
        self._stopping = False
        self._keepers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Idempotency:
        # Leases have a keeper of their own: however much there is to tell or to sweep, they do not lapse meanwhile.
        for name, keep in (("leases", self._keep_leases()), ("records", self._keep_records())):
            self._keepers.add(asyncio.create_task(keep, name=f"idempotency: {name}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        if self._keepers:
            await asyncio.wait(self._keepers)
        for claim in self._held.values():
            if not claim.began:
                self._delayed.setdefault(claim.owner, _Ending(claim))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_ENDS_S):
                await self._end_delayed()
        if lost := sum(ending.answer is not None for ending in self._delayed.values()):
            self._log.error("idempotency_lost", answers=lost)

    def stop_claiming(self) -> None:
        """The service lets go: whoever waits for a claim, and whoever asks for one, is refused with Unavailable."""
        self._stopping = True

    async def claim(self, record: str, fingerprint: str, *, retry_safe: bool, deadline: float) -> Claim | StoredAnswer:
        """Take the call's lease, or wait for the running duplicate and return its answer.

        Raises KeyReused, OutcomeUnknown (its owner died in the middle), DeadlineExceeded (the duplicate still runs, or
        Redis has not answered, at `deadline`, a monotonic time), Unavailable (no Redis: a keyed write never runs
        unprotected).
        """
        claim = Claim(record, new_id(), fingerprint)
        pause = _POLL_FIRST_S
        while not self._stopping:
            try:
                async with asyncio.timeout(max(_LAST_LOOK_S, deadline - time.monotonic())):
                    outcome, answer = await self._ask(claim, retry_safe=retry_safe)
            except TimeoutError:
                raise DeadlineExceeded from None
            if outcome == "claimed":
                if self._stopping:
                    await self.forget(claim)
                    break
                self._held[claim.owner] = claim
                self._outcomes.labels("first").inc()
                return claim
            if outcome == "done" and answer is not None:
                self._outcomes.labels("replayed").inc()
                return _answer_decoder.decode(answer)
            if outcome == "reused":
                self._outcomes.labels("key_reused").inc()
                raise KeyReused
            if outcome == "unknown":
                self._outcomes.labels("unknown").inc()
                raise OutcomeUnknown
            left = deadline - time.monotonic()
            if left <= 0:
                self._outcomes.labels("still_running").inc()
                raise DeadlineExceeded("The first call with this key still runs; retry with the same key.")
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 1.5, _POLL_LAST_S)
        raise Unavailable("This replica is stopping.")

    async def _ask(self, claim: Claim, *, retry_safe: bool) -> tuple[Claimed, bytes | None]:
        claim.renewed_at = time.monotonic()
        try:
            return await self._records.claim(claim, retry_safe=retry_safe)
        except BaseException:
            # Redis may have the request all the same, and answer nobody: what it then claims must not block the key.
            if len(self._delayed) < _MAX_DELAYED:
                self._delayed[claim.owner] = _Ending(claim, times=2)
                self._untold.set()
            raise

    async def begin(self, claim: Claim) -> None:
        """The method runs next. Unavailable, and it must not, when the call waited so long that its lease was lost."""
        if not self._is_firm(claim):
            await self._renew([claim])
            if not self._is_firm(claim):
                raise Unavailable("The call waited too long for its turn.")
        claim.began = True

    def _is_firm(self, claim: Claim) -> bool:
        """As of leases: a process that was paused wakes up with one that is not, before another can have taken it."""
        return time.monotonic() - claim.renewed_at < self._lease_ttl_s * 2 / 3

    async def finish(self, claim: Claim, answer: StoredAnswer) -> StoredAnswer:
        """Store the outcome for retries; one over 256 KiB is kept as "done, answer not kept". Returns what stands.

        That is `answer`, unless the lease was lost and others were told something else, or run the call again: then it
        is theirs, which is waited for. OutcomeUnknown when the service stops meanwhile.

        Without Redis it is stored as soon as that is back: what the method did is done, and its caller is told so.
        """
        text = msgspec.json.encode(answer)
        if len(text) > MAX_ANSWER_BYTES:
            text = msgspec.json.encode(StoredAnswer(answer.ok, kept=False))
        pause = _POLL_FIRST_S
        while True:
            ended = await self._end(_Ending(claim, text))
            if ended is None or ended.outcome in ("stored", "restored", "reused"):
                return answer  # reused: Redis had lost the record, which is another call's by now
            if ended.answer is not None:
                return _answer_decoder.decode(ended.answer)
            if self._stopping:
                raise OutcomeUnknown
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _POLL_LAST_S)

    async def forget(self, claim: Claim) -> None:
        """The method never began: a retry starts afresh."""
        await self._end(_Ending(claim))

    async def _end(self, ending: _Ending) -> Ended | None:
        """Tell Redis; None when it could not be told, and a keeper will."""
        claim = ending.claim
        self._delayed[claim.owner] = ending
        try:
            if ending.answer is None:
                ended = await self._records.forget(claim)
            else:
                ended = await self._records.finish(claim, ending.answer, told=ending.told)
        except Unavailable:
            ending.told = True
            self._untold.set()
            return None
        ending.times -= 1
        if ending.times <= 0:
            self._delayed.pop(claim.owner, None)
        if self._held.pop(claim.owner, None):
            as_meant = ended.outcome in ("stored", "restored", "released")
            self._outcomes.labels(ended.outcome if as_meant else "lease_lost").inc()
        return ended

    async def _keep_leases(self) -> None:
        """Renew those of long calls."""
        urgent.set(True)
        while True:
            await asyncio.sleep(self._lease_ttl_s / 6)
            await self._do(self._renew_due)

    async def _keep_records(self) -> None:
        """Tell Redis what it missed, settle what owners that died have left."""
        while True:
            await self._pause()
            await self._do(self._end_delayed)
            await self._do(self._sweep_due)

    async def _do(self, duty: Callable[[], Awaitable[None]]) -> None:
        try:
            await duty()
        except Unavailable:
            pass  # told by the bus already; the next round tries again
        except Exception as error:  # noqa: BLE001 - without its keeper every lease would lapse
            self._has_failed(error)

    def _has_failed(self, error: BaseException) -> None:
        self._log.error("task_failed", task="idempotency", **where_raised(error))

    async def _pause(self) -> None:
        """A sixth of a lease's time; half a second when something waits to be told, before a retry finds it expired."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._lease_ttl_s / 6):
                await self._untold.wait()
                await asyncio.sleep(_TELL_AGAIN_S)
        self._untold.clear()

    async def _end_delayed(self) -> None:
        """Answers first: of them there are few, callers may ask for them, and they alone need memory."""
        delayed = list(self._delayed.values())
        await self._tell([ending for ending in delayed if ending.answer is not None])
        await self._tell([ending for ending in delayed if ending.answer is None])

    async def _tell(self, endings: Sequence[_Ending]) -> None:
        for start in range(0, len(endings), _AT_ONCE):
            some = endings[start : start + _AT_ONCE]
            # Beside each other: what cannot be told yet (its node is away, there is no memory) holds up no other.
            ended = await asyncio.gather(*map(self._end, some), return_exceptions=True)
            for ending, one in zip(some, ended, strict=True):
                if isinstance(one, BaseException):  # refused for good: the key is no record, say
                    self._delayed.pop(ending.claim.owner, None)
                    self._held.pop(ending.claim.owner, None)
                    self._has_failed(one)
            if all(one is None for one in ended):
                return  # Redis is still away

    async def _sweep_due(self) -> None:
        if time.monotonic() < self._sweep_at:
            return
        self._sweep_at = time.monotonic() + self._lease_ttl_s
        await self._records.sweep()
        evicted = await self._records.evicted_keys()
        self._evicted_keys.set(math.nan if evicted is None else evicted)

    async def _renew_due(self) -> None:
        now = time.monotonic()
        due = [claim for claim in self._held.values() if now - claim.renewed_at > self._lease_ttl_s / 3]
        if due:
            await self._renew(due)

    async def _renew(self, claims: list[Claim]) -> None:
        now = time.monotonic()
        for claim, renewed in zip(claims, await self._records.renew(claims), strict=True):
            if isinstance(renewed, Unavailable):
                continue  # not known; asked again
            if renewed != "lost":
                claim.renewed_at = now
            elif claim.owner in self._held and claim.owner not in self._delayed:  # else its own end tells
                del self._held[claim.owner]
                self._outcomes.labels("lease_lost").inc()
            if renewed == "restored":
                self._outcomes.labels("restored").inc()
