"""Clients of the service and their customers: `clients/{uid}` and `clients/{uid}/bo_clients/{id}`.

A user's own record among the customers bears the user's id: companies of the user's own lie beneath it.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Any

from google.cloud.firestore import SERVER_TIMESTAMP, AsyncDocumentReference

from callboard import AlreadyExists, FailedPrecondition, InvalidArgs, method
from callboard.messages import check_identifier
from callboard_firebase import fields_from_wire, find, get_documents, join, to_wire
from callboard_firebase_management.store import MAX_LISTED, FirestoreService, repeatable, writing


class Clients(FirestoreService):
    """The first documents of a user, and the list of customers."""

    @method(effect="write", retry_safe=repeatable)
    async def check_and_create_client_document(self, user_data: dict[str, Any]) -> bool:
        """Create the documents of a user who has none; true when they were created, false when there were some.

        `user_data` is what the sign-in knows: `uid` (INVALID_ARGS without), and as far as known `email`,
        `displayName` and whatever else; it is stored as it is, so tokens are to be left out. Both documents are
        created at once, and once, however many calls come:

        `clients/{uid}`: `user_data`, `client_email`, `client_name` (the `displayName`, else the email), `created_at`;
        `clients/{uid}/bo_clients/{uid}`: `client_name`, `client_uuid` (generated), `created_at`.

        A document that exists stays as it is; when only one does, the other is created.
        """
        uid = check_identifier(user_data.get("uid", ""), "user_data.uid")
        fields = fields_from_wire(user_data)
        email, name = (_text(fields, field) for field in ("email", "displayName"))
        client = self.client.document(join("clients", uid))
        company = client.collection("bo_clients").document(uid)
        client_uuid = f"client_{secrets.token_hex(8)}"
        created: dict[str, dict[str, Any]] = {
            client.path: {
                **fields,
                "client_email": email,
                "client_name": name or email,
                "created_at": SERVER_TIMESTAMP,
            },
            company.path: {"client_name": name or email, "client_uuid": client_uuid, "created_at": SERVER_TIMESTAMP},
        }
        try:
            await self._create(created, [client, company])
            return True
        except AlreadyExists:
            pass  # made by an earlier call, or by this one: Google's client repeats a write that got no answer
        reads = await get_documents(self.client, list(created))
        found = reads[company.path].document
        if found is not None and found.data.get("client_uuid") == client_uuid:
            return True
        filled = set()
        for missing in (each for each in (client, company) if reads[each.path].document is None):
            with suppress(AlreadyExists):  # another call saw the same gap
                await self._create(created, [missing])
                filled.add(missing.path)
        return client.path in filled

    @method(effect="read")
    async def get_customer_list(self, user_id: str) -> list[dict[str, Any]]:
        """A user's customers, the documents of `clients/{user_id}/bo_clients`, in the order of their ids.

        Each is its fields and `doc_id`. The user's own record, which has the user's id, is left out. At most 5,000;
        more are FAILED_PRECONDITION, never a silent cut.
        """
        uid = check_identifier(user_id, "user_id")
        query = self.client.collection(join("clients", uid, "bo_clients")).limit(MAX_LISTED + 1)
        found = await find(self.client, query)
        if len(found) > MAX_LISTED:
            raise FailedPrecondition(f"There are more than {MAX_LISTED} customers.")
        return [{**to_wire(one.data), "doc_id": one.id} for one in found if one.id != uid]

    async def _create(self, created: dict[str, dict[str, Any]], references: list[AsyncDocumentReference]) -> None:
        """Create these documents, all or none; AlreadyExists."""
        batch = self.client.batch()
        with writing(created) as retry:
            for reference in references:
                batch.create(reference, created[reference.path])
            await batch.commit(retry=retry)


def _text(fields: dict[str, Any], field: str) -> str:
    value = fields.get(field) or ""
    if not isinstance(value, str):
        raise InvalidArgs(f"user_data.{field} is a text")
    return value
