"""A retry gets the first call's answer, and the work happens once (CONTRACT, Idempotency).

A keyed call has one record, a Redis hash, which is a lease while the call runs and an answer afterwards:

    owner, expires, fence   the lease; no Redis TTL, so that eviction cannot free it
    fingerprint             SHA-256 of the arguments: the same key with others is refused
    answer                  the stored reply, once there is one; from then on the record has a Redis TTL

The promise ends where Redis forgets: a finished record that is evicted or lost in a failover lets a retry run again.
What moves money relies on a durable record of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Raw

from callboard.connections import Connections, redis_errors
from callboard.errors import DeadlineExceeded, KeyReused, OutcomeUnknown, Unavailable
from callboard.fleet import leases
from callboard.messages import Call, ErrorBody, encode_canonical, new_id
from callboard.settings import Settings
from callboard.telemetry import Telemetry

LEASE_TTL_S = 30.0
MAX_ANSWER_BYTES = 256 * 1024
_PREFIX = "callboard:idem:"
_RUNNING = "callboard:idem-running"
_POLL_FIRST_S, _POLL_LAST_S = 0.02, 0.25

# KEYS[1] record; ARGV owner, lease TTL ms, fingerprint, retry_safe 0|1, record TTL ms
_CLAIM = (
    leases.LUA
    + """
local r = redis.call('HMGET', KEYS[1], 'fingerprint', 'answer', 'owner', 'expires')
if r[1] and r[1] ~= ARGV[3] then return {'reused'} end
if r[2] then return {'done', r[2]} end
if r[3] and r[3] ~= ARGV[1] then
  if tonumber(r[4]) > now_ms() then return {'running'} end
  if ARGV[4] == '0' then
    if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[5]) end
    return {'unknown'}
  end
end
lease_take(KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], 'fingerprint', ARGV[3])
redis.call('PERSIST', KEYS[1])
return {'claimed'}
"""
)

# KEYS[1] record; ARGV owner, answer, record TTL ms. 1: stored (or stored before by this owner); 0: not the owner's
_FINISH = """
local r = redis.call('HMGET', KEYS[1], 'owner', 'finisher')
if r[2] == ARGV[1] then return 1 end
if r[1] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'answer', ARGV[2], 'finisher', ARGV[1])
redis.call('HDEL', KEYS[1], 'owner', 'expires')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

# KEYS[1] record; ARGV owner. The call never began: forget it.
_FORGET = "if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

# KEYS[1] record; ARGV owner, lease TTL ms
_RENEW = (
    leases.LUA
    + """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
lease_take(KEYS[1], ARGV[1], ARGV[2])
return 1
"""
)

# KEYS[1] record; ARGV record TTL ms. Gives the record of a dead owner a Redis TTL; 1: nothing more to watch.
_SETTLE = (
    leases.LUA
    + """
local r = redis.call('HMGET', KEYS[1], 'answer', 'owner', 'expires')
if r[1] or not r[2] then return 1 end
if tonumber(r[3]) > now_ms() then return 0 end
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return 1
"""
)


class StoredAnswer(msgspec.Struct, omit_defaults=True):
    """An outcome as kept: the reply without its trace id."""

    ok: bool
    data: Raw | msgspec.UnsetType = msgspec.UNSET
    error: ErrorBody | msgspec.UnsetType = msgspec.UNSET
    kept: bool = True


_answer_decoder = msgspec.json.Decoder(StoredAnswer)


