"""The figures of the Realtime Database client."""

from __future__ import annotations

from dataclasses import dataclass

from callboard_firebase.backoff import Backoff


@dataclass(frozen=True, slots=True)
class RealtimeOptions:
    """How long the client waits and how much it takes in. Times are in seconds."""

    connect_timeout_s: float = 5.0

    request_timeout_s: float = 30.0
    """A request with its redirects, its retry and a token's renewal; the deadline of the call that makes it may be
    shorter."""

    max_body_bytes: int = 64 * 1024 * 1024
    """An answer, or one event of a stream, that is larger is refused: FailedPrecondition."""

    silence_timeout_s: float = 45.0
    """A stream on which no byte came for this long is dead: reopened. The server sends a keep-alive every 30 s."""

    openings: int = 100
    """Streams that are being opened at a time: a thousand that were cut off at once would keep the process so busy with
    handshakes that their own connect time-outs pass."""

    backoff_base_s: float = 1.0
    backoff_cap_s: float = 60.0
    """A stream that ended is reopened after a full-jitter delay between these."""

    unavailable_cap_s: float = 10.0
    """The cap while the server is away: it says nothing of us, and events are late for as long as we wait."""

    reopens: int = 10
    reopens_window_s: float = 60.0
    """And never more often than this many times a window, whatever the jitter drew."""

    def __post_init__(self) -> None:
        times = (self.connect_timeout_s, self.request_timeout_s, self.silence_timeout_s, self.reopens_window_s)
        if min(*times, self.max_body_bytes, self.openings, self.reopens) <= 0:
            raise ValueError("time-outs, windows and limits are above zero")

    def backoff(self) -> Backoff:
        """A new one: of a stream, or of a database's outage."""
        return Backoff(
            base_s=self.backoff_base_s,
            cap_s=self.backoff_cap_s,
            per_window=self.reopens,
            window_s=self.reopens_window_s,
        )
