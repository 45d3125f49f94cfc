"""Fixtures for a plugin's tests: real back ends, started once per session where they can be shared."""

import uuid
from collections.abc import Iterator

import pytest

from .firestore_process import FirestoreProcess
from .valkey import ValkeyServer


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
def firestore_server() -> Iterator[FirestoreProcess]:
    """A Firestore shared by the whole session: use `firestore_project`, and do not stop it."""
    with FirestoreProcess() as server:
        yield server


@pytest.fixture
def firestore_project() -> str:
    """A project id that nobody else uses: an empty Firestore of your own on the shared server."""
    return f"test-{uuid.uuid4().hex[:12]}"
