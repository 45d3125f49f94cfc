"""Mandates, the companies that a user keeps the books of: `clients/{uid}/bo_clients/{id}/mandates/{id}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from google.cloud.firestore import AsyncQuery

from callboard import FailedPrecondition, method
from callboard.messages import check_identifier
from callboard_firebase import Document, find, get_documents, join, to_wire
from callboard_firebase_management.store import MAX_LISTED, FirestoreService

READ_AT_ONCE = 100
"""Customers in one request."""

_SHOWN = ("legal_name", "contact_space_name", "contact_space_id", "base_currency")


class MandateSummary(TypedDict):
    """A mandate in a list. A text that the documents do not have is empty."""

    mandate_path: str
    mandate_id: str
    client_id: str
    client_name: str
    legal_name: str
    contact_space_name: str
    contact_space_id: str
    base_currency: str
    isactive: bool


class Mandates(FirestoreService):
    """All of a user's in short, or one whole."""

    @method(effect="read")
    async def fetch_all_mandates_summary(self, user_id: str) -> list[MandateSummary]:
        """The mandates of all of a user's customers, in the order of their paths; `isactive` unless one says false.

        Costs one query, which finds the mandates beneath `clients/{user_id}` alone, and one read for each customer
        that has any; both bring the fields shown alone. At most 5,000 mandates; more are FAILED_PRECONDITION, never a
        silent cut.
        """
        user = join("clients", check_identifier(user_id, "user_id"))
        beneath = AsyncQuery(self.client.collection(f"{user}/mandates"), all_descendants=True)
        found = await find(self.client, beneath.select([*_SHOWN, "isactive"]).limit(MAX_LISTED + 1))
        if len(found) > MAX_LISTED:
            raise FailedPrecondition(f"There are more than {MAX_LISTED} mandates.")
        mandates = [one for one in found if _is_mandate(one.path)]
        names = await self._client_names(_client_of(one.path) for one in mandates)
        return [_summary(one, names[_client_of(one.path)]) for one in sorted(mandates, key=lambda one: one.path)]

    @method(effect="read")
    async def fetch_single_mandate(self, mandate_path: str) -> dict[str, Any] | None:
        """A mandate: its fields, `id`, `mandate_path`, and `parent_details`; null when there is none.

        `parent_details` is the customer above it, its fields and `parent_doc_id`; null when that document does not
        exist. Both are read in one request.
        """
        mandate = self.document(mandate_path)
        parent = mandate.parent.parent
        paths = [mandate.path, *([parent.path] if parent is not None else [])]
        reads = await get_documents(self.client, paths)
        if (found := reads[mandate.path].document) is None:
            return None
        above = reads[parent.path].document if parent is not None else None
        details = {**to_wire(above.data), "parent_doc_id": above.id} if above is not None else None
        return {**to_wire(found.data), "id": found.id, "mandate_path": found.path, "parent_details": details}

    async def _client_names(self, paths: Iterable[str]) -> dict[str, str]:
        """The names of the customers at these paths; empty where there is none."""
        names: dict[str, str] = {}
        different = sorted(set(paths))
        for start in range(0, len(different), READ_AT_ONCE):
            reads = await get_documents(self.client, different[start : start + READ_AT_ONCE], ["client_name"])
            names |= {
                path: _text(one.document.data if one.document else {}, "client_name") for path, one in reads.items()
            }
        return names


def _is_mandate(path: str) -> bool:
    segments = path.split("/")
    return len(segments) == 6 and segments[2::2] == ["bo_clients", "mandates"]


def _client_of(mandate_path: str) -> str:
    return mandate_path.rsplit("/", 2)[0]


def _summary(mandate: Document, client_name: str) -> MandateSummary:
    return MandateSummary(
        mandate_path=mandate.path,
        mandate_id=mandate.id,
        client_id=_client_of(mandate.path).rpartition("/")[2],
        client_name=client_name,
        legal_name=_text(mandate.data, "legal_name"),
        contact_space_name=_text(mandate.data, "contact_space_name"),
        contact_space_id=_text(mandate.data, "contact_space_id"),
        base_currency=_text(mandate.data, "base_currency"),
        isactive=mandate.data.get("isactive") is not False,
    )


def _text(fields: Mapping[str, Any], field: str) -> str:
    value = fields.get(field)
    return value if isinstance(value, str) else ""
