"""Event streams as they come over the wire: relative paths, queries, keep-alives, ends, faults, a thousand at once."""

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from callboard_local import RealtimeProcess

pytestmark = pytest.mark.anyio

StreamOf = Callable[..., Any]
OpenStream = Callable[[RealtimeProcess, str], Awaitable[asyncio.StreamReader]]
BY_N = '"n"'
BY_KEY = '"$key"'


def event(name: str, path: str, data: Any) -> tuple[str, Any]:
    return name, {"path": path, "data": data}


async def test_it_is_an_event_stream(rest: httpx.AsyncClient, stream_of: StreamOf) -> None:
    stream = stream_of(rest, "/a.json")
    assert await stream.next_change() == [event("put", "/", None)]
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["cache-control"] == "no-cache"


async def test_paths_are_relative_to_the_listened_node(rest: httpx.AsyncClient, stream_of: StreamOf) -> None:
    await rest.put("/a/b/c.json", json="ü\n\u2028")
    stream = stream_of(rest, "/a/b.json")
    assert await stream.next_change() == [event("put", "/", {"c": "ü\n\u2028"})]
    await rest.put("/a/b/d/e.json", json=1)
    assert await stream.next_change() == [event("put", "/d/e", 1)]
    await rest.patch("/a/b/d.json", json={"f/g": 2, "e": None, "none": None})
    assert await stream.next_change() == [event("patch", "/d", {"f/g": 2, "e": None, "none": None})]
    await rest.patch("/.json", json={"a/b/c": 3, "a/b/d": {"x": [1]}, "else": 4})
    assert await stream.next_change() == [event("patch", "/", {"c": 3, "d": {"x": [1]}})]
    assert stream.value == {"c": 3, "d": {"x": {"0": 1}}}


async def test_writes_above_replace_what_is_known(rest: httpx.AsyncClient, stream_of: StreamOf) -> None:
    await rest.put("/.json", json={"a": {"b": {"c": 1}, "x": 2}})
    stream = stream_of(rest, "/a/b.json")
    await stream.next_change()
    await rest.put("/a.json", json={"b": {"c": 5}})
    assert await stream.next_change() == [event("put", "/", {"c": 5})]
    await rest.patch("/a.json", json={"b": {"d": 6}, "y": 1})
    assert await stream.next_change() == [event("put", "/", {"d": 6})]
    await rest.delete("/a.json")
    assert await stream.next_change() == [event("put", "/", None)]
    await rest.put("/a.json", json="scalar")  # nothing is there before and after
    await rest.put("/.json", json={"a": {"b": "back"}})
    assert await stream.next_change() == [event("put", "/", "back")]
    await rest.put("/a.json", json="scalar")
    assert await stream.next_change() == [event("put", "/", None)]


async def test_a_scalar_gets_children(rest: httpx.AsyncClient, stream_of: StreamOf) -> None:
    await rest.put("/a.json", json=5)
    stream = stream_of(rest, "/a.json")
    await stream.next_change()
    await rest.put("/a/b/c.json", json=1)
    assert await stream.next_change() == [event("put", "/b/c", 1)]
    assert stream.value == {"b": {"c": 1}}


async def test_priorities_are_heard_with_an_export_alone(rest: httpx.AsyncClient, stream_of: StreamOf) -> None:
    plain, export = stream_of(rest, "/a.json"), stream_of(rest, "/a.json", format="export")
    await plain.next_change()
    await export.next_change()
    await rest.put("/a.json", json={".value": 1, ".priority": 2})
    assert await plain.next_change() == [event("put", "/", 1)]
    assert await export.next_change() == [event("put", "/", {".priority": 2, ".value": 1})]
    await rest.put("/a/.priority.json", json=3)
    assert await export.next_change() == [event("put", "/.priority", 3)]
    await rest.put("/a.json", json=2)
    assert await plain.next_change() == [event("put", "/", 2)]


