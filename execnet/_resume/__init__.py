"""Gateways that outlive their connections: ``resume=SECONDS``.  Start at ``far_link``."""
