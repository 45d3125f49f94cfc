"""What presence tells about users and their sessions, and how its texts are written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec

from callboard.errors import InvalidArgs

_MAX_COMPANIES = 1_000
_MAX_TEXT = 512


class Session(msgspec.Struct, frozen=True):
    """One tab or device. The times are ISO 8601, UTC."""

    session_id: str
    uid: str
    backend_route: str | None
    registered_at: str
    expires_at: str


class UserPresence(msgspec.Struct, frozen=True):
    """A user as presence knows them. `authorized_companies_ids` of None: all companies."""

    uid: str
    status: Literal["online", "offline"]
    sessions: int
    authorized_companies_ids: list[str] | None
    heartbeat_at: str | None
    ttl_seconds: int


class Page(msgspec.Struct, frozen=True):
    """Some users, sorted by id; `cursor` asks for the next page, None after the last. A page may be short or empty."""

    users: list[str]
    cursor: str | None


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def check_route(route: str | None) -> str:
    if route is not None and len(route) > _MAX_TEXT:
        raise InvalidArgs(f"backend_route must have at most {_MAX_TEXT} characters")
    return route or ""


def encode_companies(ids: Sequence[str] | None) -> str:
    if ids is None:
        return ""
    if isinstance(ids, str) or len(ids) > _MAX_COMPANIES:
        raise InvalidArgs(f"authorized_companies_ids must be a list of at most {_MAX_COMPANIES} ids")
    if not all(isinstance(company, str) and 0 < len(company) <= _MAX_TEXT for company in ids):
        raise InvalidArgs(f"authorized_companies_ids must hold texts of 1 to {_MAX_TEXT} characters")
    return msgspec.json.encode(sorted(set(ids))).decode()


def decode_companies(text: str | None) -> list[str] | None:
    return None if text is None else msgspec.json.decode(text, type=list[str])
