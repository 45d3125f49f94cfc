"""The replicas together: leases, presence, and who runs which listener."""
