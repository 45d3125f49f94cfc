"""A request's parameters: each is taken by whoever knows it, and what nobody takes is refused as unknown."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

from .errors import ApiError

MAX_METADATA = 50


class Parameters:
    """A level of the tree. Texts that Stripe limits are limited; a text that is empty counts as given wrongly."""

    def __init__(self, tree: dict[str, Any], where: str = "") -> None:
        self._tree = dict(tree)
        self._where = where
        self._below: list[Parameters] = []

    def text(
        self, name: str, *, required: bool = False, longest: int = 5_000, choices: Sequence[str] = ()
    ) -> str | None:
        value = self._take(name, required)
        if value is None:
            return None
        if not isinstance(value, str):
            raise ApiError(400, f"Invalid string: {self._path(name)}", param=self._path(name))
        if not value:
            message = f"You passed an empty string for '{self._path(name)}'. It cannot be unset."
            raise ApiError(400, message, code="parameter_invalid_empty", param=self._path(name))
        if len(value) > longest:
            message = f"Invalid string: {value[:20]}...; must be at most {longest} characters"
            raise ApiError(400, message, param=self._path(name))
        if choices and value not in choices:
            message = f"Invalid {self._path(name)}: must be one of {', '.join(choices)}"
            raise ApiError(400, message, param=self._path(name))
        return value

    def integer(self, name: str, *, required: bool = False, least: int = 0) -> int | None:
        value = self.text(name, required=required)
        if value is None:
            return None
        if not (value.removeprefix("-").isascii() and value.removeprefix("-").isdigit() and len(value) < 20):
            message = f"Invalid integer: {value[:20]}"
            raise ApiError(400, message, code="parameter_invalid_integer", param=self._path(name))
        if int(value) < least:
            message = f"This value must be greater than or equal to {least}."
            raise ApiError(400, message, code="parameter_invalid_integer", param=self._path(name))
        return int(value)

    def boolean(self, name: str) -> bool | None:
        value = self.text(name, choices=("true", "false"))
        return None if value is None else value == "true"

    def object(self, name: str, *, required: bool = False) -> Self | None:
        value = self._take(name, required)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ApiError(400, f"Invalid object: {self._path(name)}", param=self._path(name))
        below = type(self)(value, self._path(name))
        self._below.append(below)
        return below

    def objects(self, name: str, *, required: bool = False) -> list[Self]:
        listed = self.object(name, required=required)
        return [] if listed is None else [item for key in listed._ordered() if (item := listed.object(key)) is not None]

    def texts(self, name: str, *, required: bool = False) -> list[str]:
        listed = self.object(name, required=required)
        return [] if listed is None else [item for key in listed._ordered() if (item := listed.text(key)) is not None]

    def metadata(self) -> dict[str, str]:
        """At most 50 pairs; names of 40 characters, values of 500."""
        given = self.object("metadata")
        if given is None:
            return {}
        pairs = {}
        for key in list(given._tree):
            if len(key) > 40:
                message = f"Metadata keys can have up to 40 characters, but you passed {len(key)}."
                raise ApiError(400, message, param="metadata")
            if (value := given.text(key, longest=500)) is not None:
                pairs[key] = value
        if len(pairs) > MAX_METADATA:
            raise ApiError(400, f"Metadata can have up to {MAX_METADATA} keys.", param="metadata")
        return pairs

    def done(self) -> None:
        """Refuse whatever was not taken, at this level and below."""
        for name in self._unknown():
            raise ApiError(400, f"Received unknown parameter: {name}", code="parameter_unknown", param=name)

    def _unknown(self) -> Iterator[str]:
        yield from map(self._path, self._tree)
        for below in self._below:
            yield from below._unknown()

    def _ordered(self) -> list[str]:
        if not all(key.isascii() and key.isdigit() for key in self._tree):
            raise ApiError(400, "Invalid array", param=self._where)
        return sorted(self._tree, key=int)

    def _take(self, name: str, required: bool) -> Any:
        value = self._tree.pop(name, None)
        if value is None and required:
            path = self._path(name)
            raise ApiError(400, f"Missing required param: {path}.", code="parameter_missing", param=path)
        return value

    def _path(self, name: str) -> str:
        return f"{self._where}[{name}]" if self._where else name
