"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from architecture.workspace import ROOT, named, python_files, sources, tracked, tree

MAX_LINES = 400
# `on_snapshot` is what Google's own client would do: the contract suite, a benchmark, a control hold it against that.
MAY_SNAPSHOT = ("local/tests/", "benchmarks/watchers.py", "plugins/firebase/tests/test_stock_watch.py")
HERE = Path(__file__)


@pytest.mark.parametrize("path", sources(), ids=named)
def test_a_module_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_nothing_listens_with_on_snapshot() -> None:
    for path in python_files():
        if path != HERE and not named(path).startswith(MAY_SNAPSHOT):
            names = {node.attr for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
            assert "on_snapshot" not in names, named(path)


def test_nothing_is_pickled() -> None:
    for path in python_files():
        for module in imported(path):
            assert module.partition(".")[0] not in ("pickle", "cPickle", "dill", "cloudpickle", "marshal"), named(path)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", sources(), ids=named)
def test_nothing_prints(path: Path) -> None:
    """Logs go through the app's own logger, the command line through click; a child's one line goes to its parent."""
    printing = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    if named(path) == "local/src/callboard_local/__main__.py":
        assert len(printing) == 1
    else:
        assert not printing


@pytest.mark.parametrize("path", sources(), ids=named)
def test_nothing_is_swallowed(path: Path) -> None:
    """No bare `except:`; a handler that does nothing names what it expects, and says beside it why that is right."""
    lines = path.read_text().splitlines()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            assert not {"Exception", "BaseException"} & {ast.unparse(each) for each in node.args}
        if not isinstance(node, ast.ExceptHandler):
            continue
        assert node.type is not None, f"line {node.lineno}: a bare except"
        last = node.body[-1]
        if len(node.body) == 1 and isinstance(last, ast.Pass | ast.Continue):
            caught = ast.unparse(node.type)
            assert not re.search(r"\b(Base)?Exception\b", caught), f"line {node.lineno}: {caught} is swallowed"
            explained = "#" in lines[node.lineno - 1] or "#" in lines[last.lineno - 1] or "#" in lines[last.lineno - 2]
            assert explained, f"line {node.lineno}: {caught} is swallowed, and nobody says why"


@pytest.mark.parametrize("path", sources(), ids=named)
def test_no_module_holds_state(path: Path) -> None:
    """No `global`, and no module-level name in lower case that is bound to a mutable container."""
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.Global), f"line {node.lineno}: global {node.names}"
    for statement in tree(path).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(
            statement.value, ast.List | ast.Dict | ast.Set
        ):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            name = ast.unparse(target)
            assert name == "__all__" or name.strip("_").isupper(), f"line {statement.lineno}: {name}"


def test_no_file_knows_a_machine() -> None:
    """No home directory, not this checkout's own folder, no address of a registry."""
    machine = re.compile(rb"/(?:home|Users)/[a-z]\w+|/root/|\bindex-url\b|--extra-index|" + re.escape(bytes(ROOT)))
    for path in tracked():
        if path != HERE:
            found = machine.search(path.read_bytes())
            assert found is None, f"{named(path)}: {found[0].decode()}"


def test_nothing_is_skipped_or_retried() -> None:
    for path in python_files():
        if path == HERE or "/tests/" not in f"/{named(path)}":
            continue
        names = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
        for mark in ("pytest.mark.skip", "pytest.mark.skipif", "pytest.mark.xfail", "pytest.mark.flaky", "pytest.skip"):
            assert mark not in names, f"{named(path)}: {mark}"


def test_no_module_is_called_utils() -> None:
    for path in python_files():
        assert path.stem not in ("utils", "util", "helpers", "misc", "common"), named(path)
