"""The fixtures in a project of its own; this suite's conftest imports them too."""

import subprocess
import sys
from pathlib import Path

import pytest

SHARED = """
from callboard_local.session_loop import anyio_backend as anyio_backend
from callboard_local.session_loop import one_event_loop as one_event_loop
"""
EACH_ITS_OWN = """
import pytest


@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
TESTS = """
import asyncio
import pytest

SEEN = set()


@pytest.mark.anyio
@pytest.mark.parametrize("turn", [1, 2, 3])
async def test_loops_so_far(turn):
    SEEN.add(asyncio.get_running_loop())
    assert len(SEEN) == {expected}
"""


@pytest.mark.parametrize(("conftest", "expected"), [(SHARED, "1"), (EACH_ITS_OWN, "turn")], ids=["shared", "control"])
def test_all_tests_share_a_loop(conftest: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_it.py").write_text(TESTS.replace("{expected}", expected))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert "3 passed" in output, output
