"""What a gateway can do beyond the core: each is loaded when it is first needed, and shipped.

These modules keep to what Python 2.7 and today's Python both accept.  They may import
``gateway_base``, which finds them by name (``gateway_base.load_part``) and does without them
where it runs alone.
"""
