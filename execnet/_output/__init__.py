"""``output=``: what workers write to stdout and stderr.  Shipped: ``far*``."""
