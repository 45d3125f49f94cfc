"""The listeners that run on this replica, each under a lease of its own: taken, renewed, counted, let go."""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from callboard.events.bus import Bus
from callboard.fleet.declared import Declared, Instance
from callboard.fleet.leases import Leases
from callboard.fleet.supervisor import Patience, Supervisor
from callboard.messages import new_id
from callboard.service import Thread, User
from callboard.telemetry import Telemetry, where_raised

_AT_A_TIME = 32
"""Requests to Redis that one loop has under way, well below the size of the connection pool."""

T = TypeVar("T")


class Running(NamedTuple):
    supervisor: Supervisor
    task: asyncio.Task[None]


class Roster:
    """`running` is for reading."""

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
        self._replica = replica
        self._telemetry = telemetry
        self._leases = leases
        self._bus = bus
        self._lease_ttl_s = lease_ttl_s
        self._patience = patience
        self._of_user: dict[str, dict[Instance, Running]] = {}
        self._taking: set[Instance] = set()
        self._last_events: dict[str, float] = {}
        self._closed = False

    # -- coming and going ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more."""
        self._closed = True

    async def take_all(self, wanted: Sequence[tuple[User, Declared, Thread | None]]) -> None:
        """Run here those whose leases can be had. Unavailable."""
        for some in chunks(wanted, _AT_A_TIME):
            await asyncio.gather(*(self._take(*each) for each in some))

    async def _take(self, user: User, declared: Declared, thread: Thread | None) -> None:
        """A preference among replicas would be asked for here."""
        instance = declared.instance(user.uid, thread)
        if self._closed or instance in self.running or instance in self._taking:
            return
        owner = f"{self._replica}:{new_id()}"
        acquire = partial(self._leases.acquire, instance.lease_key, owner, self._lease_ttl_s)
        self._taking.add(instance)
        try:
            lease = await acquire()
            if lease is None:
                return
            if self._closed:
                await lease.release()
                return
            supervisor = Supervisor(
                declared, user, lease, thread,
                acquire=acquire, bus=self._bus, telemetry=self._telemetry, patience=self._patience,
            )  # fmt: skip
            # In a context of its own: the call that brought the user here, if any, is none of the listener's business.
            task = asyncio.get_running_loop().create_task(
                supervisor.run(), name=f"listener {declared.name}", context=contextvars.Context()
            )
            self.running[instance] = self._of_user.setdefault(user.uid, {})[instance] = Running(supervisor, task)
            task.add_done_callback(partial(self._ended, instance))
        finally:
            self._taking.discard(instance)

    def _ended(self, instance: Instance, task: asyncio.Task[None]) -> None:
        supervisor = self.running.pop(instance).supervisor
        of_user = self._of_user[instance.uid]
        del of_user[instance]
        if not of_user:
            del self._of_user[instance.uid]
        self._last_events[instance.name] = max(self._last_events.get(instance.name, -math.inf), supervisor.last_event)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._telemetry.log.error("task_died", task=task.get_name(), **where_raised(error))

    async def renew(self, within_s: float) -> None:
        """Renew the leases of healthy listeners, as many as can be in this time; a lost lease ends its listener."""
        until = time.monotonic() + within_s
        healthy = [one for one, _ in self.running.values() if one.healthy]
        # Whoever had to wait for an answer last time, or was not asked for want of time, comes first.
        healthy.sort(key=lambda one: one.renewed_at)
        for some in chunks(healthy, _AT_A_TIME):
            await asyncio.gather(*(one.renew() for one in some))
            if time.monotonic() > until:
                break

    def stop(self, instances: Iterable[Instance]) -> None:
        """Have them end and release their leases; does not wait for it, and may be repeated meanwhile."""
        for instance in list(instances):
            supervisor, task = self.running[instance]
            if supervisor.state != "stopping":  # a release must not be interrupted
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
            await asyncio.gather(*(self._leases.nudge(instance.lease_key) for instance in some))

    # -- what runs ----------------------------------------------------------------------------------------------------

    def tasks(self) -> set[asyncio.Task[None]]:
        return {running.task for running in self.running.values()}

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
            one.supervisor.healthy and (name is None or one.supervisor.declared.is_called(name))
            for one in self.running.values()
        )

    def last_event_age_s(self, name: str) -> float:
        """Since the last event of any listener of this name; NaN when there was none."""
        times = [one.supervisor.last_event for instance, one in self.running.items() if instance.name == name]
        last = max([*times, self._last_events.get(name, -math.inf)])
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
            for one, _ in self.running.values()
        ]


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
