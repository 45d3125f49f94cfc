"""The error tree.

    CallboardError
    ├── ConfigurationError          the service cannot start as it is set up
    └── CallError                   an answer on the wire: code, retry advice, HTTP status
        ├── InvalidArgs             INVALID_ARGS
        │   ├── BadRequest          … at the door: not JSON, not an envelope (400)
        │   ├── BodyTooLarge        … (413)
        │   ├── NotJson             … by its header (415)
        │   ├── HeadTooLarge        … before the door: the head of the request (431)
        │   └── RequestTooSlow      … (408)
        ├── MethodNotFound          METHOD_NOT_FOUND
        ├── Unauthenticated         UNAUTHENTICATED
        ├── PermissionDenied        PERMISSION_DENIED
        ├── NotFound                NOT_FOUND
        ├── AlreadyExists           ALREADY_EXISTS
        ├── FailedPrecondition      FAILED_PRECONDITION
        ├── DeadlineExceeded        DEADLINE_EXCEEDED
        ├── ResourceExhausted       RESOURCE_EXHAUSTED
        ├── Unavailable             UNAVAILABLE
        ├── Aborted                 ABORTED
        │   └── OutcomeUnknown      … a write that began and whose end nobody saw
        ├── Cancelled               CANCELLED
        ├── KeyReused               IDEMPOTENCY_KEY_REUSED
        └── Internal                INTERNAL

The docstring of a class is its default message. `retryable` says whether the same call, sent again with the same
idempotency key, can succeed; such an error carries `retry_after_ms`. The HTTP status is used by the gateway alone:
what the router answers is 200. A plugin raises these; any other exception becomes `Internal` with a log id.
"""

from __future__ import annotations

from typing import Any, ClassVar


class CallboardError(Exception):
    """Callboard failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").split("\n")[0])

    @property
    def message(self) -> str:
        return str(self.args[0])


class ConfigurationError(CallboardError):
    """The service cannot start with these settings."""


class CallError(CallboardError):
    """The call failed."""

    code: ClassVar[str]
    retryable: ClassVar[bool] = False
    http_status: ClassVar[int] = 500
    default_retry_after_ms: ClassVar[int] = 1_000

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after_ms: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.details = details
        self.retry_after_ms = (retry_after_ms or self.default_retry_after_ms) if self.retryable else None


class InvalidArgs(CallError):
    """The arguments do not fit the method."""

    code = "INVALID_ARGS"
    http_status = 400


class BadRequest(InvalidArgs):
    """The body is not a call: a JSON object with a method is expected."""


class BodyTooLarge(InvalidArgs):
    """The body is larger than the service accepts."""

    http_status = 413


class NotJson(InvalidArgs):
    """The Content-Type is not application/json."""

    http_status = 415


class HeadTooLarge(InvalidArgs):
    """The request's head is larger than the service accepts."""

    http_status = 431


class RequestTooSlow(InvalidArgs):
    """The request did not arrive in time."""

    http_status = 408


class MethodNotFound(CallError):
    """There is no such method."""

    code = "METHOD_NOT_FOUND"
    http_status = 404


class Unauthenticated(CallError):
    """A bearer token is needed."""

    code = "UNAUTHENTICATED"
    http_status = 401


class PermissionDenied(CallError):
    """This credential may not do that."""

    code = "PERMISSION_DENIED"
    http_status = 403


class NotFound(CallError):
    """What the call names does not exist."""

    code = "NOT_FOUND"
    http_status = 404


class AlreadyExists(CallError):
    """What the call creates exists already."""

    code = "ALREADY_EXISTS"
    http_status = 409


class FailedPrecondition(CallError):
    """The state of the data does not allow this call."""

    code = "FAILED_PRECONDITION"
    http_status = 400


class DeadlineExceeded(CallError):
    """The call did not finish before its deadline."""

    code = "DEADLINE_EXCEEDED"
    retryable = True
    http_status = 504


class ResourceExhausted(CallError):
    """Too many calls are in flight."""

    code = "RESOURCE_EXHAUSTED"
    retryable = True
    http_status = 429


class Unavailable(CallError):
    """A part that the call needs cannot be reached."""

    code = "UNAVAILABLE"
    retryable = True
    http_status = 503
    default_retry_after_ms = 2_000


class Aborted(CallError):
    """The call lost against a concurrent one."""

    code = "ABORTED"
    retryable = True
    http_status = 409
    default_retry_after_ms = 200


class OutcomeUnknown(Aborted):
    """The write began and was interrupted: whether it took effect is not known."""

    retryable = False

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, details={"outcome": "unknown"})


class Cancelled(CallError):
    """The call was cancelled."""

    code = "CANCELLED"
    retryable = True
    http_status = 499


class KeyReused(CallError):
    """This idempotency key was used with other arguments."""

    code = "IDEMPOTENCY_KEY_REUSED"
    http_status = 422


class Internal(CallError):
    """The method failed; the service's log has the details under this id."""

    code = "INTERNAL"
