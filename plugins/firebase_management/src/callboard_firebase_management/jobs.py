"""Jobs: documents that say how a piece of work is doing, kept as a user's notifications.

A job lives in `clients/{uid}/notifications/{job_id|file_id|batch_id}`, or in any other collection the caller names.
"""

from __future__ import annotations

from typing import Any

from google.cloud.firestore import SERVER_TIMESTAMP, FieldFilter

from callboard import CallError, Event, InvalidArgs, NotFound, method
from callboard.messages import check_identifier
from callboard_firebase import Document, fields_from_wire, find, from_wire, get_document, segment, shorten
from callboard_firebase_management.items import MAX_TEXT_BYTES, moment
from callboard_firebase_management.store import FirestoreService, repeatable

CANDIDATES = 50
"""Documents looked at when a job's document does not bear its id as a name."""

_KNOWN = ("batch_id", "function_name", "file_id")


class Jobs(FirestoreService):
    """Upserts by id, and the status of a job."""

    @method(effect="write", retry_safe=repeatable)
    async def add_or_update_job_by_job_id(self, collection_path: str, job_data: dict[str, Any]) -> str:
        """Write a job to the document `{collection_path}/{job_data.job_id}`, merging; returns the id.

        Fields that `job_data` does not name stay; maps are merged key by key. The field `timestamp` becomes the
        server's time, whatever `job_data` says. INVALID_ARGS when `job_id` is missing, not a text, or cannot name a
        document. A new notification is unread (`read` false) unless `job_data` says otherwise; an existing one stays
        as read as it was.

        In `clients/{uid}/notifications` the write is followed by the event `notif.job_updated` to that user. The
        answer tells of the write: when Redis cannot be reached the event is lost, which is logged, and consumers catch
        up with the sync they get when it is back. A write that fails publishes nothing.
        """
        return await self._upsert(collection_path, job_data, "job_id")

    @method(effect="write", retry_safe=repeatable)
    async def add_or_update_job_by_file_id(self, collection_path: str, job_data: dict[str, Any]) -> str:
        """`add_or_update_job_by_job_id`, with the document named by `job_data.file_id`."""
        return await self._upsert(collection_path, job_data, "file_id")

    @method(effect="write", retry_safe=repeatable)
    async def add_or_update_job_by_batch_id(self, collection_path: str, job_data: dict[str, Any]) -> str:
        """`add_or_update_job_by_job_id`, with the document named by `job_data.batch_id`."""
        return await self._upsert(collection_path, job_data, "batch_id")

    @method(effect="read")
    async def check_job_status(self, user_id: str, job_id: str | None = None, file_id: str | None = None) -> str | None:
        """The `status` of a job of this user; null when there is no such job, or it has no status.

        Looks in `clients/{user_id}/notifications` for the document with this name, else for one whose field `job_id`
        (or `file_id`) has this value, the newest of up to 50. With both ids, `file_id` counts only when no job has
        `job_id`. INVALID_ARGS with neither.
        """
        if job_id is None and file_id is None:
            raise InvalidArgs("job_id or file_id is needed")
        for field, value in (("job_id", job_id), ("file_id", file_id)):
            if value is not None and (found := await self._find(user_id, field, value)):
                status = found.data.get("status")
                return status if isinstance(status, str) else None
        return None

    @method(effect="write", retry_safe=repeatable)
    async def update_job_status(
        self, user_id: str, job_id: str, new_status: str, additional_info: str | dict[str, Any] | None = None
    ) -> bool:
        """Set `status`, `timestamp` (the server's time) and, when given, `additional_info` of a job of this user.

        False when there is no such job; it is looked for as in `check_job_status`. `additional_info` replaces the old
        one. The user's listener turns the change into `notif.update`.
        """
        fields: dict[str, Any] = {"status": new_status, "timestamp": SERVER_TIMESTAMP}
        if additional_info is not None:
            fields["additional_info"] = from_wire(additional_info)
        try:
            await self.change(self.notifications(user_id).document(segment(job_id, "job_id")), fields)
            return True
        except NotFound:
            pass  # named by something else, or not there
        if (found := await self._newest_with(user_id, "job_id", job_id)) is None:
            return False
        try:
            await self.change(self.document(found.path), fields)
        except NotFound:
            return False  # deleted in between
        return True

    async def _upsert(self, path: str, job_data: dict[str, Any], id_field: str) -> str:
        collection = self.collection(path)
        uid = user_of_notifications(path)
        job = fields_from_wire(job_data)
        doc_id = job.get(id_field)
        if not isinstance(doc_id, str):
            raise InvalidArgs(f"job_data.{id_field} is needed: a text that names the document")
        reference = collection.document(segment(doc_id, f"job_data.{id_field}"))
        if uid is not None and "read" not in job and (await get_document(self.client, reference.path)).document is None:
            job["read"] = False  # a new notification that is neither read nor unread would be shown to nobody
        await self.put(reference, {**job, "timestamp": SERVER_TIMESTAMP}, merge=True)
        if uid is not None:
            await self._announce(uid, path, job, doc_id)
        return doc_id

    async def _announce(self, uid: str, path: str, job: dict[str, Any], doc_id: str) -> None:
        payload = {
            "job_id": _text_in(job, "job_id") or doc_id,
            "status": _text_in(job, "status"),
            "collection_path": path,
            **{field: value for field in _KNOWN if (value := _text_in(job, field)) is not None},
        }
        try:
            await self.context.publish(Event(type="notif.job_updated", uid=uid, payload=payload))
        except CallError as error:
            # The write stands, and an error would make the caller repeat it; the next sync brings the state.
            self.log.warning("publish_failed", type="notif.job_updated", code=error.code)

    async def _find(self, user_id: str, field: str, value: str) -> Document | None:
        named = self.notifications(user_id).document(segment(value, field))
        found = (await get_document(self.client, named.path)).document
        return found or await self._newest_with(user_id, field, value)

    async def _newest_with(self, user_id: str, field: str, value: str) -> Document | None:
        query = self.notifications(user_id).where(filter=FieldFilter(field, "==", value)).limit(CANDIDATES)
        found = await find(self.client, query)
        return max(found, key=lambda one: moment(one.data, one.update_time), default=None)


def user_of_notifications(path: str) -> str | None:
    """The uid in `clients/{uid}/…notifications…`; None for any other collection. InvalidArgs: not a uid."""
    segments = path.split("/")
    if segments[0] != "clients" or "notifications" not in segments[2:]:
        return None
    return check_identifier(segments[1], "the user in collection_path")


def _text_in(job: dict[str, Any], field: str) -> str | None:
    value = job.get(field)
    return shorten(value, MAX_TEXT_BYTES) if isinstance(value, str) and value else None
