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

STAYS = """
from callboard_local.session_loop import grpc_stays as grpc_stays
"""
CHANNELS = """
import gc
import threading

import grpc
import pytest


@pytest.mark.anyio
@pytest.mark.parametrize("turn", [1, 2, 3])
async def test_the_last_channel_goes(turn):
    channel = grpc.aio.insecure_channel("127.0.0.1:1")
    threads = set(threading.enumerate())
    await channel.close()
    del channel
    gc.collect()
    assert (threads == set(threading.enumerate())) is {expected}
"""


@pytest.mark.parametrize(("conftest", "expected"), [(SHARED, "1"), (EACH_ITS_OWN, "turn")], ids=["shared", "control"])
def test_all_tests_share_a_loop(conftest: str, expected: str, tmp_path: Path) -> None:
    run(tmp_path, conftest, TESTS.replace("{expected}", expected))


@pytest.mark.parametrize(
    ("conftest", "expected"), [(EACH_ITS_OWN + STAYS, "True"), (EACH_ITS_OWN, "False")], ids=["stays", "control"]
)
def test_grpc_outlives_its_channels(conftest: str, expected: str, tmp_path: Path) -> None:
    run(tmp_path, conftest, CHANNELS.replace("{expected}", expected))


def run(folder: Path, conftest: str, tests: str) -> None:
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_it.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    output = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout
    assert "3 passed" in output, output
