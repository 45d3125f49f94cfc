"""The Firestore contract suite runs, unchanged, against every implementation: our own, and Google's emulator.

The emulator judges both the tests and us: `pytest -m emulator local/tests`. The Realtime Database's runs with Google's
client in both ways of naming an emulator.
"""

import asyncio
import functools
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import firebase_admin
import httpx
import pytest
from firebase_admin import db
from google.cloud import firestore
from google.cloud.firestore_v1.types import ListenRequest, Target, TargetChange

from callboard_local import RealtimeProcess, StripeControl, StripeProcess
from callboard_local.session_loop import anyio_backend as anyio_backend
from callboard_local.session_loop import one_event_loop as one_event_loop

from .stripe_api import StripeApi

WAIT_S = 15.0


@pytest.fixture
def client(
    firestore_address: str, firestore_project: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[firestore.Client]:
    """Google's client on an empty Firestore of its own."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", firestore_address)
    client = firestore.Client(project=firestore_project)
    yield client
    client._firestore_api.transport.close()


@pytest.fixture
async def async_client(
    firestore_address: str, firestore_project: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[firestore.AsyncClient]:
    """Google's asynchronous client on an empty Firestore of its own."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", firestore_address)
    client = firestore.AsyncClient(project=firestore_project)
    yield client
    await client._firestore_api.transport.close()


@pytest.fixture
def listening(
    async_client: firestore.AsyncClient, listen_on: Callable[[firestore.AsyncClient], "Listening"]
) -> Callable[[], "Listening"]:
    """Opens streams on the client: `stream = listening()`."""
    return functools.partial(listen_on, async_client)


@pytest.fixture
async def listen_on() -> AsyncIterator[Callable[[firestore.AsyncClient], "Listening"]]:
    """Opens streams on any client: `stream = listen_on(client)`."""
    streams: list[Listening] = []

    def open_stream(client: firestore.AsyncClient) -> Listening:
        streams.append(Listening(client))
        return streams[-1]

    yield open_stream
    for stream in streams:
        await stream.close()


class Listening:
    """One Listen stream, folded: what each target consists of at the last consistent moment."""

    def __init__(self, client: firestore.AsyncClient) -> None:
        self.client = client
        self.snapshots: list[dict[int, dict[str, Any]]] = []
        """After every consistent moment: by target, by path, the fields."""
        self.messages: list[Any] = []
        self.removed: dict[int, str] = {}
        """Targets that the server removed, and why."""
        self.resume_token = b""
        self._root = f"{client._database_string}/documents"
        self._targets: dict[int, dict[str, Any]] = {}
        self._assumed: dict[int, dict[str, Any]] = {}
        self._requests: asyncio.Queue[ListenRequest | None] = asyncio.Queue()
        self._news = asyncio.Condition()
        self._ids = itertools.count(1)
        self._reader = asyncio.create_task(self._read())

    def add_query(self, query: Any, **options: Any) -> int:
        """Follow a query; the id of the target."""
        parent = query._parent._parent_info()[0]
        return self._add(query={"parent": parent, "structured_query": query._to_protobuf()}, **options)

    def add_documents(self, *paths: str, **options: Any) -> int:
        """Follow documents; the id of the target."""
        return self._add(documents={"documents": [f"{self._root}/{path}" for path in paths]}, **options)

    def _add(self, target_id: int | None = None, **target: Any) -> int:
        target_id = target_id if target_id is not None else next(self._ids)
        self.send(add_target=Target(target_id=target_id, **target))
        return target_id

    def assume(self, target_id: int, state: dict[str, Any]) -> None:
        """What the target held when the stream that it resumes was left."""
        self._assumed[target_id] = dict(state)

    def send(self, **change: Any) -> None:
        self._requests.put_nowait(ListenRequest(database=self.client._database_string, **change))

    def half_close(self) -> None:
        self._requests.put_nowait(None)

    async def until(self, condition: Callable[[dict[int, dict[str, Any]]], bool]) -> dict[int, dict[str, Any]]:
        """Wait for a consistent moment that meets the condition; its state."""
        await self.until_true(lambda: bool(self.snapshots) and condition(self.snapshots[-1]))
        return self.snapshots[-1]

    async def until_true(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that some message makes true."""

        def over() -> bool:
            if self._reader.done() and not condition():
                self._reader.result()  # the error that ended the stream, if it was one
                raise AssertionError("the stream ended")
            return condition()

        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(over)

    async def ended(self) -> None:
        """Wait for the end of the stream; raises the error it ended with."""
        await asyncio.wait_for(asyncio.shield(self._reader), WAIT_S)

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _requests_sent(self) -> AsyncIterator[ListenRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _read(self) -> None:
        try:
            stream = await self.client._firestore_api.listen(
                requests=self._requests_sent(), metadata=self.client._rpc_metadata
            )
            async for response in stream:
                async with self._news:
                    self._fold(response._pb)
                    self._news.notify_all()
        finally:
            self.half_close()  # gRPC leaves its reader of our requests waiting when the server ends a stream
            async with self._news:
                self._news.notify_all()

    def _fold(self, response: Any) -> None:
        self.messages.append(response)
        match response.WhichOneof("response_type"):
            case "document_change":
                change = response.document_change
                for target_id in change.target_ids:
                    self._targets[target_id][self._path(change.document.name)] = _plain(change.document.fields)
                self._forget(change.document.name, change.removed_target_ids)
            case "document_delete":
                self._forget(response.document_delete.document, response.document_delete.removed_target_ids)
            case "document_remove":
                self._forget(response.document_remove.document, response.document_remove.removed_target_ids)
            case "target_change":
                self._fold_target_change(response.target_change)

    def _fold_target_change(self, change: Any) -> None:
        kinds = TargetChange.TargetChangeType
        if change.resume_token:
            self.resume_token = change.resume_token
        for target_id in change.target_ids:
            if change.target_change_type == kinds.ADD:
                self._targets[target_id] = self._assumed.get(target_id, {})
            elif change.target_change_type == kinds.RESET:
                self._targets[target_id] = {}
            elif change.target_change_type == kinds.REMOVE:
                del self._targets[target_id]
                self.removed[target_id] = change.cause.message
        if change.target_change_type == kinds.NO_CHANGE and not change.target_ids:
            self.snapshots.append({target_id: dict(state) for target_id, state in self._targets.items()})

    def _forget(self, name: str, target_ids: Any) -> None:
        for target_id in target_ids:
            self._targets[target_id].pop(self._path(name), None)

    def _path(self, name: str) -> str:
        return name.removeprefix(f"{self._root}/")


def _plain(fields: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("value_type"))
        for name, value in fields.items()
        if value.WhichOneof("value_type") in {"integer_value", "string_value", "boolean_value", "double_value"}
    }


@pytest.fixture(params=["synchronous", "asynchronous"])
async def stripe_api(
    request: pytest.FixtureRequest, stripe_server: StripeProcess, stripe_account: StripeControl
) -> AsyncIterator[StripeApi]:
    """Stripe's own client on an account of its own, used in either way."""
    api = StripeApi(stripe_server.url, stripe_account.secret_key, synchronous=request.param == "synchronous")
    yield api
    await api.close()


# -- the Realtime Database


@pytest.fixture(scope="session")
def realtime_server() -> Iterator[RealtimeProcess]:
    """The shared server, with quick keep-alives: a listener of Google's client is closed at the next one."""
    with RealtimeProcess(keep_alive_s=0.2) as server:
        yield server


@pytest.fixture(params=["URL", "variable"])
def app(
    request: pytest.FixtureRequest,
    realtime_server: RealtimeProcess,
    realtime_namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[firebase_admin.App]:
    """Google's client on an empty database of its own, told of the emulator in either of the two ways."""
    url = realtime_server.url_of(realtime_namespace)
    if request.param == "variable":
        monkeypatch.setenv("FIREBASE_DATABASE_EMULATOR_HOST", realtime_server.address)
        url = f"https://{realtime_namespace}.firebaseio.com"
    app = firebase_admin.initialize_app(options={"databaseURL": url}, name=realtime_namespace)
    yield app
    firebase_admin.delete_app(app)


@pytest.fixture
def root(app: firebase_admin.App) -> db.Reference:
    """The root of that database."""
    reference: db.Reference = db.reference(app=app)
    return reference


@pytest.fixture
async def rest(realtime_server: RealtimeProcess, realtime_namespace: str) -> AsyncIterator[httpx.AsyncClient]:
    """A plain HTTP client on an empty database of its own: `await rest.put("/a.json", json=1)`."""
    params = {"ns": realtime_namespace}
    async with httpx.AsyncClient(base_url=f"http://{realtime_server.address}", params=params) as client:
        yield client


@pytest.fixture
async def stream_of() -> AsyncIterator[Callable[..., "EventStream"]]:
    """Opens event streams: `stream = stream_of(rest, "/a.json", orderBy='"$key"')`."""
    streams: list[EventStream] = []

    def open_stream(client: httpx.AsyncClient, url: str, **params: Any) -> EventStream:
        streams.append(EventStream(client, url, params))
        return streams[-1]

    yield open_stream
    for stream in streams:
        await stream.close()


class EventStream:
    """An event stream, folded: what its client holds after each event."""

    def __init__(self, client: httpx.AsyncClient, url: str, params: dict[str, Any]) -> None:
        self.events: list[tuple[str, Any]] = []
        """Event and parsed data; data that is no JSON as it came."""
        self.value: Any = None
        """The listened node, as its client knows it: arrays as objects, nothing empty."""
        self.headers: httpx.Headers = httpx.Headers()
        self._news = asyncio.Condition()
        self._reader = asyncio.create_task(self._read(client, url, params))

    async def until(self, condition: Callable[["EventStream"], bool]) -> None:
        """Wait for an event that makes the condition true."""

        def over() -> bool:
            if self._reader.done() and not condition(self):
                self._reader.result()
                raise AssertionError(f"the stream ended after {self.events}")
            return condition(self)

        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(over)

    async def next_change(self, count: int = 1) -> list[tuple[str, Any]]:
        """Wait for the next puts and patches after those that were taken before; they are taken now."""
        await self.until(lambda stream: len(stream.changes) >= count)
        taken, self._taken = self.changes[:count], self._taken + count
        return taken

    _taken = 0

    @property
    def changes(self) -> list[tuple[str, Any]]:
        """The puts and patches that were not taken."""
        return [event for event in self.events if event[0] in ("put", "patch")][self._taken :]

    async def ended(self) -> None:
        """Wait for the end of the response; raises what it ended with."""
        await asyncio.wait_for(asyncio.shield(self._reader), WAIT_S)

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _read(self, client: httpx.AsyncClient, url: str, params: dict[str, Any]) -> None:
        headers = {"Accept": "text/event-stream"}
        try:
            async with client.stream("GET", url, params=params, headers=headers, timeout=WAIT_S) as response:
                response.raise_for_status()
                self.headers = response.headers
                text = b""
                async for chunk in response.aiter_bytes():  # aiter_lines() would break lines at U+2028
                    *messages, text = (text + chunk).split(b"\n\n")
                    async with self._news:
                        for message in messages:
                            event, _, data = message.decode().partition("\n")
                            self._fold(event.removeprefix("event: "), data.removeprefix("data: "))
                        self._news.notify_all()
        finally:
            async with self._news:
                self._news.notify_all()

    def _fold(self, event: str, text: str) -> None:
        if event not in ("put", "patch"):
            self.events.append((event, text))
            return
        data = json.loads(text)
        self.events.append((event, data))
        path = [key for key in data["path"].split("/") if key]
        if event == "put":
            self.value = put(self.value, path, data["data"])
        else:
            for key, value in data["data"].items():
                self.value = put(self.value, [*path, *key.split("/")], value)


def put(tree: Any, path: list[str], value: Any) -> Any:
    """What a client holds after it was told of a value at a path."""
    if not path:
        return without_gaps(value)
    children = dict(tree) if isinstance(tree, dict) else {}
    child = put(children.pop(path[0], None), path[1:], value)
    if child is not None:
        children[path[0]] = child
    return children or (None if isinstance(tree, dict) else tree)


def without_gaps(value: Any) -> Any:
    """Arrays as objects; no nulls, nothing empty."""
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    if isinstance(value, dict):
        cleaned = {key: without_gaps(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item is not None} or None
    return value
