"""Identifiers, lists and times, as Stripe writes them."""

import secrets
import string
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

from .errors import missing
from .parameters import Parameters

API_VERSION = "2026-10-28.endive"
LIST_LIMIT = 100

_ALPHABET = string.ascii_letters + string.digits

Object: TypeAlias = dict[str, Any]


def new_id(prefix: str, length: int = 24) -> str:
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))


def now() -> int:
    return int(time.time())


def listed(found: Sequence[Object], url: str, what: str, parameters: Parameters) -> Object:
    """A page of `found` (newest first): `limit`, `starting_after`, `ending_before`."""
    limit = min(parameters.integer("limit", least=1) or 10, LIST_LIMIT)
    after, before = parameters.text("starting_after"), parameters.text("ending_before")
    parameters.done()
    if after is not None:
        rest = found[_position(found, after, what) + 1 :]
        page = rest[:limit]
    elif before is not None:
        rest = found[: _position(found, before, what)]
        page = rest[-limit:]
    else:
        rest, page = found, found[:limit]
    return {"object": "list", "url": url, "has_more": len(rest) > len(page), "data": list(page)}


def _position(found: Sequence[Object], identifier: str, what: str) -> int:
    for position, one in enumerate(found):
        if one["id"] == identifier:
            return position
    raise missing(what, identifier)
