"""What replicas tell each other: whose listeners one of them should run now.

Each has a channel of its own, `callboard:control:{id}`, and all share `callboard:control:all`. What is said there is a
hint, on a bus that loses what it cannot deliver: whoever misses it finds the same at its next scan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec import Struct

from callboard.errors import InvalidArgs
from callboard.events.bus import Bus
from callboard.messages import check_identifier
from callboard.telemetry import Telemetry

_PREFIX = "callboard:control:"
ALL = "callboard:control:all"


class Told(Struct, omit_defaults=True):
    """`by`: the id of the replica that tells it. Users by listener: these are to be attended to."""

    by: str
    left: bool = False
    """It takes nothing any more, and runs nothing soon."""
    users: dict[str, list[str]] = {}
    threads: list[str] = []
    """Users of whom a thread's listener was let go: whoever has the thread open may take it."""


class Control:
    """`id` is this replica's own."""

    def __init__(self, id: str, bus: Bus, telemetry: Telemetry) -> None:  # noqa: A002 - as in Member
        self._id = id
        self._bus = bus
        self._telemetry = telemetry

    def open(self, told: Callable[[Told], None]) -> None:
        """Have `told` called, from the bus's reading task, with what others tell this replica, or all."""

        def hear(data: bytes) -> None:
            try:
                message = msgspec.json.decode(data, type=Told)
                for uid in (*message.threads, *(uid for uids in message.users.values() for uid in uids)):
                    check_identifier(uid)
            except (msgspec.MsgspecError, UnicodeDecodeError, InvalidArgs):
                self._telemetry.log.warning("control_ignored")
                return
            if message.by != self._id:
                told(message)

        for channel in (self._own(self._id), ALL):
            self._bus.hear(channel, hear)

    def close(self) -> None:
        """Hear no more."""
        for channel in (self._own(self._id), ALL):
            self._bus.unhear(channel)

    async def attend(self, replica: str, users: Mapping[str, Sequence[str]]) -> None:
        """Have one replica see to these users, by listener: a few hundred at a time. Unavailable."""
        await self._tell(self._own(replica), Told(self._id, users={name: list(uids) for name, uids in users.items()}))

    async def let_go(self, threads: Sequence[str]) -> None:
        """Tell all that a listener of a thread of each of these users may be taken. Unavailable."""
        await self._tell(ALL, Told(self._id, threads=list(threads)))

    async def left(self) -> None:
        """Tell all that this replica takes nothing any more. Unavailable."""
        await self._tell(ALL, Told(self._id, left=True))

    async def _tell(self, channel: str, message: Told) -> None:
        await self._bus.publish_raw(channel, msgspec.json.encode(message))

    @staticmethod
    def _own(replica: str) -> str:
        return _PREFIX + replica
