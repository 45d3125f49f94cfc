"""What happened in a run, one JSON object a line; times are seconds of one monotonic clock, the run's own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """What all have in common: when."""

    t: float


class Invoke(Record, frozen=True, tag="invoke"):
    """A call begins; `op` is its idempotency key, and the name of what it writes. `n`: what it writes or tells."""

    op: str
    method: str
    user: str
    n: int = 0


class Attempt(Record, frozen=True, tag="attempt"):
    """One sending of a call, begun at `t` and over at `end`.

    `code`: OK, an error's code, `HTTP 502`, or `LOST`: no answer. `unknown`: the answer says so, by `details.outcome`.
    """

    op: str
    end: float
    code: str
    data: int | None = None
    replayed: bool = False
    unknown: bool = False


class Ran(Record, frozen=True, tag="ran"):
    """How often a write really ran, and what its name has in the end, as the source tells when all is over."""

    op: str
    runs: int
    value: int | None = None


class Grown(Record, frozen=True, tag="grown"):
    """The number of a user in the source became `n`, at `t` at the latest."""

    user: str
    n: int


class Opened(Record, frozen=True, tag="opened"):
    screen: int
    user: str


class Closed(Record, frozen=True, tag="closed"):
    screen: int
    code: int


class Heard(Record, frozen=True, tag="heard"):
    """An event reached a screen. `uid` is who it says it is for."""

    screen: int
    type: str
    id: str
    uid: str
    n: int
    fence: int | None = None
    listener: str | None = None


class Began(Record, frozen=True, tag="began"):
    """A fault. `forgets`: Redis loses what it had, as delivery.md grants it may."""

    fault: str
    target: str
    forgets: bool = False


class Ended(Record, frozen=True, tag="ended"):
    fault: str
    target: str


class Stopped(Record, frozen=True, tag="stopped"):
    """A replica was told to stop, and did with this exit status."""

    replica: str
    status: int


class Sample(Record, frozen=True, tag="sample"):
    """What one life of a replica's process costs, and what it has to do.

    `fds`: without `redis`, its connections to Redis, and LEDGER's to the truth: pools keep what they needed once.
    """

    replica: str
    pid: int
    rss: int
    threads: int
    fds: int
    tasks: int
    redis: int
    sockets: int
    listeners: int


class Quiet(Record, frozen=True, tag="quiet"):
    """The faults are over, and so are the writes: from here on every screen has to show its user's number."""

    numbers: dict[str, int]


class Owned(Record, frozen=True, tag="owned"):
    """Who runs the listener of an online user when all is quiet: the replicas that say so."""

    user: str
    replicas: list[str]


class Online(Record, frozen=True, tag="online"):
    """Who has a screen when all is quiet, and who is online, as presence says."""

    expected: list[str]
    users: list[str]


class Left(Record, frozen=True, tag="left"):
    """What is in Redis after everybody has left, and should not be."""

    key: str
    why: str


Entry = (
    Invoke | Attempt | Ran | Grown | Opened | Closed | Heard | Began | Ended | Stopped | Sample
    | Quiet | Owned | Online | Left
)  # fmt: skip
_decoder = msgspec.json.Decoder(Entry)


class History:
    """`with History(path) as history: history.add(Grown(t=history.now(), user="ann", n=1))`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._began = time.monotonic()
        self._file: IO[bytes] | None = None

    def now(self) -> float:
        return round(time.monotonic() - self._began, 4)

    def add(self, record: Entry) -> None:
        assert self._file is not None
        self._file.write(msgspec.json.encode(record) + b"\n")

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("wb", buffering=1 << 16)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()


def read(lines: Iterable[bytes]) -> Iterator[Entry]:
    """The records of a history, in their order."""
    return map(_decoder.decode, lines)
