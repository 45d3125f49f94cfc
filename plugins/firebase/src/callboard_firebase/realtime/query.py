"""Which children of a node, and how many."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct

from callboard.errors import InvalidArgs
from callboard_firebase.realtime.paths import segments

_NAMES = {
    "limit_to_first": "limitToFirst",
    "limit_to_last": "limitToLast",
    "start_at": "startAt",
    "end_at": "endAt",
    "equal_to": "equalTo",
}


class Query(Struct, frozen=True, kw_only=True):
    """`order_by`: `$key`, `$value`, `$priority` or a child's path (which wants an index in the database's rules).

    `start_at`, `end_at` (both inclusive) and `equal_to` are JSON values that `order_by` is compared with.
    """

    order_by: str = "$key"
    limit_to_first: int | None = None
    limit_to_last: int | None = None
    start_at: Any = UNSET
    end_at: Any = UNSET
    equal_to: Any = UNSET

    def parameters(self) -> dict[str, str]:
        """As the REST API has them: JSON texts by name. InvalidArgs: the database would refuse it."""
        if self.order_by not in ("$key", "$value", "$priority") and not segments(self.order_by):
            raise InvalidArgs("A query is ordered by $key, $value, $priority or a child's path.")
        if self.limit_to_first is not None and self.limit_to_last is not None:
            raise InvalidArgs("A query has limit_to_first or limit_to_last, not both.")
        if any(limit is not None and limit < 1 for limit in (self.limit_to_first, self.limit_to_last)):
            raise InvalidArgs("A query's limit is at least 1.")
        if self.equal_to is not UNSET and not (self.start_at is UNSET and self.end_at is UNSET):
            raise InvalidArgs("A query has equal_to, or start_at and end_at, not both.")
        found = {"orderBy": _json(self.order_by)}
        for field, name in _NAMES.items():
            value = getattr(self, field)
            if value is not UNSET and not (value is None and field.startswith("limit")):
                found[name] = _json(value)
        return found


def _json(value: Any) -> str:
    if value is not None and not isinstance(value, (str, bool, int, float)):
        raise InvalidArgs("A query compares with a text, a number, true, false or null.")
    try:
        return msgspec.json.encode(value).decode()
    except (UnicodeEncodeError, ValueError):
        raise InvalidArgs("A query's value cannot be written as JSON.") from None
