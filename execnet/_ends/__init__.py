"""How gateways and processes end, how that is noticed and reported, and what a worker may do.

What it may send is in ``admission`` and ``checked``, what it may use in ``limits``.  Which exit
status it had is decided in ``gateway.Gateway._explain_end``.  Shipped: ``far_*``.
"""
