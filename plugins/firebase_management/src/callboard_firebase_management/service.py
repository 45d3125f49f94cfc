"""The namespace FIREBASE_MANAGEMENT: its groups of methods in one service, and its listener."""

from __future__ import annotations

from callboard_firebase_management.documents import Documents
from callboard_firebase_management.internal_messages import InternalMessages
from callboard_firebase_management.jobs import Jobs
from callboard_firebase_management.listener import NotificationListener
from callboard_firebase_management.workflow import Workflow


class FirebaseManagement(
    Documents,
    InternalMessages,
    Jobs,
    Workflow,  # and Notifications with it
):
    """Firestore documents, jobs, notifications and workflows."""

    namespace = "FIREBASE_MANAGEMENT"

    NotificationListener = NotificationListener
