"""What the plugin registers."""

from __future__ import annotations

from collections.abc import Sequence

from callboard import Service, hookimpl
from callboard_firebase_management.service import FirebaseManagement


@hookimpl
def register_services() -> Sequence[type[Service]]:
    return [FirebaseManagement]
