"""From a spec to the command that reaches an interpreter.  Shipped: ``far_socket``."""
