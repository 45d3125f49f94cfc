"""`on_snapshot`, a feature of Google's client: our server has to drive it as Google's does.

Nothing else in this repository may use it: see `docs/why.md`.
"""

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.cloud.firestore import Client, FieldFilter

from callboard_local import FirestoreProcess

WAIT_S = 15.0

Seen = dict[str, Any]
Follow = Callable[[Any], "Followed"]


class Followed:
    """The snapshots of a document or a query, one after the other."""

    def __init__(self, source: Any) -> None:
        self._seen: queue.Queue[tuple[Seen, list[tuple[str, str]]]] = queue.Queue()
        self._watch = source.on_snapshot(self._called)

    def next(self) -> tuple[Seen, list[tuple[str, str]]]:
        """The state and the changes of the next snapshot: `({id: fields}, [(kind, id)])`."""
        return self._seen.get(timeout=WAIT_S)

    def close(self) -> None:
        self._watch.unsubscribe()

    def _called(self, snapshots: Any, changes: Any, read_time: Any) -> None:
        state = {snapshot.id: snapshot.to_dict() for snapshot in snapshots if snapshot.exists}
        self._seen.put((state, [(change.type.name, change.document.id) for change in changes]))


@pytest.fixture
def follow() -> Iterator[Follow]:
    opened: list[Followed] = []

    def open_one(source: Any) -> Followed:
        opened.append(Followed(source))
        return opened[-1]

    yield open_one
    for followed in opened:
        followed.close()


def test_it_survives_a_restart_of_the_server(follow: Follow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the embedded server alone: Google's emulator loses its data."""
    with FirestoreProcess(data=tmp_path / "data.sqlite") as server:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", server.address)
        client = Client(project="p")
        client.document("c/a").set({"n": 1})
        followed = follow(client.collection("c"))
        assert followed.next()[1] == [("ADDED", "a")]
        server.stop()
        server.start()
        client.document("c/b").set({"n": 2})
        assert followed.next() == ({"a": {"n": 1}, "b": {"n": 2}}, [("ADDED", "b")])
        followed.close()
        client._firestore_api.transport.close()


def test_a_document(client: Client, follow: Follow) -> None:
    document = client.document("c/d")
    followed = follow(document)
    assert followed.next() == ({}, [])
    document.set({"n": 1})
    assert followed.next() == ({"d": {"n": 1}}, [("ADDED", "d")])
    document.update({"n": 2})
    assert followed.next() == ({"d": {"n": 2}}, [("MODIFIED", "d")])
    document.delete()
    assert followed.next() == ({}, [("REMOVED", "d")])


def test_a_collection(client: Client, follow: Follow) -> None:
    client.document("c/a").set({"n": 1})
    followed = follow(client.collection("c"))
    assert followed.next() == ({"a": {"n": 1}}, [("ADDED", "a")])
    client.document("c/b").set({"n": 2})
    assert followed.next() == ({"a": {"n": 1}, "b": {"n": 2}}, [("ADDED", "b")])
    client.document("c/a").delete()
    assert followed.next() == ({"b": {"n": 2}}, [("REMOVED", "a")])


def test_a_filtered_query_sees_documents_come_and_go(client: Client, follow: Follow) -> None:
    document = client.document("c/a")
    followed = follow(client.collection("c").where(filter=FieldFilter("n", ">", 0)))
    assert followed.next() == ({}, [])
    document.set({"n": 1})
    assert followed.next() == ({"a": {"n": 1}}, [("ADDED", "a")])
    document.set({"n": 0})
    assert followed.next() == ({}, [("REMOVED", "a")])


def test_an_ordered_limit(client: Client, follow: Follow) -> None:
    for number in range(3):
        client.document(f"c/d{number}").set({"n": number})
    followed = follow(client.collection("c").order_by("n").limit(2))
    assert list(followed.next()[0]) == ["d0", "d1"]
    client.document("c/d0").delete()
    state, changes = followed.next()
    assert list(state) == ["d1", "d2"]
    assert changes == [("REMOVED", "d0"), ("ADDED", "d2")]


def test_a_batch_is_one_snapshot(client: Client, follow: Follow) -> None:
    followed = follow(client.collection("c"))
    assert followed.next() == ({}, [])
    batch = client.batch()
    for name in "abc":
        batch.set(client.document(f"c/{name}"), {"n": 1})
    batch.commit()
    assert [kind for kind, _ in followed.next()[1]] == ["ADDED"] * 3


def test_an_unsubscribed_callback_is_not_called(client: Client, follow: Follow) -> None:
    silent, speaking = follow(client.collection("c")), follow(client.collection("c"))
    assert silent.next() == speaking.next() == ({}, [])
    silent.close()
    client.document("c/a").set({"n": 1})
    assert speaking.next()[1] == [("ADDED", "a")]
    assert silent._seen.empty()
