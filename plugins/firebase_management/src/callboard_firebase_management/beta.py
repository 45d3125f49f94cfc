"""Requests to take part in the beta: the documents `beta_request/{email}`, one for each address.

Addresses are compared in small letters and without spaces around them. In a document's id, `%` and `/`, which an
address may hold, are written `%25` and `%2F`. A document that an earlier writer named by the address as it was typed
is found when the address is given the same way.
"""

from __future__ import annotations

from typing import Any

from google.cloud.firestore import SERVER_TIMESTAMP, AsyncDocumentReference

from callboard import AlreadyExists, InvalidArgs, method
from callboard_firebase import fields_from_wire, join, to_wire
from callboard_firebase_management.store import FirestoreService, repeatable, writing

COLLECTION = "beta_request"


class BetaRequests(FirestoreService):
    """One request by its address, and its upsert."""

    @method(effect="read")
    async def get_beta_request_by_email(self, email: str) -> dict[str, Any] | None:
        """The fields of the request from this address and `doc_id`; null when there is none."""
        found = await self.first_of(self._addressed(email))
        return {**to_wire(found.data), "doc_id": found.id} if found is not None else None

    @method(effect="write", retry_safe=repeatable)
    async def create_or_update_beta_request(self, payload: dict[str, Any]) -> str:
        """Write the request from `payload.email`, merging; returns the document's id.

        Fields that `payload` does not name stay; maps are merged key by key. `email` is stored normalised,
        `updated_at` becomes the server's time, and the first time `created_at` does too. A new request has
        `authorized_access` false unless `payload` says otherwise; an existing one keeps what it has. INVALID_ARGS:
        no address.
        """
        fields = fields_from_wire(payload)
        fields.pop("created_at", None)
        address = fields.get("email")
        addressed = self._addressed(address if isinstance(address, str) else "")
        fields |= {"email": normalised(str(address)), "updated_at": SERVER_TIMESTAMP}
        found = await self.first_of(addressed)
        if found is None:
            try:
                with writing(fields) as retry:
                    new = {"authorized_access": False, **fields, "created_at": SERVER_TIMESTAMP}
                    await addressed[0].create(new, retry=retry)
                return str(addressed[0].id)
            except AlreadyExists:
                pass  # by another call, or this one's write was sent twice
        reference = self.document(found.path) if found is not None else addressed[0]
        await self.put(reference, fields, merge=True)
        return str(reference.id)

    def _addressed(self, email: str) -> list[AsyncDocumentReference]:
        """Where the request from this address may be: by the address normalised, else as given."""
        names = dict.fromkeys([document_id(normalised(email)), document_id(email.strip())])
        return [self.document(join(COLLECTION, name)) for name in names]


def document_id(address: str) -> str:
    """What names the document of an address: the address, with no slash in it. Each has an id of its own."""
    return address.replace("%", "%25").replace("/", "%2F")


def normalised(email: str) -> str:
    """An address in small letters, without spaces around it. InvalidArgs: not one."""
    address = email.strip().lower()
    name, at, host = address.rpartition("@")
    if not (name and at and host) or any(character.isspace() for character in address):
        raise InvalidArgs("An email address is needed: name@host")
    return address
