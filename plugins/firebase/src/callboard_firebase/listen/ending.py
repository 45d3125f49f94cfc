"""How a connection of a Listen stream ended, and what kinds of ends there are."""

from __future__ import annotations

from dataclasses import dataclass

from grpc import StatusCode

from callboard.errors import CallError
from callboard_firebase.errors import error_for, translate
from callboard_firebase.listen.target import Target

PERMANENT = frozenset(
    {
        StatusCode.INVALID_ARGUMENT,
        StatusCode.NOT_FOUND,
        StatusCode.ALREADY_EXISTS,
        StatusCode.FAILED_PRECONDITION,
        StatusCode.OUT_OF_RANGE,
        StatusCode.UNIMPLEMENTED,
        StatusCode.PERMISSION_DENIED,
        StatusCode.UNAUTHENTICATED,
    }
)
"""A target's fault or the service's, but not passing: asking the same again gets the same answer."""

BLAMELESS = frozenset(
    {StatusCode.OK, StatusCode.CANCELLED, StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED,
     StatusCode.RESOURCE_EXHAUSTED, StatusCode.ABORTED}
)  # fmt: skip
"""Nobody's fault."""

REFUSALS = frozenset(
    {StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED, StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED}
)
"""The server refuses whatever stream it is: they ask again in turn."""


@dataclass(frozen=True, slots=True)
class End:
    """How a connection ended. `answered`: some target was; `suspects`: those that never were, on any connection."""

    status: StatusCode
    error: Exception | None
    suspects: list[Target]
    answered: bool
    left: bool
    """There was nothing more to listen to."""

    def failure(self) -> CallError:
        """What a watch that ends by this raises."""
        return translate(self.error) if self.error is not None else error_for(self.status)
