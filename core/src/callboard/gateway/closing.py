"""Why the service closes a WebSocket. 3000 to 3499: reconnect, with back-off. 3500 to 3999: do not, something is wrong.

Beside these a client may see 1009 (a frame over 64 KiB), 1011 (no answer to a ping) and 1012 (the process stops).
"""

from __future__ import annotations

from enum import IntEnum


class CloseCode(IntEnum):
    """The close codes of `/ws`; `reason` is what the client reads beside the number."""

    reason: str

    def __new__(cls, code: int, reason: str) -> CloseCode:
        member = int.__new__(cls, code)
        member._value_ = code
        member.reason = reason
        return member

    SHUTTING_DOWN = 3001, "This replica is shutting down."
    CREDENTIAL_EXPIRED = 3005, "The credential has expired."
    TOO_SLOW = 3008, "The client reads too slowly."
    UNAVAILABLE = 3011, "The service cannot take this connection now."
    NO_PONG = 3012, "The client did not answer a ping."
    BAD_CREDENTIAL = 3500, "A valid credential is needed."
    BAD_REQUEST = 3501, "The request or a frame makes no sense."
    FORBIDDEN = 3507, "This credential may not do that."

    @property
    def reconnect(self) -> bool:
        """Whether the client is to try again."""
        return self < 3500


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
