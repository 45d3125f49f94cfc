"""Telegram users and the mandates they may act for: the documents `telegram_users/{username}`.

    {"telegram_username": "ada", "is_active": true, "telegram_chat_id": null, "last_activity": null,
     "authorized_mandates": {mandate_path: {"firebase_user_id", "mandate_path", "added_at", …}},
     "created_at", "updated_at"}

Telegram does not tell capitals in usernames apart, so neither does this: documents are named in small letters, without
`@`. One that an earlier writer named with capitals is found when it is asked for with the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.cloud.firestore import DELETE_FIELD, SERVER_TIMESTAMP, AsyncDocumentReference
from google.cloud.firestore_v1.field_path import FieldPath

from callboard import method
from callboard.messages import check_identifier
from callboard_firebase import Document, document_path, fields_from_wire, join, segment, to_wire
from callboard_firebase_management.store import FirestoreService, Revision, repeatable

COLLECTION = "telegram_users"
MANDATES = "authorized_mandates"


class Telegram(FirestoreService):
    """Who may act for a mandate, over Telegram."""

    @method(effect="write", retry_safe=repeatable)
    async def create_telegram_user(
        self,
        user_id: str,
        mandate_path: str,
        telegram_username: str,
        additional_data: dict[str, Any] | None = None,
    ) -> bool:
        """Let a Telegram user act for a mandate of `user_id`; false when they may already, and nothing changes.

        Creates `telegram_users/{username}`, active, or adds the mandate to the one that exists, which stays as active
        as it was. `additional_data` is kept with the mandate. Two calls for one user at once lose neither mandate.
        """
        mandate = {
            **fields_from_wire(additional_data or {}),
            "firebase_user_id": check_identifier(user_id, "user_id"),
            "mandate_path": document_path(mandate_path),
            "added_at": SERVER_TIMESTAMP,
        }
        reference = await self._telegram_user(telegram_username)

        def decide(found: Document | None) -> Revision:
            if found is None:
                return {
                    "telegram_username": reference.id,
                    "is_active": True,
                    "telegram_chat_id": None,
                    "last_activity": None,
                    MANDATES: {mandate_path: mandate},
                    "created_at": SERVER_TIMESTAMP,
                    "updated_at": SERVER_TIMESTAMP,
                }
            if mandate_path in _mandates(found.data):
                return None
            return {FieldPath(MANDATES, mandate_path).to_api_repr(): mandate, "updated_at": SERVER_TIMESTAMP}

        return await self.revise(reference, decide)

    @method(effect="read")
    async def get_telegram_user_by_username(self, telegram_username: str) -> dict[str, Any] | None:
        """The fields of a Telegram user and `doc_id`, active or not; null when there is none."""
        found = await self.first_of(self._named(telegram_username))
        return {**to_wire(found.data), "doc_id": found.id} if found is not None else None

    @method(effect="read")
    async def is_telegram_user_authorized(self, telegram_username: str, mandate_path: str) -> bool:
        """Whether there is such a Telegram user, `is_active` is true, and the mandate is one of theirs."""
        path = document_path(mandate_path)
        found = await self.first_of(self._named(telegram_username))
        return found is not None and found.data.get("is_active") is True and path in _mandates(found.data)

    @method(effect="write", retry_safe=True)
    async def delete_telegram_user(self, telegram_username: str, mandate_path: str | None = None) -> bool:
        """Withdraw a mandate from a Telegram user, or without `mandate_path` delete the user; false: there was none.

        A user whose last mandate is withdrawn is deleted, unless another one is added at that moment. Where there are
        two documents of one user, in small letters and as given, this is done to both.
        """
        named = self._named(telegram_username)
        if mandate_path is None:
            return any([await self.delete_one(each) for each in named])  # a list: all of them
        path = document_path(mandate_path)

        def decide(found: Document | None) -> Revision:
            mandates = _mandates(found.data) if found is not None else {}
            if path not in mandates:
                return None
            if len(mandates) == 1:
                return "delete"
            return {FieldPath(MANDATES, path).to_api_repr(): DELETE_FIELD, "updated_at": SERVER_TIMESTAMP}

        return any([await self.revise(each, decide) for each in named])

    async def _telegram_user(self, username: str) -> AsyncDocumentReference:
        named = self._named(username)
        found = await self.first_of(named)
        return self.document(found.path) if found is not None else named[0]

    def _named(self, username: str) -> list[AsyncDocumentReference]:
        """Where this user may be: by the name in small letters, else by the name as given."""
        given = username.strip().removeprefix("@")
        segment(given, "telegram_username")
        return [self.document(join(COLLECTION, name)) for name in dict.fromkeys([given.lower(), given])]


def _mandates(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    mandates = fields.get(MANDATES)
    return mandates if isinstance(mandates, Mapping) else {}
