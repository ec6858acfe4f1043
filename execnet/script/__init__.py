"""Programs for the far side of ``socket=``; each runs standing alone, from Python 2.7 on."""