async def test_a_full_window_takes_the_new_and_lets_the_old_go_at_once(
    rest: httpx.AsyncClient, stream_of: StreamOf
) -> None:
    await rest.put("/m.json", json={key: {"n": n} for n, key in enumerate("abcde")})
    stream = stream_of(rest, "/m.json", orderBy=BY_KEY, limitToLast=2)
    assert await stream.next_change() == [event("put", "/", {"d": {"n": 3}, "e": {"n": 4}})]
    await rest.put("/m/f.json", json={"n": 5})
    assert await stream.next_change() == [event("patch", "/", {"d": None, "f": {"n": 5}})]
    await rest.delete("/m/f.json")
    assert await stream.next_change() == [event("patch", "/", {"f": None, "d": {"n": 3}})]
    await rest.put("/m/a/n.json", json=9)  # outside
    await rest.put("/m/d/read.json", json=True)
    assert await stream.next_change() == [event("put", "/d/read", True)]
    await rest.patch("/m/d.json", json={"read": False, "x": 1})
    assert await stream.next_change() == [event("put", "/d", {"n": 3, "read": False, "x": 1})]
    await rest.put("/m.json", json={"z": 1})
    assert await stream.next_change() == [event("put", "/", {"z": 1})]
    await rest.put("/m/y.json", json=2)
    assert await stream.next_change() == [event("put", "/y", 2)]
    await rest.delete("/m.json")
    assert await stream.next_change() == [event("put", "/", None)]


async def test_children_enter_and_leave_a_range(rest: httpx.AsyncClient, stream_of: StreamOf) -> None:
    stream = stream_of(rest, "/m.json", orderBy=BY_N, startAt=10)
    assert await stream.next_change() == [event("put", "/", None)]
    await rest.put("/m.json", json={"a": {"n": 1}})
    await rest.put("/m/b.json", json={"n": 10, "t": "b"})
    assert await stream.next_change() == [event("put", "/", {"b": {"n": 10, "t": "b"}})]
    await rest.put("/m/a/n.json", json=11)
    assert await stream.next_change() == [event("put", "/a", {"n": 11})]
    await rest.put("/m/b/n.json", json=9)
    assert await stream.next_change() == [event("put", "/b", None)]
    await rest.patch("/m.json", json={"a/n": 0, "b/n": 20, "c": {"n": 30}})
    assert await stream.next_change() == [event("patch", "/", {"a": None, "b": {"n": 20, "t": "b"}, "c": {"n": 30}})]


async def test_queries_of_one_and_of_true_are_not_the_same(rest: httpx.AsyncClient, stream_of: StreamOf) -> None:
    await rest.put("/m.json", json={"one": 1, "yes": True})
    one = stream_of(rest, "/m.json", orderBy='"$value"', equalTo="1")
    yes = stream_of(rest, "/m.json", orderBy='"$value"', equalTo="true")
    assert await one.next_change() == [event("put", "/", {"one": 1})]
    assert await yes.next_change() == [event("put", "/", {"yes": True})]
    await rest.put("/m/more.json", json=True)
    assert await yes.next_change() == [event("put", "/more", True)]


async def test_a_stream_may_be_refused_for_its_query(rest: httpx.AsyncClient) -> None:
    response = await rest.get("/m.json", params={"limitToFirst": 1}, headers={"Accept": "text/event-stream"})
    assert response.status_code == 400


# -- ends and faults


@pytest.fixture
async def own(own_realtime: RealtimeProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=f"http://{own_realtime.address}", params={"ns": "demo"}, limits=httpx.Limits(max_connections=None)
    ) as client:
        yield client


async def until_open(server: RealtimeProcess, count: int, **place: str) -> None:
    async with asyncio.timeout(20):
        while (await server.control("streams", ns="demo", **place))["streams"] != count:
            pass  # each look is a request


async def test_keep_alives_come_as_often_as_wanted_and_not_at_all(
    own: httpx.AsyncClient, own_realtime: RealtimeProcess, stream_of: StreamOf
) -> None:
    stream = stream_of(own, "/a.json")
    await stream.next_change()
    assert stream.events[1:] == []
    await own_realtime.control("keep_alive", seconds=0.01)
    await stream.until(lambda stream: stream.events.count(("keep-alive", "null")) >= 3)
    await own_realtime.control("keep_alive", seconds=None)
    await own.put("/a.json", json=1)
    await stream.next_change()
    mute = len(stream.events)
    await asyncio.gather(*(own.put("/b.json", json=n) for n in range(100)))  # ten intervals and more
    assert len(stream.events) == mute


