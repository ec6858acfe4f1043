"""The parts of ``execnet.xdeploy``; ``far`` is shipped.

Start at ``create`` for environments, at ``project`` for projects.
"""
