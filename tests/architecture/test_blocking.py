"""A blocking call on the event loop fails the test that makes it; without the guard of `conftest.py` it would not."""

from __future__ import annotations

from types import ModuleType

import pytest
from blockbuster import BlockBuster, BlockingError

import callboard

pytestmark = pytest.mark.anyio


def blocking() -> ModuleType:
    """A module of ours, as far as the guard can tell, that sleeps where it should await."""
    module = ModuleType("callboard.blocking")
    source = "import time\ndef call():\n    time.sleep(0.001)\n"
    exec(compile(source, f"{callboard.__path__[0]}/blocking.py", "exec"), module.__dict__)
    return module


async def test_our_own_blocking_call_fails_its_test() -> None:
    with pytest.raises(BlockingError):
        blocking().call()


async def test_without_the_guard_nobody_would_notice(no_blocking_calls: BlockBuster) -> None:
    no_blocking_calls.deactivate()
    try:
        blocking().call()
    finally:
        no_blocking_calls.activate()


def test_off_the_loop_anyone_may_block() -> None:
    blocking().call()
