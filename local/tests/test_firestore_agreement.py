"""Random writes and queries, put to the embedded server and to Google's emulator: the answers have to agree.

The other contract tests state what is right; these find what nobody thought of. Every difference ever found was
mended on our side. A failure prints the question; its seed makes it come again.
"""

import datetime
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
from google.api_core.exceptions import GoogleAPICallError
from google.cloud.firestore import (
    DELETE_FIELD,
    And,
    ArrayRemove,
    ArrayUnion,
    Client,
    FieldFilter,
    GeoPoint,
    Increment,
    Maximum,
    Minimum,
    Or,
)

from callboard_local import FirestoreProcess, GoogleFirestoreProcess

pytestmark = pytest.mark.emulator

ROUNDS = 150
NOON = datetime.datetime(2025, 9, 20, 12, tzinfo=datetime.UTC)
SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 2.0, 2.5, -0.0, math.nan, math.inf, "", "a", "b", "ż", b"", b"a", {}, {"x": 1},
    {"x": 2}, {"x": 1, "y": 1}, NOON, GeoPoint(1, 2), GeoPoint(1, 3), 2**60, -(2**60), 1e300,
]  # fmt: skip
VALUES = [*SCALARS, [], [1], [1, 2], ["a", None]]
FIELDS = ["a", "b", "m.x", "m.y", "tags"]
OPERATORS = ["==", "!=", "<", "<=", ">", ">=", "in", "not-in", "array_contains", "array_contains_any"]
LISTS = {"in", "not-in", "array_contains_any"}


class Question:
    """Makes up writes and queries, as functions of a client, so that two clients can be asked the same."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def write(self) -> tuple[str, str, dict[str, Any]]:
        """A method, a document's path, the data."""
        path = f"k/d{self._random.randint(0, 20)}" if self._likely(0.8) else f"u/1/k/e{self._random.randint(0, 3)}"
        method = self._random.choice(["set", "merge", "create", "delete", "update", "update"])
        return method, path, self._updates() if method == "update" else self._document()

    def query(self) -> dict[str, Any]:
        """`where`, a tree of filters; `orders`; perhaps `cursor`, `limit`, `offset`, `group`."""
        orders = [(self._random.choice([*FIELDS, "__name__"]), self._direction()) for _ in range(self._few())]
        query: dict[str, Any] = {"orders": orders, "group": self._likely(0.2)}
        if self._likely(0.8):
            query["where"] = self._filter(depth=0)
        if orders and self._likely(0.4):
            cursor = self._random.choice(["start_at", "start_after", "end_at", "end_before"])
            query["cursor"] = cursor, {field: self._operand(field) for field, _ in orders}
        if self._likely(0.3):
            query["limit"] = self._random.randint(0, 6)
        if self._likely(0.15):
            query["offset"] = self._random.randint(0, 4)
        return query

    def _filter(self, depth: int) -> Any:
        if depth < 2 and self._likely(0.35):
            parts = [self._filter(depth + 1) for _ in range(self._random.randint(1, 3))]
            return self._random.choice(["and", "or"]), parts
        field = "__name__" if self._likely(0.1) else self._random.choice(FIELDS)
        operator = self._random.choice([op for op in OPERATORS if field != "__name__" or "array" not in op])
        if operator in LISTS:
            return field, operator, [self._operand(field) for _ in range(self._random.randint(1, 3))]
        return field, operator, self._operand(field)

    def _operand(self, field: str) -> Any:
        return f"k/d{self._random.randint(0, 20)}" if field == "__name__" else self._random.choice(VALUES)

    def _document(self) -> dict[str, Any]:
        document = {field: self._random.choice(VALUES) for field in ("a", "b") if self._likely(0.7)}
        if self._likely(0.5):
            document["tags"] = self._random.sample(SCALARS, 3)
        if self._likely(0.6):
            document["m"] = {field: self._random.choice(VALUES) for field in "xy" if self._likely(0.6)}
        return document

    def _updates(self) -> dict[str, Any]:
        field = self._random.choice(["a", "b", "m", "m.x", "m.z.w", "tags", "`we ird`"])
        return {field: self._transform() if self._likely(0.6) else self._random.choice(VALUES), "n": Increment(1)}

    def _transform(self) -> Any:
        number = self._random.choice([1, -3, 0.5, 2**62])
        items = self._random.sample(SCALARS, 2)
        return self._random.choice(
            [Increment(number), Maximum(number), Minimum(number), ArrayUnion(items), ArrayRemove(items), DELETE_FIELD]
        )

    def _direction(self) -> str:
        return self._random.choice(["ASCENDING", "DESCENDING"])

    def _few(self) -> int:
        return self._random.choice([0, 0, 1, 1, 2])

    def _likely(self, probability: float) -> bool:
        return self._random.random() < probability


def write(client: Client, method: str, path: str, data: dict[str, Any]) -> Any:
    """What a write returns, or the type of its error, and the document after it."""
    document = client.document(path)
    try:
        if method == "delete":
            document.delete()
            returned: Any = None
        elif method == "merge":
            document.set(data, merge=True)
            returned = None
        else:
            returned = [repr(result) for result in getattr(document, method)(data).transform_results]
    except GoogleAPICallError as error:
        returned = type(error)
    except (ValueError, TypeError) as error:  # the client refused it by itself
        returned = str(error)
    return returned, comparable(document.get().to_dict())


def ask(client: Client, question: dict[str, Any]) -> Any:
    """The paths that a query finds, or the type of its error."""
    query: Any = client.collection_group("k") if question["group"] else client.collection("k")
    try:
        if "where" in question:
            query = query.where(filter=built(client, question["where"]))
        for field, direction in question["orders"]:
            query = query.order_by(field, direction=direction)
        if "cursor" in question:
            method, position = question["cursor"]
            query = getattr(query, method)({field: operand(client, field, v) for field, v in position.items()})
        for method in ("limit", "offset"):
            if method in question:
                query = getattr(query, method)(question[method])
        return [snapshot.reference.path for snapshot in query.get()]
    except GoogleAPICallError as error:
        return type(error)
    except (ValueError, TypeError, AttributeError):  # the client refused it by itself
        return None


def built(client: Client, tree: Any) -> Any:
    if tree[0] in {"and", "or"}:
        return {"and": And, "or": Or}[tree[0]]([built(client, part) for part in tree[1]])
    field, operator, value = tree
    if operator in LISTS:
        return FieldFilter(field, operator, [operand(client, field, item) for item in value])
    return FieldFilter(field, operator, operand(client, field, value))


def operand(client: Client, field: str, value: Any) -> Any:
    return client.document(value) if field == "__name__" else value


def comparable(value: Any) -> Any:
    """NaN equals NaN here, and 1 is not 1.0."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return type(value).__name__, repr(value) if not isinstance(value, GeoPoint) else (value.latitude, value.longitude)


@pytest.fixture
def clients(
    firestore_server: FirestoreProcess,
    google_firestore_server: GoogleFirestoreProcess,
    firestore_project: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Client, Client]]:
    made = []
    for address in (firestore_server.address, google_firestore_server.address):
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", address)
        made.append(Client(project=firestore_project))
    yield made[0], made[1]
    for client in made:
        client._firestore_api.transport.close()


@pytest.mark.parametrize("seed", range(4))
def test_both_servers_give_the_same_answers(clients: tuple[Client, Client], seed: int) -> None:
    ours, googles = clients
    question = Question(seed)
    for _ in range(ROUNDS):
        wrote = question.write()
        assert write(ours, *wrote) == write(googles, *wrote), wrote
        asked = question.query()
        assert ask(ours, asked) == ask(googles, asked), asked
