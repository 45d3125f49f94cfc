"""Requests that the client library would not make, or not easily, and what the server says to them."""

from typing import Any

import pytest
from google.api_core.exceptions import InvalidArgument
from google.cloud.firestore import Client
from google.cloud.firestore_v1.types import Value

NUMBER = {"integer_value": 1}
FROM = [{"collection_id": "c"}]


def by(field: str) -> dict[str, Any]:
    return {"field": {"field_path": field}}


def where(field: str, op: int, value: Any) -> dict[str, Any]:
    return {"field_filter": {**by(field), "op": op, "value": value}}


@pytest.mark.parametrize(
    "query",
    [
        {"from_": [{"collection_id": "c"}, {"collection_id": "d"}]},
        {"from_": [{"collection_id": "c/d"}]},
        {"from_": FROM, "order_by": [by("a..b")]},
        {"from_": FROM, "order_by": [by("__name__"), by("a")]},
        {"from_": FROM, "order_by": [by("a")], "start_at": {"values": [NUMBER, NUMBER]}},
        {"from_": FROM, "order_by": [by("__name__")], "start_at": {"values": [NUMBER]}},
        {"from_": FROM, "order_by": [by("a")], "start_at": {"values": [Value()]}},
        {"from_": FROM, "where": where("a", 0, NUMBER)},
        {"from_": FROM, "where": where("a", 8, NUMBER)},
        {"from_": FROM, "where": where("a", 5, Value())},
        {"from_": FROM, "where": where("__name__", 5, {"string_value": "d"})},
        {"from_": FROM, "where": {"unary_filter": {**by("a"), "op": 0}}},
        {"from_": FROM, "where": {}},
        {"from_": FROM, "select": {"fields": [{"field_path": "a..b"}]}},
    ],
    ids=[
        "two collections", "a slash", "bad path", "order beyond the name", "long cursor", "cursor is no name",
        "cursor without value", "no operator", "in without list", "no value", "name is no reference",
        "no unary operator", "empty filter", "bad selected path",
    ],
)  # fmt: skip
def test_a_query(client: Client, query: dict[str, Any]) -> None:
    request = {"parent": f"{client._database_string}/documents", "structured_query": query}
    with pytest.raises(InvalidArgument):
        list(client._firestore_api.run_query(request=request, metadata=client._rpc_metadata))


@pytest.mark.parametrize("parent", ["{root}/c", "nonsense", "{root}/c//d/e"])
def test_a_parent(client: Client, parent: str) -> None:
    parent = parent.format(root=f"{client._database_string}/documents")
    with pytest.raises(InvalidArgument):
        list(client._firestore_api.run_query(request={"parent": parent, "structured_query": {"from_": FROM}}))


@pytest.mark.parametrize(
    "write",
    [
        {},
        {"update": {"name": "{d}", "fields": {"a": Value()}}},
        {"update": {"name": "{d}"}, "update_mask": {"field_paths": ["a..b"]}},
        {"update": {"name": "{d}"}, "update_transforms": [{"field_path": "a", "increment": {"string_value": "1"}}]},
        {"update": {"name": "{d}"}, "update_transforms": [{"field_path": "a", "maximum": {"null_value": None}}]},
        {"update": {"name": "{d}"}, "update_transforms": [{"field_path": "a", "set_to_server_value": 0}]},
        {"update": {"name": "{d}"}, "update_transforms": [{"field_path": "a"}]},
        {"transform": {"document": "{d}", "field_transforms": [{"field_path": "a..b", "increment": NUMBER}]}},
        {"update": {"name": "{d}", "fields": {"x" * 1501: NUMBER}}},
        {"update": {"name": "{d}", "fields": {"": NUMBER}}},
    ],
    ids=[
        "empty", "no value", "bad path in mask", "increment by text", "maximum of null", "unknown server value",
        "no transform", "bad path in transform", "long name", "no name",
    ],
)  # fmt: skip
def test_a_write(client: Client, write: dict[str, Any]) -> None:
    name = f"{client._database_string}/documents/c/d"
    for part in write.values():
        for key in ("name", "document"):
            if key in part:
                part[key] = name
    with pytest.raises(InvalidArgument):
        client._firestore_api.commit(request={"database": client._database_string, "writes": [write]})
    assert not client.document("c/d").get().exists


@pytest.mark.parametrize(
    "aggregations",
    [
        [],
        [{"count": {}, "alias": "n"}, {"count": {}, "alias": "n"}],
        [{"sum": {"field": {"field_path": "__name__"}}}],
        [{"alias": "n"}],
    ],
    ids=["none", "an alias twice", "sum of names", "no operator"],
)
def test_an_aggregation(client: Client, aggregations: list[Any]) -> None:
    query = {"structured_query": {"from_": FROM}, "aggregations": aggregations}
    request = {"parent": f"{client._database_string}/documents", "structured_aggregation_query": query}
    with pytest.raises(InvalidArgument):
        list(client._firestore_api.run_aggregation_query(request=request))


def test_aggregations_without_a_name_get_one(client: Client) -> None:
    client.document("c/d").set({"n": 1})
    query = {"structured_query": {"from_": FROM}, "aggregations": [{"count": {}}, {"count": {"up_to": 1}}]}
    request = {"parent": f"{client._database_string}/documents", "structured_aggregation_query": query}
    (response,) = client._firestore_api.run_aggregation_query(request=request)
    assert sorted(response.result.aggregate_fields) == ["field_1", "field_2"]


def test_a_listing_of_missing_documents_in_order(client: Client) -> None:
    request = {
        "parent": f"{client._database_string}/documents", "collection_id": "c", "show_missing": True, "order_by": "a"
    }  # fmt: skip
    with pytest.raises(InvalidArgument):
        client._firestore_api.list_documents(request=request)
