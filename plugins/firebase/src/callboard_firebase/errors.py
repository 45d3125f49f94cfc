"""Google's exceptions, as Callboard's.

    with translated():
        await client.document(path).get()

Whatever Google's clients raise inside the block leaves it as a `CallError` with a text of our own; Google's text, which
can name projects, paths and indexes, stays in `__cause__` for the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.api_core import exceptions as google_exceptions
from google.auth import exceptions as auth_exceptions

from callboard.errors import (
    Aborted,
    AlreadyExists,
    CallError,
    Cancelled,
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

_TRANSLATIONS: dict[grpc.StatusCode, tuple[type[CallError], str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (InvalidArgs, "Firebase refuses the request: an argument is not valid."),
    grpc.StatusCode.OUT_OF_RANGE: (InvalidArgs, "Firebase refuses the request: an argument is out of range."),
    grpc.StatusCode.NOT_FOUND: (NotFound, "The document does not exist."),
    grpc.StatusCode.ALREADY_EXISTS: (AlreadyExists, "The document exists already."),
    grpc.StatusCode.FAILED_PRECONDITION: (
        FailedPrecondition,
        "Firebase refuses the request in the present state: a precondition, or an index that is missing.",
    ),
    grpc.StatusCode.PERMISSION_DENIED: (PermissionDenied, "Firebase does not allow this service to do that."),
    grpc.StatusCode.UNAUTHENTICATED: (Unauthenticated, "Firebase does not accept this service's credentials."),
    grpc.StatusCode.DEADLINE_EXCEEDED: (DeadlineExceeded, "Firebase did not answer in time."),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (ResourceExhausted, "Firebase's quota is used up for now."),
    grpc.StatusCode.UNAVAILABLE: (Unavailable, "Firebase cannot be reached."),
    grpc.StatusCode.ABORTED: (Aborted, "The write lost against a concurrent one."),
    grpc.StatusCode.CANCELLED: (Cancelled, "The request to Firebase was cancelled."),
    grpc.StatusCode.UNIMPLEMENTED: (FailedPrecondition, "This Firebase does not support the request."),
}

_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def status_of(error: BaseException) -> grpc.StatusCode:
    """The gRPC status of an exception of Google's; UNKNOWN where it has none."""
    if isinstance(error, google_exceptions.RetryError):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    if isinstance(error, google_exceptions.GoogleAPICallError):
        return error.grpc_status_code or grpc.StatusCode.UNKNOWN
    if isinstance(error, auth_exceptions.TransportError):
        return grpc.StatusCode.UNAVAILABLE
    if isinstance(error, auth_exceptions.GoogleAuthError):
        # Retryable: whoever makes tokens answered, and failed.
        return grpc.StatusCode.UNAVAILABLE if error.retryable else grpc.StatusCode.UNAUTHENTICATED
    if isinstance(error, grpc.RpcError):
        code = getattr(error, "code", None)
        found = code() if callable(code) else None
        return found if isinstance(found, grpc.StatusCode) else grpc.StatusCode.UNKNOWN
    return grpc.StatusCode.UNKNOWN


def error_for(code: grpc.StatusCode | int) -> CallError:
    """The error that stands for a gRPC status (the enum, or its number as in `google.rpc.Status`)."""
    status = _BY_NUMBER.get(code) if isinstance(code, int) else code
    kind, text = _TRANSLATIONS.get(status or grpc.StatusCode.UNKNOWN, (Internal, "The request to Firebase failed."))
    return kind(text)


def translate(error: BaseException) -> CallError:
    """The `CallError` for an exception of Google's clients, with `error` as its cause."""
    # google-cloud-firestore reports contention that outlasted its attempts as a plain ValueError.
    if isinstance(error, ValueError) and str(error).startswith("Failed to commit transaction in"):
        translated_error: CallError = Aborted("The transaction lost against concurrent ones.")
    else:
        translated_error = error_for(status_of(error))
    translated_error.__cause__ = error
    return translated_error


@contextmanager
def translated() -> Iterator[None]:
    """Raise Google's errors of the block as `CallError`; every other exception passes as it is."""
    try:
        yield
    except (
        google_exceptions.GoogleAPIError,
        auth_exceptions.GoogleAuthError,
        grpc.RpcError,
    ) as error:
        raise translate(error) from error
    except ValueError as error:
        failure = translate(error)
        if isinstance(failure, Aborted):
            raise failure from error
        raise
