"""Fixtures for a plugin's tests: real back ends, started once per session where they can be shared."""

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from . import fault_figures
from .deployment import KINDS, Deployment, Kind, deployed
from .fault_figures import Fault
from .firestore_process import FirestoreProcess
from .google_emulator import JAR_PACKAGE, JAVA_PACKAGE, GoogleFirestoreProcess
from .realtime_process import RealtimeProcess
from .stripe_process import StripeControl, StripeProcess
from .valkey import ValkeyServer


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"emulator: needs the packages {JAR_PACKAGE} and {JAVA_PACKAGE}")
    config.addinivalue_line("markers", fault_figures.MARKER)
    config.addinivalue_line("markers", "tls: needs a redis-server with TLS, the package redis-server")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    if call.when == "call":
        fault_figures.keep(item)
    return (yield)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in fault_figures.lines(terminalreporter.stats):
        terminalreporter.write_line(line)


@pytest.fixture
def fault() -> Fault:
    """What a test marked `fault(row=…)` measures: `fault.figure(takeover_s=4.2)`, shown in the summary."""
    return Fault()


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """A Valkey shared by the whole session: use keys and channels of your own, and do not stop it."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def own_valkey() -> Iterator[ValkeyServer]:
    """A Valkey for this test alone: `kill`, `restart`, `pause` and `resume` it as you like."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_channels() -> Iterable[str]:
    """Override it with the channel prefixes that your plugins declare: an ACL must name them beside the core's."""
    return ()


@pytest.fixture(scope="session")
def start_redis(redis_channels: Iterable[str]) -> Iterator[Callable[[Kind], Deployment]]:
    """Any kind of Redis, started when it is first asked for and shared by the whole session: do not break it.

    At the end none of them must have refused a command as not allowed (NOPERM), not of one slot (CROSSSLOT) or another
    node's (MOVED).
    """
    started: dict[Kind, Deployment] = {}
    with ExitStack() as stack:

        def start(kind: Kind) -> Deployment:
            if kind not in started:
                started[kind] = stack.enter_context(deployed(kind, channels=redis_channels))
            return started[kind]

        yield start
        refused = {kind: refusals for kind, deployment in started.items() if (refusals := deployment.refusals())}
        assert not refused, f"Redis has refused commands: {refused}"  # noqa: S101


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.tls if kind == "tls" else ()) for kind in KINDS])
def redis_deployment(request: pytest.FixtureRequest, start_redis: Callable[[Kind], Deployment]) -> Iterator[Deployment]:
    """The Redis under test, empty: the test runs once for every kind there is, the last one marked `tls`.

    They are shared by the session: do not break them. The test fails when one refuses it a command.
    """
    deployment = start_redis(request.param)
    deployment.flush()
    before = deployment.refusals()
    yield deployment
    refused: Counter[str] = deployment.refusals() - before
    assert not refused, f"{deployment.kind} has refused commands: {dict(refused)}"  # noqa: S101


@pytest.fixture(scope="session")
def firestore_server() -> Iterator[FirestoreProcess]:
    """A Firestore shared by the whole session: use `firestore_project`, and do not stop it."""
    with FirestoreProcess() as server:
        yield server


@pytest.fixture(scope="session")
def google_firestore_server() -> Iterator[GoogleFirestoreProcess]:
    """Google's own Firestore emulator, shared by the whole session: mark the test `emulator`."""
    with GoogleFirestoreProcess() as server:
        yield server


@pytest.fixture(scope="session", params=["embedded", pytest.param("google", marks=pytest.mark.emulator)])
def firestore_address(request: pytest.FixtureRequest) -> str:
    """`host:port` of the Firestore under test: the embedded one and, in tests then marked `emulator`, Google's.

    Where the two differ, Google's is right.
    """
    server = "firestore_server" if request.param == "embedded" else "google_firestore_server"
    return str(request.getfixturevalue(server).address)


@pytest.fixture
def firestore_project() -> str:
    """A project id that nobody else uses: an empty Firestore of your own on the shared server."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def realtime_server() -> Iterator[RealtimeProcess]:
    """A Realtime Database shared by the whole session: use `realtime_namespace`, and do not stop it."""
    with RealtimeProcess() as server:
        yield server


@pytest.fixture
def realtime_namespace() -> str:
    """A namespace that nobody else uses: an empty database of your own on the shared server."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def own_realtime() -> Iterator[RealtimeProcess]:
    """A Realtime Database for this test alone: `kill`, `restart`, `pause`, `resume` and `control` it as you like."""
    with RealtimeProcess() as server:
        yield server


@pytest.fixture(scope="session")
def stripe_server() -> Iterator[StripeProcess]:
    """A Stripe stand-in shared by the whole session: use a key of your own, and do not stop it."""
    with StripeProcess(retry_s=0.05) as server:
        yield server


@pytest.fixture
def stripe_account(stripe_server: StripeProcess) -> StripeControl:
    """An account that nobody else uses, by its `secret_key`, and what a test may do to it."""
    return stripe_server.control(f"sk_test_{uuid.uuid4().hex}")
