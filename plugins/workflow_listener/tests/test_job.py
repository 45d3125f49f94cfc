from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from callboard_workflow_listener.job import INVOICE_FIELDS, differences, read_invoice, read_job


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
