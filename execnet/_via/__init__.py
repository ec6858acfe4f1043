"""``via=``: workers behind another gateway's worker.  Shipped: ``far``, ``far_ends``."""
