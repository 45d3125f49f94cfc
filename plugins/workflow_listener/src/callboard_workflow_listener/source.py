"""Where the jobs lie in Firestore: what is watched there, and one reading of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from datetime import datetime
from typing import Any

from google.cloud.firestore import AsyncCollectionReference, AsyncDocumentReference

from callboard import Event
from callboard_firebase import Batch, Document, Firebase, join, translated
from callboard_workflow_listener.job import STEPS
from callboard_workflow_listener.tracker import Part, most_recent, sync_event

MAX_READ = 2_000
"""Jobs a snapshot looks at. Firestore cannot sort by a document's update time, so of a larger collection these are the
first by id, and the snapshot holds the most recently updated among them."""
READ_TIMEOUT_S = 10.0


class Source:
    """`clients/{uid}/task_manager`. Methods raise the CallError that stands for Firestore's refusal."""

    def __init__(self, firebase: Firebase) -> None:
        self._firebase = firebase

    def watch_collection(self, uid: str) -> AsyncGenerator[Batch, None]:
        return self._watch(self._collection(uid))

    def watch_document(self, uid: str, job_id: str, part: Part) -> AsyncGenerator[Batch, None]:
        return self._watch(self._document(uid, job_id, part))

    async def read_collection(self, uid: str) -> list[Event]:
        """The syncs of the most recently updated jobs, that one first."""
        query = self._collection(uid).select(["document.initial_data", STEPS]).limit(MAX_READ)
        with translated():
            found, as_of = await _read(query.stream(timeout=READ_TIMEOUT_S))
        return [sync_event(uid, job.id, job, None, as_of=as_of) for job in most_recent(list(found.values())) if as_of]

    async def read_documents(self, uid: str, job_ids: Iterable[str]) -> list[Event]:
        """The syncs of these jobs, of those too that do not exist (yet)."""
        pairs = [
            (name, self._document(uid, name, "job"), self._document(uid, name, "older")) for name in sorted(job_ids)
        ]
        references = [reference for _, *pair in pairs for reference in pair]
        with translated():
            found, as_of = await _read(self._firebase.client.get_all(references, timeout=READ_TIMEOUT_S))
        return [
            sync_event(uid, job_id, found.get(job.path), found.get(older.path), as_of=as_of)
            for job_id, job, older in pairs
            if as_of
        ]

    async def _watch(self, source: AsyncCollectionReference | AsyncDocumentReference) -> AsyncGenerator[Batch, None]:
        async with self._firebase.listen.watch(source) as batches:
            async for batch in batches:
                yield batch

    def _collection(self, uid: str) -> AsyncCollectionReference:
        return self._firebase.client.collection(join("clients", uid, "task_manager"))

    def _document(self, uid: str, job_id: str, part: Part) -> AsyncDocumentReference:
        path = join("clients", uid, "task_manager", job_id)
        return self._firebase.client.document(path if part == "job" else f"{path}/document/initial_data")


async def _read(snapshots: AsyncIterator[Any]) -> tuple[dict[str, Document], datetime | None]:
    """The documents that exist, by path, and the earliest of their read times; None when the server told none."""
    found: dict[str, Document] = {}
    as_of: datetime | None = None
    async for snapshot in snapshots:
        as_of = snapshot.read_time if as_of is None else min(as_of, snapshot.read_time)
        if snapshot.exists:
            path = snapshot.reference.path
            found[path] = Document(
                path, snapshot.id, snapshot.to_dict() or {}, snapshot.create_time, snapshot.update_time
            )
    return found, as_of
