"""Why the service closes a WebSocket. 3000 to 3499: reconnect, with back-off. 3500 to 3999: do not, something is wrong.

Beside these a client may see 1009 (a frame over 64 KiB), 1011 (no answer to a ping) and 1012 (the process stops).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class CloseCode(IntEnum):
    """The close codes of `/ws`."""

    SHUTTING_DOWN = 3001
    CREDENTIAL_EXPIRED = 3005
    TOO_SLOW = 3008
    UNAVAILABLE = 3011
    NO_PONG = 3012
    BAD_CREDENTIAL = 3500
    BAD_REQUEST = 3501
    TOO_MANY = 3505
    FORBIDDEN = 3507

    @property
    def reason(self) -> str:
        """What the client reads beside the number."""
        return REASONS[self]

    @property
    def reconnect(self) -> bool:
        """Whether the client is to try again."""
        return self < 3500


REASONS: Mapping[int, str] = {
    CloseCode.SHUTTING_DOWN: "This replica is shutting down.",
    CloseCode.CREDENTIAL_EXPIRED: "The credential has expired.",
    CloseCode.TOO_SLOW: "The client reads too slowly.",
    CloseCode.UNAVAILABLE: "The service cannot take this connection now.",
    CloseCode.NO_PONG: "The client did not answer a ping.",
    CloseCode.BAD_CREDENTIAL: "A valid credential is needed.",
    CloseCode.BAD_REQUEST: "The request or a frame makes no sense.",
    CloseCode.TOO_MANY: "The user has too many connections.",
    CloseCode.FORBIDDEN: "This credential may not do that.",
}


class Refused(Exception):
    """The connection is not let in, or not kept."""

    def __init__(self, code: CloseCode, reason: str | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.reason = reason or code.reason


class Gone(Exception):
    """The client has left. `code` is its close code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
