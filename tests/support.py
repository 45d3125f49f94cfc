"""What several test modules use beside fixtures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

from callboard.settings import Settings
from callboard.telemetry import Telemetry

MakeSettings = Callable[..., Settings]


class Recorded:
    """Telemetry whose log lines can be read back."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.telemetry = Telemetry(replica="test", debug=True, stream=self._stream)

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [record for record in records if event in (None, record["event"])]

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample, 0 when there is none yet."""
        return self.telemetry.metrics.registry.get_sample_value(name, labels) or 0.0
