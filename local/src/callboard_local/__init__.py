"""The embedded back ends of dev mode and tests: real servers over real sockets, on the loopback only."""

from .backends import Backends
from .certificates import Authority
from .child import StartError
from .deployment import Deployment, deployed
from .firestore_process import FirestoreProcess
from .google_emulator import GoogleFirestoreProcess
from .proxy import FaultProxy
from .realtime_process import RealtimeProcess
from .server import PortInUseError
from .stripe_process import StripeControl, StripeProcess
from .valkey import ValkeyServer
from .valkey_cluster import ValkeyCluster

__all__ = [
    "Authority",
    "Backends",
    "Deployment",
    "FaultProxy",
    "FirestoreProcess",
    "GoogleFirestoreProcess",
    "PortInUseError",
    "RealtimeProcess",
    "StartError",
    "StripeControl",
    "StripeProcess",
    "ValkeyCluster",
    "ValkeyServer",
    "deployed",
]
