"""The mirror's store: `listeners_registry/{uid}` in Firestore. Imported only where callboard-firebase is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.cloud.firestore import SERVER_TIMESTAMP, AsyncClient

from callboard.errors import InvalidArgs
from callboard_firebase import paths
from callboard_firebase.errors import translated
from callboard_registry.mirror import Entry

COLLECTION = "listeners_registry"
_WRITE_TIMEOUT_S = 10.0


class RegistryDocuments:
    """Writes entries in one batch; fields of other systems in the same documents stay."""

    def __init__(self, client: AsyncClient, *, ttl_s: float, instance_id: str) -> None:
        self._client = client
        self._ttl_seconds = int(ttl_s)
        self._instance_id = instance_id

    def accepts(self, uid: str) -> bool:
        """Some user ids, such as `..`, cannot name a document."""
        try:
            paths.segment(uid)
        except InvalidArgs:
            return False
        return True

    async def write(self, entries: Sequence[Entry]) -> None:
        """CallError when Firestore refuses or cannot be reached in ten seconds: nothing was written, or all."""
        batch = self._client.batch()
        for entry in entries:
            reference = self._client.document(paths.join(COLLECTION, entry.uid))
            batch.set(reference, self._fields(entry), merge=True)
        with translated():
            await batch.commit(retry=None, timeout=_WRITE_TIMEOUT_S)

    def _fields(self, entry: Entry) -> dict[str, Any]:
        fields = {
            "status": "online" if entry.online else "offline",
            "heartbeat_at": SERVER_TIMESTAMP,
            "ttl_seconds": self._ttl_seconds,
            "instance_id": self._instance_id,
        }
        # What an offline user may see is not known here any more; the document keeps what it had.
        return {**fields, "authorized_companies_ids": entry.companies} if entry.online else fields