@dataclass(slots=True, eq=False)
class Claim:
    """This replica runs the call; `owner` proves it."""

    record: str
    owner: str
    renewed_at: float


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a claim is to end, kept while Redis is away."""

    claim: Claim
    outcome: str
    script: str
    args: tuple[Any, ...] = ()


def record_of(caller: str, call: Call, method: str) -> str:
    """The record's name: credential's name, user, method and key, as one digest."""
    parts = (caller, call.user_id or "", method, call.idempotency_key or "")
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def fingerprint_of(call: Call) -> str:
    """SHA-256 of args and kwargs in canonical JSON (keys sorted, no white space)."""
    values = (msgspec.json.decode(call.args), msgspec.json.decode(call.kwargs))
    return hashlib.sha256(encode_canonical(values)).hexdigest()


class Idempotency:
    """The records of this replica's keyed calls. An async context manager: it renews leases and sweeps dead ones."""

    def __init__(
        self, settings: Settings, connections: Connections, telemetry: Telemetry, *, lease_ttl_s: float = LEASE_TTL_S
    ) -> None:
        self._connections = connections
        self._log = telemetry.log
        self._outcomes = telemetry.metrics.idempotency
        self._lease_ttl_s = lease_ttl_s
        self._lease_ms = int(lease_ttl_s * 1000)
        self._record_ms = settings.idempotency_ttl_s * 1000
        self._held: dict[str, Claim] = {}
        self._delayed: dict[str, _Ending] = {}
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Idempotency:
        self._keeper = asyncio.create_task(self._keep(), name="idempotency")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeper:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        await self._end_delayed()
        if self._delayed:
            self._log.error("idempotency_lost", answers=len(self._delayed))

    async def claim(self, record: str, fingerprint: str, *, retry_safe: bool, deadline: float) -> Claim | StoredAnswer:
        """Take the call's lease, or wait for the running duplicate and return its answer.

        Raises KeyReused, OutcomeUnknown (its owner died in the middle), DeadlineExceeded (the duplicate still runs at
        `deadline`, a monotonic time), Unavailable (no Redis: a keyed write never runs unprotected).
        """
        owner = new_id()
        pause = _POLL_FIRST_S
        while True:
            asked_at = time.monotonic()
            outcome, *rest = await self._ask_claim(record, fingerprint, owner, retry_safe)
            if outcome == "claimed":
                claim = Claim(record, owner, asked_at)
                self._held[record] = claim
                self._outcomes.labels("first").inc()
                return claim
            if outcome == "done":
                self._outcomes.labels("replayed").inc()
                return _answer_decoder.decode(rest[0])
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

    async def _ask_claim(
        self, record: str, fingerprint: str, owner: str, retry_safe: bool
    ) -> tuple[str, *tuple[bytes, ...]]:
        # The index comes first: a record that is claimed but not in it would never be swept.
        with redis_errors(self._connections):
            pipe = self._connections.commands.pipeline(transaction=False)
            pipe.zadd(_RUNNING, {record: time.time() + self._lease_ttl_s})
            pipe.eval(_CLAIM, 1, _PREFIX + record, owner, self._lease_ms, fingerprint, int(retry_safe), self._record_ms)
            _, answer = await pipe.execute()
        return bytes(answer[0]).decode(), *(bytes(part) for part in answer[1:])

    async def finish(self, claim: Claim, answer: StoredAnswer) -> None:
        """Store the outcome for retries; one over 256 KiB is kept as "done, answer not kept".

        Without Redis it is stored as soon as that is back: what the method did is done, and its caller is told so.
        """
        text = msgspec.json.encode(answer)
        if len(text) > MAX_ANSWER_BYTES:
            text = msgspec.json.encode(StoredAnswer(answer.ok, kept=False))
        await self._end(_Ending(claim, "stored", _FINISH, (text, self._record_ms)))

    async def forget(self, claim: Claim) -> None:
        """The method never began: a retry starts afresh."""
        await self._end(_Ending(claim, "released", _FORGET))

    async def _end(self, ending: _Ending) -> None:
        claim = ending.claim
        try:
            with redis_errors(self._connections):
                pipe = self._connections.commands.pipeline(transaction=False)
                pipe.eval(ending.script, 1, _PREFIX + claim.record, claim.owner, *ending.args)
                pipe.zrem(_RUNNING, claim.record)
                done, _ = await pipe.execute()
        except Unavailable:
            self._delayed[claim.record] = ending
            return
        self._held.pop(claim.record, None)
        self._delayed.pop(claim.record, None)
        self._outcomes.labels(ending.outcome if done else "lease_lost").inc()

    async def _keep(self) -> None:
        """Renew the leases of long calls; settle the records of owners that died."""
        sweep_at = 0.0
        while True:
            await asyncio.sleep(self._lease_ttl_s / 6)
            try:
                await self._end_delayed()
                await self._renew_due()
                if time.monotonic() >= sweep_at:
                    sweep_at = time.monotonic() + self._lease_ttl_s
                    await self.sweep()
            except Exception as error:  # noqa: BLE001 - Redis may be away; the next round tries again
                self._log.warning("task_died", task="idempotency", error=type(error).__name__, restarted=True)

    async def _end_delayed(self) -> None:
        for ending in list(self._delayed.values()):
            await self._end(ending)
            if ending.claim.record in self._delayed:
                return  # Redis is still away

    async def _renew_due(self) -> None:
        now = time.monotonic()
        due = [claim for claim in self._held.values() if now - claim.renewed_at > self._lease_ttl_s / 3]
        if not due:
            return
        with redis_errors(self._connections):
            pipe = self._connections.commands.pipeline(transaction=False)
            for claim in due:
                pipe.eval(_RENEW, 1, _PREFIX + claim.record, claim.owner, self._lease_ms)
                pipe.zadd(_RUNNING, {claim.record: time.time() + self._lease_ttl_s})
            held = (await pipe.execute())[::2]
        for claim, renewed in zip(due, held, strict=True):
            if renewed:
                claim.renewed_at = now
            else:
                self._held.pop(claim.record, None)

    async def sweep(self, batch: int = 200) -> int:
        """Give records whose owner died a Redis TTL; returns how many entries left the index."""
        commands = self._connections.commands
        with redis_errors(self._connections):
            overdue: Any = await commands.zrangebyscore(_RUNNING, "-inf", time.time(), start=0, num=batch)
            if not overdue:
                return 0
            pipe = commands.pipeline(transaction=False)
            for record in overdue:
                pipe.eval(_SETTLE, 1, _PREFIX + record.decode(), self._record_ms)
            settled = [r for r, done in zip(overdue, await pipe.execute(), strict=True) if done]
            if settled:
                await commands.zrem(_RUNNING, *settled)
        return len(settled)
