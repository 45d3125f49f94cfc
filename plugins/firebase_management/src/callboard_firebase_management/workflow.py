"""A job's workflow document, `clients/{uid}/task_manager/{job_id}`, and what belongs to it.

    document.initial_data       the invoice, which the workflow listener watches
    APBookeeper_step_status     counters by step, watched too
    Document_information        what is known of the file
    jobs_data, journal_name     of a batch of bank transactions
    …/document/initial_data     where older writers keep the invoice: its fields, or a map `initial_data` of them
    …/internal_message/…        what was said about the job, see `internal_messages`

Writes merge: fields that are not given stay, maps are merged key by key, and a job that does not exist begins to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

import msgspec
from google.cloud.firestore import DELETE_FIELD, AsyncDocumentReference, Increment

from callboard import InvalidArgs, NotFound, method
from callboard_firebase import fields_from_wire, get_document, get_documents, to_wire, translated
from callboard_firebase_management.notifications import Notifications
from callboard_firebase_management.store import Fields, repeatable

STEPS = "APBookeeper_step_status"
INFORMATION = "Document_information"
RESTARTED = (STEPS, INFORMATION, "current_step", "document.initial_data")
"""The fields that a restart takes away."""

JobIds = str | Annotated[list[str], msgspec.Meta(max_length=500)]


class BatchDetails(TypedDict):
    """A batch of bank transactions. What the documents do not say is empty."""

    job_id: str
    status: str
    bank_account: Any
    transactions: list[Any]
    start_instructions: Any


class DeletedItems(TypedDict):
    """How many documents were deleted: a user's notifications, and those of the workflows."""

    notifications: int
    documents: int


