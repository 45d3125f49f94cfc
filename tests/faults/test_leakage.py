"""Row 28: what is secret shows nowhere, and a log record is one line whatever is in it. Real replicas."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from faults.doors import Everything, opened, outcome_of, showing
from faults.fleet import TOKEN, Fleet, Replica
from redis.asyncio import Redis

from callboard.telemetry import LOG_EVENTS, MAX_TEXT
from callboard_local import ValkeyServer
from callboard_local.fault_figures import Fault

pytestmark = pytest.mark.anyio

PLACES = [
    "environment", "service-token", "second-token", "ticket-secret", "metrics-token", "redis-password", "account-json",
    "account-path", "wrong-redis-password", "argument", "keyword", "result", "user", "session",
    "other-session", "key", "wrong-token", "id-token", "ticket", "query", "frame", "exception", "path", "route",
    "company", "header", "body", "reply", "origin",
]  # fmt: skip
SECRETS = {place: f"CANARY.{place}.7f3a" for place in PLACES}
HOSTILE = 'FORGED\r\n{"event":"rpc_ok","level":"info"}\n\x1b[2J\x1b]0;x\x07\x9b31m\x85\u2028\u2029\u202eevil\x00\x7f'
PICKLE = "cos\nsystem\n(S'touch {path}'\ntR."
"""Protocol 0: whoever loads it makes that file."""


def environ_of() -> dict[str, str]:
    account = {"type": "service_account", "project_id": "p", "private_key": SECRETS["account-json"]}
    return {
        "LISTENERS_SERVICE_TOKENS": f"second:{SECRETS['second-token']}:LEDGER.read",
        "LISTENERS_TICKET_SECRET": SECRETS["ticket-secret"],
        "LISTENERS_METRICS_TOKEN": SECRETS["metrics-token"],
        "LISTENERS_REDIS_PASSWORD": SECRETS["redis-password"],
        "LISTENERS_ALLOWED_ORIGINS": "https://app.example",
        "FIREBASE_ADMIN_JSON": json.dumps(account),
        "DATABASE_URL": f"postgres://user:{SECRETS['environment']}@host/db",
    }


_MOST_AT_ONCE = 4 * 2**20
"""Characters: of a refused body over 16 MiB a client may see a reset instead of the answer (docs/errors.md)."""


async def provoke(replica: Replica, text: dict[str, str], service_token: str = SECRETS["service-token"]) -> list[str]:
    """Put the texts wherever a client may put one, rightly and wrongly; all that is answered."""
    said: list[str] = []
    user, session = text["user"], text["session"]
    token = {"Authorization": f"Bearer {service_token}"}
    async with httpx.AsyncClient(base_url=replica.url, headers=token, timeout=60) as http:

        async def post(call: Any, path: str = "/rpc", **headers: str) -> Any:
            answer = await http.post(path, json=call, headers=headers)
            said.append(f"{answer.headers} {answer.text}")
            return answer.json()

        who = {"user_id": user, "session_id": session}
        companies = [text["company"]]
        register = {"session_id": session, "backend_route": text["route"], "authorized_companies_ids": companies}
        await post({"method": "REGISTRY.register_user", "args": [user], "kwargs": register, **who})
        for how in ("plainly", "chained", "exit", "thread", "task", "callback"):
            call = {"method": "LEDGER.fail", "kwargs": {"text": text["exception"], "how": how}, **who}
            await post({**call, "idempotency_key": f"{text['key']}{how}"})
        wrong: list[dict[str, Any]] = [
            {"method": "LEDGER.fail", "args": [text["argument"], text["argument"]]},
            {"method": "LEDGER.append", "args": [7], "kwargs": {"hold_s": text["argument"]}},
            {"method": "LEDGER.append", "kwargs": {text["keyword"]: text["argument"]}},
            {"method": "LEDGER.append", "args": [text["argument"]] * 5},
            {"method": "LEDGER.wait", "args": [{text["keyword"]: text["path"]}]},
            {"method": "REGISTRY.get_user", "args": [f"{text['user']}/{text['path']}"]},
            {"method": "LEDGER.read", "args": ["x"], "user_id": f"{text['user']} /"},
            {"method": "LEDGER.read", "args": ["x"], "reply_to": f"user:{text['reply']}"},
            {"method": "LEDGER.read", "args": ["x"], "idempotency_key": (text["key"] * 20)[:_MOST_AT_ONCE]},
            {"method": "LEDGER.read", "args": text["argument"]},
        ]
        for call in wrong:
            await post(call)
            await post(
                call.get("kwargs", {}), "/rpc/LEDGER.append", **{"X-User-Id": "a b", "X-Timeout-Ms": text["header"]}
            )
        for content in (text["body"], f'{{"{text["body"]}": 1, "{text["body"]}": 2}}', f'{{"method": "{text["body"]}'):
            answer = await http.post("/rpc", content=content, headers={"Content-Type": "application/json"})
            said.append(answer.text)
        for header in (f"Bearer {text['wrong-token']}", text["wrong-token"], f"Basic {text['wrong-token']}"):
            for path in ("/rpc", f"/debug?{text['query']}={text['query']}", "/metrics"):
                answer = await http.request(
                    "GET" if path != "/rpc" else "POST", path, headers={"Authorization": header}
                )
                said.append(answer.text)
        said.append((await http.get(f"/nowhere/{text['path']}?{text['query']}")).text)
        said.append((await http.get(f"/healthz/{text['path']}")).text)
    id_token = {"token": text["id-token"], "sessionId": text["other-session"]}
    frames = [
        showing(text["ticket"]),
        json.dumps({"type": "auth.firebase_token", "payload": id_token}),
        json.dumps({"type": text["frame"]}),
        text["frame"],
    ]
    named = f"uid={user}&session_id={session}&token={text['query']}"
    misnamed = f"uid={text['query']}/&mode={text['query']}"
    queries = [(query, first) for query in (named, misnamed) for first in frames]
    said += [str(await outcome_of(f"{replica.ws_url}?{query}", first)) for query, first in queries]
    said.append(str(await outcome_of(f"{replica.ws_url}?uid={user}", None, [("Origin", f"https://{text['origin']}")])))
    return said


async def pages_of(replica: Replica) -> list[tuple[str, str]]:
    async with httpx.AsyncClient(base_url=replica.url, timeout=60) as http:
        paths = ("/healthz", "/readyz", "/version", "/healthz/LEDGER", "/healthz/REGISTRY")
        pages = [(path, (await http.get(path)).text) for path in paths]
        for path, secret in (("/debug", "service-token"), ("/metrics", "metrics-token")):
            page = await http.get(path, headers={"Authorization": f"Bearer {SECRETS[secret]}"})
            assert page.status_code == 200
            pages.append((path, page.text))
        for path in ("/openapi.json", "/asyncapi.json"):
            token = {"Authorization": f"Bearer {SECRETS['service-token']}"}
            pages.append((path, (await http.get(path, headers=token)).text))
    return pages


async def stored(redis: Any) -> list[tuple[str, str]]:
    """Every key of a Redis, with all that is in it."""
    reads = {
        "string": redis.get,
        "hash": redis.hgetall,
        "list": lambda key: redis.lrange(key, 0, -1),
        "set": redis.smembers,
        "zset": lambda key: redis.zrange(key, 0, -1),
    }
    found = []
    async for key in redis.scan_iter():
        name, kind = key.decode(errors="backslashreplace"), (await redis.type(key)).decode()
        found.append((name, f"{name} {await reads[kind](key)}"))
    return found


def found(text: str) -> set[str]:
    return {place for place, secret in SECRETS.items() if secret in text}


def records_of(log: str) -> Iterator[dict[str, Any]]:
    assert log.endswith("\n")
    lines = log.splitlines()
    assert len(lines) == log.count("\n")
    for line in lines:
        yield json.loads(line)


BY_RIGHT: dict[str, set[str]] = {
    # to whoever sent it, or asked for it
    "answer": {"result", "user", "session"},
    "INVALID_ARGS": {"argument", "keyword"},
    "log at level debug": {"user", "session", "other-session"},  # LISTENERS_DEBUG says so
    "/debug": {"user"},  # whose listeners run
    # what Redis is there for: who is online, whose listener runs where, answers for a retry, events for their user
    "callboard:session:": {"session", "other-session", "user"},
    "callboard:presence:sessions:{": {"session", "other-session", "user"},
    "callboard:presence:user:{": {"session", "other-session", "user", "company", "route"},
    "callboard:presence:{online}:expiry": {"user"},
    "callboard:presence:{online}:names": {"user"},
    "callboard:lease:listener:ledger.numbers:{": {"user"},
    "callboard:leases": {"user"},
    "callboard:idem:": {"result"},
    "user:": {"user", "result"},
    "redis:reply:": {"other-session", "result"},
}


@pytest.mark.fault(row=28)
async def test_no_secret_shows_anywhere(fault: Fault) -> None:
    with ValkeyServer(args=["--requirepass", SECRETS["redis-password"]]) as valkey:
        async with Fleet(valkey, count=1, environ=environ_of(), token=SECRETS["service-token"]) as fleet:
            (quiet,) = fleet.replicas
            path = f"/nowhere/{SECRETS['account-path']}.json"
            chatty = await fleet.start_one(LISTENERS_DEBUG="true", FIREBASE_ADMIN_JSON=path)
            shut_out = await fleet.start_one(LISTENERS_REDIS_PASSWORD=SECRETS["wrong-redis-password"])
            redis = Redis(host=valkey.host, port=valkey.port, password=SECRETS["redis-password"])
            async with redis, Everything(valkey, password=SECRETS["redis-password"]) as everything:
                answers: list[str] = []
                tickets: list[str] = []
                for replica in (quiet, chatty):
                    answers += await provoke(replica, SECRETS)
                    said, ticket = await use_rightly(replica)
                    answers += said
                    tickets.append(ticket)
                await everything.until("redis:reply:" + SECRETS["other-session"])
                pages = [page for replica in fleet.replicas for page in await pages_of(replica)]
                keys = await stored(redis)
            for replica in fleet.replicas:
                assert await replica.stop() == 0
            logs = {
                "log": quiet.log.read_text() + shut_out.log.read_text(),
                "log at level debug": chatty.log.read_text(),
            }
        told = [("INVALID_ARGS" if '"INVALID_ARGS"' in each else "answer", each) for each in answers]
        published = [(channel, f"{channel} {message}") for channel, message in everything.heard]
        leaks: dict[str, set[str]] = defaultdict(set)
        by_right = 0
        for where, text in [*logs.items(), *pages, *keys, *told, *published]:
            place = re.split("CANARY|[0-9a-f]{32}", where)[0]
            by_right += len(found(text) & BY_RIGHT.get(place, set()))
            leaks[place] |= found(text) - BY_RIGHT.get(place, set())
        records = [record for log in logs.values() for record in records_of(log)]
        fault.figure(
            secrets=len(SECRETS), answers=len(answers), pages=len(pages), keys=len(keys), records=len(records),
            published=len(published), hits=sum(map(len, leaks.values())), by_right=by_right,
        )  # fmt: skip
        assert not any(leaks.values()), leaks
        everywhere = "".join(text for _, text in [*logs.items(), *pages, *keys, *published])
        assert not any(ticket in everywhere for ticket in tickets)
        assert by_right > 20  # who looks for them finds them
        assert {"ValueError", "FileNotFoundError < ValueError", "SystemExit"} <= {
            record.get("error") for record in records
        }
        assert sum(record.get("code") == "INTERNAL" for record in records) >= 6


async def use_rightly(replica: Replica) -> tuple[list[str], str]:
    """What is meant to be kept, sent and answered; and the ticket that was issued for it."""
    user = SECRETS["user"]
    said = []
    token = {"Authorization": f"Bearer {SECRETS['service-token']}"}
    async with httpx.AsyncClient(base_url=replica.url, headers=token, timeout=60) as http:
        call = {"method": "LEDGER.say", "args": [user, SECRETS["result"]], "user_id": user}
        keyed = {"idempotency_key": SECRETS["key"], "reply_to": f"redis:reply:{SECRETS['other-session']}"}
        answer = await http.post("/rpc", json={**call, **keyed})
        said.append(answer.text)
        assert answer.json()["data"] == SECRETS["result"]
        issued = await http.post("/rpc/REGISTRY.issue_ticket", json={"user_id": user})
        ticket = str(issued.json()["data"]["ticket"])
        async with opened(replica, user, ticket, f"&session_id={SECRETS['session']}"):
            said.append((await http.get("/readyz")).text)
    return said, ticket


@pytest.mark.fault(row=28)
async def test_a_record_is_one_short_line_whatever_is_in_it(own_valkey: ValkeyServer, fault: Fault) -> None:
    huge = HOSTILE + "x" * 2**20
    environ = {"LISTENERS_REPLICA": HOSTILE.replace("\x00", ""), "LISTENERS_MAX_BODY_BYTES": str(2**23)}
    async with Fleet(own_valkey, count=0) as fleet:
        replicas = [await fleet.start_one(**environ, LISTENERS_DEBUG=debug) for debug in ("false", "true")]
        for replica in replicas:
            for text in (HOSTILE, huge):
                assert (await replica.call("LEDGER.log_it", text))["ok"]
                for how in ("plainly", "chained", "exit", "thread", "task", "callback"):
                    await replica.call("LEDGER.fail", text, how)
                texts = {place: text for place in SECRETS if place not in NAMES}
                await provoke(replica, {**texts, **{place: SECRETS[place] for place in NAMES}}, TOKEN)
                await replica.client.post("/rpc", json={"method": text, "trace_id": HOSTILE})
                await replica.client.post("/rpc", json={"method": "LEDGER.whoami", "trace_id": HOSTILE})
            assert await replica.stop() == 0
        records, longest = 0, 0
        for replica in replicas:
            log = replica.log.read_text()
            for line, record in zip(log.splitlines(), records_of(log), strict=True):
                assert line.isprintable()
                assert {"event", "level", "timestamp", "replica"} <= record.keys()
                assert record["event"] in LOG_EVENTS
                longest = max(longest, len(line))
                records += 1
    fault.figure(records=records, longest_line=longest, sent=len(huge))
    assert longest < 40 * MAX_TEXT


NAMES = ("user", "session", "other-session", "company", "header", "wrong-token", "query", "path", "origin")
"""Where a text that is no name is refused, or cannot even be sent."""


@pytest.mark.fault(row=28, control=True)
def test_as_these_things_come_they_do_leak(tmp_path: Path, fault: Fault) -> None:
    """A log without our processors, Python's own way to tell of what nobody caught, and a pickle that is loaded."""
    stream = io.StringIO()
    stock = structlog.wrap_logger(
        structlog.WriteLogger(stream), processors=[structlog.dev.ConsoleRenderer(colors=False)]
    )
    stock.info("rpc_ok", task=HOSTILE)
    stock.info(HOSTILE)
    lines = stream.getvalue().splitlines()
    code = f"import threading\ndef f(): raise ValueError({SECRETS['exception']!r})\nthreading.Thread(target=f).start()"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    planted, mark = tmp_path / "planted", tmp_path / "mark"
    planted.write_text(PICKLE.format(path=mark))
    subprocess.run([sys.executable, "-m", "pickle", str(planted)], capture_output=True, check=True)
    fault.figure(lines_of_two_records=len(lines), lines_of_an_exception=told.count("\n"), hits=len(found(told)))
    assert len(lines) > 2
    assert not "".join(lines).isprintable()
    assert found(told) == {"exception"}
    assert mark.exists()
