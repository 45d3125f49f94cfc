"""The listener behind `chat.sync` and `chat.message`: one per user and open thread."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from callboard import Event, Listener, User, listener
from callboard_firebase import Pace
from callboard_firebase.items import SYNC_BYTES, fitting
from callboard_firebase_realtime.chat_messages import is_message, parcels, shown
from callboard_firebase_realtime.open_thread import NEWEST, find_mode, watch_thread
from callboard_firebase_realtime.places import Mode, children, key_order, messages_path
from callboard_firebase_realtime.store import RealtimeService, as_of_now
from callboard_firebase_realtime.window import Told, Window, change_id


@listener(name="chat", begins_with_sync=True, per="thread")
class ChatListener(Listener[RealtimeService]):
    """Watches the newest `SYNC_LIMIT` messages of one open thread.

    Messages that are new, or have changed, are a `chat.message`, as many in one as come together; one that was deleted
    makes a `chat.sync`, and so does a burst.
    """

    async def snapshot(self, user: User) -> list[Event]:
        """Read the thread once: one `chat.sync`."""
        as_of = as_of_now()
        mode = await find_mode(self.service.database, self.thread)
        found: Mapping[str, Any] = {}
        if mode is not None:
            path = messages_path(*self.thread.place, mode)
            found = children(await self.service.database.get(path, NEWEST))
        keys = sorted((key for key in found if is_message(found[key])), key=key_order)
        return [self._sync(user, mode, found, keys, as_of)]

    async def changes(self, user: User) -> AsyncIterator[Event]:
        """`chat.sync`, then what changes, until it is closed. Raises what ended the watch."""
        window = Window(is_message)
        pace = Pace()
        async with aclosing(watch_thread(self.service.database, self.thread)) as batches:
            async for batch in batches:
                told = window.read(batch.changed, batch.children, passed=batch.passed, initial=batch.initial)
                if told is None:
                    yield self._sync(user, batch.mode, batch.children, window.visible(), as_of_now())
                elif batch.mode is not None:
                    for event in self._messages(user, batch.mode, told):
                        yield event
                if not batch.initial:
                    await pace.told(len(batch.changed))

    def _sync(
        self, user: User, mode: Mode | None, messages: Mapping[str, Any], keys: list[str], as_of: str
    ) -> Event:  # fmt: skip
        """The newest that fit, the oldest of them first."""
        newest = fitting(shown(key, messages[key]) for key in reversed(keys))
        return Event(
            type="chat.sync",
            uid=user.uid,
            payload={**self._place(mode), "messages": newest[::-1], "count": len(keys)},
            as_of=as_of,
        )

    def _messages(self, user: User, mode: Mode, told: list[Told]) -> list[Event]:
        path = messages_path(*self.thread.place, mode)
        by_id = {one.key: one for one in told}
        return [
            Event(
                id=change_id(path, "chat.message", [by_id[message["id"]] for message in messages]),
                type="chat.message",
                uid=user.uid,
                payload={**self._place(mode), "raw_messages": messages},
            )
            for messages in parcels((shown(one.key, one.value) for one in told), SYNC_BYTES)
        ]

    def _place(self, mode: Mode | None) -> dict[str, Any]:
        """`mode` is the kind the thread turned out to be of; null while it does not exist."""
        return {"space_code": self.thread.space_code, "thread_key": self.thread.thread_key, "mode": mode}
