"""The README's snippets, run on the service it tells the reader to start; the guide's plugin, tested by its tests."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import redis

from callboard.testing import CallFailed, running
from callboard_local import ValkeyServer
from callboard_local.server import is_free

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def snippets(page: str) -> dict[str, str]:
    """The blocks of a page that are marked `<!-- run: name -->`."""
    text = (ROOT / page).read_text()
    return dict(re.findall(r"<!-- run: (\w+) -->\n+```(?:sh|python)\n(.*?)```", text, re.DOTALL))


SNIPPETS = snippets("README.md")
PATIENCE_S = 15.0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hello_plugin installed as the README says, but into a folder of its own: the environment stays as it is."""
    command = SNIPPETS["install"].strip().removeprefix(".venv/bin/").split()
    assert command == ["pip", "install", "-e", "examples/hello_plugin"]
    target = tmp_path_factory.mktemp("installed")
    alone = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet", "--target", str(target)]
    subprocess.run([sys.executable, "-m", *command[:2], *alone, command[3]], cwd=ROOT, check=True)
    return target


@pytest.fixture(scope="module")
def environ(installed: Path) -> dict[str, str]:
    """The process's environment without the variables of a service that is set up in it."""
    foreign = ("LISTENERS_", "FIREBASE_", "FIRESTORE_", "GOOGLE_", "STRIPE_", "USE_LOCAL_", "PYTEST_", "COV_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PYTHONPATH": str(installed)}


