"""The cluster: its nodes know each other, and a replica takes over."""

import asyncio

import pytest
import redis.asyncio

from callboard_local import ValkeyCluster
from callboard_local.server import in_thread

pytestmark = pytest.mark.anyio


async def test_a_replica_takes_over_from_a_master_that_was_killed() -> None:
    async with ValkeyCluster(node_timeout_s=2) as cluster:
        masters = cluster.masters()
        assert masters == cluster.nodes[:3]
        async with redis.asyncio.RedisCluster(cluster.host, cluster.port) as client:
            for number in range(20):
                await client.set(f"k{number}", number)
        await masters[0].kill()
        async with asyncio.timeout(50):
            while len(now := await in_thread(cluster.masters)) < 3 or masters[0] in now:
                await asyncio.sleep(0.05)
        assert [node in cluster.nodes[3:] for node in now].count(True) == 1
        async with redis.asyncio.RedisCluster(now[0].host, now[0].port) as client:
            assert [await client.get(f"k{number}") for number in range(20)] == [b"%d" % n for n in range(20)]


async def test_one_node_owns_all_slots() -> None:
    async with ValkeyCluster(1, 0) as cluster:
        assert cluster.masters() == cluster.nodes
        assert "cluster_state:ok" in cluster.nodes[0].ask("CLUSTER", "INFO")


async def test_a_refusal_and_silence_are_told_apart() -> None:
    async with ValkeyCluster(1, 0) as cluster:
        [node] = cluster.nodes
        with pytest.raises(RuntimeError, match="unknown command"):
            node.ask("NONSENSE")
        node.pause()
        try:
            with pytest.raises(TimeoutError):
                node.ask("PING", timeout_s=0.1)
        finally:
            node.resume()
        assert node.ask("PING") == "PONG"
