"""Sample data for one user of a Realtime Database: a chat thread and a direct message."""

import datetime
import http.client
import json
from typing import Any
from urllib.parse import urlencode

from .realtime.push_ids import PushIds
from .seed import USER

SPACE = "demo-bakery"
THREAD = "invoice-42"

_TIMEOUT_S = 10

_CHAT = (
    (12, "demo", "Is the flour invoice booked?"),
    (11, "agent", "Two of three steps are done; the validation is running."),
    (2, "demo", "Thank you."),
)


def seed_realtime(host: str, port: int, namespace: str, user: str = USER) -> int:
    """Write what is missing of the sample data; touches nothing that exists. How many places were written. Blocks."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        return sum(_create(connection, namespace, path, data) for path, data in _places(user).items())
    finally:
        connection.close()


def _create(connection: http.client.HTTPConnection, namespace: str, path: str, data: Any) -> bool:
    query = urlencode({"ns": namespace, "print": "silent"})
    # Write only where there is nothing: the server compares and writes in one step.
    connection.request("PUT", f"/{path}.json?{query}", json.dumps(data), {"if-match": "null_etag"})
    response = connection.getresponse()
    text = response.read().decode()
    if response.status not in (204, 412):
        raise RuntimeError(f"the sample data was refused with status {response.status}: {text}")
    return response.status == 204


def _places(user: str) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    push_ids = PushIds()

    def named(minutes: int, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        at = now - datetime.timedelta(minutes=minutes)
        written = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")  # as FIREBASE_REALTIME writes it
        return push_ids.make(int(at.timestamp() * 1000)), data | {"timestamp": written}

    messages = dict(
        named(minutes, {"content": text, "sender_id": sender, "message_type": "MESSAGE", "read": sender == user})
        for minutes, sender, text in _CHAT
    )
    direct = dict([
        named(
            1,
            {
                "job_id": "job456",
                "file_id": "file-job456",
                "file_name": "invoice-42.pdf",
                "collection_id": SPACE,
                "collection_name": "Demo Bakery",
                "function_name": "APBookeeper",
                "status": "info",
                "additional_info": "",
            },
        )
    ])  # fmt: skip
    return {
        f"{SPACE}/chats/{THREAD}": {"thread_name": "Invoice 42", "messages": messages},
        f"clients/{user}/direct_message_notif": direct,
    }
