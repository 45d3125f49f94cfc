"""The namespace FIREBASE_REALTIME: chat threads and direct messages in the Realtime Database."""

from callboard_firebase_realtime.chat_listener import ChatListener
from callboard_firebase_realtime.hooks import register_health_checks, register_services, register_token_verifier
from callboard_firebase_realtime.message_listener import MessageListener
from callboard_firebase_realtime.service import FirebaseRealtime

__all__ = [
    "ChatListener",
    "FirebaseRealtime",
    "MessageListener",
    "register_health_checks",
    "register_services",
    "register_token_verifier",
]
