"""Properties: whatever is written, the tree, its queries, streams and file agree with a model too simple to err.

The model is a flat map from paths to scalars.
"""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path as File
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from callboard_local.realtime.database import Database
from callboard_local.realtime.namespaces import Namespaces
from callboard_local.realtime.push_ids import PushIds
from callboard_local.realtime.queries import Query, parse_query
from callboard_local.realtime.streams import Stream
from callboard_local.realtime.values import Parser

Path = tuple[str, ...]
Leaves = dict[Path, Any]

KEYS = st.sampled_from(["a", "b", "0", "1", "10", "-1", "é", "n"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, 2.0, 1e300]),
    st.sampled_from(["", "a", "b", "Z"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.dictionaries(KEYS, inner, max_size=4), st.lists(inner, max_size=3)),
    max_leaves=8,
)
PATHS = st.lists(KEYS, max_size=3).map(tuple)
WRITES = st.one_of(
    st.tuples(st.just("put"), PATHS, VALUES),
    st.tuples(
        st.just("patch"),
        PATHS,
        # One key each in front, so that no path is above another.
        st.dictionaries(KEYS, st.tuples(st.lists(KEYS, max_size=2), VALUES), max_size=3),
    ),
)
BOUNDS = st.one_of(SCALARS, st.none())
QUERIES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"orderBy": st.sampled_from(["$value", "n", "a/b"])},
        optional={"startAt": BOUNDS, "endAt": BOUNDS},
    ),
    st.fixed_dictionaries({"orderBy": st.sampled_from(["$value", "n"])}, optional={"equalTo": BOUNDS}),
    st.fixed_dictionaries(
        {"orderBy": st.sampled_from(["$value", "n"])}, optional={"startAfter": BOUNDS, "endBefore": BOUNDS}
    ),
    st.fixed_dictionaries({"orderBy": st.just("$key")}, optional={"startAt": KEYS, "endBefore": KEYS}),
)
LIMITS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"limitToFirst": st.integers(1, 3)}),
    st.fixed_dictionaries({"limitToLast": st.integers(1, 3)}),
)


# -- the model


def write(leaves: Leaves, path: Path, value: Any) -> Leaves:
    new = flat(path, value)
    kept = {place: scalar for place, scalar in leaves.items() if place[: len(path)] != path}
    if new:
        kept = {place: scalar for place, scalar in kept.items() if path[: len(place)] != place}
    return kept | new


def flat(path: Path, value: Any) -> Leaves:
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    if isinstance(value, dict):
        return {place: scalar for key, item in value.items() for place, scalar in flat((*path, key), item).items()}
    return {} if value is None else {path: value}


def nested(leaves: Leaves, path: Path = ()) -> Any:
    """The value at a path, arrays as objects."""
    tree: Any = None
    for place, scalar in leaves.items():
        if place[: len(path)] != path:
            continue
        if place == path:
            return scalar
        tree = tree if tree is not None else {}
        node = tree
        for key in place[len(path) : -1]:
            node = node.setdefault(key, {})
        node[place[-1]] = scalar
    return tree


def compare(one: Any, other: Any) -> int:
    """-1, 0 or 1, by Google's order of all types."""
    kinds = [kind(one), kind(other)]
    if kinds[0] != kinds[1]:
        return -1 if kinds[0] < kinds[1] else 1
    if kinds[0] in ("4 number", "5 string"):
        return int(one > other) - int(one < other)
    return 0


def kind(value: Any) -> str:
    if value is None:
        return "1 null"
    if isinstance(value, bool):
        return "3 true" if value else "2 false"
    if isinstance(value, int | float):
        return "4 number"
    return "5 string" if isinstance(value, str) else "6 object"


def compare_keys(one: str, other: str) -> int:
    numbers = [key.removeprefix("-").isdigit() for key in (one, other)]
    if numbers[0] != numbers[1]:
        return -1 if numbers[0] else 1
    left, right = (int(one), int(other)) if numbers[0] else (one, other)
    return (left > right) - (left < right)  # type: ignore[operator]  # both of the same type


def selected(tree: Any, query: dict[str, Any]) -> Any:
    """The children that a query selects, one rule after the other."""
    if not query:
        return tree
    if not isinstance(tree, dict):
        return tree if len(query) == 1 else None

    def index(key: str) -> Any:
        if query["orderBy"] == "$key":
            return key
        value = tree[key]
        for step in [] if query["orderBy"] == "$value" else query["orderBy"].split("/"):
            value = value.get(step) if isinstance(value, dict) else None
        return value

    by_index = compare_keys if query["orderBy"] == "$key" else compare

    def in_order(one: str, other: str) -> int:
        return by_index(index(one), index(other)) or compare_keys(one, other)

    rules: dict[str, Callable[[int], bool]] = {
        "startAt": lambda sign: sign >= 0,
        "startAfter": lambda sign: sign > 0,
        "endAt": lambda sign: sign <= 0,
        "endBefore": lambda sign: sign < 0,
        "equalTo": lambda sign: sign == 0,
    }
    keys = sorted(tree, key=functools.cmp_to_key(in_order))
    for name, rule in rules.items():
        if name in query:
            keys = [key for key in keys if rule(by_index(index(key), query[name]))]
    if "limitToFirst" in query:
        keys = keys[: query["limitToFirst"]]
    if "limitToLast" in query:
        keys = keys[-query["limitToLast"] :]
    return {key: tree[key] for key in keys} or None


