"""What one user's workflow events are computed from: the jobs' documents and the values last told.

A job is told as a whole (`workflow.sync`) the first time it is seen, when it comes into being or goes, when it changes
together with many others, and when it changed in several steps between two batches, of which a consumer may have read
one. Else only what changed is told. The tracker lives in the listener, so it goes when the user does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import nlargest
from typing import Any, Literal

from callboard import Event, event_id
from callboard_firebase import BURST, Batch, Document
from callboard_workflow_listener.job import STEPS, Job, differences, read_job

_NEVER = datetime.min.replace(tzinfo=UTC)

MAX_SYNCED = 200
"""Jobs told as a whole when listening to a collection begins: the most recently updated. An older one is told as a
whole when it changes."""

Part = Literal["job", "older"]
"""The job's own document, and the sub-document where older writers keep the invoice."""


@dataclass(slots=True)
class _Tracked:
    documents: dict[Part, Document | None] = field(default_factory=dict)
    """A part is missing while it is not known whether its document exists."""
    gone: dict[Part, Document] = field(default_factory=dict)
    """What a part was before it went."""
    as_of: datetime = _NEVER
    """The read time of the newest batch."""
    synced_as_of: datetime = _NEVER
    """`as_of` of the latest sync."""
    told: Job | None = None
    existed: bool = False

    def take(self, parts: dict[Part, Document | None], read_time: datetime) -> None:
        for part, document in parts.items():
            before = self.documents.get(part)
            if document is None and before is not None:
                self.gone[part] = before
            elif document is not None:
                self.gone.pop(part, None)
            self.documents[part] = document
        self.as_of = max(self.as_of, read_time)

    def updated_at(self) -> datetime:
        return max((document.update_time for document in self.documents.values() if document), default=self.as_of)

    def sync(self, uid: str, job_id: str) -> Event:
        self.synced_as_of = self.as_of
        job, older = self.documents["job"], self.documents["older"]
        return sync_event(uid, job_id, job, older, as_of=self.as_of, gone=self.gone.values())


class Tracker:
    def __init__(self, uid: str) -> None:
        self.uid = uid
        self._jobs: dict[str, _Tracked] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def clear(self) -> None:
        self._jobs.clear()

    def forget(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    def syncs(self) -> list[Event]:
        """Every job as a whole, as last told; of many, the most recently updated."""
        told = [(job_id, tracked) for job_id, tracked in self._jobs.items() if tracked.told is not None]
        return [
            tracked.sync(self.uid, job_id)
            for job_id, tracked in nlargest(MAX_SYNCED, told, key=lambda item: item[1].updated_at())
        ]

    def take_collection(self, batch: Batch) -> list[Event]:
        """The events of a batch of the whole collection. In a burst, at most one for each job."""
        burst = len(batch.changes) > BURST
        stepped = {change.document.path for change in batch.changes if change.several}
        present = [change.document for change in batch.changes if change.kind != "removed"]
        removed = [change.document for change in batch.changes if change.kind == "removed"]
        events = []
        for document in most_recent(present) if batch.initial else present:
            parts: dict[Part, Document | None] = {"job": document, "older": None}
            whole = document.path in stepped
            events += self._take(document.id, parts, batch.read_time, burst=burst, whole=whole)
        for document in removed:
            if document.id in self._jobs:
                events += self._take(document.id, {"job": None, "older": None}, batch.read_time)
                self.forget(document.id)
            else:
                # It came and went untold: a consumer that joined meanwhile has it in its own sync.
                as_of, gone = batch.read_time, [document]
                events.append(sync_event(self.uid, document.id, None, None, as_of=as_of, gone=gone))
        return events

    def take_document(self, job_id: str, part: Part, batch: Batch) -> list[Event]:
        """The events of a batch of one of a watched job's two documents; there are none until both are known."""
        whole = any(change.several for change in batch.changes)
        return self._take(job_id, {part: next(iter(batch.documents.values()), None)}, batch.read_time, whole=whole)

    def _take(
        self,
        job_id: str,
        parts: dict[Part, Document | None],
        read_time: datetime,
        *,
        burst: bool = False,
        whole: bool = False,
    ) -> list[Event]:
        tracked = self._jobs.setdefault(job_id, _Tracked())
        before = dict(tracked.documents)
        tracked.take(parts, read_time)
        if len(tracked.documents) < 2:
            return []
        job, older = tracked.documents["job"], tracked.documents["older"]
        told, tracked.told = tracked.told, read_job(_data(job), _data(older))
        existed, tracked.existed = tracked.existed, bool(job or older)
        if whole or told is None or existed != tracked.existed or (burst and told != tracked.told):
            return [tracked.sync(self.uid, job_id)]
        events = []
        for part, document in parts.items():
            if (cause := document or before.get(part)) is not None:
                version = [cause.path, cause.update_time.isoformat(), *([] if document else ["gone"])]
                # A sync that only one document's batch brought may be as of later than the other's change after it.
                timestamp = iso(max(cause.update_time, tracked.synced_as_of)) if document else ""
                events += self._changes(job_id, told, tracked.told, version, timestamp)
        return events

    def _changes(self, job_id: str, before: Job, after: Job, version: Iterable[str], timestamp: str) -> list[Event]:
        payloads: dict[str, dict[str, Any]] = {}
        if invoice := differences(before.invoice, after.invoice):
            payloads["workflow.invoice_update"] = {"invoice_changes": invoice}
        if steps := differences(before.steps, after.steps):
            payloads["workflow.step_update"] = {"step_changes": {STEPS: steps}}
        # The time is the source's own, as `as_of` is, so that a reader can compare the two.
        return [
            Event(
                id=event_id(*version, kind),
                type=kind,
                uid=self.uid,
                job_id=job_id,
                timestamp=timestamp,
                payload=payload,
            )
            for kind, payload in payloads.items()
        ]


def most_recent(documents: list[Document]) -> list[Document]:
    """At most `MAX_SYNCED` of them, the one updated last first."""
    return nlargest(MAX_SYNCED, documents, key=lambda document: document.update_time)


def sync_event(
    uid: str,
    job_id: str,
    job: Document | None,
    older: Document | None,
    *,
    as_of: datetime,
    gone: Iterable[Document] = (),
) -> Event:
    """A job's `workflow.sync`; its maps are empty when neither document exists.

    Its id is made of the documents' versions, and of the last ones of those that are `gone`: a job that comes and goes
    again and again is told with another id each time. Where no document was ever seen, of the time of the read.
    """
    values = read_job(_data(job), _data(older))
    versions = [_version(document) for document in (job, older) if document] + [f"{_version(one)} gone" for one in gone]
    return Event(
        id=event_id(*(versions or [uid, job_id, as_of.isoformat()]), "workflow.sync"),
        type="workflow.sync",
        uid=uid,
        job_id=job_id,
        payload={"job_id": job_id, "invoice": values.invoice, "steps": values.steps},
        as_of=iso(as_of),
    )


def _version(document: Document) -> str:
    return f"{document.path} {document.update_time.isoformat()}"


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _data(document: Document | None) -> dict[str, Any] | None:
    return document.data if document else None