async def test_cancel_and_auth_revoked(
    own: httpx.AsyncClient, own_realtime: RealtimeProcess, stream_of: StreamOf
) -> None:
    streams = {path: stream_of(own, f"{path}.json") for path in ("/a", "/a/b", "/c")}
    for stream in streams.values():
        await stream.next_change()
    assert await own_realtime.control("streams", ns="demo") == {"streams": 3, "paths": dict.fromkeys(streams, 1)}
    assert await own_realtime.control("cancel", ns="demo", path="/a/b") == {"streams": 1}
    await streams["/a/b"].until(lambda stream: ("cancel", "null") in stream.events)
    assert await own_realtime.control("auth_revoked", ns="demo", path="/a", close=False) == {"streams": 2}
    revoked = ("auth_revoked", "credential is no longer valid")
    await streams["/a"].until(lambda stream: revoked in stream.events)
    await own.put("/.json", json={"a": {"b": 1}, "c": 2})
    assert await streams["/c"].next_change() == [event("put", "/", 2)]
    assert streams["/a/b"].events[1:] == [("cancel", "null")]
    assert streams["/a"].events[1:] == [revoked]
    await own_realtime.control("cancel", ns="demo", path="/c", data='"denied"', close=True)
    await streams["/c"].ended()
    assert streams["/c"].events[-1] == ("cancel", '"denied"')
    await until_open(own_realtime, 2)


async def test_a_mute_stream_is_open_and_dead(
    own: httpx.AsyncClient, own_realtime: RealtimeProcess, stream_of: StreamOf
) -> None:
    await own_realtime.control("keep_alive", seconds=0.01)
    mute, other = stream_of(own, "/a.json"), stream_of(own, "/b.json")
    for stream in (mute, other):
        await stream.until(lambda stream: ("keep-alive", "null") in stream.events)
    assert await own_realtime.control("mute", ns="demo", path="/a") == {"streams": 1}
    await own.put("/.json", json={"a": 1, "b": 2})
    await other.until(lambda stream: stream.value == 2 and stream.events[-1][0] == "keep-alive")
    heard = [len(mute.events), len(other.events)]  # with all that was on its way
    await other.until(lambda stream: len(stream.events) > heard[1] + 20)
    assert len(mute.events) == heard[0]
    assert mute.value is None
    assert (await own_realtime.control("streams", ns="demo"))["streams"] == 2


async def test_dropped_and_ended_streams(
    own: httpx.AsyncClient, own_realtime: RealtimeProcess, stream_of: StreamOf
) -> None:
    dropped, ended = stream_of(own, "/a.json"), stream_of(own, "/b.json")
    await dropped.next_change()
    await ended.next_change()
    assert await own_realtime.control("drop", ns="demo", path="/a") == {"streams": 1}
    with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
        await dropped.ended()
    assert await own_realtime.control("end", ns="demo", path="/b") == {"streams": 1}
    await ended.ended()
    await until_open(own_realtime, 0)


async def test_refusals_are_counted(own: httpx.AsyncClient, own_realtime: RealtimeProcess) -> None:
    await own_realtime.control("refuse", ns="demo", path="/a", status=503, count=2, headers={"Retry-After": "7"})
    assert (await own.get("/b.json")).status_code == 200
    for _ in range(2):
        response = await own.put("/a/b.json", json=1)
        assert (response.status_code, response.headers["retry-after"]) == (503, "7")
        assert "error" in response.json()
    assert (await own.get("/a.json")).json() is None
    await own_realtime.control("refuse", ns="demo", path="/a", status=401, count=5, streams_only=True)
    assert (await own.put("/a.json", json=1)).status_code == 200
    assert (await own.get("/a.json", headers={"Accept": "text/event-stream"})).status_code == 401
    await own_realtime.control("refuse", ns="demo", path="/a", status=401, count=0)
    assert (await own_realtime.control("streams", ns="demo"))["streams"] == 0


async def test_a_redirect(own: httpx.AsyncClient, own_realtime: RealtimeProcess, stream_of: StreamOf) -> None:
    await own.put("/b.json", json="there")
    location = f"http://{own_realtime.address}/b.json?ns=demo"
    await own_realtime.control("refuse", ns="demo", path="/a", status=307, headers={"Location": location})
    own.follow_redirects = True
    assert await stream_of(own, "/a.json").next_change() == [event("put", "/", "there")]


