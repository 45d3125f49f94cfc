"""Documents by path."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

import pytest
from google.cloud.firestore import AsyncClient, GeoPoint

from callboard import FailedPrecondition, InvalidArgs, NotFound
from callboard_firebase_management import FirebaseManagement, documents

pytestmark = pytest.mark.anyio

Stored: TypeAlias = Callable[[str], Awaitable[dict[str, Any] | None]]
Store: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[None]]

NO_DOCUMENT = ["", "clients", "clients/", "/clients/a", "clients//a/b", "clients/a/b", "clients/..", "clients/__a__"]
NO_COLLECTION = ["", "clients/a", "clients/a/", "/clients", "a//b", "clients/./b", "__all__"]


async def test_set_and_get(stored: Stored, service: FirebaseManagement) -> None:
    data = {"name": "Ada", "age": 36, "tags": ["a", "b"], "address": {"city": "London"}, "none": None, "pi": 3.5}

    assert await service.set_document("clients/ada", data) is True

    assert await service.get_document("clients/ada") == data
    assert await stored("clients/ada") == data


async def test_get_without_a_document(service: FirebaseManagement) -> None:
    assert await service.get_document("clients/nobody") is None
    assert await service.get_raw_document("clients/nobody") is None


async def test_get_makes_json_of_what_firestore_holds(
    store: Store, client: AsyncClient, service: FirebaseManagement
) -> None:
    await store(
        "clients/ada",
        {
            "born": datetime(1815, 12, 10, 1, 2, 3, tzinfo=UTC),
            "place": GeoPoint(51.5, -0.1),
            "friend": client.document("clients/charles"),
            "picture": b"\x00\x01",
        },
    )

    assert await service.get_document("clients/ada") == {
        "born": "1815-12-10T01:02:03Z",
        "place": {"latitude": 51.5, "longitude": -0.1},
        "friend": "clients/charles",
        "picture": "AAE=",
    }


async def test_set_replaces_and_merges(service: FirebaseManagement) -> None:
    await service.set_document("clients/ada", {"name": "Ada", "address": {"city": "London", "zip": "W1"}})

    await service.set_document("clients/ada", {"address": {"city": "Paris"}}, merge=True)
    assert await service.get_document("clients/ada") == {"name": "Ada", "address": {"city": "Paris", "zip": "W1"}}

    await service.set_document("clients/ada", {"name": "Augusta", "address": {"city": "Rome"}}, merge=["address.city"])
    assert await service.get_document("clients/ada") == {"name": "Ada", "address": {"city": "Rome", "zip": "W1"}}

    await service.set_document("clients/ada", {"name": "Ada"})
    assert await service.get_document("clients/ada") == {"name": "Ada"}


async def test_raw_document(service: FirebaseManagement) -> None:
    await service.set_document("clients/ada", {"name": "Ada"})
    first = await service.get_raw_document("clients/ada")
    await service.set_document("clients/ada", {"name": "Augusta"})
    second = await service.get_raw_document("clients/ada")

    assert first is not None
    assert second is not None
    assert {**second, "update_time": "", "read_time": ""} == {
        "id": "ada", "path": "clients/ada", "create_time": first["create_time"], "update_time": "", "read_time": "",
        "data": {"name": "Augusta"},
    }  # fmt: skip
    times = [datetime.fromisoformat(second[name]) for name in ("create_time", "update_time", "read_time")]
    assert times == sorted(times)
    assert second["update_time"] > first["update_time"]


async def test_add_document_gets_an_id_and_a_timestamp(stored: Stored, service: FirebaseManagement) -> None:
    data = {"name": "Ada", "timestamp": "whenever", "at": {"$op": "server_timestamp"}}
    before = copy.deepcopy(data)

    first = await service.add_document("clients", data)
    second = await service.add_document("clients", data, merge=True)

    assert data == before
    assert first != second
    for doc_id in (first, second):
        found = await stored(f"clients/{doc_id}")
        assert found is not None
        assert found["name"] == "Ada"
        assert isinstance(found["timestamp"], datetime)
        assert found["at"] == found["timestamp"]


async def test_add_document_with_a_list_writes_those_fields_and_the_timestamp(
    stored: Stored, service: FirebaseManagement
) -> None:
    doc_id = await service.add_document("clients", {"name": "Ada", "secret": 1}, merge=["name"])

    found = await stored(f"clients/{doc_id}")
    assert found is not None
    assert found.keys() == {"name", "timestamp"}


async def test_add_new_document_holds_the_data_alone(stored: Stored, service: FirebaseManagement) -> None:
    doc_id = await service.add_new_document("clients/ada/letters", {"to": "Charles"})

    assert await stored(f"clients/ada/letters/{doc_id}") == {"to": "Charles"}


async def test_add_document_without_timestamp(stored: Stored, service: FirebaseManagement) -> None:
    assert await service.add_document_without_timestamp("clients", "ada", {"name": "Ada", "born": 1815}) == "ada"
    await service.add_document_without_timestamp("clients", "ada", {"name": "Augusta"}, True)
    assert await stored("clients/ada") == {"name": "Augusta", "born": 1815}

    await service.add_document_without_timestamp("clients", "ada", {"name": "Ada"})
    assert await stored("clients/ada") == {"name": "Ada"}


async def test_update(store: Store, stored: Stored, service: FirebaseManagement) -> None:
    await store("clients/ada", {"name": "Ada", "count": 1, "tags": ["a"], "address": {"city": "London", "zip": "W1"}})
    update: dict[str, Any] = {
        "address.city": "Paris",
        "`e-mail`": "ada@example.org",
        "name": {"$op": "delete"},
        "count": {"$op": "increment", "by": 2},
        "tags": {"$op": "array_union", "values": ["b", "a"]},
    }
    before = copy.deepcopy(update)

    assert await service.update_firebase_doc("clients/ada", update) is True

    assert update == before
    assert await stored("clients/ada") == {
        "e-mail": "ada@example.org", "count": 3, "tags": ["a", "b"], "address": {"city": "Paris", "zip": "W1"},
    }  # fmt: skip
    await service.update_firebase_doc("clients/ada", {"tags": {"$op": "array_remove", "values": ["a"]}})
    assert await service.get_document("clients/ada") == {
        "e-mail": "ada@example.org", "count": 3, "tags": ["b"], "address": {"city": "Paris", "zip": "W1"},
    }  # fmt: skip


async def test_update_without_a_document(stored: Stored, service: FirebaseManagement) -> None:
    with pytest.raises(NotFound):
        await service.update_firebase_doc("clients/nobody", {"name": "Ada"})
    assert await stored("clients/nobody") is None


@pytest.mark.parametrize(
    "update",
    [{}, {"a..b": 1}, {"a*b": 1}, {"": 1}, {"a": 1, "a.b": 2}, {"a": {"$op": "leap"}}, {"$op": "delete"}],
)
async def test_update_refuses_what_cannot_be_written(
    store: Store, stored: Stored, service: FirebaseManagement, update: dict[str, Any]
) -> None:
    await store("clients/ada", {"name": "Ada"})
    with pytest.raises(InvalidArgs):
        await service.update_firebase_doc("clients/ada", update)
    assert await stored("clients/ada") == {"name": "Ada"}


@pytest.mark.parametrize(
    ("data", "merge"),
    [
        ({"a": {"$op": "delete"}}, False),
        ({"a": 1}, ["b"]),
        ({"a": 1}, ["a..b"]),
        ({"a": {"b": 1}}, ["a", "a.b"]),
        ({"a": 2**63}, False),
        ({"a": [[1]]}, False),
        ({"__a__": 1}, False),
    ],
)
async def test_set_refuses_what_cannot_be_written(
    stored: Stored, service: FirebaseManagement, data: dict[str, Any], merge: bool | list[str]
) -> None:
    with pytest.raises(InvalidArgs):
        await service.set_document("clients/ada", data, merge)
    assert await stored("clients/ada") is None


@pytest.mark.parametrize("path", NO_DOCUMENT)
async def test_paths_that_name_no_document(service: FirebaseManagement, path: str) -> None:
    for call in (
        service.set_document(path, {"a": 1}),
        service.get_document(path),
        service.get_raw_document(path),
        service.update_firebase_doc(path, {"a": 1}),
        service.delete_doc_id(path),
        service.delete_document_recursive(path),
        service.delete_documents_by_full_paths([path]),
    ):
        with pytest.raises(InvalidArgs):
            await call


@pytest.mark.parametrize("path", NO_COLLECTION)
async def test_paths_that_name_no_collection(service: FirebaseManagement, path: str) -> None:
    for call in (
        service.add_document(path, {"a": 1}),
        service.add_new_document(path, {"a": 1}),
        service.add_document_without_timestamp(path, "ada", {"a": 1}),
        service.fetch_documents_from_firestore(path, "m1"),
    ):
        with pytest.raises(InvalidArgs):
            await call


@pytest.mark.parametrize("doc_id", ["", "a/b", ".", "..", "__a__", "x" * 1501])
async def test_ids_that_name_no_document(service: FirebaseManagement, doc_id: str) -> None:
    with pytest.raises(InvalidArgs):
        await service.add_document_without_timestamp("clients", doc_id, {"a": 1})


async def test_delete(store: Store, stored: Stored, service: FirebaseManagement) -> None:
    await store("clients/ada", {"name": "Ada"})
    await store("clients/ada/letters/1", {"to": "Charles"})

    assert await service.delete_doc_id("clients/ada") is True
    assert await service.delete_doc_id("clients/ada") is True

    assert await stored("clients/ada") is None
    assert await stored("clients/ada/letters/1") == {"to": "Charles"}


async def test_delete_recursive(store: Store, stored: Stored, service: FirebaseManagement) -> None:
    beneath = [f"clients/ada/letters/{n}" for n in range(5)]
    beneath += ["clients/ada/letters/1/pages/1", "clients/ada/missing/parent/pages/1", "clients/ada/notes/1"]
    beside = ["clients/adam", "clients/ad/letters/1", "clients/charles/letters/1", "clients/ada2/letters/1"]
    for path in ["clients/ada", *beneath, *beside]:
        await store(path, {"a": 1})

    assert await service.delete_document_recursive("clients/ada", batch_size=2) == 1 + len(beneath)

    for path in ["clients/ada", *beneath]:
        assert await stored(path) is None, path
    for path in beside:
        assert await stored(path) is not None, path
    assert await service.delete_document_recursive("clients/ada") == 0


async def test_delete_recursive_beneath_a_document_that_does_not_exist(
    store: Store, service: FirebaseManagement
) -> None:
    await store("clients/ada/letters/1", {"a": 1})
    assert await service.delete_document_recursive("clients/ada") == 1


async def test_delete_by_full_paths(
    store: Store, stored: Stored, service: FirebaseManagement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "DELETE_BATCH", 2)
    paths = [f"clients/{n}" for n in range(5)]
    for path in [*paths, "clients/kept"]:
        await store(path, {"a": 1})

    assert await service.delete_documents_by_full_paths([*paths, "clients/0", "clients/none"]) == 6

    assert [await stored(path) for path in paths] == [None] * 5
    assert await stored("clients/kept") == {"a": 1}
    assert await service.delete_documents_by_full_paths([]) == 0


async def test_delete_by_full_paths_checks_all_of_them_first(
    store: Store, stored: Stored, service: FirebaseManagement
) -> None:
    await store("clients/ada", {"a": 1})
    with pytest.raises(InvalidArgs):
        await service.delete_documents_by_full_paths(["clients/ada", "clients"])
    assert await stored("clients/ada") == {"a": 1}


async def test_fetch(store: Store, service: FirebaseManagement) -> None:
    for n, mandate in enumerate(["m1", "m2", "m1", "m1"]):
        await store(f"bills/{n}", {"mandat_id": mandate, "n": n})
    await store("bills/other", {"n": 4})

    assert await service.fetch_documents_from_firestore("bills", "m1") == [
        {"mandat_id": "m1", "n": 0, "doc_id": "0"},
        {"mandat_id": "m1", "n": 2, "doc_id": "2"},
        {"mandat_id": "m1", "n": 3, "doc_id": "3"},
    ]
    assert [one["n"] for one in await service.fetch_documents_from_firestore("bills", "m1", max_docs=2)] == [0, 2]
    assert await service.fetch_documents_from_firestore("bills", "m3") == []
    assert await service.fetch_documents_from_firestore("nothing", "m1") == []


async def test_fetch_does_not_cut_off_silently(
    store: Store, service: FirebaseManagement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_FETCHED", 2)
    for n in range(3):
        await store(f"bills/{n}", {"mandat_id": "m1"})

    with pytest.raises(FailedPrecondition):
        await service.fetch_documents_from_firestore("bills", "m1")
    assert len(await service.fetch_documents_from_firestore("bills", "m1", max_docs=2)) == 2
