"""``popen//forkserver``: workers forked from a template.  Shipped: ``far``, the template."""
