"""Namespace WORKFLOW: invoice fields and step counters of task documents as live events."""

from callboard_workflow_listener.plugin import register_services
from callboard_workflow_listener.service import Workflow

__all__ = ["Workflow", "register_services"]
