"""Namespace REGISTRY: sessions, presence and WebSocket tickets."""

from callboard_registry.plugin import register_services
from callboard_registry.service import Registry

__all__ = ["Registry", "register_services"]
