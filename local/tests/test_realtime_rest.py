"""The REST API beyond what Google's client reaches: parameters, headers, priorities, refusals. Plain HTTP."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from callboard_local import RealtimeProcess
from callboard_local.realtime.app import MAX_BODY_BYTES

pytestmark = pytest.mark.anyio


async def value_of(rest: httpx.AsyncClient, url: str, **params: Any) -> Any:
    response = await rest.get(url, params=params)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_write_answers_with_what_is_there_now(rest: httpx.AsyncClient) -> None:
    put = await rest.put("/a.json", json={"b": [1, None], "c": {}, "n": {".sv": {"increment": 3}}})
    assert (put.status_code, put.json()) == (200, {"b": [1], "n": 3})
    assert put.headers["content-type"] == "application/json; charset=utf-8"
    patched = await rest.patch("/a.json", json={"b/1": 2, "n": {".sv": {"increment": 1}}, "x": None})
    assert (patched.status_code, patched.json()) == (200, {"b/1": 2, "n": 4, "x": None})
    pushed = await rest.post("/a/list.json", json={"m": 1})
    assert (pushed.status_code, list(pushed.json())) == (200, ["name"])
    deleted = await rest.delete("/a.json")
    assert (deleted.status_code, deleted.text) == (200, "null")


async def test_print(rest: httpx.AsyncClient) -> None:
    for method in ("PUT", "PATCH", "POST"):
        silent = await rest.request(method, "/a.json", params={"print": "silent"}, json={"b": 1})
        assert (silent.status_code, silent.content) == (204, b"")
    assert (await rest.get("/a.json", params={"print": "silent"})).status_code == 204
    assert (await rest.delete("/a.json", params={"print": "silent"})).status_code == 204
    await rest.put("/a.json", json={"b": 1})
    assert (await rest.get("/a.json", params={"print": "pretty"})).text == '{\n  "b": 1\n}'
    assert (await rest.get("/a.json")).text == '{"b":1}'


async def test_a_url_may_have_a_slash_before_its_suffix_and_encoded_keys(rest: httpx.AsyncClient) -> None:
    await rest.put("/a/.json", json=1)
    assert await value_of(rest, "/a.json") == 1
    await rest.put("/a/ü%20x.json", json=2)
    assert await value_of(rest, "/a//%C3%BC x.json") == 2
    assert await value_of(rest, "/.json") == {"a": {"ü x": 2}}


async def test_children_come_in_the_order_of_their_keys(rest: httpx.AsyncClient) -> None:
    await rest.put("/.json", json={"b": 1, "10": 2, "a": 3, "9": 4, "\U0001f600": 5, "\uffff": 6})
    assert list(await value_of(rest, "/.json")) == ["9", "10", "a", "b", "\uffff", "\U0001f600"]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "GET"])
async def test_the_method_may_come_in_a_header(rest: httpx.AsyncClient, method: str) -> None:
    await rest.put("/a.json", json={"b": 1})
    response = await rest.post("/a.json", json={"c": 2}, headers={"X-HTTP-Method-Override": method})
    assert response.status_code == 200
    expected = {"PUT": {"c": 2}, "PATCH": {"b": 1, "c": 2}, "DELETE": None, "GET": {"b": 1}}
    assert await value_of(rest, "/a.json") == expected[method]


async def test_etags(rest: httpx.AsyncClient) -> None:
    asked = {"X-Firebase-ETag": "true"}
    assert (await rest.get("/a.json", headers=asked)).headers["etag"] == "null_etag"
    put = await rest.put("/a.json", json=10, headers=asked)
    etag = put.headers["etag"]
    assert (await rest.get("/a.json", headers=asked)).headers["etag"] == etag
    assert "etag" not in (await rest.get("/a.json")).headers
    unchanged = await rest.get("/a.json", headers={"if-none-match": etag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    late = await rest.put("/a.json", json=11, headers={"if-match": "null_etag"})
    assert (late.status_code, late.json(), late.headers["etag"]) == (412, 10, etag)
    kept = await rest.delete("/a.json", headers={"if-match": "null_etag"})
    assert (kept.status_code, kept.json()) == (412, 10)
    done = await rest.put("/a.json", json=11, headers={"if-match": etag})
    assert (done.status_code, done.json()) == (200, 11)
    assert done.headers["etag"] != etag
    gone = await rest.delete("/a.json", headers={"if-match": done.headers["etag"]})
    assert (gone.status_code, gone.headers["etag"]) == (200, "null_etag")
    for method in ("PATCH", "POST"):
        assert (await rest.request(method, "/a.json", json={"b": 1}, headers={"if-match": etag})).status_code == 400
    assert await value_of(rest, "/a.json") is None


async def test_only_one_of_many_conditional_writes_succeeds(rest: httpx.AsyncClient) -> None:
    condition = {"if-match": "null_etag"}
    responses = await asyncio.gather(*(rest.put("/a.json", json=n, headers=condition) for n in range(20)))
    assert sorted(response.status_code for response in responses) == [200] + [412] * 19
    (winner,) = (response.json() for response in responses if response.status_code == 200)
    assert {response.json() for response in responses} == {winner}


async def test_priorities(rest: httpx.AsyncClient) -> None:
    await rest.put("/.json", json={
        "a": {".priority": 2, "x": 1}, "b": {".value": "leaf", ".priority": "high"}, "c": {".value": 5}, "d": {"y": 1},
    })  # fmt: skip
    assert await value_of(rest, "/.json") == {"a": {"x": 1}, "b": "leaf", "c": 5, "d": {"y": 1}}
    assert await value_of(rest, "/.json", format="export") == {
        "a": {".priority": 2, "x": 1}, "b": {".priority": "high", ".value": "leaf"}, "c": 5, "d": {"y": 1},
    }  # fmt: skip
    assert await value_of(rest, "/a/.priority.json") == 2
    await rest.put("/d/.priority.json", json=1)
    await rest.put("/none/.priority.json", json=1)
    await rest.patch("/.json", json={"c/.priority": -1, "a/z": 3})
    by_priority = '"$priority"'
    for count, keys in ((1, {"c"}), (2, {"c", "d"}), (3, {"c", "d", "a"})):
        assert set(await value_of(rest, "/.json", orderBy=by_priority, limitToFirst=count)) == keys
    assert set(await value_of(rest, "/.json", orderBy=by_priority, startAt='"a"')) == {"b"}
    assert set(await value_of(rest, "/.json", orderBy=by_priority, equalTo=2)) == {"a"}
    await rest.put("/a.json", json={"x": 1})
    await rest.delete("/b/.priority.json")
    assert await value_of(rest, "/.json", orderBy=by_priority, equalTo="null") == {"a": {"x": 1}, "b": "leaf"}
    before = (await rest.get("/a.json", headers={"X-Firebase-ETag": "true"})).headers["etag"]
    await rest.put("/a/.priority.json", json=1)
    assert (await rest.get("/a.json", headers={"X-Firebase-ETag": "true"})).headers["etag"] != before


async def test_an_export_has_no_arrays(rest: httpx.AsyncClient) -> None:
    await rest.put("/.json", json={"a": ["x", "y"]})
    assert await value_of(rest, "/.json", format="export") == {"a": {"0": "x", "1": "y"}}


async def test_bounds_that_exclude_and_nulls(rest: httpx.AsyncClient) -> None:
    await rest.put("/.json", json={"a": {"n": 1}, "b": {"n": 2}, "c": {"n": 2}, "d": {"n": 3}, "e": {"m": 0}})

    async def keys(**params: Any) -> str:
        return "".join(await value_of(rest, "/.json", orderBy='"n"', **params))

    assert await keys(startAfter=2) == "d"
    assert await keys(startAt=2) == "bcd"
    assert await keys(endBefore=2) == "ae"
    assert await keys(endAt=2, startAfter="null") == "abc"
    assert await keys(equalTo="null") == "e"
    assert await keys(startAfter=1, endBefore=3, limitToLast=1) == "c"
    by_key = await value_of(rest, "/.json", orderBy='"$key"', startAfter='"b"', endBefore='"e"')
    assert list(by_key) == ["c", "d"]


async def test_namespaces_are_apart_by_parameter_and_by_host(
    rest: httpx.AsyncClient, realtime_server: RealtimeProcess, realtime_namespace: str
) -> None:
    await rest.put("/a.json", json=1)
    async with httpx.AsyncClient(base_url=f"http://{realtime_server.address}") as bare:
        assert (await bare.get("/a.json")).json() is None
        host = {"Host": f"{realtime_namespace}.firebaseio.com"}
        assert (await bare.get("/a.json", headers=host)).json() == 1
        assert (await bare.get("/a.json", params={"ns": "no name"})).status_code == 400


async def test_credentials_and_limits_of_the_client_are_accepted(rest: httpx.AsyncClient) -> None:
    params = {"auth": "x", "access_token": "y", "auth_variable_override": "{}", "timeout": "3s"}
    response = await rest.put("/a.json", params=params, json=1, headers={"Authorization": "Bearer owner"})
    assert response.status_code == 200


INVALID = "Invalid data; couldn't parse JSON object, array, or value."


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Error: No data supplied."),
        (b"{", INVALID),
        (b'{"a":}', INVALID),
        (b"NaN", INVALID),
        (b"[Infinity]", INVALID),
        (b"1e999", INVALID),
        (b"9" * 5000, INVALID),
        (b"\xff\xfe\x00", INVALID),
        (b'"\\ud800"', INVALID),
        (b"[" * 100_000, INVALID),
        (b'{"a": {".sv": "nonsense"}}', "Invalid data; .sv is neither timestamp nor an increment by a number."),
        (b'{".sv": {"increment": "1"}}', "Invalid data; .sv is neither timestamp nor an increment by a number."),
        (b'{".sv": "timestamp", "a": 1}', "Invalid data; .sv has no siblings."),
        (b'{".priority": true, "a": 1}', "Invalid data; a priority is a number, a string or null."),
        (b'{".value": 1, "a": 1}', "Invalid data; .value holds a primitive, and has no siblings but .priority."),
        (b'{".value": {"b": 1}}', "Invalid data; .value holds a primitive, and has no siblings but .priority."),
        (b'{"\\ud800": 1}', "Invalid data; couldn't parse key. Key value can't be empty or contain $ # [ ] / or ."),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_a_body_that_means_nothing_is_refused_and_the_server_lives(
    rest: httpx.AsyncClient, body: bytes, message: str
) -> None:
    await rest.put("/a.json", json="kept")
    for method in ("PUT", "POST"):
        response = await rest.request(method, "/a.json", content=body)
        assert (response.status_code, response.json()) == (400, {"error": message})
    assert await value_of(rest, "/.json") == {"a": "kept"}


async def test_a_patch_is_an_object(rest: httpx.AsyncClient) -> None:
    for body in ("[1]", "5", "null", '{"": 1}', '{"/": 1}'):
        response = await rest.patch("/a.json", content=body)
        assert (response.status_code, response.json()["error"][:44]) == (
            400,
            "Invalid data; couldn't parse JSON object. Ar",
        )
    assert (await rest.patch("/a.json", json={})).json() == {}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"limitToFirst": 1}, "orderBy must be defined when other query parameters are defined"),
        ({"orderBy": "name"}, "orderBy must be a valid JSON encoded path"),
        ({"orderBy": "5"}, "orderBy must be a valid JSON encoded path"),
        ({"orderBy": '"a.b"'}, "orderBy must be a valid JSON encoded path"),
        (
            {"orderBy": '"a"', "limitToFirst": 1, "limitToLast": 1},
            "Only one of limitToFirst and limitToLast may be specified",
        ),
        ({"orderBy": '"a"', "startAt": 1, "startAfter": 1}, "Only one of startAt and startAfter may be specified"),
        ({"orderBy": '"a"', "limitToLast": -1}, "limitToLast must be positive"),
        ({"orderBy": '"a"', "limitToLast": "true"}, "limitToLast must be positive"),
        ({"orderBy": '"a"', "startAt": "abc"}, INVALID),
        ({"orderBy": '"$key"', "shallow": "true"}, "Mixing 'shallow' and querying parameters is not supported"),
        (
            {"orderBy": '"$priority"', "equalTo": "true"},
            "Provided priority index type is invalid, must be a number, a string or null",
        ),
    ],
)
async def test_a_query_that_means_nothing_is_refused(
    rest: httpx.AsyncClient, params: dict[str, Any], message: str
) -> None:
    response = await rest.get("/a.json", params=params)
    assert (response.status_code, response.json()) == (400, {"error": message})


async def test_urls_that_are_no_place(rest: httpx.AsyncClient) -> None:
    assert (await rest.get("/a")).status_code == 404
    for path in ("/a.b.json", "/a$.json", "/%5B.json", "/a%00.json", "/a/.priority/b.json", "/.settings/rules.json"):
        response = await rest.get(path)
        assert (response.status_code, response.json()) == (400, {"error": "Invalid path: Invalid token in path"})
    assert (await rest.request("OPTIONS", "/a.json")).status_code == 405
    override = await rest.post("/a.json", headers={"X-HTTP-Method-Override": "TRACE"})
    assert override.status_code == 405
    assert (await rest.post("/a/.priority.json", json=1)).status_code == 400
    assert (await rest.get("/a/.priority.json", headers={"Accept": "text/event-stream"})).status_code == 400


async def test_sixteen_mebibytes_and_no_more(rest: httpx.AsyncClient) -> None:
    half = "x" * (MAX_BODY_BYTES // 2 - 10)
    assert (await rest.put("/a.json", params={"print": "silent"}, json=[half, half])).status_code == 204
    assert await value_of(rest, "/a/1.json") == half
    response = await rest.put("/a.json", content=b" " * MAX_BODY_BYTES + b"1")
    assert response.status_code == 400
    assert response.json()["error"].startswith("Data to write exceeds the maximum size")
    response = await rest.put("/a.json", json="x" * (10 * 1024 * 1024 + 1))
    assert response.json() == {"error": "Invalid data; a string is larger than 10485760 bytes."}


async def test_a_client_that_leaves_in_the_middle_of_its_body_writes_nothing(
    rest: httpx.AsyncClient, realtime_server: RealtimeProcess, realtime_namespace: str
) -> None:
    _, writer = await asyncio.open_connection(realtime_server.host, realtime_server.port)
    head = f"PUT /a.json?ns={realtime_namespace} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    writer.write(head.encode() + json.dumps("cut").encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await rest.put("/b.json", json=1)
    assert await value_of(rest, "/.json") == {"b": 1}
