from __future__ import annotations

from callboard import errors
from callboard.errors import CallError, InvalidArgs, OutcomeUnknown, Unavailable

CONTRACT_CODES = {
    "INVALID_ARGS", "METHOD_NOT_FOUND", "INTERNAL", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND",
    "ALREADY_EXISTS", "FAILED_PRECONDITION", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "ABORTED",
    "CANCELLED", "IDEMPOTENCY_KEY_REUSED",
}  # fmt: skip


def every_call_error(cls: type[CallError] = CallError) -> list[type[CallError]]:
    return [sub for direct in cls.__subclasses__() for sub in (direct, *every_call_error(direct))]


def test_the_codes_are_the_contracts() -> None:
    assert {cls.code for cls in every_call_error() if cls.__module__ == errors.__name__} == CONTRACT_CODES


def test_the_docstring_is_the_default_message() -> None:
    assert Unavailable().message == "A part that the call needs cannot be reached."
    assert Unavailable("Redis is away.").message == "Redis is away."


def test_retryable_errors_carry_advice_and_others_never_do() -> None:
    for cls in every_call_error():
        assert (cls().retry_after_ms is not None) == cls.retryable
    assert InvalidArgs(retry_after_ms=5).retry_after_ms is None
    assert Unavailable(retry_after_ms=5).retry_after_ms == 5


def test_an_unknown_outcome_says_so_and_advises_no_retry() -> None:
    error = OutcomeUnknown()
    assert (error.code, error.retryable, error.details) == ("ABORTED", False, {"outcome": "unknown"})
