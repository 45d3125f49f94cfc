"""Parameters that all users share: the fields of the documents `settings_param/{param_type}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.cloud.firestore_v1.field_path import FieldPath

from callboard import AlreadyExists, InvalidArgs, method
from callboard_firebase import Document, fields_from_wire, get_document, join, segment, to_wire
from callboard_firebase_management.store import Fields, FirestoreService, Revision, repeatable

COLLECTION = "settings_param"


class Parameters(FirestoreService):
    """Read whole, by type; added, never overwritten."""

    @method(effect="read")
    async def get_param_data(self, param_type: str) -> dict[str, Any] | None:
        """The parameters of a type, the fields of `settings_param/{param_type}`; null when there is no such type."""
        found = (await get_document(self.client, join(COLLECTION, segment(param_type, "param_type")))).document
        return to_wire(found.data) if found is not None else None

    @method(effect="write", retry_safe=repeatable)
    async def add_new_param(self, param_type: str, param_data: Fields) -> bool:
        """Add parameters, `{name: value}`, to a type, which need not exist; true.

        ALREADY_EXISTS when one of these names has another value already: then none is added, and two calls that add
        the same name at once cannot both succeed. One that is there with this very value is no error. A sentinel is
        no value, so INVALID_ARGS.
        """
        added = fields_from_wire(param_data)
        if _holds_sentinel(param_data):
            raise InvalidArgs("param_data: a sentinel is no parameter's value")

        def decide(found: Document | None) -> Revision:
            if found is None:
                return added
            taken = sorted(name for name in added if name in found.data and found.data[name] != added[name])
            if taken:
                raise AlreadyExists(f"`{taken[0][:60]}` exists already, with another value.")
            missing = {name: value for name, value in added.items() if name not in found.data}
            return {FieldPath(name).to_api_repr(): value for name, value in missing.items()} or None

        await self.revise(self.document(join(COLLECTION, segment(param_type, "param_type"))), decide)
        return True


def _holds_sentinel(value: object) -> bool:
    return isinstance(value, Mapping) and ("$op" in value or any(map(_holds_sentinel, value.values())))
