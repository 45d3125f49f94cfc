"""Imports point down only: import-linter's contracts (pyproject.toml) hold, and would not if someone pointed up."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from architecture.workspace import PACKAGES, ROOT

LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"


def lint(config: Path) -> subprocess.CompletedProcess[str]:
    command = [str(LINT_IMPORTS), "--config", str(config), "--no-cache"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_contracts_hold() -> None:
    linted = lint(ROOT / "pyproject.toml")
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "0 broken" in linted.stdout


def test_a_layer_that_points_up_is_noticed(tmp_path: Path) -> None:
    config = tmp_path / "upside_down.toml"
    config.write_text(
        """
        [tool.importlinter]
        root_packages = ["callboard"]
        [[tool.importlinter.contracts]]
        name = "upside down"
        type = "layers"
        layers = ["callboard.errors", "callboard.app"]
        """
    )
    linted = lint(config)
    assert linted.returncode == 1
    assert "upside down BROKEN" in linted.stdout


def test_every_package_is_under_contract() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert sorted(config["root_packages"]) == sorted(package.name for package in PACKAGES)
    plugins = {package.name for package in PACKAGES if package.parents[1].parent.name == "plugins"}
    independent = next(c for c in config["contracts"] if c["type"] == "independence")
    assert set(independent["modules"]) == plugins - {"callboard_firebase"}
    forbidden = next(c for c in config["contracts"] if c["type"] == "forbidden")
    assert set(forbidden["forbidden_modules"]) >= plugins
