"""Where things lie in the Realtime Database (CONTRACT, Where the data lives), from parts that were checked.

messages_path("acme", "-Nabc", "chats")     # acme/chats/-Nabc/messages
inbox_path("ada")                           # clients/ada/direct_message_notif
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, get_args

from callboard import InvalidArgs
from callboard.messages import check_identifier

Mode: TypeAlias = Literal["chats", "job_chats"]
MODES: tuple[Mode, ...] = get_args(Mode)
"""In the order in which `auto` prefers them."""

_CLIENTS = "clients"
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,9}")
_PUSH_ID = re.compile(r"[-0-9A-Z_a-z]{20}")
_PUSH_CHARACTERS = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"


def space_path(space_code: str) -> str:
    """InvalidArgs for `clients`, too: that is where the users' own data lies, and no space."""
    if _segment(space_code, "space_code") == _CLIENTS:
        raise InvalidArgs("space_code names a space; `clients` is none.")
    return space_code


def threads_path(space_code: str, mode: Mode) -> str:
    return f"{space_path(space_code)}/{mode}"


def thread_path(space_code: str, thread_key: str, mode: Mode) -> str:
    return f"{threads_path(space_code, mode)}/{_segment(thread_key, 'thread_key')}"


def has_thread(space_code: str, thread_key: str) -> bool:
    """Whether the database can hold a thread of this name: it takes no dots, and `clients` is no space."""
    return space_code != _CLIENTS and "." not in space_code + thread_key


def messages_path(space_code: str, thread_key: str, mode: Mode) -> str:
    return f"{thread_path(space_code, thread_key, mode)}/messages"


def has_inbox(user_id: str) -> bool:
    """Whether the database can hold anything of the user's: it takes no dots, which user ids may have."""
    return "." not in user_id


def inbox_path(user_id: str, what: str = "user_id") -> str:
    """Where a user's direct messages lie; InvalidArgs, about the argument `what`, for one who can have none."""
    return f"{_CLIENTS}/{_segment(user_id, what)}/direct_message_notif"


def children(value: Any) -> Mapping[str, Any]:
    """A node's children. The database shows keys that count 0, 1, … as a list; a node that is a value has none."""
    if isinstance(value, list):
        return {str(index): child for index, child in enumerate(value) if child is not None}
    return value if isinstance(value, dict) else {}


def key_order(key: str) -> tuple[int, int, str]:
    """What the database orders keys by: integers of 32 bits first, by their number; then the others, as texts."""
    if _INTEGER.fullmatch(key) and -(2**31) <= (number := int(key)) < 2**31:
        return 0, number, ""
    return 1, 0, key


def made_at(key: str) -> datetime:
    """When a push id was made: its first eight characters are milliseconds. 1970 for a key that is none."""
    milliseconds = 0
    if _PUSH_ID.fullmatch(key):
        for character in key[:8]:
            milliseconds = milliseconds * 64 + _PUSH_CHARACTERS.index(character)
    return time_of(milliseconds) or time_of(0)  # type: ignore[return-value]


def time_of(milliseconds: float) -> datetime | None:
    """A time as the database's `{".sv": "timestamp"}` stores it; None when no calendar has it."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _segment(value: str, what: str) -> str:
    if "." in check_identifier(value, what):
        raise InvalidArgs(f"{what} has no dot: the Realtime Database does not take one.")
    return value
