"""Chat threads: made, listed, emptied, deleted.

A thread lies at `{space_code}/{mode}/{thread_key}`: `thread_name`, and `messages/{id}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct

from callboard import FailedPrecondition, method
from callboard.messages import check_identifier, utc_now
from callboard_firebase.realtime import Query
from callboard_firebase_realtime.chat_messages import stored_messages
from callboard_firebase_realtime.places import (
    MODES,
    Mode,
    children,
    key_order,
    space_path,
    thread_path,
    threads_path,
)
from callboard_firebase_realtime.store import RealtimeService, look_up

MAX_THREADS = 1_000
"""Threads that one listing may return."""
DELETE_BATCH = 100
_LAST = Query(limit_to_last=1)

ThreadName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=512)]
Limit: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_THREADS)]


class Chat(Struct, frozen=True):
    """A thread: where it is and what it is called."""

    space_code: str
    mode: Mode
    thread_key: str
    thread_name: str


class ListedThread(Struct, frozen=True):
    """`thread_name` is empty where it has none; `last_message` as `get_channel_messages` shows it, null without any."""

    thread_key: str
    thread_name: str
    mode: Mode
    last_message: dict[str, Any] | None


class Threads(RealtimeService):
    """Whole threads, and all of a space."""

    @method
    async def create_chat(self, user_id: str, space_code: str, thread_name: ThreadName, mode: Mode = "chats") -> Chat:
        """Make an empty thread with a generated key; returns it.

        Writes `thread_name`, `created_by` (the user) and `created_at` (ISO 8601, UTC) to `{space_code}/{mode}/{key}`.
        """
        thread = {
            "thread_name": thread_name,
            "created_by": check_identifier(user_id, "user_id"),
            "created_at": utc_now(),
        }
        key = await self.database.push(threads_path(space_code, mode), thread)
        return Chat(space_code, mode, key, thread_name)

    @method(effect="write", retry_safe=True)
    async def delete_chat(self, user_id: str, space_code: str, thread_key: str, mode: Mode = "chats") -> bool:
        """Delete a thread with all it holds; true, whether or not there was one."""
        check_identifier(user_id, "user_id")
        await self.database.delete(thread_path(space_code, thread_key, mode))
        return True

    @method(effect="write", retry_safe=True)
    async def erase_chat(self, user_id: str, space_code: str, thread_key: str, mode: Mode = "chats") -> bool:
        """Delete a thread's messages, all at once; the thread stays. False: there is no such thread.

        A thread that has nothing but messages is given its key as `thread_name`: the database keeps no empty node.
        """
        check_identifier(user_id, "user_id")
        path = thread_path(space_code, thread_key, mode)
        found = children(await self.database.get(path, shallow=True))
        if not found:
            return False
        alone = {"thread_name": thread_key} if found.keys() == {"messages"} else {}
        await self.database.update(path, {"messages": None, **alone})
        return True

    @method(effect="read", timeout_s=60)
    async def get_all_threads(
        self, space_code: str, mode: Mode = "chats", limit: Limit | None = None, after: str | None = None
    ) -> list[ListedThread]:
        """A space's threads with their names and last messages, in the order of their keys: the oldest first.

        At most `limit` of them (1 to 1,000), from the first behind the thread `after` on. Without `limit` all, or
        FAILED_PRECONDITION when there are more than 1,000. Reads the keys, and of each thread the name and one message.
        """
        path = threads_path(space_code, mode)
        keys = sorted(children(await self.database.get(path, shallow=True)), key=key_order)
        if after is not None:
            keys = [key for key in keys if key_order(key) > key_order(after)]
        if limit is None and len(keys) > MAX_THREADS:
            raise FailedPrecondition(f"The space has more than {MAX_THREADS} threads; say how many are wanted: limit.")
        return await look_up(keys[:limit], partial(self._listed, path, mode))

    @method(effect="write", retry_safe=True)
    async def delete_space(self, space_id: str) -> int:
        """Delete a space with all its threads, up to 100 of them at a time; returns how many there were.

        Whatever else lies at `{space_id}` goes last, and with it threads made meanwhile, which are not counted.
        """
        root = space_path(space_id)
        deleted = 0
        for mode in MODES:
            path = threads_path(space_id, mode)
            keys = list(children(await self.database.get(path, shallow=True)))
            for some in _batches(keys, DELETE_BATCH):
                await self.database.update(path, dict.fromkeys(some))
            deleted += len(keys)
        await self.database.delete(root)
        return deleted

    async def _listed(self, path: str, mode: Mode, key: str) -> ListedThread:
        name = await self.database.get(f"{path}/{key}/thread_name")
        last = stored_messages(await self.database.get(f"{path}/{key}/messages", _LAST))
        return ListedThread(key, name if isinstance(name, str) else "", mode, last[-1] if last else None)


def _batches(keys: Sequence[str], size: int) -> list[Sequence[str]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]
