"""Every online user's listeners, each run by one replica: the one that holds its lease.

A replica learns of a user when they come online here, and from a look at all online users every few seconds, which
is how it takes over what a replica that died has left. Leases are renewed every third of their TTL, all in one loop;
the same loop notices users who are gone and users who may see other companies than before.

Redis away: what runs stays open and mute, and publishes a sync when Redis answers again; a lease lost meanwhile stops
it. Redis lost its data: the leases are lost, and taken anew as soon as the users are registered again.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from callboard.errors import Unavailable
from callboard.events.bus import Bus
from callboard.fleet.declared import Declared
from callboard.fleet.leases import Leases
from callboard.fleet.presence import Presence
from callboard.fleet.snapshots import Reading, Snapshot, Snapshots, Synced
from callboard.fleet.supervisor import Patience, Supervisor
from callboard.fleet.tasks import heed_cancellation
from callboard.messages import Event, check_identifier, new_id
from callboard.service import Service, User
from callboard.settings import Settings
from callboard.telemetry import Telemetry, where_raised

if TYPE_CHECKING:
    from types import TracebackType

_PAGE = 200
_AT_A_TIME = 32
"""Requests to Redis that one loop has under way, well below the size of the connection pool."""
_STOP_TIMEOUT_S = 8.0

T = TypeVar("T")


class Running(NamedTuple):
    supervisor: Supervisor
    task: asyncio.Task[None]


class Listeners:
    """Times in seconds: `grace_s` is how long a user may be offline before their listeners stop here.

    `sweep_interval_s` is how often this replica looks for leases that nobody released (the replicas share the work).
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        leases: Leases,
        presence: Presence,
        bus: Bus,
        *,
        lease_ttl_s: float = 15.0,
        scan_interval_s: float = 5.0,
        grace_s: float = 10.0,
        sweep_interval_s: float = 3_600.0,
        patience: Patience | None = None,
    ) -> None:
        self._replica = settings.replica_name()
        self._telemetry = telemetry
        self._leases = leases
        self._presence = presence
        self._bus = bus
        self._lease_ttl_s = lease_ttl_s
        self._scan_interval_s = scan_interval_s
        self._grace_s = grace_s
        self._sweep_interval_s = sweep_interval_s
        self._patience = patience or Patience()
        self._declared: dict[str, Declared] = {}
        self._snapshots = Snapshots(self._declared, presence, bus, telemetry, timeout_s=self._patience.snapshot_s)
        self._running: dict[tuple[str, str], Running] = {}
        self._taking: set[tuple[str, str]] = set()
        self._gone_since: dict[str, float] = {}
        self._last_events: dict[str, float] = {}
        self._draining = False
        self._loops: list[asyncio.Task[None]] = []

    def declare(self, namespace: str, service: Service) -> None:
        """Add a service's listeners, before the start. TypeError: two of them have the same name."""
        for spec in service.listeners():
            if spec.per == "thread":  # declared ahead of the part that opens threads
                continue
            declared = Declared(namespace, service, spec)
            if declared.name in self._declared:
                raise TypeError(f"{namespace} declares the listener {spec.name} twice")
            self._declared[declared.name] = declared
            metrics, name = self._telemetry.metrics, declared.name
            metrics.listeners_active.labels(name).set_function(partial(self.active_count, name))
            metrics.listener_last_event_age.labels(name).set_function(partial(self._last_event_age_s, name))

    def withdraw(self, namespace: str) -> None:
        """Take a namespace's listeners back, before the start: its plugin was put aside."""
        for name in [name for name, declared in self._declared.items() if declared.namespace == namespace]:
            del self._declared[name]
            self._telemetry.metrics.listeners_active.remove(name)
            self._telemetry.metrics.listener_last_event_age.remove(name)

    async def __aenter__(self) -> Self:
        if self._declared:
            self._presence.watch(self._noticed)
            self._loops = [
                asyncio.create_task(self._every(self._lease_ttl_s / 3, self._tick), name="listeners: renew"),
                asyncio.create_task(self._every(self._scan_interval_s, self._scan), name="listeners: scan"),
                asyncio.create_task(self._every(self._sweep_interval_s, self._sweep), name="listeners: sweep"),
            ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()

    async def drain(self) -> None:
        """Take no more leases, stop all listeners, release what is held; within seconds, whatever they do."""
        self._draining = True
        tasks = {*self._loops, *(running.task for running in self._running.values())}
        for patience_s in (_STOP_TIMEOUT_S, 1.0):  # cancelled again, a release that cannot reach Redis gives up
            for task in tasks:
                task.cancel()
            if tasks:
                _, tasks = await asyncio.wait(tasks, timeout=patience_s)

    # -- what others ask ----------------------------------------------------------------------------------------------

    def segments(self) -> dict[str, frozenset[str] | None]:
        """By listener, the first segments of its syncs' types; None for one that has not been read here yet."""
        return self._snapshots.segments()

    async def read_one(self, uid: str, name: str) -> Reading | None:
        """The snapshot half of the listener `name` (the whole name), or None when it failed (logged)."""
        return await self._snapshots.one(uid, name)

    async def read(self, uid: str) -> Snapshot:
        """The snapshot halves of all listeners, read at the same time; those that fail are named (and logged).

        A sync that is no JSON or over 256 KiB is its listener's failure. Unavailable without Redis.
        """
        found = await self._snapshots.all(uid)
        events = [event for part in found if not isinstance(part, str) for event in part.events]
        return Snapshot(events, [part for part in found if isinstance(part, str)])

    async def snapshot(self, uid: str) -> list[Event]:
        """The user's state as sync events, ready to be sent; without those of listeners that failed (see `read`)."""
        return (await self.read(uid)).events

    async def sync(self, uid: str) -> Synced:
        """Publish the user's state on their channels: what went out, and which listeners' did not. Unavailable."""
        return await self._snapshots.publish(uid)

    async def restart(self, uid: str, name: str | None = None) -> None:
        """Begin the user's listeners anew where they run on this replica: all of them, or the one called `name`."""
        for supervisor in self._of(uid):
            if name is None or supervisor.declared.is_called(name):
                supervisor.restart()

    def names(self) -> list[str]:
        """The declared listeners: `namespace.name`, in lower case."""
        return sorted(self._declared)

    def is_active(self, uid: str, name: str) -> bool:
        """Whether the user's listener `name` (with or without its namespace) runs here and is well."""
        return any(one.declared.is_called(name) and one.healthy for one in self._of(uid))

    async def owner(self, uid: str, name: str) -> str | None:
        """The replica that runs the user's listener `name` (with or without its namespace): who holds its lease.

        None: nobody does, the user being offline, or the listener failing for longer than a lease lasts. A name that
        is not declared here is taken as whole: another replica may declare it. InvalidArgs for a user id that is none;
        Unavailable without Redis.
        """
        check_identifier(uid)
        names = [one.name for one in self._declared.values() if one.is_called(name)] or [name]
        owners = await asyncio.gather(*(self._leases.owner(_lease_key(uid, name)) for name in names))
        return next((_replica_of(owner) for owner in owners if owner is not None), None)

    def active_count(self, name: str | None = None) -> int:
        """Listeners that run here and are well: all, or those called `name`."""
        return sum(
            one.supervisor.healthy and (name is None or one.supervisor.declared.is_called(name))
            for one in self._running.values()
        )

    def status(self) -> list[dict[str, Any]]:
        """What runs here, for `/debug`: since and last_event_at in ISO 8601, UTC; user ids as they are."""
        return [
            {
                "listener": one.declared.name,
                "uid": one.user.uid,
                "owner": self._replica,
                "since": one.since,
                "last_event_at": one.last_event_at,
                "restarts": one.restarts,
                "last_error": one.last_error,
                "refused": one.refused,
                "state": one.state,
                "fence": one.lease.fence,
            }
            for one, _ in self._running.values()
        ]

    def _of(self, uid: str) -> Iterator[Supervisor]:
        for name in self._declared:
            if running := self._running.get((uid, name)):
                yield running.supervisor

    def _last_event_age_s(self, name: str) -> float:
        times = [one.last_event for one, _ in self._running.values() if one.declared.name == name]
        last = max([*times, self._last_events.get(name, -math.inf)])
        return time.monotonic() - last if last > -math.inf else math.nan

    # -- who runs here ------------------------------------------------------------------------------------------------

    async def _noticed(self, uid: str, online: bool) -> None:
        """Presence saw the user come, or go, or be given other companies, on this replica."""
        if not online:
            self._gone_since.setdefault(uid, time.monotonic())
            return
        try:
            await self._attend((await self._presence.online_among([uid])).values())
        except Unavailable:
            return  # the scan finds the user when Redis is back

    async def _scan(self) -> None:
        """Look for online users whose listeners nobody here runs; most belong to another replica."""
        cursor = None
        while True:
            page = await self._presence.online_users(cursor, _PAGE)
            lacking = [uid for uid in page.users if any((uid, name) not in self._running for name in self._declared)]
            await self._attend((await self._presence.online_among(lacking)).values())
            if (cursor := page.cursor) is None:
                return

    async def _attend(self, users: Iterable[User]) -> None:
        wanted = []
        for user in users:
            self._is_online(user)
            wanted += [(user, declared) for declared in self._declared.values()]
        for some in _chunks(wanted, _AT_A_TIME):
            await asyncio.gather(*(self._take(user, declared) for user, declared in some))

    def _is_online(self, user: User) -> None:
        self._gone_since.pop(user.uid, None)
        for supervisor in self._of(user.uid):
            if supervisor.user != user:
                supervisor.restart(user)

    async def _take(self, user: User, declared: Declared) -> None:
        """Run a listener here if its lease can be had. A preference among replicas would be asked for here."""
        key = (user.uid, declared.name)
        if self._draining or key in self._running or key in self._taking:
            return
        owner = f"{self._replica}:{new_id()}"
        acquire = partial(self._leases.acquire, _lease_key(*key), owner, self._lease_ttl_s)
        self._taking.add(key)
        try:
            lease = await acquire()
            if lease is None:
                return
            if self._draining:
                await lease.release()
                return
            supervisor = Supervisor(
                declared, user, lease,
                acquire=acquire, bus=self._bus, telemetry=self._telemetry, patience=self._patience,
            )  # fmt: skip
            # In a context of its own: the call that brought the user here, if any, is none of the listener's business.
            task = asyncio.get_running_loop().create_task(
                supervisor.run(), name=f"listener {declared.name}", context=contextvars.Context()
            )
            self._running[key] = Running(supervisor, task)
            task.add_done_callback(partial(self._ended, key))
        finally:
            self._taking.discard(key)

    def _ended(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        supervisor = self._running.pop(key).supervisor
        name = supervisor.declared.name
        self._last_events[name] = max(self._last_events.get(name, -math.inf), supervisor.last_event)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._telemetry.log.error("task_died", task=task.get_name(), **where_raised(error))

    # -- the loops ----------------------------------------------------------------------------------------------------

    async def _every(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(interval_s * random.uniform(0.8, 1))  # noqa: S311 - spreads replicas
            try:
                await work()
            except Unavailable:
                pass  # connections reports the outage
            except Exception as error:  # noqa: BLE001 - the next turn may do better
                self._telemetry.log.error("task_failed", task=f"listeners: {work.__name__}", **where_raised(error))
            heed_cancellation()

    async def _tick(self) -> None:
        """Renew the leases of healthy listeners; then see who is still online."""
        until = time.monotonic() + self._lease_ttl_s / 3
        healthy = [one for one, _ in self._running.values() if one.healthy]
        # Whoever had to wait for an answer last time, or was not asked for want of time, comes first.
        healthy.sort(key=lambda one: one.renewed_at)
        for some in _chunks(healthy, _AT_A_TIME):
            await asyncio.gather(*(one.renew() for one in some))
            if time.monotonic() > until:
                break
        await self._check_users()

    async def _sweep(self) -> None:
        """Bury what replicas that died have left of users who did not stay."""
        await self._leases.sweep(look_again_s=self._sweep_interval_s / 2)

    async def _check_users(self) -> None:
        uids = list({uid for uid, _ in self._running})
        self._gone_since = {uid: self._gone_since[uid] for uid in uids if uid in self._gone_since}
        for some in _chunks(uids, _PAGE):
            online = await self._presence.online_among(some)
            for uid in some:
                if uid in online:
                    self._is_online(online[uid])
                elif time.monotonic() - self._gone_since.setdefault(uid, time.monotonic()) >= self._grace_s:
                    self._stop(uid)

    def _stop(self, uid: str) -> None:
        del self._gone_since[uid]
        for name in self._declared:
            if running := self._running.get((uid, name)):
                running.task.cancel()


def _lease_key(uid: str, name: str) -> str:
    return f"callboard:lease:listener:{name}:{{{uid}}}"


def _replica_of(owner: str) -> str:
    """From an owner's token: the replica's name, a colon, and an id of this tenure's own."""
    return owner.rpartition(":")[0]


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
