"""The fixtures, as a plugin's author uses them: without a loop, and in a project of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from callboard_local import FirestoreProcess, RealtimeProcess, ValkeyServer

_SEEN: pytest.StashKey[set[str]] = pytest.StashKey()
_SEEN_NAMESPACES: pytest.StashKey[set[str]] = pytest.StashKey()


def test_shared_servers_run_outside_a_loop(
    valkey_server: ValkeyServer, firestore_server: FirestoreProcess, realtime_server: RealtimeProcess
) -> None:
    assert valkey_server.alive
    assert firestore_server.alive
    assert realtime_server.alive


def test_an_own_valkey_is_nobody_elses(own_valkey: ValkeyServer, valkey_server: ValkeyServer) -> None:
    assert own_valkey.alive
    assert own_valkey.port != valkey_server.port


def test_an_own_realtime_database_is_nobody_elses(
    own_realtime: RealtimeProcess, realtime_server: RealtimeProcess
) -> None:
    assert own_realtime.alive
    assert own_realtime.port != realtime_server.port


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_has_a_namespace_of_its_own(
    realtime_namespace: str, request: pytest.FixtureRequest, turn: int
) -> None:
    seen = request.config.stash.setdefault(_SEEN_NAMESPACES, set())
    assert realtime_namespace not in seen
    seen.add(realtime_namespace)
    assert len(seen) == turn


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_has_a_project_of_its_own(firestore_project: str, request: pytest.FixtureRequest, turn: int) -> None:
    seen = request.config.stash.setdefault(_SEEN, set())
    assert firestore_project not in seen
    seen.add(firestore_project)
    assert len(seen) == turn


def test_elsewhere_the_firestore_under_test_is_the_embedded_one_and_googles(tmp_path: Path) -> None:
    """No configuration of ours is there: the plugin itself makes the mark known."""
    (tmp_path / "test_it.py").write_text("def test_it(firestore_address): assert firestore_address\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--strict-markers", "-W", "error", "-v"]
    command += ["-m", "not emulator"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert "test_it[embedded] PASSED" in output, output
    assert "1 passed, 1 deselected" in output


def test_elsewhere_a_fault_test_tells_its_figures(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.fault(row=(4, 3))\n"
        "def test_it(fault): fault.figure(lost=0, detect_s=4.20049)\n"
        "@pytest.mark.fault(row=3, control=True)\n"
        "def test_without_it(fault): fault.figure(lost=7); assert False\n"
        "def test_other(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--strict-markers", "-W", "error", "-q"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    told = [json.loads(line.removeprefix("FAULT ")) for line in output.splitlines() if line.startswith("FAULT ")]
    assert told == [
        {"row": [3], "control": True, "test": "test_without_it", "outcome": "failed", "lost": 7},
        {"row": [3, 4], "control": False, "test": "test_it", "outcome": "passed", "lost": 0, "detect_s": 4.2},
    ]
