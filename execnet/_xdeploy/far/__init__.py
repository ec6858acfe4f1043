"""The far side of ``execnet.xdeploy``, which is shipped.

Its modules keep to what Python 2.7 and today's Python both accept.
"""
