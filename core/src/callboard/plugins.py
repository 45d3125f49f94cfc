"""Plugins: discover, verify, register, quarantine, report.

A plugin is a module named by an entry point of the group `callboard.plugins`. The entry point's name is the plugin's
name and, in capitals, the namespace that answers UNAVAILABLE while the plugin cannot even be imported.

A plugin that fails is put aside with its reason and the rest serves, unless LISTENERS_STRICT stops the start. A clash
of names is always fatal.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

import pluggy

from callboard import hookspecs
from callboard.errors import CallboardError, ConfigurationError
from callboard.hookspecs import PROJECT
from callboard.service import Service
from callboard.settings import Settings, load
from callboard.telemetry import Telemetry, where_raised

GROUP = "callboard.plugins"


@dataclass
class Plugin:
    """One plugin and what became of it."""

    name: str
    distribution: str
    version: str
    module: Any = None
    state: Literal["loaded", "ready", "quarantined"] = "loaded"
    error: str | None = None
    services: list[Service] = field(default_factory=list)

    def namespaces(self) -> list[str]:
        return [service.namespace for service in self.services] or [self.name.upper()]


class Plugins:
    """The plugins of one app; a manager of its own, nothing global."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], telemetry: Telemetry) -> None:
        self.settings = settings
        self._environ = environ
        self._telemetry = telemetry
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.all: list[Plugin] = []

    def discover(self) -> None:
        """Load every installed plugin (those in LISTENERS_PLUGINS when it is set), in alphabetical order."""
        wanted = set(self.settings.plugins)
        found = sorted(entry_points(group=GROUP), key=lambda point: point.name)
        names = [point.name for point in found]
        for point in found:
            if names.count(point.name) > 1:
                raise ConfigurationError(
                    f"two installed plugins are named {point.name}: {_distributions(found, point)}"
                )
        if missing := wanted - set(names):
            raise ConfigurationError(f"LISTENERS_PLUGINS names {', '.join(sorted(missing))}: not installed")
        for point in found:
            if not wanted or point.name in wanted:
                self._load(point)

    def _load(self, point: EntryPoint) -> None:
        plugin = Plugin(point.name, point.dist.name if point.dist else "?", point.dist.version if point.dist else "?")
        self.all.append(plugin)
        try:
            plugin.module = point.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a module may raise anything, SystemExit included
            self.quarantine(plugin, f"it cannot be imported: {reason_of(error)}", error)
            return
        self._register(plugin)

    def use(self, modules: Sequence[Any]) -> None:
        """Take these modules (or objects with hookimpls) as the plugins, instead of discovering installed ones."""
        for module in modules:
            name = str(getattr(module, "__name__", type(module).__name__)).rpartition(".")[2]
            plugin = Plugin(name.removeprefix("callboard_"), "given", "0", module)
            self.all.append(plugin)
            self._register(plugin)

    def _register(self, plugin: Plugin) -> None:
        try:
            self._manager.register(plugin.module, name=plugin.name)
            hooks = self._manager.get_hookcallers(plugin.module) or []
            if not hooks:
                raise ConfigurationError("it has no hooks: decorate them with callboard.hookimpl")
            for hook in hooks:
                for impl in hook.get_hookimpls():
                    if impl.plugin is plugin.module and _is_async(impl.function):
                        raise ConfigurationError(f"its hook {hook.name} is async; hooks are plain functions")
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ConfigurationError, ValueError) as error:
            if self._manager.has_plugin(plugin.name):
                self._manager.unregister(name=plugin.name)
            self.quarantine(plugin, str(error), error)

    def healthy(self) -> list[Plugin]:
        return [plugin for plugin in self.all if plugin.state != "quarantined"]

    def collect(
        self, hook: str, take: Callable[[Any], Any] = lambda given: given, **arguments: Any
    ) -> Iterator[tuple[Plugin, Any]]:
        """Call one hook plugin by plugin, so that a failing one is put aside alone; yields (plugin, taken result).

        `take` raises when a result is not what the hook is to return, such as None where there was no `return`.
        """
        for plugin in self.healthy():
            for impl in getattr(self._manager.hook, hook).get_hookimpls():
                if impl.plugin is not plugin.module:
                    continue
                try:
                    result = take(impl.function(*(arguments[name] for name in impl.argnames)))
                except Exception as error:  # noqa: BLE001 - whatever it is, it is that plugin's alone
                    self.quarantine(plugin, f"its hook {hook} failed: {reason_of(error)}", error)
                else:
                    yield plugin, result

    def build_services(self) -> None:
        """Make every plugin's services, with their settings."""
        for plugin, classes in self.collect("register_services", settings=self.settings):
            try:
                plugin.services += [self._build(cls) for cls in classes]
            except Exception as error:  # noqa: BLE001 - as above
                self.quarantine(plugin, reason_of(error), error)

    def _build(self, cls: type[Service]) -> Service:
        if not (isinstance(cls, type) and issubclass(cls, Service)):
            raise ConfigurationError(f"register_services returned {cls!r}, which is not a Service class")
        service = cls()
        if cls.Settings is not None:
            service.settings = load(cls.Settings, self._environ)
        service.log = self._telemetry.log.bind(namespace=cls.namespace)
        return service

    def channel_prefixes(self) -> dict[str, str]:
        """First segment of event types → channel prefix, over all plugins. Clashes are fatal."""
        settings = self.settings
        prefixes = {"msg": settings.msg_channel_prefix, "chat": settings.chat_channel_prefix}
        owners = dict.fromkeys(prefixes, "the core")
        for plugin in self.healthy():
            for service in plugin.services:
                for segment, variable in service.channels.items():
                    prefix = self._environ.get(variable) or f"{segment}:"
                    if segment in owners:
                        raise ConfigurationError(
                            f"events named {segment}.* are declared by {owners[segment]} and by {plugin.name}"
                        )
                    taken = next((s for s, p in prefixes.items() if p == prefix), None)
                    if taken or prefix == settings.channel_prefix:
                        raise ConfigurationError(
                            f"{plugin.name}: the channel prefix {prefix!r} ({variable}) is taken by "
                            f"{owners[taken] if taken else 'the core'}"
                        )
                    prefixes[segment], owners[segment] = prefix, plugin.name
        return prefixes

    def quarantine(self, plugin: Plugin, reason: str, error: BaseException | None = None) -> None:
        """Put a plugin aside; with LISTENERS_STRICT, stop the start."""
        plugin.state, plugin.error = "quarantined", reason
        self._telemetry.log.error(
            "plugin_quarantined", plugin=plugin.name, reason=reason, **(where_raised(error) if error else {})
        )
        if self.settings.strict:
            # Without the error: the server logs what stops a start with its text, which may quote a secret.
            raise ConfigurationError(f"plugin {plugin.name}: {reason}") from None


def reason_of(error: BaseException) -> str:
    """What /debug may show: the text of an error that speaks of code or settings; of any other, which may quote a
    secret such as an address with its password, the type alone."""
    telling = isinstance(error, CallboardError | ImportError | SyntaxError | TypeError | AttributeError | NameError)
    return f"{type(error).__name__}: {error}" if telling else type(error).__name__


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _distributions(points: Sequence[EntryPoint], like: EntryPoint) -> str:
    return " and ".join(sorted(p.dist.name if p.dist else "?" for p in points if p.name == like.name))
