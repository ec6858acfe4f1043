"""What ``execnet.xdeploy`` is made of; ``far`` is what is shipped.  Start at ``create``."""
