"""Namespace WORKFLOW: a user's jobs as live events, the whole collection or the jobs on screen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from msgspec import Struct

from callboard import Event, Help, Listener, Service, User, listener, method, variable
from callboard.messages import check_identifier
from callboard.service import ListenerSpec
from callboard.settings import load
from callboard_firebase import Firebase, FirebaseSettings, segment
from callboard_workflow_listener.listening import Listening
from callboard_workflow_listener.source import Source
from callboard_workflow_listener.watched import WatchedJobs

LISTENER = "workflow"
_MAX_USERS_SHOWN = 1_000


class WorkflowSettings(Struct, frozen=True, kw_only=True):
    enabled: Annotated[bool, Help("listen to workflow documents; false: no listener runs")] = variable(
        "WORKFLOW_LISTENER_ENABLED", default=True
    )


class Watching(Struct, frozen=True):
    """The jobs that are watched now, sorted; none means: all of the user's."""

    user_id: str
    watched: list[str]


class Status(Struct, frozen=True):
    """A user's listening. `active`: a replica listens. `cache_entries`: the jobs that the answering one remembers."""

    user_id: str
    enabled: bool
    active: bool
    mode: Literal["off", "collection", "documents"]
    watched: list[str]
    cache_entries: int


class Workflow(Service):
    """A user's jobs as live events, and which of them are watched."""

    namespace = "WORKFLOW"
    Settings = WorkflowSettings
    listener_log_prefix = "workflow_"

    settings: WorkflowSettings

    async def open(self) -> None:
        self.firebase = await self.host.shared(Firebase)
        self.source = Source(self.firebase)
        self.watched = WatchedJobs(self.host.connections)
        self.listening: dict[str, Listening] = {}

    def listeners(self) -> list[ListenerSpec]:
        """None while WORKFLOW_LISTENER_ENABLED is false, or without a Firebase to listen to."""
        return super().listeners() if self._can_listen() else []

    async def health(self) -> dict[str, Any]:
        """`status` is `ok`, `disabled` or `not configured`. User ids as logs show them: anybody may ask."""
        return self._report([str(self.host.telemetry.user(uid)) for uid in self._users_shown()])

    async def debug(self) -> dict[str, Any]:
        """The block `workflow_listeners` of /debug: `health`, with the user ids as they are, for operators."""
        return self._report(self._users_shown())

    def _users_shown(self) -> list[str]:
        return list(self.listening)[:_MAX_USERS_SHOWN]

    def _report(self, users: list[str]) -> dict[str, Any]:
        status = "ok" if self._can_listen() else "not configured" if self.settings.enabled else "disabled"
        return {
            "status": status,
            "enabled": self.settings.enabled,
            "active_count": len(self.listening),
            "users": sorted(users),
            "cache_entries": sum(len(listening.tracker) for listening in self.listening.values()),
        }

    # -- methods

    @method(effect="write", retry_safe=True, keyed=False, aliases=("LISTENERS.start_workflow_listener_for_job",))
    async def watch_job(self, user_id: str, job_id: str) -> Watching:
        """Listen to this job's documents, and to no others of the user's but those watched already.

        It holds while the user is online and ends two minutes after they leave. FAILED_PRECONDITION beyond 100 jobs.
        """
        await self.watched.add(check_identifier(user_id, "user_id"), segment(job_id, "job_id"))
        return await self._watching(user_id)

    @method(effect="write", retry_safe=True, keyed=False, aliases=("LISTENERS.stop_workflow_listener_for_job",))
    async def unwatch_job(self, user_id: str, job_id: str) -> Watching:
        """Stop watching a job; after the last one, all of the user's jobs are listened to again."""
        await self.watched.remove(check_identifier(user_id, "user_id"), segment(job_id, "job_id"))
        return await self._watching(user_id)

    @method(effect="read")
    async def status(self, user_id: str) -> Status:
        """What is listened to for a user."""
        watched = sorted(await self.watched.get(check_identifier(user_id, "user_id")))
        return Status(
            user_id,
            self.settings.enabled,
            await self.host.listeners.owner(user_id, f"{self.namespace.lower()}.{LISTENER}") is not None,
            "off" if not self._can_listen() else "documents" if watched else "collection",
            watched,
            len(self.listening[user_id].tracker) if user_id in self.listening else 0,
        )

    # -- the listener

    @listener(name=LISTENER)
    class Jobs(Listener["Workflow"]):
        """One user's jobs. What it remembers of them goes when listening ends.

        The instance that listens has the state in its hands, from the very read that its changes go on from: the sync
        which the core asks of it costs nothing and misses nothing. Any other instance reads the source.
        """

        _listening: Listening | None = None

        async def snapshot(self, user: User) -> list[Event]:
            """`workflow.sync` of each watched job; with none watched, of the 200 most recently updated."""
            if self._listening is not None:
                return await self._listening.snapshot()
            return await self.service.read(user.uid)

        def changes(self, user: User) -> AsyncIterator[Event]:
            service = self.service
            self._listening = Listening(user.uid, service.source, service.watched, service.log_change)
            return service.listen(self._listening)

    async def listen(self, listening: Listening) -> AsyncIterator[Event]:
        """The user's changes; `status`, `health` and `watch_job` know of it meanwhile."""
        uid = listening.tracker.uid
        self.listening[uid] = listening
        try:
            async with aclosing(listening.changes()) as changes:
                async for event in changes:
                    yield event
        finally:
            if self.listening.get(uid) is listening:
                del self.listening[uid]

    async def read(self, uid: str) -> list[Event]:
        watched = await self.watched.get(uid)
        return await (self.source.read_documents(uid, watched) if watched else self.source.read_collection(uid))

    def log_change(self, event: Event) -> None:
        """The names of what changed, never the values."""
        user = self.host.telemetry.user(event.uid)
        if invoice := event.payload.get("invoice_changes"):
            self.log.info("workflow_invoice_changes", uid=user, fields=sorted(invoice))
        for steps in event.payload.get("step_changes", {}).values():
            self.log.info("workflow_step_changes", uid=user, fields=sorted(steps))

    async def _watching(self, user_id: str) -> Watching:
        if listening := self.listening.get(user_id):
            listening.look()
        return Watching(user_id, sorted(await self.watched.get(user_id)))

    def _can_listen(self) -> bool:
        return self.settings.enabled and load(FirebaseSettings, self.host.environ).configured
