"""The Listen RPC itself, on Google's asynchronous GAPIC client: many targets on one stream."""

from collections.abc import Callable
from typing import Any

import pytest
from google.api_core.exceptions import GoogleAPICallError
from google.cloud.firestore import AsyncClient, FieldFilter
from google.cloud.firestore_v1.types import Target, TargetChange

pytestmark = pytest.mark.anyio

Open = Callable[[], Any]
ADD = TargetChange.TargetChangeType.ADD
CURRENT = TargetChange.TargetChangeType.CURRENT


def kinds(stream: Any, target_id: int) -> list[int]:
    """The kinds of target changes that named the target, in order."""
    changes = (message.target_change for message in stream.messages if message.HasField("target_change"))
    return [change.target_change_type for change in changes if target_id in change.target_ids]


async def test_a_target_is_added_filled_and_current(async_client: AsyncClient, listening: Open) -> None:
    await async_client.document("c/a").set({"n": 1})
    stream = listening()
    target = stream.add_query(async_client.collection("c")._query())
    assert await stream.until(lambda state: target in state) == {target: {"c/a": {"n": 1}}}
    assert kinds(stream, target) == [ADD, CURRENT]
    last = stream.messages[-1].target_change
    assert last.HasField("read_time")
    assert last.resume_token


async def test_an_empty_target_becomes_current_too(async_client: AsyncClient, listening: Open) -> None:
    stream = listening()
    target = stream.add_query(async_client.collection("c")._query())
    assert await stream.until(lambda state: target in state) == {target: {}}


async def test_a_query_follows_changes(async_client: AsyncClient, listening: Open) -> None:
    document = async_client.document("c/a")
    stream = listening()
    target = stream.add_query(async_client.collection("c").where(filter=FieldFilter("n", ">", 0)))
    await stream.until(lambda state: state == {target: {}})
    await document.set({"n": 1})
    await stream.until(lambda state: state == {target: {"c/a": {"n": 1}}})
    await document.update({"n": 2})
    await stream.until(lambda state: state == {target: {"c/a": {"n": 2}}})
    await document.update({"n": 0})
    await stream.until(lambda state: state == {target: {}})
    await document.update({"n": 3})
    await stream.until(lambda state: state == {target: {"c/a": {"n": 3}}})
    await document.delete()
    await stream.until(lambda state: state == {target: {}})


async def test_documents_present_and_missing(async_client: AsyncClient, listening: Open) -> None:
    await async_client.document("c/a").set({"n": 1})
    stream = listening()
    target = stream.add_documents("c/a", "c/missing")
    await stream.until(lambda state: state == {target: {"c/a": {"n": 1}}})
    deleted = [message.document_delete for message in stream.messages if message.HasField("document_delete")]
    assert [message.document.rpartition("/")[2] for message in deleted] == ["missing"]
    await async_client.document("c/missing").set({"n": 2})
    await async_client.document("c/a").delete()
    await stream.until(lambda state: state == {target: {"c/missing": {"n": 2}}})


async def test_many_query_targets_on_one_stream(async_client: AsyncClient, listening: Open) -> None:
    stream = listening()
    targets = {stream.add_query(async_client.collection(f"users/{user}/jobs")._query()): user for user in range(100)}
    await stream.until(lambda state: len(state) == 100)
    for user in (0, 50, 99):
        await async_client.document(f"users/{user}/jobs/a").set({"user": user})
    state = await stream.until(lambda state: sum(map(len, state.values())) == 3)
    filled = {targets[target]: documents for target, documents in state.items() if documents}
    assert filled == {user: {f"users/{user}/jobs/a": {"user": user}} for user in (0, 50, 99)}


async def test_one_target_of_many_documents(async_client: AsyncClient, listening: Open) -> None:
    stream = listening()
    target = stream.add_documents(*(f"c/d{number}" for number in range(50)))
    await stream.until(lambda state: state == {target: {}})
    for number in range(5):
        await async_client.document(f"c/d{number}").set({"n": number})
    await stream.until(lambda state: state == {target: {f"c/d{n}": {"n": n} for n in range(5)}})


async def test_a_document_in_several_targets(async_client: AsyncClient, listening: Open) -> None:
    stream = listening()
    everything = stream.add_query(async_client.collection("c")._query())
    big = stream.add_query(async_client.collection("c").where(filter=FieldFilter("n", ">", 5)))
    single = stream.add_documents("c/a")
    await stream.until(lambda state: len(state) == 3)
    await async_client.document("c/a").set({"n": 9})
    await stream.until(lambda state: all(state[t] == {"c/a": {"n": 9}} for t in (everything, big, single)))
    await async_client.document("c/a").set({"n": 1})
    await stream.until(lambda state: state[everything] == state[single] == {"c/a": {"n": 1}} and not state[big])


async def test_a_removed_target_falls_silent(async_client: AsyncClient, listening: Open) -> None:
    stream = listening()
    first = stream.add_query(async_client.collection("c")._query())
    second = stream.add_query(async_client.collection("c")._query())
    await stream.until(lambda state: len(state) == 2)
    stream.send(remove_target=first)
    await stream.until_true(lambda: first in stream.removed)
    await async_client.document("c/a").set({"n": 1})
    assert await stream.until(lambda state: state.get(second) == {"c/a": {"n": 1}}) == {second: {"c/a": {"n": 1}}}


