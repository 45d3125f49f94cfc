from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.fleet.rendezvous import preferred, weight
from callboard.messages import new_id

USERS = [f"user-{number}" for number in range(1_000)]
ids = st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=8, unique=True)


def placed(replicas: list[str]) -> dict[str, str | None]:
    return {uid: preferred(uid, replicas) for uid in USERS}


@given(ids, st.text(max_size=40))
def test_the_order_in_which_replicas_are_known_does_not_matter(replicas: list[str], uid: str) -> None:
    assert preferred(uid, replicas) == preferred(uid, reversed(replicas))
    assert preferred(uid, replicas) in replicas


@given(ids, st.lists(st.text(max_size=40), max_size=40), st.data())
def test_one_that_leaves_moves_its_own_and_one_that_joins_moves_to_itself(
    replicas: list[str], uids: list[str], data: st.DataObject
) -> None:
    one = data.draw(st.sampled_from(replicas))
    without = [each for each in replicas if each != one]
    for uid in uids:
        choice = preferred(uid, replicas)
        assert choice == one or choice == preferred(uid, without)


def test_nobody_is_preferred_when_there_is_nobody() -> None:
    assert preferred("ann", []) is None


def test_every_process_chooses_the_same() -> None:
    assert weight("ann", "x").hex() == "f220b36b4a4d48e1"


@pytest.mark.parametrize("attempt", range(20))
def test_shares_are_even_and_one_that_joins_takes_its_share(attempt: int) -> None:
    three = [new_id() for _ in range(3)]
    before, after = placed(three), placed([*three, "fourth"])
    shares = Counter(before.values())
    assert all(abs(share - 1_000 / 3) < 0.25 * 1_000 / 3 for share in shares.values())
    moved = [uid for uid in USERS if before[uid] != after[uid]]
    assert {after[uid] for uid in moved} == {"fourth"}
    assert abs(len(moved) - 250) < 0.25 * 250 * 1.2
