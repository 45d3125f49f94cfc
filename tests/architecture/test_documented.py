"""The docs are complete, and speak of nothing that is not there: settings, hooks, codes, events, metrics, methods."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from architecture.workspace import (
    DISTRIBUTIONS,
    PLUGINS,
    ROOT,
    modules,
    named,
    page,
    pages,
    sources,
    table_column,
    tree,
)
from prometheus_client import CollectorRegistry

from callboard import hookspecs
from callboard.errors import CallError
from callboard.gateway.closing import CloseCode
from callboard.rpc.binding import Binding
from callboard.service import Service
from callboard.settings import EMULATOR_VARIABLES
from callboard.telemetry import LOG_EVENTS, Metrics

# -- settings


def settings_structs() -> list[type[msgspec.Struct]]:
    """Every struct with a field that is read from a variable."""
    found = {
        struct
        for module in modules()
        for _, struct in inspect.getmembers(module, inspect.isclass)
        if issubclass(struct, msgspec.Struct) and any(map(is_variable, msgspec.structs.fields(struct)))
    }
    return sorted(found, key=lambda struct: struct.__qualname__)


def is_variable(field: msgspec.structs.FieldInfo) -> bool:
    return field.encode_name.isupper()


def settings() -> dict[str, object]:
    """Variable → default, of all of them."""
    fields = [field for struct in settings_structs() for field in msgspec.structs.fields(struct)]
    return {field.encode_name: field.default for field in fields if is_variable(field)}


def shown(default: object) -> str:
    if default in (None, "", ()):
        return "–"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


@pytest.mark.parametrize("where", ["docs/configuration.md", "README.md"])
def test_every_setting_is_documented_with_its_default(where: str) -> None:
    rows = re.findall(r"^\| `([A-Z][A-Z0-9_]+)`(?: \*)? \| (.+?) \| (.+) \|$", page(where), re.MULTILINE)
    documented = {name: default for name, default, _ in rows}
    assert documented == {name: shown(default) for name, default in settings().items()}
    assert len(rows) == len(documented), "a variable is documented twice"


@pytest.mark.parametrize("struct", settings_structs(), ids=lambda struct: struct.__qualname__)
def test_every_setting_has_help(struct: type[msgspec.Struct]) -> None:
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in filter(is_variable, msgspec.structs.fields(struct)):
        helps = [getattr(meta, "description", None) for meta in getattr(hints[field.name], "__metadata__", ())]
        assert any(helps), f"{struct.__qualname__}.{field.name} has no Help"


def test_the_docs_name_no_variable_that_nobody_reads() -> None:
    known = {*settings(), *EMULATOR_VARIABLES, "LISTENERS_SERVICE_URL"}
    prefixes = ("LISTENERS_", "RPC_", "USE_", "FIREBASE_", "FIRESTORE_", "GOOGLE_", "WORKFLOW_LISTENER_")
    for path in pages():
        for name in re.findall(r"`([A-Z]+(?:_[A-Z0-9]+)+)(?:=[^`]*)?`", path.read_text()):
            if name.startswith(prefixes) and name not in namespaces():
                assert name in known, f"{named(path)} names {name}"


# -- hooks


def hooks() -> dict[str, str]:
    """Hook → the head of its declaration."""
    return {
        name: f"{name}({', '.join(inspect.signature(function).parameters)})"
        for name, function in inspect.getmembers(hookspecs, inspect.isfunction)
        if hasattr(function, "callboard_spec")
    }


def test_every_hook_is_documented_with_its_exact_arguments() -> None:
    text = page("docs/hooks.md")
    assert set(table_column(text)) == set(hooks().values())
    assert set(re.findall(r"^## (register_.*)$", text, re.MULTILINE)) == set(hooks().values())
    for name in hooks():
        assert f"@hookimpl\ndef {name}(" in text, f"{name} has no example"


@pytest.mark.parametrize("name", hooks())
def test_the_core_calls_every_hook(name: str) -> None:
    callers = [path for path in sources() if path.name != "hookspecs.py" and named(path).startswith("core/")]
    assert any(f'"{name}"' in path.read_text() for path in callers)


# -- errors and close codes


def errors() -> Iterator[type[CallError]]:
    waiting = CallError.__subclasses__()
    while waiting:
        error = waiting.pop()
        waiting += error.__subclasses__()
        if error.__module__ == "callboard.errors":
            yield error


def test_every_error_code_is_documented_with_its_advice() -> None:
    text = page("docs/errors.md").partition("## WebSocket")[0]
    rows = {
        code: (retry, {int(status) for status in statuses.split(", ")})
        for code, retry, statuses in re.findall(
            r"^\| `([A-Z_]+)` \| [^|]+ \| ([^|]+) \| ([\d, ]+) \| [^|]+ \|$", text, re.MULTILINE
        )
    }
    expected: dict[str, tuple[str, set[int]]] = {}
    for error in sorted(errors(), key=lambda error: len(error.__mro__), reverse=True):
        _, statuses = expected.get(error.code, ("", set()))
        advice = f"after {error.default_retry_after_ms} ms" if error.retryable else "no"
        expected[error.code] = advice, statuses | {error.http_status}  # the base of a code comes last and decides
    assert rows == expected


def test_every_error_a_plugin_may_meet_is_in_the_tree() -> None:
    tree_drawn = page("docs/errors.md").partition("CallboardError\n")[2].partition("```")[0]
    drawn = dict(re.findall(r"[├└]── (\w+) +([A-Z_]{5,})", tree_drawn))
    direct = {error.__name__: error.code for error in CallError.__subclasses__() if "callboard.errors" in str(error)}
    assert drawn == direct


def test_every_close_code_is_documented() -> None:
    text = page("docs/errors.md").partition("## WebSocket close codes")[2]
    rows = {
        int(code): answer for code, answer in re.findall(r"^\| `(\d+)` \| .+ \| (yes|no)\b.*\|$", text, re.MULTILINE)
    }
    assert rows == {int(code): "yes" if code.reconnect else "no" for code in CloseCode}


# -- log events


def logged(path: Path) -> Iterator[tuple[str, int]]:
    """The event names that a module's log calls are given as literals, with their lines."""
    if "logging.getLogger" in path.read_text():
        return  # the standard library's, which reaches our log as `library`
    for node in ast.walk(tree(path)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = ast.unparse(node.func.value)
        is_log = owner.split(".")[-1] in ("log", "_log")
        if is_log and node.func.attr in ("debug", "info", "warning", "error", "exception", "critical"):
            yield from _literals(node.args[0], node.lineno)
        elif (is_log and node.func.attr == "log") or (
            isinstance(node.func.value, ast.Name) and node.func.attr == "callback" and len(node.args) > 1
        ):
            yield from _literals(node.args[1], node.lineno)


def _literals(node: ast.expr, line: int) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value, line


def test_every_log_event_is_documented() -> None:
    text = page("docs/observability.md").partition("## Logs")[2].partition("## Metrics")[0]
    assert set(table_column(text)) == set(LOG_EVENTS)


@pytest.mark.parametrize("path", sources(), ids=named)
def test_no_log_call_uses_a_name_that_is_not_documented(path: Path) -> None:
    for event, line in logged(path):
        assert event in LOG_EVENTS, f"line {line} logs {event}"


def test_every_documented_log_event_is_logged_somewhere() -> None:
    text = "\n".join(path.read_text() for path in sources() if path.name != "telemetry.py")
    for event in LOG_EVENTS:
        composed = event.partition("listener_")[2]  # log_name("start"), after a prefix of the service's own
        assert f'"{event}"' in text or (composed and f'log_name("{composed}")' in text), f"nobody logs {event}"


# -- metrics


def test_every_metric_is_documented_with_its_labels() -> None:
    text = page("docs/observability.md").partition("## Metrics")[2]
    documented = {
        name: tuple(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(r"^\| `(callboard_\w+)` \| (.*?) ?\| ", text, re.MULTILINE)
    }
    assert documented == metrics(Metrics().registry)


def metrics(registry: CollectorRegistry) -> dict[str, tuple[str, ...]]:
    """Metric, as Prometheus shows it → labels."""
    found = {}
    for collector in list(registry._collector_to_names):
        (family,) = collector.describe() if hasattr(collector, "describe") else collector.collect()
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = ("version",) if family.type == "info" else tuple(getattr(collector, "_labelnames", ()))
        found[family.name + suffix] = labels
    return found


# -- the plugins' methods


def services(plugin: Path) -> list[type[Service]]:
    (package,) = (path.parent.name for path in plugin.glob("src/*/__init__.py"))
    found = {
        thing
        for module in modules()
        if module.__name__.partition(".")[0] == package
        for _, thing in inspect.getmembers(module, inspect.isclass)
        if issubclass(thing, Service) and "namespace" in vars(thing)
    }
    return sorted(found, key=lambda service: service.namespace)


def namespaces() -> set[str]:
    return {service.namespace for plugin in PLUGINS for service in services(plugin)}


@pytest.mark.parametrize("plugin", PLUGINS, ids=named)
def test_every_method_is_in_its_plugins_readme(plugin: Path) -> None:
    text = (plugin / "README.md").read_text()
    for service in services(plugin):
        assert service.namespace in text
        for name, function, declared in service.methods(service.__new__(service)):
            signature = f"{name}({', '.join(_parameters(Binding(function)))})"
            assert signature in text, f"{named(plugin)}/README.md lacks {signature}"
            assert function.__doc__, f"{service.namespace}.{name} has no docstring"
            for alias in declared.aliases:
                assert alias in text, f"{named(plugin)}/README.md lacks the alias {alias}"


def _parameters(binding: Binding) -> list[str]:
    """As the README writes them: `user_id, read=None, limit=100`."""
    empty = inspect.Parameter.empty
    return [p.name if p.default is empty else f"{p.name}={_literal(p.default)}" for p in binding.parameters]


def _literal(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


@pytest.mark.parametrize("plugin", PLUGINS, ids=named)
def test_a_readme_names_no_method_that_is_not_there(plugin: Path) -> None:
    known = {
        alias if "." in alias else f"{service.namespace}.{alias}"
        for owner in PLUGINS
        for service in services(owner)
        for name, _, declared in service.methods(service.__new__(service))
        for alias in (name, *declared.aliases)
    }
    for name in re.findall(r"\b[A-Z][A-Z0-9_]+\.[a-z]\w+", (plugin / "README.md").read_text()):
        if name.partition(".")[0] in namespaces():
            assert name in known, f"{named(plugin)}/README.md names {name}"


# -- the dependencies


def dependencies() -> set[str]:
    """Every third-party distribution that one of ours, or the tools at the root, asks for."""
    asked: list[str] = []
    for path in (*(folder / "pyproject.toml" for folder in DISTRIBUTIONS), ROOT / "pyproject.toml"):
        config = tomllib.loads(path.read_text())
        project = config["project"]
        asked += [*project.get("dependencies", ()), *config.get("dependency-groups", {}).get("dev", ())]
        asked += [each for extra in project.get("optional-dependencies", {}).values() for each in extra]
    names = {re.match(r"[\w.-]+", each)[0].lower() for each in asked}  # type: ignore[index]
    return {name for name in names if not name.startswith("callboard")}


def test_every_dependency_has_its_reason() -> None:
    reasons = page("docs/why.md").partition("## Dependencies")[2]
    given = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \|$", reasons, re.MULTILINE)
    named_there = {name.strip() for cell in given for name in re.split(r", | with ", cell)}
    assert named_there - {"dependency", "tool", "---", "uv"} == dependencies()
