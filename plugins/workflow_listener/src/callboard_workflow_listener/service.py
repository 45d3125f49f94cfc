"""Namespace WORKFLOW: a user's jobs as live events, the whole collection or the jobs on screen."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Struct

from callboard import Event, Help, Listener, Service, Unavailable, User, listener, method, variable
from callboard.messages import check_identifier
from callboard.service import ListenerSpec
from callboard.settings import load
from callboard_firebase import Batch, Firebase, FirebaseSettings, segment
from callboard_workflow_listener.feed import Feed
from callboard_workflow_listener.source import Source
from callboard_workflow_listener.tracker import Part, Tracker
from callboard_workflow_listener.watched import WatchedJobs

LISTENER = "workflow"
LOOK_S = 3.0
"""How long a watch_job answered by another replica may go unnoticed by the one that listens, seconds."""
_MAX_USERS_SHOWN = 1_000

Key: TypeAlias = tuple[str, Part | None]
"""A stream of the listener's feed: a job and which of its documents; or one of these two."""
_WATCHED: Key = ("watched jobs", None)
_COLLECTION: Key = ("collection", None)


class WorkflowSettings(Struct, frozen=True, kw_only=True):
    enabled: Annotated[bool, Help("listen to workflow documents; false: no listener runs")] = variable(
        "WORKFLOW_LISTENER_ENABLED", default=True
    )


class Watching(Struct, frozen=True):
    """The jobs that are watched now, sorted; none means: all of the user's."""

    user_id: str
    watched: list[str]


class Status(Struct, frozen=True):
    """A user's listening. `active` and `cache_entries`, the jobs it remembers, are the answering replica's."""

    user_id: str
    enabled: bool
    active: bool
    mode: Literal["off", "collection", "documents"]
    watched: list[str]
    cache_entries: int


