"""Services: processes that keep state.  Shipped: ``far`` and all ``far_*``.  Start at ``near``."""
