"""Writing and reading single documents, with Google's synchronous client."""

import datetime
import math
from typing import Any

import pytest
from google.api_core.exceptions import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from google.cloud.firestore import (
    DELETE_FIELD,
    SERVER_TIMESTAMP,
    ArrayRemove,
    ArrayUnion,
    Client,
    DocumentReference,
    GeoPoint,
    Increment,
    Maximum,
    Minimum,
)
from google.cloud.firestore_v1.vector import Vector

NOON = datetime.datetime(2025, 9, 20, 11, 44, 0, 123456, tzinfo=datetime.UTC)
LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
MAX_INT = 2**63 - 1


def read(document: DocumentReference) -> dict[str, Any]:
    data = document.get().to_dict()
    assert data is not None
    return data


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -7,
        2**53 + 1,
        MAX_INT,
        -MAX_INT - 1,
        2.5,
        math.inf,
        "",
        "żółw 🐢",
        b"\x00\xff",
        NOON,
        [],
        [1, "a", None, {"b": [2]}],
        {},
        {"a": {"b": {"c": [1]}}, "with space": 1, "with.dot": 2},
        Vector([1.0, 2.0]),
        GeoPoint(46.2, 6.1),
    ],
    ids=repr,
)
def test_a_value_comes_back_as_it_was(client: Client, value: Any) -> None:
    client.document("c/d").set({"v": value})
    stored = client.document("c/d").get().get("v")
    assert stored == value
    assert type(stored) is type(value) or value == NOON


def test_a_reference_comes_back_as_one(client: Client) -> None:
    client.document("c/d").set({"v": client.document("e/f")})
    assert client.document("c/d").get().get("v").path == "e/f"


def test_nan_comes_back(client: Client) -> None:
    client.document("c/d").set({"v": math.nan})
    assert math.isnan(client.document("c/d").get().get("v"))


def test_a_missing_document_does_not_exist(client: Client) -> None:
    snapshot = client.document("c/missing").get()
    assert not snapshot.exists
    assert snapshot.to_dict() is None
    assert snapshot.read_time is not None


def test_set_replaces_the_whole_document(client: Client) -> None:
    document = client.document("c/d")
    document.set({"a": 1, "b": {"c": 2}})
    document.set({"a": 3})
    assert document.get().to_dict() == {"a": 3}


def test_set_with_merge_keeps_the_rest(client: Client) -> None:
    document = client.document("c/d")
    document.set({"a": 1, "m": {"x": 1, "y": 2}})
    document.set({"b": 2, "m": {"x": 3}}, merge=True)
    assert document.get().to_dict() == {"a": 1, "b": 2, "m": {"x": 3, "y": 2}}


def test_set_with_merged_fields_takes_those_alone(client: Client) -> None:
    document = client.document("c/d")
    document.set({"a": 1, "b": 1, "m": {"x": 1, "y": 1}})
    document.set({"a": 2, "b": 2, "m": {"x": 2, "y": 2}}, merge=["a", "m.x"])  # type: ignore[arg-type]
    assert document.get().to_dict() == {"a": 2, "b": 1, "m": {"x": 2, "y": 1}}


def test_merging_nothing_makes_an_empty_document(client: Client) -> None:
    client.document("c/d").set({}, merge=True)
    assert client.document("c/d").get().to_dict() == {}


def test_merging_a_map_over_a_scalar_replaces_it(client: Client) -> None:
    document = client.document("c/d")
    document.set({"m": 5})
    document.set({"m": {"x": {"y": 1}}}, merge=True)
    assert document.get().to_dict() == {"m": {"x": {"y": 1}}}


def test_update_by_paths_plain_nested_and_quoted(client: Client) -> None:
    document = client.document("c/d")
    document.set({"a": 1, "m": {"x": 1, "y": 1}, "with.dot": {"in side": 1}})
    document.update({"a": 2, "m.x": 2, "`with.dot`.`in side`": 2, "new.deep.path": 3})
    assert document.get().to_dict() == {
        "a": 2,
        "m": {"x": 2, "y": 1},
        "with.dot": {"in side": 2},
        "new": {"deep": {"path": 3}},
    }


def test_update_of_a_map_replaces_it(client: Client) -> None:
    document = client.document("c/d")
    document.set({"m": {"x": 1, "y": 1}})
    document.update({"m": {"x": 2}})
    assert document.get().to_dict() == {"m": {"x": 2}}


def test_delete_field_at_the_top_and_inside(client: Client) -> None:
    document = client.document("c/d")
    document.set({"a": 1, "b": 2, "m": {"x": 1, "y": 1}})
    document.update({"a": DELETE_FIELD, "m.x": DELETE_FIELD, "absent.deep": DELETE_FIELD})
    assert document.get().to_dict() == {"b": 2, "m": {"y": 1}}


