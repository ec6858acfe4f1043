"""The far side of ``execnet.xdeploy``, which is shipped.

The coordinator runs the modules that have a ``main``: ``find`` looks for an environment, ``build``
makes one, ``fetch`` gets a Python for it, ``layers`` makes a layer, ``use`` puts that on the path
of a worker, ``kept`` lists and prunes.  ``core`` keeps compiled code for later calls; ``quick``
then runs ``start``, which finds an environment and starts its worker at once.  These import the
others.
All of them keep to what Python 2.7 and today's Python both accept.
"""
