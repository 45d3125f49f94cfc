# mypy: allow-untyped-calls
"""Google's exceptions become Callboard's, without their text."""

from __future__ import annotations

import grpc
import pytest
from google.api_core import exceptions as google_exceptions
from google.auth import exceptions as auth_exceptions

from callboard.errors import CallError
from callboard_firebase import translate, translated
from callboard_firebase.errors import error_for, status_of

SECRET = "projects/secret-project/databases/(default)"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (google_exceptions.InvalidArgument(SECRET), "INVALID_ARGS"),
        (google_exceptions.OutOfRange(SECRET), "INVALID_ARGS"),
        (google_exceptions.NotFound(SECRET), "NOT_FOUND"),
        (google_exceptions.AlreadyExists(SECRET), "ALREADY_EXISTS"),
        (google_exceptions.FailedPrecondition(SECRET), "FAILED_PRECONDITION"),
        (google_exceptions.PermissionDenied(SECRET), "PERMISSION_DENIED"),
        (google_exceptions.Unauthenticated(SECRET), "UNAUTHENTICATED"),
        (google_exceptions.DeadlineExceeded(SECRET), "DEADLINE_EXCEEDED"),
        (google_exceptions.RetryError(SECRET, cause=Exception(SECRET)), "DEADLINE_EXCEEDED"),
        (google_exceptions.ResourceExhausted(SECRET), "RESOURCE_EXHAUSTED"),
        (google_exceptions.ServiceUnavailable(SECRET), "UNAVAILABLE"),
        (google_exceptions.Aborted(SECRET), "ABORTED"),
        (google_exceptions.Cancelled(SECRET), "CANCELLED"),
        (google_exceptions.InternalServerError(SECRET), "INTERNAL"),
        (google_exceptions.Unknown(SECRET), "INTERNAL"),
        (google_exceptions.DataLoss(SECRET), "INTERNAL"),
        (google_exceptions.MethodNotImplemented(SECRET), "FAILED_PRECONDITION"),
        (auth_exceptions.TransportError(SECRET), "UNAVAILABLE"),
        (auth_exceptions.RefreshError(SECRET), "UNAUTHENTICATED"),
        (auth_exceptions.RefreshError(SECRET, retryable=True), "UNAVAILABLE"),
        (grpc.RpcError(SECRET), "INTERNAL"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_the_code_is_translated_and_the_text_kept_inside(error: Exception, code: str) -> None:
    with pytest.raises(CallError) as caught, translated():
        raise error
    assert caught.value.code == code
    assert SECRET not in caught.value.message
    assert caught.value.__cause__ is error


def test_contention_that_outlasts_its_attempts_is_aborted() -> None:
    with pytest.raises(CallError) as caught, translated():
        raise ValueError("Failed to commit transaction in 5 attempts.")
    assert caught.value.code == "ABORTED"


def test_other_exceptions_pass() -> None:
    for error in (ValueError("mine"), KeyError("mine"), TimeoutError()):
        with pytest.raises(type(error)) as caught, translated():
            raise error
        assert caught.value is error


def test_a_number_without_a_name_is_internal() -> None:
    assert error_for(99).code == "INTERNAL"
    assert status_of(Exception()) is grpc.StatusCode.UNKNOWN
    assert translate(Exception(SECRET)).code == "INTERNAL"
