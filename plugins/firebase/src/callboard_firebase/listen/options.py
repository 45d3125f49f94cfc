"""The figures of the listen engine."""

from __future__ import annotations

from dataclasses import dataclass

from callboard_firebase.backoff import Backoff


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """How many targets share a stream, and how patient the engine is. Times are in seconds."""

    targets_per_stream: int = 500
    """Targets on one Listen stream, down to one. Google publishes no cap; 2,000 were measured on its emulator."""

    streams_per_connection: int = 80
    """Google's servers allow 100 streams on a connection; what comes after them waits without an error."""

    backoff_base_s: float = 1.0
    backoff_cap_s: float = 60.0
    """A stream that ended is reopened after a full-jitter delay between these."""

    unavailable_cap_s: float = 10.0
    """The cap while the server is away: it says nothing of us, and events are late for as long as we wait."""

    reopens: int = 10
    reopens_window_s: float = 60.0
    """And never more often than this many times a window, whatever the jitter drew; while the server refuses, that is
    for all streams of the engine together."""

    silence_timeout_s: float = 30.0
    """A stream that owes an answer (to an added target, or a snapshot after changes) for longer is mute: reopened."""

    probe_interval_s: float | None = 60.0
    """A stream that said nothing for this long is asked a question, so that a mute one shows. Each costs one read of
    a missing document; Google's servers send something by themselves about as often. None: never ask."""

    def __post_init__(self) -> None:
        if min(self.targets_per_stream, self.streams_per_connection) < 1:
            raise ValueError("a connection carries at least one stream, a stream at least one target")
        if min(self.silence_timeout_s, self.probe_interval_s or 1.0, self.reopens_window_s, self.reopens) <= 0:
            raise ValueError("time-outs and windows are above zero")

    def backoff(self) -> Backoff:
        """A back-off by these figures."""
        return Backoff(
            base_s=self.backoff_base_s,
            cap_s=self.backoff_cap_s,
            per_window=self.reopens,
            window_s=self.reopens_window_s,
        )
