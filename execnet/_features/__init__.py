"""Features beyond the core of a gateway: each is loaded when first needed, and shipped.

These modules keep to what Python 2.7 and today's Python both accept.  They may import
``gateway_base``, which finds them by name (``gateway_base.load_part``) and works without them
where it runs alone.
"""
