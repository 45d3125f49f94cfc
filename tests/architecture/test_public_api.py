"""`__init__.py` is a shop window: explicit imports, a sorted `__all__` equal to them, no logic."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
from pathlib import Path

import pytest
from architecture.workspace import DISTRIBUTIONS, PACKAGES, named, sources, tree

WINDOWS = [path for path in sources() if path.name == "__init__.py"]


@pytest.mark.parametrize("window", WINDOWS, ids=named)
def test_a_window_has_no_logic(window: Path) -> None:
    for statement in tree(window).body:
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        is_all = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
        assert isinstance(statement, ast.ImportFrom) or is_docstring or is_all, ast.unparse(statement)


@pytest.mark.parametrize("window", WINDOWS, ids=named)
def test_what_is_shown_is_what_is_there(window: Path) -> None:
    body = tree(window).body
    imported = {
        alias.asname or alias.name
        for statement in body
        if isinstance(statement, ast.ImportFrom) and statement.module != "__future__"
        for alias in statement.names
    }
    shown = [
        ast.literal_eval(statement.value)
        for statement in body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
    ]
    names: list[str] = shown[0] if shown else []
    assert "*" not in imported
    assert names == sorted(set(names))
    assert set(names) == imported


@pytest.mark.parametrize("package", PACKAGES, ids=named)
def test_every_name_can_be_imported_and_is_explained(package: Path) -> None:
    module = importlib.import_module(package.name)
    assert module.__doc__
    for name in getattr(module, "__all__", []):
        thing = getattr(module, name)
        if callable(thing) and not name.startswith("register_"):  # hooks are explained by the hookspecs
            assert thing.__doc__, f"{package.name}.{name} has no docstring"


@pytest.mark.parametrize("package", PACKAGES, ids=named)
def test_a_package_is_typed(package: Path) -> None:
    assert (package / "py.typed").is_file()


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=named)
def test_a_distribution_is_whole(folder: Path) -> None:
    """One package under `src`, a README that says something, a name that begins with ours."""
    (package,) = folder.glob("src/*/__init__.py")
    assert package.parent.name.startswith("callboard")
    assert len((folder / "README.md").read_text()) > 200, f"{named(folder)}/README.md is a stub"
    assert importlib.metadata.version(package.parent.name.replace("_", "-"))
