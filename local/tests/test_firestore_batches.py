"""Many writes at once: batches, the bulk writer, recursive deletes."""

# mypy: disable-error-code="no-untyped-call"

from typing import Any

import pytest
from google.api_core.exceptions import AlreadyExists, InvalidArgument, NotFound
from google.cloud.firestore import Client, Increment
from google.cloud.firestore_v1.bulk_writer import BulkWriteFailure, BulkWriterOptions, SendMode


def test_a_batch_writes_in_order(client: Client) -> None:
    batch = client.batch()
    batch.create(client.document("c/a"), {"n": 1})
    batch.update(client.document("c/a"), {"n": Increment(1)})
    batch.set(client.document("c/b"), {"n": 1})
    batch.delete(client.document("c/b"))
    results = batch.commit()
    assert len(results) == 4
    assert client.document("c/a").get().to_dict() == {"n": 2}
    assert not client.document("c/b").get().exists


def test_a_batch_writes_all_or_nothing(client: Client) -> None:
    client.document("c/taken").set({"n": 1})
    client.document("c/also taken").set({"n": 1})
    batch = client.batch()
    batch.set(client.document("c/a"), {"n": 1})
    batch.delete(client.document("c/taken"))
    batch.create(client.document("c/also taken"), {"n": 2})
    with pytest.raises(AlreadyExists):
        batch.commit()
    assert not client.document("c/a").get().exists
    assert client.document("c/taken").get().exists


@pytest.mark.parametrize(
    ("first", "then", "contradiction"),
    [
        ("set", "create", True),
        ("create", "create", True),
        ("update", "create", True),
        ("delete", "update", True),
        ("delete", "create", False),
        ("delete", "set", False),
        ("set", "update", False),
        ("update", "delete", False),
    ],
)
def test_writes_of_one_batch_may_not_contradict_each_other(
    client: Client, first: str, then: str, contradiction: bool
) -> None:
    document = client.document("c/d")
    document.set({"n": 0})
    batch = client.batch()
    for kind in (first, then):
        write = getattr(batch, kind)
        write(document) if kind == "delete" else write(document, {"n": 1})
    if contradiction:
        with pytest.raises(InvalidArgument):
            batch.commit()
        assert document.get().to_dict() == {"n": 0}
    else:
        batch.commit()


def test_all_documents_of_a_batch_have_one_update_time(client: Client) -> None:
    batch = client.batch()
    for name in "abc":
        batch.set(client.document(f"c/{name}"), {"n": 1})
    batch.commit()
    assert len({snapshot.update_time for snapshot in client.collection("c").stream()}) == 1


def test_five_hundred_writes_in_one_batch(client: Client) -> None:
    batch = client.batch()
    for number in range(500):
        batch.set(client.document(f"c/d{number}"), {"n": number})
    batch.commit()
    (results,) = client.collection("c").count().get()
    assert results[0].value == 500


@pytest.mark.parametrize("mode", list(SendMode))
def test_the_bulk_writer_writes_everything(client: Client, mode: SendMode) -> None:
    writer = client.bulk_writer(options=BulkWriterOptions(mode=mode))
    for number in range(50):
        writer.create(client.document(f"c/d{number}"), {"n": number})
    writer.close()
    assert len(list(client.collection("c").stream())) == 50


def test_the_bulk_writer_reports_each_failure_by_itself(client: Client) -> None:
    client.document("c/taken").set({"n": 1})
    failed: list[str] = []
    writer = client.bulk_writer(options=BulkWriterOptions(mode=SendMode.serial))

    def give_up(failure: BulkWriteFailure, _: Any) -> bool:
        failed.append(failure.operation.reference.id)  # type: ignore[attr-defined]
        return False

    writer.on_write_error(give_up)
    writer.create(client.document("c/taken"), {"n": 2})
    writer.create(client.document("c/free"), {"n": 2})
    writer.close()
    assert failed == ["taken"]
    assert client.document("c/free").get().exists


def test_batch_write_tells_the_status_of_each_write(client: Client) -> None:
    root = f"{client._database_string}/documents"
    writes = [
        {"update": {"name": f"{root}/c/a", "fields": {}}},
        {"delete": f"{root}/c/b", "current_document": {"exists": True}},
    ]
    response = client._firestore_api.batch_write(
        request={"database": client._database_string, "writes": writes}, metadata=client._rpc_metadata
    )
    assert [status.code for status in response.status] == [0, NotFound.grpc_status_code.value[0]]
    assert client.document("c/a").get().exists


def test_batch_write_refuses_to_write_a_document_twice(client: Client) -> None:
    write = {"delete": f"{client._database_string}/documents/c/a"}
    with pytest.raises(InvalidArgument):
        client._firestore_api.batch_write(
            request={"database": client._database_string, "writes": [write, write]}, metadata=client._rpc_metadata
        )


def test_recursive_delete_of_a_document_takes_all_below(client: Client) -> None:
    for path in ("c/a", "c/a/s/b", "c/a/s/b/t/d", "c/kept", "c/kept/s/e"):
        client.document(path).set({"x": 1})
    assert client.recursive_delete(client.document("c/a")) == 3
    assert [d.id for d in client.collection("c").list_documents()] == ["kept"]
    assert client.document("c/kept/s/e").get().exists


def test_recursive_delete_of_a_collection_leaves_its_namesakes(client: Client) -> None:
    for path in ("c/a", "c/a/s/b", "other/x/c/a", "cc/a"):
        client.document(path).set({"x": 1})
    assert client.recursive_delete(client.collection("c")) == 2
    assert not client.document("c/a/s/b").get().exists
    assert client.document("other/x/c/a").get().exists
    assert client.document("cc/a").get().exists