@pytest.fixture(scope="module")
def port(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """`callboard dev`, which is what `make run` runs, on free ports; ends by Ctrl-C."""
    bases = random.sample(range(21_000, 32_000, 10), 50)  # at random: other tests look for ports at the same time
    base = next(base for base in bases if all(is_free(base + i) for i in range(5)))
    log = tmp_path_factory.mktemp("service") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [BIN / "callboard", "dev", "--port", str(base)], env=environ, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            until(lambda: process.poll() is not None or is_ready(base), log.read_text)
            assert process.poll() is None, log.read_text()
            yield base
        finally:
            process.send_signal(signal.SIGINT)
            status = process.wait(PATIENCE_S)
    assert status == 0, log.read_text()


def until(condition: Any, explain: Any) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, explain()
        time.sleep(0.02)


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:  # nobody listens, or the socket is bound and the back ends are still starting
        return False


def on(port: int, name: str) -> list[str]:
    """A snippet as a command, with this service's ports."""
    text = SNIPPETS[name].replace(".venv/bin/", f"{BIN}/")
    for offset in range(3):
        text = text.replace(str(8080 + offset), str(port + offset))
    return ["sh", "-c", text]


def run(port: int, environ: dict[str, str], name: str) -> str:
    done = subprocess.run(
        on(port, name), cwd=ROOT, env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Stream:
    """A snippet that prints `type {event}` for as long as it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, lines: Any) -> None:
        for line in lines:
            self._lines.put(line)

    def next(self) -> dict[str, Any]:
        line = self._lines.get(timeout=PATIENCE_S)
        printed, _, event = line.partition(" ")
        decoded: dict[str, Any] = json.loads(event)
        assert printed == decoded["type"]
        return decoded


@contextmanager
def streaming(port: int, environ: dict[str, str], name: str) -> Iterator[Stream]:
    process = subprocess.Popen(
        on(port, name), cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield Stream(process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def subscriber(port: int, environ: dict[str, str]) -> Iterator[Stream]:
    with redis.Redis(port=port + 1) as client, streaming(port, environ, "subscribe") as stream:
        until(lambda: len(client.pubsub_channels("user:demo")) == 1, lambda: "it did not subscribe")
        yield stream


def test_every_marked_snippet_is_run_here() -> None:
    assert set(SNIPPETS) == {"subscribe", "websocket", "call", "workflow", "install", "hello", "plugin"}


def next_delta(stream: Any) -> Any:
    """The next event that is no sync: a listener that begins a moment late publishes one, whenever that is."""
    while (event := stream.next())["type"].endswith(".sync"):
        pass
    return event


def test_a_call_is_answered_once_and_heard_by_both(port: int, environ: dict[str, str]) -> None:
    with subscriber(port, environ) as redis_side, streaming(port, environ, "websocket") as socket:
        syncs = [socket.next() for _ in range(3)]
        assert {sync["type"] for sync in syncs} == {"notif.sync", "msg.sync", "workflow.sync"}

        first, second = run(port, environ, "call"), run(port, environ, "call")
        assert first.startswith("HTTP/1.1 200")
        assert '"data":"job789"' in first
        assert "idempotent-replayed" not in first.lower()
        assert '"data":"job789"' in second
        assert "idempotent-replayed: true" in second.lower()

        # A repeated key published nothing: what follows the first call's events are the third call's.
        SNIPPETS["again"] = SNIPPETS["call"].replace("quick-start-1", "quick-start-2")
        try:
            assert "idempotent-replayed" not in run(port, environ, "again").lower()
        finally:
            del SNIPPETS["again"]
        for stream in (redis_side, socket):
            seen = [next_delta(stream) for _ in range(4)]
            # In any order: a call tells of its write when Firestore may have told its listener already.
            assert sorted(event["type"] for event in seen) == [
                "notif.add", "notif.job_updated", "notif.job_updated", "notif.update",
            ]  # fmt: skip
            assert {event["payload"]["job_id"] for event in seen} == {"job789"}


def test_a_changed_workflow_is_heard_by_both(port: int, environ: dict[str, str]) -> None:
    with subscriber(port, environ) as redis_side, streaming(port, environ, "websocket") as socket:
        syncs = [socket.next() for _ in range(3)]
        before = next(sync["payload"] for sync in syncs if sync["type"] == "workflow.sync")
        run(port, environ, "workflow")
        for stream in (redis_side, socket):
            invoice, step = next_delta(stream), next_delta(stream)
            assert (invoice["type"], invoice["job_id"]) == ("workflow.invoice_update", "job456")
            field = "totalAmountDueVATExcluded"
            assert invoice["payload"] == {"invoice_changes": {field: before["invoice"][field] + 50}}
            assert (step["type"], step["job_id"]) == ("workflow.step_update", "job456")
            count = before["steps"]["step_extract_data"] + 1
            assert step["payload"] == {"step_changes": {"APBookeeper_step_status": {"step_extract_data": count}}}


def test_an_installed_plugin_answers_and_shows(port: int, environ: dict[str, str]) -> None:
    printed = run(port, environ, "hello")
    assert '"data": "hello Ada"' in printed
    assert "hello  hello-plugin 0.1.0  loaded\n  HELLO.greet\n" in printed
    assert '"methods":["HELLO.greet"' in printed
    assert 'callboard_rpc_duration_seconds_count{code="OK",method="HELLO.greet",namespace="HELLO"} 1.0' in printed


def test_the_example_plugins_own_tests_pass(environ: dict[str, str]) -> None:
    pytest_passes(ROOT / "examples/hello_plugin", environ)


def pytest_passes(folder: Path, environ: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "."]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# -- the plugin in twenty lines


@pytest.fixture
def notes(tmp_path: Path) -> ModuleType:
    path = tmp_path / "callboard_notes.py"
    path.write_text(SNIPPETS["plugin"])
    spec = importlib.util.spec_from_file_location("callboard_notes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.anyio
async def test_the_plugin_in_the_readme_works(notes: ModuleType, valkey_server: ValkeyServer) -> None:
    environ = {"LISTENERS_REDIS_HOST": valkey_server.host, "LISTENERS_REDIS_PORT": str(valkey_server.port)}
    async with running(notes, environ=environ) as service, service.subscribed("note:demo") as channel:
        assert await service.call("NOTES.add", "demo", "buy milk") == 1
        assert (await channel.next("note.added")).payload == {"text": "buy milk"}
        assert await service.call("NOTES.search", "demo", word="milk") == ["buy milk"]
        with pytest.raises(CallFailed) as refused:
            await service.call("NOTES.add", "demo", "")
        assert refused.value.code == "INVALID_ARGS"


# -- the guide's


def test_the_plugin_in_the_guide_passes_the_tests_in_the_guide(tmp_path: Path, environ: dict[str, str]) -> None:
    found = snippets("docs/writing-a-plugin.md")
    assert set(found) == {"board", "board_test", "conftest"}
    (tmp_path / "board.py").write_text(found["board"])
    (tmp_path / "test_board.py").write_text(found["board_test"])
    (tmp_path / "conftest.py").write_text(found["conftest"])
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    pytest_passes(tmp_path, environ)
