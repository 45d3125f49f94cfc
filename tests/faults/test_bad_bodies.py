"""Row 25: bodies, frames, queries and headers that make no sense. Each is refused, or understood as it was meant."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

import httpx
import pytest
import uvicorn
from faults.fleet import TOKEN, Replica
from faults.victim import complaints, victim
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from callboard_local.fault_figures import Fault

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

BODIES = 10_000
MIB = 1_048_576
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
REFUSALS = {"INVALID_ARGS", "METHOD_NOT_FOUND"}


def call(value: bytes) -> bytes:
    """A call of ECHO.echo with this JSON text as its argument."""
    return b'{"method": "ECHO.echo", "args": [' + value + b"]}"


def filled(start: bytes, middle: bytes, end: bytes, size: int = MIB) -> bytes:
    return start + middle * ((size - len(start) - len(end)) // len(middle)) + end


DEEP = b"[" * 100_000 + b"]" * 100_000
REFUSED = {
    "100,000 deep": call(DEEP),
    "100,000 objects deep": call(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "4,301 digits": call(b"9" * 4_301),
    "NaN": call(b"NaN"),
    "Infinity": call(b"Infinity"),
    "-Infinity": call(b"-Infinity"),
    "1e400": call(b"1e400"),
    "-1e400": call(b"-1e400"),
    "65 bits": call(b"18446744073709551616"),
    "a key twice": call(b'{"uid": "me", "uid": "victim"}'),
    "a key twice, once escaped": call(b'{"uid": 1, "\\u0075id": 2}'),
    "the method twice": b'{"method": "ECHO.echo", "args": [1], "method": "REGISTRY.get_user"}',
    "a lone surrogate": call(b'"\\ud800"'),
    "two surrogates in the wrong order": call(b'"\\udc00\\ud800"'),
    "a surrogate in UTF-8": call(b'"\xed\xa0\x80"'),
    "a raw NUL": call(b'"\x00"'),
    "overlong UTF-8": call(b'"\xc0\xaf"'),
    "invalid UTF-8": call(b'"\xff"'),
    "UTF-16": call(b"1").decode().encode("utf-16"),
    "UTF-16 without a mark": call(b"1").decode().encode("utf-16-le"),
    "UTF-32": call(b"1").decode().encode("utf-32"),
    "UTF-8 with a mark": b"\xef\xbb\xbf" + call(b"1"),
    "a trailing comma": call(b"1,"),
    "single quotes": b"{'method': 'ECHO.echo'}",
    "a comment": b'/* */ {"method": "ECHO.echo", "args": [1]}',
    "two values": call(b"1") * 2,
    "half of it": call(b'"a"')[:-4],
    "nothing": b"",
    "a string": b'"ECHO.echo"',
    "an integer for a text": b'{"method": "ECHO.typed", "kwargs": {"number": 1, "text": 2}}',
    "a bool for an integer": b'{"method": "ECHO.typed", "kwargs": {"number": true}}',
    "an integer for a bool": b'{"method": "ECHO.typed", "kwargs": {"number": 1, "flag": 1}}',
    "a float for an integer": b'{"method": "ECHO.typed", "kwargs": {"number": 1.0}}',
    "text for an integer": b'{"method": "ECHO.typed", "kwargs": {"number": "1"}}',
    "an argument named __class__": b'{"method": "ECHO.typed", "kwargs": {"number": 1, "__class__": "x"}}',
    "an argument named self": b'{"method": "ECHO.typed", "kwargs": {"number": 1, "self": "x"}}',
    "the method __init__": b'{"method": "ECHO.__init__", "args": []}',
    "the method open": b'{"method": "ECHO.open", "args": []}',
    "a method of 1 MB": filled(b'{"method": "ECHO.', b"a", b'"}'),
    "a key of 1 MB as an argument": filled(b'{"method": "ECHO.typed", "kwargs": {"number": 1, "', b"k", b'": 1}}'),
    "1 MiB of brackets": b"[" * MIB,
    "1 MiB of braces": b'{"a":' * (MIB // 5),
    "1 MiB of a key twice": filled(b'{"method": "ECHO.echo", "args": [[', b'{"a":1,"a":2},', b"0]]}"),
    "1 MiB of digits": filled(call(b"")[:-2], b"9", b"]}"),
    "1 MiB of quotes": b'"' * MIB,
    "1 MiB of backslashes": filled(call(b"")[:-2] + b'"', b"\\", b'"]}'),
    "1 MiB of NaN": filled(call(b"")[:-2], b"NaN,", b"1]}"),
    "1 MiB of invalid UTF-8": filled(call(b"")[:-2] + b'"', b"\xff", b'"]}'),
    "1 MiB of NUL": b"\x00" * MIB,
    "1 MiB of 1e308": filled(call(b"")[:-2] + b"[", b"1e308,", b"1]]}"),
    "1 MiB of 5e-324": filled(call(b"")[:-2] + b"[", b"5e-324,", b"1]]}"),
    "1 MiB of arguments": filled(call(b"")[:-2], b"1,", b"1]}"),
}
UNDERSTOOD = {
    "NUL, escaped": call(b'"\\u0000"'),
    "2^53 + 1": call(b"9007199254740993"),
    "64 bits": call(b"[18446744073709551615, -9223372036854775808]"),
    "floats at the edge": call(b"[1e308, -1e308, 5e-324, 1.7976931348623157e308, -0.0]"),
    "a float that is none to the last digit": call(b"0.1000000000000000055511151231257827021181583404541015625"),
    "pairs of surrogates": call(b'"\\ud83d\\ude00"'),
    "__class__ and its like": call(b'{"__class__": "os.system", "__proto__": {"a": 1}, "py/object": "x", "$op": 1}'),
    "an empty key": call(b'{"": {"": [{"": null}]}}'),
    "200 deep": call(b"[" * 200 + b"]" * 200),
    "a key of 1 MB": filled(call(b"")[:-2] + b'{"', b"k", b'": 1}]}'),
    "1 MiB of text": filled(call(b"")[:-2] + b'"', b"a", b'"]}'),
    "1 MiB of 1e100": filled(call(b"")[:-2] + b"[", b"1e100,", b"1]]}"),
    "1 MiB of 1e308 as text": filled(call(b"")[:-2] + b"[", b'"1e308",', b"1]]}"),
    "1 MiB of integers": filled(call(b"")[:-2] + b"[", b"9007199254740993,", b"1]]}"),
    "1 MiB of objects": filled(call(b"")[:-2] + b"[", b'{"a":1},', b"1]]}"),
    "1 MiB of line ends": filled(call(b"")[:-2], b"\n", b"1]}"),
}


class Stranger:
    """One kept connection that sends what it likes, and keeps count of the answers."""

    def __init__(self, replica: Replica) -> None:
        self.codes: Counter[str] = Counter()
        self.problems: list[str] = []
        self.slowest_s = 0.0
        self._address = "127.0.0.1", replica.port
        self._connection = http.client.HTTPConnection(*self._address, timeout=30)

    def close(self) -> None:
        self._connection.close()

    def send(self, body: bytes, path: str = "/rpc", **headers: str) -> tuple[int, dict[str, Any]]:
        began = time.monotonic()
        self._connection.request(
            "POST", path, body, {**HEADERS, **{k.replace("_", "-"): v for k, v in headers.items()}}
        )
        answer = self._connection.getresponse()
        reply = json.loads(answer.read())
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        code = "OK" if reply["ok"] else reply["error"]["code"]
        self.codes[code] += 1
        if answer.status >= 500 or code not in {"OK", *REFUSALS} or "Traceback" in json.dumps(reply):
            self.problems.append(f"{path} {body!r:.300} {headers}: {answer.status} {code}")
        return answer.status, reply

    def echo(self, body: bytes) -> None:
        """Send a body; what comes back, if it is accepted, is what any reader of JSON would have read."""
        _, reply = self.send(body)
        if reply["ok"]:
            sent = json.loads(body)
            given = [*sent.get("args", []), *sent.get("kwargs", {}).values()]
            if sent["method"] == "ECHO.echo" and [reply["data"]] != given:
                self.problems.append(f"{body!r:.300} came back as {reply['data']!r:.100}")


@asynccontextmanager
async def stranger_to(replica: Replica) -> AsyncIterator[Stranger]:
    with closing(Stranger(replica)) as stranger:
        yield stranger


@asynccontextmanager
async def watched(replica: Replica) -> AsyncIterator[list[float]]:
    """How long /healthz took, again and again: it answers from memory, so this is how late the loop was."""
    times: list[float] = []

    async def look() -> None:
        async with httpx.AsyncClient(base_url=replica.url, timeout=30) as client:
            while True:
                began = time.monotonic()
                assert (await client.get("/healthz")).status_code == 200
                times.append(time.monotonic() - began)
                await asyncio.sleep(0.01)

    task = asyncio.create_task(look())
    try:
        yield times
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled(), "a healthy request failed"


def p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


# -- what hypothesis makes up

TEXT = st.text(st.characters(), max_size=30)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats() | TEXT
    | st.sampled_from(["__class__", "ECHO.echo", "demo", "\0", "\ud800", "$op"])
)  # fmt: skip
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
METHODS = st.sampled_from(["ECHO.echo"] * 6 + ["ECHO.typed", "REGISTRY.get_user", "ECHO.nothing", "echo.echo", "ECHO."])
ENVELOPES = st.fixed_dictionaries(
    {"method": METHODS | TEXT},
    optional={
        "args": st.lists(VALUES, max_size=2) | VALUES,
        "kwargs": st.dictionaries(st.sampled_from(["value", "number", "text", "__class__"]) | TEXT, VALUES, max_size=3),
        "user_id": st.just("demo") | LEAVES,
        "timeout_ms": st.integers(1, 10_000) | LEAVES,
        "trace_id": LEAVES,
        "session_id": LEAVES,
        "api_version": st.just("v1") | LEAVES,
    },
)


ECHOES = VALUES.map(lambda value: {"method": "ECHO.echo", "args": [value]})
ENCODINGS = st.sampled_from(["utf-8"] * 12 + ["utf-16", "utf-32", "utf-8-sig", "latin-1"])
SPLINTERS = st.binary(max_size=3) | st.sampled_from([b'"', b"}", b"NaN", b"\\", b"1e999", b"\x00"])
QUIET: dict[str, Any] = {
    "deadline": None, "database": None, "phases": [Phase.generate], "suppress_health_check": list(HealthCheck),
}  # fmt: skip


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Envelopes, whole or damaged, in the right encoding or another; or any bytes at all."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=200))
    text = json.dumps(
        draw(VALUES if kind == 1 else ENVELOPES if kind < 7 else ECHOES), ensure_ascii=draw(st.booleans())
    )
    encoding = draw(ENCODINGS)
    body = text.encode(encoding, "surrogatepass" if kind % 2 and encoding != "latin-1" else "replace")
    if draw(st.integers(0, 3)) == 0:
        at, cut = draw(st.integers(0, len(body))), draw(st.integers(0, 3))
        body = body[:at] + draw(SPLINTERS) + body[at + cut :]
    return body


def made_up(send: Callable[[bytes], None], count: int) -> None:
    @settings(max_examples=count, **QUIET)
    @given(bodies())
    def one(body: bytes) -> None:
        send(body)

    one()


@pytest.mark.fault(row=25)
async def test_ten_thousand_bodies_that_hypothesis_makes_up(fault: Fault) -> None:
    async with victim() as replica, stranger_to(replica) as stranger:
        await asyncio.to_thread(made_up, stranger.echo, 300)  # warm
        before = replica.cost.rss
        async with watched(replica) as times:
            await asyncio.to_thread(made_up, stranger.echo, BODIES)
        grown = (replica.cost.rss - before) / 2**20
        fault.figure(
            bodies=stranger.codes.total(), understood=stranger.codes["OK"], server_errors=len(stranger.problems),
            rss_grown_mib=grown, healthz_p99_s=p99(times), healthz_max_s=max(times),
        )  # fmt: skip
        assert stranger.problems == []
        assert complaints(replica) == []
        assert stranger.codes.total() >= BODIES
        assert stranger.codes["OK"] > BODIES / 50
        assert grown < 32


@pytest.mark.fault(row=25)
async def test_the_known_bad_bodies_and_1_mib_of_each(fault: Fault) -> None:
    async with victim() as replica, stranger_to(replica) as stranger:
        before = replica.cost.rss

        def send_all() -> tuple[dict[str, Any], dict[str, Any]]:
            accepted = {name: reply for name, body in REFUSED.items() if (reply := stranger.send(body)[1])["ok"]}
            refused = {name: reply for name, body in UNDERSTOOD.items() if not (reply := stranger.send(body)[1])["ok"]}
            for body in UNDERSTOOD.values():
                stranger.echo(body)
            return accepted, refused

        async with watched(replica) as times:
            accepted, refused = await asyncio.to_thread(send_all)
            once = replica.cost.rss
            for _ in range(3):
                await asyncio.to_thread(send_all)
        fault.figure(
            bodies=stranger.codes.total(), server_errors=len(stranger.problems), rss_first_mib=(once - before) / 2**20,
            rss_grown_mib=(replica.cost.rss - once) / 2**20, slowest_s=stranger.slowest_s, healthz_p99_s=p99(times),
            healthz_max_s=max(times),
        )  # fmt: skip
        assert accepted == {}
        assert refused == {}
        assert stranger.problems == []
        assert complaints(replica) == []
        assert replica.cost.rss - once < 64 * MIB


@pytest.mark.fault(row=25)
async def test_headers_and_the_short_form(fault: Fault) -> None:
    async with victim() as replica, stranger_to(replica) as stranger:

        def send_all() -> None:
            latin = st.text(st.characters(min_codepoint=1, max_codepoint=255, exclude_characters="\r\n"), max_size=40)

            @settings(
                max_examples=1_500,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(
                st.sampled_from(["X_User_Id", "X_Session_Id", "X_Timeout_Ms", "Idempotency_Key", "traceparent"]),
                latin.map(str.strip), VALUES,
            )  # fmt: skip
            def one(name: str, value: str, argument: Any) -> None:
                body = json.dumps({"value": argument}).encode("utf-8", "replace")
                try:
                    stranger.send(body, "/rpc/ECHO.echo", **{name: value})
                except http.client.BadStatusLine:
                    raise AssertionError(f"no answer to {name}: {value!r}") from None

            one()

        await asyncio.to_thread(send_all)
        fault.figure(
            calls=stranger.codes.total(), understood=stranger.codes["OK"], server_errors=len(stranger.problems)
        )
        assert stranger.problems == []
        assert [line for line in complaints(replica) if "Invalid HTTP request" not in line] == []
        assert stranger.codes["OK"] > 50


TICKET = '{"type": "auth.ticket", "payload": '
FRAMES = [
    "", "{", "[]", "null", "{}", '{"type": 3}', '{"type": "auth.ticket"}', TICKET + '{"ticket": ' + "[" * 20_000,
    TICKET + '{"ticket": "\\ud800"}}', TICKET + '{"ticket": "a.b.c"}}', TICKET + '{"ticket": "' + "e" * 60_000 + '"}}',
    TICKET + "NaN}", TICKET + "9" * 5_000 + "}", '{"type": "auth.firebase_token", "payload": {"token": "x", "uid": 3}}',
    '{"type": "auth.firebase_token", "payload": {"token": "x"}}', '{"type": "__class__", "payload": {}}', "[" * 60_000,
    "\x00", "é" * 30_000,
]  # fmt: skip
QUERIES = [
    "", "uid=", "uid=demo&uid=eve", "uid=%00", "uid=%ff", "uid=me%0a", "uid=*", "uid=user:eve", "uid=a/b", "uid[]=demo",
    "uid=" + "a" * 129, "uid=demo&space_code=a", "uid=demo&mode=all&space_code=a&thread_key=b", "uid=%EF%BC%81",
    "uid=demo&" + "&".join(f"a{n}=1" for n in range(60)), "uid=demo&x=" + "a" * 5_000, "%75id=demo&uid=eve", ";uid=a",
]  # fmt: skip


@pytest.mark.fault(row=25)
async def test_first_frames_later_frames_and_queries(fault: Fault) -> None:
    closes: Counter[int] = Counter()

    async def close_code(url: str, frames: list[str | bytes], **options: Any) -> None:
        async with connect(url, **options) as socket:
            try:
                for frame in frames:
                    await socket.send(frame)
                async with asyncio.timeout(30):
                    while True:
                        await socket.recv()
            except ConnectionClosed:
                closes[socket.close_code or 0] += 1

    async with victim() as replica:
        rng = random.Random(25)
        noise: list[str | bytes] = [rng.randbytes(rng.randrange(200)) for _ in range(50)]
        before = replica.cost.rss
        async with watched(replica) as times:
            for frame in [*FRAMES, *noise]:
                await close_code(f"{replica.ws_url}?uid=demo", [frame])
            refused_frames = closes.total()
            assert set(closes) <= {3500, 3501}
            for query in QUERIES:
                await close_code(f"{replica.ws_url}?{query}", [], additional_headers=HEADERS)
            assert set(closes) == {3500, 3501}
            # Later ones: what is no ping is heard and ignored, and ends nothing; a binary one does.
            async with connect(f"{replica.ws_url}?uid=demo", additional_headers=HEADERS) as socket:
                for frame in FRAMES:
                    await socket.send(frame)
                await socket.send('{"type": "ping"}')
                async with asyncio.timeout(30):
                    while json.loads(await socket.recv())["type"] != "pong":
                        pass
                await socket.send(b"\x00")
                await socket.wait_closed()
                assert socket.close_code == 3501
        fault.figure(
            first_frames=refused_frames, queries=len(QUERIES), closed_3500=closes[3500], closed_3501=closes[3501],
            rss_grown_mib=(replica.cost.rss - before) / 2**20, healthz_max_s=max(times),
        )  # fmt: skip
        assert complaints(replica) == []


@pytest.mark.fault(row=25, control=True)
async def test_a_plain_service_fails_or_misunderstands(fault: Fault) -> None:
    """The same bodies, to Starlette with `json.loads` and a dictionary of functions, on the same server."""

    async def rpc(request: Request) -> JSONResponse:
        called = json.loads(await request.body())
        return JSONResponse({"ok": True, "data": {"ECHO.echo": lambda value: value}[called["method"]](*called["args"])})

    config = uvicorn.Config(
        Starlette(routes=[Route("/rpc", rpc, methods=["POST"])]), port=0, log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    statuses: Counter[str] = Counter()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client:
            for body in REFUSED.values():
                answer = await client.post("/rpc", content=body)
                statuses["failed" if answer.status_code >= 500 else "accepted"] += 1
            twice = (await client.post("/rpc", content=REFUSED["a key twice"])).json()
            mark = (await client.post("/rpc", content=REFUSED["UTF-16"])).json()
    finally:
        server.should_exit = True
        await task
    fault.figure(server_errors=statuses["failed"], accepted=statuses["accepted"])
    assert statuses["failed"] > 20
    assert twice["data"] == {"uid": "victim"}
    assert mark["data"] == 1
