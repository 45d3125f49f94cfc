"""Who listens to what: finds, for each write, the few streams that it can concern."""

from collections.abc import Iterator

from .changes import Change
from .nodes import EMPTY, Node
from .paths import Path
from .queries import Query
from .streams import Stream, encoded


class Topic:
    """What the streams of the same path, query and format share: each event is made and encoded once for all."""

    def __init__(self, path: Path, query: Query | None, *, export: bool) -> None:
        self.path = path
        self.streams: set[Stream] = set()
        self._query = query
        self._export = export
        self._window = EMPTY

    def first(self, root: Node) -> bytes:
        """The first event of a stream: all that there is."""
        node = root.at(self.path)
        if self._query is not None:
            self._window = node = self._query.window(node)
        return encoded("put", "/", node.plain(export=self._export))

    def publish(self, change: Change) -> None:
        if self._query is None:
            event = change.event(self.path, export=self._export)
        else:
            node = change.after.at(self.path)
            if node is change.before.at(self.path):
                return
            known, self._window = self._window, self._query.window(node)
            event = change.window_event(self.path, known, self._window, export=self._export)
        if event is not None:
            message = encoded(*event)
            for stream in self.streams:
                stream.offer(message)


class _Place:
    """A place in the tree that is, or is above, one that is listened to."""

    __slots__ = ("places", "topics")

    def __init__(self) -> None:
        self.places: dict[str, _Place] = {}
        self.topics: dict[str, Topic] = {}

    def __iter__(self) -> Iterator[Topic]:
        """Its topics, and those below."""
        yield from self.topics.values()
        for place in self.places.values():
            yield from place


class Listeners:
    """The streams of a database, found by the path that they listen to."""

    def __init__(self) -> None:
        self._root = _Place()

    def __iter__(self) -> Iterator[Stream]:
        for topic in self._root:
            yield from topic.streams

    def below(self, path: Path) -> list[Stream]:
        """The streams that listen to this path or to one below it."""
        place = self._root
        for key in path:
            if key not in place.places:
                return []
            place = place.places[key]
        return [stream for topic in place for stream in topic.streams]

    def add(self, stream: Stream, root: Node) -> None:
        """From now on the stream gets events; the first one tells all that there is."""
        place = self._root
        for key in stream.path:
            place = place.places.setdefault(key, _Place())
        name = _name(stream)
        topic = place.topics.get(name)
        if topic is None:
            topic = place.topics[name] = Topic(stream.path, stream.query, export=stream.export)
        stream.offer(topic.first(root))
        topic.streams.add(stream)

    def discard(self, stream: Stream) -> None:
        """Forget a stream, and the places that nobody else listens to."""
        above = []
        place = self._root
        for key in stream.path:
            above.append((place, key))
            place = place.places[key]
        topic = place.topics[_name(stream)]
        topic.streams.discard(stream)
        if not topic.streams:
            del place.topics[_name(stream)]
        for parent, key in reversed(above):
            if parent.places[key].topics or parent.places[key].places:
                break
            del parent.places[key]

    def publish(self, change: Change) -> None:
        """Tell every stream concerned of a write."""
        topics: dict[Topic, None] = {}
        for path, _ in change.writes:
            topics.update(dict.fromkeys(self._concerned(path)))
        for topic in topics:
            topic.publish(change)

    def _concerned(self, path: Path) -> Iterator[Topic]:
        place = self._root
        for key in path:
            yield from place.topics.values()
            if key not in place.places:
                return
            place = place.places[key]
        yield from place


def _name(stream: Stream) -> str:
    # Not the query itself: in Python a bound of 1 equals a bound of True.
    return f"{stream.query} {stream.export}"
