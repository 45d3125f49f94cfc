"""What every group of methods stands on: Firestore, reached by path, with our errors and our values."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from google.api_core.gapic_v1.method import DEFAULT
from google.cloud.firestore import (
    AsyncClient,
    AsyncCollectionReference,
    AsyncDocumentReference,
    AsyncQuery,
    Increment,
)
from google.cloud.firestore_v1.field_path import FieldPath

from callboard import (
    Aborted,
    AlreadyExists,
    Cancelled,
    ConfigurationError,
    FailedPrecondition,
    InvalidArgs,
    NotFound,
    Service,
    Unavailable,
)
from callboard.errors import DeadlineExceeded, OutcomeUnknown
from callboard.messages import check_identifier
from callboard_firebase import (
    Document,
    Firebase,
    collection_path,
    document_path,
    get_document,
    get_documents,
    join,
    segment,
    translated,
)

Merge: TypeAlias = bool | Annotated[list[str], msgspec.Meta(min_length=1)] | None
"""None or False: the document is replaced; True: fields not given stay; a list: these fields alone are written.
Its items are field paths, `address.city`; a name with a dot in it stands in backticks."""

BatchSize: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=500)]
DELETE_BATCH = 200
"""Documents deleted at a time where the caller has no say: well below what one commit may hold."""

MAX_LISTED = 5_000
"""Documents in one list."""

Fields: TypeAlias = Annotated[dict[str, Any], msgspec.Meta(min_length=1)]
"""At least one field: merging an empty map would empty the one that is there."""

Revision: TypeAlias = Mapping[str, Any] | Literal["delete"] | None
"""What becomes of a document: None: nothing; fields: those of a new one, else what changes, by field path."""

REVISIONS = 12
REVISION_BACK_OFF_S = 0.01, 0.5
"""Attempts at a document that others write meanwhile, and the pause between them: first and last, full jitter."""


class FirestoreService(Service):
    """Opens the app's Firebase and offers reads and writes on it."""

    firebase: Firebase

    async def open(self) -> None:
        """Join the Firebase that the app's plugins share. ConfigurationError: none is configured."""
        self.firebase = await self.host.shared(Firebase)
        if not self.firebase.configured:
            raise ConfigurationError(
                "no Firebase is configured: set GOOGLE_PROJECT_ID, and FIREBASE_ADMIN_JSON or "
                "GOOGLE_APPLICATION_CREDENTIALS (FIRESTORE_EMULATOR_HOST for an emulator)"
            )

    async def health(self) -> dict[str, Any]:
        """`firestore_health`, or the error that Firestore ends it with."""
        return await firestore_health(self.firebase)

    @property
    def client(self) -> AsyncClient:
        return self.firebase.client

    def document(self, path: str) -> AsyncDocumentReference:
        return self.client.document(document_path(path))

    def collection(self, path: str) -> AsyncCollectionReference:
        return self.client.collection(collection_path(path))

    def notifications(self, user_id: str) -> AsyncCollectionReference:
        return self.client.collection(join("clients", check_identifier(user_id, "user_id"), "notifications"))

    def job(self, user_id: str, job_id: str) -> AsyncDocumentReference:
        """The document of a job's workflow: `clients/{user_id}/task_manager/{job_id}`."""
        user = check_identifier(user_id, "user_id")
        return self.client.document(join("clients", user, "task_manager", segment(job_id, "job_id")))

    async def first_of(self, references: Sequence[AsyncDocumentReference]) -> Document | None:
        """The first of these documents that exists, read in one request."""
        reads = await get_documents(self.client, [reference.path for reference in references])
        return next((found for read in references if (found := reads[read.path].document) is not None), None)

    async def put(self, reference: AsyncDocumentReference, fields: Mapping[str, Any], merge: Merge = None) -> None:
        """Write a document whether or not it exists."""
        with writing(fields) as retry:
            # Google's annotation says bool; its documentation, and its code, take a list of paths as well.
            how: Any = [FieldPath.from_string(path) for path in merge] if isinstance(merge, list) else bool(merge)
            await reference.set(dict(fields), merge=how, retry=retry)

    async def change(self, reference: AsyncDocumentReference, fields: Mapping[str, Any]) -> None:
        """Alter fields, named by their paths, of a document that exists; NotFound."""
        with writing(fields) as retry:
            await reference.update(dict(fields), retry=retry)

    async def revise(self, reference: AsyncDocumentReference, decide: Callable[[Document | None], Revision]) -> bool:
        """Write what `decide` makes of a document as it is, so that nobody else's write falls in between.

        `decide` gets the document, None when there is none, and is asked anew after each write that lost. Returns
        whether anything was written. Aborted: every attempt lost. A write whose answer was lost is sent again by
        Google's client, finds the document changed (by itself), and is decided anew as well.
        """
        first_s, last_s = REVISION_BACK_OFF_S
        for attempt in range(REVISIONS):
            found = (await get_document(self.client, reference.path)).document
            revision = decide(found)
            if revision is None or (found is None and revision == "delete"):
                return False
            try:
                await self._write_unless_changed(reference, found, revision)
                return True
            except OutcomeUnknown:
                raise
            except (AlreadyExists, FailedPrecondition, NotFound, Aborted):
                await asyncio.sleep(random.uniform(0, min(last_s, first_s * 2**attempt)))  # noqa: S311 - jitter
        raise Aborted("The document was changed by others again and again.")

    async def _write_unless_changed(
        self, reference: AsyncDocumentReference, found: Document | None, revision: Mapping[str, Any] | Literal["delete"]
    ) -> None:
        fields = {} if revision == "delete" else dict(revision)
        with writing(fields) as retry:
            if found is None:
                await reference.create(fields, retry=retry)
                return
            option: Any = self.client.write_option(last_update_time=found.update_time)
            if revision == "delete":
                await reference.delete(option=option, retry=retry)
            else:
                await reference.update(fields, option=option, retry=retry)

    async def delete_one(self, reference: AsyncDocumentReference) -> bool:
        """Delete a document; whether there was one."""
        try:
            with translated():
                await reference.delete(option=self.client.write_option(exists=True))
        except NotFound:
            return False
        return True

    async def delete_found(self, query: AsyncQuery, batch_size: int = DELETE_BATCH) -> int:
        """Delete what a query ordered by `__name__` finds, batch by batch; returns how many."""
        deleted = 0
        page = query.select(["__name__"]).limit(batch_size)
        while True:
            with translated():
                found = [snapshot.reference async for snapshot in page.stream()]
                await self.delete_all(found)
            deleted += len(found)
            if len(found) < batch_size:
                return deleted
            # Behind the last one: going through the deleted documents again costs Firestore time.
            page = page.start_after([found[-1]])

    async def delete_tree(self, reference: AsyncDocumentReference, batch_size: int = DELETE_BATCH) -> int:
        """Delete a document and everything beneath it, batch by batch, itself last; returns how many documents."""
        deleted = 0
        with translated():
            below = [collection async for collection in reference.collections()]
        for collection in below:
            deleted += await self.delete_found(collection.recursive(), batch_size)
        return deleted + await self.delete_one(reference)

    async def delete_all(self, references: Sequence[AsyncDocumentReference]) -> None:
        """Delete documents in one commit, all or none; one that does not exist is no error. At most 500."""
        if references:
            batch = self.client.batch()
            for reference in references:
                batch.delete(reference)
            with translated():
                await batch.commit()


