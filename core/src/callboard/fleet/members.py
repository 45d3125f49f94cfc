"""The replicas that live, as each of them says of itself every few seconds, and which of them should run what.

`callboard:replicas` is a sorted set, one key and so one slot: what a replica says of itself, as JSON, scored by when it
counts as gone (milliseconds, by the server's clock). One that drains takes its entry out; one that died, or is paused,
is gone after three beats that it missed. It is a preference, no more: who runs a listener is decided by its lease.

Redis away: the last known replicas count, this one among them. They do for a moment more when it is back and has lost
this one's entry, hence the others', too: whoever beats first would take itself for the only one.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from callboard.clients import urgent
from callboard.connections import Connections, redis_errors
from callboard.errors import Unavailable
from callboard.fleet import scripts
from callboard.fleet.rendezvous import preferred
from callboard.fleet.tasks import heed_cancellation
from callboard.messages import new_id
from callboard.telemetry import Telemetry, where_raised

REPLICAS = "callboard:replicas"
_BEATS_TO_LIVE = 3.3
"""An entry's time to live, in beats: three of them may be missed, the last one by a little."""

# ARGV: an entry, its time to live (ms). Returns: whether it was there (0/1); those of all that live, with their scores.
_BEAT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local known = redis.call('ZSCORE', KEYS[1], ARGV[1]) and 1 or 0
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
return {known, redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')}
"""


class Member(Struct, frozen=True):
    """A live replica: `id` is this process's own, `name` as in logs, `listeners` those that it declares."""

    id: str
    name: str
    listeners: tuple[str, ...] = ()


class Members:
    """`changed` is set whenever a replica came or went; whoever heeds it clears it. `beat_s`: seconds between beats."""

    def __init__(
        self,
        name: str,
        connections: Connections,
        telemetry: Telemetry,
        *,
        beat_s: float = 3.0,
        id: str | None = None,  # noqa: A002 - as in Member
    ) -> None:
        self.me = Member(id or new_id(), name)
        self.changed = asyncio.Event()
        self._connections = connections
        self._telemetry = telemetry
        self._beat_s = beat_s
        self._alive: dict[str, Member] = {}
        self._candidates: dict[str, list[str]] = {}
        self._scores: dict[str, float] = {}
        self._left: dict[str, float] = {}
        self._namesakes: set[str] = set()
        self._unsure_until = -math.inf
        self._leaving = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        telemetry.metrics.replicas.set_function(lambda: len(self._alive))

    # -- coming and going ---------------------------------------------------------------------------------------------

    def join(self, listeners: Iterable[str]) -> None:
        """Begin to say that this replica lives, and declares these listeners."""
        self.me = Member(self.me.id, self.me.name, tuple(listeners))
        self._are({self.me.id: self.me})
        self._task = asyncio.get_running_loop().create_task(self._beat_for_ever(), name="members: beat")

    async def leave(self) -> None:
        """Be gone: for this replica now, for the others when they look next. Unavailable: when its beats are missed."""
        if self._task is None:
            return
        task, self._task = self._task, None
        self._leaving = True
        self._wake.set()
        await asyncio.wait({task})  # a beat under way comes to its end: later than what follows it would undo that
        self._are({member.id: member for member in self._alive.values() if member is not self.me})
        with redis_errors(self._connections):
            await self._connections.commands.zrem(REPLICAS, self._entry())

    def has_left(self, member: str) -> None:
        """This one says so itself: the next beat need not be waited for."""
        if member in self._alive and member != self.me.id:
            self._left[member] = self._scores.get(member, -math.inf)
            self._are({each.id: each for each in self._alive.values() if each.id != member})

    def hurry(self) -> None:
        """Redis is back, and may have forgotten who lives: the next beat is due now."""
        self._wake.set()

    async def beat(self) -> None:
        """Say that this replica lives, and see who else does. Unavailable."""
        ttl_ms = int(self._beat_s * 1_000 * _BEATS_TO_LIVE)
        with redis_errors(self._connections):
            known, answer = await scripts.run(self._connections, _BEAT, (REPLICAS,), self._entry(), ttl_ms)
        if not known:
            self._unsure_until = time.monotonic() + self._beat_s
        self._see({entry: float(score) for entry, score in zip(answer[::2], answer[1::2], strict=True)})

    async def _beat_for_ever(self) -> None:
        urgent.set(True)
        while not self._leaving:
            self._wake.clear()
            try:
                await self.beat()
            except Unavailable:
                pass  # connections reports the outage
            except Exception as error:  # noqa: BLE001 - the next beat may do better
                self._telemetry.log.error("task_failed", task="members: beat", **where_raised(error))
            heed_cancellation()
            try:
                async with asyncio.timeout(self._beat_s * random.uniform(0.8, 1)):  # noqa: S311 - spreads replicas
                    await self._wake.wait()
            except TimeoutError:
                continue  # the next beat is due

    def _entry(self) -> bytes:
        return msgspec.json.encode(self.me)

    def _see(self, entries: dict[bytes, float]) -> None:
        alive, scores = {self.me.id: self.me}, {}
        for entry, score in entries.items():
            try:
                member = msgspec.json.decode(entry, type=Member)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # of a release that says it otherwise: nothing is asked of it
            scores[member.id] = score
            if score > self._left.get(member.id, -math.inf):  # who was said to have left, and beats, has not
                alive.setdefault(member.id, member)
        if time.monotonic() < self._unsure_until:
            alive = self._alive | alive
        self._left = {member: score for member, score in self._left.items() if member in scores}
        self._see_namesakes(alive, scores)
        self._scores = scores
        self._are(alive)

    def _see_namesakes(self, alive: dict[str, Member], scores: dict[str, float]) -> None:
        """Another process of this name that beats is no predecessor that was killed: the name was given twice."""
        namesakes = {each.id for each in alive.values() if each.name == self.me.name and each.id != self.me.id}
        beating = {each for each in namesakes if scores.get(each, -math.inf) > self._scores.get(each, math.inf)}
        if beating - self._namesakes:
            self._telemetry.log.error(
                "replica_name_shared",
                reason="another process that lives has this name: give each replica its own LISTENERS_REPLICA, or none",
            )
        self._namesakes = (self._namesakes | beating) & namesakes

    def _are(self, alive: dict[str, Member]) -> None:
        if alive == self._alive:
            return
        self._alive = alive
        self._candidates = {}
        for member in alive.values():
            for listener in member.listeners:
                self._candidates.setdefault(listener, []).append(member.id)
        self.changed.set()

    # -- what is known ------------------------------------------------------------------------------------------------

    def preferred(self, uid: str, listener: str) -> str | None:
        """The id of the live replica that should run this listener of the user's; None: no live one declares it."""
        return preferred(uid, self._candidates.get(listener, ()))

    def listeners(self) -> list[str]:
        """What the live replicas declare, all together."""
        return list(self._candidates)

    def status(self) -> list[dict[str, Any]]:
        """Who lives, for `/debug`."""
        return [
            {
                "replica": member.name,
                "id": member.id,
                "is_me": member.id == self.me.id,
                "shares_my_name": member.id in self._namesakes,
                "listeners": list(member.listeners),
            }
            for member in sorted(self._alive.values(), key=lambda member: (member.name, member.id))
        ]
