"""What callers of keyed writes were told, attempt by attempt, and whether any of it is a lie."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
from faults.fleet import Fleet, Replica

UNKNOWN = "unknown"
TIMEOUT_MS = 100_000
PASSING = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"}
"""Refusals that say: again, with the same key."""


@dataclass(frozen=True)
class Write:
    """A write of LEDGER; its name is its key as well."""

    name: str
    method: str = "LEDGER.append"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    keyed: bool = True


@dataclass(frozen=True)
class Told:
    """One attempt's end. `kind`: `ok` and `fail` are answers of the key, `unknown` one too; `again` a passing refusal,
    `info` none at all: the connection broke."""

    name: str
    kind: Literal["ok", "fail", "unknown", "again", "info"]
    value: Any
    replica: str
    began: float
    ended: float
    replayed: bool = False

    @property
    def is_answer(self) -> bool:
        return self.kind in ("ok", "fail", "unknown")


@dataclass
class History:
    """Every attempt's end, and how often each write ran."""

    told: list[Told] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)

    async def attempt(self, replica: Replica, write: Write) -> Told:
        """One call, and its end on record."""
        call = {"method": write.method, "kwargs": {"name": write.name, **write.arguments}, "timeout_ms": TIMEOUT_MS}
        if write.keyed:
            call["idempotency_key"] = write.name
        began = time.monotonic()
        try:
            response = await replica.client.post("/rpc", json=call, timeout=TIMEOUT_MS / 1000 + 30)
        except httpx.TransportError as error:
            told = Told(write.name, "info", type(error).__name__, replica.name, began, time.monotonic())
        else:
            kind, value = _read(response.json())
            replayed = "Idempotent-Replayed" in response.headers
            told = Told(write.name, kind, value, replica.name, began, time.monotonic(), replayed)
        self.told.append(told)
        return told

    async def until_told(self, replicas: Sequence[Replica], write: Write) -> Told:
        """Attempts until there is an answer, as a client makes them: on the next replica after each that gave none."""
        for replica in itertools.cycle(replicas):
            told = await self.attempt(replica, write)
            if told.is_answer:
                return told
            await asyncio.sleep(0.1)
        raise AssertionError("there is no replica")

    async def count_runs(self, fleet: Fleet) -> None:
        """Ask the truth how often each write of the history ran."""
        for name in {told.name for told in self.told}:
            self.runs[name] = await fleet.executions(name)

    def kinds(self) -> Counter[str]:
        return Counter(told.kind for told in self.told)


def _read(reply: Mapping[str, Any]) -> tuple[Literal["ok", "fail", "unknown", "again"], Any]:
    if reply["ok"]:
        return "ok", reply["data"]
    error = reply["error"]
    if error["code"] == "ABORTED" and error.get("details") == {"outcome": "unknown"}:
        return "unknown", UNKNOWN
    return ("again" if error["code"] in PASSING else "fail"), error["code"]


def lies(history: History, *, retry_safe: frozenset[str] = frozenset()) -> list[str]:
    """Every breach of the promise, in words. `retry_safe`: the names of writes that may run twice."""
    found = []
    by_name: dict[str, list[Told]] = defaultdict(list)
    for told in sorted(history.told, key=lambda told: told.ended):
        by_name[told.name].append(told)
    for name, attempts in by_name.items():
        runs = history.runs[name]
        if runs > 1 and name not in retry_safe:
            found.append(f"{name}: ran {runs} times")
        answers = [told for told in attempts if told.is_answer]
        if runs == 0 and any(told.kind == "ok" for told in answers):
            found.append(f"{name}: told ok, and never ran")
        for earlier, later in itertools.pairwise(answers):
            if (earlier.kind, earlier.value) != (later.kind, later.value):
                found.append(f"{name}: told {earlier.value!r} by {earlier.replica}, {later.value!r} by {later.replica}")
        found += [f"{name}: told {told.value}" for told in answers if told.kind == "fail"]
        if any(told.kind == "unknown" for told in answers):
            if name in retry_safe:
                found.append(f"{name}: may be run again, and was told unknown")
            elif all(told.kind != "info" for told in attempts):
                found.append(f"{name}: told unknown, though nobody died")
    return found
