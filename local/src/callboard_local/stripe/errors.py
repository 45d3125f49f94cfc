"""Stripe's refusals, in Stripe's shape."""

from typing import Any


class ApiError(Exception):
    """A refusal: an HTTP status and the `error` object that Stripe's clients read."""

    def __init__(
        self, status: int, message: str, *, kind: str = "invalid_request_error", code: str = "", param: str = "",
        **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.error: dict[str, Any] = {"message": message, "type": kind, **more}
        if code:
            self.error |= {"code": code, "doc_url": f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"}
        if param:
            self.error["param"] = param

    @property
    def is_refusal(self) -> bool:
        """Nothing was done: the request was found wrong, or in the way of another, before it began."""
        return self.status in (400, 401, 404, 409)


def missing(what: str, identifier: str) -> ApiError:
    """No such object."""
    return ApiError(404, f"No such {what}: '{identifier}'", code="resource_missing", param="id")
