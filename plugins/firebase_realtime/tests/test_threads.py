"""Chat threads: made, listed, emptied, deleted; and whole spaces."""

from __future__ import annotations

from typing import Any

import pytest

from callboard import FailedPrecondition, InvalidArgs, Unavailable
from callboard_firebase_realtime import FirebaseRealtime, threads
from callboard_firebase_realtime.threads import Chat, ListedThread
from callboard_local import RealtimeProcess

from .conftest import Tree

pytestmark = pytest.mark.anyio


async def test_a_thread_is_made(service: FirebaseRealtime, tree: Tree) -> None:
    one = await service.create_chat("ada", "acme", "Invoice 42")
    other = await service.create_chat("ada", "acme", "Payroll", "job_chats")

    assert one == Chat("acme", "chats", one.thread_key, "Invoice 42")
    assert other.mode == "job_chats"
    assert one.thread_key < other.thread_key
    stored = await tree.get("acme")
    assert stored.keys() == {"chats", "job_chats"}
    thread = stored["chats"][one.thread_key]
    assert thread.pop("created_at").endswith("Z")
    assert thread == {"thread_name": "Invoice 42", "created_by": "ada"}


async def test_a_thread_is_deleted_with_all_it_holds(service: FirebaseRealtime, tree: Tree) -> None:
    threads = {key: {"thread_name": key, "messages": {"m1": {"content": "x"}}} for key in ("t1", "t2")}
    await tree.put("acme", {"chats": threads, "job_chats": threads})

    assert await service.delete_chat("ada", "acme", "t1") is True
    assert await service.delete_chat("ada", "acme", "t1") is True
    assert await service.delete_chat("ada", "acme", "t2", "job_chats") is True

    assert await tree.get("acme") == {"chats": {"t2": threads["t2"]}, "job_chats": {"t1": threads["t1"]}}


async def test_an_erased_thread_stays(service: FirebaseRealtime, tree: Tree) -> None:
    messages = {"m1": {"content": "x"}, "m2": {"content": "y"}}
    await tree.put("acme/chats/t1", {"thread_name": "Payroll", "created_by": "ada", "messages": messages})
    await tree.put("acme/job_chats/t2", {"messages": messages})
    await tree.put("acme/chats/t3", {"thread_name": "Empty"})

    assert await service.erase_chat("ada", "acme", "t1") is True
    assert await service.erase_chat("ada", "acme", "t2", "job_chats") is True
    assert await service.erase_chat("ada", "acme", "t3") is True
    assert await service.erase_chat("ada", "acme", "t1") is True

    assert await tree.get("acme") == {
        "chats": {"t1": {"thread_name": "Payroll", "created_by": "ada"}, "t3": {"thread_name": "Empty"}},
        "job_chats": {"t2": {"thread_name": "t2"}},
    }


async def test_there_is_nothing_to_erase(service: FirebaseRealtime, tree: Tree) -> None:
    assert await service.erase_chat("ada", "acme", "nothing") is False
    assert await tree.get() is None


async def test_threads_are_listed_with_their_last_message(service: FirebaseRealtime, tree: Tree) -> None:
    await tree.put(
        "acme/chats",
        {
            "-Nb": {"thread_name": "Payroll", "messages": {f"-M{n}": {"content": str(n)} for n in range(3)}},
            "-Na": {"thread_name": "Empty"},
            "7": {"messages": {"-M1": {"content": "nameless"}}},
            "odd": {"thread_name": 3},
        },
    )

    assert await service.get_all_threads("acme") == [
        ListedThread("7", "", "chats", {"content": "nameless", "id": "-M1"}),
        ListedThread("-Na", "Empty", "chats", None),
        ListedThread("-Nb", "Payroll", "chats", {"content": "2", "id": "-M2"}),
        ListedThread("odd", "", "chats", None),
    ]
    assert await service.get_all_threads("acme", "job_chats") == []
    assert await service.get_all_threads("nobody") == []


async def test_threads_page_by_page(service: FirebaseRealtime, tree: Tree) -> None:
    await tree.put("acme/chats", {f"t{n:02}": {"thread_name": "x"} for n in range(25)})

    seen: list[str] = []
    after = None
    while page := await service.get_all_threads("acme", limit=10, after=after):
        assert len(page) <= 10
        after = page[-1].thread_key
        seen += [thread.thread_key for thread in page]
    assert seen == [f"t{n:02}" for n in range(25)]


async def test_a_list_is_not_cut_silently(
    service: FirebaseRealtime, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "MAX_THREADS", 3)
    await tree.put("acme/chats", {f"t{n}": {"thread_name": "x"} for n in range(4)})

    with pytest.raises(FailedPrecondition, match="limit"):
        await service.get_all_threads("acme")
    assert len(await service.get_all_threads("acme", limit=3)) == 3


async def test_a_space_is_deleted(service: FirebaseRealtime, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "DELETE_BATCH", 10)
    space = {
        "chats": {f"t{n}": {"messages": {"m": {"content": "x"}}} for n in range(25)},
        "job_chats": {"j1": {"thread_name": "x"}},
        "more": {"a": 1},
    }
    await tree.put("", {"acme": space, "other": space, "clients": {"ada": {"direct_message_notif": {"m1": {"x": 1}}}}})

    assert await service.delete_space("acme") == 26
    assert await service.delete_space("acme") == 0

    left = await tree.get()
    assert left.keys() == {"clients", "other"}
    assert left["other"] == space


async def test_the_users_own_data_is_no_space(service: FirebaseRealtime, tree: Tree) -> None:
    await tree.put("clients/ada/direct_message_notif/m1", {"status": "x"})
    for space in ("clients", "a/b", "..", "", "a.b"):
        with pytest.raises(InvalidArgs):
            await service.delete_space(space)
    assert await tree.get("clients/ada/direct_message_notif/m1/status") == "x"


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("create_chat", ["a/b", "acme", "x"]),
        ("create_chat", ["ada", "clients", "x"]),
        ("delete_chat", ["ada", "acme", "a/b"]),
        ("delete_chat", ["", "acme", "t1"]),
        ("erase_chat", ["ada", "acme", "a.b"]),
        ("get_all_threads", [""]),
    ],
)
async def test_ids_that_are_none(service: FirebaseRealtime, tree: Tree, method: str, args: list[Any]) -> None:
    with pytest.raises(InvalidArgs):
        await getattr(service, method)(*args)
    assert await tree.get() is None


async def test_an_error_of_one_read_ends_the_listing_as_itself(
    service: FirebaseRealtime, own_realtime: RealtimeProcess, make_service: Any
) -> None:
    there = make_service(
        {
            "FIREBASE_DATABASE_EMULATOR_HOST": own_realtime.address,
            "FIREBASE_REALTIME_DB_URL": own_realtime.url_of("acme"),
        }
    )
    await there.open()
    for n in range(40):
        await there.database.set(f"acme/chats/t{n}/thread_name", "x")

    await own_realtime.control("refuse", status=503, count=1_000, ns="acme", path="/acme/chats/t7")
    with pytest.raises(Unavailable):
        await there.get_all_threads("acme")
