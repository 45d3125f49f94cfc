"""Documents by path: the general methods, for any collection.

`data` is JSON; sentinels such as `{"$op": "server_timestamp"}` may stand for values (CONTRACT, RPC). What comes back is
JSON too: timestamps as ISO 8601 in UTC, geographical points as maps, references as paths, bytes as base64. A path that
names no document or collection, and data that Firestore cannot hold, are INVALID_ARGS.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from google.cloud.firestore import SERVER_TIMESTAMP, FieldFilter

from callboard import FailedPrecondition, method
from callboard_firebase import fields_from_wire, find, get_document, segment, to_wire
from callboard_firebase_management.store import DELETE_BATCH, BatchSize, Fields, FirestoreService, Merge, repeatable

MAX_FETCHED = 5_000
"""Documents that one fetch may return."""

MaxDocs = Annotated[int, msgspec.Meta(ge=1, le=MAX_FETCHED)]


class Documents(FirestoreService):
    """Adds, sets, gets, updates, deletes, and one query."""

    @method
    async def add_document(self, collection_path: str, data: dict[str, Any], merge: Merge = None) -> str:
        """Add a document with a generated id and a `timestamp`, the server's time; returns the id.

        A new document has nothing to merge with: `merge` true writes what false does. A list of field paths writes
        those fields of `data` alone, and the timestamp.
        """
        if isinstance(merge, list):
            merge = [*merge, *({"timestamp"} - set(merge))]
        fields = {**fields_from_wire(data), "timestamp": SERVER_TIMESTAMP}
        return await self._add(collection_path, fields, merge)

    @method
    async def add_new_document(self, collection_path: str, data: dict[str, Any]) -> str:
        """Add a document with a generated id that holds `data` and nothing else; returns the id."""
        return await self._add(collection_path, fields_from_wire(data))

    @method(effect="write", retry_safe=repeatable)
    async def add_document_without_timestamp(
        self, collection_path: str, doc_id: str, data: dict[str, Any], merge: Merge = None
    ) -> str:
        """Write `data`, and nothing else, to the document `{collection_path}/{doc_id}`; returns `doc_id`.

        `merge` true leaves the other fields of an existing document as they are, a list of field paths writes those
        fields alone; otherwise the document is replaced.
        """
        reference = self.collection(collection_path).document(segment(doc_id, "doc_id"))
        await self.put(reference, fields_from_wire(data), merge)
        return doc_id

    @method(effect="write", retry_safe=repeatable)
    async def set_document(self, document_path: str, data: dict[str, Any], merge: Merge = False) -> bool:
        """Write the document at this path; true. `merge` as in `add_document_without_timestamp`."""
        await self.put(self.document(document_path), fields_from_wire(data), merge)
        return True

    @method(effect="read")
    async def get_document(self, document_path: str) -> dict[str, Any] | None:
        """The document's fields; null when there is none."""
        found = (await get_document(self.client, self.document(document_path).path)).document
        return to_wire(found.data) if found is not None else None

    @method(effect="read")
    async def get_raw_document(self, document_path: str) -> dict[str, Any] | None:
        """The document with what Firestore knows of it; null when there is none.

        `{"id", "path", "create_time", "update_time", "read_time", "data"}`: the times are ISO 8601 in UTC with
        microseconds, `data` is what `get_document` returns.
        """
        read = await get_document(self.client, self.document(document_path).path)
        if (found := read.document) is None:
            return None
        return {
            "id": found.id,
            "path": found.path,
            "create_time": to_wire(found.create_time),
            "update_time": to_wire(found.update_time),
            "read_time": to_wire(read.read_time),
            "data": to_wire(found.data),
        }

    @method(effect="write", retry_safe=repeatable)
    async def update_firebase_doc(self, doc_path: str, update_data: Fields) -> bool:
        """Alter fields of a document; true. NOT_FOUND when there is none.

        A key is a field path: `address.city` alters one field inside a map and leaves its neighbours; `address`
        replaces the map. A name with a dot in it stands in backticks.
        """
        await self.change(self.document(doc_path), fields_from_wire(update_data))
        return True

    @method(effect="write", retry_safe=True)
    async def delete_doc_id(self, doc_path: str) -> bool:
        """Delete the document at this path; true, whether or not there was one. Its sub-collections stay."""
        await self.delete_all([self.document(doc_path)])
        return True

    @method(effect="write", retry_safe=True)
    async def delete_document_recursive(self, doc_path: str, batch_size: BatchSize = 100) -> int:
        """Delete a document and everything beneath it, `batch_size` (1 to 500) documents at a time.

        Returns the number of documents deleted. The document itself goes last: a call that was interrupted and is
        repeated finds what is left. Documents added meanwhile may survive.
        """
        return await self.delete_tree(self.document(doc_path), batch_size)

    @method(effect="write", retry_safe=True)
    async def delete_documents_by_full_paths(self, document_paths: list[str]) -> int:
        """Delete the documents at these paths; returns how many different paths there were.

        All paths are checked before anything is deleted. A path without a document is no error. Up to 200 documents
        are deleted at a time: when the call fails in between, those before are gone.
        """
        references = [self.document(path) for path in dict.fromkeys(document_paths)]
        for start in range(0, len(references), DELETE_BATCH):
            await self.delete_all(references[start : start + DELETE_BATCH])
        return len(references)

    @method(effect="read")
    async def fetch_documents_from_firestore(
        self, collection_path: str, mandat_id_value: str, max_docs: MaxDocs | None = None
    ) -> list[dict[str, Any]]:
        """The documents of a collection whose field `mandat_id` is this value, in the order of their ids.

        Each is its fields and `doc_id`, its id. At most `max_docs` of them (1 to 5,000). Without `max_docs` all of
        them, or FAILED_PRECONDITION when there are more than 5,000.
        """
        query = self.collection(collection_path).where(filter=FieldFilter("mandat_id", "==", mandat_id_value))
        found = await find(self.client, query.limit(max_docs or MAX_FETCHED + 1))
        if len(found) > MAX_FETCHED:
            raise FailedPrecondition(f"More than {MAX_FETCHED} documents match; say how many are wanted: max_docs.")
        return [{**to_wire(document.data), "doc_id": document.id} for document in found]

    async def _add(self, path: str, fields: dict[str, Any], merge: Merge = None) -> str:
        # `set`, not `create`: Google's client repeats a write that got no answer, and `create` then finds the document
        # it made itself. The generated id has 119 random bits.
        reference = self.collection(path).document()
        await self.put(reference, fields, merge)
        return str(reference.id)
