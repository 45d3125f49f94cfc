"""Row 27: who may not, gets nothing, and all are refused alike. Real replicas, real sockets."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from faults.doors import Everything, fleet_of
from faults.fleet import TOKEN, Replica

from callboard.credentials import Credentials
from callboard.errors import PermissionDenied
from callboard.settings import Secret, Settings
from callboard_local import ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = pytest.mark.anyio

READER = {"Authorization": "Bearer reader-token"}
STOLEN = {"method": "LEDGER.append", "args": ["stolen"]}


def without_trace(response: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert body.pop("trace_id")
    return body


# -- tokens

WRONG_TOKENS = [
    *(TOKEN[:length].encode() for length in range(1, len(TOKEN))),
    TOKEN.encode() + b"x",
    TOKEN.encode() + b" " + TOKEN.encode(),
    TOKEN.upper().encode(),
    TOKEN.replace("-", "\N{NON-BREAKING HYPHEN}").encode(),
    TOKEN.replace("e", "\N{CYRILLIC SMALL LETTER IE}").encode(),
    b"\xff\xfe",
    b"*",
    b"dev",
    b"test",
    b"metrics-token",
    b"retired-token",
    hashlib.sha256(TOKEN.encode()).hexdigest().encode(),
    base64.b64encode(TOKEN.encode()),
]


@pytest.mark.fault(row=27)
async def test_no_token_and_a_wrong_one_open_nothing(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with fleet_of(own_valkey, 1) as fleet, httpx.AsyncClient(base_url=fleet.replicas[0].url, timeout=60) as http:
        wrong: list[list[tuple[bytes, bytes]]] = [[(b"authorization", b"Bearer " + token)] for token in WRONG_TOKENS]
        wrong += [
            [(b"authorization", b"%s %s" % (scheme, TOKEN.encode()))] for scheme in (b"Basic", b"Token", b"Digest")
        ]
        wrong += [[(b"authorization", b"Bearer " + TOKEN.encode())] * 2, [(b"authorization", TOKEN.encode())]]
        none: list[list[tuple[bytes, bytes]]] = [[], [(b"authorization", b"")], [(b"authorization", b"Bearer")]]
        none += [
            [(name, b"Bearer " + TOKEN.encode())] for name in (b"x-authorization", b"cookie", b"proxy-authorization")
        ]
        ways: list[Callable[..., Any]] = [
            lambda headers: http.post("/rpc", json=STOLEN, headers=headers),
            lambda headers: http.post("/rpc/LEDGER.append", json={"name": "stolen"}, headers=headers),
            lambda headers: http.post(f"/rpc?token={TOKEN}&access_token={TOKEN}", json=STOLEN, headers=headers),
            lambda headers: http.get("/debug", headers=headers),
        ]
        refused = 0
        for status, code, attempts in ((403, "PERMISSION_DENIED", wrong), (401, "UNAUTHENTICATED", none)):
            answers = [await way(headers) for way in ways for headers in attempts]
            assert {answer.status_code for answer in answers} == {status}
            bodies = {json.dumps(without_trace(answer), sort_keys=True) for answer in answers if status == 401}
            assert len(bodies) <= 1
            messages = {without_trace(answer)["error"]["message"] for answer in answers}
            assert messages <= {"This credential is not known.", "More than one Authorization header."} or status == 401
            assert all(without_trace(answer)["error"]["code"] == code for answer in answers)
            refused += len(answers)
        limited = await http.get("/debug", headers=READER)  # a credential with patterns sees only what they open
        assert (limited.status_code, limited.json()["error"]["code"]) == (403, "PERMISSION_DENIED")
        for headers in (wrong[0], none[0], [(b"authorization", b"Bearer " + TOKEN.encode())]):
            assert (await http.get("/metrics", headers=headers)).status_code in (401, 403)
        assert (await http.get("/metrics", headers={"Authorization": "Bearer metrics-token"})).status_code == 200
        leaks = await fleet.executions("stolen")
        fault.figure(refused=refused, leaks=leaks)
        assert leaks == 0


@pytest.mark.fault(row=27, control=True)
async def test_with_the_right_token_the_same_calls_run(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with fleet_of(own_valkey, 1) as fleet, httpx.AsyncClient(base_url=fleet.replicas[0].url, timeout=60) as http:
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert (await http.post("/rpc", json=STOLEN, headers=right)).json()["data"] == 1
        assert (await http.post("/rpc/LEDGER.append", json={"name": "stolen"}, headers=right)).json()["data"] == 2
        assert (await http.get("/debug", headers=right)).status_code == 200
        fault.figure(leaks=await fleet.executions("stolen"))


def identified_in_s(credentials: Credentials, header: bytes) -> float:
    began = time.perf_counter()
    try:
        credentials.identify(header)
    except PermissionDenied:
        return time.perf_counter() - began
    raise AssertionError("it was let in")


def naively_in_s(given: str) -> float:
    """What the digests are for: a comparison that ends at the first difference."""
    began = time.perf_counter()
    for ours, theirs in zip(TOKEN * 20, given, strict=False):
        if ours != theirs:
            break
    return time.perf_counter() - began


def welch(one: Sequence[float], other: Sequence[float]) -> float:
    """The t statistic, over the fastest nine tenths of each: what is slower was interrupted."""
    one, other = (sorted(each)[: len(each) * 9 // 10] for each in (one, other))
    spread = statistics.variance(one) / len(one) + statistics.variance(other) / len(other)
    return (statistics.fmean(one) - statistics.fmean(other)) / math.sqrt(spread)


def largest_t(measure: Callable[[int], float], positions: int, rounds: int) -> float:
    """|t| of the position that differs most from a token that is wrong from its first character on."""
    times: list[list[float]] = [[] for _ in range(positions)]
    order = list(range(positions))
    for _ in range(rounds):
        random.shuffle(order)
        for position in order:
            times[position].append(measure(position))
    return max(abs(welch(times[0], each)) for each in times[1:])


@pytest.mark.fault(row=27, control="within")
async def test_how_long_a_wrong_token_takes_is_reported(own_valkey: ValkeyServer, fault: Fault) -> None:
    known = Credentials(Settings(service_token=Secret(TOKEN), service_tokens=Secret("a:b;c:d:X.*")))
    prefixes = [f"{TOKEN[:right]}{'x' * (len(TOKEN) - right)}" for right in range(len(TOKEN))]
    in_process = largest_t(
        lambda right: identified_in_s(known, f"Bearer {prefixes[right]}".encode()), len(TOKEN), 10_000
    )
    naive = largest_t(lambda right: naively_in_s((TOKEN * 20)[: right * 20] + "x"), len(TOKEN), 2_000)
    async with fleet_of(own_valkey, 1) as fleet, httpx.AsyncClient(base_url=fleet.replicas[0].url, timeout=60) as http:
        times: dict[int, list[float]] = {0: [], len(TOKEN) - 1: []}
        for _ in range(1_000):
            for right in random.sample(list(times), 2):
                began = time.perf_counter()
                answer = await http.post("/rpc", headers={"Authorization": f"Bearer {prefixes[right]}"}, json=STOLEN)
                times[right].append(time.perf_counter() - began)
                assert answer.status_code == 403
        over_http = abs(welch(*times.values()))
        assert await fleet.executions("stolen") == 0
    fault.figure(
        t_in_process=in_process, t_over_http=over_http, t_of_a_naive_comparison=naive, tokens=len(TOKEN) * 10_000
    )


# -- methods

NO_METHODS = [
    "LEDGER.__init__", "LEDGER.__class__", "LEDGER.__dict__", "LEDGER._follow", "LEDGER._blocking_truth", "LEDGER.open",
    "LEDGER.close", "LEDGER.health", "LEDGER.truth", "LEDGER.host", "LEDGER.feeds", "LEDGER.settings", "LEDGER.Numbers",
    "LEDGER.append.__call__", "LEDGER.append.__globals__", "LEDGER.append ", " LEDGER.append", "LEDGER.append\n",
    "LEDGER.append\r\n", "LEDGER.append\x00", "LEDGER.append\u200b", "LEDGER.\N{CYRILLIC SMALL LETTER A}ppend",
    "\N{FULLWIDTH LATIN CAPITAL LETTER L}EDGER.append", "ledger.append", "LEDGER.APPEND", "LEDGER..append", "LEDGER.*",
    "*.append", "*", "", ".", "LEDGER", "LEDGER.", ".append", "append", "LEDGER/append", "LEDGER:append", "__class__",
    "LEDGER.append()", "LEDGER.append;LEDGER.read", "faults.ledger.Ledger.append", "REGISTRY._store",
    "REGISTRY._mirror", "x" * 100_000,
]  # fmt: skip


@pytest.mark.fault(row=27)
async def test_what_is_not_declared_or_not_granted_cannot_be_called(own_valkey: ValkeyServer, fault: Fault) -> None:
    async with fleet_of(own_valkey, 1) as fleet, httpx.AsyncClient(base_url=fleet.replicas[0].url, timeout=60) as http:
        granted = {"Authorization": f"Bearer {TOKEN}"}
        unknown: set[str] = set()
        for method in NO_METHODS:
            for headers in (granted, READER):
                answer = await http.post("/rpc", headers=headers, json={"method": method, "args": ["stolen"]})
                assert answer.status_code == 200, method
                unknown.add(json.dumps(without_trace(answer)))
        (said,) = unknown  # the same words for all of them, and to everybody
        assert json.loads(said)["error"].keys() == {"code", "message"}
        assert json.loads(said)["error"]["code"] == "METHOD_NOT_FOUND"

        denied: set[str] = set()
        declared = (await http.get("/debug", headers=granted)).json()["plugins"]
        methods = [name for each in declared for space in each["namespaces"] for name in space["methods"]]
        beyond = [name for name in methods if name not in ("LEDGER.read", "LEDGER.whoami")]
        assert len(beyond) > 12
        for method in beyond:
            answer = await http.post("/rpc", headers=READER, json={"method": method, "args": ["stolen"]})
            denied.add(json.dumps(without_trace(answer)))
            answer = await http.post(f"/rpc/{method}", headers=READER, json={"name": "stolen", "user_id": "ann"})
            denied.add(json.dumps(without_trace(answer)))
        (said,) = denied
        assert json.loads(said)["error"].keys() == {"code", "message"}
        assert json.loads(said)["error"]["code"] == "PERMISSION_DENIED"
        assert (await http.post("/rpc", headers=READER, json={"method": "LEDGER.read", "args": ["x"]})).json()["ok"]

        twice = b'{"method": "LEDGER.read", "method": "LEDGER.append", "args": ["stolen"]}'
        answer = await http.post("/rpc", headers={**READER, "Content-Type": "application/json"}, content=twice)
        assert answer.status_code == 400
        leaks = await fleet.executions("stolen")
        fault.figure(unknown=len(NO_METHODS) * 2, denied=len(beyond) * 2, leaks=leaks)
        assert leaks == 0


@pytest.mark.fault(row=27)
async def test_no_spelling_of_a_path_goes_round_the_patterns(own_valkey: ValkeyServer, fault: Fault) -> None:
    paths = [
        "/rpc/LEDGER.append", "/rpc/LEDGER%2Eappend", "/rpc/%4CEDGER.append", "/rpc/LEDGER.append?method=LEDGER.read",
        "/rpc/LEDGER.append%00", "/rpc/LEDGER.append%0a", "/rpc/LEDGER.append/", "/rpc//LEDGER.append",
        "/rpc/LEDGER.append%2F", "/rpc/LEDGER%2Fappend", "/rpc/LEDGER.read/../LEDGER.append", "/rpc/./LEDGER.append",
        "/rpc/LEDGER.read%2F..%2FLEDGER.append", "/RPC/LEDGER.append", "/rpc;x/LEDGER.append", "//rpc/LEDGER.append",
        "/rpc/LEDGER.append%23", "/rpc/LEDGER.append%3Fx", "/rpc/%E2%84%92EDGER.append", "/rpc/LEDGER.%c3%84ppend",
        "/rpc/%ff", "/rpc/LEDGER.append;LEDGER.read", "/rpc/LEDGER.read%20", "/rpc/..%2frpc/LEDGER.append",
    ]  # fmt: skip
    async with fleet_of(own_valkey, 1) as fleet:
        one = fleet.replicas[0]
        verbs = ("POST", "GET", "PUT", "OPTIONS")
        codes = [await raw_status(one, verb, path, b'{"name": "stolen"}') for path in paths for verb in verbs]
        assert all(status in (200, 400, 404, 405) for status in codes)
        leaks = await fleet.executions("stolen")
        fault.figure(requests=len(codes), leaks=leaks)
        assert leaks == 0
        assert await raw_status(one, "POST", "/rpc/LEDGER%2Eappend", b'{"name": "ours"}', token=TOKEN) == 200
        assert await fleet.executions("ours") == 1  # with the right credential the same spelling is the same method


async def raw_status(replica: Replica, verb: str, path: str, body: bytes, token: str = "reader-token") -> int:
    """The status of a request whose path is sent as it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    head = f"{verb} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    status = int((await asyncio.wait_for(reader.readline(), 30)).split()[1])
    writer.close()
    return status


