"""Queries with Google's client: `firebase_admin.db.Query`."""

from typing import Any

import pytest
from firebase_admin import db, exceptions

# In the order of all types: null, false, true, numbers, strings, objects.
MIXED: dict[str, Any] = {
    "none": {"x": 1},
    "false": {"v": False},
    "true": {"v": True},
    "minus": {"v": -1},
    "half": {"v": 0.5},
    "ten": {"v": 10},
    "upper": {"v": "B"},
    "lower": {"v": "a"},
    "object": {"v": {"w": 0}},
}


@pytest.fixture
def mixed(root: db.Reference) -> db.Reference:
    node: db.Reference = root.child("mixed")
    node.set(MIXED)
    return node


@pytest.fixture
def scores(root: db.Reference) -> db.Reference:
    node: db.Reference = root.child("scores")
    node.set({"ann": 3, "bob": 1, "cyd": 2, "dan": 3, "eve": "three"})
    return node


def test_by_child_every_type_has_its_place(mixed: db.Reference) -> None:
    assert list(mixed.order_by_child("v").get()) == list(MIXED)
    for count in range(1, len(MIXED) + 1):
        assert list(mixed.order_by_child("v").limit_to_first(count).get()) == list(MIXED)[:count]
        assert list(mixed.order_by_child("v").limit_to_last(count).get()) == list(MIXED)[-count:]


def test_by_child_bounds_cross_types(mixed: db.Reference) -> None:
    assert list(mixed.order_by_child("v").start_at(False).end_at(True).get()) == ["false", "true"]
    assert list(mixed.order_by_child("v").start_at(0).get()) == ["half", "ten", "upper", "lower", "object"]
    assert list(mixed.order_by_child("v").end_at(0.5).get()) == ["none", "false", "true", "minus", "half"]
    assert list(mixed.order_by_child("v").start_at("").end_at("a").get()) == ["upper", "lower"]
    assert list(mixed.order_by_child("v").equal_to(True).get()) == ["true"]
    assert mixed.order_by_child("v").equal_to(1).get() == {}
    assert list(mixed.order_by_child("v").equal_to(10.0).get()) == ["ten"]


def test_by_a_path_of_children(root: db.Reference) -> None:
    root.set({"a": {"in": {"n": 2}}, "b": {"in": {"n": 1}}, "c": {"in": 5}})
    assert list(root.order_by_child("in/n").get()) == ["c", "b", "a"]
    assert list(root.order_by_child("in/n").start_at(1).limit_to_first(1).get()) == ["b"]


def test_by_value(scores: db.Reference) -> None:
    assert list(scores.order_by_value().get()) == ["bob", "cyd", "ann", "dan", "eve"]
    assert list(scores.order_by_value().limit_to_last(2).get()) == ["dan", "eve"]
    assert scores.order_by_value().start_at(2).end_at(3).get() == {"cyd": 2, "ann": 3, "dan": 3}
    assert scores.order_by_value().equal_to(3).get() == {"ann": 3, "dan": 3}
    assert scores.order_by_value().equal_to(3).limit_to_first(1).get() == {"ann": 3}


def test_by_key(scores: db.Reference) -> None:
    assert list(scores.order_by_key().start_at("b").end_at("d").get()) == ["bob", "cyd"]
    assert list(scores.order_by_key().end_at("bob").get()) == ["ann", "bob"]
    assert scores.order_by_key().equal_to("eve").get() == {"eve": "three"}
    assert list(scores.order_by_key().limit_to_last(2).get()) == ["dan", "eve"]


def test_keys_that_are_numbers_sort_as_numbers_and_first(root: db.Reference) -> None:
    root.set({"100": "c", "9": "b", "-5": "a", "x": "e", "4294967296": "d"})
    firsts = [set(root.order_by_key().limit_to_first(count).get()) for count in (1, 2, 3, 4)]
    assert firsts == [{"-5"}, {"-5", "9"}, {"-5", "9", "100"}, {"-5", "9", "100", "4294967296"}]
    assert set(root.order_by_key().start_at("10").get()) == {"100", "4294967296", "x"}


def test_a_result_may_be_an_array(root: db.Reference) -> None:
    root.set(["a", "b", "c", "d"])
    assert root.order_by_key().limit_to_first(2).get() == ["a", "b"]
    assert root.order_by_key().limit_to_last(1).get() == {"3": "d"}


def test_nothing_and_scalars_have_no_children(root: db.Reference) -> None:
    assert root.child("none").order_by_key().limit_to_first(3).get() is None
    root.child("scalar").set(5)
    assert root.child("scalar").order_by_key().get() == 5
    assert root.child("scalar").order_by_key().limit_to_first(1).get() is None


def test_what_makes_no_sense_is_refused(scores: db.Reference) -> None:
    for query, words in (
        (scores.order_by_key().start_at(5), "Provided key index type is invalid, must be string"),
        (scores.order_by_child("v").start_at({"a": 1}), "Constraint index field must be a JSON primitive"),
        (scores.order_by_value().equal_to(1).start_at(1), "equalTo cannot be specified in addition"),
        (scores.order_by_key().limit_to_first(0), "limitToFirst must be positive"),
    ):
        with pytest.raises(exceptions.InvalidArgumentError, match=words):
            query.get()
