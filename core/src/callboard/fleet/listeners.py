"""Every online user's listeners, and those of their open chat threads, each run by one replica: the lease's holder.

A replica learns of a user when they come online here, and from a look at all online users every few seconds, which
is how it takes over what a replica that died has left. A thread is wanted by the replicas that have it open (see
`Threads`), presence or not; one that another replica runs is tried for again at every look. Leases are renewed every
third of their TTL, in a loop that does nothing else, so that nothing else can make them late. As often, another one
notices users who are gone, users who may see other companies than before, and threads that nobody here has open any
more.

Redis away: what runs stays open and mute, and publishes a sync when Redis answers again; a lease lost meanwhile stops
it. Redis lost its data: the leases are lost, and taken anew as soon as the users are registered again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from callboard.errors import InvalidArgs, Unavailable
from callboard.events.bus import Bus
from callboard.fleet.declared import Declared, Instance
from callboard.fleet.leases import Leases
from callboard.fleet.presence import Presence
from callboard.fleet.roster import Roster, chunks
from callboard.fleet.snapshots import Reading, Snapshot, Snapshots, Synced
from callboard.fleet.supervisor import Patience
from callboard.fleet.tasks import heed_cancellation
from callboard.fleet.threads import Threads
from callboard.messages import Event, check_identifier
from callboard.service import Service, Thread, User
from callboard.settings import Settings
from callboard.telemetry import Telemetry, where_raised

if TYPE_CHECKING:
    from types import TracebackType

_PAGE = 300
_STOP_TIMEOUT_S = 8.0


class Listeners:
    """Times in seconds: `grace_s` is how long a user may be offline, or a thread closed, before its listeners stop.

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
        self._telemetry = telemetry
        self._leases = leases
        self._presence = presence
        self._lease_ttl_s = lease_ttl_s
        self._scan_interval_s = scan_interval_s
        self._grace_s = grace_s
        self._sweep_interval_s = sweep_interval_s
        patience = patience or Patience()
        self._declared: dict[str, Declared] = {}
        self._snapshots = Snapshots(self._declared, presence, bus, telemetry, timeout_s=patience.snapshot_s)
        self._threads = Threads()
        self._roster = Roster(
            settings.replica_name(), telemetry, leases, bus, lease_ttl_s=lease_ttl_s, patience=patience
        )
        self._gone_since: dict[str, float] = {}
        self._came: set[str] = set()
        self._somebody_came = asyncio.Event()
        self._hurried, self._hurries = asyncio.Event(), 0
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
        if self._declared:
            self._presence.watch(self._noticed)
            self._loops = [
                asyncio.create_task(self._every(self._lease_ttl_s / 3, self._renew), name="listeners: renew"),
                asyncio.create_task(self._every(self._lease_ttl_s / 3, self._check), name="listeners: check"),
                asyncio.create_task(self._every(self._scan_interval_s, self._scan), name="listeners: scan"),
                asyncio.create_task(self._every(self._sweep_interval_s, self._sweep), name="listeners: sweep"),
                asyncio.create_task(self._follow_users(), name="listeners: users"),
                asyncio.create_task(self._follow_threads(), name="listeners: threads"),
            ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()

    async def drain(self) -> None:
        """Take no more leases, stop all listeners, release what is held; within seconds, whatever they do."""
        self._roster.close()
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops, timeout=1)
        await self._roster.drain(_STOP_TIMEOUT_S)

    # -- who is wanted here -------------------------------------------------------------------------------------------

    def keeping_open(self, uid: str, thread: Thread | None) -> AbstractContextManager[None]:
        """A socket of this replica has the thread open (None: it has none), for as long as this is entered."""
        if thread is None or not self._per(thread=True):
            return nullcontext()
        return self._threads.keeping_open(uid, thread)

    def open_thread(self, uid: str, thread: Thread, for_s: float) -> None:
        """Have the thread's listeners run for `for_s` seconds (up to an hour), as if a socket here had it open.

        For consumers that read Redis directly; they repeat it in time, at each heartbeat, to whichever replica. Returns
        at once: a sync is published when a listener begins, none where it runs already (`sync` makes one). InvalidArgs;
        FailedPrecondition for more than 100 threads of one user.
        """
        if self._per(thread=True):
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
        instances = [one.instance(uid, each) for each in threads for one in self._per(thread=True)]
        if thread is None:
            instances += [one.instance(uid) for one in self._per(thread=False)]
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

    def status(self) -> list[dict[str, Any]]:
        """What runs here, for `/debug`: since and last_event_at in ISO 8601, UTC; user ids as they are."""
        return self._roster.status()

    def _per(self, *, thread: bool) -> list[Declared]:
        return [declared for declared in self._declared.values() if declared.per_thread is thread]

    def _as_wanted(self, uid: str, thread: Thread) -> Thread:
        """The thread in the mode in which this replica has it open."""
        return self._threads.get(uid, thread.place) or thread

    # -- users --------------------------------------------------------------------------------------------------------

    async def _noticed(self, uid: str, online: bool) -> None:
        """Presence saw the user come, or go, or be given other companies, on this replica."""
        if not online:
            self._gone_since.setdefault(uid, time.monotonic())
            return
        self._came.add(uid)
        self._somebody_came.set()

    async def _follow_users(self) -> None:
        """Attend to users as soon as they come online here; those who come meanwhile are attended to together."""
        while True:
            await self._somebody_came.wait()
            self._somebody_came.clear()
            came, self._came = self._came, set()
            await self._turn(self._attend_online, list(came))  # Unavailable: the scan finds them when Redis is back

    async def _attend_online(self, uids: Sequence[str]) -> None:
        for some in chunks(uids, _PAGE):
            await self._attend((await self._presence.online_among(some)).values())

    async def _scan(self) -> None:
        """Look for online users, and threads open here, whose listeners do not run here; most are another replica's."""
        await self._attend_threads(self._threads.users())
        cursor, declared = None, self._per(thread=False)
        while declared:
            page = await self._presence.online_users(cursor, _PAGE)
            running = self._roster.running
            lacking = [uid for uid in page.users if any(one.instance(uid) not in running for one in declared)]
            await self._attend((await self._presence.online_among(lacking)).values())
            if (cursor := page.cursor) is None:
                return

    async def _attend(self, users: Iterable[User]) -> None:
        users = list(users)
        for user in users:
            self._is_online(user)
        await self._roster.take_all([(user, declared, None) for user in users for declared in self._per(thread=False)])

    def _is_online(self, user: User) -> None:
        self._gone_since.pop(user.uid, None)
        for supervisor in self._roster.of(user.uid).values():
            if supervisor.user != user:
                supervisor.restart(user)

    async def _check_users(self) -> None:
        uids = list({instance.uid for instance in self._roster.running})
        self._gone_since = {uid: self._gone_since[uid] for uid in uids if uid in self._gone_since}
        for some in chunks(uids, _PAGE):
            for sessions, user in (await self._presence.access(some)).values():
                if sessions:
                    self._is_online(user)
                else:
                    self._is_offline(user)

    def _is_offline(self, user: User) -> None:
        running = self._roster.of(user.uid)
        for instance, supervisor in running.items():
            if instance.place and supervisor.user != user:
                supervisor.restart(user)
        if time.monotonic() - self._gone_since.setdefault(user.uid, time.monotonic()) >= self._grace_s:
            del self._gone_since[user.uid]
            self._roster.stop(instance for instance in running if not instance.place)

    # -- threads ------------------------------------------------------------------------------------------------------

    async def _follow_threads(self) -> None:
        """Attend to threads as soon as they are opened here."""
        while True:
            uids = await self._threads.stirred()
            await self._turn(self._attend_threads, uids)

    async def _attend_threads(self, uids: Collection[str]) -> None:
        """Have run what the threads of these users that are open here lack, in the mode that counts."""
        declared = self._per(thread=True)
        lacking = {uid: [thread for thread in self._threads.of(uid) if self._lacks(uid, thread)] for uid in uids}
        lacking = {uid: threads for uid, threads in lacking.items() if threads}
        for some in chunks(list(lacking), _PAGE):
            users = await self._presence.access(some)
            await self._roster.take_all(
                [(users[uid][1], one, thread) for uid in some for thread in lacking[uid] for one in declared]
            )
        for uid in uids:
            for instance, supervisor in self._roster.of(uid).items():
                thread = self._threads.get(uid, instance.place) if instance.place else None
                if thread is not None and thread != supervisor.thread:
                    supervisor.restart(thread=thread)

    def _lacks(self, uid: str, thread: Thread) -> bool:
        return any(one.instance(uid, thread) not in self._roster.running for one in self._per(thread=True))

    def _check_threads(self) -> None:
        self._threads.forget(self._grace_s)
        self._roster.stop(
            instance
            for instance in self._roster.running
            if instance.place and self._threads.get(instance.uid, instance.place) is None
        )

    # -- the loops ----------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Redis is back: leases are renewed now, mute listeners publish their syncs, what was lost is taken anew."""
        self._hurries += 1
        self._hurried.set()
        self._hurried.clear()  # whoever waits has been woken

    async def _every(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        seen = self._hurries
        while True:
            if self._hurries == seen:
                with suppress(TimeoutError):
                    async with asyncio.timeout(interval_s * random.uniform(0.8, 1)):  # noqa: S311 - spreads replicas
                        await self._hurried.wait()
            seen = self._hurries
            await self._turn(work)

    async def _turn(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        try:
            await work(*args)
        except Unavailable:
            pass  # connections reports the outage
        except Exception as error:  # noqa: BLE001 - the next turn may do better
            name = getattr(work, "__name__", "")
            self._telemetry.log.error("task_failed", task=f"listeners: {name}", **where_raised(error))
        heed_cancellation()

    async def _renew(self) -> None:
        # With the pause between two turns less than the time for which a lease is firm: a turn that waits for an answer
        # which does not come must not make the others' leases mute.
        await self._roster.renew(self._lease_ttl_s / 4)

    async def _check(self) -> None:
        """See which threads are still open, and who is still online."""
        self._check_threads()
        await self._check_users()

    async def _sweep(self) -> None:
        """Bury what replicas that died have left of users who did not stay."""
        await self._leases.sweep(look_again_s=self._sweep_interval_s / 2)
