"""What the tasks of this package have in common."""

from __future__ import annotations

import asyncio


def heed_cancellation() -> None:
    """Raise CancelledError when this task was told to end and something that it awaited has kept that to itself.

    `asyncio.wait_for` of Python 3.11 does when its work is done in the same moment, and client libraries use it. A loop
    that awaits others' code asks at each turn, or it would miss its end and run for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
