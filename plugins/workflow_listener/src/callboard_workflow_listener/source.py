"""Where the jobs lie in Firestore: what is watched there, and one reading of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime

from google.cloud.firestore import AsyncCollectionReference, AsyncDocumentReference

from callboard import DeadlineExceeded, Event
from callboard_firebase import Batch, Document, Firebase, Pace, Read, get_documents, join, run_query
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
        """The batches of all jobs; during a burst, gathered."""
        return self._watch(self._collection(uid))

    def watch_document(self, uid: str, job_id: str, part: Part) -> AsyncGenerator[Batch, None]:
        return self._watch(self._document(uid, job_id, part))

    async def read_collection(self, uid: str) -> list[Event]:
        """The syncs of the most recently updated jobs, that one first."""
        query = self._collection(uid).select(["document.initial_data", STEPS]).limit(MAX_READ)
        async with _bounded():
            reads = [read async for read in run_query(self._firebase.client, query)]
        jobs = most_recent(list(_found(reads).values()))
        return [sync_event(uid, job.id, job, None, as_of=_as_of(reads)) for job in jobs]

    async def read_documents(self, uid: str, job_ids: Iterable[str]) -> list[Event]:
        """The syncs of these jobs, of those too that do not exist (yet)."""
        pairs = [
            (name, self._document(uid, name, "job").path, self._document(uid, name, "older").path)
            for name in sorted(job_ids)
        ]
        async with _bounded():
            reads = await get_documents(self._firebase.client, [path for _, *paths in pairs for path in paths])
        found = _found(reads.values())
        return [
            sync_event(uid, job_id, found.get(job), found.get(older), as_of=_as_of((reads[job], reads[older])))
            for job_id, job, older in pairs
        ]

    async def _watch(self, source: AsyncCollectionReference | AsyncDocumentReference) -> AsyncGenerator[Batch, None]:
        pace = Pace()
        async with self._firebase.listen.watch(source) as batches:
            async for batch in batches:
                yield batch
                if not batch.initial:
                    await pace.told(len(batch.changes))

    def _collection(self, uid: str) -> AsyncCollectionReference:
        return self._firebase.client.collection(join("clients", uid, "task_manager"))

    def _document(self, uid: str, job_id: str, part: Part) -> AsyncDocumentReference:
        path = join("clients", uid, "task_manager", job_id)
        return self._firebase.client.document(path if part == "job" else f"{path}/document/initial_data")


@asynccontextmanager
async def _bounded() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            yield
    except TimeoutError:
        raise DeadlineExceeded("Firebase did not answer in time.") from None


def _found(reads: Iterable[Read]) -> dict[str, Document]:
    return {read.document.path: read.document for read in reads if read.document is not None}


def _as_of(reads: Iterable[Read]) -> datetime:
    """The earliest of their times: all of it holds as of then."""
    return min(read.read_time for read in reads)
