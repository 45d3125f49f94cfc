"""What the plugin tells the core."""

from __future__ import annotations

from collections.abc import Sequence

from callboard import Service, hookimpl
from callboard.settings import Settings
from callboard_workflow_listener.service import Workflow


@hookimpl
def register_services(settings: Settings) -> Sequence[type[Service]]:
    return [Workflow]
