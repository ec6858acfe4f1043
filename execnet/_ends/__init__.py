"""How gateways and processes end, and how that is noticed and reported.  Shipped: ``far_*``."""
