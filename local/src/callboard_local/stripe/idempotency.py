"""Idempotency keys: the first answer is kept and given again; other parameters, or a request under way, are refused."""

from dataclasses import dataclass

from .errors import ApiError

MAX_KEY = 255


@dataclass
class Kept:
    """A key's request and, once it is over, its answer."""

    fingerprint: str
    request_id: str
    status: int = 0
    body: bytes = b""

    @property
    def finished(self) -> bool:
        return self.status != 0


class IdempotencyKeys:
    """Of one account. Kept for as long as the server runs (Stripe: at least 24 hours)."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}

    def claim(self, key: str, fingerprint: str, request_id: str) -> Kept:
        """The finished request of this key, or a new one that the caller now has to give its answer, or to `forget`."""
        if len(key) > MAX_KEY:
            raise ApiError(400, f"Idempotency keys have at most {MAX_KEY} characters.", kind="idempotency_error")
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = Kept(fingerprint, request_id)
        elif kept.fingerprint != fingerprint:
            raise ApiError(
                400,
                "Keys for idempotent requests can only be used with the same parameters they were first used with. "
                f"Try using a key other than '{key}' if you meant to execute a different request.",
                kind="idempotency_error",
            )
        elif not kept.finished:
            raise ApiError(
                409,
                "There is currently another in-progress request using this Idempotent Key (that probably means you "
                f"submitted twice, and the other request is still going through): {key}. Please try again later.",
                code="idempotency_key_in_use",
            )
        return kept

    def forget(self, key: str) -> None:
        """The request was refused before it began: the key is free again."""
        self._kept.pop(key, None)
