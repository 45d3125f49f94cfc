"""The namespace FIREBASE_MANAGEMENT: its groups of methods in one service, and its listener."""

from __future__ import annotations

from callboard_firebase_management.beta import BetaRequests
from callboard_firebase_management.billing import Billing
from callboard_firebase_management.clients import Clients
from callboard_firebase_management.documents import Documents
from callboard_firebase_management.internal_messages import InternalMessages
from callboard_firebase_management.jobs import Jobs
from callboard_firebase_management.listener import NotificationListener
from callboard_firebase_management.mandates import Mandates
from callboard_firebase_management.parameters import Parameters
from callboard_firebase_management.scheduler import Scheduler
from callboard_firebase_management.telegram import Telegram
from callboard_firebase_management.workflow import Workflow


class FirebaseManagement(
    BetaRequests,
    Billing,
    Clients,
    Documents,
    InternalMessages,
    Jobs,
    Mandates,
    Parameters,
    Scheduler,
    Telegram,
    Workflow,  # and Notifications with it
):
    """Firestore documents, jobs, notifications and workflows, clients and settings, billing."""

    namespace = "FIREBASE_MANAGEMENT"

    NotificationListener = NotificationListener
