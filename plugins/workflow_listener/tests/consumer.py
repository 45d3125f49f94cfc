"""A consumer that keeps a user's jobs as `docs/delivery.md` says, and one that forgets a rule of it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from callboard import Event


class Consumer:
    """`jobs` by id, from syncs and deltas. `heeds_as_of` false: it applies deltas older than the job's last sync."""

    def __init__(self, *, heeds_as_of: bool = True) -> None:
        self._jobs: dict[str, dict[str, dict[str, Any]]] = {}
        self.took: list[Event] = []
        self._heeds_as_of = heeds_as_of
        self._as_of: dict[str, datetime] = {}
        self._ids: set[str] = set()

    @property
    def jobs(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Those of which anything is known: a job that is gone has empty maps."""
        return {job_id: job for job_id, job in self._jobs.items() if any(job.values())}

    def take_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self.take(event)

    def take(self, event: Event) -> None:
        self.took.append(event)
        job_id, payload = event.job_id, event.payload
        assert job_id is not None
        if event.id in self._ids:
            return
        self._ids.add(event.id)
        if event.type == "workflow.sync":
            assert event.as_of is not None
            self._jobs[job_id] = {"invoice": dict(payload["invoice"]), "steps": dict(payload["steps"])}
            self._as_of[job_id] = datetime.fromisoformat(event.as_of)
            return
        as_of = self._as_of.get(job_id)
        if self._heeds_as_of and as_of and event.timestamp and datetime.fromisoformat(event.timestamp) < as_of:
            return
        job = self._jobs.setdefault(job_id, {"invoice": {}, "steps": {}})
        for part, changes in (
            ("invoice", payload.get("invoice_changes", {})),
            ("steps", payload.get("step_changes", {}).get("APBookeeper_step_status", {})),
        ):
            merged = {**job[part], **changes}
            job[part] = {name: value for name, value in merged.items() if value is not None}
