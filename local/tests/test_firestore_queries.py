"""Queries with Google's synchronous client: filters, order, cursors, groups of collections, aggregations."""

# mypy: disable-error-code="no-untyped-call"

import datetime
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from google.api_core.exceptions import FailedPrecondition, InvalidArgument
from google.cloud.firestore import And, Client, CollectionReference, FieldFilter, GeoPoint, Or, Query
from google.cloud.firestore_v1.field_path import FieldPath
from google.cloud.firestore_v1.vector import Vector

ANY_TYPE = {
    "null": None,
    "false": False,
    "true": True,
    "nan": math.nan,
    "one": 1,
    "one_point_five": 1.5,
    "big": 2**53 + 1,
    "text": "text",
    "text2": "tezt",
    "bytes": b"b",
    "list": [1, None],
    "null_list": [None],
    "map": {"k": 1},
}

Ask = Callable[[CollectionReference], Any]


def ids(found: Iterable[Any]) -> list[str]:
    return [snapshot.id for snapshot in found]


def all_but(*names: str) -> list[str]:
    return [name for name in ANY_TYPE if name not in names]


@pytest.fixture
def mixed(client: Client) -> CollectionReference:
    """A document for each type of value in `v`, named after it, and one without `v`."""
    batch = client.batch()
    for name, value in ANY_TYPE.items():
        batch.set(client.document(f"mixed/{name}"), {"v": value})
    batch.set(client.document("mixed/absent"), {"w": 1})
    batch.commit()
    return client.collection("mixed")


@pytest.fixture
def people(client: Client) -> CollectionReference:
    rows: dict[str, dict[str, Any]] = {
        "ada": {"age": 36, "town": "London", "tags": ["a", "b"], "address": {"zip": 1}},
        "bob": {"age": 25, "town": "Bern", "tags": ["b"], "address": {"zip": 2}},
        "cyd": {"age": 36, "town": "Bern", "tags": []},
        "dan": {"age": 41, "town": "Oslo", "tags": ["c", "a"], "address": {"zip": 3}},
        "eve": {"town": "Oslo"},
    }
    batch = client.batch()
    for name, row in rows.items():
        batch.set(client.document(f"people/{name}"), row)
    batch.commit()
    return client.collection("people")


@pytest.mark.parametrize(
    ("op", "value", "found"),
    [
        ("==", 1, ["one"]),
        ("==", 1.0, ["one"]),
        ("==", None, ["null"]),
        ("==", math.nan, ["nan"]),
        ("==", [1, None], ["list"]),
        ("==", {"k": 1}, ["map"]),
        ("==", "absent", []),
        ("<", 2, ["one", "one_point_five"]),
        ("<=", 1.5, ["one", "one_point_five"]),
        (">", 1.5, ["big"]),
        (">=", 2**53 + 1, ["big"]),
        (">", "text", ["text2"]),
        ("<=", True, ["false", "true"]),
        ("<=", [1], ["null_list"]),
        ("!=", 1, all_but("null", "one")),
        ("!=", None, all_but("null")),
        ("!=", math.nan, all_but("null", "nan")),
        ("in", [1, "text", "absent"], ["one", "text"]),
        ("in", [None, True], ["true"]),
        ("not-in", [1, "text", True], all_but("null", "one", "text", "true")),
        ("not-in", [1, None], []),
        ("array_contains", 1, ["list"]),
        ("array_contains_any", [1, 7], ["list"]),
        ("array_contains_any", [None, 7], []),
    ],
    ids=repr,
)
def test_a_filter_over_every_type(mixed: CollectionReference, op: str, value: Any, found: list[str]) -> None:
    snapshots = mixed.where(filter=FieldFilter("v", op, value)).stream()
    assert sorted(ids(snapshots)) == sorted(found)


def test_the_order_of_the_other_types(client: Client) -> None:
    rows = {
        "number": 1,
        "time": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        "later": datetime.datetime(2020, 1, 1, microsecond=1, tzinfo=datetime.UTC),
        "bytes": b"b",
        "reference": client.document("c/__id7__"),
        "reference2": client.document("c/a"),
        "south": GeoPoint(-1, 5),
        "west": GeoPoint(1, -5),
        "east": GeoPoint(1, 5),
        "list": [1],
        "long_vector": Vector([0.0, 0.0]),
        "vector": Vector([1.0]),
        "map": {"a": 1},
        "map2": {"a": 1, "b": 0},
        "map3": {"b": 0},
    }
    batch = client.batch()
    for name, value in rows.items():
        batch.set(client.document(f"c/{name}"), {"v": value})
    batch.commit()
    assert ids(client.collection("c").order_by("v").stream()) == [
        "number", "time", "later", "bytes", "reference", "reference2", "south", "west", "east", "list", "vector",
        "long_vector", "map", "map2", "map3",
    ]  # fmt: skip
    same = client.collection("c").where(filter=FieldFilter("v", "==", GeoPoint(1, 5)))
    assert ids(same.stream()) == ["east"]


