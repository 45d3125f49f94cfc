"""The pages hang together: links, the index, the snippets' syntax and imports, the contract, paths, commands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from architecture.workspace import ROOT, named, page, pages, sources, table_column, tracked, tree
from starlette.routing import Route, WebSocketRoute

import callboard
from callboard.app import Callboard
from callboard.cli import main
from callboard.messages import Call
from callboard.settings import Settings, load


@pytest.mark.parametrize("path", pages(), ids=named)
def test_every_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith(("http:", "https:")):
            continue
        target, _, anchor = link.partition("#")
        page_linked = (path.parent / target).resolve() if target else path
        assert page_linked.exists(), f"{named(path)} links to {link}"
        if anchor:
            assert anchor in anchors(page_linked.read_text()), f"{named(path)} links to {link}"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_lists_every_page() -> None:
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", page("docs/index.md")))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}


def test_every_module_says_what_it_is_for() -> None:
    for path in sources():
        if path.read_text().strip():
            assert ast.get_docstring(tree(path)), f"{named(path)} has no docstring"


# -- snippets


def python_blocks() -> Iterator[tuple[str, str]]:
    """All of them, but those of the plugins' READMEs that are lists of signatures."""
    for path in pages():
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL), start=1):
            if "import " in block or not named(path).startswith("plugins/"):
                yield f"{named(path)}:{number}", block


@pytest.mark.parametrize(("where", "block"), list(python_blocks()), ids=lambda value: value if ":" in value else "")
def test_a_python_snippet_is_python_and_imports_what_there_is(where: str, block: str) -> None:
    parsed = compile(block, where, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(parsed):
        if isinstance(node, ast.ImportFrom) and node.module == "callboard":
            assert {alias.name for alias in node.names} <= set(callboard.__all__), where


# -- the wire


def test_what_the_code_calls_the_contract_is_there() -> None:
    sections = re.findall(r"^## (.+)$", page("docs/contract.md"), re.MULTILINE)
    for path in sources():
        for section in re.findall(r"\(CONTRACT, ([^)]+)\)", path.read_text()):
            assert section in sections, f"{named(path)} refers to {section}"


def test_every_field_of_a_call_is_in_the_contract() -> None:
    rpc = page("docs/contract.md").partition("## RPC")[2].partition("## Idempotency")[0]
    rows = [line for line in rows_of(rpc) if "text" in line[1] or "int" in line[1] or "list" in line[1]]
    documented = {name for first, *_ in rows for name in re.findall(r"`(\w+)`", first)}
    assert documented == set(Call.__struct_fields__)


def rows_of(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_every_event_type_is_in_the_contract() -> None:
    events = page("docs/contract.md").partition("## Events")[2].partition("## WebSocket")[0]
    types = events.partition("| type | payload |")[2].partition("\n\n")[0]
    documented = {name for first, *_ in rows_of(types) for name in re.findall(r"`([a-z_.]+)`", first)}
    assert documented == set(event_types())


def event_types() -> Iterator[str]:
    """What looks like an event's type, and is a literal in a plugin or in the core's `Context`."""
    for path in sources():
        if named(path).startswith("plugins/") or path.name == "context.py":
            for node in ast.walk(tree(path)):
                text = node.value if isinstance(node, ast.Constant) else None
                if isinstance(text, str) and re.fullmatch(r"(notif|workflow|service|msg|chat)\.[a-z_]+", text):
                    yield text


# -- what can be asked


def test_every_path_is_documented() -> None:
    environ = {"LISTENERS_SERVICE_TOKEN": "t0ken", "USE_LOCAL_REDIS": "true"}
    app = Callboard(load(Settings, environ), [], environ=environ).asgi
    paths = {route.path.lower() for route in app.routes if isinstance(route, Route | WebSocketRoute)}
    endpoints = {name.removeprefix("GET ").lower() for name in table_column(page("docs/observability.md"))}
    assert {path for path in paths if not path.startswith(("/rpc", "/ws"))} == {e for e in endpoints if e[0] == "/"}
    assert paths >= {"/rpc", "/rpc/{method}", "/ws"}


def test_every_command_is_documented() -> None:
    text = page("core/README.md")
    for name in main.commands:
        assert f"callboard {name}" in text
    assert set(re.findall(r"^callboard (\w+)", text, re.MULTILINE)) == set(main.commands)


def test_contributing_names_the_folders_of_tests() -> None:
    tracked_folders = {path.parent.name for path in tracked() if path.parent.parent == ROOT / "tests"}
    assert set(re.findall(r"^\| `tests/(\w+)/`", page("CONTRIBUTING.md"), re.MULTILINE)) == tracked_folders


def test_every_make_target_is_documented() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", page("Makefile"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)[ `]", page("CONTRIBUTING.md"))) | {"help"} == targets
