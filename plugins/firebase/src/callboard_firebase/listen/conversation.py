"""One connection of a Listen stream: what was asked on it, and what the answers mean.

The rules of the protocol (google.firestore.v1, `ListenResponse` and `TargetChange`):
- a TargetChange without target ids speaks of every target;
- the stream is consistent when a NO_CHANGE without target ids carries a `read_time`; only then, and only for targets
  that are CURRENT, does what came before make a state;
- RESET starts a target's state anew; a filter whose count differs from ours says that removals were missed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol

from google.cloud.firestore import AsyncClient
from google.cloud.firestore_v1.types import ListenRequest, TargetChange

from callboard_firebase.listen.documents import Document, decode, timestamp
from callboard_firebase.listen.target import Target, remove_request

_Kind = TargetChange.TargetChangeType


class Verdicts(Protocol):
    """Who is told what the server decided about a target."""

    def on_settled(self, target: Target) -> None:
        """It took part in a snapshot."""

    def on_removed(self, target: Target, status: int) -> None:
        """The server took it off the connection; `status` is a gRPC status number, 0 for no cause given."""

    def on_mismatch(self, target: Target) -> None:
        """What we hold is not what the server holds; it was taken off the connection."""

    def on_undecodable(self, target: Target, error: Exception) -> None:
        """A document of it cannot be read."""


class Outbox(AsyncIterator[ListenRequest]):
    """The requests of one connection, read by gRPC's writer."""

    def __init__(self) -> None:
        self._requests: deque[ListenRequest] = deque()
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, request: ListenRequest) -> None:
        self._requests.append(request)
        self._ready.set()

    def close(self) -> None:
        self._closed = True
        self._ready.set()

    async def __anext__(self) -> ListenRequest:
        while not self._requests:
            if self._closed:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        return self._requests.popleft()


class Conversation:
    """The targets asked on one connection, and the reading of its responses."""

    def __init__(self, client: AsyncClient, verdicts: Verdicts) -> None:
        self._client = client
        self._database: str = client._database_string
        self._prefix = f"{self._database}/documents/"
        self._verdicts = verdicts
        self._clock = asyncio.get_running_loop().time
        self._asked: dict[int, Target] = {}
        self._owed: dict[Target, float] = {}
        self._touched: set[Target] = set()
        self._last_id = 0
        self._token = b""
        self.outbox = Outbox()
        self.heard_at = self._clock()
        self.answered = False
        """Some target was settled here: the server serves us."""

    def ask(self, target: Target) -> None:
        self._last_id += 1
        target.begin(self._last_id)
        self._asked[target.id] = target
        self._owe(target)
        self.outbox.put(target.add_request(self._database))

    def drop(self, target: Target, *, tell: bool = True) -> None:
        """Take a target off the connection. `tell`: the server does not know it yet."""
        if tell:
            self.outbox.put(remove_request(self._database, target.id))
        self._asked.pop(target.id, None)
        self._owed.pop(target, None)
        self._touched.discard(target)
        target.end(self._token)

    def end(self) -> None:
        """The connection is over: every target keeps the token of its last snapshot and forgets what came after."""
        self.outbox.close()
        for target in self._asked.values():
            target.end(self._token)
        self._asked.clear()
        self._owed.clear()
        self._touched.clear()

    def unproven(self) -> list[Target]:
        """The targets asked here that the server has never answered."""
        return [target for target in self._asked.values() if not target.proven]

    def longest_owed(self) -> tuple[Target, float] | None:
        """The target that waits longest for a snapshot, and since when (loop time); None when nothing is owed."""
        return next(iter(self._owed.items()), None)

    def receive(self, response: Any) -> None:
        """Take in one raw `ListenResponse`."""
        self.heard_at = self._clock()
        match response.WhichOneof("response_type"):
            case "target_change":
                self._target_change(response.target_change)
            case "document_change":
                self._document_change(response.document_change)
            case "document_delete":
                self._remove(response.document_delete.document, response.document_delete.removed_target_ids)
            case "document_remove":
                self._remove(response.document_remove.document, response.document_remove.removed_target_ids)
            case "filter":
                target = self._asked.get(response.filter.target_id)
                if target is not None and target.count() != response.filter.count:
                    self.drop(target)
                    self._verdicts.on_mismatch(target)

    def _target_change(self, change: Any) -> None:
        targets = self._among(change.target_ids) if change.target_ids else list(self._asked.values())
        kind = change.target_change_type
        if kind == _Kind.NO_CHANGE and not change.target_ids and change.HasField("read_time"):
            self._snapshot(change)
            return
        for target in targets:
            if kind == _Kind.REMOVE:
                self.drop(target, tell=False)
                self._verdicts.on_removed(target, change.cause.code)
                continue
            if kind == _Kind.RESET:
                target.reset()
            elif kind == _Kind.CURRENT:
                target.current = True
            if kind != _Kind.NO_CHANGE:
                self._touch(target)
            target.note_token(change.resume_token)

    def _snapshot(self, change: Any) -> None:
        self._token = change.resume_token or self._token
        read_time = timestamp(change.read_time)
        for target in [target for target in self._touched if target.current]:
            target.commit(read_time)
            self.answered = True
            self._touched.discard(target)
            self._owed.pop(target, None)
            self._verdicts.on_settled(target)

    def _document_change(self, change: Any) -> None:
        wire = change.document
        path = wire.name.removeprefix(self._prefix)
        update_time = timestamp(wire.update_time)
        decoded: list[Document] = []

        def decode_once() -> Document:
            if not decoded:
                decoded.append(decode(wire, path, self._client))
            return decoded[0]

        for target in self._among(change.target_ids):
            try:
                target.change(path, update_time, decode_once)
            except (ValueError, TypeError, OverflowError) as error:
                self._verdicts.on_undecodable(target, error)
            else:
                self._touch(target)
        self._remove(wire.name, change.removed_target_ids)

    def _remove(self, name: str, target_ids: Iterable[int]) -> None:
        path = name.removeprefix(self._prefix)
        for target in self._among(target_ids):
            target.remove(path)
            self._touch(target)

    def _among(self, target_ids: Iterable[int]) -> list[Target]:
        # Answers about targets that were dropped meanwhile are still on their way: they are nobody's.
        return [target for target_id in target_ids if (target := self._asked.get(target_id)) is not None]

    def _touch(self, target: Target) -> None:
        self._touched.add(target)
        self._owe(target)

    def _owe(self, target: Target) -> None:
        # Moved to the end: the first entry is always the one that waits longest.
        self._owed.pop(target, None)
        self._owed[target] = self._clock()
