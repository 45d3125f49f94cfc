"""The tree of a watched node, beside a plain model of what the database does."""

from __future__ import annotations

import copy
from typing import Any, TypeAlias

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from callboard_firebase.realtime.step import MalformedEventError, step
from callboard_firebase.realtime.tree import children, normal, patch, put, same, split
from callboard_firebase.realtime.watch import NodeBatch, NodeWatch

Leaves: TypeAlias = dict[tuple[str, ...], Any]

KEYS = st.sampled_from(["0", "1", "2", "5", "a", "b"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(["", "x"]))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.dictionaries(KEYS, inner, max_size=3), st.lists(inner, max_size=3)),
    max_leaves=8,
)
PATHS = st.lists(KEYS, max_size=3)
EVENTS = st.one_of(
    st.tuples(st.just("put"), PATHS, VALUES),
    st.tuples(
        st.just("patch"),
        PATHS,
        st.dictionaries(st.lists(KEYS, min_size=1, max_size=2).map("/".join), VALUES, max_size=3),
    ),
)


# -- the model: a database is its leaves


def leaves(value: Any, at: tuple[str, ...] = ()) -> Leaves:
    pairs: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if pairs is None:
        return {} if value is None else {at: value}
    return {path: leaf for name, child in pairs for path, leaf in leaves(child, (*at, str(name))).items()}


def model_put(state: Leaves, path: tuple[str, ...], value: Any) -> Leaves:
    new = leaves(value, path)
    kept = {at: leaf for at, leaf in state.items() if at[: len(path)] != path}
    if new:
        # A leaf on the way becomes a node with children.
        kept = {at: leaf for at, leaf in kept.items() if path[: len(at)] != at}
    return kept | new


def model_apply(state: Leaves, event: tuple[str, list[str], Any]) -> Leaves:
    name, path, data = event
    if name == "put":
        return model_put(state, tuple(path), data)
    for below, value in data.items():
        state = model_put(state, (*path, *below.split("/")), value)
    return state


def model_children(state: Leaves) -> dict[str, Leaves]:
    found: dict[str, Leaves] = {}
    for (head, *rest), leaf in ((at, leaf) for at, leaf in state.items() if at):
        found.setdefault(head, {})[tuple(rest)] = leaf
    return found


def typed(state: Leaves) -> set[tuple[tuple[str, ...], str]]:
    """The leaves with their types told apart: 1 is not true."""
    return {(at, repr(leaf)) for at, leaf in state.items()}


def wire(event: tuple[str, list[str], Any]) -> bytes:
    return msgspec.json.encode({"path": "/" + "/".join(event[1]), "data": event[2]})


# -- properties


@given(st.lists(EVENTS, max_size=12))
def test_any_events_leave_the_state_of_the_database(events: list[tuple[str, list[str], Any]]) -> None:
    tree: Any = None
    state: Leaves = {}
    for event in events:
        before, kept = tree, copy.deepcopy(tree)
        after = step(tree, event[0], wire(event))
        tree, state = after.tree, model_apply(state, event)
        assert typed(leaves(tree)) == typed(state)
        assert same(tree, normal(tree)), "it is not in its normal shape"
        assert before == kept, "a tree was altered"


@example([(("put", ["0"], False), False), (("put", [], None), True)])
@example([(("put", ["0"], 1), True), (("put", ["0"], 2), False), (("put", ["0"], 1), True)])
@given(st.lists(st.tuples(EVENTS, st.booleans()), max_size=12))
def test_a_consumer_who_applies_the_changes_has_the_children(
    steps: list[tuple[tuple[str, list[str], Any], bool]],
) -> None:
    """It looks only now and then, and its connection is replaced by a whole `put` in between."""
    watch = NodeWatch()
    tree: Any = None
    state: Leaves = {}
    held: dict[str, Any] = {}
    started = False
    for event, looks in [(("put", [], None), True), *steps, (("put", [], ...), True)]:
        if event[2] is ...:
            event = ("put", [], tree)  # a reconnect
        after = step(tree, event[0], wire(event))
        tree, state = after.tree, model_apply(state, event)
        watch.update(after.children, after.touched)
        if not looks or (batch := watch._take()) is None:
            continue
        assert batch.initial is not started
        started = True
        follow(held, batch)
        assert held == dict(batch.children)
    assert typed_children(held) == {name: typed(child) for name, child in model_children(state).items()}


