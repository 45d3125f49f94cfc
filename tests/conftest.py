"""Fixtures of the whole-system tests. Real servers come from callboard-local's pytest plugin."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
