"""The table of methods: built once, at start, from what services declare; a call costs one look-up in it.

A client's text is only ever a key of this table; it never reaches `getattr`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from callboard.credentials import Credential
from callboard.errors import ConfigurationError, MethodNotFound, PermissionDenied, Unavailable
from callboard.messages import NAMESPACE
from callboard.rpc.binding import Binding
from callboard.rpc.bulkhead import Bulkhead
from callboard.service import Method, Service
from callboard.settings import Settings


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of the table: a method, ready to be called. `name` may be an alias of the `canonical` one."""

    name: str
    canonical: str
    namespace: str
    plugin: str
    function: Callable[..., Any]
    declared: Method
    binding: Binding
    bulkhead: Bulkhead
    on_thread: bool

    def apply(self, arguments: dict[str, Any]) -> Any:
        return self.binding.apply(self.function, arguments)


class Table:
    """Names to endpoints. Registration is atomic; a clash of names is fatal and names both culprits."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rows: dict[str, Endpoint] = {}
        self._bulkheads: dict[str, Bulkhead] = {}
        self._owners: dict[str, str] = {}
        self._descriptions: dict[str, str] = {}
        self._quarantined: set[str] = set()

    def add(self, service: Service, plugin: str) -> None:
        """Take a service's methods, all or none. ConfigurationError: a clash, or a name that cannot be one."""
        namespace = getattr(service, "namespace", "")
        if not NAMESPACE.fullmatch(namespace):
            raise ConfigurationError(f"{plugin}: the namespace {namespace!r} must match {NAMESPACE.pattern}")
        if namespace in self._owners:
            raise ConfigurationError(f"{namespace} is declared by {self._owners[namespace]} and by {plugin}")
        bulkhead = Bulkhead(
            namespace, concurrency=self._settings.namespace_concurrency, threads=self._settings.namespace_threads
        )
        rows: dict[str, Endpoint] = {}
        for name, function, declared in service.methods():
            canonical = f"{namespace}.{name}"
            for full in (canonical, *(a if "." in a else f"{namespace}.{a}" for a in declared.aliases)):
                owner = rows.get(full) or self._rows.get(full)
                if owner is not None:
                    raise ConfigurationError(f"{full} is declared by {owner.plugin} and by {plugin}")
                rows[full] = _endpoint(full, canonical, namespace, plugin, function, declared, bulkhead)
        self._rows.update(rows)
        self._bulkheads[namespace] = bulkhead
        self._owners[namespace] = plugin
        self._descriptions[namespace] = inspect.cleandoc(type(service).__doc__ or "")

    def quarantine(self, namespace: str) -> None:
        """Answer every call of this namespace with UNAVAILABLE."""
        self._quarantined.add(namespace)

    def look_up(self, method: str, credential: Credential) -> Endpoint:
        """The method, if there is one and the credential may call it: Unavailable, MethodNotFound, PermissionDenied."""
        endpoint = self._rows.get(method)
        namespace = endpoint.namespace if endpoint else method.partition(".")[0]
        if namespace in self._quarantined:
            raise Unavailable(f"The namespace {namespace} is out of service.", retry_after_ms=30_000)
        if endpoint is None:
            raise MethodNotFound
        if not credential.allows(method):
            raise PermissionDenied
        return endpoint

    def get(self, method: str) -> Endpoint | None:
        return self._rows.get(method)

    def endpoints(self) -> list[Endpoint]:
        """All methods, sorted by name."""
        return [self._rows[name] for name in sorted(self._rows)]

    def descriptions(self) -> dict[str, str]:
        """Namespace → what its class says of itself."""
        return dict(self._descriptions)

    def methods_of(self, namespace: str) -> list[str]:
        return sorted(name for name, endpoint in self._rows.items() if endpoint.namespace == namespace)

    def busy_threads(self) -> int:
        return sum(bulkhead.busy_threads for bulkhead in self._bulkheads.values())

    def close(self) -> None:
        for bulkhead in self._bulkheads.values():
            bulkhead.close()


def _endpoint(
    full: str, canonical: str, namespace: str, plugin: str, function: Callable[..., Any], declared: Method,
    bulkhead: Bulkhead,
) -> Endpoint:  # fmt: skip
    name = full.partition(".")[2]
    if name.startswith("_") or "__" in name or not name.isidentifier():
        raise ConfigurationError(f"{plugin}: {full} cannot be a method: its name is private or not an identifier")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"{plugin}: {full} is a generator; a method returns one value")
    on_thread = not inspect.iscoroutinefunction(function)
    return Endpoint(full, canonical, namespace, plugin, function, declared, Binding(function), bulkhead, on_thread)
