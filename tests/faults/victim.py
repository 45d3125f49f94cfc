"""One replica for hostile input: a process of its own with every installed plugin, and ECHO, on embedded back ends."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from faults.fleet import TOKEN, Replica, install

from callboard_local import Backends

_TESTS = Path(__file__).parents[1]


@asynccontextmanager
async def victim(**environ: str) -> AsyncIterator[Replica]:
    """A replica that is ready; variables by keyword win."""
    with tempfile.TemporaryDirectory(prefix="callboard-victim-") as made:
        folder = Path(made)
        install(folder, "echo")
        async with Backends(seed=False) as backends:
            variables = {
                **os.environ,
                **backends.environ,
                "PYTHONPATH": os.pathsep.join([str(_TESTS), made]),
                "LISTENERS_SERVICE_TOKEN": TOKEN,
                "LISTENERS_ALLOW_EMULATORS": "true",
                "LISTENERS_STRICT": "true",
                **environ,
            }
            replica = Replica("victim", variables, folder / "victim.log")
            try:
                await replica.start()
                yield replica
            finally:
                await replica.close()


def complaints(replica: Replica) -> list[str]:
    """Log lines that are no record, or tell of a fault of ours."""
    lines = replica.log.read_text().strip().split("\n")
    return [line for line in lines if not line.startswith("{") or json.loads(line)["level"] in ("error", "critical")]
