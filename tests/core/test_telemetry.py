from __future__ import annotations

import io
import json

from support import Recorded

from callboard.telemetry import Telemetry, where_raised


def test_one_record_is_one_line_of_json(recorded: Recorded) -> None:
    recorded.telemetry.log.info("rpc_ok", method="A.b\r\nrpc_ok \x1b[31m", size=1)
    (line,) = recorded.lines()
    assert recorded.text.count("\n") == 1
    assert (line["event"], line["level"], line["replica"]) == ("rpc_ok", "info", "test")
    assert line["timestamp"].endswith("Z")


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
