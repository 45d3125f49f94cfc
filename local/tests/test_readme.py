"""The examples of the README run as they stand there."""

import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
# Beside a wheel there is no file, but the wheel carries its text.
TEXT = README.read_text() if README.is_file() else str(metadata("callboard-local").json["description"])
FIRST, SECOND, CONFTEST, REDIS, STRIPE = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def run(*command: str, cwd: Path) -> str:
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=True).stdout


def test_the_back_ends_have_sample_data(tmp_path: Path) -> None:
    assert run("-W", "ignore", "-c", FIRST, cwd=tmp_path).strip() == "Alpine Mills"


def test_the_fixtures_come_with_the_package(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_example.py").write_text(SECOND)
    try:
        output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stdout)
    assert "2 passed" in output


def test_a_test_runs_on_every_redis(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_example.py").write_text(REDIS)
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not tls", cwd=tmp_path)
    assert "4 passed, 1 deselected" in output


def test_the_stripe_stand_in_takes_a_payment(tmp_path: Path) -> None:
    url, status = run("-W", "ignore", "-c", STRIPE, cwd=tmp_path).split()
    assert "/c/pay/cs_test_" in url
    assert status == "paid"