@pytest.mark.fault(row=27)
async def test_a_reply_goes_to_no_other_channel(own_valkey: ValkeyServer, fault: Fault) -> None:
    channels = [
        "user:ann", "msg:ann", "chat:ann:a:b", "redis:reply:", "redis:reply:*", "redis:reply:a b", "redis:reply:a:b",
        "redis:reply:a\n", "redis:reply:../user:ann", "redis:reply:{ann}", "REDIS:REPLY:a", " redis:reply:a",
        "redis:reply", "callboard:lease:x", "redis:reply:" + "a" * 129,
        "redis:reply:\N{CYRILLIC SMALL LETTER A}", "__keyspace@0__:x",
    ]  # fmt: skip
    async with fleet_of(own_valkey, 1) as fleet, Everything(own_valkey) as everything:
        one = fleet.replicas[0]
        call = {"method": "LEDGER.append", "args": ["stolen"]}
        for channel in channels:
            answer = (await one.client.post("/rpc", json={**call, "reply_to": channel})).json()
            assert answer["error"]["code"] == "INVALID_ARGS", channel
        answer = (await one.client.post("/rpc", json={"method": "LEDGER.whoami", "reply_to": "redis:reply:s-1"})).json()
        await everything.until("redis:reply:s-1")  # control: what may be sent is
        assert [channel for channel, _ in everything.heard] == ["redis:reply:s-1"]
        leaks = await fleet.executions("stolen")
        fault.figure(refused=len(channels), leaks=leaks)
        assert leaks == 0
