"""From a spec to the command that reaches an interpreter: ``table``.  Shipped: ``far_socket``."""
