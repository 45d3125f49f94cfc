"""The listener behind `msg.sync` and `msg.new`: a user's direct messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from callboard import Event, Listener, User, listener
from callboard_firebase import Pace
from callboard_firebase.items import NewestSources, company_of, fitting
from callboard_firebase_realtime.direct_items import direct_item, is_unread, with_time
from callboard_firebase_realtime.open_thread import NEWEST
from callboard_firebase_realtime.places import children, has_inbox, inbox_path, made_at
from callboard_firebase_realtime.store import RealtimeService, as_of_now
from callboard_firebase_realtime.window import Window, change_id


@listener(name="messages", begins_with_sync=True)
class MessageListener(Listener[RealtimeService]):
    """Watches the newest `SYNC_LIMIT` messages of one online user, and shows those that are unread and theirs to see.

    A message that is new, or has changed, is a `msg.new`; one that was deleted or read, or has moved to a company the
    user may not see, makes a `msg.sync`, and so does a burst.
    """

    async def snapshot(self, user: User) -> list[Event]:
        """Read the messages once: one `msg.sync`."""
        as_of = as_of_now()
        if not has_inbox(user.uid):
            return [_sync(user, {}, [], as_of)]
        found = children(await self.service.database.get(inbox_path(user.uid), NEWEST))
        return [_sync(user, found, [key for key in found if _is_shown(user, found[key])], as_of)]

    async def changes(self, user: User) -> AsyncIterator[Event]:
        """`msg.sync`, then what changes, until it is closed. Raises what ended the watch."""
        if not has_inbox(user.uid):
            yield _sync(user, {}, [], as_of_now())
            await asyncio.Event().wait()  # there will be nothing, until it is closed
        path = inbox_path(user.uid)
        window = Window(lambda value: _is_shown(user, value))
        pace = Pace()
        async with self.service.database.watch(path, NEWEST) as batches:
            async for batch in batches:
                changed = [change.key for change in batch.changes]
                passed = {change.key for change in batch.changes if change.several}
                told = window.read(changed, batch.children, passed=passed, initial=batch.initial)
                if told is None:
                    yield _sync(user, batch.children, window.visible(), as_of_now())
                else:
                    for one in told:
                        yield Event(
                            id=change_id(path, "msg.new", [one]),
                            type="msg.new",
                            uid=user.uid,
                            payload=direct_item(one.key, one.value),
                        )
                if not batch.initial:
                    await pace.told(len(batch.changes))


def _is_shown(user: User, value: Any) -> bool:
    return is_unread(value) and user.may_see(company_of(value))


def _sync(user: User, messages: Mapping[str, Any], keys: Iterable[str], as_of: str) -> Event:
    newest = newest_messages(messages, keys)
    items = (direct_item(source.doc_id, source.data) for source in newest.sources())
    return Event(
        type="msg.sync",
        uid=user.uid,
        payload={"messages": fitting(items), "count": newest.total, "timestamp": as_of},
        as_of=as_of,
    )


def newest_messages(messages: Mapping[str, Any], keys: Iterable[str]) -> NewestSources:
    """The messages with these keys, by the time they name, else the time their key was made."""
    newest = NewestSources(len(messages))
    for key in keys:
        newest.add(key, with_time(messages[key]), made_at(key))
    return newest