async def test_a_target_id_can_be_used_again(async_client: AsyncClient, listening: Open) -> None:
    stream = listening()
    stream.add_query(async_client.collection("c")._query(), target_id=7)
    await stream.until(lambda state: 7 in state)
    stream.send(remove_target=7)
    await stream.until_true(lambda: 7 in stream.removed)
    await async_client.document("d/a").set({"n": 1})
    stream.add_query(async_client.collection("d")._query(), target_id=7)
    await stream.until(lambda state: state.get(7) == {"d/a": {"n": 1}})


async def test_removing_an_unknown_target_is_harmless(async_client: AsyncClient, listening: Open) -> None:
    stream = listening()
    stream.send(remove_target=77)
    target = stream.add_query(async_client.collection("c")._query())
    await stream.until(lambda state: target in state)


async def test_a_target_id_in_use_ends_the_stream(async_client: AsyncClient, listening: Open) -> None:
    stream = listening()
    stream.add_query(async_client.collection("c")._query(), target_id=7)
    await stream.until(lambda state: 7 in state)
    stream.add_query(async_client.collection("d")._query(), target_id=7)
    with pytest.raises(GoogleAPICallError):
        await stream.ended()


async def test_a_bad_document_name_removes_its_target_alone(async_client: AsyncClient, listening: Open) -> None:
    stream = listening()
    good = stream.add_query(async_client.collection("c")._query())
    await stream.until(lambda state: good in state)
    stream.send(add_target=Target(target_id=99, documents={"documents": ["nonsense"]}))
    await stream.until_true(lambda: 99 in stream.removed)
    assert "nonsense" in stream.removed[99]
    await async_client.document("c/a").set({"n": 1})
    await stream.until(lambda state: state == {good: {"c/a": {"n": 1}}})


async def test_a_batch_is_one_consistent_moment(async_client: AsyncClient, listening: Open) -> None:
    stream = listening()
    target = stream.add_query(async_client.collection("c")._query())
    await stream.until(lambda state: target in state)
    batch = async_client.batch()
    for name in "abc":
        batch.set(async_client.document(f"c/{name}"), {"n": 1})
    await batch.commit()
    await stream.until(lambda state: bool(state[target]))
    sizes = [len(snapshot[target]) for snapshot in stream.snapshots if target in snapshot]
    assert sizes == [0, 3], "never a part of the batch"


async def test_a_limit_refills(async_client: AsyncClient, listening: Open) -> None:
    for number in range(4):
        await async_client.document(f"c/d{number}").set({"n": number})
    stream = listening()
    target = stream.add_query(async_client.collection("c").order_by("n").limit(2))
    await stream.until(lambda state: state == {target: {"c/d0": {"n": 0}, "c/d1": {"n": 1}}})
    await async_client.document("c/d0").delete()
    await stream.until(lambda state: state == {target: {"c/d1": {"n": 1}, "c/d2": {"n": 2}}})
    await async_client.document("c/new").set({"n": -1})
    await stream.until(lambda state: state == {target: {"c/new": {"n": -1}, "c/d1": {"n": 1}}})


async def test_a_cursor_bounds_a_target(async_client: AsyncClient, listening: Open) -> None:
    stream = listening()
    target = stream.add_query(async_client.collection("c").order_by("n").start_at({"n": 5}))
    await stream.until(lambda state: target in state)
    await async_client.document("c/low").set({"n": 4})
    await async_client.document("c/high").set({"n": 6})
    await stream.until(lambda state: state == {target: {"c/high": {"n": 6}}})


async def test_a_collection_group_target(async_client: AsyncClient, listening: Open) -> None:
    stream = listening()
    target = stream.add_query(async_client.collection_group("jobs"))
    await stream.until(lambda state: target in state)
    await async_client.document("users/1/jobs/a").set({"n": 1})
    await async_client.document("users/2/other/b").set({"n": 2})
    await async_client.document("jobs/c").set({"n": 3})
    await stream.until(lambda state: state == {target: {"users/1/jobs/a": {"n": 1}, "jobs/c": {"n": 3}}})


async def test_commits_that_concern_no_target_are_not_seen(async_client: AsyncClient, listening: Open) -> None:
    stream = listening()
    target = stream.add_query(async_client.collection("c")._query())
    await stream.until(lambda state: target in state)
    await async_client.document("elsewhere/a").set({"n": 1})
    await async_client.document("c/a/sub/b").set({"n": 1})
    await async_client.document("c/a").set({"n": 1})
    await stream.until(lambda state: bool(state[target]))
    changed = [
        message.document_change.document.name for message in stream.messages if message.document_change.target_ids
    ]
    assert [name.partition("/documents/")[2] for name in changed] == ["c/a"]


@pytest.mark.parametrize("token", ["last", "nonsense"])
async def test_resuming_ends_in_the_present_state(async_client: AsyncClient, listening: Open, token: str) -> None:
    for name in "ab":
        await async_client.document(f"c/{name}").set({"n": 1})
    query = async_client.collection("c")._query()
    stream = listening()
    stream.add_query(query)
    before = (await stream.until(lambda state: bool(state)))[1]
    await stream.close()
    await async_client.document("c/a").delete()
    await async_client.document("c/b").set({"n": 2})
    again = listening()
    target = again.add_query(query, resume_token=stream.resume_token if token == "last" else b"nonsense")
    again.assume(target, before)
    await again.until(lambda state: state == {target: {"c/b": {"n": 2}}})


async def test_half_closing_ends_the_stream(async_client: AsyncClient, listening: Open) -> None:
    stream = listening()
    target = stream.add_query(async_client.collection("c")._query())
    await stream.until(lambda state: target in state)
    stream.half_close()
    await stream.ended()
