"""Jobs that run on a schedule: the documents `scheduler/{job_id}`, one for each mandate and type of job.

The id is made of both, so a job is found without a search: `clients/ada/bo_clients/b1/mandates/m1` and `router` make
`clients_ada_bo_clients_b1_mandates_m1_router`. Other names can make the same id (`…/m1_x` and `y`, `…/m1` and `x_y`):
the document says whose it is, and nothing is done to another's.
"""

from __future__ import annotations

from typing import Any

from google.cloud.firestore import DELETE_FIELD, SERVER_TIMESTAMP, AsyncDocumentReference
from google.cloud.firestore_v1.field_path import FieldPath

from callboard import FailedPrecondition, method
from callboard_firebase import Document, document_path, fields_from_wire, join, segment
from callboard_firebase_management.store import FirestoreService, Revision, repeatable

COLLECTION = "scheduler"


class Scheduler(FirestoreService):
    """Saves, disables, deletes. What runs the jobs is another program."""

    @method(effect="write", retry_safe=repeatable)
    async def save_scheduler_job(self, mandate_path: str, job_type: str, job_data: dict[str, Any]) -> str:
        """Save the job of this type of a mandate in place of what was saved before; returns its id.

        The document holds `job_data`, `mandate_path`, `job_type`, `updated_at`, `created_at` (the first time's), and
        `enabled`, true unless `job_data` says otherwise: a disabled job that is saved runs again. Saving twice makes
        one job. FAILED_PRECONDITION: the id belongs to the job of another mandate or type.
        """
        reference = self._scheduler_job(mandate_path, job_type)
        job = {
            "enabled": True,
            **fields_from_wire(job_data),
            "mandate_path": mandate_path,
            "job_type": job_type,
            "updated_at": SERVER_TIMESTAMP,
        }
        job.pop("created_at", None)

        def decide(found: Document | None) -> Revision:
            if found is None:
                return {**job, "created_at": SERVER_TIMESTAMP}
            if not _is_of(found, mandate_path, job_type):
                raise FailedPrecondition("The id of this job belongs to the job of another mandate or type.")
            gone = dict.fromkeys(found.data.keys() - job.keys() - {"created_at"}, DELETE_FIELD)
            return {FieldPath(name).to_api_repr(): value for name, value in {**gone, **job}.items()}

        await self.revise(reference, decide)
        return str(reference.id)

    @method(effect="write", retry_safe=True)
    async def disable_scheduler_job(self, mandate_path: str, job_type: str) -> bool:
        """Set `enabled` false, `disabled_at` and `updated_at` of a job; false when there is no such job."""

        def decide(found: Document | None) -> Revision:
            if found is None or not _is_of(found, mandate_path, job_type):
                return None
            return {"enabled": False, "disabled_at": SERVER_TIMESTAMP, "updated_at": SERVER_TIMESTAMP}

        return await self.revise(self._scheduler_job(mandate_path, job_type), decide)

    @method(effect="write", retry_safe=True)
    async def delete_scheduler_job_completely(self, job_id: str) -> int:
        """Delete `scheduler/{job_id}` and everything beneath it; returns how many documents, 0 when there was none."""
        return await self.delete_tree(self.document(join(COLLECTION, segment(job_id, "job_id"))))

    def _scheduler_job(self, mandate_path: str, job_type: str) -> AsyncDocumentReference:
        name = f"{document_path(mandate_path).replace('/', '_')}_{segment(job_type, 'job_type')}"
        return self.document(join(COLLECTION, name))


def _is_of(job: Document, mandate_path: str, job_type: str) -> bool:
    """Whether a job is this mandate's and of this type; one that does not say is taken to be."""
    return job.data.get("mandate_path", mandate_path) == mandate_path and job.data.get("job_type", job_type) == job_type