def test_the_order_of_types(mixed: CollectionReference) -> None:
    expected = [
        "null", "false", "true", "nan", "one", "one_point_five", "big", "text", "text2", "bytes",
        "null_list", "list", "map",
    ]  # fmt: skip
    assert ids(mixed.order_by("v").stream()) == expected, "and the document without the field is left out"
    assert ids(mixed.order_by("v", direction=Query.DESCENDING).stream()) == expected[::-1]


QUESTIONS: dict[str, tuple[Ask, list[str]]] = {
    "all, by name": (lambda p: p, ["ada", "bob", "cyd", "dan", "eve"]),
    "two conditions": (
        lambda p: p.where(filter=FieldFilter("town", "==", "Bern")).where(filter=FieldFilter("age", ">", 30)),
        ["cyd"],
    ),
    "inside a map": (lambda p: p.where(filter=FieldFilter("address.zip", ">=", 2)), ["bob", "dan"]),
    "an inequality orders": (lambda p: p.where(filter=FieldFilter("age", ">", 0)), ["bob", "ada", "cyd", "dan"]),
    "or": (
        lambda p: p.where(filter=Or([FieldFilter("town", "==", "London"), FieldFilter("age", "==", 25)])),
        ["ada", "bob"],
    ),
    "and with or": (
        lambda p: p.where(
            filter=And(
                [
                    FieldFilter("town", "in", ["Bern", "Oslo"]),
                    Or([FieldFilter("age", "==", 41), FieldFilter("tags", "array_contains", "b")]),
                ]
            )
        ),
        ["bob", "dan"],
    ),
    "inequalities on two fields": (
        lambda p: p.where(filter=FieldFilter("age", ">", 30)).where(filter=FieldFilter("town", "<", "M")),
        ["cyd", "ada"],
    ),
    "or of inequalities needs both fields": (
        lambda p: p.where(filter=Or([FieldFilter("age", ">", 40), FieldFilter("town", "==", "Oslo")])),
        ["dan"],
    ),
    "ordered, ties by name": (lambda p: p.order_by("age"), ["bob", "ada", "cyd", "dan"]),
    "descending, ties by name descending": (
        lambda p: p.order_by("age", direction=Query.DESCENDING),
        ["dan", "cyd", "ada", "bob"],
    ),
    "two orders": (
        lambda p: p.order_by("town").order_by("age", direction=Query.DESCENDING),
        ["cyd", "bob", "ada", "dan"],
    ),
    "limit": (lambda p: p.order_by("age").limit(2), ["bob", "ada"]),
    "limit to last": (lambda p: p.order_by("age").limit_to_last(2), ["cyd", "dan"]),
    "offset": (lambda p: p.order_by("age").offset(1).limit(2), ["ada", "cyd"]),
    "offset beyond the end": (lambda p: p.offset(99), []),
    "start at": (lambda p: p.order_by("age").start_at({"age": 36}), ["ada", "cyd", "dan"]),
    "start after": (lambda p: p.order_by("age").start_after({"age": 36}), ["dan"]),
    "end at": (lambda p: p.order_by("age").end_at({"age": 36}), ["bob", "ada", "cyd"]),
    "end before": (lambda p: p.order_by("age").end_before({"age": 36}), ["bob"]),
    "cursor on a descending order": (
        lambda p: p.order_by("age", direction=Query.DESCENDING).start_after({"age": 41}).end_before({"age": 25}),
        ["cyd", "ada"],
    ),
    "cursor of another type": (lambda p: p.order_by("age").start_at({"age": "text"}), []),
    "cursor on two fields": (
        lambda p: p.order_by("town").order_by("age").start_after({"town": "Bern", "age": 25}),
        ["cyd", "ada", "dan"],
    ),
    "cursor at a document": (lambda p: p.order_by("age").start_after(p.document("ada").get()), ["cyd", "dan"]),
    "cursor at a document, by name": (lambda p: p.start_at(p.document("cyd").get()), ["cyd", "dan", "eve"]),
    "by name": (
        lambda p: p.where(filter=FieldFilter(FieldPath.document_id(), ">", p.document("bob"))),
        ["cyd", "dan", "eve"],
    ),
    "by names": (
        lambda p: p.where(filter=FieldFilter(FieldPath.document_id(), "in", [p.document("eve"), p.document("ada")])),
        ["ada", "eve"],
    ),
    "equal and by name descending": (
        lambda p: p.where(filter=FieldFilter("town", "==", "Bern")).order_by("__name__", direction=Query.DESCENDING),
        ["cyd", "bob"],
    ),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_query(people: CollectionReference, question: str) -> None:
    ask, found = QUESTIONS[question]
    assert ids(ask(people).get()) == found


def test_select_returns_some_fields_or_none(people: CollectionReference) -> None:
    query = people.where(filter=FieldFilter("age", "==", 25))
    assert [s.to_dict() for s in query.select(["age", "address.zip"]).stream()] == [{"age": 25, "address": {"zip": 2}}]
    assert [s.to_dict() for s in query.select([]).stream()] == [{}]


def test_numeric_ids_come_first_in_order(client: Client) -> None:
    for name in ("b", "__id10__", "a", "__id5__", "__id-3__"):
        client.document(f"c/{name}").set({"x": 1})
    assert ids(client.collection("c").stream()) == ["__id-3__", "__id5__", "__id10__", "a", "b"]


def test_a_collection_group_spans_parents(client: Client) -> None:
    for path, number in {"orders/c": 3, "users/1/orders/a": 1, "users/2/orders/b": 2, "users/2/other/d": 4}.items():
        client.document(path).set({"n": number})
    group = client.collection_group("orders")
    assert ids(group.stream()) == ["c", "a", "b"]
    assert ids(group.where(filter=FieldFilter("n", ">", 1)).stream()) == ["b", "c"]
    assert ids(group.order_by("n", direction=Query.DESCENDING).limit(1).stream()) == ["c"]


def test_a_sub_collection_is_not_its_namesake(client: Client) -> None:
    client.document("users/1/orders/a").set({"n": 1})
    client.document("users/2/orders/b").set({"n": 2})
    assert ids(client.collection("users/1/orders").stream()) == ["a"]
    assert ids(client.collection("users").stream()) == []


def test_aggregations(people: CollectionReference) -> None:
    def aggregated(query: Any) -> dict[str, Any]:
        (results,) = query.get()
        return {result.alias: result.value for result in results}

    assert aggregated(people.count(alias="n")) == {"n": 5}
    assert aggregated(people.limit(2).count(alias="n")) == {"n": 2}
    assert aggregated(people.where(filter=FieldFilter("town", "==", "Bern")).sum("age", alias="s")) == {"s": 61}
    assert aggregated(people.avg("age", alias="a")) == {"a": 34.5}
    # Only documents that have every field aggregated on take part.
    assert aggregated(people.sum("age", alias="s").count(alias="n")) == {"s": 138, "n": 4}
    assert aggregated(people.sum("town", alias="s")) == {"s": 0}


def test_a_sum_is_a_float_when_it_has_to_be(client: Client) -> None:
    for name, value in {"a": 2**62, "b": 2**62, "c": 1}.items():
        client.document(f"c/{name}").set({"n": value})
    (results,) = client.collection("c").sum("n", alias="s").get()
    assert results[0].value == float(2**63)


@pytest.mark.parametrize(
    ("numbers", "total", "mean"),
    [([1, 2.5], 3.5, 1.75), ([math.inf, 1], math.inf, math.inf), ([math.inf, -math.inf], math.nan, math.nan)],
)
def test_sums_and_means_of_floats(client: Client, numbers: list[float], total: float, mean: float) -> None:
    for index, number in enumerate([*numbers, "text", None]):
        client.document(f"c/d{index}").set({"n": number})
    (results,) = client.collection("c").sum("n", alias="s").avg("n", alias="a").get()
    found = {result.alias: result.value for result in results}
    assert found == pytest.approx({"s": total, "a": mean}, nan_ok=True)


def where(field: str, op: str, value: Any) -> Ask:
    return lambda p: p.where(filter=FieldFilter(field, op, value))


@pytest.mark.parametrize(
    "ask",
    [
        where("age", "in", []),
        where("age", "in", list(range(31))),
        where("age", "not-in", list(range(11))),
        lambda p: where("age", "!=", 2)(where("age", "!=", 1)(p)),
        lambda p: where("town", "in", [1])(where("age", "not-in", [1])(p)),
        lambda p: where("tags", "array_contains", 1)(where("tags", "array_contains", 2)(p)),
        lambda p: where("tags", "in", list(range(6)))(where("age", "in", list(range(6)))(p)),
        lambda p: p.order_by("age").order_by("age"),
        lambda p: p.limit(-1),
        lambda p: p.offset(-1),
    ],
    ids=[
        "empty in", "long in", "long not-in", "two !=", "not-in and in", "two array_contains", "36 disjunctions",
        "ordered twice", "negative limit", "negative offset",
    ],
)  # fmt: skip
def test_a_query_that_makes_no_sense(people: CollectionReference, ask: Ask) -> None:
    with pytest.raises(InvalidArgument):
        list(ask(people).stream())


def test_a_scan_by_descending_name_is_refused(people: CollectionReference) -> None:
    with pytest.raises(FailedPrecondition):
        list(people.order_by("__name__", direction=Query.DESCENDING).stream())
