"""What a checker finds."""

from __future__ import annotations

from typing import NamedTuple


class Violation(NamedTuple):
    """A promise that was not kept. `where`: the call's key, the screen, the user, the Redis key or the replica."""

    rule: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.where}: {self.what}"
