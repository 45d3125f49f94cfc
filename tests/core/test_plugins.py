from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import msgspec
import pytest
from support import MakeSettings, Recorded

from callboard import ConfigurationError, Help, Service, hookimpl, method, variable
from callboard import plugins as plugins_module
from callboard.plugins import Plugins


class Good(Service):
    namespace = "GOOD"
    channels = {"good": "GOOD_CHANNEL_PREFIX"}  # noqa: RUF012 - as plugins write it

    @method
    async def do(self) -> None: ...


def plugin(**hooks: Any) -> Any:
    class Module:
        __name__ = "callboard_sample"

    for name, function in hooks.items():
        setattr(Module, name, staticmethod(hookimpl(function)))
    return Module()


@pytest.fixture
def make(make_settings: MakeSettings, recorded: Recorded) -> Any:
    def build(environ: dict[str, str] | None = None, **variables: str) -> Plugins:
        return Plugins(make_settings(**variables), environ or {}, recorded.telemetry)

    return build


def test_a_plugins_services_are_built_with_their_settings(make: Any) -> None:
    class GoodSettings(msgspec.Struct, frozen=True):
        size: Annotated[int, Help("how many")] = variable("GOOD_SIZE", default=1)

    service = type("WithSettings", (Good,), {"Settings": GoodSettings})
    plugins = make({"GOOD_SIZE": "7"})
    plugins.use([plugin(register_services=lambda: [service])])
    plugins.build_services()
    (built,) = plugins.all[0].services
    assert (built.settings.size, plugins.all[0].state, plugins.all[0].name) == (7, "loaded", "sample")


async def _async_hook(settings: Any) -> list[Any]:
    return []


@pytest.mark.parametrize(
    ("hooks", "reason"),
    [
        ({}, "no hooks"),
        ({"register_service": lambda: [Good]}, "register_service"),
        ({"register_services": lambda wrong: [Good]}, "wrong"),
        ({"register_services": _async_hook}, "async"),
        ({"register_services": lambda: 1 / 0}, "ZeroDivisionError"),
        ({"register_services": lambda: [object]}, "not a Service"),
        ({"register_services": lambda: None}, "NoneType"),
    ],
    ids=["no hooks", "unknown hook", "unknown argument", "async", "raises", "not a service", "returns nothing"],
)
def test_a_bad_plugin_is_put_aside_and_the_others_serve(make: Any, recorded: Recorded, hooks: Any, reason: str) -> None:
    plugins = make()
    plugins.use([plugin(**hooks), SimpleNamespace(register_services=hookimpl(lambda: [Good]))])
    plugins.build_services()
    bad, good = plugins.all
    assert bad.state == "quarantined"
    assert reason in bad.error
    assert [service.namespace for service in good.services] == ["GOOD"]
    assert recorded.lines("plugin_quarantined")[0]["plugin"] == "sample"


def test_strict_makes_it_fatal(make: Any) -> None:
    plugins = make(LISTENERS_STRICT="true")
    with pytest.raises(ConfigurationError, match="plugin sample: it has no hooks"):
        plugins.use([plugin()])


def test_a_setting_that_does_not_fit_puts_its_plugin_aside(make: Any) -> None:
    class GoodSettings(msgspec.Struct, frozen=True):
        size: Annotated[int, Help("how many")] = variable("GOOD_SIZE", default=1)

    service = type("WithSettings", (Good,), {"Settings": GoodSettings})
    plugins = make({"GOOD_SIZE": "many"})
    plugins.use([plugin(register_services=lambda: [service])])
    plugins.build_services()
    assert "GOOD_SIZE" in plugins.all[0].error
    assert "many" not in plugins.all[0].error


def test_the_reason_never_quotes_what_may_be_a_secret(make: Any) -> None:
    def connect() -> None:
        raise ValueError("postgres://user:s3cret@host")

    plugins = make()
    plugins.use([plugin(register_services=connect)])
    plugins.build_services()
    assert plugins.all[0].error == "its hook register_services failed: ValueError"


def test_channel_prefixes_come_from_their_variables(make: Any) -> None:
    plugins = make({"GOOD_CHANNEL_PREFIX": "better:"})
    plugins.use([plugin(register_services=lambda: [Good])])
    plugins.build_services()
    assert plugins.channel_prefixes() == {"msg": "msg:", "chat": "chat:", "good": "better:"}


@pytest.mark.parametrize(
    ("channels", "environ", "message"),
    [
        ({"msg": "X"}, {}, r"msg\.\* are declared by the core and by sample"),
        ({"other": "OTHER_PREFIX"}, {"OTHER_PREFIX": "user:"}, "taken by the core"),
        ({"a": "A", "b": "B"}, {"A": "same:", "B": "same:"}, "taken by sample"),
    ],
)
def test_clashes_of_channels_are_fatal_and_name_both(make: Any, channels: Any, environ: Any, message: str) -> None:
    plugins = make(environ)
    plugins.use(
        [plugin(register_services=lambda: [type("Other", (Service,), {"namespace": "O", "channels": channels})])]
    )
    plugins.build_services()
    with pytest.raises(ConfigurationError, match=message):
        plugins.channel_prefixes()


# -- discovery


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Write modules and let discovery find them as installed plugins."""
    points: list[EntryPoint] = []

    def install(name: str, source: str) -> None:
        module = f"installed_{name}"
        (tmp_path / f"{module}.py").write_text(source)
        points.append(EntryPoint(name, module, plugins_module.GROUP))

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins_module, "entry_points", lambda group: points)
    yield install
    for module in [m for m in sys.modules if m.startswith("installed_")]:
        del sys.modules[module]


WORKING = "from callboard import hookimpl\n@hookimpl\ndef register_services(settings): return []\n"


def test_discovery_is_alphabetical(make: Any, installed: Any) -> None:
    for name in ("b", "c", "a"):
        installed(name, WORKING)
    plugins = make()
    plugins.discover()
    assert [p.name for p in plugins.all] == ["a", "b", "c"]


@pytest.mark.parametrize("source", ["import missing_thing", "raise SystemExit(3)", "1/0", "def ("])
def test_one_that_cannot_be_imported_is_put_aside(make: Any, installed: Any, source: str) -> None:
    installed("broken", source)
    installed("fine", WORKING)
    plugins = make()
    plugins.discover()
    broken, fine = plugins.all
    assert (broken.state, fine.state) == ("quarantined", "loaded")
    assert "cannot be imported" in broken.error
    assert broken.namespaces() == ["BROKEN"]


def test_the_allow_list(make: Any, installed: Any) -> None:
    installed("one", WORKING)
    installed("two", "raise SystemExit('must not be imported')")
    plugins = make(LISTENERS_PLUGINS="one")
    plugins.discover()
    assert [p.name for p in plugins.all] == ["one"]
    with pytest.raises(ConfigurationError, match="three"):
        make(LISTENERS_PLUGINS="one,three").discover()


def test_two_plugins_of_one_name_are_fatal(make: Any, installed: Any) -> None:
    installed("same", WORKING)
    installed("same", WORKING)
    with pytest.raises(ConfigurationError, match="named same"):
        make().discover()
