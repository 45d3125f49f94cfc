"""The namespace FIREBASE_MANAGEMENT: Firestore documents, jobs, notifications and billing."""

from callboard_firebase_management.hooks import (
    register_health_checks,
    register_routes,
    register_services,
    register_token_verifier,
)
from callboard_firebase_management.items import Item, notification_item
from callboard_firebase_management.listener import NotificationListener
from callboard_firebase_management.service import FirebaseManagement

__all__ = [
    "FirebaseManagement",
    "Item",
    "NotificationListener",
    "notification_item",
    "register_health_checks",
    "register_routes",
    "register_services",
    "register_token_verifier",
]
