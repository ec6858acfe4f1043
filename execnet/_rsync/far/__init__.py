"""What RSync ships to workers; the coordinator runs the same code at its own end.

These modules keep to what Python 2.7 and today's Python both accept.
"""