class Workflow(Notifications):
    """Uploads and downloads of a job's parts, restart, and the end of jobs."""

    @method(effect="write", retry_safe=repeatable)
    async def upload_document_to_task_job_id(self, user_id: str, job_id: str, initial_document_data: Fields) -> bool:
        """Merge the invoice's fields into the map `document.initial_data` of a job; true.

        The user's workflow listener turns what changed into `workflow.invoice_update`. The sub-document of older
        writers stays as it is: where both have a field, this map's counts.
        """
        fields = fields_from_wire(initial_document_data)
        await self.put(self.job(user_id, job_id), {"document": {"initial_data": fields}}, merge=True)
        return True

    @method(effect="read")
    async def download_document_to_task_job_id(self, user_id: str, job_id: str) -> dict[str, Any] | None:
        """The invoice's fields of a job; null when nobody uploaded any.

        Two documents are read: the job's own, and `…/document/initial_data` of older writers, whose fields count
        where the map `document.initial_data` has none of that name.
        """
        job = self.job(user_id, job_id)
        own, beside = await self._fields([job, _older(job)])
        nested = beside.get("initial_data")
        if isinstance(nested, Mapping):
            beside = {**{name: value for name, value in beside.items() if name != "initial_data"}, **nested}
        invoice = {**beside, **_map(_map(own.get("document")).get("initial_data"))}
        return to_wire(invoice) if invoice else None

    @method(effect="write", retry_safe=repeatable)
    async def upload_invoice_step(self, user_id: str, job_id: str, invoice_step: Fields) -> bool:
        """Merge counters into the map `APBookeeper_step_status` of a job, `{step: count}`; true.

        A count is a finite number, `{"$op": "increment", "by": n}`, or `{"$op": "delete"}`; anything else is
        INVALID_ARGS, and nothing is written. The workflow listener turns what changed into `workflow.step_update`.
        """
        steps = fields_from_wire(invoice_step)
        for step, count in steps.items():
            if not (count is DELETE_FIELD or isinstance(count, Increment) or _is_count(count)):
                raise InvalidArgs(f"invoice_step: the count of `{step[:60]}` is not a number")
        await self.put(self.job(user_id, job_id), {STEPS: steps}, merge=True)
        return True

    @method(effect="read")
    async def download_invoice_step(self, user_id: str, job_id: str) -> dict[str, Any] | None:
        """The counters of a job, `{step: count}`, empty when it has none; null when there is no such job."""
        job = (await get_document(self.client, self.job(user_id, job_id).path)).document
        return to_wire(_map(job.data.get(STEPS))) if job is not None else None

    @method(effect="write", retry_safe=repeatable)
    async def upload_metadatas_to_job_id(self, user_id: str, job_id: str, metadata: Fields) -> bool:
        """Merge what is known of a job's file into the map `Document_information` of the job; true."""
        await self.put(self.job(user_id, job_id), {INFORMATION: fields_from_wire(metadata)}, merge=True)
        return True

    @method(effect="write", retry_safe=True)
    async def restart_job(self, user_id: str, job_id: str) -> bool:
        """Take a job back to before its first step, all at once or not at all; false when there is no such job.

        What the workflow has found goes: the fields `APBookeeper_step_status`, `current_step`, `Document_information`
        and `document.initial_data`, and the documents `…/document/initial_data` and `…/internal_message/audit_report`.
        What was ordered and said stays: the job's other fields, its messages and chats, and its notification, whose
        status the worker sets that takes the job up again. The listener tells the loss of the watched values.
        """
        job = self.job(user_id, job_id)
        batch = self.client.batch()
        batch.update(job, dict.fromkeys(RESTARTED, DELETE_FIELD))
        batch.delete(_older(job))
        batch.delete(job.collection("internal_message").document("audit_report"))
        try:
            with translated():
                await batch.commit()
        except NotFound:
            return False
        return True

    @method(effect="read")
    async def get_batch_details(self, user_id: str, batch_id: str) -> BatchDetails | None:
        """A batch of bank transactions; null when neither a workflow nor a notification bears this id.

        From `clients/{user_id}/task_manager/{batch_id}`: `transactions`, those of all maps in its list `jobs_data`
        (else its own field of that name); `bank_account`, the first in `jobs_data`, else its own, else
        `journal_name`; and `start_instructions`. `status` is that of the notification of this name, else the
        workflow's. `job_id` is `batch_id`.
        """
        job, notification = self.job(user_id, batch_id), self.notifications(user_id).document(batch_id)
        workflow, shown = await self._fields([job, notification])
        if not workflow and not shown:
            return None
        parts = [each for each in _list(workflow.get("jobs_data")) if isinstance(each, Mapping)]
        transactions = [one for part in parts for one in _list(part.get("transactions"))]
        accounts = [*(part.get("bank_account") for part in [*parts, workflow]), workflow.get("journal_name")]
        statuses = (shown.get("status"), workflow.get("status"))
        return BatchDetails(
            job_id=batch_id,
            status=next((one for one in statuses if isinstance(one, str)), ""),
            bank_account=to_wire(next(filter(None, accounts), "")),
            transactions=to_wire(transactions or _list(workflow.get("transactions"))),
            start_instructions=to_wire(workflow.get("start_instructions") or ""),
        )

    @method(effect="write", retry_safe=True)
    async def delete_items_by_job_id(self, user_id: str, job_ids: JobIds) -> DeletedItems:
        """Delete all that a user has of one job or of up to 500, up to 200 documents at a time; returns how many.

        Of each: its notifications, as `delete_notifications` finds them, and its document in
        `clients/{user_id}/task_manager` with everything beneath, the document last. All ids are checked before
        anything is deleted; a job that does not exist is no error. A call that was interrupted and is repeated finds
        what is left, and counts that alone.
        """
        jobs = [self.job(user_id, one) for one in dict.fromkeys([job_ids] if isinstance(job_ids, str) else job_ids)]
        deleted = DeletedItems(notifications=0, documents=0)
        for job in jobs:
            deleted["notifications"] += await self.delete_notifications(user_id, job.id)
            deleted["documents"] += await self.delete_tree(job)
        return deleted

    async def _fields(self, references: Sequence[AsyncDocumentReference]) -> list[Mapping[str, Any]]:
        """Of each of these documents; none of one that does not exist, or is empty."""
        reads = await get_documents(self.client, [reference.path for reference in references])
        found = [reads[reference.path].document for reference in references]
        return [one.data if one is not None else {} for one in found]


def _older(job: AsyncDocumentReference) -> AsyncDocumentReference:
    found: AsyncDocumentReference = job.collection("document").document("initial_data")
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
