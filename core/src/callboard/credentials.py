"""Who may call: bearer tokens, each with a name and the methods it opens.

    LISTENERS_SERVICE_TOKEN=<token>                                   the credential `service`, all methods
    LISTENERS_SERVICE_TOKENS=ci:<token>:REGISTRY.*,FIREBASE_REALTIME.get_*;reports:<token>

Two tokens may carry the same name: while one is being replaced by the other, both are live.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from callboard.errors import ConfigurationError, PermissionDenied, Unauthenticated
from callboard.settings import Settings

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

_VARIABLE = "LISTENERS_SERVICE_TOKENS"
_SEPARATORS = re.compile(r"[;,\s]+")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PATTERN = re.compile(r"\*|[A-Z*][A-Z0-9_*]*\.[A-Za-z0-9_*]+")
ISSUES_TICKETS = "REGISTRY.issue_ticket"
"""Who may call it acts for users: it opens their WebSockets, with a ticket or without."""
_SERVICE = "service"
_DEV_TOKEN = "dev"  # noqa: S105 - dev mode serves the loopback only


@dataclass(frozen=True)
class Credential:
    """A caller. `patterns` of None: every method; else names in which `*` stands for any text, e.g. `REGISTRY.*`."""

    name: str
    patterns: tuple[str, ...] | None = None
    _allowed: re.Pattern[str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.patterns is not None:
            each = (re.escape(pattern).replace(r"\*", ".*") for pattern in self.patterns)
            object.__setattr__(self, "_allowed", re.compile("|".join(each) or r"(?!)"))

    @property
    def is_unlimited(self) -> bool:
        """Whether it may call everything, and so may see what runs: `/debug`."""
        return self.patterns is None or "*" in self.patterns

    def allows(self, method: str) -> bool:
        return self._allowed is None or self._allowed.fullmatch(method) is not None


class Credentials:
    """The configured tokens, as digests. ConfigurationError (which never repeats a token) when they make no sense."""

    def __init__(self, settings: Settings) -> None:
        self._known: list[tuple[bytes, Credential]] = []
        for token, credential in _configured(settings):
            self._add(token, credential)
        if not self._known:
            raise ConfigurationError("LISTENERS_SERVICE_TOKEN is not set")

    def identify(self, authorization: bytes | None) -> Credential:
        """The credential of an Authorization header: Unauthenticated without one, PermissionDenied for a wrong one."""
        scheme, _, token = (authorization or b"").strip().partition(b" ")
        token = token.strip()
        if not scheme or (not token and scheme.lower() == b"bearer"):
            raise Unauthenticated
        given = hashlib.sha256(token).digest()
        found = None
        for digest, credential in self._known:  # all of them, so that the time taken says nothing
            if hmac.compare_digest(digest, given):
                found = credential
        if found is None or scheme.lower() != b"bearer":
            raise PermissionDenied("This credential is not known.")
        return found

    def identify_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> Credential:
        """`identify` for the raw headers of a request; more than one Authorization is refused."""
        found = [value for name, value in headers if name == b"authorization"]
        if len(found) > 1:
            raise PermissionDenied("More than one Authorization header.")
        return self.identify(found[0] if found else None)

    def identify_request(self, request: HTTPConnection) -> Credential:
        """`identify_headers` for Starlette's request or WebSocket."""
        return self.identify_headers(request.scope["headers"])

    def _add(self, token: str, credential: Credential) -> None:
        digest = hashlib.sha256(_bytes(token)).digest()
        for known, holder in self._known:
            if known == digest and holder != credential:
                # Without their names: where `name:token` was turned round, those are the tokens.
                raise ConfigurationError(f"{_VARIABLE}: two credentials have the same token")
        self._known.append((digest, credential))


def service_tokens(settings: Settings) -> list[bytes]:
    """The live tokens of the credential `service`, LISTENERS_SERVICE_TOKEN first; `dev` in dev mode when it is unset.

    Two are live while one is being replaced. Those that may not issue tickets are left out.
    """
    found = _configured(settings)
    return [_bytes(token) for token, holder in found if holder.name == _SERVICE and holder.allows(ISSUES_TICKETS)]


def _configured(settings: Settings) -> list[tuple[str, Credential]]:
    found: list[tuple[str, Credential]] = []
    if settings.service_token is not None:
        found.append((settings.service_token.reveal(), Credential(_SERVICE)))
    elif settings.dev:
        found.append((_DEV_TOKEN, Credential(_SERVICE)))
    if settings.service_tokens is not None:
        parsed = _parse(settings.service_tokens.reveal())
        found += [(token, Credential(name, patterns)) for name, token, patterns in parsed]
    return found


def _bytes(token: str) -> bytes:
    return token.encode("utf-8", "surrogateescape")  # the environment may hold bytes that are no UTF-8


def _parse(text: str) -> list[tuple[str, str, tuple[str, ...] | None]]:
    """`name:token[:pattern]` parts; a part without a colon is a further pattern of the one before."""
    parsed: list[tuple[str, str, tuple[str, ...] | None]] = []
    for number, part in enumerate(filter(None, _SEPARATORS.split(text)), start=1):
        where = f"{_VARIABLE}: part {number}"
        if ":" not in part:
            if not parsed:
                raise ConfigurationError(f"{where} is not name:token[:pattern,…]")
            name, token, patterns = parsed.pop()
            parsed.append((name, token, (*(patterns or ()), _pattern(part, where))))
            continue
        name, token, *rest = part.split(":", 2)
        if not _NAME.fullmatch(name) or not token:
            raise ConfigurationError(
                f"{where} is not name:token[:pattern,…]; a name has letters, digits, `_`, `.`, `-`"
            )
        parsed.append((name, token, (_pattern(rest[0], where),) if rest else None))
    return parsed


def _pattern(text: str, where: str) -> str:
    if not _PATTERN.fullmatch(text):
        raise ConfigurationError(f"{where}: a pattern looks like REGISTRY.* or REGISTRY.get_user")
    return text