def typed_children(held: dict[str, Any]) -> dict[str, set[tuple[tuple[str, ...], str]]]:
    return {name: typed(leaves(value)) for name, value in held.items()}


def follow(held: dict[str, Any], batch: NodeBatch) -> None:
    for change in batch.changes:
        if change.kind == "removed" and change.key not in held:
            assert change.several, "only what came and went unseen is removed without having been added"
        elif change.kind == "removed":
            assert same(held.pop(change.key), change.value)
        elif change.kind == "added":
            assert change.key not in held
            held[change.key] = change.value
        else:
            assert change.several or not same(held[change.key], change.value)
            held[change.key] = change.value


@given(VALUES)
def test_what_is_sent_again_changes_nothing(value: Any) -> None:
    first = step(None, "put", wire(("put", [], value)))
    again = step(first.tree, "put", wire(("put", [], first.tree)))
    assert again.touched == ()


# -- shapes


def test_nulls_and_what_is_empty_are_not_kept() -> None:
    assert normal({"a": None, "b": {}, "c": [], "d": {"e": {"f": None}}, "g": ""}) == {"g": ""}
    assert normal({"a": {"b": None}}) is None
    assert put({"a": {"b": {"c": 1}}, "z": 1}, ["a", "b", "c"], None) == {"z": 1}


def test_what_is_not_there_can_be_removed() -> None:
    tree = {"a": 1}
    assert put(tree, ["b", "c"], None) is tree
    assert put(tree, ["a", "b"], None) == tree
    assert put(None, ["a"], None) is None


def test_a_write_below_a_leaf_replaces_it() -> None:
    assert put({"a": 1}, ["a", "b"], 2) == {"a": {"b": 2}}
    assert put(5, ["a"], 2) == {"a": 2}


def test_arrays_are_shown_as_the_database_shows_them() -> None:
    assert normal({"0": "a", "1": "b"}) == ["a", "b"]
    assert normal({"1": "b"}) == [None, "b"]
    assert normal({"2": "b"}) == {"2": "b"}
    assert normal({"00": "a"}) == {"00": "a"}
    assert normal(["a", None, None]) == ["a"]
    assert children(["a", None, {"b": 1}]) == {"0": "a", "2": {"b": 1}}
    assert put(["a", "b"], ["1"], None) == ["a"]
    assert put(["a", "b"], ["x"], "c") == {"0": "a", "1": "b", "x": "c"}
    assert patch(["a", "b"], [], {"1/x": 1, "0": None}) == [None, {"x": 1}]


def test_a_path_may_have_slashes_to_spare() -> None:
    assert split("/") == split("") == []
    assert split("/a/b/") == ["a", "b"]


def test_one_is_not_true() -> None:
    assert same({"a": [1, {"b": True}]}, {"a": [1, {"b": True}]})
    assert same({"a": 1, "b": 2}, {"b": 2, "a": 1})
    for one, other in ((1, True), (0, False), ({"a": 1}, {"a": True}), ([0], [False])):
        assert one == other
        assert not same(one, other)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{}", b'{"path": 1, "data": 1}', b'{"path": "/"}', b'{"path": "/", "data": "\xff"}',
     b'{"path": "/", "data": ' + b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_event_is_malformed(data: bytes) -> None:
    for name in ("put", "patch"):
        with pytest.raises(MalformedEventError):
            step(None, name, data)


@pytest.mark.parametrize("data", [None, 1, "x", [1]])
def test_a_patch_is_an_object(data: Any) -> None:
    with pytest.raises(MalformedEventError):
        step({"a": 1}, "patch", wire(("patch", [], data)))
