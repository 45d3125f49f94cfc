"""The listeners that run on this replica, each under a lease of its own: taken, renewed, counted, let go."""

from __future__ import annotations

import asyncio
import contextvars
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from redis.exceptions import ResponseError

from callboard.clients import urgent
from callboard.errors import Unavailable
from callboard.events.bus import Bus
from callboard.fleet.declared import Declared, Instance
from callboard.fleet.leases import Lease, Leases, Unknown
from callboard.fleet.supervisor import Patience, Supervisor
from callboard.fleet.tasks import heed_cancellation
from callboard.messages import new_id
from callboard.service import Thread, User
from callboard.telemetry import Telemetry, where_raised

_AT_A_TIME = 300
"""Leases in one request to Redis: the event loop is kept for some milliseconds."""
KEPT_S = 60.0
"""What another replica did not take in time stays here for so long."""
_AGAIN_S = 0.4
"""Before the lease of a listener that could not publish is renewed once beside the turns: a failover takes longer, a
reply that was lost does not."""
_SLOW_S = 0.1
"""A request that has not been answered by then is not waited for: the next one goes out beside it."""

T = TypeVar("T")


class Wanted(NamedTuple):
    """`instead_of`: the id of the replica that should run it, but does not."""

    user: User
    declared: Declared
    thread: Thread | None = None
    instead_of: str | None = None


class Running(NamedTuple):
    """`instead_of` as wanted; `kept_until` (monotonic): it stays here, whatever that replica says, or for ever."""

    supervisor: Supervisor
    task: asyncio.Task[None]
    instead_of: str | None
    kept_until: float


