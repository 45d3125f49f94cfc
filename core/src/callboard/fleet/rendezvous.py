"""Rendezvous hashing (highest random weight): the same choice for a user by whoever knows the same replicas.

A replica that leaves moves its own users alone, spread over the others; one that joins takes its share from all, and
nothing else moves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def weight(uid: str, candidate: str) -> bytes:
    """How much `candidate` wants the user; the same in every process."""
    return hashlib.blake2b(f"{candidate}\0{uid}".encode(), digest_size=8).digest()


def preferred(uid: str, candidates: Iterable[str]) -> str | None:
    """The candidate that wants the user most; None when there is none."""
    return max(candidates, key=lambda candidate: weight(uid, candidate), default=None)
