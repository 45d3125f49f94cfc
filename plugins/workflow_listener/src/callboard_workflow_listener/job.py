"""A job's watched values: what is read from its documents, and how two states of it differ.

    before = read_job(document.data)
    after = read_job(newer.data)
    differences(before.invoice, after.invoice)      # {"currency": "EUR", "dueDate": None}

A value that is absent or null is no value: it is left out of a state, and its loss is a difference to `None`. What does
not have the expected shape (a counter that is text, a map that is a list) counts as absent too, so that one malformed
document never costs the others their events.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from callboard import InvalidArgs
from callboard_firebase import json_size, shorten, to_wire

MAX_VALUE_BYTES = 8 * 1024
"""Of an invoice's value, as JSON. A longer text is cut and ends with `…`; a larger list or map comes as such a text."""
MAX_STEPS_BYTES = 64 * 1024
"""Of all counters with their names; of more, those that come first by name. So a job has at most 190 KiB, and its sync
and its deltas fit into an event (256 KiB), whatever its documents hold (up to 1 MiB each)."""

INVOICE_FIELDS = frozenset(
    {
        "invoiceReference",
        "recipient",
        "invoiceDescription",
        "totalAmountDueVATExcluded",
        "totalAmountDueVATIncluded",
        "VATAmount",
        "recipientAddress",
        "dueDate",
        "sender",
        "invoiceDate",
        "currency",
        "VATPercentages",
        "sender_country",
        "account_number",
        "account_name",
    }
)
STEPS = "APBookeeper_step_status"
_COUNT_BYTES = 30  # a number, and the quotes, colon and comma around it


@dataclass(frozen=True, slots=True)
class Job:
    """Watched values as the wire shows them: `invoice` by field name, `steps` by step name."""

    invoice: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, int | float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.invoice or self.steps)


def read_job(document: Mapping[str, Any] | None, older: Mapping[str, Any] | None = None) -> Job:
    """The watched values of `task_manager/{job_id}`, its data given as Google's client reads it.

    `older` is the data of the sub-document `document/initial_data`, where older writers keep the invoice: its fields,
    or a map `initial_data` of them. Where both documents have a field, the job's own wins.
    """
    inside = _map(_map(document).get("document")).get("initial_data")
    nested = _map(older).get("initial_data")
    return Job(
        invoice={**read_invoice(older), **read_invoice(nested), **read_invoice(inside)},
        steps=_counters(_map(document).get(STEPS)),
    )


def read_invoice(fields: object) -> dict[str, Any]:
    """The watched fields of an invoice map, converted for the wire."""
    found = {name: _wire(value) for name, value in _map(fields).items() if name in INVOICE_FIELDS}
    return {name: value for name, value in found.items() if value is not None}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The names whose values differ, with the new value; `None` for those that are gone."""
    changed = {name: value for name, value in after.items() if name not in before or before[name] != value}
    return changed | {name: None for name in before if name not in after}


def _counters(steps: object) -> dict[str, int | float]:
    counters: dict[str, int | float] = {}
    room = MAX_STEPS_BYTES
    for step, count in sorted(_map(steps).items()):
        if isinstance(count, int | float) and not isinstance(count, bool) and math.isfinite(count):
            room -= json_size(step) + _COUNT_BYTES
            if room < 0:
                break
            counters[step] = count
    return counters


def _wire(value: object) -> Any:
    try:
        wire = to_wire(value)
    except InvalidArgs:
        return None  # it has no form in JSON
    if isinstance(wire, list | dict):
        encoded = msgspec.json.encode(wire)
        return wire if len(encoded) <= MAX_VALUE_BYTES else shorten(encoded.decode(), MAX_VALUE_BYTES)
    return shorten(wire, MAX_VALUE_BYTES) if isinstance(wire, str) else wire


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
