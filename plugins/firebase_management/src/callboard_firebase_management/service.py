"""The namespace FIREBASE_MANAGEMENT: its groups of methods in one service, and its listener."""

from __future__ import annotations

from callboard_firebase_management.billing import Billing
from callboard_firebase_management.documents import Documents
from callboard_firebase_management.jobs import Jobs
from callboard_firebase_management.listener import NotificationListener
from callboard_firebase_management.notifications import Notifications


class FirebaseManagement(Documents, Jobs, Notifications, Billing):
    """Firestore documents, jobs, notifications and billing."""

    namespace = "FIREBASE_MANAGEMENT"

    NotificationListener = NotificationListener
