"""How gateways and their processes end, and how that is noticed and told.  Shipped: ``far_*``."""
