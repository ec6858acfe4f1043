"""``via=``: workers that are reached through another gateway's worker.  Shipped: ``far*``.

Start at ``stream`` here and at ``far`` there.
"""