def test_delete_field_while_merging(client: Client) -> None:
    document = client.document("c/d")
    document.set({"a": 1, "m": {"x": 1}})
    document.set({"a": DELETE_FIELD, "m": {"x": DELETE_FIELD, "z": 1}}, merge=True)
    assert document.get().to_dict() == {"m": {"z": 1}}


def test_add_chooses_an_id(client: Client) -> None:
    _, document = client.collection("c").add({"a": 1})
    assert len(document.id) == 20
    assert document.get().to_dict() == {"a": 1}


def test_create_refuses_an_existing_document(client: Client) -> None:
    client.document("c/d").create({"a": 1})
    with pytest.raises(AlreadyExists):
        client.document("c/d").create({"a": 2})
    assert client.document("c/d").get().to_dict() == {"a": 1}


def test_update_refuses_a_missing_document(client: Client) -> None:
    with pytest.raises(NotFound):
        client.document("c/missing").update({"a": 1})


def test_delete_is_content_with_a_missing_document_unless_told_otherwise(client: Client) -> None:
    client.document("c/missing").delete()
    with pytest.raises(NotFound):
        client.document("c/missing").delete(option=client.write_option(exists=True))


def test_delete_deletes_and_keeps_what_lies_below(client: Client) -> None:
    client.document("c/d").set({"a": 1})
    client.document("c/d/sub/e").set({"a": 1})
    client.document("c/d").delete()
    assert not client.document("c/d").get().exists
    assert client.document("c/d/sub/e").get().exists


def test_a_stale_update_time_is_refused(client: Client) -> None:
    document = client.document("c/d")
    first = document.set({"a": 1})
    document.update({"a": 2}, option=client.write_option(last_update_time=first.update_time))
    with pytest.raises(FailedPrecondition):
        document.update({"a": 3}, option=client.write_option(last_update_time=first.update_time))
    with pytest.raises(FailedPrecondition):
        client.document("c/missing").delete(option=client.write_option(last_update_time=LONG_AGO))
    assert document.get().to_dict() == {"a": 2}


def test_times_of_a_document(client: Client) -> None:
    document = client.document("c/d")
    times = [document.set({"a": number}).update_time for number in range(5)]
    assert times == sorted(set(times)), "update times increase strictly"
    snapshot = document.get()
    assert snapshot.create_time == times[0]
    assert snapshot.update_time == times[-1]
    assert snapshot.read_time >= times[-1]


def test_a_document_made_anew_has_a_new_create_time(client: Client) -> None:
    document = client.document("c/d")
    first = document.set({"a": 1}).update_time
    document.delete()
    document.set({"a": 1})
    assert document.get().create_time > first


def test_a_write_that_changes_nothing_keeps_the_update_time(client: Client) -> None:
    document = client.document("c/d")
    first = document.set({"a": 1, "m": {"x": [1]}}).update_time
    assert document.set({"a": 1, "m": {"x": [1]}}).update_time == first
    assert document.update({"a": 1}).update_time == first
    assert document.get().update_time == first


def test_get_all_keeps_no_duplicates_and_tells_the_missing(client: Client) -> None:
    client.document("c/a").set({"n": 1})
    wanted = [client.document("c/a"), client.document("c/b"), client.document("c/a")]
    assert sorted((s.id, s.exists) for s in client.get_all(wanted)) == [("a", True), ("b", False)]


def test_a_field_mask_reads_these_fields_alone(client: Client) -> None:
    client.document("c/d").set({"a": 1, "b": 2, "m": {"x": 1, "y": 2}})
    assert client.document("c/d").get(["a", "m.x", "absent"]).to_dict() == {"a": 1, "m": {"x": 1}}


def test_server_timestamp_at_the_top_and_inside(client: Client) -> None:
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=2)
    client.document("c/d").set({"at": SERVER_TIMESTAMP, "m": {"at": SERVER_TIMESTAMP, "x": 1}})
    data = read(client.document("c/d"))
    assert data["at"] == data["m"]["at"]
    assert before < data["at"] < datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2)
    assert data["at"].microsecond % 1000 == 0, "whole milliseconds"
    assert data["m"]["x"] == 1


def named(value: Any) -> str:
    """A name of a parameter that is the same in every process."""
    if isinstance(value, Increment | Maximum | Minimum):
        return f"{type(value).__name__}({value.value!r})"
    if isinstance(value, ArrayUnion | ArrayRemove):
        return f"{type(value).__name__}({value.values!r})"
    return repr(value)


