"""Sample data for one user, so that a fresh Firestore has something to show."""

import asyncio
import datetime
from typing import Any

from google.api_core.exceptions import AlreadyExists
from google.cloud.firestore import SERVER_TIMESTAMP, AsyncClient

USER = "demo"

_INVOICE = {
    "invoiceReference": "INV-2025-0042",
    "recipient": "Demo Bakery",
    "invoiceDescription": "Flour, 25 kg, and delivery",
    "totalAmountDueVATExcluded": 100.0,
    "totalAmountDueVATIncluded": 107.7,
    "VATAmount": 7.7,
    "recipientAddress": "1 Mill Lane, 1200 Geneva",
    "dueDate": "2025-10-20",
    "sender": "Alpine Mills",
    "invoiceDate": "2025-09-20",
    "currency": "CHF",
    "VATPercentages": "7.7",
    "sender_country": "CH",
    "account_number": "6000",
    "account_name": "Goods purchased",
}

_STEPS = {"step_extract_data": 2, "step_validate_data": 1, "step_book_entry": 0}


async def seed(client: AsyncClient, user: str = USER) -> int:
    """Write what is missing of the sample data; never touches a document that exists. How many were written."""
    written = await asyncio.gather(
        *(_create(client, path, data) for path, data in _documents(f"clients/{user}").items())
    )
    return sum(written)


async def _create(client: AsyncClient, path: str, data: dict[str, Any]) -> bool:
    try:
        await client.document(path).create(data)
    except AlreadyExists:
        return False
    return True


def _documents(home: str) -> dict[str, dict[str, Any]]:
    notifications = {
        "job456": _notification("job456", "invoice-42.pdf", "in_progress", age_minutes=2, read=False),
        "job455": _notification("job455", "invoice-41.pdf", "completed", age_minutes=35, read=False),
        "job454": _notification("job454", "receipt.png", "error", age_minutes=90, read=False)
        | {"additional_info": '{"error_message": "The picture is too dark to read."}'},
        "job453": _notification("job453", "contract.pdf", "completed", age_minutes=1440, read=True),
        "job452": _notification("job452", "invoice-40.pdf", "completed", age_minutes=2880, read=True),
    }
    return {
        **{f"{home}/notifications/{job_id}": data for job_id, data in notifications.items()},
        f"{home}/task_manager/job456": {
            "job_id": "job456",
            "status": "in_progress",
            "document": {"initial_data": _INVOICE},
            "APBookeeper_step_status": _STEPS,
        },
        f"{home}/billing/current_balance": {
            "currency": "CHF",
            "current_balance": 37.5,
            "current_balance_minor": 3750,
            "current_topping": 50.0,
            "current_topping_minor": 5000,
            "current_expenses": 12.5,
            "current_expenses_minor": 1250,
            "timestamp_topping": SERVER_TIMESTAMP,
            "last_updated": SERVER_TIMESTAMP,
        },
    }


def _notification(job_id: str, file_name: str, status: str, *, age_minutes: int, read: bool) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "file_id": f"file-{job_id}",
        "file_name": file_name,
        "collection_id": "demo-bakery",
        "collection_name": "Demo Bakery",
        "function_name": "APBookeeper",
        "status": status,
        "read": read,
        "timestamp": datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=age_minutes),
        "additional_info": "",
    }