@pytest.mark.parametrize(
    ("action", "options"),
    [
        ("nonsense", {}),
        ("drop", {"nonsense": 1}),
        ("refuse", {}),
        ("refuse", {"status": 200}),
        ("keep_alive", {"seconds": 0}),
        ("cancel", {"path": "a.b"}),
        ("cancel", {"path": 5}),
        ("drop", {"ns": "no name"}),
    ],
)
async def test_faults_that_nobody_knows_are_refused(
    own_realtime: RealtimeProcess, action: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):
        await own_realtime.control(action, **options)
    assert (await own_realtime.control("streams"))["streams"] == 0


@pytest.fixture
async def narrow() -> AsyncIterator[tuple[RealtimeProcess, httpx.AsyncClient]]:
    """A server whose streams may have 64 KiB waiting, and a client of it."""
    async with (
        RealtimeProcess(max_pending_bytes=64 * 1024) as server,
        httpx.AsyncClient(base_url=f"http://{server.address}", params={"ns": "demo", "print": "silent"}) as client,
    ):
        yield server, client


@pytest.fixture
async def open_stream() -> AsyncIterator[OpenStream]:
    """Opens streams on bare sockets, of which the first event was read: `reader = await open_stream(server, "/a")`."""
    writers = []

    async def start(server: RealtimeProcess, path: str) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection(server.host, server.port, limit=2**20)
        writers.append(writer)
        writer.write(f"GET {path}.json?ns=demo HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode())
        await reader.readuntil(b'{"path":"/","data":null}\n\n')
        return reader

    yield start
    for writer in writers:
        writer.close()


async def next_data(reader: asyncio.StreamReader) -> Any:
    await reader.readuntil(b"data: ")
    return json.loads(await reader.readuntil(b"\n\n"))


TEXT = "x" * 50_000
MANY = 1_000  # times the text: no pair of sockets holds that


async def test_a_reader_that_does_not_read_is_dropped_and_the_writers_do_not_wait(
    narrow: tuple[RealtimeProcess, httpx.AsyncClient], open_stream: OpenStream
) -> None:
    server, client = narrow
    reader = await open_stream(server, "/a")
    writes = 0
    while (await server.control("streams", ns="demo"))["streams"]:
        writes += 1
        assert writes < MANY, "it is kept for ever"
        assert (await client.put("/a.json", json=f"{writes}{TEXT}")).status_code == 204
    assert (await client.get("/a.json", params={"print": ""})).json() == f"{writes}{TEXT}"
    heard = await reader.read()  # to the end: the connection is cut, what had not left is gone
    assert len(heard) < writes * len(TEXT)


async def test_a_reader_that_reads_is_kept(
    narrow: tuple[RealtimeProcess, httpx.AsyncClient], open_stream: OpenStream
) -> None:
    """The negative control: the same writes, read."""
    server, client = narrow
    reader = await open_stream(server, "/a")
    for write in range(MANY):
        await client.put("/a.json", json=f"{write}{TEXT}")
        assert await next_data(reader) == {"path": "/", "data": f"{write}{TEXT}"}
    assert (await server.control("streams", ns="demo"))["streams"] == 1


async def test_one_event_may_be_larger_than_what_may_wait(
    narrow: tuple[RealtimeProcess, httpx.AsyncClient], open_stream: OpenStream
) -> None:
    server, client = narrow
    reader = await open_stream(server, "/a")
    await client.put("/a.json", json=list(TEXT))
    assert len((await next_data(reader))["data"]) == len(TEXT)


STREAMS = 1_000


async def test_a_thousand_streams_hear_each_their_own_and_all_the_same(
    own_realtime: RealtimeProcess, open_stream: OpenStream
) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    paths = [f"/own/{number}" if number % 2 else "/all" for number in range(STREAMS)]
    readers = await asyncio.gather(*(open_stream(own_realtime, path) for path in paths))
    await until_open(own_realtime, STREAMS)
    async with httpx.AsyncClient(base_url=f"http://{own_realtime.address}", params={"ns": "demo"}) as client:
        await client.put("/own.json", json={str(number): number for number in range(1, STREAMS, 2)})
        await client.put("/all/x.json", json="same")
    heard = await asyncio.gather(*(next_data(reader) for reader in readers))
    assert heard[1::2] == [{"path": "/", "data": number} for number in range(1, STREAMS, 2)]
    assert heard[::2] == [{"path": "/x", "data": "same"}] * (STREAMS // 2)