class Workflow(Service):
    namespace = "WORKFLOW"
    Settings = WorkflowSettings
    listener_log_prefix = "workflow_"

    settings: WorkflowSettings

    async def open(self) -> None:
        self.firebase = await self.host.shared(Firebase)
        self.source = Source(self.firebase)
        self.watched = WatchedJobs(self.host.connections)
        self.trackers: dict[str, Tracker] = {}
        self._changed: dict[str, asyncio.Event] = {}

    def listeners(self) -> list[ListenerSpec]:  # type: ignore[override]
        """None while WORKFLOW_LISTENER_ENABLED is false, or without a Firebase to listen to."""
        return super().listeners() if self._can_listen() else []

    async def health(self) -> dict[str, Any]:
        """The block `workflow_listeners` of /debug; `status` is `ok`, `disabled` or `not configured`."""
        status = "ok" if self._can_listen() else "not configured" if self.settings.enabled else "disabled"
        return {
            "status": status,
            "enabled": self.settings.enabled,
            "active_count": len(self.trackers),
            "users": sorted(str(self.host.telemetry.user(uid)) for uid in list(self.trackers)[:_MAX_USERS_SHOWN]),
            "cache_entries": sum(len(tracker) for tracker in self.trackers.values()),
        }

    # -- methods

    @method(effect="write", retry_safe=True, aliases=("LISTENERS.start_workflow_listener_for_job",))
    async def watch_job(self, user_id: str, job_id: str) -> Watching:
        """Listen to this job's documents, and to no others of the user's but those watched already.

        It holds while the user is online and ends two minutes after they leave. FAILED_PRECONDITION beyond 100 jobs.
        """
        await self.watched.add(check_identifier(user_id, "user_id"), segment(job_id))
        return await self._watching(user_id)

    @method(effect="write", retry_safe=True, aliases=("LISTENERS.stop_workflow_listener_for_job",))
    async def unwatch_job(self, user_id: str, job_id: str) -> Watching:
        """Stop watching a job; after the last one, all of the user's jobs are listened to again."""
        await self.watched.remove(check_identifier(user_id, "user_id"), segment(job_id))
        return await self._watching(user_id)

    @method(effect="read")
    async def status(self, user_id: str) -> Status:
        """What is listened to for a user."""
        watched = sorted(await self.watched.get(check_identifier(user_id, "user_id")))
        return Status(
            user_id,
            self.settings.enabled,
            self.host.listeners.is_active(user_id, LISTENER),
            "off" if not self._can_listen() else "documents" if watched else "collection",
            watched,
            len(self.trackers.get(user_id, ())),
        )

    # -- the listener

    @listener(name=LISTENER, begins_with_sync=True)
    class Jobs(Listener["Workflow"]):
        """One user's jobs. What it remembers of them is its tracker's, and goes when listening ends."""

        async def snapshot(self, user: User) -> list[Event]:
            """`workflow.sync` of each watched job; with none watched, of the 200 most recently updated."""
            source = self.service.source
            watched = await self.service.watched.get(user.uid)
            return await (source.read_documents(user.uid, watched) if watched else source.read_collection(user.uid))

        async def changes(self, user: User) -> AsyncIterator[Event]:
            service, tracker = self.service, Tracker(user.uid)
            service.trackers[user.uid] = tracker
            try:
                async with Feed[Key, Batch | frozenset[str]]() as feed:
                    feed.add(_WATCHED, service.watched_jobs(user.uid))
                    async for key, item in feed:
                        if isinstance(item, frozenset):
                            await service.aim(feed, tracker, item)
                        else:
                            for event in service.take(tracker, key, item):
                                yield event
            finally:
                if service.trackers.get(user.uid) is tracker:
                    del service.trackers[user.uid]

    async def watched_jobs(self, uid: str) -> AsyncGenerator[frozenset[str], None]:
        """The user's watched jobs, at first and whenever they may have changed; tends them meanwhile."""
        changed = self._changed[uid] = asyncio.Event()
        try:
            while True:
                changed.clear()
                try:
                    watched = await self.watched.tend(uid)
                except Unavailable:
                    watched = None  # what was last known holds; the core reports the outage
                if watched is not None:
                    yield watched
                await _wait(changed, LOOK_S * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the users
        finally:
            if self._changed.get(uid) is changed:
                del self._changed[uid]

    async def aim(self, feed: Feed[Key, Any], tracker: Tracker, watched: frozenset[str]) -> None:
        """Have the feed carry these jobs' documents, or the collection when there are none."""
        parts: tuple[Part, ...] = ("job", "older")
        wanted: set[Key] = {(job_id, part) for job_id in watched for part in parts} or {_COLLECTION}
        for key in feed.keys() - wanted - {_WATCHED}:
            await feed.remove(key)
            if key == _COLLECTION:
                tracker.clear()
            else:
                tracker.forget(key[0])
        for key in sorted(wanted - feed.keys(), key=str):
            job_id, part = key
            feed.add(
                key,
                self.source.watch_document(tracker.uid, job_id, part)
                if part
                else self.source.watch_collection(tracker.uid),
            )

    def take(self, tracker: Tracker, key: Key, batch: Batch) -> list[Event]:
        """The events of a batch, each change logged by the names of what changed."""
        job_id, part = key
        events = tracker.take_document(job_id, part, batch) if part else tracker.take_collection(batch)
        for event in events:
            if event.type == "workflow.invoice_update":
                self._log("workflow_invoice_changes", event, event.payload["invoice_changes"])
            elif event.type == "workflow.step_update":
                self._log("workflow_step_changes", event, next(iter(event.payload["step_changes"].values())))
        return events

    def _log(self, name: str, event: Event, changes: dict[str, Any]) -> None:
        self.log.info(name, uid=self.host.telemetry.user(event.uid), fields=sorted(changes))

    async def _watching(self, user_id: str) -> Watching:
        if changed := self._changed.get(user_id):
            changed.set()
        return Watching(user_id, sorted(await self.watched.get(user_id)))

    def _can_listen(self) -> bool:
        return self.settings.enabled and load(FirebaseSettings, self.host.environ).configured


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
