"""What the tests of the workspace look at: its distributions, their packages, their sources."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = sorted(path.parent for path in ROOT.glob("*/pyproject.toml")) + sorted(
    path.parent for path in ROOT.glob("plugins/*/pyproject.toml")
)
PACKAGES = sorted(path.parent for folder in DISTRIBUTIONS for path in folder.glob("src/*/__init__.py"))
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))

_RUN = ("__main__", ".asgi", ".tether")


def sources() -> list[Path]:
    """Every module that is shipped."""
    return sorted(path for folder in DISTRIBUTIONS for path in folder.glob("src/**/*.py"))


def python_files() -> list[Path]:
    """Every Python file git knows of, tests included."""
    return [path for path in tracked() if path.suffix == ".py"]


@cache
def tracked() -> list[Path]:
    """Every file git knows of and that is there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    paths = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def modules() -> list[ModuleType]:
    """Every module of every package, imported, but those that are run and not imported."""
    found = []
    for package in PACKAGES:
        top = importlib.import_module(package.name)
        below = [info.name for info in pkgutil.walk_packages(top.__path__, f"{package.name}.")]
        found += [top, *(importlib.import_module(name) for name in below if not name.endswith(_RUN))]
    return found


def pages() -> list[Path]:
    """Every page of documentation."""
    return [path for path in tracked() if path.suffix == ".md"]


def page(name: str) -> str:
    return (ROOT / name).read_text()


def table_column(text: str, column: int = 0) -> Iterator[str]:
    """The code spans in one column of a page's tables."""
    for line in text.splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").replace("\\|", "¦").split("|")]
            if len(cells) > column and cells[column].startswith("`"):
                yield cells[column].split("`")[1]
