"""One user's workflow documents, listened to on this replica.

The collection is one stream; while the user has watched jobs, each of those is two, its own document and the older
sub-document. Which it is follows the watched jobs, and may change at any time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeAlias

from callboard import Event, Unavailable
from callboard_firebase import Batch
from callboard_workflow_listener.feed import Feed
from callboard_workflow_listener.source import Source
from callboard_workflow_listener.tracker import Part, Tracker
from callboard_workflow_listener.watched import WatchedJobs

LOOK_S = 3.0
"""How long a watch_job answered by another replica may go unnoticed by the one that listens, seconds."""

Key: TypeAlias = tuple[str, Part | None]
"""A stream of the feed: a job and which of its documents; or one of these two."""
_WATCHED: Key = ("watched jobs", None)
_COLLECTION: Key = ("collection", None)


class Listening:
    """`changes()` once; `snapshot()` and `look()` meanwhile. `on_change` is told of every change's event."""

    def __init__(self, uid: str, source: Source, watched: WatchedJobs, on_change: Callable[[Event], None]) -> None:
        self.tracker = Tracker(uid)
        self._source = source
        self._watched = watched
        self._on_change = on_change
        self._look = asyncio.Event()
        self._awaited = {_WATCHED}
        self._settled = asyncio.Event()
        self._failure: Exception | None = None

    def look(self) -> None:
        """The watched jobs may have changed: look now."""
        self._look.set()

    async def snapshot(self) -> list[Event]:
        """The syncs of the state that `changes` goes on from, as soon as it is known; from memory."""
        await self._settled.wait()
        if self._failure is not None:
            raise self._failure
        return self.tracker.syncs()

    async def changes(self) -> AsyncGenerator[Event, None]:
        """What changes after the first state, and syncs of jobs that come, go, or are watched from now on."""
        try:
            async with Feed[Key, Batch | frozenset[str]]() as feed:
                feed.add(_WATCHED, self._watched_jobs())
                async for key, item in feed:
                    for event in await self._take(feed, key, item):
                        yield event
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._settled.set()

    async def _take(self, feed: Feed[Key, Any], key: Key, item: Batch | frozenset[str]) -> list[Event]:
        events: list[Event] = []
        job_id, part = key
        if isinstance(item, frozenset):
            await self._aim(feed, item)
        elif part is None:
            events = self.tracker.take_collection(item)
        else:
            events = self.tracker.take_document(job_id, part, item)
        if not self._settled.is_set():
            self._awaited.discard(key)
            if not self._awaited:
                self._settled.set()
            return []  # the first state is told by snapshot()
        for event in events:
            if event.type != "workflow.sync":
                self._on_change(event)
        return events

    async def _aim(self, feed: Feed[Key, Any], watched: frozenset[str]) -> None:
        """Have the feed carry these jobs' documents, or the collection when there are none."""
        parts: tuple[Part, ...] = ("job", "older")
        wanted: set[Key] = {(job_id, part) for job_id in watched for part in parts} or {_COLLECTION}
        for key in feed.keys() - wanted - {_WATCHED}:
            await feed.remove(key)
            self._awaited.discard(key)
            if key == _COLLECTION:
                self.tracker.clear()
            else:
                self.tracker.forget(key[0])
        uid = self.tracker.uid
        for key in sorted(wanted - feed.keys(), key=str):
            job_id, part = key
            watch = self._source.watch_document(uid, job_id, part) if part else self._source.watch_collection(uid)
            feed.add(key, watch)
            self._awaited.add(key)

    async def _watched_jobs(self) -> AsyncGenerator[frozenset[str], None]:
        """The user's watched jobs, at first and at every look; tends them meanwhile."""
        while True:
            self._look.clear()
            try:
                watched = await self._watched.tend(self.tracker.uid)
            except Unavailable:
                watched = None  # what was last known holds; the core reports the outage
            if watched is not None:
                yield watched
            await _wait(self._look, LOOK_S * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the users


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
