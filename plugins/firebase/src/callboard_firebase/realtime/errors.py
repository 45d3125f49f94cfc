"""The Realtime Database's refusals, as Callboard's errors; its own texts stay in `__cause__`."""

from __future__ import annotations

import msgspec

from callboard.errors import (
    Aborted,
    CallError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgs,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

_TRANSLATIONS: dict[int, tuple[type[CallError], str]] = {
    400: (InvalidArgs, "Firebase refuses the request: an argument is not valid."),
    401: (Unauthenticated, "Firebase does not accept this service's credentials."),
    403: (PermissionDenied, "Firebase does not allow this service to do that."),
    404: (NotFound, "The database does not exist."),
    408: (DeadlineExceeded, "Firebase did not answer in time."),
    409: (Aborted, "The write lost against a concurrent one."),
    412: (Aborted, "The write lost against a concurrent one."),
    413: (InvalidArgs, "Firebase refuses the request: it is too large."),
    423: (FailedPrecondition, "The database is locked."),
    429: (ResourceExhausted, "Firebase's quota is used up for now."),
    504: (DeadlineExceeded, "Firebase did not answer in time."),
}
_TEXT_BYTES = 2_000


class Refusal(Exception):
    """What the database answered: the status, and the `error` of its body."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text

    @property
    def of_the_token(self) -> bool:
        """A renewed token may help. The database says 401, too, where its rules forbid."""
        return self.status == 401 and "permission denied" not in self.text.lower()


def refusal(status: int, body: bytes) -> Refusal:
    try:
        text = msgspec.json.decode(body, type=dict[str, str]).get("error", "")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = body[:_TEXT_BYTES].decode(errors="replace")
    return Refusal(status, text)


def error_for(refused: Refusal) -> CallError:
    """The error that stands for a refusal, with it as its cause."""
    status = refused.status
    error: CallError
    if status == 401 and not refused.of_the_token:
        error = PermissionDenied(_TRANSLATIONS[403][1])
    elif status == 400 and "index not defined" in refused.text.lower():
        error = FailedPrecondition("The database's rules lack the index that the query needs.")
    elif status in _TRANSLATIONS:
        kind, text = _TRANSLATIONS[status]
        error = kind(text)
    elif status >= 500:
        error = Unavailable("Firebase cannot be reached.")
    else:
        error = Internal("The request to Firebase failed.")
    error.__cause__ = refused
    return error
