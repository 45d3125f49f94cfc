from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from callboard.events.bus import MAX_EVENT_BYTES
from callboard.messages import encode
from callboard_workflow_listener.job import INVOICE_FIELDS, MAX_VALUE_BYTES, differences, read_invoice, read_job


def document(invoice: Any = None, steps: Any = None) -> dict[str, Any]:
    return {"document": {"initial_data": invoice}, "APBookeeper_step_status": steps}


def test_the_fifteen_fields_are_read_and_no_other() -> None:
    given = {name: f"value of {name}" for name in INVOICE_FIELDS}
    assert len(given) == 15
    assert read_job(document({**given, "secret": "x"})).invoice == given


def test_values_are_read_as_the_wire_shows_them() -> None:
    due = datetime(2025, 9, 20, 11, 44, tzinfo=UTC)
    invoice = {"dueDate": due, "totalAmountDueVATExcluded": 1250.0, "VATPercentages": [8.1, {"rate": 2}]}
    assert read_invoice(invoice) == {
        "dueDate": "2025-09-20T11:44:00Z",
        "totalAmountDueVATExcluded": 1250.0,
        "VATPercentages": [8.1, {"rate": 2}],
    }


def test_the_jobs_own_document_wins_over_the_older_one() -> None:
    job = read_job(document({"currency": "EUR"}), {"currency": "CHF", "sender": "Acme"})
    assert job.invoice == {"currency": "EUR", "sender": "Acme"}


def test_the_older_document_may_nest_the_invoice() -> None:
    job = read_job(document({"currency": "EUR"}), {"initial_data": {"currency": "CHF", "sender": "Acme"}})
    assert job.invoice == {"currency": "EUR", "sender": "Acme"}


def test_null_is_no_value() -> None:
    assert read_job(document({"currency": None, "sender": "Acme"})).invoice == {"sender": "Acme"}


@pytest.mark.parametrize(
    "malformed",
    [
        None,
        {},
        {"document": "text"},
        {"document": {"initial_data": ["a", "list"]}},
        {"document": {"initial_data": None}},
        {"APBookeeper_step_status": "text"},
        {"APBookeeper_step_status": [1, 2]},
        {"APBookeeper_step_status": None},
    ],
)
def test_a_malformed_document_has_no_values(malformed: Any) -> None:
    assert not read_job(malformed)


def test_only_numbers_count_steps() -> None:
    steps = {
        "a": 1,
        "b": 2.5,
        "text": "3",
        "flag": True,
        "nan": math.nan,
        "infinite": math.inf,
        "map": {},
        "null": None,
    }
    assert read_job(document(steps=steps)).steps == {"a": 1, "b": 2.5}


def test_a_value_without_a_form_in_json_is_left_out() -> None:
    assert read_invoice({"currency": object(), "sender": "Acme"}) == {"sender": "Acme"}


def test_differences_are_what_changed_and_nothing_else() -> None:
    before = {"same": 1, "changed": 1, "gone": 1}
    after = {"same": 1, "changed": 2, "new": 3}
    assert differences(before, after) == {"changed": 2, "new": 3, "gone": None}
    assert differences(after, after) == {}


def test_not_a_number_is_equal_to_itself() -> None:
    one, two = read_invoice({"VATAmount": math.nan}), read_invoice({"VATAmount": float("nan")})
    assert differences(one, two) == {}


@pytest.mark.parametrize("huge", ["a" * 900_000, "\0" * 300_000, ["item"] * 100_000, {"k": "é" * 400_000}])
def test_whatever_the_documents_hold_a_job_fits_into_an_event(huge: Any) -> None:
    invoice = read_job(document(dict.fromkeys(INVOICE_FIELDS, huge))).invoice
    assert invoice.keys() == INVOICE_FIELDS
    for value in invoice.values():
        assert isinstance(value, str)
        assert value.endswith("…")
        assert MAX_VALUE_BYTES - 10 < len(encode(value)) <= MAX_VALUE_BYTES + 2
    steps = [read_job(document(steps={f"{prefix}{n:06}": 2**62 for n in range(40_000)})).steps for prefix in "ab"]
    assert len(steps[0]) > 1_000
    for payload in ({"invoice": invoice, "steps": steps[0]}, differences(steps[0], steps[1]), differences({}, invoice)):
        assert len(encode(payload)) < MAX_EVENT_BYTES - 10_000


def test_values_up_to_the_largest_size_are_as_stored() -> None:
    given = {"sender": "a" * MAX_VALUE_BYTES, "VATPercentages": [{"rate": 8.1}] * 500}
    assert read_invoice(given) == given