class Roster:
    """`running` is for reading. `released` is told which leases were given up, when Redis has heard of it."""

    def __init__(
        self,
        replica: str,
        telemetry: Telemetry,
        leases: Leases,
        bus: Bus,
        *,
        lease_ttl_s: float,
        patience: Patience,
    ) -> None:
        self.running: dict[Instance, Running] = {}
        self.released: Callable[[Sequence[Instance]], Awaitable[None]] = _nobody
        self._replica = replica
        self._telemetry = telemetry
        self._leases = leases
        self._bus = bus
        self._lease_ttl_s = lease_ttl_s
        self._patience = patience
        self._of_user: dict[str, dict[Instance, Running]] = {}
        self._of_name: dict[str, dict[Instance, Supervisor]] = {}
        self._taking: set[Instance] = set()
        self._takes: set[asyncio.Task[None]] = set()
        self._to_release: list[tuple[Instance, Lease]] = []
        self._releasing: asyncio.Task[None] | None = None
        self._to_renew: list[Supervisor] = []
        self._renewing: asyncio.Task[None] | None = None
        self._last_events: dict[str, float] = {}
        self._closed = False

    # -- coming and going ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more."""
        self._closed = True

    async def drain(self, within_s: float) -> None:
        """Take no more, stop all that runs and release its leases; what takes longer is given up within seconds."""
        self.close()
        self.stop(self.running)
        await self._over_within(within_s)
        for _ in range(2):  # a listener that is cancelled again begins another release
            for task in self._tasks():
                task.cancel()
            await self._over_within(1)

    async def _over_within(self, time_s: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + time_s
        while (tasks := self._tasks()) and loop.time() < until:
            await asyncio.wait(tasks, timeout=until - loop.time())

    def _tasks(self) -> set[asyncio.Task[None]]:
        """What has to end before nothing runs here and no lease is held: listeners, takes, renewals and releases."""
        own = {task for task in (self._releasing, self._renewing) if task is not None and not task.done()}
        return {running.task for running in self.running.values()} | self._takes | own

    async def take_all(self, wanted: Sequence[Wanted]) -> None:
        """Run here those whose leases can be had. Unavailable, when that is not known of all."""
        for some in chunks(wanted, _AT_A_TIME):
            # Not to be interrupted: a lease that was taken by then would be nobody's until it expires.
            take = asyncio.create_task(self._take(some), name="listeners: take")
            self._takes.add(take)
            take.add_done_callback(self._takes.discard)
            await asyncio.shield(take)

    async def _take(self, wanted: Sequence[Wanted]) -> None:
        lacking = {one.declared.instance(one.user.uid, one.thread): one for one in wanted}
        for instance in [one for one in lacking if self._closed or one in self.running or one in self._taking]:
            del lacking[instance]
        owners = [f"{self._replica}:{new_id()}" for _ in lacking]
        keys = [instance.lease_key for instance in lacking]
        self._taking.update(lacking)
        try:
            answers = await self._leases.acquire_many(list(zip(keys, owners, strict=True)), self._lease_ttl_s)
            leases = [answer for answer in answers if isinstance(answer, Lease)]
            if self._closed:
                await self._leases.release_many(leases)
                return
            for instance, answer in zip(lacking, answers, strict=True):
                if isinstance(answer, Lease):
                    self._run(instance, lacking[instance], answer)
        finally:
            self._taking.difference_update(lacking)
        self._tell_refused("take", list(lacking), answers)
        for answer in answers:
            if isinstance(answer, Unavailable):
                raise answer

    async def free(self, instances: Sequence[Instance]) -> set[Instance]:
        """Those whose leases nobody holds. Unavailable."""
        free: set[Instance] = set()
        for some in chunks(instances, _AT_A_TIME):
            answers = await self._leases.are_free([instance.lease_key for instance in some])
            free.update(instance for instance, yes in zip(some, answers, strict=True) if yes)
        return free

    def _run(self, instance: Instance, wanted: Wanted, lease: Lease) -> None:
        supervisor = Supervisor(
            wanted.declared, wanted.user, lease, wanted.thread,
            acquire=partial(self._leases.acquire, lease.key, lease.owner, self._lease_ttl_s),
            renew_soon=self._renew_soon, bus=self._bus, telemetry=self._telemetry, patience=self._patience,
        )  # fmt: skip
        # In a context of its own: the call that brought the user here, if any, is none of the listener's business.
        task = asyncio.get_running_loop().create_task(
            supervisor.run(), name=f"listener {instance.name}", context=contextvars.Context()
        )
        # Let expire by a replica that lives: the listener fails there. Merely not taken: it may have been slow.
        kept_until = math.inf if lease.taken_over else time.monotonic() + KEPT_S
        running = Running(supervisor, task, wanted.instead_of, kept_until)
        self.running[instance] = self._of_user.setdefault(instance.uid, {})[instance] = running
        self._of_name.setdefault(instance.name, {})[instance] = supervisor
        task.add_done_callback(partial(self._ended, instance))

    def _ended(self, instance: Instance, task: asyncio.Task[None]) -> None:
        supervisor = self.running.pop(instance).supervisor
        del self._of_name[instance.name][instance]
        of_user = self._of_user[instance.uid]
        del of_user[instance]
        if not of_user:
            del self._of_user[instance.uid]
        self._last_events[instance.name] = max(self._last_events.get(instance.name, -math.inf), supervisor.last_event)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._telemetry.log.error("task_died", task=task.get_name(), **where_raised(error))
        self._to_release.append((instance, supervisor.lease))
        if self._releasing is None or self._releasing.done():
            self._releasing = asyncio.get_running_loop().create_task(self._release(), name="listeners: release")

    async def _release(self) -> None:
        """Give up the leases of listeners that ended, those that end meanwhile with the next request."""
        while self._to_release:
            some = self._to_release[:_AT_A_TIME]
            del self._to_release[:_AT_A_TIME]
            try:
                answers = await self._leases.release_many([lease for _, lease in some])
                self._tell_refused("release", [instance for instance, _ in some], answers)
                await self.released([instance for (instance, _), was in zip(some, answers, strict=True) if was is True])
            except Unavailable:
                continue  # nobody was told: they find it free at their scan
            except Exception as error:  # noqa: BLE001 - the others' leases are released all the same
                self._telemetry.log.error("task_failed", task="listeners: release", **where_raised(error))
                continue
            if self._closed and all(isinstance(answer, Unavailable) for answer in answers):
                self._to_release.clear()  # Redis is away, and the end not: they expire by themselves

    async def renew(self, within_s: float) -> None:
        """Renew the leases of healthy listeners, as many as can be in this time; a lost lease ends its listener.

        A request that is slow to be answered holds up no other.
        """
        healthy = [one for one, *_ in self.running.values() if one.healthy]
        # Whoever had to wait for an answer last time, or was not asked for want of time, comes first.
        healthy.sort(key=lambda one: one.renewed_at)
        try:
            async with asyncio.timeout(within_s), asyncio.TaskGroup() as renewals:
                for batch in chunks(healthy, _AT_A_TIME):
                    await asyncio.wait({renewals.create_task(self._renew(batch))}, timeout=_SLOW_S)
        except TimeoutError:
            return  # the rest are asked for first next time; until then they are firm, or mute

    def _renew_soon(self, one: Supervisor) -> None:
        """Redis did not take its event, or did not say so: ask whether it answers now, not at the next turn alone."""
        self._to_renew.append(one)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.get_running_loop().create_task(self._renew_those(), name="listeners: renew again")

    async def _renew_those(self) -> None:
        urgent.set(True)
        while self._to_renew and not self._closed:
            await asyncio.sleep(_AGAIN_S * random.uniform(0.5, 1))  # noqa: S311 - spreads replicas
            some = self._to_renew[:_AT_A_TIME]  # who failed meanwhile is asked for with them
            del self._to_renew[:_AT_A_TIME]
            await self._renew([one for one in some if one.healthy])
            heed_cancellation()

    async def _renew(self, batch: Sequence[Supervisor]) -> None:
        leases, began = [one.lease for one in batch], time.monotonic()
        try:
            answers = await self._leases.renew_many(leases)
        except Exception as error:  # noqa: BLE001 - the other batches' leases must not lapse for this one's
            self._telemetry.log.error("task_failed", task="listeners: renew", **where_raised(error))
            return
        self._tell_refused("renew", [one.declared.instance(one.user.uid, one.thread) for one in batch], answers)
        for one, lease, held in zip(batch, leases, answers, strict=True):
            if not isinstance(held, Unknown):  # else: not firm for long any more, then mute
                one.renewed(lease, held, began)

    def _tell_refused(
        self, task: str, instances: Sequence[Instance], answers: Sequence[Unknown | Lease | bool | None]
    ) -> None:
        """Log what is a defect, such as a key that is no lease: one of them, and how many there were."""
        told = zip(instances, answers, strict=True)
        refused = [(instance, answer) for instance, answer in told if isinstance(answer, ResponseError)]
        for (uid, name, _), error in refused[:1]:
            self._telemetry.log.error(
                "task_failed", task=f"listeners: {task}", listener=name, uid=self._telemetry.user(uid),
                refused=len(refused), **where_raised(error),
            )  # fmt: skip

    def stop(self, instances: Iterable[Instance]) -> None:
        """Have them end and release their leases; does not wait for it, and may be repeated meanwhile."""
        for instance in list(instances):
            supervisor, task, *_ = self.running[instance]
            if not supervisor.told_to_end:
                supervisor.told_to_end = True
                task.cancel()

    async def sync_soon(self, instances: Iterable[Instance]) -> None:
        """Have those that run publish a sync: now where they run here, else at their next renewal. Unavailable."""
        elsewhere = []
        for instance in instances:
            if (running := self.running.get(instance)) is not None:
                running.supervisor.sync_soon()
            else:
                elsewhere.append(instance)
        for some in chunks(elsewhere, _AT_A_TIME):
            await self._leases.nudge([instance.lease_key for instance in some])

    # -- what runs ----------------------------------------------------------------------------------------------------

    def of(self, uid: str) -> dict[Instance, Supervisor]:
        """The user's listeners that run here, those of threads included."""
        return {instance: running.supervisor for instance, running in self._of_user.get(uid, {}).items()}

    async def owner(self, instances: Iterable[Instance]) -> str | None:
        """The replica that runs the first of these that runs anywhere; None when none does. Unavailable."""
        owners = await asyncio.gather(*(self._leases.owner(instance.lease_key) for instance in instances))
        # From an owner's token: the replica's name, a colon, and an id of this tenure's own.
        return next((owner.rpartition(":")[0] for owner in owners if owner is not None), None)

    def active_count(self, name: str | None = None) -> int:
        """Listeners that run here and are well: all, or those called `name`."""
        return sum(
            one.healthy
            for known, named in self._of_name.items()
            if name is None or name in (known, known.partition(".")[2])
            for one in named.values()
        )

    def last_event_age_s(self, name: str) -> float:
        """Since the last event of any listener of this name; NaN when there was none."""
        last = max((one.last_event for one in self._of_name.get(name, {}).values()), default=-math.inf)
        last = max(last, self._last_events.get(name, -math.inf))
        return time.monotonic() - last if last > -math.inf else math.nan

    def status(self) -> list[dict[str, Any]]:
        """What runs here, for `/debug`: since and last_event_at in ISO 8601, UTC; user ids as they are."""
        return [
            {
                "listener": one.declared.name,
                "uid": one.user.uid,
                "thread": one.thread,
                "owner": self._replica,
                "since": one.since,
                "last_event_at": one.last_event_at,
                "restarts": one.restarts,
                "last_error": one.last_error,
                "refused": one.refused,
                "state": one.state,
                "fence": one.lease.fence,
            }
            for one, *_ in self.running.values()
        ]


async def _nobody(instances: Sequence[Instance]) -> None:
    pass


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
