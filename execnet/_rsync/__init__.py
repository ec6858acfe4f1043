"""RSync: its two near halves, what it returns, its patterns.  Shipped: ``far``."""
