"""An event on its way: `bus` (Redis) and `hub` (this replica's sockets)."""
