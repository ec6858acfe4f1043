"""Programs for the far side of ``socket=``; they run without execnet, from Python 2.7 on."""
