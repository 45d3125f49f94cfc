from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import NoScriptError, ResponseError
from support import Recorded, administering

from callboard.connections import Connections
from callboard.errors import Unavailable
from callboard.fleet import scripts
from callboard.settings import Settings
from callboard_local import ValkeyCluster, ValkeyServer

pytestmark = pytest.mark.anyio

# Two keys of one slot. Harmless to repeat, like every script that is run this way.
ADD = "redis.call('SADD', KEYS[1], ARGV[1]) redis.call('SET', KEYS[2], ARGV[1]) return {KEYS[1], ARGV[1]}"
NAME = "return KEYS[1]"
NUMBERS = range(40)


def keys_of(number: int) -> tuple[str, str]:
    return f"{{{number}}}set", f"{{{number}}}last"


CALLS: list[scripts.Call] = [(keys_of(number), (f"value-{number}",)) for number in NUMBERS]
ANSWERS = [[keys_of(number)[0].encode(), b"value-%d" % number] for number in NUMBERS]


def places(connections: Connections) -> list[str]:
    """On which node of the cluster each of the calls runs."""
    cluster: Any = connections.commands
    return [cluster.get_node_from_key(keys_of(number)[0]).name for number in NUMBERS]


@asynccontextmanager
async def opened(server: ValkeyServer) -> AsyncIterator[Connections]:
    settings = Settings(redis_host=server.host, redis_port=server.port)
    async with Connections(settings, Recorded().telemetry, attempt_timeout_s=0.3, call_limit_s=1) as connections:
        yield connections


@pytest.fixture
async def own(own_valkey: ValkeyServer) -> AsyncIterator[Connections]:
    async with opened(own_valkey) as connections:
        yield connections


async def calls_of(connections: Connections, command: str) -> int:
    """How often the server has run the command."""
    stats = await connections.commands.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def test_the_answers_come_in_order(own: Connections) -> None:
    assert await scripts.run_many(own, ADD, CALLS) == ANSWERS
    assert await own.commands.get("{7}last") == b"value-7"
    assert await scripts.run_many(own, ADD, []) == []


async def test_the_text_travels_once(own: Connections) -> None:
    assert await scripts.run(own, ADD, keys_of(0), "value-0") == ANSWERS[0]
    for _ in range(3):
        assert await scripts.run_many(own, ADD, CALLS) == ANSWERS
        assert await scripts.run(own, ADD, keys_of(1), "value-1") == ANSWERS[1]
    assert await calls_of(own, "eval") == 1


async def test_commands_ahead_go_in_the_same_pipeline(own: Connections, own_valkey: ValkeyServer) -> None:
    ahead = [("SADD", "index", "a", "b"), ("INCR", "n")]
    assert await scripts.run_many(own, ADD, CALLS, ahead=ahead) == [2, 1, *ANSWERS]
    assert await scripts.run_many(own, ADD, CALLS, ahead=ahead) == [0, 2, *ANSWERS]  # told once, though taught before
    assert await scripts.run_many(own, NAME, CALLS[:1], ahead=[("SET", "x", "y")]) == [True, b"{0}set"]
    await own.commands.config_set("maxmemory", 1)
    refused, answer = await scripts.run_many(own, NAME, CALLS[:1], ahead=[("SET", "x", "y")])
    assert isinstance(refused, Unavailable)
    assert answer == b"{0}set"
    own_valkey.pause()
    try:
        unknown = await scripts.run_many(own, ADD, CALLS, ahead=ahead)
    finally:
        own_valkey.resume()
    assert [type(answer) for answer in unknown] == [Unavailable] * (2 + len(CALLS))


async def test_a_server_that_was_restarted_is_taught_the_script_again(
    own: Connections, own_valkey: ValkeyServer
) -> None:
    await scripts.run_many(own, ADD, CALLS)
    await own_valkey.restart()
    pipeline = own.commands.pipeline(transaction=False)
    for keys, args in CALLS:
        pipeline.execute_command("EVALSHA", scripts._digest(ADD), len(keys), *keys, *args)
    answers = await pipeline.execute(raise_on_error=False)
    assert {type(answer) for answer in answers} == {NoScriptError}  # the control: it has forgotten it

    assert await scripts.run_many(own, ADD, CALLS) == ANSWERS
    assert await scripts.run_many(own, ADD, CALLS) == ANSWERS
    assert await calls_of(own, "eval") == len(CALLS)


async def test_a_defect_is_raised_as_it_is(own: Connections) -> None:
    await own.commands.set("{3}set", "no set")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await scripts.run_many(own, ADD, CALLS)
    assert own.state == "ok"


async def test_a_defect_may_stand_in_the_place_of_its_answer_alone(own: Connections, own_valkey: ValkeyServer) -> None:
    await own.commands.set("{3}set", "no set")
    answers = await scripts.run_many(own, ADD, CALLS, defects=True)
    assert isinstance(answers[3], ResponseError)
    assert answers[:3] + answers[4:] == ANSWERS[:3] + ANSWERS[4:]
    assert own.state == "ok"
    own_valkey.pause()
    try:
        unknown = await scripts.run_many(own, ADD, CALLS, defects=True)
    finally:
        own_valkey.resume()
    assert [type(answer) for answer in unknown] == [Unavailable] * len(CALLS)


async def test_a_server_that_hangs_leaves_every_answer_unknown(own: Connections, own_valkey: ValkeyServer) -> None:
    await scripts.run_many(own, ADD, CALLS)
    own_valkey.pause()
    try:
        answers = await scripts.run_many(own, ADD, CALLS)
        with pytest.raises(Unavailable):
            await scripts.run_all(own, ADD, CALLS)
    finally:
        own_valkey.resume()
    assert [type(answer) for answer in answers] == [Unavailable] * len(CALLS)
    assert await scripts.run_all(own, ADD, CALLS) == ANSWERS


# -- a cluster --------------------------------------------------------------------------------------------------------


@pytest.fixture
def nodes() -> Iterator[list[ValkeyServer]]:
    with ValkeyCluster(2, 0) as cluster:
        yield cluster.nodes


async def test_one_node_of_a_cluster_does_not_know_the_script(nodes: list[ValkeyServer]) -> None:
    async with opened(nodes[0]) as connections, administering(nodes[1]) as second:
        assert await scripts.run_many(connections, ADD, CALLS) == ANSWERS
        await second.script_flush()
        assert await scripts.run_many(connections, ADD, CALLS) == ANSWERS
        stats = await second.info("commandstats")
        theirs = places(connections).count(nodes[1].address)
        assert 0 < theirs < len(CALLS)
        assert stats["cmdstat_eval"]["calls"] == 2 * theirs


async def test_of_a_cluster_whose_node_hangs_the_other_answers(nodes: list[ValkeyServer]) -> None:
    async with opened(nodes[0]) as connections:
        await scripts.run_many(connections, ADD, CALLS)
        where = places(connections)
        nodes[1].pause()
        try:
            answers = await scripts.run_many(connections, ADD, CALLS)
        finally:
            nodes[1].resume()
        for place, answer, expected in zip(where, answers, ANSWERS, strict=True):
            if place == nodes[1].address:
                assert isinstance(answer, Unavailable)
            else:
                assert answer == expected
        async with asyncio.timeout(20):
            while await scripts.run_many(connections, ADD, CALLS) != ANSWERS:
                await asyncio.sleep(0.02)
