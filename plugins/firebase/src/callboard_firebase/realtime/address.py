"""Where a database is: Google's URL for it, or an emulator and a namespace."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Self
from urllib.parse import parse_qs, quote, urlencode

import httpx
from msgspec import Struct

from callboard.errors import ConfigurationError, Unavailable

_GOOGLES = (".firebaseio.com", ".firebasedatabase.app")
_NAMESPACE = re.compile(r"[a-z0-9-]+", re.IGNORECASE)
_DEFAULT_PROJECT = "demo"
_URL_VARIABLE = "FIREBASE_REALTIME_DB_URL"


class Address(Struct, frozen=True):
    """`origin` without a slash at its end; `namespace` only where the host's name does not say it."""

    origin: str
    namespace: str | None = None
    emulated: bool = False

    @classmethod
    def parse(cls, url: str, *, emulator_host: str = "", project: str = "") -> Self:
        """From the settings; ConfigurationError names the variable that is wrong.

        With an emulator the URL only names the namespace: its `ns=`, else its host's first label; without a URL it is
        the project's default database.
        """
        if not emulator_host:
            parsed = _parse(url)
            if parsed.scheme != "https":
                raise ConfigurationError(f"{_URL_VARIABLE}: https is wanted; an emulator has a variable of its own.")
            return cls(_origin(parsed), _named(parsed))
        namespace = _namespace(_parse(url)) if url else f"{project or _DEFAULT_PROJECT}-default-rtdb"
        host = _parse(f"http://{emulator_host}", "FIREBASE_DATABASE_EMULATOR_HOST")
        return cls(_origin(host), namespace, emulated=True)

    def url(self, keys: Iterable[str], parameters: Mapping[str, str] | None = None) -> httpx.URL:
        """Of a node in the REST API."""
        query = dict(parameters or {})
        if self.namespace is not None:
            query["ns"] = self.namespace
        path = "/".join(quote(key, safe="") for key in keys)
        # A plus sign for a space is a form's way, not every server's.
        return httpx.URL(f"{self.origin}/{path}.json" + (f"?{urlencode(query, quote_via=quote)}" if query else ""))

    def redirected(self, url: httpx.URL, location: str) -> httpx.URL:
        """Where a redirect leads, if the credentials may go there; else Unavailable.

        Google moves requests and streams between its own hosts, and the token has to go along: HTTP clients strip it.
        """
        try:
            target = url.join(location)
        except httpx.InvalidURL:
            raise Unavailable("The database redirects to nowhere.") from None
        same = (target.scheme, target.host, target.port) == (url.scheme, url.host, url.port)
        googles = target.scheme == url.scheme == "https" and _is_googles(target.host) and _is_googles(url.host)
        if not (same or googles or (self.emulated and target.scheme == "http")):
            raise Unavailable("The database redirects to a host that is not its own.")
        return target


def _parse(url: str, variable: str = _URL_VARIABLE) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise ConfigurationError(f"{variable} is not a valid address.") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise ConfigurationError(f"{variable} is not a valid address.")
    if parsed.path not in ("", "/"):
        raise ConfigurationError(f"{variable}: the address of a database has no path.")
    return parsed


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode()}"


def _named(url: httpx.URL) -> str | None:
    names = parse_qs(url.query.decode()).get("ns")
    if names and not _NAMESPACE.fullmatch(names[0]):
        raise ConfigurationError(f"{_URL_VARIABLE}: ns is not a namespace.")
    return names[0] if names else None


def _namespace(url: httpx.URL) -> str:
    return _named(url) or url.host.partition(".")[0]


def _is_googles(host: str) -> bool:
    return host.endswith(_GOOGLES)
