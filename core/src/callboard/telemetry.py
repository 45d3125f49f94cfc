"""Logs and metrics that everything above may write.

Logs are JSON lines (readable ones in dev mode) whose `event` is one of the documented names; they carry ids, times
and codes, never arguments or payloads. Whatever text a caller got into a record, it is one line, of printable
characters, and not long. Metrics live in a registry of the app's own, so that two apps can share a
process.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import threading
import traceback
from typing import Any, TextIO

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

LOG_EVENTS = {
    "rpc_call": "a call came in (level debug)",
    "rpc_ok": "a call was answered",
    "rpc_error": "a call was refused or failed; `code` says how, `log_id` finds the traceback",
    "idempotency_lost": "the service stopped while Redis was away: `answers` of keyed calls could not be stored",
    "publish": "an event left for Redis (level debug)",
    "publish_failed": "a write succeeded and its event could not be sent; the listener's sync brings the state",
    "ws_connect": "a WebSocket opened",
    "ws_disconnect": "a WebSocket closed; `code` is the close code",
    "ws_failed": "a WebSocket could not be let in, by a fault of the service; the client is told to come again",
    "id_tokens_unchecked": "nobody could tell whether ID tokens were revoked; their sockets stay until they expire",
    "ws_without_bus": "a WebSocket opened while the bus is down; its syncs follow when it is up",
    "listener_start": "a user's listener starts",
    "listener_attached": "a user's listener has its first snapshot",
    "listener_error": "a user's listener failed; it is restarted after a back-off",
    "listener_lost": "a user's listener lost its lease to another replica",
    "listener_taken_over": "a user's listener was taken over from a replica that went silent",
    "replica_name_shared": "another live process has this one's name (level error)",
    "control_ignored": "something on the replicas' control channels is no message of theirs",
    "workflow_listener_start": "the workflow listener of a user starts",
    "workflow_listener_attached": "the workflow listener of a user has its first snapshot",
    "workflow_invoice_changes": "watched invoice fields changed; their names, not their values",
    "workflow_step_changes": "step counters changed; their names, not their values",
    "workflow_listener_error": "the workflow listener of a user failed",
    "top_up_added": "a payment was added to a balance",
    "payment_unapplied": "a payment that no balance could take; `reason` says why, and somebody has to look",
    "webhook_refused": "a delivery to the webhook was refused: unsigned, too old, too large, or there is no secret",
    "webhook_failed": "an event of Stripe could not be applied; Stripe sends it again",
    "registry_mirror_off": "the registry is not mirrored to Firestore: none is configured",
    "registry_mirror_error": "mirroring the registry to Firestore failed; it is tried again after a back-off",
    "bus_up": "the bus is connected and subscribed",
    "bus_down": "the bus lost Redis; it reconnects with back-off",
    "bus_gap": "events may have been missed; the sockets concerned get a sync",
    "bus_refused": "Redis refuses a subscription",
    "redis_refused": "Redis refuses a command to our user, or our database number (level error)",
    "event_undelivered": "an event could not be put into the sockets' outboxes (told once a connection)",
    "plugin_ready": "a plugin is open",
    "plugin_quarantined": "a plugin was put aside; the others serve",
    "service_start": "the service starts",
    "service_ready": "the service takes calls",
    "service_drain": "the service was told to stop and lets go",
    "service_stop": "the service has stopped",
    "library": "a warning of a library (uvicorn, redis, grpc); `logger` names it",
    "task_failed": "a turn of a background task failed; `task` names it, and it goes on",
    "task_died": "a background task ended with an error",
}

MAX_TEXT = 1_000
"""Characters of one text in a log record; of a longer one the beginning is kept."""
_MAX_ITEMS = 100
_MAX_DEPTH = 4
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one app (CONTRACT, Observability). No label holds a user, a session, a key or a channel."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.rpc_duration = Histogram(
            "callboard_rpc_duration_seconds", "Time from envelope to reply", ["namespace", "method", "code"],
            buckets=_BUCKETS, registry=r,
        )  # fmt: skip
        self.rpc_in_flight = Gauge("callboard_rpc_in_flight", "Calls being run", ["namespace"], registry=r)
        self.idempotency = Counter("callboard_idempotency", "Keyed writes by outcome", ["outcome"], registry=r)
        self.redis_evicted_keys = Gauge(
            "callboard_redis_evicted_keys", "Keys evicted by Redis since its nodes started", registry=r
        )
        self.redis_evicted_keys.set(math.nan)  # not known yet
        self.events_published = Counter(
            "callboard_events_published", "Events sent to Redis", ["prefix", "type"], registry=r
        )
        self.events_delivered = Counter(
            "callboard_events_delivered", "Events written to sockets", ["prefix"], registry=r
        )
        self.events_dropped = Counter(
            "callboard_events_dropped", "Events not delivered", ["prefix", "reason"], registry=r
        )
        self.event_lag = Histogram(
            "callboard_event_lag_seconds",
            "From an event's timestamp to its socket",
            buckets=_BUCKETS,
            registry=r,
        )
        self.ws_connections = Gauge("callboard_ws_connections", "Open WebSockets", registry=r)
        self.ws_closed = Counter("callboard_ws_closed", "Closed WebSockets", ["code"], registry=r)
        self.listeners_active = Gauge(
            "callboard_listeners_active", "Listeners run by this replica", ["listener"], registry=r
        )
        self.listener_restarts = Counter(
            "callboard_listener_restarts", "Restarts after an error", ["listener"], registry=r
        )
        self.listener_last_event_age = Gauge(
            "callboard_listener_last_event_age_seconds",
            "Since the last event of any such listener",
            ["listener"],
            registry=r,
        )
        self.replicas = Gauge("callboard_replicas", "Replicas that live, as this one sees it", registry=r)
        self.presence_users = Gauge("callboard_presence_users", "Users online on all replicas", registry=r)
        self.bus_up = Gauge("callboard_bus_up", "1 while the bus's own probe comes back", registry=r)
        self.bus_probe_rtt = Gauge(
            "callboard_bus_probe_rtt_seconds", "Last round trip of the bus's own probe", registry=r
        )
        self.bus_probe_failures = Counter(
            "callboard_bus_probe_failures", "Probes that did not come back in time", registry=r
        )
        self.bus_rebuilds = Counter("callboard_bus_rebuilds", "Connections that replaced a lost one", registry=r)
        self.bus_gaps = Counter("callboard_bus_gaps", "Times that events may have been missed", registry=r)
        self.event_loop_lag = Gauge(
            "callboard_event_loop_lag_seconds", "How late the event loop ran its last tick", registry=r
        )
        self.tasks = Gauge("callboard_tasks", "Tasks of the event loop, counted when this is read", registry=r)
        self.plugin_up = Gauge("callboard_plugin_up", "1 when the plugin serves", ["plugin", "version"], registry=r)
        self.build_info = Info("callboard_build", "What is running", registry=r)


class Telemetry:
    """The log and the metrics of one app. Readable logs, dev mode's, also show the lines of level debug."""

    def __init__(
        self, *, replica: str, readable: bool = False, debug: bool = False, stream: TextIO | None = None
    ) -> None:
        self.metrics = Metrics()
        self.debug = debug
        self.log = make_log(stream or sys.stdout, readable=readable, debug=debug or readable).bind(replica=replica)

    def user(self, uid: str | None) -> str | None:
        """A user's id as logs may show it: hashed, unless LISTENERS_DEBUG."""
        if uid is None or self.debug:
            return uid
        return hashlib.blake2s(uid.encode(), digest_size=6).hexdigest()


