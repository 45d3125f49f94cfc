"""One target of a Listen stream: what is asked, and what the server has said of it since the last snapshot.

A target's life on a connection: asked → (ADD) → documents → CURRENT → snapshot, and from then on documents → snapshot.
What arrives between two snapshots is pending; a connection that ends throws it away, and the resume token of the last
snapshot brings it again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypeAlias

from google.cloud.firestore import (
    AsyncClient,
    AsyncCollectionReference,
    AsyncDocumentReference,
    AsyncQuery,
)
from google.cloud.firestore_v1.types import ListenRequest
from google.cloud.firestore_v1.types import Target as WireTarget

from callboard_firebase.listen.documents import Document
from callboard_firebase.listen.watch import Watch

Source: TypeAlias = AsyncQuery | AsyncCollectionReference | AsyncDocumentReference

_WireTarget = WireTarget.pb()
_WireRequest = ListenRequest.pb()


class Target:
    """What a watch asks for, and its state on the stream."""

    __slots__ = ("_fresh", "_next_token", "_pending", "_wire", "current", "id", "proven", "settled", "strikes",
                 "struck_at", "token", "watch")  # fmt: skip

    def __init__(self, wire: Any, watch: Watch) -> None:
        self._wire: bytes = wire.SerializeToString()  # a message costs a kilobyte more
        self.watch = watch
        self.id = 0
        """Its number on the present connection; 0 when it is not asked."""
        self.token = b""
        """Where the server is to resume; empty asks for the whole state."""
        self.proven = False
        """The server has answered it once: it is not what breaks the stream."""
        self.settled = False
        """It took part in a snapshot of this connection, and was not reset since."""
        self.current = False
        self.strikes = 0
        self.struck_at = 0.0
        self._next_token = b""
        self._fresh = True
        self._pending: dict[str, Document | None] | None = None

    @classmethod
    def of(cls, source: Source, watch: Watch) -> Target:
        """The target that listens to a query, a collection or a document. TypeError, ValueError: it cannot."""
        return cls(wire_target(source), watch)

    def begin(self, target_id: int) -> None:
        """It is about to be asked on a connection under this number."""
        self.id = target_id
        self.reset()
        self._fresh = not self.token

    def reset(self) -> None:
        """The server sends the whole state anew: what it does not name is gone."""
        # Not settled, so the stream's token is not for it: a snapshot of the others says nothing of this state.
        self.settled = self.current = False
        self._fresh = True
        self._pending = None
        self._next_token = b""

    def end(self, token: bytes) -> None:
        """The connection is over, or the target is taken off it. `token`: the stream's own as of the last snapshot."""
        if self.settled and token:
            self.token = token
        self.id = 0
        self.reset()

    def note_token(self, token: bytes) -> None:
        self._next_token = token or self._next_token

    def change(self, path: str, update_time: datetime, decode: Callable[[], Document]) -> None:
        """A document matches, in this version. One that is known in it already is neither decoded nor reported."""
        known = self.watch.documents.get(path)
        self._note(path, known if known is not None and known.update_time == update_time else decode())

    def remove(self, path: str) -> None:
        """A document does not match, or no longer."""
        self._note(path, None)

    def _note(self, path: str, document: Document | None) -> None:
        if self._pending is None:
            self._pending = {}
        self._pending[path] = document

    def count(self) -> int:
        """How many documents match, by all that was said so far."""
        pending = self._pending or {}
        if self._fresh:
            return sum(document is not None for document in pending.values())
        known = self.watch.documents
        return len(known) + sum((document is not None) - (path in known) for path, document in pending.items())

    def commit(self, read_time: datetime) -> None:
        """The stream is consistent and the target CURRENT: what is pending becomes the watch's state."""
        known = self.watch.documents
        pending = self._pending or {}
        named = known.keys() | pending.keys() if self._fresh else pending.keys()
        touched = [path for path in named if known.get(path) is not pending.get(path)]
        if touched:
            state = {} if self._fresh else dict(known)
            for path, document in pending.items():
                if document is None:
                    state.pop(path, None)
                else:
                    state[path] = document
            self.watch.update(MappingProxyType(state), touched, read_time)
        else:
            self.watch.update(known, (), read_time)
        self.token = self._next_token or self.token
        self._next_token = b""
        self._pending = None
        self._fresh = False
        self.settled = self.proven = True

    def add_request(self, database: str) -> ListenRequest:
        wire = _WireRequest()
        wire.database = database
        wire.add_target.MergeFromString(self._wire)
        wire.add_target.target_id = self.id
        if self.token:
            wire.add_target.resume_token = self.token
        return ListenRequest.wrap(wire)


def remove_request(database: str, target_id: int) -> ListenRequest:
    wire = _WireRequest()
    wire.database = database
    wire.remove_target = target_id
    return ListenRequest.wrap(wire)


def wire_target(source: Source) -> Any:
    """The raw `Target` message for a source, without its number. TypeError, ValueError: it cannot be listened to."""
    wire = _WireTarget()
    if isinstance(source, AsyncDocumentReference):
        wire.documents.documents.append(source._document_path)
        return wire
    query = source._query() if isinstance(source, AsyncCollectionReference) else source
    if not isinstance(query, AsyncQuery):
        raise TypeError(f"a watch takes an async query, collection or document, not {type(source).__name__}")
    if query._limit_to_last:
        raise ValueError("limit_to_last cannot be listened to: reverse the order and use limit")
    wire.query.parent = query._parent._parent_info()[0]
    wire.query.structured_query.CopyFrom(query._to_protobuf()._pb)
    return wire


def probe(client: AsyncClient) -> Target:
    """A question whose only use is its answer: a document that does not exist."""
    target = Target.of(client.document("callboard_probe/listen"), Watch())
    target.proven = True
    return target