async def firestore_health(firebase: Firebase) -> dict[str, Any]:
    """One cheap read: `{"status": "ok", "read_ms", "listen"}`, or the error that Firestore ends it with.

    `listen` is how the streams behind the listeners are doing: see `ListenStats` of callboard-firebase.
    """
    if not firebase.configured:
        return {"status": "not configured"}
    took_s = await firebase.check()
    return {"status": "ok", "read_ms": round(took_s * 1000), "listen": asdict(firebase.listen.stats())}


def repeatable(arguments: Mapping[str, Any]) -> bool:
    """Whether writing what these arguments hold twice ends in the same state: nothing in them is an increment."""
    return not any(_increments(value) for value in arguments.values())


@contextmanager
def writing(fields: Mapping[str, Any]) -> Iterator[Any]:
    """Around one write: Google's errors as ours. Yields what to pass as the write's `retry`.

    Writing the same values twice ends in the same state, an increment does not: so a write that counts is not repeated
    by Google's client, and when its end is not seen it is ABORTED with outcome "unknown", which nobody may retry.
    """
    counts = _counts(fields)
    try:
        with translated():
            yield None if counts else DEFAULT
    except (Unavailable, DeadlineExceeded, Cancelled) as error:
        if counts:
            raise OutcomeUnknown("The increment was sent; whether it took effect is not known.") from error
        raise
    except (ValueError, TypeError) as error:
        # Google's client checks field paths and where sentinels stand before it sends anything.
        raise InvalidArgs(
            "The data cannot be written like this: check merge, field paths (a name with a dot in it stands in "
            "backticks), and that `delete` is used with merge or update only."
        ) from error


def _counts(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(_counts(item) for item in value.values())
    return isinstance(value, Increment)


def _increments(value: object) -> bool:
    """As `_counts`, of JSON; what only looks like an increment counts too."""
    if isinstance(value, Mapping):
        return value.get("$op") == "increment" or any(_increments(item) for item in value.values())
    return False