def shown(tree: Any) -> Any:
    """With arrays, where Google makes them."""
    if not isinstance(tree, dict):
        return tree
    children = {key: shown(child) for key, child in tree.items()}
    if all(key.isdigit() and str(int(key)) == key for key in children):
        length = max(map(int, children)) + 1
        if len(children) > (length - 1) / 2:
            return [children.get(str(index)) for index in range(length)]
    return children


# -- what is compared


def apply(database: Database, operation: tuple[str, Path, Any]) -> list[tuple[Path, Any]]:
    """Run a write; the single writes that it consists of."""
    name, path, value = operation
    if name == "put":
        database.put(path, value, Parser(0))
        return [(path, value)]
    values = {"/".join([key, *below]): item for key, (below, item) in value.items()}
    database.patch(path, values, Parser(0))
    return [((*path, *key.split("/")), item) for key, item in values.items()]


def parsed(query: dict[str, Any]) -> Query | None:
    return parse_query({name: json.dumps(value) for name, value in query.items()})


def folded(tree: Any, messages: bytes) -> Any:
    """What the client of a stream holds after these messages."""
    for message in messages.split(b"\n\n")[:-1]:
        event, _, data = message.decode().partition("\n")
        parts = json.loads(data.removeprefix("data: "))
        path = tuple(key for key in parts["path"].split("/") if key)
        leaves = flat((), tree)
        changes = {"": parts["data"]} if event == "event: put" else parts["data"]
        for key, value in changes.items():
            leaves = write(leaves, (*path, *(step for step in key.split("/") if step)), value)
        tree = nested(leaves)
    return tree


def exactly(value: Any) -> str:
    """As text, in which 1 is not True, and 2.0 is 2."""
    return json.dumps(whole(value), sort_keys=True)


def whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


@settings(deadline=None)
@given(st.lists(WRITES, max_size=8), PATHS)
def test_the_tree_is_what_was_written(operations: list[tuple[str, Path, Any]], path: Path) -> None:
    database, leaves = Database("d"), Leaves()
    for operation in operations:
        for place, value in apply(database, operation):
            leaves = write(leaves, place, value)
    assert database.root.at(path).plain() == shown(nested(leaves, path))
    assert exactly(database.root.plain(export=True)) == exactly(nested(leaves))


@settings(deadline=None)
@given(VALUES, QUERIES, LIMITS)
def test_a_query_selects_what_its_rules_select(value: Any, query: dict[str, Any], limit: dict[str, int]) -> None:
    query = query | limit if query else query
    node = Parser(0).node(value)
    selection = parsed(query)
    window = node if selection is None else selection.window(node)
    assert exactly(window.plain(export=True)) == exactly(selected(nested(flat((), value)), query))


@settings(deadline=None)
@given(VALUES, st.lists(WRITES, min_size=1, max_size=8), PATHS, QUERIES, LIMITS)
# A write above that changes nothing there.
@example({"a": {"b": 1}}, [("put", (), {"a": {"b": 1}, "n": 2})], ("a",), {}, {})
def test_a_stream_tells_what_a_read_would(
    start: Any, operations: list[tuple[str, Path, Any]], path: Path, query: dict[str, Any], limit: dict[str, int]
) -> None:
    query = query | limit if query else query
    database, leaves = Database("d"), flat((), start)
    database.put((), start, Parser(0))
    stream = Stream(path, parsed(query), export=False, max_pending_bytes=1_000_000)
    database.listeners.add(stream, database.root)
    known = folded(None, stream.take())
    for operation in operations:
        for place, value in apply(database, operation):
            leaves = write(leaves, place, value)
        messages = stream.take()
        assert messages.count(b"\n\n") <= 1, "one write, one event"
        before, known = known, folded(known, messages)
        assert exactly(known) == exactly(selected(nested(leaves, path), query))
        assert bool(messages) == (exactly(before) != exactly(known)), "an event for each change, and for nothing else"


@settings(deadline=None)
@given(st.lists(WRITES, max_size=6), st.lists(WRITES, max_size=6))
def test_etags_are_equal_when_the_data_is(one: Any, other: Any) -> None:
    databases = [Database("one"), Database("other")]
    for database, operations in zip(databases, (one, other), strict=True):
        for operation in operations:
            apply(database, operation)
    roots = [database.root for database in databases]
    same = exactly(roots[0].plain(export=True)) == exactly(roots[1].plain(export=True))
    assert (roots[0].digest == roots[1].digest) is same
    assert (roots[0] == roots[1]) is same


PRIORITIES = st.sampled_from([None, 1, 2.5, "p"])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(WRITES, st.tuples(st.just("priority"), PATHS, PRIORITIES)), max_size=8))
def test_the_file_has_what_the_memory_has(operations: list[tuple[str, Path, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = File(folder) / "kept.db"
        namespaces = Namespaces(file)
        for name, path, value in operations:
            if name == "priority":
                namespaces["n"].put((*path, ".priority"), value, Parser(0))
            else:
                apply(namespaces["n"], (name, path, value))
        memory = namespaces["n"].root
        namespaces.close()
        again = Namespaces(file)
        assert again["n"].root == memory
        assert again["n"].root.digest == memory.digest
        again.close()


@given(st.lists(st.integers(0, 2**41), min_size=1, max_size=50))
def test_push_ids_go_up_whatever_the_clock_does(times: list[int]) -> None:
    push_ids = PushIds()
    made = [push_ids.make(time) for time in times]
    assert made == sorted(set(made))
    assert all(len(each) == 20 for each in made)
