from __future__ import annotations

import gc
import io
import json
import sys
import threading
from typing import Any

import pytest
from support import Recorded

from callboard.settings import Secret
from callboard.telemetry import MAX_TEXT, Telemetry, log_what_escapes, where_raised


def test_one_record_is_one_line_of_json(recorded: Recorded) -> None:
    recorded.telemetry.log.info("rpc_ok", method="A.b\r\nrpc_ok \x1b[31m", size=1)
    (line,) = recorded.lines()
    assert recorded.text.count("\n") == 1
    assert (line["event"], line["level"], line["replica"]) == ("rpc_ok", "info", "test")
    assert line["timestamp"].endswith("Z")


HOSTILE = "a\r\nb\x00\x1b[31m\x7f\x85\x9b31m\u2028\u2029\u202e\u200b\ufeff\u061c\u00ad\u180e\U000e0041\ud800é😀"


def test_no_text_ends_a_line_or_steers_a_terminal(recorded: Recorded) -> None:
    recorded.telemetry.log.info("rpc_ok", method=HOSTILE, nested={HOSTILE: [HOSTILE, {"a": HOSTILE}]})
    assert len(recorded.text.splitlines()) == 1
    assert all(character.isprintable() for character in recorded.text.removesuffix("\n"))
    (line,) = recorded.lines()
    kept = HOSTILE.replace("\ud800", "\\ud800")
    assert line["method"] == kept
    assert line["nested"] == {kept: [kept, {"a": kept}]}


def test_no_record_is_long(recorded: Recorded) -> None:
    deep: Any = "end"
    for _ in range(500):
        deep = [deep]
    keys: dict[Any, int] = {"k" * 2**12: 1}
    keys.update(dict.fromkeys(range(500), 0))
    fields = {"text": "x" * 2**20, "many": ["y" * 2**10] * 2**10, "keys": keys}
    recorded.telemetry.log.info("rpc_ok", deep=deep, number=10**400, secret=Secret("s3cret"), **fields)
    (line,) = recorded.lines()
    assert line["text"] == "x" * MAX_TEXT + "… (1048576 characters)"
    assert (len(line["many"]), line["many"][-1]) == (101, "… and 924 more")
    assert line["keys"]["…"] == 401
    assert all(len(key) < 2 * MAX_TEXT for key in line["keys"])
    assert (line["number"][:4], line["secret"]) == ("1000", "Secret(…)")
    assert len(recorded.text) < 120 * MAX_TEXT


def test_what_nobody_caught_is_told_without_its_text(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # both are put back at the end
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    log_what_escapes(recorded.telemetry.log)

    def fail() -> None:
        raise ValueError("s3cret")

    class Fails:
        def __del__(self) -> None:
            fail()

    thread = threading.Thread(target=fail, name="poller")
    thread.start()
    thread.join()
    Fails()
    gc.collect()
    told = [(line["task"], line["error"]) for line in recorded.lines("task_died")]
    assert told == [("thread poller", "ValueError"), ("finalizer", "ValueError")]
    assert "s3cret" not in recorded.text


def test_user_ids_are_hashed_unless_debugging(recorded: Recorded) -> None:
    quiet = Telemetry(replica="r", stream=io.StringIO())
    assert quiet.user("demo") not in (None, "demo")
    assert quiet.user("demo") == Telemetry(replica="other", stream=io.StringIO()).user("demo")
    assert quiet.user(None) is None
    assert recorded.telemetry.user("demo") == "demo"


def test_debug_lines_need_debug_mode() -> None:
    stream = io.StringIO()
    Telemetry(replica="r", stream=stream).log.debug("rpc_call")
    assert stream.getvalue() == ""


def test_what_a_log_says_of_an_exception_leaves_out_its_text(recorded: Recorded) -> None:
    def fail() -> None:
        try:
            raise KeyError("s3cret")
        except KeyError as error:
            raise ValueError("s3cret too") from error

    try:
        fail()
    except ValueError as error:
        recorded.telemetry.log.error("rpc_error", **where_raised(error))
    (line,) = recorded.lines()
    assert line["error"] == "ValueError < KeyError"
    assert line["frames"][-1].endswith(" fail")
    assert "s3cret" not in recorded.text


def test_two_apps_in_one_process_do_not_share_metrics() -> None:
    one, other = (Telemetry(replica="r", stream=io.StringIO()) for _ in range(2))
    one.metrics.ws_connections.inc()
    assert other.metrics.registry.get_sample_value("callboard_ws_connections") == 0


def test_the_readable_form_is_for_people() -> None:
    stream = io.StringIO()
    Telemetry(replica="r", readable=True, stream=stream).log.info("service_ready", plugins=3, name="a\x00\x1b[31mb")
    assert not {"\x00", "\x1b"} & set(stream.getvalue())
    assert "service_ready" in stream.getvalue()
    assert not stream.getvalue().startswith("{")
    assert json.dumps({}) not in stream.getvalue()
