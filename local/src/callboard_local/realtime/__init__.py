"""A Realtime Database that speaks the real REST and event-stream API, for development and tests."""

from .server import RealtimeServer

__all__ = ["RealtimeServer"]
