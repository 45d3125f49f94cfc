"""Every online user's listeners, and those of their open chat threads, each run by one replica: the lease's holder.

Which one should is said in `Attendance`. A replica learns of a user when they come online here, when another one tells
it, and from a look at all online users every few seconds, which is how it takes over what a replica that died has left.
Leases are renewed every third of their TTL, in a loop that does nothing else, so that nothing else can make them late.
As often, another one notices users who are gone, users who may see other companies than before, and threads that nobody
here has open any more.

Redis away: what runs stays open and mute, and publishes a sync when Redis answers again; a lease lost meanwhile stops
it. Redis lost its data: the leases are lost, and taken anew as soon as the users are registered again.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from callboard.clients import urgent
from callboard.errors import InvalidArgs, Unavailable
from callboard.events.bus import Bus
from callboard.fleet.attendance import Attendance
from callboard.fleet.control import Control
from callboard.fleet.declared import Declared, Instance
from callboard.fleet.leases import Leases
from callboard.fleet.members import Members
from callboard.fleet.presence import Presence
from callboard.fleet.roster import Roster
from callboard.fleet.snapshots import Reading, Snapshot, Snapshots, Synced
from callboard.fleet.supervisor import Patience
from callboard.fleet.tasks import heed_cancellation
from callboard.fleet.threads import Threads
from callboard.messages import Event, check_identifier
from callboard.service import Service, Thread
from callboard.settings import Settings
from callboard.telemetry import Telemetry, where_raised

if TYPE_CHECKING:
    from types import TracebackType

_STOP_TIMEOUT_S = 8.0
_LEAVE_TIMEOUT_S = 2.0
_HURRIED_EVERY_S = 1.0
"""A loop is hurried once in so many seconds at most, however often the bus comes and goes."""


class Listeners:
    """Times in seconds: `grace_s` is how long a user may be offline, or a thread closed, before its listeners stop.

    `sweep_interval_s` is how often this replica looks for leases that nobody released (the replicas share the work),
    `hand_over_interval_s` how often it lets some listeners go that another replica should run.
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        leases: Leases,
        members: Members,
        presence: Presence,
        bus: Bus,
        *,
        lease_ttl_s: float = 15.0,
        scan_interval_s: float = 5.0,
        grace_s: float = 10.0,
        sweep_interval_s: float = 3_600.0,
        hand_over_interval_s: float = 1.0,
        patience: Patience | None = None,
    ) -> None:
        self._telemetry = telemetry
        self._leases = leases
        self._members = members
        self._presence = presence
        self._lease_ttl_s = lease_ttl_s
        self._scan_interval_s = scan_interval_s
        self._sweep_interval_s = sweep_interval_s
        self._hand_over_interval_s = hand_over_interval_s
        patience = patience or Patience()
        self._declared: dict[str, Declared] = {}
        self._snapshots = Snapshots(self._declared, presence, bus, telemetry, timeout_s=patience.snapshot_s)
        self._threads = Threads()
        self._roster = Roster(
            settings.replica_name(), telemetry, leases, bus, lease_ttl_s=lease_ttl_s, patience=patience
        )
        self._hurried, self._hurries = asyncio.Event(), 0
        self._control = Control(members.me.id, bus, telemetry)
        self._attendance = Attendance(
            self._declared, members, self._control, presence, self._roster, self._threads, grace_s=grace_s
        )
        self._loops: list[asyncio.Task[None]] = []

    def declare(self, namespace: str, service: Service) -> None:
        """Add a service's listeners, before the start. TypeError: two of them have the same name."""
        for spec in service.listeners():
            declared = Declared(namespace, service, spec)
            if declared.name in self._declared:
                raise TypeError(f"{namespace} declares the listener {spec.name} twice")
            self._declared[declared.name] = declared
            metrics, name = self._telemetry.metrics, declared.name
            metrics.listeners_active.labels(name).set_function(partial(self._roster.active_count, name))
            metrics.listener_last_event_age.labels(name).set_function(partial(self._roster.last_event_age_s, name))

    def withdraw(self, namespace: str) -> None:
        """Take a namespace's listeners back, before the start: its plugin was put aside."""
        for name in [name for name, declared in self._declared.items() if declared.namespace == namespace]:
            del self._declared[name]
            self._telemetry.metrics.listeners_active.remove(name)
            self._telemetry.metrics.listener_last_event_age.remove(name)

    async def __aenter__(self) -> Self:
        attendance, third_s = self._attendance, self._lease_ttl_s / 3
        self._roster.released = attendance.released
        self._presence.watch(attendance.noticed)
        self._control.open(attendance.told)
        self._members.join(one.name for one in attendance.per(thread=False))
        self._loops = [
            asyncio.create_task(self._every(third_s, self._renew), name="listeners: renew"),
            asyncio.create_task(self._every(third_s, attendance.check), name="listeners: check"),
            asyncio.create_task(self._every(self._scan_interval_s, attendance.scan), name="listeners: scan"),
            asyncio.create_task(self._every(self._sweep_interval_s, self._sweep), name="listeners: sweep"),
            asyncio.create_task(
                self._every(self._hand_over_interval_s, attendance.hand_over), name="listeners: hand over"
            ),
            asyncio.create_task(self._every(0, attendance.attend), name="listeners: users"),
            asyncio.create_task(self._every(0, attendance.attend_threads), name="listeners: threads"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()

    async def drain(self) -> None:
        """Take no more leases, stop all listeners, release what is held; within seconds, whatever they do."""
        self._roster.close()
        if self._loops:
            for loop in self._loops:
                loop.cancel()
            await asyncio.wait(self._loops, timeout=1)
            self._loops = []
            await self._leave()
        await self._roster.drain(_STOP_TIMEOUT_S)

    async def _leave(self) -> None:
        """Be no replica for the others to count on, before they are told what to take."""
        self._control.close()
        try:
            async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                await self._members.leave()
                await self._control.left()
        except (Unavailable, TimeoutError):
            return  # they find out after the beats that it misses

    # -- who is wanted here -------------------------------------------------------------------------------------------

    def keeping_open(self, uid: str, thread: Thread | None) -> AbstractContextManager[None]:
        """A socket of this replica has the thread open (None: it has none), for as long as this is entered."""
        if thread is None or not self._attendance.per(thread=True):
            return nullcontext()
        return self._threads.keeping_open(uid, thread)

    def open_thread(self, uid: str, thread: Thread, for_s: float) -> None:
        """Have the thread's listeners run for `for_s` seconds (up to an hour), as if a socket here had it open.

        For consumers that read Redis directly; they repeat it in time, at each heartbeat, to whichever replica. Returns
        at once: a sync is published when a listener begins, none where it runs already (`sync` makes one). InvalidArgs;
        FailedPrecondition for more than 100 threads of one user.
        """
        if self._attendance.per(thread=True):
            self._threads.ask(uid, thread, for_s)

    def close_thread(self, uid: str, thread: Thread) -> None:
        """Take back what `open_thread` asked of this replica; another replica that was asked goes on for its time."""
        self._threads.drop(uid, thread)

    # -- what others ask ----------------------------------------------------------------------------------------------

    def segments(self, thread: Thread | None = None) -> dict[str, frozenset[str] | None]:
        """By listener, the first segments of its syncs' types; None for one that has not been read here yet.

        The listeners that a socket hears: the user's, and those of the thread that it has open, if any.
        """
        return self._snapshots.segments(thread)

    async def read_one(self, uid: str, name: str, thread: Thread | None = None) -> Reading | None:
        """The snapshot half of a listener, named as in `segments`, or None when it failed (logged)."""
        return await self._snapshots.one(uid, name, thread and self._as_wanted(uid, thread))

    async def read(self, uid: str) -> Snapshot:
        """The snapshot halves of the user's own listeners, read at the same time; failed ones are named (and logged).

        A sync that is no JSON or over 256 KiB is its listener's failure. Unavailable without Redis.
        """
        found = await self._snapshots.all(uid)
        events = [event for part in found if not isinstance(part, str) for event in part.events]
        return Snapshot(events, [part for part in found if isinstance(part, str)])

    async def snapshot(self, uid: str) -> list[Event]:
        """The user's state as sync events, ready to be sent; without those of listeners that failed (see `read`)."""
        return (await self.read(uid)).events

    async def sync(self, uid: str, thread: Thread | None = None) -> Synced:
        """Publish state as sync events: what went out, and which listeners' did not. Unavailable.

        The user's, on their channels, and that of the threads which this replica has open for them; with `thread`, that
        thread's alone, whoever has it open.

        They are read beside the running listeners, whose deltas may overtake them. So each of those publishes a sync of
        its own afterwards, in order: at once where it runs here, else at its next renewal, within a third of a lease.
        """
        threads = self._threads.of(uid) if thread is None else [self._as_wanted(uid, thread)]
        synced = await self._snapshots.publish(uid, threads, whole=thread is None)
        instances = [one.instance(uid, each) for each in threads for one in self._attendance.per(thread=True)]
        if thread is None:
            instances += [one.instance(uid) for one in self._attendance.per(thread=False)]
        await self._roster.sync_soon(one for one in instances if one.source_name not in synced.failed)
        return synced

    async def restart(self, uid: str, name: str | None = None) -> None:
        """Begin the user's listeners anew where they run on this replica: all of them, or those called `name`."""
        for supervisor in self._roster.of(uid).values():
            if name is None or supervisor.declared.is_called(name):
                supervisor.restart()

    def names(self) -> list[str]:
        """The declared listeners: `namespace.name`, in lower case."""
        return sorted(self._declared)

    def is_active(self, uid: str, name: str) -> bool:
        """Whether the user's listener `name` (with or without its namespace) runs here and is well, in any thread."""
        return any(one.declared.is_called(name) and one.healthy for one in self._roster.of(uid).values())

    async def owner(self, uid: str, name: str, thread: Thread | None = None) -> str | None:
        """The replica that runs the user's listener `name` (with or without its namespace): who holds its lease.

        None: nobody does, the user being offline (or `thread` open nowhere), or the listener failing for longer than a
        lease lasts. A name that is not declared here is taken as whole: another replica may declare it. InvalidArgs for
        a user id that is none, or a listener per thread without one; Unavailable without Redis.
        """
        check_identifier(uid)
        named = [one for one in self._declared.values() if one.is_called(name)]
        if thread is None and any(one.per_thread for one in named):
            raise InvalidArgs(f"{name} runs per thread: say which one, by space_code and thread_key")
        instances = [one.instance(uid, thread) for one in named]
        if not named:
            instances = [Instance(uid, name), *([Instance(uid, name, thread.place)] if thread is not None else [])]
        return await self._roster.owner(instances)

    def active_count(self, name: str | None = None) -> int:
        """Listeners that run here and are well, those of threads included: all, or those called `name`."""
        return self._roster.active_count(name)

    def members(self) -> list[dict[str, Any]]:
        """The replicas that live, as this one sees it, for `/debug`."""
        return self._members.status()

    def status(self) -> list[dict[str, Any]]:
        """What runs here, for `/debug`: since and last_event_at in ISO 8601, UTC; user ids as they are."""
        return self._roster.status()

    def _as_wanted(self, uid: str, thread: Thread) -> Thread:
        """The thread in the mode in which this replica has it open."""
        return self._threads.get(uid, thread.place) or thread

    # -- the loops ----------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Redis is back: leases are renewed now, mute listeners publish their syncs, what was lost is taken anew."""
        self._members.hurry()
        self._hurries += 1
        self._hurried.set()
        self._hurried.clear()  # whoever waits has been woken

    async def _every(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        seen, hurried_at = self._hurries, -math.inf
        while True:
            if self._hurries == seen:
                with suppress(TimeoutError):
                    async with asyncio.timeout(interval_s * random.uniform(0.8, 1)):  # noqa: S311 - spreads replicas
                        await self._hurried.wait()
            if self._hurries != seen:
                await asyncio.sleep(max(0, hurried_at + _HURRIED_EVERY_S - time.monotonic()))
                hurried_at = time.monotonic()
            seen = self._hurries
            try:
                await work()
            except Unavailable:
                pass  # connections reports the outage
            except Exception as error:  # noqa: BLE001 - the next turn may do better
                name = getattr(work, "__name__", "")
                self._telemetry.log.error("task_failed", task=f"listeners: {name}", **where_raised(error))
            heed_cancellation()

    async def _renew(self) -> None:
        urgent.set(True)
        # With the pause between two turns less than the time for which a lease is firm: a turn that waits for an answer
        # which does not come must not make the others' leases mute.
        await self._roster.renew(self._lease_ttl_s / 4)

    async def _sweep(self) -> None:
        """Bury what replicas that died have left of users who did not stay."""
        await self._leases.sweep(look_again_s=self._sweep_interval_s / 2)