def where_raised(error: BaseException) -> dict[str, Any]:
    """What a log may say of an exception: its types and frames. Its text may quote arguments, so it stays out."""
    chain: list[str] = []
    current: BaseException | None = error
    while current is not None and len(chain) < 5:
        chain.append(type(current).__qualname__)
        current = current.__cause__ or current.__context__
    frames = traceback.extract_tb(error.__traceback__)[-12:]
    return {"error": " < ".join(chain), "frames": [f"{f.filename}:{f.lineno} {f.name}" for f in frames]}


def make_log(stream: TextIO, *, readable: bool, debug: bool) -> FilteringBoundLogger:
    """A structlog logger that writes to `stream`; nothing global is configured."""
    render: Any = structlog.dev.ConsoleRenderer(colors=stream.isatty()) if readable else _json_line
    processors = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _bounded,
        *([_printable] if readable else []),
        render,
    ]
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(10 if debug else 20),
        cache_logger_on_first_use=True,
    )
    return logger


def log_what_escapes(log: FilteringBoundLogger) -> None:
    """Have the log tell of exceptions nobody caught, on a thread or in a finalizer: Python would print their texts.

    For a process of the service's own.
    """

    def thread_died(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            name = args.thread.name if args.thread else "?"
            log.error("task_died", task=f"thread {name}", **where_raised(args.exc_value))

    def finalizer_failed(args: Any) -> None:
        log.error("task_died", task="finalizer", **(where_raised(args.exc_value) if args.exc_value else {}))

    threading.excepthook = thread_died
    sys.unraisablehook = finalizer_failed


def _bounded(_: WrappedLogger, __: str, record: EventDict) -> EventDict:
    """No record is long, and none holds a text that cannot be written."""
    return {name: _shortened(value) for name, value in record.items()}


def _shortened(value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, float) or (isinstance(value, int) and -(2**63) <= value < 2**64):
        return value
    if isinstance(value, dict | list | tuple | set | frozenset) and depth < _MAX_DEPTH:
        surplus = len(value) - _MAX_ITEMS
        some = list(value)[:_MAX_ITEMS]
        if isinstance(value, dict):
            short = {_text(key): _shortened(value[key], depth + 1) for key in some}
            return {**short, "…": surplus} if surplus > 0 else short
        return [*(_shortened(item, depth + 1) for item in some), *([f"… and {surplus} more"] if surplus > 0 else [])]
    return _text(value)


def _text(value: object) -> str:
    text = str(value)
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}… ({len(text)} characters)"
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()  # half surrogates: of file names and environments


def _printable(_: WrappedLogger, __: str, record: EventDict) -> EventDict:
    """A caller's text must not steer the terminal that shows it."""
    return {k: v if not isinstance(v, str) or v.isprintable() else repr(v) for k, v in record.items()}


def _json_line(_: WrappedLogger, __: str, record: EventDict) -> str:
    line = msgspec.json.encode(record).decode()
    if line.isprintable():
        return line
    # What ends a line, steers a terminal, turns the reading direction or is not seen at all, and JSON leaves as it is.
    return "".join(sign if sign.isprintable() else json.dumps(sign)[1:-1] for sign in line)
