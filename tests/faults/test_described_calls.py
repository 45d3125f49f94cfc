"""Row 25: calls made from our own `/openapi.json`, fitting and unfitting, of every method of every installed plugin."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from faults.fleet import TOKEN
from faults.victim import complaints, victim
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from callboard_local.fault_figures import Fault

pytestmark = pytest.mark.anyio

EXAMPLES = 6
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}", "X-Timeout-Ms": "10000"}
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
PLACES: dict[str, Any] = {
    "collection_path": "clients/demo/notifications",
    "document_path": "clients/demo/notifications/n1",
    "doc_path": "clients/demo/notifications/n1",
    "document_paths": ["clients/demo/notifications/n2"],
    "mandate_path": "clients/demo/bo_clients/c1/mandates/m1",
    "doc_id": "n1",
    "param_type": "p",
    "job_type": "j",
    "telegram_username": "tg",
    "email": "demo@example.org",
}
IDS = ("_id", "_code", "_key")
"""What random text never is: with these the calls get as far as the back ends."""


class Calls:
    """One session of calls, and how they were answered."""

    def __init__(self, url: str) -> None:
        self.codes: Counter[str] = Counter()
        self.problems: list[str] = []
        self._url = url
        self._session = requests.Session()
        self._document = self._session.get(f"{url}/openapi.json", headers=AUTHORIZED, timeout=30).json()

    def operations(self) -> Iterator[APIOperation[Any, Any, Any, Any]]:
        for found in schemathesis.openapi.from_dict(self._document).get_all_operations():
            assert isinstance(found, Ok), found
            yield found.ok()

    def make(self) -> None:
        for operation in self.operations():
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

                @settings(
                    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                @given(operation.as_strategy(generation_mode=mode))
                def call(case: Case[Any]) -> None:
                    self._call(case)

                call()

    def _call(self, case: Case[Any]) -> None:
        is_unfit = case.meta is not None and any(
            part is ParameterLocation.BODY and about.mode is GenerationMode.NEGATIVE
            for part, about in case.meta.components.items()
        )
        if isinstance(case.body, dict) and not is_unfit:
            case.body |= {name: value for name, value in PLACES.items() if name in case.body}
            identifiers = [name for name, value in case.body.items() if name.endswith(IDS) and isinstance(value, str)]
            case.body |= dict.fromkeys(identifiers, "demo")
        response = case.call(base_url=self._url, session=self._session, headers=AUTHORIZED)
        reply = response.json()
        code = "OK" if reply["ok"] else reply["error"]["code"]
        self.codes[code] += 1
        refused = code in ("INVALID_ARGS", "UNAUTHENTICATED", "PERMISSION_DENIED")
        if code in ("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED") or (is_unfit and not refused):
            self.problems.append(f"{case.operation.path} {case.body!r:.300}: {code}")
        try:
            case.validate_response(response, checks=CHECKS)
        except BaseExceptionGroup as problems:
            self.problems += [f"{case.operation.path}: {problem}"[:500] for problem in problems.exceptions]

    def without_a_credential(self) -> set[tuple[str, int, int]]:
        """Operation, and the statuses without a token and with a wrong one."""

        def status(path: str, **headers: str) -> int:
            return self._session.post(self._url + path, json={}, headers=headers, timeout=30).status_code

        paths = [operation.path for operation in self.operations()]
        return {(path, status(path), status(path, Authorization="Bearer wrong")) for path in paths}


@pytest.mark.timeout(300)
@pytest.mark.fault(row=25)
async def test_every_method_answers_as_its_description_says(fault: Fault) -> None:
    async with victim() as replica:
        calls = await asyncio.to_thread(Calls, replica.url)
        before = replica.cost.rss
        await asyncio.to_thread(calls.make)
        opened = {one for one in await asyncio.to_thread(calls.without_a_credential) if one[1:] != (401, 403)}
        errors = complaints(replica)
        fault.figure(
            calls=calls.codes.total(), ok=calls.codes["OK"], refused=calls.codes["INVALID_ARGS"],
            internal=calls.codes["INTERNAL"], problems=len(calls.problems), open_without_token=len(opened),
            rss_grown_mib=(replica.cost.rss - before) / 2**20,
        )  # fmt: skip
    assert calls.problems == []
    assert opened == set()
    assert errors == []
    assert calls.codes["OK"] > 200
    assert calls.codes["INVALID_ARGS"] > 200
