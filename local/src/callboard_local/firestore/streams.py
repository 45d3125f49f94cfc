"""One Listen stream: requests come in, targets live and go, snapshots go out."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

from google.cloud.firestore_v1 import types

from .database import Database
from .errors import FirestoreError, InvalidArgumentError, ResourceExhaustedError
from .messages import Document, ListenRequest, ListenResponse, Target
from .targets import ListenTarget, Update, compile_target

_Change: Any = types.TargetChange.TargetChangeType
_MAX_WAITING = 100_000


class ListenStream:
    """Writes, for every commit that concerns it, the changes of each target and then one NO_CHANGE.

    That last message names no target and carries the read time: now everything said before it is consistent.
    A document that several targets share is sent once, with all of their ids. A client that leaves more than
    `max_waiting` messages unread loses the stream.
    """

    def __init__(self, database: Database, max_waiting: int = _MAX_WAITING) -> None:
        self._database = database
        self._max_waiting = max_waiting
        self._targets: dict[int, ListenTarget] = {}
        self._outbox: asyncio.Queue[ListenResponse | None] = asyncio.Queue()
        self._failure: FirestoreError | None = None

    @property
    def idle(self) -> bool:
        """Whether the client has read everything."""
        return self._outbox.empty()

    async def responses(self) -> AsyncIterator[ListenResponse]:
        """What to send, until `close()`; raises the failure that ended the stream, if one did."""
        while (response := await self._outbox.get()) is not None:
            yield response
        if self._failure is not None:
            raise self._failure

    def handle(self, request: ListenRequest) -> None:
        """Add or remove a target."""
        match request.WhichOneof("target_change"):
            case "add_target":
                self._add(request.add_target)
            case "remove_target":
                self._remove(request.remove_target)
            case _:
                raise InvalidArgumentError("listen request changes no target")

    def advance(self, changed: Mapping[ListenTarget, Iterable[str]]) -> None:
        """Send what changed documents mean for these targets."""
        if self._outbox.qsize() > self._max_waiting:
            while not self._outbox.empty():
                self._outbox.get_nowait()
            self.close(ResourceExhaustedError("the client reads this stream too slowly"))
            return
        merged = _Merged()
        for target, paths in changed.items():
            merged.add(target.id, target.advance(self._database.view, paths))
        if merged:
            self._send_documents(merged)
            self._send_consistent()

    def close(self, failure: FirestoreError | None = None) -> None:
        """Forget the targets and end the responses."""
        for target in self._targets.values():
            self._database.listeners.discard(self, target)
        self._targets.clear()
        self._failure = failure
        self._outbox.put_nowait(None)

    def _add(self, wanted: Target) -> None:
        target_id = wanted.target_id or max(self._targets, default=0) + 1
        if target_id in self._targets:
            raise InvalidArgumentError(f"Target ID {target_id} is already in use on this stream.")
        self._send_change(_Change.ADD, [target_id])
        try:
            target = compile_target(self._database, target_id, wanted)
        except FirestoreError as error:
            self._send_removed(target_id, error)
            return
        self._targets[target_id] = target
        self._database.listeners.add(self, target)
        merged = _Merged()
        merged.add(target_id, self._first_updates(target, wanted))
        self._send_documents(merged)
        self._send_change(_Change.CURRENT, [target_id], consistent=True)
        self._send_consistent()
        if wanted.once:
            self._remove(target_id)

    def _first_updates(self, target: ListenTarget, wanted: Target) -> Iterable[Update]:
        view = self._database.view
        if not wanted.WhichOneof("resume_type"):
            return target.enter(view)
        missed = self._database.changes.since(wanted.resume_token)
        updates = None if missed is None else target.resume(view, missed)
        if updates is None:
            self._send_change(_Change.RESET, [target.id], consistent=True)
            return target.enter(view)
        return updates

    def _remove(self, target_id: int) -> None:
        target = self._targets.pop(target_id, None)
        if target is not None:
            self._database.listeners.discard(self, target)
            self._send_change(_Change.REMOVE, [target_id])

    def _send_documents(self, merged: "_Merged") -> None:
        read_time = self._database.now()
        for path, document, present, absent in merged:
            response = ListenResponse()
            if document is None:
                response.document_delete.document = f"{self._database.root}/{path}"
                response.document_delete.removed_target_ids.extend(absent)
                response.document_delete.read_time.FromMicroseconds(read_time)
            elif not present:
                response.document_remove.document = document.name
                response.document_remove.removed_target_ids.extend(absent)
                response.document_remove.read_time.FromMicroseconds(read_time)
            else:
                response.document_change.document.CopyFrom(document)
                response.document_change.target_ids.extend(present)
                response.document_change.removed_target_ids.extend(absent)
            self._send(response)

    def _send_consistent(self) -> None:
        self._send_change(_Change.NO_CHANGE, [], consistent=True)

    def _send_change(self, kind: Any, target_ids: list[int], *, consistent: bool = False) -> None:
        response = ListenResponse()
        change = response.target_change
        change.target_change_type = kind
        change.target_ids.extend(target_ids)
        if consistent:
            now = self._database.now()
            change.read_time.FromMicroseconds(now)
            change.resume_token = self._database.changes.token(now)
        self._send(response)

    def _send_removed(self, target_id: int, error: FirestoreError) -> None:
        response = ListenResponse()
        response.target_change.target_change_type = _Change.REMOVE
        response.target_change.target_ids.append(target_id)
        response.target_change.cause.code = error.code.value[0]
        response.target_change.cause.message = str(error)
        self._send(response)

    def _send(self, response: ListenResponse) -> None:
        self._outbox.put_nowait(response)


class _Merged:
    """The updates of several targets, one per document: the targets that it is in, and those that it left.

    Targets share an update when they share the document; a query that selects fields has one of its own.
    """

    def __init__(self) -> None:
        self._updates: dict[tuple[str, int], tuple[str, Document | None, list[int], list[int]]] = {}

    def __iter__(self) -> Iterator[tuple[str, Document | None, list[int], list[int]]]:
        return iter(self._updates.values())

    def __bool__(self) -> bool:
        return bool(self._updates)

    def add(self, target_id: int, updates: Iterable[Update]) -> None:
        for path, document, belongs in updates:
            new: tuple[str, Document | None, list[int], list[int]] = (path, document, [], [])
            _, _, present, absent = self._updates.setdefault((path, id(document)), new)
            (present if belongs else absent).append(target_id)
