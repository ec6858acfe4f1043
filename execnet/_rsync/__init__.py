"""RSync: its two near halves, its results and its patterns.  ``far`` is shipped."""
