"""The control path, `/.control/…`: faults on purpose, for tests. No database has a key with a dot."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import BadRequestError, NotFoundError
from .namespaces import DEFAULT, Namespaces
from .paths import Path, parse_path
from .streams import KeepAlive, Stream

REVOKED = "credential is no longer valid"


@dataclass(slots=True)
class Refusal:
    """The next `count` requests of a namespace at or below a path are refused; or its event streams alone."""

    namespace: str
    path: Path
    status: int
    count: int
    streams_only: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


class Control:
    """Carries out what is asked for on the control path. Every action takes an object and answers with one."""

    def __init__(self, namespaces: Namespaces, keep_alive: KeepAlive) -> None:
        self._namespaces = namespaces
        self._keep_alive = keep_alive
        self._refusals: list[Refusal] = []

    def run(self, action: str, options: Any) -> dict[str, Any]:
        """Raises `NotFoundError` for an unknown action, `BadRequestError` for options that it does not know."""
        actions: dict[str, Callable[..., dict[str, Any]]] = {
            "streams": self.streams,
            "cancel": self.cancel,
            "auth_revoked": self.auth_revoked,
            "mute": self.mute,
            "drop": self.drop,
            "end": self.end,
            "refuse": self.refuse,
            "keep_alive": self.keep_alive,
        }
        if action not in actions:
            raise NotFoundError(f"no such action; there are {', '.join(actions)}")
        try:
            return actions[action](**options)
        except (TypeError, ValueError, AttributeError) as error:
            raise BadRequestError(f"{action}: {error}") from None

    def streams(self, ns: str = DEFAULT, path: str = "/") -> dict[str, Any]:
        """How many streams are open at or below a path, all together and by their path."""
        paths = Counter("/" + "/".join(stream.path) for stream in self._streams(ns, path))
        return {"streams": paths.total(), "paths": paths}

    def cancel(self, ns: str = DEFAULT, path: str = "/", data: str = "null", close: bool = False) -> dict[str, Any]:
        """Send `cancel`, as when the rules no longer permit the read; then the streams are mute, or closed."""
        return self._each(ns, path, lambda stream: stream.cancel("cancel", data, close=close))

    def auth_revoked(
        self, ns: str = DEFAULT, path: str = "/", data: str = REVOKED, close: bool = True
    ) -> dict[str, Any]:
        """Send `auth_revoked`, as when a token has expired; then the streams are closed, or mute."""
        return self._each(ns, path, lambda stream: stream.cancel("auth_revoked", data, close=close))

    def mute(self, ns: str = DEFAULT, path: str = "/") -> dict[str, Any]:
        """Leave the streams open, and send nothing on them any more, not even keep-alives."""
        return self._each(ns, path, Stream.mute)

    def drop(self, ns: str = DEFAULT, path: str = "/") -> dict[str, Any]:
        """Cut the connections in the middle of their responses."""
        return self._each(ns, path, Stream.drop)

    def end(self, ns: str = DEFAULT, path: str = "/") -> dict[str, Any]:
        """End the responses properly."""
        return self._each(ns, path, Stream.end)

    def refuse(
        self,
        status: int,
        count: int = 1,
        ns: str = DEFAULT,
        path: str = "/",
        streams_only: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Answer the next `count` requests at or below the path with this status; `count` 0 takes that back."""
        if not isinstance(status, int) or not 300 <= status <= 599 or not isinstance(count, int):
            raise ValueError("status is a number from 300 to 599, count a number")
        place = parse_path(path)
        self._refusals = [each for each in self._refusals if (each.namespace, each.path) != (ns, place)]
        if count > 0:
            self._refusals.append(Refusal(ns, place, status, count, streams_only, headers or {}))
        return {}

    def keep_alive(self, seconds: float | None) -> dict[str, Any]:
        """The pause between two keep-alives of an idle stream, of open ones too; null: none are sent."""
        if seconds is not None and not (isinstance(seconds, int | float) and seconds > 0):
            raise ValueError("seconds is a positive number or null")
        self._keep_alive.interval_s = seconds
        for database in self._namespaces:
            for stream in database.listeners:
                stream.wake()
        return {}

    def refusal(self, namespace: str, path: Path, *, is_stream: bool) -> Refusal | None:
        """The refusal that meets this request, which thereby counts; None when it may pass."""
        for each in self._refusals:
            below = namespace == each.namespace and path[: len(each.path)] == each.path
            if below and (is_stream or not each.streams_only):
                each.count -= 1
                if not each.count:
                    self._refusals.remove(each)
                return each
        return None

    def _each(self, ns: str, path: str, act: Callable[[Stream], None]) -> dict[str, Any]:
        streams = self._streams(ns, path)
        for stream in streams:
            act(stream)
        return {"streams": len(streams)}

    def _streams(self, ns: str, path: str) -> list[Stream]:
        return self._namespaces[ns].listeners.below(parse_path(path))
