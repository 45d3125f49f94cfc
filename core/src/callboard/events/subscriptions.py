"""The book of the bus's subscriptions: who wants a channel, what was sent for it, what the server has confirmed."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from callboard.clients import Reply

_SUBSCRIBE, _UNSUBSCRIBE = "SUBSCRIBE", "UNSUBSCRIBE"


class Subscriptions:
    """Counts the wishes, which outlive connections, and turns them into commands for the current one.

    Every command names one channel, because a cluster may refuse channels of several slots in one. The server answers
    commands in order, so that each answer belongs to the oldest unanswered command; any other answer means that the
    server has changed our subscriptions on its own.
    """

    def __init__(self) -> None:
        self.restored = asyncio.Event()
        """Set once all that was wanted when the connection began has been answered on it."""
        self._to_restore: set[str] = set()
        self._wishes: Counter[str] = Counter()
        self._due: dict[str, None] = {}
        self._sent: set[str] = set()
        self._confirmed: set[str] = set()
        self._unanswered: deque[tuple[str, str]] = deque()
        self._unanswered_of: Counter[str] = Counter()
        self._waiting: dict[str, asyncio.Future[str | None]] = {}

    def want(self, channel: str) -> asyncio.Future[str | None] | None:
        """One more wish. None when it is confirmed already, else a future of the refusal, or None when confirmed."""
        self._wishes[channel] += 1
        if channel in self._confirmed:
            return None
        self._due[channel] = None
        if channel not in self._waiting:
            self._waiting[channel] = asyncio.get_running_loop().create_future()
        return self._waiting[channel]

    def unwant(self, channel: str) -> None:
        """One wish less; KeyError when there is none."""
        if channel not in self._wishes:
            raise KeyError(channel)
        self._wishes[channel] -= 1
        if not self._wishes[channel]:
            del self._wishes[channel]
            self._waiting.pop(channel, None)
            self._due[channel] = None
            self._is_restored(channel)

    def end(self) -> None:
        """The connection is gone, and with it everything but the wishes."""
        self._sent.clear()
        self._confirmed.clear()
        self._unanswered.clear()
        self._unanswered_of.clear()

    def begin(self) -> None:
        """A new connection: everything that is wanted is due."""
        self.end()
        self._due = dict.fromkeys(self._wishes)
        self._to_restore = set(self._wishes)
        self.restored.clear()

    def commands(self, limit: int) -> list[tuple[str, str]]:
        """What to send now: at most `limit` commands, churn since the last time left out."""
        commands: list[tuple[str, str]] = []
        while self._due and len(commands) < limit:
            channel = next(iter(self._due))
            del self._due[channel]
            if channel in self._wishes and channel not in self._sent:
                self._sent.add(channel)
                commands.append((_SUBSCRIBE, channel))
            elif channel in self._sent and channel not in self._wishes:
                self._sent.discard(channel)
                self._confirmed.discard(channel)
                commands.append((_UNSUBSCRIBE, channel))
        self._unanswered.extend(commands)
        self._unanswered_of.update(channel for _, channel in commands)
        return commands

    @property
    def any_due(self) -> bool:
        return bool(self._due)

    def answered(self, reply: Reply) -> str | None:
        """Take an answer; the channel if it is refused. A redis error says that the connection is to be given up."""
        if isinstance(reply, Exception) and not str(reply).startswith("NOPERM"):
            raise ResponseError(str(reply))  # MOVED, CLUSTERDOWN, LOADING, …: this server is not ours to use now
        if not self._unanswered:
            raise RedisConnectionError("The server changed our subscriptions.")
        verb, channel = self._unanswered.popleft()
        self._unanswered_of[channel] -= 1
        last = not self._unanswered_of[channel]
        if last:
            del self._unanswered_of[channel]
        refusal = None
        if isinstance(reply, Exception):
            refusal = str(reply)
            self._sent.discard(channel)
        elif reply[:2] != [verb.lower().encode(), channel.encode()]:
            raise RedisConnectionError("The server changed our subscriptions.")
        elif last and channel in self._sent:
            self._confirmed.add(channel)
        if channel in self._confirmed or refusal is not None:
            waiting = self._waiting.pop(channel, None)
            if waiting is not None:
                waiting.set_result(refusal)
        self._is_restored(channel)
        return channel if refusal is not None else None

    def _is_restored(self, channel: str) -> None:
        self._to_restore.discard(channel)
        if not self._to_restore:
            self.restored.set()