@pytest.mark.parametrize(
    ("stored", "transform", "result"),
    [
        (5, Increment(3), 8),
        (5, Increment(0.5), 5.5),
        (MAX_INT, Increment(1), MAX_INT),
        (-MAX_INT, Increment(-10), -MAX_INT - 1),
        ("text", Increment(3), 3),
        (5, Maximum(9), 9),
        (5, Maximum(2), 5),
        (5, Maximum(5.0), 5),
        (5, Minimum(2.5), 2.5),
        (5, Minimum(9), 5),
        ("text", Minimum(1), 1),
        ([1, 2], ArrayUnion([2, 3, 3]), [1, 2, 3]),
        ([1, {"a": 1}], ArrayUnion([1.0, {"a": 1}, {"a": 2}]), [1, {"a": 1}, {"a": 2}]),
        ("text", ArrayUnion([1]), [1]),
        ([1, 2, 1, None], ArrayRemove([1, None]), [2]),
        ("text", ArrayRemove([1]), []),
    ],
    ids=named,
)
def test_a_transform_of_a_field(client: Client, stored: Any, transform: Any, result: Any) -> None:
    document = client.document("c/d")
    document.set({"v": stored, "m": {"v": stored}, "kept": 1})
    document.update({"v": transform, "m.v": transform})
    data = read(document)
    assert data == {"v": result, "m": {"v": result}, "kept": 1}
    assert type(data["v"]) is type(result)


@pytest.mark.parametrize(
    ("transform", "result"),
    [(Increment(3), 3), (Maximum(3), 3), (Minimum(3), 3), (ArrayUnion([1]), [1]), (ArrayRemove([1]), [])],
    ids=named,
)
def test_a_transform_of_a_missing_field(client: Client, transform: Any, result: Any) -> None:
    client.document("c/d").set({"v": transform, "deep": {"v": transform}}, merge=True)
    assert client.document("c/d").get().to_dict() == {"v": result, "deep": {"v": result}}


def test_transforms_and_values_in_one_write_tell_their_results(client: Client) -> None:
    document = client.document("c/d")
    document.set({"n": 1, "list": [1]})
    result = document.update({"n": Increment(1), "list": ArrayUnion([2]), "at": SERVER_TIMESTAMP, "plain": "x"})
    data = read(document)
    assert (data["n"], data["list"], data["plain"]) == (2, [1, 2], "x")
    assert len(result.transform_results) == 3
    assert {2} <= {value.integer_value for value in result.transform_results}


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("c/d", {"v": [[1]]}),
        ("c/d", {"__reserved__": 1}),
        ("c/d", {"m": {"__reserved__": 1}}),
        ("c/__reserved__", {"v": 1}),
        ("__reserved__/d", {"v": 1}),
        ("c/.", {"v": 1}),
        ("c/..", {"v": 1}),
        ("c/" + "x" * 1501, {"v": 1}),
        ("c/d", {"v": "x" * 1_100_000}),
        ("c/d", {f"f{n}": "x" * 100_000 for n in range(11)}),
    ],
    ids=["nested array", "field", "inner field", "id", "collection", "dot", "dots", "long id", "long text", "size"],
)
def test_what_may_not_be_written(client: Client, path: str, data: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        client.document(path).set(data)


def test_maps_nest_twenty_deep(client: Client) -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {"a": nested(depth - 1)} if depth else {"a": 1}

    client.document("c/d").set(nested(19))
    with pytest.raises(InvalidArgument):
        client.document("c/d").set(nested(21))


@pytest.mark.parametrize(
    "name",
    ["foo", "{root}", "{root}/c", "{root}/c//e/f", "{root}/c/d/e"],
)
def test_names_that_are_none(client: Client, name: str) -> None:
    name = name.format(root=f"{client._database_string}/documents")
    with pytest.raises(InvalidArgument):
        client._firestore_api.commit(
            request={"database": client._database_string, "writes": [{"delete": name}]},
            metadata=client._rpc_metadata,
        )


def test_projects_and_databases_are_apart(client: Client, firestore_project: str) -> None:
    client.document("c/d").set({"a": 1})
    for other in (Client(project=f"{firestore_project}-other"), Client(project=firestore_project, database="other")):
        assert not other.document("c/d").get().exists
        other._firestore_api.transport.close()


def test_list_documents_shows_the_missing_ones(client: Client) -> None:
    client.document("c/stored").set({"a": 1})
    client.document("c/missing/sub/e").set({"a": 1})
    assert [document.id for document in client.collection("c").list_documents()] == ["missing", "stored"]
    assert [snapshot.id for snapshot in client.collection("c").stream()] == ["stored"]


def test_list_documents_in_pages(client: Client) -> None:
    for number in range(7):
        client.document(f"c/d{number}").set({"a": 1})
    assert [d.id for d in client.collection("c").list_documents(page_size=3)] == [f"d{n}" for n in range(7)]


def test_collections_of_the_root_and_of_a_document(client: Client) -> None:
    client.document("a/d").set({"x": 1})
    client.document("b/d/sub/e").set({"x": 1})
    client.document("b/d/other/e").set({"x": 1})
    assert sorted(c.id for c in client.collections()) == ["a", "b"]
    assert sorted(c.id for c in client.document("b/d").collections()) == ["other", "sub"]
    client.document("b/d/other/e").delete()
    assert [c.id for c in client.document("b/d").collections()] == ["sub"]
